-- System prompts, options and conversations: system_prompt, options, messages; the order of properties.
\ir setup.psql
select plan(118);

create function pg_temp.params(p_id uuid) returns jsonb language sql as $$ select params from steadytext_queue where request_id = p_id $$;

-- Without them everything is as it was.
select is(steadytext_generate('Say hello', 20, options => '{}'), steadytext_generate('Say hello', 20), 'no options: the same text');
select is(steadytext_generate('Say hello', 20, options => null), steadytext_generate('Say hello', 20), 'NULL options: the same text');
select is(pg_temp.params(steadytext_generate_async('Say hello', options => '{}')), '{}'::jsonb, 'no options: no params');
select is(pg_temp.params(steadytext_generate_async('Say hello', options => '{"top_p": null}')), '{}'::jsonb, 'options of null are not there');
select is(steadytext_cache_key('generate', 'x', '{"top_p": 1, "repeat_penalty": 1, "stop": [], "thinking": false, "logit_bias": {}}'::jsonb), 'x', 'what says the default has the key of the default');

-- Each function takes them.
create temporary table calls (call text, f text);
insert into calls values
    ($$ steadytext_generate('Say hello', 20 %s) $$, 'generate'),
    ($$ steadytext_generate_cached('Say hello', 20 %s) $$, 'generate_cached'),
    ($$ steadytext_generate_stream('Say hello', 20 %s) $$, 'generate_stream'),
    ($$ steadytext_generate_async('Say hello', 20 %s) $$, 'generate_async'),
    ($$ steadytext_generate_batch_async(array['Say hello'], 20 %s) $$, 'generate_batch_async'),
    ($$ (steadytext_generate_details('Say hello', 20 %s)).text $$, 'generate_details'),
    ($$ steadytext_generate_json('Say hello', '{"const": 1}'::jsonb, 20 %s) $$, 'generate_json'),
    ($$ steadytext_generate_json('Say hello', '{"const": 1}'::json, 20 %s) $$, 'generate_json, json'),
    ($$ steadytext_generate_json('Say hello', '{"const": 1}'::text, 20 %s) $$, 'generate_json, text'),
    ($$ steadytext_generate_json_async('Say hello', '{"const": 1}'::jsonb, 20 %s) $$, 'generate_json_async'),
    ($$ steadytext_generate_json_async('Say hello', '{"const": 1}'::json, 20 %s) $$, 'generate_json_async, json'),
    ($$ steadytext_generate_json_async('Say hello', '{"const": 1}'::text, 20 %s) $$, 'generate_json_async, text'),
    ($$ steadytext_generate_regex('Say hello', '[a-z]{3}', 20 %s) $$, 'generate_regex'),
    ($$ steadytext_generate_regex_async('Say hello', '[a-z]{3}', 20 %s) $$, 'generate_regex_async'),
    ($$ steadytext_generate_choice('Say hello', array['yes', 'no'] %s) $$, 'generate_choice'),
    ($$ steadytext_generate_choice_async('Say hello', array['yes', 'no'] %s) $$, 'generate_choice_async');
select lives_ok(format('select ' || call, $$, system_prompt => 'Be brief.', options => '{"top_p": 0.5, "repeat_penalty": 1.1}'$$), f || ' takes system_prompt and options')
from calls;
select throws_ok(format('select ' || call, $$, options => '{"max_tokens": 3}'$$), '22023', 'unknown option "max_tokens"', f || ': an unknown option')
from calls;
select is(
    pg_temp.params(steadytext_generate_async('x', system_prompt => 'Be brief.', options => '{"stop": ["a"], "min_p": 0.1}')),
    '{"system_prompt": "Be brief.", "stop": ["a"], "min_p": 0.1}'::jsonb, 'in the queue options are params');
select is(
    pg_temp.params((steadytext_generate_batch_async(array['x', 'y'], 7, false, 3, 'END', 'small', 'small', 0.5, 5, 'Be brief.', '{"top_k": 3}'))[2]),
    '{"max_tokens": 7, "use_cache": false, "seed": 3, "eos_string": "END", "model": "small", "size": "small", "temperature": 0.5, "system_prompt": "Be brief.", "top_k": 3}'::jsonb,
    'of a batch too');

