-- One step for one vectorizer: an answer that has come is written, or what has changed is read, or a piece of the table is searched; when there is nothing of
-- these, the index is made, and a vectorizer that was altered takes its place.

-- A batch of rows one of which cannot be embedded is cut into eight parts, and that one's part is again, until it is alone: what was computed
-- beside it is computed three times at most.
create function steadytext.cut_vectorizer_batch(p_id uuid, p_request uuid, p_items jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_count integer := jsonb_array_length(p_items);
    v_part jsonb;
    v_request uuid;
begin
    for v_part in
        select jsonb_agg(i.item order by i.n)
        from jsonb_array_elements(p_items) with ordinality as i(item, n)
        group by (i.n - 1) * 8 / v_count
    loop
        insert into @extschema@.steadytext_queue (request_type, prompts, params, priority, session_id, owner_role)
        select q.request_type,
            q.prompts[1] || array(
                select q.prompts[t.number]
                from jsonb_array_elements(v_part) with ordinality as i(item, n)
                cross join generate_series((i.item ->> 'first')::integer, (i.item ->> 'first')::integer + (i.item ->> 'count')::integer - 1) as t(number)
                order by i.n, t.number),
            q.params, q.priority, q.session_id, q.owner_role
        from @extschema@.steadytext_queue as q
        where q.request_id = p_request
        returning request_id into v_request;
        insert into @extschema@.steadytext_vectorizer_batches (request_id, vectorizer_id, keys)
        select v_request, p_id, jsonb_agg(i.item || jsonb_build_object('first', i.behind - (i.item ->> 'count')::integer + 2) order by i.n)
        from (
            select e.item, e.n, sum((e.item ->> 'count')::integer) over (order by e.n) as behind
            from jsonb_array_elements(v_part) with ordinality as e(item, n)
        ) as i;
    end loop;
end
$$;
comment on function steadytext.cut_vectorizer_batch(uuid, uuid, jsonb) is 'Makes several requests of one that has failed; called by the steps';

create function steadytext.finish_vectorizer_batch(p_id uuid, p_statements record)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_batch record;
    v_definition record;
    v_model bytea;
    v_length integer;
    v_written integer := 0;
    v_pause interval;
    v_guilty integer;
    v_rest jsonb;
    v_item jsonb;
begin
    select b.request_id, b.keys, q.id, q.status, q.error, q.error_code into v_batch
    from @extschema@.steadytext_vectorizer_batches as b
    left join @extschema@.steadytext_queue as q on q.request_id = b.request_id
    where b.vectorizer_id = p_id and coalesce(q.status, 'gone') not in ('pending', 'processing')
    order by b.created_at
    limit 1
    for update of b skip locked;
    if not found then
        return false;
    end if;
    select * into v_definition from @extschema@.steadytext_vectorizers as v where v.id = p_id;
    case
        when v_batch.status = 'completed' then
            select sha256(convert_to(q.embeddings[1]::text, 'UTF8')), cardinality(q.embeddings[1]::real[]) into v_model, v_length
            from @extschema@.steadytext_queue as q
            where q.id = v_batch.id;
            if v_length <> v_definition.dimensions then
                update @extschema@.steadytext_vectorizer_state as s set
                    problem = format('the model gives vectors of %s dimensions, and these have %s: steadytext_alter_vectorizer() makes new ones',
                        v_length, v_definition.dimensions),
                    retry_at = clock_timestamp() + interval '1 minute'
                where s.vectorizer_id = p_id;
                v_pause := interval '1 minute';
            else
                v_written := steadytext.write_vectors(p_id, p_statements, v_batch.keys, v_batch.request_id, v_model);
                update @extschema@.steadytext_vectorizer_state as s set
                    embedded_total = s.embedded_total + v_written,
                    model_hash = v_model,
                    -- An interval ends after a few seconds; one that had nothing to do in it says nothing.
                    rows_per_second = case
                        when s.measured_at < clock_timestamp() - interval '30 seconds' then s.rows_per_second
                        when s.measured_at < clock_timestamp() - interval '2 seconds'
                            then (s.embedded_total + v_written - s.measured_total) / date_part('epoch', clock_timestamp() - s.measured_at)
                        else s.rows_per_second
                    end,
                    measured_total = case when s.measured_at >= clock_timestamp() - interval '2 seconds'
                        then s.measured_total else s.embedded_total + v_written end,
                    measured_at = case when s.measured_at >= clock_timestamp() - interval '2 seconds'
                        then s.measured_at else clock_timestamp() end
                where s.vectorizer_id = p_id;
            end if;
        when v_batch.status = 'failed' and (left(v_batch.error_code, 2) in ('22', '54') or v_batch.error_code = 'P0001') then
            -- The message may say which text it is about.
            v_guilty := substring(v_batch.error from '^text ([0-9]{1,6}): ');
            select jsonb_agg(i.item order by i.n) filter (where not i.is_guilty),
                (array_agg(i.item) filter (where i.is_guilty))[1]
            into v_rest, v_item
            from (
                select e.item, e.n,
                    jsonb_array_length(v_batch.keys) = 1 or coalesce(v_guilty >= (e.item ->> 'first')::integer
                        and v_guilty < (e.item ->> 'first')::integer + (e.item ->> 'count')::integer, false) as is_guilty
                from jsonb_array_elements(v_batch.keys) with ordinality as e(item, n)
            ) as i;
            -- Another text of the row is another request's.
            if v_item is not null and steadytext.run_as(p_statements.owner, p_statements.present, jsonb_build_array(v_item)) is not null then
                perform steadytext.note_vectorizer_failure(
                    p_id, v_item, regexp_replace(v_batch.error, '^text [0-9]+: ', ''), v_batch.error_code);
            end if;
            if v_rest is not null then
                perform steadytext.cut_vectorizer_batch(p_id, v_batch.request_id, v_rest);
            end if;
        when v_batch.status = 'failed' then
            -- The model is not there, or does not load: that is about all rows.
            update @extschema@.steadytext_vectorizer_state as s set
                problem = left(v_batch.error, 2000),
                retry_at = clock_timestamp() + interval '30 seconds'
            where s.vectorizer_id = p_id;
            v_pause := interval '30 seconds';
        else
            v_pause := case when v_batch.status is null then interval '0' else interval '30 seconds' end;
    end case;
    if v_pause is not null then
        insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced, run_after)
        select p_id, i.item -> 'key', true, clock_timestamp() + v_pause
        from jsonb_array_elements(v_batch.keys) as i(item);
    end if;
    delete from @extschema@.steadytext_vectorizer_batches as b where b.request_id = v_batch.request_id;
    delete from @extschema@.steadytext_queue as q where q.id = v_batch.id;
    return true;
