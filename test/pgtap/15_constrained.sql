-- Generation along a constraint: rows, limits, messages, answers and rights. The engine's tests cover masks
-- and grammars.
\ir setup.psql
select plan(82);

-- The row of a request.
create function pg_temp.request(p_id uuid) returns steadytext_queue
language sql as $$ select * from steadytext_queue where request_id = p_id $$;

select is((r).request_type, 'generate_json', 'generate_json_async: type') from pg_temp.request(steadytext_generate_json_async('x', '{"type": "null"}')) as r;
select is((r).params, '{"schema": {"type": "null"}}', 'generate_json_async: defaults are left out')
from pg_temp.request(steadytext_generate_json_async('x', '{"type": "null"}', null, true, 42, null, 0, 5)) as r;
select is(
    (r).params, '{"schema": {"type": ["null", "string"], "default": null}, "max_tokens": 9, "use_cache": false, "seed": 7, "model": "small", "temperature": 0.5}',
    'generate_json_async: everything else goes into params')
from pg_temp.request(steadytext_generate_json_async('x', '{"type": ["null", "string"], "default": null}', 9, false, 7, 'small', 0.5)) as r;
select is((r).request_type, 'generate_regex', 'generate_regex_async: type') from pg_temp.request(steadytext_generate_regex_async('x', '[a-z]+')) as r;
select is((r).params, '{"pattern": "[a-z]+\\d", "seed": 1, "temperature": 1, "max_tokens": 3}', 'generate_regex_async: params')
from pg_temp.request(steadytext_generate_regex_async('x', '[a-z]+\d', 3, true, 1, null, 1)) as r;
select is((r).request_type, 'generate_choice', 'generate_choice_async: type') from pg_temp.request(steadytext_generate_choice_async('x', array['a', 'b'])) as r;
select is((r).params, '{"choices": ["yes", "yes please", "\"no\"\n"], "use_cache": false, "seed": 3, "model": "medium"}', 'generate_choice_async: params')
from pg_temp.request(steadytext_generate_choice_async('x', array['yes', 'yes please', E'"no"\n'], false, 3, 'medium')) as r;
select is((r).priority, 9, 'priority of ' || (r).request_type)
from unnest(array[
    steadytext_generate_json_async('x', 'true', priority => 9), steadytext_generate_regex_async('x', 'a', priority => 9),
    steadytext_generate_choice_async('x', array['a', 'b'], priority => 9)
]) as id, pg_temp.request(id) as r;
-- jsonb would put answer before reasoning.
select is(
    (r).params -> 'schema' -> 'propertyOrdering', '["reasoning", "answer"]', form || ' keeps the order that a schema was written in')
from (values
    ('a literal', steadytext_generate_json_async('x', '{"properties": {"reasoning": {"type": "null"}, "answer": {"type": "null"}}}')),
    ('json', steadytext_generate_json_async('x', '{"properties": {"reasoning": {"type": "null"}, "answer": {"type": "null"}}}'::json))
) as v (form, id), pg_temp.request(v.id) as r;
select is(
    steadytext_generate_json('x', '{"type": "object", "properties": {"reasoning": {"type": "null"}, "answer": {"type": "null"}}, "required": ["reasoning", "answer"], "additionalProperties": false}', 40),
    '{"reasoning": null, "answer": null}', 'and so does the answer');
select isnt(st_generate_json_async('x', '{}'), null, 'st_generate_json_async enqueues');
select isnt(st_generate_regex_async('x', 'a|b'), null, 'st_generate_regex_async enqueues');
select isnt(st_generate_choice_async('x', array['a', 'b']), null, 'st_generate_choice_async enqueues');

-- A schema of 3 kB for which the crate that checks answers would compile 2^45 schemas, without looking whether it was cancelled.
create function pg_temp.ladder() returns jsonb language sql as $$
    select jsonb_build_object('unevaluatedProperties', false, '$ref', '#/$defs/a0', '$defs', jsonb_object_agg('a' || i,
        case when i = 45 then '{"type": "object"}'::jsonb else jsonb_build_object('anyOf', jsonb_build_array(r, r)) end))
    from (select i, jsonb_build_object('$ref', '#/$defs/a' || (i + 1)) as r from generate_series(0, 45) as i) as s
$$;

