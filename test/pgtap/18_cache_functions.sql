-- Statistics of the cache, eviction, its schedule, and the audit log.
\ir setup.psql
select plan(95);

delete from steadytext_cache;
delete from steadytext_audit_log;
select pg_catalog.setseed(0.5);

-- n entries of all kinds of use and age.
create function pg_temp.fill(p_count integer)
returns void
language sql
as $$
    delete from steadytext_cache;
    insert into steadytext_cache (cache_key, prompt, response, request_type, access_count, last_accessed, created_at)
    select 'key ' || n, 'prompt ' || n, repeat('answer ' || n, 1 + n % 7), 'generate',
        1 + (random() * random() * 30)::integer, t.last, t.last - random() * interval '20 days' - interval '2 hours'
    from generate_series(1, p_count) as n
    cross join lateral (select now() - random() * interval '10 days' + n * interval '0' as last) as t
$$;
create function pg_temp.keys()
returns text[]
language sql
as $$ select coalesce(array_agg(cache_key order by id), '{}') from steadytext_cache $$;
-- The formula, written down once more: the keys of what is worth most.
create function pg_temp.worthiest(p_count integer)
returns text[]
language sql
as $$
    select array_agg(w.cache_key order by w.id)
    from (
        select cache_key, id
        from steadytext_cache
        order by access_count * exp(-extract(epoch from now() - last_accessed)::float8 / 86400) desc, id desc
        limit p_count
    ) as w
$$;
-- The bytes of the rows, as PostgreSQL forms them, with values out of line as they are stored there, and of their
-- line pointers.
create function pg_temp.bytes()
returns bigint
language sql
as $$
    select coalesce(sum(4 + pg_column_size(row(id, cache_key, prompt, null::text, null::text, access_count, last_accessed, created_at,
            model_name, model_size, seed, eos_string, generation_params, response_size, generation_time_ms, request_type, model_hash,
            kernel_version, imported, key_hash))
        + coalesce(pg_column_size(response), 0) + coalesce(pg_column_size(embedding), 0)), 0)
    from steadytext_cache
$$;
-- Each row may be off by what aligns its columns.
create function pg_temp.is_size(p_megabytes float8, p_name text)
returns text
language sql
as $$
    select cmp_ok(abs(p_megabytes * 1048576 - pg_temp.bytes()), '<=', 40.0::float8 * (select count(*) from steadytext_cache), p_name)
$$;

-- An empty cache.
select results_eq(
    $$ select total_entries, total_size_mb, avg_access_count, oldest_entry, newest_entry from steadytext_cache_stats() $$,
    $$ values (0::bigint, 0::float8, 0::float8, null::timestamptz, null::timestamptz) $$, 'stats: of an empty cache');
select is((select count(*) from steadytext_cache_analyze_usage()), 0::bigint, 'analyze_usage: of an empty cache');
select is((select count(*) from steadytext_cache_preview_eviction()), 0::bigint, 'preview_eviction: of an empty cache');
select is((select evicted_count from steadytext_cache_evict_by_frecency(0, 0, 100, 0, 0)), 0, 'eviction: of an empty cache');
select is((select warmed_entries from steadytext_cache_warmup()), 0, 'warmup: of an empty cache');
select is(steadytext_cache_scheduled_eviction() ->> 'status', 'completed', 'scheduled_eviction: of an empty cache');
select is((select count(*) from steadytext_audit_log), 0::bigint, 'an eviction that evicts nothing is not noted');

-- Statistics.
insert into steadytext_cache (cache_key, prompt, response, request_type, access_count, last_accessed, created_at)
values
    ('a', 'A', 'x', 'generate', 1, now(), now() - interval '3 days'),
    ('b', 'B', repeat('all the same ', 100000), 'generate', 2, now() - interval '1 day', now() - interval '2 days'),
    ('c', 'C', 'x', 'generate', 5, now() - interval '10 days', now() - interval '12 days'),
    ('d', 'D', 'x', 'generate', 20, now(), now() - interval '1 day'),
    ('e', 'E', 'x', 'generate', 21, now(), now() - interval '1 minute'),
    ('f', 'F', 'x', 'generate', 101, now(), now() - interval '5 days');
