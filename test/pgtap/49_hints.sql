-- Errors that users meet: each says what is wrong with which value, and in a HINT what to do.
\ir setup.psql

-- So that nothing is said about the builtin model, which is the only one.
set local pg_steadytext.generation_model = 'builtin';
set local pg_steadytext.embedding_model = 'builtin';
set local pg_steadytext.reranker_model = 'builtin';

create function pg_temp.said(p_statement text, p_role text default 'st_alice')
returns table (code text, message text, hint text) language plpgsql as $$
begin
    execute format('set local role %I', p_role);
    begin
        execute p_statement;
        code := '00000';
        message := 'no error';
    exception when others then
        get stacked diagnostics code = returned_sqlstate, message = message_text, hint = pg_exception_hint;
    end;
    reset role;
    return next;
end
$$;

insert into steadytext_models (name, task, file, placement) values ('far', 'generate', 'far.gguf', 'elsewhere'), ('far-vectors', 'embed', 'far.gguf', 'elsewhere'),
    ('not-here', 'generate', 'not-here.gguf', 'any');
create table docs (id integer primary key, body text, vec vector, short vector);
insert into docs (id, short) values (0, '[1,2,3]');
alter table docs owner to st_alice;
create table nokey (body text);
alter table nokey owner to st_alice;
create table others (id integer primary key, body text);
grant create on schema public to st_alice;
select pg_temp.run_as('st_root', $$ select steadytext_set_limit('st_bob', requests_per_minute => 2) $$);

create table read (id integer primary key, body text);
alter table read owner to st_alice;
select pg_temp.run_as('st_alice', $$ select steadytext_create_vectorizer('read', '{body}', name => 'seen') $$);
create materialized view seen_vectors as select id from read_body_embedding;
grant select on read to st_bob;

