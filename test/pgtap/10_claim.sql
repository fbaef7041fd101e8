-- The protocol: claiming.
\ir setup.psql
select plan(50);

insert into steadytext_models (name, task, file) values ('m', 'embed', 'm.gguf');

-- Requests of a role, by a letter and a number each.
create function pg_temp.enqueue(p_role name, p_count integer, p_priority integer default 5)
returns void language sql as $$
    insert into steadytext_queue (request_type, prompt, priority, owner_role)
    select 'generate', p_role || ' ' || i, p_priority, p_role from generate_series(1, p_count) as i
$$;
create function pg_temp.claim(p_limit integer, p_after name default null, p_alone boolean default false)
returns text[] language sql as $$
    select array_agg(c.prompt)
    from steadytext.claim_requests('local:a', p_limit, 60, p_after::regrole, p_alone) as c
$$;
create function pg_temp.role_number(p_name name)
returns oid language sql as $$ select p_name::regrole::oid $$;
-- Roles take turns in the order of their numbers, which is here that of their making.
create role st_gone nologin;
select set_config('test.gone', pg_temp.role_number('st_gone')::text, true);
select pg_temp.enqueue('st_gone', 1);
drop role st_gone;

select results_eq(
    $$ select c.owner_role::text collate "default", c.owner_oid::text from steadytext.claim_requests('local:a', 1, 60, null, false) as c $$,
    $$ values ('', current_setting('test.gone')) $$, 'a role that was dropped has a number, and no name');
delete from steadytext_queue;
select is_empty($$ select * from steadytext.claim_requests('local:a', 10, 60, null, false) $$, 'nothing to claim');
select is_empty($$ select * from steadytext.claim_requests('local:a', 10, 60, null, true) $$, 'nothing to claim alone');

-- Only what is urgent enough.
insert into steadytext_queue (request_type, prompt, priority)
select 'generate', 'priority ' || p, p from generate_series(1, 10) as p;
select results_eq(
    $$ select c.prompt, c.priority from steadytext.claim_requests('local:a', 100, 60, null, false, 8) as c $$,
    $$ values ('priority 10', 10), ('priority 9', 9), ('priority 8', 8) $$,
    'a claim can be for requests of some priority and more');
select is_empty(
    $$ select c.prompt from steadytext.claim_requests('local:a', 100, 60, null, false, 8) as c $$,
    'and leaves the others');
delete from steadytext_queue;

-- The result of a claim, and the columns that it writes.
insert into steadytext_queue (request_type, prompt, params, max_retries) values ('embed', 'the text', '{"model": "m"}', 2);
update steadytext_queue set error = 'old', error_code = 'XX000', result = 'old', embedding = '[1,2]', completed_at = now(),
    processing_time_ms = 5, retry_count = 1, attempt = 4, worker = 'local:dead';
select results_eq(
    $$ select c.attempt, c.request_type, c.prompt, c.prompts, c.params, c.owner_role, c.owner_oid, c.retry_count, c.max_retries
       from steadytext.claim_requests('local:a', 10, 60, null, false) as c $$,
    $$ select 5, 'embed', 'the text', null::text[], '{"model": "m"}'::jsonb, current_user::name, current_user::regrole::oid, 1, 2 $$,
    'a claim returns what the worker needs'
);
select results_eq(
    $$ select q.status, q.attempt, q.worker, q.error, q.error_code, q.result, q.embedding is null, q.completed_at, q.processing_time_ms, q.retry_count
       from steadytext_queue as q $$,
    $$ values ('processing', 5, 'local:a', null::text, null::text, null::text, true, null::timestamptz, null::integer, 1) $$,
    'a claim counts the attempt and clears what an earlier one left'
);
select ok(
    (select started_at between now() and clock_timestamp()
        and lease_expires_at - started_at = interval '60 seconds' from steadytext_queue),
    'a claim notes its time and its lease');
select is_empty($$ select * from steadytext.claim_requests('local:b', 10, 60, null, false) $$, 'nobody claims it again');
delete from steadytext_queue;
select steadytext_config_set('max_retries', '7');
insert into steadytext_queue (request_type, prompt) values ('generate', 'x');
select is((select max_retries from steadytext.claim_requests('local:a', 10, 60, null, false)), 7, 'max_retries is the setting where the row says nothing');
select is((select max_retries from steadytext_queue), 7, 'and is noted in the row');
delete from steadytext_queue;

