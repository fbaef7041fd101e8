-- Acts of administrators, and refusals, for auditors to read. Never a word of a prompt.
--
-- An act is written in the transaction that does it, so that it is there if and only if it was done. A refusal is an error, which rolls
-- back all that its transaction writes: it is noted in shared memory, and the worker writes it down.

create table @extschema@.steadytext_audit_log (
    id bigint generated always as identity constraint steadytext_audit_log_pkey primary key,
    "timestamp" timestamptz not null default pg_catalog.clock_timestamp(),
    user_id text not null default current_user,
    action text not null,
    request_id uuid,
    details jsonb,
    ip_address inet default pg_catalog.inet_client_addr(),
    success boolean not null default true,
    error_message text,
    -- Names of later versions of the Python extension.
    event_id uuid not null default pg_catalog.gen_random_uuid(),
    event_type text generated always as (action) stored,
    created_at timestamptz generated always as ("timestamp") stored,
    session_user_id text default session_user
);
comment on table @extschema@.steadytext_audit_log is
    'Acts of administrators and refusals: what was done or refused, to whom and when; nobody may change an entry';
comment on column @extschema@.steadytext_audit_log.id is 'Number of the entry, in the order of the entries';
comment on column @extschema@.steadytext_audit_log."timestamp" is 'Time when it was done or refused';
comment on column @extschema@.steadytext_audit_log.user_id is 'Role that did it, or was refused it';
comment on column @extschema@.steadytext_audit_log.action is
    'What was done, as kind of thing and act, such as config_change or cache_clear; or what was refused: limit_refused, right_refused';
comment on column @extschema@.steadytext_audit_log.request_id is 'Request that the entry is about; NULL where there is none';
comment on column @extschema@.steadytext_audit_log.details is 'Counts and names, never a prompt. An entry about refusals has their number, as each kind has one row a minute; so has an entry about acts where many of a kind were done in one';
comment on column @extschema@.steadytext_audit_log.ip_address is
    'Address that the client was connected from; NULL through a Unix socket';
comment on column @extschema@.steadytext_audit_log.success is 'True if it was done, false if it was refused';
comment on column @extschema@.steadytext_audit_log.error_message is 'Reason for the refusal';
comment on column @extschema@.steadytext_audit_log.event_id is 'Identifier that no entry of another server has';
comment on column @extschema@.steadytext_audit_log.event_type is 'Same value as action';
comment on column @extschema@.steadytext_audit_log.created_at is 'Same value as timestamp';
comment on column @extschema@.steadytext_audit_log.session_user_id is
    'Role that had logged in, where user_id is one that it had taken on with SET ROLE';
comment on constraint steadytext_audit_log_pkey on @extschema@.steadytext_audit_log is 'One row per act';
comment on sequence @extschema@.steadytext_audit_log_id_seq is 'Source of steadytext_audit_log.id';

create index steadytext_audit_log_timestamp_idx on @extschema@.steadytext_audit_log ("timestamp");
comment on index @extschema@.steadytext_audit_log_timestamp_idx is 'Finds the entries of a period';

alter table @extschema@.steadytext_audit_log enable row level security;
create policy admin_select on @extschema@.steadytext_audit_log for select to steadytext_admin using (true);
comment on policy admin_select on @extschema@.steadytext_audit_log is 'Administrators see every entry, others none';
create policy auditor_select on @extschema@.steadytext_audit_log for select to steadytext_auditor using (true);
comment on policy auditor_select on @extschema@.steadytext_audit_log is 'Auditors see every entry, too';

create function steadytext.outer_role()
returns oid
language c stable parallel restricted
as 'MODULE_PATHNAME', 'outer_role_wrapper';
comment on function steadytext.outer_role() is
    'Returns the role of the session, or of SET ROLE, even while a function with rights of its own is running';

