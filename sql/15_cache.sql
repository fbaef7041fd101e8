-- The result cache: answers by the key of their request. src/cache defines the keys, and when
-- an entry answers.
--
-- Prompts are private, so the table is for administrators only; roles that may call the API
-- get answers out of it through functions that look up one key. The cache is derived data:
-- pg_dump leaves it out.

create function steadytext.cache_key_hash(cache_key text)
returns bytea
language sql immutable parallel safe strict
set search_path = pg_catalog, pg_temp
as $$
    -- The extension lives in databases with encoding UTF8 only: there this never changes.
    select sha256(convert_to(cache_key, 'UTF8'))
$$;
comment on function steadytext.cache_key_hash(text) is
    'Returns the hash by which the cache is searched: a key may be a whole prompt, which is too long for an index';

select pg_catalog.set_config('search_path', steadytext.vector_path(), true);
create table @extschema@.steadytext_cache (
    id bigint generated always as identity constraint steadytext_cache_pkey primary key,
    cache_key text,
    prompt text,
    response text,
    embedding vector,
    access_count integer default 1,
    last_accessed timestamptz default pg_catalog.now(),
    created_at timestamptz default pg_catalog.now(),
    model_name text,
    model_size text,
    seed bigint,
    eos_string text,
    generation_params jsonb,
    response_size integer,
    generation_time_ms integer,
    request_type text,
    model_hash text,
    kernel_version integer,
    imported boolean default false,
    key_hash bytea generated always as (steadytext.cache_key_hash(cache_key)) stored
        constraint steadytext_cache_key_hash_key unique,
    -- As in steadytext_queue: never false, so that no message shows the row. Without a
    -- cache_key there is no key_hash.
    constraint steadytext_cache_row_check check (
        case
            when cache_key is not null and prompt is not null and access_count is not null
                and last_accessed is not null and created_at is not null
                and request_type is not null and imported is not null
            then true
            else steadytext.refuse_row('steadytext_cache', case
                when cache_key is null then 'cache_key'
                when prompt is null then 'prompt'
                when access_count is null then 'access_count'
                when last_accessed is null then 'last_accessed'
                when created_at is null then 'created_at'
                when request_type is null then 'request_type'
                else 'imported'
            end)
        end)
);
set local search_path = pg_catalog, pg_temp;
comment on table @extschema@.steadytext_cache is
    'Answers that were computed or imported, by the key of their request; for administrators';
comment on column @extschema@.steadytext_cache.id is 'Number of the entry';
comment on column @extschema@.steadytext_cache.cache_key is
    'steadytext_cache_key() of the request; unique through key_hash';
comment on column @extschema@.steadytext_cache.prompt is 'Prompt, or text that was embedded';
comment on column @extschema@.steadytext_cache.response is 'Generated text; NULL for vectors';
comment on column @extschema@.steadytext_cache.embedding is 'Vector of an embed request';
comment on column @extschema@.steadytext_cache.access_count is
    'Number of times that the answer was given, the first time included';
comment on column @extschema@.steadytext_cache.last_accessed is 'Time when the answer was last given';
comment on column @extschema@.steadytext_cache.created_at is 'Time when the answer was computed or imported';
comment on column @extschema@.steadytext_cache.model_name is 'Name or file of the model that answered';
comment on column @extschema@.steadytext_cache.model_size is 'Size that the request named';
comment on column @extschema@.steadytext_cache.seed is 'Seed of a generation with a temperature';
comment on column @extschema@.steadytext_cache.eos_string is 'Text before which generation stopped';
comment on column @extschema@.steadytext_cache.generation_params is 'Parameters of the request';
comment on column @extschema@.steadytext_cache.response_size is
    'Size of the answer in bytes, before compression';
comment on column @extschema@.steadytext_cache.generation_time_ms is
    'Milliseconds that the answer took when it was computed';
comment on column @extschema@.steadytext_cache.request_type is
    'Type of the request, as in steadytext_queue; a row that is put in without one gets embed if it has a vector, otherwise generate';
comment on column @extschema@.steadytext_cache.model_hash is
    'SHA-256 of the model''s file in hexadecimal digits; NULL for imported entries. An entry of another model answers nothing';
comment on column @extschema@.steadytext_cache.kernel_version is
    'Version of the engine''s computation, which changes when the engine computes other bytes; an entry of another version answers nothing';
comment on column @extschema@.steadytext_cache.imported is
    'True where an administrator imported the entry: it answers whatever model is in use';
