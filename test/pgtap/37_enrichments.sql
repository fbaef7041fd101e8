-- Enrichments: definitions and their checks, notes and verdicts, statements, rights. For the processing of the notes see
-- test/server/tests/enrichments.rs.
\ir setup.psql
select plan(104);

grant create on schema public to st_alice, st_bob;
create function pg_temp.id_of(p_name text) returns uuid language sql as $$ select v.id from steadytext_vectorizers as v where v.name = p_name $$;
create function pg_temp.notes(p_name text) returns jsonb language sql as $$
    select coalesce(jsonb_agg(w.key order by w.id), '[]') from steadytext_vectorizer_work as w where w.vectorizer_id = pg_temp.id_of(p_name)
$$;
create function pg_temp.forget() returns void language sql as $$ delete from steadytext_vectorizer_work $$;
create function pg_temp.statement(p_name text, p_which text) returns text language plpgsql as $$
declare v jsonb;
begin
    select to_jsonb(s) into v from steadytext.enrichment_statements(pg_temp.id_of(p_name)) as s;
    return v ->> p_which;
end $$;
create function pg_temp.result(p_statement text, p_argument jsonb) returns jsonb language plpgsql as $$
declare v jsonb;
begin
    execute p_statement into v using p_argument;
    return v;
end $$;
create function pg_temp.rows_of(p_name text, p_keys jsonb) returns jsonb language sql as $$
    select pg_temp.result(pg_temp.statement(p_name, 'read_rows'), (select jsonb_agg(jsonb_build_object('key', k)) from jsonb_array_elements(p_keys) as k))
$$;
create function pg_temp.verdict(p_name text, p_key jsonb) returns text language sql as $$
    select j.verdict from steadytext.judge_rows(pg_temp.id_of(p_name), pg_temp.rows_of(p_name, jsonb_build_array(p_key))) as j
$$;

-- Making one.
set local role st_alice;
create type mood as enum ('positive', 'negative', 'neutral', 'mixed');
create domain short as text check (length(value) < 20);
create table article (
    id bigint primary key, title text, body text, kind mood, brief varchar(10), number integer, flag boolean, size real, doc jsonb, list text[],
    must text not null default '', preset text default 'x', loud text generated always as (upper(brief)) stored, noted short);
create table keyless (body text);
create table country (name text primary key, capital text);
create view shown as select * from article;
reset role;
grant steadytext_user to current_user;

select is(
    pg_temp.run_as('st_alice', $$ select steadytext_create_enrichment('article', 'summary', '$title: $body', params => '{"max_tokens": 8}') $$),
    'article_summary', 'an enrichment is made, and named after table and column');
select col_type_is('public'::name, 'article'::name, 'summary'::name, 'text', 'its column is added');
select is((select kind from steadytext_vectorizers where name = 'article_summary'), 'enrichment', 'it is a definition beside the vectorizers');
select is((select owner_role::name::text from steadytext_vectorizers where name = 'article_summary'), 'st_alice', 'which belongs to the owner of the table');
select results_eq(
    $$ select source::text, key_columns, source_columns, target_column, problem from steadytext.vectorizer_place(pg_temp.id_of('article_summary')) $$,
    $$ values ('article', array['id'], array['title', 'body'], 'summary', null::text) $$, 'its place is known by its triggers');
select throws_ok($$ select steadytext_create_enrichment('article', 'summary', '$body') $$, '42710', null, 'a name is taken once');
select is(
    steadytext_create_enrichment('article', 'summary', '$body', if_not_exists => true), 'article_summary', 'unless it need not be made');
select is(
    steadytext_create_enrichment('country', 'capital', 'What is the capital of $name?'), 'country_capital', 'a prompt may name the key');
select results_eq(
    $$ select given, name from steadytext.enrichment_names(pg_temp.id_of('country_capital')) $$, $$ values ('name', 'name') $$, 'and nothing else');
