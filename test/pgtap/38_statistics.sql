-- Figures: requests, the queue, the engine, and all of it for Prometheus.
\ir setup.psql
select plan(70);

-- Requests. Other tests have counted here as well, so that everything begins anew.
select lives_ok('select steadytext_stat_reset()', 'stat_reset');
select is((select count(*) from steadytext_stat where datname = current_database()), 0::bigint, 'stat_reset: nothing is counted any more');

select isnt(steadytext_generate('What does VACUUM do?', 12, use_cache => false), null, 'a call');
create temporary table seen as select * from steadytext_stat where datname = current_database();
select results_eq(
    'select model, request_type, requests, completed, failed, cancelled, retried, cache_hits, generated_tokens from seen',
    $$ values ('builtin', 'generate', 1::bigint, 1::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 12::bigint) $$,
    'stat: a call is counted');
select is((select prompt_tokens from seen), (select prompt_tokens::bigint from steadytext_generate_details('What does VACUUM do?', 12)), 'stat: its prompt');
select ok((select cached_tokens between 0 and prompt_tokens from seen), 'stat: what of it was kept');
select ok((select 0 < queue_seconds and queue_seconds <= first_token_seconds and first_token_seconds <= total_seconds from seen), 'stat: its times');
select ok(
    (select bool_and(cardinality(b.buckets) = cardinality(steadytext.bucket_bounds()) + 1 and (select sum(c) from unnest(b.buckets) as c) = 1)
     from seen, lateral (values (queue_buckets), (first_token_buckets), (total_buckets)) as b(buckets)),
    'stat: each time is in one bucket');
select ok((select datid = (select oid from pg_database where datname = current_database()) from seen), 'stat: the database');
select ok((select stats_reset between now() and clock_timestamp() from seen), 'stat: since when');
select is((select completed from steadytext_stat where datname = current_database() and request_type = 'generate'), 2::bigint, 'stat: the details were one more');

select is((select count(*) from steadytext_stat_histogram where datname = current_database()),
    3 * (1 + cardinality(steadytext.bucket_bounds()))::bigint, 'stat_histogram: a row for each bucket');
select is((select array_agg(count) from steadytext_stat_histogram where datname = current_database() and le = 'infinity'), '{2,2,2}'::bigint[],
    'stat_histogram: all requests are in the last one');
select ok((select bool_and(count >= before) from (
        select count, coalesce(lag(count) over (partition by measure order by le), 0) as before
        from steadytext_stat_histogram where datname = current_database()) as h), 'stat_histogram: counts add up');
select is((select array_agg(distinct measure order by measure) from steadytext_stat_histogram where datname = current_database()),
    '{first_token,queue,total}', 'stat_histogram: the times');

-- Ends of calls.
select throws_ok(
    $$ select steadytext_generate('x', 5, use_cache => false, model => 'nothing') $$,
    '42704', null, 'a call that is refused');
select is((select sum(requests) from steadytext_stat where datname = current_database()), 2::numeric, 'stat: what is refused is no request');
select throws_ok($$ select steadytext_generate(repeat('a word and another ', 20000), 5, use_cache => false) $$, null, null, 'a call that fails in the engine');
select results_eq(
    $$ select requests, completed, failed from steadytext_stat where datname = current_database() and request_type = 'generate' $$,
    $$ values (3::bigint, 2::bigint, 1::bigint) $$, 'stat: an error');
declare pieces cursor for select steadytext_generate_stream('What does VACUUM do?', 64);
select isnt_empty('fetch 1 from pieces', 'a stream begins');
close pieces;
select results_eq(
    $$ select requests, completed, failed, cancelled from steadytext_stat where datname = current_database() and request_type = 'generate' $$,
    $$ values (4::bigint, 2::bigint, 1::bigint, 1::bigint) $$, 'stat: a stream that nobody reads on is cancelled');
select is(cardinality(steadytext_if(array['one', 'two', 'three'], use_cache => false)), 3, 'an array');
select results_eq(
    $$ select requests, completed from steadytext_stat where datname = current_database() and request_type = 'if' $$,
    $$ values (1::bigint, 1::bigint) $$, 'stat: a call for an array is one request');
