-- Untrusted input from members of steadytext_worker: invalid answers, endless heartbeats, and rows of which no work can be
-- made.
\ir setup.psql
select plan(43);

create or replace function steadytext.is_own_worker() returns boolean
language sql set search_path = pg_catalog, pg_temp as 'select false';

-- Answers. One request of each kind is held.
insert into steadytext_queue (request_type, prompt, prompts, params) values
    ('generate', 'a', null, '{}'), ('embed', 'b', null, '{}'), ('batch_embed', null, '{c,d}', '{}'), ('rerank', 'e', '{f,g}', '{}');
create temporary table held as
select c.request_type as name, c.id, c.attempt from steadytext.claim_requests('e', 10, 60, null, false) as c;
select is((select count(*) from held), 4::bigint, 'all are claimed');
-- Completes one of them: the result, the vector's numbers, its length, how many there are.
create function pg_temp.complete(p_name text, p_result text, p_numbers real[] default null, p_length integer default null, p_count integer default null,
    p_list text[] default null, p_tokens integer default 1, p_reason text default 'stop')
returns text language sql as $$
    select o.outcome
    from held as h
    cross join lateral steadytext.complete_requests('e', array[h.id], array[h.attempt], array[p_result], p_numbers, array[p_length],
        case when p_count is not null then array[p_count] end, p_list, case when p_list is not null then array[cardinality(p_list)] end,
        array[p_tokens], array[0], array[p_tokens], array[p_reason], array[1]) as o
    where h.name = p_name
$$;
-- A vector of the builtin model's.
create function pg_temp.vector(p_place integer) returns real[] language sql as $$
    select array_agg((i = p_place)::integer::real order by i) from generate_series(1, 256) as i
$$;
select throws_ok(format('select pg_temp.complete(%s)', c), '22023', null, c)
from unnest(array[
    $$ 'generate', null $$,
    $$ 'generate', 'text', '{1}', 1 $$,
    $$ 'generate', 'text', '{1,2}', 1, 2 $$,
    $$ 'generate', repeat('x', 5000000) $$,
    $$ 'generate', 'text', p_tokens => -1 $$,
    $$ 'generate', 'text', p_reason => 'because' $$,
    $$ 'embed', null $$,
    $$ 'embed', 'text' $$,
    $$ 'embed', 'text', '{1,2}', 2 $$,
    $$ 'embed', null, '{1,2}', 3 $$,
    $$ 'embed', null, '{1,2}', -1 $$,
    $$ 'embed', null, null, 100000 $$,
    $$ 'embed', null, '{1,2}', 1, 2 $$,
    $$ 'batch_embed', null, '{1,2}', 2, 1 $$,
    $$ 'batch_embed', null, '{1,2,3}', 1, 3 $$,
    $$ 'batch_embed', null, '{1,2}', 1, 2147483647 $$,
    $$ 'batch_embed', 'text' $$,
    $$ 'rerank', null, p_list => '{f,g}' $$,
    $$ 'rerank', '[]', '{1}', 1 $$
]) as c;
select throws_ok(
    $$ select steadytext.complete_requests('e', array_agg(n), array_agg(1), array_agg('x'::text), null, null) from generate_series(1, 10001) as n $$,
    '22023', null, 'ten thousand at once, and no more');
select throws_ok(
    $$ select steadytext.complete_requests('e', '{1}', '{1,2}', '{x}', null, null) $$, '22023', null, 'more attempts than requests');
select is((select count(*) from steadytext_queue where status = 'processing'), 4::bigint, 'none of them has written anything');
select results_eq(
    $$ select pg_temp.complete('generate', 'text') union all select pg_temp.complete('embed', null, pg_temp.vector(1), 256)
       union all select pg_temp.complete('batch_embed', null, pg_temp.vector(1) || pg_temp.vector(2), 256, 2)
       union all select pg_temp.complete('rerank', '[{"document": "g", "score": 1, "index": 2}, {"document": "f", "score": 0, "index": 1}]', p_list => '{g,f}') $$,
    $$ values ('done'), ('done'), ('done'), ('done') $$, 'answers that are some are taken');