alter table country rename column name to label;
select results_eq(
    $$ select given, name from steadytext.enrichment_names(pg_temp.id_of('country_capital')) $$, $$ values ('name', 'label') $$, 'which is followed by its name');

-- Refused definitions.
select throws_ok($$ select steadytext_create_enrichment(null, 'x', '$body') $$, '22004', null, 'a table is named');
select throws_ok($$ select steadytext_create_enrichment('article', null, '$body') $$, '22004', null, 'so is a column');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', null) $$, '22004', null, 'and a prompt');
select throws_ok($$ select steadytext_create_enrichment('keyless', 'x', '$body') $$, '42P16', null, 'a table needs a key');
select throws_ok($$ select steadytext_create_enrichment('shown', 'x', '$body') $$, '42809', null, 'a view cannot be enriched');
select throws_ok($$ select steadytext_create_enrichment('pg_class', 'x', '$relname') $$, '42809', null, 'nor can a catalog');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$nothing') $$, '42703', null, 'a prompt names columns that there are');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$chunk') $$, '42703', null, 'a chunk is none of them');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', 'no column') $$, '22023', null, 'a prompt names at least one');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$body $') $$, '22023', null, 'and has no lonely dollar');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$body', 'embed') $$, '22023', null, 'a type has answers that fill a column');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$body', 'nonsense') $$, '22023', null, 'and is one that there is');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$body', 'classify') $$, 'P0001', 'Categories array cannot be empty', 'what the queue would refuse is refused at once');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$body', params => '{"max_token": 1}') $$, '22023', null, 'a parameter that there is not, too');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$body', params => '{"max_tokens": 0}') $$, 'P0001', null, 'and one that is out of range');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$body', params => '[]') $$, '22023', null, 'parameters are an object');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$body', 'generate_json', '{"schema": {"type": 7}}') $$, null, null, 'a schema is one');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$body', 'generate_regex', '{"pattern": "("}') $$, null, null, 'so is a pattern');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$body', model => 'no such model') $$, '42704', null, 'a model exists');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$body', model => 'small') $$, '58030', null, 'and its file does, where it would be asked for');
select lives_ok($$ select steadytext_drop_enrichment('no such enrichment', if_exists => true) $$, 'one that is dropped need not be there');
select throws_ok($$ select steadytext_drop_enrichment('no such enrichment') $$, '42704', null, 'unless that is not said');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$body', params => '{"model": "builtin"}', model => 'small') $$, '22023', null, 'and is one');
select throws_ok($$ select steadytext_create_enrichment('article', 'x', '$body', priority => 11) $$, '22023', null, 'a priority is one of the queue');
select throws_ok($$ select steadytext_create_enrichment('article', 'id', '$body') $$, '22023', null, 'the key is not filled');
select throws_ok($$ select steadytext_create_enrichment('article', 'number', '$body') $$, '42804', null, 'a column has a type for the answers');
select throws_ok($$ select steadytext_create_enrichment('article', 'flag', '$body') $$, '42804', null, 'and for those of the type of the requests');
select throws_ok($$ select steadytext_create_enrichment('article', 'list', '$body', 'extract', '{"fields": ["a"]}') $$, '42804', null, 'a list holds several categories only');
select throws_ok($$ select steadytext_create_enrichment('article', 'must', '$body') $$, '42P16', null, 'rows come before their values: not NOT NULL');
select throws_ok($$ select steadytext_create_enrichment('article', 'preset', '$body') $$, '42P16', null, 'nor with a default, which would count as written');
select throws_ok($$ select steadytext_create_enrichment('article', 'loud', '$body') $$, '42P16', null, 'nor generated');
select throws_ok($$ select steadytext_create_enrichment('article', 'kind', '$body', 'classify', '{"categories": ["positive", "ugly"]}') $$, '42804', null,
    'all categories are values of the type of the column');
