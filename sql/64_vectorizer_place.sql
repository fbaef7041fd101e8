-- How a definition is tied to its tables: triggers that note what changes, and that are read to find the tables again.
--
-- On the source there are three. The first fires for rows that come and go; its list of columns, which PostgreSQL keeps up
-- to date, says which columns are the key, which are embedded, and which two hold the vector and what it was made from. The second fires for rows that change, whatever the statement
-- says it changes: triggers of the user's may change more. The third one fires when the table is emptied. On the table of the vectors there is one,
-- for when that is emptied. Row triggers are what PostgreSQL gives to partitions, now and later, and what logical replication fires.

create function steadytext.note_row()
returns trigger
language c volatile
as 'MODULE_PATHNAME', 'note_row_wrapper';
comment on function steadytext.note_row() is
    'Notes the key of a row of a vectorized table that came, changed or went. Arguments: the number of the definition; then, of the trigger that has all columns, how many are the key and how many are embedded';

create function steadytext.note_destination()
returns trigger
language c volatile
as 'MODULE_PATHNAME', 'note_row_wrapper';
comment on function steadytext.note_destination() is
    'Notes that vectors were deleted as a whole. Argument: the number of the definition';

create function steadytext.vectorizer_place(
    p_id uuid,
    out source regclass,
    out key_columns text[],
    out key_types text[],
    out source_columns text[],
    out target_column text,
    out hash_column text,
    out destination regclass,
    out problem text
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
    select v.owner_role::oid as owner, v.source, v.destination into v_definition
    from @extschema@.steadytext_vectorizers as v
    where v.id = p_id;
    if not found then
        problem := 'the definition is gone';
        return;
    end if;
    -- Who may put a trigger on a table may name any definition in it: only the table of the definition's owner counts.
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
            return;
        end if;
        if v_link.args[2] !~ '^[0-9]{1,4}$' or v_link.args[3] !~ '^[0-9]{1,4}$' then
            problem := format('a trigger of table %s is not the one that was made with the vectorizer', v_link.tgrelid::regclass);
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
        end if;
        exit;
    end loop;
    if source is null then
        problem := format('table %s is gone, or its triggers are', v_definition.source);
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
            problem := coalesce(problem,
                format('the table of the vectors, %s, is gone or belongs to another role', v_definition.destination));
        end if;
    end if;
end
$$;
comment on function steadytext.vectorizer_place(uuid) is
    'Where a vectorizer reads and writes: tables and columns as they are called now, key and embedded columns in the order of the definition, and what is wrong with them, if anything is. Tables that are gone are NULL';
