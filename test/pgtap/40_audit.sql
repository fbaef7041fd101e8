-- The audit log: what administrators do is in it, in whatever way they do it, and never a prompt; who reads it, and that nobody writes it.
\ir setup.psql
select plan(60);

create role st_auditor nologin;
grant steadytext_auditor to st_auditor;
delete from steadytext_audit_log;
create function pg_temp.denied(p_role text, p_statement text, p_name text) returns text language sql as $$
    select throws_ok(format('select pg_temp.run_as(%L, %L)', p_role, p_statement), '42501', null, p_role || ' may not: ' || p_name)
$$;
-- The last entry, as one text.
create function pg_temp.last() returns text language sql as $$
    select concat_ws(' ', user_id, action, details, success) from steadytext_audit_log where user_id not like 'unknown%' order by id desc limit 1
$$;
-- Entries that the worker writes meanwhile are about roles of other tests, which are gone.
create function pg_temp.entries() returns integer language sql as
    $$ select count(*)::integer from steadytext_audit_log where user_id not like 'unknown%' $$;

-- Settings.
select pg_temp.run_as('st_root', $$ select steadytext_config_set('default_seed', '7') $$);
select is(pg_temp.last(), 'st_root config_change {"key": "default_seed", "value": "7", "is_default": "false"} t', 'a setting that was changed');
select pg_temp.written_as('st_root', $$ update steadytext_config set value = '8' where key = 'default_seed' $$);
select is(pg_temp.last(), 'st_root config_change {"key": "default_seed", "value": "8"} t', 'by a plain UPDATE as well');
select pg_temp.run_as('st_root', $$ select steadytext_config_set('default_seed', '8') $$);
select is(pg_temp.entries(), 2, 'what is as it was is not noted');
select pg_temp.run_as('st_root', $$ select steadytext_config_set('default_seed', null) $$);
select is(pg_temp.last(), 'st_root config_change {"key": "default_seed", "value": "42", "is_default": "true"} t', 'a setting that was put back');
select pg_temp.run_as('st_root', 'select steadytext_daemon_stop()');
select is(pg_temp.last(), 'st_root config_change {"key": "worker_paused", "value": "true", "is_default": "false"} t', 'the queue was stopped');
savepoint here;
select throws_ok($$ select pg_temp.run_as('st_root', 'select steadytext_config_set(''default_seed'', ''x'')') $$, '22023', null, 'a setting that was refused');
select is(pg_temp.entries(), 4, 'is no act');

-- Models.
select pg_temp.written_as('st_root', $$ insert into steadytext_models (name, task, file) values ('ours', 'generate', 'ours.gguf') $$);
select is(pg_temp.last(), 'st_root model_create {"file": "ours.gguf", "name": "ours", "task": "generate", "placement": "any", "is_fallback": "false", "is_preferred": "false"} t', 'a model');
select pg_temp.written_as('st_root', $$ update steadytext_models set file = 'better.gguf' where name = 'ours' $$);
select is(pg_temp.last(), 'st_root model_change {"file": "better.gguf", "name": "ours"} t', 'another file');
select pg_temp.written_as('st_root', $$ delete from steadytext_models where name = 'ours' $$);
select is(pg_temp.last(), 'st_root model_drop {"name": "ours"} t', 'no model');
select throws_ok($$ select pg_temp.run_as('st_root', 'select steadytext_model_pull(''nobody/nothing'')') $$, null, null, 'a download that fails');
select isnt(pg_temp.last(), null, 'leaves the log as it was');
select is(pg_temp.run_as('st_root', 'select steadytext_model_pull_cancel(''ours'')'), 'false', 'a download that was to be stopped');
select is(pg_temp.last(), 'st_root model_pull_cancel {"model": "ours"} t', 'is noted');

