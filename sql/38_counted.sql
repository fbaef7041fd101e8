-- Protocol: what workers elsewhere do counts in steadytext_stat and against the limits of roles, as what the server's own worker does. That one
-- counts by itself; of the others, the functions that claim and end rows say here what has become of them. It counts when they commit.

create function steadytext.count_begun(p_request_type text, p_model text, p_requests bigint)
returns void
language c volatile
as 'MODULE_PATHNAME', 'count_begun_wrapper';
comment on function steadytext.count_begun(text, text, bigint) is
    'Counts requests that have begun; called by count_claims';

create function steadytext.count_ended(
    p_owner oid,
    p_request_type text,
    p_model text,
    p_outcome text,
    p_prompt_tokens integer,
    p_cached_tokens integer,
    p_generated_tokens integer,
    p_queue_s double precision,
    p_first_token_s double precision,
    p_total_s double precision
)
returns void
language c volatile
as 'MODULE_PATHNAME', 'count_ended_wrapper';
comment on function steadytext.count_ended(
    oid, text, text, text, integer, integer, integer, double precision, double precision, double precision
) is 'Counts a request that was completed, failed or is retried, and charges its tokens; called by count_ends';

create function steadytext.counted_model(p_request_type text, p_params jsonb, p_defaults text[])
returns text
language sql immutable parallel safe
begin atomic
    select coalesce(
        p_params operator(pg_catalog.->>) 'model', p_params operator(pg_catalog.->>) 'size',
        p_params operator(pg_catalog.->>) 'default_model', p_defaults[steadytext.task_number(p_request_type, p_params)]);
end;
comment on function steadytext.counted_model(text, jsonb, text[]) is
    'Returns the model under which a request is counted; p_defaults as default_models gives them; called by count_claims and count_ends';

-- The first attempt is that with which a request begins. As in 31_complete.sql, rows are looked up one by one: OFFSET keeps the planner from
-- making a join of it.
create function steadytext.count_claims(p_ids bigint[])
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_defaults text[] := steadytext.default_models();
begin
    perform steadytext.count_begun(c.request_type, c.model, c.requests)
    from (
        select q.request_type, steadytext.counted_model(q.request_type, q.params, v_defaults) as model, count(*) as requests
        from unnest(p_ids) as g(id)
        cross join lateral (
            select q.request_type, q.params
            from @extschema@.steadytext_queue as q
            where q.id = g.id and q.attempt = 1 and q.status = 'processing'
            offset 0
        ) as q
        group by 1, 2
    ) as c;
end
$$;
comment on function steadytext.count_claims(bigint[]) is
    'Counts requests that a worker elsewhere has claimed and that were never claimed before; called by claim_requests';

-- A token has a byte at least, except for those that templates and instructions put around each piece of work, and for constraints, of which
-- the model may be told in more words. A piece of work is a text or a query, with each of the documents, categories, labels or fields; long
-- texts are cut into pieces where they are summed up or searched. The texts beside them are repeated for each.
create function steadytext.most_tokens(
    p_request_type text,
    p_prompt text,
    p_prompts text[],
    p_params jsonb,
    p_default_max_tokens bigint,
    p_max_tokens_limit bigint,
    out prompt_tokens bigint,
    out generated_tokens bigint
)
language plpgsql immutable
set search_path = pg_catalog, pg_temp
as $$
declare
    c_around constant bigint := 4096;
    c_piece_bytes constant bigint := 256;
    v_prompt bigint := coalesce(steadytext.raw_size(p_prompt), 0);
    v_prompts bigint := coalesce(steadytext.raw_size(p_prompts), 0);
    v_params bigint := coalesce(steadytext.raw_size(p_params), 0);
    v_texts bigint := greatest(cardinality(p_prompts), 1);
    v_is_cut boolean := p_request_type in ('summarize', 'translate', 'mask', 'extract', 'extract_facts');
    v_pieces bigint := v_texts + case when v_is_cut then v_prompt / c_piece_bytes else 0 end;
    v_each bigint := (
        select greatest(1, max(case jsonb_typeof(e.value)
            when 'array' then jsonb_array_length(e.value)
            when 'object' then (select count(*) from jsonb_object_keys(e.value))
            end))
        from (values ('documents'), ('categories'), ('labels'), ('fields')) as k(name)
        cross join lateral (select p_params -> k.name as value) as e);
begin
    prompt_tokens := c_around * v_pieces * v_each
        + v_each * (v_texts * v_prompt + v_prompts) * case when v_is_cut then 4 else 1 end
        + 8 * v_texts * v_params;
    generated_tokens := case when steadytext.task_number(p_request_type, p_params) <> 1 then 0 else
        v_pieces * v_each * case
            when jsonb_typeof(p_params -> 'max_tokens') = 'number'
                then greatest(least(trunc((p_params ->> 'max_tokens')::numeric), 2147483647), 1)::bigint
            when p_request_type = 'generate' then least(p_default_max_tokens, p_max_tokens_limit)
            else p_max_tokens_limit end end;
end
$$;
comment on function steadytext.most_tokens(text, text, text[], jsonb, bigint, bigint) is
    'Returns the most tokens that the prompts and the answers of a request can have; called by believed_tokens';

