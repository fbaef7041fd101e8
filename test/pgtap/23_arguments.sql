-- No argument makes a function of the protocol, of administrators or of the queue's API fail with an error of
-- PostgreSQL's own: what cannot be done is refused in our words, and with a hint where the words do not say what can.
\ir setup.psql
select plan(23);

-- The other tests have another one, to which every worker is as good as the server's own.
create or replace function steadytext.check_worker(p_worker text, p_lease_seconds integer default 60)
returns void language c as '$libdir/pg_steadytext', 'check_worker_wrapper';

-- Arguments that are as good as any, by the name of their parameter, else by its type.
create temporary table usual (name text, type text, value text);
insert into usual (name, value) values
    ('p_worker', 'w'), ('p_daemon_id', 'w'), ('p_endpoint', 'host'), ('p_key', 'max_retries'), ('key', 'max_retries'), ('value', '3'), ('config_key', 'max_retries'), ('config_value', '3'),
    ('unsafe_mode', 'false'), ('unsafe_mode_by_position', 'false'),
    ('request_type', 'generate'), ('max_tokens', '3'), ('timeout_seconds', '0'), ('mode', 'query'), ('on_error', 'error'),
    ('query', 'select 1 as id, ''x'' as prompt'), ('filter', 'true'), ('eos_string', 'END'), ('model', 'builtin'), ('size', 'builtin'), ('pattern', 'a'), ('choices', '{a,b}'), ('schema', '{"const": 1}'), ('params', '{}'),
    ('key_format', 'base64'), ('path', 'x.db'), ('priority', '5'), ('p_alone', 'false'), ('p_lease_seconds', '60'),
    ('p_about', '{"{\"request_type\": \"generate\"}"}'), ('p_embedding_lengths', '{1}');
insert into usual (type, value) values
    ('text', 'some text'), ('character varying', 'some text'), ('text[]', '{one}'), ('integer', '1'), ('bigint', '1'), ('double precision', '1'), ('boolean', 'true'),
    ('uuid', '00000000-0000-0000-0000-000000000001'), ('uuid[]', '{00000000-0000-0000-0000-000000000001}'), ('oid', '1'),
    ('json', '{}'), ('jsonb', '{}'), ('jsonb[]', '{"{}"}'), ('integer[]', '{1}'), ('bigint[]', '{1}'), ('real[]', '{1}'),
    ('boolean[]', '{true}'), ('timestamp with time zone[]', '{now}'),
    ('bytea', '\x00'), ('bytea[]', '{"\\x00"}'), ('regclass', 'pg_class'), ('name', 'x');
insert into usual (name, value) select 'p_version', extversion from pg_extension where extname = 'pg_steadytext';
create temporary table hostile (type text, value text);
insert into hostile
select distinct t.type, h.value
from (values ('text'), ('character varying'), ('text[]'), ('integer'), ('bigint'), ('double precision'), ('boolean'), ('uuid'), ('uuid[]'), ('oid'), ('json'),
        ('jsonb'), ('jsonb[]'), ('integer[]'), ('bigint[]'), ('real[]'), ('boolean[]'), ('timestamp with time zone[]'),
        ('bytea'), ('bytea[]'), ('regclass'), ('name')) as t(type)
cross join lateral (
    select null
    union all select unnest(array['', ' ', '-1', repeat('9', 20000), repeat('x', 100000)]) where t.type in ('text', 'character varying')
    union all select unnest(array['0', '-1', '-2147483648', '2147483647']) where t.type in ('integer', 'bigint')
    union all select unnest(array['9223372036854775807', '-9223372036854775808']) where t.type = 'bigint'
    union all select unnest(array['0', '-1', 'NaN', 'Infinity', '-Infinity', '1e308', '1e-300']) where t.type = 'double precision'
    union all select unnest(array['[]', '1', '"x"', 'null', '{"a": {}}', '1e400']) where t.type in ('json', 'jsonb')
    union all select unnest(array['{}', '{NULL}', '{NULL,NULL}']) where t.type like '%[]'
    union all select unnest(array['{-1}', '{{1},{2}}', '{1,2,3}', '{2147483647,2147483647}']) where t.type in ('integer[]', 'bigint[]', 'real[]')
    union all select unnest(array['{NaN}', '{Infinity,1}']) where t.type = 'real[]'
    union all select unnest(array['{""}', '{{a},{b}}', '{a,a}']) where t.type = 'text[]'
    union all select unnest(array['{1,"{}"}', '{"{\"request_type\": \"generate\", \"seed\": \"x\"}"}', '{"{\"request_type\": 1, \"seed\": 1.5}"}',
        '{"{\"request_type\": \"generate\", \"response_size\": 1e30}"}']) where t.type = 'jsonb[]'
    union all select '{infinity}' where t.type = 'timestamp with time zone[]'
    union all select unnest(array['', '\xff00ff']) where t.type = 'bytea'
    union all select unnest(array['{"\\x"}', '{"\\xff00ff","\\x00"}']) where t.type = 'bytea[]'
    union all select unnest(array['0', '1', 'pg_toast.pg_toast_1255', 'pg_class_oid_index']) where t.type = 'regclass'
    union all select unnest(array['', repeat('x', 63)]) where t.type = 'name'
) as h(value);

