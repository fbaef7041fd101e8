-- Changing, pausing and dropping enrichments, and their status.

-- Cancels the requests of the previous definition, whose answers are no longer waited for.
create function steadytext.recall_enrichment_requests(p_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_request uuid;
begin
    for v_request in delete from @extschema@.steadytext_vectorizer_batches as b where b.vectorizer_id = p_id returning b.request_id loop
        perform @extschema@.steadytext_cancel_async(v_request);
    end loop;
end
$$;
comment on function steadytext.recall_enrichment_requests(uuid) is 'Cancels the requests of an enrichment that are under way';

-- A value that somebody has written is kept until the columns change that the prompt names, whatever becomes of the rest of the definition: which
-- hash of these columns it goes with must not be forgotten.
create function steadytext.carry_kept_values(p_id uuid, p_before uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    update @extschema@.steadytext_enrichment_rows as r set made_by = steadytext.enrichment_digest(p_id)
    where r.enrichment_id = p_id and r.made_by = p_before and r.is_kept;
end
$$;
comment on function steadytext.carry_kept_values(uuid, uuid) is
    'Lets the records of kept values go with the present definition, as its prompt names the same columns as before; called where enrichments are altered or made anew';

create function @extschema@.steadytext_drop_enrichment(name text, drop_all boolean default false, if_exists boolean default false)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if coalesce(if_exists, false) and steadytext.is_missing_definition(name, 'enrichment') then
        return;
    end if;
    perform steadytext.remove_definition(steadytext.own_definition_id(name, 'enrichment'), coalesce(drop_all, false));
end
$$;
comment on function @extschema@.steadytext_drop_enrichment(text, boolean, boolean) is
    'Drops an enrichment: the values stay as they are, or, with drop_all, their column is dropped. With if_exists it is no error if the enrichment does not exist';

create function @extschema@.steadytext_pause_enrichment(name text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    perform steadytext.pause_definition(steadytext.lock_definition(name, 'enrichment'), true);
end
$$;
comment on function @extschema@.steadytext_pause_enrichment(text) is 'Pauses an enrichment: changes are noted, and the model is not asked';

create function @extschema@.steadytext_resume_enrichment(name text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    perform steadytext.pause_definition(steadytext.lock_definition(name, 'enrichment'), false);
end
$$;
comment on function @extschema@.steadytext_resume_enrichment(text) is 'Resumes an enrichment: values are made for the changes noted meanwhile';

create function @extschema@.steadytext_retry_enrichment(name text)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return steadytext.retry_definition(steadytext.lock_definition(name, 'enrichment'), false);
end
$$;
comment on function @extschema@.steadytext_retry_enrichment(text) is 'Has failed rows tried again; returns their number';

create function @extschema@.steadytext_refresh_enrichment(name text, kept boolean default false)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid := steadytext.lock_definition(name, 'enrichment');
    v_before uuid;
begin
    perform from @extschema@.steadytext_vectorizers as v where v.id = v_id for update;
    v_before := steadytext.enrichment_digest(v_id);
    perform steadytext.recall_enrichment_requests(v_id);
    delete from @extschema@.steadytext_vectorizer_failures as f where f.vectorizer_id = v_id;
    insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced) values (v_id, null, coalesce(kept, false));
    perform steadytext.warn_of_problem(v_id);
    update @extschema@.steadytext_vectorizers as v set revision = v.revision + 1, updated_at = now() where v.id = v_id;
    perform steadytext.carry_kept_values(v_id, v_before);
end
$$;
comment on function @extschema@.steadytext_refresh_enrichment(text, boolean) is
    'Has every value made anew by the same definition, for example after a change of the model''s file; with kept, also values that somebody has written';

create function @extschema@.steadytext_alter_enrichment(
    name text,
    prompt text default null,
    request_type text default null,
    params jsonb default null,
    model text default null,
    priority bigint default null,
    new_name text default null
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    v_id uuid := steadytext.lock_definition(name, 'enrichment');
    v_old record;
    v_place record;
    v_before uuid;
    v_named text[];
    v_type text;
    v_params jsonb;
    v_model text;
    v_is_default boolean := false;
    v_is_listed_anew boolean := false;
    v_columns text[];
    v_keys text[];
    v_statement text;
begin
    -- A step that is under way ends first.
    select v.* into v_old from @extschema@.steadytext_vectorizers as v where v.id = v_id for update;
    v_before := steadytext.enrichment_digest(v_id);
    begin
        v_named := array(select n.name from steadytext.enrichment_names(v_id) as n);
    exception when others then
        -- A prompt that cannot be read is replaced by another one.
        v_named := null;
    end;
    perform steadytext.check_new_name(v_id, new_name);
    if num_nonnulls(prompt, request_type, params, model) > 0 then
        v_type := case request_type when 'summarize_text' then 'summarize' else coalesce(request_type, v_old.request_type) end;
        v_params := coalesce(params, v_old.params);
        -- The default one is asked for by its name.
        v_model := coalesce(model, v_params ->> 'model', v_old.model);
        v_is_default := v_model = 'auto';
        v_model := nullif(v_model, 'auto');
        if jsonb_typeof(v_params) = 'object' then
            v_params := v_params - 'model';
        end if;
        if steadytext.enrichment_type(v_type) is null then
            raise exception 'requests of type "%" cannot fill a column', left(v_type, 63)
                using errcode = 'invalid_parameter_value', hint = steadytext.enrichment_types_hint();
        end if;
        perform steadytext.check_enrichment_request(v_type,
            case when v_model is null then v_params else v_params || jsonb_build_object('model', v_model) end, steadytext.is_answered_here());
        select * into v_place from steadytext.vectorizer_place(v_id);
        -- A column that the prompt names was dropped: another prompt is given. One that was filled cannot be replaced.
        if v_place.problem is not null
            and (v_place.source is null or v_place.source_columns is not null or prompt is null or v_place.target_column is null)
        then
            raise exception '%', v_place.problem using errcode = 'object_not_in_prerequisite_state', hint = case
                when v_place.source is null or v_place.source_columns is not null then null
                when v_place.target_column is null then 'The column that was filled is gone. Drop the enrichment and make another one.'
                else 'Give a prompt that names other columns.' end;
        end if;
        execute format('lock table %s in share row exclusive mode', v_place.source);
        perform steadytext.check_enrichment_target(v_place.source, v_place.target_column, v_type, v_params);
    end if;
    if prompt is not null then
        -- What listed the columns has gone with one of them, which may have been of the key.
        v_is_listed_anew := v_place.source_columns is null;
        v_keys := v_place.key_columns;
        v_columns := steadytext.prompt_columns(v_place.source, prompt);
        perform steadytext.check_enrichment_chain(v_place.source, v_columns, v_place.target_column, v_id);
        v_columns := array(
            select c.name from unnest(v_columns) with ordinality as c(name, n) where c.name <> all (v_place.key_columns) order by c.n);
        for v_statement in select d from steadytext.definition_trigger_drops(v_id, array[v_place.source]) as d loop
            execute v_statement;
        end loop;
        perform steadytext.make_definition_triggers(v_id, v_place.source, v_place.key_columns, v_columns, array[v_place.target_column]);
    end if;
    begin
        update @extschema@.steadytext_vectorizers as v
        set name = coalesce(new_name, v.name),
            priority = coalesce(steadytext_alter_enrichment.priority, v.priority),
            format = coalesce(prompt, v.format),
            columns = coalesce(v_columns, v.columns),
            given_keys = coalesce(v_keys, v.given_keys),
            request_type = coalesce(v_type, v.request_type),
            params = coalesce(v_params, v.params),
            model = case when v_is_default then null else coalesce(v_model, v.model) end,
            updated_at = now()
        where v.id = v_id;
    exception when unique_violation then
        raise exception 'enrichment "%" already exists', left(new_name, 100)
            using errcode = 'duplicate_object', hint = 'It is one of another role''s. Give another name.';
    end;
    if v_is_listed_anew then
        -- Rows with values may have got other keys: each is recognized by its text and its value, as one that comes from a row that is gone.
        update @extschema@.steadytext_enrichment_rows as r set gone_at = now()
        where r.enrichment_id = v_id and r.value_hash is not null and r.gone_at is null;
        delete from @extschema@.steadytext_vectorizer_kept as k where k.vectorizer_id = v_id;
    end if;
    if v_is_listed_anew or steadytext.enrichment_digest(v_id) <> v_before then
        perform steadytext.recall_enrichment_requests(v_id);
        delete from @extschema@.steadytext_vectorizer_failures as f where f.vectorizer_id = v_id;
        insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key) values (v_id, null);
        if v_named = array(select n.name from steadytext.enrichment_names(v_id) as n) then
            perform steadytext.carry_kept_values(v_id, v_before);
        end if;
    end if;
end
$$;
comment on function @extschema@.steadytext_alter_enrichment(text, text, text, jsonb, text, bigint, text) is
    'Changes an enrichment; NULL: as before; model auto: the default one. Every value is made anew where the requests change, except values that somebody has written';

create function steadytext.enrichment_statuses()
returns table (
    name text,
    state text,
    source regclass,
    columns text[],
    target_column text,
    request_type text,
    prompt text,
    model text,
    rows bigint,
    done bigint,
    kept bigint,
    coverage double precision,
    pending bigint,
    in_flight bigint,
    failed bigint,
    last_error text,
    oldest_pending timestamptz,
    stale bigint,
    rows_per_second double precision,
    seconds_left double precision,
    problem text,
    owner text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v record;
    v_place record;
    v_counts record;
    v_wrong text;
    v_problem text;
    v_is_paused boolean := exists (select from steadytext.worker_state() as w where w.state = 'paused');
    v_nobody text := (
        select concat_ws(': ', 'no worker runs', w.message) from steadytext.worker_state() as w where w.state in ('not_preloaded', 'version_mismatch'));
    v_is_halted boolean;
begin
    for v in
        select d.*, s.scan, s.problem, s.is_limited, s.rows_per_second as speed, s.vectorizer_id is null as is_new,
            coalesce(s.is_ready, false) or coalesce(s.slow_until > clock_timestamp(), false) as is_slow
        from @extschema@.steadytext_vectorizers as d
        left join @extschema@.steadytext_vectorizer_state as s on s.vectorizer_id = d.id
        where d.kind = 'enrichment' and (steadytext.owns_vectorizer(d.id) or pg_has_role(current_user, 'steadytext_admin', 'usage'))
        order by d.name
    loop
        v_wrong := null;
        v_problem := null;
        begin
            select * into v_place from steadytext.vectorizer_place(v.id);
            v_problem := steadytext.definition_problem(v.id);
            columns := array(select n.name from steadytext.enrichment_names(v.id) as n);
            prompt := steadytext.present_prompt(v.id);
        exception when others then
            -- The owner may have changed the table in any way: the error is shown, and hides no other rows of the
            -- view.
            select * into v_place from steadytext.vectorizer_place(null);
            columns := null;
            prompt := v.format;
            v_wrong := sqlerrm;
        end;
        name := v.name;
        source := v_place.source;
        target_column := v_place.target_column;
        request_type := v.request_type;
        model := v.model;
        owner := v.owner_role::name::text;
        problem := coalesce(v_wrong, v_problem, v.problem);
        v_is_halted := problem is null and not v.is_paused and v_is_paused;
        problem := coalesce(problem, case
            when v_is_halted then 'the worker is paused: steadytext_daemon_start() has it go on'
            when not v.is_paused then coalesce(v_nobody, steadytext.process_problem(v.is_slow)) end);
        rows := null;
        -- As for vectorizers: a table is read for its owner only, whose code may be in it.
        if v_place.source is not null
            and v.owner_role::oid = (select r.oid from pg_roles as r where r.rolname = current_user)
        then
            rows := steadytext.vectorizer_count((
                select format('select count(*) from %s', case when c.relkind = 'p' then '' else 'only ' end || v_place.source::text)
                from pg_class as c where c.oid = v_place.source));
        end if;
        select count(*) filter (where r.made_by = d.digest), count(*) filter (where r.is_kept and r.value_hash is not null),
            count(*) filter (where r.made_by <> d.digest)
        into done, kept, stale
        from (select steadytext.enrichment_digest(v.id) as digest) as d
        left join @extschema@.steadytext_enrichment_rows as r on r.enrichment_id = v.id and r.gone_at is null;
        coverage := case when rows > 0 then least(done::double precision / rows, 1) when rows = 0 then 1 end;
        select c.* into v_counts from steadytext.definition_counts(v.id) as c;
        pending := v_counts.pending;
        in_flight := v_counts.in_flight;
        failed := v_counts.failed;
        last_error := v_counts.last_error;
        oldest_pending := v_counts.oldest_pending;
        rows_per_second := v.speed;
        seconds_left := case
            when oldest_pending is null and v.scan is null and not v.is_new then 0
            when v.speed > 0 then greatest(pending + in_flight, case when v.scan is not null then rows - done - failed end) / v.speed
        end;
        state := case
            when v.is_limited and problem = v.problem then 'waiting_for_limit'
            when problem is not null and not v_is_halted then 'broken'
            when v.is_paused or v_is_halted then 'paused'
            when v.scan is not null or v.is_new then 'scanning'
            when oldest_pending is not null then 'enriching'
            else 'idle'
        end;
        return next;
    end loop;
end
$$;
comment on function steadytext.enrichment_statuses() is 'Returns the rows of steadytext_enrichment_status';

create view @extschema@.steadytext_enrichment_status with (security_barrier) as
select s.* from steadytext.enrichment_statuses() as s;
comment on view @extschema@.steadytext_enrichment_status is
    'Status of your enrichments, of all of them for administrators: numbers of rows that have their value, wait or have failed. Reading it counts the rows of the tables';
comment on column @extschema@.steadytext_enrichment_status.name is 'Name of the enrichment';
comment on column @extschema@.steadytext_enrichment_status.state is
    'State of the enrichment: idle, every row has its value or has failed; scanning or enriching, under way; paused, by itself or with the worker; waiting_for_limit, its owner has asked for as much as steadytext_rate_limits allows; broken, see problem';
comment on column @extschema@.steadytext_enrichment_status.source is 'Table that is enriched; NULL where it is gone';
comment on column @extschema@.steadytext_enrichment_status.columns is 'Columns that the prompt names, under their present names';
comment on column @extschema@.steadytext_enrichment_status.target_column is 'Column that is filled';
comment on column @extschema@.steadytext_enrichment_status.request_type is 'Type of the requests';
comment on column @extschema@.steadytext_enrichment_status.prompt is 'Prompt, with the present names of its columns';
comment on column @extschema@.steadytext_enrichment_status.model is 'Model that fills the column; NULL: the default one of that type of requests';
comment on column @extschema@.steadytext_enrichment_status.rows is
    'Number of rows of the table; NULL, as coverage, unless the current role is the owner of the table, as reading it may run code of its owner';
comment on column @extschema@.steadytext_enrichment_status.done is 'Number of rows that have their value, NULL and kept values included, as of when they were last read';
comment on column @extschema@.steadytext_enrichment_status.kept is 'Number of rows whose value was there before, or was written by somebody';
comment on column @extschema@.steadytext_enrichment_status.coverage is 'Fraction of rows that have their value: done divided by rows, at most 1';
comment on column @extschema@.steadytext_enrichment_status.pending is 'Number of rows that have changed and have not been taken up';
comment on column @extschema@.steadytext_enrichment_status.in_flight is 'Number of rows whose prompts are in the queue';
comment on column @extschema@.steadytext_enrichment_status.failed is 'Number of rows that have failed; steadytext_enrichment_errors lists them';
comment on column @extschema@.steadytext_enrichment_status.last_error is 'Message of the latest error';
comment on column @extschema@.steadytext_enrichment_status.oldest_pending is 'Time since which the oldest of the rows that are pending or in flight waits';
comment on column @extschema@.steadytext_enrichment_status.stale is 'Number of rows whose value was made by the definition before it was altered';
comment on column @extschema@.steadytext_enrichment_status.rows_per_second is 'Rows filled per second, as last measured';
comment on column @extschema@.steadytext_enrichment_status.seconds_left is 'Seconds that the remaining rows take at that rate; NULL where there is no rate';
comment on column @extschema@.steadytext_enrichment_status.problem is 'Reason why nothing is done at all, or why the enrichment waits; it is tried again by itself';
comment on column @extschema@.steadytext_enrichment_status.owner is 'Owner of the table, with whose rights values are written';

create view @extschema@.steadytext_enrichment_errors with (security_barrier) as
select e.* from steadytext.vectorizer_errors('enrichment') as e;
comment on view @extschema@.steadytext_enrichment_errors is
    'Rows of your enriched tables that have not got their value, and why; those of all tables for administrators';
comment on column @extschema@.steadytext_enrichment_errors.name is 'Name of the enrichment';
comment on column @extschema@.steadytext_enrichment_errors.key is 'Key of the row: an object of its columns';
comment on column @extschema@.steadytext_enrichment_errors.error is 'Error message';
comment on column @extschema@.steadytext_enrichment_errors.error_code is 'SQLSTATE of the error';
comment on column @extschema@.steadytext_enrichment_errors.hint is 'Hint what to do about the error';
comment on column @extschema@.steadytext_enrichment_errors.failed_at is 'Time when the row was last tried';
