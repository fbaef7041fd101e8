-- Protocol: what time and crashes leave behind. Rows of dead workers, retries that have
-- come due, finished rows that have aged.

-- Twice as long each time, up to five minutes, and a random half of it, so that requests
-- that failed together do not come back together.
create function steadytext.backoff(p_retry_count integer)
returns interval
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return make_interval(secs => least(power(2, least(p_retry_count, 30)), 300) * (0.5 + random() / 2));
end
$$;
comment on function steadytext.backoff(integer) is
    'Returns the time that a request waits before its next try: least(2^retry_count, 300) seconds, times 0.5 to 1';

create function steadytext.check_limit(p_name text, p_limit integer)
returns void
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    if p_limit < 0 then
        raise exception '% must not be negative', p_name
            using errcode = 'invalid_parameter_value', hint = 'Give 0 or more.';
    end if;
end
$$;
comment on function steadytext.check_limit(text, integer) is
    'Refuses a negative limit; called by the functions of the protocol';

create function steadytext.rescue_requests(p_live text[], p_limit integer default 1000)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_aside bigint[] := steadytext.rows_aside();
    v_max_retries integer;
    v_tids tid[];
    v_poison boolean[];
    v_ranges integer[];
    v_from integer;
    v_to integer;
    v_some integer;
    v_count integer := 0;
    v_request_ids uuid[];
    v_message text;
    v_hint text;
    v_code text;
begin
    perform steadytext.check_limit('p_limit', p_limit);
    if p_live is not null and not steadytext.is_own_worker() then
        raise exception 'only the server''s own worker knows which local workers live'
            using errcode = 'invalid_parameter_value', hint = 'Pass NULL for p_live.';
    end if;
    -- The usual case costs one scan of the rows in flight.
    if not exists (
        select from @extschema@.steadytext_queue as q
        where q.status = 'processing' and q.id <> all (v_aside)
            and steadytext.is_abandoned(q.worker, q.lease_expires_at, p_live, v_now)
    ) then
        return 0;
    end if;
    perform steadytext.make_constraints_immediate();
    v_max_retries := steadytext.config_integer('max_retries');

    -- Rescued rows keep the name of their dead worker until the next claim. That is how a
    -- later batch still knows how many there were: only one alone can have been the poison one.
    with flight as materialized (
        select f.worker, count(*) as n
        from (
            select q.worker from @extschema@.steadytext_queue as q
            where q.status = 'processing'
            union all
            select q.worker from @extschema@.steadytext_queue as q
            where q.status = 'pending' and q.run_after is null and q.alone
        ) as f
        group by f.worker
    ),
    held as materialized (
        -- No ORDER BY: the index on rows in flight gives the order of ids.
        select q.ctid as tid, q.worker, q.alone
        from @extschema@.steadytext_queue as q
        where q.status = 'processing' and q.id <> all (v_aside)
            and steadytext.is_abandoned(q.worker, q.lease_expires_at, p_live, v_now)
        limit p_limit
        for no key update skip locked
    )
    select array_agg(h.tid), array_agg(h.alone or f.n = 1)
    into v_tids, v_poison
    from held as h
    join flight as f on f.worker is not distinct from h.worker;

    v_ranges := case when v_tids is null then '{}' else array[1, cardinality(v_tids)] end;
    while cardinality(v_ranges) > 0 loop
        v_from := v_ranges[1];
        v_to := v_ranges[2];
        begin
            with rescued as (
                update @extschema@.steadytext_queue as q set
                    status = case when j.is_poison and q.retry_count >= coalesce(q.max_retries, v_max_retries)
                        then 'failed' else 'pending' end,
                    retry_count = q.retry_count
                        + (j.is_poison and q.retry_count < coalesce(q.max_retries, v_max_retries))::integer,
                    run_after = case when j.is_poison and q.retry_count < coalesce(q.max_retries, v_max_retries)
                        then v_now + steadytext.backoff(q.retry_count) end,
                    alone = true,
                    lease_expires_at = null,
                    error = case when j.is_poison
                        then format('The worker died while running this request (%s attempt%s)', q.attempt,
                            case when q.attempt <> 1 then 's' end) end,
                    error_code = case when j.is_poison then '58000' end,
                    completed_at = case when j.is_poison and q.retry_count >= coalesce(q.max_retries, v_max_retries)
                        then v_now end,
                    processing_time_ms = case
                        when j.is_poison and q.retry_count >= coalesce(q.max_retries, v_max_retries)
                        then least(date_part('epoch', v_now - q.started_at) * 1000, 2147483647) end
                from unnest(v_tids[v_from : v_to], v_poison[v_from : v_to]) as j(tid, is_poison)
                where q.ctid = j.tid
                returning q.request_id, q.status
            )
            select count(*), array_agg(r.request_id) filter (where r.status = 'failed')
            into v_some, v_request_ids
            from rescued as r
            where r.status <> 'processing';
            v_ranges := v_ranges[3 :];
        exception when others or assert_failure or query_canceled then
            get stacked diagnostics v_message = message_text, v_hint = pg_exception_hint, v_code = returned_sqlstate;
            v_ranges := steadytext.halves(v_ranges, v_now);
            v_some := null;
            v_request_ids := null;
            if v_from = v_to then
                perform steadytext.end_poison('rescued', q.id, v_message, v_hint, v_code)
                from @extschema@.steadytext_queue as q
                where q.ctid = v_tids[v_from];
            end if;
        end;
        v_count := v_count + coalesce(v_some, 0);
        if v_request_ids is not null then
            perform steadytext.announce(v_request_ids);
        end if;
        if v_some <= v_to - v_from then
            perform steadytext.end_suppressed('rescued', array(
                select q.id from @extschema@.steadytext_queue as q
                where q.ctid = any (v_tids[v_from : v_to]) and q.status = 'processing'));
        end if;
    end loop;
    return v_count;
