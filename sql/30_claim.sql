-- Protocol: claiming. One short transaction takes a batch of pending requests.
--
-- All protocol functions run as the owner of the queue, so that members of
-- steadytext_worker need EXECUTE and nothing else. Each repeats the literal conditions of the
-- partial index it wants and switches off the plans that would be chosen on statistics gone
-- stale: a queue's contents turn over faster than it is analyzed. jit is off because the
-- penalty of a switched-off plan would make any query look worth compiling.
--
-- What no row may do to the others: rows that somebody has locked are passed without waiting,
-- a long stretch of them is not walked again in each claim (steadytext.passed_rows), and a row
-- whose update raises an error is found by halving, and ended (33_trouble.sql).

-- Invariant: the selects that read candidates have no ORDER BY. They scan the one index whose
-- condition they repeat, forward, so rows come in its order; an ORDER BY id would let the
-- planner walk the primary key through every finished request instead.
create function steadytext.claim_requests(
    p_worker text,
    p_limit integer,
    p_lease_seconds integer,
    p_after_role oid,
    p_alone boolean,
    p_least integer default 1,
    p_bytes bigint default 67108864
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
    priority integer,
    bytes bigint
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
    v_begun timestamptz := clock_timestamp();
    v_after oid := coalesce(p_after_role, 0);
    v_aside bigint[] := steadytext.rows_aside();
    v_left integer := p_limit;
    v_bytes bigint := p_bytes;
    -- Rows that are looked at in vain before a claim leaves the rest to the next one.
    v_looks integer := 2048;
    v_claimed bigint[] := '{}';
    v_bound integer := 10;
    v_priority integer;
    v_wrapped boolean;
    v_first boolean;
    v_last oid;
    v_last_id bigint;
    v_role oid;
    v_id bigint;
    v_roles oid[];
    v_ids bigint[];
    v_step record;
    v_taken bigint[];
begin
    perform steadytext.check_worker(p_worker, p_lease_seconds);
    perform steadytext.make_constraints_immediate();
    if p_alone then
        v_claimed := steadytext.take_rows(p_worker, array(
            select q.ctid
            from @extschema@.steadytext_queue as q
            where q.status = 'pending' and q.run_after is null and q.alone and q.id <> all (v_aside)
            limit least(p_limit, 1)
            for no key update skip locked
        ), p_lease_seconds);
    end if;

    -- From priority to priority; at each, users in turn, those after the last one served first.
    while not p_alone and v_left > 0 and v_bytes > 0 loop
        select q.priority into v_priority
        from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is null and not q.alone
            and q.priority <= v_bound
        order by q.priority desc, q.owner_role, q.id
        limit 1;
        exit when not found or v_priority < p_least;
        v_bound := v_priority - 1;
        v_wrapped := false;
        v_last := v_after;
        v_last_id := 9223372036854775807;

        while v_left > 0 and v_bytes > 0 loop
            -- As many users as there is room for, each found with one descent of the index. With
            -- each comes the first of its ids, so that the next scan need not step over the same
            -- dead entries: while somebody has an old snapshot open they can be many.
            v_roles := '{}';
            v_ids := '{}';
            while cardinality(v_roles) < v_left loop
                select q.owner_role, q.id into v_role, v_id
                from @extschema@.steadytext_queue as q
                where q.status = 'pending' and q.run_after is null and not q.alone
                    and q.priority = v_priority
                    -- Role 0, which is nobody, has its turn, too.
                    and (q.owner_role::oid, q.id) > (v_last, v_last_id)
                order by q.owner_role, q.id
                limit 1;
                if not found then
                    exit when v_wrapped;
                    v_wrapped := true;
                    v_last := 0;
                    v_last_id := 0;
                    continue;
                end if;
                exit when v_wrapped and v_role > v_after;
                v_last := v_role;
                v_last_id := 9223372036854775807;
                v_roles := v_roles || v_role;
                v_ids := v_ids || v_id - 1;
            end loop;
            exit when cardinality(v_roles) = 0;

            -- Round after round: what users leave of their shares, the others get.
            v_first := true;
            while cardinality(v_roles) > 0 and v_left > 0 and v_bytes > 0 and (v_first or v_looks > 0) loop
                select * into v_step
                from steadytext.pick_rows(v_priority, v_roles, v_ids, v_left, v_bytes, v_looks, v_first, v_aside);
                v_first := false;
                v_taken := steadytext.take_rows(p_worker, v_step.tids, p_lease_seconds);
                v_claimed := v_claimed || v_taken;
                v_left := v_left - cardinality(v_taken);
                v_bytes := v_bytes - v_step.bytes;
                v_roles := v_step.roles;
                v_ids := v_step.ids;
                v_looks := v_step.looks;
                -- Rows that could not be taken are still there: they are not to be met again and
                -- again, and what they cost has an end.
                if cardinality(v_taken) < cardinality(v_step.tids) then
                    v_aside := steadytext.rows_aside();
                    v_looks := case when clock_timestamp() > v_begun + interval '1 second' then 0
                        else v_looks - (cardinality(v_step.tids) - cardinality(v_taken)) end;
                end if;
            end loop;
        end loop;
    end loop;

    return query
    select q.id, q.request_id, q.attempt, q.request_type, q.prompt, q.prompts, q.params,
        q.owner_role::name, q.owner_role::oid, q.retry_count, q.max_retries, q.priority,
        steadytext.request_bytes(q.prompt, q.prompts, q.params)
    from unnest(v_claimed) with ordinality as c(id, n)
    join @extschema@.steadytext_queue as q
        on q.id = c.id and q.status = 'processing' and q.worker = p_worker
    order by c.n;
end
$$;
comment on function steadytext.claim_requests(text, integer, integer, oid, boolean, integer, bigint) is
    'Protocol: takes up to p_limit requests of priority p_least and more, and no more after those that have p_bytes together, priority 10 first, in turn among users after p_after_role, oldest first; with p_alone one request that was in flight at a crash';

create type steadytext.claim_part as (
    role oid,
    first bigint,
    until bigint,
    rows integer,
    share integer,
    got integer,
    seen integer,
    last bigint,
    found bigint,
    skipped integer,
    again boolean
);
comment on type steadytext.claim_part is
    'A part of the claim index that a claim looks at: up to so many rows of a user between two ids, of which up to share are wanted, and what came of it';

-- One round: locks up to p_left rows of some users, who share them equally. What is looked at is
-- bounded: a portion of each user's rows. Returned are the rows, in turn; the users of whom
-- there may be more, each with the id behind which to go on; and how many more rows may be
-- looked at in vain.
create function steadytext.pick_rows(
    p_priority integer,
    p_roles oid[],
    p_ids bigint[],
    p_left integer,
    p_bytes bigint,
    p_looks integer,
    p_first boolean,
    p_aside bigint[],
    out tids tid[],
    out bytes bigint,
    out roles oid[],
    out ids bigint[],
    out looks integer
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    c_portion constant integer := 512;
    -- Fewer locked rows are not worth being remembered.
    c_stretch constant integer := 64;
    v_share integer := p_left / cardinality(p_roles);
    v_extra integer := p_left % cardinality(p_roles);
    v_parts steadytext.claim_part[];
    v_part steadytext.claim_part;
    v_count integer;
    v_id bigint;
    v_holders bigint[];
begin
    -- The parts of the index to look at. At first, for each user, what lies behind the stretch
    -- that was locked when it was last looked at, and a piece of that stretch once more.
    if p_first then
        select array_agg(row(u.role, x.first, x.until, x.rows, v_share + (u.n <= v_extra)::integer, 0, 0, 0, 0, 0, x.again)::steadytext.claim_part
                order by u.n, x.again desc)
        into v_parts
        from unnest(p_roles, p_ids) with ordinality as u(role, id, n)
        cross join lateral steadytext.passed_rows(p_priority, u.role) as p
        cross join lateral (
            values
                (greatest(u.id, p.behind), 9223372036854775807, v_share + 16, false),
                (greatest(u.id, p.again_after), p.behind, p.again_rows, true)
        ) as x(first, until, rows, again)
        where x.rows > 0;
    else
        select array_agg(row(u.role, u.id, 9223372036854775807, greatest(v_share + 16, c_portion),
            v_share + (u.n <= v_extra)::integer, 0, 0, 0, 0, 0, false)::steadytext.claim_part order by u.n)
        into v_parts
        from unnest(p_roles, p_ids) with ordinality as u(role, id, n);
    end if;

    with picked as materialized (
        select r.tid, r.id, r.bytes, r.seen, r.last, r.place, u.n, u.role
        from unnest(v_parts) with ordinality as u(role, first, until, rows, share, got, seen, last, found, skipped, again, n)
        cross join lateral (
            select q.ctid as tid, q.id, c.seen, c.last, c.place,
                steadytext.request_bytes(q.prompt, q.prompts, q.params) as bytes
            from (
                select k.tid, count(*) over () as seen, max(k.id) over () as last, row_number() over () as place
                from (
                    select q.ctid as tid, q.id
                    from @extschema@.steadytext_queue as q
                    where q.status = 'pending' and q.run_after is null and not q.alone
                        and q.priority = p_priority
                        -- This user, from this id on; written so that only the claim index serves.
                        and (q.owner_role::oid, q.id) > (u.role, u.first) and q.owner_role <= u.role
                        and q.id + 0 <= u.until and q.id <> all (p_aside)
                    limit u.rows
                ) as k
            ) as c
            join @extschema@.steadytext_queue as q on q.ctid = c.tid
            where q.status = 'pending' and q.run_after is null and not q.alone
            limit u.share
            for no key update of q skip locked
        ) as r
    ),
    turns as (
        select p.*, row_number() over (partition by p.role order by p.id) as turn from picked as p
    ),
    places as (
        select t.tid, t.bytes, row_number() over w as place, sum(t.bytes) over w - t.bytes as before
        from turns as t
        window w as (order by t.turn, t.n rows unbounded preceding)
    ),
    -- The first one always, however long it is.
    kept as (
        select p.* from places as p where p.place <= p_left and p.before < p_bytes
    )
    select coalesce(array_agg(k.tid order by k.place), '{}'), coalesce(sum(k.bytes), 0),
        (
            select array_agg(row(u.role, u.first, u.until, u.rows, u.share, g.got, g.seen, g.last, g.found, g.skipped, u.again)::steadytext.claim_part order by u.n)
            from unnest(v_parts) with ordinality as u(role, first, until, rows, share, got, seen, last, found, skipped, again, n)
            cross join lateral (
                select count(*) as got, max(p.seen) as seen, max(p.last) as last, min(p.id) as found, min(p.place) - 1 as skipped
                from picked as p
                where p.n = u.n
            ) as g
        )
    into tids, bytes, v_parts
    from kept as k;

    roles := '{}';
    ids := '{}';
    looks := p_looks;
    foreach v_part in array coalesce(v_parts, '{}') loop
        if v_part.got = 0 or v_part.skipped >= c_stretch then
            -- Nothing there, or nothing but what others hold; or a stretch of that before what was found.
            select count(*), max(c.id), array_agg(distinct c.holder)
            into v_count, v_id, v_holders
            from (
                select q.id, q.xmax::text::bigint as holder
                from @extschema@.steadytext_queue as q
                where q.status = 'pending' and q.run_after is null and not q.alone
                    and q.priority = p_priority
                    and (q.owner_role::oid, q.id) > (v_part.role, v_part.first) and q.owner_role <= v_part.role
                    and q.id + 0 <= least(v_part.until, v_part.found - 1) and q.id <> all (p_aside)
                limit v_part.rows
            ) as c;
            looks := looks - v_count;
            if v_part.got = 0 then
                v_part.seen := v_count;
                v_part.last := v_id;
            end if;
            if v_count >= c_stretch and not v_part.again then
                perform steadytext.note_passed_rows(p_priority, v_part.role, v_id, v_holders);
            end if;
        end if;
        if v_part.again then
            perform steadytext.note_second_look(p_priority, v_part.role, v_part.got > 0,
                case when v_part.seen = v_part.rows then v_part.last end);
            continue;
        end if;
        -- Whether there may be more, and behind what.
        if v_part.got < v_part.share then
            continue when coalesce(v_part.seen, 0) < v_part.rows or looks <= 0;
            -- A few locked rows are looked at again as a part of a long portion.
            ids := ids || case when v_part.got = 0 and v_part.seen < c_stretch then v_part.first else v_part.last end;
        else
            continue when v_part.seen = v_part.got;
            ids := ids || v_part.first;
        end if;
        roles := roles || v_part.role;
    end loop;
end
$$;
comment on function steadytext.pick_rows(integer, oid[], bigint[], integer, bigint, integer, boolean, bigint[]) is
    'Locks rows to be claimed; called by claim_requests';

-- A row whose update raises an error, or is suppressed by a trigger, is found by halving and
-- ended; the others are taken.
create function steadytext.take_rows(p_worker text, p_tids tid[], p_lease_seconds integer)
returns bigint[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_max_retries integer;
    v_ranges integer[] := array[1, cardinality(p_tids)];
    v_from integer;
    v_to integer;
    v_some bigint[];
    v_taken bigint[] := '{}';
    v_message text;
    v_hint text;
    v_code text;
begin
    if cardinality(p_tids) = 0 then
        return v_taken;
    end if;
    v_max_retries := steadytext.config_integer('max_retries');
    while cardinality(v_ranges) > 0 loop
        v_from := v_ranges[1];
        v_to := v_ranges[2];
        begin
            with taken as (
                update @extschema@.steadytext_queue as q set
                    status = 'processing', attempt = q.attempt + 1, worker = p_worker,
                    started_at = v_now, lease_expires_at = v_now + make_interval(secs => p_lease_seconds),
                    max_retries = coalesce(q.max_retries, v_max_retries),
                    result = null, results = null, embedding = null, embeddings = null,
                    error = null, error_code = null, completed_at = null, processing_time_ms = null
                from unnest(p_tids[v_from : v_to]) with ordinality as t(tid, n)
                where q.ctid = t.tid and q.status = 'pending'
                returning q.id, t.n, q.status, q.worker
            )
            select coalesce(array_agg(t.id order by t.n) filter (where t.status = 'processing' and t.worker = p_worker), '{}')
            into v_some
            from taken as t;
            v_taken := v_taken || v_some;
            v_ranges := v_ranges[3 :];
        exception when others or assert_failure or query_canceled then
            get stacked diagnostics v_message = message_text, v_hint = pg_exception_hint, v_code = returned_sqlstate;
            v_ranges := steadytext.halves(v_ranges, v_now);
            v_some := null;
            if v_from = v_to then
                perform steadytext.end_guilty('claimed', q.id, v_message, v_hint, v_code)
                from @extschema@.steadytext_queue as q
                where q.ctid = p_tids[v_from];
            end if;
        end;
        if cardinality(v_some) <= v_to - v_from then
            perform steadytext.end_suppressed('claimed', array(
                select q.id from @extschema@.steadytext_queue as q
                where q.ctid = any (p_tids[v_from : v_to]) and q.status = 'pending'));
        end if;
    end loop;
    return v_taken;
end
$$;
comment on function steadytext.take_rows(text, tid[], integer) is
    'Marks locked rows as processing; called by claim_requests. Ends those that cannot be';