select is((select count(*) from steadytext_vectorizers), 2::bigint, 'what was refused has left nothing');
select is((select count(*) from pg_attribute where attrelid = 'article'::regclass and attname = 'x'), 0::bigint, 'not even a column');

-- Accepted definitions.
select lives_ok($$ select steadytext_create_enrichment('article', 'kind', '$body', 'analyze_sentiment') $$, 'sentiments are values of a type of one''s own');
select lives_ok($$ select steadytext_create_enrichment('article', 'flag', 'Is $body good?', 'if') $$, 'yes and no are a boolean');
select lives_ok($$ select steadytext_create_enrichment('article', 'size', 'Is $body good?', 'score') $$, 'a grade is a number');
select lives_ok($$ select steadytext_create_enrichment('article', 'doc', '$body', 'extract', '{"fields": ["name"]}') $$, 'a document is jsonb');
select lives_ok($$ select steadytext_create_enrichment('article', 'list', '$body', 'classify_multi', '{"categories": ["a", "b"]}') $$, 'categories are an array');
select lives_ok($$ select steadytext_create_enrichment('article', 'noted', '$body', 'summarize_text') $$, 'a domain is the type that it is made of');
select is((select request_type from steadytext_vectorizers where name = 'article_noted'), 'summarize', 'a summary is a request of its type');
select steadytext_create_enrichment('article', 'other', '$body', params => '{"model": "builtin"}');
select is((select model from steadytext_vectorizers where name = 'article_other'), 'builtin', 'the model may be among the parameters');

-- Chains and cycles.
select lives_ok($$ select steadytext_create_enrichment('article', 'brief', '$summary') $$, 'a prompt may name what another one fills');
select throws_ok($$ select steadytext_create_enrichment('article', 'again', '$again') $$, '42703', null, 'but not its own target, which is not there');
select throws_ok($$ select steadytext_create_enrichment('article', 'title', '$title') $$, '22023', null, 'nor one that is');
select throws_ok($$ select steadytext_create_enrichment('article', 'body', 'See $brief') $$, '22023', null, 'nor what is made of its target by others');
select throws_ok($$ select steadytext_create_enrichment('article', 'body', 'See $loud') $$, '22023', null, 'nor by a generated column');
select throws_ok($$ select steadytext_create_enrichment('article', 'summary', '$title', name => 'second') $$, '42710', null, 'a column is filled by one');
select throws_ok($$ select steadytext_alter_enrichment('article_summary', prompt => '$title $loud') $$, '22023', null, 'no change closes a circle');

-- Notes of changes.
-- Two statements: the keys of one statement beyond the first few are written when it commits.
insert into article (id, title, body) values (1, 'a', 'one');
insert into article (id, title, body) values (2, 'b', ' ');
select is(pg_temp.notes('article_summary'), '[[1], [2]]', 'new rows are noted');
select pg_temp.forget();
update article set number = 7;
select is(pg_temp.notes('article_summary'), '[]', 'a change of another column is not');
update article set summary = 'mine' where id = 2;
select is(pg_temp.notes('article_summary'), '[[2]]', 'one of the target is');
select is(pg_temp.notes('article_brief'), '[[2]]', 'also for what is made of it');
update article set summary = null;
select pg_temp.forget();
update article set body = 'two' where id = 2;
select is(pg_temp.notes('article_summary'), '[[2]]', 'a change of a column of the prompt is noted');
truncate article;
select is(pg_temp.notes('article_summary'), '[[2], null]', 'TRUNCATE is noted for the whole table');

