-- Privileges: users see and write their own requests, administrators configure, workers call
-- the protocol, everybody else nothing.
\ir setup.psql
select plan(83);

create function pg_temp.denied(p_role text, p_statement text, p_name text)
returns text
language sql
as $$
    select throws_ok(
        pg_catalog.format('select pg_temp.run_as(%L, %L)', p_role, p_statement), '42501', null,
        pg_catalog.format('%s may not: %s', p_role, p_name))
$$;

-- An ordinary role without membership.
select pg_temp.denied('st_stranger', $$ select steadytext_generate_async('x') $$, 'enqueue');
select pg_temp.denied('st_stranger', $$ select steadytext_embed_batch_async(array['x']) $$, 'enqueue a batch');
select pg_temp.denied('st_stranger', $$ insert into steadytext_queue (request_type, prompt) values ('generate', 'x') $$, 'insert');
select pg_temp.denied('st_stranger', $$ select count(*) from steadytext_queue $$, 'read the queue');
select pg_temp.denied('st_stranger', $$ select count(*) from steadytext_config $$, 'read settings');
select pg_temp.denied('st_stranger', $$ select count(*) from steadytext_models $$, 'read the registry');
select pg_temp.denied('st_stranger', $$ select count(*) from steadytext_daemon_health $$, 'read heartbeats');
select pg_temp.denied('st_stranger', $$ select count(*) from steadytext_activity $$, 'see what runs');
select pg_temp.denied('st_stranger', $$ select steadytext_version() $$, 'ask for the version');
select pg_temp.denied('st_stranger', $$ select steadytext_cancel_async(null) $$, 'cancel');
select pg_temp.denied('st_stranger', $$ select steadytext_config_set('default_seed', '1') $$, 'configure');
select pg_temp.denied('st_stranger', $$ select steadytext.queue_outlook() $$, 'call the protocol');
select pg_temp.denied('st_stranger', $$ select nextval('steadytext_queue_id_seq') $$, 'draw numbers');

-- A user.
create temporary table asked as
    select pg_temp.run_as('st_alice', $$ select steadytext_generate_async('alice one') $$)::uuid as alice,
        pg_temp.run_as('st_bob', $$ select steadytext_generate_async('bob one') $$)::uuid as bob;
select results_eq(
    $$ select prompt, owner_role::text collate "default" from steadytext_queue order by id $$,
    $$ values ('alice one', 'st_alice'), ('bob one', 'st_bob') $$,
    'requests belong to who enqueued them');
select is(pg_temp.run_as('st_alice', 'select count(*) from steadytext_queue'), '1', 'alice sees one request');
select is(pg_temp.run_as('st_alice', 'select prompt from steadytext_queue'), 'alice one', 'which is hers');
select is(pg_temp.run_as('st_bob', 'select prompt from steadytext_queue'), 'bob one', 'bob sees his');
select is(pg_temp.run_as('st_alice', format('select count(*) from steadytext_queue where request_id = %L', bob)), '0', 'nor does she find his by its id')
from asked;
select is(pg_temp.run_as('st_alice', format('select count(*) from steadytext_check_async_batch(array[%L, %L]::uuid[])', alice, bob)), '1', 'check_async_batch leaves out the requests of others')
from asked;
select is(
    pg_temp.written_as('st_alice', $$ insert into steadytext_queue (request_type, prompt, params, priority, user_id, session_id, max_retries)
        values ('generate', 'by insert', '{}', 6, 'label', 'session', 1) $$),
    1::bigint, 'a user may insert the columns that describe a request');
select is((select owner_role::text from steadytext_queue where prompt = 'by insert'), 'st_alice', 'and owns the row');
select pg_temp.denied('st_alice', $$ insert into steadytext_queue (request_type, prompt, owner_role) values ('generate', 'x', 'st_bob') $$, 'insert for somebody else');
select pg_temp.denied('st_alice', $$ insert into steadytext_queue (request_type, prompt, status) values ('generate', 'x', 'completed') $$, 'insert a status');
select pg_temp.denied('st_alice', $$ insert into steadytext_queue (request_type, prompt, result) values ('generate', 'x', 'y') $$, 'insert a result');
select pg_temp.denied('st_alice', $$ insert into steadytext_queue (request_type, prompt, request_id) values ('generate', 'x', '01890000-0000-7000-8000-000000000000') $$, 'choose a request id');
select pg_temp.denied('st_alice', $$ insert into steadytext_queue (request_type, prompt, attempt) values ('generate', 'x', 1) $$, 'insert an attempt');
select pg_temp.denied('st_alice', $$ insert into steadytext_queue (request_type, prompt, created_at) values ('generate', 'x', now()) $$, 'insert a time');

