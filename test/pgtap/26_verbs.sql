-- Judgements: values, arrays, NULLs, limits, rows, rights and plans. The engine's tests cover the answers of
-- models.
\ir setup.psql
select plan(142);

create temporary table texts as
select * from (values
    (1, 'VACUUM reclaims storage occupied by dead tuples.'),
    (2, 'The parcel has not arrived.'),
    (3, null),
    (4, 'VACUUM reclaims storage occupied by dead tuples.')
) as t(n, body);
create function pg_temp.bodies() returns text[] language sql as $$ select array_agg(body order by n) from texts $$;

-- Yes or no.
select is(steadytext_if('Is VACUUM a command?'), steadytext_if_score('Is VACUUM a command?') > 0.5, 'if: what is likelier');
select ok(steadytext_if_score('Is VACUUM a command?') between 0 and 1, 'if_score: a probability');
select isnt(steadytext_if_score('Is VACUUM a command?'), steadytext_if_score('Is the sea dry?'), 'if_score: depends on the question');
select is(steadytext_if_score('Is it?', false, 7, 'builtin'), st_if_score('Is it?'), 'if_score: by position, again, the twin');
select is(steadytext_if('Is it?', false, 7, 'builtin', 'null'), st_if('Is it?'), 'if: by position, again, the twin');
select is(steadytext_if(null::text), null, 'if: NULL');
select is(steadytext_if(null), null, 'if: NULL of no type');
select is(steadytext_if_score(null::text), null, 'if_score: NULL');

-- Grades.
select ok(steadytext_score('How good is PostgreSQL?') between 0 and 1, 'score: from 0 to 1');
select isnt(steadytext_score('How good is PostgreSQL?'), steadytext_score('How wet is the sea?'), 'score: graded');
select is(steadytext_score('How good?', false, 1, 'builtin'), st_score('How good?'), 'score: by position, again, the twin');
select is(steadytext_score(null::text), null, 'score: NULL');

-- Similarity.
select ok(abs(steadytext_similarity('reclaim storage', 'reclaim storage') - 1) < 1e-6, 'similarity: the same text');
select ok(abs(steadytext_similarity('reclaim storage', 'it rains')
    - (1 - (steadytext_embed('reclaim storage') <=> steadytext_embed('it rains')))) < 1e-6, 'similarity: the cosine');
select is(steadytext_similarity('a b', 'c d'), st_similarity('c d', 'a b', false, 1, 'builtin'), 'similarity: either way, the twin');
select is(steadytext_similarity('a', null), null, 'similarity: NULL');
select is(steadytext_similarity(null, 'a'), null, 'similarity: NULL first');

-- Categories.
create temporary table scores as
select s.*, row_number() over () as n
from steadytext_classify_scores('The parcel has not arrived.', array['billing', 'delivery', 'delivery of furniture', 'praise']) as s;
select is((select count(*) from scores), 4::bigint, 'classify_scores: every category');
select ok((select abs(sum(score) - 1) < 1e-9 from scores), 'classify_scores: 1 together');
select ok((select bool_and(score > 0 and score < 1) from scores), 'classify_scores: probabilities');
select is((select array_agg(category order by n) from scores), (select array_agg(category order by score desc) from scores), 'classify_scores: best first');
select is(
    steadytext_classify('The parcel has not arrived.', array['billing', 'delivery', 'delivery of furniture', 'praise']),
    (select category from scores where n = 1), 'classify: the best');
select results_eq(
    $$ select category, score from scores order by n $$,
    $$ select s.* from st_classify_scores('The parcel has not arrived.', array['billing', 'delivery', 'delivery of furniture', 'praise'],
        null, null, null, 'generate', false, 1, 'builtin', 'null') as s $$, 'classify_scores: by position, again, the twin');
