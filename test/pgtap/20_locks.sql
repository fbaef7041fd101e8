-- Two sessions: what one has locked stalls nobody, and nobody takes a request twice.
--
-- The rows are committed, so the worker is paused, and leases are those of workers
-- elsewhere. A paused worker still rescues and promotes: there the tests look at the rows
-- and not at who did it. statement_timeout turns a wait into a failure.
\ir setup.psql
rollback;
select plan(44);

select steadytext_daemon_stop();
do $$
declare
    v_deadline timestamptz := clock_timestamp() + interval '3 minutes';
begin
    while (select state not in ('paused', 'not_preloaded', 'stopped') from steadytext.worker_state())
        loop
        if clock_timestamp() > v_deadline then
            raise exception 'the worker is not paused but %', (select state from steadytext.worker_state());
        end if;
        perform pg_sleep(0.02);
    end loop;
end
$$;
delete from steadytext_queue;
set statement_timeout = '3min';

create function pg_temp.open(p_name text) returns text
language sql as $$
    select dblink_connect(p_name, format('host=%s port=%s dbname=%s user=%s',
        split_part(current_setting('unix_socket_directories'), ',', 1), current_setting('port'),
        current_database(), current_user))
$$;
-- One statement in the other session; its result as text.
create function pg_temp.other(p_statement text) returns text
language sql as $$ select r from dblink('other', p_statement) as x(r text) $$;
create function pg_temp.id_of(p_prompt text) returns bigint
language sql as $$ select id from steadytext_queue where prompt = p_prompt $$;
create function pg_temp.claim(p_worker text, p_limit integer) returns text
language sql as $$
    select string_agg(c.prompt, ' ' order by c.id)
    from steadytext.claim_requests(p_worker, p_limit, 600, null, false) as c
$$;
select pg_temp.open('other');

-- Claims beside claims.
insert into steadytext_queue (request_type, prompt) select 'generate', p from unnest(array['a', 'b', 'c', 'd']) as p;
select dblink_exec('other', 'begin');
select is(pg_temp.other($$ select string_agg(prompt, ' ') from steadytext.claim_requests('elsewhere-b', 2, 600, null, false) $$), 'a b', 'one worker claims');
select is(pg_temp.claim('elsewhere-a', 10), 'c d', 'the other gets the rest, without waiting');
select is(pg_temp.claim('elsewhere-a', 10), null, 'and nothing of what is being claimed');
select dblink_exec('other', 'rollback');
select is(pg_temp.claim('elsewhere-a', 10), 'a b', 'a claim that is rolled back never was');
select is((select max(attempt) from steadytext_queue), 1, 'its attempt is not counted');
delete from steadytext_queue;

-- A row that a user has locked.
insert into steadytext_queue (request_type, prompt) select 'generate', p from unnest(array['a', 'b', 'c']) as p;
select dblink_exec('other', 'begin');
select pg_temp.other($$ select prompt from steadytext_queue where prompt = 'a' for update $$);
select is(pg_temp.claim('elsewhere-a', 10), 'b c', 'claim: a locked row is left out');
select dblink_exec('other', 'rollback');
select is(pg_temp.claim('elsewhere-a', 10), 'a', 'claim: and taken when it is free');

-- Completing beside a lock, and beside a cancel that has not committed.
select dblink_exec('other', 'begin');
select pg_temp.other($$ select prompt from steadytext_queue where prompt = 'a' for update $$);
select pg_temp.other($$ update steadytext_queue set status = 'cancelled' where prompt = 'b' returning prompt $$);
create function pg_temp.complete(p_prompts text[]) returns text
language sql as $$
    select string_agg(q.prompt || ' ' || o.outcome, ', ' order by q.prompt)
    from (select array_agg(id) as ids, array_agg(attempt) as attempts, array_agg('answer'::text) as results
          from steadytext_queue where prompt = any (p_prompts)) as g
    cross join steadytext.complete_requests('elsewhere-a', g.ids, g.attempts, g.results, null, null) as o
    join steadytext_queue as q on q.id = o.id
