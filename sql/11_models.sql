-- The registry of models: the only names a request may use besides 'builtin' and 'auto'.
-- Administrators keep it, so that no user can make the server read a file or download one.

create table @extschema@.steadytext_models (
    name text constraint steadytext_models_pkey primary key,
    task text not null,
    file text not null,
    repo text,
    sha256 text,
    is_fallback boolean not null default false,
    is_preferred boolean not null default false,
    is_default boolean not null default false,
    description text,
    created_at timestamptz not null default pg_catalog.now(),
    updated_at timestamptz not null default pg_catalog.now()
);
comment on table @extschema@.steadytext_models is
    'Models that requests may name; a file is looked for under pg_steadytext.model_dir';
comment on column @extschema@.steadytext_models.name is 'What a request says in model or size';
comment on column @extschema@.steadytext_models.task is 'generate, embed or rerank';
comment on column @extschema@.steadytext_models.file is
    'GGUF file, or folder of an encoder with model.safetensors, below pg_steadytext.model_dir; superusers may name an absolute path';
comment on column @extschema@.steadytext_models.repo is 'Where the file comes from: owner/name at the hub';
comment on column @extschema@.steadytext_models.sha256 is
    'Lower-case hexadecimal SHA-256 of the file; NULL when it is not to be checked';
comment on column @extschema@.steadytext_models.is_fallback is
    'Stands in where the usual model of its task cannot be used';
comment on column @extschema@.steadytext_models.is_preferred is
    'The setting auto takes this one first when its file is there';
comment on column @extschema@.steadytext_models.is_default is
    'Came with the extension and was never changed: pg_dump leaves the row out';
comment on column @extschema@.steadytext_models.description is 'What the model is good for';
comment on column @extschema@.steadytext_models.created_at is 'When the row was made';
comment on column @extschema@.steadytext_models.updated_at is 'When the row was last changed';
comment on constraint steadytext_models_pkey on @extschema@.steadytext_models is 'One row per model name';

insert into @extschema@.steadytext_models
    (name, task, file, repo, is_fallback, is_preferred, is_default, description)
values
    ('small', 'generate', 'Qwen3-0.6B-Q8_0.gguf', 'Qwen/Qwen3-0.6B-GGUF', false, true, true,
        'Qwen3 0.6B, 8 bits: quick, for short and simple answers'),
    ('medium', 'generate', 'Qwen3-1.7B-Q8_0.gguf', 'Qwen/Qwen3-1.7B-GGUF', false, false, true,
        'Qwen3 1.7B, 8 bits: the middle way'),
    ('large', 'generate', 'Qwen3-4B-Q8_0.gguf', 'Qwen/Qwen3-4B-GGUF', false, false, true,
        'Qwen3 4B, 8 bits: best answers, slowest'),
    ('qwen2.5-3b', 'generate', 'Qwen2.5-3B-Instruct-Q8_0.gguf',
        'lmstudio-community/Qwen2.5-3B-Instruct-GGUF', true, false, true,
        'Qwen2.5 3B Instruct, 8 bits: fallback'),
    ('qwen3-1.7b-fallback', 'generate', 'qwen3-1.7b-q8_0.gguf',
        'lmstudio-community/qwen3-1.7b-llama-cpp-python-GGUF', true, false, true,
        'Qwen3 1.7B, 8 bits, another conversion: fallback'),
    ('embedding', 'embed', 'Qwen3-Embedding-0.6B-Q8_0.gguf', 'Qwen/Qwen3-Embedding-0.6B-GGUF',
        false, true, true, 'Qwen3 Embedding 0.6B, 8 bits: vectors of 1,024 dimensions'),
    ('reranker', 'rerank', 'Qwen3-Reranker-4B-Q8_0.gguf', null, false, true, true,
        'Qwen3 Reranker 4B, 8 bits');

