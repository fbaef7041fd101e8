-- The registry of prompts: templates in the language of jinja2 under a name, the slug, with all their versions. Roles
-- that may enqueue may keep prompts and read all of them; a prompt's owner and administrators change it.
--
-- A version is never changed: an update adds the next one, which is current from then on.
--
-- Versions refer to their prompt without a foreign key: pg_restore -j fills the tables of an extension in any order.

create table @extschema@.steadytext_prompts (
    id uuid not null default pg_catalog.gen_random_uuid() constraint steadytext_prompts_pkey primary key,
    slug text not null constraint steadytext_prompts_slug_key unique,
    description text,
    created_at timestamptz not null default pg_catalog.now(),
    created_by text not null default current_user,
    updated_at timestamptz not null default pg_catalog.now(),
    updated_by text not null default current_user,
    owner_role steadytext.role_id not null default steadytext.current_role_id()
);
comment on table @extschema@.steadytext_prompts is 'Prompts that are stored under a name';
comment on column @extschema@.steadytext_prompts.id is 'Identifier of the prompt, as steadytext_prompt_create() returns it';
comment on column @extschema@.steadytext_prompts.slug is
    'Name of the prompt: lower-case letters, digits and hyphens. Administrators replace a prompt of the extension by one of the same name, which begins with steadytext/';
comment on column @extschema@.steadytext_prompts.description is 'Purpose of the prompt, in up to 500 characters';
comment on column @extschema@.steadytext_prompts.created_at is 'Time when the prompt was created';
comment on column @extschema@.steadytext_prompts.created_by is 'Name of the role that created the prompt';
comment on column @extschema@.steadytext_prompts.updated_at is 'Time when the current version was created';
comment on column @extschema@.steadytext_prompts.updated_by is 'Name of the role that created the current version';
comment on column @extschema@.steadytext_prompts.owner_role is 'Role that may change the prompt, besides administrators';
comment on constraint steadytext_prompts_pkey on @extschema@.steadytext_prompts is 'One row per prompt';
comment on constraint steadytext_prompts_slug_key on @extschema@.steadytext_prompts is 'Finds a prompt by its name';

create table @extschema@.steadytext_prompt_versions (
    id uuid not null default pg_catalog.gen_random_uuid() constraint steadytext_prompt_versions_pkey primary key,
    prompt_id uuid not null,
    version integer not null,
    template text not null,
    required_variables text[] not null,
    metadata jsonb not null default '{}',
    created_at timestamptz not null default pg_catalog.now(),
    created_by text not null default current_user,
    constraint steadytext_prompt_versions_prompt_id_version_key unique (prompt_id, version)
);
comment on table @extschema@.steadytext_prompt_versions is 'Versions of each prompt; the highest one is current';
comment on column @extschema@.steadytext_prompt_versions.id is 'Identifier of the version, as steadytext_prompt_update() returns it';
comment on column @extschema@.steadytext_prompt_versions.prompt_id is 'Prompt that this is a version of';
comment on column @extschema@.steadytext_prompt_versions.version is 'Number of the version within its prompt, from 1';
comment on column @extschema@.steadytext_prompt_versions.template is 'Template, in the language of Jinja2';
comment on column @extschema@.steadytext_prompt_versions.required_variables is 'Names of the variables of the template, sorted';
comment on column @extschema@.steadytext_prompt_versions.metadata is 'Notes of the owner: an object of up to 64 kB';
comment on column @extschema@.steadytext_prompt_versions.created_at is 'Time when the version was created';
comment on column @extschema@.steadytext_prompt_versions.created_by is 'Name of the role that created the version';
comment on constraint steadytext_prompt_versions_pkey on @extschema@.steadytext_prompt_versions is 'One row per version';
comment on constraint steadytext_prompt_versions_prompt_id_version_key on @extschema@.steadytext_prompt_versions is
    'Finds the current version of a prompt';

create function steadytext.prompt_variables(template text)
returns text[]
language c immutable parallel safe
as 'MODULE_PATHNAME', 'prompt_variables_wrapper';
comment on function steadytext.prompt_variables(text) is
    'Returns the names of a template''s variables, sorted; an error where the template does not compile';

create function steadytext.render_prompt(template text, variables jsonb, strict boolean)
returns text
language c immutable parallel safe
as 'MODULE_PATHNAME', 'render_prompt_wrapper';
comment on function steadytext.render_prompt(text, jsonb, boolean) is
    'Returns a template filled in with the values of an object; in strict mode each variable must have a value';

