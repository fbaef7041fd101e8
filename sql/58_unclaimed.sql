-- Requests that wait for a model or a type that no worker claims: they would wait for ever, and nothing else says so.
--
-- The server's own worker claims everything but the models that are placed elsewhere. Workers elsewhere say in their heartbeats what they claim.

-- The lanes with waiting requests, found as a claim finds them: each with one descent of the index, so that the cost does not grow with the
-- number of requests.
create function steadytext.waiting_lanes(p_role oid)
returns table (lane bigint, request_type text, params jsonb)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    c_lanes constant integer := 1000;
    v_lane bigint := case when p_role is not null then steadytext.first_lane(p_role, 0) - 1 else -9223372036854775808 end;
    v_last bigint := case when p_role is not null then steadytext.first_lane(p_role, 15) + 268435455 else 9223372036854775807 end;
    v_count integer := 0;
begin
    loop
        select steadytext.claim_lane(q.owner_role, q.priority, q.request_type, q.params), q.request_type, q.params
        into lane, request_type, params
        from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is null and not q.alone and coalesce(q.attempt, 0) >= 0
            and steadytext.claim_lane(q.owner_role, q.priority, q.request_type, q.params) > v_lane
            and steadytext.claim_lane(q.owner_role, q.priority, q.request_type, q.params) <= v_last
        order by steadytext.claim_lane(q.owner_role, q.priority, q.request_type, q.params)
        limit 1;
        exit when not found;
        return next;
        v_lane := lane;
        v_count := v_count + 1;
        exit when v_count = c_lanes;
    end loop;
end
$$;
comment on function steadytext.waiting_lanes(oid) is
    'Returns the lanes of pending requests, of a role or of all, up to 1,000, with the first request of each; called by unclaimed_requests';

create function steadytext.live_claims()
returns table (models text[], types text[])
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select
        case when jsonb_typeof(c.claim -> 'models') = 'array'
            then array(select lower(m.name) from jsonb_array_elements_text(c.claim -> 'models') as m(name)) end,
        case when jsonb_typeof(c.claim -> 'types') = 'array'
            then array(select t.name from jsonb_array_elements_text(c.claim -> 'types') as t(name)) end
    from @extschema@.steadytext_daemon_health as h
    -- Of one that does not say it, anything may be expected.
    cross join lateral jsonb_array_elements(coalesce(h.claims, '[{}]')) as c(claim)
    where not starts_with(h.daemon_id, 'local:') and h.last_heartbeat > clock_timestamp() - interval '60 seconds'
$$;
comment on function steadytext.live_claims() is
    'Returns the models, in lower case, and types that the workers elsewhere claim that have reported within the last minute, NULL for all; called by unclaimed_requests';

