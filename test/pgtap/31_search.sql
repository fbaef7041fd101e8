-- Search in what vectorizers keep: by vectors and words, filters, plans, rights, and answers from what was found.
\ir setup.psql
select plan(75);

-- Two vectorizers whose vectors are already there: one with a table of chunks, one with a column.
create table article (shelf integer, id bigint, title text, body text, price numeric, primary key (shelf, id));
insert into article
select i % 3, i, 'title ' || i, 'text number ' || i, i from generate_series(1, 400) as i;
insert into article values (7, 7, 'VACUUM', 'Reclaims the storage of dead rows. Analyse is another matter.', 18446744073709551617);
do $$ begin perform steadytext_create_vectorizer('article', '{body}', 'articles', enqueue_existing => false); end $$;
insert into article_body_embedding select shelf, id, 1, body, steadytext_embed(body), '', '' from article where shelf < 7;
insert into article_body_embedding
select 7, 7, n, c, steadytext_embed(c), '', '' from unnest(array['Reclaims the storage of dead rows.', 'Analyse is another matter.']) with ordinality as t(c, n);
create index on article_body_embedding using hnsw (embedding vector_cosine_ops);
create table note (id integer primary key, subject varchar, body text);
insert into note select i, 'subject ' || i, nullif('note ' || i, 'note 5') from generate_series(1, 30) as i;
do $$ begin perform steadytext_create_vectorizer('note', '{subject,body}', 'notes', target_column => 'embedding', enqueue_existing => false); end $$;
update note set embedding = steadytext_embed(body) where body is not null;
analyze article, article_body_embedding;

-- By vectors.
select results_eq($$ select key, chunk, distance, "row" from steadytext_search('articles', 'dead rows', 1, 'shelf = 7') $$,
    $$ select '{"id": 7, "shelf": 7}'::jsonb, chunk, embedding <=> steadytext_embed('dead rows', mode => 'query'),
        '{"id": 7, "shelf": 7, "title": "VACUUM", "body": "Reclaims the storage of dead rows. Analyse is another matter.", "price": 18446744073709551617}'::jsonb
        from article_body_embedding where shelf = 7 order by 3 limit 1 $$,
    'search: the nearest chunk with the key and the row it is of, exactly');
select results_eq($$ select chunk from steadytext_search('articles', 'text number 77', 5) $$,
    $$ select chunk from article_body_embedding order by embedding <=> steadytext_embed('text number 77', mode => 'query') limit 5 $$, 'search: in the order of distances');
select is((select count(*) from steadytext_search('articles', 'text', 300)), 300::bigint, 'search: as many as are wanted, beyond what the index gives by default');
select is((select count(*) from steadytext_search('articles', 'text', 1000)), 402::bigint, 'search: or as there are');
select results_eq($$ select key, chunk, "row" from steadytext_search('notes', 'note 9', 1, 'id = 9') $$,
    $$ values ('{"id": 9}'::jsonb, E'subject 9\n\nnote 9', '{"id": 9, "subject": "subject 9", "body": "note 9"}'::jsonb) $$, 'search: vectors in a column');
select is((select count(*) from steadytext_search('notes', 'note 9', 100)), 29::bigint, 'search: rows without a vector are not found');
select results_eq($$ select chunk from steadytext_search('articles', 'dead rows', 3, 'id < 50', true) $$,
    $$ select document from steadytext_rerank('dead rows', (select array_agg(chunk) from steadytext_search('articles', 'dead rows', 12, 'id < 50'))) limit 3 $$,
    'search: a reranker has the last word');
select is_empty($$ select * from steadytext_search('articles', null) $$, 'search: NULL finds nothing');
select results_eq($$ select chunk from st_search('articles', 'text number 3', 2) $$, $$ select chunk from steadytext_search('articles', 'text number 3', 2) $$, 'st_search');
select throws_ok($$ select * from steadytext_search('nobody', 'x') $$, '42704', null, 'search: an unknown vectorizer');
alter table note rename to remark;
alter table remark rename column id to number;
select results_eq($$ select key from steadytext_search('notes', 'note 9', 1, 'number = 9') $$, $$ values ('{"number": 9}'::jsonb) $$, 'search: under new names');
alter table remark rename column number to id;
alter table remark rename to note;
select throws_ok($$ select * from steadytext_hybrid_search('articles', E'\t ') $$, '22023', 'query has no text', 'hybrid: an empty query');
select results_eq($$ select answer, sources from steadytext_rag('articles', 'What reclaims?', filter => 'false') $$, $$ values (null::text, '[]'::jsonb) $$,
    'rag: nothing is answered from nothing');