create temporary table statements (n integer generated always as identity, statement text, role text not null default 'st_alice');
insert into statements (statement) values
    -- Texts and arrays.
    ($$ select steadytext_generate_async('') $$),
    ($$ select steadytext_embed_async(' ') $$),
    ($$ select steadytext_generate('') $$),
    ($$ select steadytext_generate_async(repeat('x', 2000000)) $$),
    ($$ select steadytext_generate_batch_async('{}') $$),
    ($$ select steadytext_embed_batch_async(null) $$),
    ($$ select steadytext_generate_batch_async(array_fill('x'::text, array[2000])) $$),
    ($$ select steadytext_generate_batch(array_fill('x'::text, array[2000])) $$),
    ($$ select steadytext_prompt_create('steadytext/if', '{{ prompt }}') $$),
    ($$ select steadytext_generate_json_async('x', jsonb_build_object('unevaluatedProperties', false, '$ref', '#/$defs/a0', '$defs', (
        select jsonb_object_agg('a' || i, case when i = 45 then '{"type": "object"}'::jsonb else jsonb_build_object('anyOf', jsonb_build_array(r, r)) end)
        from (select i, jsonb_build_object('$ref', '#/$defs/a' || (i + 1)) as r from generate_series(0, 45) as i) as s))) $$),
    ($$ select steadytext_generate_json_async('x', jsonb_build_object('anyOf', (select jsonb_agg(jsonb_build_object('pattern', 'a\p{L}{40}b' || i)) from generate_series(1, 4000) as i))) $$),
    ($$ select steadytext_summarize_final(jsonb_build_object('values', jsonb_build_array(jsonb_build_array('v', repeat('y', 9000))))) $$),
    ($$ insert into steadytext_queue (request_type, prompts) values ('batch_embed', '{}') $$),
    ($$ insert into steadytext_queue (request_type, prompts) values ('batch_embed', array['a', null]) $$),
    ($$ insert into steadytext_queue (request_type, prompt) values ('nonsense', 'x') $$),
    ($$ insert into steadytext_queue (request_type, prompts) values ('generate', '{x}') $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '5') $$),
    ($$ insert into steadytext_queue (request_type, prompt, user_id) values ('generate', 'x', repeat('x', 2000)) $$),
    ($$ insert into steadytext_queue (request_type, prompt, max_retries) values ('generate', 'x', 1000) $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{"fields": []}') $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{"nonsense": 1}') $$),
    -- Parameters.
    ($$ select steadytext_generate_async('x', max_tokens => 0) $$),
    ($$ select steadytext_generate_async('x', max_tokens => 1000000) $$),
    ($$ select steadytext_generate_async('x', temperature => -1) $$),
    ($$ select steadytext_generate_async('x', priority => 11) $$),
    ($$ select steadytext_generate_async('x', eos_string => '') $$),
    ($$ select steadytext_generate_async('x', model => 'no-such-model') $$),
    ($$ select steadytext_generate_async('x', size => 'huge') $$),
    ($$ select steadytext_generate_async('x', model => 'embedding') $$),
    ($$ select steadytext_generate_async('x', options => '{"nonsense": 1}') $$),
    ($$ select steadytext_generate_async('x', options => '[]') $$),
    ($$ select steadytext_generate_async('x', options => '{"top_p": 7}') $$),
    ($$ select steadytext_generate_async('x', options => '{"logit_bias": 7}') $$),
    ($$ select steadytext_generate('x', on_error => 'ignore') $$),
    ($$ select steadytext_generate('x', model => 'no-such-model') $$),
    ($$ select steadytext_generate('x', model => 'far') $$),
    ($$ select steadytext_embed('x', model => 'far-vectors') $$),
    ($$ select steadytext_embed('x', mode => 'both') $$),
    ($$ select steadytext_embed('x', dimensions => 0) $$),
    ($$ select steadytext_embed('x', dimensions => 7) $$),
    ($$ select steadytext_embed_async('x', mode => 'passage', task => 'find') $$),
    -- Constraints.
    ($$ select steadytext_generate_json_async('x', null::jsonb) $$),
    ($$ select steadytext_generate_json_async('x', '{"type": "nonsense"}'::jsonb) $$),
    ($$ select steadytext_generate_json('x', '5'::jsonb) $$),
    ($$ select steadytext_generate_json('x', '{"name": "string"}') $$),
    ($$ select steadytext_generate_json_async('x', '{"name": "string"}') $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('generate_json', 'x', '{"schema": {"name": "string"}}') $$),
    ($$ select steadytext_extract('x', '{"fields": ["name"]}') $$),
    ($$ select steadytext_extract_async('x', '{"fields": ["name"]}') $$),
    ($$ select steadytext_generate_regex_async('x', '') $$),
    ($$ select steadytext_generate_regex_async('x', null) $$),
    ($$ select steadytext_generate_regex_async('x', '(') $$),
    ($$ select steadytext_generate_choice_async('x', array['one']) $$),
    ($$ select steadytext_generate_choice_async('x', null) $$),
    ($$ select steadytext_generate_choice_async('x', array['one', null]) $$),
    ($$ select steadytext_generate_choice_async('x', array['one', '']) $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{"schema": {}}') $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('generate_regex', 'x', '{"pattern": 5}') $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('generate_choice', 'x', '{"choices": 5}') $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('generate_choice', 'x', '{"choices": ["a", "b"], "eos_string": "x"}') $$),
    -- Judgements.
    ($$ select steadytext_if('') $$),
    ($$ select steadytext_classify('x', '{}') $$),
    ($$ select steadytext_classify('x', null) $$),
    ($$ select steadytext_classify('x', '{one}') $$),
    ($$ select steadytext_classify('x', array['one', null]) $$),
    ($$ select steadytext_classify('x', array['one', ' ']) $$),
    ($$ select steadytext_classify('x', '{one,one}') $$),
    ($$ select steadytext_classify('x', array['one', repeat('x', 2000)]) $$),
    ($$ select steadytext_classify('x', array(select n::text from generate_series(1, 1001) as n)) $$),
    ($$ select steadytext_classify('x', array(select repeat(n::text, 300) from generate_series(100, 400) as n)) $$),
    ($$ select steadytext_classify('x', '{a,b}', descriptions => '{c}') $$),
    ($$ select steadytext_classify('x', '{a,b}', examples => '{}') $$),
    ($$ select steadytext_classify('x', '{a,b}', examples => '[{"input": "x"}]') $$),
    ($$ select steadytext_classify('x', '{a,b}', examples => '[{"input": "x", "category": "a", "why": 1}]') $$),
    ($$ select steadytext_classify('x', '{a,b}', examples => '[{"input": "x", "category": "c"}]') $$),
    ($$ select steadytext_classify('x', '{a,b}', examples => (select jsonb_agg('{"input": "x", "category": "a"}'::jsonb) from generate_series(1, 101))) $$),
    ($$ select steadytext_classify('x', '{a,b}', method => 'guess') $$),
    ($$ select steadytext_classify('x', '{a,b}', task_description => ' ') $$),
    ($$ select steadytext_classify_multi('x', '{a,b}', threshold => 2) $$),
    ($$ select steadytext_similarity('', 'x') $$),
    ($$ insert into steadytext_queue (request_type, prompts) values ('similarity', '{one}') $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('classify', 'x', '{"categories": 5}') $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('classify', 'x', '{"categories": ["a", "b"], "descriptions": 5}') $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('classify', 'x', '{"categories": ["a", "b"], "descriptions": [1, 2]}') $$),
    -- Documents and facts.
    ($$ select steadytext_extract('x', '{}'::text[]) $$),
    ($$ select steadytext_extract('x', array['a: strange - type']) $$),
    ($$ select steadytext_extract('x', array[': x']) $$),
    ($$ select steadytext_extract('x', array['a', 'a']) $$),
    ($$ select steadytext_extract('x', array['a', null]) $$),
    ($$ select steadytext_extract('x', array[repeat('x', 2000)]) $$),
    ($$ select steadytext_extract('x', array(select 'f' || n from generate_series(1, 101) as n)) $$),
    ($$ select steadytext_extract('x', '{"type": "nonsense"}'::jsonb) $$),
    ($$ insert into steadytext_queue (request_type, prompt) values ('extract', 'x') $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('extract', 'x', '{"fields": 5}') $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('extract', 'x', '{"fields": ["a"], "schema": {}}') $$),
    ($$ select steadytext_translate('x', '') $$),
    ($$ select steadytext_mask('x', '{}') $$),
    ($$ select steadytext_mask('x', array[null]::text[]) $$),
    ($$ select steadytext_mask('x', array['']) $$),
    ($$ select steadytext_mask('x', array['a', 'A']) $$),
    ($$ select steadytext_mask('x', array[repeat('x', 200)]) $$),
    ($$ select steadytext_mask('x', array(select 'l' || n from generate_series(1, 51) as n)) $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('mask', 'x', '{"labels": 5}') $$),
    ($$ select steadytext_extract_facts('x', 0) $$),
    ($$ select steadytext_deduplicate_facts('{}') $$),
    ($$ select steadytext_deduplicate_facts('["a"]', 7) $$),
    ($$ select steadytext_deduplicate_facts((select jsonb_agg(n) from generate_series(1, 501) as n)) $$),
    ($$ select steadytext_summarize_text('') $$),
    ($$ select steadytext_summarize_text('x', '[]') $$),
    ($$ select steadytext_summarize_text('x', max_words => 0) $$),
    ($$ select steadytext_agg(x, ' ') from (values ('a')) as v(x) $$),
    ($$ select steadytext_agg(x, x) from (values ('a'), ('b')) as v(x) $$),
    ($$ select steadytext_summarize_final('5') $$),
    -- Rankings, conversations, tokens.
    ($$ select steadytext_rerank('', '{a}') $$),
    ($$ select steadytext_rerank('x', '{}') $$),
    ($$ select steadytext_rerank('x', array['a', null]) $$),
    ($$ select steadytext_rerank('x', '{a}', document_ids => '{1,2}') $$),
    ($$ select steadytext_rerank_top_k('x', '{a}', 0) $$),
    ($$ insert into steadytext_queue (request_type, prompt, prompts, params) values ('rerank', 'x', '{a}', '{"document_ids": 5}') $$),
    ($$ select steadytext_chat_async(null) $$),
    ($$ select steadytext_chat('{}') $$),
    ($$ select steadytext_chat('[]') $$),
    ($$ select steadytext_chat('[{"role": "robot", "content": "x"}]') $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{"system_prompt": 5}') $$),
    ($$ insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{"messages": 5}') $$),
    ($$ select steadytext_chunk_text('x', 0) $$),
    ($$ select steadytext_chunk_text('x', 10, -1) $$),
    ($$ select steadytext_chunk_text('x', strategy => 'axe') $$),
    ($$ select steadytext_count_tokens('x', 'no-such-model') $$),
    -- Waiting and batches.
    ($$ select steadytext_check_async('00000000-0000-0000-0000-000000000000') $$),
    ($$ select steadytext_get_async_result('00000000-0000-0000-0000-000000000000') $$),
    ($$ select steadytext_get_async_result(steadytext_generate_async('x')) $$),
    ($$ select steadytext_get_async_result('00000000-0000-0000-0000-000000000000', -1) $$),
    ($$ select steadytext_wait(array['00000000-0000-0000-0000-000000000000']::uuid[], 'some') $$),
    ($$ select steadytext_wait('00000000-0000-0000-0000-000000000000'::uuid) $$),
    ($$ select steadytext_enqueue_query('select 1 as x') $$),
    ($$ select steadytext_enqueue_query('select 1 as prompt, 2 as prompt') $$),
    ($$ select steadytext_enqueue_query('select ''x'' as prompt', name => repeat('x', 2000)) $$),
    ($$ select steadytext_enqueue_query('select ''x'' as prompt', params => '5') $$),
    ($$ select steadytext_enqueue_query('select ''x'' as prompt', 'nonsense') $$),
    ($$ select steadytext_enqueue_query('select ''x'' as prompt, 5 as params') $$),
    ($$ select steadytext_enqueue_query('select 5 as prompts', 'batch_embed') $$),
    -- Prompts.
    ($$ select steadytext_prompt_create('x y', 'text') $$),
    ($$ select steadytext_prompt_create('empty', '') $$),
    ($$ select steadytext_prompt_create('broken', '{{ text') $$),
    ($$ select steadytext_prompt_create('data', 'text', metadata => '5') $$),
    ($$ select steadytext_prompt_render('no-such-prompt', '{}') $$),
    ($$ select steadytext_prompt_render('steadytext/if', '[]') $$),
    ($$ select steadytext_prompt_render('steadytext/if', '{}') $$),
    ($$ select steadytext_prompt_update('no-such-prompt', 'text') $$),
    -- Vectorizers, enrichments, search.
    ($$ select steadytext_create_vectorizer(null, '{body}') $$),
    ($$ select steadytext_create_vectorizer('docs', null) $$),
    ($$ select steadytext_create_vectorizer('docs', '{}') $$),
    ($$ select steadytext_create_vectorizer('docs', '{nothing}') $$),
    ($$ select steadytext_create_vectorizer('nokey', '{body}') $$),
    ($$ select steadytext_create_vectorizer('others', '{body}') $$),
    ($$ select steadytext_create_vectorizer('docs', '{body}', model => 'no-such-model') $$),
    ($$ select steadytext_create_vectorizer('docs', '{body}', model => 'far-vectors') $$),
    ($$ select steadytext_create_vectorizer('docs', '{body}', index => 'tree') $$),
    ($$ select steadytext_create_vectorizer('docs', '{body}', distance => 'far') $$),
    ($$ select steadytext_create_vectorizer('docs', '{body}', strategy => 'axe', chunk_size => 10) $$),
    ($$ select steadytext_create_vectorizer('docs', '{body}', target_column => 'vec', chunk_size => 10) $$),
    ($$ select steadytext_create_vectorizer('docs', '{body}', target_column => 'short') $$),
    ($$ select steadytext_create_vectorizer('docs', '{body}', format => '$nothing') $$),
    ($$ select steadytext_create_vectorizer('docs', '{body}', priority => 11) $$),
    ($$ select steadytext_create_vectorizer('docs', '{body}', chunk_size => 100000) $$),
    ($$ select steadytext_create_vectorizer('docs', '{body}', chunk_size => 3000) $$),
    ($$ select steadytext_create_enrichment('docs', 'kind', '$body', model => 'not-here') $$),
    ($$ select steadytext_drop_vectorizer('no-such') $$),
    ($$ select steadytext_alter_vectorizer('no-such') $$),
    ($$ select steadytext_alter_vectorizer('seen', format => 'X: $chunk') $$),
    ($$ select steadytext_pause_vectorizer('no-such') $$),
    ($$ select steadytext_search('no-such', 'x') $$),
    ($$ select steadytext_search('seen', 'x', filter => 'id = 1;') $$),
    ($$ select steadytext_search('seen', 'x', filter => 'where id = 1') $$),
    ($$ select steadytext_create_text_index('seen', 'englisch') $$),
    ($$ select steadytext_create_text_index('seen', 'a b') $$),
    ($$ select steadytext_create_text_index('seen', '') $$),
    ($$ select steadytext_create_enrichment('docs', 'topic', '$nothing', 'generate') $$),
    ($$ select steadytext_create_enrichment(null, 'x', 'y') $$),
    ($$ select steadytext_create_enrichment('docs', null, 'y') $$),
    ($$ select steadytext_create_enrichment('docs', 'x', null) $$),
    ($$ select steadytext_create_enrichment('docs', 'x', '$nothing') $$),
    ($$ select steadytext_create_enrichment('docs', 'x', 'a $ alone') $$),
    ($$ select steadytext_create_enrichment('docs', 'id', '$body') $$),
    ($$ select steadytext_create_enrichment('docs', 'vec', '$body') $$),
    ($$ select steadytext_create_enrichment('others', 'x', '$body') $$),
    ($$ select steadytext_create_enrichment('nokey', 'x', '$body') $$),
    ($$ select steadytext_create_enrichment('docs', 'x', '$body', 'embed') $$),
    ($$ select steadytext_create_enrichment('docs', 'x', '$body', 'classify') $$),
    ($$ select steadytext_create_enrichment('docs', 'x', '$body', params => '{"model": "small"}', model => 'large') $$),
    ($$ select steadytext_drop_enrichment('no-such') $$),
    ($$ select steadytext_alter_enrichment('no-such') $$),
    -- A statement of another user.
    ($$ select steadytext_generate_batch_async('{a,b,c}') $$);
update statements set role = 'st_bob' where n = (select max(n) from statements);
insert into statements (statement, role) values
    ($$ select steadytext_config_set('nonsense', '1') $$, 'st_root'),
    ($$ select steadytext_config_set(null, '1') $$, 'st_root'),
    ($$ select steadytext_config_set('max_batch_size', 'many') $$, 'st_root'),
    ($$ select steadytext_config_set('max_batch_size', '0') $$, 'st_root'),
    ($$ insert into steadytext_models (name, task, file) values ('x y', 'generate', 'x') $$, 'st_root'),
    ($$ insert into steadytext_models (name, task, file) values ('x', 'paint', 'x') $$, 'st_root'),
    ($$ insert into steadytext_models (name, task, file) values ('x', 'generate', '/x') $$, 'st_root'),
    ($$ insert into steadytext_models (name, task, file) values ('x', 'generate', '../x') $$, 'st_root'),
    ($$ insert into steadytext_models (name, task, file, placement) values ('x', 'generate', 'x', 'moon') $$, 'st_root'),
    ($$ insert into steadytext_models (name, task, file, licence) values ('x', 'generate', 'x', E'a\nb') $$, 'st_root'),
    ($$ select steadytext_model_inspect('no-such-model') $$, 'st_root'),
    ($$ select steadytext_model_pull('no-such-model') $$, 'st_root'),
    ($$ select steadytext_set_limit('no-such-role', 1) $$, 'st_root'),
    ($$ select steadytext_set_limit('st_bob', -1) $$, 'st_root'),
    ($$ select steadytext_cache_import(null) $$, 'st_root'),
    ($$ select steadytext_cache_import('no-such.db') $$, 'st_root'),
    ($$ select steadytext_model_verify('builtin', 0) $$, 'st_root'),
    -- Roles without any grant, and one with fewer rights.
    ($$ select steadytext_generate('x') $$, 'st_stranger'),
    ($$ select st_generate('x') $$, 'st_stranger'),
    ($$ select * from steadytext_queue $$, 'st_stranger'),
    ($$ insert into steadytext_queue (request_type, prompt) values ('generate', 'x') $$, 'st_stranger'),
    ($$ select * from steadytext_vectorizer_status $$, 'st_stranger'),
    ($$ select steadytext_diagnose() $$, 'st_alice'),
    ($$ select steadytext_set_limit('st_alice', 5) $$, 'st_alice'),
    ($$ select * from steadytext_search('seen', 'x') $$, 'st_bob');

select plan((select count(*)::integer from statements));
select ok(s.code <> '00000' and s.hint <> '', format('%s | %s | %s | %s', left(t.statement, 90), s.code, left(s.message, 120), s.hint))
from statements as t
cross join lateral pg_temp.said(t.statement, t.role) as s
order by t.n;

select * from finish();
rollback;
