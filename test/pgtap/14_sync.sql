-- Synchronous functions and streams: answers, defaults, limits and rights. The server tests cover
-- their execution.
\ir setup.psql
select plan(42);

-- Answers.
select is(steadytext_generate('Say hello', max_tokens => 8), steadytext_generate('Say hello', max_tokens => 8), 'generate: the same input gives the same text');
select isnt(steadytext_generate('Say hello', max_tokens => 8), steadytext_generate('What does VACUUM do?', max_tokens => 8), 'generate: another prompt gives another text');
select is(st_generate('Say hello', max_tokens => 8), steadytext_generate('Say hello', max_tokens => 8), 'st_generate is the same');
select is(
    steadytext_generate('Say hello', 8, true, 42, '[EOS]', 'builtin', null, 0), steadytext_generate('Say hello', max_tokens => 8),
    'generate: parameters by position');
select is(
    steadytext_generate('Say hello', null, null, null, null, null, null, null), steadytext_generate('Say hello'),
    'generate: NULL means the default');
select is(
    steadytext_generate('Say hello', 8, seed => 1), steadytext_generate('Say hello', 8, seed => 2),
    'generate: without a temperature the seed does not matter');
select isnt(
    steadytext_generate('Say hello', 30, seed => 1, temperature => 2), steadytext_generate('Say hello', 30, seed => 2, temperature => 2),
    'generate: with a temperature it does');
select is(
    steadytext_generate('Say hello', 30, eos_string => substr(steadytext_generate('Say hello', 30), 6, 3)),
    left(steadytext_generate('Say hello', 30), 5), 'generate: eos_string ends the text');
select ok(abs((steadytext_embed('hello') <#> steadytext_embed('hello')) + 1) < 1e-5, 'embed: a vector of length 1');
select is(steadytext_embed('hello')::text, steadytext_embed('hello', true, 42, null)::text, 'embed: parameters by position');
select is(steadytext_embed('hello')::text, steadytext_embed('hello', null, null, 'builtin')::text, 'embed: NULL means the default');
select isnt(steadytext_embed('hello')::text, steadytext_embed('goodbye')::text, 'embed: another text gives another vector');
select is(st_embed('hello')::text, steadytext_embed('hello')::text, 'st_embed is the same');
select is(
    (select string_agg(piece, '') from steadytext_generate_stream('Say hello', 40) as piece), steadytext_generate('Say hello', 40),
    'generate_stream: the pieces are the text');
select is(
    (select string_agg(piece, '') from st_generate_stream('Say hello', 40, 1, '[EOS]', 'builtin', null, 2) as piece),
    steadytext_generate('Say hello', 40, seed => 1, temperature => 2), 'st_generate_stream is the same, with the parameters of generate');

-- Words and codes of the asynchronous functions.
select throws_ok(format('select %s(%L)', f.name, t.blank), 'P0001', f.message, f.name || ' of ' || coalesce(quote_literal(t.blank), 'NULL'))
from (
    values ('steadytext_generate', 'Prompt cannot be empty'), ('steadytext_generate_stream', 'Prompt cannot be empty'),
        ('steadytext_embed', 'Text input cannot be empty')
) as f(name, message), unnest(array['', E' \t\n']) as t(blank);
select throws_ok($$ select steadytext_generate('x', 0) $$, 'P0001', 'max_tokens must be between 1 and 4096', 'generate: no tokens');
select throws_ok($$ select steadytext_generate('x', 4097) $$, 'P0001', 'max_tokens must be between 1 and 4096', 'generate: too many tokens');
select throws_ok($$ select steadytext_generate_stream('x', -1) $$, 'P0001', 'max_tokens must be between 1 and 4096', 'generate_stream: negative tokens');
select throws_ok($$ select steadytext_generate('x', temperature => -1) $$, '22023', 'temperature must be a number between 0 and 100', 'generate: negative temperature');
select throws_ok($$ select steadytext_generate('x', temperature => 'NaN') $$, '22023', 'temperature must be a number between 0 and 100', 'generate: temperature that is no number');
select throws_ok($$ select steadytext_generate('x', temperature => 'infinity') $$, '22023', 'temperature must be a number between 0 and 100', 'generate: infinite temperature');
select throws_ok($$ select steadytext_generate('x', eos_string => repeat('x', 1025)) $$, '22023', 'eos_string must be a text of 1 to 1024 bytes', 'generate: long eos_string');
select throws_ok($$ select steadytext_generate('x', model => '') $$, '22023', 'model must be a text of 1 to 1024 bytes', 'generate: empty model');
select throws_ok($$ select steadytext_generate('x', model => '/etc/passwd') $$, '42704', 'model "/etc/passwd" is not registered', 'a caller cannot name a file');
select throws_ok($$ select steadytext_embed('x', model => '../x.gguf') $$, '42704', 'model "../x.gguf" is not registered', 'nor for embeddings');
select throws_ok($$ select steadytext_generate('x', size => 'huge') $$, '42704', 'model "huge" is not registered', 'generate: unknown size');
select steadytext_config_set('max_prompt_bytes', '1024');
select throws_ok($$ select steadytext_embed(repeat('x', 1025)) $$, '54000', 'the text has 1025 bytes, 1024 are allowed', 'embed: too long');
select throws_ok($$ select steadytext_generate(repeat('x', 1025)) $$, '54000', 'the text has 1025 bytes, 1024 are allowed', 'generate: too long');

-- In SQL.
create temporary table note (body text, embedding vector generated always as (steadytext_embed(body)) stored);
insert into note (body) values ('first'), ('second');
select results_eq('select embedding::text from note order by body', $$ values (steadytext_embed('first')::text), (steadytext_embed('second')::text) $$, 'a generated column');
select throws_ok($$ insert into note (body) values ('') $$, 'P0001', 'Text input cannot be empty', 'whose error refuses the row');
select set_eq(
    $$ select proname::text, provolatile::text, proparallel::text from pg_proc where proname in ('steadytext_generate', 'steadytext_embed') $$,
    $$ values ('steadytext_embed', 'i', 's'), ('steadytext_generate', 'i', 's') $$, 'immutable and parallel safe');
declare pieces cursor for select steadytext_generate_stream('Say hello', 40);
select lives_ok('fetch 1 from pieces', 'a piece of a stream is fetched');
select lives_ok('close pieces', 'and its cursor closed before the end');

-- Rights.
select throws_ok(format('select pg_temp.run_as(%L, %L)', 'st_stranger', call), '42501', null, 'a stranger may not: ' || call)
from unnest(array['select steadytext_generate(''x'')', 'select steadytext_embed(''x'')']) as call;
select is(pg_temp.run_as('st_alice', $$ select steadytext_embed('x')::text $$), steadytext_embed('x')::text, 'a user may embed');

select * from finish();
rollback;
