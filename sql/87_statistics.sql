-- Figures: outcomes of requests, the length of the queue, and the activity of the engine.
--
-- Requests are counted in shared memory, where they end, and by nothing in a table, so that counting costs no write
-- and what rolls back was counted all the same. Nothing here shows a text or the name of a role.

create function steadytext.request_statistics()
returns table (
    datid oid,
    model text,
    request_type text,
    requests bigint,
    completed bigint,
    failed bigint,
    cancelled bigint,
    retried bigint,
    cache_hits bigint,
    prompt_tokens bigint,
    cached_tokens bigint,
    generated_tokens bigint,
    queue_seconds double precision,
    queue_buckets bigint[],
    first_token_seconds double precision,
    first_token_buckets bigint[],
    total_seconds double precision,
    total_buckets bigint[],
    stats_reset timestamptz
)
language c volatile parallel safe rows 20
as 'MODULE_PATHNAME', 'request_statistics_wrapper';
comment on function steadytext.request_statistics() is
    'Returns the counters of this database''s requests; of all databases for members of pg_read_all_stats. Database 0 has the requests that found no room in the table';

create function steadytext.bucket_bounds()
returns double precision[]
language c immutable parallel safe
as 'MODULE_PATHNAME', 'bucket_bounds_wrapper';
comment on function steadytext.bucket_bounds() is
    'Returns the upper bounds in seconds of the buckets of steadytext_stat; one more bucket has the requests that took longer';

create function steadytext.reset_request_statistics()
returns void
language c volatile parallel unsafe
as 'MODULE_PATHNAME', 'reset_request_statistics_wrapper';
comment on function steadytext.reset_request_statistics() is 'Resets the counters of this database''s requests';

create function steadytext.engine_statistics()
returns table (
    pid integer,
    updated_at timestamptz,
    running bigint,
    suspended bigint,
    waiting bigint,
    kv_used_bytes bigint,
    kv_kept_bytes bigint,
    kv_limit_bytes bigint,
    models bigint,
    model_bytes bigint,
    request_bytes bigint,
    limit_bytes bigint,
    passes bigint,
    pass_requests bigint,
    prefill_tokens bigint,
    prefill_seconds double precision,
    decode_tokens bigint,
    decode_seconds double precision,
    prefix_queries bigint,
    prefix_hits bigint,
    guessed_tokens bigint,
    right_guesses bigint,
    joined_requests bigint,
    preemptions bigint,
    recomputed_tokens bigint,
    panics bigint,
    crashes bigint,
    stalled_seconds double precision
)
language c volatile parallel safe rows 1
as 'MODULE_PATHNAME', 'engine_statistics_wrapper';
comment on function steadytext.engine_statistics() is
    'Returns the figures that the server''s engine reports some times a second; one row, of NULLs where no engine has done anything';

create view @extschema@.steadytext_stat as
select
    s.datid,
    d.datname,
    s.model,
    s.request_type,
    s.requests,
    s.completed,
    s.failed,
    s.cancelled,
    s.retried,
    s.cache_hits,
    s.prompt_tokens,
    s.cached_tokens,
    s.generated_tokens,
    s.queue_seconds,
    s.queue_buckets,
    s.first_token_seconds,
    s.first_token_buckets,
    s.total_seconds,
    s.total_buckets,
    s.stats_reset
from steadytext.request_statistics() as s
left join pg_catalog.pg_database as d on d.oid = s.datid;
comment on view @extschema@.steadytext_stat is
    'Outcomes, tokens and times of requests, by model and type: rows of the queue and synchronous calls. Kept over restarts, not over crashes. Other databases are shown to members of pg_read_all_stats';
comment on column @extschema@.steadytext_stat.datid is 'OID of the database; 0: requests of all databases that found no room in the table';
comment on column @extschema@.steadytext_stat.datname is 'Name of the database';
comment on column @extschema@.steadytext_stat.model is
    'Name of the model; NULL where it was not known yet, or an imported entry of the cache has answered; (other): requests of models that found no room in the table';
