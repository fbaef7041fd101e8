-- What the process that works for vectorizers does, one step at a time: each is one transaction for one vectorizer.
--
-- What has changed is taken out of the work a few hundred rows at a time, read, and made one request of the queue, of all their
-- texts; what was taken out and what was made of it are committed together. When the request has ended, vectors are
-- written for those rows whose text is still the same. In between there is no transaction and no lock.

create function steadytext.run_as(p_role oid, p_statement text, p_argument jsonb)
returns jsonb
language c volatile
as 'MODULE_PATHNAME', 'run_as_wrapper';
comment on function steadytext.run_as(oid, text, jsonb) is
    'Runs a statement with the rights of a role, restricted as PostgreSQL restricts maintenance; only in the process that works for vectorizers';

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
    'Gives the parts of a step that has taken too long a few seconds each; false, and does not, in the process whose steps are short: another one begins it anew';

create function steadytext.wake_vectorizers()
returns trigger
language c volatile
as 'MODULE_PATHNAME', 'wake_vectorizers_wrapper';
comment on function steadytext.wake_vectorizers() is 'Wakes the process that works for vectorizers, after the commit';
create trigger wake_vectorizers after insert or update or delete on @extschema@.steadytext_vectorizers
    for each statement execute function steadytext.wake_vectorizers();
comment on trigger wake_vectorizers on @extschema@.steadytext_vectorizers is 'What is asked for by a definition is begun at once';
alter table @extschema@.steadytext_vectorizers enable always trigger wake_vectorizers;

create function steadytext.is_for_patient_process(p_is_ready boolean, p_slow_until timestamptz, p_owner oid)
returns boolean
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select coalesce(p_is_ready, false) or coalesce(p_slow_until > clock_timestamp(), false)
        or exists (select from @extschema@.steadytext_vectorizer_offenders as o where o.owner = p_owner and o.slow_until > clock_timestamp())
$$;
comment on function steadytext.is_for_patient_process(boolean, timestamptz, oid) is
    'Which of the two processes a vectorizer is for now, by its row in steadytext_vectorizer_state and by its owner';

create function steadytext.vectorizers_due(p_look boolean, p_patient boolean)
returns table (id uuid, owner oid)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    if p_look and not p_patient then
        delete from @extschema@.steadytext_vectorizer_offenders as o where o.slow_until < clock_timestamp() - interval '1 day';
        -- What is left of definitions that are gone.
        -- Rows that somebody has locked stay until the next look: nobody is waited for.
        delete from @extschema@.steadytext_vectorizer_work as w
        where w.id = any (array(
            select o.id from @extschema@.steadytext_vectorizer_work as o
            where not exists (select from @extschema@.steadytext_vectorizers as v where v.id = o.vectorizer_id)
            for update skip locked));
        delete from @extschema@.steadytext_vectorizer_batches as b
        where b.request_id = any (array(
            select o.request_id from @extschema@.steadytext_vectorizer_batches as o
            where not exists (select from @extschema@.steadytext_vectorizers as v where v.id = o.vectorizer_id)
            for update skip locked));
        delete from @extschema@.steadytext_vectorizer_failures as f
        using (
            select o.vectorizer_id, o.key from @extschema@.steadytext_vectorizer_failures as o
            where not exists (select from @extschema@.steadytext_vectorizers as v where v.id = o.vectorizer_id)
            for update skip locked
        ) as g
        where f.vectorizer_id = g.vectorizer_id and f.key = g.key;
        delete from @extschema@.steadytext_vectorizer_state as s
        where s.vectorizer_id = any (array(
            select o.vectorizer_id from @extschema@.steadytext_vectorizer_state as o
            where not exists (select from @extschema@.steadytext_vectorizers as v where v.id = o.vectorizer_id)
            for update skip locked));
        delete from @extschema@.steadytext_enrichment_rows as r
        using (
            select o.enrichment_id, o.key from @extschema@.steadytext_enrichment_rows as o
            where not exists (select from @extschema@.steadytext_vectorizers as v where v.id = o.enrichment_id)
                or o.gone_at < now() - interval '1 hour'
            for update skip locked
        ) as g
        where r.enrichment_id = g.enrichment_id and r.key = g.key;
    end if;
    return query
    select v.id, v.owner_role::oid
    from @extschema@.steadytext_vectorizers as v
    left join @extschema@.steadytext_vectorizer_state as s on s.vectorizer_id = v.id
    where not v.is_paused and (s.retry_at is null or s.retry_at <= clock_timestamp())
        and steadytext.is_for_patient_process(s.is_ready, s.slow_until, v.owner_role::oid) = p_patient
        and not exists (
            select from @extschema@.steadytext_vectorizer_offenders as o
            where o.owner = v.owner_role::oid and o.retry_at > clock_timestamp())
        and (p_look or s.vectorizer_id is null or s.scan is not null or not s.is_indexed or v.replaces is not null
            or exists (
                select from @extschema@.steadytext_vectorizer_batches as b
                left join @extschema@.steadytext_queue as q on q.request_id = b.request_id
                where b.vectorizer_id = v.id and coalesce(q.status, 'gone') not in ('pending', 'processing'))
            or exists (
                select from @extschema@.steadytext_vectorizer_work as w
                where w.vectorizer_id = v.id and (w.run_after is null or w.run_after <= clock_timestamp())))
    order by random();
