-- Protocol: claiming. One short transaction takes a batch of pending requests.
--
-- All protocol functions run as the owner of the queue, so that members of
-- steadytext_worker need EXECUTE and nothing else. Each repeats the literal conditions of the
-- partial index it wants and switches off the plans that would be chosen on statistics gone
-- stale: a queue's contents turn over faster than it is analyzed. jit is off because the
-- penalty of a switched-off plan would make any query look worth compiling.
--
-- No row may hold up the others: rows that somebody has locked are passed without waiting, a long
-- stretch of them is not walked again in each claim (steadytext.passed_rows), and a row whose update
-- raises an error is found by halving, and ended (29_claim_rows.sql, 33_poison_rows.sql).

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
    p_bytes bigint default 67108864,
    p_models text[] default null,
    p_types text[] default null
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
    bytes bigint,
    waited_ms double precision
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
    v_first_role oid;
    v_first_id bigint;
    v_wrapped boolean;
    v_first boolean;
    v_last oid;
    v_last_id bigint;
    v_role oid;
    v_id bigint;
    v_roles oid[];
    v_ids bigint[];
    v_some bigint[];
    -- NULL: all rows may be taken.
    v_lanes bigint[];
    v_step record;
    v_taken bigint[];
    v_failed boolean;
    v_max_retries integer := steadytext.config_integer('max_retries');
    -- The server's own worker leaves what is computed elsewhere, and the others what is not.
    v_without text[] := steadytext.models_placed(case when steadytext.is_own_worker() then 'elsewhere' else 'server' end);
    v_any boolean := p_models is null and p_types is null and v_without = '{}';
    v_models text[];
    v_defaults text[];
    v_floors record;
    v_is_searched boolean := false;