end
$$;
comment on function steadytext.finish_vectorizer_batch(uuid, record) is
    'Takes the answer of one request of a vectorizer, whatever it is; false if none has come. Called by the steps';

create function steadytext.scan_vectorizer(p_id uuid, p_statements record)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_state record;
    v_found jsonb;
    v_full integer;
begin
    select s.scan, s.scan_after into v_state from @extschema@.steadytext_vectorizer_state as s where s.vectorizer_id = p_id;
    if v_state.scan = 'destination' then
        v_found := steadytext.run_as(p_statements.owner,
            p_statements.scan_destination[case when v_state.scan_after is null then 1 else 2 end], v_state.scan_after);
        insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, keys, key_count)
        select p_id, json_agg(k.key order by k.n), count(*)
        from jsonb_array_elements(nullif(v_found -> 'keys', 'null')) with ordinality as k(key, n)
        group by (k.n - 1) / 250;
    else
        v_found := steadytext.run_as(p_statements.owner,
            p_statements.scan_source[case when v_state.scan_after is null then 1 else 2 end], v_state.scan_after);
        insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, keys, key_count, is_forced)
        select p_id, json_agg(r.row -> 0 order by r.n), count(*), v_state.scan = 'all'
        from jsonb_array_elements(nullif(v_found -> case when v_state.scan = 'all' then 'all' else 'rows' end, 'null'))
            with ordinality as r(row, n)
        where v_state.scan = 'all' or not exists (
            select from @extschema@.steadytext_vectorizer_failures as f
            where f.vectorizer_id = p_id and f.key = r.row -> 0 and f.content_hash = decode(r.row ->> 1, 'hex'))
        group by (r.n - 1) / 250;
    end if;
    v_full := case v_state.scan when 'destination' then 2000 else 1000 end;
    if (v_found ->> 'count')::integer < v_full then
        update @extschema@.steadytext_vectorizer_state as s set
            scan = case when s.scan <> 'destination' and not p_statements.is_column then 'destination' end,
            scan_after = null,
            scan_until = (select max(w.id) from @extschema@.steadytext_vectorizer_work as w where w.vectorizer_id = p_id)
        where s.vectorizer_id = p_id;
    else
        update @extschema@.steadytext_vectorizer_state as s set scan_after = v_found -> 'last' where s.vectorizer_id = p_id;
    end if;
