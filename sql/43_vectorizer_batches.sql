-- The grouping of texts into requests: which texts of rows that were read a vectorizer asks for together, and how many of them at once.

-- A row whose chunks are more than one request may have (max_batch_size) is embedded by several, one after the other.
-- One whose chunks are more than a limit of its owner's has room for now gets some of them embedded: half of the room that it finds, as long as others
-- come after it, and what these leave. The vectors are kept until it has all of them. So it holds up nobody, and nobody keeps it waiting for ever.
create function steadytext.make_vectorizer_batches(p_id uuid, p_statements record, p_rows jsonb)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_limit integer := steadytext.config_integer('max_batch_size') - 1;
    v_owner oid := (select v.owner_role::oid from @extschema@.steadytext_vectorizers as v where v.id = p_id);
    v_room bigint := steadytext.limit_room(v_owner, true);
    v_largest bigint := steadytext.limit_room(v_owner, false);
    v_most integer := least(511, v_limit);
    v_count integer := jsonb_array_length(p_rows);
    v_any_kept boolean := exists (select from @extschema@.steadytext_vectorizer_kept as k where k.vectorizer_id = p_id);
    v_any_pieces boolean := exists (
        select from @extschema@.steadytext_vectorizer_batches as b where b.vectorizer_id = p_id and b.keys -> 0 ? 'seqs');
    v_rows jsonb := p_rows;
    v_row record;
    v_numbers integer[] := '{}';
    -- Numbers of the chunks of a row that are missing and that are asked for, where these are not all of
    -- them.
    v_missing integer[] := '{}';
    v_pieces integer[] := '{}';
    v_piece integer;
    v_number integer := 0;
    v_texts integer := 0;
    v_bytes bigint := 0;
    v_written integer := 0;
    v_definition record;
    v_request record;
    v_id uuid;