comment on column @extschema@.steadytext_stat.request_type is 'Type of the requests: generate, embed …; of calls also tokenize and verify';
comment on column @extschema@.steadytext_stat.requests is 'Number of requests that have begun. A call for a whole array counts as one';
comment on column @extschema@.steadytext_stat.completed is 'Number of requests that ended with an answer';
comment on column @extschema@.steadytext_stat.failed is 'Number of requests that ended with an error';
comment on column @extschema@.steadytext_stat.cancelled is 'Number of requests that were cancelled, and of calls that were interrupted or not read to their end';
comment on column @extschema@.steadytext_stat.retried is 'Number of attempts that ended with an error and were followed by another one';
comment on column @extschema@.steadytext_stat.cache_hits is 'Number of completed requests that the cache has answered; neither their times nor their tokens are counted';
comment on column @extschema@.steadytext_stat.prompt_tokens is 'Tokens of prompts and texts of completed requests';
comment on column @extschema@.steadytext_stat.cached_tokens is 'Tokens of prompts and texts of completed requests that did not have to be computed, as far as that is known; NULL where it is known of no request, as with embeddings and endpoints that do not report it';
comment on column @extschema@.steadytext_stat.generated_tokens is 'Tokens of generated texts';
comment on column @extschema@.steadytext_stat.queue_seconds is
    'Total seconds from the request, or the call, to the moment when the engine began. Of requests that are tried again, here and for the other times, the last attempt counts, from its claim';
comment on column @extschema@.steadytext_stat.queue_buckets is 'Number of requests in each bucket of the time in queue_seconds; the upper bounds are steadytext.bucket_bounds()';
comment on column @extschema@.steadytext_stat.first_token_seconds is 'Total seconds from the request, or the call, to the first token';
comment on column @extschema@.steadytext_stat.first_token_buckets is 'Number of requests in each bucket of the time in first_token_seconds';
comment on column @extschema@.steadytext_stat.total_seconds is 'Total seconds from the request, or the call, to the answer';
comment on column @extschema@.steadytext_stat.total_buckets is 'Number of requests in each bucket of the time in total_seconds';
comment on column @extschema@.steadytext_stat.stats_reset is 'Time when counting began: with the first such request, or the first after steadytext_stat_reset()';

create view @extschema@.steadytext_stat_histogram as
select
    s.datid,
    s.datname,
    s.model,
    s.request_type,
    t.measure,
    b.le,
    pg_catalog.sum(b.count) over (
        partition by s.datid, s.model, s.request_type, t.measure order by b.n
    )::bigint as count
from @extschema@.steadytext_stat as s
cross join lateral (
    values ('queue'::text, s.queue_buckets), ('first_token'::text, s.first_token_buckets), ('total'::text, s.total_buckets)
) as t(measure, buckets)
cross join lateral rows from (
    pg_catalog.unnest(t.buckets), pg_catalog.unnest(steadytext.bucket_bounds() || 'infinity'::double precision)
) with ordinality as b(count, le, n);
comment on view @extschema@.steadytext_stat_histogram is
    'Buckets of steadytext_stat, one row each, cumulative as those of Prometheus';
comment on column @extschema@.steadytext_stat_histogram.datid is 'OID of the database';
comment on column @extschema@.steadytext_stat_histogram.datname is 'Name of the database';
comment on column @extschema@.steadytext_stat_histogram.model is 'Name of the model';
comment on column @extschema@.steadytext_stat_histogram.request_type is 'Type of the requests: generate, embed …';
comment on column @extschema@.steadytext_stat_histogram.measure is 'Time that is measured: queue, first_token or total';
comment on column @extschema@.steadytext_stat_histogram.le is 'Upper bound of the bucket in seconds; Infinity in the bucket of all requests';
comment on column @extschema@.steadytext_stat_histogram.count is 'Number of requests that took at most that long';

create function @extschema@.steadytext_stat_reset()
returns void
language plpgsql volatile
set search_path = pg_catalog, pg_temp
as $$
begin
    perform steadytext.reset_request_statistics();
