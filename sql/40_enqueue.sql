-- Enqueuing: one INSERT, returns the request id. Nothing here touches a model.
--
-- These functions only put parameters into columns; the trigger on the queue checks them. A
-- parameter that says what would happen anyway is left out of params, so that most rows
-- carry '{}'. A missing max_tokens or seed means the settings default_max_tokens and
-- default_seed: an explicit max_tokens is therefore always kept, and so is the seed where a
-- temperature makes it matter.
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
    priority bigint default 5
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'generate_async_wrapper';
comment on function @extschema@.steadytext_generate_async(
    text, bigint, boolean, bigint, text, text, text, double precision, bigint
) is 'Enqueues the generation of a text and returns the request id';

create function steadytext.priority(priority bigint)
returns integer
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
begin
    -- What the column cannot hold is out of range there, too, and refused with the words for it.
    return greatest(least(coalesce(priority, 5), 2147483647), -2147483648)::integer;
end
$$;
comment on function steadytext.priority(bigint) is 'A priority as the queue has it; NULL means 5';

create function steadytext.generate_params(
    max_tokens bigint,
    use_cache boolean,
    seed bigint,
    eos_string text,
    model text,
    size text,
    temperature double precision
)
returns jsonb
language plpgsql stable
set search_path = pg_catalog, pg_temp
as $$
begin
    return jsonb_strip_nulls(jsonb_build_object(
        'max_tokens', max_tokens,
        'use_cache', case when not use_cache then false end,
        'seed', case when seed <> 42 or temperature <> 0 then seed end,
        'eos_string', nullif(eos_string, '[EOS]'),
        'model', model,
        'size', size,
        'temperature', nullif(temperature, 0)
    ));
end
$$;
comment on function steadytext.generate_params(
    bigint, boolean, bigint, text, text, text, double precision
) is 'The params of a generate request: what differs from the defaults';

create function @extschema@.steadytext_embed_async(
    text_input text,
    use_cache boolean default true,
    seed bigint default 42,
    model text default null,
    priority bigint default 5,
    mode text default null,
    task text default null,
    truncate boolean default false
)
returns uuid
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'embed_async_wrapper';
comment on function @extschema@.steadytext_embed_async(
    text, boolean, bigint, text, bigint, text, text, boolean
) is 'Enqueues the embedding of a text, a passage or (mode query) a query with a task, and returns the request id';

create function steadytext.embed_params(
    use_cache boolean, seed bigint, model text, mode text, task text, batch boolean, truncate boolean
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
        'truncate', case when truncate then true end
    ));
end
$$;
comment on function steadytext.embed_params(boolean, bigint, text, text, text, boolean, boolean) is
    'The params of an embed request: what differs from the defaults';
