-- The status of vectorizers. Tables are counted with the rights of the caller; a role that may not read them sees no counts.

create function steadytext.vectorizer_count(p_statement text, p_argument bytea default null)
returns bigint
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_count bigint;
begin
    execute p_statement into v_count using p_argument;
    return v_count;
exception when others then
    -- The owner may have changed the table in any way: rows of the view for other definitions are shown all the same.
    return null;
end
$$;
comment on function steadytext.vectorizer_count(text, bytea) is 'Returns the number that a statement counts, with the caller''s rights; NULL where it fails, such as where they do not suffice';

create function steadytext.vectorizer_statuses()
returns table (
    name text,
    state text,
    source regclass,
    columns text[],
    destination regclass,
    target_column text,
    model text,
    rows bigint,
    embedded bigint,
    coverage double precision,
    pending bigint,
    in_flight bigint,
    failed bigint,
    skipped bigint,
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
    v_table text;
    v_wrong text;
    v_problem text;
    v_is_paused boolean := exists (select from steadytext.worker_state() as w where w.state = 'paused');
    v_nobody text := (
        select concat_ws(': ', 'no worker runs', w.message) from steadytext.worker_state() as w where w.state in ('not_preloaded', 'version_mismatch'));
    v_is_halted boolean;
    v_waits record;
begin
    for v in
        select d.*, s.scan, s.is_indexed, s.problem, s.is_limited, s.rows_per_second as speed, s.model_hash, s.vectorizer_id is null as is_new,
            coalesce(s.is_ready, false) or coalesce(s.slow_until > clock_timestamp(), false) as is_slow
        from @extschema@.steadytext_vectorizers as d
        left join @extschema@.steadytext_vectorizer_state as s on s.vectorizer_id = d.id
        where d.kind = 'vectorizer' and (steadytext.owns_vectorizer(d.id) or pg_has_role(current_user, 'steadytext_admin', 'usage'))
        order by d.name
    loop
        v_wrong := null;
        v_problem := null;
        begin
            select * into v_place from steadytext.vectorizer_place(v.id);
            v_problem := steadytext.definition_problem(v.id);
        exception when others then
            -- The owner may have changed the table in any way: the error is shown, and hides no other rows of the view.
            select * into v_place from steadytext.vectorizer_place(null);
            v_wrong := sqlerrm;
        end;
        name := v.name;
        source := v_place.source;
        columns := v_place.source_columns;
        destination := v_place.destination;
        target_column := v_place.target_column;
        model := v.model;
        owner := v.owner_role::name::text;
        problem := coalesce(v_wrong, v_problem, v.problem);
        v_is_halted := problem is null and not v.is_paused and v_is_paused;
        problem := coalesce(problem, case
            when v_is_halted then 'the worker is paused: steadytext_daemon_start() has it go on'
            when not v.is_paused then coalesce(v_nobody, steadytext.process_problem(v.is_slow)) end);
        rows := null;
        embedded := null;
        stale := null;
        -- A table may have code of its owner's in it, in policies or casts: it runs for the owner and for nobody else who looks.
        if v_place.source is not null
            and v.owner_role::oid = (select r.oid from pg_roles as r where r.rolname = current_user)
        then
            select case when c.relkind = 'p' then '' else 'only ' end || v_place.source::text into v_table
            from pg_class as c where c.oid = v_place.source;
            rows := steadytext.vectorizer_count(format('select count(*) from %s', v_table));
            if v_place.target_column is not null then
                embedded := steadytext.vectorizer_count(
                    format('select count(*) from %s where %I is not null', v_table, v_place.target_column));
                stale := steadytext.vectorizer_count(format(
                    'select count(*) from %s where %I is not null and substr(%I, 33) is distinct from $1',
                    v_table, v_place.target_column, v_place.hash_column), v.model_hash);
            elsif v_place.destination is not null then
                embedded := steadytext.vectorizer_count(format('select count(*) from %s where seq = 1', v_place.destination));
                stale := steadytext.vectorizer_count(
                    format('select count(*) from %s where seq = 1 and model_hash <> $1', v_place.destination), v.model_hash);
            end if;
        end if;
        select c.* into pending, in_flight, failed, skipped, last_error, oldest_pending from steadytext.definition_counts(v.id) as c;
        coverage := case when rows > skipped then embedded::double precision / (rows - skipped) when rows is not null then 1 end;
        rows_per_second := v.speed;
        seconds_left := case
            when pending + in_flight = 0 and v.scan is null and not v.is_new then 0
            when v.speed > 0 then greatest(pending + in_flight, case when v.scan is not null then rows - embedded - failed - skipped end) / v.speed
        end;
        state := case
            when v.is_limited and problem = v.problem then 'waiting_for_limit'
            when problem is not null and not v_is_halted then 'broken'
            when v.is_paused or v_is_halted then 'paused'
            when v.scan is not null or v.is_new then 'scanning'
            when pending + in_flight > 0 then 'embedding'
            when not v.is_indexed then 'indexing'
            when v.replaces is not null then 'replacing'
            else 'idle'
        end;
        if state = 'idle' then
            select 'waiting_for_limit' as state, format('%s rows have more chunks than steadytext_rate_limits allows their owner to ask for at once: they are tried again when it allows %s',
                count(*), min(f.needs)) as problem
            into v_waits
            from @extschema@.steadytext_vectorizer_failures as f
            where f.vectorizer_id = v.id and f.needs is not null
            having count(*) > 0;
            if found then
                state := v_waits.state;
                problem := v_waits.problem;
            end if;
        end if;
        return next;
    end loop;
end
$$;
comment on function steadytext.vectorizer_statuses() is 'Returns the rows of steadytext_vectorizer_status';

create view @extschema@.steadytext_vectorizer_status with (security_barrier) as
select s.* from steadytext.vectorizer_statuses() as s;
comment on view @extschema@.steadytext_vectorizer_status is
    'Status of your vectorizers, of all of them for administrators: numbers of rows that have vectors, wait or have failed. Reading it counts the rows of the tables';
comment on column @extschema@.steadytext_vectorizer_status.name is 'Name of the vectorizer; one that is to replace another ends with (next)';
comment on column @extschema@.steadytext_vectorizer_status.state is
    'State of the vectorizer: idle, everything is embedded or has failed; scanning, embedding, indexing or replacing, under way; paused, by itself or with the worker; waiting_for_limit, its owner has asked for as much as steadytext_rate_limits allows; broken, see problem';
comment on column @extschema@.steadytext_vectorizer_status.source is 'Table that is embedded; NULL where it is gone';
comment on column @extschema@.steadytext_vectorizer_status.columns is 'Columns that are embedded, under their present names';
comment on column @extschema@.steadytext_vectorizer_status.destination is 'Table of the chunks and their vectors';
comment on column @extschema@.steadytext_vectorizer_status.target_column is 'Column of the source that holds the vector';
comment on column @extschema@.steadytext_vectorizer_status.model is 'Model that embeds; NULL: the one that embeds by default';
comment on column @extschema@.steadytext_vectorizer_status.rows is 'Number of rows of the table; NULL, as embedded, coverage and stale, unless the current role is the owner of the table, as reading it may run code of its owner';
comment on column @extschema@.steadytext_vectorizer_status.embedded is 'Number of rows that have a vector';
comment on column @extschema@.steadytext_vectorizer_status.coverage is 'Fraction of rows that have a vector: embedded divided by the rows that have something to embed';
comment on column @extschema@.steadytext_vectorizer_status.pending is 'Number of rows that have changed and have not been taken up';
comment on column @extschema@.steadytext_vectorizer_status.in_flight is 'Number of rows whose texts are in the queue';
comment on column @extschema@.steadytext_vectorizer_status.failed is 'Number of rows that could not be embedded; steadytext_vectorizer_errors lists them';
comment on column @extschema@.steadytext_vectorizer_status.skipped is 'Number of rows that have nothing to embed: their columns are NULL or blank';
comment on column @extschema@.steadytext_vectorizer_status.last_error is 'Message of the latest error';
comment on column @extschema@.steadytext_vectorizer_status.oldest_pending is 'Time since which the oldest of the rows that are pending or in flight waits';
comment on column @extschema@.steadytext_vectorizer_status.stale is
    'Number of rows whose vectors are by another model, or another file of the same name, than the latest ones';
comment on column @extschema@.steadytext_vectorizer_status.rows_per_second is 'Rows embedded per second, as last measured';
comment on column @extschema@.steadytext_vectorizer_status.seconds_left is 'Seconds that the remaining rows take at that rate; NULL where there is no rate';
comment on column @extschema@.steadytext_vectorizer_status.problem is 'Reason why nothing is done at all, or why the vectorizer waits; it is tried again by itself';
comment on column @extschema@.steadytext_vectorizer_status.owner is 'Owner of the table, with whose rights vectors are written';

-- Owners see it in the status; administrators look into one place first.
create function steadytext.definition_checks()
returns table (name text, status text, detail text, hint text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v record;
    v_problem text;
    v_failed bigint;
begin
    for v in
        select d.id, d.kind, d.name, case when not s.is_limited then s.problem end as problem
        from @extschema@.steadytext_vectorizers as d
        left join @extschema@.steadytext_vectorizer_state as s on s.vectorizer_id = d.id
        where not d.is_paused
        order by d.kind desc, d.name
    loop
        begin
            v_problem := steadytext.definition_problem(v.id);
        exception when others then
            v_problem := sqlerrm;
        end;
        name := format('%s %s', v.kind, v.name);
        if coalesce(v_problem, v.problem) is not null then
            status := 'error';
            detail := coalesce(v_problem, v.problem);
            hint := format('steadytext_%s_status shows all of its state; it is tried again by itself.', v.kind);
            return next;
        end if;
        select count(*) into v_failed
        from (
            select from @extschema@.steadytext_vectorizer_failures as f
            where f.vectorizer_id = v.id and f.error_code <> '00000'
            limit 1000
        ) as f;
        if v_failed > 0 then
            status := 'warning';
            detail := format('%s%s failed', case v_failed when 1000 then '1000 or more' else v_failed::text end, case v_failed when 1 then ' row has' else ' rows have' end);
            hint := format('steadytext_%s_errors says why, and what to do.', v.kind);
            return next;
        end if;
    end loop;
end
$$;
comment on function steadytext.definition_checks() is
    'Returns a line for each vectorizer and enrichment that is broken or has failed rows; called by steadytext_diagnose()';

create function steadytext.vectorizer_errors(p_kind text)
returns table (name text, key jsonb, error text, error_code text, hint text, failed_at timestamptz)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v record;
    v_place record;
begin
    for v in
        select d.id, d.name
        from @extschema@.steadytext_vectorizers as d
        where d.kind = p_kind and (steadytext.owns_vectorizer(d.id) or pg_has_role(current_user, 'steadytext_admin', 'usage'))
        order by d.name
    loop
        begin
            select * into v_place from steadytext.vectorizer_place(v.id);
        exception when others then
            select * into v_place from steadytext.vectorizer_place(null);
        end;
        return query
        select v.name,
            coalesce((
                select jsonb_object_agg(v_place.key_columns[k.n], k.value)
                from jsonb_array_elements(f.key) with ordinality as k(value, n)
                where v_place.key_columns[k.n] is not null), f.key),
            f.error, f.error_code,
            case
                when p_kind = 'enrichment' and f.error_code = '54000' then 'A shorter prompt or a model that takes longer ones, by steadytext_alter_enrichment(), has it tried again.'
                when p_kind = 'enrichment' and f.error_code = '53400' then 'A larger max_tokens among its params, or a schema or pattern with shorter answers, by steadytext_alter_enrichment(), has it tried again.'
                when p_kind = 'enrichment' and f.error_code = '57014' then 'Triggers, policies or constraints of the table take too long: have them do less, then call steadytext_retry_enrichment().'
                when p_kind = 'enrichment' and f.error_code = '42501' then 'Values are written with the rights of the owner of the table: see what that role may do, then call steadytext_retry_enrichment().'
                when p_kind = 'enrichment' then 'It is tried again when the row changes, and by steadytext_retry_enrichment().'
                when f.needs is not null then 'It is tried again by itself when steadytext_rate_limits allows as many requests; steadytext_alter_vectorizer(…, chunk_size => …) with a larger one makes fewer chunks.'
                when f.error_code = '53400' then 'An administrator raises max_batch_size with steadytext_config_set(); steadytext_retry_vectorizer() has the row tried again then.'
                when f.error_code = '54000' then 'steadytext_alter_vectorizer(…, truncate => true) has texts cut at their ends; a smaller chunk_size, for vectors in a table of their own, cuts them into pieces.'
                when f.error_code = '57014' then 'Triggers, policies or constraints of the table take too long: have them do less, then call steadytext_retry_vectorizer().'
                when f.error_code = '42501' then 'Vectors are written with the rights of the owner of the table: see what that role may do, then call steadytext_retry_vectorizer().'
                else 'It is tried again when the row changes, and by steadytext_retry_vectorizer().'
            end,
            f.failed_at
        from @extschema@.steadytext_vectorizer_failures as f
        where f.vectorizer_id = v.id and f.error_code <> '00000'
        order by f.failed_at;
    end loop;
end
$$;
comment on function steadytext.vectorizer_errors(text) is 'Returns the rows of steadytext_vectorizer_errors, or those of enrichments';

create view @extschema@.steadytext_vectorizer_errors with (security_barrier) as
select e.* from steadytext.vectorizer_errors('vectorizer') as e;
comment on view @extschema@.steadytext_vectorizer_errors is
    'Rows of your vectorized tables that could not be embedded, and why; those of all tables for administrators';
comment on column @extschema@.steadytext_vectorizer_errors.name is 'Name of the vectorizer';
comment on column @extschema@.steadytext_vectorizer_errors.key is 'Key of the row: an object of its columns';
comment on column @extschema@.steadytext_vectorizer_errors.error is 'Error message';
comment on column @extschema@.steadytext_vectorizer_errors.error_code is
    'SQLSTATE of the error: 54000, the text is too long; others are those of the model or of the table';
comment on column @extschema@.steadytext_vectorizer_errors.hint is 'Hint what to do about the error';
comment on column @extschema@.steadytext_vectorizer_errors.failed_at is 'Time when the row was last tried';

select pg_catalog.set_config('search_path', steadytext.vector_path(), true);
create function @extschema@.steadytext_vectorizer_embed(name text, input text)
returns vector
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return @extschema@.steadytext_embed(input, model => v.model, mode => 'query')
    from @extschema@.steadytext_vectorizers as v
    where v.id = steadytext.definition_id(steadytext_vectorizer_embed.name, 'vectorizer');
end
$$;
set local search_path = pg_catalog, pg_temp;
comment on function @extschema@.steadytext_vectorizer_embed(text, text) is
    'Returns the vector of a question, which can be compared with the vectors of a vectorizer';
