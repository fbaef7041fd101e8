-- The catalog of vectorizers and enrichments: what is kept up to date, what is to be done, and what could not be done; and how definitions
-- of either kind are found, paused and counted.
--
-- A definition is tied to its tables by triggers, and by nothing else. PostgreSQL keeps in a trigger which table and which columns
-- it is about, through renames, dumps, restores and pg_upgrade, and a trigger goes with its table; numbers or names in a
-- table of ours would be wrong after each of these. steadytext.vectorizer_place() finds them.

create table @extschema@.steadytext_vectorizers (
    id uuid not null default pg_catalog.gen_random_uuid() constraint steadytext_vectorizers_pkey primary key,
    name text not null,
    kind text not null default 'vectorizer',
    owner_role steadytext.role_id not null default steadytext.current_role_id(),
    source text not null,
    columns text[] not null,
    target_column text,
    destination text,
    model text,
    format text,
    chunk_size integer,
    chunk_overlap integer not null default 50,
    strategy text not null default 'recursive',
    index_type text not null default 'hnsw',
    distance text not null default 'cosine',
    dimensions integer,
    request_type text,
    params jsonb,
    given_keys text[],
    revision integer not null default 1,
    priority integer not null default 2,
    is_paused boolean not null default false,
    enqueue_existing boolean not null default true,
    truncate boolean not null default false,
    replaces uuid,
    created_at timestamptz not null default pg_catalog.now(),
    updated_at timestamptz not null default pg_catalog.now(),
    constraint steadytext_vectorizers_name_key unique (name, kind),
    constraint steadytext_vectorizers_replaces_key unique (replaces)
);
comment on table @extschema@.steadytext_vectorizers is
    'Definitions of vectorizers and enrichments: columns that are kept up to date with embeddings, or with answers of a model';
comment on column @extschema@.steadytext_vectorizers.id is
    'Identifier of the definition, by which its triggers and its work refer to it; a new one after steadytext_alter_vectorizer()';
comment on column @extschema@.steadytext_vectorizers.name is 'Name of the definition, unique among those of its kind in the database';
comment on column @extschema@.steadytext_vectorizers.kind is 'Kind of the definition: vectorizer or enrichment';
comment on column @extschema@.steadytext_vectorizers.owner_role is
    'Role that owns the source; vectors are written with its rights, as they are at the time';
comment on column @extschema@.steadytext_vectorizers.source is
    'Table that is the source, as it was called when the definition was made; steadytext.vectorizer_place() returns its present name';
comment on column @extschema@.steadytext_vectorizers.columns is
    'Columns that are embedded, as the format calls them. Text that is cut into chunks consists of those that the format does not name, with an empty line between them';
comment on column @extschema@.steadytext_vectorizers.target_column is
    'Column of the source that holds the vector, as it was called; NULL where vectors have a table of their own';
comment on column @extschema@.steadytext_vectorizers.destination is
    'Table of the chunks and their vectors, as it was called; NULL where vectors are in a column of the source';
comment on column @extschema@.steadytext_vectorizers.model is
    'Model, as for steadytext_embed(); NULL: the one that embeds by default';
comment on column @extschema@.steadytext_vectorizers.format is
    'Text that is embedded for a chunk, with $chunk and $name for columns, $$ for a dollar; NULL: the chunk alone. For enrichments: the prompt';
comment on column @extschema@.steadytext_vectorizers.chunk_size is
    'Maximum length of a chunk in tokens; NULL: the text is not cut';
comment on column @extschema@.steadytext_vectorizers.chunk_overlap is 'Number of tokens that a chunk has in common with the one before it';
comment on column @extschema@.steadytext_vectorizers.strategy is
    'Method of cutting texts: recursive, sentence, markdown or token';
comment on column @extschema@.steadytext_vectorizers.index_type is 'Type of the index on the vectors: hnsw, ivfflat or none';
comment on column @extschema@.steadytext_vectorizers.distance is
    'Distance that the index serves: cosine (operator <=>), l2 (<->) or inner_product (<#>)';
