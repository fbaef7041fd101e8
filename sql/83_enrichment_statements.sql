-- The statements that an enrichment runs on its table, as the role that owns it: as in 65_vectorizer_statements.sql.
--
-- Invariant: every name is quoted, and every operator has its schema.

create function steadytext.enrichment_statements(
    p_id uuid,
    out owner oid,
    out problem text,
    out source oid,
    out read_rows text,
    out present text,
    out read_keys text,
    out lockable text,
    out write_values text,
    out scan_source text[]
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_definition record;
    v_place record;
    v_source text;
    v_keys record;
    v_given text[];
    v_now text[];
    v_hash text;
    v_is_there text;
    v_prompt text;
    v_target text;
    v_value text;
    v_type oid;
begin
    select v.* into v_definition from @extschema@.steadytext_vectorizers as v where v.id = p_id;
    select p.* into v_place from steadytext.vectorizer_place(p_id) as p;
    owner := v_definition.owner_role::oid;
    source := v_place.source::oid;
    problem := steadytext.definition_problem(p_id);
    if problem is null and v_place.target_column is null then
        problem := format('a trigger of table %s is not the one that was made with the enrichment', v_place.source);
    end if;
    if problem is not null then
        return;
    end if;
    select case when c.relkind = 'p' then '' else 'only ' end || v_place.source::text into v_source
    from pg_class as c where c.oid = v_place.source;
    select e.* into v_keys from steadytext.key_expressions(v_place.source, v_place.key_columns, v_place.key_types, null) as e;
    select array_agg(n.given), array_agg(n.name) into v_given, v_now from steadytext.enrichment_names(p_id) as n;
    select format('pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(row(%s)::pg_catalog.text, ''UTF8'')), ''hex'')',
            string_agg(format('s.%I::pg_catalog.text', c.name), ', ' order by c.n)),
        format('pg_catalog.array_to_string(array[%s]::pg_catalog.text[], '''') operator(pg_catalog.~) ''\S''', string_agg(format('s.%I::pg_catalog.text', c.name), ', ' order by c.n))
    into v_hash, v_is_there
    from unnest(v_now) with ordinality as c(name, n);
    select format('pg_catalog.array_to_string(array[%s]::pg_catalog.text[], '''')', string_agg(
        case
            when p.literal is not null then quote_literal(p.literal)
            else format('s.%I::pg_catalog.text', v_now[array_position(v_given, p.name)])
        end, ', ' order by p.n))
    into v_prompt
    from steadytext.format_pieces(v_definition.format, v_given) as p;
    v_target := format('case when s.%1$I is not null then pg_catalog.encode(pg_catalog.sha256(pg_catalog.convert_to(s.%1$I::pg_catalog.text, ''UTF8'')), ''hex'') end',
        v_place.target_column);
    select steadytext.base_type(a.atttypid) into v_type
    from pg_attribute as a
    where a.attrelid = v_place.source and a.attname = v_place.target_column;
    -- A value that is too long for a column with a length is an error, and not cut.
    v_value := case v_type
        when 'text[]'::regtype then
            'case when pg_catalog.jsonb_typeof(e.element operator(pg_catalog.->) ''value'') operator(pg_catalog.=) ''array'' then array(
                select v.value from pg_catalog.jsonb_array_elements_text(e.element operator(pg_catalog.->) ''value'') with ordinality as v(value, n) order by v.n) end'
        when 'varchar'::regtype then 'e.element operator(pg_catalog.->>) ''value'''
        else format('(e.element operator(pg_catalog.->>) ''value'')::%s', format_type(v_type, null))
    end;

    read_rows := format(
        $read$select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('key', %8$s, 'hash', s.hash, 'was', s.was, 'prompt', s.prompt)
            order by x.n)
        from (
            select k.n, %1$s
            from (
                select e.n, e.element operator(pg_catalog.->) 'key' as key
                from pg_catalog.jsonb_array_elements($1) with ordinality as e(element, n)
            ) as k
            offset 0
        ) as x
        left join lateral (
            select %2$s as hash, %3$s as was, case when %4$s then %5$s end as prompt
            from %6$s as s
            where %7$s
        ) as s on true$read$,
        v_keys.parsed, v_hash, v_target, v_is_there, v_prompt, v_source, v_keys.source_match, v_keys.of_parsed);
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
    read_keys := format(
        $keys$select pg_catalog.to_jsonb(pg_catalog.count(x))
        from (
            select %s
            from pg_catalog.jsonb_array_elements($1) as e(element)
            cross join lateral (select e.element operator(pg_catalog.->) 'key' as key) as k
            offset 0
        ) as x$keys$,
        v_keys.parsed);
    -- The rows whose columns, and whose value, are what they were when the prompt was made, and which nobody has locked.
    lockable := format(
        $lockable$with items as materialized (
            select e.n, e.element operator(pg_catalog.->>) 'hash' as hash, e.element operator(pg_catalog.->>) 'was' as was, %1$s
            from pg_catalog.jsonb_array_elements($1) with ordinality as e(element, n)
            cross join lateral (select e.element operator(pg_catalog.->) 'key' as key) as k
        ),
        held as materialized (
            select x.n
            from items as x
            join %2$s as s on %3$s
            where %4$s operator(pg_catalog.=) x.hash and %5$s is not distinct from x.was
            for no key update of s skip locked
        )
        select pg_catalog.jsonb_agg(h.n) from held as h$lockable$,
        v_keys.parsed, v_source, v_keys.source_match, v_hash, v_target);
    write_values := format(
        $write$with items as materialized (
            select e.n, e.element operator(pg_catalog.->>) 'hash' as hash, e.element operator(pg_catalog.->>) 'was' as was,
                %6$s as value, %1$s
            from pg_catalog.jsonb_array_elements($1) with ordinality as e(element, n)
            cross join lateral (select e.element operator(pg_catalog.->) 'key' as key) as k
        ),
        held as materialized (
            select x.n
            from items as x
            join %2$s as s on %3$s
            where %4$s operator(pg_catalog.=) x.hash and %5$s is not distinct from x.was
            for no key update of s skip locked
        ),
        done as (
            update %2$s as s set %7$I = x.value
            from items as x
            join held as h on h.n operator(pg_catalog.=) x.n
            where %3$s
            returning x.n, %5$s as made
        )
        select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(d.n, d.made)) from done as d$write$,
        v_keys.parsed, v_source, v_keys.source_match, v_hash, v_target, v_value, v_place.target_column);
    select array_agg(format(
        $scan$select pg_catalog.jsonb_build_object('last', (pg_catalog.array_agg(f.key order by f.n desc))[1],
            'rows', pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(f.key, f.hash, f.was)), 'count', pg_catalog.count(*))
        from (
            select %1$s as key, %2$s as hash, %3$s as was, pg_catalog.row_number() over (order by %4$s) as n
            from %5$s as s
            where %6$s
            order by %4$s
            limit ($1 operator(pg_catalog.->>) 'limit')::pg_catalog.int8
        ) as f$scan$,
        v_keys.of_source, v_hash, v_target, v_keys.source_order, v_source, w.condition) order by w.n)
    into scan_source
    from unnest(array['true', v_keys.source_behind]) with ordinality as w(condition, n);
end
$$;
comment on function steadytext.enrichment_statements(uuid) is
    'Returns the statements that an enrichment runs on its table, made from the present catalogs, and the role that runs them; or the problem';
