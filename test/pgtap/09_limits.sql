-- Limits of requests, in every column and every form: lengths, numbers of elements, depth, and
-- parameters that the type does not have.
\ir setup.psql
select plan(162);

create function pg_temp.insert_of(p_type text, p_prompt text, p_prompts text[], p_params jsonb) returns text
language sql as $$
    select format('insert into steadytext_queue (request_type, prompt, prompts, params) values (%L, %L, %L, %L)',
        p_type, p_prompt, p_prompts, p_params)
$$;

-- Parameters that a type has no use for.
create temporary table types (request_type text, prompt text, prompts text[], params jsonb, taken text[]);
insert into types values
    ('generate', 'x', null, '{}',
        '{eos_string,max_tokens,seed,temperature,top_k,top_p,min_p,use_cache,model,size}'),
    ('generate_json', 'x', null, '{"schema": true}',
        '{schema,max_tokens,seed,temperature,top_k,top_p,min_p,use_cache,model,size}'),
    ('generate_regex', 'x', null, '{"pattern": "a"}',
        '{pattern,max_tokens,seed,temperature,top_k,top_p,min_p,use_cache,model,size}'),
    ('generate_choice', 'x', null, '{"choices": ["a", "b"]}',
        '{choices,max_tokens,seed,temperature,top_k,top_p,min_p,use_cache,model,size}'),
    ('embed', 'x', null, '{}', '{batch,mode,task,truncate,seed,use_cache,model,size}'),
    ('batch_embed', null, '{x,y}', '{}', '{mode,task,truncate,seed,use_cache,model,size}'),
    ('rerank', 'x', '{d}', '{}', '{task,return_scores,truncate,seed,use_cache,model,size}'),
    ('batch_rerank', null, '{q}', '{"documents": ["d"]}', '{documents,task,return_scores,truncate,seed,use_cache,model,size}');
create temporary table valid (name text, value jsonb);
insert into valid values
    ('max_tokens', '16'), ('seed', '7'), ('temperature', '0.5'), ('top_k', '3'), ('top_p', '0.5'), ('min_p', '0.1'),
    ('use_cache', 'false'), ('size', '"builtin"'), ('eos_string', '"END"'), ('mode', '"query"'),
    ('task', '"find it"'), ('batch', 'true'), ('truncate', 'true'), ('return_scores', 'false'), ('documents', '["d"]'),
    ('schema', 'true'), ('pattern', '"a"'), ('choices', '["a", "b"]');

select lives_ok(pg_temp.insert_of(request_type, prompt, prompts, params), request_type || ' as it should be') from types;
select lives_ok(
    pg_temp.insert_of(t.request_type, t.prompt, t.prompts, t.params || (
        select jsonb_object_agg(v.name, v.value) from valid as v where v.name = any (t.taken) and not t.params ? v.name)),
    t.request_type || ' takes all of its parameters at once')
from types as t;
select throws_ok(
    pg_temp.insert_of(t.request_type, t.prompt, t.prompts, t.params || jsonb_build_object(v.name, v.value)),
    '22023', null, format('%s takes no parameter %s', t.request_type, v.name))
from types as t, valid as v
where v.name <> all (t.taken) and (t.request_type, v.name) <> ('rerank', 'documents')
order by t.request_type, v.name;
create function pg_temp.hint_of(p_sql text) returns text language plpgsql as $$
declare
    v_hint text;
begin
    execute p_sql;
    return 'no error';
exception when others then
    get stacked diagnostics v_hint = pg_exception_hint;
    return v_hint;
end
$$;
select is(
    pg_temp.hint_of(pg_temp.insert_of('embed', 'x', null, '{"max_tokens": 3}')),
    'Parameters of embed: batch, mode, task, truncate, dimensions, seed, use_cache, model, size, default_model.', 'the hint says what the type takes');