create function steadytext.check_replacement(slug text, template text)
returns void
language c immutable parallel safe
as 'MODULE_PATHNAME', 'check_replacement_wrapper';
comment on function steadytext.check_replacement(text, text) is
    'Refuses a template that cannot take the place of the extension''s prompt of this name';

-- PostgreSQL's messages about constraints would show the row.
create function steadytext.check_prompt()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if new.slug is null or new.slug !~ '^(steadytext/)?[a-z0-9]+(-[a-z0-9]+)*$' or length(new.slug) not between 3 and 100 then
        raise exception 'Invalid slug format. Use lowercase letters, numbers, and hyphens only (3-100 chars)'
            using errcode = 'invalid_text_representation', hint = 'As in summary-of-ticket. The extension''s own prompts are called steadytext/….';
    end if;
    if length(new.description) > 500 then
        raise exception 'the description of prompt "%" has more than 500 characters', new.slug
            using errcode = 'invalid_parameter_value', hint = 'Put the rest into the metadata of its versions.';
    end if;
    -- The user who changes a prompt is recorded.
    if tg_op = 'UPDATE' and current_setting('session_replication_role') <> 'replica' then
        new.updated_at := now();
        new.updated_by := current_user;
    end if;
    return new;
end
$$;
comment on function steadytext.check_prompt() is 'Checks names and descriptions of prompts';

create function steadytext.check_prompt_version()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_slug text;
begin
    if new.template is null or new.template = '' then
        raise exception 'Prompt template cannot be empty'
            using errcode = 'invalid_parameter_value', hint = 'Give a Jinja template, as in ''Summarize: {{ text }}''.';
    end if;
    new.metadata := coalesce(new.metadata, '{}');
    if jsonb_typeof(new.metadata) <> 'object' or length(new.metadata::text) > 65536 then
        raise exception 'the metadata of a prompt are not a JSON object of up to 65536 characters'
            using errcode = 'invalid_parameter_value', hint = 'As in {"author": "me"}.';
    end if;
    if new.version is null or new.version not between 1 and 1000000 then
        raise exception 'versions of prompts are counted from 1 to 1000000'
            using errcode = 'invalid_parameter_value', hint = 'steadytext_prompt_update() gives a new version its number.';
    end if;
    new.required_variables := steadytext.prompt_variables(new.template);
    -- Rows of a dump come with their time. They were checked when they were made, maybe by another version of the library.
    if new.created_at = now() then
        select p.slug into v_slug from @extschema@.steadytext_prompts as p where p.id = new.prompt_id;
        if starts_with(v_slug, 'steadytext/') then
            perform steadytext.check_replacement(v_slug, new.template);
        end if;
    end if;
    return new;
end
$$;
comment on function steadytext.check_prompt_version() is
    'Refuses templates that do not compile, and sets the names of their variables';

-- Runs as the extension's owner: versions are not deleted by themselves.
create function steadytext.delete_prompt_versions()
returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from @extschema@.steadytext_prompt_versions as v where v.prompt_id = old.id;
    return null;
end
$$;
comment on function steadytext.delete_prompt_versions() is 'Deletes the versions of deleted prompts';

create function steadytext.is_replacement(prompt_id uuid)
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (
        select from @extschema@.steadytext_prompts as p
        where p.id = is_replacement.prompt_id and starts_with(p.slug, 'steadytext/'));
end
$$;
comment on function steadytext.is_replacement(uuid) is
    'Says whether a prompt takes the place of one of the extension''s';

create trigger delete_versions after delete on @extschema@.steadytext_prompts
    for each row execute function steadytext.delete_prompt_versions();
comment on trigger delete_versions on @extschema@.steadytext_prompts is 'Deletes the versions of deleted prompts';
create trigger check_prompt before insert or update on @extschema@.steadytext_prompts
    for each row execute function steadytext.check_prompt();
comment on trigger check_prompt on @extschema@.steadytext_prompts is 'Checks names and descriptions of prompts';
create trigger check_prompt_version before insert or update on @extschema@.steadytext_prompt_versions
    for each row execute function steadytext.check_prompt_version();
comment on trigger check_prompt_version on @extschema@.steadytext_prompt_versions is
    'Refuses templates that do not compile, and sets the names of their variables';

-- All sessions read settings, registry and replaced prompts again after such a change. Users have prompts of their own,
-- and may not make others do that work.
create trigger note_addition after insert on @extschema@.steadytext_prompt_versions
    for each row when (steadytext.is_replacement(new.prompt_id)) execute function steadytext.note_change();
