-- Figures for Prometheus, in its text format: families of samples, each with HELP and TYPE before it.
--
-- Names end as those of vLLM do, and where it has none, as those of llama.cpp's server; docs/monitoring.md compares them.
-- Labels are the database, the model and the type of a request; never a role, and nothing of a request itself.

create function steadytext.label_value(p_value text)
returns text
language sql immutable parallel safe
set search_path = pg_catalog, pg_temp
return replace(replace(replace(p_value, '\', '\\'), '"', '\"'), E'\n', '\n');
comment on function steadytext.label_value(text) is 'Returns the value of a label as Prometheus reads it between quotes';

create function steadytext.metric_samples()
returns table (
    family text,
    kind text,
    help text,
    suffix text,
    labels text,
    value text
)
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
#variable_conflict use_column
declare
    v_bounds constant text[] := array(
        select b.bound::text from unnest(steadytext.bucket_bounds()) with ordinality as b(bound, n) order by b.n) || '+Inf'::text;
    v_label constant text := 'database="' || steadytext.label_value(current_database()) || '"';
begin
    -- Requests of this database.
    return query
    with stat as materialized (
        select s.*,
            concat(v_label, ',model_name="', steadytext.label_value(coalesce(s.model, '')), '",request_type="',
                steadytext.label_value(s.request_type), '"') as labels
        from steadytext.request_statistics() as s
        where s.datid = (select d.oid from pg_database as d where d.datname = current_database())
    ),
    counters as (
        select f.n, f.family, f.help, s.labels, f.value
        from stat as s
        cross join lateral (values
            (1, 'steadytext_requests_total', 'Requests that have begun.', s.requests),
            (2, 'steadytext_request_success_total', 'Requests that ended with an answer.', s.completed),
            (3, 'steadytext_requests_failed_total', 'Requests that ended with an error.', s.failed),
            (4, 'steadytext_requests_cancelled_total', 'Requests that were cancelled, and calls that were interrupted.', s.cancelled),
            (5, 'steadytext_requests_retried_total', 'Attempts that ended with an error and were followed by another one.', s.retried),
            (6, 'steadytext_cache_hits_total', 'Requests that the cache has answered.', s.cache_hits),
            (7, 'steadytext_prompt_tokens_total', 'Tokens of prompts and texts.', s.prompt_tokens),
            (8, 'steadytext_prompt_tokens_cached_total', 'Tokens of prompts that did not have to be computed.', s.cached_tokens),
            (9, 'steadytext_generation_tokens_total', 'Tokens of generated texts.', s.generated_tokens)
        ) as f(n, family, help, value)
    ),
    times as (
        select f.n, f.family, f.help, s.labels, f.seconds, f.buckets
        from stat as s
        cross join lateral (values
            (11, 'steadytext_request_queue_time_seconds', 'Time from a request to the beginning of the work.', s.queue_seconds, s.queue_buckets),
            (12, 'steadytext_time_to_first_token_seconds', 'Time from a request to its first token.', s.first_token_seconds, s.first_token_buckets),
            (13, 'steadytext_e2e_request_latency_seconds', 'Time from a request to its answer.', s.total_seconds, s.total_buckets)
        ) as f(n, family, help, seconds, buckets)
    ),
    histograms as (
        select t.n, t.family, t.help, b.suffix, b.labels, b.value, t.labels as series, b.step
        from times as t
        cross join lateral (
            select '_bucket' as suffix, concat(t.labels, ',le="', v_bounds[u.step], '"') as labels,
                (sum(u.count) over (order by u.step))::text as value, u.step
            from unnest(t.buckets) with ordinality as u(count, step)
            union all
            select '_sum', t.labels, t.seconds::text, 1000
            union all
            select '_count', t.labels, (select sum(u.count) from unnest(t.buckets) as u(count))::text, 1001
        ) as b
    )
    select c.family, c.kind, c.help, c.suffix, c.labels, c.value
    from (
        select c.n, c.family, 'counter' as kind, c.help, '' as suffix, c.labels, c.value::text as value, c.labels as series, 0 as step
        from counters as c
        where c.value is not null
        union all
        select h.n, h.family, 'histogram', h.help, h.suffix, h.labels, h.value, h.series, h.step
        from histograms as h
    ) as c
    order by c.n, c.series, c.step;

    -- Its queue and its cache.
    return query
    with queue as materialized (
        select q.*, concat(v_label, ',priority="', q.priority, '"') as labels from steadytext.queue_metrics() as q
    )
    select f.family, f.kind, f.help, '', case when f.n = 6 then v_label else q.labels end, f.value
    from queue as q
    cross join lateral (values
        (1, 'steadytext_queue_length', 'gauge', 'Requests of the queue that have not ended; counted up to 10000.', q.queue_length::text),
        (2, 'steadytext_queue_visible_length', 'gauge', 'Requests of the queue that are ready to run; counted up to 10000.', q.queue_visible_length::text),
        (3, 'steadytext_queue_processing', 'gauge', 'Requests of the queue that a worker has; counted up to 10000.', q.processing::text),
        (4, 'steadytext_queue_newest_message_age_seconds', 'gauge', 'Age of the latest request that has not ended.', q.newest_msg_age_sec::text),
        (5, 'steadytext_queue_oldest_message_age_seconds', 'gauge', 'Age of the first request that has not ended.', q.oldest_msg_age_sec::text),
        -- Of the whole queue.
        (6, 'steadytext_queue_messages_total', 'counter', 'Requests ever enqueued.', case when q.priority = 1 then q.total_messages::text end)
    ) as f(n, family, kind, help, value)
    where f.value is not null
    order by f.n, q.priority;
    -- Requests that nobody claims. Roles that may read the metrics may see everybody's.
    return query
    with unclaimed as materialized (
        select coalesce(u.model, '') as model, u.request_type, sum(u.requests)::bigint as requests, min(u.oldest) as oldest
        from steadytext.unclaimed_requests() as u
        group by 1, 2
    )
    select f.family, 'gauge', f.help, '',
        concat(v_label, ',model_name="', steadytext.label_value(u.model), '",request_type="', steadytext.label_value(u.request_type), '"'),
        f.value::text
    from unclaimed as u
    cross join lateral (values
        (1, 'steadytext_unclaimed_requests', 'Requests of the queue that no worker claims; counted up to 10000 for each user and priority.',
            u.requests::double precision),
        (2, 'steadytext_unclaimed_oldest_age_seconds', 'Age of the first of them.',
            greatest(date_part('epoch', clock_timestamp() - u.oldest), 0))
    ) as f(n, family, help, value)
    order by f.n, u.model, u.request_type;
    return query
    select f.family, 'counter', f.help, '', v_label, f.value::text
    from steadytext.cache_counters() as c
    cross join lateral (values
        ('steadytext_cache_queries_total', 'Requests that were looked for in the cache.', c.hits + c.misses),
        ('steadytext_cache_answers_total', 'Answers that the cache gave, those of elements of arrays and of look-ups alone included.', c.hits),
        ('steadytext_cache_dropped_total', 'Answers that did not get into the cache.', c.dropped)
    ) as f(family, help, value);

    -- The engine of the server.
    return query
    select f.family, f.kind, f.help, '', f.labels, f.value::text
    from steadytext.engine_statistics() as e
    cross join lateral (values
        (1, 'steadytext_num_requests_running', 'gauge', 'Requests that the engine computes together.', '', e.running::double precision),
        (2, 'steadytext_num_requests_waiting', 'gauge', 'Requests that wait in the engine.', '', e.waiting),
        (3, 'steadytext_num_requests_suspended', 'gauge', 'Requests that have given their places away.', '', e.suspended),
        (4, 'steadytext_num_preemptions_total', 'counter', 'How often a request has given its place away.', '', e.preemptions),
        (5, 'steadytext_recomputed_tokens_total', 'counter', 'Tokens that are computed again after that.', '', e.recomputed_tokens),
        (6, 'steadytext_kv_cache_usage_perc', 'gauge', 'Share of the memory for keys and values that requests have; 1 is all of it.', '',
            e.kv_used_bytes::double precision / nullif(e.kv_limit_bytes, 0)),
        (7, 'steadytext_kv_cache_bytes', 'gauge', 'Keys and values, of requests and kept for others.', 'state="used"', e.kv_used_bytes),
        (7, 'steadytext_kv_cache_bytes', 'gauge', 'Keys and values, of requests and kept for others.', 'state="kept"', e.kv_kept_bytes),
        (8, 'steadytext_kv_cache_limit_bytes', 'gauge', 'Memory that keys and values may take.', '', e.kv_limit_bytes),
        (9, 'steadytext_memory_bytes', 'gauge', 'Memory of the engine by what it is for.', 'part="models"', e.model_bytes),
        (9, 'steadytext_memory_bytes', 'gauge', 'Memory of the engine by what it is for.', 'part="kv_cache"', e.kv_used_bytes + e.kv_kept_bytes),
        (9, 'steadytext_memory_bytes', 'gauge', 'Memory of the engine by what it is for.', 'part="requests"', e.request_bytes),
        (10, 'steadytext_memory_limit_bytes', 'gauge', 'Memory that the engine may take.', '', e.limit_bytes),
        (11, 'steadytext_models_loaded', 'gauge', 'Models in memory.', '', e.models),
        (12, 'steadytext_prefix_cache_queries_total', 'counter', 'Tokens of prompts that were looked for among kept ones.', '', e.prefix_queries),
        (13, 'steadytext_prefix_cache_hits_total', 'counter', 'Tokens of prompts that were found among kept ones.', '', e.prefix_hits),
        (14, 'steadytext_engine_passes_total', 'counter', 'Passes through a model.', '', e.passes),
        (15, 'steadytext_engine_pass_requests_total', 'counter', 'Requests in passes; divided by the passes, how many are computed together.', '', e.pass_requests),
        (16, 'steadytext_engine_prompt_tokens_total', 'counter', 'Tokens of prompts and texts that were computed.', '', e.prefill_tokens),
        (17, 'steadytext_engine_prompt_seconds_total', 'counter', 'Time that they took.', '', e.prefill_seconds),
        (18, 'steadytext_engine_tokens_predicted_total', 'counter', 'Tokens that were computed to generate the next one.', '', e.decode_tokens),
        (19, 'steadytext_engine_tokens_predicted_seconds_total', 'counter', 'Time that they took.', '', e.decode_seconds),
        (20, 'steadytext_spec_decode_num_draft_tokens_total', 'counter', 'Tokens that were guessed.', '', e.guessed_tokens),
        (21, 'steadytext_spec_decode_num_accepted_tokens_total', 'counter', 'Guesses that were right.', '', e.right_guesses),
        (22, 'steadytext_engine_joined_requests_total', 'counter', 'Requests that got the result of another one.', '', e.joined_requests),
        (23, 'steadytext_engine_panics_total', 'counter', 'Panics that engines have caught.', '', e.panics),
        (24, 'steadytext_engine_crashes_total', 'counter', 'Engines in programs of their own that have crashed or were killed.', '', e.crashes),
        (25, 'steadytext_engine_stalled_seconds', 'gauge', 'For how long the engine has not got on with what it has to do.', '', e.stalled_seconds)
    ) as f(n, family, kind, help, labels, value)
    where f.value is not null
    order by f.n;
end
$$;
comment on function steadytext.metric_samples() is
    'Returns the samples of steadytext_metrics(), grouped by family';

-- It runs as its owner, so that roles that may call it need no other right. It shows one database, whoever calls.
create function @extschema@.steadytext_metrics()
returns text
language plpgsql volatile security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $$
begin
    return (
        select string_agg(
            concat(
                case when s.family is distinct from s.before
                    then concat('# HELP ', s.family, ' ', s.help, E'\n# TYPE ', s.family, ' ', s.kind, E'\n') end,
                s.family, s.suffix, case when s.labels <> '' then concat('{', s.labels, '}') end, ' ', s.value, E'\n'),
            '' order by s.n)
        from (
            select m.*, lag(m.family) over (order by m.n) as before
            from steadytext.metric_samples() with ordinality as m(family, kind, help, suffix, labels, value, n)
        ) as s
    );
end
$$;
comment on function @extschema@.steadytext_metrics() is
    'Returns the figures of this database and of the server''s engine in the text format of Prometheus. For members of steadytext_admin and pg_monitor';
