-- The statements that a vectorizer runs on its tables, as the role that owns them. They are made of the catalogs each time, as tables
-- and columns may have been renamed since. Each gets one jsonb, returns one, and is run by steadytext.run_as(), which keeps its plan: the same
-- statement comes again and again.
--
-- Invariant: every name is quoted, and every operator has its schema. The values of a key are
-- written by the output functions of their types, as steadytext.note_row() writes them.
--
-- Keys that were read from JSON stand in a subquery that is computed by itself (offset 0, or materialized). Merged into the comparison with the
-- table's key, the functions that read them would not be leakproof, so that a policy of row-level security would have to be asked before it:
-- for each row of the table, once for each key.

create function steadytext.format_pieces(p_format text, p_columns text[])
returns table (n bigint, literal text, name text)
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $body$
declare
    v_piece record;
    v_number bigint := 0;
begin
    for v_piece in
        select m.parts[1] as literal, m.parts[2] as name, m.parts[3] as quoted, m.parts[4] as dollar, m.parts[5] as stray
        from regexp_matches(p_format, '([^$]+)|\$([[:alpha:]_][[:alnum:]_]*)|\$\{([^{}]+)\}|(\$\$)|(\$)', 'g') as m(parts)
    loop
        if v_piece.stray is not null then
            raise exception 'format has a $ that is followed by no name'
                using errcode = 'invalid_parameter_value', hint = 'Write $chunk, $name or ${name} of a column, and $$ for a dollar.';
        end if;
        v_number := v_number + 1;
        n := v_number;
        literal := coalesce(v_piece.literal, case when v_piece.dollar is not null then '$' end);
        name := coalesce(v_piece.name, v_piece.quoted);
        if name <> 'chunk' and not name = any (p_columns) then
            raise exception 'format names "%", which is none of the columns', left(name, 63)
                using errcode = 'invalid_parameter_value', hint = format('The columns are %s; $chunk is the text.', array_to_string(p_columns, ', '));
        end if;
        return next;
    end loop;
end
$body$;
comment on function steadytext.format_pieces(text, text[]) is
    'Returns the pieces of a format in their order: texts, and names of columns or chunk; an error where a name is none of these';

create function steadytext.vectorizer_index(p_table text, p_column text, p_type text, p_distance text, p_schema name)
returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    return format('create index on %s using %s (%I %I.%I)', p_table,
        case p_type when 'hnsw' then 'hnsw' else 'ivfflat' end, p_column, p_schema,
        case p_distance when 'cosine' then 'vector_cosine_ops' when 'l2' then 'vector_l2_ops' else 'vector_ip_ops' end);
end
$$;
comment on function steadytext.vectorizer_index(text, text, text, text, name) is 'Returns the statement that creates the index of a vectorizer';

