-- The cache: keys, look-ups at enqueue and in calls, writes, and rights. The server tests cover
-- the worker and several sessions.
\ir setup.psql
select plan(70);

-- An entry as an import would make it, which answers whatever the model.
create function pg_temp.put(p_key text, p_response text, p_type text default 'generate', p_embedding vector default null)
returns void
language sql as $$
    insert into steadytext_cache (cache_key, prompt, response, embedding, request_type, imported)
    values (p_key, 'cached', p_response, p_embedding, p_type, true)
$$;
create function pg_temp.status_of(p_id uuid) returns text language sql as $$
    select status from steadytext_queue where request_id = p_id
$$;

-- Keys.
select is(steadytext_cache_key('generate', 'What is a tuple?'), 'What is a tuple?', 'key: the prompt');
select is(steadytext_cache_key('generate', 'p', '{"eos_string": "END"}'), 'p::EOS::END', 'key: with eos_string');
select is(steadytext_cache_key('generate', 'p', '{"eos_string": "[EOS]"}'), 'p', 'key: the predecessor''s word for no eos_string');
select is(
    steadytext_cache_key('embed', 'Hello'), encode(sha256('embed:Hello'), 'hex'), 'key: of an embedding');
select is(st_cache_key('embed', 'Hello'), steadytext_cache_key('embed', 'Hello'), 'st_cache_key is the same');
select is(
    steadytext_cache_key('generate', 'p', '{"max_tokens": 512, "seed": 7, "top_k": 3, "use_cache": false}'), 'p',
    'key: what cannot change a byte, or says the default, does not matter');
select is((
    select count(distinct steadytext_cache_key('generate', 'p', params)) from unnest(array[
        '{}', '{"max_tokens": 511}', '{"temperature": 1}', '{"temperature": 1, "seed": 7}', '{"temperature": 1, "top_k": 3}',
        '{"temperature": 1, "top_p": 0.5}', '{"temperature": 1, "min_p": 0.5}', '{"eos_string": "x"}', '{"model": "builtin"}'
    ]::jsonb[]) as params
), 9::bigint, 'key: everything else does');
select matches(
    steadytext_cache_key('generate', 'p', '{"max_tokens": 9}'), '^steadytext/1:[0-9a-f]{64}$', 'key: of a request with other parameters');
select isnt(steadytext_cache_key('generate', 'p::EOS::q'), 'p::EOS::q', 'key: a prompt that looks like prompt and eos_string');
select isnt(
    steadytext_cache_key('generate', steadytext_cache_key('embed', 'x')), steadytext_cache_key('embed', 'x'),
    'key: a prompt that looks like the key of an embedding');
select steadytext_config_set('default_max_tokens', '100');
select matches(
    steadytext_cache_key('generate', 'p'), '^steadytext/1:', 'key: another default than SteadyText''s makes another key');
select is(
    steadytext_cache_key('generate', 'p', '{"max_tokens": 512}'), 'p', 'key: and what was the default is still the same request');
select steadytext_config_set('default_max_tokens', null);
select is((
    select count(distinct steadytext_cache_key(v.type, 'p', v.params::jsonb)) from (values
        ('generate_json', '{"schema": {"type": "object"}}'), ('generate_json', '{"schema": {"type": "array"}}'),
        ('generate_json', '{"schema": {"type": "array"}, "max_tokens": 9}'),
        ('generate_regex', '{"pattern": "a+"}'), ('generate_regex', '{"pattern": "b+"}'), ('generate_regex', '{"pattern": "a+", "temperature": 1}'),
        ('generate_choice', '{"choices": ["a", "b"]}'), ('generate_choice', '{"choices": ["b", "a"]}'), ('generate_choice', '{"choices": ["a,b", "c"]}'),
        ('generate', '{}'), ('embed', '{}'), ('embed', '{"model": "builtin"}'), ('embed', '{"mode": "query"}'), ('embed', '{"mode": "query", "task": "t"}'),
        ('rerank', '{"documents": ["a", "b"]}'), ('rerank', '{"documents": ["b", "a"]}'), ('rerank', '{"documents": ["a", "b"], "task": "t"}')
    ) as v(type, params)
), 17::bigint, 'key: of each type, with all that belongs to it');
select throws_ok($$ select steadytext_cache_key('generate', ' ') $$, 'P0001', 'Prompt cannot be empty', 'key: limits of a request');
select throws_ok($$ select steadytext_cache_key(null, 'p') $$, '22023', null, 'key: a type is needed');