-- Heartbeats.
delete from steadytext_daemon_health;
create function pg_temp.beat(p_role text, p_name text, p_endpoint text, p_status text default 'idle', p_models jsonb default '[]', p_active integer default 0)
returns text language sql as $$
    select pg_temp.run_as(p_role, format('select steadytext.record_heartbeat(%L, %L, %L, %L, %L, 0, %L, 0, 0, null)', p_name, p_endpoint, p_status, '2.0.0', p_models, p_active))
$$;
create role st_remote_2 nologin in role steadytext_worker;
select throws_ok(format('select pg_temp.beat(''st_remote'', %s)', b), '22023', null, b)
from unnest(array[
    $$ 'w', repeat('x', 300) $$, $$ 'w', E'two\nlines' $$, $$ 'w', 'host', repeat('x', 100) $$, $$ 'w', 'host', p_active => -1 $$,
    $$ 'w', 'host', p_models => (select jsonb_agg(n) from generate_series(1, 300) as n) $$,
    $$ 'w', 'host', p_models => to_jsonb(array[repeat('x', 300)]) $$,
    $$ 'w', 'host', p_models => to_jsonb(repeat('x', 100000)) $$
]) as b;
select is((select count(*) from steadytext_daemon_health), 0::bigint, 'nothing of that is there');
select lives_ok($$ select pg_temp.beat('st_remote', 'w' || n, 'host ' || n) from generate_series(1, 100) as n $$, 'a hundred workers of a role');
select throws_ok($$ select pg_temp.beat('st_remote', 'w', 'host') $$, '22023', 'a role reports for 100 workers at most', 'and not one more');
select lives_ok($$ select pg_temp.beat('st_remote', 'w7', 'host 7', 'running') $$, 'those that are known report again');
select lives_ok($$ select pg_temp.beat('st_remote_2', 'v', 'host 7') $$, 'another role''s do');
select throws_ok($$ select pg_temp.beat('st_remote_2', 'w7', 'host 7') $$, '22023', null, 'for its own only');
select is((select count(*) from steadytext_daemon_health where endpoint = 'host 7'), 2::bigint, 'whatever they call the place where they run');

-- Work. Of a row of which none can be made the others in its claim know nothing.
alter function steadytext.make_work(text, text, text, text[], jsonb) rename to really_make_work;
create function steadytext.make_work(text, text, text, text[], jsonb) returns bytea language plpgsql as $$
begin
    if $3 = 'guilty' then
        raise exception 'missing chunk number 0' using errcode = 'data_corrupted';
    end if;
    return steadytext.really_make_work($1, $2, $3, $4, $5);
end
$$;
delete from steadytext_queue;
insert into steadytext_queue (request_type, prompt) values ('generate', 'one'), ('generate', 'guilty'), ('generate', 'two');
create temporary table work as
select c.prompt as name, steadytext.prepared_work(split_part(steadytext_version(), '+', 1), c.request_type, c.prompt, c.prompts, c.params) as work
from steadytext.claim_requests('e', 10, 60, null, false) as c;
select is((select count(*) from work where work is not null), 3::bigint, 'a claim comes with all of its rows');
select is(
    (select array_agg(name) from work where position('missing chunk number 0'::bytea in work) > 0 and position('XX001'::bytea in work) > 0), '{guilty}',
    'and with the error of the one that has it');
select throws_ok(
    $$ select steadytext.prepared_work('another', 'generate', 'guilty', null, null) $$, '0A000', null, 'a worker of another version is told so all the same');

-- Workers that are gone. The server's own forgets them after a day, though nobody of their role reports.
insert into steadytext_daemon_health (daemon_id, endpoint, status, last_heartbeat)
values ('gone', 'gone', 'idle', clock_timestamp() - interval '25 hours'), ('away', 'away', 'idle', clock_timestamp() - interval '23 hours');
create or replace function steadytext.is_own_worker() returns boolean
language sql set search_path = pg_catalog, pg_temp as 'select true';
select lives_ok($$ select steadytext.record_heartbeat('local:1', 'local', 'running', '2.0.0', '[]', 0, 0, 0, 0, null) $$, 'the server''s own worker reports');
select results_eq(
    $$ select s.daemon_id, s.status from steadytext_daemon_status() as s where s.daemon_id in ('gone', 'away') $$,
    $$ values ('away', 'stale') $$, 'workers that have not reported for a day are forgotten, and those of before are shown as stale');

select * from finish();
rollback;