-- Limits.
select pg_temp.enqueue('st_alice', 5);
select is(pg_temp.claim(0), null, 'limit 0');
select is(pg_temp.claim(null), null, 'no limit is no claim');
select is(pg_temp.claim(2), array['st_alice 1', 'st_alice 2'], 'oldest first');
select is(pg_temp.claim(10), array['st_alice 3', 'st_alice 4', 'st_alice 5'], 'the rest, when there is less than the limit');
delete from steadytext_queue;

-- Priority.
select pg_temp.enqueue('st_alice', 2, 1), pg_temp.enqueue('st_bob', 1, 10), pg_temp.enqueue('st_alice', 1, 5);
select is(pg_temp.claim(10), array['st_bob 1', 'st_alice 1', 'st_alice 1', 'st_alice 2'], 'priority 10 first, 1 last');
delete from steadytext_queue;
select pg_temp.enqueue('st_alice', 3, 5), pg_temp.enqueue('st_bob', 1, 6);
select is(pg_temp.claim(2), array['st_bob 1', 'st_alice 1'], 'the limit holds over priorities');
delete from steadytext_queue;

-- Round robin.
select pg_temp.enqueue('st_alice', 6), pg_temp.enqueue('st_bob', 6), pg_temp.enqueue('st_root', 6);
select is(pg_temp.claim(6), array['st_alice 1', 'st_bob 1', 'st_root 1', 'st_alice 2', 'st_bob 2', 'st_root 2'], 'users take turns');
select is(pg_temp.claim(4, 'st_root'), array['st_alice 3', 'st_bob 3', 'st_root 3', 'st_alice 4'], 'after the last user comes the first');
select is(pg_temp.claim(2, 'st_alice'), array['st_bob 4', 'st_root 4'], 'after alice comes bob');
select is(pg_temp.claim(1, 'st_bob'), array['st_root 5'], 'a claim of one takes the next user');
select is(pg_temp.claim(1, 'st_root'), array['st_alice 5'], 'and the next');
select is(
    (select c.prompt from steadytext.claim_requests('local:a', 1, 60, current_setting('test.gone')::oid, false) as c),
    'st_alice 6', 'a user who has gone is no matter');
select is(pg_temp.claim(100, 'st_alice'), array['st_bob 5', 'st_root 6', 'st_bob 6'], 'until all are claimed');
delete from steadytext_queue;

select pg_temp.enqueue('st_alice', 1), pg_temp.enqueue('st_bob', 10), pg_temp.enqueue('st_root', 2);
select is(
    pg_temp.claim(9), array['st_alice 1', 'st_bob 1', 'st_root 1', 'st_bob 2', 'st_root 2', 'st_bob 3', 'st_bob 4', 'st_bob 5', 'st_bob 6'],
    'what users leave of their shares, the others get');
delete from steadytext_queue;

-- More users than the limit.
do $$ begin for i in 1 .. 20 loop execute format('create role u%s', to_char(i, 'FM00')); end loop; end $$;
select pg_temp.enqueue(('u' || to_char(i, 'FM00'))::name, 2) from generate_series(1, 20) as i;
select is(pg_temp.claim(3), array['u01 1', 'u02 1', 'u03 1'], 'more users than the limit: the first ones');
select is(pg_temp.claim(3, 'u03'), array['u04 1', 'u05 1', 'u06 1'], 'then the next ones');
select is(pg_temp.claim(4, 'u19'), array['u20 1', 'u01 2', 'u02 2', 'u03 2'], 'and around');
alter role u07 rename to another;
select is(pg_temp.claim(1, 'u06'), array['u07 1'], 'a new name changes nothing of the turns');
select results_eq(
    $$ select c.owner_role::text collate "default", c.prompt from steadytext.claim_requests('local:a', 1, 60, 'another'::regrole, false) as c $$,
    $$ values ('u08', 'u08 1') $$, 'nor does it for those who come after');
delete from steadytext_queue;

-- Bytes: a claim ends with the request that exceeds them, and always takes one.
insert into steadytext_queue (request_type, prompt) select 'generate', repeat(i::text, 1000) from generate_series(1, 5) as i;
select is((select count(*) from steadytext.claim_requests('local:a', 10, 60, null, false, p_bytes => 2500)), 3::bigint, 'bytes: as many as exceed them');
select is((select bytes from steadytext.claim_requests('local:a', 10, 60, null, false, p_bytes => 1) where prompt like '4%'), 1004::bigint, 'bytes: one, however few they are; its text and {}');
delete from steadytext_queue;
insert into steadytext_queue (request_type, prompt, priority) select 'generate', repeat('x', 1000000), 11 - i from generate_series(1, 3) as i;
select is((select array_agg(bytes) from steadytext.claim_requests('local:a', 10, 60, null, false, p_bytes => 1000001)), array[1000004::bigint], 'bytes: before compression');
select is((select count(*) from steadytext.claim_requests('local:a', 10, 60, null, false, p_bytes => 2000000)), 2::bigint, 'bytes: over priorities');
delete from steadytext_queue;