select ok(steadytext_embed('a text', use_cache => false) is not null, 'an embedding');
select ok((select prompt_tokens > 0 and generated_tokens = 0 and first_token_seconds = 0 and total_seconds > 0 from steadytext_stat
    where datname = current_database() and request_type = 'embed'), 'stat: a vector has no first token');
select is((select cached_tokens from steadytext_stat where datname = current_database() and request_type = 'embed'), null,
    'stat: nobody says how many tokens of it were there before');

-- A request is counted even if its transaction rolls back.
do $$
begin
    perform steadytext_generate('Rolled back', 5, use_cache => false);
    raise exception 'back';
exception when raise_exception then null;
end
$$;
select is((select completed from steadytext_stat where datname = current_database() and request_type = 'generate'), 3::bigint, 'stat: also what rolls back');

-- The cache, whose entry is put there by hand: the worker would see it after the commit only.
insert into steadytext_cache (cache_key, prompt, response, model_name, seed, request_type, imported)
select k, 'cached?', 'from the cache', 'builtin', 42, 'generate', true from steadytext_cache_key('generate', 'cached?') as k;
select is(steadytext_generate('cached?'), 'from the cache', 'the cache answers a call');
select is(
    (select status from steadytext_check_async(steadytext_generate_async('cached?'))), 'completed', 'and a row of the queue');
select results_eq(
    $$ select requests, completed, cache_hits from steadytext_stat where datname = current_database() and (model, request_type) = ('builtin', 'generate') $$,
    $$ values (6::bigint, 4::bigint, 1::bigint) $$, 'stat: an answer of the cache');
select results_eq(
    $$ select requests, completed, cache_hits from steadytext_stat where datname = current_database() and model is null $$,
    $$ values (1::bigint, 1::bigint, 1::bigint) $$, 'stat: whatever the model, where it was imported');

-- Cancelled before anybody looked at it.
select lives_ok($$ create temporary table asked as select steadytext_generate_async('to be cancelled', 5, use_cache => false, model => 'builtin') as id $$, 'a request');
select ok(steadytext_cancel_async((select id from asked)), 'is cancelled');
select ok(not steadytext_cancel_async((select id from asked)), 'once');
select results_eq(
    $$ select requests, cancelled from steadytext_stat where datname = current_database() and (model, request_type) = ('builtin', 'generate') $$,
    $$ values (6::bigint, 1::bigint) $$, 'stat: a request that is cancelled counts when that is committed');
select is(steadytext.label_value(E'a "quoted" \\ name\nof two lines'), 'a \"quoted\" \\ name\nof two lines', 'labels are escaped');

-- The queue. Rows of this transaction are in it, and nobody else's.
delete from steadytext_queue;
select is((select count(*) from steadytext_queue_metrics), 10::bigint, 'queue_metrics: a row for each priority');
select ok((select bool_and(queue_length = 0 and queue_visible_length = 0 and processing = 0 and oldest_msg_age_sec is null and not is_capped)
    from steadytext_queue_metrics), 'queue_metrics: an empty queue');
insert into steadytext_queue (request_type, prompt, priority, created_at, owner_role)
select 'generate', 'p' || n, 5, now() - interval '1 hour' * (5 - n), case when n % 2 = 0 then 'st_alice'::name else 'st_bob' end::steadytext.role_id
from generate_series(1, 4) as n;
insert into steadytext_queue (request_type, prompt, priority, created_at, run_after) values ('generate', 'later', 5, now() - interval '9 hours', now() + interval '1 hour');
insert into steadytext_queue (request_type, prompt, priority, created_at, alone) values ('generate', 'alone', 7, now() - interval '2 minutes', true);
insert into steadytext_queue (request_type, prompt, priority, created_at, status, worker, started_at)
values ('generate', 'running', 7, now() - interval '1 minute', 'processing', 'other', now());
insert into steadytext_queue (request_type, prompt, priority, status, completed_at) values ('generate', 'done', 7, 'completed', now());
select results_eq(
    $$ select priority, queue_length, queue_visible_length, processing, newest_msg_age_sec / 60, oldest_msg_age_sec / 60, is_capped
       from steadytext_queue_metrics where queue_length > 0 $$,
    $$ values (7, 2::bigint, 1::bigint, 1::bigint, 1, 2, false), (5, 5::bigint, 4::bigint, 0::bigint, 60, 540, false) $$,
    'queue_metrics: lengths and ages, whoever the requests belong to');