end
$$;
comment on function steadytext.vectorizers_due(boolean, boolean) is
    'Protocol: vectorizers for which a process may do something now, and whose they are; p_look: all of them, as something may have happened that nobody noted; p_patient: those of the patient process';

create function steadytext.vectorizers_outlook(p_patient boolean)
returns table (any_left boolean, waits boolean, due_in double precision, hands_over boolean)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    -- The prompt process is there as long as there are vectorizers, the other one as long as one is its.
    return query
    select case when p_patient then coalesce(l.patient, false) else l.any_left end, coalesce(l.waits, false),
        date_part('epoch', least(l.retry_at, l.changes_at,
            (select min(w.run_after) from @extschema@.steadytext_vectorizer_work as w where w.run_after is not null))
            - clock_timestamp()),
        coalesce(case when p_patient then l.prompt else l.patient end, false)
    from (
        select count(*) > 0 as any_left,
            bool_or(o.is_patient) as patient, bool_or(not o.is_patient) as prompt,
            bool_or(exists (select from @extschema@.steadytext_vectorizer_batches as b where b.vectorizer_id = o.id))
                filter (where o.is_patient = p_patient) as waits,
            min(o.retry_at) filter (where o.retry_at > clock_timestamp() and o.is_patient = p_patient) as retry_at,
            min(o.slow_until) filter (where o.slow_until > clock_timestamp() and not p_patient) as changes_at
        from (
            select v.id, greatest(s.retry_at, o.retry_at) as retry_at, greatest(s.slow_until, o.slow_until) as slow_until,
                not v.is_paused and steadytext.is_for_patient_process(s.is_ready, s.slow_until, v.owner_role::oid) as is_patient
            from @extschema@.steadytext_vectorizers as v
            left join @extschema@.steadytext_vectorizer_state as s on s.vectorizer_id = v.id
            left join @extschema@.steadytext_vectorizer_offenders as o on o.owner = v.owner_role::oid
        ) as o
    ) as l;
end
$$;
comment on function steadytext.vectorizers_outlook(boolean) is
    'Protocol: whether there is a vectorizer for the process, whether requests of such are under way, in how many seconds something is tried again, and whether there are any for the other process';

