-- The same functions for arguments of other types, which PostgreSQL does not convert by itself: json and text in the place of jsonb;
-- and arrays of requests to cancel.
--
-- A literal without a type goes to the form with text, which is why there is one wherever there is another: without it, such calls
-- would be ambiguous. A parameter whose type a driver leaves to the server becomes text, too; that is why functions that take one
-- id, which drivers have as values of a type of their own, have no second form, but for the one that also takes many.
--
-- Integers need no second form: they are bigint everywhere.

create function @extschema@.steadytext_generate_json_async(
    prompt text,
    schema json,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    priority bigint default 5
)
returns uuid
language sql volatile
return steadytext.generate_json_async(
    prompt, schema::jsonb::text, max_tokens, use_cache, seed, model, temperature, priority);
comment on function @extschema@.steadytext_generate_json_async(
    text, json, bigint, boolean, bigint, text, double precision, bigint
) is 'steadytext_generate_json_async with the schema as json';

create function @extschema@.steadytext_generate_json_async(
    prompt text,
    schema text,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    priority bigint default 5
)
returns uuid
language sql volatile
return steadytext.generate_json_async(
    prompt, schema::jsonb::text, max_tokens, use_cache, seed, model, temperature, priority);
comment on function @extschema@.steadytext_generate_json_async(
    text, text, bigint, boolean, bigint, text, double precision, bigint
) is 'steadytext_generate_json_async with the schema as text';

create function @extschema@.steadytext_generate_json(
    prompt text,
    schema json,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    on_error text default 'error'
)
returns text
language sql immutable parallel safe cost 100000
return steadytext.generate_json(
    prompt, schema::jsonb::text, max_tokens, use_cache, seed, model, temperature, on_error);
comment on function @extschema@.steadytext_generate_json(
    text, json, bigint, boolean, bigint, text, double precision, text
) is 'steadytext_generate_json with the schema as json';

create function @extschema@.steadytext_generate_json(
    prompt text,
    schema text,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    on_error text default 'error'
)
returns text
language sql immutable parallel safe cost 100000
return steadytext.generate_json(
    prompt, schema::jsonb::text, max_tokens, use_cache, seed, model, temperature, on_error);
comment on function @extschema@.steadytext_generate_json(
    text, text, bigint, boolean, bigint, text, double precision, text
) is 'steadytext_generate_json with the schema as text';

create function @extschema@.steadytext_cache_key(request_type text, prompt text, params json)
returns text
language sql stable parallel safe
return @extschema@.steadytext_cache_key(request_type, prompt, params::jsonb);
comment on function @extschema@.steadytext_cache_key(text, text, json) is 'steadytext_cache_key with the params as json';

create function @extschema@.steadytext_cache_key(request_type text, prompt text, params text)
returns text
language sql stable parallel safe
return @extschema@.steadytext_cache_key(request_type, prompt, params::jsonb);
comment on function @extschema@.steadytext_cache_key(text, text, text) is 'steadytext_cache_key with the params as text';
