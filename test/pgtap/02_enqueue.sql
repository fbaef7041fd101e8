-- Enqueuing single requests: what a row looks like, and every limit, by function and by
-- plain INSERT.
\ir setup.psql
select plan(96);

-- The row of a request.
create function pg_temp.request(p_id uuid) returns steadytext_queue
language sql as $$ select * from steadytext_queue where request_id = p_id $$;

select is((r).request_type, 'generate', 'generate_async: type') from pg_temp.request(steadytext_generate_async('Say hello')) as r;
select is((r).prompt, 'Say hello', 'generate_async: prompt') from pg_temp.request(steadytext_generate_async('Say hello')) as r;
select is((r).params, '{}', 'generate_async: defaults are left out') from pg_temp.request(steadytext_generate_async('Say hello')) as r;
select is((r).params, '{}', 'generate_async: defaults that are given are left out too')
from pg_temp.request(steadytext_generate_async('Say hello', null, true, 42, '[EOS]', null, null, 0, 5)) as r;
select is((r).params, '{}', 'generate_async: NULL means the default')
from pg_temp.request(steadytext_generate_async('Say hello', null, null, null, null, null, null, null, null)) as r;
select is((r).priority, 5, 'generate_async: NULL priority means 5')
from pg_temp.request(steadytext_generate_async('Say hello', priority => null)) as r;
select is((r).priority, 9, 'generate_async: priority') from pg_temp.request(steadytext_generate_async('Say hello', priority => 9)) as r;
select is((r).params,
    '{"max_tokens": 512, "use_cache": false, "seed": 7, "eos_string": "STOP", "model": "small", "size": "large", "temperature": 0.5}',
    'generate_async: everything else goes into params')
from pg_temp.request(steadytext_generate_async('Say hello', 512, false, 7, 'STOP', 'small', 'large', 0.5)) as r;
select is((r).params, '{"seed": 42, "temperature": 1}', 'generate_async: the seed is kept where a temperature makes it matter')
from pg_temp.request(steadytext_generate_async('Say hello', temperature => 1)) as r;
select is((r).params, '{"temperature": 1}', 'generate_async: a NULL seed is left to the setting')
from pg_temp.request(steadytext_generate_async('Say hello', temperature => 1, seed => null)) as r;
select is((r).status, 'pending', 'a new request is pending') from pg_temp.request(steadytext_generate_async('Say hello')) as r;
select is((r).owner_role::name, current_user::name, 'a new request belongs to the current user') from pg_temp.request(steadytext_generate_async('Say hello')) as r;
select ok(
    (r).attempt = 0 and (r).retry_count = 0 and (r).max_retries is null and not (r).alone and (r).run_after is null
        and (r).worker is null and (r).lease_expires_at is null and (r).started_at is null,
    'a new request has not been tried'
) from pg_temp.request(steadytext_generate_async('Say hello')) as r;

select is((r).request_type, 'embed', 'embed_async: type') from pg_temp.request(steadytext_embed_async('A text')) as r;
select is((r).prompt, 'A text', 'embed_async: text') from pg_temp.request(steadytext_embed_async('A text')) as r;
select is((r).params, '{}', 'embed_async: defaults are left out') from pg_temp.request(steadytext_embed_async('A text')) as r;
select is((r).params, '{"use_cache": false, "seed": 1, "model": "embedding"}', 'embed_async: everything else goes into params')
from pg_temp.request(steadytext_embed_async('A text', false, 1, 'embedding')) as r;
select is((r).priority, 1, 'embed_async: priority') from pg_temp.request(steadytext_embed_async('A text', priority => 1)) as r;

select is((r).params, '{"mode": "query", "task": "Find it"}', 'embed_async: mode and task come last')
from pg_temp.request(steadytext_embed_async('A text', true, 42, null, 5, 'query', 'Find it')) as r;
select is((r).params, '{"task": "Find it"}', 'embed_async: a task is enough') from pg_temp.request(steadytext_embed_async('A text', task => 'Find it')) as r;
select is((r).params, '{"mode": "passage"}', 'st_embed_async: mode') from pg_temp.request(st_embed_async('A text', mode => 'passage')) as r;

