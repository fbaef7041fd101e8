-- Synchronous functions: the answer in the same statement, inside any transaction; and, without a
-- computation, the answer that the cache has.
--
-- The functions that compute are immutable because the same input gives the same bytes, so that generated
-- columns and indexes can use them. A constant call is computed when its statement is planned, also by
-- EXPLAIN; another model leaves what was computed before as it is. The cost tells the planner to call them as
-- rarely as it can.
--
-- unsafe_mode is the Python extension's: it may be false. 57_predecessor.sql has what its calls need beside that.

create function @extschema@.steadytext_generate(
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
    variables jsonb default null,
    unsafe_mode boolean default false
)
returns text
language c immutable parallel safe cost 100000
as 'MODULE_PATHNAME', 'generate_wrapper';
comment on function @extschema@.steadytext_generate(
    text, bigint, boolean, bigint, text, text, text, double precision, text, text, jsonb, jsonb, boolean
) is 'Generates a text from a prompt';

create function steadytext.embed(
    text_input text, use_cache boolean, seed bigint, model text, mode text, task text,
    truncate boolean, on_error text, dimensions bigint, unsafe_mode boolean
)
returns real[]
language c immutable parallel safe cost 10000
as 'MODULE_PATHNAME', 'embed_wrapper';
comment on function steadytext.embed(text, boolean, bigint, text, text, text, boolean, text, bigint, boolean) is
    'Returns the embedding of a text as an array: the type vector cannot be named in the library';

select pg_catalog.set_config('search_path', steadytext.vector_path(), true);
create function @extschema@.steadytext_embed(
    text_input text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    mode text default null,
    task text default null,
    truncate boolean default false,
    on_error text default 'error',
    dimensions bigint default null,
    unsafe_mode boolean default false
)
returns vector
language sql immutable parallel safe cost 10000
return steadytext.embed(text_input, use_cache, seed, model, mode, task, truncate, on_error, dimensions, unsafe_mode)::vector;
comment on function @extschema@.steadytext_embed(text, boolean, bigint, text, text, text, boolean, text, bigint, boolean) is
    'Computes the embedding of a text, a passage or (mode query) a query with a task, of all dimensions or fewer';
set local search_path = pg_catalog, pg_temp;

create function @extschema@.steadytext_generate_stream(
    prompt text,
    max_tokens bigint default null,
    seed bigint default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0,
    on_error text default 'error',
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null,
    unsafe_mode boolean default false
)
returns setof text
language c volatile parallel restricted cost 100000
as 'MODULE_PATHNAME', 'generate_stream_wrapper';
comment on function @extschema@.steadytext_generate_stream(
    text, bigint, bigint, text, text, text, double precision, text, text, jsonb, jsonb, boolean
) is 'Generates a text and returns it piece by piece: in the select list of a cursor, FETCH shows each as soon as it is there';

-- Params are taken as json and text, too: PostgreSQL converts neither into jsonb by itself, and the
-- form with text keeps calls with a literal unambiguous.
create function @extschema@.steadytext_cache_key(request_type text, prompt text, params jsonb default '{}')
returns text
language c stable parallel safe
as 'MODULE_PATHNAME', 'cache_key_wrapper';
comment on function @extschema@.steadytext_cache_key(text, text, jsonb) is
    'Returns the key under which the answer to a request is cached, with the present settings and models; NULL where that depends on a model file that was never loaded';

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

create function @extschema@.steadytext_generate_cached(
    prompt text,
    max_tokens bigint default null,
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
returns text
language c stable parallel safe
as 'MODULE_PATHNAME', 'generate_cached_wrapper';
comment on function @extschema@.steadytext_generate_cached(
    text, bigint, bigint, text, text, text, double precision, text, text, jsonb, jsonb
) is 'Returns the text that steadytext_generate would return, if the cache has it; otherwise NULL';

create function steadytext.embed_cached(
    text_input text, seed bigint, model text, mode text, task text, truncate boolean, on_error text, dimensions bigint,
    unsafe_mode boolean
)
returns real[]
language c stable parallel safe
as 'MODULE_PATHNAME', 'embed_cached_wrapper';
comment on function steadytext.embed_cached(text, bigint, text, text, text, boolean, text, bigint, boolean) is
    'Returns a cached embedding as an array: the type vector cannot be named in the library';

select pg_catalog.set_config('search_path', steadytext.vector_path(), true);
create function @extschema@.steadytext_embed_cached(
    text_input text,
    seed bigint default 42,
    model text default null,
    mode text default null,
    task text default null,
    truncate boolean default false,
    on_error text default 'error',
    dimensions bigint default null,
    unsafe_mode boolean default false
)
returns vector
language sql stable parallel safe
return steadytext.embed_cached(text_input, seed, model, mode, task, truncate, on_error, dimensions, unsafe_mode)::vector;
comment on function @extschema@.steadytext_embed_cached(text, bigint, text, text, text, boolean, text, bigint, boolean) is
    'Returns the vector that steadytext_embed would return, if the cache has it; otherwise NULL';
set local search_path = pg_catalog, pg_temp;
