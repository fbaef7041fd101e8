-- The protocol: leases, giving back, promotion, outlook, retention, heartbeats.
\ir setup.psql
select plan(51);

create function pg_temp.claimed(p_count integer)
returns table (ids bigint[], attempts integer[])
language plpgsql as $$
begin
    delete from steadytext_queue;
    insert into steadytext_queue (request_type, prompt)
    select 'generate', 'prompt ' || i from generate_series(1, p_count) as i;
    return query
    select array_agg(c.id order by c.id), array_agg(c.attempt order by c.id)
    from steadytext.claim_requests('local:a', p_count, 60, null, false) as c;
end
$$;
create temporary table c (ids bigint[], attempts integer[]);

-- extend_leases
insert into c select * from pg_temp.claimed(3);
create temporary table leases as select id, lease_expires_at, ctid as place from steadytext_queue;
select is_empty($$ select e.* from c cross join steadytext.extend_leases('local:a', ids, attempts, 60) as e $$, 'extend: all are held');
select results_eq(
    $$ select lease_expires_at, ctid from steadytext_queue order by id $$, $$ select lease_expires_at, place from leases order by id $$,
    'extend: fresh leases are not written');
update steadytext_queue set lease_expires_at = clock_timestamp() + interval '29 seconds' where prompt = 'prompt 2';
select is_empty($$ select e.* from c cross join steadytext.extend_leases('local:a', ids, attempts, 60) as e $$, 'extend: still held');
select ok(
    (select lease_expires_at > clock_timestamp() + interval '50 seconds' from steadytext_queue where prompt = 'prompt 2'),
    'extend: a lease with less than half left is');
update steadytext_queue set status = 'cancelled' where prompt = 'prompt 1';
update steadytext_queue set attempt = 2 where prompt = 'prompt 3';
select results_eq(
    $$ select q.prompt, e.reason from c cross join steadytext.extend_leases('local:a', ids, attempts, 60) as e
       join steadytext_queue as q using (id) order by id $$,
    $$ values ('prompt 1', 'cancelled'), ('prompt 3', 'lost') $$, 'extend: what is no longer held, and why');
select results_eq(
    $$ select e.attempt, e.reason from (select id from steadytext_queue where prompt = 'prompt 3') as q
       cross join steadytext.extend_leases('local:a', array[q.id, q.id], array[1, 2], 60) as e $$,
    $$ values (1, 'lost') $$, 'extend: a later attempt of the same row goes on');
select results_eq(
    $$ select e.reason from c cross join steadytext.extend_leases('local:b', ids[2:2], attempts[2:2], 60) as e $$,
    $$ values ('lost') $$, 'extend: another worker holds nothing');
select results_eq(
    $$ select e.reason from steadytext.extend_leases('local:a', '{-1}', '{1}', 60) as e $$, $$ values ('lost') $$,
    'extend: a row that is not there');
select is_empty($$ select * from steadytext.extend_leases('local:a', '{}', '{}', 60) $$, 'extend: nothing');
update steadytext_queue set status = 'pending' where prompt = 'prompt 1';
select results_eq(
    $$ select e.reason from c cross join steadytext.extend_leases('local:a', ids[1:1], attempts[1:1], 60) as e $$,
    $$ values ('lost') $$, 'extend: put back after the cancel is lost as well');

-- release_requests
truncate c; insert into c select * from pg_temp.claimed(3);
update steadytext_queue set status = 'cancelled' where prompt = 'prompt 1';
select is_empty($$ select steadytext.release_requests('local:a', ids, attempts) from c $$, 'release: all that are held');
select results_eq(
    $$ select status, retry_count, attempt, run_after, worker, started_at, lease_expires_at, alone from steadytext_queue order by id offset 1 $$,
    $$ values ('pending', 0, 1, null::timestamptz, null::text, null::timestamptz, null::timestamptz, false),
        ('pending', 0, 1, null, null, null, null, false) $$,
    'release: pending again, at once and uncounted');