comment on column @extschema@.steadytext_vectorizers.dimensions is 'Number of dimensions of the vectors; NULL for enrichments, as all columns about vectors';
comment on column @extschema@.steadytext_vectorizers.request_type is 'For enrichments: type of the requests, as in steadytext_queue';
comment on column @extschema@.steadytext_vectorizers.params is 'For enrichments: parameters of the requests, besides the model';
comment on column @extschema@.steadytext_vectorizers.given_keys is 'For enrichments: columns of the key, as the format calls them';
comment on column @extschema@.steadytext_vectorizers.revision is 'For enrichments: counted up where all values are to be made anew';
comment on column @extschema@.steadytext_vectorizers.priority is 'Priority of the requests of the definition, 1 to 10';
comment on column @extschema@.steadytext_vectorizers.is_paused is 'True while the definition is paused: changes are noted, and nothing is done about them';
comment on column @extschema@.steadytext_vectorizers.enqueue_existing is 'True if rows that were there before the definition are embedded, or get their value, too; false: only when they change';
comment on column @extschema@.steadytext_vectorizers.truncate is
    'True if a text that is too long for the model is cut at its end; otherwise its row fails';
comment on column @extschema@.steadytext_vectorizers.replaces is
    'Definition whose place this one takes as soon as its vectors are complete; NULL for all others. Searches pass over definitions that have this';
comment on column @extschema@.steadytext_vectorizers.created_at is 'Time when the definition was created';
comment on column @extschema@.steadytext_vectorizers.updated_at is 'Time when the definition was last changed';
comment on constraint steadytext_vectorizers_pkey on @extschema@.steadytext_vectorizers is 'One row per definition';
comment on constraint steadytext_vectorizers_name_key on @extschema@.steadytext_vectorizers is 'Finds a definition by its name';
comment on constraint steadytext_vectorizers_replaces_key on @extschema@.steadytext_vectorizers is 'Only one definition at a time replaces another one';

-- Rows are only added by sessions that change the source, and never looked up by key there: nobody waits for anybody. Several notes
-- of one key become one piece of work when they are taken out.
create table @extschema@.steadytext_vectorizer_work (
    id bigint generated always as identity,
    vectorizer_id uuid not null,
    key jsonb,
    keys json,
    key_count integer not null default 1,
    is_forced boolean not null default false,
    noted_at timestamptz not null default pg_catalog.now(),
    run_after timestamptz,
    constraint steadytext_vectorizer_work_pkey primary key (vectorizer_id, id)
);
comment on table @extschema@.steadytext_vectorizer_work is
    'Rows of vectorized and enriched tables that have changed since they were worked on; the same row may be here several times';
comment on column @extschema@.steadytext_vectorizer_work.id is 'Number of the note, in the order of the changes; below zero: the row was taken out, and comes first when there is room for it';
comment on column @extschema@.steadytext_vectorizer_work.vectorizer_id is 'Definition that the row belongs to';
comment on column @extschema@.steadytext_vectorizer_work.key is
    'Key of the row: the values of the key columns as an array, in the order of the key; NULL, with keys NULL as well: the whole table is to be compared with its vectors';
comment on column @extschema@.steadytext_vectorizer_work.keys is
    'Keys of many rows, as an array of such arrays, where one statement changed many rows; NULL otherwise';
comment on column @extschema@.steadytext_vectorizer_work.key_count is 'Number of keys in keys; 1 where keys is NULL';
comment on column @extschema@.steadytext_vectorizer_work.is_forced is
    'True if the row is embedded even where its text is the one that was embedded before; of a note about the whole table of an enrichment, if values that somebody has written are made anew, too';
comment on column @extschema@.steadytext_vectorizer_work.noted_at is 'Start of the transaction that changed the row';
comment on column @extschema@.steadytext_vectorizer_work.run_after is 'Time before which the row is not tried again, as an error about the moment has stopped it; NULL: at once';
comment on constraint steadytext_vectorizer_work_pkey on @extschema@.steadytext_vectorizer_work is 'Finds the oldest work of each definition; one index, as each costs every writer';
comment on sequence @extschema@.steadytext_vectorizer_work_id_seq is 'Source of steadytext_vectorizer_work.id';
create index steadytext_vectorizer_work_run_after_idx on @extschema@.steadytext_vectorizer_work (run_after) where run_after is not null;
comment on index @extschema@.steadytext_vectorizer_work_run_after_idx is 'Work that is to be tried again, in the order of its time';
-- Each step of an enrichment looks for one, however many rows are noted; the notes of writers are not in it.
create index steadytext_vectorizer_work_search_idx on @extschema@.steadytext_vectorizer_work (vectorizer_id) where key is null and keys is null;
comment on index @extschema@.steadytext_vectorizer_work_search_idx is 'Notes about whole tables';