alter table article add column other vector(3);
update article set other = '[1,2,3]' where shelf = 7;
select is((select "row" ? 'other' from steadytext_search('articles', 'dead rows', 1, 'shelf = 7')), false, 'search: vectors of the row are left out');
select throws_ok($$ select * from steadytext_search('articles', 'x', 0) $$, '22023', 'k must be between 1 and 1000', 'search: no rows');
select throws_ok($$ select * from steadytext_search('articles', '  ') $$, '22023', 'query has no text', 'search: an empty query');
select is(coalesce(current_setting('hnsw.iterative_scan', true), 'off') || current_setting('search_path'), 'off' || current_setting('search_path'), 'search: settings are what they were');

-- The plan.
set local enable_seqscan = off;
create function pg_temp.plan_of(p_statement text) returns text language plpgsql as $$
declare
    v_line text;
    v_plan text := '';
begin
    for v_line in execute 'explain (costs off) ' || p_statement loop v_plan := v_plan || v_line || E'\n'; end loop;
    return v_plan;
end
$$;
create function pg_temp.search_plan(p_filter text, p_exact boolean, p_vectorizer text default 'articles') returns text language sql as $$
    select pg_temp.plan_of(replace(replace(steadytext.search_statement(steadytext.find_search_target(p_vectorizer), p_filter, p_exact),
        '$1', quote_literal(steadytext_embed('x'))), '$2', '5'))
$$;
select alike(pg_temp.search_plan(null, false), '%Index Scan using article_body_embedding_embedding_idx%Order By: (%embedding <=>%', 'search: by the index on vectors');
select alike(pg_temp.search_plan('price > 10', false), '%Index Scan using article_body_embedding_embedding_idx%article_pkey%price >%', 'search: with a filter, too');
-- Sorting thirty rows costs less than an index.
set local enable_sort = off;
select alike(pg_temp.search_plan('id > 3', false, 'notes'), '%Index Scan using note_embedding_idx on note%Order By: (embedding <=>%', 'search: by the index on a column');
reset enable_sort;
select unalike(pg_temp.search_plan('price < 10', true), '%article_body_embedding_embedding_idx%', 'search: but not where it would leave out rows');
reset enable_seqscan;

-- Filters.
select results_eq($$ select (key ->> 'id')::int from steadytext_search('articles', 'text number 77', 3, 'price in (11, 12, 399)') order by 1 $$, $$ values (11), (12), (399) $$,
    'filter: few rows far away are found all the same');
select results_eq($$ select "row" ->> 'title' from steadytext_search('articles', 'rows', 1, 'article.shelf = 7 -- of seven') $$, $$ values ('VACUUM') $$, 'filter: a comment ends with it');
select is((select count(*) from steadytext_search('articles', 'rows', 10, 'false')), 0::bigint, 'filter: that lets nothing through');
select is((select count(*) from steadytext_search('notes', 'note', 10, 'exists (select from article where article.id = note.id and article.price between 29 and 30)')), 2::bigint, 'filter: with other tables');
create schema st_other;
create function st_other.of_ours(integer) returns boolean language sql as 'select $1 = 3';
set local search_path = st_other, public;
select is((select count(*) from steadytext_search('notes', 'note', 10, 'of_ours(id)')), 1::bigint, 'filter: on the search path of the caller');
reset search_path;
select throws_ok($$ select * from steadytext_search('articles', 'x', 5, 'of_ours(id::int)') $$, '42883', null, 'filter: and on no other');
select throws_ok(format('select * from steadytext_search(''articles'', ''x'', 5, %L)', f), '42601', null, 'filter: ' || f)
from unnest(array['true) or (true', 'true; drop table article', 'true union select 1', 'true from article', 'true as x', 'true, true', '', 'true /* ',
    'true limit 1', 'true order by 1', 'true where true', ''') or ('' = ''']) as f;
select throws_ok($$ select * from steadytext_search('articles', 'x', 5, 'seq = 1') $$, '42703', null, 'filter: columns of the source, and no others');
select throws_ok($$ select * from steadytext_search('articles', 'x', 5, 'title') $$, '42804', null, 'filter: a condition');

