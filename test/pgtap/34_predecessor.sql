-- Calls, names and columns of the Python extension, as docs/migrating.md promises them.
\ir setup.psql
select plan(54);

-- unsafe_mode => false says what happens anyway, by name and where it stood.
create temporary table call (given text, same_as text);
insert into call values
    ($$ steadytext_generate('Say hello', 8, unsafe_mode => false) $$, $$ steadytext_generate('Say hello', 8) $$),
    ($$ steadytext_generate('Say hello', 8, unsafe_mode => null) $$, $$ steadytext_generate('Say hello', 8) $$),
    ($$ steadytext_generate('Say hello', 8, true, 42, '[EOS]', null, null, null, null, false) $$, $$ steadytext_generate('Say hello', 8) $$),
    ($$ steadytext_generate(prompt => 'Say hello', max_tokens => 8, use_cache => true, seed => 42, eos_string => '[EOS]', model => null,
        model_repo => null, model_filename => null, size => null, unsafe_mode => false) $$, $$ steadytext_generate('Say hello', 8) $$),
    ($$ st_generate('Say hello', 8, true, 42, 'e', null, null, null, null, false) $$, $$ steadytext_generate('Say hello', 8, eos_string => 'e') $$),
    ($$ steadytext_embed('A text', unsafe_mode => false) $$, $$ steadytext_embed('A text') $$),
    ($$ steadytext_embed('A text', true, 42, null, false) $$, $$ steadytext_embed('A text') $$),
    ($$ st_embed('A text', true, 42, null, false) $$, $$ steadytext_embed('A text') $$),
    ($$ steadytext_generate_json('x', '{"enum": ["a", "b"]}', unsafe_mode => false) $$, $$ steadytext_generate_json('x', '{"enum": ["a", "b"]}') $$),
    ($$ steadytext_generate_json('x', '{"enum": ["a", "b"]}'::json, unsafe_mode => false) $$, $$ steadytext_generate_json('x', '{"enum": ["a", "b"]}') $$),
    ($$ steadytext_generate_json('x', '{"enum": ["a", "b"]}'::jsonb, unsafe_mode => false) $$, $$ steadytext_generate_json('x', '{"enum": ["a", "b"]}') $$),
    ($$ steadytext_generate_json('x', '{"enum": ["a", "b"]}', 16, true, 42, false) $$, $$ steadytext_generate_json('x', '{"enum": ["a", "b"]}', 16) $$),
    ($$ steadytext_generate_json('x', '{"enum": ["a", "b"]}'::jsonb, 16, true, 42, false, 'builtin') $$, $$ steadytext_generate_json('x', '{"enum": ["a", "b"]}', 16, model => 'builtin') $$),
    ($$ steadytext_generate_regex('x', '[ab]{3}', unsafe_mode => false) $$, $$ steadytext_generate_regex('x', '[ab]{3}') $$),
    ($$ steadytext_generate_regex('x', '[ab]{3}', 16, true, 42, false, 'builtin') $$, $$ steadytext_generate_regex('x', '[ab]{3}', 16, model => 'builtin') $$),
    ($$ steadytext_generate_choice('x', array['a', 'b'], unsafe_mode => false) $$, $$ steadytext_generate_choice('x', array['a', 'b']) $$),
    ($$ steadytext_generate_choice('x', array['a', 'b'], 16) $$, $$ steadytext_generate_choice('x', array['a', 'b']) $$),
    ($$ steadytext_generate_choice('x', array['a', 'b'], max_tokens => 16, unsafe_mode => false) $$, $$ steadytext_generate_choice('x', array['a', 'b']) $$),
    ($$ steadytext_generate_choice('x', array['a', 'b'], 16, true, 42, false, 'builtin') $$, $$ steadytext_generate_choice('x', array['a', 'b'], model => 'builtin') $$),
    ($$ steadytext_generate_choice('x', array['a', 'b'], null, true, 42) $$, $$ steadytext_generate_choice('x', array['a', 'b']) $$),
    ($$ (select string_agg(piece, '') from steadytext_generate_stream('Say hello', 8, unsafe_mode => false) as piece) $$, $$ steadytext_generate('Say hello', 8) $$),
    ($$ (select string_agg(piece, '') from steadytext_generate_stream('Say hello', 8, true, 42, '[EOS]', null, null, null, null, false) as piece) $$, $$ steadytext_generate('Say hello', 8) $$),
    ($$ (select string_agg(piece, '') from st_generate_stream('Say hello', 8, use_cache => false) as piece) $$, $$ steadytext_generate('Say hello', 8) $$),
    ($$ steadytext_summarize_text('A text.', model => 'builtin', unsafe_mode => false) $$, $$ steadytext_summarize_text('A text.', model => 'builtin') $$),
    ($$ (select count(*) from st_rerank_top_k('q', array['a', 'b', 'c', 'd', 'e', 'f'])) $$, '5'),
    ($$ (select string_agg(document, ' ') from st_rerank_top_k('q', array['a', 'b', 'c'], k => 2)) $$,
        $$ (select string_agg(document, ' ') from steadytext_rerank_top_k('q', array['a', 'b', 'c'], top_k => 2)) $$);