create function steadytext.note_vectorizer_trouble(p_id uuid, p_message text, p_code text, p_patient boolean)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    if p_code is null then
        insert into @extschema@.steadytext_vectorizer_offenders as o (owner, overruns, slow_until, retry_at)
        select v.owner_role::oid, 1, clock_timestamp() + interval '10 minutes', clock_timestamp() + interval '30 seconds'
        from @extschema@.steadytext_vectorizers as v
        where v.id = p_id
        on conflict (owner) do update set
            overruns = least(o.overruns + 1, 20),
            slow_until = clock_timestamp() + least(interval '10 minutes' * 2 ^ o.overruns, interval '1 day'),
            retry_at = clock_timestamp() + least(interval '30 seconds' * 2 ^ o.overruns, interval '6 hours');
    end if;
    -- Who owns the definition may keep its row locked. It is not waited for: what is written above holds for all definitions of the role.
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
        -- The patient process tries again what the other one has no time for. What it has no time for either, or what had to be ended by force, waits
        -- twice as long after each time.
        update @extschema@.steadytext_vectorizer_state as s set
            overruns = least(c.overruns + 1, 20),
            problem = case when p_code is null or p_patient then left(p_message, 2000) else s.problem end,
            retry_at = case when p_code is null or p_patient
                then clock_timestamp() + least(interval '30 seconds' * 2 ^ c.overruns, interval '6 hours') end,
            slow_until = clock_timestamp() + least(interval '10 minutes' * 2 ^ c.overruns, interval '1 day'),
            is_ready = s.is_ready and p_patient
        from (
            select o.vectorizer_id, case when o.slow_until > clock_timestamp() - interval '1 day' then o.overruns else 0 end as overruns
            from @extschema@.steadytext_vectorizer_state as o
        ) as c
        where s.vectorizer_id = p_id and c.vectorizer_id = p_id;
        return;
    end if;
    update @extschema@.steadytext_vectorizer_state as s set
        -- A lock, or a server that is full, is no problem of the vectorizer's.
        problem = case when steadytext.is_transient(p_code) then s.problem else left(p_message, 2000) end,
        retry_at = clock_timestamp() + case
            when not steadytext.is_transient(p_code) then interval '30 seconds'
            when exists (select from @extschema@.steadytext_vectorizers as v where v.id = p_id and v.replaces is not null) then interval '5 seconds'
            else interval '1 second'
        end
    where s.vectorizer_id = p_id;
end
$$;
comment on function steadytext.note_vectorizer_trouble(uuid, text, text, boolean) is
    'Protocol: a step has failed as a whole, or, where there is no SQLSTATE, had to be ended with its process; it is tried again later, and others go on';

create function steadytext.note_vectorizer_failure(p_id uuid, p_item jsonb, p_message text, p_code text)
returns void
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    insert into @extschema@.steadytext_vectorizer_failures as f (vectorizer_id, key, content_hash, error, error_code)
    values (p_id, p_item -> 'key', decode(p_item ->> 'hash', 'hex'), left(p_message, 2000), p_code)
    on conflict (vectorizer_id, key) do update set
        content_hash = excluded.content_hash, error = excluded.error, error_code = excluded.error_code, failed_at = excluded.failed_at
$$;
comment on function steadytext.note_vectorizer_failure(uuid, jsonb, text, text) is 'Writes down why a row has no vector; called by the steps';

create function steadytext.put_vectorizer_row_aside(p_id uuid, p_item jsonb, p_message text, p_code text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    -- A trigger that takes too long is no matter of the moment.
    if steadytext.is_transient(p_code) and p_code <> '57014' then
        insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced, run_after)
        values (p_id, p_item -> 'key', true, clock_timestamp() + interval '5 seconds');
    else
        perform steadytext.note_vectorizer_failure(p_id, p_item, p_message, p_code);
    end if;
end
$$;
comment on function steadytext.put_vectorizer_row_aside(uuid, jsonb, text, text) is
    'What becomes of a row that stops the others: it is tried again soon, where the error is about the moment, or has failed. Called by the steps';

