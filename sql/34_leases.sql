-- Protocol: keeping and giving back what was claimed.

create function steadytext.extend_leases(
    p_worker text,
    p_ids bigint[],
    p_attempts integer[],
    p_lease_seconds integer
)
returns table (id bigint, reason text, attempt integer)
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
    v_ranges integer[] := array[1, cardinality(p_ids)];
begin
    perform steadytext.check_worker(p_worker, p_lease_seconds);
    if not steadytext.is_own_worker() then
        perform steadytext.check_lengths(p_ids, '{p_attempts}', array[cardinality(p_attempts)]);
    end if;
    perform steadytext.make_constraints_immediate();
    -- Half of a lease left is enough: most calls write nothing. A lease that cannot be written is
    -- left as it is.
    while cardinality(v_ranges) > 0 loop
        begin
            with held as materialized (
                select h.tid
                from (
                    select * from unnest(p_ids, p_attempts) with ordinality as u(id, attempt, n)
                    where u.n between v_ranges[1] and v_ranges[2]
                    order by u.id
                ) as g
                cross join lateral (
                    select q.ctid as tid
                    from @extschema@.steadytext_queue as q
                    where q.id = g.id and q.attempt = g.attempt and q.worker = p_worker and q.status = 'processing'
                        and q.lease_expires_at < v_now + make_interval(secs => p_lease_seconds / 2.0)
                    for no key update skip locked
                ) as h
            )
            update @extschema@.steadytext_queue as q
            set lease_expires_at = v_now + make_interval(secs => p_lease_seconds)
            from held as h
            where q.ctid = h.tid;
            v_ranges := v_ranges[3 :];
        exception when others or assert_failure or query_canceled then
            if v_ranges[1] = v_ranges[2] then
                perform steadytext.note_row_error('kept', p_ids[v_ranges[1]], null, sqlstate, 'left');
            end if;
            v_ranges := steadytext.halves(v_ranges, v_now);
        end;
    end loop;

    return query
    select g.id,
        case when q.attempt = g.attempt and q.status = 'cancelled' then 'cancelled' else 'lost' end,
        g.attempt
    from unnest(p_ids, p_attempts) as g(id, attempt)
    left join @extschema@.steadytext_queue as q on q.id = g.id
    where (q.attempt = g.attempt and q.worker = p_worker and q.status = 'processing') is not true;
end
$$;
comment on function steadytext.extend_leases(text, bigint[], integer[], integer) is
    'Protocol: extends the leases of running requests and returns those that the worker no longer holds, so that it stops them';

create function steadytext.release_requests(
    p_worker text,
    p_ids bigint[],
    p_attempts integer[],
    p_alone boolean default false
)
returns setof bigint
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_now timestamptz := clock_timestamp();
    v_ranges integer[] := array[1, cardinality(p_ids)];
begin
    perform steadytext.check_worker(p_worker);
    if not steadytext.is_own_worker() then
        perform steadytext.check_lengths(p_ids, '{p_attempts}', array[cardinality(p_attempts)]);
    end if;
    perform steadytext.make_constraints_immediate();
    while cardinality(v_ranges) > 0 loop
        begin
            with held as materialized (
                select h.tid
                from (
                    select * from unnest(p_ids, p_attempts) with ordinality as u(id, attempt, n)
                    where u.n between v_ranges[1] and v_ranges[2]
                    order by u.id
                ) as g
                cross join lateral (
                    select q.ctid as tid
                    from @extschema@.steadytext_queue as q
                    where q.id = g.id and q.attempt = g.attempt and q.worker = p_worker and q.status = 'processing'
                    for no key update skip locked
                ) as h
            )
            update @extschema@.steadytext_queue as q
            set status = 'pending', run_after = null, worker = null, lease_expires_at = null, started_at = null,
                alone = q.alone or p_alone
            from held as h
            where q.ctid = h.tid;
            v_ranges := v_ranges[3 :];
        exception when others or assert_failure or query_canceled then
            if v_ranges[1] = v_ranges[2] then
                perform steadytext.note_row_error('given back', p_ids[v_ranges[1]], null, sqlstate, 'left');
            end if;
            v_ranges := steadytext.halves(v_ranges, v_now);
        end;
    end loop;

    return query
    select g.id
    from unnest(p_ids, p_attempts) as g(id, attempt)
    cross join lateral (
        select q.id
        from @extschema@.steadytext_queue as q
        where q.id = g.id and q.attempt = g.attempt and q.worker = p_worker and q.status = 'processing'
        offset 0
    ) as q;
end
$$;
comment on function steadytext.release_requests(text, bigint[], integer[], boolean) is
    'Protocol: gives back requests that were claimed and not begun, which does not count as an attempt. With p_alone they are tried one at a time, as an engine has crashed that had them. Returns those that could not be given back now, as another transaction has them locked';
