-- One step for one enrichment: what has changed is read and asked about, answers that have come are written, or a piece of the table is
-- searched for rows without their value.

create function steadytext.finish_enrichment_requests(p_id uuid, p_statements record)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_ended jsonb;
    v_items jsonb;
    v_present jsonb;
    v_written integer := 0;
    v_problem text;
begin
    select jsonb_agg(e.answer order by e.created_at) into v_ended
    from (
        select b.created_at, jsonb_build_object('request', b.request_id, 'item', b.keys -> 0, 'status', coalesce(q.status, 'gone'),
            'value', case v.request_type when 'classify_multi' then to_jsonb(q.results) else to_jsonb(q.result) end,
            'error', q.error, 'code', q.error_code,
            'guilty', q.status = 'failed' and (left(q.error_code, 2) in ('22', '54') or q.error_code = 'P0001')) as answer
        from @extschema@.steadytext_vectorizer_batches as b
        join @extschema@.steadytext_vectorizers as v on v.id = b.vectorizer_id
        left join @extschema@.steadytext_queue as q on q.request_id = b.request_id
        where b.vectorizer_id = p_id and coalesce(q.status, 'gone') not in ('pending', 'processing')
        order by b.created_at
        limit 100
        for update of b skip locked
    ) as e;
    if v_ended is null then
        return false;
    end if;
    select jsonb_agg((e.answer -> 'item') || jsonb_build_object('value', e.answer -> 'value') order by e.n) into v_items
    from jsonb_array_elements(v_ended) with ordinality as e(answer, n)
    where e.answer ->> 'status' = 'completed';
    if v_items is not null then
        v_written := steadytext.write_enrichment_values(p_id, v_items);
    end if;
    -- What the model does not answer is its row's trouble, if that still says the same.
    select jsonb_agg((e.answer -> 'item') || jsonb_build_object('error', e.answer -> 'error', 'code', e.answer -> 'code') order by e.n)
    into v_items
    from jsonb_array_elements(v_ended) with ordinality as e(answer, n)
    where (e.answer -> 'guilty')::boolean;
    if v_items is not null then
        v_present := coalesce(steadytext.run_as(p_statements.owner, p_statements.present, v_items), '[]');
        perform steadytext.note_vectorizer_failure(p_id, i.item, i.item ->> 'error', i.item ->> 'code')
        from jsonb_array_elements(v_items) with ordinality as i(item, n)
        where v_present @> to_jsonb(i.n);
    end if;
    -- The model is not there, or does not load: that is about all rows.
    select e.answer ->> 'error' into v_problem
    from jsonb_array_elements(v_ended) as e(answer)
    where e.answer ->> 'status' = 'failed' and not (e.answer -> 'guilty')::boolean
    limit 1;
    insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, run_after)
    select p_id, e.answer -> 'item' -> 'key',
        clock_timestamp() + case when e.answer ->> 'status' = 'gone' then interval '0' else interval '30 seconds' end
    from jsonb_array_elements(v_ended) as e(answer)
    where e.answer ->> 'status' <> 'completed' and not coalesce((e.answer -> 'guilty')::boolean, false);
    -- As of a vectorizer: an interval that had nothing to do in it says nothing.
    update @extschema@.steadytext_vectorizer_state as s set
        problem = left(v_problem, 2000),
        retry_at = case when v_problem is not null then clock_timestamp() + interval '30 seconds' end,
        embedded_total = s.embedded_total + v_written,
        rows_per_second = case
            when s.measured_at between clock_timestamp() - interval '30 seconds' and clock_timestamp() - interval '2 seconds'
                then (s.embedded_total + v_written - s.measured_total) / date_part('epoch', clock_timestamp() - s.measured_at)
            else s.rows_per_second
        end,
        measured_total = case when s.measured_at >= clock_timestamp() - interval '2 seconds'
            then s.measured_total else s.embedded_total + v_written end,
        measured_at = case when s.measured_at >= clock_timestamp() - interval '2 seconds' then s.measured_at else clock_timestamp() end
    where s.vectorizer_id = p_id;
    delete from @extschema@.steadytext_vectorizer_batches as b
    using jsonb_array_elements(v_ended) as e(answer)
    where b.request_id = (e.answer ->> 'request')::uuid;
    delete from @extschema@.steadytext_queue as q
    using jsonb_array_elements(v_ended) as e(answer)
    where q.request_id = (e.answer ->> 'request')::uuid;
    return true;
end
$$;
comment on function steadytext.finish_enrichment_requests(uuid, record) is
    'Takes the answers that have come, whatever they are; false if there are none. Called by the steps';

create function steadytext.scan_enrichment(p_id uuid, p_statements record)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_state record;
    v_found jsonb;
    v_rows jsonb;