-- A hit completes the request in the statement that enqueues.
select pg_temp.put('17: asked', 'answered');
select pg_temp.put(steadytext_cache_key('embed', '17: asked'), null, 'embed', '[1,2,3]');
select steadytext_generate_async('17: asked') as id \gset
select results_eq(
    format($$ select status, result, error, attempt, worker, processing_time_ms, started_at = completed_at, completed_at is not null
              from steadytext_queue where request_id = %L $$, :'id'),
    $$ values ('completed', 'answered', null::text, 0, null::text, 0, true, true) $$, 'enqueue: a hit completes the request');
select is(steadytext_get_async_result(:'id', 0), 'answered', 'enqueue: its answer can be had in the same transaction');
select is(
    steadytext_get_async_embedding(steadytext_embed_async('17: asked'), 0)::text, '[1,2,3]',
    'enqueue: and in the same statement');
insert into steadytext_queue (request_type, prompt) values ('generate', '17: asked'), ('generate', '17: not asked');
select results_eq(
    $$ select status from steadytext_queue order by id desc limit 2 $$, $$ values ('pending'), ('completed') $$,
    'enqueue: plain INSERTs, too');
select results_eq(
    $$ select pg_temp.status_of(id)
       from unnest(steadytext_generate_batch_async(array['17: asked', '17: b', '17: asked'])) with ordinality as b(id, n) order by n $$,
    $$ values ('completed'), ('pending'), ('completed') $$, 'enqueue: and batches');
select is(
    pg_temp.status_of(steadytext_generate_async('17: asked', use_cache => false)), 'pending', 'enqueue: not without use_cache');
select is(
    pg_temp.status_of(steadytext_generate_async('17: asked', max_tokens => 9)), 'pending', 'enqueue: not with another max_tokens');
select is(
    pg_temp.status_of(steadytext_generate_async('17: asked', eos_string => 'x')), 'pending', 'enqueue: not with another eos_string');
select is(
    pg_temp.status_of(steadytext_generate_async('17: asked', model => 'builtin')), 'pending', 'enqueue: not with a model');
select is(
    pg_temp.status_of(steadytext_generate_async('17: asked', temperature => 1)), 'pending', 'enqueue: not with a temperature');
select is(
    pg_temp.status_of(steadytext_generate_async('17: asked', seed => 7)), 'completed', 'enqueue: whatever the seed without one');
select steadytext_config_set('cache_enabled', 'false');
select is(pg_temp.status_of(steadytext_generate_async('17: asked')), 'pending', 'enqueue: not with cache_enabled off');
select is(steadytext_generate_cached('17: asked'), null, 'cached: nor do calls look');
select steadytext_config_set('cache_enabled', null);
select throws_ok($$ select steadytext_generate_async(' ') $$, 'P0001', 'Prompt cannot be empty', 'enqueue: limits come first');
select steadytext_config_set('max_queue_size', '1');
select is(
    pg_temp.status_of(steadytext_generate_async('17: asked')), 'completed', 'enqueue: a full queue has room for what is answered');
select steadytext_config_set('max_queue_size', null);
insert into steadytext_queue (request_type, prompt, created_at) values ('generate', '17: asked', now() - interval '1 day');
select is((select status from steadytext_queue order by id desc limit 1), 'pending', 'enqueue: a restored row stays as it was');

-- Each type of request gets back what it has put there; entries of now, as their keys are not for imports.
create function pg_temp.put_current(p_key text, p_response text, p_type text) returns void language sql as $$
    insert into steadytext_cache (cache_key, prompt, response, request_type, model_hash, kernel_version)
    select p_key, 'cached', p_response, p_type, c.model_hash, c.kernel_version
    from steadytext_cache as c where c.prompt = '17: to know the model'
