-- Configuration of one database: known keys with type and range, checked by a trigger so
-- that config_set, plain UPDATEs and a restore meet the same rules.
--
-- Default rows (is_default) come from config_keys() and are not dumped; a dumped row
-- replaces the default row that CREATE EXTENSION has put in its way.

create function steadytext.config_keys()
returns table (
    key text,
    kind text,
    minimum numeric,
    maximum numeric,
    default_value jsonb,
    description text
)
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
    values
        ('default_max_tokens', 'integer', 1, 1048576, '512'::jsonb,
            'Tokens generated at most when a request does not say'),
        ('generation_model', 'text', null, null, '"auto"'::jsonb,
            'Model that generates text where neither request, session, role nor database names one; auto: see pg_steadytext.generation_model'),
        ('embedding_model', 'text', null, null, '"auto"'::jsonb,
            'Model that computes embeddings where neither request, session, role nor database names one; auto: see pg_steadytext.embedding_model'),
        ('reranker_model', 'text', null, null, '"auto"'::jsonb,
            'Model that ranks documents where neither request, session, role nor database names one; auto: see pg_steadytext.reranker_model'),
        ('default_seed', 'integer', 0, 9223372036854775807, '42',
            'Seed of a request that gives none (only used with temperature above 0)'),
        ('max_tokens_limit', 'integer', 1, 1048576, '4096',
            'Upper end of max_tokens in a request'),
        ('max_queue_size', 'integer', 1, 1000000000, '1000000',
            'Pending requests at most; beyond it enqueuing is refused'),
        ('max_queue_size_per_role', 'integer', 1, 1000000000, '250000',
            'Pending requests of one role at most; administrators are only bound by max_queue_size'),
        ('max_batch_size', 'integer', 1, 100000, '1000',
            'Elements at most in one call of a batch function'),
        ('max_vectorizers_per_role', 'integer', 0, 1000000, '100',
            'Vectorizers of one role at most; superusers may make more for it'),
        ('max_prompt_bytes', 'integer', 1, 268435456, '1048576',
            'Length of one prompt at most, in bytes'),
        ('max_retries', 'integer', 0, 100, '3',
            'Retries of a request whose row does not say'),
        ('worker_poll_interval', 'number', 0.01, 3600, '1',
            'Seconds between two looks around while requests wait or run and nothing wakes the worker; it looks 30 times as seldom while there are none'),
        ('worker_paused', 'boolean', null, null, 'false',
            'The worker of this database claims nothing; see steadytext_daemon_stop()'),
        ('queue_retention_hours', 'integer', 0, 876000, '168',
            'Finished requests are deleted after this many hours; 0 keeps them for ever'),
        ('audit_retention_days', 'integer', 0, 36500, '365',
            'Entries of the audit log are deleted after this many days; 0 keeps them for ever'),
        ('cache_enabled', 'boolean', null, null, 'true',
            'Answers are cached and taken from the cache'),
        ('cache_max_entry_bytes', 'integer', 0, 268435456, '1048576',
            'Longest prompt and answer together, in bytes, that are cached'),
        ('cache_eviction_enabled', 'boolean', null, null, 'true',
            'The cache is trimmed by itself'),
        ('cache_eviction_interval', 'integer', 1, 31536000, '300',
            'Seconds between two evictions'),
        ('cache_max_entries', 'integer', 0, 1000000000, '10000',
            'Cache entries at most'),
        ('cache_max_size_mb', 'number', 0, 1000000000, '1000',
            'Size of the cache at most, in MB'),
        ('cache_eviction_batch_size', 'integer', 1, 1000000, '100',
            'Entries evicted in one go'),
        ('cache_min_access_count', 'integer', 0, 1000000000, '2',
            'Entries used at least this often are kept longer'),
        ('cache_min_age_hours', 'number', 0, 876000, '1',
            'Entries younger than this many hours are not evicted'),
        ('cron_host', 'text', null, null, '"localhost"',
            'Host that pg_cron connects to for scheduled eviction'),
        ('cron_port', 'integer', 1, 65535, '5432',
            'Port that pg_cron connects to for scheduled eviction'),
        ('daemon_host', 'text', null, null, '"localhost"',
            'Without effect: accepted from programs written for versions with a daemon'),
        ('daemon_port', 'integer', 1, 65535, '5555',
            'Without effect: accepted from programs written for versions with a daemon'),
        ('daemon_auto_start', 'boolean', null, null, 'true',
            'Without effect: accepted from programs written for versions with a daemon')
$$;
comment on function steadytext.config_keys() is
    'Returns every key of steadytext_config with its type, range and built-in default';

create table @extschema@.steadytext_config (
    key text constraint steadytext_config_pkey primary key,
    value jsonb not null,
    description text,
    updated_at timestamptz not null default pg_catalog.now(),
    updated_by text not null default current_user,
    is_default boolean not null default false
);
comment on table @extschema@.steadytext_config is
    'Settings of pg_steadytext in this database; those of the server are the parameters pg_steadytext.*';
