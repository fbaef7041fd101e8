-- Heartbeats of workers. Not dumped: they speak of the moment.

create table @extschema@.steadytext_daemon_health (
    daemon_id text constraint steadytext_daemon_health_pkey primary key,
    endpoint text not null,
    last_heartbeat timestamptz not null default pg_catalog.now(),
    status text not null,
    version text,
    models_loaded text[],
    memory_usage_mb integer,
    active_connections integer not null default 0,
    total_requests bigint not null default 0,
    error_count bigint not null default 0,
    avg_response_time_ms double precision,
    uptime_seconds integer,
    started_at timestamptz default pg_catalog.clock_timestamp(),
    reported_by steadytext.role_id,
    claims jsonb
);
comment on table @extschema@.steadytext_daemon_health is
    'Last heartbeat of each worker; steadytext_daemon_status() shows them';
comment on column @extschema@.steadytext_daemon_health.daemon_id is 'Name of the worker: local:<uuid> is the server''s own';
comment on column @extschema@.steadytext_daemon_health.endpoint is 'Address where the worker runs';
comment on column @extschema@.steadytext_daemon_health.last_heartbeat is 'Time when the worker last reported';
comment on column @extschema@.steadytext_daemon_health.status is 'State that the worker reported';
comment on column @extschema@.steadytext_daemon_health.version is 'Version of the worker''s library';
comment on column @extschema@.steadytext_daemon_health.models_loaded is 'Models in the worker''s memory';
comment on column @extschema@.steadytext_daemon_health.memory_usage_mb is 'Memory of the worker''s engine in MB';
comment on column @extschema@.steadytext_daemon_health.active_connections is 'Number of requests that the worker was running';
comment on column @extschema@.steadytext_daemon_health.total_requests is 'Number of requests that the worker has ended since its start';
comment on column @extschema@.steadytext_daemon_health.error_count is 'Number of requests that have failed, among those that the worker has ended';
comment on column @extschema@.steadytext_daemon_health.avg_response_time_ms is
    'Mean milliseconds from claim to completion of a request';
comment on column @extschema@.steadytext_daemon_health.uptime_seconds is 'Seconds from the worker''s first report to its last';
comment on column @extschema@.steadytext_daemon_health.started_at is 'Time when the worker first reported';
comment on column @extschema@.steadytext_daemon_health.reported_by is 'Role that reported';
comment on column @extschema@.steadytext_daemon_health.claims is
    'Requests that the worker claims: objects with models and types, NULL for all of them; NULL where the worker does not say';
comment on constraint steadytext_daemon_health_pkey on @extschema@.steadytext_daemon_health is
    'One row per worker';

create function steadytext.are_claims(p_claims jsonb)
returns boolean
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    if p_claims is null then
        return true;
    end if;
    if pg_column_size(p_claims) > 262144 or jsonb_typeof(p_claims) <> 'array' then
        return false;
    end if;
    -- Not before it is an array: what comes is somebody else's.
    return jsonb_array_length(p_claims) <= 256 and not exists (
        select from jsonb_array_elements(p_claims) as c(claim)
        where jsonb_typeof(c.claim) <> 'object'
            or coalesce(jsonb_typeof(c.claim -> 'models'), 'null') not in ('array', 'null')
            or coalesce(jsonb_typeof(c.claim -> 'types'), 'null') not in ('array', 'null')
    );
end
$$;
comment on function steadytext.are_claims(jsonb) is 'Returns whether a worker may report that it claims this; called by check_heartbeat';

