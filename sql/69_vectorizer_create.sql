-- Making vectorizers. Everything is made by the caller and with the caller's rights, who must have those of the table's owner; the
-- owner of the table owns the definition and the table of the vectors.

create function steadytext.check_vectorizer()
returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $$
declare
    v_wrong text := case
        when new.name is null or btrim(new.name) = '' or length(new.name) > 100 then 'name must have 1 to 100 characters'
        when new.priority not between 1 and 10 then 'priority must be between 1 and 10'
        when new.index_type not in ('hnsw', 'ivfflat', 'none') then 'index must be hnsw, ivfflat or none'
        when new.distance not in ('cosine', 'l2', 'inner_product') then 'distance must be cosine, l2 or inner_product'
        when new.kind = 'vectorizer' and coalesce(new.dimensions, 0) not between 1 and 16000 then 'a vector has 1 to 16000 dimensions'
        when new.chunk_size < 1 or new.chunk_overlap < 0 or new.chunk_overlap >= new.chunk_size and new.chunk_overlap > 0
            then 'chunk_size must be positive, and chunk_overlap less than it'
        when new.kind = 'vectorizer' and coalesce(cardinality(new.columns), 0) = 0 or array_position(new.columns, null) is not null
            then 'columns must name at least one column, and no NULL'
        when (new.target_column is null) = (new.destination is null) then 'vectors are either in a column or in a table'
        when new.kind not in ('vectorizer', 'enrichment') then 'there is no such kind'
        when new.kind = 'enrichment' and (num_nulls(new.request_type, new.params, new.format, new.given_keys, new.target_column) > 0
            or new.replaces is not null)
            then 'an enrichment has a prompt, a type, parameters and a column for its values'
        when new.replaces is null and new.name like '% (next)' then 'names that end with "(next)" are those of vectorizers that are being altered'
    end;
    v_most integer;
begin
    -- A role without the rights of the owner may only pause a definition, or give it to the new owner of its table. The other columns
    -- decide what is written into the owner's table.
    if tg_op = 'UPDATE' and not coalesce(pg_has_role(current_user, old.owner_role::oid, 'usage'), false)
        and to_jsonb(new) operator(pg_catalog.-) array['is_paused', 'owner_role', 'updated_at']
            is distinct from to_jsonb(old) operator(pg_catalog.-) array['is_paused', 'owner_role', 'updated_at']
    then
        perform steadytext.refuse_change(old.kind, old.name, 'Who does not own it may only pause it, or give it to the owner of its table.');
    end if;
    -- A format that names no columns of the definition is refused here, so that nobody's statements or views fail by it.
    if v_wrong is null and new.format is not null then
        perform from steadytext.format_pieces(new.format, coalesce(new.given_keys, '{}') || new.columns);
    end if;
    if v_wrong is not null then
        raise exception '%', v_wrong using errcode = 'invalid_parameter_value',
            hint = 'See docs/vectorizers.md, or the comments on the columns of steadytext_vectorizers.';
    end if;
    if tg_op = 'UPDATE' and new.owner_role::oid is distinct from old.owner_role::oid
        and not (select r.rolsuper from pg_roles as r where r.rolname = current_user)
        and new.owner_role::oid is distinct from (
            -- The owner of the table that is known by its triggers, of which one on a table of the present owner counts before others.
            select c.relowner
            from pg_depend as d
            join pg_trigger as t on t.oid = d.objid
            join pg_class as c on c.oid = t.tgrelid
            where d.refclassid = 'pg_proc'::regclass and d.refobjid = 'steadytext.note_row()'::regprocedure
                and d.classid = 'pg_trigger'::regclass
                and t.tgparentid = 0::oid and substr(t.tgargs, 1, 36) = convert_to(old.id::text, 'UTF8')
            order by c.relowner = old.owner_role::oid desc, t.oid
            limit 1)
    then
        raise exception '% "%" can only be given to the owner of its table', old.kind, old.name using errcode = 'insufficient_privilege',
            hint = 'ALTER TABLE … OWNER TO changes that.';
    end if;
    -- A superuser restores dumps, whatever the limit is by then. The definition that replaces another one takes its place.
    if tg_op = 'INSERT' and not (select r.rolsuper from pg_roles as r where r.rolname = current_user) then
        v_most := steadytext.config_integer('max_vectorizers_per_role');
        if new.replaces is not null and not exists (
            select from @extschema@.steadytext_vectorizers as v
            where v.id = new.replaces and v.replaces is null and v.owner_role::oid = new.owner_role::oid)
        then
            raise exception 'a definition replaces one of the same owner, which replaces none' using errcode = 'invalid_parameter_value',
                hint = 'See steadytext_alter_vectorizer().';
        end if;
        if new.replaces is null and (select count(*) from @extschema@.steadytext_vectorizers as v
            where v.owner_role::oid = new.owner_role::oid and v.replaces is null) >= v_most
        then
            raise exception 'role "%" has % vectorizers, as many as it may have', new.owner_role::name, v_most
                using errcode = 'configuration_limit_exceeded',
                    hint = 'Drop one, or let an administrator raise the setting max_vectorizers_per_role.';
        end if;
    end if;
    return new;
