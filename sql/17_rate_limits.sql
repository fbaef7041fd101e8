-- Limits of roles: requests and tokens in a minute, an hour and a day, and requests that are pending.
--
-- The counters are in shared memory, so that a limit makes no row that everybody writes; the library caches the rows of this table, and drops its
-- cache when they change. The worker writes the counters down from time to time, so that a restart of the server empties nobody's window.

create table @extschema@.steadytext_rate_limits (
    user_id steadytext.role_id,
    requests_per_minute bigint default 60,
    requests_per_hour bigint default 1000,
    requests_per_day bigint default 10000,
    tokens_per_minute bigint,
    tokens_per_hour bigint,
    tokens_per_day bigint,
    max_pending bigint,
    current_minute_count bigint not null default 0,
    current_hour_count bigint not null default 0,
    current_day_count bigint not null default 0,
    last_reset timestamptz not null default pg_catalog.now(),
    created_at timestamptz not null default pg_catalog.now()
);
comment on table @extschema@.steadytext_rate_limits is
    'Limits on the requests and tokens of roles. A limit binds the role and each of its members, for whom it counts by itself; the strictest one holds';
comment on column @extschema@.steadytext_rate_limits.user_id is 'Role that is limited; NULL: everybody';
comment on column @extschema@.steadytext_rate_limits.requests_per_minute is
    'Requests of any type allowed in 60 seconds; NULL, here and below: no limit';
comment on column @extschema@.steadytext_rate_limits.requests_per_hour is 'Requests allowed in 60 minutes';
comment on column @extschema@.steadytext_rate_limits.requests_per_day is 'Requests allowed in 24 hours';
comment on column @extschema@.steadytext_rate_limits.tokens_per_minute is
    'Tokens of prompts and answers allowed in 60 seconds: requests are refused once they are used up';
comment on column @extschema@.steadytext_rate_limits.tokens_per_hour is 'Tokens of prompts and answers allowed in 60 minutes';
comment on column @extschema@.steadytext_rate_limits.tokens_per_day is 'Tokens of prompts and answers allowed in 24 hours';
comment on column @extschema@.steadytext_rate_limits.max_pending is 'Number of requests of the role that may wait in the queue';
comment on column @extschema@.steadytext_rate_limits.current_minute_count is
    'Number of requests of the role itself within 60 seconds, as last written down; steadytext_limit_usage() shows the present number';
comment on column @extschema@.steadytext_rate_limits.current_hour_count is 'Number of requests of the role itself within 60 minutes, as last written down';
comment on column @extschema@.steadytext_rate_limits.current_day_count is 'Number of requests of the role itself within 24 hours, as last written down';
comment on column @extschema@.steadytext_rate_limits.last_reset is 'Time when steadytext_reset_usage() last reset the usage of the role to zero';
comment on column @extschema@.steadytext_rate_limits.created_at is 'Time when the limit was created';

create unique index steadytext_rate_limits_user_id_idx on @extschema@.steadytext_rate_limits (user_id pg_catalog.oid_ops);
comment on index @extschema@.steadytext_rate_limits_user_id_idx is 'One row per role';
create unique index steadytext_rate_limits_everybody_idx on @extschema@.steadytext_rate_limits ((true)) where user_id is null;
comment on index @extschema@.steadytext_rate_limits_everybody_idx is 'One row for everybody';

create table @extschema@.steadytext_rate_usage (
    user_id steadytext.role_id not null,
    second bigint not null,
    requests bigint[] not null,
    tokens bigint[] not null
)
with (fillfactor = 50);
comment on table @extschema@.steadytext_rate_usage is
    'Usage of roles as last written down, for the next start of the server; steadytext_limit_usage() shows the present one';
comment on column @extschema@.steadytext_rate_usage.user_id is 'Role whose usage this is';
comment on column @extschema@.steadytext_rate_usage.second is 'Time when the usage was written down, in seconds since 2000';
comment on column @extschema@.steadytext_rate_usage.requests is
    'Numbers of requests in each of the last 61 seconds, 61 minutes and 61 intervals of 24 minutes; the latest first';
