-- Functions for the processes that work for vectorizers and enrichments: which definitions have work, and which errors occurred. The processes work in
-- steps, of which each is one transaction for one definition.
--
-- Changed rows are taken out of the work many at a time, read, and made requests of the queue; taking them out and making the requests are committed
-- together. When a request has ended, its answers are written for those rows that still say the same. In between there is no transaction and no lock.

create function steadytext.run_as(p_role oid, p_statement text, p_argument jsonb)
returns jsonb
language c volatile
as 'MODULE_PATHNAME', 'run_as_wrapper';
comment on function steadytext.run_as(oid, text, jsonb) is
    'Runs a statement with the rights of a role, restricted as PostgreSQL restricts maintenance, and keeps the plan of one that has an argument; only in the process that works for vectorizers';

create function steadytext.extend_step_limit(seconds integer)
returns void
language c volatile strict
as 'MODULE_PATHNAME', 'extend_step_limit_wrapper';
comment on function steadytext.extend_step_limit(integer) is
    'Gives the rest of a step another limit: an index is made in one piece';

create function steadytext.renew_step_limit()
returns boolean
language c volatile
as 'MODULE_PATHNAME', 'renew_step_limit_wrapper';
comment on function steadytext.renew_step_limit() is
    'Gives the parts of a step that has taken too long a few seconds each, and returns true; false in the process whose steps are short, where nothing is changed: the other process begins the step anew';

create function steadytext.is_for_slow_process(p_is_ready boolean, p_slow_until timestamptz, p_owner oid)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce(p_is_ready, false) or coalesce(p_slow_until > clock_timestamp(), false)
        or exists (select from @extschema@.steadytext_vectorizer_slow_owners as o where o.owner = p_owner and o.slow_until > clock_timestamp());
end
$$;
comment on function steadytext.is_for_slow_process(boolean, timestamptz, oid) is
    'Returns whether a vectorizer belongs to the slow process now, by its row in steadytext_vectorizer_state and by its owner';

-- Rows that somebody has locked stay until the next look, as do those beyond the first ten thousand: nobody is waited for.
create function steadytext.sweep_definitions()
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid;
    v_most constant integer := 10000;
begin
    delete from @extschema@.steadytext_vectorizer_slow_owners as o
    where o.owner = any (array(
        select g.owner from @extschema@.steadytext_vectorizer_slow_owners as g
        where g.slow_until < clock_timestamp() - interval '1 day'
        for update skip locked));
    -- Definitions by their work, from one to the next by the index: there may be very much of it, of a few.
    loop
        select w.vectorizer_id into v_id
        from @extschema@.steadytext_vectorizer_work as w
        where v_id is null or w.vectorizer_id > v_id
        order by w.vectorizer_id
        limit 1;
        exit when not found;
        delete from @extschema@.steadytext_vectorizer_work as w
        where w.vectorizer_id = v_id and w.id = any (array(
            select o.id from @extschema@.steadytext_vectorizer_work as o
            where o.vectorizer_id = v_id and not exists (select from @extschema@.steadytext_vectorizers as v where v.id = v_id)
            order by o.id
            limit v_most
            for update skip locked));
    end loop;
    delete from @extschema@.steadytext_vectorizer_batches as b
    where b.request_id = any (array(
        select o.request_id from @extschema@.steadytext_vectorizer_batches as o
        where not exists (select from @extschema@.steadytext_vectorizers as v where v.id = o.vectorizer_id)
        limit v_most
        for update skip locked));
    delete from @extschema@.steadytext_vectorizer_state as s
    where s.vectorizer_id = any (array(
        select o.vectorizer_id from @extschema@.steadytext_vectorizer_state as o
        where not exists (select from @extschema@.steadytext_vectorizers as v where v.id = o.vectorizer_id)
        for update skip locked));
    v_id := null;
    loop
        select f.vectorizer_id into v_id
        from @extschema@.steadytext_vectorizer_failures as f
        where v_id is null or f.vectorizer_id > v_id
        order by f.vectorizer_id
        limit 1;
        exit when not found;
        continue when exists (select from @extschema@.steadytext_vectorizers as v where v.id = v_id);
        delete from @extschema@.steadytext_vectorizer_failures as f
        using (
            select o.key from @extschema@.steadytext_vectorizer_failures as o where o.vectorizer_id = v_id limit v_most for update skip locked
        ) as g
        where f.vectorizer_id = v_id and f.key = g.key;
    end loop;
    delete from @extschema@.steadytext_vectorizer_kept as k
    using (
        select o.vectorizer_id, o.key, o.seq from @extschema@.steadytext_vectorizer_kept as o
        where not exists (select from @extschema@.steadytext_vectorizers as v where v.id = o.vectorizer_id)
        limit v_most
        for update skip locked
    ) as g
    where k.vectorizer_id = g.vectorizer_id and k.key = g.key and k.seq = g.seq;
    v_id := null;
    loop
        select r.enrichment_id into v_id
        from @extschema@.steadytext_enrichment_rows as r
        where v_id is null or r.enrichment_id > v_id
        order by r.enrichment_id
        limit 1;
        exit when not found;
        continue when exists (select from @extschema@.steadytext_vectorizers as v where v.id = v_id);
        delete from @extschema@.steadytext_enrichment_rows as r
        using (
            select o.key from @extschema@.steadytext_enrichment_rows as o where o.enrichment_id = v_id limit v_most for update skip locked
        ) as g
        where r.enrichment_id = v_id and r.key = g.key;
    end loop;
    delete from @extschema@.steadytext_enrichment_rows as r
    using (
        select o.enrichment_id, o.key from @extschema@.steadytext_enrichment_rows as o
        where o.gone_at < now() - interval '1 hour'
        limit v_most
        for update skip locked
    ) as g
    where r.enrichment_id = g.enrichment_id and r.key = g.key;
