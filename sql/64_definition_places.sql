-- The ties between a definition, a vectorizer or an enrichment, and its tables: triggers that note what
-- changes, and that are read to find the tables again; and the form of the keys of its rows in SQL.
--
-- On the source there are three, and one for each column that is filled. The first fires for rows that come
-- and go; its list of columns, which PostgreSQL keeps up to date, says which columns are the key, which are
-- read, and which hold what is made of them: the vector and what it was made from, or the value of an
-- enrichment. It goes with any of these columns, and the others stay: by them the table is still known. The
-- second fires for rows that change, whatever the statement says it changes: triggers of the user's may
-- change more. The third one fires when the table is emptied. The triggers of columns that are filled never
-- fire: they say which these are when the first one has gone. On the table of the vectors there is one, for
-- when that is emptied. Row triggers are what PostgreSQL gives to partitions, now and later, and what logical
-- replication fires.

create function steadytext.note_row()
returns trigger
language c volatile
as 'MODULE_PATHNAME', 'note_row_wrapper';
comment on function steadytext.note_row() is
    'Notes the key of a row of a vectorized table that was inserted, changed or deleted. Arguments: the id of the definition; then, of the trigger that has all columns, the number of key columns and the number of columns that are embedded';

create function steadytext.note_destination()
returns trigger
language c volatile
as 'MODULE_PATHNAME', 'note_row_wrapper';
comment on function steadytext.note_destination() is
    'Notes that vectors were deleted by TRUNCATE. Argument: the id of the definition';

create function steadytext.mark_column()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    return null;
end
$$;
comment on function steadytext.mark_column() is
    'Does nothing, and never fires: its triggers record the columns that a definition fills. Arguments: the id of the definition; filled, or hashed';

