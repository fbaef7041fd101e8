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
            -- The other requests that fail with 53400 have answers that do not come to their end within max_tokens.
            'is_poison', coalesce(q.status = 'failed' and (left(q.error_code, 2) in ('22', '54') or q.error_code = 'P0001'
                or q.error_code = '53400' and q.error ~ '^the (shortest )?answer '), false)) as answer
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
        v_written := steadytext.in_parts(p_id, 'write values', p_statements, v_items, null);
    end if;
    -- A request that fails by its own text is noted as the row's failure, if the row still says the same.
    select jsonb_agg((e.answer -> 'item') || jsonb_build_object('error', e.answer -> 'error', 'code', e.answer -> 'code') order by e.n)
    into v_items
    from jsonb_array_elements(v_ended) with ordinality as e(answer, n)
    where (e.answer -> 'is_poison')::boolean;
    if v_items is not null then
        v_present := steadytext.rows_present(p_statements, v_items);
        perform steadytext.note_vectorizer_failure(p_id, i.item, i.item ->> 'error', i.item ->> 'code')
        from rows from (jsonb_array_elements(v_items), jsonb_array_elements(v_present)) as i(item, is_present)
        where i.is_present::boolean;
    end if;
    -- The model is not there, or does not load: that is about all rows.
    select e.answer ->> 'error' into v_problem
    from jsonb_array_elements(v_ended) as e(answer)
    where e.answer ->> 'status' = 'failed' and not (e.answer -> 'is_poison')::boolean
    limit 1;
    insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, run_after)
    select p_id, e.answer -> 'item' -> 'key',
        clock_timestamp() + case when e.answer ->> 'status' = 'gone' then interval '0' else interval '30 seconds' end
    from jsonb_array_elements(v_ended) as e(answer)
    where e.answer ->> 'status' <> 'completed' and not (e.answer -> 'is_poison')::boolean;
    perform steadytext.note_progress(p_id, v_written, null);
    if v_problem is not null then
        update @extschema@.steadytext_vectorizer_state as s set
            problem = left(v_problem, 2000), retry_at = clock_timestamp() + interval '30 seconds'
        where s.vectorizer_id = p_id;
    end if;
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
    'Takes the answers that have come, errors or not; returns false where there are none. Called by the steps';

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
    select s.scan, s.scan_after, s.scan_since into v_state from @extschema@.steadytext_vectorizer_state as s where s.vectorizer_id = p_id;
    if v_state.scan = 'failures' then
        perform steadytext.search_failures(p_id, p_statements, v_state.scan_after);
        return;
    elsif v_state.scan = 'destination' then
        -- Entries for rows that are gone.
        select jsonb_agg(jsonb_build_object('key', r.key) order by r.key) into v_rows
        from (
            select r.key from @extschema@.steadytext_enrichment_rows as r
            where r.enrichment_id = p_id and (v_state.scan_after is null or r.key > v_state.scan_after)
            order by r.key
            limit 1000
        ) as r;
        v_rows := coalesce(v_rows, '[]');
        v_found := steadytext.rows_present(p_statements, v_rows);
        update @extschema@.steadytext_enrichment_rows as r set gone_at = now()
        from rows from (jsonb_array_elements(v_rows), jsonb_array_elements(v_found)) as e(row, is_present)
        where r.enrichment_id = p_id and r.key = e.row -> 'key' and r.gone_at is null and not e.is_present::boolean;
        v_found := jsonb_build_object('count', jsonb_array_length(v_rows), 'last', v_rows -> -1 -> 'key');
    else
        -- It begins anew where the key that it stopped at is none any more.
        if v_state.scan_after is not null and not steadytext.is_readable_key(p_statements, v_state.scan_after) then
            v_state.scan_after := null;
        end if;
        v_found := steadytext.run_as(p_statements.owner,
            p_statements.scan_source[case when v_state.scan_after is null then 1 else 2 end],
            jsonb_build_object('after', v_state.scan_after, 'limit', 1000));
        select jsonb_agg(jsonb_build_object('key', r.row -> 0, 'hash', r.row -> 1, 'was', r.row -> 2, 'prompt', '', 'made', r.row -> 2))
        into v_rows
        from jsonb_array_elements(nullif(v_found -> 'rows', 'null')) as r(row);
        v_rows := coalesce(v_rows, '[]');
        if v_state.scan = 'all' then
            -- The search that follows finds the rows that are marked.
            perform steadytext.mark_values(p_id, v_rows, v_state.scan_since);
        elsif v_state.scan = 'mark' then
            perform steadytext.note_enriched_rows(p_id, v_rows, true);
            if (v_found ->> 'count')::integer < 1000 then
                -- At the end: rows that have changed since the enrichment was made are noted, as nothing was taken out yet, and do not wait.
                delete from @extschema@.steadytext_enrichment_rows as r
                using (
                    select w.key from @extschema@.steadytext_vectorizer_work as w where w.vectorizer_id = p_id and w.key is not null
                    union all
                    select e.key::jsonb
                    from @extschema@.steadytext_vectorizer_work as w
                    cross join json_array_elements(w.keys) as e(key)
                    where w.vectorizer_id = p_id and w.keys is not null
                ) as n
                where r.enrichment_id = p_id and r.key = n.key;
            end if;
        else
            insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key)
            select p_id, j.item -> 'key'
            from steadytext.judge_rows(p_id, v_rows) as j
            where j.verdict <> 'done' and not exists (
                select from @extschema@.steadytext_vectorizer_failures as f
                where f.vectorizer_id = p_id and f.key = j.item -> 'key' and f.content_hash = decode(j.item ->> 'hash', 'hex'));
        end if;
    end if;
    perform steadytext.go_on_searching(p_id, (v_found ->> 'count')::integer, 1000, v_found -> 'last', case v_state.scan
        when 'all' then 'source' when 'source' then 'destination' when 'destination' then 'failures' end);
