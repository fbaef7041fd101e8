-- Batches: a request for each row of a query, how far they are, waiting and cancelling, answers by key.
\ir setup.psql
select plan(53);

create temporary table ticket (id integer primary key, place text, body text);
insert into ticket select i, 'shelf ' || i % 3, 'ticket ' || i from generate_series(1, 2500) as i;
grant select on ticket to st_alice;

-- The use of the query's columns.
create temporary table batch as
    select steadytext_enqueue_query('select id, place, body as prompt from ticket order by id desc', 'embed', name => 'tickets') as id;
select is((select count(*) from steadytext_queue as q join batch as b on q.batch = b.id), 2500::bigint, 'a request for each row, in several pieces');
select results_eq(
    $$ select q.request_type, q.prompt, q.batch_key, q.priority, q.status, q.params - 'batch' from steadytext_queue as q order by q.id limit 2 $$,
    $$ values ('embed', 'ticket 2500', '{"id": 2500, "place": "shelf 1"}'::jsonb, 3, 'pending', '{}'::jsonb),
        ('embed', 'ticket 2499', '{"id": 2499, "place": "shelf 0"}', 3, 'pending', '{}') $$,
    'in the order of the query: prompt is asked, the other columns are the key, the priority is low');
select results_eq(
    $$ select s.name, s.owner_role::text, s.request_type, s.total, s.pending, s.processing, s.done, s.failed, s.cancelled, s.expired, s.time_left, s.completed_at
        from steadytext_batches as s join batch as b on s.batch = b.id $$,
    $$ values ('tickets', current_user::text, 'embed', 2500::bigint, 2500::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, 0::bigint, null::interval, null::timestamptz) $$,
    'steadytext_batches: how far it is');
delete from steadytext_queue;

select lives_ok($$ select steadytext_enqueue_query(
    'select 7 as id, ''a'' as prompt, jsonb_build_object(''max_tokens'', 3) as params; ', 'generate', '{"max_tokens": 9, "seed": 5}', 8) $$,
    'params of a row');
select is((select params from steadytext_queue), '{"max_tokens": 3, "seed": 5}'::jsonb, 'take the place of those of the batch');
select is((select priority from steadytext_queue), 8, 'a priority');
delete from steadytext_queue;
select lives_ok($$ select steadytext_enqueue_query(
    'select array[''x'', ''y {"z"}''] as prompts, 18446744073709551617::numeric as big, ''q'' as prompt', 'rerank') $$, 'prompts are an array');
select results_eq($$ select prompt, prompts, batch_key::text from steadytext_queue $$,
    $$ values ('q', array['x', 'y {"z"}'], '{"big": 18446744073709551617}') $$, 'of texts as they are, and keys are exact');
delete from steadytext_queue;
create temporary table nothing as select steadytext_enqueue_query('select 1 as id, ''x'' as prompt where false') as id;
select is((select count(*) from steadytext_queue), 0::bigint, 'a query without rows');
select is((select row(s.total, s.pending, s.done, s.rate)::text from steadytext_batches as s join nothing as n on s.batch = n.id), '(0,0,0,)', 'is a batch all the same');
select is(steadytext_enqueue_query(null), null, 'NULL is no query');
select lives_ok($$ select steadytext_enqueue_query('select id, nullif(body, ''ticket 2'') as prompt from ticket where id < 4', 'embed') $$,
    'an empty text among those to embed fails alone, later');
delete from steadytext_queue;

-- Refusals. Nothing of a refused batch stays.
select throws_ok($$ select steadytext_enqueue_query('select id, nullif(body, ''ticket 2'') as prompt from ticket') $$, 'P0001', 'Prompt cannot be empty',
    'an empty prompt is an error of the statement');
select throws_ok($$ select steadytext_enqueue_query('select id, body from ticket') $$, '42703', null, 'no column says what is asked');
select throws_ok($$ select steadytext_enqueue_query('select 1 as id, 2 as id, ''x'' as prompt') $$, '42701', 'the query has two columns named "id"',
    'two columns of one name');
