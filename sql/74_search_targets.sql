-- Targets of searches: the tables of a vectorizer, the statements that read them, and the index on words.
--
-- A filter is the caller's own SQL, so the one statement that has it in it runs on the caller's search path and with the
-- caller's rights. All names in that statement are written with their schemas, operators too, so that nothing but the filter
-- depends on the path. Everything else runs on the path of its function, as everywhere.

create type steadytext.search_target as (
    source text,
    target text,
    is_chunked boolean,
    join_condition text,
    key text,
    embedding name,
    embedding_type text,
    operator text,
    texts text,
    shown_texts text,
    omitted text[]
);
comment on type steadytext.search_target is
    'Access to the rows of a vectorizer: its tables; the condition that joins rows of the chunks, steadytext_c, and of the source, steadytext_s; the key as jsonb; the column with the vectors, its type and its operator; the text of a row as an index has it, and as PostgreSQL shows it in the definition of that index; columns of the source that are left out of a returned row, as they hold vectors';

create function steadytext.has_code_of_users(p_table regclass)
returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    with recursive types (oid) as (
        select a.atttypid from pg_attribute as a where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
        union
        select n.oid
        from types as t
        join pg_type as y on y.oid = t.oid
        cross join lateral (
            select y.typbasetype union all select y.typelem
            union all select a.atttypid from pg_attribute as a where a.attrelid = y.typrelid and a.attnum > 0 and not a.attisdropped
            union all select r.rngsubtype from pg_range as r where y.oid in (r.rngtypid, r.rngmultitypid)
        ) as n(oid)
        where n.oid <> 0::oid
    )
    select exists (
        select
        from types as t
        join pg_cast as c on c.castsource = t.oid
        -- Casts that came with PostgreSQL, or with an extension, are those of administrators.
        where c.castfunc >= 16384::oid
            and not exists (
                select from pg_depend as d
                where d.classid = 'pg_cast'::regclass and d.objid = c.oid and d.deptype = 'e'))
$$;
comment on function steadytext.has_code_of_users(regclass) is
    'Returns whether a value of a table may be converted by a function that is not one of PostgreSQL''s or of an extension''s: it would run with the rights of the role that reads the table by a search';

create function steadytext.find_search_target(p_vectorizer text)
returns steadytext.search_target
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_definition record;
    v_place record;
    v_target regclass;
    v_type record;
    v_shown text;
    v_found steadytext.search_target;
