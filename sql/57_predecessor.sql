-- Calls by position as programs written for the Python extension make them, where its order of parameters was another one;
-- and names that it gave to parameters of its later versions.
--
-- No call of the functions that these stand beside becomes ambiguous. Each form demands a parameter that the function
-- does not have, by a name of its own (unsafe_mode_by_position) where calls by name are the function's. Where position and
-- type do not decide, as of a NULL or of a parameter whose type the driver does not say, there is a form that takes text in
-- that place (untyped_…): PostgreSQL prefers it for what has no type, and it does what the function does.

create function steadytext.predecessor_model(model text, model_repo text, model_filename text)
returns text
language plpgsql immutable parallel safe
set search_path = pg_catalog, pg_temp
as $$
begin
    if model_repo is not null or model_filename is not null then
        raise exception 'model_repo and model_filename are not supported'
            using errcode = 'feature_not_supported',
                  hint = 'An administrator fetches the file with steadytext_model_pull(''OWNER/REPOSITORY:FILE''); then name it in model.';
    end if;
    return model;
end
$$;
comment on function steadytext.predecessor_model(text, text, text) is
    'Returns the model of a call that may also name a repository and a file, as in the Python extension; these are refused, as no call downloads models';

create function @extschema@.steadytext_generate(
    prompt text,
    max_tokens bigint,
    use_cache boolean,
    seed bigint,
    eos_string text,
    model text,
    model_repo text,
    model_filename text,
    size text,
    unsafe_mode boolean
)
returns text
language sql immutable parallel safe cost 100000
return @extschema@.steadytext_generate(
    prompt, max_tokens, use_cache, seed, eos_string, steadytext.predecessor_model(model, model_repo, model_filename), size,
    0::double precision, 'error'::text, null::text, '{}'::jsonb, null::jsonb, unsafe_mode);
comment on function @extschema@.steadytext_generate(text, bigint, boolean, bigint, text, text, text, text, text, boolean) is
    'steadytext_generate with all parameters of the Python extension';

create function @extschema@.steadytext_generate(
    prompt text,
    max_tokens bigint,
    use_cache boolean,
    seed bigint,
    eos_string text,
    model text,
    size text,
    untyped_temperature text,
    on_error text,
    system_prompt text
)
returns text
language sql immutable parallel safe cost 100000
return @extschema@.steadytext_generate(
    prompt, max_tokens, use_cache, seed, eos_string, model, size, untyped_temperature::double precision, on_error, system_prompt, '{}'::jsonb, null::jsonb, false);
comment on function @extschema@.steadytext_generate(text, bigint, boolean, bigint, text, text, text, text, text, text) is
    'steadytext_generate with a temperature that has no type';

create function @extschema@.steadytext_generate_stream(
    prompt text,
    max_tokens bigint,
    use_cache boolean,
    seed bigint default 42,
    eos_string text default '[EOS]',
    model text default null,
    model_repo text default null,
    model_filename text default null,
    size text default null,
    unsafe_mode boolean default false
)
returns setof text
language sql volatile parallel restricted cost 100000
begin atomic
    -- In the select list: each piece goes on as soon as it is there.
    select @extschema@.steadytext_generate_stream(
        prompt, max_tokens, seed, eos_string, steadytext.predecessor_model(model, model_repo, model_filename), size,
        0::double precision, 'error'::text, null::text, '{}'::jsonb, null::jsonb, unsafe_mode);
end;
comment on function @extschema@.steadytext_generate_stream(text, bigint, boolean, bigint, text, text, text, text, text, boolean) is
    'steadytext_generate_stream with the parameters of the Python extension; use_cache has no effect';

create function @extschema@.steadytext_generate_stream(
    prompt text,
    max_tokens bigint,
    untyped_seed text,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature text default '0',
    on_error text default 'error',
    system_prompt text default null,
    options text default '{}',
    variables jsonb default null,
    unsafe_mode boolean default false
)
returns setof text
language sql volatile parallel restricted cost 100000
begin atomic
    select @extschema@.steadytext_generate_stream(
        prompt, max_tokens, untyped_seed::bigint, eos_string, model, size, temperature::double precision, on_error, system_prompt,
        options::jsonb, variables, unsafe_mode);
end;
comment on function @extschema@.steadytext_generate_stream(text, bigint, text, text, text, text, text, text, text, text, jsonb, boolean) is
    'steadytext_generate_stream with a seed that has no type';