begin
    select v.* into v_definition from @extschema@.steadytext_vectorizers as v where v.id = p_id;
    -- The request that each row is in: one after the other, as long as there is room.
    for v_row in
        select e.n::integer as n, jsonb_array_length(e.item -> 'chunks') as texts, (e.item ->> 'bytes')::bigint as bytes,
            case when v_any_kept then (
                select count(*)::integer from @extschema@.steadytext_vectorizer_kept as o
                where o.vectorizer_id = p_id and o.key = e.item -> 'key') else 0 end as kept
        from jsonb_array_elements(p_rows) with ordinality as e(item, n)
    loop
        v_numbers[v_row.n] := 0;
        if v_limit < 1 then
            perform steadytext.note_vectorizer_failure(p_id, p_rows -> (v_row.n - 1),
                'a request of a vectorizer has two texts at least, and max_batch_size is 1', '53400');
            continue;
        end if;
        if v_largest > 0 and v_row.texts > v_largest then
            perform steadytext.note_vectorizer_failure(p_id, p_rows -> (v_row.n - 1),
                format('the text has %s chunks, and steadytext_rate_limits allows its owner %s requests at once', v_row.texts, v_largest), '53400',
                v_row.texts);
            continue;
        end if;
        if v_row.kept >= v_row.texts then
            v_written := v_written + steadytext.in_parts(
                p_id, 'write kept vectors', p_statements, jsonb_build_array(p_rows -> (v_row.n - 1)), null);
            continue;
        end if;
        -- Its next chunks are asked for when these have come.
        if v_any_pieces then
            continue when exists (
                select from @extschema@.steadytext_vectorizer_batches as b
                where b.vectorizer_id = p_id and b.keys -> 0 ? 'seqs' and b.keys -> 0 -> 'key' = p_rows -> (v_row.n - 1) -> 'key'
                    and b.keys -> 0 -> 'hash' = p_rows -> (v_row.n - 1) -> 'hash');
        end if;
        if v_row.kept > 0 or v_row.texts > v_room or v_row.texts > v_limit then
            v_missing[v_row.n] := v_row.texts - v_row.kept;
            v_piece := least(v_missing[v_row.n], v_limit,
                case when v_row.n = v_count then v_room else floor(v_room / 2.0::double precision + random()) end);
            if v_piece > 0 then
                v_pieces[v_row.n] := v_piece;
                v_room := v_room - v_piece;
            else
                v_numbers[v_row.n] := -1;
            end if;
            continue;
        end if;
        v_room := v_room - v_row.texts;
        if v_number = 0 or v_texts + v_row.texts > v_most or v_bytes > 4000000 then
            v_number := v_number + 1;
            v_texts := 0;
            v_bytes := 0;
        end if;
        v_numbers[v_row.n] := v_number;
        v_texts := v_texts + v_row.texts;
        v_bytes := v_bytes + v_row.bytes;
    end loop;
    for v_n in 1 .. coalesce(array_upper(v_pieces, 1), 0) loop
        continue when v_pieces[v_n] is null;
        v_piece := least(v_missing[v_n] - v_pieces[v_n], v_limit - v_pieces[v_n], v_room);
        v_room := v_room - v_piece;
        v_number := v_number + 1;
        v_numbers[v_n] := v_number;
        select jsonb_set(v_rows, array[(v_n - 1)::text], (p_rows -> (v_n - 1)) || jsonb_build_object('of', jsonb_array_length(p_rows -> (v_n - 1) -> 'chunks'),
            'seqs', jsonb_agg(m.n order by m.n), 'chunks', jsonb_agg(p_rows -> (v_n - 1) -> 'chunks' -> (m.n - 1) order by m.n),
            'texts', case when jsonb_typeof(p_rows -> (v_n - 1) -> 'texts') = 'array'
                then jsonb_agg(p_rows -> (v_n - 1) -> 'texts' -> (m.n - 1) order by m.n) end))
        into v_rows
        from (
            select t.n
            from generate_series(1, jsonb_array_length(p_rows -> (v_n - 1) -> 'chunks')) as t(n)
            where not exists (
                select from @extschema@.steadytext_vectorizer_kept as k
                where k.vectorizer_id = p_id and k.key = p_rows -> (v_n - 1) -> 'key' and k.seq = t.n)
            order by t.n
            limit v_pieces[v_n] + v_piece
        ) as m;
    end loop;
    -- The first text is always the same one: its vector says which model it was.
    for v_request in
        with items as materialized (
            select e.number, e.n, e.item, jsonb_array_length(e.item -> 'chunks') as texts,
                sum(jsonb_array_length(e.item -> 'chunks')) over (partition by e.number order by e.n) as upto
            from rows from (jsonb_array_elements(v_rows), unnest(v_numbers)) with ordinality as e(item, number, n)
            where e.number > 0
        )
        select i.number, array['pg_steadytext'] || array_agg(c.text order by i.n, c.n) as prompts,
            jsonb_agg(jsonb_build_object('key', i.item -> 'key', 'hash', i.item -> 'hash', 'first', i.upto - i.texts + 2, 'count', i.texts,
                'chunks', case when v_definition.format is not null and v_definition.target_column is null then i.item -> 'chunks' end)
                || case when i.item ? 'seqs' then jsonb_build_object('seqs', i.item -> 'seqs', 'of', i.item -> 'of') else '{}' end
                || case when (i.item -> 'forced')::boolean then jsonb_build_object('forced', true) else '{}' end order by i.n)
                filter (where c.n = 1) as keys
        from items as i
        cross join lateral jsonb_array_elements_text(coalesce(nullif(i.item -> 'texts', 'null'), i.item -> 'chunks')) with ordinality as c(text, n)
        group by i.number
        order by i.number
    loop
        begin
            insert into @extschema@.steadytext_queue (request_type, prompts, params, priority, session_id, owner_role)
            values ('batch_embed', v_request.prompts, jsonb_strip_nulls(jsonb_build_object('model', v_definition.model, 'use_cache', false, 'mode', 'passage',
                'truncate', case when v_definition.truncate then true end)), v_definition.priority,
                'vectorizer ' || v_definition.name, v_definition.owner_role)
            returning request_id into v_id;
        exception when configuration_limit_exceeded then
            if v_request.number = 1 then
                raise;
            end if;
            -- The rest comes as soon as a limit of the owner's allows it, or in some seconds where the queue is full.
            insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, keys, key_count, is_forced, run_after)
            select p_id, json_agg(e.item -> 'key' order by e.n), count(*), true,
                case when steadytext.limit_wait(v_owner, 1) is null then clock_timestamp() + interval '5 seconds' end
            from rows from (jsonb_array_elements(p_rows), unnest(v_numbers)) with ordinality as e(item, number, n)
            where e.number >= v_request.number;
            exit;
        end;
        insert into @extschema@.steadytext_vectorizer_batches (request_id, vectorizer_id, keys) values (v_id, p_id, v_request.keys);
    end loop;
    -- Rows that exceeded the room come first when there is some again.
    perform steadytext.note_first(p_id, w.keys)
    from (
        select json_agg(e.item -> 'key' order by e.n) as keys
        from rows from (jsonb_array_elements(p_rows), unnest(v_numbers)) with ordinality as e(item, number, n)
        where e.number = -1
    ) as w
    where w.keys is not null;
    if v_written > 0 then
        perform steadytext.note_progress(p_id, v_written, null);
    end if;
end
$$;
comment on function steadytext.make_vectorizer_batches(uuid, record, jsonb) is
    'Makes requests from the texts of rows, from as many as a limit has room for, and writes the vectors that are kept; called by the steps';
