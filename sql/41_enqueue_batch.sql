-- Enqueuing in batches: one request for each element, one INSERT for all, ids in input order.

create function steadytext.check_batch(p_elements text[], p_what text)
returns void
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
declare
    v_limit integer;
begin
    if coalesce(cardinality(p_elements), 0) = 0 then
        raise exception '% array cannot be empty', initcap(p_what);
    end if;
    v_limit := steadytext.config_integer('max_batch_size');
    if cardinality(p_elements) > v_limit then
        raise exception 'Batch size cannot exceed % %', v_limit, p_what
            using hint = 'Send several batches, or let an administrator raise the setting max_batch_size.';
    end if;
end
$$;
comment on function steadytext.check_batch(text[], text) is
    'Refuses empty batches and those with more elements than max_batch_size';

create function @extschema@.steadytext_generate_batch_async(
    prompts text[],
    max_tokens bigint default null,
    use_cache boolean default true,
    seed bigint default 42,
    eos_string text default '[EOS]',
    model text default null,
    size text default null,
    temperature double precision default 0,
    priority bigint default 5
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
        max_tokens, use_cache, seed, eos_string, model, size, temperature);
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
    text[], bigint, boolean, bigint, text, text, text, double precision, bigint
) is 'Enqueues one generation per prompt and returns the request ids in the order of the prompts';

create function @extschema@.steadytext_embed_batch_async(
    texts text[],
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5,
    mode text default null,
    task text default null,
    truncate boolean default false
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
    v_params := steadytext.embed_params(use_cache, seed, model, mode, task, true, truncate);
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
    text[], boolean, bigint, text, bigint, text, text, boolean
) is
    'Enqueues one embedding per text and returns the request ids in the order of the texts; an empty text fails alone';
