-- Triggers and other code that the queue's owner has attached to it, which must not hold up other rows.
\ir setup.psql
select plan(55);

create temporary table c (ids bigint[], attempts integer[]);
create function pg_temp.enqueue(p_prompts text[]) returns void language sql as $$
    delete from steadytext_queue;
    insert into steadytext_queue (request_type, prompt) select 'generate', p from unnest(p_prompts) as p;
$$;
create function pg_temp.claimed(p_prompts text[]) returns void language sql as $$
    select pg_temp.enqueue(p_prompts);
    truncate c;
    insert into c
    select array_agg(x.id order by x.id), array_agg(x.attempt order by x.id)
    from steadytext.claim_requests('local:a', 1000, 60, null, false) as x;
$$;
create function pg_temp.complete() returns text language sql as $$
    select string_agg(q.prompt || ' ' || o.outcome, ', ' order by q.id)
    from c cross join steadytext.complete_requests('local:a', ids, attempts, array(select 'answer' from unnest(ids)), null, null) as o
    join steadytext_queue as q on q.id = o.id
$$;
create function pg_temp.fail(p_retry boolean default false) returns text language sql as $$
    select string_agg(q.prompt || ' ' || o.outcome, ', ' order by q.id)
    from c cross join steadytext.fail_requests('local:a', ids, attempts, array(select 'error' from unnest(ids)),
        array(select 'XX000' from unnest(ids)), array(select p_retry from unnest(ids))) as o
    join steadytext_queue as q on q.id = o.id
$$;
create function pg_temp.claim() returns text language sql as $$
    select string_agg(x.prompt, ' ') from steadytext.claim_requests('local:a', 1000, 60, null, false) as x
$$;
create function pg_temp.states() returns text language sql as $$
    select string_agg(prompt || ' ' || status || coalesce(' ' || error_code, ''), ', ' order by id) from steadytext_queue
$$;
-- A trigger function that names a table as its author's search_path has it.
create table public.log_of_mine (prompt text);
create function public.note_mine() returns trigger language plpgsql as $$
begin
    insert into log_of_mine values (new.prompt);
    return new;
end $$;

-- Completing: the trigger raises for one row among many.
create trigger mine after update of status on steadytext_queue
    for each row when (new.status = 'completed' and new.prompt = 'mine') execute function public.note_mine();
select pg_temp.claimed(array['a', 'mine', 'b', 'c', 'd']);
select is(pg_temp.complete(), 'a done, mine failed, b done, c done, d done', 'complete: one row raises, the others are done');
select is(pg_temp.states(), 'a completed, mine failed 42P01, b completed, c completed, d completed', 'complete: it alone has failed');
select alike((select error from steadytext_queue where prompt = 'mine'), 'relation "log_of_mine" does not exist', 'complete: and says why');
select ok((select completed_at is not null and lease_expires_at is null and result is null from steadytext_queue where prompt = 'mine'), 'complete: and is over');
select pg_temp.claimed(array(select case i when 417 then 'mine' else 'x' || i end from generate_series(1, 1000) as i));
select is((select count(*) from c cross join steadytext.complete_requests('local:a', ids, attempts, array_fill('y'::text, array[1000]), null, null) as o
    where o.outcome = 'done'), 999::bigint, 'complete: one of a thousand raises');
drop trigger mine on steadytext_queue;

-- Every answer, vector and list stays with its row when halves are tried.
create trigger mine after update of status on steadytext_queue
    for each row when (new.status = 'completed' and new.prompt = 'b') execute function public.note_mine();
select pg_temp.claimed(array['a', 'b', 'c', 'd']);
select lives_ok($$
    select steadytext.complete_requests('local:a', ids, attempts, '{one,two,null,ranked}', '{1,2,3,4,5}', '{0,2,3,0}', null, '{x,y}', '{null,null,null,2}') from c
$$, 'complete: many kinds');
select results_eq(
    $$ select prompt, result, results, embedding::text from steadytext_queue order by id $$,
    $$ values ('a', 'one', null::text[], null::text), ('b', null, null, null), ('c', null, null, '[3,4,5]'), ('d', 'ranked', '{x,y}', null) $$,
    'complete: each its own');
drop trigger mine on steadytext_queue;

-- A deferred constraint trigger raises within the step, not at its commit.
create constraint trigger mine after update on steadytext_queue deferrable initially deferred
    for each row when (new.status = 'completed' and new.prompt = 'mine') execute function public.note_mine();
select pg_temp.claimed(array['a', 'mine', 'b']);
select is(pg_temp.complete(), 'a done, mine failed, b done', 'complete: a deferred constraint trigger');
drop trigger mine on steadytext_queue;

