-- Rows that have nothing to be answered, or cannot be: NULL in, NULL out; on_error; truncate; and by what an error names
-- its row.
\ir setup.psql
select plan(76);

create function pg_temp.detail_of(p_statement text) returns text language plpgsql as $$
declare
    v_detail text;
begin
    execute p_statement;
    return 'no error';
exception when others then
    get stacked diagnostics v_detail = pg_exception_detail;
    return v_detail;
end
$$;

-- NULL in, NULL out.
select is_empty(
    format($$ select r.* from (select (%s)::text) as r(answer) where answer is not null $$, replace(call, 'steadytext_', prefix)),
    'NULL for NULL: ' || replace(call, 'steadytext_', prefix))
from unnest(array['steadytext_', 'st_']) as prefix, unnest(array[
    'steadytext_generate(null)', 'steadytext_generate(null, max_tokens => 0)', 'steadytext_embed(null)', 'steadytext_embed(null, mode => ''query'')',
    'steadytext_generate_json(null, ''{}''::jsonb)', 'steadytext_generate_regex(null, ''a'')',
    'steadytext_generate_choice(null, array[''a'', ''b''])', 'steadytext_generate_cached(null)', 'steadytext_embed_cached(null)'
]) as call;
select is_empty('select * from ' || call, 'no rows for NULL: ' || call)
from unnest(array[
    'steadytext_generate_stream(null)', 'st_generate_stream(null)', 'steadytext_rerank(null, array[''a''])', 'steadytext_rerank(''q'', null)',
    'steadytext_rerank_docs_only(null, array[''a''])', 'steadytext_rerank_top_k(''q'', null, 3)', 'steadytext_rerank_batch(null, array[''a''])',
    'steadytext_rerank_batch(array[''q''], null)', 'st_rerank(null, null)'
]) as call;

-- Requests that cannot be answered now or later give NULL, if that is wanted.
select steadytext_config_set('max_prompt_bytes', '100000');
create temporary table hopeless (call text, code text);
insert into hopeless values
    ($$ steadytext_generate('') $$, 'P0001'),
    ($$ steadytext_generate(E' \t\n') $$, 'P0001'),
    ($$ steadytext_generate(repeat('x', 100001)) $$, '54000'),
    ($$ steadytext_generate(repeat('many words ', 9000)) $$, '54000'),
    ($$ steadytext_embed(' ') $$, 'P0001'),
    ($$ steadytext_embed(repeat('many words ', 9000)) $$, '54000'),
    ($$ steadytext_generate_json('', '{}') $$, 'P0001'),
    ($$ steadytext_generate_json('x', '{"type": "string", "minLength": 900}', 10) $$, '53400'),
    ($$ steadytext_generate_regex('x', '[a-z]{500}', 10) $$, '53400'),
    ($$ steadytext_generate_choice(' ', array['a', 'b']) $$, 'P0001'),
    ($$ steadytext_generate_cached('') $$, 'P0001'),
    ($$ steadytext_embed_cached(repeat('x', 100001)) $$, '54000');
select throws_ok('select ' || call, code, null, 'an error:' || left(call, 60)) from hopeless;
select is_empty(
    format('select from (select %s) as r(answer) where answer is not null', regexp_replace(call, '\) $', ', on_error => ''null'')')),
    'NULL:' || left(call, 60)) from hopeless;
select is_empty('select * from ' || call, 'no rows: ' || call)
from unnest(array[
    'steadytext_generate_stream('''', on_error => ''null'')', 'steadytext_rerank('''', array[''a''], on_error => ''null'')',
    'steadytext_rerank(''q'', ''{}'', on_error => ''null'')', 'steadytext_rerank(''q'', array[''a'', null], on_error => ''null'')',
    'steadytext_rerank(''q'', array[''a'', repeat(''many words '', 9000)], on_error => ''null'')'
]) as call;
select is(steadytext_generate('Say hello', 8, on_error => 'null'), steadytext_generate('Say hello', 8), 'on_error changes nothing where there is an answer');

-- An error in the statement stays an error.
select throws_ok('select ' || call, code, null, 'on_error => null: ' || call)
from (
    values ($$steadytext_generate('x', 0, on_error => 'null')$$, 'P0001'), ($$steadytext_generate('x', model => 'nix', on_error => 'null')$$, '42704'),
        ($$steadytext_embed('x', model => 'embedding', on_error => 'null')$$, '58030'),
        ($$steadytext_generate_json('x', 'false', on_error => 'null')$$, '22023'),
        ($$steadytext_generate('x', on_error => 'ignore')$$, '22023'), ($$steadytext_embed(null, on_error => '')$$, '22023'),
        ($$steadytext_rerank('x', array['a'], on_error => 'NULL')$$, '22023')
) as wrong(call, code);

-- Errors name their row.
create temporary table note (id integer, body text);
insert into note values (1, 'one'), (2, ' '), (3, repeat('many words ', 9000));
select is(pg_temp.detail_of('select steadytext_embed(body) from note where id <= 2'),
    'The text has 1 byte, and its SHA-256 begins with 36a9e7f1.', 'a blank text by its length and digest');
select results_eq(
    $$ select id from note where encode(sha256(convert_to(body, 'UTF8')), 'hex') like
           substring(pg_temp.detail_of('select steadytext_embed(body) from note where id <> 2') from 'begins with (\w+)') || '%' $$,
    array[3], 'the row of a text that is too long is found by it');
select unalike(pg_temp.detail_of('select steadytext_generate(body) from note where id = 3'), '%words%', 'without a word of it');
select alike(
    pg_temp.detail_of($$ select steadytext_rerank('which', array['a', repeat('many words ', 9000)]) $$),
    'The query has 5 bytes, and its SHA-256 begins with ________; the document has 99000 bytes, and its SHA-256 begins with ________.',
    'a ranking names query and document');

-- Cut at the end of the context.
select isnt(steadytext_embed(body, truncate => true), null, 'truncate: a text that is too long has a vector') from note where id = 3;
select is(
    steadytext_embed(body, truncate => true)::text, steadytext_embed(body || 'and more of them', truncate => true)::text,
    'truncate: what is cut off does not matter') from note where id = 3;
select is(steadytext_embed('one', truncate => true)::text, steadytext_embed('one')::text, 'truncate: a short text has the same vector');
select isnt(
    steadytext_cache_key('embed', 'one', '{"truncate": true}'), steadytext_cache_key('embed', 'one'), 'truncate is part of the key');
select is(steadytext_cache_key('embed', 'one', '{"truncate": false}'), steadytext_cache_key('embed', 'one'), 'unless it is false');
select is((select count(*) from steadytext_rerank('which', array['a', repeat('many words ', 9000)], truncate => true)), 2::bigint, 'truncate: long documents are ranked');
select throws_ok($$ select steadytext_rerank(repeat('many words ', 9000), array['a'], truncate => true) $$, '54000', null, 'but a query is never cut');

-- A generated column, with texts of all kinds.
create temporary table article (
    id integer, body text,
    embedding vector generated always as (steadytext_embed(body, truncate => true, on_error => 'null')) stored
);
insert into article (id, body) select * from note union all values (4, null), (5, 'five');
select is(
    (select array_agg(id order by id) from article where embedding is not null), array[1, 3, 5],
    'a generated column takes NULL, blank and long texts');

select * from finish();
rollback;
