-- Stumbling blocks for beginners: requests that nobody claims, and errors that do not say what to do.
\ir setup.psql
select plan(61);

-- Requests that nobody claims. The server's own worker is not asked: it may be in any state in a test.
create or replace function steadytext.worker_state()
returns table (
    state text, pid integer, worker text, started_at timestamptz, library_version text, message text, running integer, memory_mb integer
)
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select current_setting('test.state'), 1, 'local:1', now(), '2.0.0', null::text, 0, 0
$$;
create function pg_temp.state(p_state text) returns text language sql as $$ select set_config('test.state', p_state, true) $$;
create function pg_temp.beat(p_worker text, p_claims jsonb)
returns void language sql as $$
    select steadytext.record_heartbeat(p_worker, p_worker, 'idle', '2.0.0', '[]', 0, 0, 0, 0, null, p_claims)
$$;
create function pg_temp.check_claims(p_claims jsonb)
returns void language sql as $$
    select steadytext.check_heartbeat('st_remote'::regrole::oid, 'w', 'w', 'idle', '2.0.0', '[]', '{}', p_claims)
$$;
create function pg_temp.unclaimed(p_role text default null)
returns text language plpgsql as $$
begin
    return pg_temp.run_as(coalesce(p_role, current_user), $s$
        select string_agg(concat_ws(' ', coalesce(u.model, '?'), u.request_type, u.placement, u.requests), ', ' order by u.model, u.request_type)
        from steadytext.unclaimed_requests() as u $s$);
end
$$;
create function pg_temp.reason() returns text language sql as $$ select min(u.reason) || ' // ' || min(u.hint) from steadytext.unclaimed_requests() as u $$;

delete from steadytext_daemon_health;
insert into steadytext_config (key, value) values ('generation_model', '"builtin"'), ('embedding_model', '"builtin"')
on conflict (key) do update set value = excluded.value;
insert into steadytext_models (name, task, file, placement) values
    ('Far', 'generate', 'deep/far.gguf', 'elsewhere'), ('near', 'generate', 'near.gguf', 'server');
select pg_temp.state('idle');
select steadytext_generate_async('here');
select is(pg_temp.unclaimed(), null, 'what the server''s own worker claims');
select steadytext_generate_async('there ' || n, model => 'Far') from generate_series(1, 3) as n;
select is(pg_temp.unclaimed(), 'Far generate elsewhere 3', 'a model that is elsewhere, and nobody is there');
select matches(pg_temp.reason(), '^the model is placed elsewhere, and no worker elsewhere has reported .* // Start steadytext-worker where "deep/far.gguf" is in its --model-dir',
    'why, and what to do');
select doesnt_match(pg_temp.reason(), 'placement = ''any''', 'the server is not to compute what it does not have');
create or replace function steadytext_model_status()
returns table (name text, task text, file text, state text, reason text, is_chosen boolean)
language sql volatile as $$ select 'Far', 'generate', 'deep/far.gguf', 'ready', null::text, false $$;
select matches(pg_temp.reason(), 'update steadytext_models set placement = ''any'' where name = ''Far''', 'but what it has');
select steadytext_if_async('is it?', model => 'Far');
select matches((select u.hint from steadytext.unclaimed_requests() as u where u.request_type = 'if'), 'judgements = "choice" there, without which no endpoint',
    'which endpoints answer a type of requests is said');
delete from steadytext_queue where request_type = 'if';
insert into steadytext_queue (request_type, prompt, params) values ('summarize', 'a text', '{"model": "Far"}');
select matches((select u.hint from steadytext.unclaimed_requests() as u where u.request_type = 'summarize'), 'no endpoint answers this type',
    'as is that none does');
delete from steadytext_queue where request_type = 'summarize';
select is(
    (select concat_ws('|', d.status, d.detail ~ '^3 requests wait for model "Far" \(generate\), the oldest for .*, and no worker claims them: the model is placed elsewhere', d.hint is not null)
     from steadytext_diagnose() as d where d."check" = 'queue' and d.detail ~ 'Far'),
    'warning|t|t', 'steadytext_diagnose says it');