end
$$;
comment on function steadytext.check_vectorizer() is 'Checks definitions of vectorizers';
create trigger check_vectorizer before insert or update on @extschema@.steadytext_vectorizers
    for each row execute function steadytext.check_vectorizer();
comment on trigger check_vectorizer on @extschema@.steadytext_vectorizers is 'Checks values of definitions';
alter table @extschema@.steadytext_vectorizers enable always trigger check_vectorizer;

-- Vectors of two models cannot be compared: what embeds by default may change, and a vectorizer stays with the model that it began with.
-- A file that a superuser has named by its path has no other name: its setting is asked each time.
create function steadytext.default_embedding_model()
returns text
language c volatile
as 'MODULE_PATHNAME', 'default_embedding_model_wrapper';
comment on function steadytext.default_embedding_model() is
    'Returns the name of the model that embeds by default in this session; called where vectorizers are made and altered';

create function steadytext.warn_of_builtin_vectors()
returns boolean
language c volatile
as 'MODULE_PATHNAME', 'warn_of_builtin_vectors_wrapper';
comment on function steadytext.warn_of_builtin_vectors() is
    'Raises a WARNING where the builtin model embeds because there is no other, and returns whether it did; called where vectorizers are made and altered';

-- pgvector makes indexes of columns whose type says how long their vectors are, and only of these.
create function steadytext.give_dimensions(p_source regclass, p_column text, p_dimensions integer)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_schema name := (
        select n.nspname
        from pg_attribute as a
        join pg_class as c on c.oid = a.attrelid and c.relkind in ('r', 'p')
        join pg_type as t on t.oid = a.atttypid and t.typname = 'vector'
        join pg_namespace as n on n.oid = t.typnamespace
        join pg_depend as d on d.classid = 'pg_type'::regclass and d.objid = t.oid and d.deptype = 'e'
        join pg_extension as e on d.refclassid = 'pg_extension'::regclass and e.oid = d.refobjid and e.extname = 'vector'
        where a.attrelid = p_source and a.attname = p_column and a.attnum > 0 and not a.attisdropped and a.atttypmod = -1);
    v_others boolean;
    v_change text;
    v_why text;
begin
    if v_schema is null or p_dimensions is null or p_dimensions not between 1 and 16000 then
        return;
    end if;
    v_change := format('alter table %s alter column %I type %I.vector(%s)', p_source, p_column, v_schema, p_dimensions);
    execute format('select exists (select from %s where %I.vector_dims(%I) <> %s)', p_source, v_schema, p_column, p_dimensions) into v_others;
    if not v_others then
        begin
            execute v_change;
            return;
        exception when feature_not_supported then
            get stacked diagnostics v_why = message_text;
        end;
    end if;
    raise exception 'column "%" has vectors of any length, and an index takes those of one length', p_column
        using errcode = 'datatype_mismatch', detail = coalesce(v_why, format('Some of its vectors have other than the %s dimensions of the model.', p_dimensions)),
            hint = format('Remove what is in the way, and let the column be changed: %s; or say index => ''none''; or give another target_column, which is made.', v_change);