-- The effects of the options.
create temporary table usual as select steadytext_generate('What does VACUUM do?', 40) as answer;
select is(steadytext_generate('What does VACUUM do?', 40, options => format('{"stop": [%s]}', to_json(substr(answer, 9, 4)))::jsonb), left(answer, strpos(answer, substr(answer, 9, 4)) - 1), 'stop: the answer ends before it') from usual;
select is(steadytext_generate('What does VACUUM do?', 40, options => format('{"stop": ["@@none@@", %s, %s]}', to_json(substr(answer, 19, 4)), to_json(substr(answer, 9, 4)))::jsonb), left(answer, strpos(answer, substr(answer, 9, 4)) - 1), 'stop: before the first of them') from usual;
select is(
    (select string_agg(piece, '') from steadytext_generate_stream('What does VACUUM do?', 40, options => format('{"stop": [%s]}', to_json(substr(answer, 9, 4)))::jsonb) as piece),
    left(answer, strpos(answer, substr(answer, 9, 4)) - 1), 'stop: pieces of a stream are never part of one') from usual;
select is(
    steadytext_generate('What does VACUUM do?', 40, eos_string => substr(answer, 19, 4), options => format('{"stop": [%s]}', to_json(substr(answer, 9, 4)))::jsonb),
    left(answer, strpos(answer, substr(answer, 9, 4)) - 1), 'stop: together with eos_string') from usual;
select isnt(steadytext_generate('What does VACUUM do?', 40, options => '{"frequency_penalty": 20}'), answer, 'frequency_penalty holds without a temperature') from usual;
select isnt(steadytext_generate('What does VACUUM do?', 40, options => '{"presence_penalty": 20}'), answer, 'presence_penalty does') from usual;
select isnt(steadytext_generate('What does VACUUM do?', 40, options => '{"repeat_penalty": 20}'), answer, 'and repeat_penalty') from usual;
select is(
    (select count(*) - count(distinct token) from unnest(steadytext_tokenize(steadytext_generate('What does VACUUM do?', 12, options => '{"presence_penalty": 100}'))) as token),
    0::bigint, 'with the highest penalty no token comes twice');
select is(
    steadytext_generate('What does VACUUM do?', 40, options => '{"frequency_penalty": 3}'), steadytext_generate('What does VACUUM do?', 40, use_cache => false, options => '{"frequency_penalty": 3}'),
    'penalties: the same again');
select is(
    steadytext_generate('Say hello', 4, options => format('{"logit_bias": {"%s": 100}}', (steadytext_tokenize(' VACUUM'))[1])::jsonb),
    repeat(convert_from(convert_to(' VACUUM', 'UTF8'), 'UTF8'), 4), 'logit_bias: a token that is wanted above all')
where cardinality(steadytext_tokenize(' VACUUM')) = 1
union all select pass('logit_bias: not a token by itself here') where cardinality(steadytext_tokenize(' VACUUM')) <> 1;
select isnt(
    steadytext_generate('What does VACUUM do?', 40, options => format('{"logit_bias": {"%s": -100}}', (steadytext_tokenize(answer))[1])::jsonb), answer,
    'logit_bias: a token that is not wanted') from usual;
select is(
    steadytext_generate('Say hello', 30, seed => 1, temperature => 2, options => '{"top_k": 1}'), steadytext_generate('Say hello', 30),
    'top_k of 1 takes the most likely token');
select is(
    steadytext_generate('Say hello', 30, seed => 1, temperature => 2, options => '{"top_p": 0.000001}'), steadytext_generate('Say hello', 30),
    'and so does a small top_p');
select is(
    steadytext_generate('Say hello', 30, seed => 1, temperature => 2, options => '{"min_p": 1}'), steadytext_generate('Say hello', 30),
    'and a min_p of 1');
select ok(
    (select a.prompt_tokens > b.prompt_tokens
     from steadytext_generate_details('Say hello', 1, system_prompt => 'You know everything about VACUUM.') as a, steadytext_generate_details('Say hello', 1) as b),
    'system_prompt is part of the prompt');

-- Each is part of the key.
select is(
    (select count(distinct steadytext_cache_key('generate', 'x', ('{"max_tokens": 9' || o || '}')::jsonb)) from unnest(array['',
        ', "system_prompt": ""', ', "system_prompt": "s"', ', "stop": ["s"]', ', "thinking": true', ', "repeat_penalty": 2', ', "presence_penalty": 2',
        ', "frequency_penalty": 2', ', "logit_bias": {"1": 2}', ', "logit_bias": {"2": 2}', ', "messages": [{"role": "user", "content": "s"}]',
        ', "messages": [{"role": "assistant", "content": "s"}]']) as o), 12::bigint, 'requests that differ have keys that do');