-- The forms in which much was let in.
create temporary table hostile (what text, request_type text, prompt text, prompts text[], params jsonb, code text);
insert into hostile values
    ('a query of 50 MB of a generation', 'generate', 'x', null, jsonb_build_object('query', repeat('x', 50000000)), '54000'),
    ('a query of 500 kB of a generation', 'generate', 'x', null, jsonb_build_object('query', repeat('x', 500000)), '22023'),
    ('documents of an embedding', 'embed', 'x', null, jsonb_build_object('documents', (select jsonb_agg(repeat('x', 100000)) from generate_series(1, 100))), '54000'),
    ('a million empty documents of a generation', 'generate', 'x', null, jsonb_build_object('documents', (select jsonb_agg(''::text) from generate_series(1, 1000000))), '54000'),
    ('a hundred thousand empty documents of a generation', 'generate', 'x', null, jsonb_build_object('documents', (select jsonb_agg(''::text) from generate_series(1, 100000))), '22023'),
    ('a million empty documents of a ranking', 'rerank', 'q', null, jsonb_build_object('documents', (select jsonb_agg(''::text) from generate_series(1, 1000000))), 'P0001'),
    ('a million empty documents in prompts', 'rerank', 'q', array_fill(''::text, array[1000000]), '{}', 'P0001'),
    ('a million queries', 'batch_rerank', null, array_fill('q'::text, array[1000000]), '{"documents": ["d"]}', 'P0001'),
    ('a million texts', 'batch_embed', null, array_fill('q'::text, array[1000000]), '{}', 'P0001'),
    ('documents beside prompts', 'rerank', 'q', '{d}', '{"documents": ["d"]}', '22023'),
    ('a query beside the prompt', 'rerank', 'q', '{d}', '{"query": "q"}', '22023'),
    ('a query beside prompts', 'batch_rerank', null, '{q}', '{"query": "q", "documents": ["d"]}', '22023'),
    ('a prompt beside prompts', 'batch_rerank', 'q', '{q}', '{"documents": ["d"]}', '22023'),
    ('a prompt of 50 MB beside prompts', 'batch_rerank', repeat('x', 50000000), '{q}', '{"documents": ["d"]}', '22023'),
    ('a prompt of a batch of embeddings', 'batch_embed', repeat('x', 50000000), '{x}', '{}', '22023'),
    ('a prompt of 50 MB', 'embed', repeat('x', 50000000), null, '{}', '54000'),
    ('a member of a batch of 50 MB', 'embed', repeat('x', 50000000), null, '{"batch": true}', '54000'),
    ('a query among params that is too long', 'rerank', null, '{d}', jsonb_build_object('query', repeat('x', 1048577)), '54000'),
    ('a document among params that is too long', 'rerank', 'q', null, jsonb_build_object('documents', jsonb_build_array(repeat('x', 1048577))), '54000'),
    ('texts that are too long together', 'batch_embed', null, array_fill(repeat('x', 1000000), array[80]), '{}', '54000'),
    ('documents among params that are too long together', 'rerank', 'q', null, jsonb_build_object('documents', (select jsonb_agg(repeat('x', 1000000)) from generate_series(1, 80))), '54000'),
    ('many spaces', 'embed', repeat(' ', 50000000), null, '{}', '54000'),
    ('a text parameter that is too long', 'generate', 'x', null, jsonb_build_object('model', repeat('x', 1025)), '22023'),
    ('a text parameter of 3 MB', 'generate', 'x', null, jsonb_build_object('eos_string', repeat('x', 3000000)), '54000'),
    ('a text parameter of 2 MB', 'embed', 'x', null, jsonb_build_object('task', repeat('x', 2000000)), '54000'),
    ('a conversation of 2 MB', 'generate', 'x', null, jsonb_build_object('messages', jsonb_build_array(jsonb_build_object('role', 'user', 'content', repeat('x', 1048576)))), '54000'),
    ('300 messages', 'generate', 'x', null, jsonb_build_object('messages', (select jsonb_agg(jsonb_build_object('role', 'user', 'content', 'x')) from generate_series(1, 300))), '22023'),
    ('messages that are nested very deeply', 'generate', 'x', null, jsonb_build_object('messages', (repeat('[', 5000) || repeat(']', 5000))::jsonb), '22023'),
    ('a bias of very many tokens', 'generate', 'x', null, jsonb_build_object('logit_bias', (select jsonb_object_agg(i, 1) from generate_series(1, 100000) as i)), '54000'),
    ('a name of 3 MB', 'generate', 'x', null, jsonb_build_object(repeat('x', 3000000), 1), '54000'),
    ('a thousand unknown names', 'generate', 'x', null, (select jsonb_object_agg('name' || i, i) from generate_series(1, 1000) as i), '22023'),
    ('a schema of a million elements', 'generate_json', 'x', null, jsonb_build_object('schema', jsonb_build_object('enum', (select jsonb_agg(i) from generate_series(1, 100000) as i))), '54000'),
    ('more choices than there may be', 'generate_choice', 'x', null, jsonb_build_object('choices', (select jsonb_agg('c' || i) from generate_series(1, 1001) as i)), '22023'),
    ('a hundred thousand choices', 'generate_choice', 'x', null, jsonb_build_object('choices', (select jsonb_agg('c' || i) from generate_series(1, 50000) as i)), '22023'),
    ('a schema that is nested very deeply', 'generate_json', 'x', null, jsonb_build_object('schema', (repeat('[', 5000) || repeat(']', 5000))::jsonb), '22023'),
    ('a parameter that is nested very deeply', 'generate', 'x', null, jsonb_build_object('seed', (repeat('[', 5000) || repeat(']', 5000))::jsonb), '22023'),
    ('a type of 2 MB', repeat('x', 2000000), 'x', null, '{}', '54000'),
    ('a scalar for params', 'generate', 'x', null, '7', '22023');