select throws_ok($$ select steadytext_enqueue_query('select ''x'' as prompt, 5 as params') $$, '22023', null, 'params that are no object');
select throws_ok($$ select steadytext_enqueue_query('select ''x'' as prompts', 'rerank') $$, '22023', null, 'prompts that are no array');
select throws_ok($$ select steadytext_enqueue_query('select ''x'' as prompt', params => '[]') $$, '22023', 'params must be a JSON object',
    'params of the batch that are no object');
select throws_ok($$ select steadytext_enqueue_query('select ''x'' as prompt where false', 'paint') $$, '22023', null, 'an unknown type');
select throws_ok($$ select steadytext_enqueue_query('select ''x'' as prompt', priority => 11) $$, '22023', null, 'a priority that there is not');
select throws_ok($$ select steadytext_enqueue_query('select ''x'' as prompt', name => repeat('n', 1025)) $$, '22023', null, 'a name that is too long');
select throws_ok($$ select steadytext_enqueue_query('select ''x'' as prompt; select ''y'' as prompt') $$, '42P11', null, 'two statements');
select throws_ok($$ select steadytext_enqueue_query('') $$, '42P11', null, 'no statement');
select throws_ok($$ select steadytext_enqueue_query('delete from ticket returning body as prompt') $$, '0A000', null, 'a statement that writes');
select throws_ok($$ select steadytext_enqueue_query('with w as (delete from ticket returning body) select body as prompt from w') $$, '0A000', null,
    'one that writes within');
select throws_ok($$ select steadytext_enqueue_query('select body as prompt from ticket for update') $$, '0A000', null, 'one that locks rows');
create function pg_temp.writes() returns text language sql volatile as
    $$ select steadytext_generate_async('by the way')::text $$;
select throws_ok($$ select steadytext_enqueue_query('select pg_temp.writes() as prompt') $$, '25006', null, 'a function that writes');
create function pg_temp.writes_and_hides_it() returns text language plpgsql volatile as
    $$ begin return steadytext_generate_async('by the way'); exception when others then return sqlstate; end $$;
select lives_ok($$ select steadytext_enqueue_query('select pg_temp.writes_and_hides_it() as prompt from generate_series(1, 2)') $$, 'a function that only tries to');
select results_eq($$ select prompt from steadytext_queue $$, $$ values ('25006'), ('25006') $$, 'has not, the second time neither');
select lives_ok($$ insert into ticket values (0, 'x', 'y') $$, 'and the transaction can write afterwards');
select is((select count(*) from steadytext_batch_heads as h where not exists (select from steadytext_queue as q where q.batch = h.batch) and h.total > 3
    and h.batch <> (select id from batch)), 0::bigint, 'no batch stays of a query that was refused');
delete from steadytext_queue;

-- Rights: the query's are its caller's, and so are the batch and its requests.
select throws_ok($$ select pg_temp.run_as('st_stranger', $q$ select steadytext_enqueue_query('select ''x'' as prompt') $q$) $$, '42501', null, 'who may not enqueue');
select throws_ok($$ select pg_temp.run_as('st_bob', $q$ select steadytext_enqueue_query('select body as prompt from ticket') $q$) $$, '42501', null,
    'who may not read the table');
create temporary table hers as select pg_temp.run_as('st_alice', $$ select steadytext_enqueue_query('select id, body as prompt from ticket where id in (1, 2, 3) order by id', 'if') $$)::uuid as id;
select is((select array_agg(distinct q.owner_role::text) from steadytext_queue as q), array['st_alice'], 'requests belong to who enqueued them');
select is(pg_temp.run_as('st_alice', 'select pending from steadytext_batches'), '3', 'alice sees her batch');
select is(pg_temp.run_as('st_bob', 'select count(*) from steadytext_batches'), '0', 'bob does not');
select is(pg_temp.run_as('st_root', 'select pending from steadytext_batches where owner_role = ''st_alice'''), '3', 'administrators do');
select is(pg_temp.run_as('st_bob', format('select count(*) from steadytext_batch_results(%L)', id)), '0', 'nor its answers') from hers;
select is(pg_temp.run_as('st_bob', format('select steadytext_cancel_batch(%L)', id)), '0', 'nor may he cancel it') from hers;
select throws_ok(format('select pg_temp.run_as(''st_bob'', %L)', format('select steadytext_wait(%L::uuid)', id)), 'P0001', format('Batch %s not found', id),
    'nor wait for it') from hers;
