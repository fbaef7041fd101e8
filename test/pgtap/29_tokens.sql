-- The usage of answers, and texts as a tokenizer sees them.
\ir setup.psql
select plan(48);

-- Details.
create temporary table details as select * from steadytext_generate_details('What does VACUUM do?', 12);
select is((select text from details), steadytext_generate('What does VACUUM do?', 12), 'generate_details: the text of generate');
select is((select finish_reason from details), 'length', 'generate_details: it ended at its length');
select is((select generated_tokens from details), 12, 'generate_details: its tokens');
select ok((select prompt_tokens >= steadytext_count_tokens('What does VACUUM do?') from details), 'generate_details: those of the prompt, template included');
select ok((select cached_tokens between 0 and prompt_tokens from details), 'generate_details: and how many of them were there');
select ok((select first_token_ms >= 0 and total_ms >= first_token_ms from details), 'generate_details: times');
select is((select model from details), 'builtin', 'generate_details: the model');
select is(
    (select s.finish_reason from details as d, steadytext_generate_details('What does VACUUM do?', 12, options => format('{"stop": [%s]}', to_json(substr(d.text, 5, 3)))::jsonb) as s),
    'stop', 'generate_details: it ended at a stop string');
select is((select count(*) from st_generate_details(null)), 0::bigint, 'generate_details: no prompt, no row');
select is((select count(*) from st_generate_details('', on_error => 'null')), 0::bigint, 'generate_details: on_error');
select throws_ok($$ select steadytext_generate_details('') $$, 'P0001', 'Prompt cannot be empty', 'generate_details: an empty prompt');

-- Tokens.
select is(steadytext_count_tokens('What does VACUUM do?'), cardinality(steadytext_tokenize('What does VACUUM do?')), 'count_tokens counts what tokenize gives');
select ok(steadytext_count_tokens('What does VACUUM do?') between 2 and 20, 'count_tokens: fewer than bytes');
select is(steadytext_count_tokens(''), 0, 'count_tokens: none');
select is(steadytext_tokenize(''), '{}'::integer[], 'tokenize: none');
select is(steadytext_count_tokens(null), null, 'count_tokens: NULL');
select is(steadytext_tokenize(null), null, 'tokenize: NULL');
select is(st_count_tokens('hello', 'builtin'), steadytext_count_tokens('hello'), 'st_count_tokens is the same, with a model');
select is(st_tokenize('hello', 'builtin'), steadytext_tokenize('hello'), 'st_tokenize is the same');
select ok(steadytext_count_tokens(repeat('word ', 100000)) between 100000 and 100001, 'count_tokens: a long text');
select throws_ok($$ select steadytext_count_tokens('x', 'nothing') $$, '42704', 'model "nothing" is not registered', 'count_tokens: an unknown model');
select throws_ok($$ select steadytext_count_tokens(repeat('x', 1048577)) $$, '54000', 'the text has 1048577 bytes, 1048576 are allowed', 'count_tokens: too long');

-- Chunks.
create temporary table document as
select E'# Storage\n\nVACUUM reclaims storage. It does so for dead tuples! Ärger und 日本語 too。\n\n' || repeat(E'A sentence of some words stands here. Another one follows it.\n', 12)
    || E'\n\n# Queries\n\n' || repeat('A cursor fetches some rows at a time, whatever they are. ', 10) as body;
create temporary table chunked as
select s.strategy, c.* from document, unnest(array['token', 'recursive', 'sentence', 'markdown']) as s(strategy), steadytext_chunk_text(body, 40, 10, s.strategy) as c;
select ok(
    (select bool_and(substr(body, start_offset, length(chunk)) = chunk) from chunked, document where chunked.strategy = s.strategy), s.strategy || ': chunks are parts of the text')
from (values ('token'), ('recursive'), ('sentence'), ('markdown')) as s(strategy);
select ok(
    (select bool_and(tokens <= 40 and tokens = steadytext_count_tokens(chunk)) from chunked where chunked.strategy = s.strategy), s.strategy || ': within their size')
from (values ('token'), ('recursive'), ('sentence'), ('markdown')) as s(strategy);
select ok(
    (select min(seq) = 1 and max(seq) = count(*) and count(*) > 5 from chunked where chunked.strategy = s.strategy), s.strategy || ': counted from 1')
from (values ('token'), ('recursive'), ('sentence'), ('markdown')) as s(strategy);
select ok(
    (select bool_or(start_offset < before) and bool_and(start_offset > previous) from (
        select start_offset, lag(start_offset + length(chunk)) over w as before, lag(start_offset) over w as previous from chunked where chunked.strategy = s.strategy window w as (order by seq)) as t
     where before is not null), s.strategy || ': some of them overlap')
from (values ('token'), ('recursive'), ('markdown')) as s(strategy);
select is((select string_agg(chunk, '' order by seq) from document, steadytext_chunk_text(body, 7, 0, 'token')), body, 'token: together they are the text') from document;
select ok(
    (select bool_or(chunk like '# Queries%') from chunked where strategy = 'markdown'), 'markdown: a heading begins a chunk');
select ok((select bool_and(chunk = repeat('x', length(chunk))) and sum(length(chunk)) > 1000 from steadytext_chunk_text(repeat('x', 1000), 40, 10)), 'recursive: a text without words overlaps, too');
select results_eq(
    $$ select * from st_chunk_text('One text.') $$, $$ select 1, 'One text.', 1, steadytext_count_tokens('One text.') $$, 'a short text is one chunk');
select is((select count(*) from steadytext_chunk_text('')), 0::bigint, 'no text has none');
select is((select count(*) from steadytext_chunk_text(null)), 0::bigint, 'nor has NULL');
select throws_ok($$ select steadytext_chunk_text('x', 0) $$, '22023', 'chunk_size must be between 1 and 1000000 tokens', 'no size');
select throws_ok($$ select steadytext_chunk_text('x', 10, -1) $$, '22023', 'chunk_overlap must not be negative', 'a negative overlap');
select throws_ok($$ select steadytext_chunk_text('x', strategy => 'other') $$, '22023', 'strategy must be token, recursive, sentence or markdown', 'an unknown strategy');

-- Rights.
select throws_ok(format('select pg_temp.run_as(%L, %L)', 'st_stranger', call), '42501', null, 'a stranger may not: ' || call)
from unnest(array['select steadytext_count_tokens(''x'')']) as call;
select is(pg_temp.run_as('st_alice', $$ select steadytext_count_tokens('hello') $$), steadytext_count_tokens('hello')::text, 'a user may count');

select * from finish();
rollback;