-- Prompts, vectorizers, limits, the cache.
select pg_temp.run_as('st_root', $$ select steadytext_prompt_create('steadytext/if', 'Sesame: {{ prompt }}') $$);
select ok(pg_temp.last() ~ '^st_root prompt_create \{"slug": "steadytext/if", .*\} t$', 'a prompt: ' || pg_temp.last());
select pg_temp.run_as('st_alice', $$ select steadytext_prompt_create('of-alice', 'Sesame {{ x }}') $$);
select ok(pg_temp.last() ~ '^st_alice prompt_create \{"slug": "of-alice", ', 'one of a user');
select pg_temp.run_as('st_alice', $$ select steadytext_prompt_delete('of-alice') $$);
select is(pg_temp.last(), 'st_alice prompt_drop {"slug": "of-alice"} t', 'deleted');
create table st_texts (id bigint primary key, body text);
alter table st_texts owner to st_alice;
grant create on schema public to st_alice;
select isnt(pg_temp.run_as('st_alice', $$ select steadytext_create_vectorizer('public.st_texts', array['body'], name => 'of-alice', index => 'none')::text $$), null, 'a vectorizer');
select ok(pg_temp.last() ~ '^st_alice vectorizer_create \{.*"name": "of-alice"', 'is noted: ' || pg_temp.last());
select ok(pg_temp.last() ~ '"kind": "vectorizer"', 'and of what kind it is');
select pg_temp.written_as('st_alice', $$ update steadytext_vectorizers set priority = 7, truncate = true where name = 'of-alice' $$);
select is(pg_temp.last(), 'st_alice vectorizer_change {"kind": "vectorizer", "name": "of-alice", "priority": "7", "truncate": "true"} t', 'its owner alters it');
select pg_temp.run_as('st_alice', $$ select steadytext_alter_vectorizer('of-alice', format => 'Sesame: $chunk')::text $$);
select ok(pg_temp.last() ~ '"name": "of-alice', 'and its format: ' || pg_temp.last());
select is((select count(distinct session_user_id)::integer from steadytext_audit_log), 1, 'who had logged in');
select is((select session_user_id from steadytext_audit_log order by id desc limit 1), session_user::text, 'whoever that has become');
select pg_temp.written_as('st_root', $$ update steadytext_models set dimensions = '{64}', query_prompt = 'Sesame: ', description = 'd' where name = 'small' $$);
select is(pg_temp.last(), 'st_root model_change {"name": "small", "dimensions": "[64]", "description": "changed", "query_prompt": "changed"} t', 'more of a model');
update steadytext_models set placement = 'elsewhere' where name = 'small';
select is(pg_temp.last(), session_user || ' model_change {"name": "small", "placement": "elsewhere"} t', 'and where it is computed');

-- A flood of acts is a few rows, which say how many there were. A minute may end in the middle of it.
create function pg_temp.acts(p_action text) returns table (entries bigint, acts bigint) language sql as $$
    select count(*), sum(coalesce((details ->> 'count')::bigint, 1))::bigint from steadytext_audit_log where action = p_action
$$;
create temporary table before_flood as select * from pg_temp.acts('vectorizer_change');
create function pg_temp.flood() returns void language plpgsql as $$
begin
    for i in 1 .. 300 loop
        update steadytext_vectorizers set is_paused = not is_paused where name = 'of-alice';
    end loop;
end
$$;
grant execute on function pg_temp.flood() to st_alice;
select pg_temp.run_as('st_alice', 'select pg_temp.flood()');
select is((select a.acts - b.acts from pg_temp.acts('vectorizer_change') as a, before_flood as b), 300::bigint, 'three hundred pauses are counted');
select cmp_ok((select a.entries - b.entries from pg_temp.acts('vectorizer_change') as a, before_flood as b), '<=', 40::bigint, 'in a few rows');
select ok((select (details ->> 'last')::timestamptz between now() and clock_timestamp() from steadytext_audit_log where details ? 'count' order by id desc limit 1), 'with the time of the last');
-- A flood hides nothing that came with it.
insert into steadytext_models (name, task, file) values ('audited', 'generate', 'audited.gguf');
select count(r) from generate_series(1, 30) as n
cross join lateral pg_temp.run_as('st_root', format('update steadytext_models set description = %L where name = ''audited'' returning 1', n)) as r;
select pg_temp.run_as('st_root', $$ update steadytext_models set file = 'evil.gguf' where name = 'audited' returning 1 $$);
select pg_temp.run_as('st_root', $$ update steadytext_models set description = 'last' where name = 'audited' returning 1 $$);
select pg_temp.run_as('st_root', $$ update steadytext_models set file = 'fine.gguf' where name = 'audited' returning 1 $$);
select pg_temp.run_as('st_root', $$ with made as (
    insert into steadytext_models (name, task, file)
    select n, 'generate', 'x.gguf' from unnest(array(select 'flood-' || i from generate_series(1, 120) as i) || array['backdoor', 'harmless']) as n returning 1
) select count(*) from made $$);
select ok(exists (select from steadytext_audit_log where details ->> 'name' = 'backdoor'), 'nor one of very many different ones');
select ok(exists (select from steadytext_audit_log where details::text ~ 'evil'), 'what an act changed stays in the entry of a flood');
select pg_temp.run_as('st_alice', $$ select count(steadytext_prompt_create('flood-' || n, 'x')) from generate_series(1, 300) as n $$);
select is((select acts from pg_temp.acts('prompt_create')), 302::bigint, 'so are acts on many things');
select cmp_ok((select entries from pg_temp.acts('prompt_create')), '<=', 204::bigint, 'in not very many rows');
select pg_temp.run_as('st_bob', $$ select steadytext_prompt_create('of-bob', 'x') $$);
select is(pg_temp.last() ~ '^st_bob prompt_create \{"slug": "of-bob", ', true, 'which keep nobody else''s out');
select pg_temp.run_as('st_root', $$ select steadytext_set_limit('st_bob', requests_per_minute => 3) $$);
select is(pg_temp.last(), 'st_root limit_create {"user_id": "st_bob", "requests_per_minute": "3"} t', 'a limit');
select pg_temp.run_as('st_root', $$ select steadytext_set_limit('st_bob', requests_per_minute => 4) $$);
select is(pg_temp.last(), 'st_root limit_change {"user_id": "st_bob", "requests_per_minute": "4"} t', 'another one');
select pg_temp.run_as('st_root', $$ select steadytext_reset_usage('st_bob') $$);
select is(pg_temp.last(), 'st_root usage_reset {"role": "st_bob"} t', 'what was used was forgotten');
select pg_temp.run_as('st_root', $$ select steadytext_set_limit('st_bob') $$);
select is(pg_temp.last(), 'st_root limit_drop {"user_id": "st_bob"} t', 'no limit');
select pg_temp.run_as('st_root', $$ select steadytext_set_limit('*', requests_per_day => 1000000) $$);
select is(pg_temp.last(), 'st_root limit_create {"user_id": null, "requests_per_day": "1000000"} t', 'a limit for everybody');
delete from steadytext_cache;
select pg_temp.run_as('st_root', 'select steadytext_cache_clear()');
select is(pg_temp.last(), 'st_root cache_clear {"entries": 0} t', 'the cache was emptied');
select is((select count(*)::integer from steadytext_audit_log where steadytext_audit_log::text ~ 'Sesame'), 0, 'no word of a prompt is in it');

