-- Status: version, requests now running, workers.

create function @extschema@.steadytext_version()
returns text
language c immutable parallel safe strict
as 'MODULE_PATHNAME', 'version_wrapper';
comment on function @extschema@.steadytext_version() is 'Returns the version of the loaded library';

create function steadytext.activity()
returns table (
    request_id uuid,
    owner_role text,
    request_type text,
    phase text,
    prompt_tokens integer,
    generated_tokens integer,
    tokens_per_second double precision,
    partial_text text,
    started_at timestamptz,
    worker_pid integer,
    first_token_turns integer
)
language c volatile parallel restricted
as 'MODULE_PATHNAME', 'activity_wrapper';
comment on function steadytext.activity() is
    'Returns the requests of this database now running that the caller may see, from shared memory; members of pg_monitor see all of them, without their texts';

create function steadytext.pulls()
returns table (
    owner_role text,
    download text,
    phase text,
    started_at timestamptz,
    worker_pid integer,
    bytes_done bigint,
    bytes_total bigint,
    bytes_per_second double precision,
    seconds_left double precision
)
language c volatile parallel restricted
as 'MODULE_PATHNAME', 'pulls_wrapper';
comment on function steadytext.pulls() is
    'Returns the downloads of models now running, of the whole server, that the caller may see; members of pg_monitor see all of them';

create view @extschema@.steadytext_activity with (security_barrier) as
select
    a.request_id,
    a.owner_role::name as owner_role,
    a.request_type,
    a.phase,
    a.prompt_tokens,
    a.generated_tokens,
    a.tokens_per_second,
    a.partial_text,
    a.started_at,
    a.worker_pid,
    a.first_token_turns,
    null::text as download,
    null::bigint as bytes_done,
    null::bigint as bytes_total,
    null::double precision as bytes_per_second,
    null::interval as time_left
from steadytext.activity() as a
union all
-- Requests of workers elsewhere, which report nothing before a request is done.
select
    q.request_id, q.owner_role::name, q.request_type, 'elsewhere', null, null, null, null, q.started_at, null, null,
    null, null, null, null, null
from @extschema@.steadytext_queue as q
where q.status = 'processing' and not pg_catalog.starts_with(q.worker, 'local:')
    and (
        pg_catalog.pg_has_role(q.owner_role::pg_catalog.oid, 'usage')
        or pg_catalog.pg_has_role('steadytext_admin', 'usage') or pg_catalog.pg_has_role('pg_monitor', 'usage'))
union all
select
    null, p.owner_role::name, 'model_pull', p.phase, null, null, null, null, p.started_at, p.worker_pid, null,
    p.download, p.bytes_done, p.bytes_total, p.bytes_per_second,
    pg_catalog.make_interval(secs => pg_catalog.round(p.seconds_left::numeric)::double precision)
from steadytext.pulls() as p;
comment on view @extschema@.steadytext_activity is
    'Running requests and downloads of models: their progress, rate and text so far';
comment on column @extschema@.steadytext_activity.request_id is 'Identifier of the request; of a synchronous call, an id of its own; of a download, NULL';
comment on column @extschema@.steadytext_activity.owner_role is 'Role that enqueued the request, made the call or asked for the download';
comment on column @extschema@.steadytext_activity.request_type is 'Type of the request: generate, embed …, or model_pull for a download';
comment on column @extschema@.steadytext_activity.phase is
    'State of the work: waiting (for its turn), loading (the model), prefill or decoding; elsewhere: a worker on another machine has it, and the row of the queue has all that is known about it; of a download: downloading, or the reason why it waits';
comment on column @extschema@.steadytext_activity.prompt_tokens is 'Length of the prompt in tokens';
comment on column @extschema@.steadytext_activity.generated_tokens is 'Tokens generated so far';
comment on column @extschema@.steadytext_activity.tokens_per_second is 'Tokens generated per second';
comment on column @extschema@.steadytext_activity.partial_text is
    'Text of the answer so far; NULL for roles that may watch the request, but not read it';
comment on column @extschema@.steadytext_activity.started_at is 'Time when the engine took the request';
comment on column @extschema@.steadytext_activity.first_token_turns is
    'Number of steps that the engine computed from taking the request to its first token';
comment on column @extschema@.steadytext_activity.worker_pid is 'Process that waits for the answer: the worker, or the backend that called a synchronous function';

comment on column @extschema@.steadytext_activity.download is 'Name or reference of the model that is downloaded';
comment on column @extschema@.steadytext_activity.bytes_done is 'Bytes of the model that have arrived';
comment on column @extschema@.steadytext_activity.bytes_total is 'Size of the model in bytes; NULL while that is not known';
comment on column @extschema@.steadytext_activity.bytes_per_second is 'Bytes downloaded per second, over the last seconds';
comment on column @extschema@.steadytext_activity.time_left is 'Time until the end of the download at that rate';

create view @extschema@.steadytext_queue_counts as
select
    q.request_type,
    q.status,
    pg_catalog.count(*) as requests,
    pg_catalog.min(q.created_at) as oldest
from @extschema@.steadytext_queue as q
group by q.request_type, q.status;
comment on view @extschema@.steadytext_queue_counts is
    'Numbers of everybody''s requests by type and state, without their contents; for administrators and members of pg_monitor';