select is_empty($$ select steadytext.release_requests('local:a', ids, attempts) from c $$, 'release: not twice');
select is((select count(*) from steadytext.claim_requests('local:b', 10, 60, null, false)), 2::bigint, 'release: others claim them');
select is_empty($$ select steadytext.release_requests('local:a', ids, attempts) from c $$, 'release: not what others hold now');
select is_empty($$ select steadytext.release_requests('local:a', '{}', '{}') $$, 'release: nothing');
truncate c; insert into c select id_array.* from (
    select array_agg(id order by id) as ids, array_agg(attempt order by id) as attempts
    from steadytext_queue where worker = 'local:b' and status = 'processing') as id_array;
select is_empty($$ select steadytext.release_requests('local:b', ids, attempts, true) from c $$, 'release: as suspects');
select results_eq(
    $$ select status, retry_count, alone from steadytext_queue order by id offset 1 $$,
    $$ values ('pending', 0, true), ('pending', 0, true) $$,
    'release: suspects are tried one at a time, and have lost no try');
select is((select count(*) from steadytext.claim_requests('local:b', 10, 60, null, false)), 0::bigint, 'release: suspects are not claimed together');
select is((select count(*) from steadytext.claim_requests('local:b', 10, 60, null, true)), 1::bigint, 'release: one of them is claimed alone');

-- promote_requests and queue_outlook
delete from steadytext_queue;
insert into steadytext_queue (request_type, prompt, run_after)
select 'generate', 'later ' || i, now() + (i - 3) * interval '1 hour' from generate_series(1, 5) as i;
select is((select pending from steadytext.queue_outlook()), 5::bigint, 'outlook: retries count as pending');
select is((select pending from steadytext.queue_outlook(3)), 3::bigint, 'outlook: counted up to the limit');
select is((select alone_due from steadytext.queue_outlook()), false, 'outlook: nobody alone');
select is(steadytext.promote_requests(1), 1, 'promote: up to the limit');
select is(steadytext.promote_requests(), 2, 'promote: the rest that is due');
select is(steadytext.promote_requests(), 0, 'promote: no more');
select is((select count(*) from steadytext_queue where run_after is null), 3::bigint, 'promote: three are ready');
update steadytext_queue set alone = true, run_after = now() + interval '1 hour' where prompt = 'later 1';
select is((select alone_due from steadytext.queue_outlook()), false, 'outlook: a lone retry is not due yet');
update steadytext_queue set run_after = null where prompt = 'later 1';
select is((select alone_due from steadytext.queue_outlook()), true, 'outlook: now it is');
update steadytext_queue set status = 'processing' where prompt = 'later 2';
select is((select pending from steadytext.queue_outlook()), 4::bigint, 'outlook: what runs is not pending');
delete from steadytext_queue;
select results_eq('select * from steadytext.queue_outlook()', 'values (0::bigint, false, null::float8, false)', 'outlook: an empty queue');

-- expire_requests
insert into steadytext_queue (request_type, prompt, status, created_at, completed_at)
select 'generate', s || ' ' || a, s, now() - a * interval '1 day', case when s in ('completed', 'failed', 'cancelled') then now() - a * interval '1 day' end
from unnest(array[30, 1]) as a cross join unnest(array['completed', 'failed', 'cancelled', 'pending', 'processing']) as s;
create temporary table e (last_id bigint, deleted integer);
insert into e select * from steadytext.expire_requests(0, 3);
select is((select deleted from e), 3, 'expire: old finished requests');
select is((select last_id from e), (select min(id) - 1 from steadytext_queue), 'expire: where to go on');
select results_eq(
    $$ select deleted, last_id is null from steadytext.expire_requests((select last_id from e), 3) $$, $$ values (0, false) $$,
    'expire: old requests that have not ended stay');
select results_eq(
    $$ select deleted, last_id is null from steadytext.expire_requests((select min(id) from steadytext_queue where created_at > now() - interval '2 days'), 2) $$,
    $$ values (0, true) $$, 'expire: a batch of young requests is the end');
select results_eq(
    $$ select deleted, last_id is null from steadytext.expire_requests((select max(id) from steadytext_queue), 3) $$, $$ values (0, true) $$,
    'expire: after the last row comes the end');
select results_eq(
    $$ select prompt from steadytext_queue order by prompt $$,
    $$ values ('cancelled 1'), ('completed 1'), ('failed 1'), ('pending 1'), ('pending 30'), ('processing 1'), ('processing 30') $$,
    'expire: what is left');
