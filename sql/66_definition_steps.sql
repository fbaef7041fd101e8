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
    v_enough constant integer := 100000;
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
    -- Very many changes of a definition that does nothing are looked for by one search, when it does something again.
    for v_id in
        select v.id
        from @extschema@.steadytext_vectorizers as v
        join @extschema@.steadytext_vectorizer_state as s on s.vectorizer_id = v.id
        where (v.is_paused or s.problem is not null and not s.is_limited)
            -- Which rows have changed is known by their notes until those that are to wait are written down.
            and s.signature is not null and s.scan is distinct from 'mark'
    loop
        continue when v_enough >= (
            select count(*)
            from (
                select from @extschema@.steadytext_vectorizer_work as w
                where w.vectorizer_id = v_id and not w.is_forced and w.run_after is null and num_nonnulls(w.key, w.keys) > 0
                limit v_enough + 1
            ) as w);
        insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key)
        select v_id, null
        where not exists (
            select from @extschema@.steadytext_vectorizer_work as w where w.vectorizer_id = v_id and w.key is null and w.keys is null);
        delete from @extschema@.steadytext_vectorizer_work as w
        where w.vectorizer_id = v_id and w.id = any (array(
            select o.id from @extschema@.steadytext_vectorizer_work as o
            where o.vectorizer_id = v_id and not o.is_forced and o.run_after is null and num_nonnulls(o.key, o.keys) > 0
            order by o.id
            limit 2 * v_enough
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
    'Deletes the rest of definitions that are gone, and the records of rows that have been gone for a while; replaces very many notes of a definition that does nothing by one of the whole table';

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

-- The changes of a table that fire no trigger of ours, and the times in which none could fire. PostgreSQL writes the entry of a trigger in its catalog anew
-- when it is disabled or enabled, so that the transaction that wrote it last tells of changes made in between, however short that was.
create function steadytext.vectorizer_signature(p_id uuid)
returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_place record;
    v_relations oid[];
begin
    select * into v_place from steadytext.vectorizer_place(p_id);
    v_relations := array(
        select v_place.source::oid where v_place.source is not null
        union
        select t.relid::oid from pg_partition_tree(v_place.source) as t);
    return (
        select md5(concat_ws(' ', (
            -- They change when partitions come and go, and when a table is emptied or written anew.
            select string_agg(format('%s:%s:%s', c.oid, pg_relation_filenode(c.oid), i.xmin), ' ' order by c.oid)
            from pg_class as c
            -- A partition that was detached and attached again is written by somebody in between.
            left join pg_inherits as i on i.inhrelid = c.oid
            where c.oid = any (v_relations)
        ), (
            select string_agg(format('%s:%s:%s', t.oid, t.xmin, t.tgenabled), ' ' order by t.oid)
            from pg_trigger as t
            where t.tgrelid = any (v_relations) and t.tgfoid = 'steadytext.note_row()'::regprocedure
                and substr(t.tgargs, 1, 36) = convert_to(p_id::text, 'UTF8')
        ), (
            -- While table and definition belong to different roles, nothing is noted.
            select format('%s:%s:%s', v.owner_role::oid, c.relowner, d.xmin)
            from @extschema@.steadytext_vectorizers as v
            join pg_class as c on c.oid = v_place.source::oid
            left join pg_shdepend as d on d.dbid = (select b.oid from pg_database as b where b.datname = current_database())
                and d.classid = 'pg_class'::regclass and d.objid = c.oid and d.objsubid = 0 and d.deptype = 'o'
            where v.id = p_id
        ), (
            -- A value of an enumeration that is renamed is another text, in keys as well.
            select string_agg(format('%s:%s', e.oid, e.enumlabel), ' ' order by e.oid)
            from pg_enum as e
            where e.enumtypid in (
                select steadytext.base_type(a.atttypid) from pg_attribute as a
                where a.attrelid = v_place.source::oid and a.attname = any (v_place.key_columns || v_place.source_columns))
        ), (
            -- After a crash PostgreSQL empties unlogged tables, in the files that they had. It starts its processes anew then.
            select string_agg(format('%s:%s', c.oid, date_part('epoch', a.backend_start)), ' ' order by c.oid)
            from pg_class as c
            left join pg_stat_activity as a on a.backend_type = 'checkpointer'
            where c.oid = any (v_relations || v_place.destination::oid) and c.relpersistence = 'u'
        ))));
end
$$;
comment on function steadytext.vectorizer_signature(uuid) is
    'Returns a digest of the state of a definition''s table and its partitions that changes whenever rows may have changed without a note: their files, the triggers of the definition, the owners, and the values of enumerations; of unlogged tables also the start of the server';

-- One trigger that is missing or does not fire leaves changes unseen, whatever the others do.
create function steadytext.silent_trigger(p_id uuid, p_source oid, out problem text, out advice text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_found record;
begin
    select r.relid::regclass as relation, k.what, t.tgname, t.tgenabled, o.tgname as other into v_found
    from (
        select p_source as relid where p_source is not null
        union
        select p.relid::oid from pg_partition_tree(p_source::regclass) as p
    ) as r
    cross join (values (1, 'rows', 29), (2, 'updates', 17), (3, 'truncate', 32)) as k(n, what, type)
    -- Of two triggers for the same, the one that fires counts.
    left join lateral (
        select g.tgname, g.tgenabled from pg_trigger as g
        where g.tgrelid = r.relid and g.tgfoid = 'steadytext.note_row()'::regprocedure and g.tgtype::integer = k.type
            and substr(g.tgargs, 1, 36) = convert_to(p_id::text, 'UTF8')
        order by array_position(array['A', 'O', 'R', 'D']::"char"[], g.tgenabled)
        limit 1
    ) as t on true
    -- Where one of the triggers for rows fires for replicated changes, so must the other.
    left join lateral (
        select g.tgname from pg_trigger as g
        where g.tgrelid = r.relid and g.tgfoid = 'steadytext.note_row()'::regprocedure and g.tgtype in (17, 29)
            and substr(g.tgargs, 1, 36) = convert_to(p_id::text, 'UTF8') and g.tgenabled = 'A'
        limit 1
    ) as o on k.what <> 'truncate' and t.tgenabled <> 'A'
    where (k.what <> 'truncate' or r.relid = p_source) and (t.tgname is null or t.tgenabled in ('D', 'R') or o.tgname is not null)
    order by r.relid = p_source desc, r.relid, k.n
    limit 1;
    if not found then
        return;
    end if;
    if v_found.tgname is null then
        problem := format('a trigger of table %s that notes its changes is gone', v_found.relation);
        advice := format('CREATE TRIGGER %I AFTER %s EXECUTE FUNCTION steadytext.note_row(%L)', steadytext.vectorizer_trigger(p_id, v_found.what),
            case v_found.what when 'truncate' then format('TRUNCATE ON %s FOR EACH STATEMENT', v_found.relation)
                else format('UPDATE ON %s FOR EACH ROW', v_found.relation) end, p_id);
    elsif v_found.other is null then
        problem := format('trigger %I of table %s is disabled', v_found.tgname, v_found.relation);
        advice := format('ALTER TABLE %s ENABLE TRIGGER %I', v_found.relation, v_found.tgname);
    else
        problem := format('trigger %I of table %s fires for replicated changes, and %I does not', v_found.other, v_found.relation, v_found.tgname);
        advice := format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', v_found.relation, v_found.tgname);
    end if;
end
$$;
comment on function steadytext.silent_trigger(uuid, oid) is
    'Returns a problem and advice where a trigger that notes the changes of a definition''s table, or of a partition of it, is gone or does not fire as the others do; called where the problems of definitions are looked for';

-- A type's owner may say how its values become texts, at any time.
create function steadytext.cast_of_others(p_source oid, p_columns text[], p_owner oid)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select format('column %I of table %s is read by the cast of %s to %s, whose function belongs to %I: DROP CAST (%3$s AS %4$s), or ALTER FUNCTION … OWNER TO %6$I',
            a.attname, p_source::regclass, c.castsource::regtype, c.casttarget::regtype, pg_get_userbyid(p.proowner), pg_get_userbyid(p_owner))
        from pg_attribute as a
        cross join lateral steadytext.base_type(a.atttypid) as t(type)
        join pg_cast as c on (c.castsource, c.casttarget) in ((t.type, 'text'::regtype::oid), ('text'::regtype::oid, t.type))
        join pg_proc as p on p.oid = c.castfunc
        where a.attrelid = p_source and a.attname = any (p_columns) and not a.attisdropped
            -- Who has the rights of the table's owner needs no cast to use them.
            and not pg_has_role(p.proowner, p_owner, 'usage')
            and not exists (
                select from pg_depend as d where d.classid = 'pg_cast'::regclass and d.objid = c.oid and d.deptype = 'e')
        order by a.attnum, c.oid
        limit 1);
end
$$;
comment on function steadytext.cast_of_others(oid, text[], oid) is
    'Returns a problem with advice where a column would be read by a function of a role that does not have the rights of the table''s owner, with which it would run; NULL otherwise. Called where the problems of definitions are looked for';
