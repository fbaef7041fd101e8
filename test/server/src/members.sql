-- Everything that pg_steadytext has put into a database, as rows of object, property and value. None of it is a number of
-- this database, so that two databases can be compared: a new one, and one that was updated from an older version.
with recursive
extension as (
    select e.* from pg_extension as e where e.extname = 'pg_steadytext'
),
-- Its members, and what belongs to these: columns' defaults, constraints, indexes, triggers, policies, rules, row types.
belongings(classid, objid, objsubid) as (
    select d.classid, d.objid, d.objsubid
    from pg_depend as d
    join extension as e on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid
    where d.deptype = 'e'
    union
    select d.classid, d.objid, d.objsubid
    from pg_depend as d
    join belongings as b on d.refclassid = b.classid and d.refobjid = b.objid
    where d.deptype in ('a', 'i')
),
-- Tables of long values and the triggers behind constraints have numbers for names, and no properties of their own.
objects as (
    select distinct b.classid, b.objid
    from belongings as b
    where not exists (
            select from pg_class as c
            where b.classid = 'pg_class'::regclass and c.oid = b.objid and c.relnamespace = 'pg_toast'::regnamespace
        )
        and not exists (
            select from pg_trigger as t where b.classid = 'pg_trigger'::regclass and t.oid = b.objid and t.tgisinternal
        )
),
relations as (
    select c.*, pg_describe_object('pg_class'::regclass, c.oid, 0) as name
    from objects as o
    join pg_class as c on o.classid = 'pg_class'::regclass and c.oid = o.objid
),
columns as (
    select a.*, r.name as relation, format('column %s of %s', a.attname, r.name) as name,
        row_number() over (partition by a.attrelid order by a.attnum) as place
    from relations as r
    join pg_attribute as a on a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped
    where r.relkind not in ('i', 'S')
),
functions as (
    select p.*, pg_describe_object('pg_proc'::regclass, p.oid, 0) as name
    from objects as o
    join pg_proc as p on o.classid = 'pg_proc'::regclass and p.oid = o.objid
),
types as (
    select t.*, pg_describe_object('pg_type'::regclass, t.oid, 0) as name
    from objects as o
    join pg_type as t on o.classid = 'pg_type'::regclass and t.oid = o.objid
),
facts(object, property, value) as (
    select pg_describe_object(o.classid, o.objid, 0), 'exists', 'yes' from objects as o
    union all
    select pg_describe_object(o.classid, o.objid, 0), 'member', 'yes'
    from objects as o
    join pg_depend as d on d.classid = o.classid and d.objid = o.objid and d.deptype = 'e'
    union all
    select pg_describe_object(d.classoid, d.objoid, d.objsubid), 'comment', d.description
    from pg_description as d
    join objects as o on o.classid = d.classoid and o.objid = d.objoid

    -- The extension itself: what pg_dump keeps of its tables.
    union all
    select 'the extension', 'dumped ' || t.relation::regclass, t.condition
    from extension as e
    cross join unnest(e.extconfig, e.extcondition) as t(relation, condition)
    union all
    select 'the extension', 'requires ' || r.extname, 'yes'
    from extension as e
    join pg_depend as d on d.classid = 'pg_extension'::regclass and d.objid = e.oid and d.refclassid = 'pg_extension'::regclass
    join pg_extension as r on r.oid = d.refobjid

    -- Functions: signature, source and properties in one text; of aggregates what they are made of.
    union all
    select f.name, 'definition', pg_get_functiondef(f.oid) from functions as f where f.prokind <> 'a'
    union all
    select f.name, 'definition', format('%s(%s) returns %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s, %s', f.proname,
        pg_get_function_arguments(f.oid), pg_get_function_result(f.oid), f.provolatile, f.proparallel, a.aggtransfn, a.aggfinalfn,
        a.aggcombinefn, a.aggserialfn, a.aggdeserialfn, a.aggtranstype::regtype, a.agginitval, a.aggkind, a.aggfinalmodify)
    from functions as f
    join pg_aggregate as a on a.aggfnoid = f.oid
    union all
    select f.name, 'owner', f.proowner::regrole::text from functions as f

    -- Tables, views, sequences and indexes.
    union all
    select r.name, 'properties', format('kind %s, persistence %s, options %s, row security %s %s, replica identity %s, method %s, owner %s',
        r.relkind, r.relpersistence, r.reloptions, r.relrowsecurity, r.relforcerowsecurity, r.relreplident,
        (select m.amname from pg_am as m where m.oid = r.relam), r.relowner::regrole)
    from relations as r
    union all
    select r.name, 'definition', pg_get_viewdef(r.oid) from relations as r where r.relkind in ('v', 'm')
    union all
    select r.name, 'definition', format('%s, clustered %s, valid %s', pg_get_indexdef(r.oid), i.indisclustered, i.indisvalid)
    from relations as r
    join pg_index as i on i.indexrelid = r.oid
    union all
    select r.name, 'definition', format('%s from %s by %s, %s to %s, cache %s, cycle %s, column %s', s.seqtypid::regtype, s.seqstart, s.seqincrement,
        s.seqmin, s.seqmax, s.seqcache, s.seqcycle,
        (select string_agg(format('%s.%s', d.refobjid::regclass, a.attname), ' ')
         from pg_depend as d
         join pg_attribute as a on a.attrelid = d.refobjid and a.attnum = d.refobjsubid
         where d.classid = 'pg_class'::regclass and d.objid = s.seqrelid and d.refclassid = 'pg_class'::regclass and d.refobjsubid > 0))
    from relations as r
    join pg_sequence as s on s.seqrelid = r.oid
    union all
    select c.name, 'properties', format('place %s, type %s, not null %s, identity %s, generated %s, collation %s, storage %s, statistics %s, options %s',
        c.place, format_type(c.atttypid, c.atttypmod), c.attnotnull, c.attidentity, c.attgenerated, nullif(c.attcollation, 0)::regcollation,
        c.attstorage, coalesce(c.attstattarget, -1),
        -- Some minor releases note a number of each column there.
        array(select o from unnest(c.attoptions) as o where o not like 'pg\_attver=%' order by o))
    from columns as c
    union all
    select c.name, 'default', pg_get_expr(d.adbin, d.adrelid)
    from columns as c
    join pg_attrdef as d on d.adrelid = c.attrelid and d.adnum = c.attnum
    union all
    select pg_describe_object('pg_constraint'::regclass, c.oid, 0), 'definition', format('%s, valid %s', pg_get_constraintdef(c.oid), c.convalidated)
    from objects as o
    join pg_constraint as c on o.classid = 'pg_constraint'::regclass and c.oid = o.objid
    union all
    select pg_describe_object('pg_trigger'::regclass, t.oid, 0), 'definition', format('%s, enabled %s', pg_get_triggerdef(t.oid), t.tgenabled)
    from objects as o
    join pg_trigger as t on o.classid = 'pg_trigger'::regclass and t.oid = o.objid
    union all
    select pg_describe_object('pg_policy'::regclass, p.oid, 0), 'definition', format('for %s, permissive %s, to %s, using %s, check %s', p.polcmd, p.polpermissive,
        (select string_agg(r::regrole::text, ', ' order by r::regrole::text) from unnest(p.polroles) as r),
        pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid))
    from objects as o
    join pg_policy as p on o.classid = 'pg_policy'::regclass and p.oid = o.objid
    union all
    select pg_describe_object('pg_rewrite'::regclass, w.oid, 0), 'definition', format('%s, enabled %s', pg_get_ruledef(w.oid), w.ev_enabled)
    from objects as o
    join pg_rewrite as w on o.classid = 'pg_rewrite'::regclass and w.oid = o.objid
    where w.rulename <> '_RETURN'
    union all
    select pg_describe_object('pg_statistic_ext'::regclass, s.oid, 0), 'definition', pg_get_statisticsobjdef(s.oid)
    from objects as o
    join pg_statistic_ext as s on o.classid = 'pg_statistic_ext'::regclass and s.oid = o.objid

    -- Types and casts.
    union all
    select t.name, 'properties', format('kind %s, category %s %s, length %s, by value %s, aligned %s, stored %s, input %s, output %s, receive %s, send %s, base %s, not null %s, default %s, owner %s',
        t.typtype, t.typcategory, t.typispreferred, t.typlen, t.typbyval, t.typalign, t.typstorage, t.typinput, t.typoutput,
        t.typreceive, t.typsend, format_type(nullif(t.typbasetype, 0), t.typtypmod), t.typnotnull, t.typdefault, t.typowner::regrole)
    from types as t
    union all
    select t.name, 'values', string_agg(e.enumlabel, ', ' order by e.enumsortorder)
    from types as t
    join pg_enum as e on e.enumtypid = t.oid
    group by t.name
    union all
    select pg_describe_object('pg_cast'::regclass, c.oid, 0), 'definition', format('%s %s %s', nullif(c.castfunc, 0)::regprocedure, c.castcontext, c.castmethod)
    from objects as o
    join pg_cast as c on o.classid = 'pg_cast'::regclass and c.oid = o.objid

    -- Privileges, one row for each: those that are not written down are the defaults.
    union all
    select g.name, format('privilege %s of %s', a.privilege_type, case a.grantee when 0 then 'public' else a.grantee::regrole::text end),
        format('grantable %s', a.is_grantable)
    from (
        select f.name, coalesce(f.proacl, acldefault('f', f.proowner)) as acl from functions as f
        union all
        select r.name, coalesce(r.relacl, acldefault(case r.relkind when 'S' then 's'::"char" else 'r' end, r.relowner))
        from relations as r
        where r.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
        union all
        select c.name, c.attacl from columns as c
        union all
        select t.name, coalesce(t.typacl, acldefault('T', t.typowner)) from types as t where t.typelem = 0
        union all
        select pg_describe_object('pg_namespace'::regclass, n.oid, 0), coalesce(n.nspacl, acldefault('n', n.nspowner))
        from objects as o
        join pg_namespace as n on o.classid = 'pg_namespace'::regclass and n.oid = o.objid
    ) as g
    cross join aclexplode(g.acl) as a

    -- Rows that the scripts write.
    union all
    select format('setting %s', c.key), 'row', format('%s, %s, %s', c.value, c.description, c.is_default) from steadytext_config as c
    union all
    select format('model %s', m.name), 'row', (to_jsonb(m) - 'created_at' - 'updated_at')::text from steadytext_models as m
)
select f.object, f.property, coalesce(f.value, 'NULL') as value from facts as f order by 1, 2, 3