-- Failed to pending, and nothing else.
update steadytext_queue set status = 'failed', retry_count = 3, error = 'broken', error_code = 'XX000'
where prompt in ('alice one', 'bob one');
select is(
    pg_temp.written_as('st_alice', $$ update steadytext_queue set status = 'pending', retry_count = 0 where status = 'failed' $$),
    1::bigint, 'a user puts the own failed requests back to pending');
select results_eq(
    $$ select prompt, status, retry_count from steadytext_queue where prompt like '% one' order by id $$,
    $$ values ('alice one', 'pending', 0), ('bob one', 'failed', 3) $$, 'and those only');
select is(
    pg_temp.written_as('st_alice', $$ update steadytext_queue set status = 'pending' where prompt = 'bob one' $$),
    0::bigint, 'the requests of others stay as they are');
select is(
    pg_temp.written_as('st_alice', $$ update steadytext_queue set retry_count = 0 $$),
    0::bigint, 'a pending request cannot be written');
select pg_temp.denied('st_bob', $$ update steadytext_queue set status = 'completed' $$, 'make a failed request completed');
select pg_temp.denied('st_bob', $$ update steadytext_queue set status = 'processing' $$, 'make a failed request processing');
select pg_temp.denied('st_bob', $$ update steadytext_queue set retry_count = 0 $$, 'write a failed request without putting it back');
select pg_temp.denied('st_bob', $$ update steadytext_queue set status = 'pending', retry_count = -1000 $$, 'give a request more retries');
select pg_temp.denied('st_bob', $$ update steadytext_queue set result = 'x' $$, 'write a result');
select pg_temp.denied('st_bob', $$ update steadytext_queue set priority = 10 $$, 'write a priority');
select pg_temp.denied('st_bob', $$ update steadytext_queue set owner_role = 'st_alice' $$, 'give a request away');
select pg_temp.denied('st_bob', $$ delete from steadytext_queue $$, 'delete requests');
select pg_temp.denied('st_bob', $$ truncate steadytext_queue $$, 'truncate the queue');
select pg_temp.denied('st_bob', $$ create trigger t before insert on steadytext_queue for each row execute function suppress_redundant_updates_trigger() $$, 'plant a trigger');
select throws_ok(
    $$ select pg_temp.run_as('st_bob', 'copy steadytext_queue (request_type, prompt) from ''/dev/null''') $$, null, null,
    'st_bob may not: COPY into the queue');

-- Settings, registry, protocol.
select is(pg_temp.run_as('st_alice', $$ select steadytext_config_get('default_seed') $$), '42', 'a user reads settings');
select isnt(pg_temp.run_as('st_alice', $$ select count(*) from steadytext_models $$), '0', 'a user reads the registry');
select pg_temp.denied('st_alice', $$ select steadytext_config_set('default_seed', '1') $$, 'configure');
select pg_temp.denied('st_alice', $$ update steadytext_config set value = '1' $$, 'update settings');
select pg_temp.denied('st_alice', $$ select steadytext_daemon_stop() $$, 'pause the worker');
select pg_temp.denied('st_alice', $$ insert into steadytext_models (name, task, file) values ('x', 'generate', '/etc/passwd') $$, 'register a model');
select pg_temp.denied('st_alice', $$ select steadytext.claim_requests('w', 1, 60, null, false) $$, 'claim');
select pg_temp.denied('st_alice', $$ select steadytext.complete_requests('w', '{1}', '{1}', '{x}', null, null) $$, 'complete');
select pg_temp.denied('st_alice', $$ select steadytext.fail_requests('w', '{1}', '{1}', '{x}', '{x}', '{f}') $$, 'fail');
select pg_temp.denied('st_alice', $$ select steadytext.rescue_requests('{}') $$, 'rescue');
select pg_temp.denied('st_alice', $$ select steadytext.expire_requests(0, 1) $$, 'expire');
select pg_temp.denied('st_alice', $$ select steadytext.announce('{}') $$, 'announce');

-- An administrator.
select is(pg_temp.run_as('st_root', 'select count(*) from steadytext_queue'), '3', 'an administrator sees every request');
select is(
    pg_temp.run_as('st_root', $$ select steadytext_config_set('default_seed', '7') $$), '', 'an administrator configures');
select is((select updated_by from steadytext_config where key = 'default_seed'), 'st_root', 'in the own name');
select is(pg_temp.run_as('st_root', 'select steadytext_daemon_stop()'), 'true', 'an administrator pauses the worker');
select is(
    pg_temp.written_as('st_root', $$ insert into steadytext_models (name, task, file) values ('theirs', 'generate', 'theirs.gguf') $$),
    1::bigint, 'an administrator registers models');