comment on column @extschema@.steadytext_rate_usage.tokens is 'Numbers of tokens in each of the last 61 seconds, 61 minutes and 61 intervals of 24 minutes; the latest first';
create unique index steadytext_rate_usage_user_id_idx on @extschema@.steadytext_rate_usage (user_id pg_catalog.oid_ops);
comment on index @extschema@.steadytext_rate_usage_user_id_idx is 'One row per role';

create function steadytext.check_rate_limit()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_limit record;
begin
    if new.user_id is not null and not exists (select from pg_roles as r where r.oid = new.user_id::oid) then
        -- A dump may know roles that are not here; a limit of nobody is none. Rows of a dump come with their time.
        if tg_op = 'INSERT' and new.created_at <> now() then
            return null;
        end if;
        raise exception 'there is no such role that could be limited'
            using errcode = 'undefined_object', hint = 'The limit of everybody has NULL for user_id.';
    end if;
    for v_limit in
        select l.name, l.value
        from (values ('requests_per_minute', new.requests_per_minute), ('requests_per_hour', new.requests_per_hour),
            ('requests_per_day', new.requests_per_day), ('tokens_per_minute', new.tokens_per_minute),
            ('tokens_per_hour', new.tokens_per_hour), ('tokens_per_day', new.tokens_per_day),
            ('max_pending', new.max_pending)) as l(name, value)
    loop
        if v_limit.value < 0 or v_limit.value > 1000000000000 then
            raise exception '% must be between 0 and 1000000000000, or NULL', v_limit.name
                using errcode = 'invalid_parameter_value', hint = 'NULL: there is no such limit.';
        end if;
    end loop;
    return new;
end
$$;
comment on function steadytext.check_rate_limit() is 'Refuses limits of roles that do not exist, and limits below 0';

create trigger check_rate_limit before insert or update on @extschema@.steadytext_rate_limits
    for each row execute function steadytext.check_rate_limit();
comment on trigger check_rate_limit on @extschema@.steadytext_rate_limits is 'Checks limits';
create trigger note_change
    after insert or delete or truncate or update of user_id, requests_per_minute, requests_per_hour, requests_per_day,
        tokens_per_minute, tokens_per_hour, tokens_per_day, max_pending
    on @extschema@.steadytext_rate_limits
    for each statement execute function steadytext.note_change();
comment on trigger note_change on @extschema@.steadytext_rate_limits is
    'Makes every session read the limits again after the commit, but not when the worker writes the counts';
alter table @extschema@.steadytext_rate_limits
    enable always trigger check_rate_limit,
    enable always trigger note_change;

alter table @extschema@.steadytext_rate_limits enable row level security;
create policy admin_all on @extschema@.steadytext_rate_limits for all to steadytext_admin using (true);
comment on policy admin_all on @extschema@.steadytext_rate_limits is
    'Administrators keep the limits; users see the limits that bind them with steadytext_my_limits()';
alter table @extschema@.steadytext_rate_usage enable row level security;
create policy admin_select on @extschema@.steadytext_rate_usage for select to steadytext_admin using (true);
comment on policy admin_select on @extschema@.steadytext_rate_usage is 'Administrators may read it, for dumps; only the worker writes it';

create function steadytext.limited_role(p_user_id text)
returns oid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_role oid;
begin
    if p_user_id is null or p_user_id = '*' then
        return null;
    end if;
    select r.oid into v_role from pg_roles as r where r.rolname = p_user_id;
    if v_role is null then
        raise exception 'role "%" does not exist', left(p_user_id, 63)
            using errcode = 'undefined_object', hint = 'NULL and ''*'' mean everybody.';
    end if;
    return v_role;
end
$$;
comment on function steadytext.limited_role(text) is
    'Returns the role of this name; NULL where everybody is meant; an error where there is no such role';

