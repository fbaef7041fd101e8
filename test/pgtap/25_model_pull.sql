-- Downloads of models, as far as no hub is needed.
\ir setup.psql
select plan(17);

create function pg_temp.denied(p_role text, p_statement text, p_name text)
returns text
language sql
as $$
    select throws_ok(
        pg_catalog.format('select pg_temp.run_as(%L, %L)', p_role, p_statement), '42501', null,
        pg_catalog.format('%s may not: %s', p_role, p_name))
$$;

select throws_ok('select steadytext_model_pull(null)', '22004', 'the name of a model must not be null', 'no name, no model');
select throws_ok($$ select steadytext_model_pull('nix') $$, '42704', 'model "nix" is not registered', 'a name that is not registered');
insert into steadytext_models (name, task, file) values ('nowhere', 'generate', 'nowhere.gguf');
select throws_ok(
    $$ select steadytext_model_pull('nowhere') $$, '22023', 'nothing says where model "nowhere" comes from', 'a row without a repository');
insert into steadytext_models (name, task, file, repo) values ('far', 'generate', '/srv/far.gguf', 'a/b');
select throws_ok($$ select steadytext_model_pull('far') $$, '22023', null, 'nothing is downloaded to an absolute path');
-- The process of a download says what is wrong with these before it opens a connection.
select throws_ok(format('select steadytext_model_pull(%L)', reference), '22023', null, format('%s is no reference', reference))
from unnest(array[
    '../../etc/passwd', '/etc/passwd', 'a/b:../c.gguf', 'file:///etc/passwd', 'https://example.org/a/b', E'a/b\n', 'a/b@../c'
]) as reference;
select is(steadytext_model_pull_cancel('a/b'), false, 'there is none to stop');
select is_empty($$ select * from steadytext_activity where request_type = 'model_pull' $$, 'none is going on');
select is((select count(*) from pg_settings where name in ('pg_steadytext.hub_endpoint', 'pg_steadytext.hub_offline',
    'pg_steadytext.hub_token_file', 'pg_steadytext.auto_pull') and context = 'sighup'), 4::bigint, 'the server''s settings');

select pg_temp.denied('st_alice', $$ select steadytext_model_pull('small') $$, 'download');
select pg_temp.denied('st_alice', $$ select steadytext_model_pull_cancel('small') $$, 'stop downloads');
select throws_ok($$ select pg_temp.run_as('st_root', $q$ select steadytext_model_pull('nix') $q$) $$, '42704', null, 'an administrator may');

select * from finish();
rollback;
