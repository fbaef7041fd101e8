-- Enqueuing what has to match a constraint: a JSON schema, a regular expression, a list of choices.
--
-- The constraint is among the params, under schema, pattern or choices. A schema reaches the
-- library as text, which can be looked at before it is parsed.

create function steadytext.generate_json_async(
    prompt text,
    schema text,
    max_tokens bigint,
    use_cache boolean,
    seed bigint,
    model text,
    temperature double precision,
    priority bigint
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'generate_json_async_wrapper';
comment on function steadytext.generate_json_async(
    text, text, bigint, boolean, bigint, text, double precision, bigint
) is 'steadytext_generate_json_async, with the schema as text';

create function @extschema@.steadytext_generate_json_async(
    prompt text,
    schema jsonb,
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
    prompt, schema::text, max_tokens, use_cache, seed, model, temperature, priority);
comment on function @extschema@.steadytext_generate_json_async(
    text, jsonb, bigint, boolean, bigint, text, double precision, bigint
) is 'Enqueues the generation of a JSON document that conforms to a schema and returns the request id';

create function @extschema@.steadytext_generate_regex_async(
    prompt text,
    pattern text,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    priority bigint default 5
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'generate_regex_async_wrapper';
comment on function @extschema@.steadytext_generate_regex_async(
    text, text, bigint, boolean, bigint, text, double precision, bigint
) is 'Enqueues the generation of a text that a regular expression matches from end to end and returns the request id';

create function @extschema@.steadytext_generate_choice_async(
    prompt text,
    choices text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'generate_choice_async_wrapper';
comment on function @extschema@.steadytext_generate_choice_async(
    text, text[], boolean, bigint, text, bigint
) is 'Enqueues the choice of one of some texts and returns the request id';