-- The functions to be called: all that somebody was granted, but for functions that compute answers, twins, those that always raise, the one
-- that runs a statement of its caller's, and forms that take another type as text.
create temporary table functions as
    select p.oid, p.proname, p.pronargs, p.proargnames, has_function_privilege('st_alice', p.oid, 'execute') as is_for_users,
        array(select a::regtype::text from unnest(p.proargtypes::oid[]) with ordinality as u(a, n) order by n) as types
    from pg_proc as p
    join pg_depend as d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e' and p.prokind <> 'a'
    join pg_extension as e on e.oid = d.refobjid and e.extname = 'pg_steadytext'
    where exists (select from aclexplode(p.proacl) as a where a.grantee <> p.proowner)
        and p.proname not like 'st\_%' and p.proname not in ('refuse_row', 'predecessor_model', 'check_queue_row', 'claim_lane', 'vectorizer_count')
        and p.proname !~ '^steadytext_((generate|embed|rerank|chat)(_json|_regex|_choice|_stream|_details|_docs_only|_top_k|_batch)?|count_tokens|tokenize|chunk_text)$'
        and not coalesce(p.proargnames::text ~ '\muntyped_', false)
        and p.oid::regprocedure::text !~ '^steadytext[.](generate_json|embed)[(]'
        -- Internal functions of searches, batches and enrichments.
        and p.oid::regprocedure::text !~ ('^steadytext[.](find_search_target|text_index|search_rows|search_statement|hybrid_statement|run_search|'
            || 'check_search|any_words|search|hybrid_search|rag|enqueue_rows|enqueue_query|base_type|key_comparison|'
            || 'make_definition_triggers|definition_trigger_drops)[(]');
select is_empty(
    $$ select distinct u.type from functions, unnest(types) as u(type) where u.type not in (select h.type from hostile as h) $$,
    'there are hostile arguments of every type');

create function pg_temp.outcome(p_call text, p_is_for_users boolean) returns text language plpgsql as $$
declare
    v_code text;
    v_message text;
    v_hint text;
begin
    begin
        execute p_call;
        raise exception using errcode = 'ZZ000';
    exception when others or assert_failure or query_canceled then
        get stacked diagnostics v_code = returned_sqlstate, v_message = message_text, v_hint = pg_exception_hint;
    end;
    return case
        when v_code = 'ZZ000' then null
        -- PostgreSQL reports the errors in a caller's own SQL.
        when v_code in ('42601', '42P11') and p_call ~ 'steadytext_(enqueue_query|search|hybrid_search|rag)[(]|check_filter[(]' then null
        when length(v_message) + length(v_hint) > 1000 then format('%s, %s characters long', v_code, length(v_message) + length(v_hint))
        -- Words of the predecessor, which have no SQLSTATE of their own.
        when v_code = 'P0001' and p_is_for_users then null
        when v_code in ('22023', '42704', '54000', '55000') and (p_is_for_users or v_hint <> '') then null
        when v_code in ('42622', '42P01', '42P16', '42703', '42809') and v_hint <> '' then null
        -- The same, with codes of their own.
        when v_message ~ '^(Invalid slug format|Invalid Jinja2 template|Prompt with slug|Version [0-9-]+ not found|Missing required variables)'
            and v_code in ('22P02', '42601', 'P0002', 'XX000') then null
        -- A worker of another version.
        when v_code = '0A000' and v_hint <> '' and p_call ~ '(prepared|make|refused)_work[(]' then null
        -- A path, key or worker that must not be NULL.
        when v_code = '22004' then null
        -- Texts that are no JSON, and vectors that pgvector refuses, are told in words that are clear enough.
        when v_code = '22P02' and v_message = 'invalid input syntax for type json' then null
        when v_code like '22%' and v_message like '% not allowed in vector' then null
        else format('%s: %s (%s)', v_code, v_message, v_hint)
    end;
end
$$;
create temporary table calls as
    select f.oid::regprocedure::text as name, a.n as position, h.value, f.is_for_users,
        format('select * from %s(%s)', f.oid::regproc, string_agg(
            format('%L::%s', case when b.n = a.n then h.value else coalesce(
                (select u.value from usual as u where u.name = f.proargnames[b.n]),
                (select u.value from usual as u where u.type = f.types[b.n])) end, f.types[b.n]), ', ' order by b.n)) as call
    from functions as f
    cross join generate_series(1, f.pronargs) as a(n)
    join hostile as h on h.type = f.types[a.n]
    cross join generate_series(1, f.pronargs) as b(n)
    group by f.oid, f.is_for_users, a.n, h.value;