select throws_ok($$ select pg_temp.run_as('st_bob', 'insert into steadytext_batch_heads (batch, owner_role, request_type, total) values (gen_random_uuid(), ''st_alice'', ''x'', 1)') $$,
    '42501', null, 'nor make one of hers');
select is(pg_temp.written_as('st_bob', format('insert into steadytext_queue (request_type, prompt, batch) values (''generate'', ''his'', %L)', id)), 1::bigint,
    'a request of his that bears its number') from hers;
select results_eq(format('select total, pending from steadytext_batches where batch = %L', id), 'values (3::bigint, 3::bigint)', 'is no part of it') from hers;

-- Answers.
update steadytext_queue set status = 'completed', result = 'true', started_at = now() - interval '4 seconds', completed_at = now() where prompt = 'ticket 1';
update steadytext_queue set status = 'failed', error = 'broken', error_code = 'XX000', started_at = now() - interval '4 seconds', completed_at = now() where prompt = 'ticket 2';
select results_eq(format('select t.place, r.status, r.result, r.error from steadytext_batch_results(%L) as r join ticket as t on t.id = (r.key ->> ''id'')::int', id),
    $$ values ('shelf 1', 'completed', 'true', null), ('shelf 2', 'failed', null, 'broken'), ('shelf 0', 'pending', null, null) $$,
    'steadytext_batch_results: by key, in the order of the query') from hers;
select results_eq(format('select done, failed, rate > 0 and rate <= 0.5, time_left >= interval ''2 seconds'' from steadytext_batches where batch = %L', id),
    $$ values (1::bigint, 1::bigint, true, true) $$, 'rate and time left') from hers;
select throws_like(format('select steadytext_wait(%L::uuid, timeout_seconds => 0)', id), '%has not been committed', 'wait: not for what this transaction enqueues') from hers;
select throws_ok($$ select steadytext_wait('01890000-0000-7000-8000-000000000000'::uuid) $$, 'P0001', 'Batch 01890000-0000-7000-8000-000000000000 not found', 'wait: a batch that is not there');
select throws_ok($$ select steadytext_wait('01890000') $$, '22023', 'request_ids must be an array of ids, or the id of a batch', 'wait: text that is no id');
select ok(steadytext_wait('{}') and steadytext_wait(null) is null, 'wait: ids as a text');
select is(steadytext_cancel_batch(id), 1::bigint, 'steadytext_cancel_batch: what has not ended') from hers;
select results_eq(format('select done, failed, cancelled, pending, completed_at = now() from steadytext_batches where batch = %L', id),
    $$ values (1::bigint, 1::bigint, 1::bigint, 0::bigint, false) $$, 'and nothing else') from hers;

-- Retention.
update steadytext_queue set completed_at = now() - interval '300 days' where prompt = 'ticket 1';
do $$ begin perform steadytext.expire_requests(0, 1000); end $$;
select results_eq(format('select total, done, expired from steadytext_batches where batch = %L', id), $$ values (3::bigint, 0::bigint, 1::bigint) $$,
    'requests that are gone are counted as such') from hers;
update steadytext_batch_heads set created_at = now() - interval '300 days';
do $$ begin perform steadytext.expire_requests(0, 1000); end $$;
select is((select array_agg(batch) from steadytext_batch_heads), (select array_agg(id) from hers), 'a batch goes with the last of its requests');

select * from finish();
rollback;