select isnt(st_generate_async('Say hello'), null, 'st_generate_async enqueues');
select isnt(st_embed_async('A text'), null, 'st_embed_async enqueues');

-- Request ids: UUID version 7, variant 2, rising.
select matches(steadytext_generate_async('Say hello')::text, '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$', 'request ids are UUIDs of version 7');
select ok(bool_and(later > earlier), 'later request ids are greater')
from (
    select request_id as later, lag(request_id) over (order by id) as earlier from steadytext_queue
) as ids
where earlier is not null;

-- Limits.
select throws_ok($$ select steadytext_generate_async('') $$, 'P0001', 'Prompt cannot be empty', 'empty prompt');
select throws_ok($$ select steadytext_generate_async(E' \t\n') $$, 'P0001', 'Prompt cannot be empty', 'blank prompt');
select throws_ok($$ select steadytext_generate_async(null) $$, 'P0001', 'Prompt cannot be empty', 'NULL prompt');
select throws_ok($$ select steadytext_embed_async('') $$, 'P0001', 'Text input cannot be empty', 'empty text');
select throws_ok($$ select steadytext_embed_async('x', mode => 'question') $$, '22023', 'mode must be "query" or "passage"', 'an unknown mode');
select throws_ok($$ select steadytext_embed_async('x', mode => 'passage', task => 'Find it') $$, '22023', 'a task is for texts of mode query, and the mode is passage', 'a passage with a task');
select throws_ok($$ select steadytext_embed_async('x', task => '') $$, '22023', null, 'an empty task');
select throws_ok($$ select steadytext_embed_async('x', task => repeat('x', 1025)) $$, '22023', null, 'a long task');
select throws_ok($$ insert into steadytext_queue (request_type, prompts) values ('batch_embed', array['x', ' ', 'y']) $$,
    'P0001', 'text 2: Text input cannot be empty', 'batch_embed: which text is empty');
select throws_ok($$ insert into steadytext_queue (request_type, prompts) values ('batch_embed', '{}') $$,
    'P0001', 'Texts array cannot be empty', 'batch_embed: no texts');
select throws_ok($$ insert into steadytext_queue (request_type, prompts) values ('batch_embed', array['x', null]) $$,
    'P0001', null, 'batch_embed: NULL is no text');
select throws_ok($$ select steadytext_embed_async('  ') $$, 'P0001', 'Text input cannot be empty', 'blank text');
select throws_ok($$ select steadytext_embed_async(null) $$, 'P0001', 'Text input cannot be empty', 'NULL text');
select throws_ok($$ select steadytext_generate_async('x', 0) $$, 'P0001', 'max_tokens must be between 1 and 4096', 'max_tokens 0');
select throws_ok($$ select steadytext_generate_async('x', -1) $$, 'P0001', 'max_tokens must be between 1 and 4096', 'max_tokens -1');
select throws_ok($$ select steadytext_generate_async('x', 4097) $$, 'P0001', 'max_tokens must be between 1 and 4096', 'max_tokens 4097');
select lives_ok($$ select steadytext_generate_async('x', 4096) $$, 'max_tokens 4096');
select throws_ok($$ select steadytext_generate_async('x', priority => 0) $$, '22023', null, 'priority 0');
select throws_ok($$ select steadytext_generate_async('x', priority => 11) $$, '22023', null, 'priority 11');
select throws_ok($$ select steadytext_embed_async('x', priority => 11) $$, '22023', null, 'embed_async: priority 11');
select throws_ok($$ select steadytext_generate_async('x', temperature => -1) $$, '22023', null, 'negative temperature');
select throws_ok($$ select steadytext_generate_async('x', temperature => 'NaN') $$, '22023', null, 'a temperature that is no number');
select throws_ok($$ select steadytext_generate_async('x', temperature => 'Infinity') $$, '22023', null, 'infinite temperature');
select throws_ok($$ select steadytext_generate_async('x', eos_string => '') $$, '22023', null, 'empty eos_string');
select throws_ok($$ select steadytext_generate_async(repeat('x', 1048577)) $$, '54000', null, 'a prompt that is too long');

