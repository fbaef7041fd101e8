-- Enqueuing in batches.
\ir setup.psql
select plan(26);

select is(
    (
        select array_agg(q.prompt order by g.n)
        from unnest(steadytext_generate_batch_async(array['one', 'two', 'three'])) with ordinality as g(id, n)
        join steadytext_queue as q on q.request_id = g.id
    ),
    null,
    'rows of a batch are not visible to the statement that enqueues them'
);

create temporary table batch as select steadytext_generate_batch_async(array['one', 'two', 'three'], 64, priority => 3) as ids;
select is((select cardinality(ids) from batch), 3, 'generate_batch_async: one id per prompt');
select results_eq(
    $$
        select q.request_type, q.prompt, q.params, q.priority
        from batch cross join unnest(ids) with ordinality as g(id, n)
        join steadytext_queue as q on q.request_id = g.id order by g.n
    $$,
    $$
        values ('generate', 'one', '{"max_tokens": 64}'::jsonb, 3), ('generate', 'two', '{"max_tokens": 64}', 3),
            ('generate', 'three', '{"max_tokens": 64}', 3)
    $$,
    'generate_batch_async: ids in the order of the prompts'
);
select is(
    (
        select array_agg(distinct q.params)
        from unnest(steadytext_generate_batch_async(array['a', 'b'], 9, false, 7, 'STOP', 'small', 'large', 0.5)) as g(id)
        join steadytext_queue as q on q.request_id = g.id
    ), null, 'generate_batch_async takes every parameter'
);
select is(
    (select params from steadytext_queue where prompt = 'b'),
    '{"max_tokens": 9, "use_cache": false, "seed": 7, "eos_string": "STOP", "model": "small", "size": "large", "temperature": 0.5}',
    'generate_batch_async: params'
);

truncate batch;
insert into batch select steadytext_embed_batch_async(array['first', 'second', 'third'], priority => 8);
select results_eq(
    $$
        select q.request_type, q.prompt, q.params, q.priority
        from batch cross join unnest(ids) with ordinality as g(id, n)
        join steadytext_queue as q on q.request_id = g.id order by g.n
    $$,
    $$
        values ('embed', 'first', '{"batch": true}'::jsonb, 8), ('embed', 'second', '{"batch": true}', 8),
            ('embed', 'third', '{"batch": true}', 8)
    $$,
    'embed_batch_async: ids in the order of the texts'
);
truncate batch;
insert into batch select steadytext_embed_batch_async(array['good', '', null, 'too']);
select is((select cardinality(ids) from batch), 4, 'embed_batch_async lets empty texts in: they fail alone');
select is(
    (select count(distinct g.id) from batch cross join unnest(ids) as g(id)), 4::bigint,
    'ids of a batch differ'
);
truncate batch;
insert into batch select steadytext_generate_batch_async(array(select 'number ' || i from generate_series(1, 1000) as i));
select ok(
    (
        select bool_and(q.prompt = 'number ' || g.n)
        from batch cross join unnest(ids) with ordinality as g(id, n)
        join steadytext_queue as q on q.request_id = g.id
    ),
    'a thousand prompts keep their order'
);
select is(cardinality(st_generate_batch_async(array['x', 'y'])), 2, 'st_generate_batch_async enqueues');
select is(cardinality(st_embed_batch_async(array['x', 'y'])), 2, 'st_embed_batch_async enqueues');

select throws_ok($$ select steadytext_generate_batch_async(null) $$, 'P0001', 'Prompts array cannot be empty', 'NULL prompts');
select throws_ok($$ select steadytext_generate_batch_async('{}') $$, 'P0001', 'Prompts array cannot be empty', 'no prompts');
select throws_ok($$ select steadytext_embed_batch_async(null) $$, 'P0001', 'Texts array cannot be empty', 'NULL texts');
select throws_ok($$ select steadytext_embed_batch_async('{}') $$, 'P0001', 'Texts array cannot be empty', 'no texts');
select throws_ok($$ select steadytext_generate_batch_async(array['x', '']) $$, 'P0001', 'Prompt cannot be empty', 'an empty prompt refuses the batch');
select throws_ok($$ select steadytext_generate_batch_async(array['x'], 0) $$, 'P0001', 'max_tokens must be between 1 and 4096', 'batch: max_tokens');
select throws_ok($$ select steadytext_generate_batch_async(array['x'], priority => 11) $$, '22023', null, 'batch: priority');
select throws_ok(
    $$ select steadytext_generate_batch_async(array_fill('x'::text, array[1001])) $$,
    'P0001', 'Batch size cannot exceed 1000 prompts', 'too many prompts');
select throws_ok(
    $$ select steadytext_embed_batch_async(array_fill('x'::text, array[1001])) $$,
    'P0001', 'Batch size cannot exceed 1000 texts', 'too many texts');
create temporary table plain as select steadytext_generate_batch_async(array['as it is set']) as ids;
select is((select q.params from plain, steadytext_queue as q where q.request_id = ids[1]), '{}', 'generate_batch_async leaves max_tokens to the setting default_max_tokens');
select throws_ok($$ select steadytext_generate_batch_async(array['x'], model => 'nix') $$, '42704', 'model "nix" is not registered', 'batch: an unknown model');
select throws_ok($$ select steadytext_embed_batch_async(array['x'], priority => 99999999999) $$, '22023', 'priority must be between 1 and 10', 'batch: a priority beyond all integers');
select steadytext_config_set('max_batch_size', '100');
select throws_ok(
    $$ select steadytext_generate_batch_async(array_fill('x'::text, array[101])) $$,
    'P0001', 'Batch size cannot exceed 100 prompts', 'the number in the message follows the setting');
select lives_ok($$ select steadytext_embed_batch_async(array_fill('x'::text, array[100])) $$, 'as many as allowed');

select is(
    pg_temp.run_as('st_alice', $$ select cardinality(steadytext_embed_batch_async(array['x', 'y'])) $$), '2',
    'an ordinary user can enqueue batches'
);

select * from finish();
rollback;