insert into steadytext_cache (cache_key, prompt, embedding, request_type, access_count, created_at)
select 'g', 'G', array_agg(random())::real[], 'embed', 1, now() - interval '6 days' from generate_series(1, 1024);
select results_eq(
    $$ select total_entries, avg_access_count, oldest_entry, newest_entry from steadytext_cache_stats() $$,
    $$ values (7::bigint, 151 / 7.0::float8, now() - interval '12 days', now() - interval '1 minute') $$, 'stats: counts and ages');
select pg_temp.is_size((select total_size_mb from steadytext_cache_stats()), 'stats: the size is that of the rows as they are stored');
select cmp_ok(pg_temp.bytes(), '<', 60000::bigint, 'a text of 1.3 MB is stored compressed');
select cmp_ok(pg_temp.bytes(), '>', 4096 + 13000::bigint, 'and a vector is not');
select ok((select cache_hit_rate between 0 and 1 from steadytext_cache_stats()), 'stats: the hit rate is a share');
select results_eq(
    $$ select total_entries, low_frecency_count, protected_count, eviction_candidates from steadytext_cache_stats_extended() $$,
    $$ values (7::bigint, 2::bigint, 5::bigint, 2::bigint) $$, 'stats_extended: low are b and c; a and g are candidates');
select steadytext_config_set('cache_min_access_count', '0');
select results_eq(
    $$ select protected_count, eviction_candidates from steadytext_cache_stats_extended() $$,
    $$ values (1::bigint, 6::bigint) $$, 'stats_extended: without protection by use only the young one is');
select steadytext_config_set('cache_min_access_count', null);
select results_eq(
    $$ select access_bucket, entry_count, round(percentage_of_cache::numeric, 2) from steadytext_cache_analyze_usage() $$,
    $$ values ('1_single_access', 2::bigint, 28.57), ('2_low_access', 2::bigint, 28.57), ('3_medium_access', 1::bigint, 14.29),
        ('4_high_access', 1::bigint, 14.29), ('5_very_high_access', 1::bigint, 14.29) $$, 'analyze_usage: buckets');
select is(
    (select round((sum(total_size_mb) * 1048576)::numeric) from steadytext_cache_analyze_usage()),
    (select round((total_size_mb * 1048576)::numeric) from steadytext_cache_stats()), 'analyze_usage: the sizes add up');
select ok(
    (select avg_frecency_score between 101 - 1e-6 and 101 from steadytext_cache_analyze_usage() where access_bucket like '5%'),
    'analyze_usage: frecency');
select results_eq(
    $$ select cache_key, size_bytes from steadytext_cache_preview_eviction(100) $$,
    $$ select c.cache_key, e.bytes::bigint from (values ('a', 1), ('g', 2), ('c', 3), ('b', 4), ('d', 5), ('f', 6)) as v(key, n)
       join steadytext_cache as c on c.cache_key = v.key join steadytext.cache_entries as e on e.id = c.id order by v.n $$,
    'preview_eviction: first what is not protected, by worth and age; the young one never');
select is((select count(*) from steadytext_cache_preview_eviction(2)), 2::bigint, 'preview_eviction: as many as asked for');
select is((select array_agg(cache_key) from steadytext_cache_preview_eviction(1)), array['a'], 'preview_eviction: the first');
update steadytext_cache set prompt = repeat('p', 300) where cache_key = 'a';
select is((select length(prompt) from steadytext_cache_preview_eviction(1)), 100, 'preview_eviction: prompts are cut');
select is((select warmed_entries from steadytext_cache_warmup(3)), 3, 'warmup: as many as asked for');
select results_eq(
    $$ select warmed_entries, total_time_ms >= 0 from steadytext_cache_warmup() $$, $$ values (7, true) $$, 'warmup: all');
