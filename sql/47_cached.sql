-- Answers that the cache has; nothing is computed.

create function @extschema@.steadytext_cache_key(request_type text, prompt text, params jsonb default '{}')
returns text
language c stable parallel safe
as 'MODULE_PATHNAME', 'cache_key_wrapper';
comment on function @extschema@.steadytext_cache_key(text, text, jsonb) is
    'Under which key the answer to a request is cached, as settings and models are now; NULL where that depends on a model file that was never loaded';

create function @extschema@.steadytext_generate_cached(
    prompt text,
    max_tokens bigint default null,
    seed bigint default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0,
    on_error text default 'error'
)
returns text
language c stable parallel safe
as 'MODULE_PATHNAME', 'generate_cached_wrapper';
comment on function @extschema@.steadytext_generate_cached(
    text, bigint, bigint, text, text, text, double precision, text
) is 'What steadytext_generate would return, if the cache has it; otherwise NULL';

create function steadytext.embed_cached(text_input text, seed bigint, model text, mode text, task text, truncate boolean, on_error text)
returns real[]
language c stable parallel safe
as 'MODULE_PATHNAME', 'embed_cached_wrapper';
comment on function steadytext.embed_cached(text, bigint, text, text, text, boolean, text) is
    'A cached embedding as an array: vector is not nameable in the library';

select pg_catalog.set_config('search_path', steadytext.vector_path(), true);
create function @extschema@.steadytext_embed_cached(
    text_input text,
    seed bigint default 42,
    model text default null,
    mode text default null,
    task text default null,
    truncate boolean default false,
    on_error text default 'error'
)
returns vector
language sql stable parallel safe
return steadytext.embed_cached(text_input, seed, model, mode, task, truncate, on_error)::vector;
comment on function @extschema@.steadytext_embed_cached(text, bigint, text, text, text, boolean, text) is
    'What steadytext_embed would return, if the cache has it; otherwise NULL';
set local search_path = pg_catalog, pg_temp;