create table @extschema@.steadytext_vectorizer_batches (
    request_id uuid constraint steadytext_vectorizer_batches_pkey primary key,
    vectorizer_id uuid not null,
    keys jsonb not null,
    created_at timestamptz not null default pg_catalog.now()
);
comment on table @extschema@.steadytext_vectorizer_batches is
    'Requests that definitions have in the queue, until their answers are written';
comment on column @extschema@.steadytext_vectorizer_batches.request_id is 'Identifier of the request in steadytext_queue';
comment on column @extschema@.steadytext_vectorizer_batches.vectorizer_id is 'Definition that made the request';
comment on column @extschema@.steadytext_vectorizer_batches.keys is
    'Rows that the texts of the request belong to: an array with an object for each row, of key, content hash and chunks, in the order of the texts';
comment on column @extschema@.steadytext_vectorizer_batches.created_at is 'Time when the request was made';
comment on constraint steadytext_vectorizer_batches_pkey on @extschema@.steadytext_vectorizer_batches is 'One row per request';
create index steadytext_vectorizer_batches_vectorizer_id_idx on @extschema@.steadytext_vectorizer_batches (vectorizer_id);
comment on index @extschema@.steadytext_vectorizer_batches_vectorizer_id_idx is 'Requests under way of each definition';

create table @extschema@.steadytext_vectorizer_failures (
    vectorizer_id uuid not null,
    key jsonb not null,
    content_hash bytea,
    error text not null,
    error_code text not null,
    failed_at timestamptz not null default pg_catalog.now(),
    needs bigint,
    constraint steadytext_vectorizer_failures_pkey primary key (vectorizer_id, key)
);
comment on table @extschema@.steadytext_vectorizer_failures is
    'Rows that have no vector, and why: until their text changes, or somebody has them tried again. Rows that have nothing to embed, or that wait until they change, are here, too';
comment on column @extschema@.steadytext_vectorizer_failures.vectorizer_id is 'Definition that the row belongs to';
comment on column @extschema@.steadytext_vectorizer_failures.key is 'Key of the row: the values of the key columns as an array';
comment on column @extschema@.steadytext_vectorizer_failures.content_hash is
    'SHA-256 of the columns that would have been embedded; NULL where they were not read';
comment on column @extschema@.steadytext_vectorizer_failures.error is 'Error message';
comment on column @extschema@.steadytext_vectorizer_failures.error_code is 'SQLSTATE of the error; 00000 where there was nothing to embed, or the row waits until it changes, which is no error';
comment on column @extschema@.steadytext_vectorizer_failures.failed_at is 'Time when the row was last tried';
comment on column @extschema@.steadytext_vectorizer_failures.needs is
    'Number of requests at once that a limit of the owner must allow before the row is tried again by itself; NULL: it waits for no limit';
comment on constraint steadytext_vectorizer_failures_pkey on @extschema@.steadytext_vectorizer_failures is 'One row per row of the source';
create index steadytext_vectorizer_failures_needs_idx on @extschema@.steadytext_vectorizer_failures (vectorizer_id, needs) where needs is not null;
comment on index @extschema@.steadytext_vectorizer_failures_needs_idx is 'Rows that are tried again when a limit allows more';