comment on column @extschema@.steadytext_cache.key_hash is 'SHA-256 of cache_key, by which entries are searched for';
comment on constraint steadytext_cache_pkey on @extschema@.steadytext_cache is
    'Entries whose accesses are counted are found by this number';
comment on constraint steadytext_cache_key_hash_key on @extschema@.steadytext_cache is
    'One answer per key; every look-up goes through it';
comment on constraint steadytext_cache_row_check on @extschema@.steadytext_cache is
    'Checks every value of an entry; raises an error that names the column and does not show the row';
comment on sequence @extschema@.steadytext_cache_id_seq is 'Source of steadytext_cache.id';

-- COPY may bring a NULL id; usually the condition is false and no function is called.
create trigger refuse_id before insert on @extschema@.steadytext_cache
    for each row when (new.id is null) execute function steadytext.refuse_id();
comment on trigger refuse_id on @extschema@.steadytext_cache is 'Refuses an entry without a number';
alter table @extschema@.steadytext_cache enable always trigger refuse_id;

-- The Python extension's table had no request_type: rows are put in without one.
create function steadytext.request_type_of_entry()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    new.request_type := case when new.embedding is not null then 'embed' else 'generate' end;
    return new;
end
$$;
comment on function steadytext.request_type_of_entry() is
    'Trigger function of steadytext_cache: a row without a request_type is the answer to an embed request if it has a vector, otherwise to a generate request';
create trigger request_type_of_entry before insert on @extschema@.steadytext_cache
    for each row when (new.request_type is null) execute function steadytext.request_type_of_entry();
comment on trigger request_type_of_entry on @extschema@.steadytext_cache is 'Sets the request type of rows that do not have one';
alter table @extschema@.steadytext_cache enable always trigger request_type_of_entry;

create trigger note_key after insert or update of cache_key on @extschema@.steadytext_cache
    for each row execute function steadytext.note_key();
comment on trigger note_key on @extschema@.steadytext_cache is 'Adds every new key to the filter in shared memory';
alter table @extschema@.steadytext_cache enable always trigger note_key;

-- Accesses are counted in batches by updates that touch no index: the free fifth of each page
-- takes the next version of its rows. No index on access_count or last_accessed.
alter table @extschema@.steadytext_cache set (
    fillfactor = 80,
    autovacuum_vacuum_scale_factor = 0.1,
    autovacuum_vacuum_cost_delay = 0
);

-- A role that is granted the table by accident sees no rows of it; the extension's own functions read it as its
-- owner.
alter table @extschema@.steadytext_cache enable row level security;
create policy admin_select on @extschema@.steadytext_cache for select to steadytext_admin using (true);
comment on policy admin_select on @extschema@.steadytext_cache is 'Administrators see every entry, others none';

create view @extschema@.steadytext_cache_with_frecency as
select c.id, c.cache_key, c.prompt, c.response, c.embedding, c.access_count, c.last_accessed,
    c.created_at, c.model_name, c.model_size, c.seed, c.eos_string, c.generation_params,
    c.response_size, c.generation_time_ms, c.request_type, c.model_hash, c.kernel_version, c.imported,
    -- exp() refuses what is next to 0, and an import may bring any date.
    c.access_count * pg_catalog.exp(
        -least(greatest(pg_catalog.date_part('epoch', pg_catalog.now() - c.last_accessed) / 86400.0, 0), 700)
    ) as frecency_score
from @extschema@.steadytext_cache as c;
comment on view @extschema@.steadytext_cache_with_frecency is
    'The cache with the score by which entries are evicted: access_count * exp(-days since the last access); the entry with the lowest score is evicted first';
do $$
declare
    v_column record;
begin
    -- A column of a view does not inherit its comment.
    for v_column in
        select v.attname, pg_catalog.col_description(t.attrelid, t.attnum) as comment
        from pg_catalog.pg_attribute as v
        join pg_catalog.pg_attribute as t
            on t.attrelid = '@extschema@.steadytext_cache'::pg_catalog.regclass and t.attname = v.attname
        where v.attrelid = '@extschema@.steadytext_cache_with_frecency'::pg_catalog.regclass
            and v.attnum > 0
    loop
        execute pg_catalog.format('comment on column @extschema@.steadytext_cache_with_frecency.%I is %L',
            v_column.attname, v_column.comment);
    end loop;
end
$$;
comment on column @extschema@.steadytext_cache_with_frecency.frecency_score is
    'access_count * exp(-days since last_accessed)';
