-- The protocol: claims by model and type, and who computes what.
\ir setup.psql
select plan(31);

insert into steadytext_models (name, task, file, placement) values
    ('far', 'generate', 'far.gguf', 'elsewhere'), ('near', 'generate', 'near.gguf', 'server'), ('free', 'generate', 'free.gguf', 'any');
insert into steadytext_config (key, value) values ('generation_model', '"builtin"') on conflict (key) do update set value = excluded.value;
select is((select placement from steadytext_models where name = 'small'), 'any', 'anybody computes what nobody has placed');
select throws_ok($$ update steadytext_models set placement = 'moon' where name = 'far' $$, '22023', null, 'an unknown placement');
select throws_ok($$ update steadytext_models set placement = null where name = 'far' $$, '22023', null, 'no placement');

create function pg_temp.enqueue()
returns void language sql as $$
    delete from steadytext_queue;
    insert into steadytext_queue (request_type, prompt, params) values
        ('generate', 'a', '{"model": "far"}'), ('generate', 'b', '{"model": "near"}'), ('generate', 'c', '{"size": "free"}'),
        ('generate', 'd', null), ('embed', 'e', null), ('generate_choice', 'f', '{"model": "far", "choices": ["x", "y"]}'),
        ('generate', 'g', null);
    -- As a session whose default it was has enqueued it.
    update steadytext_queue set params = '{"default_model": "far"}' where prompt = 'g';
$$;
-- The prompts of a claim: in their order, as they are of one user.
create function pg_temp.claimed(p_models text[], p_types text[], p_limit integer default 10)
returns text language sql as $$
    select string_agg(c.prompt, '')
    from steadytext.claim_requests('local:a', p_limit, 60, null, false, p_models => p_models, p_types => p_types) as c
$$;

select pg_temp.enqueue();
select is(pg_temp.claimed(null, null), 'bcde', 'the server''s own worker leaves what is elsewhere');
select pg_temp.enqueue();
select is(pg_temp.claimed('{far}', null), null, 'even where it asks for it');
create or replace function steadytext.is_own_worker() returns boolean
language sql set search_path = pg_catalog, pg_temp as 'select false';
select is(pg_temp.claimed(null, null), 'acdefg', 'others leave what is the server''s');
select pg_temp.enqueue();
select is(pg_temp.claimed('{FAR}', null), 'afg', 'models by name, in any case');
select is(pg_temp.claimed('{far}', null), null, 'and nothing is left of them');
select is(pg_temp.claimed('{free,far}', null), 'c', 'what names a size');
select is(pg_temp.claimed(null, '{embed,batch_embed}'), 'e', 'types');
select is(pg_temp.claimed('{builtin}', null), 'd', 'what names no model goes to those who have the default');
select pg_temp.enqueue();
select is(pg_temp.claimed('{far}', '{generate}'), 'ag', 'models and types');
select is(pg_temp.claimed('{}', null), null, 'no models');
select is(pg_temp.claimed(null, '{}'), null, 'no types');
select is(pg_temp.claimed('{far,builtin}', null, 1) || pg_temp.claimed('{far,builtin}', null, 1), 'de', 'a limit counts what is taken');

-- Behind many that are left there is still what is taken.
delete from steadytext_queue;
insert into steadytext_queue (request_type, prompt) select 'embed', 'left ' || n from generate_series(1, 3000) as n;
insert into steadytext_queue (request_type, prompt) values ('generate', 'z');
select is(pg_temp.claimed(null, '{generate}'), 'z', 'behind 3,000 that it leaves, a claim finds what it takes');