end
$$;
comment on function steadytext.give_dimensions(regclass, text, integer) is
    'Sets the length of the vectors in the type of a column of plain vector, so that it can be indexed; refused where some are longer or shorter. Called where vectorizers are made';

-- A model may take long until it is loaded: it is asked before anything of the table is locked.
create function steadytext.vectorizer_dimensions(
    p_source regclass, p_target_column text, p_model text, p_chunk_size bigint, p_chunk_overlap bigint, p_strategy text
)
returns integer
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_dimensions integer;
    v_context bigint;
begin
    if p_model = any (steadytext.models_placed('elsewhere')) then
        -- Refuses it in its own words. Whatever else is wrong, such a model never makes vectors.
        if exists (select from @extschema@.steadytext_models as m where m.name = p_model and m.task <> 'embed') then
            perform @extschema@.steadytext_embed('pg_steadytext', model => p_model);
        end if;
        if p_chunk_size is not null then
            raise exception 'texts cannot be cut into chunks for model "%", which is computed elsewhere', p_model
                using errcode = 'feature_not_supported', hint = 'The server does not have its tokens. Leave chunk_size out: each text has one vector then.';
        end if;
        -- A column that is there says what its owner knows.
        v_dimensions := coalesce(
            steadytext.vector_length(p_model), (
                select nullif(a.atttypmod, -1) from pg_attribute as a
                where a.attrelid = p_source and a.attname = p_target_column and not a.attisdropped));
        if v_dimensions is null then
            raise exception 'nobody knows yet how long the vectors of model "%" are', p_model
                using errcode = 'object_not_in_prerequisite_state',
                    hint = format('Have a worker elsewhere embed something with it first: SELECT steadytext_embed_async(''pg_steadytext'', model => %L).', p_model);
        end if;
    else
        if p_chunk_size is not null then
            v_context := steadytext.context_tokens(p_model, 'embed');
            if p_chunk_size > v_context then
                raise exception 'chunk_size is %, and the model takes % tokens', p_chunk_size, v_context
                    using errcode = 'invalid_parameter_value', hint = format(
                        'Give a chunk_size of %s at most, which leaves room for what the model and the format put around a chunk, or another model.',
                        greatest(v_context * 3 / 4, 16));
            end if;
            -- Refuses what the function refuses, and models that there are not.
            perform from steadytext.chunk_for_embedding('pg_steadytext', p_chunk_size, p_chunk_overlap, p_strategy, p_model);
        end if;
        v_dimensions := cardinality(@extschema@.steadytext_embed('pg_steadytext', model => p_model)::real[]);
    end if;
    return v_dimensions;
end
$$;
comment on function steadytext.vectorizer_dimensions(regclass, text, text, bigint, bigint, text) is
    'Returns the number of dimensions of a model''s vectors, or refuses a model, or a way of cutting, by which a vectorizer cannot embed; called where vectorizers are made and altered';

create function steadytext.add_vectorizer(
    p_source regclass,
    p_columns text[],
    p_given text[],
    p_name text,
    p_target_column text,
    p_destination text,
    p_model text,
    p_format text,
    p_chunk_size bigint,
    p_chunk_overlap bigint,
    p_strategy text,
    p_index text,
    p_distance text,
    p_priority bigint,
    p_enqueue_existing boolean,
    p_truncate boolean,
    p_replaces uuid,
    p_dimensions integer
)
returns uuid
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_table record;
    v_keys record;
    v_column text;
    v_dimensions integer;
    v_schema text;
    v_destination text;
    v_id uuid;
    v_type oid;
    v_typmod integer;
    -- Of long names that are cut alike, the next one's ends otherwise.
    v_hash_column text := case when p_replaces is null then steadytext.appended_name(p_target_column, '_hash')
        else steadytext.appended_name(left(p_target_column, -5), '_next_hash') end;
