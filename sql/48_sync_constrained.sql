-- What has to match a constraint, in the same statement. Immutable for the reasons of the other
-- synchronous functions.

create function steadytext.generate_json(
    prompt text,
    schema text,
    max_tokens bigint,
    use_cache boolean,
    seed bigint,
    model text,
    temperature double precision,
    on_error text
)
returns text
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'generate_json_wrapper';
comment on function steadytext.generate_json(
    text, text, bigint, boolean, bigint, text, double precision, text
) is 'steadytext_generate_json, with the schema as text';

create function @extschema@.steadytext_generate_json(
    prompt text,
    schema jsonb,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    on_error text default 'error'
)
returns text
language sql immutable parallel safe cost 100000
return steadytext.generate_json(prompt, schema::text, max_tokens, use_cache, seed, model, temperature, on_error);
comment on function @extschema@.steadytext_generate_json(
    text, jsonb, bigint, boolean, bigint, text, double precision, text
) is 'Generates a JSON document that conforms to a schema';

create function @extschema@.steadytext_generate_regex(
    prompt text,
    pattern text,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    on_error text default 'error'
)
returns text
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'generate_regex_wrapper';
comment on function @extschema@.steadytext_generate_regex(
    text, text, bigint, boolean, bigint, text, double precision, text
) is 'Generates a text that a regular expression matches from end to end';

create function @extschema@.steadytext_generate_choice(
    prompt text,
    choices text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error'
)
returns text
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'generate_choice_wrapper';
comment on function @extschema@.steadytext_generate_choice(text, text[], boolean, bigint, text, text) is
    'Chooses one of some texts';