create function @extschema@.steadytext_set_limit(
    user_id text,
    requests_per_minute bigint default null,
    requests_per_hour bigint default null,
    requests_per_day bigint default null,
    tokens_per_minute bigint default null,
    tokens_per_hour bigint default null,
    tokens_per_day bigint default null,
    max_pending bigint default null
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_role oid := steadytext.limited_role(user_id);
begin
    if num_nonnulls(requests_per_minute, requests_per_hour, requests_per_day, tokens_per_minute, tokens_per_hour,
        tokens_per_day, max_pending) = 0
    then
        delete from @extschema@.steadytext_rate_limits as l where l.user_id::oid is not distinct from v_role;
        return;
    end if;
    loop
        update @extschema@.steadytext_rate_limits as l set
            requests_per_minute = steadytext_set_limit.requests_per_minute,
            requests_per_hour = steadytext_set_limit.requests_per_hour,
            requests_per_day = steadytext_set_limit.requests_per_day,
            tokens_per_minute = steadytext_set_limit.tokens_per_minute,
            tokens_per_hour = steadytext_set_limit.tokens_per_hour,
            tokens_per_day = steadytext_set_limit.tokens_per_day,
            max_pending = steadytext_set_limit.max_pending
        where l.user_id::oid is not distinct from v_role;
        exit when found;
        begin
            insert into @extschema@.steadytext_rate_limits (user_id, requests_per_minute, requests_per_hour, requests_per_day,
                tokens_per_minute, tokens_per_hour, tokens_per_day, max_pending)
            select pg_get_userbyid(v_role)::steadytext.role_id, steadytext_set_limit.requests_per_minute,
                steadytext_set_limit.requests_per_hour, steadytext_set_limit.requests_per_day,
                steadytext_set_limit.tokens_per_minute, steadytext_set_limit.tokens_per_hour,
                steadytext_set_limit.tokens_per_day, steadytext_set_limit.max_pending;
            exit;
        exception when unique_violation then
            -- Somebody else has made it in the meantime.
            null;
        end;
    end loop;
end
$$;
comment on function @extschema@.steadytext_set_limit(text, bigint, bigint, bigint, bigint, bigint, bigint, bigint) is
    'Limits the requests and tokens of a role and of each of its members, and replaces the limits that it had; NULL or * means everybody. An argument that is not given sets no limit; without any limit the row is deleted';

create function steadytext.reset_usage(p_role oid)
returns boolean
language c volatile strict
as 'MODULE_PATHNAME', 'reset_usage_wrapper';
comment on function steadytext.reset_usage(oid) is 'Forgets the usage of a role; returns whether there was any';

create function @extschema@.steadytext_reset_usage(user_id text)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_role oid;
begin
    if user_id <> '*' and not exists (select from pg_roles as r where r.rolname = steadytext_reset_usage.user_id) then
        raise exception 'role "%" does not exist', left(user_id, 63)
            using errcode = 'undefined_object', hint = 'Give the name of a role: steadytext_limit_usage() lists those that have used anything.';
    end if;
    v_role := steadytext.limited_role(user_id);
    if v_role is null then
        raise exception 'what everybody has used is counted for each role by itself'
            using errcode = 'invalid_parameter_value', hint = 'Give the name of a role: steadytext_limit_usage() lists them.';
    end if;
    update @extschema@.steadytext_rate_limits as l
    set last_reset = clock_timestamp(), current_minute_count = 0, current_hour_count = 0, current_day_count = 0
    where l.user_id::oid = v_role;
    return steadytext.reset_usage(v_role);
end
$$;
comment on function @extschema@.steadytext_reset_usage(text) is
    'Forgets the usage of a role, at once, even if the transaction is rolled back; returns whether there was any';

create function @extschema@.steadytext_my_limits()
returns table (
    limit_name text,
    seconds integer,
    allowed bigint,
    used bigint,
    remaining bigint,
    resets_at timestamptz
)
language c volatile parallel restricted
as 'MODULE_PATHNAME', 'my_limits_wrapper';
comment on function @extschema@.steadytext_my_limits() is
    'Returns the limits that bind the caller: how many are allowed in how many seconds, used and left, and when the first of those that were used no longer counts';

create function @extschema@.steadytext_limit_usage()
returns table (
    user_id text,
    requests_last_minute bigint,
    requests_last_hour bigint,
    requests_last_day bigint,
    tokens_last_minute bigint,
    tokens_last_hour bigint,
    tokens_last_day bigint
)
language c volatile parallel restricted
as 'MODULE_PATHNAME', 'limit_usage_wrapper';
comment on function @extschema@.steadytext_limit_usage() is
    'Returns the present usage in this database of the roles that a limit binds. For administrators and members of pg_monitor';

create function steadytext.limit_wait(p_role oid, p_count bigint)
returns double precision
language c volatile strict
as 'MODULE_PATHNAME', 'limit_wait_wrapper';
comment on function steadytext.limit_wait(oid, bigint) is
    'Returns the seconds until a role may ask for this number of requests at once; NULL where it may now. Called for vectorizers';

create function steadytext.limit_room(p_role oid, p_now boolean)
returns bigint
language c volatile strict
as 'MODULE_PATHNAME', 'limit_room_wrapper';
comment on function steadytext.limit_room(oid, boolean) is
    'Returns the number of requests that a role may ask for at once, now or when it has asked for none; NULL: no limit. Called for vectorizers';

create function steadytext.save_usage(p_roles oid[], p_seconds bigint[], p_requests bigint[], p_tokens bigint[])
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_length integer := cardinality(p_requests) / nullif(cardinality(p_roles), 0);
begin
    -- Roles that are gone have used nothing.
    delete from @extschema@.steadytext_rate_usage as u
    where not exists (select from pg_roles as r where r.oid = u.user_id::oid);
    insert into @extschema@.steadytext_rate_usage as u (user_id, second, requests, tokens)
    select r.rolname::steadytext.role_id, g.second,
        p_requests[(g.n - 1) * v_length + 1 : g.n * v_length], p_tokens[(g.n - 1) * v_length + 1 : g.n * v_length]
    from unnest(p_roles, p_seconds) with ordinality as g(role, second, n)
    join pg_roles as r on r.oid = g.role
    order by g.role
    on conflict (user_id) do update set second = excluded.second, requests = excluded.requests, tokens = excluded.tokens;
    -- A row that an administrator is changing is written the next time.
    with free as materialized (
        select l.ctid as tid, l.user_id::oid as role
        from @extschema@.steadytext_rate_limits as l
        where l.user_id::oid = any (p_roles)
        for no key update skip locked
    )
    update @extschema@.steadytext_rate_limits as l set
        current_minute_count = s.minute, current_hour_count = s.hour, current_day_count = s.day
    from free as f
    cross join lateral (
        select sum(c.value) filter (where c.n <= 61) as minute, sum(c.value) filter (where c.n between 62 and 122) as hour,
            sum(c.value) filter (where c.n > 122) as day
        from unnest(p_requests[(array_position(p_roles, f.role) - 1) * v_length + 1 : array_position(p_roles, f.role) * v_length])
            with ordinality as c(value, n)
    ) as s
    where l.ctid = f.tid;
end
$$;
comment on function steadytext.save_usage(oid[], bigint[], bigint[], bigint[]) is
    'Protocol: writes the usage of roles down, for the next start of the server';

create function steadytext.saved_usage()
returns table (owner oid, second bigint, requests bigint[], tokens bigint[])
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Usage that is older than a day no longer counts.
    select u.user_id::oid, u.second, u.requests, u.tokens
    from @extschema@.steadytext_rate_usage as u
    join pg_roles as r on r.oid = u.user_id::oid
    where u.second > date_part('epoch', clock_timestamp() - '2000-01-01 00:00:00+00'::timestamptz) - 100000
    order by u.second desc
    limit 1024
$$;
comment on function steadytext.saved_usage() is 'Protocol: returns the usage of roles as last written down';