begin
    select c.relname, c.relkind, c.relowner, c.relpersistence, n.nspname into v_table
    from pg_class as c
    join pg_namespace as n on n.oid = c.relnamespace
    where c.oid = p_source;
    if not found then
        raise exception 'there is no table to be vectorized' using errcode = 'undefined_table', hint = 'Give the name of a table.';
    end if;
    if v_table.relkind not in ('r', 'p') or v_table.relpersistence = 't' or v_table.nspname in ('pg_catalog', 'steadytext') then
        raise exception '% is not a table that can be vectorized', p_source
            using errcode = 'wrong_object_type', hint = 'It must be a table, partitioned or not, and not a temporary one.';
    end if;
    if not pg_has_role(current_user, v_table.relowner, 'usage') then
        raise exception 'must be owner of table %', p_source
            using errcode = 'insufficient_privilege', hint = 'Vectors are written with the rights of the owner, who has to say so.';
    end if;
    if not pg_has_role(v_table.relowner, 'steadytext_user', 'usage') then
        raise exception 'the owner of table % is not a member of steadytext_user', p_source
            using errcode = 'insufficient_privilege', hint = format('GRANT steadytext_user TO %I.', pg_get_userbyid(v_table.relowner));
    end if;

    select array_agg(a.attname::text order by k.n) as names,
        array_agg(format('%I %s%s not null', d.name,
            format_type(a.atttypid, a.atttypmod),
            case when a.attcollation <> t.typcollation then format(' collate %I.%I', cn.nspname, co.collname) end) order by k.n) as definitions,
        array_agg(quote_ident(d.name) order by k.n) as destinations
    into v_keys
    from unnest(steadytext.row_key(p_source)) with ordinality as k(name, n)
    join pg_attribute as a on a.attrelid = p_source and a.attname = k.name and not a.attisdropped
    join pg_type as t on t.oid = a.atttypid
    -- The names of the other columns of the destination are taken, and those of the key perhaps.
    cross join lateral (
        select p.prefix || a.attname::text as name
        from (values (''), ('key_'), ('key_key_'), ('key_key_key_'), ('key_key_key_key_')) as p(prefix)
        where p.prefix || a.attname::text <> all (array['seq', 'chunk', 'embedding', 'model_hash', 'content_hash'])
            and (p.prefix = '' or p.prefix || a.attname::text <> all (steadytext.row_key(p_source)))
        order by length(p.prefix)
        limit 1
    ) as d
    left join pg_collation as co on co.oid = a.attcollation
    left join pg_namespace as cn on cn.oid = co.collnamespace;
    if v_keys.names is null then
        raise exception 'table % has no primary key', p_source
            using errcode = 'invalid_table_definition', hint = 'A vectorizer knows rows by a primary key, or by a unique index over columns that are NOT NULL.';
    end if;

    if octet_length(p_target_column) > 63 then
        raise exception 'the name of the column "%" is too long', left(p_target_column, 100)
            using errcode = 'name_too_long', hint = 'Give another target_column, of 63 bytes at most.';
    end if;
    if coalesce(cardinality(p_columns), 0) = 0 then
        raise exception 'columns must name at least one column'
            using errcode = 'invalid_parameter_value', hint = 'Say which ones are embedded: columns => array[''body''].';
    end if;
    foreach v_column in array p_columns loop
        if v_column is null or not exists (
            select from pg_attribute as a
            where a.attrelid = p_source and a.attname = v_column and a.attnum > 0 and not a.attisdropped
        ) then
            raise exception 'column "%" of table % does not exist', left(v_column, 63), p_source
                using errcode = 'undefined_column',
                    hint = format('Its columns are %s.', (
                        select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
                        from (
                            select a.attname, a.attnum from pg_attribute as a
                            where a.attrelid = p_source and a.attnum > 0 and not a.attisdropped order by a.attnum limit 30
                        ) as a));
        end if;
        perform steadytext.refuse_virtual_column(p_source, v_column);
        if v_column = any (v_keys.names) or v_column in (p_target_column, v_hash_column) then
            raise exception 'column "%" is part of the key, or holds the vector', v_column
                using errcode = 'invalid_parameter_value', hint = 'Name columns that have text.';
        end if;
    end loop;
    if cardinality(p_columns) > (select count(distinct c) from unnest(p_columns) as c) then
        raise exception 'columns names a column twice' using errcode = 'duplicate_column', hint = 'Name each of them once.';
    end if;
    if p_target_column is not null then
        -- One that is altered fills the column of the one before.
        v_column := steadytext.column_made_of(p_source, p_columns,
            coalesce((select v.target_column from steadytext.vectorizer_place(p_replaces) as v), p_target_column), p_replaces);
        if v_column is not null then
            raise exception 'column "%" is made of the vectors in column "%"', v_column, p_target_column
                using errcode = 'invalid_parameter_value', hint = 'Each vector would be made anew for ever: name columns that have texts.';
        end if;
    end if;
    if p_format is not null then
        if not exists (select from steadytext.format_pieces(p_format, p_given) as f where f.name = 'chunk') then
            raise exception 'format does not say where the text goes'
                using errcode = 'invalid_parameter_value', hint = 'It must have $chunk in it.';
        end if;
        if not exists (
            select from unnest(p_given) as c
            where not exists (select from steadytext.format_pieces(p_format, p_given) as f where f.name = c)
        ) then
            raise exception 'format names all columns, so that nothing is left to be cut into chunks'
                using errcode = 'invalid_parameter_value', hint = '$chunk is made of those columns that the format does not name.';
        end if;
    end if;
    if p_target_column is not null and (p_destination is not null or p_chunk_size is not null and p_replaces is null) then
        raise exception 'a column holds one vector of the whole text: target_column excludes destination and chunk_size'
            using errcode = 'invalid_parameter_value', hint = 'Leave target_column out for a table with a row for each chunk.';
    end if;
    v_dimensions := coalesce(p_dimensions, steadytext.vectorizer_dimensions(
        p_source, p_target_column, p_model, p_chunk_size, p_chunk_overlap, p_strategy));
    if p_index <> 'none' and v_dimensions > 2000 then
        raise exception 'vectors of % dimensions cannot be indexed', v_dimensions
            using errcode = 'program_limit_exceeded', hint = 'Indexes of pgvector take up to 2,000 dimensions: say index => ''none'', and make one over halfvec yourself.';
    end if;
    v_schema := (
        select n.nspname
        from pg_extension as e
        join pg_depend as d on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid and d.classid = 'pg_type'::regclass
        join pg_type as t on t.oid = d.objid and t.typname = 'vector' and t.typtype = 'b'
        join pg_namespace as n on n.oid = t.typnamespace
        where e.extname = 'vector');

    insert into @extschema@.steadytext_vectorizers as v (name, owner_role, source, columns, target_column, destination, model, format,
        chunk_size, chunk_overlap, strategy, index_type, distance, dimensions, priority, enqueue_existing, truncate, replaces)
    values (p_name, pg_get_userbyid(v_table.relowner)::name, format('%I.%I', v_table.nspname, v_table.relname), p_given, p_target_column,
        case when p_target_column is null then format('%I.%I', v_table.nspname, p_destination) end, p_model, p_format,
        p_chunk_size, case when p_chunk_size is null then 0 else least(p_chunk_overlap, p_chunk_size / 2) end, p_strategy, p_index, p_distance, v_dimensions, p_priority,
        p_enqueue_existing, p_truncate, p_replaces)
    returning v.id into v_id;

    if p_target_column is null then
        v_destination := format('%I.%I', v_table.nspname, p_destination);
        execute format(
            'create table %s (%s, seq integer not null, chunk text not null, embedding %I.vector(%s) not null, '
            'model_hash bytea not null, content_hash bytea not null, primary key (%s, seq))',
            v_destination, array_to_string(v_keys.definitions, ', '), v_schema, v_dimensions, array_to_string(v_keys.destinations, ', '));
        execute format('comment on table %s is %L', v_destination,
            format('Vectors of table %s, kept by vectorizer %s of pg_steadytext', p_source, p_name));
        if (select c.relowner from pg_class as c where c.oid = v_destination::regclass) <> v_table.relowner then
            execute format('alter table %s owner to %I', v_destination, pg_get_userbyid(v_table.relowner));
        end if;
        execute format('create trigger %I after truncate on %s for each statement execute function steadytext.note_destination(%L)',
            steadytext.vectorizer_trigger(v_id, 'truncate'), v_destination, v_id);
        execute format('alter trigger %I on %s depends on extension pg_steadytext',
            steadytext.vectorizer_trigger(v_id, 'truncate'), v_destination);
    else
        select a.atttypid, a.atttypmod into v_type, v_typmod
        from pg_attribute as a
        where a.attrelid = p_source and a.attname = p_target_column and not a.attisdropped;
        if not found then
            execute format('alter table %s add column %I %I.vector(%s)', p_source, p_target_column, v_schema, v_dimensions);
        elsif p_replaces is not null then
            -- It would be filled, take the place of the other one, and be gone with the definition.
            raise exception 'there is a column "%" already', p_target_column using errcode = 'duplicate_column',
                hint = 'The new vectors are made in a column of that name, until they take their place: rename or drop yours.';
        elsif v_type <> format('%I.vector', v_schema)::regtype or v_typmod <> -1 and v_typmod <> v_dimensions then
            raise exception 'column "%" is not of type vector(%)', p_target_column, v_dimensions
                using errcode = 'datatype_mismatch',
                    hint = 'Name a column that there is not, which is added; or drop this one, and call it again; or, where it is a column of vectors of another length that need not be kept, change its type.';
        elsif p_index <> 'none' and v_typmod = -1 then
            perform steadytext.give_dimensions(p_source, p_target_column, v_dimensions);
        end if;
        if exists (
            select from pg_attribute as a
            where a.attrelid = p_source and a.attname = v_hash_column and not a.attisdropped)
        then
            raise exception 'there is a column "%" already', v_hash_column
                using errcode = 'duplicate_column',
                    hint = 'A vectorizer keeps there what each vector was made from: rename or drop it, or give another target_column.';
        end if;
        execute format('alter table %s add column %I bytea', p_source, v_hash_column);
        if p_index <> 'none' then
            execute steadytext.vectorizer_index(p_source::text, p_target_column, p_index, p_distance, v_schema);
        end if;
    end if;
    perform steadytext.make_definition_triggers(v_id, p_source, v_keys.names, p_columns,
        array_remove(array[p_target_column, v_hash_column], null));
    return v_id;