-- Words and codes, the same for both forms.
create temporary table refused (call text, code text, message text);
insert into refused values
    ('generate_json%s(''x'', null)', 'P0001', 'Schema cannot be null'),
    ('generate_json%s(''x'', ''null'')', 'P0001', 'Schema cannot be null'),
    ('generate_json%s('' '', ''{}'')', 'P0001', 'Prompt cannot be empty'),
    ('generate_json%s(''x'', ''[]'')', '22023', 'the schema is neither an object nor a boolean'),
    ('generate_json%s(''x'', ''{}'', 0)', 'P0001', 'max_tokens must be between 1 and 4096'),
    ('generate_json%s(''x'', (repeat(''{"items": '', 2000) || ''1'' || repeat(''}'', 2000))::jsonb)', '22023', 'the schema is nested more than 64 levels deep'),
    ('generate_json%s(''x'', jsonb_build_object(''title'', repeat(''x'', 262144)))', '22023', 'the schema has 262157 bytes, at most 262144 are allowed'),
    ('generate_json%s(''x'', ''{"$ref": "http://localhost/x.json"}'')', '22023', null),
    ('generate_json%s(''x'', pg_temp.ladder())', '22023', 'the schema has unevaluatedProperties or unevaluatedItems beside too many references'),
    ('generate_json%s(''x'', (select jsonb_build_object(''anyOf'', jsonb_agg(jsonb_build_object(''pattern'', ''a\p{L}{40}b'' || i))) from generate_series(1, 4000) as i))', '22023', 'the schema has too many patterns, or too large ones'),
    ('generate_json%s(''x'', ''{"type": "strang"}'')', '22023', null),
    ('generate_regex%s(''x'', null)', 'P0001', 'Pattern cannot be empty'),
    ('generate_regex%s(''x'', '''')', 'P0001', 'Pattern cannot be empty'),
    ('generate_regex%s(''x'', ''a('')', '22023', 'the pattern is invalid: unclosed group'),
    ('generate_regex%s(''x'', ''(?!a)b'')', '22023', null),
    ('generate_regex%s(''x'', repeat(''a'', 8193))', '22023', 'the pattern has 8193 bytes, at most 8192 are allowed'),
    ('generate_choice%s(''x'', null)', 'P0001', 'Must provide at least 2 choices'),
    ('generate_choice%s(''x'', array[]::text[])', 'P0001', 'Must provide at least 2 choices'),
    ('generate_choice%s(''x'', array[''a''])', 'P0001', 'Must provide at least 2 choices'),
    ('generate_choice%s(''x'', array[''a'', null])', '22023', 'choices must be texts'),
    ('generate_choice%s(''x'', array[''a'', ''''])', '22023', 'a choice is empty'),
    ('generate_choice%s(''x'', array_fill(''a''::text, array[1001]))', '22023', 'there are 1001 choices, at most 1000 are allowed');
select throws_ok('select steadytext_' || format(call, form), code, message, left(format(call, form), 100))
from refused, unnest(array['_async', '']) as form;

-- Plain INSERTs meet the same limits.
select lives_ok(
    $$ insert into steadytext_queue (request_type, prompt, params) values ('generate_json', 'x', '{"schema": true}'), ('generate_regex', 'x', '{"pattern": "a"}'),
        ('generate_choice', 'x', '{"choices": ["a", "b"], "max_tokens": 4}') $$, 'plain INSERTs enqueue');
select throws_ok(
    format('insert into steadytext_queue (request_type, prompt, params) values (%L, ''x'', %L)', request_type, params), code, message,
    request_type || ' with ' || left(params, 60))
from (
    values ('generate_json', '{}', 'P0001', 'Schema cannot be null'),
        ('generate_json', '{"schema": "x"}', '22023', 'the schema is neither an object nor a boolean'),
        ('generate_json', '{"schema": ' || repeat('[', 2000) || repeat(']', 2000) || '}', '22023', 'params is nested too deeply, or has a number out of range'),
        ('generate_json', '{"schema": {}, "pattern": "a"}', '22023', 'parameter pattern is for requests of type generate_regex'),
        ('generate_json', '{"schema": {}, "eos_string": "x"}', '22023', 'eos_string cannot be combined with generate_json'),
        ('generate_regex', '{"pattern": 1}', '22023', 'pattern must be a text'),
        ('generate_choice', '{"choices": "a"}', '22023', 'choices must be an array of texts'),
        ('generate_choice', '{"choices": ["a", 1]}', '22023', 'choices must be texts'),
        ('generate', '{"schema": {}}', '22023', 'parameter schema is for requests of type generate_json')
) as bad(request_type, params, code, message);

-- Answers.
select ok(steadytext_generate_choice('Is water wet?', array['yes', 'yes please', 'no']) = any (array['yes', 'yes please', 'no']), 'a choice');
select is(steadytext_generate_choice('x', array[E'it''s "so"\nü🙂', E'it''s "so"\nü🙂']), E'it''s "so"\nü🙂', 'a choice is verbatim');
select is(length(steadytext_generate_choice('x', array[repeat('a', 900), repeat('a', 900)])), 900, 'a choice is never cut');
select matches(st_generate_regex('When?', '\d{4}-\d{2}-\d{2}'), '^\d{4}-\d{2}-\d{2}$', 'a pattern');
select results_eq(
    $$ select jsonb_typeof(d -> 'name'), (d ->> 'size')::numeric between 1 and 9, array(select jsonb_object_keys(d))
       from cast(steadytext_generate_json('A table', '{"type": "object", "properties": {"name": {"type": "string", "maxLength": 8}, "size": {"type": "integer", "minimum": 1, "maximum": 9}}, "required": ["name", "size"], "additionalProperties": false}') as jsonb) as d $$,
    $$ values ('string', true, array['name', 'size']) $$, 'a document');
select is(st_generate_json('x', '{"const": {"a": [1, null]}}'), '{"a": [1, null]}', 'a document that is fixed');
select throws_like($$ select steadytext_generate_regex('x', '[a-z]{500}', 10) $$, 'the shortest answer that matches the constraint takes % tokens, and 10 are allowed', 'too few tokens');
select throws_ok($$ select steadytext_generate_json('x', 'false') $$, '22023', null, 'nothing conforms');
select is(
    pg_temp.run_as('st_alice', $$ select steadytext_generate_json('x', '{"const": 1}') $$), '1', 'a user may');
select throws_ok(format('select pg_temp.run_as(''st_stranger'', %L)', call), '42501', null, 'a stranger may not: ' || call)
from unnest(array['select steadytext_generate_json(''x'', ''{}'')', 'select steadytext_generate_regex_async(''x'', ''a'')', 'select steadytext_generate_choice(''x'', array[''a'', ''b''])']) as call;

select * from finish();
rollback;