end
$$;
comment on function steadytext.rescue_requests(text[], integer) is
    'Protocol: puts back the requests that dead workers had in flight: local workers not in p_live (NULL leaves local rows alone), others by lease. A request that was alone in flight is counted and fails in the end';

create function steadytext.is_abandoned(
    p_worker text,
    p_lease_expires_at timestamptz,
    p_live text[],
    p_now timestamptz
)
returns boolean
language sql immutable parallel safe
begin atomic
    select case
        when pg_catalog.starts_with(p_worker, 'local:')
            then p_live is not null and p_worker operator(pg_catalog.<>) all (p_live)
        else coalesce(p_lease_expires_at operator(pg_catalog.<) p_now, true)
    end;
end;
comment on function steadytext.is_abandoned(text, timestamptz, text[], timestamptz) is
    'Returns whether the worker of a row in flight is gone: by list for the server''s own, by lease for others';

create function steadytext.requests_in_flight(p_ids bigint[], p_live text[])
returns table (abandoned boolean, elsewhere boolean)
language sql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
    select coalesce(bool_or(q.id <> all (steadytext.rows_aside())
            and steadytext.is_abandoned(q.worker, q.lease_expires_at, p_live, clock_timestamp())), false),
        coalesce(bool_or(not starts_with(q.worker, 'local:')), false)
    from unnest(p_ids) as i(id)
    cross join lateral (
        select f.id, f.worker, f.lease_expires_at
        from @extschema@.steadytext_queue as f
        where f.id = i.id and f.status = 'processing'
        offset 0
    ) as q
$$;
comment on function steadytext.requests_in_flight(bigint[], text[]) is
    'Returns, of requests that were in flight a moment ago, whether the workers of some are gone, and whether some belong to workers elsewhere; called by the server''s own worker';

create function steadytext.promote_requests(p_limit integer default 1000)
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_aside bigint[] := steadytext.rows_aside();
    v_tids tid[];
    v_ranges integer[];
    v_from integer;
    v_to integer;
    v_some integer;
    v_count integer := 0;
    v_message text;
    v_hint text;
    v_code text;
begin
    perform steadytext.check_limit('p_limit', p_limit);
    v_tids := array(
        select q.ctid
        from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is not null and q.run_after <= v_now
            and q.id <> all (v_aside)
        limit p_limit
        for no key update skip locked
    );
    v_ranges := case when v_tids = '{}' then '{}' else array[1, cardinality(v_tids)] end;
    if v_tids <> '{}' then
        perform steadytext.make_constraints_immediate();
    end if;
    while cardinality(v_ranges) > 0 loop
        v_from := v_ranges[1];
        v_to := v_ranges[2];
        begin
            update @extschema@.steadytext_queue as q
            set run_after = null
            from unnest(v_tids[v_from : v_to]) as d(tid)
            where q.ctid = d.tid;
            get diagnostics v_some = row_count;
            v_ranges := v_ranges[3 :];
        exception when others or assert_failure or query_canceled then
            get stacked diagnostics v_message = message_text, v_hint = pg_exception_hint, v_code = returned_sqlstate;
            v_ranges := steadytext.halves(v_ranges, v_now);
            v_some := null;
            if v_from = v_to then
                perform steadytext.end_poison('tried again', q.id, v_message, v_hint, v_code)
                from @extschema@.steadytext_queue as q
                where q.ctid = v_tids[v_from];
            end if;
        end;
        v_count := v_count + coalesce(v_some, 0);
        if v_some <= v_to - v_from then
            perform steadytext.end_suppressed('tried again', array(
                select q.id from @extschema@.steadytext_queue as q
                where q.ctid = any (v_tids[v_from : v_to]) and q.run_after is not null));
        end if;
    end loop;
    return v_count;
end
$$;
comment on function steadytext.promote_requests(integer) is
    'Protocol: makes retries claimable whose time has come';

create function steadytext.queue_outlook(
    p_count_limit integer default 1000000,
    p_models text[] default null,
    p_types text[] default null
)
returns table (pending bigint, alone_due boolean, due_in double precision, elsewhere boolean)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    -- As claim_requests: what the caller would not claim is not due for it.
    v_without text[] := steadytext.models_placed(case when steadytext.is_own_worker() then 'elsewhere' else 'server' end);
    v_any boolean := p_models is null and p_types is null and v_without = '{}';
    v_models text[];
    v_defaults text[];
