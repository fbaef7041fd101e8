-- Documents, translations, sentiments, masked texts and facts: values, arrays, NULLs, limits, rows, rights. The answers of a small
-- model are not tested; properties that hold for any answer are.
\ir setup.psql
select plan(180);


-- Fields.
create temporary table documents as
select steadytext_extract('Bello is a dog. He lives in Rome.', array[
    'name', 'zip: the postal code', 'age: integer - in years', 'weight: number - in kilograms', 'is_dog: boolean', 'since: date - since when', 'places: array of string - where']) as d;
select is((select array_agg(k order by k) from documents, jsonb_object_keys(d) as k), '{age,is_dog,name,places,since,weight,zip}', 'extract: all fields, and no others');
select ok(jsonb_typeof(d -> 'name') in ('string', 'null') and jsonb_typeof(d -> 'zip') in ('string', 'null'), 'extract: strings') from documents;
select ok((d ->> 'age')::bigint is null or jsonb_typeof(d -> 'age') = 'number', 'extract: an integer that a bigint holds') from documents;
select ok(jsonb_typeof(d -> 'weight') in ('number', 'null'), 'extract: a number') from documents;
select ok(jsonb_typeof(d -> 'is_dog') in ('boolean', 'null'), 'extract: a truth value') from documents;
select ok((d ->> 'since')::date is null or true, 'extract: a date is one') from documents;
select ok(jsonb_typeof(d -> 'places') in ('array', 'null'), 'extract: an array') from documents;
select is(steadytext_extract('x', array['a: integer'], false, 7, 'builtin', 'null'), st_extract('x', array['a: integer']), 'extract: by position, again, the twin');
select is(steadytext_extract(null::text, array['a']), null, 'extract: NULL');
select is(steadytext_extract(null, array['a']), null, 'extract: NULL of no type');
select isnt(steadytext_extract('x', array['b: boolean', 'a: boolean']), null, 'extract: fields in any order');

-- A document that its tokens do not suffice for could be closed with nulls, of which nobody would know: whatever the limit, an answer is whole.
create function pg_temp.answers(p_statement text, p_most integer) returns setof text language plpgsql as $$
declare
    v_answer text;
begin
    for v_limit in 1 .. p_most loop
        perform steadytext_config_set('max_tokens_limit', v_limit::text);
        begin
            execute p_statement into v_answer;
            return next v_answer;
        exception when program_limit_exceeded or configuration_limit_exceeded then
            return next regexp_replace(sqlerrm, '\d+', 'N', 'g');
        end;
    end loop;
    perform steadytext_config_set('max_tokens_limit', '4096');
end
$$;
select set_eq(
    $q$ select * from pg_temp.answers($$ select steadytext_extract('Bello is a dog. He lives in Rome.', array['name', 'story']) $$, 40) $q$,
    array['the shortest answer that matches the constraint takes N tokens, and N are allowed', 'the document is not complete after N tokens',
        steadytext_extract('Bello is a dog. He lives in Rome.', array['name', 'story'])::text],
    'extract: with few tokens the same document, or an error');
select set_eq(
    $q$ select * from pg_temp.answers($$ select steadytext_extract_facts('VACUUM reclaims storage. It is a command.') $$, 40) $q$,
    array['the shortest answer that matches the constraint takes N tokens, and N are allowed', 'the facts are not complete after N tokens',
        steadytext_extract_facts('VACUUM reclaims storage. It is a command.')::text],
    'extract_facts: with few tokens the same facts, or an error');
select steadytext_config_set('max_tokens_limit', '16') as set \gset
select is(steadytext_extract('Bello is a dog. He lives in Rome.', array['name', 'story'], on_error => 'null'), null, 'extract: which belongs to the text');
select steadytext_config_set('max_tokens_limit', '4096') as set \gset

-- Schemas.
create function pg_temp.schema() returns jsonb language sql as
$$ select '{"type": "object", "properties": {"ok": {"type": "boolean"}, "kind": {"enum": ["a", "b"]}}, "required": ["ok", "kind"], "additionalProperties": false}'::jsonb $$;
select ok(jsonb_typeof(d -> 'ok') = 'boolean' and d ->> 'kind' in ('a', 'b'), 'extract: a document of a schema') from steadytext_extract('It works.', pg_temp.schema()) as d;
select is(steadytext_extract('It works.', pg_temp.schema()::text), steadytext_extract('It works.', pg_temp.schema(), false), 'extract: the schema as text');
select is(
    steadytext_extract('It works.', '{"type": "boolean"}'), st_extract('It works.', '{"type": "boolean"}'::jsonb), 'extract: the schema as a literal');