end
$$;
comment on function steadytext.scan_enrichment(uuid, record) is
    'Compares a piece of the table with the records of its values, and notes the differences, or marks what is to be made anew; called by the steps';

create function steadytext.begin_marking(p_id uuid)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_since bigint;
begin
    with taken as (
        delete from @extschema@.steadytext_vectorizer_work as w
        where w.vectorizer_id = p_id and w.key is null and w.keys is null and w.is_forced
        returning w.id
    )
    select max(t.id) into v_since from taken as t;
    if v_since is null then
        return false;
    end if;
    delete from @extschema@.steadytext_vectorizer_kept as k where k.vectorizer_id = p_id;
    update @extschema@.steadytext_vectorizer_state as s set scan = 'all', scan_after = null, scan_since = v_since where s.vectorizer_id = p_id;
    return true;
end
$$;
comment on function steadytext.begin_marking(uuid) is
    'Begins to mark values that are to be made anew whoever has written them, where that was asked for, and returns whether it did; called by the steps';

-- The engine is kept busy: some hundred requests are in the queue, of which it computes as many at once as it has room for. Others
-- that ask at a higher priority go before them.
create function steadytext.enrichment_step(p_id uuid, p_look boolean, p_slow boolean)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_state @extschema@.steadytext_vectorizer_state;
    v_statements record;
    v_signature text;
    v_batches integer;
    v_in_flight integer;
    v_noted integer;
    v_keys jsonb;
begin
    select * into v_statements from steadytext.enrichment_statements(p_id);
    v_state := steadytext.begin_step(p_id, null, v_statements.owner, v_statements.problem, p_slow);
    if v_state.vectorizer_id is null then
        return false;
    end if;
    if p_look or v_state.signature is null then
        v_signature := steadytext.vectorizer_signature(p_id);
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
                -- What is marked already was marked for the values of then.
                scan_after = case when s.scan = 'all' then s.scan_after end
            from @extschema@.steadytext_vectorizers as v
            where s.vectorizer_id = p_id and v.id = p_id;
            return true;
        end if;
    end if;
    if v_state.scan = 'mark' then
        perform steadytext.scan_enrichment(p_id, v_statements);
        return true;
    end if;
    -- Before any note is taken out: the notes that are there say which rows have changed since the wish.
    if steadytext.begin_marking(p_id) then
        return true;
    end if;
    if v_state.scan = 'all' then
        perform steadytext.scan_enrichment(p_id, v_statements);
        return true;
    end if;
    select count(*), count(*) filter (where q.status in ('pending', 'processing')) into v_batches, v_in_flight
    from @extschema@.steadytext_vectorizer_batches as b
    left join @extschema@.steadytext_queue as q on q.request_id = b.request_id
    where b.vectorizer_id = p_id;
    v_noted := steadytext.noted_rows(p_id, 500);
    -- While answers are under way, nothing is asked beyond a limit, so that a refusal comes once and not in each step. Otherwise it is tried: what the
    -- cache answers counts for no limit.
    if v_noted > 0 and v_in_flight <= 64 and v_batches < 256
        and (v_batches = 0 or steadytext.limit_wait(v_statements.owner, 1) is null)
    then
        -- A row that is being asked about is left until that has ended: ten changes are two questions, and not ten.
        v_keys := steadytext.take_noted_rows(p_id, 128 - v_in_flight, array(
            select b.keys -> 0 -> 'key' from @extschema@.steadytext_vectorizer_batches as b where b.vectorizer_id = p_id));
        if v_keys is not null then
            perform steadytext.in_parts(p_id, 'read rows of an enrichment', v_statements, v_keys, null);
            return true;
        end if;
    end if;
    if steadytext.finish_enrichment_requests(p_id, v_statements) then
        return true;
    end if;
    -- A search that somebody has requested for the table as a whole.
    if steadytext.begin_requested_search(p_id) then
        return true;
    end if;
    if v_state.scan is not null and steadytext.may_search(p_id, v_noted, v_state.scan_until) then
        perform steadytext.scan_enrichment(p_id, v_statements);
        return true;
    end if;
    return false;
end
$$;
comment on function steadytext.enrichment_step(uuid, boolean, boolean) is
    'Protocol: does the next step of an enrichment; returns true if there may be more to do at once. p_look: also looks for changes that nobody has noted; p_slow: may take longer';
