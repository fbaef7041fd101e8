-- Enrichments: a column that is kept filled with what a model makes of other columns of its row. They are definitions beside the
-- vectorizers, tied to their table by the same triggers and served by the same process.
--
-- The triggers watch the target as those of a vectorizer watch the column of its vectors: a value that somebody takes away is noted, and
-- so is one that somebody writes.

-- Tells a value that was made from one that somebody has written, and whether the row still says what it was made from.
create table @extschema@.steadytext_enrichment_rows (
    enrichment_id uuid not null,
    key jsonb not null,
    content_hash bytea not null,
    made_by uuid not null,
    value_hash bytea,
    is_kept boolean not null default false,
    gone_at timestamptz,
    constraint steadytext_enrichment_rows_pkey primary key (enrichment_id, key)
);
comment on table @extschema@.steadytext_enrichment_rows is
    'Records about rows of enriched tables that have their value: what each value was made from, and by which definition';
comment on column @extschema@.steadytext_enrichment_rows.enrichment_id is 'Definition that the row belongs to';
comment on column @extschema@.steadytext_enrichment_rows.key is 'Key of the row: the values of the key columns as an array';
comment on column @extschema@.steadytext_enrichment_rows.content_hash is 'SHA-256 of the columns that the prompt names';
comment on column @extschema@.steadytext_enrichment_rows.made_by is
    'Digest of prompt, type, parameters, model and revision of the definition: steadytext.enrichment_digest(); zero where the value is to be made anew whoever has written it, as long as it is the one of value_hash';
comment on column @extschema@.steadytext_enrichment_rows.value_hash is 'SHA-256 of the value, as a text; NULL: the value is NULL';
comment on column @extschema@.steadytext_enrichment_rows.is_kept is
    'True if the value was there before, or somebody has written it: it is kept until the columns change';
comment on column @extschema@.steadytext_enrichment_rows.gone_at is
    'Time since which there is no row of this key; NULL: there is one. Kept for a while, as the row may have got another key';
comment on constraint steadytext_enrichment_rows_pkey on @extschema@.steadytext_enrichment_rows is 'One row per row of the source';
create index steadytext_enrichment_rows_gone_idx on @extschema@.steadytext_enrichment_rows (enrichment_id, value_hash, content_hash)
    where gone_at is not null;
comment on index @extschema@.steadytext_enrichment_rows_gone_idx is 'Finds the value that a row with a new key had under its old one';
alter table @extschema@.steadytext_enrichment_rows enable row level security;
create policy owner_all on @extschema@.steadytext_enrichment_rows for all to steadytext_user
    using (steadytext.owns_vectorizer(enrichment_id));
comment on policy owner_all on @extschema@.steadytext_enrichment_rows is 'Users see and forget the records of their own definitions';
create policy admin_select on @extschema@.steadytext_enrichment_rows for select to steadytext_admin using (true);
comment on policy admin_select on @extschema@.steadytext_enrichment_rows is 'Administrators see all of it';

create function steadytext.check_enrichment_request(request_type text, params jsonb, is_answered_here boolean)
returns boolean
language c stable parallel safe strict
as 'MODULE_PATHNAME', 'check_enrichment_request_wrapper';
comment on function steadytext.check_enrichment_request(text, jsonb, boolean) is
    'Refuses a type and parameters as the queue would refuse a request about a text with them, and, where the server''s own worker answers, a model whose file it does not have';

create function steadytext.is_answered_here()
returns boolean
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    return coalesce((select w.state in ('idle', 'running', 'starting') from steadytext.worker_state() as w), false);
end
$$;
comment on function steadytext.is_answered_here() is
    'Returns whether the server''s own worker takes requests; otherwise workers elsewhere may have models that this server does not have';

create function steadytext.enrichment_digest(p_id uuid)
returns uuid
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return (
        select md5(jsonb_build_array(v.request_type, v.format, v.params, v.model, v.revision)::text)::uuid
        from @extschema@.steadytext_vectorizers as v
        where v.id = p_id);