create function pg_temp.value_of(p_expression text) returns text language plpgsql as $$
declare
    v_value text;
begin
    execute 'select ' || p_expression into v_value;
    return v_value;
end
$$;
select is(pg_temp.value_of(given), pg_temp.value_of(same_as), btrim(given)) from call;

-- Literals without a type mean the same as without these forms.
truncate call;
insert into call values
    ($$ steadytext_generate('Say hello', 8, true, 42, '[EOS]', null, null, null, 'error', 'Be brief.') $$, $$ steadytext_generate('Say hello', 8, system_prompt => 'Be brief.') $$),
    ($$ steadytext_generate_json('x', '{"enum": ["a", "b"]}', 16, true, 42, 'builtin', '2') $$, $$ steadytext_generate_json('x', '{"enum": ["a", "b"]}', 16, temperature => 2, model => 'builtin') $$),
    ($$ steadytext_generate_json('x', '{"enum": ["a", "b"]}'::jsonb, 16, true, 42, 'builtin', null) $$, $$ steadytext_generate_json('x', '{"enum": ["a", "b"]}', 16, model => 'builtin') $$),
    ($$ steadytext_generate_regex('x', '[ab]{3}', 16, true, 7, null, '2') $$, $$ steadytext_generate_regex('x', '[ab]{3}', 16, true, 7, temperature => 2) $$),
    ($$ steadytext_generate_choice('x', array['a', 'b'], 'false') $$, $$ steadytext_generate_choice('x', array['a', 'b'], false) $$),
    ($$ steadytext_generate_choice('x', array['a', 'b'], null, seed => 7) $$, $$ steadytext_generate_choice('x', array['a', 'b'], seed => 7) $$),
    ($$ steadytext_generate_choice('x', array['a', 'b'], 'true', '7', 'builtin') $$, $$ steadytext_generate_choice('x', array['a', 'b'], true, 7, 'builtin') $$),
    ($$ (select string_agg(piece, '') from steadytext_generate_stream('Say hello', 8, '7', '[EOS]', null, null, '2', 'error', null, '{"top_k": 3}') as piece) $$,
        $$ (select string_agg(piece, '') from steadytext_generate_stream('Say hello', 8, 7, temperature => 2, options => '{"top_k": 3}') as piece) $$);
select is(pg_temp.value_of(given), pg_temp.value_of(same_as), btrim(given)) from call;
select throws_ok($$ select steadytext_generate_choice('x', array['a', 'b'], '16') $$, '22P02', null, 'a use_cache without a type is a boolean');

-- Enqueued.
create function pg_temp.params_of(p_request_id uuid) returns jsonb language plpgsql as $$
begin
    return (select q.params || jsonb_build_object('priority', q.priority) from steadytext_queue as q where q.request_id = p_request_id);
end
$$;
select is(pg_temp.params_of(steadytext_embed_async('A text', unsafe_mode => false)), '{"priority": 5}', 'embed_async: unsafe_mode by name');
select is(pg_temp.params_of(steadytext_embed_async('A text', true, 42, null, false)), '{"priority": 5}', 'embed_async: unsafe_mode by position');
select is(pg_temp.params_of(st_embed_async('A text', false, 42, null, '7')), '{"use_cache": false, "priority": 7}', 'embed_async: a priority that has no type');

create function pg_temp.failure_of(p_expression text) returns text language plpgsql as $$
begin
    execute 'select ' || p_expression;
    return null;
exception when others then
    return sqlstate || ' ' || sqlerrm;