end
$$;
comment on function steadytext.add_vectorizer(
    regclass, text[], text[], text, text, text, text, text, bigint, bigint, text, text, text, bigint, boolean, boolean, uuid, integer
) is 'Makes a definition, the table or column for its vectors, and its triggers; called by steadytext_create_vectorizer() and steadytext_alter_vectorizer()';

create function @extschema@.steadytext_create_vectorizer(
    source regclass,
    columns text[],
    name text default null,
    target_column text default null,
    destination text default null,
    model text default null,
    format text default null,
    chunk_size bigint default null,
    chunk_overlap bigint default 50,
    strategy text default 'recursive',
    index text default 'hnsw',
    distance text default 'cosine',
    priority bigint default 2,
    enqueue_existing boolean default true,
    if_not_exists boolean default false,
    truncate boolean default false
)
returns text
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_variable
declare
    v_table text := (select c.relname from pg_class as c where c.oid = source);
    v_schema text := (select n.nspname from pg_class as c join pg_namespace as n on n.oid = c.relnamespace where c.oid = source);
    v_name text := coalesce(name, left(v_table || '_' || columns[1], 100));
    v_destination text := coalesce(destination, v_table || '_' || columns[1] || '_embedding');
    v_model text := coalesce(nullif(model, 'auto'), steadytext.default_embedding_model());
    -- 0: the text is not cut. Beside a chunk there is room for what the format has around it.
    v_size bigint := case
        when target_column is not null or chunk_size is not null then chunk_size
        when v_model = any (steadytext.models_placed('elsewhere')) then 0
        else least(400, greatest(steadytext.context_tokens(v_model, 'embed') * 3 / 4, 16))
    end;