select is((select sum(access_count) from steadytext_cache), 151::bigint, 'warmup: changes nothing');
select is((select last_accessed from steadytext_cache where cache_key = 'c'), now() - interval '10 days', 'warmup: no time, either');

-- Eviction by worth, against the formula.
select pg_temp.fill(300);
create temporary table kept as select pg_temp.worthiest(211) as keys;
select results_eq(
    $$ select evicted_count, remaining_entries from steadytext_cache_evict_by_frecency(211, null, 10, 0, 0) $$,
    $$ values (89, 211::bigint) $$, 'evict_by_frecency: as many as must go');
select is(pg_temp.keys(), (select keys from kept), 'evict_by_frecency: and those that are worth least by the formula');
truncate kept; insert into kept select pg_temp.worthiest(1);
select steadytext_cache_evict_by_frecency(1, null, 1000, 0, 0);
select is(pg_temp.keys(), (select keys from kept), 'evict_by_frecency: down to the worthiest');
select is((select evicted_count from steadytext_cache_evict_by_frecency(1, 1000, 100, 0, 0)), 0, 'evict_by_frecency: nothing beyond the target');
select results_eq(
    $$ select evicted_count, remaining_entries, remaining_size_mb from steadytext_cache_evict_by_frecency(0, null, 100, 0, 0) $$,
    $$ values (1, 0::bigint, 0::float8) $$, 'evict_by_frecency: to nothing');
-- Equals.
insert into steadytext_cache (cache_key, prompt, response, request_type, created_at, last_accessed)
select 'equal ' || n, '', '', 'generate', now() - interval '1 day', now() - interval '1 day' from generate_series(1, 20) as n;
select steadytext_cache_evict_by_frecency(8, null, 3, 0, 0);
select is(pg_temp.keys(), (select array_agg('equal ' || n order by n) from generate_series(13, 20) as n), 'of equals the older goes first');
-- A time that has not come yet, and one long gone.
delete from steadytext_cache;
insert into steadytext_cache (cache_key, prompt, response, request_type, created_at, last_accessed)
values ('future', '', '', 'generate', now() - interval '1 day', now() + interval '1 year'),
    ('long ago', '', '', 'generate', now() - interval '1 day', '1970-01-01'), ('now', '', '', 'generate', now() - interval '1 day', now());
select steadytext_cache_evict_by_frecency(2, null, 3, 0, 0);
select is(pg_temp.keys(), array['future', 'now'], 'times out of the ordinary do no harm');

-- By size.
-- As answers of the worker are, with all columns, in pages of which nothing else was in.
truncate steadytext_cache;
insert into steadytext_cache (cache_key, prompt, response, request_type, access_count, created_at, model_name, model_size, seed, eos_string,
    generation_params, response_size, generation_time_ms, model_hash, kernel_version)
select 'key ' || n, 'prompt ' || n, repeat('answer ' || n, n % 20), 'generate_json', 1, now() - interval '1 day', 'model', 'small', n, 'END',
    '{"max_tokens": 32, "schema": {"type": "object"}}', 100, 10, repeat('ab', 32), 1
from generate_series(1, 2000) as n;
select pg_temp.is_size((select total_size_mb from steadytext_cache_stats()), 'stats: all columns count');
select ok(
    (select total_size_mb * 1048576 / pg_relation_size('steadytext_cache') between 0.7 and 0.9 from steadytext_cache_stats()),
    'stats: pages are full to four fifths, and the rows are what fills them');
select pg_temp.fill(100);
create temporary table before as
    select id, bytes, sum(bytes) over (order by frecency_score desc, id desc) as upwards from steadytext.cache_entries;
select steadytext_cache_evict_by_frecency(null, 9000 / 1048576.0::float8, 7, 0, 0) as evicted \gset
select is((select array_agg(id order by id) from steadytext_cache), (select array_agg(id order by id) from before where upwards <= 9000),
    'a target of size keeps the worthiest that fit into it');
