-- One step for one vectorizer: answers that have come are written, or what has changed is read, or a piece of the table is searched; when there is nothing of
-- these, the index is made, and a vectorizer that was altered takes its place.

create function steadytext.read_vectorizer_rows(p_id uuid, p_statements record, p_keys jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_read jsonb := steadytext.run_as(p_statements.owner, p_statements.read_rows, p_keys);
    v_blank jsonb;
    v_locked jsonb;
begin
    -- A row that is gone, or has nothing to embed any more, has no vector.
    select jsonb_agg(g.key) into v_blank
    from (
        select e.key from jsonb_array_elements(nullif(v_read -> 'gone', 'null')) as e(key)
        union all
        select e.item -> 'key' from jsonb_array_elements(nullif(v_read -> 'blank', 'null')) as e(item)
    ) as g;
    if v_blank is not null then
        v_locked := steadytext.run_as(p_statements.owner, p_statements.blank_vectors, v_blank);
        if p_statements.is_column then
            insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, run_after)
            select p_id, v_blank -> (l.n::integer - 1), clock_timestamp() + interval '2 seconds'
            from jsonb_array_elements(v_locked) as l(n);
        end if;
    end if;
    if exists (select from @extschema@.steadytext_vectorizer_failures as f where f.vectorizer_id = p_id) then
        delete from @extschema@.steadytext_vectorizer_failures as f
        using (
            select e.key from jsonb_array_elements(coalesce(v_blank, '[]') || coalesce(nullif(v_read -> 'done', 'null'), '[]')) as e(key)
            union all
            select e.item -> 'key' from jsonb_array_elements(nullif(v_read -> 'rows', 'null')) as e(item)
        ) as r
        where f.vectorizer_id = p_id and f.key = r.key;
    end if;
    perform steadytext.note_vectorizer_failure(p_id, e.item, 'there is nothing to embed', '00000')
    from jsonb_array_elements(nullif(v_read -> 'blank', 'null')) as e(item);
    perform steadytext.forget_kept_vectors(p_id, p_keys, coalesce(nullif(v_read -> 'rows', 'null'), '[]'));
    if jsonb_typeof(v_read -> 'rows') = 'array' then
        perform steadytext.make_vectorizer_batches(p_id, p_statements, v_read -> 'rows');
    end if;
end
$$;
comment on function steadytext.read_vectorizer_rows(uuid, record, jsonb) is
    'Reads rows by their keys and makes requests of them; called by the steps';

create function steadytext.leave_rows(p_id uuid, p_statements record, p_items jsonb, p_answer jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    -- Either somebody has the row locked, or a trigger has kept the vector out without an error.
    v_lockable jsonb := coalesce(steadytext.run_as(p_statements.owner, p_statements.lockable, p_items), '[]');
begin
    perform steadytext.note_vectorizer_failure(p_id, l.item, 'a trigger or rule of the table kept the vector from being written', '09000')
    from jsonb_array_elements(p_items) with ordinality as l(item, n)
    where v_lockable @> to_jsonb(l.n);
    if p_answer is not null then
        perform steadytext.keep_vectors(p_id, l.item, p_answer)
        from jsonb_array_elements(p_items) with ordinality as l(item, n)
        where not v_lockable @> to_jsonb(l.n);
    end if;
    insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced, run_after)
    select p_id, l.item -> 'key', true, clock_timestamp() + coalesce(steadytext.kept_pause(p_id, l.item -> 'key'), interval '2 seconds')
    from jsonb_array_elements(p_items) with ordinality as l(item, n)
    where not v_lockable @> to_jsonb(l.n);
end
$$;
comment on function steadytext.leave_rows(uuid, record, jsonb, jsonb) is
    'Treats rows into which no vector was written: the vectors of locked rows are kept and tried again, more and more rarely; other rows have failed. Called by the steps';

create function steadytext.write_vectors(p_id uuid, p_statements record, p_items jsonb, p_answer jsonb)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_argument jsonb;
    v_present jsonb;
    v_keys jsonb;
    v_done jsonb;
    v_left jsonb;
