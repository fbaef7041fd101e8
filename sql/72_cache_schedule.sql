-- The schedule of eviction: the worker evicts every cache_eviction_interval seconds, or a job of pg_cron
-- does, if an administrator wants it so.

create function steadytext.has_eviction_job()
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_found boolean := false;
begin
    -- The setting is there where pg_cron is preloaded, and pg_cron is where it says.
    if current_setting('cron.database_name', true) = current_database() and steadytext.has_cron() then
        -- Not by name alone: another role that may use pg_cron may have a job of that name.
        execute $q$
            select exists (
                select from cron.job as j
                where j.jobname = 'steadytext_cache_eviction' and j.active and j.database = current_database()
                    and j.username = $1 and j.command = $2
            )
        $q$ into v_found using steadytext.queue_owner(), steadytext.eviction_command();
    end if;
    return v_found;
exception
    -- pg_cron is somebody else's: then it does not evict here.
    when insufficient_privilege or undefined_column then
        return false;
end
$$;
comment on function steadytext.has_eviction_job() is
    'Returns whether pg_cron evicts in this database, so that the worker need not';

create function steadytext.queue_owner()
returns text
language sql stable
begin atomic
    select pg_catalog.pg_get_userbyid(c.relowner)::text
    from pg_catalog.pg_class as c
    where c.oid operator(pg_catalog.=) '@extschema@.steadytext_queue'::pg_catalog.regclass;
end;
comment on function steadytext.queue_owner() is 'Returns the role as which the worker and the job of pg_cron run';

create function steadytext.eviction_command()
returns text
language sql immutable
return 'select @extschema@.steadytext_cache_scheduled_eviction()';
comment on function steadytext.eviction_command() is 'Returns the command of pg_cron''s job';

-- Not by name alone: anybody who may create schemas could have made one named cron.
create function steadytext.has_cron()
returns boolean
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return exists (
        select
        from pg_extension as e
        join pg_depend as d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.deptype = 'e'
        join pg_class as c on d.classid = 'pg_class'::regclass and c.oid = d.objid and c.relname = 'job'
        join pg_namespace as n on n.oid = c.relnamespace and n.nspname = 'cron'
        where e.extname = 'pg_cron'
    );
end
$$;
comment on function steadytext.has_cron() is 'Returns whether the extension pg_cron is installed in this database';

create function steadytext.plan_eviction(p_limit integer)
returns table (id bigint, access_count integer)
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_max_entries double precision := least(steadytext.config_number('cache_max_entries'), 1e15);
    v_max_bytes double precision := steadytext.config_number('cache_max_size_mb') * 1048576;
begin
    perform steadytext.check_limit('p_limit', p_limit);
    if steadytext.has_eviction_job() then
        return;
    end if;
    -- The usual case costs a scan of an index, not of the table.
    if pg_table_size('@extschema@.steadytext_cache'::regclass) <= v_max_bytes
        and (
            select count(*)
            from (select from @extschema@.steadytext_cache limit v_max_entries::bigint + 1) as c
        ) <= v_max_entries
    then
        return;
    end if;
    return query
    select v.id, v.access_count
    from steadytext.cache_victims(
        v_max_entries,
        v_max_bytes,
        steadytext.config_integer('cache_min_access_count'),
        steadytext.config_number('cache_min_age_hours'),
        p_limit => p_limit) as v;
end
$$;
comment on function steadytext.plan_eviction(integer) is
    'Protocol: returns the first p_limit entries that must be evicted; none where pg_cron evicts. They are evicted by evict_entries(), batch by batch';

create function @extschema@.steadytext_cache_scheduled_eviction()
returns jsonb
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
as $$
declare
    v_start timestamptz := clock_timestamp();
    v_done record;
    v_result jsonb;
begin
    if exists (
        select from @extschema@.steadytext_config as c where c.key = 'cache_eviction_enabled' and c.value = 'false'::jsonb
    ) then
        return jsonb_build_object('status', 'skipped', 'reason', 'Cache eviction disabled', 'timestamp', now());
    end if;
    select e.* into v_done
    from steadytext.evict(null, null, steadytext.config_integer('cache_eviction_batch_size'), null, null, false, false) as e;
    v_result := jsonb_build_object(
        'evicted_count', v_done.evicted_count,
        'freed_size_mb', v_done.freed_size_mb,
        'remaining_entries', v_done.remaining_entries,
        'remaining_size_mb', v_done.remaining_size_mb,
        'duration_ms', round(extract(epoch from clock_timestamp() - v_start) * 1000));
    if v_done.evicted_count > 0 then
        insert into @extschema@.steadytext_audit_log (user_id, action, details)
        values (session_user, 'cache_eviction', v_result);
    end if;
    return jsonb_build_object('status', 'completed', 'timestamp', now()) || v_result;
