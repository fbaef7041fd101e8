-- The type of steadytext_queue.owner_role: a role, whatever it is called.
--
-- It is stored as the role's OID, so that a renamed role keeps its rows and a new role of an
-- old name gets none of them. It is written as the role's name of that moment, by COPY too,
-- because numbers mean nothing to another cluster: a dump says whose a row is by name. Where
-- there is no such role the value is 0, which belongs to nobody and is written as an empty
-- text; regrole would write a dropped role's number, which may be somebody else's elsewhere,
-- and refuse a name that is not there.

create type steadytext.role_id;

create function steadytext.role_id_in(name cstring)
returns steadytext.role_id
language c stable parallel safe strict
as 'MODULE_PATHNAME', 'role_id_in_wrapper';
comment on function steadytext.role_id_in(cstring) is
    'Converts the name of a role to the role; where there is none, to no role, with a warning';

create function steadytext.role_id_out(role steadytext.role_id)
returns cstring
language c stable parallel safe strict
as 'MODULE_PATHNAME', 'role_id_out_wrapper';
comment on function steadytext.role_id_out(steadytext.role_id) is
    'Converts a role to its present name, without quotes; empty where the role is gone';

create function steadytext.role_id_recv(message internal)
returns steadytext.role_id
language c stable parallel safe strict
as 'MODULE_PATHNAME', 'role_id_recv_wrapper';
comment on function steadytext.role_id_recv(internal) is 'Converts the binary form to a role, as role_id_in does with its name';

create function steadytext.role_id_send(role steadytext.role_id)
returns bytea
language c stable parallel safe strict
as 'MODULE_PATHNAME', 'role_id_send_wrapper';
comment on function steadytext.role_id_send(steadytext.role_id) is
    'Converts a role to the binary form, as role_id_out does to its name';

create type steadytext.role_id (
    input = steadytext.role_id_in,
    output = steadytext.role_id_out,
    receive = steadytext.role_id_recv,
    send = steadytext.role_id_send,
    like = pg_catalog.oid
);
comment on type steadytext.role_id is
    'A role: stored as its OID, written as its name, empty where it is gone';

-- Everything that oid can do, indexes included.
create cast (steadytext.role_id as pg_catalog.oid) without function as implicit;
comment on cast (steadytext.role_id as pg_catalog.oid) is 'OID of the role';
-- So that owner_role can be compared with names, and set to one.
create cast (steadytext.role_id as pg_catalog.name) with inout as implicit;
comment on cast (steadytext.role_id as pg_catalog.name) is 'Name of the role';
create cast (pg_catalog.name as steadytext.role_id) with inout as assignment;
comment on cast (pg_catalog.name as steadytext.role_id) is 'Role of this name';

create function steadytext.current_role_id()
returns steadytext.role_id
language c stable parallel safe
as 'MODULE_PATHNAME', 'current_role_id_wrapper';
comment on function steadytext.current_role_id() is
    'Returns the role whose rights are in force: the default of steadytext_queue.owner_role, which the policies of that table compare with it';
