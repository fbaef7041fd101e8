-- Owners of rows: a row belongs to a role, under whatever name.
\ir setup.psql
select plan(33);

-- The type.
select is('st_alice'::steadytext.role_id::oid, 'st_alice'::regrole::oid, 'a name is read as the number of its role');
select is('st_alice'::steadytext.role_id::text, 'st_alice', 'and written as the name');
create role "Two ""Words" nologin;
select is('Two "Words'::steadytext.role_id::oid, '"Two ""Words"'::regrole::oid, 'names are read as they are');
select is('Two "Words'::steadytext.role_id::text, 'Two "Words', 'and written as they are');
create role "-" nologin;
select isnt('-'::steadytext.role_id::oid, 0::oid, 'there is no name that means nobody');
select is(''::steadytext.role_id::oid, 0::oid, 'but the empty one');
select is('st_nobody'::steadytext.role_id::oid, 0::oid, 'a role that is not there is nobody');
select is('st_nobody'::steadytext.role_id::text, '', 'and written as nobody');
create role "10" nologin;
select is('10'::steadytext.role_id::oid, '"10"'::regrole::oid, 'digits are a name');
select is((10::oid::text)::steadytext.role_id::text, '10', 'and no number');
select throws_ok($$ select '10'::oid::steadytext.role_id $$, '42846', null, 'a number becomes no role');
select is(
    (select amname from pg_index as i join pg_class as c on c.oid = i.indexrelid join pg_opclass as o on o.oid = i.indclass[1]
        join pg_am as a on a.oid = o.opcmethod
     where c.relname = 'steadytext_queue_claim_idx' and o.opcname = 'oid_ops'),
    'btree', 'it is indexed like a number');

-- Comparisons as with a name.
select steadytext_generate_async('mine') is not null as enqueued \gset
select is((select count(*) from steadytext_queue where owner_role = current_user), 1::bigint, 'compared with current_user');
select is((select count(*) from steadytext_queue where owner_role = 'nobody at all'), 0::bigint, 'compared with a name that is not there');
select is((select count(*) from steadytext_queue where owner_role = current_user::text), 1::bigint, 'compared with a text');
select is((select count(*) from steadytext_queue as q join pg_roles as r on r.oid = q.owner_role), 1::bigint, 'joined by number');
select is((select count(*) from steadytext_queue as q join pg_roles as r on r.rolname = q.owner_role), 1::bigint, 'joined by name');
select is((select string_agg(owner_role || ' ' || n, ',') from (select owner_role, count(*) as n from steadytext_queue group by owner_role) as g),
    current_user || ' 1', 'grouped');
update steadytext_queue set owner_role = 'st_alice';
select is(pg_temp.run_as('st_alice', $$ select prompt from steadytext_queue $$), 'mine', 'a superuser gives a row away');
delete from steadytext_queue;

-- A new name.
select pg_temp.run_as('st_alice', $$ select steadytext_generate_async('of the first alice') $$)::uuid as first \gset
alter role st_alice rename to st_alicia;
create role st_alice nologin;
grant steadytext_user to st_alice;
select is(pg_temp.run_as('st_alicia', 'select prompt from steadytext_queue'), 'of the first alice', 'a new name keeps the rows');
select is((select owner_role::text from steadytext_queue), 'st_alicia', 'and the rows show it');
select is(pg_temp.run_as('st_alice', 'select count(*) from steadytext_queue'), '0', 'a new role of the old name sees nothing');
select is(pg_temp.run_as('st_alice', format('select steadytext_cancel_async(%L)', :'first')), 'false', 'nor can it cancel anything');
update steadytext_queue set status = 'failed';
select is(pg_temp.written_as('st_alice', $$ update steadytext_queue set status = 'pending' $$), 0::bigint, 'nor put anything back');
select is(pg_temp.written_as('st_alicia', $$ update steadytext_queue set status = 'pending' $$), 1::bigint, 'which the first one can');

-- A role that is dropped.
drop role st_alicia;
create role st_alicia nologin;
grant steadytext_user to st_alicia;
select is(pg_temp.run_as('st_alicia', 'select count(*) from steadytext_queue'), '0', 'a role made anew sees nothing of the old one');
select is(pg_temp.run_as('st_alicia', format('select steadytext_cancel_async(%L)', :'first')), 'false', 'nor can it cancel anything');
select is((select owner_role::text from steadytext_queue), '', 'the row shows that its role is gone');
select is(pg_temp.run_as('st_root', 'select prompt from steadytext_queue'), 'of the first alice', 'an administrator sees it');
select is(pg_temp.run_as('st_root', format('select steadytext_cancel_async(%L)', :'first')), 'true', 'and cancels it');
select throws_ok(
    $$ select pg_temp.run_as('st_alicia', 'insert into steadytext_queue (request_type, prompt, owner_role) values (''generate'', ''x'', ''st_bob'')') $$,
    '42501', null, 'nobody enqueues in the name of another');

-- Functions that everybody may call cut long names.
select throws_ok(
    $$ select steadytext.refuse_row(repeat('a', 100000), repeat('b', 100000)) $$, '23502',
    format('column "%s" of "%s" must not be NULL', repeat('b', 63), repeat('a', 63)), 'refuse_row: long names are cut');
select throws_ok(
    $$ select steadytext.refuse_row(null, null) $$, '23502', 'column "" of "" must not be NULL', 'refuse_row: no names');

select * from finish();
rollback;
