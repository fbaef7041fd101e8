-- The contents of a database of some age, in the old server: requests in every state, settings, models, prompts, a cache, limits, a
-- batch, vectorizers and an enrichment, some of it in the midst of work.
\set ON_ERROR_STOP on
create extension vector;
create extension pg_steadytext;
create role alice login in role steadytext_user;
create role bob login in role steadytext_user;
create role carol login in role steadytext_user;
create schema alice authorization alice;
grant usage on schema alice to public;

-- Returns when nothing is left to do.
create procedure public.settle() language plpgsql as $$
declare
    v_begun timestamptz := clock_timestamp();
begin
    loop
        if clock_timestamp() > v_begun + interval '3 minutes' then
            raise exception 'the server does not come to rest: % requests, % changes, states %',
                (select count(*) from steadytext_queue where status in ('pending', 'processing')),
                (select count(*) from steadytext_vectorizer_work),
                (select array_agg(s) from steadytext_enrichment_status as s);
        end if;
        exit when not exists (select from steadytext_queue where status in ('pending', 'processing'))
            and not exists (select from steadytext_vectorizer_work) and not exists (select from steadytext_vectorizer_batches)
            and not exists (select from steadytext_vectorizer_state where scan is not null or not is_indexed)
            and not exists (select from steadytext_enrichment_status where state <> 'idle')
            and (select count(*) from steadytext_vectorizer_state) = (select count(*) from steadytext_vectorizers);
        commit;
        perform pg_sleep(0.05);
    end loop;
end
$$;

select steadytext_config_set('default_max_tokens', '7');
select steadytext_config_set('max_retries', '2');
insert into steadytext_models (name, task, file, description) values ('missing', 'generate', 'missing.gguf', 'not there');
update steadytext_models set description = 'changed here' where name = 'small';
select steadytext_set_limit('bob', requests_per_day => 2);

-- Requests that end, of several types and roles.
select steadytext_generate_async('done ' || i, 5) from generate_series(1, 3) as i;
select steadytext_generate_json_async('done as JSON', '{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}', 40);
select steadytext_rerank_async('done', array['VACUUM removes dead rows', 'a cursor fetches rows']);
select steadytext_classify_async('done', array['storage', 'speed']);
insert into steadytext_queue (request_type, prompt, params, max_retries) values ('generate', 'fails', '{"model": "missing"}', 0);
set role alice;
select steadytext_embed_async('done by alice');
select steadytext_prompt_create('of-alice', 'Hello {{ name }}!');
select steadytext_prompt_update('of-alice', 'Hi {{ name }}!');
select steadytext_enqueue_query('select i as id, ''batched '' || i as prompt from generate_series(1, 4) as i', 'embed', name => 'kept') as batch \gset
reset role;
set role bob;
select steadytext_embed_async('done by bob');
reset role;
set role carol;
select steadytext_embed_async('done by carol');
reset role;

-- Derived columns.
set role alice;
create table alice.note (id integer primary key, body text, topic text);
insert into alice.note (id, body) select i, 'Note ' || i || ' about indexes' from generate_series(1, 40) as i;
select steadytext_create_vectorizer('alice.note', array['body'], name => 'notes');
select steadytext_create_vectorizer('alice.note', array['body'], name => 'inline', target_column => 'embedding');
select steadytext_create_enrichment('alice.note', 'topic', '$body', 'classify', '{"categories": ["storage", "speed", "other"]}');
reset role;

-- The cache.
select steadytext_generate('What is cached?', 6);
select steadytext_embed('What is cached?') is not null;
call public.settle();
do $$
begin
    while (select count(*) from steadytext_cache where prompt = 'What is cached?') < 2
        or not exists (select from steadytext_rate_usage where user_id::oid = 'bob'::regrole)
    loop
        commit;
        perform pg_sleep(0.05);
    end loop;
end
$$;
drop role carol;

-- Work that the upgrade meets: requests that wait, one that a worker elsewhere has, changes that are noted.
select steadytext_daemon_stop();
do $$
begin
    while (select state from steadytext.worker_state()) <> 'paused' loop
        commit;
        perform pg_sleep(0.05);
    end loop;
end
$$;
select steadytext_generate_async('open ' || i, 5) from generate_series(1, 3) as i;
set role alice;
select steadytext_embed_async('open by alice');
reset role;
select count(*) from steadytext.claim_requests('elsewhere:1', 1, 3600, 0, false);
select steadytext_cancel_async(steadytext_generate_async('cancelled'));
update alice.note set body = 'Another text' where id = 1;
insert into alice.note (id, body) values (41, 'A new note');
delete from alice.note where id = 2;

-- State to be compared after the upgrade: requests that have ended, and where the rows of vectors lie.
create table public.ended as
select request_id from steadytext_queue where status in ('completed', 'failed', 'cancelled') and prompt !~ '^(Another|A new)';
create table public.vectors as
select n.id, n.ctid::text as place, md5(n.embedding::text) as inline, n.topic, e.ctid::text as chunk_place, md5(e.embedding::text) as chunk
from alice.note as n join alice.note_body_embedding as e on e.id = n.id
where n.id not in (1, 2, 41);