-- Errors that handlers do not catch by themselves.
create function public.refuse() returns trigger language plpgsql as $$
begin
    if tg_argv[0] = 'assert' then assert false, 'no'; end if;
    raise exception 'no' using errcode = tg_argv[0];
end $$;
create trigger mine before update of status on steadytext_queue
    for each row when (new.status = 'completed' and new.prompt = 'mine') execute function public.refuse('assert');
select pg_temp.claimed(array['a', 'mine', 'b']);
select is(pg_temp.complete(), 'a done, mine failed, b done', 'complete: a failed assertion');
drop trigger mine on steadytext_queue;
create trigger mine before update of status on steadytext_queue
    for each row when (new.status = 'completed' and new.prompt = 'mine') execute function public.refuse('57014');
select pg_temp.claimed(array['a', 'mine', 'b']);
select is(pg_temp.complete(), 'a done, mine locked, b done', 'complete: what looks like a cancel is tried again');
select is(pg_temp.states(), 'a completed, mine processing, b completed', 'complete: and is no fault of the row''s');
drop trigger mine on steadytext_queue;
create trigger mine before update of status on steadytext_queue
    for each row when (new.status = 'completed' and new.prompt = 'mine') execute function public.refuse('55P03');
select pg_temp.claimed(array['a', 'mine', 'b']);
select is(pg_temp.complete(), 'a done, mine locked, b done', 'complete: nor is a lock');
drop trigger mine on steadytext_queue;

-- The row cannot be failed either.
create trigger mine before update of status on steadytext_queue
    for each row when (new.prompt = 'mine' and old.status = 'processing') execute function public.refuse('P0001');
select pg_temp.claimed(array['a', 'mine', 'b']);
select is(pg_temp.complete(), 'a done, mine refused, b done', 'complete: a row that refuses everything is left');
select is(pg_temp.states(), 'a completed, mine processing, b completed', 'complete: as it is');
select pg_temp.claimed(array['a', 'mine', 'b']);
select is(pg_temp.fail(), 'a done, mine refused, b done', 'fail: a row that refuses everything is left');
select pg_temp.claimed(array['a', 'mine', 'b']);
select results_eq(
    $$ select q.prompt from c cross join steadytext.release_requests('local:a', ids, attempts) as r(id) join steadytext_queue as q using (id) $$,
    $$ values ('mine') $$, 'release: the others are given back');
drop trigger mine on steadytext_queue;

-- Failing: the error of the trigger takes the place of the other one.
create trigger mine before update of status on steadytext_queue
    for each row when (new.prompt = 'mine' and new.error = 'error') execute function public.refuse('22000');
select pg_temp.claimed(array['a', 'mine', 'b']);
select is(pg_temp.fail(), 'a done, mine failed, b done', 'fail: one row raises');
select is(pg_temp.states(), 'a failed XX000, mine failed 22000, b failed XX000', 'fail: with that error');
select pg_temp.claimed(array['a', 'mine', 'b']);
select is(pg_temp.fail(true), 'a retried, mine failed, b retried', 'fail: the others are retried');
drop trigger mine on steadytext_queue;

-- Updates that come to nothing.
create function public.keep() returns trigger language plpgsql as $$ begin return null; end $$;
create trigger mine before update of status on steadytext_queue
    for each row when (new.status = 'completed' and new.prompt = 'mine') execute function public.keep();
select pg_temp.claimed(array['a', 'mine', 'b']);
select is(pg_temp.complete(), 'a done, mine failed, b done', 'complete: a trigger that returns NULL');
select is(pg_temp.states(), 'a completed, mine failed 09000, b completed', 'complete: does not lose a request');
drop trigger mine on steadytext_queue;
create trigger mine before update of status on steadytext_queue for each row when (new.prompt = 'mine' and old.status = 'processing') execute function public.keep();
select pg_temp.claimed(array['a', 'mine', 'b']);
select is(pg_temp.complete(), 'a done, mine refused, b done', 'complete: not even its failure');
drop trigger mine on steadytext_queue;
create function public.change_back() returns trigger language plpgsql as $$ begin new.status := old.status; return new; end $$;
create trigger mine before update of status on steadytext_queue
    for each row when (new.status = 'completed' and new.prompt = 'mine') execute function public.change_back();
select pg_temp.claimed(array['a', 'mine', 'b']);
select is(pg_temp.complete(), 'a done, mine failed, b done', 'complete: a trigger that puts the old status back');
drop trigger mine on steadytext_queue;