create function steadytext.believed_tokens(
    p_ids bigint[],
    p_prompt_tokens integer[],
    p_cached_tokens integer[],
    p_generated_tokens integer[],
    out prompt_tokens integer[],
    out cached_tokens integer[],
    out generated_tokens integer[]
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
    v_default bigint := coalesce(steadytext.config_integer('default_max_tokens'), 512);
    v_limit bigint := coalesce(steadytext.config_integer('max_tokens_limit'), 4096);
begin
    -- A worker that reports no tokens is not checked.
    if coalesce(array_remove(p_prompt_tokens || p_cached_tokens || p_generated_tokens, null), '{}') = '{}' then
        return;
    end if;
    -- Least of all is not NULL, which is not known.
    select array_agg(b.prompt order by b.n),
        array_agg(case when b.cached is not null then least(b.cached, coalesce(b.prompt, 0)) end order by b.n),
        array_agg(b.generated order by b.n)
    into prompt_tokens, cached_tokens, generated_tokens
    from (
        select g.n, g.cached,
            case when g.prompt is not null then least(g.prompt, m.prompt_tokens)::integer end as prompt,
            case when g.generated is not null then least(g.generated, m.generated_tokens)::integer end as generated
        from unnest(p_ids, p_prompt_tokens, p_cached_tokens, p_generated_tokens) with ordinality as g(id, prompt, cached, generated, n)
        left join lateral (
            select m.*
            from @extschema@.steadytext_queue as q
            cross join lateral steadytext.most_tokens(q.request_type, q.prompt, q.prompts, q.params, v_default, v_limit) as m
            where q.id = g.id
            offset 0
        ) as m on true
        where g.n <= cardinality(p_ids)
    ) as b;
end
$$;
comment on function steadytext.believed_tokens(bigint[], integer[], integer[], integer[]) is
    'Returns the tokens that a worker elsewhere reports of requests, in the order of the requests, each limited to the most that its request can have: they are charged to the roles that enqueued the requests. Called by complete_requests';

-- A reported time is at most the time for which the worker has held the row. Reported tokens were checked before: by believed_tokens, or, in a
-- report, by steadytext.read_report.
create function steadytext.count_ends(
    p_ids bigint[],
    p_outcomes text[],
    p_prompt_tokens integer[],
    p_cached_tokens integer[],
    p_generated_tokens integer[],
    p_first_token_ms integer[]
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_hashjoin = off
set enable_mergejoin = off
set jit = off
set plan_cache_mode = force_generic_plan
as $$
declare
    v_defaults text[] := steadytext.default_models();
    v_now timestamptz := clock_timestamp();
begin
    perform steadytext.count_ended(
        c.owner, c.request_type, steadytext.counted_model(c.request_type, c.params, v_defaults), c.outcome,
        c.prompt_tokens, case when c.cached_tokens is not null then least(c.cached_tokens, coalesce(c.prompt_tokens, 0)) end, c.generated_tokens,
        c.waited, case when c.first_token_ms is not null then c.waited + least(c.first_token_ms / 1000.0, c.held) end, c.waited + c.held)
    from (
        select q.owner, q.request_type, q.params, q.outcome, g.cached_tokens, g.first_token_ms,
            g.prompt_tokens, g.generated_tokens,
            case when q.attempt = 1 then greatest(date_part('epoch', q.started_at - q.created_at), 0) else 0 end as waited,
            greatest(date_part('epoch', coalesce(q.completed_at, v_now) - q.started_at), 0) as held
        from unnest(p_ids, p_outcomes, p_prompt_tokens, p_cached_tokens, p_generated_tokens, p_first_token_ms)
            as g(id, outcome, prompt_tokens, cached_tokens, generated_tokens, first_token_ms)
        cross join lateral (
            select q.owner_role::oid as owner, q.request_type, q.params, q.attempt, q.created_at, q.started_at, q.completed_at,
                case
                    when g.outcome = 'retried' then 'retried'
                    when q.status = 'completed' then 'completed'
                    when q.status = 'failed' then 'failed'
                end as outcome
            from @extschema@.steadytext_queue as q
            where q.id = g.id and g.outcome in ('done', 'retried', 'failed')
            offset 0
        ) as q
    ) as c
    where c.outcome is not null;
end
$$;
comment on function steadytext.count_ends(bigint[], text[], integer[], integer[], integer[], integer[]) is
    'Counts requests that a worker elsewhere has ended, with outcomes as of complete_requests and fail_requests; called by them and by complete_reports';

create function steadytext.count_reported(
    p_ids bigint[],
    p_outcomes text[],
    p_of bigint[],
    p_prompt_tokens integer[],
    p_cached_tokens integer[],
    p_generated_tokens integer[],
    p_first_token_ms integer[]
)
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
set enable_hashjoin = on
as $$
declare
    v record;
begin
    -- A row that was reported twice counts once, as it is written once.
    select array_agg(o.id) as ids, array_agg(o.outcome) as outcomes, array_agg(r.prompt_tokens) as prompt_tokens,
        array_agg(r.cached_tokens) as cached_tokens, array_agg(r.generated_tokens) as generated_tokens, array_agg(r.first_token_ms) as first_token_ms
    into v
    from (select distinct on (u.id) u.id, u.outcome from unnest(p_ids, p_outcomes) as u(id, outcome) order by u.id) as o
    left join (
        select distinct on (u.id) u.*
        from unnest(p_of, p_prompt_tokens, p_cached_tokens, p_generated_tokens, p_first_token_ms)
            as u(id, prompt_tokens, cached_tokens, generated_tokens, first_token_ms)
        order by u.id
    ) as r on r.id = o.id;
    perform steadytext.count_ends(v.ids, v.outcomes, v.prompt_tokens, v.cached_tokens, v.generated_tokens, v.first_token_ms);
end
$$;
comment on function steadytext.count_reported(bigint[], text[], bigint[], integer[], integer[], integer[], integer[]) is
    'Counts requests that have ended with these outcomes, and charges the tokens that were reported; called by complete_requests and complete_reports';
