-- The protocol: completing and failing, with fencing, retries and backoff.
\ir setup.psql
select plan(46);

create function pg_temp.claimed(p_count integer default 1, p_max_retries integer default 3)
returns table (ids bigint[], attempts integer[])
language plpgsql as $$
begin
    delete from steadytext_queue;
    insert into steadytext_queue (request_type, prompt, max_retries)
    select 'generate', 'prompt ' || i, p_max_retries from generate_series(1, p_count) as i;
    return query
    select array_agg(c.id order by c.id), array_agg(c.attempt order by c.id)
    from steadytext.claim_requests('local:a', p_count, 60, null, false) as c;
end
$$;
create temporary table c (ids bigint[], attempts integer[]);
create temporary table o (id bigint, outcome text);

-- Completing.
insert into c select * from pg_temp.claimed(3);
insert into o select o.* from c cross join steadytext.complete_requests(
    'local:a', ids, attempts, array['text', null, null], '{0.5,0.5,1,2,3}'::real[], array[0, 2, 3]) as o;
select results_eq($$ select outcome from o order by id $$, $$ values ('done'), ('done'), ('done') $$, 'complete: done');
select results_eq(
    $$ select status, result, embedding::text, worker, attempt, error, lease_expires_at from steadytext_queue order by id $$,
    $$ values ('completed', 'text', null::text, 'local:a', 1, null::text, null::timestamptz),
        ('completed', null, '[0.5,0.5]', 'local:a', 1, null, null), ('completed', null, '[1,2,3]', 'local:a', 1, null, null) $$,
    'complete: texts and vectors of any dimension'
);
select ok(
    bool_and(completed_at >= started_at and processing_time_ms = round(extract(epoch from completed_at - started_at) * 1000)),
    'complete: times') from steadytext_queue;

-- Every kind of stale writer.
truncate o;
insert into o select o.* from c cross join steadytext.complete_requests('local:a', ids, attempts, array['again', 'again', 'again'], null, null) as o;
select results_eq($$ select distinct outcome from o $$, $$ values ('lost') $$, 'complete: not twice');
select is((select result from steadytext_queue order by id limit 1), 'text', 'complete: the first answer stays');
truncate c; insert into c select * from pg_temp.claimed(1);
select results_eq(
    $$ select o.outcome from c cross join steadytext.complete_requests('local:b', ids, attempts, '{x}', null, null) as o $$,
    $$ values ('lost') $$, 'complete: another worker');
select results_eq(
    $$ select o.outcome from c cross join steadytext.complete_requests('local:a', ids, '{0}', '{x}', null, null) as o $$,
    $$ values ('lost') $$, 'complete: an earlier attempt');
select results_eq(
    $$ select o.outcome from c cross join steadytext.complete_requests('local:a', ids, '{2}', '{x}', null, null) as o $$,
    $$ values ('lost') $$, 'complete: a later attempt');
select results_eq(
    $$ select o.outcome from steadytext.complete_requests('local:a', '{-1}', '{1}', '{x}', null, null) as o $$,
    $$ values ('lost') $$, 'complete: a row that is not there');
select is((select status from steadytext_queue), 'processing', 'complete: none of them wrote anything');
update steadytext_queue set status = 'cancelled';
select results_eq(
    $$ select o.outcome from c cross join steadytext.complete_requests('local:a', ids, attempts, '{x}', null, null) as o $$,
    $$ values ('lost') $$, 'complete: a cancelled request');
select is((select status from steadytext_queue), 'cancelled', 'complete: stays cancelled');
update steadytext_queue set status = 'pending';
select results_eq(
    $$ select o.outcome from c cross join steadytext.complete_requests('local:a', ids, attempts, '{x}', null, null) as o $$,
    $$ values ('lost') $$, 'complete: a request that was put back');
select is_empty($$ select * from steadytext.complete_requests('local:a', '{}', '{}', '{}', '{}', '{}') $$, 'complete: nothing');