begin
    -- The texts of these rows follow one another in the request.
    v_argument := p_answer || jsonb_build_object('first', p_items -> 0 -> 'first',
        'last', (p_items -> -1 ->> 'first')::integer + (p_items -> -1 ->> 'count')::integer - 1);
    if not p_statements.is_column then
        v_present := steadytext.run_as(p_statements.owner, p_statements.present, p_items);
        select jsonb_agg(e.item -> 'key' order by e.n) into v_keys
        from rows from (jsonb_array_elements(p_items), jsonb_array_elements(v_present)) with ordinality as e(item, is_present, n)
        where e.is_present::boolean;
        perform steadytext.note_unanswered_wishes(p_id, p_items, v_present);
        if v_keys is null then
            return 0;
        end if;
        perform steadytext.run_as(p_statements.owner, p_statements.delete_vectors, v_keys);
        perform steadytext.run_as(p_statements.owner, p_statements.write_vectors[1], v_argument || jsonb_build_object('places', (
            select jsonb_agg(
                case when e.is_present::boolean then jsonb_build_object(
                    'key', e.item -> 'key', 'hash', e.item -> 'hash', 'seq', t.seq, 'chunk', e.item -> 'chunks' -> (t.seq - 1)) end
                order by e.n, t.seq)
            from rows from (jsonb_array_elements(p_items), jsonb_array_elements(v_present)) with ordinality as e(item, is_present, n)
            cross join lateral generate_series(1, (e.item ->> 'count')::integer) as t(seq))));
        return jsonb_array_length(v_keys);
    end if;
    v_done := coalesce(steadytext.run_as(p_statements.owner, p_statements.write_vectors[1], v_argument || jsonb_build_object('places', (
        select jsonb_agg(jsonb_build_object('key', e.item -> 'key', 'hash', e.item -> 'hash', 'n', e.n) order by e.n)
        from jsonb_array_elements(p_items) with ordinality as e(item, n)))), '[]');
    if jsonb_array_length(v_done) < jsonb_array_length(p_items) then
        v_present := steadytext.run_as(p_statements.owner, p_statements.present, p_items);
        select jsonb_agg(e.item order by e.n) into v_left
        from rows from (jsonb_array_elements(p_items), jsonb_array_elements(v_present)) with ordinality as e(item, is_present, n)
        where e.is_present::boolean and e.n <> all (array(select d.n::bigint from jsonb_array_elements(v_done) as d(n)));
        perform steadytext.note_unanswered_wishes(p_id, (
                select jsonb_agg(e.item order by e.n) from jsonb_array_elements(p_items) with ordinality as e(item, n)
                where not v_done @> to_jsonb(e.n)), (
                select jsonb_agg(e.is_present order by e.n) from jsonb_array_elements(v_present) with ordinality as e(is_present, n)
                where not v_done @> to_jsonb(e.n)));
    end if;
    if v_left is not null then
        perform steadytext.leave_rows(p_id, p_statements, v_left, p_answer);
    end if;
    return jsonb_array_length(v_done);
end
$$;
comment on function steadytext.write_vectors(uuid, record, jsonb, jsonb) is
    'Writes vectors for rows whose text is still the one that was embedded, and returns their number; called by the steps';

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
    v_from bigint;
    v_owner oid := (select v.owner_role::oid from @extschema@.steadytext_vectorizers as v where v.id = p_id);
    v_request uuid;
begin
    for v_part, v_from in
        select jsonb_agg(i.item order by i.n), min(i.n)
        from jsonb_array_elements(p_items) with ordinality as i(item, n)
        group by (i.n - 1) * 8 / v_count
        order by 2
    loop
        begin
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
        exception when configuration_limit_exceeded then
            -- The rest comes as soon as a limit of the owner's allows it, or in some seconds where the queue is full.
            insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, keys, key_count, is_forced, run_after)
            select p_id, json_agg(e.item -> 'key' order by e.n), count(*), true,
                case when steadytext.limit_wait(v_owner, 1) is null then clock_timestamp() + interval '5 seconds' end
            from jsonb_array_elements(p_items) with ordinality as e(item, n)
            where e.n >= v_from
            group by (e.n - v_from) / 250;
            return;
        end;
        insert into @extschema@.steadytext_vectorizer_batches (request_id, vectorizer_id, keys)
        select v_request, p_id, jsonb_agg(i.item || jsonb_build_object('first', i.behind - (i.item ->> 'count')::integer + 2) order by i.n)
        from (
            select e.item, e.n, sum((e.item ->> 'count')::integer) over (order by e.n) as behind
            from jsonb_array_elements(v_part) with ordinality as e(item, n)
        ) as i;
    end loop;