comment on column @extschema@.steadytext_queue_counts.request_type is 'Type of the requests: generate, embed …';
comment on column @extschema@.steadytext_queue_counts.status is
    'State of the requests: pending, processing, completed, failed or cancelled';
comment on column @extschema@.steadytext_queue_counts.requests is 'Number of requests of this type and state';
comment on column @extschema@.steadytext_queue_counts.oldest is 'Time when the oldest of these requests was enqueued';

create function steadytext.worker_state()
returns table (
    state text,
    pid integer,
    worker text,
    started_at timestamptz,
    library_version text,
    message text,
    running integer,
    memory_mb integer
)
language c volatile parallel restricted rows 1
as 'MODULE_PATHNAME', 'worker_state_wrapper';
comment on function steadytext.worker_state() is
    'Returns the worker of this database, always one row; state is not_preloaded, stopped, starting, idle, running, paused or version_mismatch';

create function steadytext.process_problem(p_slow boolean)
returns text
language c volatile parallel restricted
as 'MODULE_PATHNAME', 'process_problem_wrapper';
comment on function steadytext.process_problem(boolean) is
    'Returns why the process does not run that a vectorizer or an enrichment waits for; NULL where it runs, or is not wanted. Called by their status views';

create function @extschema@.steadytext_daemon_status()
returns table (
    daemon_id text,
    status text,
    endpoint text,
    last_heartbeat timestamptz,
    uptime_seconds integer,
    pid integer,
    version text,
    models_loaded text[],
    running integer,
    pending bigint,
    message text
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_pending bigint;
    v_worker record;
    v_unclaimed text;
begin
    if has_table_privilege('@extschema@.steadytext_queue', 'select') then
        -- One part per partial index, so that each is counted from its index. Row-level security
        -- applies: users count their own requests, administrators all.
        select count(*) into v_pending
        from (
            select from @extschema@.steadytext_queue as q
            where q.status = 'pending' and q.run_after is null and not q.alone
            union all
            select from @extschema@.steadytext_queue as q
            where q.status = 'pending' and q.run_after is null and q.alone
            union all
            select from @extschema@.steadytext_queue as q
            where q.status = 'pending' and q.run_after is not null
            limit 1000000
        ) as p;
    else
        -- Members of pg_monitor.
        select coalesce(sum(c.requests), 0) into v_pending
        from @extschema@.steadytext_queue_counts as c
        where c.status = 'pending';
    end if;
    select w.* into v_worker from steadytext.worker_state() as w;
    if v_pending > 0 then
        select string_agg(u.said, '; ' order by u.n) filter (where u.n <= 5) into v_unclaimed
        from (
            select row_number() over (order by r.oldest) as n,
                format('%s for %s (%s), and no worker claims %s',
                    case r.requests when 1 then '1 request waits' else r.requests || ' requests wait' end,
                    coalesce('model "' || r.model || '"', 'a model that is not registered'), r.request_type,
                    case r.requests when 1 then 'it' else 'them' end) as said
            from steadytext.unclaimed_requests() as r
        ) as u;
    end if;

    return query
    select coalesce(v_worker.worker, 'local'), v_worker.state, coalesce(h.endpoint, 'local'),
        h.last_heartbeat,
        case when v_worker.pid is not null
            then date_part('epoch', clock_timestamp() - v_worker.started_at)::integer end,
        v_worker.pid, v_worker.library_version, h.models_loaded, v_worker.running, v_pending,
        nullif(concat_ws('; ', v_worker.message, v_unclaimed), '')
    from (select) as one
    left join @extschema@.steadytext_daemon_health as h on h.daemon_id = v_worker.worker;

    -- Workers on other machines speak through their heartbeats only.
    return query
    select h.daemon_id,
        case when h.last_heartbeat < clock_timestamp() - interval '60 seconds'
            then 'stale' else h.status end,
        h.endpoint, h.last_heartbeat, h.uptime_seconds, null::integer, h.version, h.models_loaded,
        h.active_connections, v_pending, null::text
    from @extschema@.steadytext_daemon_health as h
    where not starts_with(h.daemon_id, 'local:')
    order by h.daemon_id;
end
$$;
comment on function @extschema@.steadytext_daemon_status() is
    'Returns the worker of this database in the first row, workers on other machines after it; status names a problem, message says what to do about it';

create function @extschema@.steadytext_daemon_start()
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    perform @extschema@.steadytext_config_set('worker_paused'::text, 'false'::text);
    return true;
end
$$;
comment on function @extschema@.steadytext_daemon_start() is
    'Lets the paused worker of this database go on. For members of steadytext_admin';

create function @extschema@.steadytext_daemon_stop()
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    perform @extschema@.steadytext_config_set('worker_paused'::text, 'true'::text);
    return true;
end
$$;
comment on function @extschema@.steadytext_daemon_stop() is
    'Pauses the worker of this database, and with it vectorizers and enrichments: requests and their work wait until steadytext_daemon_start(). For members of steadytext_admin';

create function @extschema@.steadytext_model_status()
returns table (name text, task text, file text, state text, reason text, is_chosen boolean)
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'model_status_wrapper';
comment on function @extschema@.steadytext_model_status() is
    'Returns the state of the registered models: whether their files are there and can be used, why not, the error of the last download of a missing one, and which ones requests get that name none';