select is(steadytext_extract(null, pg_temp.schema()), null, 'extract: NULL, with a schema');

-- Translations.
select ok(length(steadytext_translate('Hello', 'French')) > 0, 'translate: a text');
select is(steadytext_translate('Hello', 'French', false, 7, 'builtin', 'null'), st_translate('Hello', 'French'), 'translate: by position, again, the twin');
select is(steadytext_translate(null, 'French'), null, 'translate: NULL');

-- Sentiments.
select ok(steadytext_analyze_sentiment('I love it') in ('positive', 'negative', 'neutral', 'mixed'), 'analyze_sentiment: one of four');
select is(steadytext_analyze_sentiment('I love it', false, 7, 'builtin', 'null'), st_analyze_sentiment('I love it'), 'analyze_sentiment: by position, again, the twin');
select is(steadytext_analyze_sentiment(null), null, 'analyze_sentiment: NULL');
select is(
    steadytext_analyze_sentiment('I love it'),
    (select s.category from steadytext_classify_scores('I love it', array['positive', 'negative', 'neutral', 'mixed'],
        'Which sentiment does the text express? Answer with one of these words and nothing else', array[null, null, null, 'both positive and negative']) as s limit 1),
    'analyze_sentiment: the likeliest of them');

-- Masks. Whatever the model names, what is not replaced is as it was.
create temporary table masked as
select t.body, steadytext_mask(t.body, array['person name', 'email']) as m
from (values ('Ann Lee met Bob. Her address is ann@example.org.'), (E'  Two\n\n  lines, ÄÖ€ and 100%  '), (repeat('Nothing happened in Rome. ', 200))) as t(body);
select ok(bool_and(
    body ~ ('^' || regexp_replace(regexp_replace(m, '([][\\.^$*+?(){}|])', '\\\1', 'g'), '\\\[(PERSON NAME|EMAIL)\\\]', '.+', 'g') || '$')),
    'mask: the text with words replaced, and nothing else') from masked;
select is(steadytext_mask('Bob', array['person'], false, 7, 'builtin', 'null'), st_mask('Bob', array['person']), 'mask: by position, again, the twin');
select is(steadytext_mask(null::text, array['person']), null, 'mask: NULL');

-- Facts.
select ok(jsonb_array_length(f -> 'facts') between 0 and 3 and f - 'facts' = '{}', 'extract_facts: an object with at most so many') from steadytext_extract_facts('VACUUM reclaims storage. It is a command.', 3) as f;
select ok(not exists (select from jsonb_array_elements(steadytext_extract_facts('VACUUM reclaims storage.', 5) -> 'facts') as f where jsonb_typeof(f) <> 'string'), 'extract_facts: texts');
select is(steadytext_extract_facts('It is.', 2, false, 7, 'builtin', 'null'), st_extract_facts('It is.', 2), 'extract_facts: by position, again, the twin');
select is(steadytext_extract_facts(''), '{"facts": []}', 'extract_facts: of nothing none, as in pg_steadytext 1.x');
select is(steadytext_extract_facts(E' \n'), '{"facts": []}', 'extract_facts: of blanks none');
select is(steadytext_extract_facts(null::text), null, 'extract_facts: NULL');
select isnt(steadytext_extract_facts('It is.', null), null, 'extract_facts: NULL means the default');

-- Facts that say the same.
select is(steadytext_deduplicate_facts('["VACUUM reclaims storage", "VACUUM reclaims storage"]'), '["VACUUM reclaims storage"]', 'deduplicate_facts: the same text');
select is(
    steadytext_deduplicate_facts('[{"text": "It rains", "n": 1.50}, "It rains", {"fact": "It rains", "n": 2}]'), '[{"text": "It rains", "n": 1.50}]',
    'deduplicate_facts: the first one stays, as it was');