begin
    select s.scan, s.scan_after into v_state from @extschema@.steadytext_vectorizer_state as s where s.vectorizer_id = p_id;
    if v_state.scan = 'destination' then
        -- What was made for rows that are gone.
        select jsonb_agg(jsonb_build_object('key', r.key) order by r.key) into v_rows
        from (
            select r.key from @extschema@.steadytext_enrichment_rows as r
            where r.enrichment_id = p_id and (v_state.scan_after is null or r.key > v_state.scan_after)
            order by r.key
            limit 1000
        ) as r;
        v_rows := coalesce(v_rows, '[]');
        v_found := coalesce(steadytext.run_as(p_statements.owner, p_statements.present, v_rows), '[]');
        update @extschema@.steadytext_enrichment_rows as r set gone_at = now()
        from jsonb_array_elements(v_rows) with ordinality as e(row, n)
        where r.enrichment_id = p_id and r.key = e.row -> 'key' and r.gone_at is null
            and not exists (select from jsonb_array_elements(v_found) as f(n) where f.n::bigint = e.n);
        v_found := jsonb_build_object('count', jsonb_array_length(v_rows), 'last', v_rows -> -1 -> 'key');
    else
        v_found := steadytext.run_as(p_statements.owner,
            p_statements.scan_source[case when v_state.scan_after is null then 1 else 2 end], v_state.scan_after);
        select jsonb_agg(jsonb_build_object('key', r.row -> 0, 'hash', r.row -> 1, 'was', r.row -> 2, 'forced', v_state.scan = 'all',
            'prompt', '', 'made', r.row -> 2)) into v_rows
        from jsonb_array_elements(nullif(v_found -> 'rows', 'null')) as r(row);
        v_rows := coalesce(v_rows, '[]');
        if v_state.scan = 'mark' then
            -- Rows that have changed since the enrichment was made are noted, and nothing was taken out yet.
            perform steadytext.note_enriched_rows(p_id, jsonb_agg(r.row), true)
            from jsonb_array_elements(v_rows) as r(row)
            where r.row -> 'key' not in (
                select w.key from @extschema@.steadytext_vectorizer_work as w where w.vectorizer_id = p_id and w.key is not null
                union all
                select e.key::jsonb
                from @extschema@.steadytext_vectorizer_work as w
                cross join json_array_elements(w.keys) as e(key)
                where w.vectorizer_id = p_id and w.keys is not null)
            having count(*) > 0;
        else
            insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced)
            select p_id, j.item -> 'key', v_state.scan = 'all'
            from steadytext.judge_rows(p_id, v_rows) as j
            where j.verdict <> 'done' and (v_state.scan = 'all' or not exists (
                select from @extschema@.steadytext_vectorizer_failures as f
                where f.vectorizer_id = p_id and f.key = j.item -> 'key' and f.content_hash = decode(j.item ->> 'hash', 'hex')));
        end if;
    end if;
    update @extschema@.steadytext_vectorizer_state as s set
        scan = case
            when (v_found ->> 'count')::integer = 1000 then s.scan
            when s.scan in ('source', 'all') then 'destination'
        end,
        scan_after = case when (v_found ->> 'count')::integer = 1000 then v_found -> 'last' end
    where s.vectorizer_id = p_id;
end
$$;
comment on function steadytext.scan_enrichment(uuid, record) is
    'Compares a piece of the table with what was made of it, and notes what differs; called by the steps';

-- A row that is being asked about is left until that has ended: ten changes are two questions, and not ten. What statements that change
-- many rows have noted together is taken apart.
create function steadytext.take_enrichment_work(p_id uuid, p_limit integer)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_asked jsonb[] := array(select b.keys -> 0 -> 'key' from @extschema@.steadytext_vectorizer_batches as b where b.vectorizer_id = p_id);
    v_taken jsonb;
begin
    with oldest as (
        select o.id, sum(o.key_count) over (order by o.id) - o.key_count as before
        from (
            select w.id, w.key_count
            from @extschema@.steadytext_vectorizer_work as w
            where w.vectorizer_id = p_id and num_nonnulls(w.key, w.keys) > 0 and (w.run_after is null or w.run_after <= clock_timestamp())
                and (w.keys is not null or w.key <> all (v_asked))
            order by w.id
            limit p_limit
        ) as o
    ),
    taken as (
        delete from @extschema@.steadytext_vectorizer_work as w
        where w.id = any (array(
            select h.id from @extschema@.steadytext_vectorizer_work as h
            where h.id = any (array(select o.id from oldest as o where o.before < p_limit))
            for update skip locked))
        returning w.id, w.key, w.keys, w.is_forced
    )
    select jsonb_agg(jsonb_build_object('key', t.key, 'forced', t.is_forced) order by t.id) into v_taken
    from (
        select k.key, bool_or(k.is_forced) as is_forced, min(k.id) as id
        from (
            select n.id, n.key, n.is_forced from taken as n where n.key is not null
            union all
            select n.id, e.key::jsonb, n.is_forced from taken as n cross join json_array_elements(n.keys) as e(key) where n.keys is not null
        ) as k
        group by k.key
    ) as t;
    insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced)
    select p_id, e.note -> 'key', (e.note -> 'forced')::boolean
    from jsonb_array_elements(v_taken) with ordinality as e(note, n)
    where e.note -> 'key' = any (v_asked);
    select jsonb_agg(e.note order by e.n) into v_taken
    from jsonb_array_elements(v_taken) with ordinality as e(note, n)
    where e.note -> 'key' <> all (v_asked);
    insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, keys, key_count, is_forced)
    select p_id, json_agg(e.note -> 'key' order by e.n), count(*), (e.note -> 'forced')::boolean
    from jsonb_array_elements(v_taken) with ordinality as e(note, n)
    where e.n > p_limit
    group by (e.note -> 'forced')::boolean;
    return (
        select jsonb_agg(e.note order by e.n)
        from jsonb_array_elements(v_taken) with ordinality as e(note, n)
        where e.n <= p_limit);
