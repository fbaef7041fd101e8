-- The protocol: what a dead worker leaves behind.
\ir setup.psql
select plan(40);

create function pg_temp.in_flight(p_worker text, p_count integer)
returns void language plpgsql as $$
begin
    insert into steadytext_queue (request_type, prompt, max_retries)
    select 'generate', p_worker || ' ' || i, 2 from generate_series(1, p_count) as i;
    perform steadytext.claim_requests(p_worker, p_count, 60, null, false);
end
$$;
create function pg_temp.state(p_prompt text)
returns text language sql as $$
    select format('%s alone=%s retries=%s attempt=%s deferred=%s code=%s',
        status, alone, retry_count, attempt, run_after is not null, coalesce(error_code, '-'))
    from steadytext_queue where prompt = p_prompt
$$;

-- Workers that count as dead.
select is(steadytext.rescue_requests('{}'), 0, 'nothing in flight, nothing to rescue');
select pg_temp.in_flight('local:a', 2);
select is(steadytext.rescue_requests(array['local:a']), 0, 'a local worker that lives keeps its requests');
select is(steadytext.rescue_requests(null), 0, 'without a list local requests are left alone');
select is(steadytext.rescue_requests(array['local:b', 'local:a']), 0, 'as long as it is in the list');
update steadytext_queue set lease_expires_at = now() - interval '1 hour';
select is(steadytext.rescue_requests(array['local:a']), 0, 'whatever its lease says');
select is(steadytext.rescue_requests(array['local:b']), 2, 'a local worker that is not in the list is dead');
select is(pg_temp.state('local:a 1'), 'pending alone=t retries=0 attempt=1 deferred=f code=-', 'two in flight: nobody is blamed, each runs alone next');
select is(pg_temp.state('local:a 2'), 'pending alone=t retries=0 attempt=1 deferred=f code=-', 'both of them');
select is(steadytext.rescue_requests(array['local:b']), 0, 'rescued once');
select is((select alone_due from steadytext.queue_outlook()), true, 'queue_outlook: somebody must run alone');
select is((select pending from steadytext.queue_outlook()), 2::bigint, 'queue_outlook: both wait');
delete from steadytext_queue;
select pg_temp.in_flight('local:a', 2);
select is(steadytext.rescue_requests('{}'), 2, 'an empty list: no local worker lives');
delete from steadytext_queue;

-- Workers elsewhere go by their lease.
select pg_temp.in_flight('gpu-box', 2);
select is(steadytext.rescue_requests('{}'), 0, 'a worker elsewhere is not in the list, and lives by its lease');
update steadytext_queue set lease_expires_at = now() - interval '1 second' where prompt = 'gpu-box 1';
select is(steadytext.rescue_requests('{}'), 1, 'until the lease is over');
select is(pg_temp.state('gpu-box 1'), 'pending alone=t retries=0 attempt=1 deferred=f code=-', 'a worker elsewhere: its request runs alone');
select is(pg_temp.state('gpu-box 2'), 'processing alone=f retries=0 attempt=1 deferred=f code=-', 'a lease that holds');
update steadytext_queue set lease_expires_at = now() - interval '1 second' where prompt = 'gpu-box 2';
select is(steadytext.rescue_requests(null), 1, 'without a list leases count all the same');
delete from steadytext_queue;

-- Exactly one in flight: it is counted.
select pg_temp.in_flight('local:a', 1);
select is(steadytext.rescue_requests('{}'), 1, 'one in flight');
select is(pg_temp.state('local:a 1'), 'pending alone=t retries=1 attempt=1 deferred=t code=58000', 'one in flight: counted, waits, runs alone');
select ok(
    (select run_after - clock_timestamp() between interval '0.4 seconds' and interval '1 second' from steadytext_queue),
    'after the usual backoff');
select alike((select error from steadytext_queue), '%worker died%', 'and says why');
-- A second and a third time, now alone.
update steadytext_queue set run_after = now() - interval '1 second';
select is(steadytext.promote_requests(), 1, 'promoted when due');
select is((select count(*) from steadytext.claim_requests('local:b', 10, 60, null, false)), 0::bigint, 'not claimed beside others');
select is((select count(*) from steadytext.claim_requests('local:b', 10, 60, null, true)), 1::bigint, 'claimed alone');
select is(steadytext.rescue_requests('{}'), 1, 'its worker dies again');
select is(pg_temp.state('local:a 1'), 'pending alone=t retries=2 attempt=2 deferred=t code=58000', 'counted again');
update steadytext_queue set run_after = null;
select is((select count(*) from steadytext.claim_requests('local:c', 10, 60, null, true)), 1::bigint, 'the last try');
select is(steadytext.rescue_requests('{}'), 1, 'its worker dies again');
select is(pg_temp.state('local:a 1'), 'failed alone=t retries=2 attempt=3 deferred=f code=58000', 'after max_retries it has failed');
select ok((select error like '%worker died%3 attempts%' and completed_at is not null from steadytext_queue), 'with message and time');
delete from steadytext_queue;

-- The poison one among others: only it uses up its retries.
select pg_temp.in_flight('local:a', 3);
select is(steadytext.rescue_requests('{}'), 3, 'three in flight');
select is((select prompt from steadytext.claim_requests('local:b', 10, 60, null, true)), 'local:a 1', 'one at a time');
select results_eq(
    $$ select o.outcome from steadytext_queue as q
       cross join lateral steadytext.complete_requests('local:b', array[q.id], array[q.attempt], '{fine}', null, null) as o
       where q.status = 'processing' $$,
    $$ values ('done') $$, 'the innocent one completes');
select is((select prompt from steadytext.claim_requests('local:b', 10, 60, null, true)), 'local:a 2', 'the next');
select is(steadytext.rescue_requests('{}'), 1, 'kills its worker again');
select is(pg_temp.state('local:a 2'), 'pending alone=t retries=1 attempt=2 deferred=t code=58000', 'and is counted');
select is(pg_temp.state('local:a 3'), 'pending alone=t retries=0 attempt=1 deferred=f code=-', 'the third has nothing to fear');
delete from steadytext_queue;

-- Batches: a rescue that takes several calls blames nobody at its end.
select pg_temp.in_flight('local:a', 5);
select is(array[steadytext.rescue_requests('{}', 2), steadytext.rescue_requests('{}', 2), steadytext.rescue_requests('{}', 2)], array[2, 2, 1], 'in batches');
select is((select count(*) from steadytext_queue where alone and retry_count = 0 and run_after is null and status = 'pending'), 5::bigint, 'the last one is not taken for the only one');
-- A rescued request of a worker that is thought dead and is not.
select results_eq(
    $$ select distinct o.outcome from (select array_agg(id) as ids, array_agg(attempt) as attempts from steadytext_queue) as q
       cross join lateral steadytext.complete_requests('local:a', q.ids, q.attempts, array_fill('late'::text, array[5]), null, null) as o $$,
    $$ values ('lost') $$, 'what was rescued cannot be completed by the worker that lost it');

select * from finish();
rollback;