select ok(steadytext_classify('a', array['b', 'c'], descriptions => array['letters', null]) in ('b', 'c'), 'classify: descriptions');
select isnt(
    (select array_agg(s.score order by s.category) from steadytext_classify_scores('a', array['b', 'c'], descriptions => array['letters', null]) as s),
    (select array_agg(s.score order by s.category) from steadytext_classify_scores('a', array['b', 'c']) as s), 'classify: descriptions are read');
select isnt(
    (select array_agg(s.score order by s.category) from steadytext_classify_scores('a', array['b', 'c'], 'Which sounds better') as s),
    (select array_agg(s.score order by s.category) from steadytext_classify_scores('a', array['b', 'c']) as s), 'classify: the task is read');
select isnt(
    (select array_agg(s.score order by s.category) from steadytext_classify_scores('a', array['b', 'c'], examples => '[{"input": "x", "category": "c"}]') as s),
    (select array_agg(s.score order by s.category) from steadytext_classify_scores('a', array['b', 'c']) as s), 'classify: examples are read');
select is(steadytext_classify('VACUUM reclaims storage', array['VACUUM reclaims storage', 'It rains'], method => 'embed'), 'VACUUM reclaims storage', 'classify by vectors');
select is(
    steadytext_classify('VACUUM reclaims storage', array['a', 'b'], descriptions => array['It rains', 'VACUUM reclaims storage'], method => 'embed'), 'b',
    'classify by vectors of descriptions');
select ok((select abs(sum(score) - 1) < 1e-9 from steadytext_classify_scores('x', array['a', 'b', 'c'], method => 'embed')), 'classify_scores by vectors: 1 together');
select is(steadytext_classify(null::text, array['a', 'b']), null, 'classify: NULL');
select is_empty($$ select steadytext_classify_scores(null, array['a', 'b']) $$, 'classify_scores: NULL');
select is(steadytext_classify_multi('x', array['a', 'b', 'c'], threshold => 1), '{}', 'classify_multi: none');
select is(cardinality(steadytext_classify_multi('x', array['a', 'b', 'c'], threshold => 0)), 3, 'classify_multi: all');
select is(cardinality(steadytext_classify_multi('x', array['a'], threshold => 0)), 1, 'classify_multi: one category is enough');
select is(
    steadytext_classify_multi('VACUUM reclaims storage', array['It rains', 'VACUUM reclaims storage'], method => 'embed', threshold => 0.99),
    array['VACUUM reclaims storage'], 'classify_multi by vectors: the cosine');
select is(steadytext_classify_multi(null, array['a']), null, 'classify_multi: NULL');

-- Arrays.
select is(steadytext_if(pg_temp.bodies()), (select array_agg(steadytext_if(body) order by n) from texts), 'if: an array');
select is(steadytext_if_score(pg_temp.bodies()), (select array_agg(steadytext_if_score(body) order by n) from texts), 'if_score: an array');
select is(steadytext_score(pg_temp.bodies(), false), (select array_agg(steadytext_score(body, false) order by n) from texts), 'score: an array, without the cache');
select is(
    steadytext_similarity(pg_temp.bodies(), array['a', null, 'b', 'c']),
    array[steadytext_similarity((pg_temp.bodies())[1], 'a'), null, null, steadytext_similarity((pg_temp.bodies())[4], 'c')], 'similarity: arrays');
select is(
    steadytext_classify(pg_temp.bodies(), array['storage', 'delivery']),
    (select array_agg(steadytext_classify(body, array['storage', 'delivery']) order by n) from texts), 'classify: an array');
select is(
    st_classify(pg_temp.bodies(), array['storage', 'delivery'], method => 'embed'),
    (select array_agg(steadytext_classify(body, array['storage', 'delivery'], method => 'embed') order by n) from texts), 'classify: an array, by vectors');