end
$$;
-- true is refused, whatever else is asked, also where NULL would be the answer to an error.
select is_empty(
    $$
        select c.call
        from unnest(array[
            $x$ steadytext_generate('x', unsafe_mode => true) $x$, $x$ steadytext_generate(null, unsafe_mode => true, on_error => 'null') $x$,
            $x$ st_generate('x', 8, true, 42, '[EOS]', 'openai:gpt-4o-mini', null, null, null, true) $x$,
            $x$ steadytext_embed('x', unsafe_mode => true) $x$, $x$ steadytext_embed('x', true, 42, null, true) $x$,
            $x$ steadytext_embed_cached('x', unsafe_mode => true) $x$, $x$ steadytext_embed_cached('x', 42, null, true) $x$,
            $x$ steadytext_embed_async('x', unsafe_mode => true) $x$, $x$ steadytext_embed_async('x', true, 42, null, true) $x$,
            $x$ steadytext_generate_json('x', '{}', unsafe_mode => true) $x$, $x$ steadytext_generate_json('x', '{}', 8, true, 42, true) $x$,
            $x$ steadytext_generate_regex('x', 'a', unsafe_mode => true) $x$, $x$ steadytext_generate_regex('x', 'a', 8, true, 42, true) $x$,
            $x$ steadytext_generate_choice('x', array['a', 'b'], unsafe_mode => true) $x$,
            $x$ steadytext_generate_choice('x', array['a', 'b'], 8, true, 42, true) $x$,
            $x$ steadytext_generate_stream('x', 8, unsafe_mode => true) $x$, $x$ st_summarize_text('x', unsafe_mode => true) $x$,
            $x$ steadytext_generate_stream('x', 8, true, 42, '[EOS]', null, null, null, null, true) $x$
        ]) as c(call)
        where pg_temp.failure_of(c.call) is distinct from '0A000 unsafe_mode is not supported'
    $$,
    'unsafe_mode => true is refused everywhere');
select throws_ok(
    $$ select steadytext_generate('x', 8, true, 42, '[EOS]', null, 'Qwen/Qwen3-0.6B-GGUF', 'Qwen3-0.6B-Q8_0.gguf', null, false) $$,
    '0A000', 'model_repo and model_filename are not supported', 'a call fetches no models');
select is(
    pg_temp.run_as('st_alice', $$ select steadytext_generate_choice('x', array['a', 'b'], 16, true, 42, false) = any (array['a', 'b']) $$), 'true',
    'a user may call these forms');
select throws_ok($$ select pg_temp.run_as('st_stranger', 'select steadytext_embed(''x'', true, 42, null, false)') $$, '42501', null, 'and nobody else');
create temporary table chosen (body text, choice text generated always as (steadytext_generate_choice(body, array['a', 'b'], 16)) stored);
insert into chosen values ('x');
select is(choice, steadytext_generate_choice('x', array['a', 'b']), 'in a generated column') from chosen;

-- Configuration.
select steadytext_config_set(config_key => 'max_retries', config_value => '7');
select is(steadytext_config_get(config_key => 'max_retries'), '7', 'config: names of later versions');
select st_config_set(key => 'max_retries', value => '8');
select is(array[steadytext_config_get(key => 'max_retries'), st_config_get('max_retries'::varchar), st_config_get('max_retries'::name)], array['8', '8', '8'], 'and of earlier ones');
select throws_ok($$ select pg_temp.run_as('st_alice', 'select steadytext_config_set(config_key => ''max_retries'', config_value => ''9'')') $$, '42501', null, 'config_set is not for users, by any name');

-- The cache.
insert into steadytext_cache (cache_key, prompt, response) values ('34: text', '34: text', 'a text');
insert into steadytext_cache (cache_key, prompt, response, embedding) values ('34: vector', '34: vector', 'Response 1', '[1,2]');
select results_eq(
    $$ select prompt, request_type from steadytext_cache where starts_with(prompt, '34: ') order by id $$,
    $$ values ('34: text', 'generate'), ('34: vector', 'embed') $$, 'cache: rows without a request_type');
select is(steadytext_generate_cached('34: text'), null, 'such a row answers nothing: nobody knows which model it is of');
select throws_ok($$ update steadytext_cache set request_type = null $$, '23502', null, 'no row is without one');

-- Health, and what administrators did.
select steadytext.record_heartbeat('remote:34', 'tcp://elsewhere', 'idle', '2.0.0', '[]', 1, 0, 0, 0, null);
select is(uptime_seconds, 0, 'daemon_health: a worker that begins') from steadytext_daemon_health where daemon_id = 'remote:34';
update steadytext_daemon_health set started_at = started_at - interval '1 hour' where daemon_id = 'remote:34';
select steadytext.record_heartbeat('remote:34', 'tcp://elsewhere', 'idle', '2.0.0', '[]', 1, 0, 0, 0, null);
select cmp_ok(uptime_seconds, '>=', 3600, 'daemon_status: one that has been there for an hour') from steadytext_daemon_status() where daemon_id = 'remote:34';
insert into steadytext_daemon_health (daemon_id, status, endpoint, last_heartbeat, uptime_seconds) values ('remote:35', 'healthy', 'tcp://localhost:5555', now(), 3600);
select is(uptime_seconds, 3600, 'daemon_health: a row of somebody else''s') from steadytext_daemon_health where daemon_id = 'remote:35';
select steadytext_cache_clear();
select is((event_type, created_at, event_id is null), (action, "timestamp", false), 'audit_log: names of later versions') from steadytext_audit_log where action = 'cache_clear';
select matches(steadytext_version(), '^[0-9]+[.][0-9]+[.][0-9]+$', 'version: of three numbers');

select * from finish();
rollback;