end
$$;
comment on function steadytext.cut_vectorizer_batch(uuid, uuid, jsonb) is
    'Replaces a request that has failed by several smaller ones; rows for whose requests a limit leaves no room are noted. Called by the steps';

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
    v_pause interval;
    v_poison integer;
    v_rest jsonb;
    v_item jsonb;
    v_present jsonb;
begin
    select b.request_id, b.keys, q.id, q.status, q.error, q.error_code, coalesce((q.params -> 'truncate')::boolean, false) as truncate into v_batch
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
            elsif v_batch.keys -> 0 ? 'seqs' then
                perform steadytext.note_progress(p_id, steadytext.finish_vectorizer_piece(p_id, p_statements, v_batch.keys -> 0,
                    jsonb_build_object('request', v_batch.request_id, 'model', encode(v_model, 'hex'))), v_model);
            else
                perform steadytext.note_progress(p_id, steadytext.in_parts(p_id, 'write vectors', p_statements, v_batch.keys,
                    jsonb_build_object('request', v_batch.request_id, 'model', encode(v_model, 'hex'))), v_model);
            end if;
        when v_batch.status = 'failed' and v_definition.truncate and not v_batch.truncate then
            -- Since it was made, it was said that texts are cut.
            v_pause := interval '0';
        when v_batch.status = 'failed' and (left(v_batch.error_code, 2) in ('22', '54') or v_batch.error_code = 'P0001') then
            -- The message may say which text it is about.
            v_poison := substring(v_batch.error from '^text ([0-9]{1,6}): ');
            select jsonb_agg(i.item order by i.n) filter (where not i.is_poison),
                (array_agg(i.item) filter (where i.is_poison))[1]
            into v_rest, v_item
            from (
                select e.item, e.n,
                    jsonb_array_length(v_batch.keys) = 1 or coalesce(v_poison >= (e.item ->> 'first')::integer
                        and v_poison < (e.item ->> 'first')::integer + (e.item ->> 'count')::integer, false) as is_poison
                from jsonb_array_elements(v_batch.keys) with ordinality as e(item, n)
            ) as i;
            -- Another text of the row is another request's.
            if v_item is not null then
                v_present := steadytext.rows_present(p_statements, jsonb_build_array(v_item));
                if v_present = '[true]' then
                    perform steadytext.note_vectorizer_failure(
                        p_id, v_item, regexp_replace(v_batch.error, '^text [0-9]+: ', ''), v_batch.error_code);
                else
                    perform steadytext.note_unanswered_wishes(p_id, jsonb_build_array(v_item), v_present);
                end if;
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
    'Takes the answer of one request of a vectorizer, error or not; returns false where none has come. Called by the steps';

create function steadytext.scan_vectorizer(p_id uuid, p_statements record, p_limit integer)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_state record;
    v_argument jsonb;
    v_found jsonb;
begin
    select s.scan, s.scan_after, s.scan = 'all' as is_all into v_state from @extschema@.steadytext_vectorizer_state as s where s.vectorizer_id = p_id;
    if v_state.scan = 'failures' then
        perform steadytext.search_failures(p_id, p_statements, v_state.scan_after);
        return;
    end if;
    -- It begins anew where the key that it stopped at is none any more.
    if v_state.scan_after is not null and not steadytext.is_readable_key(p_statements, v_state.scan_after) then
        v_state.scan_after := null;
    end if;
    v_argument := jsonb_build_object('after', v_state.scan_after, 'limit', p_limit, 'all', v_state.is_all);
    if v_state.scan = 'destination' then
        v_found := steadytext.run_as(p_statements.owner,
            p_statements.scan_destination[case when v_state.scan_after is null then 1 else 2 end], v_argument);
        insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, keys, key_count)
        select p_id, json_agg(k.key order by k.n), count(*)
        from jsonb_array_elements(nullif(v_found -> 'keys', 'null')) with ordinality as k(key, n)
        group by (k.n - 1) / 250;
    else
        v_found := steadytext.run_as(p_statements.owner,
            p_statements.scan_source[case when v_state.scan_after is null then 1 else 2 end], v_argument);
        -- Rows that wait until they change are skipped, as those are that have nothing to embed: for as long as their text is this one. Those that
        -- have changed since the vectorizer was made are noted.
        insert into @extschema@.steadytext_vectorizer_failures (vectorizer_id, key, content_hash, error, error_code)
        select p_id, r.row -> 0, decode(r.row ->> 1, 'hex'), 'the row was there before the vectorizer, and is embedded when it changes', '00000'
        from jsonb_array_elements(nullif(v_found -> 'rows', 'null')) as r(row)
        where v_state.scan = 'mark'
        on conflict do nothing;
        insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, keys, key_count, is_forced)
        select p_id, json_agg(r.row -> 0 order by r.n), count(*), v_state.is_all
        from jsonb_array_elements(nullif(v_found -> case when v_state.is_all then 'all' else 'rows' end, 'null')) with ordinality as r(row, n)
        where v_state.scan <> 'mark' and (v_state.is_all or not exists (
            select from @extschema@.steadytext_vectorizer_failures as f
            where f.vectorizer_id = p_id and f.key = r.row -> 0 and f.content_hash = decode(r.row ->> 1, 'hex')))
        group by (r.n - 1) / 250;
    end if;
    perform steadytext.go_on_searching(p_id, (v_found ->> 'count')::integer, p_limit, v_found -> 'last',
        case
            when v_state.scan = 'mark' then null
            when v_state.scan <> 'destination' and not p_statements.is_column then 'destination'
            else 'failures'
        end);