end
$$;
comment on function steadytext.scan_vectorizer(uuid, record) is
    'Compares a piece of the table with its vectors, and notes what differs; called by the steps';

create function steadytext.take_vectorizer_work(p_id uuid)
returns jsonb
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    with oldest as (
        select o.id, o.key_count, sum(o.key_count) over (order by o.id) as upto
        from (
            select w.id, w.key_count
            from @extschema@.steadytext_vectorizer_work as w
            where w.vectorizer_id = p_id and num_nonnulls(w.key, w.keys) > 0 and (w.run_after is null or w.run_after <= clock_timestamp())
            order by w.id
            limit 500
        ) as o
    ),
    taken as (
        delete from @extschema@.steadytext_vectorizer_work as w
        where w.id = any (array(
            select h.id from @extschema@.steadytext_vectorizer_work as h
            where h.id = any (array(select o.id from oldest as o where o.upto <= 500 or o.upto = o.key_count))
            for update skip locked))
        returning w.key, w.keys, w.is_forced
    )
    select jsonb_agg(jsonb_build_object('key', t.key, 'forced', t.is_forced))
    from (
        select k.key, bool_or(k.is_forced) as is_forced
        from (
            select n.key, n.is_forced from taken as n where n.key is not null
            union all
            select e.key::jsonb, n.is_forced from taken as n cross join json_array_elements(n.keys) as e(key) where n.keys is not null
        ) as k
        group by k.key
    ) as t
$$;
comment on function steadytext.take_vectorizer_work(uuid) is
    'Takes out the oldest notes of a vectorizer, each key once; NULL: there are none. Called by the steps';

create function steadytext.vectorizer_step(p_id uuid, p_look boolean, p_patient boolean)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
as $$
declare
    v_definition record;
    v_state record;
    v_statements record;
    v_place record;
    v_signature text;
    v_batches integer;
    v_in_flight integer;
    v_noted integer;
    v_keys jsonb;
    v_forced boolean;
    v_wait double precision;
