-- Names of models that are nearly right, `auto` in the place of a name, and calls of administrators.
\ir setup.psql
select plan(57);

set local pg_steadytext.generation_model = 'builtin';
set local pg_steadytext.embedding_model = 'builtin';
set local pg_steadytext.reranker_model = 'builtin';

create function pg_temp.said(p_statement text, p_role text default null)
returns text language plpgsql as $$
declare
    v_hint text;
begin
    if p_role is not null then
        execute format('set local role %I', p_role);
    end if;
    begin
        execute p_statement;
        reset role;
        return 'no error';
    exception when others then
        get stacked diagnostics v_hint = pg_exception_hint;
        reset role;
        return concat_ws(' / ', sqlstate, sqlerrm, v_hint);
    end;
end
$$;

-- Names that differ by case only.
insert into steadytext_models (name, task, file) values ('MyModel', 'generate', 'my-model.gguf'), ('mymodem', 'generate', 'my-modem.gguf');
select matches(pg_temp.said(statement), 'is not registered / Did you mean ' || meant, statement)
from (values
    ($$ select steadytext_generate_async('x', model => 'Small') $$, '"small", which is not downloaded'),
    ($$ select steadytext_generate_async('x', size => 'SMALL') $$, '"small", which is not downloaded'),
    ($$ select steadytext_generate('x', model => 'BUILTIN') $$, '"builtin"\?'),
    ($$ select steadytext_embed('x', model => 'Builtin') $$, '"builtin"\?'),
    ($$ select steadytext_embed_async('x', model => 'buildin') $$, '"builtin"\?'),
    ($$ select steadytext_generate_async('x', model => 'mymodel') $$, '"MyModel", which is not downloaded, or "mymodem"'),
    ($$ select steadytext_embed_async('x', model => 'EMBEDDING') $$, '"embedding", which is not downloaded'),
    ($$ select steadytext_generate('x', model => 'Embedding') $$, '"embedding", which is for task embed'),
    ($$ select steadytext_count_tokens('x', 'All-MiniLM-L6-v2') $$, '"all-minilm-l6-v2", which is for task embed'),
    ($$ select * from steadytext_model_inspect('Embedding') $$, '"embedding", which is not downloaded'),
    ($$ select steadytext_model_pull('qwen3-1.7bb') $$, '"qwen3-1.7b", which is not downloaded'),
    ($$ select steadytext_model_pull('Small') $$, '"small", which is not downloaded')) as c(statement, meant);
select doesnt_match(pg_temp.said($$ select steadytext_generate('x', model => 'embedding') $$), 'Did you mean "embedding"', 'a name is not meant by itself');
select matches(pg_temp.said($$ select steadytext_model_pull('nothing-like-it') $$), 'Name a row of steadytext_models', 'where no name is near');
select steadytext_config_set('embedding_model', 'Embedding');
reset pg_steadytext.embedding_model;
select matches(pg_temp.said($$ select steadytext_embed('x') $$),
    '^42704 / model "Embedding" is not registered; embedding_model of steadytext_config names this model / Did you mean "embedding"', 'a default in the wrong case');
select steadytext_config_set('embedding_model', null);
set local pg_steadytext.embedding_model = 'builtin';

-- A model that is there needs no download; one that is not there is not removed.
select is(steadytext_model_pull('builtin'), 'builtin', 'the builtin model is there');
select is(steadytext_model_remove('small '), false, 'a name that is near is none');
select is(steadytext_model_remove('builtin'), false, 'the builtin model is not removed');

-- Errors about NULL say so.
select throws_ok(statement, '22004', 'the name of a model must not be null', statement)
from unnest(array[
    'select steadytext_model_pull(null)', 'select steadytext_model_pull_cancel(null)', 'select steadytext_model_remove(null)',
    'select * from steadytext_model_inspect(null)', 'select st_model_pull(null)', 'select st_model_remove(null, true)']) as statement;
select matches(pg_temp.said('select steadytext_model_pull(null)'), 'steadytext_model_list\(\) shows', 'with a HINT');

-- A look at a registered model.
select results_eq(
    $$ select repository, sha256, loads, hint is not null from steadytext_model_inspect('small') $$,
    $$ select m.repo, m.sha256, false, true from steadytext_models as m where m.name = 'small' $$, 'what the row says');

-- `auto` is no name: the row is that of a request without one.
create function pg_temp.params(p_call text) returns jsonb language plpgsql as $$
declare
    v_params jsonb;
begin
    execute 'select ' || p_call;
    select q.params into v_params from steadytext_queue as q order by q.id desc limit 1;
    return v_params;
end
$$;
select is(pg_temp.params(format(call, 'auto')), pg_temp.params(replace(format(call, '-'), '''-''', 'null')), call)
from unnest(array[
    'steadytext_generate_async(''x'', model => %L)', 'steadytext_generate_async(''x'', size => %L)', 'steadytext_embed_async(''x'', model => %L)',
    'steadytext_generate_batch_async(''{x}'', model => %L)', 'steadytext_embed_batch_async(''{x}'', model => %L)',
    'steadytext_rerank_async(''x'', ''{a,b}'', model => %L)', 'steadytext_generate_choice_async(''x'', ''{a,b}'', model => %L)',
    'steadytext_if_async(''x?'', model => %L)', 'steadytext_summarize_text_async(''x'', model => %L)',
    'steadytext_chat_async(''[{"role": "user", "content": "x"}]'', model => %L)']) as call;
insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{"model": "auto", "size": "auto", "max_tokens": 3}');
select is((select params from steadytext_queue order by id desc limit 1), '{"max_tokens": 3, "default_model": "builtin"}'::jsonb,
    'an INSERT, and what the session has set is remembered');
insert into steadytext_queue (request_type, prompt, params) values ('generate', 'x', '{"model": "auto", "size": "MyModel"}');
select is((select params from steadytext_queue order by id desc limit 1), '{"size": "MyModel"}'::jsonb, 'the other name holds');
select is(steadytext_embed('x', model => 'auto')::text, steadytext_embed('x', model => null)::text, 'a call');

-- Tasks and lengths of vectors are looked at when a request is enqueued.
select matches(pg_temp.said($$ select steadytext_embed_async('x', model => 'builtin', dimensions => 7) $$),
    '^22023 / model "builtin" makes no vectors of 7 dimensions / Leave dimensions out: whole vectors have 256 dimensions', 'a length that there is not');
select lives_ok($$ select steadytext_embed_async('x', model => 'builtin', dimensions => 256) $$, 'a whole vector is not shortened');
select matches(pg_temp.said($$ select steadytext_embed_batch_async('{x}', dimensions => 7) $$),
    'model "builtin" makes no vectors of 7 dimensions; pg_steadytext.embedding_model names this model', 'in a batch, by the default model');
select lives_ok($$ select steadytext_embed_async('x', model => 'embedding', dimensions => 7) $$, 'that of a model that is not here is seen when it runs');
select matches(pg_temp.said($$ select steadytext_embed_async('x', mode => 'passage', task => 'find') $$),
    '^22023 / a task is for texts of mode query, and the mode is passage / .*retrieval\.query', 'a passage with a task');

-- Rights: each function that users may not call, and each table that they may not read, has a HINT with the role that may.
create function pg_temp.hints(p_admin boolean) returns table (name text, hint text) language plpgsql as $$
declare
    v_object record;
begin
    for v_object in
        select p.proname::text as name, format('select %s(%s)', p.oid::regproc,
                (select string_agg('null::' || t::regtype, ', ') from unnest(p.proargtypes) as t)) as statement
        from pg_proc as p
        join pg_depend as d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
        join pg_extension as e on e.oid = d.refobjid and e.extname = 'pg_steadytext'
        where p.proname ~ '^(steadytext|st)_' and p.prokind = 'f' and p.prorettype <> 'trigger'::regtype
            -- PostgreSQL does not call a strict one without its arguments.
            and not p.proisstrict
            and p_admin = (has_function_privilege('steadytext_admin', p.oid, 'execute')
                and not has_function_privilege('steadytext_user', p.oid, 'execute'))
            and (p_admin or has_function_privilege('steadytext_user', p.oid, 'execute'))
        union all
        select c.relname::text, format('select from %s', c.oid::regclass)
        from pg_class as c
        join pg_depend as d on d.classid = 'pg_class'::regclass and d.objid = c.oid and d.deptype = 'e'
        join pg_extension as e on e.oid = d.refobjid and e.extname = 'pg_steadytext'
        where c.relname ~ '^steadytext_' and c.relkind in ('r', 'v', 'm')
            and p_admin = (has_table_privilege('steadytext_admin', c.oid, 'select')
                and not has_table_privilege('steadytext_user', c.oid, 'select'))
            and (p_admin or has_table_privilege('steadytext_user', c.oid, 'select'))
    loop
        name := v_object.name;
        hint := pg_temp.said(v_object.statement, 'st_stranger');
        return next;
    end loop;
end
$$;
select is_empty(
    $$ select h.name, h.hint from pg_temp.hints(true) as h where h.hint !~ '^42501 / permission denied .* GRANT steadytext_admin TO' $$,
    'what administrators may do names steadytext_admin');
select cmp_ok((select count(*) from pg_temp.hints(true)), '>', 40::bigint, 'there is much of it');
select is_empty(
    $$ select h.name, h.hint from pg_temp.hints(false) as h where h.hint !~ '^42501 / permission denied ' or h.hint !~ 'GRANT (steadytext_user|one of them) TO' $$,
    'what users may do names steadytext_user');
select matches(pg_temp.said(statement, 'st_alice'), '^42501 / permission denied .* / .*steadytext_admin', 'a user: ' || statement)
from unnest(array[
    $$ select steadytext_config_set('max_tokens_limit', '5') $$, $$ select steadytext_model_pull('small') $$, $$ select steadytext_model_remove('small') $$,
    $$ select steadytext_set_limit('st_alice', requests_per_minute => 5) $$, $$ select * from steadytext_model_inspect('builtin') $$,
    $$ insert into steadytext_models (name, task, file) values ('x', 'generate', 'x.gguf') $$, $$ delete from steadytext_models $$,
    $$ update steadytext_config set value = '5' where key = 'max_tokens_limit' $$, $$ select * from steadytext_audit_log $$,
    $$ delete from steadytext_rate_limits $$]) as statement;

select * from finish();
rollback;