select throws_ok(
    format('insert into steadytext_queue (request_type, prompt, prompts, params)
        select request_type, prompt, prompts, params from hostile where what = %L', what), code, null, what)
from hostile;
select throws_ok(
    $$ insert into steadytext_queue (request_type, prompt, session_id) values ('generate', 'x', repeat('s', 50000000)) $$,
    '54000', 'session_id cannot be longer than 1024 bytes', 'a label of 50 MB');
-- Errors say nothing of the words.
select throws_ok(
    $$ insert into steadytext_queue (request_type, prompt, params) values ('embed', 'sesame', '{"max_tokens": "sesame"}') $$,
    '22023', 'requests of type embed take no parameter max_tokens', 'no word of the request is in the message');

-- Numbers, however they are written.
create function pg_temp.key(p_params text) returns text language sql as $$
    select steadytext_cache_key('generate', 'x', p_params::jsonb)
$$;
select is(pg_temp.key('{"max_tokens": 16.0}'), pg_temp.key('{"max_tokens": 16}'), '16.0 is 16');
select is(pg_temp.key('{"max_tokens": 1.6e1}'), pg_temp.key('{"max_tokens": 16}'), '1.6e1 is 16');
select is(pg_temp.key('{"max_tokens": 1e3}'), pg_temp.key('{"max_tokens": 1000}'), '1e3 is 1000');
select isnt(pg_temp.key('{"max_tokens": 160}'), pg_temp.key('{"max_tokens": 16}'), '160 is not 16');
select is(pg_temp.key('{"max_tokens": null, "temperature": null, "model": null}'), 'x', 'null means the default');
select is(pg_temp.key('{"temperature": 0.10, "seed": 1}'), pg_temp.key('{"temperature": 1e-1, "seed": 1}'), '0.10 is 1e-1');
select isnt(pg_temp.key('{"temperature": 0.1001}'), pg_temp.key('{"temperature": 0.1}'), '0.1001 is not 0.1');
select isnt(pg_temp.key('{"temperature": 10.01}'), pg_temp.key('{"temperature": 1.001}'), '10.01 is not 1.001');
select is(pg_temp.key('{"temperature": 1, "seed": -9223372036854775808}') is null, false, 'the least seed');
select isnt(pg_temp.key('{"temperature": 1, "seed": 9223372036854775807}'), pg_temp.key('{"temperature": 1, "seed": 9223372036854775806}'), 'the greatest seeds differ');
select isnt(pg_temp.key('{"temperature": 1, "seed": -10000}'), pg_temp.key('{"temperature": 1, "seed": 10000}'), 'the sign counts');
select throws_ok($$ select pg_temp.key('{"max_tokens": 16.5}') $$, 'P0001', null, '16.5 tokens');
select throws_ok($$ select pg_temp.key('{"seed": 9223372036854775808}') $$, '22023', null, 'a seed that is too great');
select throws_ok($$ select pg_temp.key('{"temperature": 1e400}') $$, '22023', null, 'a number beyond all doubles');
select throws_ok($$ select pg_temp.key('{"temperature": 101}') $$, '22023', null, 'a temperature that is too high');
select throws_ok($$ select pg_temp.key('{"max_tokens": 1e100000}') $$, '22023', null, 'a number of a hundred thousand digits');
select throws_ok($$ select steadytext_cache_key('generate_json', 'x', '{"schema": {"const": 1e400}}') $$, '22023', null, 'a number beyond all doubles in a schema');
select throws_ok(
    $$ select steadytext_cache_key('generate_json', 'x', jsonb_build_object('schema', (repeat('[', 5000) || repeat(']', 5000))::jsonb)) $$,
    '22023', null, 'cache_key: nested input');
select throws_ok(
    $$ select steadytext_cache_key('generate', 'x', jsonb_build_object('query', repeat('x', 50000000))) $$, '54000', null, 'cache_key: 50 MB');
select throws_ok($$ select steadytext_cache_key('embed', 'x', '{"max_tokens": 3}') $$, '22023', null, 'cache_key: what the type does not take');

-- In the same statement.
select throws_ok(
    $$ select steadytext_rerank_batch(array['q'], array_fill(''::text, array[1000000])) $$, 'P0001',
    'Batch size cannot exceed 1000 documents', 'a million documents of a call');
select throws_ok(
    $$ select steadytext_rerank_batch(array['q'], array_fill(repeat('x', 1000000), array[80])) $$, '54000', null, 'documents of a call that are too long together');
select throws_ok(
    $$ select steadytext_generate_choice('x', array_fill('c'::text, array[1000000])) $$, '54000', null, 'a million choices of a call');
select throws_ok($$ select steadytext_generate(repeat('x', 50000000)) $$, '54000', null, 'a prompt of 50 MB of a call');

select * from finish();
rollback;