end
$$;
comment on function steadytext.enrichment_digest(uuid) is
    'Returns a digest of everything that the values of an enrichment depend on besides the row; another digest means that they are made anew';

create function steadytext.enrichment_names(p_id uuid)
returns table (given text, name text)
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return query
    select n.given, n.name
    from @extschema@.steadytext_vectorizers as v
    cross join steadytext.vectorizer_place(v.id) as p
    cross join unnest(v.given_keys || v.columns, p.key_columns || p.source_columns) as n(given, name)
    where v.id = p_id
        and n.given in (
            select f.name from steadytext.format_pieces(v.format, v.given_keys || v.columns) as f where f.name is not null);
end
$$;
comment on function steadytext.enrichment_names(uuid) is
    'Returns the columns that the prompt of an enrichment names: as it calls them, and under their present names';

create function steadytext.present_prompt(p_id uuid)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $body$
declare
    v_definition record;
    v_prompt text;
begin
    select v.format, v.given_keys || v.columns as given, p.key_columns || p.source_columns as now into v_definition
    from @extschema@.steadytext_vectorizers as v
    cross join steadytext.vectorizer_place(v.id) as p
    where v.id = p_id;
    -- As it was given, as long as nothing that it names is called otherwise.
    if v_definition.now is null or cardinality(v_definition.now) <> cardinality(v_definition.given) or v_definition.now = v_definition.given then
        return v_definition.format;
    end if;
    select string_agg(coalesce(replace(f.literal, '$', '$$'),
        format('${%s}', v_definition.now[array_position(v_definition.given, f.name)])), '' order by f.n) into v_prompt
    from steadytext.format_pieces(v_definition.format, v_definition.given) as f;
    return v_prompt;
end
$body$;
comment on function steadytext.present_prompt(uuid) is 'Returns the prompt of an enrichment with the present names of its columns';

create function steadytext.prompt_columns(p_source regclass, p_prompt text)
returns text[]
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $body$
declare
    v_piece record;
    v_columns text[] := '{}';
begin
    if p_prompt is null then
        raise exception 'prompt cannot be null'
            using errcode = 'null_value_not_allowed', hint = 'Give a text that names columns, as in ''Summarize: $body''.';
    end if;
    for v_piece in
        select coalesce(m.parts[1], m.parts[2]) as name, m.parts[3] as dollar, m.parts[4] as stray
        from regexp_matches(p_prompt, '\$([[:alpha:]_][[:alnum:]_]*)|\$\{([^{}]+)\}|(\$\$)|(\$)', 'g') as m(parts)
    loop
        if v_piece.stray is not null then
            raise exception 'prompt has a $ that is followed by no name'
                using errcode = 'invalid_parameter_value', hint = 'Write $name or ${name} of a column, and $$ for a dollar.';
        end if;
        continue when v_piece.dollar is not null or v_piece.name = any (v_columns);
        if not exists (
            select from pg_attribute as a
            where a.attrelid = p_source and a.attname = v_piece.name and a.attnum > 0 and not a.attisdropped
        ) then
            raise exception 'column "%" of table % does not exist', left(v_piece.name, 63), p_source
                using errcode = 'undefined_column', hint = format('The prompt names it: write $$ for a dollar. The columns of the table are %s.', (
                    select string_agg(quote_ident(a.attname), ', ' order by a.attnum)
                    from (
                        select a.attname, a.attnum from pg_attribute as a
                        where a.attrelid = p_source and a.attnum > 0 and not a.attisdropped order by a.attnum limit 30
                    ) as a));
        end if;
        perform steadytext.refuse_virtual_column(p_source, v_piece.name);
        v_columns := v_columns || v_piece.name;
    end loop;
    if cardinality(v_columns) = 0 then
        raise exception 'prompt names no column'
            using errcode = 'invalid_parameter_value', hint = 'Write $name or ${name} where the value of a column goes.';
    end if;
    return v_columns;