select is(steadytext_if('{}'::text[]), '{}', 'if: an empty array');
select is(steadytext_if(array[null, null]::text[]), array[null, null]::boolean[], 'if: nothing but NULLs');
select is(steadytext_if(null::text[]), null, 'if: no array');
select is(steadytext_if(array['x', '', repeat('word ', 20000)], on_error => 'null'), array[steadytext_if('x'), null, null], 'if: elements that cannot be answered are NULL where that is wanted');
select throws_ok($$ select steadytext_if(array['x', '']) $$, 'P0001', 'element 2: Prompt cannot be empty', 'if: which element cannot be answered');
select throws_ok($$ select steadytext_if(array['x', repeat('word ', 20000)]) $$, '54000', null, 'if: an element that is too long');
select throws_ok($$ select steadytext_if(array_fill('x'::text, array[1001])) $$, 'P0001', 'Batch size cannot exceed 1000 texts', 'if: too many elements');
select throws_ok($$ select steadytext_similarity(array['a'], array['a', 'b']) $$, '22023', 'the arrays have 1 and 2 elements', 'similarity: arrays of one length');
select is(cardinality(steadytext_classify(array(select 'text ' || i from generate_series(1, 60) as i), array['a', 'b'])), 60, 'classify: many');

-- Words and codes, in calls and rows alike.
create temporary table wrong (call text, code text, message text);
insert into wrong values
    ($$if%s('')$$, 'P0001', 'Prompt cannot be empty'),
    ($$score%s(E' \n')$$, 'P0001', 'Prompt cannot be empty'),
    ($$if_score%s(repeat('x', 1048577))$$, '54000', 'the text has 1048577 bytes, 1048576 are allowed'),
    ($$similarity%s('a', ' ')$$, 'P0001', 'Text input cannot be empty'),
    ($$classify%s('', array['a', 'b'])$$, 'P0001', 'Text input cannot be empty'),
    ($$classify%s('x', null)$$, 'P0001', 'Categories array cannot be empty'),
    ($$classify%s('x', '{}')$$, 'P0001', 'Categories array cannot be empty'),
    ($$classify%s('x', array['a'])$$, 'P0001', 'Must provide at least 2 categories'),
    ($$classify%s('x', array['a', 'b', 'a'])$$, '22023', 'category 3 is the same as category 1'),
    ($$classify%s('x', array['a', ''])$$, '22023', 'category 2 is empty'),
    ($$classify%s('x', array['a', null])$$, '22023', 'categories must be texts'),
    ($$classify%s('x', array['a', repeat('b', 1025)])$$, '54000', 'category 2 has 1025 bytes, 1024 are allowed'),
    ($$classify%s('x', array(select repeat('b', 1000) || i from generate_series(1, 66) as i))$$, '54000', 'the categories have 66123 bytes together, 65536 are allowed'),
    ($$classify%s('x', array['a', 'b'], descriptions => array['a'])$$, '22023', 'there are 1 descriptions of 2 categories'),
    ($$classify%s('x', array['a', 'b'], examples => '{}')$$, '22023', 'examples must be an array of objects with input and category'),
    ($$classify%s('x', array['a', 'b'], examples => '[1]')$$, '22023', 'examples must be an array of objects with input and category'),
    ($$classify%s('x', array['a', 'b'], examples => '[{"input": "x"}]')$$, '22023', 'examples must be an array of objects with input and category'),
    ($$classify%s('x', array['a', 'b'], examples => '[{"input": "x", "category": "a", "more": 1}]')$$, '22023', 'examples must be an array of objects with input and category'),
    ($$classify%s('x', array['a', 'b'], examples => '[{"input": "x", "category": "c"}]')$$, '22023', 'the category of example 1 is none of the categories'),
    ($$classify%s('x', array['a', 'b'], examples => (select jsonb_agg('{"input": "x", "category": "a"}'::jsonb) from generate_series(1, 101)))$$, '54000', 'there are 101 examples, at most 100 are allowed'),
    ($$classify%s('x', array['a', 'b'], examples => (repeat('[', 3000) || repeat(']', 3000))::jsonb)$$, '22023', null),
    ($$classify%s('x', array['a', 'b'], method => 'guess')$$, '22023', 'method must be "generate" or "embed"'),
    ($$classify%s('x', array['a', 'b'], repeat('x', 8193))$$, '22023', 'task_description must be a text of 1 to 8192 bytes'),
    ($$classify_multi%s('x', array['a', 'b'], threshold => 1.5)$$, '22023', 'threshold must be a number between 0 and 1'),
    ($$classify_multi%s('x', array['a', 'b'], threshold => 'NaN')$$, '22023', 'threshold must be a number between 0 and 1'),
    ($$classify_scores%s('x', array['a', 'b'], method => 'embed', model => 'small')$$, '42809', 'model "small" is registered for task generate, not embed');
