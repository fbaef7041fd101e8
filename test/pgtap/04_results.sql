-- Looking at requests, waiting for them, cancelling them.
\ir setup.psql
select plan(53);

create temporary table r as
    select steadytext_generate_async('hello') as generated, steadytext_embed_async('text') as embedded,
        steadytext_generate_async('never') as waiting;
create function pg_temp.finish_request(p_id uuid, p_result text, p_embedding real[])
returns void language sql as $$
    update steadytext_queue
    set status = 'completed', result = p_result, embedding = p_embedding, attempt = 1, worker = 'local:x',
        started_at = now(), completed_at = now() + interval '25 milliseconds', processing_time_ms = 25
    where request_id = p_id
$$;
select pg_temp.finish_request(generated, 'Hello, world', null), pg_temp.finish_request(embedded, null, '{0.6,0.8}') from r;

-- check_async
select results_eq(
    $$ select c.status, c.result, c.embedding is null, c.error, c.processing_time_ms, c.request_type, c.retry_count, c.error_code
       from r cross join steadytext_check_async(r.generated) as c $$,
    $$ values ('completed', 'Hello, world', true, null::text, 25, 'generate', 0, null::text) $$,
    'check_async: a text'
);
select results_eq(
    $$ select c.status, c.result, c.embedding::text from r cross join steadytext_check_async(r.embedded) as c $$,
    $$ values ('completed', null::text, '[0.6,0.8]') $$,
    'check_async: a vector'
);
select results_eq(
    $$ select c.status, c.completed_at, c.started_at, c.created_at = now() from r cross join steadytext_check_async(r.waiting) as c $$,
    $$ values ('pending', null::timestamptz, null::timestamptz, true) $$,
    'check_async: a request that waits'
);
select is((select count(*) from r cross join st_check_async(r.generated) as c), 1::bigint, 'st_check_async');
select throws_ok(
    $$ select * from steadytext_check_async('01890000-0000-7000-8000-000000000000') $$,
    'P0001', 'Request ID 01890000-0000-7000-8000-000000000000 not found', 'check_async: unknown id');
select throws_ok(
    $$ select * from steadytext_check_async(null) $$, 'P0001', 'Request ID <NULL> not found', 'check_async: NULL');
select is(
    (select array_agg(a.attname::text order by a.ord)
     from (select unnest(proargnames[2:]) as attname, generate_series(1, cardinality(proargnames) - 1) as ord
           from pg_proc where oid = 'steadytext_check_async(uuid)'::regprocedure) as a),
    array['status', 'result', 'results', 'embedding', 'embeddings', 'error', 'created_at', 'completed_at',
        'processing_time_ms', 'request_type', 'started_at', 'retry_count', 'error_code', 'prompt_tokens', 'cached_tokens',
        'generated_tokens', 'finish_reason', 'first_token_ms'],
    'check_async: the columns in their order');

-- check_async_batch
select results_eq(
    $$ select c.request_id = r.waiting, c.request_id = r.generated, c.status, c.result
       from r cross join steadytext_check_async_batch(array[r.waiting, '01890000-0000-7000-8000-000000000000', r.generated]) as c $$,
    $$ values (true, false, 'pending', null::text), (false, true, 'completed', 'Hello, world') $$,
    'check_async_batch: in the order of the ids, without those that are not there'
);
select results_eq(
    $$ select c.request_id = r.generated from r cross join steadytext_check_async_batch(array[r.generated, r.waiting]) as c $$,
    $$ values (true), (false) $$, 'check_async_batch: the other order');
select is_empty($$ select * from steadytext_check_async_batch('{}') $$, 'check_async_batch: no ids');
select is_empty($$ select * from steadytext_check_async_batch(null) $$, 'check_async_batch: NULL');
select is((select count(*) from r cross join st_check_async_batch(array[r.generated, r.embedded]) as c), 2::bigint, 'st_check_async_batch');