select pg_catalog.set_config('search_path', steadytext.vector_path(), true);
create function @extschema@.steadytext_embed(
    text_input text,
    use_cache boolean,
    seed bigint,
    model text,
    unsafe_mode_by_position boolean
)
returns vector
language sql immutable parallel safe cost 10000
return @extschema@.steadytext_embed(
    text_input, use_cache, seed, model, null::text, null::text, false, 'error'::text, null::bigint, unsafe_mode_by_position);
comment on function @extschema@.steadytext_embed(text, boolean, bigint, text, boolean) is
    'steadytext_embed with unsafe_mode by its position in the Python extension';
set local search_path = pg_catalog, pg_temp;

select pg_catalog.set_config('search_path', steadytext.vector_path(), true);
create function @extschema@.steadytext_embed_cached(
    text_input text,
    seed bigint,
    model text,
    unsafe_mode_by_position boolean
)
returns vector
language sql stable parallel safe
return @extschema@.steadytext_embed_cached(
    text_input, seed, model, null::text, null::text, false, 'error'::text, null::bigint, unsafe_mode_by_position);
comment on function @extschema@.steadytext_embed_cached(text, bigint, text, boolean) is
    'steadytext_embed_cached with unsafe_mode by its position in the Python extension';
set local search_path = pg_catalog, pg_temp;

create function @extschema@.steadytext_embed_async(
    text_input text,
    use_cache boolean,
    seed bigint,
    model text,
    unsafe_mode_by_position boolean
)
returns uuid
language sql volatile
return @extschema@.steadytext_embed_async(
    text_input, use_cache, seed, model, 5::bigint, null::text, null::text, false, null::bigint, unsafe_mode_by_position);
comment on function @extschema@.steadytext_embed_async(text, boolean, bigint, text, boolean) is
    'steadytext_embed_async with unsafe_mode by its position in the Python extension';

create function @extschema@.steadytext_embed_async(
    text_input text,
    use_cache boolean,
    seed bigint,
    model text,
    untyped_priority text
)
returns uuid
language sql volatile
return @extschema@.steadytext_embed_async(
    text_input, use_cache, seed, model, untyped_priority::bigint, null::text, null::text, false, null::bigint, false);
comment on function @extschema@.steadytext_embed_async(text, boolean, bigint, text, text) is
    'steadytext_embed_async with a priority that has no type';

create function @extschema@.steadytext_generate_json(
    prompt text,
    schema jsonb,
    max_tokens bigint,
    use_cache boolean,
    seed bigint,
    unsafe_mode_by_position boolean,
    model text default null
)
returns text
language sql immutable parallel safe cost 100000
return @extschema@.steadytext_generate_json(
    prompt, schema, max_tokens, use_cache, seed, model, 0::double precision, 'error'::text, null::text, '{}'::jsonb, null::jsonb, unsafe_mode_by_position);
comment on function @extschema@.steadytext_generate_json(text, jsonb, bigint, boolean, bigint, boolean, text) is
    'steadytext_generate_json with unsafe_mode by its position in the Python extension';

create function @extschema@.steadytext_generate_regex(
    prompt text,
    pattern text,
    max_tokens bigint,
    use_cache boolean,
    seed bigint,
    unsafe_mode_by_position boolean,
    model text default null
)
returns text
language sql immutable parallel safe cost 100000
return @extschema@.steadytext_generate_regex(
    prompt, pattern, max_tokens, use_cache, seed, model, 0::double precision, 'error'::text, null::text, '{}'::jsonb, null::jsonb, unsafe_mode_by_position);
comment on function @extschema@.steadytext_generate_regex(text, text, bigint, boolean, bigint, boolean, text) is
    'steadytext_generate_regex with unsafe_mode by its position in the Python extension';

create function @extschema@.steadytext_generate_json(
    prompt text,
    schema text,
    max_tokens bigint,
    use_cache boolean,
    seed bigint,
    model text,
    untyped_temperature text
)
returns text
language sql immutable parallel safe cost 100000
return @extschema@.steadytext_generate_json(
    prompt, schema, max_tokens, use_cache, seed, model, untyped_temperature::double precision, 'error'::text, null::text, '{}'::jsonb, null::jsonb, false);
comment on function @extschema@.steadytext_generate_json(text, text, bigint, boolean, bigint, text, text) is
    'steadytext_generate_json with a temperature that has no type';

create function @extschema@.steadytext_generate_json(
    prompt text,
    schema jsonb,
    max_tokens bigint,
    use_cache boolean,
    seed bigint,
    model text,
    untyped_temperature text
)
returns text
language sql immutable parallel safe cost 100000
return @extschema@.steadytext_generate_json(
    prompt, schema, max_tokens, use_cache, seed, model, untyped_temperature::double precision, 'error'::text, null::text, '{}'::jsonb, null::jsonb, false);
