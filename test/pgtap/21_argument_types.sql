-- Every function can be called with literals that have no type, and with arguments of types that are as good as those of its
-- parameters.
\ir setup.psql
select plan(23);

-- PREPARE looks the function up, and calls nothing.
create function pg_temp.resolves(p_call text) returns boolean language plpgsql as $$
begin
    execute 'prepare resolved as select ' || p_call;
    deallocate resolved;
    return true;
exception when others then
    raise warning '%: %', p_call, sqlerrm;
    return false;
end
$$;
create temporary view api as
    select p.oid, p.proname, p.prokind, p.pronargs, p.pronargdefaults, p.proargnames
    from pg_catalog.pg_proc as p
    join pg_catalog.pg_depend as d on d.classid = 'pg_catalog.pg_proc'::pg_catalog.regclass and d.objid = p.oid
    join pg_catalog.pg_extension as e on d.refobjid = e.oid and e.extname = 'pg_steadytext'
    where d.deptype = 'e' and (p.proname like 'steadytext\_%' or p.proname like 'st\_%');
select cmp_ok((select count(*) from api), '>', 100::bigint, 'the functions are found');
select is_empty(
    $$
        select distinct proname, n
        from api, generate_series(pronargs::integer - pronargdefaults, pronargs) as n
        where not pg_temp.resolves(format('%s(%s)', proname, (select string_agg('null', ', ') from generate_series(1, n))))
    $$,
    'every function takes untyped literals by position, with and without its defaults'
);
select is_empty(
    $$
        select distinct proname, n
        from api, generate_series(pronargs::integer - pronargdefaults, pronargs) as n
        -- The arguments of aggregates have no names in calls.
        where prokind <> 'a' and not pg_temp.resolves(format('%s(%s)', proname,
            (select string_agg(format('%I => null', a.name), ', ') from unnest(proargnames[:n]) as a(name))))
    $$,
    'and by name'
);

-- Integers of any size.
create temporary table small_number as select 8::smallint as small, 8::bigint as large, 3::bigint as priority;
select is(steadytext_generate('Say hello', large), steadytext_generate('Say hello', 8), 'bigint for max_tokens') from small_number;
select is(steadytext_generate('Say hello', small), steadytext_generate('Say hello', 8), 'smallint for max_tokens') from small_number;
select is(steadytext_generate('Say hello', count(*) + 8), steadytext_generate('Say hello', 9), 'count(*) for max_tokens') from small_number;
select is(
    steadytext_generate('Say hello', 8, seed => 1099511627776, temperature => 1),
    steadytext_generate('Say hello', 8, seed => 1099511627776, temperature => 1), 'a seed beyond 32 bits');
select isnt(
    steadytext_generate('Say hello', 30, seed => 1099511627776, temperature => 2),
    steadytext_generate('Say hello', 30, seed => 0, temperature => 2), 'all of it matters');
select isnt(steadytext_generate_async('x', large, priority => priority), null, 'bigint when enqueuing') from small_number;
select throws_ok($$ select steadytext_generate('x', 99999999999) $$, 'P0001', 'max_tokens must be between 1 and 4096', 'too many tokens for 32 bits');
select throws_ok($$ select steadytext_generate_async('x', priority => 99999999999) $$, '22023', 'priority must be between 1 and 10', 'a priority beyond 32 bits');
select is((select count(*) from small_number, steadytext_rerank_top_k('q', array['a', 'b'], small_number.priority - 1)), 2::bigint, 'bigint for top_k');

select lives_ok($$ select * from steadytext_cache_evict_by_frecency(99999999999, 1, 99999999999, 99999999999, 1::bigint) $$, 'bigint for an eviction');
select results_eq(
    $$ select evicted_count from steadytext_cache_evict_by_frecency(0, 0, null, null, null) $$, array[0], 'NULL stands for the settings there');
select lives_ok($$ select * from steadytext_cache_preview_eviction(99999999999), steadytext_cache_warmup(5::bigint) $$, 'and for what else looks after the cache');

-- json and text for jsonb.
create temporary table schema as select '{"const": {"b": 1, "a": [1, null]}}' as t;
select is(steadytext_generate_json('x', t::json), steadytext_generate_json('x', t::jsonb), 'json for a schema') from schema;
select is(steadytext_generate_json('x', t), steadytext_generate_json('x', t::jsonb), 'text for a schema') from schema;
select is(st_generate_json('x', t::json), steadytext_generate_json('x', '{"const": {"b": 1, "a": [1, null]}}'), 'and a literal') from schema;
select is(
    (select count(*) from schema, unnest(array[
        steadytext_generate_json_async('x', t::json), st_generate_json_async('x', t), steadytext_generate_json_async('x', t::jsonb)]) as id),
    3::bigint, 'the same when enqueuing');
select throws_ok($$ select steadytext_generate_json('x', 'no json') $$, '22P02', null, 'text that is no JSON');
select is(
    steadytext_cache_key('generate', 'x', '{"max_tokens": 16.0, "seed": null}'::json), steadytext_cache_key('generate', 'x', '{"max_tokens": 16}'),
    'json for params; numbers and nulls have one key however they are written');
select throws_ok(
    $$ select steadytext_cache_key('generate_json', 'x', (repeat('{"schema": ', 5000) || '1' || repeat('}', 5000))::jsonb) $$,
    '22023', 'params is nested too deeply, or has a number out of range', 'params that are nested too deeply');

-- Ids: a parameter whose type nobody says is a uuid, as drivers that pass UUIDs need it.
prepare look as
    select steadytext_check_async($1), steadytext_get_async_result($1), steadytext_get_async_embedding($1), steadytext_cancel_async($1);
prepare look_at_many as select steadytext_check_async_batch($1), steadytext_cancel_async_batch($1);
select results_eq(
    $$ select parameter_types::text from pg_prepared_statements where name like 'look%' order by name $$,
    array['{uuid}', '{uuid[]}'], 'the type of an id is that of its function');

select * from finish();
rollback;