select is(steadytext_deduplicate_facts('["a b", "c d", "e f"]', 0.0001) -> 0, '"a b"', 'deduplicate_facts: the first one always stays');
select is(
    jsonb_array_length(steadytext_deduplicate_facts('["reclaim storage", "it rains"]', s.similarity)) || ' ' ||
        jsonb_array_length(steadytext_deduplicate_facts('["reclaim storage", "it rains"]', least(s.similarity + 0.001, 1))), '1 2', 'deduplicate_facts: from the threshold on they are the same')
from (select steadytext_similarity('reclaim storage', 'it rains') as similarity) as s;
select is(steadytext_deduplicate_facts('[1, null, {"a": []}, 1]', 1), '[1, null, {"a": []}]', 'deduplicate_facts: what has no text is what it is written as');
select is(steadytext_deduplicate_facts('["", {"text": ""}, ""]', 1), '["", {"text": ""}]', 'deduplicate_facts: what says nothing');
select is(steadytext_deduplicate_facts('[]'), '[]', 'deduplicate_facts: no facts');
select is(steadytext_deduplicate_facts('["one"]'), '["one"]', 'deduplicate_facts: one');
select is(steadytext_deduplicate_facts(null), null, 'deduplicate_facts: NULL');
select is(steadytext_deduplicate_facts('["x", "y"]', null), steadytext_deduplicate_facts('["x", "y"]', 0.85, false, 7, 'builtin', 'null'), 'deduplicate_facts: by position, again; NULL means the default');
select is(st_deduplicate_facts(facts => '["x", "y"]'), steadytext_deduplicate_facts(facts_array => '["x", "y"]', similarity_threshold => 0.8), 'st_deduplicate_facts: the predecessor''s names and default');
select is(pg_get_function_arguments('st_deduplicate_facts'::regproc),
    'facts jsonb, similarity_threshold double precision DEFAULT 0.8, use_cache boolean DEFAULT true, seed bigint DEFAULT 42, model text DEFAULT NULL::text, on_error text DEFAULT ''error''::text',
    'st_deduplicate_facts: its parameters');
select is(steadytext_deduplicate_facts(steadytext_extract_facts('') -> 'facts'), '[]', 'deduplicate_facts: of extracted facts');

-- Arrays.
create temporary table texts as select * from (values (1, 'Bello is a dog.'), (2, null), (3, 'It rains.'), (4, 'Bello is a dog.')) as t(n, body);
create function pg_temp.bodies() returns text[] language sql as $$ select array_agg(body order by n) from texts $$;
select is(steadytext_extract(pg_temp.bodies(), array['a: boolean', 'b: integer']), (select array_agg(steadytext_extract(body, array['a: boolean', 'b: integer'], false) order by n) from texts), 'extract: an array');
select is(steadytext_extract(pg_temp.bodies(), pg_temp.schema()), (select array_agg(steadytext_extract(body, pg_temp.schema()) order by n) from texts), 'extract: an array, with a schema');
select is(steadytext_extract(pg_temp.bodies(), '{"type": "boolean"}'), (select array_agg(steadytext_extract(body, '{"type": "boolean"}') order by n) from texts), 'extract: an array, with a schema as text');
select is(steadytext_translate(pg_temp.bodies(), 'French', on_error => 'null'), (select array_agg(steadytext_translate(body, 'French', false, on_error => 'null') order by n) from texts), 'translate: an array');
select is(steadytext_analyze_sentiment(pg_temp.bodies()), (select array_agg(steadytext_analyze_sentiment(body, false) order by n) from texts), 'analyze_sentiment: an array');
select is(steadytext_mask(pg_temp.bodies(), array['animal']), (select array_agg(steadytext_mask(body, array['animal'], false) order by n) from texts), 'mask: an array');
select is(steadytext_extract_facts(pg_temp.bodies(), 2), (select array_agg(steadytext_extract_facts(body, 2, false) order by n) from texts), 'extract_facts: an array');
select is(steadytext_extract_facts(array['', null, 'It is.'], 2), array['{"facts": []}', null, steadytext_extract_facts('It is.', 2)], 'extract_facts: an array with nothing in it');
select is(steadytext_extract('{}'::text[], array['a']), '{}', 'extract: an empty array');
select is(steadytext_mask(array[null, null]::text[], array['a']), array[null, null]::text[], 'mask: nothing but NULLs');
select is(steadytext_extract(null::text[], array['a']), null, 'extract: no array');
select is(steadytext_extract(array['x', '', repeat('word ', 20000)], array['a: boolean'], on_error => 'null'), array[steadytext_extract('x', array['a: boolean']), null, null], 'extract: elements that cannot be answered are NULL where that is wanted');
select throws_ok($$ select steadytext_extract(array['x', ''], array['a']) $$, 'P0001', 'element 2: Text input cannot be empty', 'extract: which element cannot be answered');
select throws_ok($$ select steadytext_translate(array_fill('x'::text, array[1001]), 'French') $$, 'P0001', 'Batch size cannot exceed 1000 texts', 'translate: too many elements');
select is(
    (select array_agg(row(s.index, s.category, s.score)::text) from steadytext_classify_scores(pg_temp.bodies(), array['storage', 'animals']) as s),
    (select array_agg(row(t.n, s.category, s.score)::text) from texts as t, steadytext_classify_scores(t.body, array['storage', 'animals']) as s), 'classify_scores: an array, as rows with numbers');