end
$$;
comment on function @extschema@.steadytext_stat_reset() is
    'Resets the counters of steadytext_stat in this database. For members of steadytext_admin';

-- Every count ends at 10,000 rows, and no more than 1,000 users are looked at, so that a queue of millions costs no more
-- than that. The rows that are ready are found by the index of claims, and the oldest and newest of each user with one descent each.
create function steadytext.queue_metrics()
returns table (
    queue_name text,
    priority integer,
    queue_length bigint,
    queue_visible_length bigint,
    processing bigint,
    newest_msg_age_sec integer,
    oldest_msg_age_sec integer,
    total_messages bigint,
    is_capped boolean,
    scrape_time timestamptz
)
language plpgsql volatile security definer rows 10
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set enable_bitmapscan = off
set jit = off
as $$
#variable_conflict use_column
declare
    v_most constant integer := 10000;
    v_now timestamptz := clock_timestamp();
    v_total bigint := (select case when s.is_called then s.last_value else 0 end from @extschema@.steadytext_queue_id_seq as s);
begin
    return query
    with recursive
    ready as (
        select p.priority, c.length
        from generate_series(1, 10) as p(priority)
        cross join lateral (
            select count(*) as length
            from (
                select from @extschema@.steadytext_queue as q
                where q.status = 'pending' and q.run_after is null and not q.alone and q.priority = p.priority
                limit v_most + 1
            ) as counted
        ) as c
    ),
    -- The first row of each user.
    oldest as (
        (
            select p.priority, f.role, f.created_at
            from ready as p
            cross join lateral (
                select q.owner_role::oid as role, q.created_at
                from @extschema@.steadytext_queue as q
                where q.status = 'pending' and q.run_after is null and not q.alone and q.priority = p.priority
                order by q.owner_role, q.id
                limit 1
            ) as f
            where p.length > 0
        )
        union all
        select o.priority, f.role, f.created_at
        from oldest as o
        cross join lateral (
            select q.owner_role::oid as role, q.created_at
            from @extschema@.steadytext_queue as q
            where q.status = 'pending' and q.run_after is null and not q.alone and q.priority = o.priority
                and (q.owner_role::oid, q.id) > (o.role, 9223372036854775807)
            order by q.owner_role, q.id
            limit 1
        ) as f
    ),
    users as (select o.* from oldest as o limit 1000),
    ages as (
        select u.priority, min(u.created_at) as oldest, max(l.created_at) as newest, count(*) as users
        from users as u
        cross join lateral (
            select q.created_at
            from @extschema@.steadytext_queue as q
            where q.status = 'pending' and q.run_after is null and not q.alone and q.priority = u.priority
                and (q.owner_role::oid, q.id) <= (u.role, 9223372036854775807)
            order by q.owner_role desc, q.id desc
            limit 1
        ) as l
        group by u.priority
    ),
    alone as (
        select q.priority, q.created_at from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is null and q.alone
        limit v_most + 1
    ),
    deferred as (
        select q.priority, q.created_at from @extschema@.steadytext_queue as q
        where q.status = 'pending' and q.run_after is not null
        limit v_most + 1
    ),
    held as (
        select q.priority, q.created_at from @extschema@.steadytext_queue as q
        where q.status = 'processing'
        limit v_most + 1
    ),
    others as (
        select o.priority,
            count(*) filter (where o.kind = 'alone') as alone,
            count(*) filter (where o.kind = 'deferred') as deferred,
            count(*) filter (where o.kind = 'held') as held,
            min(o.created_at) as oldest,
            max(o.created_at) as newest
        from (
            select 'alone' as kind, a.* from alone as a
            union all select 'deferred', d.* from deferred as d
            union all select 'held', h.* from held as h
        ) as o
        group by o.priority
    )
    select 'steadytext_queue', r.priority,
        least(r.length, v_most) + coalesce(o.alone + o.deferred + o.held, 0),
        least(r.length, v_most) + coalesce(o.alone, 0),
        coalesce(o.held, 0),
        extract(epoch from v_now - greatest(a.newest, o.newest))::integer,
        extract(epoch from v_now - least(a.oldest, o.oldest))::integer,
        v_total,
        r.length > v_most or coalesce(greatest(o.alone, o.deferred, o.held) >= v_most, false),
        v_now
    from ready as r
    left join ages as a on a.priority = r.priority
    left join others as o on o.priority = r.priority
    order by r.priority desc;
