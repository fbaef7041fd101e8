-- The list of models, and checks of the installation.

create function @extschema@.steadytext_model_list()
returns table (
    name text,
    source text,
    file text,
    size_bytes bigint,
    tasks text[],
    preferred text[],
    loaded boolean,
    memory_mb bigint,
    last_used timestamptz,
    placement text
)
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'model_list_wrapper';
comment on function @extschema@.steadytext_model_list() is
    'The models that requests may name: rows of the registry, other files in pg_steadytext.model_dir, the builtin one; size_bytes is NULL where a file is missing; placement says who computes it: server, elsewhere or any. Absolute paths are shown to administrators only';

create function @extschema@.steadytext_model_inspect(name text, sample text default null)
returns table (
    model text,
    file text,
    tasks text[],
    family text,
    kind text,
    parameters bigint,
    quantization text,
    context_length bigint,
    dimensions bigint,
    adapters text[],
    size_bytes bigint,
    memory_mb bigint,
    memory_limit_mb bigint,
    licence text,
    repository text,
    sha256 text,
    tokenizer text,
    vocabulary bigint,
    template text,
    prompt text,
    loads boolean,
    reason text,
    hint text
)
language c volatile parallel unsafe rows 1
as 'MODULE_PATHNAME', 'model_inspect_wrapper';
comment on function @extschema@.steadytext_model_inspect(text, text) is
    'Returns the properties of a model, the memory that it needs with max_running requests, the text sample as the model sees it, the tasks that it has adapters for, and whether it loads or why not, also where its file is missing or it is computed elsewhere. The model is not loaded. For members of steadytext_admin';

create function @extschema@.steadytext_model_remove(name text, delete_file boolean default false)
returns boolean
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'model_remove_wrapper';
comment on function @extschema@.steadytext_model_remove(text, boolean) is
    'Takes a model out of the registry and, where that is said, deletes its files from pg_steadytext.model_dir, at once and for all databases. False where there was none. For members of steadytext_admin';

create function steadytext.server_checks()
returns table ("check" text, status text, detail text, hint text)
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'server_checks_wrapper';
comment on function steadytext.server_checks() is
    'The part of steadytext_diagnose() that looks at the server, its models and its environment';

create function @extschema@.steadytext_diagnose()
returns table ("check" text, status text, detail text, hint text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_worker record;
    v_extension text;
    v_vector text;
    v_pending bigint;
    v_oldest timestamptz;
begin
    -- Refuses those who may not see it.
    return query select c."check", c.status, c.detail, c.hint from steadytext.server_checks() as c;

    select w.* into v_worker from steadytext.worker_state() as w;
    return query select 'worker',
        case v_worker.state
            when 'idle' then 'ok' when 'running' then 'ok' when 'starting' then 'ok' when 'paused' then 'warning'
            else 'error'
        end,
        concat_ws(': ', v_worker.state, v_worker.message),
        case when v_worker.state in ('stopped', 'paused', 'version_mismatch', 'not_preloaded')
            then 'Requests of the queue wait; "Requests stay pending" in docs/operations.md says what to do.' end;

    select e.extversion into v_extension from pg_extension as e where e.extname = 'pg_steadytext';
    return query select 'versions',
        case when v_extension = v_worker.library_version then 'ok' else 'error' end,
        format('library %s, extension %s, PostgreSQL %s', v_worker.library_version, v_extension,
            current_setting('server_version')),
        case when v_extension is distinct from v_worker.library_version
            then 'Restart the server and run ALTER EXTENSION pg_steadytext UPDATE.' end;

    select e.extversion into v_vector from pg_extension as e where e.extname = 'vector';
    return query select 'vector',
        case when v_vector is null then 'error' else 'ok' end,
        coalesce('pgvector ' || v_vector, 'pgvector is not installed in this database'),
        case when v_vector is null then 'Run CREATE EXTENSION vector.' end;

    select coalesce(sum(c.requests), 0), min(c.oldest) into v_pending, v_oldest
    from @extschema@.steadytext_queue_counts as c
    where c.status = 'pending';
    return query select 'queue',
        case when v_pending > 0 and v_oldest < clock_timestamp() - interval '10 minutes' then 'warning' else 'ok' end,
        case
            when v_pending = 0 then 'no request waits'
            when v_pending = 1 then format('1 request waits, for %s', date_trunc('second', clock_timestamp() - v_oldest))
            else format('%s requests wait, the oldest for %s', v_pending,
                date_trunc('second', clock_timestamp() - v_oldest))
        end,
        case when v_pending > 0 and v_oldest < clock_timestamp() - interval '10 minutes'
            then 'Look at steadytext_activity, and at the worker above.' end;

    -- Of the first ten kinds: an administrator who has mended these asks again.
    return query select 'queue', 'warning',
        format('%s for %s (%s), the oldest for %s, and no worker claims %s: %s',
            case u.requests when 1 then '1 request waits' else u.requests || ' requests wait' end,
            coalesce('model "' || u.model || '"', 'a model that is not registered'), u.request_type,
            date_trunc('second', clock_timestamp() - u.oldest), case u.requests when 1 then 'it' else 'them' end, u.reason),
        u.hint
    from steadytext.unclaimed_requests() as u
    limit 10;

    -- Members of pg_monitor may not read these and the settings.
    if has_table_privilege('@extschema@.steadytext_vectorizers', 'select') then
        return query select d.name, d.status, d.detail, d.hint from steadytext.definition_checks() as d limit 20;
    end if;
    if has_table_privilege('@extschema@.steadytext_config', 'select') then
        return query select 'setting ' || c.key, 'warning', 'it has no effect',
            'It is accepted for programs that were written for versions with a daemon.'
        from @extschema@.steadytext_config as c
        where c.key in ('daemon_host', 'daemon_port', 'daemon_auto_start') and not c.is_default
        order by c.key;
    end if;
end
$$;
comment on function @extschema@.steadytext_diagnose() is
    'One row for each check: status is ok, warning or error, hint what to do. For members of steadytext_admin and pg_monitor';