end
$body$;
comment on function steadytext.prompt_columns(regclass, text) is 'Returns the columns that a prompt names, each once; an error where there is no such column';

create function steadytext.enrichment_types_hint()
returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
return 'Use generate, generate_json, generate_regex, generate_choice, classify, classify_scores, classify_multi, extract, extract_facts, summarize_text, translate, analyze_sentiment, mask, if, if_score or score.';
comment on function steadytext.enrichment_types_hint() is 'Returns the types of requests that fill columns, for messages';

create function steadytext.enrichment_type(p_request_type text)
returns text
language sql immutable
set search_path = pg_catalog, pg_temp
as $$
    select case
        when p_request_type in ('generate', 'generate_regex', 'generate_choice', 'classify', 'analyze_sentiment', 'translate',
            'mask', 'summarize') then 'text'
        when p_request_type in ('generate_json', 'extract', 'extract_facts', 'classify_scores') then 'jsonb'
        when p_request_type = 'if' then 'boolean'
        when p_request_type in ('if_score', 'score') then 'double precision'
        when p_request_type = 'classify_multi' then 'text[]'
    end
$$;
comment on function steadytext.enrichment_type(text) is
    'Returns the type of a column for answers to requests of a type; NULL where they cannot fill one';

create function steadytext.check_enrichment_target(
    p_source regclass, p_target text, p_request_type text, p_params jsonb
)
returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_natural text := steadytext.enrichment_type(p_request_type);
    v_column record;
    v_types text[];
    v_answers text[];
    v_other text;
begin
    select a.attnotnull, a.atthasdef, a.attgenerated <> '' or a.attidentity <> '' as is_computed,
        steadytext.base_type(a.atttypid) as type, t.typtype, format_type(a.atttypid, a.atttypmod) as shown
    into v_column
    from pg_attribute as a
    join pg_type as t on t.oid = steadytext.base_type(a.atttypid)
    where a.attrelid = p_source and a.attname = p_target and a.attnum > 0 and not a.attisdropped;
    if not found then
        return;
    end if;
    if v_column.is_computed or v_column.attnotnull or v_column.atthasdef then
        raise exception 'column "%" cannot be filled by an enrichment: it is %', p_target,
                case when v_column.is_computed then 'generated' when v_column.attnotnull then 'NOT NULL' else 'given a default' end
            using errcode = 'invalid_table_definition',
                hint = 'A row comes with NULL in it, and gets its value later; whatever else is there counts as written by somebody, and is kept.';
    end if;
    v_types := array['text', 'varchar'] || case v_natural
        when 'jsonb' then array['jsonb', 'json']
        when 'boolean' then array['bool']
        when 'double precision' then array['float8', 'float4', 'numeric']
        else '{}'
    end;
    if v_natural = 'text[]' then
        v_types := array['_text'];
    end if;
    v_answers := case p_request_type
        when 'classify' then array(select jsonb_array_elements_text(p_params -> 'categories'))
        when 'generate_choice' then array(select jsonb_array_elements_text(p_params -> 'choices'))
        when 'analyze_sentiment' then array['positive', 'negative', 'neutral', 'mixed']
    end;
    if v_column.typtype = 'e' and v_answers is not null then
        select a.answer into v_other
        from unnest(v_answers) as a(answer)
        where not exists (select from pg_enum as e where e.enumtypid = v_column.type and e.enumlabel = a.answer)
        limit 1;
        if v_other is not null then
            raise exception '"%" is no value of type %', left(v_other, 63), v_column.shown
                using errcode = 'datatype_mismatch', hint = 'Each possible answer must be a value of the column''s type.';
        end if;
    elsif not exists (select from unnest(v_types) as t(name) join pg_type as p on p.typname = t.name
        where p.typnamespace = 'pg_catalog'::regnamespace and p.oid = v_column.type)
    then
        raise exception 'column "%" of type % cannot hold answers of type %', p_target, v_column.shown, p_request_type
            using errcode = 'datatype_mismatch', hint = format('Use a column of type %s.', v_natural);
    end if;