select results_eq($$ select * from steadytext.expire_requests(null, 100) $$, $$ values (null::bigint, 0) $$, 'expire: NULL begins at the beginning');
select steadytext_config_set('queue_retention_hours', '1');
select results_eq($$ select * from steadytext.expire_requests(0, 100) $$, $$ values (null::bigint, 3) $$, 'expire: the age is a setting');
insert into steadytext_queue (request_type, prompt, status, created_at, completed_at)
values ('generate', 'long ago', 'completed', now() - interval '10 years', now() - interval '10 years');
select steadytext_config_set('queue_retention_hours', '0');
select results_eq($$ select * from steadytext.expire_requests(0, 100) $$, $$ values (null::bigint, 0) $$, 'expire: 0 keeps them for ever');
select is((select count(*) from steadytext_queue where prompt = 'long ago'), 1::bigint, 'expire: even this one');
select steadytext_config_set('queue_retention_hours', '24');
update steadytext_queue set completed_at = now() where prompt = 'long ago';
select is((select deleted from steadytext.expire_requests(0, 100)), 0, 'expire: goes by the end, not by the beginning');
-- A queue whose rows are all old: step by step to the end.
delete from steadytext_queue;
insert into steadytext_queue (request_type, prompt, status, created_at, completed_at)
select 'generate', 'x', 'completed', now() - interval '1 year', now() - interval '1 year' from generate_series(1, 250);
create function pg_temp.expire_all() returns integer[] language plpgsql as $$
declare
    v_after bigint := 0;
    v_step record;
    v_deleted integer[] := '{}';
begin
    while v_after is not null loop
        select * into v_step from steadytext.expire_requests(v_after, 100);
        v_after := v_step.last_id;
        v_deleted := v_deleted || v_step.deleted;
    end loop;
    return v_deleted;
end
$$;
select is(pg_temp.expire_all(), array[100, 100, 50], 'expire: step by step');
select is((select count(*) from steadytext_queue), 0::bigint, 'expire: all gone');

-- record_heartbeat
select steadytext.record_heartbeat('local:1', 'this server', 'idle', '2.0.0', '[]', 10, 0, 0, 0, null);
select results_eq(
    $$ select endpoint, status, version, models_loaded, memory_usage_mb, active_connections, total_requests, error_count, avg_response_time_ms
       from steadytext_daemon_health where daemon_id = 'local:1' $$,
    $$ values ('this server', 'idle', '2.0.0', '{}'::text[], 10, 0, 0::bigint, 0::bigint, null::float8) $$, 'heartbeat: the first');
select steadytext.record_heartbeat('local:1', 'this server', 'running', '2.0.0', '["small"]', 700, 4, 9, 1, 20.5);
select results_eq(
    $$ select status, models_loaded, memory_usage_mb, active_connections, total_requests, error_count, avg_response_time_ms
       from steadytext_daemon_health where daemon_id = 'local:1' $$,
    $$ values ('running', array['small'], 700, 4, 9::bigint, 1::bigint, 20.5::float8) $$, 'heartbeat: the next');
select steadytext.record_heartbeat('gpu-1', 'gpu-box', 'idle', '2.0.0', null, null, null, null, null, null);
select is((select models_loaded from steadytext_daemon_health where daemon_id = 'gpu-1'), '{}', 'heartbeat: without models');
select steadytext.record_heartbeat('local:2', 'this server', 'idle', '2.0.0', '[]', 10, 0, 0, 0, null);
select set_eq(
    $$ select daemon_id from steadytext_daemon_health where daemon_id in ('local:1', 'local:2', 'gpu-1') $$, array['local:2', 'gpu-1'],
    'heartbeat: a new worker takes the place of the old one at its endpoint');

-- An old attempt cannot release or extend what has been claimed since.
truncate c; insert into c select * from pg_temp.claimed(1);
select is_empty($$ select steadytext.release_requests('local:a', ids, attempts) from c $$, 'given back');
select is((select count(*) from steadytext.claim_requests('local:a', 10, 60, null, false)), 1::bigint, 'and claimed again by the same worker');
select is_empty($$ select steadytext.release_requests('local:a', ids, attempts) from c $$, 'the old attempt releases nothing');

select * from finish();
rollback;
