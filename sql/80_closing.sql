-- Takes back the rights that CREATE gives: PUBLIC may call every new function and use every new type, and ALTER DEFAULT
-- PRIVILEGES of the role that installs or updates, as hosted platforms set them, opens new tables, sequences, functions, types
-- and schemas to any role.
--
-- Called before the grants, by the install script and by every migration that makes an object.

create function steadytext.close_new_objects()
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_given record;
begin
    for v_given in
        with added as (
            -- The objects that this transaction has added to the extension: rights that were granted since an earlier
            -- one are not taken back. Subtransactions have later numbers than their transaction.
            select d.classid, d.objid
            from pg_extension as e
            join pg_depend as d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e'
            where e.extname = 'pg_steadytext' and age(d.xmin) between -1000000 and 0
                -- Rights that a script before this one has granted stay as well, where one transaction installs and updates:
                -- PostgreSQL notes of each object which privileges its extension's scripts have left it with.
                and not exists (
                    select from pg_init_privs as i
                    where i.classoid = d.classid and i.objoid = d.objid and i.privtype = 'e'
                )
        ),
        objects as (
            select case c.relkind when 'S' then 'sequence' else 'table' end as kind,
                c.oid::regclass::text as name, c.relowner as owner,
                coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's'::"char" else 'r' end, c.relowner)) as acl
            from added as a
            join pg_class as c on a.classid = 'pg_class'::regclass and c.oid = a.objid and c.relkind in ('r', 'p', 'v', 'm', 'f', 'S')
            union all
            -- Taken from the whole table, a privilege goes from its columns, too.
            select 'table', c.oid::regclass::text, c.relowner, t.attacl
            from added as a
            join pg_class as c on a.classid = 'pg_class'::regclass and c.oid = a.objid and c.relkind in ('r', 'p', 'v', 'm', 'f')
            join pg_attribute as t on t.attrelid = c.oid and t.attacl is not null
            union all
            select 'routine', p.oid::regprocedure::text, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner))
            from added as a
            join pg_proc as p on a.classid = 'pg_proc'::regclass and p.oid = a.objid
            union all
            select 'schema', n.oid::regnamespace::text, n.nspowner, coalesce(n.nspacl, acldefault('n', n.nspowner))
            from added as a
            join pg_namespace as n on a.classid = 'pg_namespace'::regclass and n.oid = a.objid
            union all
            -- The type of an array has no privileges of its own.
            select 'type', t.oid::regtype::text, t.typowner, coalesce(t.typacl, acldefault('T', t.typowner))
            from added as a
            join pg_type as t on a.classid = 'pg_type'::regclass and t.oid = a.objid and t.typelem = 0
        )
        select distinct o.kind, o.name,
            case when g.grantee = 0 then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end as grantee
        from objects as o
        cross join aclexplode(o.acl) as g
        where g.grantee <> o.owner
    loop
        execute format('revoke all on %s %s from %s cascade', v_given.kind, v_given.name, v_given.grantee);
    end loop;
end
$$;
comment on function steadytext.close_new_objects() is
    'Revokes every privilege on objects that this transaction has added to the extension from everybody but their owner';
