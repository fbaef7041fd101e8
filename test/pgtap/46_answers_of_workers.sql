-- Answers from members of steadytext_worker: those that the request's choices, pattern, schema, list or model exclude are refused, and all have
-- bounds.
\ir setup.psql
select plan(99);

create or replace function steadytext.is_own_worker() returns boolean
language sql set search_path = pg_catalog, pg_temp as 'select false';

-- Entries of other tests must not answer.
delete from steadytext_cache;
-- A vector of the builtin model's length, and one in the direction of its first numbers.
create function pg_temp.vector(p_numbers real[], p_length integer default 256) returns real[] language sql as $$
    select array_agg(coalesce(p_numbers[i], 0) order by i) from generate_series(1, p_length) as i
$$;
insert into steadytext_queue (request_type, prompt, prompts, params, session_id) values
    ('generate', 'x', null, '{}', 'generate'),
    ('generate_choice', 'x', null, '{"choices": ["red", "green"]}', 'choice'),
    ('generate_regex', 'x', null, '{"pattern": "[0-9]{2,4}"}', 'regex'),
    ('generate_json', 'x', null,
        '{"schema": {"type": "object", "properties": {"n": {"type": "integer", "maximum": 9}}, "required": ["n"], "additionalProperties": false}}', 'json'),
    ('extract', 'x', null, '{"schema": {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}}', 'extract'),
    ('extract_facts', 'x', null, '{"max_facts": 2}', 'facts'),
    ('if', 'x', null, '{}', 'if'),
    ('if_score', 'x', null, '{}', 'if_score'),
    ('score', 'x', null, '{}', 'score'),
    ('similarity', null, '{a,b}', '{}', 'similarity'),
    ('classify', 'x', null, '{"categories": ["red", "green"]}', 'classify'),
    ('classify_scores', 'x', null, '{"categories": ["red", "green"]}', 'scores'),
    ('classify_multi', 'x', null, '{"categories": ["red", "green", "blue"]}', 'multi'),
    ('deduplicate_facts', '["a", {"fact": "b"}, "c"]', null, '{}', 'deduplicate'),
    ('rerank', 'q', '{d,e}', '{}', 'rerank'),
    ('embed', 'x', null, '{}', 'embed'),
    ('batch_embed', null, '{x,y}', '{}', 'batch_embed');
create temporary table held as
select q.session_id as name, c.id, c.attempt
from steadytext.claim_requests('e', 100, 60, null, false) as c
join steadytext_queue as q on q.id = c.id;
select is((select count(*) from held), 17::bigint, 'all are claimed');

create function pg_temp.complete(
    p_name text, p_result text, p_list text[] default null, p_numbers real[] default null, p_length integer default null, p_count integer default null)
returns text language sql as $$
    select o.outcome
    from held as h
    cross join lateral steadytext.complete_requests('e', array[h.id], array[h.attempt], array[p_result], p_numbers, array[p_length],
        case when p_count is not null then array[p_count] end, p_list, case when p_list is not null then array[cardinality(p_list)] end) as o
    where h.name = p_name
$$;

