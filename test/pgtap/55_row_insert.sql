-- An enqueuing function inserts its row without PostgreSQL's executor, or with it where the queue is no plain table any more: nobody can tell
-- which of the two it was.
\ir setup.psql
select plan(40);

delete from steadytext_queue;
create table seen (n bigint generated always as identity, what text);
grant insert on seen to public;
create function pg_temp.ask(p_prompt text)
returns uuid language sql as $$ select steadytext_generate_async(p_prompt, priority => 3) $$;
create function pg_temp.asked()
returns text language sql as $$ select string_agg(prompt || ' ' || priority || ' ' || status, ', ' order by id) from steadytext_queue $$;
create function pg_temp.saw()
returns text language sql as $$ with gone as (delete from seen returning n, what) select string_agg(what, ', ' order by n) from gone $$;

select isnt(pg_temp.ask('one'), null, 'a request has its id');
select is(pg_temp.asked(), 'one 3 pending', 'and its row, for the next command');
select ok(
    (select id > 0 and request_type = 'generate' and params = '{}' and created_at = now() and owner_role::oid = current_user::regrole::oid from steadytext_queue),
    'with what its columns and triggers give it');
select results_eq(
    $$ select (steadytext_generate_async(p) is not null) from unnest(array['two', 'three']) as p $$, array[true, true], 'several in one statement');
select is((select count(distinct request_id) from steadytext_queue), 3::bigint, 'are several requests');
select is((with asked as materialized (select pg_temp.ask('four') as id) select steadytext_cancel_async(id) from asked), true, 'a later function of the statement finds it');
set enable_seqscan = off;
select is((select prompt from steadytext_queue where request_id = (select max(request_id::text) from steadytext_queue)::uuid), 'four', 'the index has it');
reset enable_seqscan;
savepoint inner_one;
select pg_temp.ask('five') is not null;
rollback to inner_one;
select is((select count(*) from steadytext_queue), 4::bigint, 'a savepoint takes it back');
delete from steadytext_queue;

-- Triggers.
create function pg_temp.note() returns trigger language plpgsql as $$
begin
    insert into seen (what) values (lower(format('%s %s %s', tg_when, tg_level, case when tg_level = 'ROW' then new.prompt end)));
    if tg_level = 'ROW' and tg_when = 'BEFORE' then
        new.prompt := new.prompt || '!';
        if new.prompt like 'nothing%' then return null; end if;
    end if;
    return new;
end $$;
create trigger z_before before insert on steadytext_queue for each row execute function pg_temp.note();
select isnt(pg_temp.ask('one'), null, 'a trigger before the row');
select is(pg_temp.asked(), 'one! 3 pending', 'changes it');
select is(pg_temp.saw(), 'before row one', 'once');
select is(pg_temp.ask('nothing'), null, 'or leaves it out');
select is(pg_temp.asked(), 'one! 3 pending', 'and there is none');
select is(pg_temp.saw(), 'before row nothing', 'then');
create trigger z_after after insert on steadytext_queue for each row when (new.prompt like 'tw%') execute function pg_temp.note();
select isnt(pg_temp.ask('two'), null, 'a trigger after the row');
select is(pg_temp.saw(), 'before row two, after row two!', 'runs as well');
drop trigger z_before on steadytext_queue;
drop trigger z_after on steadytext_queue;
create trigger z_statement after insert on steadytext_queue for each statement execute function pg_temp.note();
select isnt(pg_temp.ask('three'), null, 'a trigger of the statement');
select is(pg_temp.saw(), 'after statement ', 'runs');
drop trigger z_statement on steadytext_queue;
create rule also as on insert to steadytext_queue do also insert into seen (what) values ('rule');
select isnt(pg_temp.ask('four'), null, 'a rule');
select is(pg_temp.saw(), 'rule', 'is followed');
drop rule also on steadytext_queue;
select isnt(pg_temp.ask('five'), null, 'and no longer');
select is(pg_temp.saw(), null, 'when it is gone');
delete from steadytext_queue;

-- Columns, constraints and indexes.
alter table steadytext_queue add column gone integer default 7, add column words integer generated always as (length(prompt)) stored,
    add column label text not null default 'none' check (label <> '');
select isnt(pg_temp.ask('eleven'), null, 'new columns');
select results_eq('select gone, words, label from steadytext_queue', $$ values (7, 6, 'none') $$, 'have their values');
alter table steadytext_queue drop column gone, drop column words, alter column label set default '';
select throws_ok($$ select pg_temp.ask('twelve') $$, '23514', null, 'a constraint holds');
alter table steadytext_queue alter column label set default null;
select throws_ok($$ select pg_temp.ask('twelve') $$, '23502', null, 'as NOT NULL does');
alter table steadytext_queue drop column label;
create function pg_temp.is_fine(p text) returns boolean language sql immutable as $$ select p like 'fine%' $$;
alter table steadytext_queue add constraint fine check (pg_temp.is_fine(prompt)) not valid;
select isnt(pg_temp.ask('fine'), null, 'a condition that calls a function');
select throws_ok($$ select pg_temp.ask('bad') $$, '23514', null, 'refuses what it refuses');
create or replace function pg_temp.is_fine(p text) returns boolean language sql immutable as $$ select p like 'bad%' $$;
select isnt(pg_temp.ask('bad'), null, 'and the other way round');
select throws_ok($$ select pg_temp.ask('fine') $$, '23514', null, 'once the function says so');
alter table steadytext_queue drop constraint fine;
create unique index once on steadytext_queue (lower(prompt)) where prompt like 'o%';
select isnt(pg_temp.ask('Once'), null, 'a new index');
select isnt(pg_temp.ask('once'), null, 'with a condition and an expression');
select throws_ok($$ select pg_temp.ask('once') $$, '23505', null, 'is kept');
drop index once;

-- Rights and policies, of those who have some.
create policy never_this on steadytext_queue as restrictive for insert to steadytext_user with check (prompt <> 'never');
select ok(pg_temp.run_as('st_alice', $$ select steadytext_generate_async('mine') $$) is not null, 'a user asks');
select throws_ok($$ select pg_temp.run_as('st_alice', 'select steadytext_generate_async(''never'')') $$, '42501', null, 'as far as policies let her');
select ok(pg_temp.run_as('st_bob', $$ select steadytext_generate_async('his') $$) is not null, 'another one in the same session');
select is(pg_temp.run_as('st_bob', $$ select string_agg(prompt, ' ') from steadytext_queue $$), 'his', 'whose it is');
select throws_ok($$ select pg_temp.run_as('st_stranger', 'select steadytext_generate_async(''hers'')') $$, '42501', null, 'and nobody without the rights');
drop policy never_this on steadytext_queue;

select throws_ok(
    $t$ do $$ begin set local transaction_read_only = on; perform steadytext_generate_async('x'); end $$ $t$, '25006', null,
    'nothing is written in a transaction that reads');
select isnt(pg_temp.ask('last'), null, 'and again after it');

select * from finish();
rollback;
