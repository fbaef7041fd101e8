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
    'The model under which a request counts; p_defaults as default_models gives them; called by count_claims and count_ends';

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
    'Counts requests that a worker elsewhere has claimed and nobody had before; called by claim_requests';

-- What a worker says of times can be no longer than it has held the row; of tokens, no more than a text can have many times over. A report is
-- looked at more closely before (steadytext.read_report).
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
    v_most integer := steadytext.config_integer('max_tokens_limit');
begin
    perform steadytext.count_ended(
        c.owner, c.request_type, steadytext.counted_model(c.request_type, c.params, v_defaults), c.outcome,
        c.prompt_tokens, least(c.cached_tokens, coalesce(c.prompt_tokens, 0)), c.generated_tokens,
        c.waited, case when c.first_token_ms is not null then c.waited + least(c.first_token_ms / 1000.0, c.held) end, c.waited + c.held)
    from (
        select q.owner, q.request_type, q.params, q.outcome, g.cached_tokens, g.first_token_ms,
            -- Least of all is not NULL, which is not known.
            case when g.prompt_tokens is not null then
                least(g.prompt_tokens, q.bytes * q.bytes + 1048576)::integer end as prompt_tokens,
            case when g.generated_tokens is not null then
                least(g.generated_tokens, greatest(v_most, 65536)::bigint * 64)::integer end as generated_tokens,
            case when q.attempt = 1 then greatest(date_part('epoch', q.started_at - q.created_at), 0) else 0 end as waited,
            greatest(date_part('epoch', coalesce(q.completed_at, v_now) - q.started_at), 0) as held
        from unnest(p_ids, p_outcomes, p_prompt_tokens, p_cached_tokens, p_generated_tokens, p_first_token_ms)
            as g(id, outcome, prompt_tokens, cached_tokens, generated_tokens, first_token_ms)
        cross join lateral (
            select q.owner_role::oid as owner, q.request_type, q.params, q.attempt, q.created_at, q.started_at, q.completed_at,
                steadytext.request_bytes(q.prompt, q.prompts, q.params)::numeric as bytes,
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
    -- What was reported of a row twice counts once, as it is written once.
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
    'Counts requests that have ended with these outcomes, of which this was reported; called by complete_requests and complete_reports';