-- Which files a table is in: they change when partitions come and go, and when it is emptied or written anew.
create function steadytext.vectorizer_signature(p_source oid)
returns text
language sql volatile
set search_path = pg_catalog, pg_temp
as $$
    select md5(string_agg(format('%s:%s', c.oid, pg_relation_filenode(c.oid)), ' ' order by c.oid))
    from (select p_source as relid union select t.relid::oid from pg_partition_tree(p_source::regclass) as t where t.isleaf) as t
    join pg_class as c on c.oid = t.relid
$$;
comment on function steadytext.vectorizer_signature(oid) is 'A digest of the files that a table and its partitions are in';

-- The rest of a piece of work whose texts did not fit into one request follows in the next one.
create function steadytext.make_vectorizer_batches(p_id uuid, p_items jsonb, p_owner oid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_most integer := least(511, steadytext.config_integer('max_batch_size') - 1);
    v_limit integer := steadytext.config_integer('max_batch_size') - 1;
    v_definition record;
    v_item jsonb;
    v_items jsonb[] := '{}';
    v_texts text[] := '{}';
    v_of_item text[];
    v_bytes bigint := 0;
    v_request uuid;
begin
    select * into v_definition from @extschema@.steadytext_vectorizers as v where v.id = p_id;
    for v_item in
        select i.item from jsonb_array_elements(p_items) with ordinality as i(item, n)
        union all select null
    loop
        v_of_item := null;
        if v_item is not null then
            select array_agg(coalesce(t.text, c.chunk) order by c.n) into v_of_item
            from jsonb_array_elements_text(v_item -> 'chunks') with ordinality as c(chunk, n)
            left join jsonb_array_elements_text(v_item -> 'texts') with ordinality as t(text, n) on t.n = c.n;
            if cardinality(v_of_item) > v_limit then
                perform steadytext.note_vectorizer_failure(p_id, v_item,
                    format('the text has %s chunks, more than fit into one request (max_batch_size: %s)', cardinality(v_of_item), v_limit + 1), '54000');
                continue;
            end if;
        end if;
        if cardinality(v_items) > 0
            and (v_item is null or cardinality(v_texts) + cardinality(v_of_item) > v_most or v_bytes > 4000000)
        then
            -- The first text is always the same one: its vector says which model it was.
            insert into @extschema@.steadytext_queue (request_type, prompts, params, priority, session_id, owner_role)
            values ('batch_embed', array['pg_steadytext'] || v_texts,
                jsonb_strip_nulls(jsonb_build_object('model', v_definition.model, 'use_cache', false,
                    'truncate', case when v_definition.truncate then true end)), v_definition.priority,
                'vectorizer ' || v_definition.name, v_definition.owner_role)
            returning request_id into v_request;
            insert into @extschema@.steadytext_vectorizer_batches (request_id, vectorizer_id, keys)
            values (v_request, p_id, to_jsonb(v_items));
            v_items := '{}';
            v_texts := '{}';
            v_bytes := 0;
        end if;
        if v_item is not null then
            v_items := v_items || jsonb_build_object('key', v_item -> 'key', 'hash', v_item -> 'hash',
                'first', cardinality(v_texts) + 2, 'count', cardinality(v_of_item),
                'chunks', case when v_definition.format is not null and v_definition.target_column is null then v_item -> 'chunks' end);
            v_texts := v_texts || v_of_item;
            v_bytes := v_bytes + (select sum(octet_length(t)) from unnest(v_of_item) as t);
        end if;
    end loop;
end
$$;
comment on function steadytext.make_vectorizer_batches(uuid, jsonb, oid) is 'Makes requests of the texts of rows; called by the steps';

create function steadytext.read_vectorizer_rows(p_id uuid, p_statements record, p_keys jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_ranges integer[] := array[1, jsonb_array_length(p_keys)];
    v_from integer;
    v_to integer;
    v_begun timestamptz := clock_timestamp();
    v_rows jsonb;
    v_part jsonb;
    v_locked jsonb;
    v_message text;
    v_code text;
begin
    while cardinality(v_ranges) > 0 loop
        v_from := v_ranges[1];
        v_to := v_ranges[2];
        select jsonb_agg(e.element order by e.n) into v_part
        from jsonb_array_elements(p_keys) with ordinality as e(element, n)
        where e.n between v_from and v_to;
        begin
            v_rows := coalesce(steadytext.run_as(p_statements.owner, p_statements.read_rows, v_part), '[]');
            -- What is gone, or has nothing to embed any more, has no vector.
            select jsonb_agg(r.row -> 'key') into v_part
            from jsonb_array_elements(v_rows) as r(row)
            where not (r.row -> 'found')::boolean
                or not (r.row -> 'same')::boolean and coalesce(jsonb_typeof(r.row -> 'chunks'), 'null') <> 'array';
            if v_part is not null then
                v_locked := steadytext.run_as(p_statements.owner, p_statements.blank_vectors, v_part);
                if p_statements.is_column then
                    insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, run_after)
                    select p_id, v_part -> (l.n::integer - 1), clock_timestamp() + interval '2 seconds'
                    from jsonb_array_elements(v_locked) as l(n);
                end if;
            end if;
            delete from @extschema@.steadytext_vectorizer_failures as f
            using jsonb_array_elements(v_rows) as r(row)
            where f.vectorizer_id = p_id and f.key = r.row -> 'key';
            perform steadytext.note_vectorizer_failure(p_id, r.row, 'there is nothing to embed', '00000')
            from jsonb_array_elements(v_rows) as r(row)
            where (r.row -> 'found')::boolean and not (r.row -> 'same')::boolean
                and coalesce(jsonb_typeof(r.row -> 'chunks'), 'null') <> 'array';
            select jsonb_agg(r.row order by r.n) into v_rows
            from jsonb_array_elements(v_rows) with ordinality as r(row, n)
            where jsonb_typeof(r.row -> 'chunks') = 'array';
            if v_rows is not null then
                perform steadytext.make_vectorizer_batches(p_id, v_rows, p_statements.owner);
            end if;
            v_ranges := v_ranges[3 :];
        exception when others or query_canceled or assert_failure then
            get stacked diagnostics v_message = message_text, v_code = returned_sqlstate;
            -- The queue is full, or the disk: that is about all of them.
            if left(v_code, 2) = '53' then
                raise;
            end if;
            -- What waits for a lock once may do so for each half.
            perform set_config('lock_timeout', '20ms', true);
            if v_code = '57014' and not steadytext.renew_step_limit() then
                raise;
            end if;
            if v_from = v_to then
                perform steadytext.put_vectorizer_row_aside(p_id, p_keys -> (v_from - 1), v_message, v_code);
                v_ranges := v_ranges[3 :];
            else
                v_ranges := array[v_from, (v_from + v_to) / 2, (v_from + v_to) / 2 + 1, v_to] || v_ranges[3 :];
            end if;
        end;
        if clock_timestamp() > v_begun + interval '10 seconds' and cardinality(v_ranges) > 0 then
            -- The rest is work as before.
            insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced)
            select p_id, e.element -> 'key', (e.element -> 'forced')::boolean
            from jsonb_array_elements(p_keys) with ordinality as e(element, n)
            where exists (
                select from generate_subscripts(v_ranges, 1) as r(i)
                where r.i % 2 = 1 and e.n between v_ranges[r.i] and v_ranges[r.i + 1]);
            exit;
        end if;
    end loop;