create function steadytext.vectorizer_statements(
    p_id uuid,
    out owner oid,
    out problem text,
    out is_column boolean,
    out read_rows text,
    out delete_vectors text,
    out present text,
    out read_keys text,
    out write_vectors text[],
    out blank_vectors text,
    out lockable text,
    out scan_source text[],
    out scan_destination text[],
    out make_index text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_definition record;
    v_place record;
    v_source text;
    v_destination text;
    v_keys record;
    v_destination_keys text[];
    v_hash text;
    v_text text;
    v_formatted text;
    v_chunks text;
    v_vector text;
    v_vector_schema text;
    v_quoted text[];
    v_own text[];
    v_kept text;
begin
    select v.* into v_definition from @extschema@.steadytext_vectorizers as v where v.id = p_id;
    select p.* into v_place from steadytext.vectorizer_place(p_id) as p;
    owner := v_definition.owner_role::oid;
    problem := steadytext.definition_problem(p_id);
    if problem is not null then
        return;
    end if;
    is_column := v_place.target_column is not null;
    select case when c.relkind = 'p' then '' else 'only ' end || v_place.source::text into v_source
    from pg_class as c where c.oid = v_place.source;
    v_destination := v_place.destination::text;
    select n.nspname, format('%I.vector', n.nspname) into v_vector_schema, v_vector
    from pg_extension as e
    join pg_depend as d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.classid = 'pg_type'::regclass
    join pg_type as t on t.oid = d.objid and t.typname = 'vector' and t.typtype = 'b'
    join pg_namespace as n on n.oid = t.typnamespace
    where e.extname = 'vector';

    v_kept := format(
        $made$(
                        select (e.place operator(pg_catalog.->>) 'vector')::%s as vector, e.place operator(pg_catalog.->>) 'chunk' as prompt, e.place
                        from pg_catalog.jsonb_array_elements($1 operator(pg_catalog.->) 'places') as e(place)
                    ) as v$made$,
        v_vector);
    if not is_column then
        select array_agg(quote_ident(a.attname) order by a.attnum) into v_destination_keys
        from pg_attribute as a
        where a.attrelid = v_place.destination and a.attnum between 1 and cardinality(v_place.key_columns);
    end if;
    select e.* into v_keys
    from steadytext.key_expressions(v_place.source, v_place.key_columns, v_place.key_types, v_destination_keys) as e;

    select format('pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(row(%s)::pg_catalog.text, ''UTF8'')), ''hex'')',
        string_agg(format('s.%I::pg_catalog.text', c.name), ', ' order by c.n))
    into v_hash
    from unnest(v_place.source_columns) with ordinality as c(name, n);
    -- Beside a vector in a column of the source there is a hash of what it was made from and of the vector itself, and that of the model: a vector that
    -- somebody else has written, or that was left where the text has changed, is not taken for one of ours.
    v_own := array(
        select format(
            'coalesce(s.%1$I is not null and pg_catalog.substr(s.%2$I, 1, 32) operator(pg_catalog.=)
                pg_catalog.sha256(pg_catalog.decode(%4$s, ''hex'') operator(pg_catalog.||) %3$I.vector_send(s.%1$I)), false)',
            v_place.target_column, v_place.hash_column, v_vector_schema, h.hash)
        from unnest(case when is_column then array['g.hash', 'h.hash'] else '{}' end) with ordinality as h(hash, n)
        order by h.n);
    select format('pg_catalog.concat_ws(E''\n\n'', %s)', string_agg(format('s.%I::pg_catalog.text', c.name), ', ' order by c.n))
    into v_text
    from unnest(v_place.source_columns, v_definition.columns) with ordinality as c(name, given, n)
    where not exists (
        select from steadytext.format_pieces(coalesce(v_definition.format, ''), v_definition.columns) as p where p.name = c.given);
    if v_definition.format is not null then
        select format('pg_catalog.concat(%s)', string_agg(
            case
                when p.literal is not null then quote_literal(p.literal)
                when p.name = 'chunk' then 'c.chunk'
                else format('s.%I::pg_catalog.text', v_place.source_columns[array_position(v_definition.columns, p.name)])
            end, ', ' order by p.n))
        into v_formatted
        from steadytext.format_pieces(v_definition.format, v_definition.columns) as p;
    end if;
    -- A text has no more tokens than bytes, so that a short one need not be cut.
    v_chunks := case
        when v_definition.chunk_size is null then format('select 1 as seq, %s as chunk', v_text)
        else format(
            $chunks$select 1 as seq, %1$s as chunk where pg_catalog.octet_length(%1$s) operator(pg_catalog.<=) %2$s
                union all
                select t.seq, t.chunk
                from steadytext.chunk_for_embedding(
                    case when pg_catalog.octet_length(%1$s) operator(pg_catalog.>) %2$s then %1$s end, %2$s, %3$s, %4$L, %5$L) as t$chunks$,
            v_text, v_definition.chunk_size, v_definition.chunk_overlap, v_definition.strategy, v_definition.model)
    end;

    -- Rows that are gone, blank or as they were embedded, by their keys, and the texts of the others.
    read_rows := format(
        $read$select pg_catalog.jsonb_build_object(
            'gone', pg_catalog.jsonb_agg(r.key order by r.n) filter (where r.hash is null),
            'done', pg_catalog.jsonb_agg(r.key order by r.n) filter (where r.same),
            'blank', pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('key', r.key, 'hash', r.hash) order by r.n)
                filter (where not r.same and r.chunks is null),
            'rows', pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('key', r.key, 'hash', r.hash, 'chunks', r.chunks, 'texts', r.texts, 'bytes', r.bytes, 'forced', r.forced)
                order by r.n) filter (where r.chunks is not null))
        from (
            select x.n, x.forced, %1$s as key, s.hash, s.same, s.chunks, s.texts, s.bytes
            from (
                select k.n, (k.element operator(pg_catalog.->) 'forced')::pg_catalog.bool as forced, %2$s
                from (
                    select e.n, e.element, e.element operator(pg_catalog.->) 'key' as key
                    from pg_catalog.jsonb_array_elements($1) with ordinality as e(element, n)
                ) as k
                offset 0
            ) as x
            left join lateral (
                select h.hash, h.same, t.chunks, t.texts, t.bytes
                from %3$s as s
                cross join lateral (
                    select g.hash, not x.forced and %4$s as same from (select %5$s as hash) as g
                ) as h
                left join lateral (
                    select pg_catalog.jsonb_agg(c.chunk order by c.seq) as chunks, %6$s as texts,
                        pg_catalog.sum(pg_catalog.octet_length(c.chunk)) as bytes
                    from (%7$s) as c
                    where c.chunk operator(pg_catalog.~) '\S'
                ) as t on not h.same
                where %8$s
            ) as s on true
        ) as r$read$,
        v_keys.of_parsed, v_keys.parsed, v_source,
        case when is_column then v_own[1] else format(
            $same$exists (select from %s as d where %s and d.content_hash operator(pg_catalog.=) pg_catalog.decode(g.hash, 'hex'))$same$,
            v_destination, v_keys.destination_match) end,
        v_hash,
        case when v_definition.format is null then 'null::pg_catalog.jsonb' else format('pg_catalog.jsonb_agg(%s order by c.seq)', v_formatted) end,
        v_chunks, v_keys.source_match);

    -- For each element of the array whether the row is there, and its text, where that is given, still the one that was embedded.
    present := format(
        $present$select pg_catalog.jsonb_agg(exists (
                select from %2$s as s where %3$s and (x.hash is null or %4$s operator(pg_catalog.=) x.hash)
            ) order by x.n)
        from (
            select e.n, e.element operator(pg_catalog.->>) 'hash' as hash, %1$s
            from pg_catalog.jsonb_array_elements($1) with ordinality as e(element, n)
            cross join lateral (select e.element operator(pg_catalog.->) 'key' as key) as k
            offset 0
        ) as x$present$,
        v_keys.parsed, v_source, v_keys.source_match, v_hash);
    -- Nothing but the keys, to tell those that are no keys any more.
    read_keys := format(
        $keys$select pg_catalog.to_jsonb(pg_catalog.count(x))
        from (
            select %s
            from pg_catalog.jsonb_array_elements($1) as e(element)
            cross join lateral (select e.element operator(pg_catalog.->) 'key' as key) as k
            offset 0
        ) as x$keys$,
        v_keys.parsed);

    if is_column then
        -- Rows that somebody has locked are left, and told by their positions.
        blank_vectors := format(
            $blank$with keys as materialized (
                select e.n, %3$s
                from pg_catalog.jsonb_array_elements($1) with ordinality as e(key, n)
                cross join lateral (select e.key) as k
            ),
            held as materialized (
                select x.* from keys as x join %1$s as s on %4$s where pg_catalog.num_nonnulls(s.%2$I, s.%5$I) operator(pg_catalog.>) 0
                for no key update of s skip locked
            ),
            gone as (
                update %1$s as s set %2$I = null, %5$I = null
                from held as x
                where %4$s
                returning x.n
            )
            select pg_catalog.jsonb_agg(x.n)
            from keys as x
            join %1$s as s on %4$s
            where pg_catalog.num_nonnulls(s.%2$I, s.%5$I) operator(pg_catalog.>) 0
                and x.n operator(pg_catalog.<>) all (array(select g.n from gone as g))$blank$,
            v_source, v_place.target_column, v_keys.parsed, v_keys.source_match, v_place.hash_column);
        lockable := format(
            $lockable$with held as (
                select x.n
                from (
                    select e.n, e.element operator(pg_catalog.->>) 'hash' as hash, %1$s
                    from pg_catalog.jsonb_array_elements($1) with ordinality as e(element, n)
                    cross join lateral (select e.element operator(pg_catalog.->) 'key' as key) as k
                    offset 0
                ) as x
                join %2$s as s on %3$s
                where %4$s operator(pg_catalog.=) x.hash
                for no key update of s skip locked
            )
            select pg_catalog.jsonb_agg(h.n) from held as h$lockable$,
            v_keys.parsed, v_source, v_keys.source_match, v_hash);
        -- Texts, their vectors and the rows that they are of lie side by side: nothing is looked for. The second statement gets vectors that were kept,
        -- beside what they are of.
        select array_agg(format(
            $write$with items as materialized (
                select (k.place operator(pg_catalog.->>) 'n')::pg_catalog.int4 as n, k.place operator(pg_catalog.->>) 'hash' as hash, k.vector, %1$s
                from (
                    select v.vector, v.place, v.place operator(pg_catalog.->) 'key' as key
                    from %9$s
                ) as k
            ),
            held as materialized (
                select x.*
                from items as x
                join %2$s as s on %3$s
                where %4$s operator(pg_catalog.=) x.hash
                for no key update of s skip locked
            ),
            done as (
                update %2$s as s set
                    %5$I = x.vector::%7$s,
                    %6$I = pg_catalog.sha256(pg_catalog.decode(x.hash, 'hex') operator(pg_catalog.||) %8$I.vector_send(x.vector::%7$s))
                        operator(pg_catalog.||) pg_catalog.decode($1 operator(pg_catalog.->>) 'model', 'hex')
                from held as x
                where %3$s
                returning x.n
            )
            select pg_catalog.jsonb_agg(d.n) from done as d$write$,
            v_keys.parsed, v_source, v_keys.source_match, v_hash, v_place.target_column, v_place.hash_column, v_vector, v_vector_schema, w.made)
            order by w.n)
        into write_vectors
        from unnest(array[
            $made$@extschema@.steadytext_queue as q
                    cross join lateral rows from (
                        pg_catalog.unnest(q.embeddings[($1 operator(pg_catalog.->>) 'first')::pg_catalog.int4 : ($1 operator(pg_catalog.->>) 'last')::pg_catalog.int4]),
                        pg_catalog.jsonb_array_elements($1 operator(pg_catalog.->) 'places')
                    ) as v(vector, place)
                    where q.request_id operator(pg_catalog.=) ($1 operator(pg_catalog.->>) 'request')::pg_catalog.uuid$made$,
            v_kept]) with ordinality as w(made, n);
    else
        delete_vectors := format(
            $delete$with gone as (
                delete from %1$s as d
                using (select %2$s from pg_catalog.jsonb_array_elements($1) as k(key) offset 0) as x
                where %3$s
                returning 1
            )
            select pg_catalog.to_jsonb(pg_catalog.count(*)) from gone$delete$,
            v_destination, v_keys.parsed, v_keys.destination_match);
        blank_vectors := delete_vectors;
        -- As above. A place that is null is that of a row that has changed.
        select array_agg(format(
            $write$with made as (
                insert into %1$s (%2$s, seq, chunk, embedding, model_hash, content_hash)
                select %3$s, x.seq, coalesce(x.chunk, x.prompt), x.vector,
                    pg_catalog.decode($1 operator(pg_catalog.->>) 'model', 'hex'), pg_catalog.decode(x.hash, 'hex')
                from (
                    select k.place operator(pg_catalog.->>) 'hash' as hash, k.place operator(pg_catalog.->>) 'chunk' as chunk,
                        (k.place operator(pg_catalog.->>) 'seq')::pg_catalog.int4 as seq, k.vector, k.prompt, %4$s
                    from (
                        select v.vector, v.prompt, v.place, v.place operator(pg_catalog.->) 'key' as key
                        from %5$s
                    ) as k
                ) as x
                returning 1
            )
            select pg_catalog.to_jsonb(pg_catalog.count(*)) from made$write$,
            v_destination, v_keys.destination_names, v_keys.key_values, v_keys.parsed, w.made) order by w.n)
        into write_vectors
        from unnest(array[
            $made$@extschema@.steadytext_queue as q
                        cross join lateral rows from (
                            pg_catalog.unnest(q.embeddings[($1 operator(pg_catalog.->>) 'first')::pg_catalog.int4 : ($1 operator(pg_catalog.->>) 'last')::pg_catalog.int4]),
                            pg_catalog.unnest(q.prompts[($1 operator(pg_catalog.->>) 'first')::pg_catalog.int4 : ($1 operator(pg_catalog.->>) 'last')::pg_catalog.int4]),
                            pg_catalog.jsonb_array_elements($1 operator(pg_catalog.->) 'places')
                        ) as v(vector, prompt, place)
                        where q.request_id operator(pg_catalog.=) ($1 operator(pg_catalog.->>) 'request')::pg_catalog.uuid
                            and pg_catalog.jsonb_typeof(v.place) operator(pg_catalog.=) 'object'$made$,
            v_kept]) with ordinality as w(made, n);
        select array_agg(format(
            $scan$select pg_catalog.jsonb_build_object('last', (pg_catalog.array_agg(f.key order by f.n desc))[1],
                'keys', pg_catalog.jsonb_agg(f.key) filter (where f.is_orphan), 'count', pg_catalog.count(*))
            from (
                select %1$s as key, not exists (select from %2$s as s where %3$s) as is_orphan, d.steadytext_row_number as n
                from (
                    select %7$s, pg_catalog.row_number() over (order by %4$s) as steadytext_row_number
                    from %5$s as d
                    where d.seq operator(pg_catalog.=) 1 and %6$s
                    order by %4$s
                    limit ($1 operator(pg_catalog.->>) 'limit')::pg_catalog.int8
                ) as d
            ) as f$scan$,
            v_keys.of_destination, v_source, v_keys.both_match, v_keys.destination_order, v_destination, w.condition, v_keys.destination_order)
            order by w.n)
        into scan_destination
        from unnest(array['true', v_keys.destination_behind]) with ordinality as w(condition, n);
    end if;

    select array_agg(format(
        $scan$select pg_catalog.jsonb_build_object('last', (pg_catalog.array_agg(f.key order by f.n desc))[1],
            'rows', pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(f.key, f.hash)) filter (where not f.is_done),
            'all', case when ($1 operator(pg_catalog.->>) 'all')::pg_catalog.bool then pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(f.key, f.hash)) end,
            'count', pg_catalog.count(*))
        from (
            select %1$s as key, h.hash, %2$s as is_done, s.steadytext_row_number as n
            from (
                select s.*, pg_catalog.row_number() over (order by %3$s) as steadytext_row_number
                from %4$s as s
                where %5$s
                order by %3$s
                limit ($1 operator(pg_catalog.->>) 'limit')::pg_catalog.int8
            ) as s
            cross join lateral (select %6$s as hash) as h
        ) as f$scan$,
        v_keys.of_source,
        case when is_column then v_own[2] else format(
            $same$exists (select from %s as d where %s and d.content_hash operator(pg_catalog.=) pg_catalog.decode(h.hash, 'hex'))$same$,
            v_destination, v_keys.both_match) end,
        v_keys.source_order, v_source, w.condition, v_hash) order by w.n)
    into scan_source
    from unnest(array['true', v_keys.source_behind]) with ordinality as w(condition, n);

    if v_definition.index_type <> 'none' and not is_column then
        make_index := steadytext.vectorizer_index(v_destination, 'embedding', v_definition.index_type, v_definition.distance, v_vector_schema);
    end if;
end
$$;
comment on function steadytext.vectorizer_statements(uuid) is
    'Returns the statements that a vectorizer runs on its tables, made from the present catalogs, and the role that runs them; or the problem';
