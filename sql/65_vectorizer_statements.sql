-- The statements that a vectorizer runs on its tables, as the role that owns them. They are made of the catalogs each time, as tables
-- and columns may have been renamed since. Each gets one jsonb, returns one, and is run by steadytext.run_as().
--
-- Invariant: every name is quoted, and every operator has its schema. The values of a key are
-- written by the output functions of their types, as steadytext.note_row() writes them.

create function steadytext.base_type(p_type oid)
returns oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_type oid := p_type;
    v_base oid;
begin
    loop
        select t.typbasetype into v_base from pg_type as t where t.oid = v_type and t.typtype = 'd';
        if v_base is null then
            return v_type;
        end if;
        v_type := v_base;
        v_base := null;
    end loop;
end
$$;
comment on function steadytext.base_type(oid) is 'The type that a domain is made of; another type is its own';

create function steadytext.is_named_object(p_type oid)
returns boolean
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select steadytext.base_type(p_type) = any (array['regclass', 'regtype', 'regproc', 'regprocedure', 'regoper', 'regoperator', 'regrole',
        'regnamespace', 'regconfig', 'regdictionary', 'regcollation']::regtype[]::oid[])
$$;
comment on function steadytext.is_named_object(oid) is
    'Whether values of a type are numbers of objects that are written as their names, which depend on the search path: keys have the numbers';

create function steadytext.key_cast(p_name text, p_type oid)
returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case when steadytext.is_named_object(p_type) then 'pg_catalog.oid::' else '' end || p_name
$$;
comment on function steadytext.key_cast(text, oid) is 'What a text of the JSON array is cast to, to be a value of a key; called for statements of vectorizers';

create function steadytext.key_element(p_value text, p_type oid)
returns text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when steadytext.base_type(p_type) = any (array['int2', 'int4', 'int8', 'float4', 'float8', 'bool', 'date',
            'timestamp', 'timestamptz']::regtype[]::oid[])
        then format('%s::%s', p_value, format_type(steadytext.base_type(p_type), null))
        when steadytext.is_named_object(p_type)
        then format('pg_catalog.format(''%%s'', %s::pg_catalog.oid)', p_value)
        else format('pg_catalog.format(''%%s'', %s)', p_value)
    end
$$;
comment on function steadytext.key_element(text, oid) is
    'An expression for a value of a key as it stands in the JSON array; called for statements of vectorizers';

-- The operator is that by which indexes order the type, with operands of just the types that it has: PostgreSQL would prefer
-- an operator that fits others better, and wherever somebody may create one, that would be somebody else's code.
create function steadytext.key_comparison(p_left text, p_operator text, p_right text, p_type oid)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_base record;
    v_found record;
begin
    select t.oid, t.typcategory, t.typtype into v_base from pg_type as t where t.oid = steadytext.base_type(p_type);
    select o.opcintype, o.opcfamily, n.nspname, p.oprname, c.typtype into v_found
    from pg_opclass as o
    join pg_am as m on m.oid = o.opcmethod and m.amname = 'btree'
    join pg_type as c on c.oid = o.opcintype
    join pg_amop as a on a.amopfamily = o.opcfamily and a.amoplefttype = o.opcintype and a.amoprighttype = o.opcintype
        and a.amopstrategy = case p_operator when '=' then 3 when '>=' then 4 when '>' then 5 end
    join pg_operator as p on p.oid = a.amopopr
    join pg_namespace as n on n.oid = p.oprnamespace
    where o.opcdefault and (
        o.opcintype = v_base.oid
        or o.opcintype = case
            when v_base.typtype = 'e' then 'anyenum'::regtype
            when v_base.typtype = 'r' then 'anyrange'::regtype
            when v_base.typtype = 'm' then 'anymultirange'::regtype
            when v_base.typtype = 'c' then 'record'::regtype
            when v_base.typcategory = 'A' then 'anyarray'::regtype
        end
        or exists (
            select from pg_cast as k
            where k.castsource = v_base.oid and k.casttarget = o.opcintype and k.castmethod = 'b' and k.castcontext = 'i'))
    order by o.opcintype = v_base.oid desc, c.typispreferred desc, o.oid
    limit 1;
    if not found then
        raise exception 'type % has no order for keys', v_base.oid::regtype using errcode = 'undefined_object';
    end if;
    return format('%1$s::%5$s operator(%2$I.%3$s) %4$s::%5$s', p_left, v_found.nspname, v_found.oprname, p_right,
        format_type(case when v_found.typtype = 'p' then v_base.oid else v_found.opcintype end, -1));