-- get_async_result
select is((select steadytext_get_async_result(generated) from r), 'Hello, world', 'get_async_result: a text');
select is((select steadytext_get_async_result(embedded, 1) from r), '[0.6,0.8]', 'get_async_result: a vector as text');
select is((select st_get_async_result(generated) from r), 'Hello, world', 'st_get_async_result');
select is((select steadytext_get_async_embedding(embedded)::text from r), '[0.6,0.8]', 'get_async_embedding');
select is((select st_get_async_embedding(embedded, 1)::text from r), '[0.6,0.8]', 'st_get_async_embedding');
select throws_ok(
    $$ select steadytext_get_async_result('01890000-0000-7000-8000-000000000000', 0) $$,
    'P0001', 'Request ID 01890000-0000-7000-8000-000000000000 not found', 'get_async_result: unknown id');
select throws_ok(
    $$ select steadytext_get_async_result(waiting, 1) from r $$, '55000', null,
    'get_async_result: a request of the own open transaction is an error at once');
select throws_ok(
    $$ select steadytext_get_async_embedding(waiting, 1) from r $$, '55000', null,
    'get_async_embedding: likewise');
update steadytext_queue set status = 'failed', error = 'no such luck', error_code = '54000', completed_at = now()
where request_id = (select waiting from r);
select throws_ok(
    $$ select steadytext_get_async_result(waiting, 1) from r $$, null, 'Async request failed: no such luck',
    'get_async_result: a failed request');
select results_eq(
    $$ select c.status, c.error, c.error_code from r cross join steadytext_check_async(r.waiting) as c $$,
    $$ values ('failed', 'no such luck', '54000') $$,
    'check_async: a failed request shows message and SQLSTATE'
);

-- cancel_async
create temporary table c as select steadytext_generate_async('to be cancelled') as waiting, steadytext_generate_async('running') as running;
update steadytext_queue set status = 'processing', worker = 'local:x', attempt = 1, started_at = now(), lease_expires_at = now() + interval '1 minute'
where request_id = (select running from c);
select is((select steadytext_cancel_async(waiting) from c), true, 'cancel_async: a waiting request');
select results_eq(
    $$ select q.status, q.error, q.error_code, q.completed_at is not null from c cross join steadytext_check_async(c.waiting) as q $$,
    $$ values ('cancelled', 'Request was cancelled', '57014', true) $$,
    'cancel_async: what is left'
);
select is((select steadytext_cancel_async(waiting) from c), false, 'cancel_async: not twice');
select is((select st_cancel_async(running) from c), true, 'st_cancel_async: a running request');
select is((select steadytext_cancel_async(generated) from r), false, 'cancel_async: a completed request stays');
select is(steadytext_cancel_async('01890000-0000-7000-8000-000000000000'), false, 'cancel_async: unknown id');
select is(steadytext_cancel_async(null), false, 'cancel_async: NULL');
select throws_ok(
    $$ select steadytext_get_async_result(waiting, 1) from c $$, null, null,
    'get_async_result: a cancelled request raises');

-- Many at once.
create temporary table many as
    select array[steadytext_generate_async('one'), steadytext_generate_async('two'), steadytext_generate_async('three')] as ids;
select is(
    (select steadytext_cancel_async_batch(ids || array['01890000-0000-7000-8000-000000000000'::uuid, null] || ids[1]) from many), 3::bigint,
    'cancel_async_batch: how many it cancelled, each once, and no others');
select is((select array_agg(distinct q.status) from many, unnest(ids) as id, steadytext_check_async(id) as q), array['cancelled'], 'all of them');
select is((select st_cancel_async_batch(ids) from many), 0::bigint, 'st_cancel_async_batch: not twice');
select is(steadytext_cancel_async_batch('{}'::uuid[]), 0::bigint, 'cancel_async_batch: no ids');
select is(steadytext_cancel_async_batch(null::uuid[]), 0::bigint, 'cancel_async_batch: NULL');