-- Answers that are none.
select throws_ok(format('select pg_temp.complete(%s)', c), '22023', null, left(c, 100))
from unnest(array[
    $$ 'generate', 'text', '{}' $$,
    $$ 'generate', 'text', array['one'] $$,
    $$ 'choice', 'blue' $$,
    $$ 'choice', '' $$,
    $$ 'choice', 'red ' $$,
    $$ 'choice', 'red', '{red}' $$,
    $$ 'regex', '1' $$,
    $$ 'regex', '12345' $$,
    $$ 'regex', E'12\n' $$,
    $$ 'json', 'no document' $$,
    $$ 'json', '{}' $$,
    $$ 'json', '{"n": "1"}' $$,
    $$ 'json', '{"n": 10}' $$,
    $$ 'json', '{"n": 1, "m": 2}' $$,
    $$ 'json', '{"n": 1' $$,
    $$ 'extract', '{"n": null}' $$,
    $$ 'facts', '{"facts": ["a", "b", "c"]}' $$,
    $$ 'facts', '["a"]' $$,
    $$ 'if', 'yes' $$,
    $$ 'if', '1' $$,
    $$ 'if_score', '1.5' $$,
    $$ 'if_score', 'NaN' $$,
    $$ 'if_score', 'true' $$,
    $$ 'score', '-0.1' $$,
    $$ 'score', 'inf' $$,
    $$ 'similarity', '2' $$,
    $$ 'similarity', '' $$,
    $$ 'classify', 'blue' $$,
    $$ 'classify', 'red', '{red}' $$,
    $$ 'scores', '[{"category": "red", "score": 1}]', '{red}' $$,
    $$ 'scores', '[{"category": "red", "score": 0.5}, {"category": "red", "score": 0.5}]', '{red,red}' $$,
    $$ 'scores', '[{"category": "red", "score": 2}, {"category": "green", "score": 0}]', '{red,green}' $$,
    $$ 'scores', '[{"category": "red", "score": 1}, {"category": "blue", "score": 0}]', '{red,blue}' $$,
    $$ 'scores', '[{"category": "red", "score": 1}, {"category": "green", "score": 0}]', '{green,red}' $$,
    $$ 'scores', '[{"category": "red", "score": 1}, {"category": "green", "score": 0}]' $$,
    $$ 'scores', '["red", "green"]', '{red,green}' $$,
    $$ 'multi', '["red", "red"]', '{red,red}' $$,
    $$ 'multi', '["black"]', '{black}' $$,
    $$ 'multi', '["red"]', '{red,NULL}' $$,
    $$ 'deduplicate', '["a", "z"]' $$,
    $$ 'deduplicate', '["c", "a"]' $$,
    $$ 'deduplicate', '["a", "a"]' $$,
    $$ 'deduplicate', 'a' $$,
    $$ 'rerank', '[]', '{}' $$,
    $$ 'rerank', '[{"document": "d", "score": 1, "index": 1}]', '{d}' $$,
    $$ 'rerank', '[{"document": "d", "score": 1, "index": 1}, {"document": "d", "score": 1, "index": 1}]', '{d,d}' $$,
    $$ 'rerank', '[{"document": "d", "score": 1, "index": 2}, {"document": "e", "score": 0, "index": 1}]', '{d,e}' $$,
    $$ 'rerank', '[{"document": "d", "score": 1, "index": 1}, {"document": "e", "score": 0, "index": 2}]', '{e,d}' $$,
    $$ 'rerank', '[{"document": "d", "score": 1, "index": 1}, {"document": "e", "index": 2}]', '{d,e}' $$,
    $$ 'rerank', '[{"document": "d", "score": 1e300, "index": 1}, {"document": "e", "score": 0, "index": 2}]', '{d,e}' $$,
    $$ 'rerank', '[{"document": "d", "score": 1, "index": 1}, {"document": "e", "score": 0, "index": 18446744073709551615}]', '{d,e}' $$,
    $$ 'rerank', '[{"query_index": 9223372036854775807, "document": "d", "score": 1, "index": 1}, {"query_index": 0, "document": "e", "score": 0, "index": 2}]', '{d,e}' $$,
    $$ 'rerank', repeat('[', 1000000), '{d,e}' $$,
    $$ 'embed', null, null, '{1}', 1 $$,
    $$ 'embed', null, null, pg_temp.vector('{1}', 255), 255 $$,
    $$ 'embed', null, null, pg_temp.vector('{1,1}'), 256 $$,
    $$ 'embed', null, null, pg_temp.vector('{0.5}'), 256 $$,
    $$ 'embed', null, null, pg_temp.vector('{}'), 256 $$,
    $$ 'embed', null, null, pg_temp.vector('{NaN}'), 256 $$,
    $$ 'embed', null, null, pg_temp.vector('{Infinity}'), 256 $$,
    $$ 'embed', null, null, array_replace(pg_temp.vector('{1}'), 0, null), 256 $$,
    $$ 'embed', null, null, pg_temp.vector('{1}', 512), 256 $$,
    $$ 'embed', null, null, array[pg_temp.vector('{1}', 128), pg_temp.vector('{}', 128)], 256 $$,
    $$ 'embed', null, '{more}', pg_temp.vector('{1}'), 256 $$,
    $$ 'batch_embed', null, null, pg_temp.vector('{1}') || pg_temp.vector('{2}'), 256, 2 $$,
    $$ 'batch_embed', null, null, pg_temp.vector('{1}', 128) || pg_temp.vector('{1}', 128), 128, 2 $$
]) as c;
select is((select count(*) from steadytext_queue where status = 'processing' and result is null and embedding is null), 17::bigint, 'none of them has written anything');
select throws_ok(
    $$ select steadytext.complete_requests('e', array_agg(h.id), array_agg(h.attempt), array_agg(case h.name when 'choice' then 'blue' else 'text' end), null, null)
       from held as h where h.name in ('generate', 'choice') $$, '22023', null, 'one that is none keeps those beside it from being written');