begin
    if source is null then
        raise exception 'source cannot be null' using errcode = 'null_value_not_allowed', hint = 'Give the name of a table.';
    end if;
    if target_column = '' then
        raise exception 'target_column cannot be empty' using errcode = 'invalid_parameter_value',
            hint = 'Name the column of the table that has the vectors, which is made where it is not there, or leave it out for a table of their own.';
    end if;
    if destination = '' then
        raise exception 'destination cannot be empty' using errcode = 'invalid_parameter_value',
            hint = 'Name the table that is made for the vectors, or leave it out: it is named after the table and its column then.';
    end if;
    -- It would be part of the name.
    if position('.' in destination) > 0 then
        raise exception 'destination "%" has a dot in it', left(destination, 127) using errcode = 'invalid_parameter_value',
            hint = format('Give the name of the table alone: it is made in schema %I, as that of the texts is there.', v_schema);
    end if;
    if exists (select from @extschema@.steadytext_vectorizers as v where v.name = v_name and v.kind = 'vectorizer') then
        if if_not_exists and exists (
            select from @extschema@.steadytext_vectorizers as v
            where v.name = v_name and v.kind = 'vectorizer' and (select p.source from steadytext.vectorizer_place(v.id) as p) = source::oid)
        then
            raise notice 'vectorizer "%" already exists, skipping', v_name using errcode = 'duplicate_object';
            return v_name;
        end if;
        raise exception 'vectorizer "%" already exists', v_name
            using errcode = 'duplicate_object', hint = case
                when if_not_exists then 'It is one of another table. Give another name.'
                else 'Give another name, or if_not_exists => true.' end;
    end if;
    if target_column is null and octet_length(v_destination) > 63 then
        raise exception 'the name of the table "%" is too long', left(v_destination, 100)
            using errcode = 'name_too_long', hint = 'Give another one as destination.';
    end if;
    if target_column is null and coalesce(v_destination, '') <> '' and to_regclass(format('%I.%I', v_schema, v_destination)) is not null then
        raise exception 'there is a table % already', format('%I.%I', v_schema, v_destination)
            using errcode = 'duplicate_object', hint = coalesce((
                    select format('It has the vectors of vectorizer "%s": give the table of this one another name as destination.', v.name)
                    from @extschema@.steadytext_vectorizers as v
                    cross join steadytext.vectorizer_place(v.id) as p
                    where p.destination::oid = to_regclass(format('%I.%I', v_schema, v_destination))::oid
                    limit 1),
                'Give the table of the vectors another name as destination, or drop the one that is there.');
    end if;
    if target_column is not null and exists (
        select from @extschema@.steadytext_vectorizers as v
        cross join steadytext.vectorizer_place(v.id) as p
        where p.source = source and p.target_column = target_column)
    then
        raise exception 'column "%" has the vectors of another vectorizer', target_column
            using errcode = 'duplicate_object', hint = 'Give another target_column, or change the one that is there by steadytext_alter_vectorizer().';
    end if;
    perform steadytext.add_vectorizer(source, columns, columns, v_name, target_column,
        case when target_column is null then v_destination else destination end, v_model, format,
        nullif(v_size, 0), coalesce(chunk_overlap, 50), coalesce(strategy, 'recursive'), coalesce(index, 'none'),
        coalesce(distance, 'cosine'), coalesce(priority, 2), coalesce(enqueue_existing, true), coalesce(truncate, false), null, null);
    if coalesce(model, 'auto') = 'auto' then
        perform steadytext.warn_of_builtin_vectors();
    end if;
    return v_name;
end
$$;
comment on function @extschema@.steadytext_create_vectorizer(
    regclass, text[], text, text, text, text, text, bigint, bigint, text, text, text, bigint, boolean, boolean, boolean
) is 'Has columns of a table embedded now and after every change, into a column of it or a table of chunks; returns the name of the vectorizer';
