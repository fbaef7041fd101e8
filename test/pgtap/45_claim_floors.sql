-- The places where claims begin to look: what lies before a floor is not looked at, and what does not is
-- found.
\ir setup.psql
select plan(13);

select is(
    (select row(priorities, roles, ids)::text from steadytext.claim_floors_now()), '(,,)',
    'a session that is not the worker has no floors');
select lives_ok($$ select steadytext.note_floor(5, 10::oid, 7) $$, 'what it notes');
select lives_ok($$ select steadytext.note_search(3, 5, 10::oid) $$, 'comes to nothing');
select is(
    (select row(priorities, roles, ids)::text from steadytext.claim_floors_now()), '(,,)', 'it has none afterwards');

-- Three users, two priorities, ids with holes.
create function pg_temp.role_of(p_n integer) returns oid
language sql as $$ select r.oid from pg_roles as r where r.rolname in ('st_alice', 'st_bob', 'st_root') order by r.oid offset p_n limit 1 $$;
insert into steadytext_queue (id, request_type, prompt, priority, owner_role)
overriding system value
select n * 10, 'generate', 'p' || n, 4 + n % 2, (select r.rolname from pg_roles as r where r.oid = pg_temp.role_of(n % 3))::steadytext.role_id
from generate_series(1, 60) as n;

create function pg_temp.next(p_priority integer, p_role integer, p_id bigint, p_priorities integer[], p_roles integer[], p_ids bigint[]) returns text
language sql as $$
    select concat_ws(' ', f.role, f.id)
    from steadytext.next_pending(p_priority, pg_temp.role_of(p_role), p_id, p_priorities,
        array(select pg_temp.role_of(r) from unnest(p_roles) with ordinality as u(r, n) order by n), p_ids) as f
$$;
create function pg_temp.expected(p_priority integer, p_role integer, p_id bigint, p_priorities integer[], p_roles integer[], p_ids bigint[]) returns text
language sql as $$
    select concat_ws(' ', f.owner, f.id)
    from (values (0)) as one(n)
    left join lateral (
        select q.owner_role::oid as owner, q.id
        from steadytext_queue as q
        where q.status = 'pending' and q.priority = p_priority
            and (q.owner_role::oid > pg_temp.role_of(p_role) or q.owner_role::oid = pg_temp.role_of(p_role) and q.id > p_id)
            and not exists (
                select from unnest(p_priorities, p_roles, p_ids) as u(priority, role, id)
                where u.priority = q.priority and pg_temp.role_of(u.role) = q.owner_role::oid and q.id < u.id)
        order by q.owner_role::oid, q.id
        limit 1
    ) as f on true
$$;
select is(pg_temp.next(5, 0, -1, '{}', '{}', '{}'), pg_temp.expected(5, 0, -1, '{}', '{}', '{}'), 'without floors: the first one');
select isnt(pg_temp.next(5, 0, -1, '{}', '{}', '{}'), '', 'which there is');
select is(pg_temp.next(5, 0, -1, '{5}', '{0}', '{300}'), pg_temp.expected(5, 0, -1, '{5}', '{0}', '{300}'), 'a floor hides what is before it');
select is(
    pg_temp.next(5, 0, -1, '{5,5}', '{0,1}', '{9223372036854775807,-9223372036854775808}'),
    pg_temp.expected(5, 0, -1, '{5,5}', '{0,1}', '{9223372036854775807,-9223372036854775808}'), 'the highest and the lowest that there can be');
select is(pg_temp.next(5, 0, -1, '{5,5,5}', '{0,1,2}', '{601,601,601}'), '', 'nothing is left behind all of them');
select is(pg_temp.next(5, 2, 9223372036854775807, '{5}', '{0}', '{0}'), '', 'and nothing behind the last user');
select is(pg_temp.next(5, 0, 9223372036854775807, '{5}', '{0}', '{300}'), pg_temp.expected(5, 1, -1, '{}', '{}', '{}'), 'behind a user comes the next one');
-- At random.
create temporary table tries as
select 4 + n % 2 as priority, (random() * 2)::integer as role, (random() * 700)::bigint - 50 as id,
    array[4, 4, 5, 5] as priorities, array[0, 2, 0, 1] as roles, array(select (random() * 700)::bigint - 50 from generate_series(1, 4) where n > 0) as ids
from generate_series(1, 300) as n;
select is_empty(
    $$ select * from tries where pg_temp.next(priority, role, id, priorities, roles, ids)
        is distinct from pg_temp.expected(priority, role, id, priorities, roles, ids) $$,
    'at random: always the same as a search through all of them');

select is_empty(
    $$
        select a.attname
        from pg_index as i
        join pg_depend as d on d.classid = 'pg_class'::regclass and d.objid = i.indexrelid
            and d.refclassid = 'pg_class'::regclass and d.refobjid = i.indrelid
        join pg_attribute as a on a.attrelid = i.indrelid and a.attnum = d.refobjsubid and a.attnum > 0
        where i.indexrelid = 'steadytext_queue_claim_idx'::regclass
            and not exists (
                select from pg_trigger as t
                where t.tgrelid = i.indrelid and t.tgname = 'wake_worker' and a.attnum = any (t.tgattr))
    $$,
    'whoever changes anything that decides where and whether a request is in the order of claims wakes the worker');

select * from finish();
rollback;