-- Lists and lengths without a bound.
select throws_ok(c, '22023', null, left(c, 100))
from unnest(array[
    $$ select steadytext.complete_requests('e', '{1}', '{1}', '{x}', null, null, null, (select array_agg('x'::text) from generate_series(1, 100000)), '{0}') $$,
    $$ select steadytext.complete_requests('e', '{1}', '{1}', '{x}', null, null, null, '{a,b}', '{1}') $$,
    $$ select steadytext.complete_requests('e', '{1}', '{1}', '{x}', '{1,2,3}', null) $$,
    $$ select steadytext.complete_requests('e', '{1}', '{1}', '{x}', null, null, p_prompt_tokens => array_fill(1, array[100])) $$,
    $$ select steadytext.complete_requests('e', '{1}', '{1}', null, '[0:1]={1,2}', '{2}') $$,
    $$ select steadytext.fail_requests('e', array_agg(n), array_agg(1), null, null, null) from generate_series(1, 10001) as n $$,
    $$ select steadytext.fail_requests('e', '{1}', '{1}', '{a,b}', null, null) $$,
    $$ select steadytext.fail_requests('e', '{1}', '{1}', null, '{a,b}', null) $$,
    $$ select steadytext.fail_requests('e', '{1}', '{1}', null, null, '{t,f}') $$,
    $$ select steadytext.extend_leases('e', array_agg(n), array_agg(1), 60) from generate_series(1, 10001) as n $$,
    $$ select steadytext.release_requests('e', array_agg(n), array_agg(1)) from generate_series(1, 10001) as n $$,
    $$ select steadytext.complete_reports('e', array_agg(n), array_agg(1), null) from generate_series(1, 10001) as n $$,
    $$ select steadytext.complete_reports('e', '{1}', '{1}', array_fill(''::bytea, array[2])) $$
]) as c;

-- Answers that the requests allow.
select is(pg_temp.complete(name, result, list), 'done', name || ' is answered')
from (values
    ('generate', 'any text', null::text[]),
    ('choice', 'green', null),
    ('regex', '123', null),
    ('json', '{"n": 9}', null),
    ('extract', '{"n": 1}', null),
    ('facts', '{"facts": ["a", "b"]}', null),
    ('if', 'true', null),
    ('if_score', '0.25', null),
    ('score', '1', null),
    ('similarity', '-1', null),
    ('classify', 'green', null),
    ('scores', '[{"category": "green", "score": 0.75}, {"category": "red", "score": 0.25}]', '{green,red}'),
    ('multi', '["blue", "red"]', '{blue,red}'),
    ('deduplicate', '["a", "c"]', null),
    ('rerank', '[{"document": "e", "score": 0.9, "index": 2}, {"document": "d", "score": 0.1, "index": 1}]', '{e,d}')
) as a(name, result, list);
select is(pg_temp.complete('embed', null, null, pg_temp.vector('{0.6,0.8}'), 256), 'done', 'a vector of length 1 is one');
select is(pg_temp.complete('batch_embed', null, null, pg_temp.vector('{0.6,0.8}') || pg_temp.vector('{-1}'), 256, 2), 'done', 'and two are two');

select * from finish();
rollback;