comment on trigger note_addition on @extschema@.steadytext_prompt_versions is
    'Tells every session that a prompt of the extension has been replaced';
create trigger note_change after update on @extschema@.steadytext_prompt_versions
    for each row when (steadytext.is_replacement(old.prompt_id) or steadytext.is_replacement(new.prompt_id))
    execute function steadytext.note_change();
comment on trigger note_change on @extschema@.steadytext_prompt_versions is
    'Tells every session that a prompt of the extension is replaced by another one';
create trigger note_removal after delete on @extschema@.steadytext_prompt_versions
    for each row when (steadytext.is_replacement(old.prompt_id)) execute function steadytext.note_change();
comment on trigger note_removal on @extschema@.steadytext_prompt_versions is
    'Tells every session that a prompt of the extension is replaced by an older version';
create trigger note_truncation after truncate on @extschema@.steadytext_prompt_versions
    for each statement execute function steadytext.note_change();
comment on trigger note_truncation on @extschema@.steadytext_prompt_versions is
    'Tells every session that no prompt of the extension is replaced any more';
create trigger note_renaming after update of slug on @extschema@.steadytext_prompts
    for each row when (pg_catalog.starts_with(old.slug, 'steadytext/') or pg_catalog.starts_with(new.slug, 'steadytext/'))
    execute function steadytext.note_change();
comment on trigger note_renaming on @extschema@.steadytext_prompts is
    'Tells every session that another prompt of the extension is replaced';
create trigger note_removal after delete on @extschema@.steadytext_prompts
    for each row when (pg_catalog.starts_with(old.slug, 'steadytext/')) execute function steadytext.note_change();
comment on trigger note_removal on @extschema@.steadytext_prompts is
    'Tells every session that a prompt of the extension is no longer replaced';
create trigger note_truncation after truncate on @extschema@.steadytext_prompts
    for each statement execute function steadytext.note_change();
comment on trigger note_truncation on @extschema@.steadytext_prompts is
    'Tells every session that no prompt of the extension is replaced any more';
alter table @extschema@.steadytext_prompts
    enable always trigger check_prompt,
    enable always trigger delete_versions,
    enable always trigger note_renaming,
    enable always trigger note_removal,
    enable always trigger note_truncation;
alter table @extschema@.steadytext_prompt_versions
    enable always trigger check_prompt_version,
    enable always trigger note_addition,
    enable always trigger note_change,
    enable always trigger note_removal,
    enable always trigger note_truncation;

alter table @extschema@.steadytext_prompts enable row level security;
create policy user_select on @extschema@.steadytext_prompts for select to steadytext_user using (true);
comment on policy user_select on @extschema@.steadytext_prompts is 'Users see every prompt';
create policy user_insert on @extschema@.steadytext_prompts
    for insert to steadytext_user
    with check (owner_role::pg_catalog.oid operator(pg_catalog.=) steadytext.current_role_id()::pg_catalog.oid
        and not pg_catalog.starts_with(slug, 'steadytext/'));
comment on policy user_insert on @extschema@.steadytext_prompts is
    'Users create prompts of their own, under names that are not the extension''s';
create policy user_update on @extschema@.steadytext_prompts
    for update to steadytext_user
    using (owner_role::pg_catalog.oid operator(pg_catalog.=) steadytext.current_role_id()::pg_catalog.oid
        and not pg_catalog.starts_with(slug, 'steadytext/'));
comment on policy user_update on @extschema@.steadytext_prompts is
    'Users change their own prompts. One in the place of the extension''s is not theirs: who created it may be no administrator any more';
create policy user_delete on @extschema@.steadytext_prompts
    for delete to steadytext_user
    using (owner_role::pg_catalog.oid operator(pg_catalog.=) steadytext.current_role_id()::pg_catalog.oid
        and not pg_catalog.starts_with(slug, 'steadytext/'));
comment on policy user_delete on @extschema@.steadytext_prompts is
    'Users delete their own prompts, unless these stand in the place of the extension''s';
create policy admin_all on @extschema@.steadytext_prompts for all to steadytext_admin using (true);
comment on policy admin_all on @extschema@.steadytext_prompts is 'Administrators create, change and delete every prompt';

