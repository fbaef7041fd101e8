-- Objects with which a role that may create in the schema of an extension could hijack it: operators, functions and types that
-- fit the expressions of an install script better than those of pg_catalog do. Each notes who runs it. Run by that role, with
-- the script in the temporary table script and the extension's own functions in the temporary table own_functions.
set search_path = pg_catalog;
set check_function_bodies = off;

create table public.caught (who name, what text);
grant select, insert on public.caught to public;

do $plant$
declare
    v_script text := (select s.body from pg_temp.script as s);
    v_types oid[] := array[
        'text', 'name', 'oid', 'regclass', 'regproc', 'regprocedure', 'regtype', 'regrole', 'regnamespace', 'int2', 'int4',
        'int8', 'numeric', 'float4', 'float8', 'bool', '"char"', 'varchar', 'jsonb', 'uuid', 'timestamptz', 'interval',
        'bytea', 'inet', 'xid', 'text[]', 'name[]', 'oid[]', 'int8[]', 'aclitem[]', 'anyelement', 'anyarray'
    ]::regtype[]::oid[];
    v_operators text[];
    v_left oid;
    v_right oid;
    v_name text;
    v_result text;
    v_function record;
    v_arguments text;
begin
    -- The type vector, wherever it is.
    v_types := v_types || array(
        select t.oid from pg_type as t
        join pg_depend as d on d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
        join pg_extension as e on d.refclassid = 'pg_extension'::regclass and e.oid = d.refobjid
        where e.extname = 'vector' and t.typname = 'vector');

    v_operators := array(
        select distinct o.oprname::text
        from pg_operator as o
        where o.oprleft <> 0 and (
            o.oprname::text in (
                select m.found[1] from regexp_matches(v_script, '[-+*/<>=~!@#%^&|`?]+', 'g') as m(found)
            )
            -- The operators behind BETWEEN, IN, LIKE and their opposites.
            or o.oprname in ('=', '<>', '<', '<=', '>', '>=', '~~', '!~~')));
    foreach v_left in array v_types loop
        foreach v_right in array v_types loop
            execute format(
                'create function public.trap(%1$s, %2$s) returns boolean language plpgsql as '
                '$f$ begin insert into public.caught values (current_user, %3$L); return true; end $f$',
                v_left::regtype, v_right::regtype, format('operator(%s, %s)', v_left::regtype, v_right::regtype));
            foreach v_name in array v_operators loop
                -- The extension vector may be in this schema, too, with operators of its own.
                continue when exists (
                    select from pg_operator as o
                    where o.oprnamespace = 'public'::regnamespace and o.oprname = v_name
                        and o.oprleft = v_left and o.oprright = v_right);
                execute format('create operator public.%s (leftarg = %s, rightarg = %s, function = public.trap)',
                    v_name, v_left::regtype, v_right::regtype);
            end loop;
        end loop;
    end loop;

    for v_name in
        select distinct p.proname::text
        from pg_proc as p
        where p.pronamespace = 'pg_catalog'::regnamespace and p.proname::text in (
            select m.found[1] from regexp_matches(v_script, '([a-z_][a-z0-9_]*)[[:space:]]*[(]', 'g') as m(found))
    loop
        -- The result is of a type that lets the statement go on.
        v_result := coalesce((
            select p.prorettype::regtype::text from pg_proc as p
            join pg_type as t on t.oid = p.prorettype and t.typtype <> 'p'
            where p.pronamespace = 'pg_catalog'::regnamespace and p.proname = v_name
            order by p.oid limit 1), 'text');
        for v_arguments in
            select distinct a.list
            from unnest(v_types) as t(type)
            cross join lateral (values
                (''),
                (t.type::regtype::text),
                (format('%s, %s', t.type::regtype, t.type::regtype)),
                (format('%s, integer', t.type::regtype)),
                (format('%s, text', t.type::regtype)),
                (format('text, %s', t.type::regtype))
            ) as a(list)
        loop
            continue when to_regprocedure(format('public.%I(%s)', v_name, v_arguments)) is not null;
            execute format(
                'create function public.%I(%s) returns %s language plpgsql as '
                '$f$ begin insert into public.caught values (current_user, %L); return null; end $f$',
                v_name, v_arguments, v_result, format('function %s(%s)', v_name, v_arguments));
        end loop;
    end loop;

    -- Functions with the names of the extension's own.
    for v_function in
        select distinct f.name,
            array_to_string(array(
                select case when u.n = p.n then 'varchar' else u.type end
                from unnest(f.arguments) with ordinality as u(type, n) order by u.n
            ), ', ') as arguments
        from pg_temp.own_functions as f
        cross join lateral generate_subscripts(f.arguments, 1) as p(n)
    loop
        continue when to_regprocedure(format('public.%I(%s)', v_function.name, v_function.arguments)) is not null;
        -- In the place of one of its own, the install fails and nothing is run.
        continue when exists (
            select from pg_temp.own_functions as o
            where o.name = v_function.name
                and array_to_string(o.arguments, ', ') = replace(v_function.arguments, 'varchar', 'character varying'));
        execute format(
            'create function public.%I(%s) returns text language plpgsql as '
            '$f$ begin insert into public.caught values (current_user, %L); return null; end $f$',
            v_function.name, v_function.arguments, format('function %s(%s)', v_function.name, v_function.arguments));
    end loop;

    create function public.sprung(what text) returns boolean language plpgsql as
        $f$ begin insert into public.caught values (current_user, what); return true; end $f$;
    for v_function in
        select distinct t.typname::text as name, t.oid
        from pg_type as t
        where (t.typnamespace = 'pg_catalog'::regnamespace and t.typtype = 'b' and t.typcategory <> 'A' or t.typname = 'vector')
            and t.typnamespace <> 'public'::regnamespace
            and t.typname::text in (
                select m.found[1] from regexp_matches(v_script, '([a-z_][a-z0-9_]*)', 'g') as m(found))
    loop
        execute format('create domain public.%I as %s check (public.sprung(%L))',
            v_function.name, v_function.oid::regtype, 'type ' || v_function.name);
    end loop;
end
$plant$;
