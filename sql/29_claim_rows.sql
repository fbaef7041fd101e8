-- Protocol: the rows of a claim: which are looked at, locked and marked. The order of users and
-- priorities is the claim's (30_claim.sql), and these functions run in its transaction, with
-- its settings.

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
    'Part of the claim index that a claim looks at: up to a number of rows of a user between two ids, of which up to share are wanted, and the outcome';

-- One round: locks up to p_left rows of some users, who share them equally. It looks at no more
-- than a portion of each user's rows. Returned are the rows, in turn; the users who may have more,
-- each with the id behind which to go on; and how many more rows may be looked at in vain. Without
-- p_lanes all rows of the users may be taken.
create function steadytext.pick_rows(
    p_priority integer,
    p_roles oid[],
    p_ids bigint[],
    p_left integer,
    p_bytes bigint,
    p_looks integer,
    p_first boolean,
    p_aside bigint[],
    p_lanes bigint[],
    p_types text[],
    p_models text[],
    p_without text[],
    p_defaults text[],
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
                    (select q.ctid as tid, q.id
                    from @extschema@.steadytext_queue as q
                    where p_lanes is null
                        and q.status = 'pending' and q.run_after is null and not q.alone
                        and q.priority = p_priority
                        -- This user, from this id on; written so that only the claim index serves.
                        and (q.owner_role::oid, q.id) > (u.role, u.first) and q.owner_role <= u.role
                        and q.id + 0 <= u.until and q.id <> all (p_aside)
                    limit u.rows)
                    union all
                    select f.tid, f.id
                    from steadytext.lane_rows(
                        steadytext.lanes_of(p_lanes, u.role, p_priority), u.first, u.until, u.rows, p_aside,
                        p_types, p_models, p_without, p_defaults) as f
                    where p_lanes is not null
                ) as k
            ) as c
            -- One by one, so that they are locked in this order, and no more of them than are wanted.
            cross join lateral (
                select h.ctid, h.id, h.prompt, h.prompts, h.params
                from @extschema@.steadytext_queue as h
                where h.ctid = c.tid and h.status = 'pending' and h.run_after is null and not h.alone
                for no key update skip locked
            ) as q
            limit u.share
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
            -- A part without rows, or only with rows that others hold; or one with a long stretch of
            -- these before the rows that were found.
            select count(*), max(c.id), array_agg(distinct c.holder)
            into v_count, v_id, v_holders
            from (
                (select q.id, q.xmax::text::bigint as holder
                from @extschema@.steadytext_queue as q
                where p_lanes is null
                    and q.status = 'pending' and q.run_after is null and not q.alone
                    and q.priority = p_priority
                    and (q.owner_role::oid, q.id) > (v_part.role, v_part.first) and q.owner_role <= v_part.role
                    and q.id + 0 <= least(v_part.until, v_part.found - 1) and q.id <> all (p_aside)
                limit v_part.rows)
                union all
                select f.id, f.holder
                from steadytext.lane_rows(
                    steadytext.lanes_of(p_lanes, v_part.role, p_priority), v_part.first, least(v_part.until, v_part.found - 1),
                    v_part.rows, p_aside, p_types, p_models, p_without, p_defaults) as f
                where p_lanes is not null
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
comment on function steadytext.pick_rows(
    integer, oid[], bigint[], integer, bigint, integer, boolean, bigint[], bigint[], text[], text[], text[], text[]) is
    'Locks rows to be claimed; called by claim_requests';

-- The first pending request of a priority behind a user and an id. Rows before a floor are skipped.
create function steadytext.next_pending(
    p_priority integer,
    p_role oid,
    p_id bigint,
    p_priorities integer[],
    p_roles oid[],
    p_ids bigint[],
    out role oid,
    out id bigint
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_role oid := p_role;
    v_id bigint := p_id;
    v_all boolean;
begin
    for i in 1 .. cardinality(p_priorities) loop
        continue when p_priorities[i] <> p_priority or p_roles[i] < v_role;
        -- Users before this one, of whom there is no floor.
        select q.owner_role, q.id into role, id
        from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is null and not q.alone
            and q.priority = p_priority
            and (q.owner_role::oid, q.id) > (v_role, v_id) and q.owner_role < p_roles[i]
        order by q.owner_role, q.id
        limit 1;
        if found then
            return;
        end if;
        v_all := (p_roles[i], p_ids[i]) > (v_role, v_id);
        if v_all then
            v_role := p_roles[i];
            v_id := p_ids[i] - (p_ids[i] > -9223372036854775808)::integer;
        end if;
        select q.owner_role, q.id into role, id
        from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is null and not q.alone
            and q.priority = p_priority
            and (q.owner_role::oid, q.id) > (v_role, v_id) and q.owner_role <= p_roles[i]
        order by q.owner_role, q.id
        limit 1;
        if found then
            return;
        end if;
        if v_all then
            perform steadytext.note_floor(p_priority, p_roles[i], null);
        end if;
        v_role := p_roles[i];
        v_id := 9223372036854775807;
    end loop;
    select q.owner_role, q.id into role, id
    from @extschema@.steadytext_queue as q
    where q.status = 'pending' and q.run_after is null and not q.alone
        and q.priority = p_priority
        and (q.owner_role::oid, q.id) > (v_role, v_id)
    order by q.owner_role, q.id
    limit 1;
end
$$;
comment on function steadytext.next_pending(integer, oid, bigint, integer[], oid[], bigint[], out oid, out bigint) is
    'Returns the first pending request of a priority behind a user and an id, if it is not before the floors; called by claim_requests';

create function steadytext.mark_rows(
    p_worker text, p_tids tid[], p_lease_seconds integer, p_max_retries integer, p_now timestamptz
)
returns bigint[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_taken bigint[];
begin
    with taken as (
        update @extschema@.steadytext_queue as q set
            status = 'processing', attempt = q.attempt + 1, worker = p_worker,
            started_at = p_now, lease_expires_at = p_now + make_interval(secs => p_lease_seconds),
            max_retries = coalesce(q.max_retries, p_max_retries),
            result = null, results = null, embedding = null, embeddings = null,
            error = null, error_code = null, completed_at = null, processing_time_ms = null
        from unnest(p_tids) with ordinality as t(tid, n)
        where q.ctid = t.tid and q.status = 'pending'
        returning q.id, t.n, q.status, q.worker
    )
    select coalesce(array_agg(t.id order by t.n) filter (where t.status = 'processing' and t.worker = p_worker), '{}')
    into v_taken
    from taken as t;
    return v_taken;
end
$$;
comment on function steadytext.mark_rows(text, tid[], integer, integer, timestamptz) is
    'Marks locked rows as processing and returns the ids of those that were changed; called by claim_requests';

create function steadytext.end_unclaimed(p_tids tid[])
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    perform steadytext.end_suppressed('claimed', array(
        select q.id from @extschema@.steadytext_queue as q
        where q.ctid = any (p_tids) and q.status = 'pending'));
end
$$;
comment on function steadytext.end_unclaimed(tid[]) is
    'Ends the rows whose update had no effect and raised no error; called by claim_requests';

-- A row whose update raises an error, or is suppressed by a trigger, is found by halving and
-- ended; the others are taken.
create function steadytext.take_rows(
    p_worker text, p_tids tid[], p_lease_seconds integer, p_max_retries integer, p_failed boolean
)
returns bigint[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_now timestamptz := clock_timestamp();
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
    if p_failed and cardinality(p_tids) > 1 then
        v_ranges := steadytext.halves(v_ranges, v_now);
    end if;
    while cardinality(v_ranges) > 0 loop
        v_from := v_ranges[1];
        v_to := v_ranges[2];
        begin
            v_some := steadytext.mark_rows(p_worker, p_tids[v_from : v_to], p_lease_seconds, p_max_retries, v_now);
            v_taken := v_taken || v_some;
            v_ranges := v_ranges[3 :];
        exception when others or assert_failure or query_canceled then
            get stacked diagnostics v_message = message_text, v_hint = pg_exception_hint, v_code = returned_sqlstate;
            v_ranges := steadytext.halves(v_ranges, v_now);
            v_some := null;
            if v_from = v_to then
                perform steadytext.end_poison('claimed', q.id, v_message, v_hint, v_code)
                from @extschema@.steadytext_queue as q
                where q.ctid = p_tids[v_from];
            end if;
        end;
        if cardinality(v_some) <= v_to - v_from then
            perform steadytext.end_unclaimed(p_tids[v_from : v_to]);
        end if;
    end loop;
    return v_taken;
end
$$;
comment on function steadytext.take_rows(text, tid[], integer, integer, boolean) is
    'Marks locked rows as processing, as mark_rows does; by halves where one of the rows raises an error: ends that one, and takes the others. With p_failed all of them at once have failed already. Called by claim_requests';