create table @extschema@.steadytext_vectorizer_state (
    vectorizer_id uuid not null constraint steadytext_vectorizer_state_pkey primary key,
    scan text,
    scan_after jsonb,
    scan_until bigint,
    scan_since bigint,
    signature text,
    model_hash bytea,
    is_indexed boolean not null default false,
    embedded_total bigint not null default 0,
    rows_per_second double precision,
    measured_at timestamptz,
    measured_total bigint not null default 0,
    problem text,
    retry_at timestamptz,
    is_limited boolean not null default false,
    is_out_of_requests boolean not null default false,
    is_ready boolean not null default false,
    slow_until timestamptz,
    overruns integer not null default 0,
    slice integer not null default 500
);
comment on table @extschema@.steadytext_vectorizer_state is 'Progress of each definition; written by the worker';
comment on column @extschema@.steadytext_vectorizer_state.vectorizer_id is 'Definition whose progress this is';
comment on column @extschema@.steadytext_vectorizer_state.scan is
    'Search that is under way: source, the table is searched for rows without their vectors; all, every row of it is embedded anew, or, of an enrichment, its values are marked as such that are to be made anew whoever has written them; mark, the rows that are to wait until they change are written down; destination, vectors, or what is known of rows, are searched for those whose row is gone; failures, failures are searched for those whose row is gone; NULL: none of these';
comment on column @extschema@.steadytext_vectorizer_state.scan_after is 'Last key that the search has looked at; NULL: none yet';
comment on column @extschema@.steadytext_vectorizer_state.scan_until is
    'Number of the last work that a search has noted: when that is done, the search goes on, or, where it has come to its end, the vectors are complete except for later changes';
comment on column @extschema@.steadytext_vectorizer_state.scan_since is
    'For enrichments, where scan is all: number of the note that has asked for it; a row that was noted after it has changed since, so that its value may be newer than the wish';
comment on column @extschema@.steadytext_vectorizer_state.signature is
    'Digest of all by which changes of the table may go unnoted, as it was when the table was last searched: its files and those of its partitions, the triggers that note changes, and the owners. A change means that rows may have changed unseen, so that the table is searched: steadytext.vectorizer_signature()';
comment on column @extschema@.steadytext_vectorizer_state.model_hash is
    'SHA-256 of the vector that the model gives for one fixed text: a change means another model';
comment on column @extschema@.steadytext_vectorizer_state.is_indexed is 'True where the index has been made, or none is wanted';
comment on column @extschema@.steadytext_vectorizer_state.embedded_total is 'Number of rows that were embedded since the definition was made';
comment on column @extschema@.steadytext_vectorizer_state.rows_per_second is 'Rows per second in the last interval in which there was always something to do';
comment on column @extschema@.steadytext_vectorizer_state.measured_at is 'Start of the present interval';
comment on column @extschema@.steadytext_vectorizer_state.measured_total is 'Value of embedded_total at the start of the present interval';
comment on column @extschema@.steadytext_vectorizer_state.problem is
    'Reason why nothing is done for the definition as a whole; NULL: there is no problem';
comment on column @extschema@.steadytext_vectorizer_state.retry_at is 'Time before which nothing is tried again after a problem';
comment on column @extschema@.steadytext_vectorizer_state.is_limited is
    'True where the problem is a limit that the definition waits for: nothing is broken';
comment on column @extschema@.steadytext_vectorizer_state.is_out_of_requests is
    'Where is_limited is true: true if the limit is one of steadytext_rate_limits, where work goes on before retry_at once it allows a request; false if the queue is full';
comment on column @extschema@.steadytext_vectorizer_state.is_ready is
    'True where all vectors are there: the slow process makes the index, or has this definition take the place of the one before';
comment on column @extschema@.steadytext_vectorizer_state.slow_until is
    'Time until which the slow process works for the definition, as a step has taken too long; NULL: no step has';
comment on column @extschema@.steadytext_vectorizer_state.overruns is
    'Number of steps in a row that took too long; the wait for the next one doubles with each';
comment on column @extschema@.steadytext_vectorizer_state.slice is 'Number of rows that the next step reads: doubled after a quick step, halved after a slow one';
comment on constraint steadytext_vectorizer_state_pkey on @extschema@.steadytext_vectorizer_state is 'One row per definition';

-- Of roles and not of definitions, which their owners drop and make anew. Nobody but the processes reads or writes it, and it is in no dump.
create table @extschema@.steadytext_vectorizer_slow_owners (
    owner oid constraint steadytext_vectorizer_slow_owners_pkey primary key,
    overruns integer not null,
    slow_until timestamptz not null,
    retry_at timestamptz not null
);
comment on table @extschema@.steadytext_vectorizer_slow_owners is
    'Roles with definitions whose steps did not end in time, so that the process had to be ended';
