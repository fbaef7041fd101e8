-- Answers that match a constraint: a JSON schema, a regular expression, a list of choices. Enqueued, and
-- in the same statement.
--
-- In the queue the constraint is among the params, under schema, pattern or choices. A schema reaches
-- the library as text, which can be looked at before it is parsed.
--
-- A schema may be jsonb, json or text: PostgreSQL converts neither of the latter into jsonb by itself.
-- A literal without a type goes to the form with text, which is why there is one wherever there is one
-- with json: without it, such calls would be ambiguous.

create function steadytext.with_written_order(written text, stored text)
returns text
language c immutable parallel safe strict
as 'MODULE_PATHNAME', 'with_written_order_wrapper';
comment on function steadytext.with_written_order(text, text) is
    'Returns a JSON schema as jsonb keeps it, with propertyOrdering where it was written in another order';

create function steadytext.generate_json_async(
    prompt text,
    schema text,
    max_tokens bigint,
    use_cache boolean,
    seed bigint,
    model text,
    temperature double precision,
    priority bigint,
    system_prompt text,
    options jsonb,
    variables jsonb
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'generate_json_async_wrapper';
comment on function steadytext.generate_json_async(
    text, text, bigint, boolean, bigint, text, double precision, bigint, text, jsonb, jsonb
) is 'Does what steadytext_generate_json_async does, with the schema as text';

create function @extschema@.steadytext_generate_json_async(
    prompt text,
    schema jsonb,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    priority bigint default 5,
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null
)
returns uuid
language sql volatile
return steadytext.generate_json_async(
    prompt, schema::text, max_tokens, use_cache, seed, model, temperature, priority, system_prompt, options, variables);
comment on function @extschema@.steadytext_generate_json_async(
    text, jsonb, bigint, boolean, bigint, text, double precision, bigint, text, jsonb, jsonb
) is 'Enqueues the generation of a JSON document that conforms to a schema and returns the request id';

create function @extschema@.steadytext_generate_regex_async(
    prompt text,
    pattern text,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    priority bigint default 5,
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'generate_regex_async_wrapper';
comment on function @extschema@.steadytext_generate_regex_async(
    text, text, bigint, boolean, bigint, text, double precision, bigint, text, jsonb, jsonb
) is 'Enqueues the generation of a text that a regular expression matches from end to end and returns the request id';

create function @extschema@.steadytext_generate_choice_async(
    prompt text,
    choices text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5,
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'generate_choice_async_wrapper';
comment on function @extschema@.steadytext_generate_choice_async(
    text, text[], boolean, bigint, text, bigint, text, jsonb, jsonb
) is 'Enqueues the choice of one of some texts and returns the request id';

create function @extschema@.steadytext_generate_json_async(
    prompt text,
    schema json,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    priority bigint default 5,
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null
)
returns uuid
language sql volatile
return steadytext.generate_json_async(
    prompt, steadytext.with_written_order(schema::text, schema::jsonb::text), max_tokens, use_cache, seed, model, temperature,
    priority, system_prompt, options, variables);
comment on function @extschema@.steadytext_generate_json_async(
    text, json, bigint, boolean, bigint, text, double precision, bigint, text, jsonb, jsonb
) is 'steadytext_generate_json_async with the schema as json';

create function @extschema@.steadytext_generate_json_async(
    prompt text,
    schema text,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    priority bigint default 5,
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null
)
returns uuid
language sql volatile
return steadytext.generate_json_async(
    prompt, steadytext.with_written_order(schema::text, schema::jsonb::text), max_tokens, use_cache, seed, model, temperature,
    priority, system_prompt, options, variables);
comment on function @extschema@.steadytext_generate_json_async(
    text, text, bigint, boolean, bigint, text, double precision, bigint, text, jsonb, jsonb
) is 'steadytext_generate_json_async with the schema as text';

create function steadytext.generate_json(
    prompt text,
    schema text,
    max_tokens bigint,
    use_cache boolean,
    seed bigint,
    model text,
    temperature double precision,
    on_error text,
    system_prompt text,
    options jsonb,
    variables jsonb,
    unsafe_mode boolean
)
returns text
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'generate_json_wrapper';
comment on function steadytext.generate_json(
    text, text, bigint, boolean, bigint, text, double precision, text, text, jsonb, jsonb, boolean
) is 'Does what steadytext_generate_json does, with the schema as text';

create function @extschema@.steadytext_generate_json(
    prompt text,
    schema jsonb,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    on_error text default 'error',
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null,
    unsafe_mode boolean default false
)
returns text
language sql immutable parallel safe cost 100000
return steadytext.generate_json(prompt, schema::text, max_tokens, use_cache, seed, model, temperature, on_error, system_prompt, options, variables, unsafe_mode);
comment on function @extschema@.steadytext_generate_json(
    text, jsonb, bigint, boolean, bigint, text, double precision, text, text, jsonb, jsonb, boolean
) is 'Generates a JSON document that conforms to a schema';

create function @extschema@.steadytext_generate_regex(
    prompt text,
    pattern text,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    on_error text default 'error',
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null,
    unsafe_mode boolean default false
)
returns text
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'generate_regex_wrapper';
comment on function @extschema@.steadytext_generate_regex(
    text, text, bigint, boolean, bigint, text, double precision, text, text, jsonb, jsonb, boolean
) is 'Generates a text that a regular expression matches from end to end';

create function @extschema@.steadytext_generate_choice(
    prompt text,
    choices text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    on_error text default 'error',
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null,
    unsafe_mode boolean default false
)
returns text
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'generate_choice_wrapper';
comment on function @extschema@.steadytext_generate_choice(text, text[], boolean, bigint, text, text, text, jsonb, jsonb, boolean) is
    'Chooses one of some texts';

create function @extschema@.steadytext_generate_json(
    prompt text,
    schema json,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    on_error text default 'error',
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null,
    unsafe_mode boolean default false
)
returns text
language sql immutable parallel safe cost 100000
return steadytext.generate_json(
    prompt, steadytext.with_written_order(schema::text, schema::jsonb::text), max_tokens, use_cache, seed, model, temperature,
    on_error, system_prompt, options, variables, unsafe_mode);
comment on function @extschema@.steadytext_generate_json(
    text, json, bigint, boolean, bigint, text, double precision, text, text, jsonb, jsonb, boolean
) is 'steadytext_generate_json with the schema as json';

create function @extschema@.steadytext_generate_json(
    prompt text,
    schema text,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    temperature double precision default 0,
    on_error text default 'error',
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null,
    unsafe_mode boolean default false
)
returns text
language sql immutable parallel safe cost 100000
return steadytext.generate_json(
    prompt, steadytext.with_written_order(schema::text, schema::jsonb::text), max_tokens, use_cache, seed, model, temperature,
    on_error, system_prompt, options, variables, unsafe_mode);
comment on function @extschema@.steadytext_generate_json(
    text, text, bigint, boolean, bigint, text, double precision, text, text, jsonb, jsonb, boolean
) is 'steadytext_generate_json with the schema as text';