-- Rows that are read, and the verdicts on them.
insert into article (id, title, body) values (1, 'a', 'one'), (2, null, ' '), (3, 'c', 'there before');
select pg_temp.forget();
select is(pg_temp.rows_of('article_summary', '[[1], [2], [9]]') #>> '{0,prompt}', 'a: one', 'a prompt is the template with the columns of the row');
select is(pg_temp.rows_of('article_summary', '[[1], [2], [9]]') #>> '{1,prompt}', null, 'there is none where the columns have nothing in them');
select is(pg_temp.verdict('article_summary', '[1]'), 'ask', 'the model is asked about a new row');
select is(pg_temp.verdict('article_summary', '[2]'), 'empty', 'but not about a blank one, whose value is NULL');
select is(pg_temp.verdict('article_summary', '[9]'), 'gone', 'nor about one that is not there');
update article set summary = 'mine' where id in (2, 3);
select is(pg_temp.verdict('article_summary', '[3]'), 'keep', 'a value that came with its row is kept');
savepoint before;
select steadytext.mark_values(pg_temp.id_of('article_summary'), pg_temp.rows_of('article_summary', '[[3]]'), 9223372036854775807);
select is(pg_temp.verdict('article_summary', '[3]'), 'ask', 'unless it is to be made anew, too');
rollback to before;
-- As if row 1 had been asked about.
select set_config('test.row', (pg_temp.rows_of('article_summary', '[[1]]') -> 0)::text, true);
create function pg_temp.write(p_name text, p_value jsonb) returns jsonb language sql as $$
    select pg_temp.result(pg_temp.statement(p_name, 'write_values'), jsonb_build_array(current_setting('test.row')::jsonb || jsonb_build_object('value', p_value)))
$$;
create function pg_temp.remember(p_name text, p_key jsonb, p_kept boolean default false) returns void language sql as $$
    select steadytext.note_enriched_rows(pg_temp.id_of(p_name),
        (select jsonb_agg(r || jsonb_build_object('made', r -> 'was')) from jsonb_array_elements(pg_temp.rows_of(p_name, jsonb_build_array(p_key))) as r), p_kept)
$$;
savepoint before;
update article set body = 'changed' where id = 1;
select is(pg_temp.write('article_summary', '"answer"'), null, 'an answer is not written where the row has changed');
rollback to before;
update article set summary = 'by hand' where id = 1;
select is(pg_temp.write('article_summary', '"answer"'), null, 'nor where somebody has written a value meanwhile');
rollback to before;
select isnt(pg_temp.write('article_summary', '"answer"'), null, 'otherwise it is');
select is((select summary from article where id = 1), 'answer', 'into its column');
select pg_temp.remember('article_summary', '[1]');
select is(pg_temp.verdict('article_summary', '[1]'), 'done', 'that is done then');
update article set body = 'three' where id = 1;
select is(pg_temp.verdict('article_summary', '[1]'), 'ask', 'until the row changes');
update article set body = 'one', summary = 'by hand' where id = 1;
select is(pg_temp.verdict('article_summary', '[1]'), 'keep', 'what somebody writes over it stays');
update article set body = 'four' where id = 1;
select is(pg_temp.verdict('article_summary', '[1]'), 'keep', 'also where the text is another one, as it may be about that');
savepoint before_kept;
select pg_temp.remember('article_summary', '[1]', true);
select is(pg_temp.verdict('article_summary', '[1]'), 'done', 'it is known to be somebody''s then');
update article set body = 'five' where id = 1;
select is(pg_temp.verdict('article_summary', '[1]'), 'ask', 'until the row changes alone');
update article set body = 'six', summary = 'by hand again' where id = 1;
select is(pg_temp.verdict('article_summary', '[1]'), 'keep', 'and not together with the value');
rollback to before_kept;
update article set body = 'one' where id = 1;
update article set summary = null where id = 1;
select is(pg_temp.verdict('article_summary', '[1]'), 'ask', 'what somebody takes away is made again');
update article set summary = 'answer' where id = 1;
update article set id = 10 where id = 1;
update steadytext_enrichment_rows set gone_at = now() where key = '[1]';
select is(pg_temp.verdict('article_summary', '[10]'), 'adopt', 'a row with another key keeps its value');
update article set body = 'moved' where id = 10;
select is(pg_temp.verdict('article_summary', '[10]'), 'ask', 'unless it has changed, too');
update article set body = 'one' where id = 10;
select pg_temp.remember('article_summary', '[10]');
-- Two rows change places: what was made goes along with its row, and what somebody has written as well.
savepoint before_places;
insert into article (id, title, body, summary) values (11, 'k', 'eleven', 'answer of eleven'), (12, 'l', 'twelve', 'somebody''s');
select pg_temp.remember('article_summary', '[11]');
select pg_temp.remember('article_summary', '[12]', true);
update article set id = 13 where id = 11;
update article set id = 11 where id = 12;
update article set id = 12 where id = 13;
select is(
    (select string_agg(j.verdict, ' ' order by j.item ->> 'key')
     from steadytext.judge_rows(pg_temp.id_of('article_summary'), pg_temp.rows_of('article_summary', '[[11], [12]]')) as j),
    'keep adopt', 'values go with their rows where two of them change keys');
update article set body = 'changed' where id = 12;
select is(pg_temp.verdict('article_summary', '[12]'), 'keep', 'one whose text has changed as well may be somebody''s');
rollback to before_places;
select pg_temp.remember('article_summary', '[3]', true);
select pg_temp.forget();
select pg_temp.run_as('st_alice', $$ select steadytext_alter_enrichment('article_summary', prompt => 'Of ${body}', priority => 3) $$);
select is(pg_temp.verdict('article_summary', '[10]'), 'ask', 'another prompt makes all values anew');
select is(pg_temp.verdict('article_summary', '[3]'), 'keep', 'but not what somebody has written');
select is(pg_temp.notes('article_summary'), '[null]', 'the whole table is compared then');
select results_eq(
    $$ select source_columns, target_column, problem from steadytext.vectorizer_place(pg_temp.id_of('article_summary')) $$,
    $$ values (array['body'], 'summary', null::text) $$, 'by the columns of the new prompt');
select is((select count(*) from pg_trigger where tgrelid = 'article'::regclass and tgname like 'steadytext\_' || left(pg_temp.id_of('article_summary')::text, 8) || '%'),
    4::bigint, 'which its triggers watch');

-- Rights.
select throws_ok(
    $$ select pg_temp.run_as('st_bob', $i$ select steadytext_create_enrichment('article', 'bobs', '$body') $i$) $$, '42501', null, 'only the owner of a table has it enriched');
select throws_ok($$ select pg_temp.run_as('st_bob', $i$ select steadytext_drop_enrichment('article_summary') $i$) $$, '42704', null, 'others cannot drop it');
select throws_ok($$ select pg_temp.run_as('st_bob', $i$ select steadytext_alter_enrichment('article_summary', priority => 9) $i$) $$, '42704', null, 'nor change it');
select is(pg_temp.run_as('st_bob', $$ select count(*) from steadytext_enrichment_rows $$), '0', 'nor see what was made');
select is(pg_temp.run_as('st_bob', $$ select count(*) from steadytext_vectorizers where kind = 'enrichment' $$), '0', 'nor what is asked');
select is(pg_temp.run_as('st_bob', $$ select count(*) from steadytext_enrichment_status $$), '0', 'the status is of one''s own');
select throws_ok($$ select steadytext_drop_vectorizer('article_summary') $$, '42704', null, 'an enrichment is no vectorizer');
select is((select count(*) from steadytext_vectorizer_status), 0::bigint, 'and not among them in their status');
select throws_ok($$ select steadytext_drop_enrichment('article_summary', true) $$, '2BP01', null, 'a column that others are made of is not dropped');
select steadytext_drop_enrichment('article_brief');
select has_column('article'::name, 'brief'::name, 'one that is dropped leaves its values');
select pg_temp.run_as('st_alice', $$ select steadytext_drop_enrichment('article_summary', true) $$);
select hasnt_column('article'::name, 'summary'::name, 'the owner drops it, and its column with it');

select * from finish();
rollback;