comment on column @extschema@.steadytext_vectorizer_slow_owners.owner is 'Role that owns the definitions';
comment on column @extschema@.steadytext_vectorizer_slow_owners.overruns is 'Number of times in a row that this has happened';
comment on column @extschema@.steadytext_vectorizer_slow_owners.slow_until is 'Time until which all definitions of the role belong to the slow process';
comment on column @extschema@.steadytext_vectorizer_slow_owners.retry_at is 'Time before which no definition of the role is tried again';
comment on constraint steadytext_vectorizer_slow_owners_pkey on @extschema@.steadytext_vectorizer_slow_owners is 'One row per role';

-- Everybody who may enqueue sees the definitions of vectorizers, as the catalogs show tables to everybody: a search by
-- another role needs them. Prompts of enrichments, and the work and failures of definitions, which reveal rows, are for those
-- who have the rights of the owner, and administrators.
create function steadytext.owns_vectorizer(p_id uuid)
returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select exists (
        select from @extschema@.steadytext_vectorizers as v
        where v.id = p_id and pg_has_role(current_user, v.owner_role::oid, 'usage'))
$$;
comment on function steadytext.owns_vectorizer(uuid) is
    'Returns whether the caller has the rights of the role that a definition belongs to; policies call it';

alter table @extschema@.steadytext_vectorizers enable row level security;
create policy user_select on @extschema@.steadytext_vectorizers for select to steadytext_user using (kind = 'vectorizer');
comment on policy user_select on @extschema@.steadytext_vectorizers is 'Users see every vectorizer: a search needs it';
create policy admin_select on @extschema@.steadytext_vectorizers for select to steadytext_admin using (true);
comment on policy admin_select on @extschema@.steadytext_vectorizers is 'Administrators see every definition';
create policy owner_all on @extschema@.steadytext_vectorizers for all to steadytext_user
    using (pg_catalog.pg_has_role(current_user, owner_role::pg_catalog.oid, 'usage'))
    with check (pg_catalog.pg_has_role(current_user, owner_role::pg_catalog.oid, 'usage')
        and (replaces is null or steadytext.owns_vectorizer(replaces)));
comment on policy owner_all on @extschema@.steadytext_vectorizers is 'Roles that have the rights of a definition''s owner may change it';
create policy admin_update on @extschema@.steadytext_vectorizers for update to steadytext_admin using (true);
comment on policy admin_update on @extschema@.steadytext_vectorizers is
    'Administrators pause a definition, and give it to the new owner of its table';
alter table @extschema@.steadytext_vectorizer_work enable row level security;
create policy owner_all on @extschema@.steadytext_vectorizer_work for all to steadytext_user
    using (steadytext.owns_vectorizer(vectorizer_id));
comment on policy owner_all on @extschema@.steadytext_vectorizer_work is 'Users keep work of their own definitions';
create policy admin_select on @extschema@.steadytext_vectorizer_work for select to steadytext_admin using (true);
comment on policy admin_select on @extschema@.steadytext_vectorizer_work is 'Administrators see all of it';
alter table @extschema@.steadytext_vectorizer_batches enable row level security;
create policy owner_all on @extschema@.steadytext_vectorizer_batches for all to steadytext_user
    using (steadytext.owns_vectorizer(vectorizer_id));
comment on policy owner_all on @extschema@.steadytext_vectorizer_batches is 'Users keep requests under way of their own definitions';
create policy admin_select on @extschema@.steadytext_vectorizer_batches for select to steadytext_admin using (true);
comment on policy admin_select on @extschema@.steadytext_vectorizer_batches is 'Administrators see all of it';
alter table @extschema@.steadytext_vectorizer_failures enable row level security;
create policy owner_all on @extschema@.steadytext_vectorizer_failures for all to steadytext_user
    using (steadytext.owns_vectorizer(vectorizer_id));