select ok((select sum(bytes) between 5000 and 9000 from steadytext.cache_entries), 'and no more');
select pg_temp.fill(100);
create temporary table size_before as select sum(bytes) as bytes from steadytext.cache_entries;
select is(
    (select round((freed_size_mb * 1048576 + remaining_size_mb * 1048576)::numeric) from steadytext_cache_evict_by_frecency(30, null, 7, 0, 0)),
    (select bytes::numeric from size_before), 'what is freed and what remains add up to what was there');

-- Protections.
select pg_temp.fill(200);
create temporary table guarded as select cache_key from steadytext_cache where access_count >= 4;
select steadytext_cache_evict_by_frecency(0, null, 100, 4, 0);
select set_eq('select cache_key from steadytext_cache', 'select cache_key from guarded', 'min_access_count protects, whatever the target');
select pg_temp.fill(200);
create temporary table young as select cache_key from steadytext_cache where created_at > now() - interval '48 hours';
select steadytext_cache_evict_by_frecency(0, null, 100, 0, 48);
select set_eq('select cache_key from steadytext_cache', 'select cache_key from young', 'min_age_hours protects');
select pg_temp.fill(50);
update steadytext_cache set access_count = 1 where id % 2 = 0;
select steadytext_cache_evict_by_frecency(0);
select is((select count(*) from steadytext_cache where access_count < 2), 0::bigint, 'defaults: single uses go');
select is((select count(*) from steadytext_cache), (select count(*) from steadytext_cache where access_count >= 2), 'defaults: others stay');

-- By age.
select pg_temp.fill(120);
truncate kept; insert into kept
    select array_agg(cache_key order by id) from (select cache_key, id from steadytext_cache order by created_at desc, id desc limit 33) as y;
select results_eq(
    $$ select evicted_count, remaining_entries from steadytext_cache_evict_by_age(33, null, 10, 0) $$,
    $$ values (87, 33::bigint) $$, 'evict_by_age: as many as must go');
select is(pg_temp.keys(), (select keys from kept), 'evict_by_age: the oldest, however often they were used');
update steadytext_cache set created_at = now() - interval '30 minutes' where id in (select id from steadytext_cache limit 5);
select is((select remaining_entries from steadytext_cache_evict_by_age(0)), 5::bigint, 'evict_by_age: young ones stay');
select is((select evicted_count from st_cache_evict_by_age(0, null, 100, 0)), 5, 'st_cache_evict_by_age');

-- Targets that make no sense.
select throws_ok('select steadytext_cache_evict_by_frecency(-1)', '22023', null, 'a negative target');
select throws_ok('select steadytext_cache_evict_by_age(null, -0.5)', '22023', null, 'a negative size');
select throws_ok('select steadytext_cache_evict_by_age(1, null, 100, -1)', '22023', null, 'a negative age');
select lives_ok('select steadytext_cache_evict_by_frecency(1, null, -5, null, null)', 'a batch size below 1 is 1; NULLs are the settings');
select pg_temp.fill(5);
select is((select evicted_count from steadytext_cache_evict_by_age(3, null, 2147483647, 0)), 2, 'the largest batch size is as good as any');

-- By the settings.
select pg_temp.fill(200);
select steadytext_config_set('cache_max_entries', '150');
truncate kept; insert into kept
    select array_agg(cache_key order by id) from (
        select cache_key, id from steadytext_cache
        order by access_count >= 2 desc, access_count * exp(-extract(epoch from now() - last_accessed)::float8 / 86400) desc, id desc
        limit 150) as y;
select is((steadytext_cache_scheduled_eviction() ->> 'evicted_count')::integer, 50, 'scheduled_eviction: down to cache_max_entries');
select is(pg_temp.keys(), (select keys from kept), 'scheduled_eviction: by worth, protected ones last');
select results_eq(
    $$ select action, success, details ->> 'evicted_count', details ->> 'remaining_entries' from steadytext_audit_log where action like 'cache%' $$,
    $$ values ('cache_eviction', true, '50', '150') $$, 'scheduled_eviction: is noted');