-- A batch type.
create temporary table vectors as select new_id.request_id from steadytext.new_request_id() as new_id(request_id);
insert into steadytext_queue (request_id, request_type, prompts, status, embeddings, created_at)
select request_id, 'batch_embed', array['x', 'y'], 'completed', '{"[0.6,0.8]","[1,0]"}'::vector[], now() - interval '1 hour' from vectors;
select is((select steadytext_get_async_result(request_id) from vectors), '{"[0.6,0.8]","[1,0]"}', 'get_async_result: the vectors of a batch_embed as text');
select is((select steadytext_get_async_result(request_id)::vector[] from vectors), array['[0.6,0.8]', '[1,0]']::vector[], 'which can be read as such');

-- Waiting for several.
create temporary table three as select array_agg(steadytext_generate_async('wait ' || i)) as ids from generate_series(1, 3) as i;
select throws_like($$ select steadytext_wait(ids, timeout_seconds => 0) from three $$, '%has not been committed', 'wait: not for what this transaction enqueues');
select throws_ok($$ select steadytext_wait(array['01890000-0000-7000-8000-000000000000'::uuid]) $$, 'P0001',
    'Request ID 01890000-0000-7000-8000-000000000000 not found', 'wait: a request that is not there');
select throws_ok($$ select steadytext_wait(ids, 'some') from three $$, '22023', $$mode must be 'all' or 'any'$$, 'wait: all or any');
select throws_ok($$ select steadytext_wait(ids, 'all', -1) from three $$, '22023', 'timeout_seconds must not be negative', 'wait: no negative time');
select ok(steadytext_wait('{}'), 'wait: for nothing');
select ok(steadytext_wait(null) is null, 'wait: NULL');
do $$ begin perform steadytext_cancel_async(ids[2]) from three; end $$;
select ok(steadytext_wait(ids[2:2], 'all', 0), 'wait: one that has ended') from three;
select ok(steadytext_wait(ids[2:2] || array[null::uuid], 'any', 0), 'wait: NULL is no request') from three;
do $$ begin perform steadytext_cancel_async_batch(ids) from three; end $$;
select ok(st_wait(ids, 'all', 0), 'st_wait: all have ended') from three;
select ok(st_wait(ids || ids, 'any', 0), 'st_wait: any has') from three;

-- Somebody else's
create temporary table mine as select pg_temp.run_as('st_alice', $$ select steadytext_generate_async('alice asks') $$)::uuid as id;
select throws_ok(
    format('select pg_temp.run_as(''st_bob'', $q$ select status from steadytext_check_async(%L) $q$)', id), 'P0001', format('Request ID %s not found', id),
    'check_async does not see the requests of others') from mine;
select throws_ok(
    format('select pg_temp.run_as(''st_bob'', $q$ select steadytext_get_async_result(%L, 0) $q$)', id), 'P0001', format('Request ID %s not found', id),
    'get_async_result does not see the requests of others') from mine;
select is(
    pg_temp.run_as('st_bob', format('select steadytext_cancel_async(%L)', id)), 'false',
    'cancel_async does not reach the requests of others') from mine;
create temporary table both_ as
    select array[id, pg_temp.run_as('st_bob', $$ select steadytext_generate_async('bob asks') $$)::uuid] as ids from mine;
select is(
    pg_temp.run_as('st_bob', format('select steadytext_cancel_async_batch(%L::uuid[])', ids)), '1',
    'cancel_async_batch takes the own ones out of it') from both_;
select is((select array_agg(q.status order by n) from both_, unnest(ids) with ordinality as i(id, n), steadytext_check_async(id) as q),
    array['pending', 'cancelled'], 'and leaves the others');
select is(
    pg_temp.run_as('st_root', format('select steadytext_cancel_async_batch(%L::uuid[])', ids)), '1',
    'an administrator reaches all') from both_;

select * from finish();
rollback;
