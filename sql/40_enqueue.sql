-- Enqueuing generations and embeddings: one INSERT, returns the request id, or those of a batch in
-- the order of its elements. Nothing here touches a model.
--
-- These functions only put parameters into columns; the trigger on the queue checks them. A
-- parameter that says what would happen anyway is left out of params, so that most rows
-- carry '{}'. A missing max_tokens or seed means the settings default_max_tokens and
-- default_seed: an explicit max_tokens is therefore always kept, and so is the seed where a
-- temperature makes it matter. Integers are bigint in the whole API: PostgreSQL converts neither
-- bigint nor count(*) into integer by itself.
--
-- The single ones run on the hot path: they are Rust functions that keep the plan of their
-- INSERT, and run it with the rights of their caller.

create function @extschema@.steadytext_generate_async(
    prompt text,
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0,
    priority bigint default 5,
    system_prompt text default null,
    options jsonb default '{}',
    variables jsonb default null
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'generate_async_wrapper';
comment on function @extschema@.steadytext_generate_async(
    text, bigint, boolean, bigint, text, text, text, double precision, bigint, text, jsonb, jsonb
) is 'Enqueues the generation of a text and returns the request id';

create function steadytext.priority(priority bigint)
returns integer
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- A priority that the column cannot hold is out of range there as well, and is refused with
    -- that error.
    return greatest(least(coalesce(priority, 5), 2147483647), -2147483648)::integer;
end
$$;
comment on function steadytext.priority(bigint) is 'Returns a priority as the queue has it; NULL means 5';

create function steadytext.generate_params(
    max_tokens bigint,
    use_cache boolean,
    seed bigint,
    eos_string text,
    model text,
    size text,
    temperature double precision,
    system_prompt text default null,
    options jsonb default null
)
returns jsonb
language c stable
as 'MODULE_PATHNAME', 'generate_params_of_wrapper';
comment on function steadytext.generate_params(
    bigint, boolean, bigint, text, text, text, double precision, text, jsonb
) is 'Returns the params of a generate request: values that differ from the defaults, options among them; refuses unknown options';

create function @extschema@.steadytext_embed_async(
    text_input text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5,
    mode text default null,
    task text default null,
    truncate boolean default false,
    dimensions bigint default null,
    unsafe_mode boolean default false
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'embed_async_wrapper';
comment on function @extschema@.steadytext_embed_async(
    text, boolean, bigint, text, bigint, text, text, boolean, bigint, boolean
) is 'Enqueues the embedding of a text, a passage or (mode query) a query with a task, of all dimensions or fewer, and returns the request id';

create function steadytext.embed_params(
    use_cache boolean, seed bigint, model text, mode text, task text, batch boolean, truncate boolean, dimensions bigint
)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return jsonb_strip_nulls(jsonb_build_object(
        'use_cache', case when not use_cache then false end,
        'seed', nullif(seed, 42),
        'model', model,
        'mode', mode,
        'task', task,
        'batch', case when batch then true end,
        'truncate', case when truncate then true end,
        'dimensions', dimensions
    ));
end
$$;
comment on function steadytext.embed_params(boolean, bigint, text, text, text, boolean, boolean, bigint) is
    'Returns the params of an embed request: values that differ from the defaults';

create function steadytext.check_batch(p_elements text[], p_what text)
returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_limit integer;
begin
    if coalesce(cardinality(p_elements), 0) = 0 then
        raise exception '% array cannot be empty', initcap(left(p_what, 63))
            using hint = 'Give one element at least; where there is nothing to do, do not call it.';
    end if;
    v_limit := steadytext.config_integer('max_batch_size');
    if cardinality(p_elements) > v_limit then
        raise exception 'Batch size cannot exceed % %', v_limit, left(p_what, 63)
            using hint = format('These are %s. Send several batches, or let an administrator raise the setting max_batch_size with steadytext_config_set().',
                cardinality(p_elements));
    end if;
end
$$;
comment on function steadytext.check_batch(text[], text) is
    'Refuses empty batches and batches with more elements than max_batch_size';

create function @extschema@.steadytext_generate_batch_async(
    prompts text[],
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0,
    priority bigint default 5,
    system_prompt text default null,
    options jsonb default '{}'
)
returns uuid[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_params jsonb;
    v_priority integer := steadytext.priority(priority);
    v_request_ids uuid[];
begin
    perform steadytext.check_batch(prompts, 'prompts');
    v_params := steadytext.generate_params(
        max_tokens, use_cache, seed, eos_string, model, size, temperature, system_prompt, options);
    -- The identity column counts in the order of the select.
    with enqueued as (
        insert into @extschema@.steadytext_queue (request_type, prompt, params, priority)
        select 'generate', p.prompt, v_params, v_priority
        from unnest(prompts) with ordinality as p(prompt, n)
        order by p.n
        returning id, request_id
    )
    select array_agg(e.request_id order by e.id) into v_request_ids from enqueued as e;
    return v_request_ids;
end
$$;
comment on function @extschema@.steadytext_generate_batch_async(
    text[], bigint, boolean, bigint, text, text, text, double precision, bigint, text, jsonb
) is 'Enqueues one generation per prompt and returns the request ids in the order of the prompts';

create function @extschema@.steadytext_embed_batch_async(
    texts text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5,
    mode text default null,
    task text default null,
    truncate boolean default false,
    dimensions bigint default null
)
returns uuid[]
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
declare
    v_params jsonb;
    v_priority integer := steadytext.priority(priority);
    v_request_ids uuid[];
begin
    perform steadytext.check_batch(texts, 'texts');
    -- The mark lets empty texts in: each fails alone, in the worker, not the whole batch.
    v_params := steadytext.embed_params(use_cache, seed, model, mode, task, true, truncate, dimensions);
    with enqueued as (
        insert into @extschema@.steadytext_queue (request_type, prompt, params, priority)
        select 'embed', t.prompt, v_params, v_priority
        from unnest(texts) with ordinality as t(prompt, n)
        order by t.n
        returning id, request_id
    )
    select array_agg(e.request_id order by e.id) into v_request_ids from enqueued as e;
    return v_request_ids;
end
$$;
comment on function @extschema@.steadytext_embed_batch_async(
    text[], boolean, bigint, text, bigint, text, text, boolean, bigint
) is
    'Enqueues one embedding per text and returns the request ids in the order of the texts; an empty text fails alone';
