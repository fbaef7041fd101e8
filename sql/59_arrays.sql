-- Many texts at once, in one statement: the engine works on the elements of an array together, on equal ones once. NULL elements
-- stay NULL.

create function @extschema@.steadytext_generate_batch(
    prompts text[],
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0,
    on_error text default 'error',
    system_prompt text default null,
    options jsonb default '{}'
)
returns text[]
language c immutable parallel safe cost 1000000
as 'MODULE_PATHNAME', 'generate_batch_wrapper';
comment on function @extschema@.steadytext_generate_batch(
    text[], bigint, boolean, bigint, text, text, text, double precision, text, text, jsonb
) is 'steadytext_generate of each element, computed together';

create function steadytext.embed_batch(
    texts text[],
    use_cache boolean,
    seed bigint,
    model text,
    mode text,
    task text,
    truncate boolean,
    on_error text,
    dimensions bigint
)
returns setof real[]
language c immutable parallel safe cost 100000 rows 100
as 'MODULE_PATHNAME', 'embed_batch_wrapper';
comment on function steadytext.embed_batch(text[], boolean, bigint, text, text, text, boolean, text, bigint) is
    'Returns the embeddings of texts as arrays, in the order of the texts';

select pg_catalog.set_config('search_path', steadytext.vector_path(), true);
create function @extschema@.steadytext_embed_batch(
    texts text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    mode text default null,
    task text default null,
    truncate boolean default false,
    on_error text default 'error',
    dimensions bigint default null
)
returns vector[]
language sql immutable parallel safe cost 100000
-- With a setting of its own, its twin calls it: what stands in a query names the function that it is in.
set search_path = pg_catalog, pg_temp
return case when texts is not null then (
    select coalesce(pg_catalog.array_agg(e.embedding::vector order by e.place), '{}'::vector[])
    from rows from (steadytext.embed_batch(texts, use_cache, seed, model, mode, task, truncate, on_error, dimensions))
        with ordinality as e(embedding, place))
end;
comment on function @extschema@.steadytext_embed_batch(text[], boolean, bigint, text, text, text, boolean, text, bigint) is
    'steadytext_embed of each element, computed together';
set local search_path = pg_catalog, pg_temp;