$$;
select steadytext_generate('17: to know the model', 1);
do $$
begin
    for i in 1..18000 loop
        exit when exists (select from steadytext_cache where prompt = '17: to know the model');
        if i = 18000 then
            raise exception 'the answer was never stored';
        end if;
        perform pg_sleep(0.01);
    end loop;
end
$$;
select pg_temp.put_current(steadytext_cache_key('generate_json', 'j', '{"schema": {"type": "object"}}'), '{"cached": true}', 'generate_json');
select pg_temp.put_current(steadytext_cache_key('generate_regex', 'r', '{"pattern": "[a-z]+"}'), 'cached', 'generate_regex');
select pg_temp.put_current(steadytext_cache_key('generate_choice', 'c', '{"choices": ["yes", "no"]}'), 'no', 'generate_choice');
select is(steadytext_generate_json('j', '{"type": "object"}'), '{"cached": true}', 'generate_json: a hit');
select is(steadytext_get_async_result(steadytext_generate_json_async('j', '{"type": "object"}'), 0), '{"cached": true}', 'enqueue: a hit of generate_json');
select is(steadytext_generate_regex('r', '[a-z]+'), 'cached', 'generate_regex: a hit');
select is(steadytext_get_async_result(steadytext_generate_regex_async('r', '[a-z]+'), 0), 'cached', 'enqueue: a hit of generate_regex');
select is(steadytext_generate_choice('c', array['yes', 'no']), 'no', 'generate_choice: a hit');
select is(steadytext_get_async_result(steadytext_generate_choice_async('c', array['yes', 'no']), 0), 'no', 'enqueue: a hit of generate_choice');
select isnt(pg_temp.status_of(steadytext_generate_choice_async('c', array['yes', 'no', 'maybe'])), 'completed', 'enqueue: not with other choices');

-- Calls.
select is(steadytext_generate('17: asked'), 'answered', 'generate: a hit');
select is(steadytext_embed('17: asked')::text, '[1,2,3]', 'embed: a hit');
select isnt(steadytext_generate('17: asked', use_cache => false), 'answered', 'generate: not without use_cache');
select is(steadytext_generate_cached('17: asked'), 'answered', 'generate_cached: a hit');
select is(st_generate_cached('17: asked', null, 42, '[EOS]', null, null, 0), 'answered', 'st_generate_cached is the same');
select is(steadytext_generate_cached('17: asked', 9), null, 'generate_cached: NULL on a miss');
select is(steadytext_embed_cached('17: asked')::text, '[1,2,3]', 'embed_cached: a hit');
select is(st_embed_cached('17: asked', 42, null, null, null)::text, '[1,2,3]', 'st_embed_cached is the same');
select is(steadytext_embed_cached('17: not asked'), null, 'embed_cached: NULL on a miss');
select throws_ok($$ select steadytext_embed_cached('') $$, 'P0001', 'Text input cannot be empty', 'embed_cached: limits of a request');
select pg_temp.put('17: damaged', null);
select isnt(steadytext_generate('17: damaged'), null, 'generate: an entry without an answer is none');

-- The entry that the worker writes for a call, after the fact and in a transaction of its own.
create function pg_temp.stored(p_key text) returns steadytext_cache language plpgsql as $$
declare
    v_entry steadytext_cache;
begin
    for i in 1..18000 loop
        select * into v_entry from steadytext_cache where cache_key = p_key;
        exit when found;
        perform pg_sleep(0.01);
    end loop;
    return v_entry;
end
$$;
select md5(random()::text) as unique \gset
select '17: computed ' || :'unique' as computed \gset
select steadytext_generate(:'computed', temperature => 0, seed => 7) as answer \gset
select results_eq(
    format($$ select (e).prompt, (e).response, (e).access_count, (e).request_type, (e).model_name, (e).seed, (e).eos_string,
                  (e).response_size, (e).imported, (e).generation_time_ms >= 0
              from pg_temp.stored(%L) as e $$, :'computed'),
    format($$ values (%1$L, %2$L, 1, 'generate', 'builtin', null::bigint, null::text, octet_length(%2$L), false, true) $$, :'computed', :'answer'),
    'store: what a call computed is kept');
