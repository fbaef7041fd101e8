-- Reranking: rows, answers, order, limits and rights. The server tests cover cancels and
-- restarts, and those of the engine models of other kinds.
\ir setup.psql
select plan(85);

create function pg_temp.request(p_id uuid) returns steadytext_queue
language sql as $$ select * from steadytext_queue where request_id = p_id $$;

create temporary table given as
select 'how do I reclaim storage?'::text as query, array[
    'VACUUM reclaims storage occupied by dead tuples.',
    'A cursor fetches some rows at a time.',
    'VACUUM reclaims storage occupied by dead tuples.',
    'The weather was fine.'
] as documents;

-- Answers.
create temporary table ranked as
select r.*, row_number() over () as n
from given, steadytext_rerank(query, documents) as r;
select is((select count(*) from ranked), 4::bigint, 'rerank: every document comes back');
select ok((select bool_and(score between 0 and 1) from ranked), 'rerank: scores from 0 to 1');
select ok((select count(distinct score) = 3 from ranked), 'rerank: scores are graded, and equal for equal documents');
select is(
    (select array_agg(document order by n) from ranked), (select array_agg(document order by score desc, n) from ranked),
    'rerank: best first');
select results_eq(
    $$ select document, score from ranked order by n $$,
    $$ select r.document, r.score from given, steadytext_rerank(query, documents) as r $$, 'rerank: the same again');
select results_eq(
    $$ select document, score from ranked order by n $$, $$ select r.document, r.score from given, st_rerank(query, documents) as r $$, 'st_rerank is the same');
select results_eq(
    $$ select document, score from ranked order by n $$,
    $$ select r.document, r.score from given, steadytext_rerank(query, documents, null, null, null, null) as r $$, 'rerank: NULL means the default');
select results_eq(
    $$ select document, score from ranked order by n $$,
    $$ select r.document, r.score from given, steadytext_rerank(query, documents,
           'Given a web search query, retrieve relevant passages that answer the query', true, 7, 'builtin') as r $$,
    'rerank: parameters by position; the seed does not matter');
select results_eq(
    $$ select document, null::float8 from ranked order by n $$,
    $$ select r.document, r.score from given, steadytext_rerank(query, documents, return_scores => false) as r $$, 'rerank: without scores');
select results_eq(
    $$ select document from ranked order by n $$,
    $$ select r.document from given, steadytext_rerank_docs_only(query, documents) as r $$, 'rerank_docs_only: the same order');
select results_eq(
    $$ select document from ranked order by n $$,
    $$ select r.document from given, st_rerank_docs_only(query, documents, 'anything', 1, 'builtin') as r $$, 'st_rerank_docs_only is the same');
select results_eq(
    $$ select document, score from ranked order by n limit 2 $$,
    $$ select r.document, r.score from given, steadytext_rerank_top_k(query, documents, 2) as r $$, 'rerank_top_k: the first ones');
select results_eq(
    $$ select document, score from ranked order by n $$,
    $$ select r.document, r.score from given, st_rerank_top_k(query, documents, 9, null, true, 42) as r $$, 'st_rerank_top_k: all, where there are no more');
select is(
    (select array_agg(r.document) from steadytext_rerank('x', array['same', 'same', 'same']) as r), array['same', 'same', 'same'],
    'rerank: documents may repeat');
select results_eq(
    $$ select n from (select row_number() over () as n, r.document from steadytext_rerank('q', array['b', 'b', 'b']) as r) as t $$,
    array[1, 2, 3]::bigint[], 'rerank: and stay apart');
select is((select count(*) from steadytext_rerank('one', array['only'])), 1::bigint, 'rerank: one document');
select is((select count(*) from steadytext_rerank('q', array(select 'document ' || i from generate_series(1, 120) as i))), 120::bigint, 'rerank: many documents');
select results_eq(
    $$ select r.* from steadytext_rerank_batch(array['reclaim storage', 'weather'], array['VACUUM', 'It rains']) as r $$,
    $$ select 0, a.* from steadytext_rerank('reclaim storage', array['VACUUM', 'It rains']) as a
       union all select 1, b.* from steadytext_rerank('weather', array['VACUUM', 'It rains']) as b $$,
    'rerank_batch: query after query, counted from 0');