end
$$;
comment on function steadytext.key_comparison(text, text, text, oid) is
    'A comparison of two values of a type, by =, >= or >, with the operator of its order; called for statements of vectorizers';

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
    'The pieces of a format in their order: texts, and names of columns or chunk; an error where a name is none of these';

create function steadytext.vectorizer_index(p_table text, p_column text, p_type text, p_distance text, p_schema name)
returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select format('create index on %s using %s (%I %I.%I)', p_table,
        case p_type when 'hnsw' then 'hnsw' else 'ivfflat' end, p_column, p_schema,
        case p_distance when 'cosine' then 'vector_cosine_ops' when 'l2' then 'vector_l2_ops' else 'vector_ip_ops' end)
$$;
comment on function steadytext.vectorizer_index(text, text, text, text, name) is 'The statement that makes the index of a vectorizer';

create function steadytext.vectorizer_statements(
    p_id uuid,
    out owner oid,
    out problem text,
    out is_column boolean,
    out read_rows text,
    out delete_vectors text,
    out present text,
    out write_vectors text,
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
begin
    select v.* into v_definition from @extschema@.steadytext_vectorizers as v where v.id = p_id;
    select p.* into v_place from steadytext.vectorizer_place(p_id) as p;
    owner := v_definition.owner_role::oid;
    problem := v_place.problem;
    if problem is not null then
        return;
    end if;
    if not pg_has_role(owner, 'steadytext_user', 'usage') then
        problem := 'the owner of the table is not a member of steadytext_user';
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

    if not is_column then
        select array_agg(quote_ident(a.attname) order by a.attnum) into v_destination_keys
        from pg_attribute as a
        where a.attrelid = v_place.destination and a.attnum between 1 and cardinality(v_place.key_columns);
    end if;
    select
        -- The values of a key as columns k1, k2, …
        string_agg(format('(k.key operator(pg_catalog.->>) %s)::%s as k%s', k.n - 1, k.type, k.n), ', ' order by k.n) as parsed,
        string_agg(steadytext.key_comparison(format('s.%I', k.name), '=', 'x.k' || k.n, k.oid), ' and ' order by k.n) as source_match,
        string_agg(steadytext.key_comparison('d.' || v_destination_keys[k.n], '=', 'x.k' || k.n, k.oid), ' and ' order by k.n)
            as destination_match,
        string_agg(steadytext.key_comparison('d.' || v_destination_keys[k.n], '=', format('s.%I', k.name), k.oid), ' and ' order by k.n)
            as both_match,
        format('pg_catalog.jsonb_build_array(%s)', string_agg(steadytext.key_element('x.k' || k.n, k.oid), ', ' order by k.n)) as of_parsed,
        format('pg_catalog.jsonb_build_array(%s)', string_agg(steadytext.key_element(format('s.%I', k.name), k.oid), ', ' order by k.n)) as of_source,
        format('pg_catalog.jsonb_build_array(%s)', string_agg(steadytext.key_element('d.' || v_destination_keys[k.n], k.oid), ', ' order by k.n)) as of_destination,
        string_agg(format('s.%I', k.name), ', ' order by k.n) as source_order,
        string_agg('d.' || v_destination_keys[k.n], ', ' order by k.n) as destination_order,
        string_agg(v_destination_keys[k.n], ', ' order by k.n) as destination_names,
        string_agg('x.k' || k.n, ', ' order by k.n) as values,
        -- Keys behind the one in $1, found by the index: k1 >= x1 and (k1 > x1 or (k2 >= x2 and (…))).
        string_agg(format('%s and (%s', steadytext.key_comparison(format('s.%I', k.name), '>=', k.behind, k.oid),
            steadytext.key_comparison(format('s.%I', k.name), '>', k.behind, k.oid)), ' or (' order by k.n)
            || repeat('))', cardinality(v_place.key_columns) - 1) || ')' as source_behind,
        string_agg(format('%s and (%s', steadytext.key_comparison('d.' || v_destination_keys[k.n], '>=', k.behind, k.oid),
            steadytext.key_comparison('d.' || v_destination_keys[k.n], '>', k.behind, k.oid)), ' or (' order by k.n)
            || repeat('))', cardinality(v_place.key_columns) - 1) || ')' as destination_behind
    into v_keys
    from (
        select u.name, u.n, steadytext.key_cast(u.type, a.atttypid) as type, a.atttypid as oid,
            format('($1 operator(pg_catalog.->>) %s)::%s', u.n - 1, steadytext.key_cast(u.type, a.atttypid)) as behind
        from unnest(v_place.key_columns, v_place.key_types) with ordinality as u(name, type, n)
        join pg_attribute as a on a.attrelid = v_place.source and a.attname = u.name and not a.attisdropped
    ) as k;

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
    if v_definition.format is null then
        v_formatted := 'null::pg_catalog.text';
    else
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

    read_rows := format(
        $read$select pg_catalog.jsonb_agg(pg_catalog.jsonb_build_object('key', r.key, 'found', r.hash is not null, 'hash', r.hash, 'same', r.same,
            'chunks', r.chunks, 'texts', r.texts) order by r.n)
        from (
            select x.n, %1$s as key, s.hash, s.same, s.chunks, s.texts
            from (
                select k.n, (k.element operator(pg_catalog.->) 'forced')::pg_catalog.bool as forced, %2$s
                from (
                    select e.n, e.element, e.element operator(pg_catalog.->) 'key' as key
                    from pg_catalog.jsonb_array_elements($1) with ordinality as e(element, n)
                ) as k
            ) as x
            left join lateral (
                select h.hash, h.same, t.chunks, t.texts
                from %3$s as s
                cross join lateral (
                    select g.hash, not x.forced and %4$s as same from (select %5$s as hash) as g
                ) as h
                left join lateral (
                    select pg_catalog.jsonb_agg(c.chunk order by c.seq) as chunks,
                        pg_catalog.jsonb_agg(%6$s order by c.seq) as texts
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
        v_hash, v_formatted, v_chunks, v_keys.source_match);

    -- The rows whose text is still the one that was embedded, by their position in the array.
    present := format(
        $present$select pg_catalog.jsonb_agg(x.n order by x.n)
        from (
            select e.n, e.element operator(pg_catalog.->>) 'hash' as hash, %1$s
            from pg_catalog.jsonb_array_elements($1) with ordinality as e(element, n)
            cross join lateral (select e.element operator(pg_catalog.->) 'key' as key) as k
        ) as x
        join %2$s as s on %3$s
        where %4$s operator(pg_catalog.=) x.hash$present$,
        v_keys.parsed, v_source, v_keys.source_match, v_hash);

    if is_column then
        -- Rows that somebody has locked are left, and told by their positions.
        blank_vectors := format(
            $blank$with keys as materialized (
                select e.n, %3$s
                from pg_catalog.jsonb_array_elements($1) with ordinality as e(key, n)
                cross join lateral (select e.key) as k
            ),
            held as materialized (
                select x.n from keys as x join %1$s as s on %4$s where pg_catalog.num_nonnulls(s.%2$I, s.%5$I) operator(pg_catalog.>) 0
                for no key update of s skip locked
            ),
            gone as (
                update %1$s as s set %2$I = null, %5$I = null
                from keys as x
                join held as h on h.n operator(pg_catalog.=) x.n
                where %4$s
                returning x.n
            )
            select pg_catalog.jsonb_agg(x.n)
            from keys as x
            join %1$s as s on %4$s
            where pg_catalog.num_nonnulls(s.%2$I, s.%5$I) operator(pg_catalog.>) 0 and not exists (select from gone as g where g.n operator(pg_catalog.=) x.n)$blank$,
            v_source, v_place.target_column, v_keys.parsed, v_keys.source_match, v_place.hash_column);
        lockable := format(
            $lockable$with held as (
                select x.n
                from (
                    select e.n, e.element operator(pg_catalog.->>) 'hash' as hash, %1$s
                    from pg_catalog.jsonb_array_elements($1) with ordinality as e(element, n)
                    cross join lateral (select e.element operator(pg_catalog.->) 'key' as key) as k
                ) as x
                join %2$s as s on %3$s
                where %4$s operator(pg_catalog.=) x.hash
                for no key update of s skip locked
            )
            select pg_catalog.jsonb_agg(h.n) from held as h$lockable$,
            v_keys.parsed, v_source, v_keys.source_match, v_hash);
        write_vectors := format(
            $write$with items as materialized (
                select e.n, e.element operator(pg_catalog.->>) 'hash' as hash,
                    (e.element operator(pg_catalog.->>) 'first')::pg_catalog.int4 as first, %1$s
                from pg_catalog.jsonb_array_elements($1 operator(pg_catalog.->) 'items') with ordinality as e(element, n)
                cross join lateral (select e.element operator(pg_catalog.->) 'key' as key) as k
            ),
            vectors as materialized (
                select v.vector, v.n
                from @extschema@.steadytext_queue as q
                cross join lateral pg_catalog.unnest(q.embeddings) with ordinality as v(vector, n)
                where q.request_id operator(pg_catalog.=) ($1 operator(pg_catalog.->>) 'request')::pg_catalog.uuid
            ),
            held as materialized (
                select x.n, x.first
                from items as x
                join %2$s as s on %3$s
                where %4$s operator(pg_catalog.=) x.hash
                for no key update of s skip locked
            ),
            done as (
                update %2$s as s set
                    %5$I = v.vector::%7$s,
                    %6$I = pg_catalog.sha256(pg_catalog.decode(x.hash, 'hex') operator(pg_catalog.||) %8$I.vector_send(v.vector::%7$s))
                        operator(pg_catalog.||) pg_catalog.decode($1 operator(pg_catalog.->>) 'model', 'hex')
                from items as x
                join held as h on h.n operator(pg_catalog.=) x.n
                join vectors as v on v.n operator(pg_catalog.=) h.first
                where %3$s
                returning x.n
            )
            select pg_catalog.jsonb_agg(d.n) from done as d$write$,
            v_keys.parsed, v_source, v_keys.source_match, v_hash, v_place.target_column, v_place.hash_column, v_vector, v_vector_schema);
    else
        delete_vectors := format(
            $delete$with gone as (
                delete from %1$s as d
                using (select %2$s from pg_catalog.jsonb_array_elements($1) as k(key)) as x
                where %3$s
                returning 1
            )
            select pg_catalog.to_jsonb(pg_catalog.count(*)) from gone$delete$,
            v_destination, v_keys.parsed, v_keys.destination_match);
        blank_vectors := delete_vectors;
        write_vectors := format(
            $write$with vectors as materialized (
                select v.vector, v.prompt, v.n
                from @extschema@.steadytext_queue as q
                cross join lateral rows from (pg_catalog.unnest(q.embeddings), pg_catalog.unnest(q.prompts)) with ordinality as v(vector, prompt, n)
                where q.request_id operator(pg_catalog.=) ($1 operator(pg_catalog.->>) 'request')::pg_catalog.uuid
            ),
            made as (
                insert into %1$s (%2$s, seq, chunk, embedding, model_hash, content_hash)
                select %3$s, x.seq, coalesce(x.chunks operator(pg_catalog.->>) (x.seq operator(pg_catalog.-) 1), v.prompt), v.vector,
                    pg_catalog.decode($1 operator(pg_catalog.->>) 'model', 'hex'), pg_catalog.decode(x.hash, 'hex')
                from (
                    select e.element operator(pg_catalog.->>) 'hash' as hash, e.element operator(pg_catalog.->) 'chunks' as chunks,
                        (e.element operator(pg_catalog.->>) 'first')::pg_catalog.int4 operator(pg_catalog.+) q.seq operator(pg_catalog.-) 1 as position,
                        q.seq, %4$s
                    from pg_catalog.jsonb_array_elements($1 operator(pg_catalog.->) 'items') as e(element)
                    cross join lateral (select e.element operator(pg_catalog.->) 'key' as key) as k
                    cross join lateral pg_catalog.generate_series(1, (e.element operator(pg_catalog.->>) 'count')::pg_catalog.int4) as q(seq)
                ) as x
                join vectors as v on v.n operator(pg_catalog.=) x.position
                returning 1
            )
            select pg_catalog.to_jsonb(pg_catalog.count(*)) from made$write$,
            v_destination, v_keys.destination_names, v_keys.values, v_keys.parsed);
        select array_agg(format(
            $scan$select pg_catalog.jsonb_build_object('last', (pg_catalog.array_agg(f.key order by f.n desc))[1],
                'keys', pg_catalog.jsonb_agg(f.key) filter (where f.is_orphan), 'count', pg_catalog.count(*))
            from (
                select %1$s as key, not exists (select from %2$s as s where %3$s) as is_orphan, d.n
                from (
                    select d.*, pg_catalog.row_number() over (order by %4$s) as n
                    from %5$s as d
                    where d.seq operator(pg_catalog.=) 1 and %6$s
                    order by %4$s
                    limit 2000
                ) as d
            ) as f$scan$,
            v_keys.of_destination, v_source, v_keys.both_match, v_keys.destination_order, v_destination, w.condition) order by w.n)
        into scan_destination
        from unnest(array['$1::pg_catalog.jsonb is null', v_keys.destination_behind]) with ordinality as w(condition, n);
    end if;

    select array_agg(format(
        $scan$select pg_catalog.jsonb_build_object('last', (pg_catalog.array_agg(f.key order by f.n desc))[1],
            'rows', pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(f.key, f.hash)) filter (where not f.is_done),
            'all', pg_catalog.jsonb_agg(pg_catalog.jsonb_build_array(f.key, f.hash)), 'count', pg_catalog.count(*))
        from (
            select %1$s as key, h.hash, %2$s as is_done, s.steadytext_row_number as n
            from (
                select s.*, pg_catalog.row_number() over (order by %3$s) as steadytext_row_number
                from %4$s as s
                where %5$s
                order by %3$s
                limit 1000
            ) as s
            cross join lateral (select %6$s as hash) as h
        ) as f$scan$,
        v_keys.of_source,
        case when is_column then v_own[2] else format(
            $same$exists (select from %s as d where %s and d.content_hash operator(pg_catalog.=) pg_catalog.decode(h.hash, 'hex'))$same$,
            v_destination, v_keys.both_match) end,
        v_keys.source_order, v_source, w.condition, v_hash) order by w.n)
    into scan_source
    from unnest(array['$1::pg_catalog.jsonb is null', v_keys.source_behind]) with ordinality as w(condition, n);

    if v_definition.index_type <> 'none' and not is_column then
        make_index := steadytext.vectorizer_index(v_destination, 'embedding', v_definition.index_type, v_definition.distance, v_vector_schema);
    end if;
end
$$;
comment on function steadytext.vectorizer_statements(uuid) is
    'What a vectorizer runs on its tables, made of the catalogs as they are now, and the role that runs it; or what is wrong';
