-- The statements of docs/migrating.md about data of the Python extension, with tables of its form.
\ir setup.psql
select plan(9);

create schema old;
create table old.queue (
    id serial primary key, request_id uuid default gen_random_uuid(), request_type text, prompt text, prompts text[], params jsonb,
    priority integer default 5, user_id text, session_id text, status text default 'pending', result text, embedding vector(1024)
);
insert into old.queue (request_type, prompt, params, status, priority) values
    ('generate', 'Say hello', '{"max_tokens": 8, "use_cache": true, "seed": 42}', 'pending', 7),
    ('embed', null, '{"text_input": "A text", "use_cache": true, "seed": 42, "unsafe_mode": false}', 'processing', 5),
    ('embed', 'One of a batch', null, 'pending', 5),
    ('rerank', null, '{"query": "q", "documents": ["a", "b"], "task": "t", "return_scores": true, "seed": 42}', 'pending', 5),
    ('batch_rerank', null, '{"query": "r", "documents": ["a", "b"], "task": "t", "return_scores": true, "seed": 42}', 'pending', 5),
    ('generate', 'Done', '{}', 'completed', 5);
create table old.cache (
    id serial primary key, cache_key text unique not null, prompt text not null, response text, embedding vector(1024),
    access_count integer default 1, last_accessed timestamptz default now(), created_at timestamptz default now(),
    steadytext_cache_hit boolean default false, model_name text not null default 'qwen3-1.7b', model_size text, seed integer default 42,
    eos_string text, generation_params jsonb, response_size integer, generation_time_ms integer
);
insert into old.cache (cache_key, prompt, response, eos_string) values
    ('What is x?', 'What is x?', 'It is y.', null), ('a::EOS::END', 'a', 'b', 'END'), ('900150983cd24fb0d6963f7d28e17f72', 'of json', '{}', null);
create table old.config (
    key text primary key, value jsonb not null, description text, updated_at timestamptz default now(), updated_by text default current_user
);
insert into old.config (key, value) values
    ('daemon_host', '"elsewhere"'), ('cache_enabled', 'false'), ('cache_max_entries', '20000'), ('cache_max_size_mb', '100'),
    ('default_max_tokens', '512'), ('mine', '"gone"'), ('cron_host', '"db"');
create table old.prompts (
    id uuid primary key default gen_random_uuid(), slug text unique not null, description text, created_at timestamptz default now(),
    created_by text default current_user, updated_at timestamptz default now(), updated_by text default current_user
);
create table old.prompt_versions (
    id uuid primary key default gen_random_uuid(), prompt_id uuid not null references old.prompts, version integer not null,
    template text not null, required_variables text[], metadata jsonb default '{}', created_at timestamptz default now(),
    created_by text default current_user, is_active boolean default false
);
insert into old.prompts (slug, description) values ('greeting', 'A greeting'), ('farewell', null);
insert into old.prompt_versions (prompt_id, version, template, metadata)
select p.id, v, format('Hello {{ name }}, %s', v), '{"by": "me"}'::jsonb from old.prompts as p, generate_series(1, 3) as v where p.slug = 'greeting'
union all
select p.id, 2, 'Goodbye {{ name }}', null from old.prompts as p where p.slug = 'farewell';

-- The page's blocks after those that copy, twice, as it says that they may run again.
-- \140 is a backtick.
\set moving `awk '/^[*][*]Requests/ { on = 1 } on && /^\140+sql$/ { inside = 1; next } /^\140+$/ { inside = 0 } inside' docs/migrating.md`
\o /dev/null
:moving
:moving
\o

select results_eq(
    $$ select q.request_id, q.request_type, q.prompt, q.params, q.priority from steadytext_queue as q order by q.id $$,
    $$ select o.request_id, v.request_type, v.prompt, v.params::jsonb, o.priority
       from old.queue as o
       join (values
           (1, 'generate', 'Say hello', '{"max_tokens": 8, "use_cache": true, "seed": 42}'), (2, 'embed', 'A text', '{"use_cache": true, "seed": 42}'),
           (3, 'embed', 'One of a batch', '{}'),
           (4, 'rerank', null, '{"query": "q", "documents": ["a", "b"], "task": "t", "return_scores": true, "seed": 42}'),
           (5, 'rerank', null, '{"query": "r", "documents": ["a", "b"], "task": "t", "return_scores": true, "seed": 42}')
       ) as v(id, request_type, prompt, params) on v.id = o.id
       order by o.id $$,
    'requests that were waiting, in their order and with their ids');
select is(steadytext_generate_cached('What is x?'), 'It is y.', 'the cache answers');
select is(steadytext_generate_cached('a', eos_string => 'END'), 'b', 'with an eos_string, too');
select is((select count(*) from steadytext_cache where imported), 2::bigint, 'and has no keys that nobody looks for');
select results_eq(
    $$ select c.key, c.value from steadytext_config as c where not c.is_default order by c.key collate "C" $$,
    $$ values ('cache_max_entries', '20000'::jsonb), ('cache_max_size_mb', '100'), ('cron_host', '"db"') $$, 'settings that were changed');
select results_eq(
    $$ select p.slug, p.description, p.latest_version_num from steadytext_prompt_list() as p order by p.slug collate "C" $$,
    $$ values ('farewell', null, 1), ('greeting', 'A greeting', 3) $$, 'prompts');
select is(steadytext_prompt_render('greeting', '{"name": "you"}', 2), 'Hello you, 2', 'an old version');
select is(steadytext_prompt_render('farewell', '{"name": "you"}'), 'Goodbye you', 'and one whose earlier ones were missing');
select is((select metadata from steadytext_prompt_get('greeting')), '{"by": "me"}', 'and what was noted about them');

select * from finish();
rollback;