update steadytext_cache set access_count = 50;
select steadytext_config_set('cache_max_entries', '20');
select is((st_cache_scheduled_eviction() ->> 'remaining_entries')::integer, 20, 'scheduled_eviction: protected ones go when nothing else is left');
update steadytext_cache set created_at = now() - interval '59 minutes';
select steadytext_config_set('cache_max_entries', '5');
select is((steadytext_cache_scheduled_eviction() ->> 'remaining_entries')::integer, 20, 'scheduled_eviction: young ones never');
select steadytext_config_set('cache_min_age_hours', '0.5');
select is((steadytext_cache_scheduled_eviction() ->> 'remaining_entries')::integer, 5, 'scheduled_eviction: the age is a setting');
select steadytext_config_set('cache_max_size_mb', '0');
select is((steadytext_cache_scheduled_eviction() ->> 'remaining_entries')::integer, 0, 'scheduled_eviction: so is the size');
select steadytext_config_set('cache_eviction_enabled', 'false');
select is(steadytext_cache_scheduled_eviction() - 'timestamp', '{"status": "skipped", "reason": "Cache eviction disabled"}', 'scheduled_eviction: switched off');

-- As the worker does it.
select pg_temp.fill(30);
select steadytext_config_set('cache_max_entries', '10');
select steadytext_config_set('cache_max_size_mb', null);
create temporary table planned as select * from steadytext.plan_eviction(1000);
select is((select count(*) from planned), 20::bigint, 'plan_eviction: what must go');
select is((select count(*) from steadytext.plan_eviction(7)), 7::bigint, 'plan_eviction: no more than asked for');
update steadytext_cache set access_count = access_count + 1 where id = (select min(id) from planned);
select is(
    (select array_agg(g.id order by g.id) from unnest(steadytext.evict_entries(
        (select array_agg(id) from planned), (select array_agg(access_count) from planned))) as g(id)),
    (select array_agg(id order by id) from planned where id > (select min(id) from planned)),
    'evict_entries: what was used since it was chosen stays');
select is((select count(*) from steadytext_cache), 11::bigint, 'evict_entries: the others are gone');

-- The short names do the same.
select results_eq('select * from st_cache_stats()', 'select * from steadytext_cache_stats()', 'st_cache_stats');
select results_eq('select * from st_cache_stats_extended()', 'select * from steadytext_cache_stats_extended()', 'st_cache_stats_extended');
select results_eq('select * from st_cache_analyze_usage()', 'select * from steadytext_cache_analyze_usage()', 'st_cache_analyze_usage');
select results_eq('select * from st_cache_preview_eviction(5)', 'select * from steadytext_cache_preview_eviction(5)', 'st_cache_preview_eviction');
select is((select warmed_entries from st_cache_warmup(4)), 4, 'st_cache_warmup');
select is((select evicted_count from st_cache_evict_by_frecency(10, null, 100, 0, 0)), 1, 'st_cache_evict_by_frecency');

-- Counters.
select steadytext.reset_cache_counters();
select results_eq(
    $$ select hits, misses, dropped, since between now() and clock_timestamp() from steadytext.cache_counters() $$,
    $$ values (0::bigint, 0::bigint, 0::bigint, true) $$, 'counters: begin anew');
select is((select cache_hit_rate from steadytext_cache_stats()), 0::float8, 'stats: no rate of nothing');
insert into steadytext_cache (cache_key, prompt, response, request_type, imported) values ('18: asked', '', 'answered', 'generate', true);
select steadytext_generate_cached(prompt) from unnest(array['18: asked', '18: asked', '18: asked', '18: not asked']) as prompt;
select is((select cache_hit_rate from steadytext_cache_stats()), 0.75::float8, 'stats: the share of hits since then');
select steadytext_config_set('cache_enabled', 'false');
select steadytext_generate_cached('18: asked');
select steadytext_config_set('cache_enabled', null);
select results_eq('select hits, misses from steadytext.cache_counters()', $$ values (3::bigint, 1::bigint) $$, 'counters: not where the cache is switched off');
delete from steadytext_cache where cache_key = '18: asked';

