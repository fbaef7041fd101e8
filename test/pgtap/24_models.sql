-- Names, defaults and looks at models, as far as a server without any model file can show them.
\ir setup.psql
select plan(33);

-- Defaults of the database.
select is(steadytext_config_get(key), 'auto', key || ' is left to others')
from unnest(array['generation_model', 'embedding_model', 'reranker_model']) as key;
select throws_ok(
    format('select steadytext_config_set(%L, %L)', 'embedding_model', value), '22023',
    format('invalid value for configuration key "embedding_model": %s', left(to_json(value)::text, 63)),
    'no name of a model: ' || left(value, 20))
from unnest(array['', '.', '..', '/etc/passwd', '../x', 'a/b', E'a\nb', repeat('x', 256)]) as value;
select steadytext_config_set('embedding_model', 'my-model.v2');
select is(steadytext_config_get('embedding_model'), 'my-model.v2', 'a name is kept');
select throws_like('select steadytext_embed(''x'')', 'model "my-model.v2" is not registered; embedding_model of steadytext_config names this model', 'and has to be there');
select steadytext_config_set('embedding_model', null);
select is(steadytext_config_get('embedding_model'), 'auto', 'and can be taken back');

-- Defaults of a session.
set pg_steadytext.generation_model = 'builtin';
select lives_ok('select steadytext_generate_async(''x'')', 'a default of the session');
select results_eq(
    $$ select params from steadytext_queue order by id desc limit 1 $$, $$ values ('{"default_model": "builtin"}'::jsonb) $$,
    'is what the request remembers');
select lives_ok('select steadytext_generate_async(''x'', 5, model => ''small'')', 'a model of its own');
select results_eq(
    $$ select params from steadytext_queue order by id desc limit 1 $$, $$ values ('{"model": "small", "max_tokens": 5}'::jsonb) $$,
    'needs no default');
select lives_ok('select steadytext_embed_async(''x'')', 'a request of another task');
select results_eq(
    $$ select params from steadytext_queue order by id desc limit 1 $$, $$ values ('{}'::jsonb) $$, 'neither');
select is(
    (steadytext_generate_batch_async(array['x', 'y']))[1] is not null, true, 'a batch');
select is(
    (select count(*) from steadytext_queue where params = '{"default_model": "builtin"}'), 3::bigint, 'remembers it, too');
set pg_steadytext.generation_model = 'nix';
select throws_ok('select steadytext_generate_async(''x'')', '42704', 'model "nix" is not registered; pg_steadytext.generation_model names this model', 'a default that is not there');
select throws_ok(
    $$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{"default_model": "/etc/passwd"}') $$,
    '42704', 'model "/etc/passwd" is not registered', 'what is remembered is a name');
reset pg_steadytext.generation_model;

-- The list.
select results_eq(
    $$ select name, source, file, size_bytes, tasks, preferred from steadytext_model_list() where name in ('builtin', 'small') order by name $$,
    $$ values ('builtin', 'builtin', null, null::bigint, array['generate', 'embed', 'rerank'], '{}'::text[]),
        ('small', 'registry', 'Qwen3-0.6B-Q8_0.gguf', null, array['generate'], array['generate']) $$,
    'the list of models');
select is(
    pg_temp.run_as('st_alice', 'select count(*) from st_model_list() where name = ''builtin'''), '1', 'is for users');

-- A look at one.
select results_eq(
    $$ select model, file, tasks, family is not null, parameters > 1000000, adapters, memory_mb > 0, loads, reason from steadytext_model_inspect('builtin') $$,
    $$ values ('builtin', null, array['generate', 'embed', 'rerank'], true, true, array[]::text[], true, true, null) $$,
    'the builtin model');
select is(
    (select strpos(prompt, 'What is a tuple?') > 0 from steadytext_model_inspect('builtin', sample => 'What is a tuple?')), true,
    'what a text looks like to it');
select throws_ok('select * from steadytext_model_inspect(''nix'')', '42704', null, 'a model that is not there');
select results_eq(
    $$ select model, tasks, family, size_bytes, loads, reason ~ 'is not there', hint ~ 'steadytext_model_pull' from steadytext_model_inspect('small') $$,
    $$ values ('small', array['generate'], null::text, null::bigint, false, true, true) $$,
    'one whose file is not there');
select throws_ok($$ select pg_temp.run_as('st_alice', 'select model from steadytext_model_inspect(''builtin'')') $$, '42501', null, 'users do not look');

-- Removing.
select ok(steadytext_model_remove('small'), 'a row goes');
select ok(not steadytext_model_remove('small'), 'once');

select * from finish();
rollback;