comment on policy owner_all on @extschema@.steadytext_vectorizer_failures is 'Users keep failures of their own definitions';
create policy admin_select on @extschema@.steadytext_vectorizer_failures for select to steadytext_admin using (true);
comment on policy admin_select on @extschema@.steadytext_vectorizer_failures is 'Administrators see all of it';
alter table @extschema@.steadytext_vectorizer_kept enable row level security;
create policy owner_all on @extschema@.steadytext_vectorizer_kept for all to steadytext_user
    using (steadytext.owns_vectorizer(vectorizer_id));
comment on policy owner_all on @extschema@.steadytext_vectorizer_kept is 'Users see and forget the kept vectors and values of their own definitions';
create policy admin_select on @extschema@.steadytext_vectorizer_kept for select to steadytext_admin using (true);
comment on policy admin_select on @extschema@.steadytext_vectorizer_kept is 'Administrators see all of it';
alter table @extschema@.steadytext_vectorizer_state enable row level security;
create policy admin_select on @extschema@.steadytext_vectorizer_state for select to steadytext_admin using (true);
comment on policy admin_select on @extschema@.steadytext_vectorizer_state is 'Administrators see the progress of each definition';
create policy owner_all on @extschema@.steadytext_vectorizer_state for all to steadytext_user
    using (steadytext.owns_vectorizer(vectorizer_id));
comment on policy owner_all on @extschema@.steadytext_vectorizer_state is 'Users keep the progress of their own definitions';

-- Work comes and goes: as in the queue, vacuum comes early and works without pauses.
alter table @extschema@.steadytext_vectorizer_work set (
    autovacuum_vacuum_threshold = 5000,
    autovacuum_vacuum_scale_factor = 0.02,
    autovacuum_vacuum_cost_delay = 0
);

create function steadytext.wake_vectorizers()
returns trigger
language c volatile
as 'MODULE_PATHNAME', 'wake_vectorizers_wrapper';
comment on function steadytext.wake_vectorizers() is 'Wakes the process that works for vectorizers, after the commit';
create trigger wake_vectorizers after insert or update or delete on @extschema@.steadytext_vectorizers
    for each statement execute function steadytext.wake_vectorizers();
comment on trigger wake_vectorizers on @extschema@.steadytext_vectorizers is 'Wakes the process that works for definitions after every change of one';
alter table @extschema@.steadytext_vectorizers enable always trigger wake_vectorizers;

-- PostgreSQL cuts identifiers at 63 bytes, and never within a character.
create function steadytext.appended_name(p_name text, p_suffix text)
returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_name text := left(p_name, greatest(63 - octet_length(p_suffix), 0));
begin
    while v_name <> '' and octet_length(v_name) + octet_length(p_suffix) > 63 loop
        v_name := left(v_name, -1);
    end loop;
    return v_name || p_suffix;
end
$$;
comment on function steadytext.appended_name(text, text) is
    'Returns a name with a suffix, cut so that it is an identifier: by bytes, and between characters';

create function steadytext.definition_id(p_name text, p_kind text)
returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid;
begin
    select v.id into v_id from @extschema@.steadytext_vectorizers as v where v.name = p_name and v.replaces is null and v.kind = p_kind;
    if v_id is null then
        raise exception '% "%" does not exist', coalesce(left(p_kind, 30), 'definition'), left(p_name, 100)
            using errcode = 'undefined_object', hint = format('The view steadytext_%s_status shows yours.', left(p_kind, 30));
    end if;
    return v_id;
end
$$;
comment on function steadytext.definition_id(text, text) is 'Returns the id of the vectorizer or enrichment of this name; an error where there is none';

create function steadytext.is_missing_definition(p_name text, p_kind text)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (select from @extschema@.steadytext_vectorizers as v where v.name = p_name and v.replaces is null and v.kind = p_kind) then
        return false;
    end if;
    raise notice '% "%" does not exist, skipping', p_kind, left(p_name, 100);
    return true;
end
$$;
comment on function steadytext.is_missing_definition(text, text) is
    'Returns whether there is no vectorizer or enrichment of this name, and raises a NOTICE if so; called by the functions that drop them with if_exists';

create function steadytext.own_definition_id(p_name text, p_kind text)
returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid := steadytext.definition_id(p_name, p_kind);
begin
    if not steadytext.owns_vectorizer(v_id) then
        perform steadytext.refuse_change(p_kind, p_name, format('SET ROLE to its owner, whom steadytext_%s_status shows.', p_kind));
    end if;
    return v_id;