select is(
    steadytext_cache_key('generate', 'x', '{"logit_bias": {"1": 2, "20": 3}}'::jsonb), steadytext_cache_key('generate', 'x', '{"logit_bias": {"20": 3.0, "1": 2}}'::jsonb),
    'the same in another order has the same');

-- Values.
create temporary table wrong (option text, message text);
insert into wrong values
    ('{"top_p": 1.5}', 'top_p must be a number between 0 and 1'), ('{"top_p": "x"}', 'top_p must be a number between 0 and 1'),
    ('{"top_k": -1}', 'top_k must be an integer between 0 and 1000000'), ('{"top_k": 1.5}', 'top_k must be an integer between 0 and 1000000'),
    ('{"min_p": -0.1}', 'min_p must be a number between 0 and 1'),
    ('{"repeat_penalty": 0}', 'repeat_penalty must be a number greater than 0 and at most 100'),
    ('{"repeat_penalty": 1e-300}', 'repeat_penalty must be a number greater than 0 and at most 100'),
    ('{"presence_penalty": 101}', 'presence_penalty must be a number between -100 and 100'),
    ('{"frequency_penalty": []}', 'frequency_penalty must be a number between -100 and 100'),
    ('{"stop": "END"}', 'stop must be an array of at most 64 texts of 1 to 1024 bytes'),
    ('{"stop": [""]}', 'stop must be an array of at most 64 texts of 1 to 1024 bytes'),
    ('{"stop": [1]}', 'stop must be an array of at most 64 texts of 1 to 1024 bytes'),
    (format('{"stop": [%s]}', to_json(repeat('x', 1025))), 'stop must be an array of at most 64 texts of 1 to 1024 bytes'),
    (format('{"stop": %s}', array_to_json(array(select 's' || i from generate_series(1, 65) as i))), 'stop must be an array of at most 64 texts of 1 to 1024 bytes'),
    ('{"thinking": 1}', 'thinking must be true or false'),
    ('{"logit_bias": [1]}', 'logit_bias must be an object of at most 1024 numbers between -100 and 100 by the ids of tokens'),
    ('{"logit_bias": {"x": 1}}', 'logit_bias must be an object of at most 1024 numbers between -100 and 100 by the ids of tokens'),
    ('{"logit_bias": {"01": 1}}', 'logit_bias must be an object of at most 1024 numbers between -100 and 100 by the ids of tokens'),
    ('{"logit_bias": {"-1": 1}}', 'logit_bias must be an object of at most 1024 numbers between -100 and 100 by the ids of tokens'),
    ('{"logit_bias": {"1": 101}}', 'logit_bias must be an object of at most 1024 numbers between -100 and 100 by the ids of tokens'),
    ('[]', 'options must be a JSON object'), ('1', 'options must be a JSON object');
select throws_ok(format('select %s(%L, options => %L)', f, 'x', option), '22023', message, left(option, 40) || ' in ' || f)
from wrong, unnest(array['steadytext_generate', 'steadytext_generate_async']) as f
where f = 'steadytext_generate' or option like '{"s%' or option like '{"l%' ;
select throws_like(
    $$ select steadytext_generate('x', options => '{"logit_bias": {"4000000000": 1}}') $$, '%logit_bias names token 4000000000, but the model''s tokens are 0 to %',
    'a token that the model does not have');
select throws_ok(
    format('select steadytext_generate(%L, options => %L)', 'x', format('{"stop": [%s]}', to_json(repeat('x', 300000)))), '54000', null, 'options that are too long');
select throws_ok(format('select steadytext_generate_json(%L, %L::jsonb, options => %L)', 'x', '{}', option), '22023', message, option || ' with a constraint')
from (values ('{"stop": ["a"]}', 'stop cannot be combined with generate_json'), ('{"thinking": true}', 'thinking cannot be combined with generate_json')) as w(option, message);
select steadytext_config_set('max_prompt_bytes', '1000');
select throws_ok($$ select steadytext_generate('x', system_prompt => repeat('x', 1000)) $$, '54000', 'the text has 1001 bytes, 1000 are allowed', 'a system_prompt that is too long');