end
$$;
comment on function steadytext.scan_vectorizer(uuid, record, integer) is
    'Compares a piece of the table with its vectors, and notes the differences; called by the steps';

create function steadytext.vectorizer_step(p_id uuid, p_look boolean, p_slow boolean)
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
    v_state @extschema@.steadytext_vectorizer_state;
    v_statements record;
    v_signature text;
    v_batches integer;
    v_in_flight integer;
    v_noted integer;
    v_is_closing boolean;
    v_takes boolean;
    v_keys jsonb;
    v_wait double precision;
    v_begun timestamptz := clock_timestamp();
begin
    -- The lock makes a session that drops the definition wait; one that is dropping it already is not waited for.
    select v.*, v.owner_role::oid as owner into v_definition
    from @extschema@.steadytext_vectorizers as v
    where v.id = p_id and not v.is_paused
    for key share skip locked;
    if not found then
        return false;
    end if;
    if v_definition.kind = 'enrichment' then
        return steadytext.enrichment_step(p_id, p_look, p_slow);
    end if;
    select * into v_statements from steadytext.vectorizer_statements(p_id);
    v_state := steadytext.begin_step(p_id, case when v_definition.enqueue_existing then 'source' else 'mark' end, v_definition.owner, v_statements.problem, p_slow);
    if v_state.vectorizer_id is null then
        return false;
    end if;

    if p_look or v_state.signature is null then
        v_signature := steadytext.vectorizer_signature(p_id);
        if v_signature is distinct from v_state.signature then
            if v_state.signature is null and v_definition.replaces is not null then
                perform steadytext.add_generated_columns(v_definition.replaces, p_id, v_definition.owner);
            end if;
            update @extschema@.steadytext_vectorizer_state as s set
                signature = v_signature,
                -- The first one is the beginning, though steps before it may have failed.
                scan = case
                    when s.scan in ('all', 'mark') then s.scan
                    when v_state.signature is not null or v_definition.enqueue_existing then 'source'
                    else 'mark'
                end,
                scan_after = null
            where s.vectorizer_id = p_id;
            return true;
        end if;
    end if;
    if v_state.scan = 'mark' then
        perform steadytext.scan_vectorizer(p_id, v_statements, greatest(v_state.slice, 500));
        return true;
    end if;
    select count(*), count(*) filter (where q.status in ('pending', 'processing')) into v_batches, v_in_flight
    from @extschema@.steadytext_vectorizer_batches as b
    left join @extschema@.steadytext_queue as q on q.request_id = b.request_id
    where b.vectorizer_id = p_id;
    perform steadytext.retry_limited_rows(p_id, v_definition.owner);
    v_noted := steadytext.noted_rows(p_id, 500);
    -- The vectors are complete once all rows of the last search are done, whatever has changed since. What has changed waits for the
    -- requests that are under way then, as there would always be some otherwise where rows keep changing.
    v_is_closing := v_state.scan is null and (not v_state.is_indexed or v_definition.replaces is not null)
        and not exists (
            select from @extschema@.steadytext_vectorizer_work as w
            where w.vectorizer_id = p_id and w.id <= v_state.scan_until)
        -- Work that was put off has been noted anew, and is not done either.
        and not exists (
            select from @extschema@.steadytext_vectorizer_work as w
            where w.vectorizer_id = p_id and w.run_after is not null);
    if v_is_closing and v_batches = 0 then
        if not p_slow and (v_definition.replaces is not null or v_statements.make_index is not null) then
            update @extschema@.steadytext_vectorizer_state as s set is_ready = true where s.vectorizer_id = p_id;
            return true;
        end if;
        -- An hour, and four times as long after each time that it was not enough.
        perform steadytext.extend_step_limit(least(3600 * 4 ^ least(v_state.overruns, 5), 86400)::integer);
        if not v_state.is_indexed then
            if v_statements.make_index is not null then
                perform steadytext.run_as(v_statements.owner, v_statements.make_index, null);
            end if;
            if v_definition.replaces is not null then
                perform steadytext.copy_indexes(v_definition.replaces, p_id, v_statements.owner);
            end if;
            update @extschema@.steadytext_vectorizer_state as s set
                is_indexed = true, is_ready = v_definition.replaces is not null, overruns = 0
            where s.vectorizer_id = p_id;
            return true;
        end if;
        -- It takes the table for a moment, and sessions that wait for it meanwhile wait no longer than this.
        perform set_config('lock_timeout', '100ms', true);
        perform steadytext.swap_vectorizer(p_id);
        return true;
    end if;
    -- The model gets something to do before its answers are written. Few notes are taken when nothing is under way; while
    -- something is, they gather.
    v_takes := v_noted > 0 and not v_is_closing and v_batches < 8 and (v_in_flight = 0 or v_in_flight < 4 and v_noted >= 250);
    if v_takes then
        v_wait := steadytext.limit_wait(v_definition.owner, 1);
    end if;
    if v_wait is not null then
        -- Its owner has used up what is allowed; answers that come are written all the same.
        if v_batches = 0 then
            update @extschema@.steadytext_vectorizer_state as s set
                problem = format('its owner has used up what steadytext_rate_limits allows: it goes on in %s second%s', ceil(v_wait), case when ceil(v_wait) <> 1 then 's' end),
                is_limited = true,
                is_out_of_requests = true,
                retry_at = clock_timestamp() + least(v_wait, 10) * interval '1 second'
            where s.vectorizer_id = p_id;
            return false;
        end if;
    elsif v_takes then
        -- One more than there is room for: a row of many chunks leaves some of it to the next one.
        v_keys := steadytext.take_noted_rows(p_id, least(v_state.slice, steadytext.limit_room(v_definition.owner, true) + 1)::integer, null);
        if v_keys is not null then
            perform steadytext.in_parts(p_id, 'read rows of a vectorizer', v_statements, v_keys, null);
            -- The fixed cost of a step is shared by more and more rows, as long as they are quickly read and are not cut into very many chunks.
            update @extschema@.steadytext_vectorizer_state as s set
                slice = case
                    when jsonb_array_length(v_keys) < s.slice then s.slice
                    when clock_timestamp() < v_begun + interval '0.3 seconds' and b.made <= 4 then least(s.slice * 2, 2000)
                    when clock_timestamp() > v_begun + interval '1 second' or b.made > 8 then greatest(s.slice / 2, 50)
                    else s.slice
                end
            from (
                select count(*) - v_batches as made from @extschema@.steadytext_vectorizer_batches as o where o.vectorizer_id = p_id
            ) as b
            where s.vectorizer_id = p_id;
            return true;
        end if;
    end if;
    for v_answers in 1 .. 4 loop
        if not steadytext.finish_vectorizer_batch(p_id, v_statements) then
            exit when v_answers = 1;
            return true;
        end if;
        if v_answers = 4 or clock_timestamp() > v_begun + interval '1 second' then
            return true;
        end if;
    end loop;
    -- A search that somebody has requested for the table as a whole.
    if steadytext.begin_requested_search(p_id) then
        return true;
    end if;
    if v_state.scan is not null and steadytext.may_search(p_id, v_noted, v_state.scan_until) then
        perform steadytext.scan_vectorizer(p_id, v_statements, greatest(v_state.slice, 500));
        return true;
    end if;
    return false;
end
$$;
comment on function steadytext.vectorizer_step(uuid, boolean, boolean) is
    'Protocol: does the next step of a vectorizer; returns true if there may be more to do at once. p_look: also looks for changes that nobody has noted; p_slow: may take longer';