end
$$;
comment on function steadytext.own_definition_id(text, text) is 'Returns the id of the vectorizer or enrichment of this name, if the caller may change it; otherwise an error';

create function steadytext.lock_definition(p_name text, p_kind text)
returns uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid;
begin
    -- One that is being altered may have another number by the time that it can be locked. Steps that are under way are not waited for.
    loop
        v_id := steadytext.own_definition_id(p_name, p_kind);
        perform from @extschema@.steadytext_vectorizers as v where v.id = v_id for no key update;
        exit when found;
    end loop;
    return v_id;
end
$$;
comment on function steadytext.lock_definition(text, text) is 'Locks the vectorizer or enrichment of this name, which the caller must be allowed to change, so that it keeps its id until the transaction ends; returns the id';

create function steadytext.warn_of_problem(p_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_definition record;
begin
    select v.kind, v.name, steadytext.definition_problem(v.id) as problem into v_definition
    from @extschema@.steadytext_vectorizers as v
    where v.id = p_id;
    if v_definition.problem is not null then
        raise warning '% "%" can do nothing as it is: %', v_definition.kind, left(v_definition.name, 100), v_definition.problem
            using hint = 'What was asked for is done once that is mended.';
    end if;
end
$$;
comment on function steadytext.warn_of_problem(uuid) is 'Raises a WARNING with the reason where a definition cannot do the work that the caller asks for';

create function steadytext.pause_definition(p_id uuid, p_is_paused boolean)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    update @extschema@.steadytext_vectorizers as v set is_paused = p_is_paused, updated_at = now() where p_id in (v.id, v.replaces);
    if not p_is_paused then
        perform steadytext.warn_of_problem(p_id);
    end if;
end
$$;
comment on function steadytext.pause_definition(uuid, boolean) is 'Pauses a definition and the one that is to take its place, or resumes them';

create function steadytext.retry_definition(p_id uuid, p_forced boolean)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_count bigint;
begin
    with gone as (
        delete from @extschema@.steadytext_vectorizer_failures as f
        where f.vectorizer_id in (select v.id from @extschema@.steadytext_vectorizers as v where p_id in (v.id, v.replaces))
            and f.error_code <> '00000'
        returning f.vectorizer_id, f.key
    ),
    noted as (
        insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced)
        select g.vectorizer_id, g.key, p_forced from gone as g
    )
    -- A row may have failed for a vectorizer and for the one that is to take its place.
    select count(distinct g.key) into v_count from gone as g;
    perform steadytext.warn_of_problem(p_id);
    -- The update wakes the process that does the work.
    update @extschema@.steadytext_vectorizers as v set updated_at = now() where v.id = p_id;
    return v_count;
end
$$;
comment on function steadytext.retry_definition(uuid, boolean) is 'Has the failed rows of a definition tried again, and returns their number';

create function steadytext.definition_counts(
    p_id uuid,
    out pending bigint,
    out in_flight bigint,
    out failed bigint,
    out skipped bigint,
    out last_error text,
    out oldest_pending timestamptz
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    select count(distinct w.key) + coalesce(sum(w.key_count) filter (where w.keys is not null), 0), min(w.noted_at)
    into pending, oldest_pending
    from @extschema@.steadytext_vectorizer_work as w
    where w.vectorizer_id = p_id;
    select coalesce(sum(jsonb_array_length(b.keys)), 0), least(oldest_pending, min(b.created_at)) into in_flight, oldest_pending
    from @extschema@.steadytext_vectorizer_batches as b
    where b.vectorizer_id = p_id;
    select count(*) filter (where f.error_code <> '00000'), count(*) filter (where f.error_code = '00000'),
        (array_agg(f.error order by f.failed_at desc) filter (where f.error_code <> '00000'))[1]
    into failed, skipped, last_error
    from @extschema@.steadytext_vectorizer_failures as f
    where f.vectorizer_id = p_id;
end
$$;
comment on function steadytext.definition_counts(uuid) is 'Returns the numbers of a definition''s rows that wait, are under way, have failed or were skipped, with the last error and the time of the oldest that waits; called for its status';
