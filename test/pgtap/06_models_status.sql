-- The registry of models, and what is said of workers.
\ir setup.psql
select plan(53);

select set_eq(
    $$ select name, task, is_preferred from steadytext_models where is_default and (is_preferred or is_fallback or repo is null) $$,
    $$ values ('small', 'generate', true), ('qwen2.5-3b', 'generate', false), ('qwen3-1.7b-fallback', 'generate', false),
        ('embedding', 'embed', true), ('reranker', 'rerank', true) $$,
    'a fresh database prefers these models, and falls back on these'
);
select set_eq(
    $$ select name from steadytext_models where is_default and not is_preferred and not is_fallback $$,
    $$ values ('medium'), ('large'), ('qwen3-0.6b'), ('qwen3-1.7b'), ('qwen3-4b'), ('qwen3.5-0.8b'), ('qwen3.5-2b'), ('qwen3.5-4b'),
        ('gemma-3-270m'), ('gemma-3-1b'), ('gemma-3-4b'), ('gemma-3n-e2b'), ('gemma-3n-e4b'), ('gemma-4-e2b'), ('gemma-4-e4b'),
        ('smollm2-135m'), ('smollm2-1.7b'), ('smollm3-3b'), ('llama-3.2-1b'), ('llama-3.2-3b'), ('phi-4-mini'), ('gpt-oss-20b'),
        ('embeddinggemma-300m'), ('bge-m3'), ('bge-small-en-v1.5'), ('multilingual-e5-small'), ('nomic-embed-v1.5'), ('nomic-embed-v2'),
        ('all-minilm-l6-v2'), ('gte-modernbert-base'), ('qwen3-reranker-0.6b'), ('bge-reranker-v2-m3'),
        ('gte-reranker-modernbert-base') $$,
    'and knows these beside them'
);
-- The trigger was not there yet when they were inserted.
select is_empty(
    $$ select name from steadytext_models where is_default and (
        name !~ '^[A-Za-z0-9][A-Za-z0-9._-]{0,62}$' or task not in ('generate', 'embed', 'rerank') or starts_with(file, '/')
        or sha256 !~ '^[0-9a-f]{64}$' or repo !~ '^[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+$' or revision !~ '^[0-9a-f]{40}$' or size <= 0
        or (file like '%.gguf') = (file !~ '[.]gguf$')) $$,
    'all of them could be rows of somebody''s own'
);
select lives_ok(
    $$ insert into steadytext_models (name, task, file, sha256) values ('mine', 'generate', 'mine.gguf', repeat('0a', 32)) $$,
    'a model can be registered');