end
$$;
comment on function steadytext.read_vectorizer_rows(uuid, record, jsonb) is
    'Reads rows by their keys and makes requests of them; what is wrong with one of them becomes its failure. Called by the steps';

create function steadytext.write_vectors(p_id uuid, p_statements record, p_items jsonb, p_request uuid, p_model bytea)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_ranges integer[] := array[1, jsonb_array_length(p_items)];
    v_from integer;
    v_to integer;
    v_part jsonb;
    v_present jsonb;
    v_done jsonb;
    v_left jsonb;
    v_written integer := 0;
    v_begun timestamptz := clock_timestamp();
    v_message text;
    v_code text;
begin
    while cardinality(v_ranges) > 0 loop
        v_from := v_ranges[1];
        v_to := v_ranges[2];
        select jsonb_agg(e.element order by e.n) into v_part
        from jsonb_array_elements(p_items) with ordinality as e(element, n)
        where e.n between v_from and v_to;
        begin
            if p_statements.is_column then
                v_done := steadytext.run_as(p_statements.owner, p_statements.write_vectors,
                    jsonb_build_object('items', v_part, 'request', p_request, 'model', encode(p_model, 'hex')));
                v_written := v_written + coalesce(jsonb_array_length(v_done), 0);
                v_left := steadytext.run_as(p_statements.owner, p_statements.present, v_part);
                select jsonb_agg(v_part -> (l.n - 1)) into v_left
                from (
                    select n::integer from jsonb_array_elements(v_left) as l(n)
                    except select n::integer from jsonb_array_elements(v_done) as d(n)
                ) as l;
                if v_left is not null then
                    -- Either somebody has the row locked, or a trigger has kept the vector out without an error.
                    v_present := coalesce(steadytext.run_as(p_statements.owner, p_statements.lockable, v_left), '[]');
                    perform steadytext.note_vectorizer_failure(p_id, l.item, 'a trigger or rule of the table kept the vector from being written', '09000')
                    from jsonb_array_elements(v_left) with ordinality as l(item, n)
                    where v_present @> to_jsonb(l.n);
                    insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced, run_after)
                    select p_id, l.item -> 'key', true, clock_timestamp() + interval '2 seconds'
                    from jsonb_array_elements(v_left) with ordinality as l(item, n)
                    where not v_present @> to_jsonb(l.n);
                end if;
            else
                v_present := steadytext.run_as(p_statements.owner, p_statements.present, v_part);
                select jsonb_agg(v_part -> (n::integer - 1)), jsonb_agg(v_part -> (n::integer - 1) -> 'key')
                into v_part, v_left
                from jsonb_array_elements(v_present) as p(n);
                if v_part is not null then
                    perform steadytext.run_as(p_statements.owner, p_statements.delete_vectors, v_left);
                    perform steadytext.run_as(p_statements.owner, p_statements.write_vectors,
                        jsonb_build_object('items', v_part, 'request', p_request, 'model', encode(p_model, 'hex')));
                    v_written := v_written + jsonb_array_length(v_part);
                end if;
            end if;
            v_ranges := v_ranges[3 :];
        exception when others or query_canceled or assert_failure then
            get stacked diagnostics v_message = message_text, v_code = returned_sqlstate;
            if left(v_code, 2) = '53' then
                raise;
            end if;
            perform set_config('lock_timeout', '20ms', true);
            if v_code = '57014' and not steadytext.renew_step_limit() then
                raise;
            end if;
            if v_from = v_to then
                perform steadytext.put_vectorizer_row_aside(p_id, p_items -> (v_from - 1), v_message, v_code);
                v_ranges := v_ranges[3 :];
            else
                v_ranges := array[v_from, (v_from + v_to) / 2, (v_from + v_to) / 2 + 1, v_to] || v_ranges[3 :];
            end if;
        end;
        if clock_timestamp() > v_begun + interval '90 seconds' and cardinality(v_ranges) > 0 then
            -- Others have waited long enough. The rest is work as before.
            insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced, run_after)
            select p_id, e.element -> 'key', true, clock_timestamp() + interval '5 seconds'
            from jsonb_array_elements(p_items) with ordinality as e(element, n)
            where exists (
                select from generate_subscripts(v_ranges, 1) as r(i)
                where r.i % 2 = 1 and e.n between v_ranges[r.i] and v_ranges[r.i + 1]);
            exit;
        end if;
    end loop;
    return v_written;
end
$$;
comment on function steadytext.write_vectors(uuid, record, jsonb, uuid, bytea) is
    'Writes vectors for rows whose text is still the one that was embedded; what is wrong with one of them becomes its failure. Called by the steps';
