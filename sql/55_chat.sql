-- Conversations: messages as a JSON array of objects with role (system, user or assistant) and content. In the queue the
-- last one, the user's, is the prompt, and the others are among the params, as system_prompt and messages: a conversation
-- of one message is the same request as its prompt alone. And what an answer took.

create function @extschema@.steadytext_chat(
    messages jsonb,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0,
    on_error text default 'error',
    options jsonb default '{}'
)
returns text
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'chat_wrapper';
comment on function @extschema@.steadytext_chat(
    jsonb, bigint, boolean, bigint, text, text, text, double precision, text, jsonb
) is 'Continues a conversation: messages with role and content, of which the last is the user''s';

create function @extschema@.steadytext_chat_async(
    messages jsonb,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0,
    priority bigint default 5,
    options jsonb default '{}'
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'chat_async_wrapper';
comment on function @extschema@.steadytext_chat_async(
    jsonb, bigint, boolean, bigint, text, text, text, double precision, bigint, jsonb
) is 'Enqueues the continuation of a conversation and returns the request id';

create function @extschema@.steadytext_chat_stream(
    messages jsonb,
    max_tokens bigint default null,
    seed bigint default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0,
    on_error text default 'error',
    options jsonb default '{}'
)
returns setof text
language c volatile parallel restricted cost 100000
as 'MODULE_PATHNAME', 'chat_stream_wrapper';
comment on function @extschema@.steadytext_chat_stream(
    jsonb, bigint, bigint, text, text, text, double precision, text, jsonb
) is 'Continues a conversation and returns the text piece by piece, as steadytext_generate_stream does';

-- Volatile: times are never the same twice.
create function @extschema@.steadytext_generate_details(
    prompt text,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0,
    on_error text default 'error',
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null
)
returns table (
    text text,
    finish_reason text,
    prompt_tokens integer,
    cached_tokens integer,
    generated_tokens integer,
    first_token_ms integer,
    total_ms integer,
    model text
)
language c volatile parallel restricted cost 100000 rows 1
as 'MODULE_PATHNAME', 'generate_details_wrapper';
comment on function @extschema@.steadytext_generate_details(
    text, bigint, boolean, bigint, text, text, text, double precision, text, text, jsonb, jsonb
) is 'Generates a text and returns it in one row with tokens and times; always computed, even if the cache has an answer';