create function steadytext.unclaimed_requests()
returns table (model text, request_type text, placement text, requests bigint, oldest timestamptz, reason text, hint text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    c_rows constant integer := 10000;
    -- Answered by how likely answers are, which endpoints do not tell.
    c_judged constant text[] := '{if,if_score,score,classify,classify_scores,classify_multi,analyze_sentiment}';
    v_role oid := steadytext.outer_role();
    v_all boolean := pg_has_role(v_role, 'steadytext_admin', 'usage') or pg_has_role(v_role, 'pg_monitor', 'usage');
    v_state text := (select w.state from steadytext.worker_state() as w);
    v_defaults text[] := steadytext.lower_names(steadytext.default_models());
    v_elsewhere text[] := steadytext.lower_names(steadytext.models_placed('elsewhere'));
    v_server text[] := steadytext.lower_names(steadytext.models_placed('server'));
    v_workers bigint := (
        select count(*) from @extschema@.steadytext_daemon_health as h
        where not starts_with(h.daemon_id, 'local:') and h.last_heartbeat > clock_timestamp() - interval '60 seconds');
begin
    return query
    with claims as materialized (
        select c.models, c.types from steadytext.live_claims() as c
    ),
    lanes as materialized (
        select w.lane, null::bigint as id, w.request_type, w.params
        from steadytext.waiting_lanes(case when not v_all then v_role end) as w
        union all
        -- Requests that run one at a time, after a crash.
        (select null, q.id, q.request_type, q.params
        from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is null and q.alone and (v_all or q.owner_role::oid = v_role)
        limit c_rows)
    ),
    kinds as materialized (
        select l.lane, l.id, l.request_type, lower(coalesce(l.params ->> 'model', l.params ->> 'size', l.params ->> 'default_model',
            v_defaults[steadytext.task_number(l.request_type, l.params)])) as model
        from lanes as l
    ),
    unclaimed as materialized (
        select k.*, coalesce(k.model = any (v_elsewhere), false) as is_elsewhere,
            exists (select from claims as c where c.models is null or k.model = any (c.models)) as is_served
        from kinds as k
        -- Where the server's own worker is the only one, its state says all.
        where (v_state not in ('idle', 'running', 'starting') and v_workers > 0 or k.model = any (v_elsewhere))
            and not exists (
                select from claims as c
                where (c.types is null or k.request_type = any (c.types))
                    and (c.models is null or k.model = any (c.models))
                    and coalesce(k.model <> all (v_server), true))
    ),
    counted as (
        select u.model, u.request_type, u.is_elsewhere, u.is_served, sum(n.requests)::bigint as requests, min(n.oldest) as oldest
        from unclaimed as u
        cross join lateral (
            select count(*) as requests, min(r.created_at) as oldest
            from (
                select q.created_at
                from @extschema@.steadytext_queue as q
                where u.lane is not null and q.status = 'pending' and q.run_after is null and not q.alone and coalesce(q.attempt, 0) >= 0
                    and steadytext.claim_lane(q.owner_role, q.priority, q.request_type, q.params) = u.lane
                union all
                select q.created_at from @extschema@.steadytext_queue as q where q.id = u.id
                limit c_rows
            ) as r
        ) as n
        group by u.model, u.request_type, u.is_elsewhere, u.is_served
    )
    -- The owners of the requests are private, and so are names that a user has made up.
    select coalesce(m.name, case when c.model = 'builtin' then c.model end), c.request_type, coalesce(m.placement, 'any'),
        c.requests, c.oldest, d.reason, d.hint
    from counted as c
    left join lateral (
        select r.name, r.file, r.placement from @extschema@.steadytext_models as r where lower(r.name) = c.model order by r.name limit 1
    ) as m on true
    cross join lateral (
        select
            case
                when not c.is_elsewhere then format('the server''s own worker is %s', v_state)
                when v_workers = 0 then 'the model is placed elsewhere, and no worker elsewhere has reported within the last minute'
                when c.is_served then 'the model is placed elsewhere, and the workers there that serve it do not take requests of this type'
                when v_workers = 1 then 'the model is placed elsewhere, and the one worker there does not serve it'
                else format('the model is placed elsewhere, and none of the %s workers there serves it', v_workers)
            end as reason,
            case
                when not c.is_elsewhere and v_state = 'paused' then 'Let it go on: select steadytext_daemon_start().'
                when not c.is_elsewhere then '"Requests stay pending" in docs/operations.md says what to do.'
                when c.is_served and v_workers > 0 then case
                    when c.request_type = 'summarize' then format(
                        'No endpoint answers this type, which needs the tokens of the model: start steadytext-worker where "%s" is in its --model-dir, with --types that name this type, or none.',
                        regexp_replace(m.file, '^/.*/', ''))
                    when c.request_type = any (c_judged)
                        then 'Start a worker whose --types name this type, or that has no --types; an endpoint answers it only where its file says judgements = "choice".'
                    else 'Start a worker whose --types name this type, or that has no --types; an endpoint answers the types in its file.'
                end
                else format('Start steadytext-worker where "%s" is in its --model-dir%s; what it says of the model in its log counts.%s',
                    regexp_replace(m.file, '^/.*/', ''),
                    case
                        when c.request_type = 'summarize' then ' (no endpoint answers this type, which needs the tokens of the model)'
                        when c.request_type = any (c_judged)
                            then format(', or with %s in the file of --endpoints and judgements = "choice" there, without which no endpoint answers this type', m.name)
                        else format(', or with %s in the file of --endpoints', m.name)
                    end,
                    -- Otherwise its requests would only fail here.
                    case when exists (select from @extschema@.steadytext_model_status() as s where s.name = m.name and s.state = 'ready')
                        then format(' Or let the server compute it: update steadytext_models set placement = ''any'' where name = %L.', m.name) end)
            end as hint
    ) as d
    order by c.oldest, c.model, c.request_type;
end
$$;
comment on function steadytext.unclaimed_requests() is
    'Returns the pending requests that no worker claims by model and type, with the reason and a hint; the caller''s own, or everybody''s for members of steadytext_admin and pg_monitor. Models that are not registered are not named. No rows where the server''s own worker is the only one and does not run: worker_state shows that';