comment on function @extschema@.steadytext_generate_json(text, jsonb, bigint, boolean, bigint, text, text) is
    'steadytext_generate_json with a temperature that has no type';

create function @extschema@.steadytext_generate_regex(
    prompt text,
    pattern text,
    max_tokens bigint,
    use_cache boolean,
    seed bigint,
    model text,
    untyped_temperature text
)
returns text
language sql immutable parallel safe cost 100000
return @extschema@.steadytext_generate_regex(
    prompt, pattern, max_tokens, use_cache, seed, model, untyped_temperature::double precision, 'error'::text, null::text, '{}'::jsonb, null::jsonb, false);
comment on function @extschema@.steadytext_generate_regex(text, text, bigint, boolean, bigint, text, text) is
    'steadytext_generate_regex with a temperature that has no type';

create function @extschema@.steadytext_generate_choice(
    prompt text,
    choices text[],
    max_tokens bigint,
    use_cache boolean default true,
    seed bigint default 42,
    unsafe_mode boolean default false,
    model text default null
)
returns text
language sql immutable parallel safe cost 100000
return @extschema@.steadytext_generate_choice(
    prompt, choices, use_cache, seed, model, 'error'::text, null::text, '{}'::jsonb, null::jsonb, unsafe_mode);
comment on function @extschema@.steadytext_generate_choice(text, text[], bigint, boolean, bigint, boolean, text) is
    'steadytext_generate_choice with the parameters of the Python extension; max_tokens has no effect, as a choice ends with itself';

create function @extschema@.steadytext_generate_choice(
    prompt text,
    choices text[],
    untyped_use_cache text,
    seed bigint default 42,
    model text default null,
    on_error text default 'error',
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null,
    unsafe_mode boolean default false
)
returns text
language sql immutable parallel safe cost 100000
return @extschema@.steadytext_generate_choice(
    prompt, choices, untyped_use_cache::boolean, seed, model, on_error, system_prompt, options, variables, unsafe_mode);
comment on function @extschema@.steadytext_generate_choice(text, text[], text, bigint, text, text, text, jsonb, jsonb, boolean) is
    'steadytext_generate_choice with a use_cache that has no type';

create function @extschema@.steadytext_generate_choice(
    prompt text,
    choices text[],
    untyped_use_cache text,
    untyped_seed text,
    model text default null,
    on_error text default 'error',
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null,
    unsafe_mode boolean default false
)
returns text
language sql immutable parallel safe cost 100000
return @extschema@.steadytext_generate_choice(
    prompt, choices, untyped_use_cache::boolean, untyped_seed::bigint, model, on_error, system_prompt, options, variables, unsafe_mode);
comment on function @extschema@.steadytext_generate_choice(text, text[], text, text, text, text, text, jsonb, jsonb, boolean) is
    'steadytext_generate_choice with a use_cache and a seed that have no type';

-- Versions before 1.4.4 called it key, as st_config_get always did. A literal, and whatever else becomes text, goes to the
-- functions that take text.
create function @extschema@.steadytext_config_get(
    config_key varchar
)
returns text
language sql stable parallel safe strict
return @extschema@.steadytext_config_get(config_key::text);
comment on function @extschema@.steadytext_config_get(varchar) is
    'steadytext_config_get with the name that its parameter had in later versions of the Python extension';

create function @extschema@.steadytext_config_set(
    config_key varchar,
    config_value varchar
)
returns void
language sql volatile
return @extschema@.steadytext_config_set(config_key::text, config_value::text);
comment on function @extschema@.steadytext_config_set(varchar, varchar) is
    'steadytext_config_set with the names that its parameters had in later versions of the Python extension';

-- The short name had its own name for top_k, and a default. This twin differs, so it is written by hand.
create function @extschema@.st_rerank_top_k(
    query text,
    documents text[],
    k bigint default 5,
    task text default
        'Given a web search query, retrieve relevant passages that answer the query',
    return_scores boolean default true,
    seed bigint default 42,
    model text default null,
    truncate boolean default false,
    on_error text default 'error',
    document_ids text[] default null
)
returns table (document text, score double precision, index integer, document_id text)
language c immutable parallel safe cost 100000 rows 10
as 'MODULE_PATHNAME', 'rerank_top_k_wrapper';
comment on function @extschema@.st_rerank_top_k(text, text[], bigint, text, boolean, bigint, text, boolean, text, text[]) is
    'steadytext_rerank_top_k under its short name, with the parameter name and the default that it had in pg_steadytext 1.x';