end
$$;
comment on function steadytext.queue_metrics() is
    'Returns lengths and ages of the queue by priority, of everybody''s requests';

create view @extschema@.steadytext_queue_metrics as
select * from steadytext.queue_metrics();
comment on view @extschema@.steadytext_queue_metrics is
    'Length of the queue and age of its requests for each priority: always ten rows. Requests of each kind (ready, running, waiting for another try) are counted up to 10,000';
comment on column @extschema@.steadytext_queue_metrics.queue_name is 'Name of the queue''s table';
comment on column @extschema@.steadytext_queue_metrics.priority is 'Priority of the requests, 1 to 10; 10 runs first';
comment on column @extschema@.steadytext_queue_metrics.queue_length is 'Number of requests that have not ended: ready, running, and those that wait for another try';
comment on column @extschema@.steadytext_queue_metrics.queue_visible_length is 'Number of requests that are ready to run';
comment on column @extschema@.steadytext_queue_metrics.processing is 'Number of requests that a worker is processing';
comment on column @extschema@.steadytext_queue_metrics.newest_msg_age_sec is 'Seconds since the newest request that has not ended was enqueued; NULL where there is none';
comment on column @extschema@.steadytext_queue_metrics.oldest_msg_age_sec is 'Seconds since the oldest request that has not ended was enqueued; NULL where there is none';
comment on column @extschema@.steadytext_queue_metrics.total_messages is 'Number of requests ever enqueued in this database, of all priorities; those of transactions that were rolled back count, too';
comment on column @extschema@.steadytext_queue_metrics.is_capped is 'True where there are more requests than were counted';
comment on column @extschema@.steadytext_queue_metrics.scrape_time is 'Time when the requests were counted';

create view @extschema@.steadytext_engine_stat as
select
    e.pid,
    e.updated_at,
    e.running,
    e.suspended,
    e.waiting,
    e.kv_used_bytes,
    e.kv_kept_bytes,
    e.kv_limit_bytes,
    e.kv_used_bytes::double precision / nullif(e.kv_limit_bytes, 0) as kv_usage,
    e.models as models_loaded,
    e.model_bytes,
    e.request_bytes,
    e.limit_bytes,
    e.passes,
    e.pass_requests,
    e.pass_requests::double precision / nullif(e.passes, 0) as mean_batch_size,
    e.prefill_tokens,
    e.prefill_seconds,
    e.prefill_tokens / nullif(e.prefill_seconds, 0) as prefill_tokens_per_second,
    e.decode_tokens,
    e.decode_seconds,
    e.decode_tokens / nullif(e.decode_seconds, 0) as decode_tokens_per_second,
    e.prefix_queries,
    e.prefix_hits,
    e.guessed_tokens,
    e.right_guesses,
    e.joined_requests,
    e.preemptions,
    e.recomputed_tokens,
    e.panics,
    e.crashes,
    e.stalled_seconds
from steadytext.engine_statistics() as e;
comment on view @extschema@.steadytext_engine_stat is
    'Activity of this server''s engine, for all databases; one row. The engine reports it up to four times a second, and counts from its start';