begin
    perform steadytext.check_worker(p_worker, p_lease_seconds);
    if not v_any then
        v_models := steadytext.lower_names(p_models);
        v_without := steadytext.lower_names(v_without);
        v_defaults := steadytext.lower_names(steadytext.default_models());
    end if;
    -- NULL stands for no claim here.
    perform steadytext.check_limit('p_limit', coalesce(p_limit, 0));
    perform steadytext.make_constraints_immediate();
    if p_alone then
        v_claimed := steadytext.take_rows(p_worker, array(
            select q.ctid
            from @extschema@.steadytext_queue as q
            where q.status = 'pending' and q.run_after is null and q.alone and q.id <> all (v_aside)
                and (v_any or steadytext.is_served(q.request_type, q.params, p_types, v_models, v_without, v_defaults))
            limit least(p_limit, 1)
            for no key update skip locked
        ), p_lease_seconds, v_max_retries, false);
    end if;

    if not p_alone then
        select * into v_floors from steadytext.claim_floors_now();
    end if;
    -- From priority to priority; at each, users in turn, those after the last one served first.
    while not p_alone and v_left > 0 and v_bytes > 0 loop
        if v_floors.ids is null then
            select q.priority, q.owner_role, q.id into v_priority, v_first_role, v_first_id
            from @extschema@.steadytext_queue as q
            where q.status = 'pending' and q.run_after is null and not q.alone
                and q.priority <= v_bound
            order by q.priority desc, q.owner_role, q.id
            limit 1;
        else
            v_priority := v_bound + 1;
            v_first_id := null;
            while v_first_id is null and v_priority > p_least loop
                v_priority := v_priority - 1;
                select f.role, f.id into v_first_role, v_first_id
                from steadytext.next_pending(
                    v_priority, 0, -9223372036854775808, v_floors.priorities, v_floors.roles, v_floors.ids) as f;
            end loop;
        end if;
        if v_first_id is null or v_priority < p_least then
            if not v_is_searched then
                perform steadytext.note_search(0, case when v_first_id is not null then v_priority end, v_first_role);
            end if;
            exit;
        end if;
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
            v_lanes := case when not v_any then '{}'::bigint[] end;
            while cardinality(v_roles) < v_left loop
                if v_floors.ids is null then
                    select q.owner_role, q.id into v_role, v_id
                    from @extschema@.steadytext_queue as q
                    where q.status = 'pending' and q.run_after is null and not q.alone
                        and q.priority = v_priority
                        -- Role 0, which is nobody, has its turn, too.
                        and (q.owner_role::oid, q.id) > (v_last, v_last_id)
                    order by q.owner_role, q.id
                    limit 1;
                else
                    select f.role, f.id into v_role, v_id
                    from steadytext.next_pending(
                        v_priority, v_last, v_last_id, v_floors.priorities, v_floors.roles, v_floors.ids) as f;
                end if;
                if v_id is null then
                    exit when v_wrapped;
                    v_wrapped := true;
                    -- The first user of all is known.
                    v_role := v_first_role;
                    v_id := v_first_id;
                end if;
                exit when v_wrapped and v_role > v_after;
                perform steadytext.note_floor(v_priority, v_role, v_id);
                v_last := v_role;
                v_last_id := 9223372036854775807;
                if not v_any then
                    v_some := steadytext.served_lanes(v_priority, v_role, p_types, v_models, v_without, v_defaults);
                    continue when v_some = '{}';
                    v_lanes := v_lanes || v_some;
                end if;
                v_roles := v_roles || v_role;
                v_ids := v_ids || v_id - 1;
            end loop;
            if not v_is_searched then
                v_is_searched := true;
                perform steadytext.note_search(cardinality(v_roles), v_priority, v_first_role);
            end if;
            exit when cardinality(v_roles) = 0;

            -- Round after round: what users leave of their shares, the others get.
            v_first := true;
            while cardinality(v_roles) > 0 and v_left > 0 and v_bytes > 0 and (v_first or v_looks > 0) loop
                -- Locked and updated in one subtransaction. A row that one locks and another
                -- updates has a MultiXact, and an index entry of such a row is never marked as
                -- dead: each claim would walk over those of all before it.
                begin
                    select * into v_step from steadytext.pick_rows(
                        v_priority, v_roles, v_ids, v_left, v_bytes, v_looks, v_first, v_aside,
                        v_lanes, p_types, v_models, v_without, v_defaults);
                    v_taken := steadytext.mark_rows(p_worker, v_step.tids, p_lease_seconds, v_max_retries, clock_timestamp());
                    v_failed := false;
                exception when others or assert_failure or query_canceled then
                    v_failed := true;
                end;
                if v_failed then
                    select * into v_step from steadytext.pick_rows(
                        v_priority, v_roles, v_ids, v_left, v_bytes, v_looks, v_first, v_aside,
                        v_lanes, p_types, v_models, v_without, v_defaults);
                    v_taken := steadytext.take_rows(p_worker, v_step.tids, p_lease_seconds, v_max_retries, true);
                elsif cardinality(v_taken) < cardinality(v_step.tids) then
                    perform steadytext.end_unclaimed(v_step.tids);
                end if;
                v_first := false;
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

    if v_claimed <> '{}' and not steadytext.is_own_worker() then
        perform steadytext.count_claims(v_claimed);
    end if;
    return query
    select q.id, q.request_id, q.attempt, q.request_type, q.prompt, q.prompts, q.params,
        q.owner_role::name, q.owner_role::oid, q.retry_count, q.max_retries, q.priority,
        steadytext.request_bytes(q.prompt, q.prompts, q.params),
        date_part('epoch', clock_timestamp() - q.created_at) * 1000
    from unnest(v_claimed) with ordinality as c(id, n)
    -- One by one: as a join it would read all that is in flight, and compare everything with everything.
    cross join lateral (
        select q.*
        from @extschema@.steadytext_queue as q
        where q.id = c.id and q.status = 'processing' and q.worker = p_worker
        offset 0
    ) as q
    order by c.n;
end
$$;
comment on function steadytext.claim_requests(text, integer, integer, oid, boolean, integer, bigint, text[], text[]) is
    'Protocol: takes up to p_limit requests of priority p_least and higher, priority 10 first, in turn among users after p_after_role, oldest first; no further ones once those taken have p_bytes together; with p_alone one request that was in flight at a crash; with p_models and p_types only requests of these models and types';