create function steadytext.vectorizer_place(
    p_id uuid,
    out source regclass,
    out key_columns text[],
    out key_types text[],
    out source_columns text[],
    out target_column text,
    out hash_column text,
    out destination regclass,
    out problem text,
    out advice text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_definition record;
    v_link record;
    v_columns text[];
    v_types text[];
    v_keys integer;
    v_embedded integer;
begin
    select v.owner_role::oid as owner, v.source, v.destination, v.name, v.kind into v_definition
    from @extschema@.steadytext_vectorizers as v
    where v.id = p_id;
    if not found then
        problem := 'the definition is gone';
        return;
    end if;
    -- A trigger on any table may name any definition: only one on a table of the definition's owner counts.
    for v_link in
        select t.tgrelid, t.tgattr::int2[] as columns, string_to_array(encode(t.tgargs, 'escape'), '\000') as args,
            t.tgenabled, c.relowner
        from pg_depend as d
        join pg_trigger as t on t.oid = d.objid
        join pg_class as c on c.oid = t.tgrelid
        where d.refclassid = 'pg_proc'::regclass and d.refobjid = 'steadytext.note_row()'::regprocedure
            and d.classid = 'pg_trigger'::regclass
            and t.tgparentid = 0::oid and t.tgnargs = 3 and substr(t.tgargs, 1, 36) = convert_to(p_id::text, 'UTF8')
        order by c.relowner = v_definition.owner desc, t.oid
    loop
        if v_link.relowner <> v_definition.owner then
            problem := format('table %s belongs to another role than the vectorizer', v_link.tgrelid::regclass);
            advice := format('ALTER TABLE … OWNER TO %I, or, by an administrator, update steadytext_vectorizers set owner_role = %L where name = %L and kind = %L',
                pg_get_userbyid(v_definition.owner), pg_get_userbyid(v_link.relowner), v_definition.name, v_definition.kind);
            return;
        end if;
        if v_link.args[2] !~ '^[0-9]{1,4}$' or v_link.args[3] !~ '^[0-9]{1,4}$' then
            problem := format('a trigger of table %s is not the one that was made with the vectorizer', v_link.tgrelid::regclass);
            advice := 'drop that trigger';
            return;
        end if;
        source := v_link.tgrelid::regclass;
        v_keys := v_link.args[2];
        v_embedded := v_link.args[3];
        select array_agg(a.attname::text order by u.n), array_agg(format_type(a.atttypid, a.atttypmod) order by u.n)
        into v_columns, v_types
        from unnest(v_link.columns) with ordinality as u(number, n)
        join pg_attribute as a on a.attrelid = v_link.tgrelid and a.attnum = u.number;
        key_columns := v_columns[1 : v_keys];
        key_types := v_types[1 : v_keys];
        source_columns := v_columns[v_keys + 1 : v_keys + v_embedded];
        target_column := v_columns[v_keys + v_embedded + 1];
        hash_column := v_columns[v_keys + v_embedded + 2];
        if v_link.tgenabled in ('D', 'R') then
            problem := format('the triggers of table %s are disabled', source);
            advice := format('ALTER TABLE %s ENABLE TRIGGER USER', source);
        end if;
        exit;
    end loop;
    if source is null then
        -- The other triggers list no columns, and are there though one of these was dropped. Another key, or another column to read, is for
        -- who alters the definition.
        select t.tgrelid::regclass into source
        from pg_depend as d
        join pg_trigger as t on t.oid = d.objid
        join pg_class as c on c.oid = t.tgrelid
        where d.refclassid = 'pg_proc'::regclass and d.refobjid = 'steadytext.note_row()'::regprocedure
            and d.classid = 'pg_trigger'::regclass
            and t.tgparentid = 0::oid and substr(t.tgargs, 1, 36) = convert_to(p_id::text, 'UTF8') and c.relowner = v_definition.owner
        order by t.oid
        limit 1;
        problem := case
            when source is null then format('table %s is gone, or its triggers are', v_definition.source)
            else format('a column of table %s that is read or filled was dropped', source)
        end;
        advice := case
            when source is null then format('steadytext_drop_%s(%L) ends it, and steadytext_create_%1$s() makes another one', v_definition.kind, v_definition.name)
            when v_definition.kind = 'vectorizer' then format('steadytext_alter_vectorizer(%L, columns => …) names others', v_definition.name)
            else format('steadytext_alter_enrichment(%L, prompt => …) names others', v_definition.name)
        end;
        key_columns := steadytext.row_key(source);
        select array_agg(format_type(a.atttypid, a.atttypmod) order by k.n) into key_types
        from unnest(key_columns) with ordinality as k(name, n)
        join pg_attribute as a on a.attrelid = source and a.attname = k.name and not a.attisdropped;
        -- The filled columns are those that the trigger lists, which is dropped with them. A column of that name could be somebody's own, made anew
        -- since.
        select max(a.attname::text) filter (where substr(t.tgargs, 38, 6) = 'filled'::bytea),
            max(a.attname::text) filter (where substr(t.tgargs, 38, 6) = 'hashed'::bytea)
        into target_column, hash_column
        from pg_depend as d
        join pg_trigger as t on t.oid = d.objid
        join pg_attribute as a on a.attrelid = t.tgrelid and a.attnum = any (t.tgattr::int2[])
        where d.refclassid = 'pg_proc'::regclass and d.refobjid = 'steadytext.mark_column()'::regprocedure
            and d.classid = 'pg_trigger'::regclass
            and t.tgparentid = 0::oid and t.tgnargs = 2 and t.tgrelid = source::oid
            and substr(t.tgargs, 1, 36) = convert_to(p_id::text, 'UTF8');
        if v_definition.kind = 'enrichment' and source is not null and target_column is null then
            advice := format('its values are gone: steadytext_drop_enrichment(%L) ends it', v_definition.name);
        end if;
    end if;
    if v_definition.destination is not null then
        select t.tgrelid::regclass into destination
        from pg_depend as d
        join pg_trigger as t on t.oid = d.objid
        join pg_class as c on c.oid = t.tgrelid
        where d.refclassid = 'pg_proc'::regclass and d.refobjid = 'steadytext.note_destination()'::regprocedure
            and d.classid = 'pg_trigger'::regclass
            and substr(t.tgargs, 1, 36) = convert_to(p_id::text, 'UTF8') and c.relowner = v_definition.owner
        order by t.oid
        limit 1;
        if destination is null then
            advice := coalesce(advice, format(
                'ALTER TABLE … OWNER TO %I, or, where it is gone, steadytext_drop_vectorizer(%L) and steadytext_create_vectorizer()',
                pg_get_userbyid(v_definition.owner), v_definition.name));
            problem := coalesce(problem,
                format('the table of the vectors, %s, is gone or belongs to another role', v_definition.destination));
        end if;
    end if;
end
$$;
comment on function steadytext.vectorizer_place(uuid) is
    'Returns the tables and columns that a definition reads and writes, under their present names, the columns of the key and those that are read in the order of the definition, and, where there is a problem, a description of it and advice. Tables that are gone are NULL, as are the columns that are read where one that was needed was dropped';

create function steadytext.definition_problem(p_id uuid)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select coalesce(
            p.problem || coalesce(': ' || p.advice, ''),
            case when not pg_has_role(v.owner_role::oid, 'steadytext_user', 'usage')
                then format('the owner of the table is not a member of steadytext_user: GRANT steadytext_user TO %I', pg_get_userbyid(v.owner_role::oid)) end,
            (select t.problem || ': ' || t.advice from steadytext.silent_trigger(v.id, p.source::oid) as t),
            steadytext.cast_of_others(p.source::oid,
                p.key_columns || p.source_columns || case when v.kind = 'enrichment' then p.target_column end, v.owner_role::oid))
        from @extschema@.steadytext_vectorizers as v
        cross join steadytext.vectorizer_place(v.id) as p
        where v.id = p_id);