select results_eq(
    $$ select query_index, document, score from st_rerank_batch(array['q'], array['a', 'b'], 'task', false, 1, 'builtin') order by document $$,
    $$ values (0, 'a', null::float8), (0, 'b', null) $$, 'st_rerank_batch: with all parameters');

-- A key for each line.
select results_eq('select document, index from ranked order by n', 'select (documents)[index], index from given, ranked order by n', 'rerank: index is the place of the document, from 1');
select is((select array_agg(index order by index) from ranked), array[1, 2, 3, 4], 'rerank: each of them once');
select ok((select bool_and(document_id is null) from ranked), 'rerank: without ids there are none');
select results_eq(
    $$ select index, document_id from given, steadytext_rerank(query, documents, document_ids => array['a', 'b', 'c', 'd']) $$,
    $$ select index, (array['a', 'b', 'c', 'd'])[index] from ranked order by n $$, 'rerank: document_ids come back with their documents');
select results_eq(
    $$ select index, document_id from given, st_rerank_top_k(query, documents, 2, document_ids => array['a', 'b', 'c', 'd']) $$,
    $$ select index, (array['a', 'b', 'c', 'd'])[index] from ranked order by n limit 2 $$, 'rerank_top_k: and so they do here');
select results_eq(
    $$ select query_index, document, index, document_id
       from steadytext_rerank_batch(array['reclaim storage', 'weather'], array['VACUUM', 'It rains'], document_ids => array['v', 'r']) $$,
    $$ select query_index, document, case document when 'VACUUM' then 1 else 2 end, case document when 'VACUUM' then 'v' else 'r' end
       from steadytext_rerank_batch(array['reclaim storage', 'weather'], array['VACUUM', 'It rains']) $$, 'rerank_batch: for each query');
select results_eq(
    $$ select (pg_temp.request(steadytext_rerank_async('q', array['a', 'b'], document_ids => array['1', '2']))).params $$,
    $$ values ('{"document_ids": ["1", "2"]}'::jsonb) $$, 'rerank_async: ids are among the params');
select results_eq(
    $$ select (pg_temp.request((steadytext_rerank_batch_async(array['q'], array['a', 'b'], document_ids => array['1', '2']))[1])).params $$,
    $$ values ('{"document_ids": ["1", "2"]}'::jsonb) $$, 'rerank_batch_async: and so they are here');
select throws_ok(format('select %s(%L, array[%L, %L], document_ids => %L)', f, 'q', 'a', 'b', ids), '22023', message, f || ': ' || message)
from unnest(array['steadytext_rerank', 'steadytext_rerank_async']) as f,
    (values ('{1}', 'there are 2 documents, but 1 document_ids'), ('{1,null}', 'document_ids must be texts')) as w(ids, message);
select throws_ok($$ insert into steadytext_queue (request_type, prompt, prompts, params) values ('rerank', 'q', '{a}', '{"document_ids": "a"}') $$, '22023', 'document_ids must be an array of texts', 'INSERT: ids that are no array');

