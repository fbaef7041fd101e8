-- Traces of workers elsewhere in the database besides answers: the lengths of vectors, and requests in hand.
\ir setup.psql
select plan(28);

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

-- Requests in hand.
create role st_watch nologin in role pg_monitor;
insert into steadytext_queue (request_type, prompt, owner_role) values ('generate', 'a', 'st_alice'), ('generate', 'b', current_user);
select is((select count(*) from steadytext.claim_requests('e', 10, 60, null, false)), 2::bigint, 'two are claimed');
select is((select count(*) from steadytext_activity where phase = 'elsewhere'), 2::bigint, 'administrators see them');
select is(pg_temp.run_as('st_alice', 'select count(*) from steadytext_activity where phase = ''elsewhere'''), '1', 'users see their own');
select is(pg_temp.run_as('st_watch', 'select count(*) from steadytext_activity where phase = ''elsewhere'''), '2', 'and those who watch the server all of them');
update steadytext_queue set worker = 'local:a' where status = 'processing';
select is_empty($$ select * from steadytext_activity where phase = 'elsewhere' $$, 'the server''s own worker says more of its own');

-- Reported token counts are charged to other roles, and are believed as far as they can be true.
delete from steadytext_queue;
create function pg_temp.tokens(p_prompt integer, p_cached integer, p_generated integer, p_answer text default 'text')
returns text language sql as $$
    with held as materialized (select c.id, c.attempt from steadytext.claim_requests('e', 1, 60, null, false) as c)
    select o.outcome from held as h
    cross join lateral steadytext.complete_requests('e', array[h.id], array[h.attempt], array[p_answer], null, null,
        p_prompt_tokens => array[p_prompt], p_cached_tokens => array[p_cached], p_generated_tokens => array[p_generated]) as o
$$;
create function pg_temp.written() returns setof text language sql as $$
    select concat_ws('|', coalesce(q.prompt_tokens::text, '-'), coalesce(q.cached_tokens::text, '-'), coalesce(q.generated_tokens::text, '-'))
    from steadytext_queue as q order by q.id desc limit 1
$$;
-- It would count after the commit.
create temporary table charged (n integer generated always as identity, prompt integer, cached integer, generated integer);
create or replace function steadytext.count_ended(p_owner oid, p_request_type text, p_model text, p_outcome text, p_prompt_tokens integer,
    p_cached_tokens integer, p_generated_tokens integer, p_queue_s double precision, p_first_token_s double precision, p_total_s double precision)
returns void language sql as $$
    insert into pg_temp.charged (prompt, cached, generated) values (p_prompt_tokens, p_cached_tokens, p_generated_tokens)
$$;
insert into steadytext_queue (request_type, prompt, owner_role, params) values ('generate', 'twelve bytes', 'st_alice', '{"max_tokens": 16}');
select is(pg_temp.tokens(2147483647, 2147483647, 2147483647), 'done', 'a liar is not refused');
select results_eq(
    'select q.prompt_tokens between 4096 and 5000, q.cached_tokens = q.prompt_tokens, q.generated_tokens from steadytext_queue as q',
    $$ values (true, true, 16) $$, 'but believed only what the texts and max_tokens allow, also in the row');
insert into steadytext_queue (request_type, prompt, owner_role) values ('generate', 'a', 'st_alice');
select pg_temp.tokens(100, null, 20);
select is(pg_temp.written(), '100|-|20', 'what can be true is taken as it is, and what is not known is not known');
insert into steadytext_queue (request_type, prompt, owner_role) values ('generate', 'a', 'st_alice');
select pg_temp.tokens(null, null, null);
select is(pg_temp.written(), '-|-|-', 'nor is anything else');
insert into steadytext_queue (request_type, prompt, owner_role) values ('generate', 'a', 'st_alice');
select pg_temp.tokens(null, 5, 3);
select is(pg_temp.written(), '-|0|3', 'of a prompt that is not known nothing was cached');
select results_eq(
    'select c.prompt between 4096 and 5000, c.cached between 4096 and 5000, c.generated from charged as c order by c.n',
    $$ values (true, true, 16), (false, null, 20), (null, null, null), (null, false, 3) $$, 'the same is counted');
select results_eq(
    $$ select m.prompt_tokens between 2 * 3 * 4096 and 2 * 3 * 4096 + 2000, m.generated_tokens
       from steadytext.most_tokens('batch_rerank', null, '{first query,second}', '{"documents": ["a", "b", "c"]}', 512, 4096) as m $$,
    $$ values (true, 0::bigint) $$, 'each query is read with each document, and nothing is generated');
select results_eq(
    $$ select m.prompt_tokens, m.generated_tokens from steadytext.most_tokens('generate', null, null, null, 512, 256) as m $$,
    $$ values (4096::bigint, 256::bigint) $$, 'what says nothing has the default, within the limit');
select ok((select m.prompt_tokens > 1000000 and m.generated_tokens > 4096 from steadytext.most_tokens('summarize', repeat('x', 1000000), null, '{}', 512, 4096) as m),
    'a long text is summed up in many pieces');

-- Of adapters nothing is known here: the worker that computes refuses tasks that there are not.
insert into steadytext_models (name, task, file, placement, query_prompt) values ('prompted', 'embed', 'p', 'elsewhere', 'query: ');
create function pg_temp.is_refused(p_model text) returns bool language sql as $$
    select position('22023'::bytea in steadytext.prepared_work(split_part(steadytext_version(), '+', 1), 'embed', 'x', null,
        jsonb_build_object('model', p_model, 'mode', 'query', 'task', 'retrieval.query'))) > 0
$$;
select is(pg_temp.is_refused('far'), false, 'a model elsewhere may have adapters for tasks');
select is(pg_temp.is_refused('prompted'), true, 'one with a prompt that has no place for a task takes none');

select * from finish();
rollback;