-- Rows that are not ready.
select pg_temp.enqueue('st_alice', 4);
update steadytext_queue set run_after = now() - interval '1 second' where prompt = 'st_alice 1';
update steadytext_queue set alone = true where prompt = 'st_alice 2';
update steadytext_queue set status = 'cancelled' where prompt = 'st_alice 3';
select is(pg_temp.claim(10), array['st_alice 4'], 'deferred, lone and cancelled requests are not claimed');

-- Alone.
update steadytext_queue set alone = true, status = 'pending', run_after = null;
select is(pg_temp.claim(10, null, true), array['st_alice 1'], 'alone: one request, whatever the limit');
select is(pg_temp.claim(10), null, 'alone: not among the others');
select is((select (status, worker, attempt, alone)::text from steadytext_queue where prompt = 'st_alice 1'), '(processing,local:a,1,t)', 'alone: the row says so while it runs');
select is(pg_temp.claim(0, null, true), null, 'alone: limit 0');
update steadytext_queue set run_after = now() where prompt = 'st_alice 2';
select is(pg_temp.claim(1, null, true), array['st_alice 3'], 'alone: a retry waits for its time');
delete from steadytext_queue;

-- A thousand at once, and what the planner makes of stale statistics: a table full of
-- finished requests that the statistics believe to be pending.
insert into steadytext_queue (request_type, prompt) select 'generate', 'old' from generate_series(1, 20000);
analyze steadytext_queue;
update steadytext_queue set status = 'completed', completed_at = now();
insert into steadytext_queue (request_type, prompt) select 'generate', 'new ' || i from generate_series(1, 1000) as i;
create temporary table before as
    select pg_stat_get_xact_tuples_returned('steadytext_queue_pkey'::regclass) as by_key,
        pg_stat_get_xact_tuples_returned('steadytext_queue'::regclass) as by_scan;
create temporary table claimed as select * from steadytext.claim_requests('local:a', 1000, 60, null, false);
select is((select count(*) from claimed where prompt like 'new %'), 1000::bigint, 'a thousand are claimed among twenty thousand finished ones');
select is(
    (select array_agg(prompt order by id) from claimed),
    array(select 'new ' || i from generate_series(1, 1000) as i), 'the right ones');
select ok(
    pg_stat_get_xact_tuples_returned('steadytext_queue_pkey'::regclass) - (select by_key from before) <= 1000,
    'a claim reads no more of the primary key than it takes');
select is(
    pg_stat_get_xact_tuples_returned('steadytext_queue'::regclass) - (select by_scan from before), 0::bigint,
    'a claim does not scan the table');
create temporary table before_completing as
    select pg_stat_get_xact_numscans('steadytext_queue_pkey'::regclass)
        + pg_stat_get_xact_numscans('steadytext_queue_processing_idx'::regclass) as scans;
create temporary table completed as
    select c.outcome from (select array_agg(id) as ids, array_agg(attempt) as attempts, array_agg('x'::text) as results from claimed) as a
    cross join steadytext.complete_requests('local:a', a.ids, a.attempts, a.results, null, null) as c;
select is((select count(*) from completed where outcome = 'done'), 1000::bigint, 'and completed');
select is(
    pg_stat_get_xact_tuples_returned('steadytext_queue'::regclass) - (select by_scan from before), 0::bigint,
    'completing does not scan the table either');
select ok(
    pg_stat_get_xact_tuples_returned('steadytext_queue_pkey'::regclass) - (select by_key from before) <= 2000,
    'and reads no more of the primary key than it writes');
select ok(
    pg_stat_get_xact_numscans('steadytext_queue_pkey'::regclass)
        + pg_stat_get_xact_numscans('steadytext_queue_processing_idx'::regclass)
        - (select scans from before_completing) >= 1000,
    'each row is looked up by its id, not compared with everything in flight');
select is((select alone_due from steadytext.queue_outlook()), false, 'nothing is left alone');
select is((select pending from steadytext.queue_outlook()), 0::bigint, 'nothing is left');

select * from finish();
rollback;