begin
    perform steadytext.check_limit('p_count_limit', p_count_limit);
    if not v_any then
        v_models := steadytext.lower_names(p_models);
        v_without := steadytext.lower_names(v_without);
        v_defaults := steadytext.lower_names(steadytext.default_models());
    end if;
    -- One part per partial index, so that each is counted from its index.
    return query
    select count(*),
        exists (
            select from @extschema@.steadytext_queue as q
            where q.status = 'pending' and q.run_after is null and q.alone
                and (v_any or steadytext.is_served(q.request_type, q.params, p_types, v_models, v_without, v_defaults))
        ),
        (
            select greatest(date_part('epoch', q.run_after - clock_timestamp()), 0)
            from @extschema@.steadytext_queue as q
            where q.status = 'pending' and q.run_after is not null
            order by q.run_after
            limit 1
        ),
        p_count_limit > 0 and exists (
            select from @extschema@.steadytext_queue as q
            where q.status = 'processing' and not starts_with(q.worker, 'local:')
        )
    from (
        select from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is null and q.alone
        union all
        select from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is null and not q.alone
        union all
        select from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is not null
        limit p_count_limit
    ) as p;
end
$$;
comment on function steadytext.queue_outlook(integer, text[], text[]) is
    'Protocol: returns the number of pending requests, counted up to p_count_limit, whether one waits that must run alone and that the caller would claim, in how many seconds the next retry is due, and whether workers elsewhere have requests in flight; with p_count_limit = 0, requests are not counted and workers elsewhere are not looked for, as both walk through the queue';

create function steadytext.count_pending()
returns table (owner oid, pending bigint)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
begin
    -- One part per partial index, as in queue_outlook.
    return query
    select p.owner, count(*)
    from (
        select q.owner_role::oid as owner from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is null and q.alone
        union all
        select q.owner_role::oid from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is null and not q.alone
        union all
        select q.owner_role::oid from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is not null
    ) as p
    group by p.owner;
end
$$;
comment on function steadytext.count_pending() is
    'Protocol: returns the number of pending requests of each role, with which the worker sets its counters right';

create function steadytext.expire_requests(p_after_id bigint, p_batch integer)
returns table (last_id bigint, deleted integer)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_hours integer := steadytext.config_integer('queue_retention_hours');
    v_cutoff timestamptz := clock_timestamp() - make_interval(hours => v_hours);
    v_seen integer;
    v_young boolean;
    v_now timestamptz := clock_timestamp();
    v_tids tid[];
    v_ranges integer[] := '{}';
    v_count integer;
begin
    perform steadytext.check_limit('p_batch', p_batch);
    deleted := 0;
    if v_hours > 0 then
        select count(*), max(b.id), bool_and(b.created_at >= v_cutoff),
            array_agg(b.tid) filter (where b.status in ('completed', 'failed', 'cancelled'))
        into v_seen, last_id, v_young, v_tids
        from (
            select q.id, q.ctid as tid, q.created_at, q.status
            from @extschema@.steadytext_queue as q
            where q.id > coalesce(p_after_id, 0)
            order by q.id
            limit p_batch
        ) as b;

        v_tids := array(
            select q.ctid
            from @extschema@.steadytext_queue as q
            where q.ctid = any (v_tids)
                and q.status in ('completed', 'failed', 'cancelled')
                and coalesce(q.completed_at, q.created_at) < v_cutoff
            for update skip locked
        );
        if v_tids <> '{}' then
            perform steadytext.make_constraints_immediate();
            v_ranges := array[1, cardinality(v_tids)];
        end if;
        -- A row that cannot be deleted, as another table refers to it, is left.
        while cardinality(v_ranges) > 0 loop
            begin
                delete from @extschema@.steadytext_queue as q
                where q.ctid = any (v_tids[v_ranges[1] : v_ranges[2]]);
                get diagnostics v_count = row_count;
                v_ranges := v_ranges[3 :];
                deleted := deleted + v_count;
            exception when others or assert_failure or query_canceled then
                if v_ranges[1] = v_ranges[2] then
                    perform steadytext.note_row_error('deleted', q.id, null, sqlstate, 'left')
                    from @extschema@.steadytext_queue as q
                    where q.ctid = v_tids[v_ranges[1]];
                end if;
                v_ranges := steadytext.halves(v_ranges, v_now);
            end;
        end loop;

        -- Ids grow with time: after a whole batch of young rows come only younger ones.
        if v_seen < p_batch or v_young then
            last_id := null;
            -- A batch goes when the last of its requests has gone.
            delete from @extschema@.steadytext_batch_heads as h
            where h.ctid = any (array(
                select o.ctid
                from @extschema@.steadytext_batch_heads as o
                where o.created_at < v_cutoff
                    and not exists (
                        select from @extschema@.steadytext_queue as q where q.batch = o.batch and q.batch is not null)
                limit p_batch
                for update skip locked
            ));
        end if;
    end if;
    return next;
end
$$;
comment on function steadytext.expire_requests(bigint, integer) is
    'Protocol: one step of retention upward along the primary key after p_after_id; last_id is where to go on, NULL at the end';
