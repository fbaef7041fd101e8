-- The common part of the steps of vectorizers and enrichments: taking out noted keys, searching, counting, and putting aside the one row that
-- stops others.

create function steadytext.note_vectorizer_failure(p_id uuid, p_item jsonb, p_message text, p_code text, p_needs bigint default null)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into @extschema@.steadytext_vectorizer_failures as f (vectorizer_id, key, content_hash, error, error_code, needs)
    values (p_id, p_item -> 'key', decode(p_item ->> 'hash', 'hex'), left(p_message, 2000), p_code, p_needs)
    on conflict (vectorizer_id, key) do update set
        content_hash = excluded.content_hash, error = excluded.error, error_code = excluded.error_code, failed_at = excluded.failed_at,
        needs = excluded.needs;
end
$$;
comment on function steadytext.note_vectorizer_failure(uuid, jsonb, text, text, bigint) is
    'Records why a row has not got its vector, or its value, and how much a limit must allow where that is why; called by the steps';

-- Rows that were refused for a limit that is no more, or allows as much now.
create function steadytext.retry_limited_rows(p_id uuid, p_owner oid)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_keys jsonb;
begin
    if not steadytext.limit_has_risen(p_id, p_owner) then
        return false;
    end if;
    with ready as (
        delete from @extschema@.steadytext_vectorizer_failures as f
        where f.vectorizer_id = p_id and f.key = any (array(
            select o.key from @extschema@.steadytext_vectorizer_failures as o
            where o.vectorizer_id = p_id and o.needs <= coalesce(steadytext.limit_room(p_owner, false), o.needs)
            order by o.needs
            limit 1000
            for update skip locked))
        returning f.key
    )
    select jsonb_agg(r.key) into v_keys from ready as r;
    insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, keys, key_count, is_forced)
    select p_id, json_agg(e.key order by e.n), count(*), true
    from jsonb_array_elements(v_keys) with ordinality as e(key, n)
    group by (e.n - 1) / 250;
    return v_keys is not null;
end
$$;
comment on function steadytext.retry_limited_rows(uuid, oid) is
    'Notes rows again that were refused for a limit which allows as much now, and returns whether there were any; called by the steps';

create function steadytext.limit_has_risen(p_id uuid, p_owner oid)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_least bigint := (
        select min(f.needs) from @extschema@.steadytext_vectorizer_failures as f where f.vectorizer_id = p_id and f.needs is not null);
begin
    return v_least is not null and v_least <= coalesce(steadytext.limit_room(p_owner, false), v_least);
end
$$;
comment on function steadytext.limit_has_risen(uuid, oid) is
    'Returns whether a row of a definition that was refused for a limit of its owner may be asked for now; called by the steps';

create function steadytext.begin_step(p_id uuid, p_scan text, p_owner oid, p_problem text, p_slow boolean)
returns @extschema@.steadytext_vectorizer_state
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_state @extschema@.steadytext_vectorizer_state;
begin
    insert into @extschema@.steadytext_vectorizer_state (vectorizer_id, scan) values (p_id, p_scan) on conflict do nothing;
    -- The other process may be at it.
    select s.* into v_state from @extschema@.steadytext_vectorizer_state as s where s.vectorizer_id = p_id for update skip locked;
    if not found or steadytext.is_for_slow_process(v_state.is_ready, v_state.slow_until, p_owner) <> p_slow then
        return null;
    end if;
    if p_problem is not null then
        update @extschema@.steadytext_vectorizer_state as s set
            problem = p_problem, is_limited = false, retry_at = clock_timestamp() + interval '5 seconds',
            -- Where triggers are disabled, nobody has noted what changed: when they are back, the table is compared.
            signature = case when s.signature is not null then 'changed unseen' end
        where s.vectorizer_id = p_id;
        return null;
    end if;
    if v_state.problem is not null or v_state.retry_at is not null then
        update @extschema@.steadytext_vectorizer_state as s set problem = null, is_limited = false, retry_at = null where s.vectorizer_id = p_id;
    end if;
    return v_state;
end
$$;
comment on function steadytext.begin_step(uuid, text, oid, text, boolean) is
    'Returns the progress of a definition, with its row locked; NULL where this process has nothing to do for it, or where there is a problem, which is recorded. Called by the steps';

-- Work that is done follows work: what waits is counted no further than a step goes.
create function steadytext.noted_rows(p_id uuid, p_most integer)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select coalesce(sum(w.key_count), 0)
        from (
            select w.key_count from @extschema@.steadytext_vectorizer_work as w
            where w.vectorizer_id = p_id and (w.run_after is null or w.run_after <= clock_timestamp())
            limit p_most
        ) as w);
end
$$;
comment on function steadytext.noted_rows(uuid, integer) is 'Returns the number of noted rows of a definition that can be worked on now, counting at most p_most notes; called by the steps';