select is((select s.message from steadytext_daemon_status() as s limit 1), '3 requests wait for model "Far" (generate), and no worker claims them',
    'steadytext_daemon_status says it');
select pg_temp.beat('one', '[{"models": ["builtin"], "types": null}]');
select matches(pg_temp.reason(), '^the model is placed elsewhere, and the one worker there does not serve it', 'a worker without the model');
select pg_temp.beat('two', '[{"models": ["FAR", "builtin"], "types": ["embed"]}]');
select is(pg_temp.unclaimed(), 'Far generate elsewhere 3', 'a worker that takes other types');
select matches(pg_temp.reason(), '^the model is placed elsewhere, and the workers there that serve it do not take requests of this type // .*--types', 'is not the one');
select pg_temp.beat('two', '[{"models": ["builtin"], "types": null}, {"models": ["FAR"], "types": ["generate"]}]');
select is(pg_temp.unclaimed(), null, 'one that takes them');
select is((select s.message from steadytext_daemon_status() as s limit 1), null, 'and nothing is said');
select ok(not exists (select from steadytext_diagnose() as d where d.detail ~ 'no worker claims'), 'nowhere');
select steadytext_generate_choice_async('which?', array['a', 'b'], model => 'Far');
select is(pg_temp.unclaimed(), 'Far generate_choice elsewhere 1', 'of another type: an endpoint, say');
update steadytext_daemon_health set last_heartbeat = now() - interval '2 minutes' where daemon_id = 'two';
select is(pg_temp.unclaimed(), 'Far generate elsewhere 3, Far generate_choice elsewhere 1', 'it has not reported for long');
select pg_temp.beat('three', null);
select is(pg_temp.unclaimed(), null, 'of one that does not say what it claims, anything may be expected');
delete from steadytext_daemon_health;
select steadytext_generate_async('run alone', model => 'Far');
update steadytext_queue set alone = true where prompt = 'run alone';
select is(pg_temp.unclaimed(), 'Far generate elsewhere 4, Far generate_choice elsewhere 1', 'those that must run alone are among them');

select pg_temp.state('paused');
select is(pg_temp.unclaimed(), 'Far generate elsewhere 4, Far generate_choice elsewhere 1', 'that the only worker is paused is said elsewhere');
select pg_temp.beat('four', '[{"models": null, "types": ["rerank"]}]');
select is(pg_temp.unclaimed(), 'Far generate elsewhere 4, Far generate_choice elsewhere 1, builtin generate any 1', 'nothing is claimed by one that is paused, beside another one that takes other types');
select is((select u.hint from steadytext.unclaimed_requests() as u where u.model = 'builtin'), 'Let it go on: select steadytext_daemon_start().', 'which can go on');
select pg_temp.beat('four', '[{"models": ["far", "builtin", "near"], "types": ["generate", "embed"]}]');
select is(pg_temp.unclaimed(), 'Far generate_choice elsewhere 1', 'another one serves what is anybody''s');
insert into steadytext_queue (request_type, prompt, params) values ('generate', 'near', '{"model": "near"}');
select is(pg_temp.unclaimed(), 'Far generate_choice elsewhere 1, near generate server 1', 'but not what is the server''s');

select is(pg_temp.unclaimed('st_alice'), null, 'users hear of their own requests only');
select pg_temp.run_as('st_alice', 'select steadytext_generate_choice_async(''mine'', array[''a'', ''b''], model => ''Far'')');
select is(pg_temp.unclaimed('st_alice'), 'Far generate_choice elsewhere 1', 'of these they do');
select is(pg_temp.unclaimed('st_root'), 'Far generate_choice elsewhere 2, near generate server 1', 'administrators of all');
select is(pg_temp.run_as('st_alice', 'select message from steadytext_daemon_status() limit 1'),
    '1 request waits for model "Far" (generate_choice), and no worker claims it', 'in words');