-- Runs as the extension's owner, who alone writes the log. When a role does the same in the same words more than 10 times in a minute, further
-- acts are counted in one row; so are the acts of a role that is no administrator beyond 100: a loop fills no table that others read.
create function steadytext.note_act()
returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    c_same constant integer := 10;
    c_all constant integer := 100;
    v_new jsonb := case when tg_op <> 'DELETE' then to_jsonb(new) end;
    v_old jsonb := case when tg_op <> 'INSERT' then to_jsonb(old) end;
    v_user text := pg_get_userbyid(steadytext.outer_role());
    v_action text := tg_argv[0] || case tg_op when 'INSERT' then '_create' when 'UPDATE' then '_change' else '_drop' end;
    v_details jsonb;
    v_is_change boolean;
    v_recent record;
begin
    -- Acts that arrive by replication were noted on the other server.
    if current_setting('session_replication_role') = 'replica' then
        return null;
    end if;
    -- A restore does nothing that was not done before: its rows come with their time, and take the place of default rows.
    if tg_op = 'INSERT' and coalesce(v_new ->> 'created_at', v_new ->> 'updated_at')::timestamptz <> now()
        or tg_op = 'DELETE' and (v_old ->> 'is_default')::boolean
            and pg_has_role(steadytext.outer_role(), (select c.relowner from pg_class as c where c.oid = tg_relid), 'member')
    then
        return null;
    end if;
    -- The first name is what it is about, and those with = are always said; of the others, those that are new or different. Of those with ? it is only
    -- said that they are different.
    select
        jsonb_object_agg(c.name, case when c.mark = '?' then 'changed' else left(coalesce(v_new, v_old) ->> c.name, 200) end)
            filter (where c.is_first or c.mark = '=' or c.is_told),
        coalesce(bool_or(c.is_told), false)
    into v_details, v_is_change
    from (
        select n.name, n.mark, n.is_first,
            tg_op = 'INSERT' and n.mark <> '?' and v_new -> n.name <> 'null'
                or tg_op = 'UPDATE' and v_new -> n.name is distinct from v_old -> n.name as is_told
        from (
            select ltrim(a.given, '=?') as name, left(a.given, 1) as mark, a.n = 1 as is_first
            from unnest(tg_argv[1 :]) with ordinality as a(given, n)
        ) as n
    ) as c;
    if tg_op = 'UPDATE' and not v_is_change then
        return null;
    end if;
    -- Only acts that are noted in the same words are put together, so that a flood hides no act of an administrator. Acts of other roles on things
    -- of their own are put together beyond a hundred as well.
    select count(*) as count, count(*) filter (where r.is_same) as same, max(r.id) as id, max(r.id) filter (where r.is_same) as same_id
    into v_recent
    from (
        select l.id, l.details operator(pg_catalog.-) array['count', 'last'] = v_details as is_same
        from @extschema@.steadytext_audit_log as l
        where l."timestamp" >= date_trunc('minute', clock_timestamp()) and l.user_id = v_user and l.action = v_action and l.success
    ) as r;
    if v_recent.same >= c_same or v_recent.count >= c_all and not pg_has_role(steadytext.outer_role(), 'steadytext_admin', 'usage') then
        -- Nobody waits for another one's act: where the row is somebody's at this moment there is one more.
        update @extschema@.steadytext_audit_log as l set
            details = v_details || jsonb_build_object(
                'count', coalesce((l.details ->> 'count')::bigint, 1) + 1, 'last', clock_timestamp()),
            session_user_id = session_user
        where l.id = (
            select h.id from @extschema@.steadytext_audit_log as h
            where h.id = case when v_recent.same >= c_same then v_recent.same_id else v_recent.id end
            for update skip locked);
        if found then
            return null;
        end if;
    end if;
    insert into @extschema@.steadytext_audit_log (user_id, action, details) values (v_user, v_action, v_details);
    return null;
end
$$;
comment on function steadytext.note_act() is
    'Notes a changed row in the audit log. Arguments: what the rows are called, the column that names one, and the columns whose values are noted; with = before a column it is always noted, with ? before it only that it has changed';