select is((select is_default from steadytext_models where name = 'mine'), false, 'and is no default row');
select throws_ok($$ insert into steadytext_models (name, task, file) values ('builtin', 'generate', 'x') $$, '22023', null, 'builtin is taken');
select throws_ok($$ insert into steadytext_models (name, task, file) values ('auto', 'generate', 'x') $$, '22023', null, 'auto is taken');
select throws_ok($$ insert into steadytext_models (name, task, file) values ('../etc', 'generate', 'x') $$, '22023', null, 'a name that is none');
select throws_ok($$ insert into steadytext_models (name, task, file) values ('x', 'sing', 'x') $$, '22023', null, 'unknown task');
select throws_ok($$ insert into steadytext_models (name, task, file) values ('x', null, 'x') $$, '22023', null, 'no task');
select throws_ok($$ insert into steadytext_models (name, task, file) values ('x', 'embed', '') $$, '22023', null, 'no file');
select throws_ok($$ insert into steadytext_models (name, task, file, sha256) values ('x', 'embed', 'x', 'ABC') $$, '22023', null, 'no sha256');
select throws_ok($$ insert into steadytext_models (name, task, file, size) values ('x', 'embed', 'x', -1) $$, '22023', null, 'no size');
select throws_ok($$ insert into steadytext_models (name, task, file, query_prompt) values ('x', 'embed', 'x', repeat('q', 5000)) $$, '22023', null, 'a prompt without end');
select throws_ok($$ insert into steadytext_models (name, task, file, licence) values ('x', 'embed', 'x', repeat('m', 513)) $$, '22023', 'invalid licence of model "x"', 'a licence without end');
select throws_ok($$ insert into steadytext_models (name, task, file, licence) values ('x', 'embed', 'x', E'mit\n') $$, '22023', 'invalid licence of model "x"', 'a licence of several lines');
select throws_ok($$ update steadytext_models set licence = E'\x07' where name = 'mine' $$, '22023', 'invalid licence of model "mine"', 'also of a model that is there');
select throws_ok($$ insert into steadytext_models (name, task, file, dimensions) values ('x', 'embed', 'x', '{0}') $$, '22023', null, 'a vector of nothing');
select throws_ok($$ insert into steadytext_models (name, task, file, dimensions) values ('x', 'embed', 'x', '{16001}') $$, '22023', null, 'a vector that is too long');
select throws_ok($$ insert into steadytext_models (name, task, file, dimensions) values ('x', 'embed', 'x', '{8,null}') $$, '22023', null, 'no length');
select throws_ok($$ insert into steadytext_models (name, task, file, dimensions) values ('x', 'embed', 'x', '{{8},{9}}') $$, '22023', null, 'lengths of lengths');
select throws_ok($$ insert into steadytext_models (name, task, file, dimensions) values ('x', 'embed', 'x', array_fill(8, array[65])) $$, '22023', null, 'lengths without end');
select set_eq(
    $$ select name, query_prompt, passage_prompt, dimensions from steadytext_models where is_default and (query_prompt, passage_prompt, dimensions) is distinct from (null, null, null) $$,
    $$ values ('embedding', E'Instruct: {task}\nQuery:', null, '{32,64,128,256,512,768,1024}'::integer[]),
        ('embeddinggemma-300m', 'task: {task=search result} | query: ', 'title: none | text: ', '{128,256,512,768}'),
        ('bge-small-en-v1.5', 'Represent this sentence for searching relevant passages: ', null, null),
        ('multilingual-e5-small', 'query: ', 'passage: ', null),
        ('nomic-embed-v1.5', 'search_query: ', 'search_document: ', '{64,128,256,512,768}'),
        ('nomic-embed-v2', 'search_query: ', 'search_document: ', '{256,768}') $$,
    'prompts and dimensions are those of the public cards'
);
select throws_ok($$ insert into steadytext_models (name, task, file) values ('mine', 'embed', 'x') $$, '23505', null, 'a name is used once');
-- Files below the directory of the models; others are the superuser's.
select throws_ok($$ insert into steadytext_models (name, task, file) values ('x', 'embed', '../x.gguf') $$, '22023', null, 'a file above the directory');
select throws_ok($$ insert into steadytext_models (name, task, file) values ('x', 'embed', 'a/../../x.gguf') $$, '22023', null, 'on a detour');
select throws_ok($$ insert into steadytext_models (name, task, file) values ('x', 'embed', 'a/..') $$, '22023', null, 'at the end');
select throws_ok($$ insert into steadytext_models (name, task, file) values ('x', 'embed', E'a\nb') $$, '22023', null, 'a line feed in the name');
select lives_ok($$ insert into steadytext_models (name, task, file) values ('dots', 'embed', 'a..b/..c/d...gguf') $$, 'dots in names are no way up');
select throws_ok(
    $$ select pg_temp.written_as('st_root', $q$ insert into steadytext_models (name, task, file) values ('x', 'embed', '/etc/passwd') $q$) $$,
    '42501', 'only superusers may register a model file by its absolute path', 'an administrator names no absolute path');
insert into steadytext_models (name, task, file) values ('far', 'embed', '/srv/far.gguf');
select is(
    pg_temp.written_as('st_root', $$ update steadytext_models set description = 'far away', file = file where name = 'far' $$),
    1::bigint, 'but changes the rest of a row in which a superuser has named one');
select throws_ok(
    $$ select pg_temp.written_as('st_root', $q$ update steadytext_models set file = '/srv/other.gguf' where name = 'far' $q$) $$,
    '42501', null, 'and not the path itself');