-- Models are looked up when a request is enqueued.
create function pg_temp.hint_of(p_statement text) returns text language plpgsql as $$
declare
    v_hint text;
begin
    execute p_statement;
    return 'no error';
exception when others then
    get stacked diagnostics v_hint = pg_exception_hint;
    return v_hint;
end
$$;
select throws_ok(format('select %s', call), '42704', message, call)
from (
    values ($$steadytext_generate_async('x', model => 'nix')$$, 'model "nix" is not registered'),
        ($$steadytext_generate_async('x', size => 'tiny')$$, 'model "tiny" is not registered'),
        ($$steadytext_embed_async('x', model => '/etc/passwd')$$, 'model "/etc/passwd" is not registered'),
        ($$steadytext_generate_choice_async('x', array['a', 'b'], model => 'nix')$$, 'model "nix" is not registered'),
        ($$steadytext_rerank_async('x', array['a', 'b'], model => 'nix')$$, 'model "nix" is not registered')
) as unknown(call, message);
select throws_ok($$ select steadytext_embed_async('x', model => 'small') $$, '42809', 'model "small" is registered for task generate, not embed', 'a model of another task');
select throws_ok($$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{"model": "nix"}') $$, '42704', 'model "nix" is not registered', 'INSERT: an unknown model');
select throws_ok($$ insert into steadytext_queue (request_type, prompts, params) values ('batch_embed', '{x}', '{"model": "nix"}') $$, '42704', null, 'INSERT: an unknown model of a batch type');
select is(pg_temp.hint_of($$ select steadytext_generate_async('x', model => 'smal') $$),
    'Did you mean "small", which is not downloaded? steadytext_model_list() shows the models there are.', 'the hint names models that are called much the same');
select is(pg_temp.hint_of($$ select steadytext_rerank_async('x', array['a'], model => 'something else') $$),
    'Models for this task: "builtin". steadytext_model_list() shows all; administrators add to them with steadytext_model_pull(), in steadytext_models or as files in pg_steadytext.model_dir.',
    'or those of the task');
select lives_ok($$ select steadytext_generate_async('x', model => 'builtin'), steadytext_generate_async('x', size => 'medium') $$, 'a model whose file may come later');
insert into steadytext_models (name, task, file) values ('new-model', 'generate', 'new.gguf');
select lives_ok($$ select steadytext_generate_async('x', model => 'new-model') $$, 'a model that was registered in the same transaction');
delete from steadytext_models where name = 'new-model';
select throws_ok($$ select steadytext_generate_async('x', model => 'new-model') $$, '42704', null, 'and one that was removed in it');
select lives_ok(
    $$ insert into steadytext_queue (request_type, prompt, params, created_at) values ('generate', 'x', '{"model": "new-model"}', now() - interval '1 day') $$,
    'a restored row may name a model that is gone');

-- One meaning for parameters, however they are written.
select lives_ok(
    $$ insert into steadytext_queue (request_type, prompt, params)
       values ('generate', 'x', '{"max_tokens": 16.0, "seed": 7.00, "top_k": 4e1, "temperature": 0.50, "model": null, "use_cache": null}') $$,
    'INSERT: whole numbers are integers, and null is the default');
select throws_ok(
    format('insert into steadytext_queue (request_type, prompt, params) values (''generate'', ''x'', %L)', params), code, message, 'INSERT: ' || params)
from (
    values ('{"max_tokens": 16.5}', 'P0001', 'max_tokens must be between 1 and 4096'),
        ('{"max_tokens": 0.0}', 'P0001', 'max_tokens must be between 1 and 4096'),
        ('{"seed": 7.5}', '22023', 'seed must be an integer'),
        ('{"frobnicate": null}', '22023', 'unknown parameter "frobnicate"'),
        ('{"truncate": true}', '22023', 'requests of type generate take no parameter truncate')
) as wrong(params, code, message);
select throws_ok($$ insert into steadytext_queue (request_type, prompt, params) values ('generate_json', 'x', '{"schema": null}') $$, 'P0001', 'Schema cannot be null', 'INSERT: a null schema is none');
select is((r).params, '{"truncate": true}', 'embed_async: truncate') from pg_temp.request(steadytext_embed_async('A text', truncate => true)) as r;
select is((r).params, '{"dimensions": 256}', 'embed_async: dimensions') from pg_temp.request(steadytext_embed_async('A text', dimensions => 256)) as r;
select throws_ok($$ select steadytext_embed_async('A text', dimensions => 0) $$, '22023', 'dimensions must be an integer between 1 and 16000', 'no dimensions');
select throws_ok($$ select steadytext_embed_async('A text', dimensions => 16001) $$, '22023', null, 'more dimensions than vectors have');
select is((r).params, '{}', 'embed_async: truncate => false is the default') from pg_temp.request(steadytext_embed_async('A text', truncate => false)) as r;
select is((r).params, '{"truncate": true}', 'rerank_async: truncate') from pg_temp.request(steadytext_rerank_async('q', array['d'], truncate => true)) as r;

-- Plain INSERTs have these limits, too.
select lives_ok(
    $$ insert into steadytext_queue (request_type, prompt, params, priority) values ('generate', 'x', '{"max_tokens": 8}', 7) $$,
    'INSERT enqueues');
select lives_ok($$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', null) $$, 'INSERT without params');
select lives_ok(
    $$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{"top_k": 40, "top_p": 0.9, "min_p": 0.05, "temperature": 0.7}') $$,
    'INSERT with sampling parameters');
select throws_ok($$ insert into steadytext_queue (request_type, prompt) values ('generate', '') $$, 'P0001', 'Prompt cannot be empty', 'INSERT: empty prompt');
select throws_ok($$ insert into steadytext_queue (request_type) values ('embed') $$, 'P0001', 'Text input cannot be empty', 'INSERT: no text');
select throws_ok($$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{"max_tokens": 5000}') $$, 'P0001', 'max_tokens must be between 1 and 4096', 'INSERT: max_tokens');
select throws_ok($$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{"max_tokens": "5"}') $$, 'P0001', null, 'INSERT: max_tokens that is no number');
select throws_ok($$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{"frobnicate": 1}') $$, '22023', null, 'INSERT: unknown parameter');
select throws_ok($$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '[]') $$, '22023', null, 'INSERT: params that are no object');
select throws_ok($$ insert into steadytext_queue (request_type, prompt, priority) values ('generate', 'x', 99) $$, '22023', null, 'INSERT: priority');
select throws_ok($$ insert into steadytext_queue (request_type, prompt) values ('knit', 'x') $$, '22023', null, 'INSERT: unknown request type');
select throws_ok($$ insert into steadytext_queue (prompt) values ('x') $$, '22023', null, 'INSERT: no request type');
select throws_ok($$ insert into steadytext_queue (request_type, prompt) values ('generate_dance', 'x') $$, '22023', 'unknown request type "generate_dance"', 'INSERT: a type that begins like a known one');
select throws_ok($$ insert into steadytext_queue (request_type, prompt, max_retries) values ('generate', 'x', 101) $$, '22023', null, 'INSERT: max_retries');

-- Settings.
select steadytext_config_set('max_tokens_limit', '100');
select throws_ok($$ select steadytext_generate_async('x', 101) $$, 'P0001', 'max_tokens must be between 1 and 100', 'the upper end of max_tokens is a setting');
select steadytext_config_set('max_prompt_bytes', '10');
select throws_ok($$ select steadytext_generate_async('12345678901') $$, '54000', null, 'the length of a prompt is a setting');
select lives_ok($$ select steadytext_generate_async('1234567890') $$, 'as long as allowed');
select throws_ok($$ insert into steadytext_queue (request_type, prompt, user_id) values ('generate', 'x', repeat('u', 1025)) $$, '54000', null, 'INSERT: a label that is too long');


-- A restore: rows that were accepted under other limits come in by COPY with their time.
select lives_ok(
    $$ insert into steadytext_queue (request_type, prompt, params, created_at) values ('generate', '12345678901', '{"max_tokens": 4000}', now() - interval '1 day') $$,
    'rows from a dump pass limits that were lowered since');

select * from finish();
rollback;