end
$$;
comment on function steadytext.sweep_definitions() is
    'Deletes the rest of definitions that are gone, and the records of rows that have been gone for a while';

create function steadytext.vectorizers_due(p_look boolean, p_slow boolean)
returns table (id uuid, owner oid)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if p_look and not p_slow then
        perform steadytext.sweep_definitions();
    end if;
    return query
    select v.id, v.owner_role::oid
    from @extschema@.steadytext_vectorizers as v
    left join @extschema@.steadytext_vectorizer_state as s on s.vectorizer_id = v.id
    where not v.is_paused and (s.retry_at is null or s.retry_at <= clock_timestamp()
            -- Once a limit has been raised, or what was used is reset, nothing is in the way any more. A full queue is tried again after some seconds.
            or s.is_limited and s.is_out_of_requests and steadytext.limit_wait(v.owner_role::oid, 1) is null)
        and steadytext.is_for_slow_process(s.is_ready, s.slow_until, v.owner_role::oid) = p_slow
        and not exists (
            select from @extschema@.steadytext_vectorizer_slow_owners as o
            where o.owner = v.owner_role::oid and o.retry_at > clock_timestamp())
        -- Definitions with a problem are looked at again: a restore makes definitions before the triggers by which their tables are known.
        and (p_look or s.vectorizer_id is null or s.scan is not null or not s.is_indexed or v.replaces is not null or s.problem is not null
            or exists (
                select from @extschema@.steadytext_vectorizer_batches as b
                left join @extschema@.steadytext_queue as q on q.request_id = b.request_id
                where b.vectorizer_id = v.id and coalesce(q.status, 'gone') not in ('pending', 'processing'))
            or exists (
                select from @extschema@.steadytext_vectorizer_work as w
                where w.vectorizer_id = v.id and (w.run_after is null or w.run_after <= clock_timestamp()))
            or steadytext.limit_has_risen(v.id, v.owner_role::oid))
    order by random();
end
$$;
comment on function steadytext.vectorizers_due(boolean, boolean) is
    'Protocol: returns vectorizers and enrichments for which a process may do something now, and their owners; p_look: all of them, as something may have happened that nobody noted; p_slow: those of the slow process';

