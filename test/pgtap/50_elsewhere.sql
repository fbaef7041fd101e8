-- What workers elsewhere leave in the database beside answers: how long vectors are, and what they have in hand.
\ir setup.psql
select plan(17);

create or replace function steadytext.is_own_worker() returns boolean
language sql set search_path = pg_catalog, pg_temp as 'select false';
insert into steadytext_models (name, task, file, placement, dimensions) values
    ('far', 'embed', 'far', 'elsewhere', '{2}'), ('farther', 'embed', 'farther', 'elsewhere', null), ('near', 'embed', 'near', 'any', null);
create table notes (id integer primary key, body text);
delete from steadytext_queue;

-- Completes what is pending with vectors of a length.
create function pg_temp.complete(p_length integer)
returns text language sql as $$
    with held as materialized (
        select c.id, c.attempt, c.request_type, coalesce(cardinality(c.prompts), 1) as count
        from steadytext.claim_requests('e', 10, 60, null, false) as c
    )
    select string_agg(o.outcome, ' ')
    from held as h
    cross join lateral steadytext.complete_requests('e', array[h.id], array[h.attempt], array[null::text],
        array_fill((1 / sqrt(p_length))::real, array[p_length * h.count]), array[p_length],
        case when h.request_type = 'batch_embed' then array[h.count] end) as o
$$;
create function pg_temp.vectorizer(p_more text)
returns text language sql as $$
    select format('select steadytext_create_vectorizer(%L, array[%L], index => %L, %s)', 'notes', 'body', 'none', p_more)
$$;

select throws_ok(pg_temp.vectorizer($$ model => 'far' $$), '55000', 'nobody knows yet how long the vectors of model "far" are', 'before the first answer');
select throws_ok(pg_temp.vectorizer($$ model => 'far', chunk_size => 10 $$), '0A000', null, 'nor can its texts be cut');
insert into steadytext_queue (request_type, prompt, params) values ('embed', 'a', '{"model": "far", "dimensions": 2}');
select is(pg_temp.complete(2), 'done', 'a vector that is cut is answered');
select is_empty('select * from steadytext_vector_lengths', 'and says nothing of those that are not');
insert into steadytext_queue (request_type, prompt, prompts, params) values
    ('embed', 'a', null, '{"model": "far"}'), ('batch_embed', null, '{b,c}', '{"model": "farther"}'), ('embed', 'd', null, '{"model": "near"}');
select is(pg_temp.complete(4), 'done done done', 'answers');
select results_eq(
    'select model, file, length from steadytext_vector_lengths order by model', $$ values ('far', 'far', 4), ('farther', 'farther', 4) $$,
    'say how long vectors are of models that are elsewhere');
insert into steadytext_queue (request_type, prompt, params) values ('embed', 'f', '{"model": "farther"}');
select is(pg_temp.complete(5), 'done', 'another one');
select is((select length from steadytext_vector_lengths where model = 'farther'), 5, 'says otherwise, if it is so');

select lives_ok(pg_temp.vectorizer($$ model => 'far', name => 'first' $$), 'now a vectorizer can be made');
select results_eq(
    $$ select dimensions, chunk_size from steadytext_vectorizers where name = 'first' $$, $$ values (4, null::integer) $$,
    'with vectors of this length, of texts as they are');
select throws_ok(
    pg_temp.vectorizer($$ model => 'near', name => 'second', destination => 'second' $$), null, null, 'of others the server is asked, as ever');
update steadytext_models set file = 'other' where name = 'farther';
select throws_ok(pg_temp.vectorizer($$ model => 'farther', name => 'third', destination => 'third' $$), '55000', null, 'of another file nothing is known');

-- What is in hand.
create role st_watch nologin in role pg_monitor;
insert into steadytext_queue (request_type, prompt, owner_role) values ('generate', 'a', 'st_alice'), ('generate', 'b', current_user);
select is((select count(*) from steadytext.claim_requests('e', 10, 60, null, false)), 2::bigint, 'two are claimed');
select is((select count(*) from steadytext_activity where phase = 'elsewhere'), 2::bigint, 'administrators see them');
select is(pg_temp.run_as('st_alice', 'select count(*) from steadytext_activity where phase = ''elsewhere'''), '1', 'users see their own');
select is(pg_temp.run_as('st_watch', 'select count(*) from steadytext_activity where phase = ''elsewhere'''), '2', 'and those who watch the server all of them');
update steadytext_queue set worker = 'local:a' where status = 'processing';
select is_empty($$ select * from steadytext_activity where phase = 'elsewhere' $$, 'the server''s own worker says more of its own');

select * from finish();
rollback;