-- Claiming.
create trigger mine before update of status on steadytext_queue
    for each row when (new.status = 'processing' and new.prompt = 'mine') execute function public.refuse('22000');
select pg_temp.enqueue(array['a', 'mine', 'b', 'c']);
select is(pg_temp.claim(), 'a b c', 'claim: one row raises, the others are claimed, in order');
select is(pg_temp.states(), 'a processing, mine failed 22000, b processing, c processing', 'claim: it alone has failed');
-- The whole range takes longer than a step may try to find the row.
create function public.dawdle() returns trigger language plpgsql as $$ begin perform pg_catalog.pg_sleep(0.04); return new; end $$;
create trigger dawdle before update of status on steadytext_queue
    for each row when (new.status = 'processing') execute function public.dawdle();
select pg_temp.enqueue(array(select case i when 60 then 'mine' else 'x' end from generate_series(1, 60) as i));
select cmp_ok((select count(*) from steadytext.claim_requests('local:a', 1000, 60, null, false)), '>=', 30::bigint,
    'claim: a trigger that dawdles does not keep the poison row from being found');
select is((select status from steadytext_queue where prompt = 'mine'), 'failed', 'claim: it has failed');
drop trigger dawdle on steadytext_queue;
drop trigger mine on steadytext_queue;
create trigger mine before update of status on steadytext_queue
    for each row when (old.status = 'pending' and new.prompt = 'mine') execute function public.refuse('22000');
select pg_temp.enqueue(array['mine', 'a', 'b']);
select is(pg_temp.claim(), 'a b', 'claim: a row that refuses everything is left');
select is(pg_temp.states(), 'mine pending, a processing, b processing', 'claim: as it is');
select ok((select id from steadytext_queue where prompt = 'mine') = any (steadytext.rows_aside()), 'claim: and set aside');
insert into steadytext_queue (request_type, prompt) values ('generate', 'd'), ('generate', 'e');
select is(pg_temp.claim(), 'd e', 'claim: so that the next one does not meet it');
drop trigger mine on steadytext_queue;
create trigger mine before update of status on steadytext_queue
    for each row when (new.status = 'processing' and new.prompt = 'mine') execute function public.keep();
select pg_temp.enqueue(array['mine', 'a', 'b']);
select is((select string_agg(prompt, ' ') from steadytext.claim_requests('local:a', 1, 60, null, false)), 'a', 'claim of one: a trigger that returns NULL does not hold up what comes after');
select is(pg_temp.claim(), 'b', 'claim: nor the next claim');
select is(pg_temp.states(), 'mine failed 09000, a processing, b processing', 'claim: the row is over');
drop trigger mine on steadytext_queue;
-- More of them than are wanted, at the head of a long queue.
create trigger mine before update of status on steadytext_queue
    for each row when (old.status = 'pending' and new.prompt like 'mine%') execute function public.refuse('22000');
select pg_temp.enqueue(array(select case when i % 4 > 0 and i < 100 then 'mine' else 'x' end || i from generate_series(1, 200) as i));
select is(
    (select count(*) from steadytext.claim_requests('local:a', 10, 60, null, false)), 10::bigint,
    'claim: many rows that refuse everything');
select is(
    (select count(*) from steadytext.claim_requests('local:a', 1000, 60, null, false)), 115::bigint,
    'claim: all the others, to the last');
drop trigger mine on steadytext_queue;
-- Each statement raises: nothing can be claimed, and nothing else breaks.
create function public.refuse_all() returns trigger language plpgsql as $$ begin raise exception 'closed'; end $$;
create trigger mine before update on steadytext_queue for each statement execute function public.refuse_all();
select pg_temp.enqueue(array['a', 'b']);
select is(pg_temp.claim(), null, 'claim: a trigger that refuses every statement');
select is(pg_temp.states(), 'a pending, b pending', 'claim: changes nothing');
drop trigger mine on steadytext_queue;

-- Rescue and promotion.
create trigger mine before update of status on steadytext_queue
    for each row when (new.status = 'pending' and new.prompt = 'mine') execute function public.refuse('22000');
select pg_temp.claimed(array['a', 'mine', 'b']);
select is(steadytext.rescue_requests('{}'), 2, 'rescue: one row raises, the others are rescued');
select is(pg_temp.states(), 'a pending, mine failed 22000, b pending', 'rescue: it alone has failed');
drop trigger mine on steadytext_queue;
create trigger mine before update of run_after on steadytext_queue
    for each row when (new.run_after is null and new.status = 'pending' and new.prompt = 'mine') execute function public.refuse('22000');