select results_eq(
    $$ select s.* from st_classify_multi(pg_temp.bodies(), array['storage', 'animals'], threshold => 0.3) as s $$,
    $$ select n, steadytext_classify_multi(body, array['storage', 'animals'], threshold => 0.3) from texts order by n $$, 'classify_multi: an array, a row for each element');
select is_empty($$ select steadytext_classify_multi('{}'::text[], array['a']) $$, 'classify_multi: an empty array');
select is_empty($$ select steadytext_classify_scores(null::text[], array['a', 'b']) $$, 'classify_scores: no array');
select throws_ok($$ select steadytext_classify_scores(array['x', ''], array['a', 'b']) $$, 'P0001', 'element 2: Text input cannot be empty', 'classify_scores: which element cannot be answered');

-- Words and codes, in calls and rows alike.
create temporary table wrong (call text, code text, message text);
insert into wrong values
    ($$extract%s('', array['a'])$$, 'P0001', 'Text input cannot be empty'),
    ($$extract%s('x', null::text[])$$, 'P0001', 'Must provide fields or a schema'),
    ($$extract%s('x', null::jsonb)$$, 'P0001', 'Must provide fields or a schema'),
    ($$extract%s('x', 'null'::jsonb)$$, 'P0001', 'Must provide fields or a schema'),
    ($$extract%s('x', '{}'::text[])$$, 'P0001', 'Fields array cannot be empty'),
    ($$extract%s('x', array['a', null])$$, '22023', 'fields must be texts'),
    ($$extract%s('x', array[array['a'], array['b']])$$, '22023', 'fields must be texts'),
    ($$extract%s('x', array['a', ''])$$, '22023', 'field 2 has no name'),
    ($$extract%s('x', array[': a description'])$$, '22023', 'field 1 has no name'),
    ($$extract%s('x', array['a: integer', 'b', 'a: the same'])$$, '22023', 'field 3 has the name of one before it'),
    ($$extract%s('x', array['a: nonsense - of some type'])$$, '22023', 'field 1 has a type that there is not'),
    ($$extract%s('x', array['a: array of nonsense - of some type'])$$, '22023', 'field 1 has a type that there is not'),
    ($$extract%s('x', array[repeat('a', 1025)])$$, '54000', 'field 1 has 1025 bytes, 1024 are allowed'),
    ($$extract%s('x', array(select 'f' || i from generate_series(1, 101) as i))$$, '54000', 'there are 101 fields, at most 100 are allowed'),
    ($$extract%s('x', array(select 'f' || i from generate_series(1, 1000) as i))$$, '54000', 'there are 1000 fields, at most 100 are allowed'),
    ($$extract%s('x', array(select 'f' || i from generate_series(1, 70000) as i))$$, '54000', null),
    ($$extract%s('x', '{"type": 7}'::jsonb)$$, '22023', null),
    ($$extract%s('x', '[]'::jsonb)$$, '22023', null),
    ($$extract%s('x', (repeat('[', 3000) || repeat(']', 3000))::jsonb)$$, '22023', null),
    ($$translate%s('', 'French')$$, 'P0001', 'Text input cannot be empty'),
    ($$translate%s('x', null)$$, 'P0001', 'Target language cannot be empty'),
    ($$translate%s('x', ' ')$$, 'P0001', 'Target language cannot be empty'),
    ($$translate%s('x', repeat('x', 1025))$$, '22023', 'to_language must be a text of 1 to 1024 bytes'),
    ($$analyze_sentiment%s(E'\n')$$, 'P0001', 'Text input cannot be empty'),
    ($$mask%s('', array['a'])$$, 'P0001', 'Text input cannot be empty'),
    ($$mask%s('x', null)$$, 'P0001', 'Labels array cannot be empty'),
    ($$mask%s('x', '{}')$$, 'P0001', 'Labels array cannot be empty'),
    ($$mask%s('x', array['a', null])$$, '22023', 'labels must be texts'),
    ($$mask%s('x', array['a', ' '])$$, '22023', 'label 2 is empty'),
    ($$mask%s('x', array['a', 'b', 'A'])$$, '22023', 'label 3 is the same as one before it'),
    ($$mask%s('x', array[repeat('a', 129)])$$, '54000', 'label 1 has 129 bytes, 128 are allowed'),
    ($$mask%s('x', array(select 'l' || i from generate_series(1, 51) as i))$$, '54000', 'there are 51 labels, at most 50 are allowed'),
    ($$extract_facts%s('x', 0)$$, 'P0001', 'max_facts must be between 1 and 50'),
    ($$extract_facts%s('x', -1)$$, 'P0001', 'max_facts must be between 1 and 50'),
    ($$extract_facts%s('x', 51)$$, 'P0001', 'max_facts must be between 1 and 50'),
    ($$deduplicate_facts%s('{"facts": []}')$$, '22023', 'facts must be a JSON array of facts'),
    ($$deduplicate_facts%s('7')$$, '22023', 'facts must be a JSON array of facts'),
    ($$deduplicate_facts%s((select jsonb_agg(i) from generate_series(1, 501) as i))$$, '54000', 'there are 501 facts, at most 500 are compared'),
    ($$deduplicate_facts%s(('[' || repeat('[', 3000) || repeat(']', 3000) || ']')::jsonb)$$, '22023', 'a fact is nested too deeply, or has a number out of range'),
    ($$deduplicate_facts%s('["a"]', 1.5)$$, 'P0001', 'similarity_threshold must be between 0.0 and 1.0'),
    ($$deduplicate_facts%s('["a"]', -0.1)$$, 'P0001', 'similarity_threshold must be between 0.0 and 1.0'),
    ($$deduplicate_facts%s('["a"]', 'NaN')$$, 'P0001', 'similarity_threshold must be between 0.0 and 1.0'),
    ($$extract%s(repeat('x', 1048577), array['a'])$$, '54000', 'the text has 1048577 bytes, 1048576 are allowed');