create function steadytext.check_model()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
begin
    if new.name is null or new.name !~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$' or new.name in ('auto', 'builtin') then
        raise exception 'invalid model name "%"', left(new.name, 63)
            using errcode = 'invalid_parameter_value',
                  hint = 'Use up to 63 letters, digits, dots, dashes and underscores; auto and builtin are taken.';
    end if;
    if new.task is null or new.task not in ('generate', 'embed', 'rerank') then
        raise exception 'invalid task "%" of model "%"', left(new.task, 63), new.name
            using errcode = 'invalid_parameter_value', hint = 'It must be generate, embed or rerank.';
    end if;
    if new.file is null or new.file = '' then
        raise exception 'model "%" has no file', new.name
            using errcode = 'invalid_parameter_value',
                  hint = 'Give the path of a GGUF file or of a folder with model.safetensors, relative to pg_steadytext.model_dir.';
    end if;
    -- The worker reads files with the rights of the server's operating system user: outside of model_dir nobody but a
    -- superuser may have it look. What a superuser has put here stays when others change the rest of its row.
    if tg_op = 'INSERT' or new.file is distinct from old.file then
        if starts_with(new.file, '/') then
            if not coalesce((select r.rolsuper from pg_roles as r where r.rolname = current_user), false) then
                raise exception 'only superusers may register a model file by its absolute path'
                    using errcode = 'insufficient_privilege',
                          hint = 'Put the file into the directory that pg_steadytext.model_dir names, and give its path below it.';
            end if;
        elsif '..' = any (string_to_array(new.file, '/')) then
            raise exception 'the file of model "%" is not below pg_steadytext.model_dir', new.name
                using errcode = 'invalid_parameter_value', hint = 'Give a path below that directory, without "..".';
        end if;
        if new.file ~ '[[:cntrl:]]' then
            raise exception 'the file of model "%" has control characters in its name', new.name
                using errcode = 'invalid_parameter_value', hint = 'Give the file another name.';
        end if;
    end if;
    if new.sha256 !~ '^[0-9a-f]{64}$' then
        raise exception 'invalid sha256 of model "%"', new.name
            using errcode = 'invalid_parameter_value', hint = 'Give 64 lower-case hexadecimal digits.';
    end if;
    if tg_op = 'UPDATE' then
        if new is distinct from old then
            new.is_default := false;
        end if;
        if current_setting('session_replication_role') <> 'replica' then
            new.updated_at := now();
        end if;
    end if;
    return new;
end
$$;
comment on function steadytext.check_model() is
    'Refuses rows of the registry that could not work; a changed row is no default any more';

-- Runs as the extension's owner: administrators may not delete rows of steadytext_config.
create function steadytext.replace_default()
returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $$
begin
    if tg_table_name = 'steadytext_config' then
        delete from @extschema@.steadytext_config as c where c.key = new.key and c.is_default;
    else
        delete from @extschema@.steadytext_models as m where m.name = new.name and m.is_default;
    end if;
    return new;
end
$$;
comment on function steadytext.replace_default() is
    'Takes a default row away when a row of the same name is inserted, as a restore does';

-- Triggers come after the default rows: they have nothing to do for those.
create trigger check_config before insert or update on @extschema@.steadytext_config
    for each row execute function steadytext.check_config();
comment on trigger check_config on @extschema@.steadytext_config is
    'Known keys, right types, values in range';
create trigger replace_default before insert on @extschema@.steadytext_config
    for each row execute function steadytext.replace_default();
comment on trigger replace_default on @extschema@.steadytext_config is
    'A restored row takes the place of the default row';
create trigger note_change after insert or update or delete or truncate on @extschema@.steadytext_config
    for each statement execute function steadytext.note_change();
comment on trigger note_change on @extschema@.steadytext_config is
    'Caches are read again after the commit';

create trigger check_model before insert or update on @extschema@.steadytext_models
    for each row execute function steadytext.check_model();
comment on trigger check_model on @extschema@.steadytext_models is
    'Names, tasks, files and checksums that can work';
create trigger replace_default before insert on @extschema@.steadytext_models
    for each row execute function steadytext.replace_default();
comment on trigger replace_default on @extschema@.steadytext_models is
    'A restored row takes the place of the default row';
create trigger note_change after insert or update or delete or truncate on @extschema@.steadytext_models
    for each statement execute function steadytext.note_change();
comment on trigger note_change on @extschema@.steadytext_models is
    'Caches are read again after the commit';

-- They keep the tables right whoever writes, also what applies changes of another server: under
-- session_replication_role = replica triggers of the usual kind do not fire.
alter table @extschema@.steadytext_config
    enable always trigger check_config,
    enable always trigger replace_default,
    enable always trigger note_change;
alter table @extschema@.steadytext_models
    enable always trigger check_model,
    enable always trigger replace_default,
    enable always trigger note_change;