-- Emptying.
delete from steadytext_audit_log;
select is(pg_temp.run_as('st_root', 'select steadytext_cache_clear()'), '10', 'clear: how many there were');
select is((select count(*) from steadytext_cache), 0::bigint, 'clear: none are left');
select results_eq(
    $$ select user_id, action, details ->> 'entries', success from steadytext_audit_log $$,
    $$ values ('st_root', 'cache_clear', '10', true) $$, 'clear: is noted, with who did it');
select is(st_cache_clear(), 0::bigint, 'st_cache_clear');

-- Without pg_cron.
select is(steadytext_setup_cache_eviction_cron(), 'Error: pg_cron extension is not installed. Please install pg_cron first.', 'cron: says what is missing');
select is(steadytext_disable_cache_eviction_cron(), 'Error: pg_cron extension is not installed.', 'cron: nothing to disable');
select results_eq(
    $$ select action, success, error_message is not null from steadytext_audit_log where action like 'cache_eviction_cron%' order by id $$,
    $$ values ('cache_eviction_cron_setup', false, true), ('cache_eviction_cron_disable', false, true) $$, 'cron: failures are noted');
-- Somebody's own schema of that name is not taken for it.
create schema cron;
create table cron.job (jobid bigint, jobname text, active boolean, database text);
create function cron.schedule(text, text, text) returns bigint language sql as 'select 1/0::bigint';
select alike(steadytext_setup_cache_eviction_cron(), 'Error: pg_cron extension is not installed%', 'cron: a schema of that name is not pg_cron');
select ok(not steadytext.has_eviction_job(), 'cron: nor is its table');

-- Files, without a directory for them.
select throws_ok($$ select steadytext_cache_import('x.db') $$, '55000', 'no directory for the exchange of files is configured', 'import: no directory');
select throws_ok($$ select steadytext_cache_export('x.db') $$, '55000', 'no directory for the exchange of files is configured', 'export: no directory');
select throws_ok($$ select steadytext_cache_export('x.db', key_format => 'rot13') $$, '22023', null, 'export: an unknown way to write keys');
select throws_ok($$ select steadytext_cache_import(null) $$, '22004', null, 'import: no path');

-- Rights.
create function pg_temp.denied(p_role text, p_statement text)
returns text
language sql
as $$
    select throws_ok(format('select pg_temp.run_as(%L, %L)', p_role, p_statement), '42501', null, format('%s may not: %s', p_role, p_statement))
$$;
select is(pg_temp.run_as('st_alice', 'select total_entries from steadytext_cache_stats()'), '0', 'users see statistics');
select is(pg_temp.run_as('st_alice', 'select count(*) from steadytext_cache_analyze_usage()'), '0', 'and usage');
select pg_temp.denied('st_stranger', 'select steadytext_cache_stats()');
select is_empty(
    $$
        select p.proname
        from pg_proc as p
        where p.proname ~ '^(steadytext|st)_(cache_(clear|import|export|evict|scheduled|preview|warmup)|setup_cache|disable_cache)'
            and (has_function_privilege('st_alice', p.oid, 'execute') or not has_function_privilege('st_root', p.oid, 'execute'))
    $$, 'all the rest is for administrators');
select is(pg_temp.run_as('st_root', 'select count(*) > 0 from steadytext_audit_log'), 'true', 'administrators read the audit log');
select pg_temp.denied('st_alice', 'select count(*) from steadytext_audit_log');
select pg_temp.denied('st_root', $$ insert into steadytext_audit_log (action) values ('x') $$);
select pg_temp.denied('st_root', 'update steadytext_audit_log set user_id = ''x''');
select pg_temp.denied('st_root', 'delete from steadytext_audit_log');
select is((select count(*)::integer from steadytext_audit_log where success and user_id not in ('st_root', session_user)), 0, 'of what was done, it has no other names');

select * from finish();
rollback;