-- Each member of steadytext_worker may report what it likes, of workers of its own: a few of them, and in a few words.
create function steadytext.check_heartbeat(
    p_role oid,
    p_daemon_id text,
    p_endpoint text,
    p_status text,
    p_version text,
    p_models jsonb,
    p_numbers double precision[],
    p_claims jsonb
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    c_workers constant integer := 100;
    v_text record;
begin
    for v_text in
        select t.* from (values ('an endpoint', p_endpoint, 256), ('a status', p_status, 64), ('a version', p_version, 64)) as t(name, value, bytes)
        where octet_length(t.value) > t.bytes or t.value ~ '[[:cntrl:]]'
    loop
        raise exception '% in a heartbeat has % bytes at most, and no control characters', v_text.name, v_text.bytes
            using errcode = 'invalid_parameter_value', hint = 'Say where the worker runs and how it is in a few words.';
    end loop;
    if pg_column_size(p_models) > 65536 or jsonb_typeof(p_models) = 'array' and (
        jsonb_array_length(p_models) > 256
        or exists (
            select from jsonb_array_elements(p_models) as m(model)
            where octet_length(coalesce(m.model ->> 'name', m.model #>> '{}')) > 256))
    then
        raise exception 'a heartbeat names 256 models at most, with 256 bytes each'
            using errcode = 'invalid_parameter_value', hint = 'Name the models that are in memory.';
    end if;
    if not steadytext.are_claims(p_claims) then
        raise exception 'the claims in a heartbeat are no array of up to 256 objects with arrays of names'
            using errcode = 'invalid_parameter_value',
                hint = 'Each is {"models": […], "types": […]}, with NULL for all, and all of them together 262144 bytes at most.';
    end if;
    if exists (select from unnest(p_numbers) as n(value) where n.value < 0 or n.value > 1e18) then
        raise exception 'the numbers in a heartbeat must be from 0 to 1e18'
            using errcode = 'invalid_parameter_value', hint = 'Report 0 for what is not known.';
    end if;
    if exists (
        select from @extschema@.steadytext_daemon_health as h
        where h.daemon_id = p_daemon_id and h.reported_by::oid <> p_role)
    then
        raise exception 'another role reports for the worker of this name'
            using errcode = 'invalid_parameter_value', hint = 'Take a name of its own for each worker, new at each start.';
    end if;
    delete from @extschema@.steadytext_daemon_health as h
    where h.reported_by::oid = p_role and h.daemon_id <> p_daemon_id and h.last_heartbeat < clock_timestamp() - interval '1 day';
    if (
        select count(*) from @extschema@.steadytext_daemon_health as h
        where h.reported_by::oid = p_role and h.daemon_id <> p_daemon_id and h.endpoint <> p_endpoint
    ) >= c_workers
    then
        raise exception 'a role reports for % workers at most', c_workers
            using errcode = 'invalid_parameter_value', hint = 'Those that do not report for a day are forgotten.';
    end if;
end
$$;
comment on function steadytext.check_heartbeat(oid, text, text, text, text, jsonb, double precision[], jsonb) is
    'Refuses a report that a worker elsewhere may not make of itself; called by record_heartbeat';

create function steadytext.record_heartbeat(
    p_daemon_id text,
    p_endpoint text,
    p_status text,
    p_version text,
    p_models jsonb,
    p_memory_mb integer,
    p_active integer,
    p_total bigint,
    p_errors bigint,
    p_avg_ms double precision,
    p_claims jsonb default null
)
returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_role oid := steadytext.outer_role();
begin
    perform steadytext.check_worker(p_daemon_id);
    if (p_endpoint is null or p_endpoint = 'local') and not steadytext.is_own_worker() then
        raise exception 'the endpoint "local" is the server''s own worker''s'
            using errcode = 'invalid_parameter_value', hint = 'Say where this worker runs, for example by its host.';
    end if;
    if p_endpoint is null or p_status is null then
        raise exception 'a heartbeat needs an endpoint and a status'
            using errcode = 'invalid_parameter_value', hint = 'Say where this worker runs, and whether it is idle or running.';
    end if;
    if not steadytext.is_own_worker() then
        perform steadytext.check_heartbeat(v_role, p_daemon_id, p_endpoint, p_status, p_version, p_models,
            array[p_memory_mb, p_active, p_total, p_errors, p_avg_ms]::double precision[], p_claims);
    end if;
    -- A worker starts with a new id each time; what its predecessor left is stale.
    delete from @extschema@.steadytext_daemon_health as h
    where h.endpoint = p_endpoint and h.daemon_id <> p_daemon_id and (h.reported_by is null or h.reported_by::oid = v_role);

    -- A worker that has not reported for a day does not come back either, whichever worker reports for its role now.
    if steadytext.is_own_worker() then
        delete from @extschema@.steadytext_daemon_health as h
        where h.daemon_id <> p_daemon_id and h.last_heartbeat < clock_timestamp() - interval '1 day';
    end if;

    insert into @extschema@.steadytext_daemon_health as h (
        daemon_id, endpoint, last_heartbeat, status, version, models_loaded,
        memory_usage_mb, active_connections, total_requests, error_count, avg_response_time_ms, uptime_seconds,
        reported_by, claims
    )
    values (
        p_daemon_id, p_endpoint, clock_timestamp(), p_status, p_version,
        array(
            select coalesce(m.model ->> 'name', m.model #>> '{}')
            from jsonb_array_elements(
                case when jsonb_typeof(p_models) = 'array' then p_models else '[]' end
            ) as m(model)
        ),
        p_memory_mb, coalesce(p_active, 0), coalesce(p_total, 0), coalesce(p_errors, 0), p_avg_ms, 0,
        pg_get_userbyid(v_role)::steadytext.role_id, p_claims
    )
    on conflict (daemon_id) do update set
        endpoint = excluded.endpoint,
        last_heartbeat = excluded.last_heartbeat,
        status = excluded.status,
        version = excluded.version,
        models_loaded = excluded.models_loaded,
        memory_usage_mb = excluded.memory_usage_mb,
        active_connections = excluded.active_connections,
        total_requests = excluded.total_requests,
        error_count = excluded.error_count,
        avg_response_time_ms = excluded.avg_response_time_ms,
        uptime_seconds = greatest(least(
            extract(epoch from excluded.last_heartbeat - h.started_at), 2147483647), 0)::integer,
        -- A long value that has not changed is not written anew each time.
        claims = case when h.claims = excluded.claims then h.claims else excluded.claims end;
end
$$;
comment on function steadytext.record_heartbeat(
    text, text, text, text, jsonb, integer, integer, bigint, bigint, double precision, jsonb
) is 'Protocol: stores a worker''s report of itself and forgets its predecessor at the same endpoint';
