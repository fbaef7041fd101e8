-- Protocol: claiming. One short transaction takes a batch of pending requests.
--
-- All protocol functions run as the owner of the queue, so that members of
-- steadytext_worker need EXECUTE and nothing else. Each repeats the literal conditions of the
-- partial index it wants and switches off the plans that would be chosen on statistics gone
-- stale: a queue's contents turn over faster than it is analyzed. jit is off because the
-- penalty of a switched-off plan would make any query look worth compiling.

-- Invariant: the selects that lock rows have no ORDER BY. They scan the one index whose
-- condition they repeat, forward, so rows come in its order; an ORDER BY id would let the
-- planner walk the primary key through every finished request instead.
create function steadytext.claim_requests(
    p_worker text,
    p_limit integer,
    p_lease_seconds integer,
    p_after_role oid,
    p_alone boolean,
    p_least integer default 1
)
returns table (
    id bigint,
    request_id uuid,
    attempt integer,
    request_type text,
    prompt text,
    prompts text[],
    params jsonb,
    owner_role name,
    owner_oid oid,
    retry_count integer,
    max_retries integer,
    priority integer
)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
    v_lease timestamptz := v_now + make_interval(secs => p_lease_seconds);
    v_max_retries integer := steadytext.config_integer('max_retries');
    v_after oid := coalesce(p_after_role, 0);
    v_left integer := p_limit;
    v_got integer;
    v_bound integer := 10;
    v_priority integer;
    v_first_role oid;
    v_first_id bigint;
    v_roles oid[];
    v_ids bigint[];
    v_role oid;
    v_id bigint;
    v_to_wrap boolean;
    v_share integer;
    v_extra integer;
begin
    perform steadytext.check_worker(p_worker, p_lease_seconds);
    if p_alone then
        return query
        with picked as materialized (
            select q.ctid as tid
            from @extschema@.steadytext_queue as q
            where q.status = 'pending' and q.run_after is null and q.alone
            limit least(p_limit, 1)
            for update skip locked
        )
        update @extschema@.steadytext_queue as q set
            status = 'processing', attempt = q.attempt + 1, worker = p_worker,
            started_at = v_now, lease_expires_at = v_lease,
            max_retries = coalesce(q.max_retries, v_max_retries),
            result = null, results = null, embedding = null, embeddings = null,
            error = null, error_code = null, completed_at = null, processing_time_ms = null
        from picked as p
        where q.ctid = p.tid
        returning q.id, q.request_id, q.attempt, q.request_type, q.prompt, q.prompts, q.params,
            q.owner_role::name, q.owner_role::oid, q.retry_count, q.max_retries, q.priority;
        return;
    end if;

    -- Round after round, each at the highest priority where something waits: what users leave
    -- of their shares, the others get.
    while v_left > 0 loop
        select q.priority, q.owner_role, q.id into v_priority, v_first_role, v_first_id
        from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is null and not q.alone
            and q.priority <= v_bound
        order by q.priority desc, q.owner_role, q.id
        limit 1;
        exit when not found or v_priority < p_least;

        -- The users in turn, each found with one descent of the index: first those after the
        -- last one served, then from the beginning. With each comes the first of its ids, so
        -- that the next scan need not step over the same dead entries: while somebody has an
        -- old snapshot open they can be many.
        v_to_wrap := v_first_role <= v_after;
        if v_to_wrap then
            v_roles := '{}';
            v_ids := '{}';
            v_role := v_after;
        else
            v_roles := array[v_first_role];
            v_ids := array[v_first_id];
            v_role := v_first_role;
        end if;
        while cardinality(v_roles) < v_left loop
            select q.owner_role, q.id into v_role, v_id
            from @extschema@.steadytext_queue as q
            where q.status = 'pending' and q.run_after is null and not q.alone
                and q.priority = v_priority and q.owner_role > v_role
            order by q.owner_role, q.id
            limit 1;
            if not found then
                exit when not v_to_wrap;
                v_to_wrap := false;
                v_role := v_first_role;
                v_id := v_first_id;
            end if;
            exit when not v_to_wrap and v_first_role <= v_after and v_role > v_after;
            v_roles := v_roles || v_role;
            v_ids := v_ids || v_id;
        end loop;

        v_share := v_left / cardinality(v_roles);
        v_extra := v_left % cardinality(v_roles);
        return query
        with picked as materialized (
            select r.tid, u.n, r.id
            from unnest(v_roles, v_ids) with ordinality as u(role, id, n)
            cross join lateral (
                select q.ctid as tid, q.id
                from @extschema@.steadytext_queue as q
                where q.status = 'pending' and q.run_after is null and not q.alone
                    and q.priority = v_priority
                    -- This user, from this id on; written so that only the claim index serves.
                    and (q.owner_role::oid, q.id) >= (u.role, u.id) and q.owner_role <= u.role
                limit v_share + (u.n <= v_extra)::integer
                for update skip locked
            ) as r
        ),
        turns as (
            select p.tid, p.n, row_number() over (partition by p.n order by p.id) as turn
            from picked as p
        ),
        claimed as (
            update @extschema@.steadytext_queue as q set
                status = 'processing', attempt = q.attempt + 1, worker = p_worker,
                started_at = v_now, lease_expires_at = v_lease,
                max_retries = coalesce(q.max_retries, v_max_retries),
                result = null, results = null, embedding = null, embeddings = null,
                error = null, error_code = null, completed_at = null, processing_time_ms = null
            from turns as t
            where q.ctid = t.tid
            returning t.turn, t.n, q.id, q.request_id, q.attempt, q.request_type, q.prompt,
                q.prompts, q.params, q.owner_role, q.retry_count, q.max_retries, q.priority
        )
        select c.id, c.request_id, c.attempt, c.request_type, c.prompt, c.prompts, c.params,
            c.owner_role::name, c.owner_role::oid, c.retry_count, c.max_retries, c.priority
        from claimed as c
        order by c.turn, c.n;
        get diagnostics v_got = row_count;
        v_left := v_left - v_got;
        -- A round that brings nothing met only rows that others hold.
        v_bound := case when v_got = 0 then v_priority - 1 else v_priority end;
    end loop;