-- Without a form of its own a model compares embeddings.
select ok(
    (select bool_and(abs(r.score - (1 - (steadytext_embed(query) <#> steadytext_embed(r.document))) / 2) < 1e-6)
     from given, steadytext_rerank(query, documents) as r), 'the builtin model: (1 + cosine) / 2');

-- Rows.
select is((r).request_type, 'rerank', 'rerank_async: type') from pg_temp.request(steadytext_rerank_async('q', array['a', 'b'])) as r;
select is((r).prompt, 'q', 'rerank_async: the query is the prompt') from pg_temp.request(steadytext_rerank_async('q', array['a', 'b'])) as r;
select is((r).prompts, array['a', 'b'], 'rerank_async: the documents are the prompts') from pg_temp.request(steadytext_rerank_async('q', array['a', 'b'])) as r;
select is((r).params, '{}', 'rerank_async: defaults are left out') from pg_temp.request(steadytext_rerank_async('q', array['a', 'b'])) as r;
select is((r).params, '{"task": "t", "return_scores": false, "seed": 1, "model": "reranker"}', 'rerank_async: everything else goes into params')
from pg_temp.request(steadytext_rerank_async('q', array['a'], 't', false, 1, 'reranker', 9)) as r;
select is((r).priority, 9, 'rerank_async: priority') from pg_temp.request(steadytext_rerank_async('q', array['a'], 't', false, 1, 'reranker', 9)) as r;
select isnt(st_rerank_async('q', array['a']), null, 'st_rerank_async enqueues');
create temporary table batch as
select * from unnest(steadytext_rerank_batch_async(array['one', 'two', 'three'], array['a', 'b'], 't')) with ordinality as b(request_id, n);
select results_eq(
    $$ select request_type, prompt, prompts, params from batch join steadytext_queue using (request_id) order by n $$,
    $$ select 'rerank', q, array['a', 'b'], '{"task": "t"}'::jsonb from unnest(array['one', 'two', 'three']) as q $$,
    'rerank_batch_async: a row for each query');
select ok((select bool_and(later > earlier) from (select id as later, lag(id) over (order by n) as earlier from batch join steadytext_queue using (request_id)) as ids where earlier is not null), 'rerank_batch_async: in the order of the queries');
select is(cardinality(st_rerank_batch_async(array['one', 'two'], array['a'])), 2, 'st_rerank_batch_async enqueues');
select lives_ok($$ insert into steadytext_queue (request_type, prompt, prompts, params) values ('rerank', 'q', '{a,b}', '{"task": "t"}') $$, 'INSERT: rerank');
select lives_ok($$ insert into steadytext_queue (request_type, params) values ('rerank', '{"query": "q", "documents": ["a", "b"], "return_scores": true, "seed": 42}') $$, 'INSERT: everything in params');
select lives_ok($$ insert into steadytext_queue (request_type, prompts, params) values ('batch_rerank', '{q,r}', '{"documents": ["a", "b"]}') $$, 'INSERT: batch_rerank');

-- Words and codes, in calls and rows alike.
create temporary table wrong (arguments text, code text, message text);
insert into wrong values
    ($$ '', array['a'] $$, 'P0001', 'Query cannot be empty'),
    ($$ E' \n', array['a'] $$, 'P0001', 'Query cannot be empty'),
    ($$ 'q', '{}' $$, 'P0001', 'Documents array cannot be empty'),
    ($$ 'q', array['a', null] $$, 'P0001', 'Documents cannot contain null elements'),
    ($$ 'q', array(select 'd' || i from generate_series(1, 1001) as i) $$, 'P0001', 'Batch size cannot exceed 1000 documents'),
    ($$ 'q', array['a', repeat('x', 1048577)] $$, '54000', 'element 2 of the documents has 1048577 bytes, 1048576 are allowed'),
    ($$ repeat('q', 1000), array_fill(repeat('x', 67000), array[1000]) $$, '54000', 'the pairs of a query and a document have 68000000 bytes together, 67108864 are allowed'),
    ($$ 'q', array['a'], task => repeat('x', 1025) $$, '22023', 'task must be a text of 1 to 1024 bytes');
select throws_ok(format('select %s(%s)', f, arguments), code, message, format('%s: %s', f, left(message, 40)))
from wrong, unnest(array['steadytext_rerank', 'steadytext_rerank_async']) as f;
select throws_ok($$ select steadytext_rerank_docs_only('', array['a']) $$, 'P0001', 'Query cannot be empty', 'rerank_docs_only: no query');
select throws_ok(format('select steadytext_rerank_top_k(%L, array[%L], %s)', 'q', 'a', k), 'P0001', 'top_k must be greater than 0', 'rerank_top_k: ' || k)
from unnest(array['0', '-1', 'null']) as k;
select throws_ok($$ select steadytext_rerank_batch('{}', array['a']) $$, 'P0001', 'Queries array cannot be empty', 'rerank_batch: no queries');
select throws_ok($$ select steadytext_rerank_batch(array['q', ''], array['a']) $$, 'P0001', 'Query cannot be empty', 'rerank_batch: an empty query');
select throws_ok($$ select steadytext_rerank_batch(array['q', null], array['a']) $$, 'P0001', 'Queries cannot contain null elements', 'rerank_batch: a NULL query');
select throws_ok($$ select steadytext_rerank_batch(array['q'], '{}') $$, 'P0001', 'Documents array cannot be empty', 'rerank_batch: no documents');
select throws_ok($$ select steadytext_rerank_async(null, array['a']) $$, 'P0001', 'Query cannot be empty', 'rerank_async: a NULL query');
select throws_ok($$ select steadytext_rerank_async('q', null) $$, 'P0001', 'Documents array cannot be empty', 'rerank_async: NULL documents');
select throws_ok(
    $$ select steadytext_rerank_batch(array_fill('q'::text, array[1000]), array_fill('d'::text, array[101])) $$,
    '54000', 'the request has 101000 pairs of a query and a document, 100000 are allowed', 'rerank_batch: too many pairs');
select throws_ok($$ select steadytext_rerank_batch_async('{}', array['a']) $$, 'P0001', 'Queries array cannot be empty', 'rerank_batch_async: no queries');
select throws_ok($$ select steadytext_rerank_batch_async(array['q'], '{}') $$, 'P0001', 'Documents array cannot be empty', 'rerank_batch_async: no documents');
select throws_ok($$ select steadytext_rerank_batch_async(array_fill('q'::text, array[1001]), '{a}') $$, 'P0001', 'Batch size cannot exceed 1000 queries', 'rerank_batch_async: too many queries');
select throws_ok(
    $$ select steadytext_rerank_batch_async(array_fill('q'::text, array[100]), array[repeat('x', 1000000)]) $$,
    '54000', 'the documents of all queries have 100000000 bytes together with their ids, 67108864 are allowed', 'rerank_batch_async: too much of everything');
select throws_ok(
    $$ select steadytext_rerank_batch_async(array_fill('q'::text, array[100]), array['d'], document_ids => array[repeat('x', 999999)]) $$,
    '54000', 'the documents of all queries have 100000000 bytes together with their ids, 67108864 are allowed', 'rerank_batch_async: ids count as well');
select throws_ok($$ insert into steadytext_queue (request_type, prompt, params) values ('rerank', 'q', '{"documents": "a"}') $$, 'P0001', null, 'INSERT: documents that are no array');
select throws_ok($$ insert into steadytext_queue (request_type, prompt, params) values ('rerank', 'q', '{"documents": ["a", 1]}') $$, 'P0001', 'Documents cannot contain null elements', 'INSERT: documents that are no texts');
select throws_ok($$ select steadytext_rerank('q', array['a'], model => 'small') $$, '42809', 'model "small" is registered for task generate, not rerank', 'a model of another task');

-- Rights.
select throws_ok(format('select pg_temp.run_as(%L, %L)', 'st_stranger', 'select steadytext_rerank(''q'', array[''a''])'), '42501', null, 'a stranger may not rank');
select is(pg_temp.run_as('st_alice', $$ select document from steadytext_rerank('q', array['a']) $$), 'a', 'a user may');
select isnt(pg_temp.run_as('st_alice', $$ select steadytext_rerank_async('q', array['a']) $$), null, 'and enqueue');
select is(pg_temp.run_as('st_alice', $$ select cardinality(steadytext_rerank_batch_async(array['q'], array['a'])) $$), '1', 'and in batches');

select * from finish();
rollback;