select cmp_ok((select count(*) from calls), '>', 1000::bigint, 'they make many calls');
select is_empty(
    $$ select c.name, c.position, left(c.value, 40) as value, c.problem
       from (select *, pg_temp.outcome(call, is_for_users) as problem from calls) as c where c.problem is not null $$,
    'no argument raises an error that is not ours'
);

-- Some of them, word for word.
create function pg_temp.told(p_call text) returns text language plpgsql as $$
declare
    v_hint text;
begin
    execute p_call;
    return 'no error';
exception when others then
    get stacked diagnostics v_hint = pg_exception_hint;
    return format('%s: %s. %s', sqlstate, sqlerrm, v_hint);
end
$$;
select is(pg_temp.told($$ select steadytext.config_integer('cron_host') $$),
    '22023: the value of configuration key "cron_host" is not a number. It is a text: steadytext_config_get() returns it as text.',
    'config_integer: a setting that is no number');
select is(pg_temp.told($$ select steadytext.config_number('cache_enabled') $$),
    '22023: the value of configuration key "cache_enabled" is not a number. It is a boolean: steadytext_config_get() returns it as text.',
    'config_number: a setting that is no number');
select alike(pg_temp.told($$ select steadytext.config_integer('max_retrie') $$), '42704: %max_retries%', 'config_integer: an unknown key');
select is(steadytext.config_integer(null), null, 'config_integer: NULL');
select is(pg_temp.told(c.call), format('22023: %s must not be negative. Give 0 or more.', c.name), c.call)
from (values
    ('select steadytext.promote_requests(-1)', 'p_limit'), ('select steadytext.rescue_requests(null, -1)', 'p_limit'),
    ('select * from steadytext.expire_requests(0, -1)', 'p_batch'), ('select * from steadytext.queue_outlook(-1)', 'p_count_limit'),
    ('select * from steadytext.plan_eviction(-1)', 'p_limit')) as c(call, name);
select alike(pg_temp.told($$ select steadytext_config_set('max_retries', E'\u20033') $$), '22023: invalid value for configuration key "max_retries"%',
    'config_set: a space that JSON does not know');
select steadytext_config_set('cache_min_age_hours', '0.' || repeat('0', 400) || '1');
select is(steadytext.config_number('cache_min_age_hours'), 0::float8, 'config_number: less than a double can hold');
select steadytext_config_set('cache_min_age_hours', null);
select is(pg_temp.told($$ select steadytext_config_set('max_retries', repeat('9', 20000)) $$),
    format('22023: invalid value for configuration key "max_retries": "%s. It must be an integer between 0 and 100.', repeat('9', 62)),
    'config_set: a number of 20,000 digits is cut in the message');
select is(pg_temp.told($$ select steadytext_config_set('worker_poll_interval', repeat('9', 200000)) $$),
    format('22023: invalid value for configuration key "worker_poll_interval": "%s. It must be a number between 0.01 and 3600.', repeat('9', 62)),
    'config_set: a number that is longer than numbers can be');
select is(pg_temp.told($$ select steadytext_config_set('max_retries', '1e400') $$),
    '22023: invalid value for configuration key "max_retries": "1e400". It must be an integer between 0 and 100.', 'config_set: 1e400');
select is(pg_temp.told($$ update steadytext_config set value = '1e400' where key = 'max_retries' $$),
    format('22023: invalid value for configuration key "max_retries": %s. It must be an integer between 0 and 100.', rpad('1', 63, '0')),
    'UPDATE: 1e400 is cut in the message');
select is(pg_temp.told($$ select steadytext_config_set(repeat('k', 100000), '1') $$),
    format('42704: unrecognized configuration key "%s". The table steadytext_config lists the known keys.', repeat('k', 63)),
    'config_set: an unknown key is cut in the message');
select is(
    pg_temp.told($$ select steadytext.store_answers('{k}', '{p}', '{r}', '{}', '{0}', '{"{}"}') $$),
    '22023: an answer for the cache lacks its key, its prompt or its request_type. Each array has one element for each answer; request_type is a member of those of p_about.',
    'store_answers: nothing said about an answer');
select is(steadytext.store_answers('{}', '{}', '{}', '{}', '{}', '{}'), 0::bigint, 'store_answers: no answers');
select alike(
    pg_temp.told($$ select steadytext.store_answers('{k}', '{p}', null, '{1,2}', '{3}', '{"{\"request_type\": \"embed\"}"}') $$),
    '22023: the vectors of answers for the cache do not fit their lengths. %', 'store_answers: a vector with too few numbers');
select is(
    pg_temp.told($$ select steadytext.store_answers('{k}', '{p}', '{r}', '{}', '{0}', '{"{\"request_type\": \"generate\", \"seed\": 1e30}"}') $$),
    '22023: seed of an answer for the cache is no integer, or too large. In p_about it is an integer, null, or left out.',
    'store_answers: a seed that is too large');

select * from finish();
rollback;