create function steadytext.note_refusal(p_kind text)
returns void
language c volatile
as 'MODULE_PATHNAME', 'note_refusal_wrapper';
comment on function steadytext.note_refusal(text) is
    'Notes that the caller was refused a change of a vectorizer, an enrichment or a prompt, even if the transaction is rolled back; called by refuse_change';

-- Runs as the extension's owner, who alone may note a refusal. Anybody may call it and is refused then, as by the functions that do: what is noted is
-- that, and only where the thing is there and is another one's.
create function steadytext.refuse_change(p_kind text, p_name text, p_hint text)
returns void
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_caller oid := steadytext.outer_role();
    v_message text := case p_kind
        when 'prompt' then format('prompt "%s" belongs to another role', left(p_name, 100))
        else format('must be owner of %s "%s"', p_kind, left(p_name, 100))
    end;
begin
    if coalesce(p_kind, '') not in ('vectorizer', 'enrichment', 'prompt') then
        raise exception 'there is no such kind of thing'
            using errcode = 'invalid_parameter_value', hint = 'It is vectorizer, enrichment or prompt.';
    end if;
    if (case p_kind
        when 'prompt' then not pg_has_role(v_caller, 'steadytext_admin', 'usage') and exists (
            select from @extschema@.steadytext_prompts as p where p.slug = p_name and p.owner_role::oid <> v_caller)
        else exists (
            select from @extschema@.steadytext_vectorizers as v
            where v.name = p_name and v.kind = p_kind and not coalesce(pg_has_role(v_caller, v.owner_role::oid, 'usage'), false))
    end) then
        perform steadytext.note_refusal(p_kind);
    end if;
    raise exception '%', v_message
        using errcode = 'insufficient_privilege', hint = coalesce(left(p_hint, 200), 'It is its owner''s to say.');
end
$$;
comment on function steadytext.refuse_change(text, text, text) is
    'Refuses a change of a vectorizer, an enrichment or a prompt that is another role''s, and has it noted';

create function steadytext.note_refusals(
    p_roles oid[],
    p_sessions oid[],
    p_what text[],
    p_codes text[],
    p_messages text[],
    p_counts bigint[],
    p_first timestamptz[],
    p_last timestamptz[],
    p_dropped bigint
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    insert into @extschema@.steadytext_audit_log ("timestamp", user_id, session_user_id, action, details, ip_address, success, error_message)
    select r.first, pg_get_userbyid(r.role), pg_get_userbyid(r.session), case when starts_with(r.what, 'rights') then 'right_refused' else 'limit_refused' end,
        jsonb_build_object('count', r.count, 'last', r.last, 'sqlstate', r.code)
            || case when starts_with(r.what, 'rights') then '{}' else jsonb_build_object('limit', r.what) end,
        null, false, r.message
    from unnest(p_roles, p_sessions, p_what, p_codes, p_messages, p_counts, p_first, p_last)
        as r(role, session, what, code, message, count, first, last);
    if p_dropped > 0 then
        insert into @extschema@.steadytext_audit_log (action, details, ip_address, success, error_message)
        values ('refusals_dropped', jsonb_build_object('count', p_dropped), null, false,
            'more kinds of refusals than there is room for in a minute');
    end if;
end
$$;
comment on function steadytext.note_refusals(oid[], oid[], text[], text[], text[], bigint[], timestamptz[], timestamptz[], bigint) is
    'Protocol: writes the refusals that shared memory has counted into the audit log';

create function steadytext.sweep_audit_log()
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_days integer := steadytext.config_integer('audit_retention_days');
    v_count integer := 0;
begin
    if v_days > 0 then
        delete from @extschema@.steadytext_audit_log as l
        where l.id in (
            select o.id from @extschema@.steadytext_audit_log as o
            where o."timestamp" < clock_timestamp() - v_days * interval '1 day'
            order by o."timestamp"
            limit 1000
            for update skip locked);
        get diagnostics v_count = row_count;
    end if;
    return v_count >= 1000;
end
$$;
comment on function steadytext.sweep_audit_log() is
    'Protocol: deletes a portion of the entries that are older than audit_retention_days; true if there may be more';