-- However many of them there are: what a claim reads does not grow with what it leaves. Without the dead entries of what was before.
truncate steadytext_queue;
insert into steadytext_queue (request_type, prompt, params, owner_role)
select 'generate', 'left ' || n, '{"model": "near"}', 'st_alice'::name::steadytext.role_id from generate_series(1, 20000) as n;
insert into steadytext_queue (request_type, prompt, params, owner_role)
select 'generate', r || n, '{"model": "far"}', r::name::steadytext.role_id from unnest(array['st_alice', 'st_bob']) as r, generate_series(1, 3) as n;
create function pg_temp.read()
returns bigint language sql as $$
    select pg_stat_get_xact_tuples_returned('steadytext_queue'::regclass)
        + (select sum(pg_stat_get_xact_tuples_returned(i.indexrelid)) from pg_index as i where i.indrelid = 'steadytext_queue'::regclass)::bigint
$$;
create temporary table before as select pg_temp.read() as n;
select is(
    (select array_agg(c.prompt) from steadytext.claim_requests('e', 4, 60, null, false, p_models => '{far}') as c),
    '{st_alice1,st_bob1,st_alice2,st_bob2}', 'behind 20,000 that it leaves: users in turn, oldest first');
select cmp_ok(pg_temp.read() - (select n from before), '<=', 100::bigint, 'and what it leaves is not read');
update before set n = pg_temp.read();
select is(
    (select array_agg(c.prompt) from steadytext.claim_requests('e', 10, 60, null, false, p_types => '{embed}') as c), null, 'nothing of what it takes');
select cmp_ok(pg_temp.read() - (select n from before), '<=', 100::bigint, 'is found out as soon');
update before set n = pg_temp.read();
select is(
    (select array_agg(c.prompt) from steadytext.claim_requests('e', 10, 60, null, false) as c), '{st_alice3,st_bob3}',
    'what is placed with the server is left as soon, too');
select cmp_ok(pg_temp.read() - (select n from before), '<=', 100::bigint, 'without a list of models');

-- Several kinds of one user come by their age, and a user with very many kinds costs no more than some.
truncate steadytext_queue;
insert into steadytext_queue (request_type, prompt, params)
select 'generate', 'a' || n, case n % 3 when 0 then '{"model": "far"}' when 1 then '{"model": "free"}' else '{}' end::jsonb from generate_series(1, 9) as n;
select is(pg_temp.claimed('{far,free}', null), 'a1a3a4a6a7a9', 'kinds of one user by their age');
-- As they come from a dump: such models are not there.
insert into steadytext_queue (request_type, prompt, params, created_at)
select 'generate', 'odd', jsonb_build_object('model', 'odd ' || n), now() - interval '1 day' from generate_series(1, 5000) as n;
update before set n = pg_temp.read();
select is(pg_temp.claimed('{nothing}', null), null, 'none of 5,000 kinds');
select cmp_ok(pg_temp.read() - (select n from before), '<=', 1000::bigint, 'some of which are looked at');
insert into steadytext_queue (request_type, prompt, params) values ('generate', 'w', '{"model": "far"}');
create function pg_temp.claims_until_found() returns boolean language plpgsql as $$
begin
    for i in 1 .. 5000 loop
        if pg_temp.claimed('{far}', null) = 'w' then
            return true;
        end if;
    end loop;
    return false;
end
$$;
select ok(pg_temp.claims_until_found(), 'others each time, so that none is left for ever');

-- One that must run alone.
delete from steadytext_queue;
insert into steadytext_queue (request_type, prompt, params) values ('generate', 'q', '{"model": "far"}');
update steadytext_queue set alone = true;
select results_eq($$ select alone_due from steadytext.queue_outlook(1, '{free}') $$, $$ values (false) $$, 'nor does it hold up others');
select results_eq($$ select alone_due from steadytext.queue_outlook(1, '{far}') $$, $$ values (true) $$, 'but those whom it is for');
select is_empty($$ select * from steadytext.claim_requests('e', 1, 60, null, true, p_models => '{free}') $$, 'what runs alone is filtered, too');
select isnt_empty($$ select * from steadytext.claim_requests('e', 1, 60, null, true, p_models => '{far}') $$, 'and taken by whom it is for');
select throws_ok(
    $$ select steadytext_generate('x', 2, model => 'far') $$, '0A000', 'model "far" is computed by workers elsewhere only',
    'a synchronous call does not wait for others');

select * from finish();
rollback;