select throws_ok('select steadytext_' || format(call, form), code, message, left(format(call, form), 100))
from wrong, unnest(array['_async', '']) as form;
select throws_ok(
    format('select steadytext_classify(''x'', array(select ''c'' || i from generate_series(1, %s) as i))', count), '54000', message, 'classify: ' || message)
from (values
    (1001, 'there are 1001 categories, at most 1000 are allowed'),
    (10000, 'there are 10000 categories, at most 1000 are allowed'),
    (70000, 'categories has more than 65536 elements')
) as many(count, message);
select throws_ok($$ select steadytext_if('x', on_error => 'no') $$, '22023', 'on_error must be "error" or "null"', 'on_error');
select is(steadytext_if('', on_error => 'null'), null, 'on_error: NULL');

-- Rows.
create function pg_temp.request(p_id uuid) returns steadytext_queue
language sql as $$ select * from steadytext_queue where request_id = p_id $$;
select is(row((r).request_type, (r).prompt, (r).params, (r).priority)::text, '(if,"of a row",{},5)', 'if_async: the row') from pg_temp.request(steadytext_if_async('of a row')) as r;
select is(row((r).request_type, (r).params, (r).priority)::text, '(classify_multi,"{""seed"": 3, ""method"": ""embed"", ""examples"": [{""input"": ""y"", ""category"": ""b""}], ""threshold"": 0.25, ""use_cache"": false, ""categories"": [""a"", ""b""], ""descriptions"": [null, ""d""], ""task_description"": ""t""}",9)', 'classify_multi_async: the row')
from pg_temp.request(st_classify_multi_async('x', array['a', 'b'], 't', array[null, 'd'], '[{"input": "y", "category": "b"}]', 'embed', 0.25, false, 3, null, 9)) as r;
select is(row((r).request_type, (r).prompt, (r).prompts, (r).params)::text, '(similarity,,"{a,b}","{""use_cache"": false}")', 'similarity_async: the row')
from pg_temp.request(steadytext_similarity_async('a', 'b', false)) as r;
select isnt(st_score_async('x'), null, 'score_async enqueues');
select isnt(st_if_score_async('x'), null, 'if_score_async enqueues');
select isnt(st_classify_scores_async('x', array['a', 'b']), null, 'classify_scores_async enqueues');
select throws_ok(
    format('insert into steadytext_queue (request_type, prompt, prompts, params) values (%L, %L, %L, %L)', request_type, prompt, prompts, params), '22023', message, message)
from (values
    ('if', 'x', '{a}', '{}', 'requests of type if take no prompts array'),
    ('similarity', 'x', '{a,b}', '{}', 'requests of type similarity take no prompt'),
    ('similarity', null, '{a}', '{}', 'requests of type similarity compare two texts'),
    ('similarity', null, '{a,b,c}', '{}', 'requests of type similarity compare two texts'),
    ('classify', 'x', null, '{"categories": "a"}', 'categories must be an array of texts'),
    ('classify', 'x', null, '{"categories": ["a", 1]}', 'categories must be texts'),
    ('classify', 'x', null, '{"categories": ["a", "b"], "threshold": 0.5}', 'requests of type classify take no parameter threshold'),
    ('if', 'x', null, '{"max_tokens": 1}', 'requests of type if take no parameter max_tokens')
) as bad(request_type, prompt, prompts, params, message);

