-- Changing, pausing and dropping vectorizers.

create function steadytext.forget_definition(p_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    delete from @extschema@.steadytext_vectorizer_work as w where w.vectorizer_id = p_id;
    delete from @extschema@.steadytext_vectorizer_failures as f where f.vectorizer_id = p_id;
    delete from @extschema@.steadytext_vectorizer_state as s where s.vectorizer_id = p_id;
    delete from @extschema@.steadytext_enrichment_rows as r where r.enrichment_id = p_id;
    delete from @extschema@.steadytext_vectorizer_kept as k where k.vectorizer_id = p_id;
end
$$;
comment on function steadytext.forget_definition(uuid) is 'Deletes the records of a definition that is dropped, except its requests';

create function steadytext.remove_definition(p_id uuid, p_drop_all boolean)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_place record;
    v_statement text;
begin
    select * into v_place from steadytext.vectorizer_place(p_id);
    -- The steps lock this row first, too. It is deleted last: by it the policies know whose the records of the definition are.
    perform from @extschema@.steadytext_vectorizers as v where v.id = p_id for update;
    perform @extschema@.steadytext_cancel_async(b.request_id)
    from @extschema@.steadytext_vectorizer_batches as b
    where b.vectorizer_id = p_id and not steadytext.is_vectorizing();
    delete from @extschema@.steadytext_vectorizer_batches as b where b.vectorizer_id = p_id;
    perform steadytext.forget_definition(p_id);
    delete from @extschema@.steadytext_vectorizers as v where v.id = p_id;
    for v_statement in select d from steadytext.definition_trigger_drops(p_id, array[v_place.source, v_place.destination]) as d loop
        execute v_statement;
    end loop;
    if p_drop_all and v_place.destination is not null then
        execute format('drop table %s', v_place.destination);
    elsif p_drop_all and v_place.target_column is not null then
        execute format('alter table %s drop column %I', v_place.source, v_place.target_column);
    end if;
    -- The hashes of the embedded texts are of no use to anybody else.
    if v_place.source is not null and v_place.hash_column is not null then
        execute format('alter table %s drop column if exists %I', v_place.source, v_place.hash_column);
    end if;
end
$$;
comment on function steadytext.remove_definition(uuid, boolean) is
    'Deletes a definition, its work and its triggers, and, where asked for, its vectors or values';

-- One that was to take its place was never seen by anybody.
create function steadytext.remove_successors(p_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_successor uuid;
begin
    for v_successor in select v.id from @extschema@.steadytext_vectorizers as v where v.replaces = p_id loop
        perform steadytext.remove_definition(v_successor, true);
    end loop;
end
$$;
comment on function steadytext.remove_successors(uuid) is 'Drops the vectorizers that are to take the place of this one, with their vectors';

create function steadytext.check_new_name(p_id uuid, p_new_name text)
returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    if exists (
        select from @extschema@.steadytext_vectorizers as v
        join @extschema@.steadytext_vectorizers as o on o.kind = v.kind and o.name = p_new_name
        where v.id = p_id and v.name <> p_new_name)
    then
        raise exception '% "%" already exists', (select v.kind from @extschema@.steadytext_vectorizers as v where v.id = p_id), left(p_new_name, 100)
            using errcode = 'duplicate_object', hint = 'Give another name.';
    end if;
end
$$;
comment on function steadytext.check_new_name(uuid, text) is 'Refuses a name for a definition that another one of its kind has';

create function @extschema@.steadytext_drop_vectorizer(name text, drop_all boolean default false, if_exists boolean default false)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid;
begin
    if coalesce(if_exists, false) and steadytext.is_missing_definition(name, 'vectorizer') then
        return;
    end if;
    v_id := steadytext.own_definition_id(name, 'vectorizer');
    perform steadytext.remove_successors(v_id);
    perform steadytext.remove_definition(v_id, coalesce(drop_all, false));
end
$$;
comment on function @extschema@.steadytext_drop_vectorizer(text, boolean, boolean) is
    'Drops a vectorizer: the vectors stay as they are, or, with drop_all, their table or column is dropped. With if_exists it is no error if the vectorizer does not exist';

create function @extschema@.steadytext_pause_vectorizer(name text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    perform steadytext.pause_definition(steadytext.lock_definition(name, 'vectorizer'), true);
end
$$;
comment on function @extschema@.steadytext_pause_vectorizer(text) is 'Pauses a vectorizer: changes are noted, and nothing is embedded';

create function @extschema@.steadytext_resume_vectorizer(name text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    perform steadytext.pause_definition(steadytext.lock_definition(name, 'vectorizer'), false);
end
$$;
comment on function @extschema@.steadytext_resume_vectorizer(text) is 'Resumes a vectorizer: the changes noted meanwhile are embedded';

create function @extschema@.steadytext_retry_vectorizer(name text)
returns bigint
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return steadytext.retry_definition(steadytext.lock_definition(name, 'vectorizer'), true);
end
$$;
comment on function @extschema@.steadytext_retry_vectorizer(text) is 'Has failed rows tried again; returns their number';

create function @extschema@.steadytext_reembed(name text)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_id uuid := steadytext.lock_definition(name, 'vectorizer');
begin
    -- Of one that is being altered, the vectors that are to take the place of the present ones as well.
    insert into @extschema@.steadytext_vectorizer_work (vectorizer_id, key, is_forced)
    select v.id, null, true from @extschema@.steadytext_vectorizers as v where v_id in (v.id, v.replaces);
    perform steadytext.warn_of_problem(v_id);
    update @extschema@.steadytext_vectorizers as v set updated_at = now() where v_id in (v.id, v.replaces);
end
$$;
comment on function @extschema@.steadytext_reembed(text) is
    'Has every row embedded anew, even if it has a vector; the present vectors serve until then';

create function @extschema@.steadytext_alter_vectorizer(
    name text,
    model text default null,
    format text default null,
    chunk_size bigint default null,
    chunk_overlap bigint default null,
    strategy text default null,
    index text default null,
    distance text default null,
    priority bigint default null,
    new_name text default null,
    truncate boolean default null,
    columns text[] default null
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    v_id uuid := steadytext.lock_definition(name, 'vectorizer');
    v_old record;
    v_place record;
    -- The definition to be changed: the replacement, where there is one, as it has the earlier changes.
    v_from record;
    v_from_place record;
    v_new record;
    v_next_name text;
    v_next uuid;
    v_dimensions integer;
begin
    select v.* into v_old from @extschema@.steadytext_vectorizers as v where v.id = v_id for update;
    select v.* into v_from from @extschema@.steadytext_vectorizers as v where v.id = v_id or v.replaces = v_id
    order by v.replaces is null
    limit 1;
    perform steadytext.check_new_name(v_id, new_name);
    -- Long names that begin alike are told apart.
    v_next_name := case when length(coalesce(new_name, v_old.name)) <= 93 then coalesce(new_name, v_old.name)
        else left(coalesce(new_name, v_old.name), 84) || ' ' || left(v_id::text, 8) end || ' (next)';
    update @extschema@.steadytext_vectorizers as v
    set priority = coalesce(steadytext_alter_vectorizer.priority, v.priority),
        name = case when v.id <> v_id then v_next_name else coalesce(steadytext_alter_vectorizer.new_name, v.name) end,
        truncate = coalesce(steadytext_alter_vectorizer.truncate, v.truncate),
        updated_at = now()
    where v_id in (v.id, v.replaces);
    if truncate and not v_old.truncate then
        perform steadytext.retry_definition(v.id, true) from @extschema@.steadytext_vectorizers as v where v_id in (v.id, v.replaces);
    end if;
    if num_nonnulls(model, format, chunk_size, chunk_overlap, strategy, index, distance, columns) = 0 then
        return;
    end if;
    if v_old.target_column is not null and chunk_size is not null then
        raise exception 'a column of the table itself holds one vector: texts are not cut'
            using errcode = 'invalid_parameter_value', hint = 'Make a vectorizer with a destination, which has a row for each piece.';
    end if;
    select * into v_place from steadytext.vectorizer_place(v_id);
    select * into v_from_place from steadytext.vectorizer_place(v_from.id);
    -- A column that is read was dropped: others are named.
    if v_place.problem is not null
        and (v_place.source is null or v_place.source_columns is not null or columns is null and v_from_place.source_columns is null)
        or v_from_place.source_columns is null and columns is null
    then
        raise exception '%', coalesce(v_place.problem, v_from_place.problem) using errcode = 'object_not_in_prerequisite_state', hint = case
            when v_place.source is not null and (v_place.source_columns is null or v_place.problem is null)
            then 'Say what is embedded from now on: columns => array[''…''].'
            else 'Drop the vectorizer and make another one.' end;
    end if;
    select
        coalesce(columns, v_from.columns) as columns,
        coalesce(columns, v_from_place.source_columns) as source_columns,
        case when model is null then v_from.model when model <> 'auto' then model else steadytext.default_embedding_model() end as model,
        coalesce(format, v_from.format) as format,
        nullif(coalesce(chunk_size, v_from.chunk_size), 0) as chunk_size,
        -- The stored overlap is at most half of a chunk: where chunks were made smaller and are made larger again, more of the wanted
        -- overlap counts.
        coalesce(chunk_overlap, case
            when v_from.chunk_overlap = case when v_from.chunk_size is null then 0 else least(v_old.chunk_overlap, v_from.chunk_size / 2) end
            then v_old.chunk_overlap else v_from.chunk_overlap end) as chunk_overlap,
        coalesce(strategy, v_from.strategy) as strategy,
        coalesce(index, v_from.index_type) as index_type,
        coalesce(distance, v_from.distance) as distance
    into v_new;
    -- All is as it was again: there is nothing to make, but where the same model has come to give other vectors.
    if v_from.id <> v_id and v_place.problem is null
        and (v_from.model is distinct from v_old.model or v_from.dimensions = v_old.dimensions)
        and (v_from.model, v_from.format, v_from.chunk_size, v_from.chunk_overlap, v_from.strategy, v_from.index_type, v_from.distance,
                v_from_place.source_columns)
            is distinct from (v_old.model, v_old.format, v_old.chunk_size, v_old.chunk_overlap, v_old.strategy, v_old.index_type, v_old.distance,
                v_place.source_columns)
        and (v_new.model, v_new.format, v_new.chunk_size,
                case when v_new.chunk_size is null then 0 else least(v_new.chunk_overlap, v_new.chunk_size / 2) end,
                v_new.strategy, v_new.index_type, v_new.distance, v_new.source_columns)
            is not distinct from (v_old.model, v_old.format, v_old.chunk_size, v_old.chunk_overlap, v_old.strategy, v_old.index_type,
                v_old.distance, v_place.source_columns)
    then
        -- The one that was under way was never seen by anybody.
        perform steadytext.remove_successors(v_id);
        return;
    end if;
    v_dimensions := steadytext.vectorizer_dimensions(v_place.source, null, v_new.model, v_new.chunk_size, v_new.chunk_overlap, v_new.strategy);
    perform steadytext.remove_successors(v_id);
    v_next := steadytext.add_vectorizer(v_place.source, v_new.source_columns, v_new.columns, v_next_name,
        steadytext.appended_name(coalesce(v_place.target_column, v_old.target_column), '_next'),
        case when v_old.target_column is null then
            steadytext.appended_name((select c.relname::text from pg_class as c where c.oid = v_place.destination), '_next') end,
        v_new.model, v_new.format, v_new.chunk_size, v_new.chunk_overlap, v_new.strategy, v_new.index_type, v_new.distance,
        coalesce(priority, v_old.priority), true, coalesce(truncate, v_old.truncate), v_id, v_dimensions);
    perform steadytext.prepare_replacement(v_id, v_next);
    if model = 'auto' then
        perform steadytext.warn_of_builtin_vectors();
    end if;
    -- A pause goes on.
    if v_old.is_paused then
        perform steadytext.pause_definition(v_id, true);
    end if;
end
$$;
comment on function @extschema@.steadytext_alter_vectorizer(
    text, text, text, bigint, bigint, text, text, text, bigint, text, boolean, text[]
) is 'Changes a vectorizer; NULL: as before; model auto: the one that embeds by default now. With another model, format or way of cutting, new vectors are made beside the old ones, and take their place in one step when they are complete. Earlier changes that are still being made stay in effect';

create function steadytext.is_vectorizing()
returns boolean
language c volatile
as 'MODULE_PATHNAME', 'is_vectorizing_wrapper';
comment on function steadytext.is_vectorizing() is 'Returns whether this process is the one that works for vectorizers';

-- All of it in the transaction of one step: a search by name finds the old vectors or the new ones.
create function steadytext.swap_vectorizer(p_id uuid)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_new record;
    v_old record;
    v_new_place record;
    v_old_place record;
    v_owner oid;
    v_obstacle record;
    v_schema text;
    v_table text;
    v_column text;
    v_hash_column text;
    v_meanwhile text;
    v_statement text;
    v_views text[];
    v_afterwards text[] := '{}';
begin
    select v.* into v_new from @extschema@.steadytext_vectorizers as v where v.id = p_id;
    select v.* into v_old from @extschema@.steadytext_vectorizers as v where v.id = v_new.replaces for update;
    select * into v_new_place from steadytext.vectorizer_place(p_id);
    v_owner := v_new.owner_role::oid;
    if v_old.id is null or v_old.owner_role::oid <> v_owner then
        delete from @extschema@.steadytext_vectorizers as v where v.id = p_id;
        return;
    end if;
    select * into v_old_place from steadytext.vectorizer_place(v_old.id);
    -- Somebody has made it since the vectorizer was altered. The old vectors are kept up to date as long as it is there.
    select * into v_obstacle from steadytext.replacement_obstacles(v_old.id, p_id) as o order by o.what limit 1;
    if found then
        raise exception '% depends on the vectors that are to be replaced. %', v_obstacle.what, v_obstacle.remedy
            using errcode = 'dependent_objects_still_exist', hint = v_obstacle.remedy;
    end if;
    -- What others have put on the vectors, by the names that are theirs as yet.
    if v_old_place.destination is not null then
        select n.nspname, c.relname into v_schema, v_table
        from pg_class as c join pg_namespace as n on n.oid = c.relnamespace
        where c.oid = v_old_place.destination;
        v_afterwards := array(select t from steadytext.table_statements(v_old.id, v_new_place.destination, v_schema, v_table) as t);
        v_views := array(select w from steadytext.others_views(v_old_place.destination, null) as w);
    elsif v_old_place.target_column is not null then
        v_afterwards := array(
            select s
            from (select v_old_place.source as relation union select t.relid from pg_partition_tree(v_old_place.source) as t) as t
            cross join unnest(array[v_old_place.target_column, v_old_place.hash_column]) as c(name)
            cross join steadytext.column_statements(t.relation, c.name, t.relation::text, c.name) as s
        ) || array(
            select format('alter index %s rename to %I', x.indexrelid::regclass, i.name)
            from steadytext.index_copies(v_old.id, v_old_place.source) as i
            join pg_index as x on x.indrelid = v_old_place.source
            join pg_class as c on c.oid = x.indexrelid and c.relname = i.copy
        ) || array(
            select format('comment on index %I.%I is %L', i.schema, i.name, obj_description(i.index, 'pg_class'))
            from steadytext.others_indexes(v_old.id) as i
            where obj_description(i.index, 'pg_class') is not null
        );
        v_views := array(select w from steadytext.others_views(v_old_place.source, array[v_old_place.target_column, v_old_place.hash_column]) as w);
    end if;
    delete from @extschema@.steadytext_vectorizers as v where v.id = v_old.id;
    for v_statement in
        select d from steadytext.definition_trigger_drops(v_old.id, array[v_old_place.source, v_old_place.destination]) as d
    loop
        perform steadytext.run_as(v_owner, v_statement, null);
    end loop;
    if v_old_place.destination is not null then
        -- Roles that could read the old vectors can read the new ones, and no others.
        for v_statement in
            select p from steadytext.others_privileges(v_new_place.destination) as p
            union all
            select format('grant %s on %s to %s %s', a.privilege_type, v_new_place.destination,
                case when a.grantee = 0::oid then 'public' else quote_ident(pg_get_userbyid(a.grantee)) end,
                case when a.is_grantable then 'with grant option' end)
            from pg_class as c
            cross join aclexplode(c.relacl) as a
            where c.oid = v_old_place.destination and a.grantee <> v_owner
        loop
            perform steadytext.run_as(v_owner, v_statement, null);
        end loop;
        -- The same rows are hidden from the same roles: at once, as nobody must see more in between than before.
        if exists (select from pg_class as c where c.oid = v_old_place.destination and c.relrowsecurity) then
            perform steadytext.run_as(v_owner, format('alter table %s enable row level security', v_new_place.destination), null);
        end if;
        if exists (select from pg_class as c where c.oid = v_old_place.destination and c.relforcerowsecurity) then
            perform steadytext.run_as(v_owner, format('alter table %s force row level security', v_new_place.destination), null);
        end if;
        v_meanwhile := steadytext.appended_name(v_table, '_' || left(v_old.id::text, 8));
        perform steadytext.run_as(v_owner, format('alter table %s rename to %I', v_old_place.destination, v_meanwhile), null);
        -- It was made in the schema where the source is now, which may have moved.
        if v_schema <> (select n.nspname from pg_class as c join pg_namespace as n on n.oid = c.relnamespace where c.oid = v_new_place.destination) then
            perform steadytext.run_as(v_owner, format('alter table %s set schema %I', v_new_place.destination, v_schema), null);
        end if;
        perform steadytext.run_as(v_owner, format('alter table %s rename to %I', v_new_place.destination, v_table), null);
        foreach v_statement in array v_views loop
            perform steadytext.run_as(v_owner, v_statement, null);
        end loop;
        perform steadytext.run_as(v_owner, format('drop table %I.%I', v_schema, v_meanwhile), null);
    else
        if v_old_place.target_column is not null then
            v_meanwhile := steadytext.appended_name(v_old_place.target_column, '_' || left(v_old.id::text, 8));
            perform steadytext.run_as(v_owner,
                format('alter table %s rename column %I to %I', v_old_place.source, v_old_place.target_column, v_meanwhile), null);
        end if;
        if v_old_place.hash_column is not null then
            perform steadytext.run_as(v_owner, format('alter table %s rename column %I to %I', v_old_place.source, v_old_place.hash_column,
                steadytext.appended_name(v_old_place.hash_column, '_hash_' || left(v_old.id::text, 8))), null);
        end if;
        -- A role that has dropped the old column may have made another one of its name, which is no vectorizer's. The new one keeps its own
        -- name then.
        v_column := coalesce(v_old_place.target_column, v_old.target_column);
        if v_old_place.target_column is null
            and exists (select from pg_attribute as a where a.attrelid = v_new_place.source and a.attname = v_column and not a.attisdropped)
        then
            raise warning 'vectorizer "%": column "%" is not its own, so that its vectors stay in column "%"',
                v_old.name, v_column, v_new_place.target_column;
            v_column := v_new_place.target_column;
        else
            perform steadytext.run_as(v_owner,
                format('alter table %s rename column %I to %I', v_new_place.source, v_new_place.target_column, v_column), null);
        end if;
        v_hash_column := coalesce(v_old_place.hash_column, steadytext.appended_name(v_column, '_hash'));
        if not exists (select from pg_attribute as a where a.attrelid = v_new_place.source and a.attname = v_hash_column and not a.attisdropped) then
            perform steadytext.run_as(v_owner,
                format('alter table %s rename column %I to %I', v_new_place.source, v_new_place.hash_column, v_hash_column), null);
        end if;
        foreach v_statement in array coalesce(v_views, '{}') loop
            perform steadytext.run_as(v_owner, v_statement, null);
        end loop;
        if v_old_place.target_column is not null then
            perform steadytext.run_as(v_owner, format('alter table %s drop column %I', v_old_place.source, v_meanwhile), null);
        end if;
        if v_old_place.hash_column is not null then
            perform steadytext.run_as(v_owner, format('alter table %s drop column %I', v_old_place.source,
                steadytext.appended_name(v_old_place.hash_column, '_hash_' || left(v_old.id::text, 8))), null);
        end if;
    end if;
    foreach v_statement in array v_afterwards loop
        begin
            perform steadytext.run_as(v_owner, v_statement, null);
        exception when others then
            -- Somebody has a table locked that a foreign key names, say: all of it is tried again.
            if steadytext.is_transient(sqlstate) then
                raise;
            end if;
            -- Without a policy rows are hidden, and without an index they are found more slowly.
            raise warning 'vectorizer "%": not made anew (%): %', v_old.name, sqlerrm, left(v_statement, 200);
        end;
    end loop;
    update @extschema@.steadytext_vectorizers as v set
        name = v_old.name, replaces = null, created_at = v_old.created_at, target_column = v_column, destination = v_old.destination,
        updated_at = now()
    where v.id = p_id;
    -- Nobody wants the answers of its requests any more; a worker that runs one finds that it has lost it.
    with gone as (
        delete from @extschema@.steadytext_vectorizer_batches as b where b.vectorizer_id = v_old.id returning b.request_id
    )
    delete from @extschema@.steadytext_queue as q using gone as g where q.request_id = g.request_id;
    perform steadytext.forget_definition(v_old.id);
    -- The signature stays that of the last look: what has happened to the table since, and fires no trigger, is still to be seen.
    update @extschema@.steadytext_vectorizer_state as s set is_ready = false, overruns = 0 where s.vectorizer_id = p_id;
end
$$;
comment on function steadytext.swap_vectorizer(uuid) is
    'Puts an altered vectorizer, whose vectors are complete, into the place of the previous one; called by the steps';