comment on column @extschema@.steadytext_config.key is 'Name of the setting; docs/sql.md lists them all';
comment on column @extschema@.steadytext_config.value is 'Value of the setting: a JSON number, boolean or string, as the key demands';
comment on column @extschema@.steadytext_config.description is 'Description of the setting';
comment on column @extschema@.steadytext_config.updated_at is 'Time when the value was last changed';
comment on column @extschema@.steadytext_config.updated_by is 'User who last changed the value';
comment on column @extschema@.steadytext_config.is_default is
    'True where the value was never set: pg_dump leaves the row out. Setting it to true brings the built-in value back';
comment on constraint steadytext_config_pkey on @extschema@.steadytext_config is 'One row per setting';

insert into @extschema@.steadytext_config (key, value, description, is_default)
select k.key, k.default_value, k.description, true
from steadytext.config_keys() as k;

create function steadytext.refuse_key(p_key text)
returns void
language plpgsql stable parallel safe
set search_path = pg_catalog, pg_temp
as $$
declare
    v_close text;
begin
    -- Close keys share pairs of letters: enough to catch a typing error.
    select string_agg(c.key, ', ' order by c.shared desc, c.key) into v_close
    from (
        select k.key, count(*) as shared
        from steadytext.config_keys() as k
        cross join generate_series(1, length(k.key) - 1) as i
        where strpos(lower(left(p_key, 63)), substr(k.key, i, 2)) > 0
        group by k.key
        having count(*) * 2 >= length(k.key) - 1
        order by count(*)::float8 / length(k.key) desc, k.key
        limit 3
    ) as c;
    -- Anybody may send anything: messages show no more of it than a name is long.
    raise exception 'unrecognized configuration key "%"', left(p_key, 63)
        using errcode = 'undefined_object',
              hint = case
                  when v_close is null then 'The table steadytext_config lists the known keys.'
                  else format('Did you mean %s?', v_close)
              end;
end
$$;
comment on function steadytext.refuse_key(text) is
    'Raises the error about a key that does not exist; the hint names similar keys';

create function steadytext.check_config()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_key record;
    v_number numeric;