end
$$;
comment on function @extschema@.steadytext_cache_scheduled_eviction() is
    'Does one eviction by the settings: entries with the lowest scores first, protected entries only when nothing else is left, young ones never; the command of pg_cron''s job. For members of steadytext_admin';

-- cron.schedule() and cron.job do not exist when this file is installed, hence the EXECUTEs.
create function steadytext.schedule_eviction(out done boolean, out message text, out hint text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_interval integer := steadytext.config_integer('cache_eviction_interval');
    v_minutes integer := greatest(round(v_interval / 60.0), 1);
    v_host text := coalesce(
        (select c.value #>> '{}' from @extschema@.steadytext_config as c where c.key = 'cron_host'), 'localhost');
    v_port integer := steadytext.config_integer('cron_port');
    v_schedule text;
    v_job bigint;
begin
    done := false;
    if not steadytext.has_cron() then
        message := 'Error: pg_cron extension is not installed. Please install pg_cron first.';
        hint := 'Without it the worker evicts every cache_eviction_interval seconds: there is nothing to do. '
            || 'pg_cron wants to be in shared_preload_libraries, and CREATE EXTENSION pg_cron in the database that cron.database_name names.';
        return;
    end if;
    if current_setting('cron.database_name', true) is distinct from current_database() then
        message := 'Error: pg_cron does not run in this database.';
        hint := 'Put pg_cron into shared_preload_libraries, set cron.database_name to this database, and restart the server.';
        return;
    end if;
    if v_host !~ '^(localhost|127[.]0[.]0[.]1|::1|/[^,]*|)$' then
        message := format('Error: cron_host is "%s", which is not this machine.', left(v_host, 63));
        hint := 'The job connects as the extension''s owner, whose password may be in a file: only to localhost, 127.0.0.1, ::1, or a directory of sockets.';
        return;
    end if;
    if v_interval < 60 then
        message := format('Error: cache_eviction_interval is %s seconds; pg_cron needs at least 60.', v_interval);
        hint := 'Raise it with steadytext_config_set(), or leave the eviction to the worker.';
        return;
    end if;
    v_schedule := case
        when v_minutes < 60 then format('*/%s * * * *', v_minutes)
        when v_minutes < 1440 then format('0 */%s * * *', round(v_minutes / 60.0))
        else format('0 0 */%s * *', least(round(v_minutes / 1440.0), 28))
    end;
    execute 'select cron.schedule($1, $2, $3)' into v_job
    using 'steadytext_cache_eviction', v_schedule, steadytext.eviction_command();
    execute 'update cron.job set nodename = $2, nodeport = $3, active = true where jobid = $1'
    using v_job, v_host, v_port;
    done := true;
    message := format('Cache eviction cron job scheduled successfully. Job ID: %s (schedule: %s, host: %s:%s)',
        v_job, v_schedule, v_host, v_port);
end
$$;
comment on function steadytext.schedule_eviction() is
    'Does the work of steadytext_setup_cache_eviction_cron as the extension''s owner, as whom the job will run';

create function steadytext.unschedule_eviction(out done boolean, out message text, out hint text)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_count integer := 0;
    v_job bigint;
begin
    done := false;
    if not steadytext.has_cron() then
        message := 'Error: pg_cron extension is not installed.';
        hint := 'Then the worker evicts; cache_eviction_enabled switches that off.';
        return;
    end if;
    for v_job in execute $q$
        select j.jobid from cron.job as j
        where j.jobname = 'steadytext_cache_eviction' and j.database = current_database() and j.username = $1
    $q$ using steadytext.queue_owner() loop
        execute 'delete from cron.job where jobid = $1' using v_job;
        v_count := v_count + 1;
    end loop;
    done := v_count > 0;
    message := case when done then 'Cache eviction cron job disabled successfully.'
        else 'No cache eviction cron job found.' end;
    hint := case when done then 'The worker evicts again, every cache_eviction_interval seconds.' end;
end
$$;
comment on function steadytext.unschedule_eviction() is
    'Does the work of steadytext_disable_cache_eviction_cron as the extension''s owner';

create function @extschema@.steadytext_setup_cache_eviction_cron()
returns text
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'setup_eviction_cron_wrapper';
comment on function @extschema@.steadytext_setup_cache_eviction_cron() is
    'Lets pg_cron evict every cache_eviction_interval seconds, in whole minutes, instead of the worker; returns a message about the outcome. For members of steadytext_admin';

create function @extschema@.steadytext_disable_cache_eviction_cron()
returns text
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'disable_eviction_cron_wrapper';
comment on function @extschema@.steadytext_disable_cache_eviction_cron() is
    'Removes pg_cron''s job, so that the worker evicts again; returns a message about the outcome. For members of steadytext_admin';
