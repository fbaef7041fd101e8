-- Roles, the schema of the protocol, and the C functions that tables lean on.
--
-- The numbered fragments in sql/ are concatenated in name order into the install script.
-- Invariant: every name is qualified. Tables and the API live in @extschema@, the protocol
-- between queue and worker in schema steadytext.

\echo Use "CREATE EXTENSION pg_steadytext CASCADE" to load this file. \quit

-- PostgreSQL puts the target schema into the search path, where others may have put operators, functions and
-- casts that fit what is written below better than those of pg_catalog do. None of it is a candidate from here on;
-- migrations begin with the same statement.
set local search_path = pg_catalog, pg_temp;

-- Roles belong to the whole server: another database may have made them already, or may be
-- making them at this moment.
do $$
declare
    v_role text;
begin
    foreach v_role in array array['steadytext_user', 'steadytext_admin', 'steadytext_worker', 'steadytext_auditor'] loop
        begin
            if pg_catalog.to_regrole(v_role) is null then
                execute pg_catalog.format('create role %I nologin', v_role);
                execute pg_catalog.format('comment on role %I is %L', v_role,
                    case v_role
                        when 'steadytext_user' then 'pg_steadytext: may enqueue requests and read its own'
                        when 'steadytext_admin' then 'pg_steadytext: may configure, and see everybody''s requests'
                        when 'steadytext_auditor' then 'pg_steadytext: may read the audit log, and nothing else'
                        else 'pg_steadytext: may call the queue protocol, for workers on other machines'
                    end);
            end if;
        exception when duplicate_object or unique_violation then
            null;
        end;
    end loop;
    -- An administrator can do what a user can.
    if not pg_catalog.pg_has_role('steadytext_admin', 'steadytext_user', 'usage') then
        grant steadytext_user to steadytext_admin;
    end if;
end
$$;

-- A schema of this name that somebody else owns must stop the install.
do $$
begin
    if pg_catalog.to_regnamespace('steadytext') is not null then
        raise exception 'schema "steadytext" exists already'
            using errcode = 'duplicate_schema',
                  hint = 'pg_steadytext makes this schema itself, for the protocol between queue and workers. '
                      'Drop or rename the one that is there, and create the extension in another schema: '
                      'CREATE EXTENSION pg_steadytext SCHEMA public CASCADE.';
    end if;
end
$$;
create schema steadytext;
comment on schema steadytext is
    'pg_steadytext: functions of the protocol between the queue and its workers, and those that tables and views need; no tables';

-- Functions name the target schema as text. The owner of that schema could rename it and put objects of their own in
-- the place of ours; the library compares this name with the schema's present one.
create function steadytext.installed_schema()
returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as 'select ''@extschema@''::text';
comment on function steadytext.installed_schema() is
    'Returns the name of the schema that CREATE EXTENSION was given, as functions have it written in them';

-- The type vector is in whatever schema its extension was put into, which everybody may be able to write. Statements
-- that name the type stand between
--
--     select pg_catalog.set_config('search_path', steadytext.vector_path(), true);
--     set local search_path = pg_catalog, pg_temp;
--
-- and have no operator or function that is not found in pg_catalog by its exact types, or qualified.
create function steadytext.vector_path()
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_path text;
begin
    -- A base type: the owner of the extension vector could add other types of this name to it, but only superusers make
    -- base types.
    select format('pg_catalog, %I, pg_temp', n.nspname) into v_path
    from pg_extension as e
    join pg_depend as d
        on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid
        and d.classid = 'pg_type'::regclass and d.deptype = 'e'
    join pg_type as t on t.oid = d.objid and t.typname = 'vector' and t.typtype = 'b'
    join pg_namespace as n on n.oid = t.typnamespace
    where e.extname = 'vector';
    if v_path is null then
        raise exception 'the extension vector is not there'
            using errcode = 'undefined_object', hint = 'Run CREATE EXTENSION vector.';
    end if;
    return v_path;
end
$$;
comment on function steadytext.vector_path() is
    'Returns a search path for statements of install and migration scripts that name the type vector: pg_catalog, and the schema where the type is';

create function steadytext.new_request_id()
returns uuid
language c volatile parallel safe strict
as 'MODULE_PATHNAME', 'new_request_id_wrapper';
comment on function steadytext.new_request_id() is
    'Returns a new UUID version 7; the default of steadytext_queue.request_id';

create function steadytext.check_request()
returns trigger
language c volatile
as 'MODULE_PATHNAME', 'check_request_wrapper';
comment on function steadytext.check_request() is
    'Checks every limit of a new request, so that plain INSERTs meet them too, and arms the wake that follows the commit';

create function steadytext.count_retry()
returns trigger
language c volatile
as 'MODULE_PATHNAME', 'count_retry_wrapper';
comment on function steadytext.count_retry() is
    'Counts a request that was put back to pending among the pending ones, and lets the worker notice one that was put back in the worker''s own transaction';

create function steadytext.wake_worker()
returns trigger
language c volatile
as 'MODULE_PATHNAME', 'wake_worker_wrapper';
comment on function steadytext.wake_worker() is
    'Arms the wake after a change of status, so that a request put back to pending is noticed at once';

create function steadytext.recount_requests()
returns trigger
language c volatile
as 'MODULE_PATHNAME', 'recount_requests_wrapper';
comment on function steadytext.recount_requests() is
    'Lets the worker count the pending requests after the commit: some may have been deleted';

create function steadytext.refuse_row(p_table text, p_column text)
returns boolean
language c volatile parallel safe
as 'MODULE_PATHNAME', 'refuse_row_wrapper';
comment on function steadytext.refuse_row(text, text) is
    'Raises the error about a value that a column may not have: CHECK constraints call it instead of being false, as their own message would show the whole row, prompt included';

create function steadytext.refuse_id()
returns trigger
language c volatile
as 'MODULE_PATHNAME', 'refuse_id_wrapper';
comment on function steadytext.refuse_id() is
    'Refuses a row without an id, before PostgreSQL does it with a message that shows the row';

create function steadytext.note_key()
returns trigger
language c volatile
as 'MODULE_PATHNAME', 'note_key_wrapper';
comment on function steadytext.note_key() is
    'Adds the key of an entry of the cache to the filter in shared memory that keeps requests from being looked up in vain';

create function steadytext.note_change()
returns trigger
language c volatile
as 'MODULE_PATHNAME', 'note_change_wrapper';
comment on function steadytext.note_change() is
    'Makes every backend and the worker read configuration and registry again after the commit';

create function steadytext.announce(request_ids uuid[])
returns void
language c volatile strict
as 'MODULE_PATHNAME', 'announce_wrapper';
comment on function steadytext.announce(uuid[]) is
    'Wakes all processes that wait for these requests, after the commit';

create function steadytext.is_own_worker()
returns boolean
language c volatile
as 'MODULE_PATHNAME', 'is_own_worker_wrapper';
comment on function steadytext.is_own_worker() is
    'Returns whether this process is the worker of this server and database; functions that only that worker may call check the process, not a role';

create function steadytext.check_worker(p_worker text, p_lease_seconds integer default 60)
returns void
language c volatile
as 'MODULE_PATHNAME', 'check_worker_wrapper';
comment on function steadytext.check_worker(text, integer) is
    'Refuses workers without a name, names that are the server''s own, and leases out of range; called by the protocol';

create function steadytext.start_worker()
returns void
language c volatile
as 'MODULE_PATHNAME', 'start_worker_wrapper';
comment on function steadytext.start_worker() is
    'Asks for a worker of this database at commit';