begin
    select v.* into v_definition
    from @extschema@.steadytext_vectorizers as v
    where v.id = steadytext.definition_id(p_vectorizer, 'vectorizer');
    select p.* into v_place from steadytext.vectorizer_place(v_definition.id) as p;
    v_found.is_chunked := v_place.target_column is null;
    v_target := case when v_found.is_chunked then v_place.destination else v_place.source end;
    if v_place.source is null or v_place.key_columns is null or v_target is null or v_place.source_columns is null and not v_found.is_chunked then
        raise exception 'vectorizer "%" has nothing to search in: %', p_vectorizer, v_place.problem
            using errcode = 'object_not_in_prerequisite_state',
                hint = 'steadytext_vectorizer_status shows its problem. Alter it, or drop it and make another one.';
    end if;
    if steadytext.has_code_of_users(v_place.source) or steadytext.has_code_of_users(v_target) then
        raise exception 'table % has a type with a cast of somebody''s own', v_place.source
            using errcode = 'object_not_in_prerequisite_state', hint = 'It would run with the rights of whoever searches.';
    end if;
    if v_found.is_chunked and not has_any_column_privilege(v_target::oid, 'select') then
        raise exception 'permission denied for table %', v_target
            using errcode = 'insufficient_privilege', hint = format('It has the vectors of vectorizer "%s": its owner says GRANT SELECT ON %s TO %I.', p_vectorizer, v_target, current_user);
    end if;
    -- As vectorizers read it: rows of tables that inherit from it are not its own.
    select case when c.relkind = 'p' then '' else 'only ' end || v_place.source::text into v_found.source
    from pg_class as c where c.oid = v_place.source::oid;
    v_found.target := v_target::text;
    v_found.embedding := coalesce(v_place.target_column, 'embedding');

    -- The first columns of the chunks are the key, whatever they are called.
    select string_agg(steadytext.key_comparison(format('steadytext_c.%I', t.attname), '=', format('steadytext_s.%I', k.name), a.atttypid),
            ' and ' order by k.n),
        format('pg_catalog.jsonb_build_object(%s)',
            string_agg(format('%1$L, steadytext_s.%1$I', k.name), ', ' order by k.n))
    into v_found.join_condition, v_found.key
    from unnest(v_place.key_columns) with ordinality as k(name, n)
    join pg_attribute as a on a.attrelid = v_place.source::oid and a.attname = k.name
    left join pg_attribute as t on t.attrelid = v_target::oid and t.attnum = k.n;

    select n.nspname, t.typname into v_type
    from pg_attribute as a
    join pg_type as t on t.oid = a.atttypid
    join pg_namespace as n on n.oid = t.typnamespace
    join pg_depend as d on d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
    join pg_extension as e on d.refclassid = 'pg_extension'::regclass and e.oid = d.refobjid and e.extname = 'vector'
    where a.attrelid = v_target::oid and a.attname = v_found.embedding and not a.attisdropped;
    if not found then
        raise exception 'column "%" of table % does not exist, or is no vector', v_found.embedding, v_target
            using errcode = 'undefined_column', hint = 'Drop the vectorizer and make another one.';
    end if;
    v_found.embedding_type := format('%I.%I', v_type.nspname, v_type.typname);
    v_found.operator := format('operator(%I.%s)', v_type.nspname,
        case v_definition.distance when 'l2' then '<->' when 'inner_product' then '<#>' else '<=>' end);
    v_found.omitted := array_remove(array(
        select a.attname::text
        from pg_attribute as a
        join pg_depend as d on d.classid = 'pg_type'::regclass and d.objid = a.atttypid and d.deptype = 'e'
        join pg_extension as e on d.refclassid = 'pg_extension'::regclass and e.oid = d.refobjid and e.extname = 'vector'
        where a.attrelid = v_place.source::oid and a.attnum > 0 and not a.attisdropped
        order by a.attnum) || v_place.hash_column, null);
    -- Written so that it may be in an index.
    v_found.texts := case when v_found.is_chunked then 'chunk' else (
        select string_agg(format('coalesce(%I::pg_catalog.text, '''')', w.name),
            ' operator(pg_catalog.||) E''\n\n'' operator(pg_catalog.||) ' order by w.n)
        from unnest(v_place.source_columns) with ordinality as w(name, n)) end;
    v_found.shown_texts := 'chunk';
    for v_shown in
        select format('COALESCE(%s, ''''::text)', case when a.atttypid = 'text'::regtype then quote_ident(w.name) else format('(%I)::text', w.name) end)
        from unnest(v_place.source_columns) with ordinality as w(name, n)
        join pg_attribute as a on a.attrelid = v_place.source::oid and a.attname = w.name and not a.attisdropped
        where not v_found.is_chunked
        order by w.n
    loop
        v_found.shown_texts := case when v_found.shown_texts = 'chunk' then v_shown
            else format(E'((%s || \'\n\n\'::text) || %s)', v_found.shown_texts, v_shown) end;
    end loop;
    return v_found;
end
$$;
comment on function steadytext.find_search_target(text) is 'Returns the present access to the rows of a vectorizer; called by searches';

-- An index on the words of other columns, or of some of them, is somebody's own: searches do not use it.
create function steadytext.text_index(p_target regclass, p_shown_texts text, out name regclass, out config text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select i.indexrelid::regclass, substring(pg_get_indexdef(i.indexrelid, 1, false) from '^to_tsvector\(''(.*?)''::regconfig, ')
    from pg_index as i
    join pg_class as c on c.oid = i.indexrelid
    join pg_am as m on m.oid = c.relam
    where i.indrelid = p_target and i.indisvalid and i.indpred is null and m.amname = 'gin'
        and i.indnkeyatts = 1 and pg_get_indexdef(i.indexrelid, 1, false) ~ '^to_tsvector\(''.*?''::regconfig, '
        and regexp_replace(pg_get_indexdef(i.indexrelid, 1, false), '^to_tsvector\(''.*?''::regconfig, ', '') = p_shown_texts || ')'
    order by i.indexrelid
    limit 1
$$;
comment on function steadytext.text_index(regclass, text) is
    'Returns the index on the words of the texts of a vectorizer, which PostgreSQL shows so, and its text search configuration; no row where there is none';

create function @extschema@.steadytext_create_text_index(vectorizer text, config text default null)
returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_target steadytext.search_target := steadytext.find_search_target(vectorizer);
    v_config regconfig;
    v_there record;
    v_name regclass;
begin
    begin
        v_config := coalesce(config::regconfig, get_current_ts_config());
    exception when undefined_object or invalid_name or syntax_error then
        raise exception 'text search configuration "%" does not exist', left(config, 127)
            using errcode = 'undefined_object', hint = format('There are %s.', (
                select string_agg(c.cfgname::text, ', ' order by c.cfgname) from (select c.cfgname from pg_ts_config as c order by c.cfgname limit 50) as c));
    end;
    select * into v_there from steadytext.text_index(v_target.target::regclass, v_target.shown_texts);
    v_name := v_there.name;
    if v_name is not null and config is not null and v_there.config::regconfig::oid <> v_config::oid then
        raise exception 'index % has the words by configuration "%"', v_name, v_there.config
            using errcode = 'duplicate_object', hint = 'Drop it first.';
    end if;
    if v_name is null then
        execute format('create index on %s using gin (to_tsvector(%L::regconfig, %s))', v_target.target, v_config, v_target.texts);
        v_name := (steadytext.text_index(v_target.target::regclass, v_target.shown_texts)).name;
    end if;
    return v_name;
end
$$;
comment on function @extschema@.steadytext_create_text_index(text, text) is
    'Creates the index on words that steadytext_hybrid_search() reads, unless it exists, and returns its name; for the owner of the table with the vectors';

-- The rows that a search may return: FROM, with a filter that sees the columns of the source and no others. A filter
-- is one expression (steadytext.check_filter); the end of the line ends a comment in it.
create function steadytext.search_rows(p_target steadytext.search_target, p_filter text)
returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_source text := format('(select * from %s where %s)', p_target.source, coalesce('(' || p_filter || E'\n)', 'true'));
begin
    if p_target.is_chunked then
        return format('%s as steadytext_c join %s as steadytext_s on %s', p_target.target, v_source, p_target.join_condition);
    end if;
    -- One and the same row under both names.
    return format('%s as steadytext_s cross join lateral (select steadytext_s.%2$I as %2$I, %s as chunk, 0 as seq) as steadytext_c',
        v_source, p_target.embedding, p_target.texts);
end
$$;
comment on function steadytext.search_rows(steadytext.search_target, text) is
    'Returns the FROM of a search: rows of chunks and source under the names steadytext_c and steadytext_s';

create function steadytext.search_statement(p_target steadytext.search_target, p_filter text, p_exact boolean)
returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_distance text := format('steadytext_c.%I %s $1::%s', p_target.embedding, p_target.operator, p_target.embedding_type);
begin
    -- $1 is the vector as a text, $2 how many rows. The sum is what keeps an index on the distance from being used.
    return format(
        'select %s as key, steadytext_c.chunk, %s as distance, pg_catalog.to_jsonb(steadytext_s) %s as row, steadytext_c.seq
        from %s
        where steadytext_c.%I is not null
        order by %s
        limit $2',
        p_target.key, v_distance,
        case when p_target.omitted <> '{}' then format('operator(pg_catalog.-) %L::pg_catalog.text[]', p_target.omitted) end,
        steadytext.search_rows(p_target, p_filter), p_target.embedding,
        case when p_exact then format('(%s) operator(pg_catalog.+) 0::double precision', v_distance) else v_distance end);
end
$$;
comment on function steadytext.search_statement(steadytext.search_target, text, boolean) is
    'Returns the statement that finds the nearest rows of a vectorizer: by its index, or exactly, by looking at all rows that the filter lets through';

create function steadytext.hybrid_statement(p_target steadytext.search_target, p_filter text, p_exact boolean, p_config text)
returns text
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_words text := format('pg_catalog.to_tsvector(%L::pg_catalog.regconfig, steadytext_c.chunk)', p_config);
begin
    -- $1 and $2 are those of the search for the nearest, $3 the words, $4 and $5 k and alpha of the score, $6 how many rows.
    return format(
        'with dense as materialized (
            select d.*, pg_catalog.row_number() over (order by d.distance, d.key, d.seq)::integer as rank from (%s) as d
        ),
        sparse as materialized (
            select w.*, pg_catalog.row_number() over (order by w.weight desc, w.key, w.seq)::integer as rank
            from (
                select %s as key, steadytext_c.chunk, pg_catalog.ts_rank(%3$s, $3::pg_catalog.tsquery, 1) as weight,
                    pg_catalog.to_jsonb(steadytext_s) %s as row, steadytext_c.seq
                from %s
                where %3$s operator(pg_catalog.@@) $3::pg_catalog.tsquery
                order by weight desc
                limit $2
            ) as w
        )
        select f.key, f.chunk, f.dense_rank, f.sparse_rank, f.score, f.row,
            (select pg_catalog.count(*) from dense) as dense_count
        from (
            select coalesce(d.key, w.key) as key, coalesce(d.seq, w.seq) as seq, coalesce(d.chunk, w.chunk) as chunk,
                d.rank as dense_rank, w.rank as sparse_rank, coalesce(d.row, w.row) as row,
                coalesce($5 operator(pg_catalog./) ($4 operator(pg_catalog.+) d.rank)::double precision, 0::double precision)
                    operator(pg_catalog.+)
                coalesce((1::double precision operator(pg_catalog.-) $5)
                    operator(pg_catalog./) ($4 operator(pg_catalog.+) w.rank)::double precision, 0::double precision) as score
            from dense as d
            full join sparse as w
                on d.key operator(pg_catalog.=) w.key and d.seq operator(pg_catalog.=) w.seq
        ) as f
        order by f.score desc, f.dense_rank, f.sparse_rank
        limit $6',
        steadytext.search_statement(p_target, p_filter, p_exact), p_target.key, v_words,
        case when p_target.omitted <> '{}' then format('operator(pg_catalog.-) %L::pg_catalog.text[]', p_target.omitted) end,
        steadytext.search_rows(p_target, p_filter));
end
$$;
comment on function steadytext.hybrid_statement(steadytext.search_target, text, boolean, text) is
    'Returns the statement that finds rows by their vectors and by their words, and joins both lists by the ranks in them';
