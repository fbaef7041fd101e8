-- What others have put on the vectors of a vectorizer (privileges, policies, triggers, indexes, views, comments, settings), where new vectors take the place
-- of the old ones. Whatever can be made anew is; whatever cannot is an obstacle (41_replacement_obstacles.sql), so that nothing is lost unsaid.
--
-- The functions that return statements read the catalogs only. The statements are run by steadytext.run_as(), as the owner of the table, but for those of
-- steadytext.prepare_replacement(), which are of the session that alters the vectorizer and compute nothing that others have written.

-- An index is built beside the old one, under another name, before anybody waits for the table.
create function steadytext.index_copies(p_id uuid, p_relation regclass)
returns table (name text, copy text, statement text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
begin
    return query
    select s.name, s.copy, format('create %sindex %I on %s ', s.kind, s.copy, p_relation) || substr(s.definition, length(s.beginning) + 1)
    from (
        select o.name, steadytext.appended_name(o.name, '_next') as copy, o.definition, case when i.indisunique then 'UNIQUE ' else '' end as kind,
            format('CREATE %sINDEX %I ON %s%I.%I ', case when i.indisunique then 'UNIQUE ' end, o.name, case when t.relkind = 'p' then 'ONLY ' end,
                n.nspname, t.relname) as beginning
        from steadytext.others_indexes(p_id) as o
        join pg_index as i on i.indexrelid = o.index
        join pg_class as t on t.oid = i.indrelid
        join pg_namespace as n on n.oid = t.relnamespace
    ) as s
    where starts_with(s.definition, s.beginning);
end
$$;
comment on function steadytext.index_copies(uuid, regclass) is
    'Returns statements that make the indexes of others on a table once more on another one, which has the same columns, and the names of both';

create function steadytext.generated_columns(p_old regclass, p_new regclass)
returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('alter table %s add column %I %s%s generated always as (%s) %s', p_new, a.attname, format_type(a.atttypid, a.atttypmod),
        case when a.attcollation <> t.typcollation then (
            select format(' collate %I.%I', n.nspname, c.collname) from pg_collation as c join pg_namespace as n on n.oid = c.collnamespace where c.oid = a.attcollation) end,
        pg_get_expr(e.adbin, e.adrelid), case a.attgenerated when 's' then 'stored' else 'virtual' end)
    from pg_attribute as a
    join pg_type as t on t.oid = a.atttypid
    join pg_attrdef as e on e.adrelid = a.attrelid and e.adnum = a.attnum
    where a.attrelid = p_old and a.attgenerated <> '' and not a.attisdropped
        and not exists (select from pg_attribute as o where o.attrelid = p_new and o.attname = a.attname and not o.attisdropped)
    order by a.attnum
$$;
comment on function steadytext.generated_columns(regclass, regclass) is
    'Returns statements that add the generated columns of a table to another one that lacks them';

create function steadytext.others_privileges(p_relation regclass)
returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('revoke all on %s from %s cascade', p_relation, case when a.grantee = 0::oid then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end)
    from pg_class as c
    cross join aclexplode(c.relacl) as a
    where c.oid = p_relation and a.grantee <> c.relowner
    group by a.grantee
$$;
comment on function steadytext.others_privileges(regclass) is
    'Returns statements that take the privileges on a table away from everybody but its owner, such as default privileges have given them';

-- Expressions of generated columns may call functions of the owner's: they are not for the session of whoever alters the vectorizer. While the new table is
-- empty, nothing is written anew for them.
create function steadytext.add_generated_columns(p_old uuid, p_new uuid, p_owner oid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_statement text;
begin
    for v_statement in
        select g
        from steadytext.vectorizer_place(p_old) as o
        cross join steadytext.vectorizer_place(p_new) as n
        cross join steadytext.generated_columns(o.destination, n.destination) as g
    loop
        perform steadytext.run_as(p_owner, v_statement, null);
    end loop;
end
$$;
comment on function steadytext.add_generated_columns(uuid, uuid, oid) is
    'Adds the generated columns of the table of the old vectors to that of the new ones; called by the first step';

-- Where an index cannot be built now, it is tried once more when the new vectors take their place.
create function steadytext.copy_indexes(p_old uuid, p_new uuid, p_owner oid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_statement text;
begin
    for v_statement in
        select c.statement
        from steadytext.vectorizer_place(p_new) as p
        cross join lateral steadytext.index_copies(p_old, p.destination) as c
        where p.destination is not null
    loop
        begin
            perform steadytext.run_as(p_owner, v_statement, null);
        exception when others then
            raise warning 'vectorizer: index not built beside the old one (%): %', sqlerrm, left(v_statement, 200);
        end;
    end loop;
end
$$;
comment on function steadytext.copy_indexes(uuid, uuid, oid) is
    'Builds the indexes of others on the table of the old vectors on that of the new ones, under other names; called by the steps';

-- In the transaction that alters the vectorizer: the new table and column are empty, so that nothing takes long.
create function steadytext.prepare_replacement(p_old uuid, p_new uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set jit = off
as $$
declare
    v_old record;
    v_new record;
    v_obstacle record;
    v_statement text;
    v_meanwhile text;
    v_is_indexed boolean;
begin
    select * into v_obstacle from steadytext.replacement_obstacles(p_old, p_new) as o order by o.what limit 1;
    if found then
        raise exception '% depends on the vectors that are to be replaced', v_obstacle.what
            using errcode = 'dependent_objects_still_exist', hint = v_obstacle.remedy;
    end if;
    select * into v_old from steadytext.vectorizer_place(p_old);
    select * into v_new from steadytext.vectorizer_place(p_new);
    if v_old.destination is not null then
        for v_statement in
            select p from steadytext.others_privileges(v_new.destination) as p
            union all
            select format('alter table %s set unlogged', v_new.destination) from pg_class as c where c.oid = v_old.destination and c.relpersistence = 'u'
            union all
            select format('alter table %s set tablespace %I', v_new.destination, t.spcname)
            from pg_class as c join pg_tablespace as t on t.oid = c.reltablespace
            where c.oid = v_old.destination
        loop
            execute v_statement;
        end loop;
    elsif v_old.target_column is not null then
        -- Definitions name the column of the old vectors: the new one is called so for a moment.
        v_meanwhile := steadytext.appended_name(v_old.target_column, '_' || left(p_old::text, 8));
        for v_statement in select c.statement from steadytext.index_copies(p_old, v_old.source) as c loop
            execute format('alter table %s rename column %I to %I', v_old.source, v_old.target_column, v_meanwhile);
            execute format('alter table %s rename column %I to %I', v_old.source, v_new.target_column, v_old.target_column);
            execute v_statement;
            execute format('alter table %s rename column %I to %I', v_old.source, v_old.target_column, v_new.target_column);
            execute format('alter table %s rename column %I to %I', v_old.source, v_meanwhile, v_old.target_column);
        end loop;
    end if;
end
$$;
comment on function steadytext.prepare_replacement(uuid, uuid) is
    'Gives the empty table or column of an altered vectorizer what others have put on the old one, where it takes long to make later; an error where something is in the way. Called by steadytext_alter_vectorizer()';

-- What was said of one column, for another one that is to be in its place.
create function steadytext.column_statements(p_relation oid, p_column text, p_table text, p_as text)
returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select s.statement
    from pg_attribute as a
    join pg_class as c on c.oid = a.attrelid
    join pg_type as t on t.oid = a.atttypid
    cross join lateral (
        select format('alter table %s alter column %I set statistics %s', p_table, p_as, a.attstattarget) where a.attstattarget >= 0
        union all
        select format('alter table %s alter column %I set (%s)', p_table, p_as,
            string_agg(format('%I=%L', split_part(o, '=', 1), substr(o, position('=' in o) + 1)), ', '))
        from unnest(a.attoptions) as o
        where split_part(o, '=', 1) in ('n_distinct', 'n_distinct_inherited')
        having count(*) > 0
        union all
        select format('alter table %s alter column %I set storage %s', p_table, p_as,
            case a.attstorage when 'p' then 'plain' when 'e' then 'external' when 'm' then 'main' else 'extended' end)
        where a.attstorage <> t.typstorage
        union all
        select format('alter table %s alter column %I set compression %s', p_table, p_as, case a.attcompression when 'l' then 'lz4' else 'pglz' end)
        where a.attcompression <> ''
        union all
        select format('grant %s (%I) on %s to %s %s', g.privilege_type, p_as, p_table,
            case when g.grantee = 0::oid then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end, case when g.is_grantable then 'with grant option' end)
        from aclexplode(a.attacl) as g
        where g.grantee <> c.relowner
        union all
        select format('comment on column %s.%I is %L', p_table, p_as, col_description(a.attrelid, a.attnum))
        where col_description(a.attrelid, a.attnum) is not null
    ) as s(statement)
    where a.attrelid = p_relation and a.attname = p_column and not a.attisdropped
$$;
comment on function steadytext.column_statements(oid, text, text, text) is
    'Returns statements that give a column the privileges, comment, storage and statistics settings that another one has';

create function steadytext.others_views(p_relation regclass, p_columns text[])
returns setof text
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    select format('create or replace view %I.%I %s as %s', n.nspname, c.relname,
        'with (' || (select string_agg(format('%I=%L', split_part(o, '=', 1), substr(o, position('=' in o) + 1)), ', ') from unnest(c.reloptions) as o) || ')',
        pg_get_viewdef(c.oid))
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    where c.relkind = 'v' and exists (
        select from pg_rewrite as r
        join pg_depend as d on d.classid = 'pg_rewrite'::regclass and d.objid = r.oid and d.refclassid = 'pg_class'::regclass and d.refobjid = p_relation
        left join pg_attribute as a on a.attrelid = p_relation and a.attnum = d.refobjsubid
        where r.ev_class = c.oid and (p_columns is null or a.attname = any (p_columns)))
    order by c.oid
$$;
comment on function steadytext.others_views(regclass, text[]) is
    'Returns statements that define the views that read a table, or some of its columns, anew, so that they read what has the names of these then';

create function steadytext.table_statements(p_id uuid, p_new regclass, p_schema text, p_table text)
returns setof text
language plpgsql stable
set search_path = pg_catalog, pg_temp
set jit = off
as $$
begin
    return query
    with place as materialized (
        select p.destination as old, format('%I.%I', p_schema, p_table) as name from steadytext.vectorizer_place(p_id) as p
    ),
    parts as (
        select 1 as part, g.oid, 1 as n, c.statement
        from place as p
        join pg_class as g on g.oid = p.old
        cross join lateral (
            select format('alter table %s set (%s)', p.name, (
                    select string_agg(format('%I=%L', split_part(o, '=', 1), substr(o, position('=' in o) + 1)), ', ') from unnest(g.reloptions) as o))
            where g.reloptions is not null
            union all
            select format('alter table %s set (%s)', p.name, (
                    select string_agg(format('toast.%I=%L', split_part(o, '=', 1), substr(o, position('=' in o) + 1)), ', ') from unnest(t.reloptions) as o))
            from pg_class as t
            where t.oid = g.reltoastrelid and t.reloptions is not null
        ) as c(statement)
        union all
        select 2, 0::oid, 1, g from place as p cross join steadytext.generated_columns(p.old, p_new) as g
        union all
        select 3, 0::oid, 1, s
        from place as p
        join pg_attribute as a on a.attrelid = p.old and a.attnum > 0 and not a.attisdropped
        cross join steadytext.column_statements(p.old, a.attname, p.name, a.attname) as s
        union all
        -- Foreign keys are made when the indexes of the others are there.
        select case c.contype when 'f' then 6 else 4 end, c.oid, 1, format('alter table %s add constraint %I %s', p.name, c.conname, pg_get_constraintdef(c.oid))
        from place as p
        join pg_constraint as c on c.conrelid = p.old and c.contype in ('c', 'f', 'u', 'x')
        union all
        select 5, o.index, 1, coalesce((
                select format('alter index %I.%I rename to %I', p_schema, c.relname, o.name)
                from pg_index as i
                join pg_class as c on c.oid = i.indexrelid
                where i.indrelid = p_new and c.relname = steadytext.appended_name(o.name, '_next')),
            o.definition)
        from steadytext.others_indexes(p_id) as o
        union all
        select 7, t.oid, 1, pg_get_statisticsobjdef(t.oid) from place as p join pg_statistic_ext as t on t.stxrelid = p.old
        union all
        select 8, c.oid, 1, format('create policy %I on %s as %s for %s to %s%s%s', c.polname, p.name,
            case when c.polpermissive then 'permissive' else 'restrictive' end,
            case c.polcmd when 'r' then 'select' when 'a' then 'insert' when 'w' then 'update' when 'd' then 'delete' else 'all' end,
            (select string_agg(case when r.role = 0::oid then 'public' else quote_ident(pg_get_userbyid(r.role)) end, ', ') from unnest(c.polroles) as r(role)),
            ' using (' || pg_get_expr(c.polqual, c.polrelid) || ')',
            ' with check (' || pg_get_expr(c.polwithcheck, c.polrelid) || ')')
        from place as p
        join pg_policy as c on c.polrelid = p.old
        union all
        select 9, r.oid, 1, pg_get_ruledef(r.oid) from place as p join pg_rewrite as r on r.ev_class = p.old
        union all
        select 9, t.oid, c.n, c.statement
        from place as p
        join pg_trigger as t on t.tgrelid = p.old and not t.tgisinternal and t.tgfoid <> 'steadytext.note_destination()'::regprocedure
        cross join lateral (
            select 1, pg_get_triggerdef(t.oid)
            union all
            select 2, format('alter table %s %s trigger %I', p.name,
                case t.tgenabled when 'D' then 'disable' when 'A' then 'enable always' else 'enable replica' end, t.tgname)
            where t.tgenabled <> 'O'
        ) as c(n, statement)
        union all
        select 10, 0::oid, 1, format('alter table %s replica identity %s', p.name, case g.relreplident
            when 'f' then 'full' when 'n' then 'nothing' else format('using index %I', (
                select c.relname from pg_index as i join pg_class as c on c.oid = i.indexrelid where i.indrelid = p.old and i.indisreplident)) end)
        from place as p
        join pg_class as g on g.oid = p.old
        where g.relreplident <> 'd'
        union all
        select 11, 0::oid, 1, format('comment on %s is %L', c.object, c.description)
        from place as p
        cross join lateral (
            select format('table %s', p.name), obj_description(p.old, 'pg_class')
            union all
            select format('index %I.%I', o.schema, o.name), obj_description(o.index, 'pg_class') from steadytext.others_indexes(p_id) as o
            union all
            select format('constraint %I on %s', c.conname, p.name), obj_description(c.oid, 'pg_constraint')
            from pg_constraint as c where c.conrelid = p.old and c.contype in ('c', 'f', 'u', 'x')
            union all
            select format('trigger %I on %s', t.tgname, p.name), obj_description(t.oid, 'pg_trigger')
            from pg_trigger as t where t.tgrelid = p.old and not t.tgisinternal
            union all
            select format('policy %I on %s', y.polname, p.name), obj_description(y.oid, 'pg_policy') from pg_policy as y where y.polrelid = p.old
        ) as c(object, description)
        where c.description is not null
    )
    select s.statement from parts as s order by s.part, s.oid, s.n;
end
$$;
comment on function steadytext.table_statements(uuid, regclass, text, text) is
    'Returns statements that give the new table of an altered vectorizer, which has the name of the old one by then, what others have put on the old one';