select throws_ok('select steadytext_' || format(call, form), code, message, left(format(call, form), 100))
from wrong, unnest(array['_async', '']) as form;
select throws_ok($$ select steadytext_extract('x', '{a,b}') $$, '22P02', null, 'extract: fields need their type');
select throws_ok($$ select steadytext_extract_facts_async('') $$, 'P0001', 'Text input cannot be empty', 'extract_facts_async: a row has a text');
select throws_ok($$ select steadytext_deduplicate_facts_async('[]') $$, 'P0001', 'Facts array cannot be empty', 'deduplicate_facts_async: a row has facts');
select throws_ok($$ select steadytext_mask('x', array['a'], on_error => 'no') $$, '22023', 'on_error must be "error" or "null"', 'on_error');
select is(steadytext_mask('', array['a'], on_error => 'null'), null, 'on_error: NULL');
select throws_ok($$ select steadytext.plain_verb('generate', 'x', '{}', true, 42, null, 'error') $$, '22023', 'this function is for other types of requests', 'the function behind them is for their types');
select throws_ok($$ select steadytext.plain_verb('mask', 'x', '{"labels": ["a"], "max_tokens": 1}', true, 42, null, 'error') $$, '22023', 'requests of type mask take no parameter max_tokens', 'and takes what these take');