$$;
select is(pg_temp.complete(array['a', 'b', 'c']), 'a locked, b locked, c done', 'complete: locked rows are reported, the others written');
select is(pg_temp.complete(array['a', 'b']), 'a locked, b locked', 'complete: still locked');
create function pg_temp.fail(p_prompts text[]) returns text
language sql as $$
    select string_agg(q.prompt || ' ' || o.outcome, ', ' order by q.prompt)
    from (select array_agg(id) as ids, array_agg(attempt) as attempts, array_agg('error'::text) as errors, array_agg(false) as retry
          from steadytext_queue where prompt = any (p_prompts)) as g
    cross join steadytext.fail_requests('elsewhere-a', g.ids, g.attempts, g.errors, g.errors, g.retry) as o
    join steadytext_queue as q on q.id = o.id
$$;
select is(pg_temp.fail(array['a', 'b']), 'a locked, b locked', 'fail: locked rows are reported');
select is(
    (select count(*) from steadytext.extend_leases('elsewhere-a', array[pg_temp.id_of('a'), pg_temp.id_of('b')], array[1, 1], 3600)), 0::bigint,
    'extend: a locked row that is still ours is not lost');
select bag_eq(
    $$ select steadytext.release_requests('elsewhere-a', array[pg_temp.id_of('a'), pg_temp.id_of('b')], array[1, 1]) $$,
    array[pg_temp.id_of('a'), pg_temp.id_of('b')], 'release: skips locked rows, and says which');
select dblink_exec('other', 'commit');
select is(pg_temp.complete(array['a', 'b']), 'a done, b lost', 'complete: the free one is written, the cancelled one is lost');
select is((select string_agg(status, ' ' order by prompt) from steadytext_queue), 'completed cancelled completed', 'complete: the cancel has won');
delete from steadytext_queue;

-- A cancel that is rolled back.
insert into steadytext_queue (request_type, prompt) values ('generate', 'a');
select is(pg_temp.claim('elsewhere-a', 10), 'a', 'claimed');
select dblink_exec('other', 'begin');
select pg_temp.other($$ update steadytext_queue set status = 'cancelled' where prompt = 'a' returning prompt $$);
select is(pg_temp.complete(array['a']), 'a locked', 'complete: it may have been cancelled');
select dblink_exec('other', 'rollback');
select is(pg_temp.complete(array['a']), 'a done', 'complete: it was not');
delete from steadytext_queue;

-- Completing twice at once: one is told that it is too late.
insert into steadytext_queue (request_type, prompt) values ('generate', 'a');
select is(pg_temp.claim('elsewhere-a', 10), 'a', 'claimed');
select dblink_exec('other', 'begin');
select is(
    pg_temp.other(format($$ select outcome from steadytext.complete_requests('elsewhere-a', array[%s], '{1}', '{first}', null, null) $$, pg_temp.id_of('a'))),
    'done', 'one session completes');
select is(pg_temp.complete(array['a']), 'a locked', 'the other must try again');
select dblink_exec('other', 'commit');
select is(pg_temp.complete(array['a']), 'a lost', 'and has lost');
select is((select result from steadytext_queue), 'first', 'the first answer stays');
delete from steadytext_queue;

-- Rescue beside a lock.
insert into steadytext_queue (request_type, prompt) select 'generate', p from unnest(array['a', 'b', 'c']) as p;
select is(pg_temp.claim('elsewhere-a', 10), 'a b c', 'claimed');
select dblink_exec('other', 'begin');
select pg_temp.other($$ select prompt from steadytext_queue where prompt = 'a' for update $$);
update steadytext_queue set lease_expires_at = now() - interval '1 second' where prompt <> 'a';
select lives_ok($$ select steadytext.rescue_requests(null) $$, 'rescue beside a lock');
select is(
    (select string_agg(prompt || ' ' || status || ' ' || retry_count, ', ' order by prompt) from steadytext_queue),
    'a processing 0, b pending 0, c pending 0', 'rescue: the locked row stays in flight, nobody is blamed');
select dblink_exec('other', 'rollback');
update steadytext_queue set lease_expires_at = now() - interval '1 second' where prompt = 'a' and status = 'processing';
select lives_ok($$ select steadytext.rescue_requests(null) $$, 'rescue when it is free');
select is(
    (select string_agg(prompt || ' ' || status || ' ' || retry_count, ', ' order by prompt) from steadytext_queue),
    'a pending 0, b pending 0, c pending 0', 'rescue: it was not the only one in flight');
delete from steadytext_queue;