-- Work that was due when the round began has been looked at in it. The rest of it is no reason to look again: it belongs to a definition that is paused,
-- or waits for a limit, answers or a lock.
create function steadytext.vectorizers_outlook(p_slow boolean, p_round double precision)
returns table (any_left boolean, waits boolean, due_in double precision, hands_over boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_begun timestamptz := clock_timestamp() - p_round * interval '1 second';
begin
    -- The fast process is there as long as there are vectorizers, the other one as long as one is its.
    return query
    select case when p_slow then coalesce(l.any_slow, false) else l.any_left end, coalesce(l.waits, false),
        date_part('epoch', least(l.retry_at, l.changes_at, (
            select min(w.run_after)
            from @extschema@.steadytext_vectorizer_work as w
            where w.run_after > v_begun and w.vectorizer_id = any (l.own)))
            - clock_timestamp()),
        coalesce(case when p_slow then l.any_fast else l.any_slow end, false)
    from (
        select count(*) > 0 as any_left,
            bool_or(o.is_slow) as any_slow, bool_or(not o.is_slow) as any_fast,
            bool_or(exists (select from @extschema@.steadytext_vectorizer_batches as b where b.vectorizer_id = o.id))
                filter (where o.is_slow = p_slow) as waits,
            min(o.retry_at) filter (where o.retry_at > v_begun and o.is_slow = p_slow) as retry_at,
            min(o.slow_until) filter (where o.slow_until > clock_timestamp() and not p_slow) as changes_at,
            array_agg(o.id) filter (where o.is_slow = p_slow and not o.is_paused) as own
        from (
            select v.id, v.is_paused, greatest(s.retry_at, o.retry_at) as retry_at, greatest(s.slow_until, o.slow_until) as slow_until,
                not v.is_paused and steadytext.is_for_slow_process(s.is_ready, s.slow_until, v.owner_role::oid) as is_slow
            from @extschema@.steadytext_vectorizers as v
            left join @extschema@.steadytext_vectorizer_state as s on s.vectorizer_id = v.id
            left join @extschema@.steadytext_vectorizer_slow_owners as o on o.owner = v.owner_role::oid
        ) as o
    ) as l;
end
$$;
comment on function steadytext.vectorizers_outlook(boolean, double precision) is
    'Protocol: returns whether there is a definition for the process, whether requests of such are under way, in how many seconds something is tried again of which the round that began so many seconds ago did not know, and whether there are any for the other process';

create function steadytext.note_definition_error(p_id uuid, p_message text, p_code text, p_slow boolean)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if p_code is null then
        insert into @extschema@.steadytext_vectorizer_slow_owners as o (owner, overruns, slow_until, retry_at)
        select v.owner_role::oid, 1, clock_timestamp() + interval '10 minutes', clock_timestamp() + interval '30 seconds'
        from @extschema@.steadytext_vectorizers as v
        where v.id = p_id
        on conflict (owner) do update set
            overruns = least(o.overruns + 1, 20),
            slow_until = clock_timestamp() + least(interval '10 minutes' * 2 ^ o.overruns, interval '1 day'),
            retry_at = clock_timestamp() + least(interval '30 seconds' * 2 ^ o.overruns, interval '6 hours');
    end if;
    -- The definition's owner may keep its row locked. It is not waited for: the row that is written above holds for all definitions of the role.
    perform from @extschema@.steadytext_vectorizer_state as s where s.vectorizer_id = p_id for update skip locked;
    if not found then
        if exists (select from @extschema@.steadytext_vectorizer_state as s where s.vectorizer_id = p_id) then
            return;
        end if;
        insert into @extschema@.steadytext_vectorizer_state as s (vectorizer_id)
        select v.id from @extschema@.steadytext_vectorizers as v where v.id = p_id
        on conflict do nothing;
    end if;
    if coalesce(p_code, '57014') = '57014' then
        -- The slow process tries again the steps for which the other one has no time. A step that is too long for it as well, or had to be ended by
        -- force, waits twice as long after each time.
        update @extschema@.steadytext_vectorizer_state as s set
            overruns = least(c.overruns + 1, 20),
            problem = case when p_code is null or p_slow then left(p_message, 2000) else s.problem end,
            is_limited = s.is_limited and p_code is not null and not p_slow,
            retry_at = case when p_code is null or p_slow
                then clock_timestamp() + least(interval '30 seconds' * 2 ^ c.overruns, interval '6 hours') end,
            slow_until = clock_timestamp() + least(interval '10 minutes' * 2 ^ c.overruns, interval '1 day'),
            is_ready = s.is_ready and p_slow
        from (
            select o.vectorizer_id, case when o.slow_until > clock_timestamp() - interval '1 day' then o.overruns else 0 end as overruns
            from @extschema@.steadytext_vectorizer_state as o
        ) as c
        where s.vectorizer_id = p_id and c.vectorizer_id = p_id;
        return;
    end if;
    update @extschema@.steadytext_vectorizer_state as s set
        -- A lock, or a server that is full, is no problem of the vectorizer's. A limit of its owner's is none either, but it is waited for, and that is said.
        problem = case when steadytext.is_transient(p_code) and p_code <> '53400' then s.problem else left(p_message, 2000) end,
        is_limited = case when steadytext.is_transient(p_code) and p_code <> '53400' then s.is_limited else p_code = '53400' end,
        is_out_of_requests = case when p_code <> '53400' then s.is_out_of_requests else exists (
            select from @extschema@.steadytext_vectorizers as v
            where v.id = p_id and steadytext.limit_wait(v.owner_role::oid, 1) is not null) end,
        retry_at = clock_timestamp() + case
            when not steadytext.is_transient(p_code) then interval '30 seconds'
            when exists (select from @extschema@.steadytext_vectorizers as v where v.id = p_id and v.replaces is not null) then interval '5 seconds'
            else interval '1 second'
        end
    where s.vectorizer_id = p_id;
end
$$;
comment on function steadytext.note_definition_error(uuid, text, text, boolean) is
    'Protocol: records that a step has failed as a whole, or, where there is no SQLSTATE, had to be ended with its process; the step is tried again later, and other definitions go on';

-- The files of a table: they change when partitions come and go, and when it is emptied or written anew.
create function steadytext.vectorizer_signature(p_source oid)
returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select md5(string_agg(format('%s:%s:%s', c.oid, pg_relation_filenode(c.oid), i.xmin), ' ' order by c.oid))
        from (select p_source as relid union select t.relid::oid from pg_partition_tree(p_source::regclass) as t) as t
        join pg_class as c on c.oid = t.relid
        -- A partition that was detached and attached again is written by somebody in between.
        left join pg_inherits as i on i.inhrelid = c.oid);
end
$$;
comment on function steadytext.vectorizer_signature(oid) is 'Returns a digest of the files that a table and its partitions are in';