-- Rows.
create function pg_temp.request(p_id uuid) returns steadytext_queue
language sql as $$ select * from steadytext_queue where request_id = p_id $$;
select is(row((r).request_type, (r).prompt, (r).params, (r).priority)::text, '(extract,"of a row","{""fields"": [""a"", ""b: integer""]}",5)', 'extract_async: the row')
from pg_temp.request(steadytext_extract_async('of a row', array['a', 'b: integer'])) as r;
select is((r).params, '{"seed": 3, "model": "builtin", "schema": {"type": "object", "default": null}, "use_cache": false}', 'extract_async: the row, with a schema')
from pg_temp.request(steadytext_extract_async('of a row', '{"type": "object", "default": null}'::jsonb, false, 3, 'builtin', 9)) as r;
select is((r).params, '{"to_language": "French"}', 'translate_async: the row') from pg_temp.request(st_translate_async('x', 'French')) as r;
select is((r).params, '{}', 'analyze_sentiment_async: the row') from pg_temp.request(st_analyze_sentiment_async('x')) as r;
select is((r).params, '{"labels": ["a"]}', 'mask_async: the row') from pg_temp.request(st_mask_async('x', array['a'])) as r;
select is((r).params, '{"max_facts": 3}', 'extract_facts_async: the row') from pg_temp.request(st_extract_facts_async('x', 3)) as r;
select is(row((r).prompt, (r).params)::text, '("[""a"", {""text"": ""b""}]","{""similarity_threshold"": 0.5}")', 'deduplicate_facts_async: the row')
from pg_temp.request(st_deduplicate_facts_async('["a", {"text": "b"}]', 0.5)) as r;
select throws_ok(
    format('insert into steadytext_queue (request_type, prompt, prompts, params) values (%L, %L, %L, %L)', request_type, prompt, prompts, params), '22023', message, message)
from (values
    ('extract', 'x', '{a}', '{"fields": ["a"]}', 'requests of type extract take no prompts array'),
    ('extract', 'x', null, '{"fields": ["a"], "schema": {}}', 'a document has fields or a schema, not both'),
    ('extract', 'x', null, '{"fields": "a"}', 'fields must be an array of texts'),
    ('mask', 'x', null, '{"labels": "a"}', 'labels must be an array of texts'),
    ('mask', 'x', null, '{"fields": ["a"]}', 'requests of type mask take no parameter fields'),
    ('translate', 'x', null, '{"to_language": "French", "schema": {}}', 'parameter schema is for requests of type generate_json'),
    ('extract', 'x', null, '{"fields": ["a"], "template": "{{ schema }}"}', 'a request does not bring its template')
) as bad(request_type, prompt, prompts, params, message);

-- Rights and plans.
select throws_ok(format('select pg_temp.run_as(%L, %L)', 'st_stranger', 'select steadytext_extract(''x'', array[''a''])'), '42501', null, 'a stranger may extract nothing');
select isnt(pg_temp.run_as('st_alice', $$ select steadytext_extract('x', array['a: boolean']) $$), null, 'a user may');
select isnt(pg_temp.run_as('st_alice', $$ select st_deduplicate_facts('["a", "b"]') $$), null, 'also by the name that is written by hand');
select isnt(pg_temp.run_as('st_alice', $$ select steadytext_mask_async('x', array['a']) $$), null, 'and enqueue');
create temporary table tickets as select i as id, i % 2 = 0 as is_open, 'ticket ' || i as body from generate_series(1, 10) as i;
create function pg_temp.plan_of(p_statement text) returns text language plpgsql as $$
declare v_line text; v_plan text := '';
begin
    for v_line in execute 'explain (costs off) ' || p_statement loop v_plan := v_plan || v_line || E'\n'; end loop;
    return v_plan;
end $$;
select matches(
    pg_temp.plan_of($$ select from tickets where steadytext_extract(body, array['a']) ->> 'a' = 'x' and is_open $$),
    'Filter: .*is_open.*steadytext_extract\(', 'extract: conditions that cost little come first');
create temporary table kept (body text, facts jsonb generated always as (steadytext_extract(body, array['ok: boolean'])) stored);
insert into kept values ('It works.');
select is(facts, steadytext_extract('It works.', array['ok: boolean']), 'extract: in a generated column') from kept;

select * from finish();
rollback;