create function steadytext.take_noted_rows(p_id uuid, p_limit integer, p_but jsonb[])
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_taken jsonb;
begin
    with oldest as (
        select o.id, sum(o.key_count) over (order by o.id) - o.key_count as before
        from (
            select w.id, w.key_count
            from @extschema@.steadytext_vectorizer_work as w
            where w.vectorizer_id = p_id and num_nonnulls(w.key, w.keys) > 0 and (w.run_after is null or w.run_after <= clock_timestamp())
                and (w.keys is not null or w.key <> all (coalesce(p_but, '{}')))
            order by w.id
            limit p_limit
        ) as o
    ),
    taken as (
        delete from @extschema@.steadytext_vectorizer_work as w
        where w.vectorizer_id = p_id and w.id = any (array(
            select h.id from @extschema@.steadytext_vectorizer_work as h
            where h.vectorizer_id = p_id and h.id = any (array(select o.id from oldest as o where o.before < p_limit))
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
    -- Notes of many keys, from statements that change many rows, are taken apart.
    if cardinality(p_but) > 0 then
        insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced)
        select p_id, e.note -> 'key', (e.note -> 'forced')::boolean
        from jsonb_array_elements(v_taken) with ordinality as e(note, n)
        where e.note -> 'key' = any (p_but);
        select jsonb_agg(e.note order by e.n) into v_taken
        from jsonb_array_elements(v_taken) with ordinality as e(note, n)
        where e.note -> 'key' <> all (p_but);
    end if;
    if p_but is not null and jsonb_array_length(v_taken) > p_limit then
        insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, keys, key_count, is_forced)
        select p_id, json_agg(e.note -> 'key' order by e.n), count(*), (e.note -> 'forced')::boolean
        from jsonb_array_elements(v_taken) with ordinality as e(note, n)
        where e.n > p_limit
        group by (e.note -> 'forced')::boolean;
        select jsonb_agg(e.note order by e.n) into v_taken
        from jsonb_array_elements(v_taken) with ordinality as e(note, n)
        where e.n <= p_limit;
    end if;
    return v_taken;
end
$$;
comment on function steadytext.take_noted_rows(uuid, integer, jsonb[]) is
    'Takes out the oldest notes of a definition, each key once and without the keys in p_but; where p_but is NULL, without exceptions, and somewhat more than p_limit where many were noted together; NULL: there are none. Called by the steps';

create function steadytext.begin_requested_search(p_id uuid)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_forced boolean;
begin
    with taken as (
        delete from @extschema@.steadytext_vectorizer_work as w
        where w.vectorizer_id = p_id and w.key is null and w.keys is null
        returning w.is_forced
    )
    select bool_or(t.is_forced) into v_forced from taken as t;
    if v_forced is null then
        return false;
    end if;
    if v_forced then
        -- Everything is made anew: what was asked for before would come over it, perhaps by the model's file of then.
        delete from @extschema@.steadytext_vectorizer_kept as k where k.vectorizer_id = p_id;
        -- A request that somebody has locked comes to its end, and nobody looks at it.
        delete from @extschema@.steadytext_queue as q
        where q.id = any (array(
            select o.id from @extschema@.steadytext_queue as o
            join @extschema@.steadytext_vectorizer_batches as b on b.request_id = o.request_id
            where b.vectorizer_id = p_id
            for update of o skip locked));
        delete from @extschema@.steadytext_vectorizer_batches as b where b.vectorizer_id = p_id;
    end if;
    update @extschema@.steadytext_vectorizer_state as s set
        scan = case when v_forced or s.scan = 'all' then 'all' else 'source' end, scan_after = null
    where s.vectorizer_id = p_id;
    return true;
end
$$;
comment on function steadytext.begin_requested_search(uuid) is
    'Begins a search of the table where one was asked for, and returns whether it did; called by the steps';

-- Searches of the table go by its key, those of failures by the key in JSON.
create function steadytext.go_on_searching(p_id uuid, p_count integer, p_limit integer, p_last jsonb, p_next text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    update @extschema@.steadytext_vectorizer_state as s set
        scan = case when p_count >= p_limit then s.scan else p_next end,
        scan_after = case when p_count >= p_limit then p_last end,
        scan_until = (select max(w.id) from @extschema@.steadytext_vectorizer_work as w where w.vectorizer_id = p_id)
    where s.vectorizer_id = p_id;
end
$$;
comment on function steadytext.go_on_searching(uuid, integer, integer, jsonb, text) is
    'Records the progress of a search, or the next search where this one has come to its end; called by the steps';

-- Where rows keep changing there may always be much to do: what the last piece has noted is done before the next one, and not all that has come since.
create function steadytext.may_search(p_id uuid, p_noted integer, p_until bigint)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return p_noted < 500 or not exists (
        select from @extschema@.steadytext_vectorizer_work as w where w.vectorizer_id = p_id and w.id <= p_until);
end
$$;
comment on function steadytext.may_search(uuid, integer, bigint) is
    'Returns whether a search may note more now: there is little to do, or all that it has noted until now is done. Called by the steps';

-- Keys are kept as texts, and the key of a table changes: it may have another type by now, or a type that has lost a value.
create function steadytext.is_readable_key(p_statements record, p_key jsonb)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    perform steadytext.run_as(p_statements.owner, p_statements.read_keys, jsonb_build_array(jsonb_build_object('key', p_key)));
    return true;
exception when others then
    if steadytext.is_transient(sqlstate) or left(sqlstate, 2) in ('42', 'XX') then
        raise;
    end if;
    return false;
end
$$;
comment on function steadytext.is_readable_key(record, jsonb) is
    'Returns whether a key that was noted is one of the table''s present key columns; called by the steps';

create function steadytext.rows_present(p_statements record, p_items jsonb)
returns jsonb
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_item jsonb;
    v_is_present jsonb;
    v_present jsonb := '[]';
begin
    return steadytext.run_as(p_statements.owner, p_statements.present, p_items);
exception when others then
    if steadytext.is_transient(sqlstate) or left(sqlstate, 2) in ('42', 'XX') then
        raise;
    end if;
    -- One of them stops the others.
    for v_item in select e.item from jsonb_array_elements(p_items) with ordinality as e(item, n) order by e.n loop
        v_is_present := to_jsonb(steadytext.is_readable_key(p_statements, v_item -> 'key'));
        if v_is_present::boolean then
            begin
                v_is_present := steadytext.run_as(p_statements.owner, p_statements.present, jsonb_build_array(v_item)) -> 0;
            exception when others then
                -- A row that cannot be looked at is not known to be gone.
                if steadytext.is_transient(sqlstate) or left(sqlstate, 2) in ('42', 'XX') then
                    raise;
                end if;
            end;
        end if;
        v_present := v_present || jsonb_build_array(v_is_present);
    end loop;
    return v_present;
end
$$;
comment on function steadytext.rows_present(record, jsonb) is
    'Returns for each item, a key and perhaps the hash of a text, whether its row is there and has that text still; there is no row for what is no key any more. Called by the steps';

create function steadytext.search_failures(p_id uuid, p_statements record, p_after jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_failures jsonb;
    v_present jsonb;
begin
    select jsonb_agg(jsonb_build_object('key', f.key) order by f.key) into v_failures
    from (
        select o.key from @extschema@.steadytext_vectorizer_failures as o
        where o.vectorizer_id = p_id and (p_after is null or o.key > p_after)
        order by o.key
        limit 1000
    ) as f;
    if v_failures is not null then
        v_present := steadytext.rows_present(p_statements, v_failures);
        delete from @extschema@.steadytext_vectorizer_failures as f
        using rows from (jsonb_array_elements(v_failures), jsonb_array_elements(v_present)) as e(item, is_present)
        where f.vectorizer_id = p_id and f.key = e.item -> 'key' and not e.is_present::boolean;
    end if;
    perform steadytext.go_on_searching(p_id, coalesce(jsonb_array_length(v_failures), 0), 1000, v_failures -> -1 -> 'key', null);
end
$$;
comment on function steadytext.search_failures(uuid, record, jsonb) is
    'Forgets failures whose rows are gone, among one piece of the failures; called by the steps';

create function steadytext.note_progress(p_id uuid, p_written integer, p_model bytea)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    update @extschema@.steadytext_vectorizer_state as s set
        embedded_total = s.embedded_total + p_written,
        model_hash = coalesce(p_model, s.model_hash),
        -- An interval ends after a few seconds; one that had nothing to do in it says nothing.
        rows_per_second = case
            when s.measured_at between clock_timestamp() - interval '30 seconds' and clock_timestamp() - interval '2 seconds'
                then (s.embedded_total + p_written - s.measured_total) / date_part('epoch', clock_timestamp() - s.measured_at)
            else s.rows_per_second
        end,
        measured_total = case when s.measured_at >= clock_timestamp() - interval '2 seconds'
            then s.measured_total else s.embedded_total + p_written end,
        measured_at = case when s.measured_at >= clock_timestamp() - interval '2 seconds' then s.measured_at else clock_timestamp() end
    where s.vectorizer_id = p_id;
end
$$;
comment on function steadytext.note_progress(uuid, integer, bytea) is
    'Counts rows that were written, and measures their rate; called by the steps';

create function steadytext.put_row_aside(p_id uuid, p_item jsonb, p_forced boolean, p_message text, p_code text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    -- A trigger that takes too long is no matter of the moment.
    if steadytext.is_transient(p_code) and p_code <> '57014' then
        insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced, run_after)
        values (p_id, p_item -> 'key', coalesce(p_forced, (p_item ->> 'forced')::boolean, false),
            clock_timestamp() + coalesce(steadytext.kept_pause(p_id, p_item -> 'key'), interval '5 seconds'));
    else
        perform steadytext.note_vectorizer_failure(p_id, p_item, p_message, p_code);
    end if;
end
$$;
comment on function steadytext.put_row_aside(uuid, jsonb, boolean, text, text) is
    'Puts aside a row that stops the others: it is tried again soon, where the error is about the moment; otherwise it has failed. Called by the steps';

-- An error of one row must stop no other: a piece of work that fails is done again by halves, until that row is alone.
create function steadytext.in_parts(p_id uuid, p_what text, p_statements record, p_items jsonb, p_answer jsonb)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_ranges integer[] := array[1, jsonb_array_length(p_items)];
    v_from integer;
    v_to integer;
    v_part jsonb;
    v_written integer := 0;
    v_begun timestamptz := clock_timestamp();
    v_message text;
    v_code text;
    v_is_over boolean := false;
    v_reads boolean := p_what in ('read rows of a vectorizer', 'read rows of an enrichment');
    -- Vectors that could not be written are made again though their texts are the same; otherwise it is as it was noted.
    v_forced boolean := case when p_what in ('write vectors', 'keep vectors', 'write kept vectors') then true end;
begin
    while cardinality(v_ranges) > 0 loop
        v_from := v_ranges[1];
        v_to := v_ranges[2];
        v_part := p_items;
        if v_from > 1 or v_to < jsonb_array_length(p_items) then
            select jsonb_agg(e.element order by e.n) into v_part
            from jsonb_array_elements(p_items) with ordinality as e(element, n)
            where e.n between v_from and v_to;
        end if;
        begin
            case p_what
                when 'read rows of a vectorizer' then
                    perform steadytext.read_vectorizer_rows(p_id, p_statements, v_part);
                when 'read rows of an enrichment' then
                    perform steadytext.read_enriched_rows(p_id, p_statements, v_part);
                when 'write vectors' then
                    v_written := v_written + steadytext.write_vectors(p_id, p_statements, v_part, p_answer);
                when 'keep vectors' then
                    v_written := v_written + steadytext.keep_piece(p_id, p_statements, v_part -> 0, p_answer);
                when 'write kept vectors' then
                    v_written := v_written + steadytext.write_kept_vectors(p_id, p_statements, v_part -> 0);
                when 'write values' then
                    v_written := v_written + steadytext.write_enrichment_values(p_id, p_statements, v_part);
            end case;
            v_ranges := v_ranges[3 :];
        exception when others or query_canceled or assert_failure then
            get stacked diagnostics v_message = message_text, v_code = returned_sqlstate;
            -- The queue is full, or the disk: that is about all of them.
            if left(v_code, 2) = '53' then
                raise;
            end if;
            if left(v_code, 2) = '42' and steadytext.definition_problem(p_id) is not null then
                -- Since the step has begun: the table is gone, or the owner's rights. The next step says so.
                v_is_over := true;
            end if;
            -- A statement that waits for a lock once may do so for each half.
            perform set_config('lock_timeout', '20ms', true);
            if v_code = '57014' and not steadytext.renew_step_limit() then
                raise;
            end if;
            if v_is_over then
                null;
            elsif v_from < v_to then
                v_ranges := array[v_from, (v_from + v_to) / 2, (v_from + v_to) / 2 + 1, v_to] || v_ranges[3 :];
            else
                -- The row's vectors or value are kept until they can be written.
                if p_what in ('write vectors', 'keep vectors') and steadytext.is_transient(v_code) and v_code <> '57014' then
                    perform steadytext.keep_vectors(p_id, p_items -> (v_from - 1), p_answer);
                elsif p_what = 'write values' and steadytext.is_transient(v_code) and v_code <> '57014' then
                    perform steadytext.keep_value(p_id, p_items -> (v_from - 1));
                end if;
                perform steadytext.put_row_aside(p_id, p_items -> (v_from - 1), v_forced, v_message, v_code);
                v_ranges := v_ranges[3 :];
            end if;
        end;
        if cardinality(v_ranges) > 0
            and (v_is_over or clock_timestamp() > v_begun + case when v_reads then interval '10 seconds' else interval '90 seconds' end)
        then
            -- Others have waited long enough. The rest is work as before.
            insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced, run_after)
            select p_id, e.element -> 'key', coalesce(v_forced, (e.element -> 'forced')::boolean, false),
                case when v_is_over or not v_reads then clock_timestamp() + interval '5 seconds' end
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
comment on function steadytext.in_parts(uuid, text, record, jsonb, jsonb) is
    'Reads or writes rows, and returns the number of rows written; an error of one of them becomes its failure. Called by the steps';