-- Mixed batches: the good ones are written.
truncate c; insert into c select * from pg_temp.claimed(3);
update steadytext_queue set status = 'cancelled' where prompt = 'prompt 2';
truncate o;
insert into o select o.* from c cross join steadytext.complete_requests('local:a', ids, attempts, '{x,y,z}', '{}', '{0,0,0}') as o;
select results_eq($$ select outcome from o order by id $$, $$ values ('done'), ('lost'), ('done') $$, 'complete: a mixed batch');
select results_eq($$ select result from steadytext_queue order by id $$, $$ values ('x'), (null::text), ('z') $$, 'complete: each its own answer');
-- Ids in another order than the rows.
truncate c; insert into c select * from pg_temp.claimed(3);
select lives_ok($$
    select steadytext.complete_requests('local:a', array[ids[3], ids[1], ids[2]], attempts,
        array[null, 'first', null], '{3,3,3,2}'::real[], '{3,0,1}') from c
$$, 'complete: in any order');
select results_eq(
    $$ select result, embedding::text from steadytext_queue order by id $$,
    $$ values ('first', null::text), (null, '[2]'), (null, '[3,3,3]') $$, 'complete: each its own, again');

-- A thousand vectors: slices of one long array.
truncate c; insert into c select * from pg_temp.claimed(1000);
select lives_ok($$
    select steadytext.complete_requests('local:a', ids, attempts, array_fill(null::text, array[1000]),
        array(select (i % 1000)::real from generate_series(0, 63999) as i), array_fill(64, array[1000])) from c
$$, 'complete: a thousand vectors');
select is(
    (select embedding::text from steadytext_queue order by id offset 999),
    (select '[' || string_agg((i % 1000)::text, ',' order by i) || ']' from generate_series(999 * 64, 999 * 64 + 63) as i),
    'complete: the last of them is right');

-- Requests of many parts among others: lists of texts, lists of vectors.
truncate c; insert into c select * from pg_temp.claimed(5);
select lives_ok($$
    select steadytext.complete_requests('local:a', ids, attempts, '{one,ranked,null,null,null}',
        '{1,2,3,4,5,6,7,8}', '{0,0,2,2,0}', '{null,null,3,null,null}', '{a,b,c}', '{null,2,null,null,1}') from c
$$, 'complete: lists');
select results_eq(
    $$ select result, results, embedding::text, embeddings::text[] from steadytext_queue order by id $$,
    $$ values
        ('one', null::text[], null::text, null::text[]),
        ('ranked', '{a,b}', null, null),
        (null, null, null, '{"[1,2]","[3,4]","[5,6]"}'),
        (null, null, '[7,8]', null),
        (null, '{c}', null, null) $$, 'complete: lists go to their requests');

-- Failing without retry.
truncate c; insert into c select * from pg_temp.claimed(1);
select results_eq(
    $$ select o.outcome from c cross join steadytext.fail_requests('local:a', ids, attempts, '{no such model}', '{42704}', '{f}') as o $$,
    $$ values ('done') $$, 'fail: done');
select results_eq(
    $$ select status, error, error_code, retry_count, completed_at is not null, run_after, processing_time_ms is not null, lease_expires_at from steadytext_queue $$,
    $$ values ('failed', 'no such model', '42704', 0, true, null::timestamptz, true, null::timestamptz) $$, 'fail: what is left');
select results_eq(
    $$ select o.outcome from c cross join steadytext.fail_requests('local:a', ids, attempts, '{x}', '{XX000}', '{t}') as o $$,
    $$ values ('lost') $$, 'fail: not twice');

-- Failing with retries.
truncate c; insert into c select * from pg_temp.claimed(1, 2);
select results_eq(
    $$ select o.outcome from c cross join steadytext.fail_requests('local:a', ids, attempts, '{disk full}', '{53100}', '{t}') as o $$,
    $$ values ('retried') $$, 'fail: retried');