select ok((select bool_and(queue_name = 'steadytext_queue' and total_messages = (select last_value from steadytext_queue_id_seq)
    and scrape_time between now() and clock_timestamp()) from steadytext_queue_metrics), 'queue_metrics: the rest');
insert into steadytext_queue (request_type, prompt, priority, created_at) select 'embed', 'p', 2, now() - interval '3 days' from generate_series(1, 10003);
select results_eq(
    $$ select queue_length, queue_visible_length, is_capped, oldest_msg_age_sec / 86400 from steadytext_queue_metrics where priority = 2 $$,
    $$ values (10000::bigint, 10000::bigint, true, 3) $$, 'queue_metrics: counts end at 10,000');

-- The engine.
select is((select count(*) from steadytext_engine_stat), 1::bigint, 'engine_stat: one row');
select ok((select pid is not null and updated_at <= clock_timestamp() and updated_at > clock_timestamp() - interval '1 day' from steadytext_engine_stat), 'engine_stat: whose');
select ok((select kv_limit_bytes >= 16 * 1048576 and kv_usage between 0 and 1 and kv_used_bytes >= 0 from steadytext_engine_stat), 'engine_stat: keys and values');
select ok((select models_loaded >= 1 and model_bytes > 1000000 and request_bytes >= 0 from steadytext_engine_stat), 'engine_stat: memory');
select ok((select passes > 0 and mean_batch_size >= 1 and prefill_tokens > 0 and decode_tokens > 0 from steadytext_engine_stat), 'engine_stat: work');
select ok((select prefill_tokens_per_second > 0 and decode_tokens_per_second > 0 from steadytext_engine_stat), 'engine_stat: and how fast it was');
select ok((select prefix_queries >= prefix_hits and guessed_tokens >= right_guesses and panics = 0 and crashes = 0 from steadytext_engine_stat), 'engine_stat: what was saved');

-- Prometheus. A model whose name has everything that a label must not have cannot be asked for; see label_value above.
create temporary table metrics as
select n, line, (regexp_match(line, '^([a-z_0-9]+)(?:\{(.*)\})? (\S+)$'))[1:3] as parts
from regexp_split_to_table(steadytext_metrics(), E'\n') with ordinality as m(line, n);
select is((select line from metrics order by n desc limit 1), '', 'metrics: the text ends with a line feed');
select is_empty($$ select line from metrics where line <> '' and line !~ '^#' and parts is null $$, 'metrics: lines are samples, HELP or TYPE');
select is_empty($$ select line from metrics where parts[2] is not null and parts[2] !~ '^([a-z_]+="([^"\\]|\\.)*",?)+$' $$, 'metrics: labels');
select is_empty($$ select line from metrics where parts is not null and parts[3] <> '+Inf' and parts[3]::double precision < 0 $$, 'metrics: numbers');
create temporary table families as
select split_part(line, ' ', 3) as family, split_part(line, ' ', 4) as kind, n from metrics where line like '# TYPE %';
select is((select count(*) from families), (select count(distinct family) from families), 'metrics: each family is there once');
select is_empty(
    $$ select family from families as f where not exists (select from metrics as m where m.n = f.n - 1 and m.line like '# HELP ' || f.family || ' _%') $$,
    'metrics: HELP stands before TYPE');
select is_empty(
    $$ select m.line from metrics as m cross join lateral (select f.* from families as f where f.n < m.n order by f.n desc limit 1) as f
       where m.parts is not null and m.parts[1] <> f.family
        and not (f.kind = 'histogram' and m.parts[1] in (f.family || '_bucket', f.family || '_sum', f.family || '_count')) $$,
    'metrics: samples stand with their family');