-- Plans: a model is asked last.
create temporary table tickets as select i as id, i % 2 = 0 as is_open, 'ticket ' || i as body from generate_series(1, 10) as i;
create function pg_temp.plan_of(p_statement text) returns text language plpgsql as $$
declare v_line text; v_plan text := '';
begin
    for v_line in execute 'explain (costs off) ' || p_statement loop v_plan := v_plan || v_line || E'\n'; end loop;
    return v_plan;
end $$;
select matches(
    pg_temp.plan_of($$ select from tickets where steadytext_if('Is it urgent? ' || body) and id > 3 and md5(body) > 'a' and is_open $$),
    'Filter: .*is_open.*steadytext_if\(', 'if: conditions that cost little come first');
select matches(
    pg_temp.plan_of($$ select from tickets where steadytext_classify(body, array['a', 'b']) = 'a' and is_open $$),
    'Filter: .*is_open.*steadytext_classify\(', 'classify: conditions that cost little come first');
select matches(
    pg_temp.plan_of($$ select from tickets where st_score(body) > 0.5 and is_open $$), 'Filter: .*is_open.*st_score\(', 'st_score: conditions that cost little come first');

-- Prompts.
select is(
    (select array_agg(p.version_num) from unnest(array['steadytext/classify', 'steadytext/classify-multi', 'steadytext/if', 'steadytext/rag', 'steadytext/score']) as s, steadytext_prompt_get(s) as p),
    '{1,1,1,1,1}', 'prompt_get: the prompts there are');
select ok((select p.template like '%{{ category.name }}%' and p.metadata = '{"builtin": true}' from steadytext_prompt_get('steadytext/classify', 1) as p), 'prompt_get: a template');
select is(p.required_variables, steadytext.prompt_variables(p.template), 'prompt_get: its variables')
from unnest(array['steadytext/classify', 'steadytext/classify-multi', 'steadytext/if', 'steadytext/rag', 'steadytext/score']) as s, steadytext_prompt_get(s) as p;
select is(
    steadytext_prompt_render('steadytext/classify', '{"task_description": null, "categories": [{"name": "a", "description": null}, {"name": "b", "description": "bees"}], "examples": []}'),
    E'You classify texts. Answer with one of these categories and nothing else:\n- a\n- b: bees', 'prompt_render: what a model is told');
select is(
    steadytext_prompt_render('steadytext/classify', '{"task_description": "Say", "categories": [{"name": "a"}, {"name": "b"}], "examples": [{"input": "i", "category": "b"}]}', strict => false),
    E'Say:\n- a\n- b\n\nText: i\nCategory: b', 'prompt_render: with an example');
select throws_ok($$ select st_prompt_get('steadytext/classify', 2) $$, 'P0002', null, 'prompt_get: no other version');

-- Rights.
select throws_ok(format('select pg_temp.run_as(%L, %L)', 'st_stranger', 'select steadytext_if(''q'')'), '42501', null, 'a stranger may ask nothing');
select isnt(pg_temp.run_as('st_alice', $$ select steadytext_if('x') $$), null, 'a user may');
select isnt(pg_temp.run_as('st_alice', $$ select steadytext_classify_async('x', array['a', 'b']) $$), null, 'and enqueue');
select isnt(pg_temp.run_as('st_alice', $$ select steadytext_similarity_async('x', 'y') $$), null, 'also what compares');

-- The parameters of all elements together are bounded.
select throws_ok(
    $$ select steadytext_classify(array_fill('x'::text, array[1000]), array['a', 'b'],
        examples => (select jsonb_agg(jsonb_build_object('input', repeat('w', 9000), 'category', 'a')) from generate_series(1, 100))) $$,
    '54000', null, 'examples for each of many elements');
select throws_ok(
    $$ select steadytext_classify('x', array['a', 'b'],
        examples => (select jsonb_agg(jsonb_build_object('input', repeat('w', 90000), 'category', 'a')) from generate_series(1, 90))) $$,
    '54000', null, 'examples that no queue would take');

select * from finish();
rollback;