-- Rights: those of the caller.
select throws_ok($$ select pg_temp.run_as('st_alice', $q$ select count(*) from steadytext_search('articles', 'x') $q$) $$, '42501', null, 'rights: who may not read the tables finds nothing');
grant select on article, article_body_embedding to st_alice;
select is(pg_temp.run_as('st_alice', $$ select count(*) from steadytext_search('articles', 'text') $$), '10', 'rights: who may read both finds');
alter table article enable row level security;
create policy cheap on article for select to st_alice using (price < 5);
select is(pg_temp.run_as('st_alice', $$ select count(*) from steadytext_search('articles', 'text') $$), '4', 'rights: what a policy lets through');
select is(pg_temp.run_as('st_alice', $$ select count(*) from steadytext_hybrid_search('articles', 'text number 9') $$), '4', 'rights: in hybrid searches, too');
select throws_ok($$ select pg_temp.run_as('st_alice', $q$ select steadytext_create_text_index('articles') $q$) $$, '42501', null, 'rights: indexes are for the owner');

-- By vectors and words.
select results_eq($$ select chunk, sparse_rank from steadytext_hybrid_search('articles', 'Analyse dead rows', 2, alpha => 0) where sparse_rank is not null $$,
    $$ values ('Reclaims the storage of dead rows.', 1), ('Analyse is another matter.', 2) $$, 'hybrid: by words alone, first the text with more of them');
select results_eq($$ select chunk from steadytext_hybrid_search('articles', 'text number 77', 4, alpha => 1) $$,
    $$ select chunk from steadytext_search('articles', 'text number 77', 4) $$, 'hybrid: by vectors alone');
select results_eq($$ select score from steadytext_hybrid_search('articles', 'text number 77', 5, 10, 0.3) $$,
    $$ select coalesce(0.3 / (10 + dense_rank), 0) + coalesce((1 - 0.3::float8) / (10 + sparse_rank), 0) from steadytext_hybrid_search('articles', 'text number 77', 5, 10, 0.3) $$,
    'hybrid: the score');
select ok(bool_and(h.score = best.score), 'hybrid: the best one is first')
from (select score from steadytext_hybrid_search('articles', 'text number 77', 1)) as h, (select max(score) as score from steadytext_hybrid_search('articles', 'text number 77', 50)) as best;
select is((select count(*) from steadytext_hybrid_search('articles', 'number 9', 5, filter => 'shelf = 7')), 2::bigint, 'hybrid: a filter');
select is(steadytext_create_text_index('articles', 'simple'), 'public.article_body_embedding_to_tsvector_idx', 'create_text_index: its name');
select is(st_create_text_index('articles'), 'public.article_body_embedding_to_tsvector_idx', 'create_text_index: one is enough');
select throws_ok($$ select steadytext_create_text_index('articles', 'english') $$, '42710', null, 'create_text_index: and is not that of another configuration');
select throws_ok($$ select steadytext_create_text_index('articles', 'klingon') $$, '42704', null, 'create_text_index: a configuration that there is not');
set local enable_seqscan = off;
select alike(pg_temp.plan_of(replace(replace(replace(replace(replace(replace(
        steadytext.hybrid_statement(steadytext.find_search_target('articles'), null, false, (steadytext.text_index('article_body_embedding', 'chunk')).config),
        '$1', quote_literal(steadytext_embed('x'))), '$2', '5'), '$3', '''dead'''), '$4', '60'), '$5', '0.5::float8'), '$6', '5')),
    '%article_body_embedding_embedding_idx%article_body_embedding_to_tsvector_idx%', 'hybrid: by both indexes');
set local enable_sort = off;
-- Versions of pgvector before 0.8 do not have it.
select case when current_setting('hnsw.max_scan_tuples', true) is not null then set_config('hnsw.max_scan_tuples', '1', true) end \gset
select results_eq($$ select count(dense_rank), count(sparse_rank) from steadytext_hybrid_search('articles', 'text number 77 reclaims matter', 2, filter => 'shelf = 7') $$,
    $$ values (2::bigint, 2::bigint) $$, 'hybrid: words that have found enough do not hide what the index has missed');
select case when current_setting('hnsw.max_scan_tuples', true) is not null then set_config('hnsw.max_scan_tuples', '20000', true) end \gset
reset enable_sort;
reset enable_seqscan;
select is((select sparse_rank from steadytext_hybrid_search('articles', 'matters', 1, alpha => 0)), null, 'hybrid: by the configuration of the index');
create index note_words on note using gin (to_tsvector('simple', body));
create index note_lower on note using gin (to_tsvector('simple', lower(coalesce(subject::text, '') || E'\n\n' || coalesce(body, ''))));
select is((select sparse_rank from steadytext_hybrid_search('notes', 'subjects of 17', 1, alpha => 0)), 1, 'hybrid: an index on the words of other texts says nothing about its configuration');
select is(steadytext_create_text_index('notes', 'english'), 'public.note_to_tsvector_idx', 'create_text_index: of columns');
select is(steadytext_create_text_index('notes'), 'public.note_to_tsvector_idx', 'create_text_index: which is known again');
create table many (id int primary key, "The First" text, d varchar(9), j text);
do $$ begin perform steadytext_create_vectorizer('many', array['The First', 'd', 'j'], 'many', target_column => 'v', model => 'builtin', index => 'none');
    perform steadytext_create_vectorizer('many', array['The First'], 'single', target_column => 'w', model => 'builtin', index => 'none'); end $$;
