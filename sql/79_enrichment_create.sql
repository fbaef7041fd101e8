-- Making enrichments. Everything is made by the caller and with the caller's rights, who must have those of the table's owner; the owner
-- of the table owns the definition.

create function @extschema@.steadytext_create_enrichment(
    source regclass,
    target_column text,
    prompt text,
    request_type text default 'generate',
    params jsonb default '{}',
    name text default null,
    model text default null,
    priority bigint default 2,
    enqueue_existing boolean default true,
    if_not_exists boolean default false
)
returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    v_table record;
    v_name text;
    v_type text := case request_type when 'summarize_text' then 'summarize' else coalesce(request_type, 'generate') end;
    v_params jsonb := coalesce(params, '{}');
    v_model text := nullif(model, 'auto');
    v_keys text[];
    v_columns text[];
    v_id uuid;
begin
    if source is null or target_column is null then
        raise exception '% cannot be null', case when source is null then 'source' else 'target_column' end
            using errcode = 'null_value_not_allowed', hint = 'Name the table, and the column that is filled, which is made where it is not there.';
    end if;
    if target_column = '' then
        raise exception 'target_column cannot be empty' using errcode = 'invalid_parameter_value',
            hint = 'Name the column that is filled, which is made where it is not there.';
    end if;
    select c.relname, c.relkind, c.relowner, c.relpersistence, n.nspname into v_table
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    where c.oid = source;
    v_name := coalesce(name, left(v_table.relname || '_' || target_column, 100));
    if exists (select from @extschema@.steadytext_vectorizers as v where v.name = v_name and v.kind = 'enrichment') then
        if if_not_exists and exists (
            select from @extschema@.steadytext_vectorizers as v
            where v.name = v_name and v.kind = 'enrichment' and (select p.source from steadytext.vectorizer_place(v.id) as p) = source::oid)
        then
            raise notice 'enrichment "%" already exists, skipping', v_name using errcode = 'duplicate_object';
            return v_name;
        end if;
        raise exception 'enrichment "%" already exists', v_name
            using errcode = 'duplicate_object', hint = case
                when if_not_exists then 'It is one of another table. Give another name.'
                else 'Give another name, or if_not_exists => true.' end;
    end if;
    if octet_length(target_column) > 63 then
        raise exception 'the name of the column "%" is too long', left(target_column, 100)
            using errcode = 'name_too_long', hint = 'Give another target_column, of 63 bytes at most.';
    end if;
    if v_table.relkind is null or v_table.relkind not in ('r', 'p') or v_table.relpersistence = 't' or v_table.nspname in ('pg_catalog', 'steadytext') then
        raise exception '% is not a table that can be enriched', source
            using errcode = 'wrong_object_type', hint = 'It must be a table, partitioned or not, and not a temporary one.';
    end if;
    if not pg_has_role(current_user, v_table.relowner, 'usage') then
        raise exception 'must be owner of table %', source
            using errcode = 'insufficient_privilege', hint = format('SET ROLE to %I, who owns it.', pg_get_userbyid(v_table.relowner));
    end if;
    if not pg_has_role(v_table.relowner, 'steadytext_user', 'usage') then
        raise exception 'the owner of table % is not a member of steadytext_user', source
            using errcode = 'insufficient_privilege', hint = format('GRANT steadytext_user TO %I.', pg_get_userbyid(v_table.relowner));
    end if;
    if steadytext.enrichment_type(v_type) is null then
        raise exception 'requests of type "%" cannot fill a column', left(v_type, 63) 
            using errcode = 'invalid_parameter_value', hint = steadytext.enrichment_types_hint();
    end if;
    if jsonb_typeof(v_params) = 'object' and v_params ? 'model' then
        v_model := coalesce(v_model, nullif(v_params ->> 'model', 'auto'));
        if v_model is distinct from nullif(v_params ->> 'model', 'auto') then
            raise exception 'model and params name different models: "%" and "%"', left(model, 63), left(v_params ->> 'model', 63)
                using errcode = 'invalid_parameter_value', hint = 'Leave one of them out.';
        end if;
        v_params := v_params - 'model';
    end if;
    perform steadytext.check_enrichment_request(v_type,
        case when v_model is null then v_params else v_params || jsonb_build_object('model', v_model) end, steadytext.is_answered_here());
    -- Nobody else makes a definition for it meanwhile.
    execute format('lock table %s in share row exclusive mode', source);
    v_keys := steadytext.row_key(source);
    if v_keys is null then
        raise exception 'table % has no primary key', source
            using errcode = 'invalid_table_definition', hint = 'An enrichment knows rows by a primary key, or by a unique index over columns that are NOT NULL.';
    end if;
    v_columns := steadytext.prompt_columns(source, prompt);
    if target_column = any (v_keys) then
        raise exception 'column "%" is part of the key', target_column
            using errcode = 'invalid_parameter_value', hint = 'Fill another column; one that is not there is made.';
    end if;
    perform steadytext.check_enrichment_target(source, target_column, v_type, v_params);
    perform steadytext.check_enrichment_chain(source, v_columns, target_column, null);
    if not exists (
        select from pg_attribute as a where a.attrelid = source and a.attname = target_column and a.attnum > 0 and not a.attisdropped
    ) then
        execute format('alter table %s add column %I %s', source, target_column, steadytext.enrichment_type(v_type));
    end if;
    v_columns := array(select c.name from unnest(v_columns) with ordinality as c(name, n) where c.name <> all (v_keys) order by c.n);
    begin
        insert into @extschema@.steadytext_vectorizers as v (name, kind, owner_role, source, columns, given_keys, target_column, model, format,
            request_type, params, index_type, priority, enqueue_existing)
        values (v_name, 'enrichment', pg_get_userbyid(v_table.relowner)::name, format('%I.%I', v_table.nspname, v_table.relname), v_columns,
            v_keys, target_column, v_model, prompt, v_type, v_params, 'none', coalesce(priority, 2), coalesce(enqueue_existing, true))
        returning v.id into v_id;
    exception when unique_violation then
        -- One that the caller does not see.
        raise exception 'enrichment "%" already exists', v_name
            using errcode = 'duplicate_object', hint = 'It is one of another role''s. Give another name.';
    end;
    perform steadytext.make_definition_triggers(v_id, source, v_keys, v_columns, array[target_column]);
    return v_name;
end
$$;
comment on function @extschema@.steadytext_create_enrichment(
    regclass, text, text, text, jsonb, text, text, bigint, boolean, boolean
) is 'Has a column of a table filled with what a model makes of other columns, now and after every change; returns the name of the enrichment';