begin
    -- Whoever drops it meanwhile waits; whoever is dropping it is not waited for.
    select v.*, v.owner_role::oid as owner into v_definition
    from @extschema@.steadytext_vectorizers as v
    where v.id = p_id and not v.is_paused
    for key share skip locked;
    if not found then
        return false;
    end if;
    if v_definition.kind = 'enrichment' then
        return steadytext.enrichment_step(p_id, p_look, p_patient);
    end if;
    select * into v_statements from steadytext.vectorizer_statements(p_id);
    insert into @extschema@.steadytext_vectorizer_state (vectorizer_id, scan)
    values (p_id, case when v_definition.enqueue_existing then 'source' end)
    on conflict do nothing;
    -- The other process may be at it.
    select * into v_state from @extschema@.steadytext_vectorizer_state as s where s.vectorizer_id = p_id for update skip locked;
    if not found or steadytext.is_for_patient_process(v_state.is_ready, v_state.slow_until, v_definition.owner) <> p_patient then
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
        select * into v_place from steadytext.vectorizer_place(p_id);
        v_signature := steadytext.vectorizer_signature(v_place.source);
        if v_signature is distinct from v_state.signature then
            update @extschema@.steadytext_vectorizer_state as s set
                signature = v_signature,
                scan = case when s.scan = 'all' then 'all' when v_state.signature is not null or v_definition.enqueue_existing then 'source' end,
                scan_after = null
            where s.vectorizer_id = p_id;
            return true;
        end if;
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
    -- When all is done that the last search has found, the vectors are whole, whatever has changed since.
    if v_state.scan is null and v_batches = 0 and (not v_state.is_indexed or v_definition.replaces is not null)
        and not exists (
            select from @extschema@.steadytext_vectorizer_work as w
            where w.vectorizer_id = p_id and w.id <= v_state.scan_until)
    then
        if not p_patient and (v_definition.replaces is not null or v_statements.make_index is not null) then
            update @extschema@.steadytext_vectorizer_state as s set is_ready = true where s.vectorizer_id = p_id;
            return true;
        end if;
        -- An hour, and four times as long after each time that it was not enough.
        perform steadytext.extend_step_limit(least(3600 * 4 ^ least(v_state.overruns, 5), 86400)::integer);
        if not v_state.is_indexed then
            if v_statements.make_index is not null then
                perform steadytext.run_as(v_statements.owner, v_statements.make_index, null);
            end if;
            update @extschema@.steadytext_vectorizer_state as s set
                is_indexed = true, is_ready = v_definition.replaces is not null, overruns = 0
            where s.vectorizer_id = p_id;
            return true;
        end if;
        -- It takes the table for a moment, and whoever waits for it meanwhile waits no longer than this.
        perform set_config('lock_timeout', '100ms', true);
        perform steadytext.swap_vectorizer(p_id);
        return true;
    end if;
    -- The model gets something to do before its answers are written. Few notes are taken when nothing is under way; while
    -- something is, they gather.
    if v_noted > 0 and v_batches < 8 and (v_in_flight = 0 or v_in_flight < 4 and v_noted >= 250) then
        v_wait := steadytext.limit_wait(v_definition.owner);
    end if;
    if v_wait is not null then
        -- Its owner has used up what is allowed; answers that come are written all the same.
        if v_batches = 0 then
            update @extschema@.steadytext_vectorizer_state as s set
                problem = format('its owner has used up what steadytext_rate_limits allows: it goes on in %s seconds', ceil(v_wait)),
                retry_at = clock_timestamp() + least(v_wait, 10) * interval '1 second'
            where s.vectorizer_id = p_id;
            return false;
        end if;
    elsif v_noted > 0 and v_batches < 8 and (v_in_flight = 0 or v_in_flight < 4 and v_noted >= 250) then
        v_keys := steadytext.take_vectorizer_work(p_id);
        if v_keys is not null then
            perform steadytext.read_vectorizer_rows(p_id, v_statements, v_keys);
            return true;
        end if;
    end if;
    if steadytext.finish_vectorizer_batch(p_id, v_statements) then
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
        perform steadytext.scan_vectorizer(p_id, v_statements);
        return true;
    end if;
    return false;
end
$$;
comment on function steadytext.vectorizer_step(uuid, boolean, boolean) is
    'Protocol: does the next thing for a vectorizer; true if there may be more to do at once. p_look: looks for what nobody has noted, too; p_patient: may take its time';