end
$$;
comment on function steadytext.check_enrichment_target(regclass, text, text, jsonb) is
    'Refuses a column that cannot hold the answers to requests of a type; accepts one that does not exist yet';

-- The columns that follow from other columns: by definitions, and by the expressions of generated columns.
create function steadytext.column_edges(p_source regclass, p_but uuid)
returns table (base text, made text)
language sql stable
set search_path = pg_catalog, pg_temp
as $$
    -- Prompts are read for definitions of this table only: what is wrong with others is nobody's matter here.
    select n.name, p.target_column
    from @extschema@.steadytext_vectorizers as v
    cross join steadytext.vectorizer_place(v.id) as p
    cross join lateral steadytext.enrichment_names(case when p.source = p_source then v.id end) as n
    where v.kind = 'enrichment' and v.id is distinct from p_but and p.source = p_source
    union all
    select n.name, p.target_column
    from @extschema@.steadytext_vectorizers as v
    cross join steadytext.vectorizer_place(v.id) as p
    cross join unnest(p.source_columns) as n(name)
    where v.kind = 'vectorizer' and v.id is distinct from p_but and p.target_column is not null and p.source = p_source
    union all
    -- Before PostgreSQL 15 it is the column that depends, and not its expression.
    select b.attname::text, g.attname::text
    from pg_attribute as g
    join pg_attrdef as e on e.adrelid = g.attrelid and e.adnum = g.attnum
    join pg_depend as d on d.refclassid = 'pg_class'::regclass and d.refobjid = g.attrelid
        and (d.classid = 'pg_attrdef'::regclass and d.objid = e.oid
            or d.classid = 'pg_class'::regclass and d.objid = g.attrelid and d.objsubid = g.attnum)
    join pg_attribute as b on b.attrelid = g.attrelid and b.attnum = d.refobjsubid and b.attnum <> g.attnum
    where g.attrelid = p_source and g.attgenerated <> ''
$$;
comment on function steadytext.column_edges(regclass, uuid) is
    'Returns pairs of columns of a table where the second is made from the first, without those of one definition';

create function steadytext.column_made_of(p_source regclass, p_columns text[], p_target text, p_but uuid)
returns text
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_edges jsonb := (select coalesce(jsonb_agg(jsonb_build_array(e.base, e.made)), '[]') from steadytext.column_edges(p_source, p_but) as e);
begin
    return (
        with recursive reached(name) as (
            select p_target
            union
            select e.edge ->> 1 from reached as r join jsonb_array_elements(v_edges) as e(edge) on e.edge ->> 0 = r.name
        )
        select r.name from reached as r where r.name = any (p_columns) limit 1);
end
$$;
comment on function steadytext.column_made_of(regclass, text[], text, uuid) is
    'Returns one of the columns that is the target, or is made of it, directly or through others, without those of one definition; NULL where none is';

create function steadytext.check_enrichment_chain(p_source regclass, p_columns text[], p_target text, p_but uuid)
returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_back text;
begin
    if exists (select from steadytext.column_edges(p_source, p_but) as e where e.made = p_target) then
        raise exception 'column "%" is the target of another definition already', p_target
            using errcode = 'duplicate_object', hint = 'Drop that one, or give another column.';
    end if;
    v_back := steadytext.column_made_of(p_source, p_columns, p_target, p_but);
    if v_back is not null then
        raise exception 'the prompt names column "%", which %', v_back,
                case when v_back = p_target then 'is the target' else format('is made of the target "%s"', p_target) end
            using errcode = 'invalid_parameter_value', hint = 'Each value would be made anew for ever.';
    end if;
end
$$;
comment on function steadytext.check_enrichment_chain(regclass, text[], text, uuid) is
    'Refuses a target that something else fills, or that the columns of the prompt are made from, directly or through others';