end
$$;
comment on function steadytext.definition_problem(uuid) is
    'Returns why nothing can be done for a definition, with advice; NULL where it can. Called by the steps, and where definitions are shown';

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
comment on function steadytext.base_type(oid) is 'Returns the type that a domain is based on; for any other type, the type itself';

create function steadytext.is_named_object(p_type oid)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return steadytext.base_type(p_type) = any (array['regclass', 'regtype', 'regproc', 'regprocedure', 'regoper', 'regoperator', 'regrole',
        'regnamespace', 'regconfig', 'regdictionary', 'regcollation']::regtype[]::oid[]);
end
$$;
comment on function steadytext.is_named_object(oid) is
    'Returns whether values of a type are OIDs of objects that are written as their names, which depend on the search path: keys have the OIDs';

create function steadytext.key_cast(p_name text, p_type oid)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return case when steadytext.is_named_object(p_type) then 'pg_catalog.oid::' else '' end || p_name;
end
$$;
comment on function steadytext.key_cast(text, oid) is 'Returns the type that a text of the JSON array is cast to, to be a value of a key; called for statements of vectorizers';

create function steadytext.key_element(p_value text, p_type oid)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return case
        when steadytext.base_type(p_type) = any (array['int2', 'int4', 'int8', 'float4', 'float8', 'bool', 'date',
            'timestamp', 'timestamptz']::regtype[]::oid[])
        then format('%s::%s', p_value, format_type(steadytext.base_type(p_type), null))
        when steadytext.is_named_object(p_type)
        then format('pg_catalog.format(''%%s'', %s::pg_catalog.oid)', p_value)
        else format('pg_catalog.format(''%%s'', %s)', p_value)
    end;
end
$$;
comment on function steadytext.key_element(text, oid) is
    'Returns an expression for a value of a key as it stands in the JSON array; called for statements of vectorizers';

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
        raise exception 'type % has no order for keys', v_base.oid::regtype
            using errcode = 'undefined_object', hint = 'Keys are compared by a default operator class of btree; use a key of another type.';
    end if;
    return format('%1$s::%5$s operator(%2$I.%3$s) %4$s::%5$s', p_left, v_found.nspname, v_found.oprname, p_right,
        format_type(case when v_found.typtype = 'p' then v_base.oid else v_found.opcintype end, -1));
end
$$;
comment on function steadytext.key_comparison(text, text, text, oid) is
    'Returns a comparison of two values of a type, by =, >= or >, with the operator of its order; called for statements of vectorizers';