select throws_ok(
    $$ select pg_temp.written_as('st_root', $q$ update steadytext_models set file = '/srv/far.gguf' where name = 'dots' $q$) $$,
    '42501', null, 'nor that of another row');
select throws_ok(
    $$ select pg_temp.written_as('st_root', $q$ insert into steadytext_models (name, task, file) values ('dots', 'embed', '/srv/far.gguf')
        on conflict (name) do update set file = excluded.file $q$) $$,
    '42501', null, 'nor by way of a conflict');
select is(
    pg_temp.written_as('st_root', $$ insert into steadytext_models (name, task, file) values ('dots', 'embed', 'near.gguf')
        on conflict (name) do update set file = excluded.file $$),
    1::bigint, 'a conflict leads to an update');
select is(
    pg_temp.written_as('st_root', $$ update steadytext_models set file = 'near.gguf' where name = 'far' $$),
    1::bigint, 'an absolute path can be given up');
update steadytext_models set file = 'other.gguf' where name = 'medium';
select results_eq(
    $$ select is_default, updated_at from steadytext_models where name = 'medium' $$, $$ values (false, now()) $$,
    'a changed row is no default any more');
update steadytext_models set file = file where name = 'large';
select is((select is_default from steadytext_models where name = 'large'), true, 'an update that changes nothing leaves it one');
insert into steadytext_models (name, task, file, description, created_at, is_default)
values ('small', 'generate', 'restored.gguf', 'from a dump', '2020-01-01', false);
select results_eq(
    $$ select file, description, created_at, is_default from steadytext_models where name = 'small' $$,
    $$ values ('restored.gguf', 'from a dump', '2020-01-01'::timestamptz, false) $$,
    'a restored row replaces the default row'
);

-- Status.
select is(steadytext_version(), st_version(), 'st_version');
select matches(steadytext_version(), '^\d+\.\d+\.\d+$', 'version');
select is((select count(*) from steadytext.worker_state()), 1::bigint, 'worker_state: always one row');
select ok(
    (select state in ('not_preloaded', 'stopped', 'starting', 'idle', 'running', 'paused', 'version_mismatch') from steadytext.worker_state()),
    'worker_state: a known state');
select is((select count(*) from steadytext_daemon_status()), 1::bigint, 'daemon_status: one row for this server''s worker');
select is((select status from steadytext_daemon_status()), (select state from steadytext.worker_state()), 'daemon_status: its state');
select is((select s.status from st_daemon_status() as s), (select s.status from steadytext_daemon_status() as s), 'st_daemon_status');
select ok((select pending = 0 from steadytext_daemon_status()), 'daemon_status: nothing waits');
select steadytext_generate_async('x'), steadytext_embed_async('y');
select is((select pending from steadytext_daemon_status()), 2::bigint, 'daemon_status: counts what waits');
select is(pg_temp.run_as('st_alice', 'select pending from steadytext_daemon_status()'), '0', 'users count their own requests only');
select is(pg_temp.run_as('st_root', 'select pending from steadytext_daemon_status()'), '2', 'administrators count all');

select steadytext.record_heartbeat('elsewhere-1', 'gpu-box', 'running', '2.0.0', '["small", {"name": "embedding"}]', 4096, 3, 100, 2, 12.5);
select results_eq(
    $$ select daemon_id, status, endpoint, version, models_loaded, running from steadytext_daemon_status() offset 1 $$,
    $$ values ('elsewhere-1', 'running', 'gpu-box', '2.0.0', array['small', 'embedding'], 3) $$,
    'daemon_status: a worker on another machine'
);
update steadytext_daemon_health set last_heartbeat = now() - interval '5 minutes' where daemon_id = 'elsewhere-1';
select is((select status from steadytext_daemon_status() where endpoint = 'gpu-box'), 'stale', 'a heartbeat that is long ago is stale');

select is_empty($$ select * from steadytext_activity where request_id is null $$, 'steadytext_activity can be read');

select * from finish();
rollback;