-- Promotion and retention beside a lock.
insert into steadytext_queue (request_type, prompt) values ('generate', 'a'), ('generate', 'b');
select dblink_exec('other', 'begin');
select pg_temp.other($$ update steadytext_queue set run_after = now() - interval '1 second' where prompt = 'a' returning prompt $$);
update steadytext_queue set run_after = now() - interval '1 second' where prompt = 'b';
select lives_ok($$ select steadytext.promote_requests() $$, 'promote beside a lock');
select is((select run_after from steadytext_queue where prompt = 'b'), null, 'promote: the free row');
select dblink_exec('other', 'rollback');
update steadytext_queue set status = 'completed', created_at = now() - interval '1 year', completed_at = now() - interval '1 year';
select dblink_exec('other', 'begin');
select pg_temp.other($$ select prompt from steadytext_queue where prompt = 'a' for update $$);
select lives_ok($$ select steadytext.expire_requests(0, 100) $$, 'expire beside a lock');
select is((select string_agg(prompt, ' ') from steadytext_queue), 'a', 'expire: the locked row stays');
select dblink_exec('other', 'rollback');
select lives_ok($$ select steadytext.expire_requests(0, 100) $$, 'expire when it is free');
select is((select count(*) from steadytext_queue), 0::bigint, 'expire: now it goes as well');

-- A long stretch of them is not walked over again, and is there again when its holder has gone.
insert into steadytext_queue (request_type, prompt) select 'generate', 'l' || i from generate_series(1, 700) as i;
insert into steadytext_queue (request_type, prompt) select 'generate', 'f' || i from generate_series(1, 3) as i;
select dblink_exec('other', 'begin');
select pg_temp.other($$ select count(*)::text from (select from steadytext_queue where prompt like 'l%' for update) as x $$);
select is(pg_temp.claim('elsewhere-a', 1), 'f1', 'claim: what lies behind a long stretch of locked rows');
create function pg_temp.behind() returns bigint
language sql as $$
    select p.behind from (select distinct owner_role::oid as owner from steadytext_queue) as q cross join lateral steadytext.passed_rows(5, q.owner) as p
$$;
select is(pg_temp.behind(), pg_temp.id_of('l700'), 'claim: remembers the stretch');
select is(pg_temp.claim('elsewhere-a', 1), 'f2', 'claim: and begins behind it');
insert into steadytext_queue (request_type, prompt, priority) values ('generate', 'p', 9);
select is(pg_temp.claim('elsewhere-a', 1), 'p', 'claim: of that priority only');
-- A second look finds a row that is free, whichever sessions hold the others.
update steadytext_queue set priority = 4 where prompt = 'f3';
select dblink_exec('other', 'savepoint a');
select dblink_exec('other', 'rollback');
select is(pg_temp.claim('elsewhere-a', 1), 'l1', 'claim: when the holder has gone, the oldest one at once');
select is(pg_temp.behind(), (-9223372036854775808)::bigint, 'claim: the stretch is forgotten');
-- Two hold it, one in a subtransaction that is rolled back.
select dblink_exec('other', 'begin');
select dblink_exec('other', 'savepoint a');
select pg_temp.other($$ with x as (update steadytext_queue set status = 'cancelled' where prompt like 'l%' and status = 'pending' returning id) select count(*)::text from x $$);
select is(pg_temp.claim('elsewhere-a', 1), 'f3', 'claim: behind rows that are being cancelled in a subtransaction');
select is(pg_temp.behind(), pg_temp.id_of('l700'), 'claim: remembers them, too');
select dblink_exec('other', 'rollback to a');
select is(pg_temp.claim('elsewhere-a', 2), 'l2 l3', 'claim: when the subtransaction is rolled back, the oldest ones at once');
select dblink_exec('other', 'rollback');
delete from steadytext_queue;
-- One at a time: a user whose rows are locked does not have everybody's turn.
create role st_first nologin;
create role st_second nologin;
insert into steadytext_queue (request_type, prompt, owner_role)
select 'generate', r || i, r::name from unnest(array['st_first', 'st_second']) as r, generate_series(1, 3) as i;
select dblink_exec('other', 'begin');
select pg_temp.other($$ select count(*)::text from (select from steadytext_queue where prompt like 'st_first%' for update) as x $$);
select is(pg_temp.claim('elsewhere-a', 1), 'st_second1', 'claim of one: the user whose turn it is has locked everything');
select is(pg_temp.claim('elsewhere-a', 1), 'st_second2', 'claim of one: and again');
select dblink_exec('other', 'rollback');
delete from steadytext_queue;
drop role st_first, st_second;

select dblink_disconnect('other');
select steadytext_daemon_start();
update steadytext_config set is_default = true where key = 'worker_paused';
select * from finish();