select is(pg_temp.status_of(steadytext_generate_async(:'computed')), 'completed', 'store: and answers the next request');
select model_hash as model from steadytext_cache where cache_key = :'computed' \gset
update steadytext_cache set model_hash = repeat('0', 64) where cache_key = :'computed';
select is(pg_temp.status_of(steadytext_generate_async(:'computed')), 'pending', 'store: not once the model is another one');
update steadytext_cache set model_hash = :'model', kernel_version = kernel_version + 1 where cache_key = :'computed';
select is(pg_temp.status_of(steadytext_generate_async(:'computed')), 'pending', 'store: nor once the engine is');
update steadytext_cache set request_type = 'embed', imported = true where cache_key = :'computed';
select is(pg_temp.status_of(steadytext_generate_async(:'computed')), 'pending', 'store: nor is an entry of another type an answer');

-- store_answers: replaces what is not current.
create function pg_temp.store(p_key text, p_response text, p_model text default 'm', p_kernel integer default 1)
returns bigint
language sql as $$
    select steadytext.store_answers(
        array[p_key], array['p'], array[p_response], '{}', '{0}',
        array[jsonb_build_object('request_type', 'generate', 'model_hash', p_model, 'kernel_version', p_kernel)])
$$;
select is(pg_temp.store('17: s', 'one'), 1::bigint, 'store_answers: a new entry');
select is(pg_temp.store('17: s', 'two'), 0::bigint, 'store_answers: the same request again changes nothing');
select is(pg_temp.store('17: s', 'three', 'other'), 1::bigint, 'store_answers: the answer of another model takes its place');
select is(pg_temp.store('17: s', 'four', 'other', 2), 1::bigint, 'store_answers: so does that of another kernel version');
select is(pg_temp.store('17: asked', 'five'), 0::bigint, 'store_answers: what was imported stays');
select is((select response from steadytext_cache where cache_key = '17: s'), 'four', 'store_answers: the last one is there');
select is(
    steadytext.store_answers('{17: t,17: v,17: t}', '{p,p,p}', array['text', null, 'again'], '{1,2,3}', '{0,3,0}',
        array_fill('{"request_type": "generate", "model_hash": "m", "kernel_version": 1}'::jsonb, array[3])),
    2::bigint, 'store_answers: many at once, the same key only once');
select is((select embedding::text from steadytext_cache where cache_key = '17: v'), '[1,2,3]', 'store_answers: vectors');

-- count_accesses.
select is_empty(
    $$ select steadytext.count_accesses(array_agg(id), array_agg(5), array_agg('2100-01-01'::timestamptz))
       from steadytext_cache where cache_key in ('17: s', '17: t') $$, 'count_accesses: nothing is locked');
select is_empty($$ select steadytext.count_accesses('{-1}', '{5}', '{now}') $$, 'count_accesses: an entry that is gone is no concern');
select results_eq(
    $$ select access_count, last_accessed from steadytext_cache where cache_key = '17: s' $$,
    $$ values (6, '2100-01-01'::timestamptz) $$, 'count_accesses: adds up');

-- Rights: an answer for everybody who may ask, the table for administrators.
select is(
    pg_temp.run_as('st_alice', $$ select steadytext_generate('17: asked') $$), 'answered', 'rights: a user gets a cached answer');
select is(
    pg_temp.run_as('st_alice', $$ select steadytext_get_async_result(steadytext_generate_async('17: asked'), 0) $$), 'answered',
    'rights: also through the queue');
select throws_ok(
    $$ select pg_temp.run_as('st_alice', 'select count(*) from steadytext_cache') $$, '42501', null, 'rights: a user reads no prompts');
select throws_ok(
    $$ select pg_temp.run_as('st_alice', 'select count(*) from steadytext_cache_with_frecency') $$, '42501', null,
    'rights: nor through the view');
select lives_ok(
    $$ select pg_temp.run_as('st_root', 'select count(*) from steadytext_cache_with_frecency') $$, 'rights: an administrator does');

select * from finish();
rollback;