select results_eq(
    $$ select status, error, error_code, retry_count, completed_at, worker, attempt from steadytext_queue $$,
    $$ values ('pending', 'disk full', '53100', 1, null::timestamptz, null::text, 1) $$, 'retry: pending again, with its error');
select ok(
    (select run_after - clock_timestamp() between interval '0.4 seconds' and interval '1 second' from steadytext_queue),
    'retry: after 0.5 to 1 second the first time');
select is_empty($$ select * from steadytext.claim_requests('local:a', 10, 60, null, false) $$, 'retry: not at once');
select is(steadytext.promote_requests(10), 0, 'promote: not before its time');
update steadytext_queue set run_after = clock_timestamp();
select is(steadytext.promote_requests(10), 1, 'promote: when due');
select is((select run_after from steadytext_queue), null, 'promote: ready to be claimed');
select results_eq(
    $$ select attempt, retry_count from steadytext.claim_requests('local:a', 10, 60, null, false) $$,
    $$ values (2, 1) $$, 'retry: the second attempt');
select is((select error from steadytext_queue), null, 'retry: its error has gone');
select results_eq(
    $$ select o.outcome from c cross join steadytext.fail_requests('local:a', ids, '{1}', '{late}', '{XX000}', '{f}') as o $$,
    $$ values ('lost') $$, 'fail: the first attempt has no say any more');
select results_eq(
    $$ select o.outcome from c cross join steadytext.fail_requests('local:a', ids, '{2}', '{disk full}', '{53100}', '{t}') as o $$,
    $$ values ('retried') $$, 'fail: the second retry');
select ok(
    (select run_after - clock_timestamp() between interval '0.9 seconds' and interval '2 seconds' from steadytext_queue),
    'retry: after 1 to 2 seconds the second time');
update steadytext_queue set run_after = null;
select is((select count(*) from steadytext.claim_requests('local:a', 10, 60, null, false)), 1::bigint, 'retry: the third attempt');
select results_eq(
    $$ select o.outcome from c cross join steadytext.fail_requests('local:a', ids, '{3}', '{disk full}', '{53100}', '{t}') as o $$,
    $$ values ('done') $$, 'fail: after max_retries it is over');
select results_eq(
    $$ select status, retry_count, attempt from steadytext_queue $$, $$ values ('failed', 2, 3) $$, 'fail: for good');

-- A user puts it back.
update steadytext_queue set status = 'pending', retry_count = 0 where status = 'failed';
select results_eq(
    $$ select attempt, retry_count from steadytext.claim_requests('local:a', 10, 60, null, false) $$,
    $$ values (4, 0) $$, 'a failed request that was put back is claimed again, and its attempts go on counting');

-- Backoff.
select ok(
    (select bool_and(b between interval '0.5 seconds' and interval '1 second') from (select steadytext.backoff(0) as b from generate_series(1, 100)) as x),
    'backoff: 1 second times 0.5 to 1');
select ok(
    (select bool_and(b between interval '150 seconds' and interval '300 seconds') from (select steadytext.backoff(100) as b from generate_series(1, 100)) as x),
    'backoff: 5 minutes at most');
select ok((select count(distinct steadytext.backoff(3)) > 1 from generate_series(1, 10)), 'backoff: at random');

-- Mixed outcomes in one call.
truncate c; insert into c select * from pg_temp.claimed(3);
truncate o;
insert into o select o.* from c cross join steadytext.fail_requests(
    'local:a', ids, array[1, 7, 1], '{one,two,three}', '{XX000,XX000,54000}', '{t,t,f}') as o;
select results_eq($$ select outcome from o order by id $$, $$ values ('retried'), ('lost'), ('done') $$, 'fail: a mixed batch');
select results_eq(
    $$ select status, error from steadytext_queue order by id $$,
    $$ values ('pending', 'one'), ('processing', null), ('failed', 'three') $$, 'fail: each its own error');

select * from finish();
rollback;