select is(steadytext_create_text_index(v, 'simple'), i, format('create_text_index: for %s', v))
from (values (1, 'many', 'public.many_to_tsvector_idx'), (2, 'many', 'public.many_to_tsvector_idx'), (3, 'single', 'public.many_to_tsvector_idx1')) as c(n, v, i) order by n;
select is((select chunk from steadytext_hybrid_search('notes', 'subjects of 17', 1, alpha => 0)), E'subject 17\n\nnote 17', 'hybrid: vectors in a column');
select is(steadytext.any_words('english', 'the dead rows -vacuum')::text, '''dead'' & ''row'' & !''vacuum''', 'hybrid: what a query excludes');
select throws_ok($$ select * from steadytext_hybrid_search('articles', 'x', alpha => 1.1) $$, '22023', null, 'hybrid: alpha');
select throws_ok($$ select * from steadytext_hybrid_search('articles', 'x', rrf_k => 0) $$, '22023', null, 'hybrid: rrf_k');

-- An index that gives rows in about their order, as ivfflat does.
savepoint before_order;
create or replace function steadytext.run_search(
    p_statement text, p_vector text, p_count integer, p_path text, p_words text, p_rrf_k integer, p_alpha double precision, p_limit integer,
    out keys jsonb[], out chunks text[], out distances double precision[], out dense_ranks integer[], out sparse_ranks integer[], out rows jsonb[], out dense_count bigint
) language sql as $$ select array['[1]', '[2]', '[3]']::jsonb[], array['c', 'a', 'b'], array[0.3, 0.1, 0.2], null::integer[], null::integer[], array['{}', '{}', '{}']::jsonb[], 3::bigint $$;
select results_eq($$ select chunk from steadytext_search('articles', 'x', 3) $$, $$ values ('a'), ('b'), ('c') $$, 'search: the nearest is first all the same');
rollback to before_order;

-- Answers.
select is(steadytext_prompt_render('steadytext/rag', '{"question": "Why?", "sources": [{"number": 1, "text": "So."}, {"number": 2, "text": "Thus."}]}'),
    E'Sources:\n\n[1] So.\n\n[2] Thus.\n\nAnswer the question in a sentence or two, only from the sources above, and cite their numbers, as in [1]. If they do not have the answer, say that you do not know.\n\nQuestion: Why?',
    'rag: the prompt');
select results_eq($$ select r.answer = steadytext_generate(steadytext_prompt_render('steadytext/rag', jsonb_build_object('question', 'What reclaims?',
            'sources', (select jsonb_agg(jsonb_build_object('number', n, 'text', chunk)) from steadytext_search('articles', 'What reclaims?', 2) with ordinality as s(key, chunk, distance, row, n)))), 8),
        (select array_agg(s ->> 'chunk') from jsonb_array_elements(r.sources) as s)
    from steadytext_rag('articles', 'What reclaims?', 2, 8) as r $$,
    $$ select true, array_agg(chunk) from steadytext_search('articles', 'What reclaims?', 2) $$, 'rag: an answer to the question and its sources');
insert into article values (8, 8, 'long', 'x', 1);
insert into article_body_embedding select 8, 8, 1, repeat('A tale of rows. ', 20000), steadytext_embed('A tale of rows.'), '', '';
select ok(length(r.sources -> 0 ->> 'chunk') between 20 and 200000 and r.answer is not null, 'rag: sources are cut to what fits into the context')
from steadytext_rag('articles', 'A tale of rows.', 5, 8, filter => 'shelf = 8') as r;
select is(r.sources, '[]', 'rag: a question that nothing is found for') from steadytext_rag('articles', 'Who?', 5, 4, filter => 'false') as r;
select is_empty($$ select * from steadytext_rag('articles', null) $$, 'rag: NULL is no question');
select ok(sources -> 0 ? 'score', 'rag: from a hybrid search') from steadytext_rag('articles', 'dead rows', 1, 4, hybrid => true);

select * from finish();
rollback;