select is_empty($$ select family from families where (kind = 'counter') <> (family like '%\_total') $$, 'metrics: counters are called total, and nothing else is');
select is_empty($$ select parts[1], parts[2] from metrics where parts is not null group by 1, 2 having count(*) > 1 $$, 'metrics: no series is there twice');
create temporary table histogram as
select regexp_replace(parts[1], '_bucket$', '') as family, regexp_replace(parts[2], ',le="[^"]*"', '') as series, (regexp_match(parts[2], 'le="([^"]*)"'))[1] as le,
    parts[3]::numeric as count, n from metrics where parts[1] like '%\_bucket';
select is_empty(
    $$ select from (select h.*, lag(count) over w as fewer, lag(case le when '+Inf' then 'infinity' else le end::double precision) over w as lower from histogram as h
        window w as (partition by family, series order by n)) as h
       where count < fewer or case le when '+Inf' then 'infinity' else le end::double precision <= lower $$, 'metrics: buckets add up in their order');
select is_empty(
    $$ select h.family, h.series from histogram as h
       left join metrics as c on c.parts[1] = h.family || '_count' and c.parts[2] = h.series
       left join metrics as s on s.parts[1] = h.family || '_sum' and s.parts[2] = h.series
       where h.le = '+Inf' and (c.parts[3]::numeric is distinct from h.count or s.n is null) $$, 'metrics: the last bucket is the count');
select is(
    (select parts[3] from metrics where parts[1] = 'steadytext_requests_total' and parts[2] like '%model_name="builtin",request_type="generate"%'), '6', 'metrics: requests');
select is((select parts[3] from metrics where parts[1] = 'steadytext_queue_length' and parts[2] like '%priority="5"%'), '5', 'metrics: the queue');
select set_has(
    'select family from families',
    $$ values ('steadytext_num_requests_running'), ('steadytext_num_requests_waiting'), ('steadytext_kv_cache_usage_perc'), ('steadytext_prefix_cache_hits_total'),
        ('steadytext_time_to_first_token_seconds'), ('steadytext_e2e_request_latency_seconds'), ('steadytext_request_queue_time_seconds'),
        ('steadytext_prompt_tokens_total'), ('steadytext_generation_tokens_total'), ('steadytext_request_success_total'), ('steadytext_memory_bytes') $$,
    'metrics: names as those of vLLM');
select unalike(steadytext_metrics(), '%What does VACUUM%', 'metrics: no texts');

-- Rights.
create role st_watch nologin in role pg_monitor;
create role st_reader nologin in role pg_read_all_stats;
create role st_boss nologin in role steadytext_admin;
select is_empty(
    $$ select r, v from unnest(array['st_alice', 'st_watch', 'st_reader', 'st_boss']) as r,
        unnest(array['steadytext_stat', 'steadytext_stat_histogram', 'steadytext_queue_metrics', 'steadytext_engine_stat']) as v
       where pg_temp.run_as(r, format('select count(*) from %I', v))::bigint = 0 $$, 'users and those who monitor read the views');
select is_empty(
    $$ select r from unnest(array['st_watch', 'st_reader', 'st_boss']) as r where pg_temp.run_as(r, 'select length(steadytext_metrics())')::integer < 1000 $$,
    'those who monitor and administrators read the metrics');
select throws_ok($$ select pg_temp.run_as('st_alice', 'select steadytext_metrics()') $$, '42501', null, 'users do not');
select throws_ok(format($$ select pg_temp.run_as(%L, 'select count(*) from steadytext_stat') $$, 'st_stranger'), '42501', null, 'strangers see no figures');
select throws_ok(format($$ select pg_temp.run_as(%L, 'select steadytext_stat_reset()') $$, r), '42501', null, r || ' does not reset them')
from unnest(array['st_alice', 'st_watch']) as r;
select lives_ok($$ select pg_temp.run_as('st_boss', 'select st_stat_reset()') $$, 'administrators do');

select * from finish();
rollback;
