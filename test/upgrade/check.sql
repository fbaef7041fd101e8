-- In the new server: what was open is done, what was done is not done again, and all that was defined works.
\set ON_ERROR_STOP on
\pset format unaligned
\pset tuples_only on
create sequence public.test;
create function public.holds(name text, is_so boolean) returns text language sql security definer as $$
    select case when is_so then '' else 'not ' end || 'ok ' || nextval('public.test') || ' - ' || name
$$;

select holds('nothing is begun before the pause is lifted',
    (select count(*) from steadytext_queue where prompt like 'open%' and status = 'pending') = 3
    and (select count(*) from steadytext_queue where prompt like 'open%' and status = 'processing') = 1);
-- An hour passes.
update steadytext_queue set lease_expires_at = now() where status = 'processing';
select steadytext_daemon_start() \g /dev/null
call public.settle();
select holds('requests that waited are answered, at the first attempt',
    (select count(*) from steadytext_queue where prompt like 'open%' and status = 'completed' and attempt = 1) = 3);
select holds('and so is the one that a worker had that is no more, at the second',
    (select count(*) from steadytext_queue where prompt like 'open%' and status = 'completed' and attempt = 2) = 1);

-- The vectors of rows that nobody has changed lie where they lay.
select holds('vectors and topics of unchanged rows were not computed anew',
    (select count(*) from public.vectors as v
     join alice.note as n on n.id = v.id and n.ctid::text = v.place and md5(n.embedding::text) = v.inline and n.topic is not distinct from v.topic
     join alice.note_body_embedding as e on e.id = v.id and e.ctid::text = v.chunk_place and md5(e.embedding::text) = v.chunk)
    = (select count(*) from public.vectors) and (select count(*) from public.vectors) = 38);
select holds('what was changed while the worker paused has its vectors and topic',
    (select count(*) = 2 from alice.note as n join alice.note_body_embedding as e using (id)
     where n.id in (1, 41) and n.topic is not null and e.chunk = n.body and e.embedding::text = steadytext_embed(n.body)::text
        and n.embedding::text = e.embedding::text)
    and not exists (select from alice.note_body_embedding where id = 2));
insert into alice.note (id, body) values (100, 'After the upgrade');
call public.settle();
select holds('definitions go on',
    (select n.topic is not null and n.embedding::text = steadytext_embed('After the upgrade')::text and e.chunk = n.body
     from alice.note as n join alice.note_body_embedding as e using (id) where n.id = 100));
select holds('vectors are found', (select "row" ->> 'id' = '100' from steadytext_search('notes', 'After the upgrade', 1)));
select holds('the index is used', (select indisvalid from pg_index where indexrelid = 'alice.note_embedding_idx'::regclass));

-- The cache answers, as the model and its kernels are the same.
select requests as before, cache_hits as hits from (
    select coalesce(sum(requests), 0) as requests, coalesce(sum(cache_hits), 0) as cache_hits from steadytext_stat) as s \gset
select steadytext_generate('What is cached?', 6), steadytext_embed('What is cached?') is not null \g /dev/null
select holds('what the cache has is not computed again',
    (select sum(cache_hits) - :hits = 2 from steadytext_stat));

-- Roles by their numbers.
set role alice;
select holds('a role sees its own requests and no others',
    (select count(*) filter (where prompt = 'done by alice') = 1 and count(*) filter (where prompt !~ 'alice|batched|[Nn]ote|text|upgrade') = 0
     from steadytext_queue));
select holds('a role has its prompts', steadytext_prompt_render('of-alice', '{"name": "you"}') = 'Hi you!');
select holds('a role has its batches', (select count(*) = 4 from steadytext_batches as b, steadytext_batch_results(b.batch) as r
    where b.name = 'kept' and r.status = 'completed' and r.embedding is not null));
reset role;
select holds('what a dropped role has asked for is nobody''s', (select owner_role::text = '' or owner_role::oid not in (select oid from pg_roles)
    from steadytext_queue where prompt = 'done by carol'));
set role bob;
select steadytext_embed_async('second by bob') \g /dev/null
\set ON_ERROR_STOP off
select steadytext_embed_async('third by bob');
\set ON_ERROR_STOP on
\set code :LAST_ERROR_SQLSTATE
reset role;
select holds('a limit remembers what was used of it', :'code' = '53400');

select steadytext_generate_async('new') as id \gset
select steadytext_get_async_result(:'id', 60) is not null \g /dev/null
select holds('a new request is answered with the settings as they were',
    (select status = 'completed' and generated_tokens <= 7 from steadytext_queue where request_id = :'id'));
select holds('numbers go on', (select max(id) = (select id from steadytext_queue where request_id = :'id') from steadytext_queue));
select '1..' || last_value from public.test;