end
$$;
comment on function steadytext.claim_requests(text, integer, integer, oid, boolean, integer) is
    'Protocol: takes up to p_limit requests of priority p_least and more, 10 first, in turn among users after p_after_role, oldest first; with p_alone one request that was in flight at a crash';

create function steadytext.extend_leases(
    p_worker text,
    p_ids bigint[],
    p_attempts integer[],
    p_lease_seconds integer
)
returns table (id bigint, reason text)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    v_now timestamptz := clock_timestamp();
begin
    perform steadytext.check_worker(p_worker, p_lease_seconds);
    -- Half of a lease left is enough: most calls write nothing.
    with held as materialized (
        select h.tid
        from (select * from unnest(p_ids, p_attempts) as u(id, attempt) order by u.id) as g
        cross join lateral (
            select q.ctid as tid
            from @extschema@.steadytext_queue as q
            where q.id = g.id and q.attempt = g.attempt and q.worker = p_worker and q.status = 'processing'
                and q.lease_expires_at < v_now + make_interval(secs => p_lease_seconds / 2.0)
            for update skip locked
        ) as h
    )
    update @extschema@.steadytext_queue as q
    set lease_expires_at = v_now + make_interval(secs => p_lease_seconds)
    from held as h
    where q.ctid = h.tid;

    return query
    select g.id,
        case when q.attempt = g.attempt and q.status = 'cancelled' then 'cancelled' else 'lost' end
    from unnest(p_ids, p_attempts) as g(id, attempt)
    left join @extschema@.steadytext_queue as q on q.id = g.id
    where (q.attempt = g.attempt and q.worker = p_worker and q.status = 'processing') is not true;
end
$$;
comment on function steadytext.extend_leases(text, bigint[], integer[], integer) is
    'Protocol: keeps the leases of running requests and returns those that the worker no longer holds, so that it stops them';

create function steadytext.release_requests(p_worker text, p_ids bigint[], p_attempts integer[])
returns integer
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_count integer;
begin
    perform steadytext.check_worker(p_worker);
    with held as materialized (
        select h.tid
        from (select * from unnest(p_ids, p_attempts) as u(id, attempt) order by u.id) as g
        cross join lateral (
            select q.ctid as tid
            from @extschema@.steadytext_queue as q
            where q.id = g.id and q.attempt = g.attempt and q.worker = p_worker and q.status = 'processing'
            for update skip locked
        ) as h
    )
    update @extschema@.steadytext_queue as q
    set status = 'pending', run_after = null, worker = null, lease_expires_at = null, started_at = null
    from held as h
    where q.ctid = h.tid;
    get diagnostics v_count = row_count;
    return v_count;
end
$$;
comment on function steadytext.release_requests(text, bigint[], integer[]) is
    'Protocol: gives back requests that were claimed and not begun; costs them nothing';
