-- The protocol: claims by model and type, and who computes what.
\ir setup.psql
select plan(21);

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