-- In a function with other rights, the caller is noted.
create function st_as_root() returns void language sql security definer as $$ select steadytext_config_set('default_seed', '9') $$;
alter function st_as_root() owner to st_root;
select pg_temp.run_as('st_alice', 'select st_as_root()');
select is(pg_temp.last(), 'st_alice config_change {"key": "default_seed", "value": "9", "is_default": "false"} t', 'who calls a function with other rights');

-- Refusals, as the worker writes them.
select steadytext.note_refusals(
    array['st_alice'::regrole, 'st_bob'::regrole]::oid[], array['st_alice'::regrole, 'st_root'::regrole]::oid[],
    '{requests_per_minute,rights}', '{53400,42501}', '{too many,not yours}', '{5000,1}',
    array[now(), now()], array[now(), now()], 0);
select results_eq(
    $$ select user_id, session_user_id, action, details - 'last', success, error_message from steadytext_audit_log where not success and user_id not like 'unknown%' order by user_id $$,
    $$ values ('st_alice', 'st_alice', 'limit_refused', '{"limit": "requests_per_minute", "count": 5000, "sqlstate": "53400"}'::jsonb, false, 'too many'),
        ('st_bob', 'st_root', 'right_refused', '{"count": 1, "sqlstate": "42501"}', false, 'not yours') $$,
    'refusals of one kind are one row with a count');
select steadytext.note_refusals('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', 12);
select ok(pg_temp.last() ~ ' refusals_dropped \{"count": 12\} f$', 'those that found no place are counted');

-- The retention.
update steadytext_audit_log set "timestamp" = now() - interval '400 days' where not success;
create temporary table before as select pg_temp.entries() as entries;
select steadytext_config_set('audit_retention_days', '0');
select is(steadytext.sweep_audit_log(), false, 'without a retention');
select is(pg_temp.entries(), (select entries + 1 from before), 'everything stays');
select steadytext_config_set('audit_retention_days', '390');
select is(steadytext.sweep_audit_log(), false, 'with one');
select is(pg_temp.entries(), (select entries + 2 - 3 from before), 'what is older goes');

-- Privileges.
select ok(pg_temp.run_as('st_auditor', 'select count(*) from steadytext_audit_log')::integer > 0, 'auditors read it');
select ok(pg_temp.run_as('st_root', 'select count(*) from steadytext_audit_log')::integer > 0, 'administrators do');
select pg_temp.denied('st_alice', 'select count(*) from steadytext_audit_log', 'read it');
select pg_temp.denied('st_auditor', 'select count(*) from steadytext_queue', 'read anything else');
select pg_temp.denied(r, s, s)
from unnest(array['st_auditor', 'st_root']) as r,
    unnest(array['insert into steadytext_audit_log (action) values (''x'')', 'delete from steadytext_audit_log', 'truncate steadytext_audit_log']) as s;
select pg_temp.denied('st_alice', $$ select steadytext.note_refusals('{}', '{}', '{}', '{}', '{}', '{}', '{}', '{}', 1) $$, 'make entries up');
select pg_temp.denied('st_alice', 'create temporary table mine (); create trigger mine after insert on mine for each row execute function steadytext.note_act()', 'by a trigger either');

select * from finish();
rollback;