-- Conversations.
create temporary table said (messages jsonb);
insert into said values ('[{"role": "system", "content": "You know everything."}, {"role": "user", "content": "Say hello"}, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "Again"}]');
select is(steadytext_chat('[{"role": "user", "content": "Say hello"}]', 20), steadytext_generate('Say hello', 20), 'chat: one message is a prompt');
select is(
    steadytext_chat('[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Say hello"}]', 20), steadytext_generate('Say hello', 20, system_prompt => 'Be brief.'),
    'chat: a system message is a system_prompt');
select is(st_chat(messages, 20), steadytext_chat(messages, 20), 'st_chat is the same') from said;
select isnt(steadytext_chat(messages, 20), steadytext_chat(messages - 2, 20), 'chat: each message matters') from said;
select is((select string_agg(piece, '') from steadytext_chat_stream(messages, 20) as piece), steadytext_chat(messages, 20), 'chat_stream: the pieces are the text') from said;
create temporary table enqueued as select steadytext_chat_async(messages, 20, options => '{"top_k": 2}') as request_id from said;
select results_eq(
    $$ select prompt, params from enqueued join steadytext_queue using (request_id) $$,
    $$ values ('Again', '{"max_tokens": 20, "top_k": 2, "system_prompt": "You know everything.", "messages": [{"role": "user", "content": "Say hello"}, {"role": "assistant", "content": "Hello"}]}'::jsonb) $$,
    'chat_async: the last message is the prompt');
select is(steadytext_chat(null), null, 'chat: NULL');
create temporary table no_chat (messages text, message text);
insert into no_chat values
    ('{}', 'messages must be a JSON array'), ('[]', 'messages cannot be empty'), ('["x"]', 'message 1: it must be an object'),
    ('[{"content": "x"}]', 'message 1: it has no role'), ('[{"role": "user"}]', 'message 1: it has no content'),
    ('[{"role": "tool", "content": "x"}]', 'message 1: its role must be system, user or assistant'),
    ('[{"role": "user", "content": ["x"]}]', 'message 1: its content must be a text'),
    ('[{"role": "user", "content": "x", "name": "y"}]', 'message 1: it may have role and content, and nothing else'),
    ('[{"role": "user", "content": "x"}, {"role": "system", "content": "x"}, {"role": "user", "content": "x"}]', 'message 2: only the first may be the system''s'),
    ('[{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]', 'the last message must be the user''s: the model answers it'),
    ('[{"role": "system", "content": "x"}]', 'the last message must be the user''s: the model answers it');
select throws_ok(format('select steadytext_chat(%L)', messages), '22023', message, 'chat: ' || message) from no_chat;
select is(steadytext_chat('[]', on_error => 'null'), null, 'chat: on_error');
select throws_ok($$ select steadytext_chat_async(null) $$, 'P0001', 'Messages cannot be null', 'chat_async: NULL');
select throws_ok(
    $$ select steadytext_chat(jsonb_agg(jsonb_build_object('role', 'user', 'content', 'x'))) from generate_series(1, 300) $$, '22023', null, 'chat: too many messages');
select throws_ok(
    $$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{"messages": [{"role": "system", "content": "x"}]}') $$, '22023', null, 'INSERT: a system message has another place');
select is(pg_temp.run_as('st_alice', $$ select steadytext_chat('[{"role": "user", "content": "Say hello"}]', 5) $$), steadytext_generate('Say hello', 5), 'a user may chat');

-- The order of properties.
select matches(
    steadytext_generate_json('x', '{"type": "object", "properties": {"aa": {"const": 1}, "b": {"const": 2}, "ccc": {"const": 3}}, "required": ["aa", "b", "ccc"], "additionalProperties": false, "propertyOrdering": ["ccc", "aa"]}'::jsonb),
    '^\{"ccc": 3, "aa": 1, "b": 2\}$', 'propertyOrdering: listed ones first');
select throws_ok(
    $$ select steadytext_generate_json('x', '{"properties": {"a": {}}, "propertyOrdering": ["b"]}'::jsonb) $$, '22023', 'propertyOrdering names something that is not among the properties',
    'propertyOrdering: a name that is not there');

select * from finish();
rollback;