create function steadytext.key_expressions(
    p_source regclass,
    p_keys text[],
    p_types text[],
    p_destination_keys text[],
    out parsed text,
    out source_match text,
    out destination_match text,
    out both_match text,
    out of_parsed text,
    out of_source text,
    out of_destination text,
    out source_order text,
    out destination_order text,
    out destination_names text,
    out key_values text,
    out source_behind text,
    out destination_behind text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    select
        -- The values of a key as columns k1, k2, …
        string_agg(format('(k.key operator(pg_catalog.->>) %s)::%s as k%s', k.n - 1, k.type, k.n), ', ' order by k.n),
        string_agg(steadytext.key_comparison('s.' || k.source, '=', 'x.k' || k.n, k.oid), ' and ' order by k.n),
        string_agg(steadytext.key_comparison('d.' || k.destination, '=', 'x.k' || k.n, k.oid), ' and ' order by k.n),
        string_agg(steadytext.key_comparison('d.' || k.destination, '=', 's.' || k.source, k.oid), ' and ' order by k.n),
        format('pg_catalog.jsonb_build_array(%s)', string_agg(steadytext.key_element('x.k' || k.n, k.oid), ', ' order by k.n)),
        format('pg_catalog.jsonb_build_array(%s)', string_agg(steadytext.key_element('s.' || k.source, k.oid), ', ' order by k.n)),
        format('pg_catalog.jsonb_build_array(%s)', string_agg(steadytext.key_element('d.' || k.destination, k.oid), ', ' order by k.n)),
        string_agg('s.' || k.source, ', ' order by k.n),
        string_agg('d.' || k.destination, ', ' order by k.n),
        string_agg(k.destination, ', ' order by k.n),
        string_agg('x.k' || k.n, ', ' order by k.n),
        -- Keys behind the one in $1, found by the index: k1 >= x1 and (k1 > x1 or (k2 >= x2 and (…))).
        string_agg(format('%s and (%s', steadytext.key_comparison('s.' || k.source, '>=', k.behind, k.oid),
            steadytext.key_comparison('s.' || k.source, '>', k.behind, k.oid)), ' or (' order by k.n)
            || repeat('))', cardinality(p_keys) - 1) || ')',
        string_agg(format('%s and (%s', steadytext.key_comparison('d.' || k.destination, '>=', k.behind, k.oid),
            steadytext.key_comparison('d.' || k.destination, '>', k.behind, k.oid)), ' or (' order by k.n)
            || repeat('))', cardinality(p_keys) - 1) || ')'
    into parsed, source_match, destination_match, both_match, of_parsed, of_source, of_destination, source_order, destination_order,
        destination_names, key_values, source_behind, destination_behind
    from (
        select quote_ident(u.name) as source, p_destination_keys[u.n] as destination, u.n, steadytext.key_cast(u.type, a.atttypid) as type,
            a.atttypid as oid,
            format('($1 operator(pg_catalog.->) ''after'' operator(pg_catalog.->>) %s)::%s', u.n - 1, steadytext.key_cast(u.type, a.atttypid)) as behind
        from unnest(p_keys, p_types) with ordinality as u(name, type, n)
        join pg_attribute as a on a.attrelid = p_source and a.attname = u.name and not a.attisdropped
    ) as k;
end
$$;
comment on function steadytext.key_expressions(regclass, text[], text[], text[]) is
    'Returns the expressions about the key for the statements of a definition: of the source, s, of the table of the vectors, d, of keys that were read from JSON, x, and of the key in $1 behind which a search goes on';

create function steadytext.row_key(p_source regclass)
returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select array_agg(a.attname::text order by k.n)
        from (
            select i.indkey, i.indnkeyatts
            from pg_index as i
            where i.indrelid = p_source and i.indisunique and i.indisvalid and i.indimmediate and i.indpred is null and i.indexprs is null
                and not exists (
                    select from unnest(i.indkey::int2[]) with ordinality as c(number, n)
                    join pg_attribute as a on a.attrelid = p_source and a.attnum = c.number
                    where c.n <= i.indnkeyatts and not a.attnotnull)
            order by i.indisprimary desc, i.indnkeyatts, i.indexrelid
            limit 1
        ) as i
        cross join unnest(i.indkey::int2[]) with ordinality as k(number, n)
        join pg_attribute as a on a.attrelid = p_source and a.attnum = k.number
        where k.n <= i.indnkeyatts);