alter table @extschema@.steadytext_prompt_versions enable row level security;
create policy user_select on @extschema@.steadytext_prompt_versions for select to steadytext_user using (true);
comment on policy user_select on @extschema@.steadytext_prompt_versions is 'Users see every version';
create policy user_insert on @extschema@.steadytext_prompt_versions
    for insert to steadytext_user
    with check (exists (
        select from @extschema@.steadytext_prompts as p
        where p.id operator(pg_catalog.=) prompt_id
            and p.owner_role::pg_catalog.oid operator(pg_catalog.=) steadytext.current_role_id()::pg_catalog.oid
            and not pg_catalog.starts_with(p.slug, 'steadytext/')));
comment on policy user_insert on @extschema@.steadytext_prompt_versions is
    'Users add versions to their own prompts, unless these stand in the place of the extension''s';
create policy admin_select on @extschema@.steadytext_prompt_versions for select to steadytext_admin using (true);
comment on policy admin_select on @extschema@.steadytext_prompt_versions is 'Administrators see every version';
create policy admin_insert on @extschema@.steadytext_prompt_versions for insert to steadytext_admin
    with check (exists (
        select from @extschema@.steadytext_prompts as p where p.id operator(pg_catalog.=) prompt_id));
comment on policy admin_insert on @extschema@.steadytext_prompt_versions is 'Administrators add versions to every prompt';

create function @extschema@.steadytext_prompt_create(
    slug text,
    template text,
    description text default null,
    metadata jsonb default '{}'
)
returns uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid;
begin
    begin
        insert into @extschema@.steadytext_prompts as p (slug, description)
        values (steadytext_prompt_create.slug, steadytext_prompt_create.description)
        returning p.id into v_id;
    exception
        when unique_violation then
            raise exception 'Prompt with slug "%" already exists', steadytext_prompt_create.slug
                using errcode = 'unique_violation', hint = 'steadytext_prompt_update() adds a version to it.';
        when insufficient_privilege then
            if not starts_with(steadytext_prompt_create.slug, 'steadytext/')
                or not pg_has_role('steadytext_user', 'usage') then
                raise;
            end if;
            raise exception 'prompt "%" takes the place of one of the extension''s', left(steadytext_prompt_create.slug, 100)
                using errcode = 'insufficient_privilege',
                      hint = 'Members of steadytext_admin may create it; you may keep one of your own under another name.';
    end;
    insert into @extschema@.steadytext_prompt_versions (prompt_id, version, template, metadata)
    values (v_id, 1, steadytext_prompt_create.template, steadytext_prompt_create.metadata);
    return v_id;
end
$$;
comment on function @extschema@.steadytext_prompt_create(text, text, text, jsonb) is
    'Stores a template under a name, as version 1; returns the id of the prompt';

create function steadytext.prompt_id(p_slug text)
returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid;
begin
    select p.id into v_id from @extschema@.steadytext_prompts as p where p.slug = p_slug;
    if v_id is null then
        raise exception 'Prompt with slug "%" not found', left(p_slug, 100)
            using errcode = 'no_data_found', hint = 'steadytext_prompt_list() shows what there is.';
    end if;
    return v_id;
end
$$;
comment on function steadytext.prompt_id(text) is 'Returns the id of the prompt of this name; an error where there is none';

create function @extschema@.steadytext_prompt_update(slug text, template text, metadata jsonb default '{}')
returns uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_prompt uuid := steadytext.prompt_id(slug);
    v_version uuid;
begin
    -- The row lock makes concurrent updates of the same prompt wait until this one's version is there.
    update @extschema@.steadytext_prompts as p
    set updated_at = now(), updated_by = current_user
    where p.id = v_prompt;
    if not found then
        perform steadytext.refuse_change('prompt', slug,
            'Its owner and members of steadytext_admin may change it; you may keep one of your own under another name.');
    end if;
    insert into @extschema@.steadytext_prompt_versions as v (prompt_id, version, template, metadata)
    select v_prompt, coalesce(max(o.version), 0) + 1, steadytext_prompt_update.template, steadytext_prompt_update.metadata
    from @extschema@.steadytext_prompt_versions as o
    where o.prompt_id = v_prompt
    returning v.id into v_version;
    return v_version;
end
$$;
comment on function @extschema@.steadytext_prompt_update(text, text, jsonb) is
    'Adds a version to a prompt, which is its current one from then on; returns the id of the version';

create function steadytext.builtin_prompt(slug text, version bigint)
returns table (version_num integer, template text, required_variables text[])
language c immutable parallel safe rows 1
as 'MODULE_PATHNAME', 'builtin_prompt_wrapper';
comment on function steadytext.builtin_prompt(text, bigint) is
    'Returns a prompt that functions of the extension give to models, such as steadytext/classify; no row where there is none';