select pg_temp.enqueue(array['a', 'mine', 'b']);
update steadytext_queue set run_after = now() - interval '1 second';
select is(steadytext.promote_requests(), 2, 'promote: one row raises, the others are promoted');
select is(pg_temp.states(), 'a pending, mine failed 22000, b pending', 'promote: it alone has failed');
drop trigger mine on steadytext_queue;

-- Leases.
create trigger mine before update of lease_expires_at on steadytext_queue
    for each row when (new.status = 'processing' and old.status = 'processing' and new.prompt = 'mine') execute function public.refuse('22000');
select pg_temp.claimed(array['a', 'mine', 'b']);
select is_empty($$ select steadytext.extend_leases('local:a', ids, attempts, 600) from c $$, 'extend: one row raises, none is lost');
select is((select string_agg(prompt, ' ' order by id) from steadytext_queue where lease_expires_at > now() + interval '5 minutes'), 'a b', 'extend: the others are kept');
drop trigger mine on steadytext_queue;

-- Retention beside a row that another table refers to.
create table public.refers (request bigint references steadytext_queue on delete restrict);
select pg_temp.enqueue(array['a', 'mine', 'b']);
update steadytext_queue set status = 'completed', created_at = now() - interval '1 year', completed_at = now() - interval '1 year';
insert into public.refers select id from steadytext_queue where prompt = 'mine';
select is((select deleted from steadytext.expire_requests(0, 100)), 2, 'expire: one row is referred to, the others go');
select is(pg_temp.states(), 'mine completed', 'expire: it stays');
drop table public.refers;
-- The same, deferred.
create table public.refers (request bigint references steadytext_queue deferrable initially deferred);
insert into steadytext_queue (request_type, prompt) values ('generate', 'a');
update steadytext_queue set status = 'completed', created_at = now() - interval '1 year', completed_at = now() - interval '1 year';
insert into public.refers select id from steadytext_queue where prompt = 'mine';
select is((select deleted from steadytext.expire_requests(0, 100)), 1, 'expire: a deferred reference');
drop table public.refers;

-- A referring row that is being written does not keep a request from being claimed: no key changes.
-- A check of the user's, and a unique index of the user's.
select pg_temp.claimed(array['a', 'mine', 'b']);
alter table steadytext_queue add constraint mine check (not (prompt = 'mine' and status = 'completed'));
select is(pg_temp.complete(), 'a done, mine failed, b done', 'complete: a constraint of the owner''s');
select is((select error_code from steadytext_queue where prompt = 'mine'), '23514', 'complete: says so');
alter table steadytext_queue drop constraint mine;
select pg_temp.claimed(array['a', 'b', 'c']);
create unique index mine on steadytext_queue (result) where prompt in ('a', 'b');
select is(pg_temp.complete(), 'a done, b failed, c done', 'complete: a unique index of the owner''s');
drop index mine;

-- The cache. The protocol waits for locks but briefly, and its setting lasts to the end of the transaction.
set local lock_timeout = 0;
insert into steadytext_cache (cache_key, prompt, response, request_type)
select 'k' || i, 'p' || i, 'r', 'generate' from generate_series(1, 5) as i;
create function public.refuse_p3() returns trigger language plpgsql as $$
begin
    if old.prompt = 'p3' then raise exception 'no'; end if;
    return coalesce(new, old);
end $$;
create trigger mine before update or delete on steadytext_cache for each row execute function public.refuse_p3();
select is_empty(
    $$ select steadytext.count_accesses(array_agg(id), array_agg(2::bigint), array_agg(now())) from steadytext_cache where prompt like 'p_' $$,
    'count: an entry that raises is not tried again');
select is(
    (select string_agg(prompt || ' ' || access_count, ', ' order by id) from steadytext_cache where prompt like 'p_'),
    'p1 3, p2 3, p3 1, p4 3, p5 3', 'count: the others are counted');
select is(
    (select cardinality(steadytext.evict_entries(array_agg(id), array_agg(access_count))) from steadytext_cache where prompt like 'p_'),
    4, 'evict: one entry raises, the others go');

-- Sizes, without reading.
select is(steadytext.raw_size(repeat('x', 1000000)), 1000000::bigint, 'raw_size: of a text');
create temporary table stored (t text, a text[], j jsonb);
insert into stored values (repeat('x', 1000000), array_fill('y'::text, array[1000]), to_jsonb(array_fill('y'::text, array[1000])));
select ok(
    (select steadytext.raw_size(t) = 1000000 and pg_column_size(t) < 20000 and steadytext.raw_size(a) > 5000 and steadytext.raw_size(j) > 4000 from stored),
    'raw_size: before compression');

select * from finish();
rollback;