comment on column @extschema@.steadytext_engine_stat.pid is 'Process that runs the engine: a worker, or the program of pg_steadytext.engine_process = separate; NULL while none does';
comment on column @extschema@.steadytext_engine_stat.updated_at is 'Time of the engine''s last report; while it has nothing to do it reports nothing. NULL, as all columns that follow, where it has had nothing to do yet';
comment on column @extschema@.steadytext_engine_stat.running is 'Number of requests, or parts of requests, that are computed together';
comment on column @extschema@.steadytext_engine_stat.suspended is 'Number of requests that have given their places away for a while, or whose reader is behind';
comment on column @extschema@.steadytext_engine_stat.waiting is 'Number of requests that have not begun';
comment on column @extschema@.steadytext_engine_stat.kv_used_bytes is 'Bytes of keys and values that requests have or are going to have. Blocks differ in size between models, hence bytes';
comment on column @extschema@.steadytext_engine_stat.kv_kept_bytes is 'Bytes of keys and values that are kept for requests which begin alike, and make room when need be';
comment on column @extschema@.steadytext_engine_stat.kv_limit_bytes is 'Maximum of kv_used_bytes and kv_kept_bytes together: pg_steadytext.kv_cache_mb';
comment on column @extschema@.steadytext_engine_stat.kv_usage is 'Fraction of the limit that is used: kv_used_bytes / kv_limit_bytes';
comment on column @extschema@.steadytext_engine_stat.models_loaded is 'Number of models in memory; steadytext_daemon_status() has their names';
comment on column @extschema@.steadytext_engine_stat.model_bytes is 'Bytes of the models: weights, vocabularies, workspaces';
comment on column @extschema@.steadytext_engine_stat.request_bytes is 'Bytes of prompts that wait, of constraints, and of messages on their way';
comment on column @extschema@.steadytext_engine_stat.limit_bytes is 'Maximum of the engine''s memory in bytes: pg_steadytext.memory_limit_mb; NULL: no limit';
comment on column @extschema@.steadytext_engine_stat.passes is 'Number of passes through a model';
comment on column @extschema@.steadytext_engine_stat.pass_requests is 'Number of requests in all passes together';
comment on column @extschema@.steadytext_engine_stat.mean_batch_size is 'Average number of requests in a pass';
comment on column @extschema@.steadytext_engine_stat.prefill_tokens is 'Number of tokens of prompts and texts that were computed';
comment on column @extschema@.steadytext_engine_stat.prefill_seconds is 'Seconds that the tokens of prompts and texts took; those of a pass with both kinds of tokens are divided by their numbers';
comment on column @extschema@.steadytext_engine_stat.prefill_tokens_per_second is 'Tokens of prompts and texts per second of prefill_seconds';
comment on column @extschema@.steadytext_engine_stat.decode_tokens is 'Number of tokens that were computed to generate the next one, guesses included';
comment on column @extschema@.steadytext_engine_stat.decode_seconds is 'Seconds that the tokens of generation took';
comment on column @extschema@.steadytext_engine_stat.decode_tokens_per_second is 'Tokens of generation per second of decode_seconds, of all requests together';
comment on column @extschema@.steadytext_engine_stat.prefix_queries is 'Number of tokens of prompts that were looked for among the kept keys and values';
comment on column @extschema@.steadytext_engine_stat.prefix_hits is 'Number of tokens of prompts that were found there and not computed';
comment on column @extschema@.steadytext_engine_stat.guessed_tokens is 'Number of tokens that were guessed from the prompt';
comment on column @extschema@.steadytext_engine_stat.right_guesses is 'Number of guessed tokens that were right';
comment on column @extschema@.steadytext_engine_stat.joined_requests is 'Number of requests that got the result of another one which asked for the same';
comment on column @extschema@.steadytext_engine_stat.preemptions is 'Number of times that a request has given its place to another one, or paused';
comment on column @extschema@.steadytext_engine_stat.recomputed_tokens is 'Number of tokens that are computed again for such requests';
comment on column @extschema@.steadytext_engine_stat.panics is 'Number of panics that the engines of this server have caught since its start. Each is a bug';
comment on column @extschema@.steadytext_engine_stat.crashes is 'Number of times since the server''s start that an engine in a program of its own (pg_steadytext.engine_process) has crashed or was killed';
comment on column @extschema@.steadytext_engine_stat.stalled_seconds is 'Seconds for which the engine has had something to do and made no progress, or has not answered its leader; 0 while it makes progress, NULL while there is none. After pg_steadytext.engine_hang_timeout something is done about it';