create function @extschema@.steadytext_prompt_get(slug text, version bigint default null)
returns table (
    prompt_id uuid,
    version_num integer,
    template text,
    required_variables text[],
    metadata jsonb,
    created_at timestamptz,
    created_by text
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_prompt uuid;
begin
    -- Prompts of the library have neither an id nor an author.
    if not exists (select from @extschema@.steadytext_prompts as p where p.slug = steadytext_prompt_get.slug) then
        return query
        select null::uuid, b.version_num, b.template, b.required_variables, '{"builtin": true}'::jsonb,
            null::timestamptz, null::text
        from steadytext.builtin_prompt(slug, version) as b;
        if found then
            return;
        end if;
    end if;
    v_prompt := steadytext.prompt_id(slug);
    return query
    select v.prompt_id, v.version, v.template, v.required_variables, v.metadata, v.created_at, v.created_by
    from @extschema@.steadytext_prompt_versions as v
    where v.prompt_id = v_prompt
        and (steadytext_prompt_get.version is null or v.version = steadytext_prompt_get.version)
    order by v.version desc
    limit 1;
    if not found then
        raise exception 'Version % not found for prompt "%"', version, slug
            using errcode = 'no_data_found', hint = 'steadytext_prompt_versions() shows what there is.';
    end if;
end
$$;
comment on function @extschema@.steadytext_prompt_get(text, bigint) is
    'Returns a prompt''s template with its variables, metadata, date and author, of the current version or of another one';

create function @extschema@.steadytext_prompt_render(
    slug text,
    variables jsonb,
    version bigint default null,
    strict boolean default true
)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_prompt record;
    v_missing text;
begin
    select g.template, g.required_variables into v_prompt from @extschema@.steadytext_prompt_get(slug, version) as g;
    if coalesce(strict, true) and coalesce(jsonb_typeof(variables), 'object') = 'object' then
        select string_agg(r.name, ', ' order by r.name collate "C") into v_missing
        from unnest(v_prompt.required_variables) as r (name)
        where not coalesce(variables, '{}') ? r.name;
        if v_missing is not null then
            -- The predecessor's words and code.
            raise exception 'Missing required variables: %', v_missing
                using errcode = 'internal_error', hint = 'Give them, or strict => false.';
        end if;
    end if;
    return steadytext.render_prompt(v_prompt.template, variables, coalesce(strict, true));
end
$$;
comment on function @extschema@.steadytext_prompt_render(text, jsonb, bigint, boolean) is
    'Returns a prompt''s template filled in with the values of an object; in strict mode each variable must have a value';

create function @extschema@.steadytext_prompt_list()
returns table (
    prompt_id uuid,
    slug text,
    description text,
    latest_version_num integer,
    total_versions integer,
    created_at timestamptz,
    updated_at timestamptz
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select p.id, p.slug, p.description, max(v.version), count(v.id)::integer, p.created_at, p.updated_at
    from @extschema@.steadytext_prompts as p
    left join @extschema@.steadytext_prompt_versions as v on v.prompt_id = p.id
    group by p.id
    order by p.created_at desc, p.slug collate "C";
end
$$;
comment on function @extschema@.steadytext_prompt_list() is 'Returns all prompts, the newest first';

create function @extschema@.steadytext_prompt_versions(slug text)
returns table (
    version_num integer,
    template text,
    required_variables text[],
    metadata jsonb,
    created_at timestamptz,
    created_by text,
    is_active boolean
)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_prompt uuid := steadytext.prompt_id(slug);
begin
    return query
    select v.version, v.template, v.required_variables, v.metadata, v.created_at, v.created_by,
        v.version = max(v.version) over ()
    from @extschema@.steadytext_prompt_versions as v
    where v.prompt_id = v_prompt
    order by v.version desc;
end
$$;
comment on function @extschema@.steadytext_prompt_versions(text) is
    'Returns all versions of a prompt, the current one first';

create function @extschema@.steadytext_prompt_delete(slug text)
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from @extschema@.steadytext_prompts as p where p.slug = steadytext_prompt_delete.slug;
    if found then
        return true;
    end if;
    if exists (select from @extschema@.steadytext_prompts as p where p.slug = steadytext_prompt_delete.slug) then
        perform steadytext.refuse_change('prompt', slug, 'Its owner and members of steadytext_admin may delete it.');
    end if;
    return false;
end
$$;
comment on function @extschema@.steadytext_prompt_delete(text) is
    'Deletes a prompt with all its versions; returns false where there is no prompt of this name';