end
$$;
comment on function steadytext.take_enrichment_work(uuid, integer) is
    'Takes out the oldest notes of an enrichment, each key once; NULL: there are none. Called by the steps';

-- The engine is kept busy: some hundred requests are in the queue, of which it computes as many at once as it has room for. Others
-- that ask at a higher priority go before them.
create function steadytext.enrichment_step(p_id uuid, p_look boolean, p_patient boolean)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_state record;
    v_statements record;
    v_signature text;
    v_batches integer;
    v_in_flight integer;
    v_noted integer;
    v_keys jsonb;
    v_forced boolean;
begin
    select * into v_statements from steadytext.enrichment_statements(p_id);
    insert into @extschema@.steadytext_vectorizer_state (vectorizer_id) values (p_id) on conflict do nothing;
    -- The other process may be at it.
    select * into v_state from @extschema@.steadytext_vectorizer_state as s where s.vectorizer_id = p_id for update skip locked;
    if not found or steadytext.is_for_patient_process(v_state.is_ready, v_state.slow_until, v_statements.owner) <> p_patient then
        return false;
    end if;
    if v_statements.problem is not null then
        update @extschema@.steadytext_vectorizer_state as s set
            problem = v_statements.problem, retry_at = clock_timestamp() + interval '5 seconds'
        where s.vectorizer_id = p_id;
        return false;
    end if;
    if v_state.problem is not null or v_state.retry_at is not null then
        update @extschema@.steadytext_vectorizer_state as s set problem = null, retry_at = null where s.vectorizer_id = p_id;
    end if;
    if p_look or v_state.signature is null then
        v_signature := steadytext.vectorizer_signature(v_statements.source);
        if v_signature is distinct from v_state.signature then
            -- The first one is the beginning, though steps before it may have failed.
            update @extschema@.steadytext_vectorizer_state as s set
                signature = v_signature,
                is_indexed = true,
                scan = case
                    when s.scan in ('all', 'mark') then s.scan
                    when v_state.signature is not null or v.enqueue_existing then 'source'
                    else 'mark'
                end,
                scan_after = null
            from @extschema@.steadytext_vectorizers as v
            where s.vectorizer_id = p_id and v.id = p_id;
            return true;
        end if;
    end if;
    if v_state.scan = 'mark' then
        perform steadytext.scan_enrichment(p_id, v_statements);
        return true;
    end if;
    select count(*), count(*) filter (where q.status in ('pending', 'processing')) into v_batches, v_in_flight
    from @extschema@.steadytext_vectorizer_batches as b
    left join @extschema@.steadytext_queue as q on q.request_id = b.request_id
    where b.vectorizer_id = p_id;
    select coalesce(sum(w.key_count), 0) into v_noted
    from (
        select w.key_count from @extschema@.steadytext_vectorizer_work as w
        where w.vectorizer_id = p_id and (w.run_after is null or w.run_after <= clock_timestamp())
        limit 500
    ) as w;
    if v_noted > 0 and v_in_flight <= 64 and v_batches < 256 then
        v_keys := steadytext.take_enrichment_work(p_id, 128 - v_in_flight);
        if v_keys is not null then
            perform steadytext.read_enriched_rows(p_id, v_keys);
            return true;
        end if;
    end if;
    if steadytext.finish_enrichment_requests(p_id, v_statements) then
        return true;
    end if;
    -- What somebody has asked for about the table as a whole.
    with taken as (
        delete from @extschema@.steadytext_vectorizer_work as w
        where w.vectorizer_id = p_id and w.key is null and w.keys is null
        returning w.is_forced
    )
    select bool_or(t.is_forced) into v_forced from taken as t;
    if v_forced is not null then
        update @extschema@.steadytext_vectorizer_state as s set
            scan = case when v_forced or s.scan = 'all' then 'all' else 'source' end, scan_after = null
        where s.vectorizer_id = p_id;
        return true;
    end if;
    if v_state.scan is not null and v_noted < 500 then
        perform steadytext.scan_enrichment(p_id, v_statements);
        return true;
    end if;
    return false;
end
$$;
comment on function steadytext.enrichment_step(uuid, boolean, boolean) is
    'Protocol: does the next thing for an enrichment; true if there may be more to do at once. p_look: looks for what nobody has noted, too; p_patient: may take its time';