end
$$;
comment on function steadytext.row_key(regclass) is
    'Returns the columns that identify a row of a table: of the primary key, or of a unique index over columns that are NOT NULL';

-- Triggers see no values of columns that PostgreSQL computes whenever they are read, as it does by default from version 18 on.
create function steadytext.refuse_virtual_column(p_source regclass, p_column text)
returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (
        select from pg_attribute as a where a.attrelid = p_source and a.attname = p_column and not a.attisdropped and a.attgenerated = 'v')
    then
        raise exception 'column "%" of table % is generated when it is read, so that nobody sees it change', left(p_column, 63), p_source
            using errcode = 'feature_not_supported', hint = 'Make it GENERATED ALWAYS AS (…) STORED, or name the columns that it is made of.';
    end if;
end
$$;
comment on function steadytext.refuse_virtual_column(regclass, text) is 'Refuses a column whose changes no trigger sees; called where definitions are made and altered';

create function steadytext.vectorizer_trigger(p_id uuid, p_what text)
returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select format('steadytext_%s_%s', left(p_id::text, 8), p_what)
$$;
comment on function steadytext.vectorizer_trigger(uuid, text) is 'Returns the name of a trigger that a definition puts on a table; it may be renamed';

-- The columns of the first one are what a definition knows its table by: steadytext.vectorizer_place().
create function steadytext.make_definition_triggers(p_id uuid, p_source regclass, p_keys text[], p_columns text[], p_filled text[])
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_what text;
begin
    execute format(
        'create trigger %I after insert or delete or update of %s on %s for each row execute function steadytext.note_row(%L, %s, %s)',
        steadytext.vectorizer_trigger(p_id, 'rows'),
        (select string_agg(quote_ident(c.name), ', ' order by c.n) from unnest(p_keys || p_columns || p_filled) with ordinality as c(name, n)),
        p_source, p_id, cardinality(p_keys), cardinality(p_columns));
    execute format('create trigger %I after update on %s for each row execute function steadytext.note_row(%L)',
        steadytext.vectorizer_trigger(p_id, 'updates'), p_source, p_id);
    execute format('create trigger %I after truncate on %s for each statement execute function steadytext.note_row(%L)',
        steadytext.vectorizer_trigger(p_id, 'truncate'), p_source, p_id);
    foreach v_what in array (array['filled', 'hashed'])[1 : cardinality(p_filled)] loop
        execute format(
            'create trigger %I after update of %I on %s for each statement when (false) execute function steadytext.mark_column(%L, %L)',
            steadytext.vectorizer_trigger(p_id, v_what), p_filled[case v_what when 'filled' then 1 else 2 end], p_source, p_id, v_what);
    end loop;
    foreach v_what in array array['rows', 'updates', 'truncate'] || (array['filled', 'hashed'])[1 : cardinality(p_filled)] loop
        execute format('alter trigger %I on %s depends on extension pg_steadytext', steadytext.vectorizer_trigger(p_id, v_what), p_source);
    end loop;
end
$$;
comment on function steadytext.make_definition_triggers(uuid, regclass, text[], text[], text[]) is
    'Creates the triggers of a definition on its table, with the columns of the key, the columns that are read and the columns that are filled';

create function steadytext.definition_trigger_drops(p_id uuid, p_relations regclass[])
returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Whatever they are called now.
    select format('drop trigger %I on %s', t.tgname, t.tgrelid::regclass)
    from pg_trigger as t
    where t.tgrelid = any (p_relations::oid[]) and t.tgparentid = 0::oid
        and t.tgfoid in ('steadytext.note_row()'::regprocedure, 'steadytext.note_destination()'::regprocedure, 'steadytext.mark_column()'::regprocedure)
        and substr(t.tgargs, 1, 36) = convert_to(p_id::text, 'UTF8')
$$;
comment on function steadytext.definition_trigger_drops(uuid, regclass[]) is 'Returns statements that drop the triggers of a definition from tables';