begin
    select k.* into v_key from steadytext.config_keys() as k where k.key = new.key;
    if not found then
        perform steadytext.refuse_key(new.key);
    end if;

    if tg_op = 'UPDATE' then
        if new.is_default and not old.is_default then
            new.value := v_key.default_value;
        elsif new.value is distinct from old.value then
            new.is_default := false;
        end if;
        -- The columns of rows that arrive by replication were set on the other server.
        if current_setting('session_replication_role') <> 'replica' then
            new.updated_at := now();
            new.updated_by := current_user;
        end if;
    end if;
    new.description := coalesce(new.description, v_key.description);

    if v_key.kind = 'boolean' and jsonb_typeof(new.value) is distinct from 'boolean' then
        raise exception 'invalid value for configuration key "%": %', new.key, left(new.value::text, 63)
            using errcode = 'invalid_parameter_value', hint = 'It must be true or false.';
    elsif v_key.kind = 'text' and jsonb_typeof(new.value) is distinct from 'string' then
        raise exception 'invalid value for configuration key "%": %', new.key, left(new.value::text, 63)
            using errcode = 'invalid_parameter_value', hint = 'It must be a string.';
    elsif v_key.key in ('generation_model', 'embedding_model', 'reranker_model')
        and (new.value #>> '{}' !~ '[^.]' or new.value #>> '{}' ~ '[/[:cntrl:]]' or length(new.value #>> '{}') > 255) then
        raise exception 'invalid value for configuration key "%": %', new.key, left(new.value::text, 63)
            using errcode = 'invalid_parameter_value', hint = 'It must be the name of a model, builtin or auto.';
    elsif v_key.kind in ('integer', 'number') then
        v_number := case when jsonb_typeof(new.value) = 'number' then new.value::numeric end;
        if v_number is null or v_number < v_key.minimum or v_number > v_key.maximum
            or (v_key.kind = 'integer' and v_number <> trunc(v_number)) then
            raise exception 'invalid value for configuration key "%": %', new.key, left(new.value::text, 63)
                using errcode = 'invalid_parameter_value',
                      hint = format('It must be %s between %s and %s.',
                          case v_key.kind when 'integer' then 'an integer' else 'a number' end,
                          v_key.minimum, v_key.maximum);
        end if;
        -- JSON knows 3, 3.0 and 3e0; the table has 3 for all of them.
        new.value := to_jsonb(trim_scale(v_number));
    end if;
    return new;
end
$$;
comment on function steadytext.check_config() is
    'Refuses unknown keys and values of the wrong type or out of range, brings numbers into their shortest form; keeps is_default, updated_at and updated_by right';

create function @extschema@.steadytext_config_get(key text)
returns text
language plpgsql stable parallel safe strict
set search_path = pg_catalog, pg_temp
as $$
declare
    v_value text;
begin
    select c.value #>> '{}' into v_value
    from @extschema@.steadytext_config as c
    where c.key = steadytext_config_get.key;
    if not found then
        -- One whose row was deleted has its built-in value.
        select k.default_value #>> '{}' into v_value
        from steadytext.config_keys() as k
        where k.key = steadytext_config_get.key;
        if not found then
            perform steadytext.refuse_key(steadytext_config_get.key);
        end if;
    end if;
    return v_value;
end
$$;
comment on function @extschema@.steadytext_config_get(text) is
    'Returns the value of a setting as plain text';

create function steadytext.warn_of_default_model(key text, name text)
returns void
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'warn_of_default_model_wrapper';
comment on function steadytext.warn_of_default_model(text, text) is
    'Warns where requests could not be answered by the model that a key of steadytext_config is set to';

create function @extschema@.steadytext_config_set(key text, value text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_kind text;
    v_value jsonb;
begin
    if key is null then
        raise exception 'a configuration key must not be null'
            using errcode = 'null_value_not_allowed', hint = 'The table steadytext_config lists the known keys.';
    end if;
    if value is null then
        update @extschema@.steadytext_config as c set is_default = true
        where c.key = steadytext_config_set.key;
    else
        select k.kind into v_kind from steadytext.config_keys() as k
        where k.key = steadytext_config_set.key;
        -- A value that does not look like its kind stays a string, which the trigger refuses; so does a number
        -- of more than 1000 characters, before it is longer than a number can be.
        v_value := case
            when length(value) > 1000 then to_jsonb(value)
            when v_kind = 'boolean' and value in ('true', 'false') then value::jsonb
            when v_kind = 'integer' and value ~ '^[ \t\n\r]*-?(0|[1-9][0-9]*)([.]0+)?[ \t\n\r]*$' then value::jsonb
            when v_kind = 'number' and value ~ '^[ \t\n\r]*-?(0|[1-9][0-9]*)([.][0-9]+)?[ \t\n\r]*$' then value::jsonb
            else to_jsonb(value)
        end;
        update @extschema@.steadytext_config as c set value = v_value, is_default = false
        where c.key = steadytext_config_set.key;
    end if;
    if not found then
        -- An unknown key, which the trigger refuses, or one whose row was deleted.
        insert into @extschema@.steadytext_config (key, value)
        select steadytext_config_set.key,
            coalesce(v_value, (select k.default_value from steadytext.config_keys() as k
                               where k.key = steadytext_config_set.key), 'null');
    end if;
    -- It is taken all the same: the model may be downloaded or registered later.
    if steadytext_config_set.key in ('generation_model', 'embedding_model', 'reranker_model') then
        perform steadytext.warn_of_default_model(steadytext_config_set.key, steadytext_config_set.value);
    end if;
end
$$;
comment on function @extschema@.steadytext_config_set(text, text) is
    'Changes a setting of this database; NULL brings the built-in value back. For members of steadytext_admin';

create function steadytext.config_numeric(p_key text)
returns numeric
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    v_value numeric;
    v_key record;
begin
    -- A value of another type, which somebody has put past the trigger, must fail no claim and no rescue.
    select case when jsonb_typeof(c.value) = 'number' then c.value::numeric end into v_value
    from @extschema@.steadytext_config as c
    where c.key = p_key;
    if v_value is null then
        select k.* into v_key from steadytext.config_keys() as k where k.key = p_key;
        if not found then
            perform steadytext.refuse_key(p_key);
        elsif v_key.kind not in ('integer', 'number') then
            raise exception 'the value of configuration key "%" is not a number', p_key
                using errcode = 'invalid_parameter_value',
                      hint = format('It is a %s: steadytext_config_get() returns it as text.', v_key.kind);
        end if;
        v_value := v_key.default_value::numeric;
    end if;
    return v_value;
end
$$;
comment on function steadytext.config_numeric(text) is
    'Returns a numeric setting; the built-in value where its row was deleted, or is no number';

create function steadytext.config_integer(p_key text)
returns integer
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
begin
    return least(greatest(trunc(steadytext.config_numeric(p_key)), -2147483648), 2147483647)::integer;
end
$$;
comment on function steadytext.config_integer(text) is
    'Returns a numeric setting without its fraction, or the integer that is nearest to that';

create function steadytext.config_number(p_key text)
returns double precision
language plpgsql stable strict
set search_path = pg_catalog, pg_temp
as $$
declare
    v_number numeric := least(greatest(steadytext.config_numeric(p_key), -1e300), 1e300);
begin
    return case when abs(v_number) < 1e-300 then 0 else v_number end::float8;
end
$$;
comment on function steadytext.config_number(text) is
    'Returns a numeric setting as a double, at most 1e300, and 0 where it is less than 1e-300';