select throws_ok($$ select pg_temp.run_as('st_stranger', 'select steadytext.unclaimed_requests()') $$, '42501', null, 'strangers hear nothing');

-- Many of one kind cost as much as some, and what is claimed is not read.
truncate steadytext_queue cascade;
select pg_temp.state('idle');
insert into steadytext_queue (request_type, prompt) select 'generate', 'claimed ' || n from generate_series(1, 20000) as n;
insert into steadytext_queue (request_type, prompt, params) select 'generate_json', 'x', '{"model": "Far", "schema": {}}' from generate_series(1, 12000) as n;
create function pg_temp.read()
returns bigint language sql as $$ select pg_stat_get_xact_tuples_fetched('steadytext_queue'::regclass) $$;
create temporary table before as select pg_temp.read() as n;
select is(pg_temp.unclaimed(), 'Far generate_json elsewhere 10000', 'counted up to 10,000 of a kind and user');
select cmp_ok(pg_temp.read() - (select n from before), '<=', 11000::bigint, 'and no others are read');

-- The claims that a heartbeat may report.
select throws_ok(format('select pg_temp.check_claims(%L)', c), '22023', null, 'no claims: ' || left(c, 40))
from unnest(array['{}', '5', '["x"]', '[{"models": 5}]', '[{"models": ["x"], "types": "embed"}]',
    (select jsonb_agg('{}'::jsonb)::text from generate_series(1, 257)), (select jsonb_build_array(jsonb_build_object('models', jsonb_agg(repeat(n::text, 20))))::text from generate_series(1, 9000) as n)]) as c;
select lives_ok(format('select pg_temp.check_claims(%L)', c), 'claims: ' || c)
from unnest(array['[]', '[{}]', '[{"models": null, "types": null}]', '[{"models": ["a"]}, {"types": ["embed"]}]']) as c;

-- Prometheus gets them, of all owners, and nothing where all are claimed.
create function pg_temp.unclaimed_samples() returns setof text language sql as $$
    select line from regexp_split_to_table(pg_temp.run_as('st_root', 'select steadytext_metrics()'), E'\n') as line
    where line ~ '^steadytext_unclaimed_requests\{'
$$;
select is((select string_agg(line, ' ') from pg_temp.unclaimed_samples() as line),
    format('steadytext_unclaimed_requests{database="%s",model_name="Far",request_type="generate_json"} 10000', current_database()),
    'the metrics have them');
truncate steadytext_queue cascade;
select is_empty('select * from pg_temp.unclaimed_samples()', 'the metrics have no sample where there are none');

select is((select l.placement from steadytext_model_list() as l where l.name = 'Far'), 'elsewhere', 'steadytext_model_list shows the placement');
select is((select l.placement from steadytext_model_list() as l where l.name = 'builtin'), 'any', 'and that of the builtin model');

-- Models that are placed elsewhere are reported as such, with the workers that claim them.
create function pg_temp.hint(p_statement text)
returns text language plpgsql as $$
declare
    v_hint text;
begin
    execute p_statement;
    return 'no error';
exception when others then
    get stacked diagnostics v_hint = pg_exception_hint;
    return sqlstate || ' ' || v_hint;
end
$$;
insert into steadytext_models (name, task, file, placement) values ('distant', 'embed', 'distant.gguf', 'elsewhere'), ('remoter', 'rerank', 'remoter.gguf', 'elsewhere');
select is(pg_temp.hint($$ select steadytext_generate_async('x', model => 'Fan') $$),
    '42704 Did you mean "Far", which workers elsewhere answer when steadytext_generate_async() asks? steadytext_model_list() shows the models there are.',
    'a name that is nearly that of a model elsewhere');
