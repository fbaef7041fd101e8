-- Enqueuing what has to match a constraint: a JSON schema, a regular expression, a list of choices.
--
-- The constraint is among the params, under schema, pattern or choices. A schema reaches the
-- library as text, which can be looked at before it is parsed.

create function steadytext.generate_json_async(
    prompt text,
    schema text,
    max_tokens integer,
    use_cache boolean,
    seed integer,
    model text,
    temperature double precision,
    priority integer
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'generate_json_async_wrapper';
comment on function steadytext.generate_json_async(
    text, text, integer, boolean, integer, text, double precision, integer
) is 'steadytext_generate_json_async, with the schema as text';

create function @extschema@.steadytext_generate_json_async(
    prompt text,
    schema jsonb,
    max_tokens integer default null,
    use_cache boolean default true,
    seed integer default 42,
    model text default null,
    temperature double precision default 0,
    priority integer default 5
)
returns uuid
language sql volatile
return steadytext.generate_json_async(
    prompt, schema::text, max_tokens, use_cache, seed, model, temperature, priority);
comment on function @extschema@.steadytext_generate_json_async(
    text, jsonb, integer, boolean, integer, text, double precision, integer
) is 'Enqueues the generation of a JSON document that conforms to a schema and returns the request id';

create function @extschema@.steadytext_generate_regex_async(
    prompt text,
    pattern text,
    max_tokens integer default null,
    use_cache boolean default true,
    seed integer default 42,
    model text default null,
    temperature double precision default 0,
    priority integer default 5
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'generate_regex_async_wrapper';
comment on function @extschema@.steadytext_generate_regex_async(
    text, text, integer, boolean, integer, text, double precision, integer
) is 'Enqueues the generation of a text that a regular expression matches from end to end and returns the request id';

create function @extschema@.steadytext_generate_choice_async(
    prompt text,
    choices text[],
    use_cache boolean default true,
    seed integer default 42,
    model text default null,
    priority integer default 5
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'generate_choice_async_wrapper';
comment on function @extschema@.steadytext_generate_choice_async(
    text, text[], boolean, integer, text, integer
) is 'Enqueues the choice of one of some texts and returns the request id';

create function @extschema@.st_generate_json_async(
    prompt text,
    schema jsonb,
    max_tokens integer default null,
    use_cache boolean default true,
    seed integer default 42,
    model text default null,
    temperature double precision default 0,
    priority integer default 5
)
returns uuid
language sql volatile
return steadytext.generate_json_async(
    prompt, schema::text, max_tokens, use_cache, seed, model, temperature, priority);
comment on function @extschema@.st_generate_json_async(
    text, jsonb, integer, boolean, integer, text, double precision, integer
) is 'Short for steadytext_generate_json_async';

create function @extschema@.st_generate_regex_async(
    prompt text,
    pattern text,
    max_tokens integer default null,
    use_cache boolean default true,
    seed integer default 42,
    model text default null,
    temperature double precision default 0,
    priority integer default 5
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'generate_regex_async_wrapper';
comment on function @extschema@.st_generate_regex_async(
    text, text, integer, boolean, integer, text, double precision, integer
) is 'Short for steadytext_generate_regex_async';

create function @extschema@.st_generate_choice_async(
    prompt text,
    choices text[],
    use_cache boolean default true,
    seed integer default 42,
    model text default null,
    priority integer default 5
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'generate_choice_async_wrapper';
comment on function @extschema@.st_generate_choice_async(
    text, text[], boolean, integer, text, integer
) is 'Short for steadytext_generate_choice_async';
