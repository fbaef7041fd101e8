-- Twins: every function steadytext_x of the API also exists as st_x. A function is written once, and
-- its twin is made from its entry in the catalogs: parameters, defaults, result, properties, rights.
--
-- The install script calls make_twins() after its grants. A migration that adds functions to the API
-- does the same, and calls make_twin() for a function that it replaces. A twin that must differ from
-- its function is written by hand, before make_twins() is called, which then leaves it as it is.
--
-- Invariant: no name is left open. Both functions are bound to what is current when the twin is
-- made, types and functions are written with their schemas wherever these are not pg_catalog, and a
-- call of the function has the exact types of its parameters.

create function steadytext.make_twin(p_function regprocedure)
returns regprocedure
language plpgsql volatile
set search_path = pg_catalog, pg_temp
-- Bodies are read as they are written here, whatever the session has set.
set quote_all_identifiers = off
as $$
declare
    v_long record;
    v_name text;
    v_call text;
    v_body text;
    v_twin regprocedure;
    v_is_new boolean;
    v_statement text;
begin
    select p.*, n.nspname, l.lanname into v_long
    from pg_proc as p
    join pg_namespace as n on n.oid = p.pronamespace
    join pg_language as l on l.oid = p.prolang
    where p.oid = p_function::oid;
    if not coalesce(starts_with(v_long.proname::text, 'steadytext_'), false) then
        raise exception 'function % cannot have a twin', p_function
            using errcode = 'invalid_parameter_value', hint = 'Twins are made of functions whose names begin with steadytext_.';
    end if;
    -- Procedures, aggregates, and parameters that a call by position does not reach.
    if v_long.prokind <> 'f' or v_long.provariadic <> 0::oid
        or coalesce(v_long.proargmodes::text[] && array['o', 'b', 'v'], false) then
        raise exception 'no twin can be made of %', p_function
            using errcode = 'feature_not_supported', hint = 'Write it by hand, and call steadytext.make_twins() afterwards.';
    end if;
    v_name := 'st_' || substr(v_long.proname::text, length('steadytext_') + 1);

    -- A function in C, and one in SQL whose body is parsed already, is the same function under another name, so that
    -- planner and executor make no difference. Everything else is called: it may have rights and settings of its own.
    v_call := format('%I.%I(%s)', v_long.nspname, v_long.proname,
        (select string_agg('$' || i, ', ' order by i) from generate_series(1, v_long.pronargs) as i));
    v_body := case
        when v_long.prosecdef or v_long.proconfig is not null then null
        when v_long.lanname = 'c' then format('as %L, %L', v_long.probin, v_long.prosrc)
        -- Parameters bear the name of the function in the body.
        else regexp_replace(pg_get_function_sqlbody(v_long.oid), '\m' || v_long.proname || '\.', v_name || '.', 'g')
    end;
    if v_body is null then
        v_body := case
            when v_long.proretset then format('begin atomic select r.* from %s as r; end', v_call)
            else format('return %s', v_call)
        end;
        v_long.lanname := 'sql';
    end if;

    -- Only a twin that is the extension's own is replaced. A function of somebody else's in its place is an error.
    select p.oid::regprocedure into v_twin
    from pg_proc as p
    join pg_depend as d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
    join pg_extension as e on d.refclassid = 'pg_extension'::regclass and e.oid = d.refobjid
    where p.pronamespace = v_long.pronamespace and p.proname = v_name::name and p.proargtypes = v_long.proargtypes
        and e.extname = 'pg_steadytext';
    v_is_new := v_twin is null;
    execute format(
        'create %s function %I.%I(%s) returns %s language %s %s %s %s cost %s %s %s',
        case when not v_is_new then 'or replace' end, v_long.nspname, v_name, pg_get_function_arguments(v_long.oid),
        pg_get_function_result(v_long.oid), v_long.lanname,
        case v_long.provolatile when 'i' then 'immutable' when 's' then 'stable' else 'volatile' end,
        case v_long.proparallel when 's' then 'parallel safe' when 'r' then 'parallel restricted' else 'parallel unsafe' end,
        case when v_long.proisstrict then 'strict' end, v_long.procost,
        case when v_long.proretset then format('rows %s', v_long.prorows) end, v_body);
    if not v_is_new then
        return v_twin;
    end if;

    select p.oid::regprocedure into v_twin
    from pg_proc as p
    where p.pronamespace = v_long.pronamespace and p.proname = v_name::name and p.proargtypes = v_long.proargtypes;
    execute format('comment on function %s is %L', v_twin, 'Short for ' || v_long.proname);
    -- PUBLIC may call a new function, and so may roles that default privileges name. Afterwards exactly the roles that may
    -- call the other function may call this one.
    for v_statement in
        select format(
            case when g.is_given then 'grant execute on function %s to %s %s' else 'revoke all on function %s from %s cascade' end,
            v_twin, case when g.grantee = 0::oid then 'public' else quote_ident(pg_get_userbyid(g.grantee)) end,
            case when g.is_grantable then 'with grant option' end)
        from (
            select distinct false as is_given, a.grantee, false as is_grantable
            from pg_proc as p
            cross join aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) as a
            where p.oid = v_twin::oid and a.grantee <> p.proowner
            union all
            select true, a.grantee, a.is_grantable
            from aclexplode(coalesce(v_long.proacl, acldefault('f', v_long.proowner))) as a
            where a.grantee <> v_long.proowner
        ) as g
        order by g.is_given
    loop
        execute v_statement;
    end loop;
    return v_twin;
end
$$;
comment on function steadytext.make_twin(regprocedure) is
    'Makes st_x of steadytext_x, with the same parameters, defaults, result and properties, and a new one with the same rights; returns it';

create function steadytext.make_twins()
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_functions regprocedure[];
    v_function regprocedure;
begin
    with api as (
        select p.oid, p.proname::text as name, p.proargtypes as types, p.prokind as kind
        from pg_extension as e
        join pg_depend as d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e'
        join pg_proc as p on d.classid = 'pg_proc'::regclass and p.oid = d.objid and p.pronamespace = e.extnamespace
        where e.extname = 'pg_steadytext'
    )
    select array_agg(long.oid::regprocedure order by long.oid) into v_functions
    from api as long
    where starts_with(long.name, 'steadytext_') and long.kind = 'f'
        and not exists (
            select from api as twin
            where twin.name = 'st_' || substr(long.name, length('steadytext_') + 1) and twin.types = long.types
        );
    foreach v_function in array coalesce(v_functions, '{}') loop
        perform steadytext.make_twin(v_function);
    end loop;
end
$$;
comment on function steadytext.make_twins() is
    'Creates the twins that are missing. Called after the grants by the install script, and by every migration that adds a function to the API';