select matches(pg_temp.hint($$ select steadytext_embed('x', model => 'distance') $$), '"distant", which workers elsewhere answer when steadytext_embed_async\(\) asks', 'one that embeds');
select matches(pg_temp.hint($$ select steadytext_rerank('x', '{a}', model => 'remote') $$), '"remoter", which workers elsewhere answer when steadytext_rerank_async\(\) asks', 'one that ranks');
select matches(pg_temp.hint($$ select steadytext_generate('x', model => 'nothing-like-it') $$), '"Far" \(computed elsewhere\)', 'and where no name is near');
select matches(pg_temp.hint(c), '^0A000 They answer requests of the queue, and steadytext_generate_async\(…, model => ''Far''\) makes one', c)
from unnest(array[
    $$ select steadytext_generate('x', model => 'Far') $$,
    $$ select steadytext_count_tokens('x', 'Far') $$,
    $$ select steadytext_chunk_text('x', model => 'Far') $$]) as c;
select matches(pg_temp.hint($$ select steadytext_embed('x', model => 'distant') $$), 'mode => ''query''', 'and what is searched for');
select lives_ok($$ select pg_temp.run_as('st_root', 'update steadytext_models set placement = ''any'' where name = ''Far'' returning name') $$, 'administrators change it');

-- Definitions in a server that does not have the library preloaded: nothing is done about them, which is said.
create table noted (id integer primary key, body text);
alter table noted owner to st_alice;
grant create on schema public to st_alice;
select pg_temp.run_as('st_alice', $$ select steadytext_create_vectorizer('noted', '{body}', index => 'none') $$);
select pg_temp.run_as('st_alice', $$ select steadytext_create_enrichment('noted', 'topic', '$body', 'generate', model => 'builtin') $$);
select is(
    pg_temp.run_as('st_alice', $$ select string_agg(s.state, ' ') from (
        select state from steadytext_vectorizer_status union all select state from steadytext_enrichment_status) as s $$),
    'scanning scanning', 'where a worker runs, they are begun');
select pg_temp.state('not_preloaded');
select is(
    pg_temp.run_as('st_alice', $$ select string_agg(concat_ws('|', s.state, s.problem), ' ') from (
        select state, problem from steadytext_vectorizer_status union all select state, problem from steadytext_enrichment_status) as s $$),
    'broken|no worker runs broken|no worker runs', 'where none does, that is said');
-- A restore makes the definition first, and the triggers by which its table is known in the end.
update steadytext_vectorizer_state set problem = null;
insert into steadytext_vectorizer_state (vectorizer_id, is_indexed, problem, retry_at)
select v.id, true, 'its triggers are gone', clock_timestamp() - interval '1 second' from steadytext_vectorizers as v where v.name = 'noted_body';
select is(
    (select count(*) from steadytext.vectorizers_due(false, false) as d join steadytext_vectorizers as v on v.id = d.id where v.name = 'noted_body'),
    1::bigint, 'what was wrong is looked at again though nothing else is to be done');

create function pg_temp.checks(p_role text) returns text language sql as $$
    select pg_temp.run_as(p_role, $s$
        select string_agg(concat_ws('|', d."check", d.status, d.detail, d.hint ~ 'steadytext_(vectorizer|enrichment)_(status|errors)'), ' ')
        from steadytext_diagnose() as d where d."check" ~ '^(vectorizer|enrichment) noted' $s$)
$$;
select is(pg_temp.checks('st_root'), 'vectorizer noted_body|error|its triggers are gone|t', 'steadytext_diagnose says what is broken');
update steadytext_vectorizer_state set is_limited = true;
insert into steadytext_vectorizer_failures (vectorizer_id, key, error, error_code)
select v.id, '[1]'::jsonb, 'too long', '54000' from steadytext_vectorizers as v where v.name = 'noted_topic'
union all select v.id, '[1]', 'nothing to embed', '00000' from steadytext_vectorizers as v where v.name = 'noted_body';
select is(pg_temp.checks('st_root'), 'enrichment noted_topic|warning|1 row has failed|t', 'and where rows have failed, but not what waits for a limit or was skipped');
grant pg_monitor to st_stranger;
select is(pg_temp.checks('st_stranger'), null, 'members of pg_monitor do not see definitions');

select * from finish();
rollback;