select is(
    pg_temp.written_as('st_root', $$ update steadytext_queue set status = 'pending', retry_count = 0, priority = 9 where prompt = 'bob one' $$),
    1::bigint, 'an administrator puts requests of others back to pending');
select pg_temp.denied('st_root', $$ update steadytext_queue set result = 'x' $$, 'write results');
select pg_temp.denied('st_root', $$ update steadytext_queue set status = 'completed' $$, 'make requests completed');
select is(pg_temp.written_as('st_root', $$ delete from steadytext_queue where prompt = 'by insert' $$), 1::bigint, 'an administrator deletes requests');
select is(pg_temp.run_as('st_root', format('select steadytext_cancel_async(%L)', bob)), 'true', 'an administrator cancels requests of others')
from asked;
update steadytext_queue set status = 'pending' where prompt = 'bob one';
select isnt(pg_temp.run_as('st_root', $$ select steadytext_generate_async('x') $$), null, 'an administrator enqueues like a user');

-- A member of pg_monitor: numbers and states, no text.
create role st_watch nologin in role pg_monitor;
select is(pg_temp.run_as('st_watch', $$ select sum(requests) from steadytext_queue_counts $$), (select count(*)::text from steadytext_queue),
    'pg_monitor counts the requests of everybody');
select lives_ok($$ select pg_temp.run_as('st_watch', 'select count(*) from steadytext_activity') $$, 'pg_monitor sees what runs');
select isnt(pg_temp.run_as('st_watch', $$ select state from steadytext.worker_state() $$), null, 'pg_monitor sees the worker');
select lives_ok($$ select pg_temp.run_as('st_watch', 'select count(*) from steadytext_daemon_health') $$, 'pg_monitor sees heartbeats');
select is(pg_temp.run_as('st_watch', 'select pending from st_daemon_status()'), (select count(*)::text from steadytext_queue where status = 'pending'),
    'pg_monitor asks for the status, and counts everybody''s requests');
select pg_temp.denied('st_watch', $$ select count(*) from steadytext_queue $$, 'read the queue');
select pg_temp.denied('st_watch', $$ select count(*) from steadytext_cache $$, 'read the cache');
select pg_temp.denied('st_watch', $$ select count(*) from steadytext_audit_log $$, 'read the audit log');
select pg_temp.denied('st_watch', $$ select count(*) from steadytext_config $$, 'read the settings');
select pg_temp.denied('st_watch', $$ select steadytext_generate_async('x') $$, 'enqueue');
select pg_temp.denied('st_watch', $$ select steadytext.claim_requests('w', 1, 60, null, false) $$, 'claim');
select pg_temp.denied('st_alice', $$ select * from steadytext_queue_counts $$, 'count the requests of others');
select is_empty(
    $$ select c.relname, a.attname
       from pg_catalog.pg_class as c join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attnum > 0
       where c.relname in ('steadytext_queue_counts', 'steadytext_daemon_health')
           and a.attname ~ '(prompt|result|error|text|params|key|embedding)' and a.attname <> 'error_count' $$,
    'what it reads has no column for a text');

-- Roles that may dump the tables may dump their sequences.
select is(pg_temp.run_as('st_root', $$ select last_value is not null from steadytext_queue_id_seq $$), 'true', 'an administrator reads the number of the queue');
select is(pg_temp.run_as('st_root', $$ select last_value is not null from steadytext_audit_log_id_seq $$), 'true', 'and that of the audit log');
select pg_temp.denied('st_root', $$ select setval('steadytext_queue_id_seq', 1) $$, 'set numbers back');

-- A worker on another machine: the protocol, and no table.
select pg_temp.denied('st_remote', $$ select count(*) from steadytext_queue $$, 'read the queue');
select results_eq(
    $$ select c.prompt, o.outcome
       from (select (pg_temp.run_as('st_remote', $q$
            select pg_catalog.to_jsonb(c) from steadytext.claim_requests('elsewhere', 1, 60, null, false) as c
            $q$))::jsonb as claimed) as x
       cross join jsonb_to_record(x.claimed) as c(id bigint, attempt integer, prompt text)
       cross join lateral (select pg_temp.run_as('st_remote', format($q$
            select outcome from steadytext.complete_requests('elsewhere', array[%s], array[%s], '{answer}', '{}', '{0}')
            $q$, c.id, c.attempt)) as outcome) as o $$,
    $$ values ('bob one', 'done') $$,
    'a member of steadytext_worker claims and completes'
);

select * from finish();
rollback;
