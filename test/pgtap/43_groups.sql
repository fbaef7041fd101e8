-- Summaries, aggregates over groups, and many texts at once: values, orders, plans, limits, rows and rights.
\ir setup.psql
select plan(155);

create temporary table notes as
select i as n, 'Note ' || i || ' of ' || k || ': ' || (array['VACUUM reclaims storage.', 'An index is slow.', 'The parcel is late.'])[1 + i % 3] as body, k as kind
from generate_series(1, 24) as i, lateral (select chr(97 + i % 4) as k) as k;
create function pg_temp.plan_of(p_statement text, p_options text default '') returns text language plpgsql as $$
declare v_line text; v_plan text := '';
begin
    for v_line in execute 'explain (' || p_options || 'costs off) ' || p_statement loop v_plan := v_plan || v_line || E'\n'; end loop;
    return v_plan;
end $$;
-- The answers that follow are computed, not taken from the cache.
select steadytext_config_set('cache_enabled', 'false');

-- Texts.
select isnt(steadytext_summarize_text('VACUUM reclaims storage occupied by dead tuples.'), '', 'summarize_text: a text');
select is(steadytext_summarize_text('VACUUM reclaims storage.', '{}', 50, false, 7, 'builtin', 'null'), st_summarize_text('VACUUM reclaims storage.'), 'summarize_text: by position, again, the twin');
select is(steadytext_summarize_text(null::text), null, 'summarize_text: NULL');
select is(steadytext_summarize_text(null), null, 'summarize_text: NULL of no type');
select isnt(steadytext_summarize_text('VACUUM reclaims storage.', '{"topic": "databases"}'), steadytext_summarize_text('VACUUM reclaims storage.'), 'summarize_text: the metadata are read');
select is(steadytext_summarize_text('VACUUM reclaims storage.', null), steadytext_summarize_text('VACUUM reclaims storage.'), 'summarize_text: no metadata');
select isnt(steadytext_summarize_text('VACUUM reclaims storage.', max_words => 7), steadytext_summarize_text('VACUUM reclaims storage.'), 'summarize_text: the number of words is asked for');
select ok(steadytext_count_tokens(steadytext_summarize_text('VACUUM reclaims storage.', max_words => 1)) <= 20, 'summarize_text: and bounds the tokens');

-- Longer than the context, whose 1,024 tokens are some 4,000 bytes.
create temporary table long as
select (select string_agg('Sentence ' || i || ' is about table ' || i % 17 || ' and its index.', E'\n' order by i) from generate_series(1, 250) as i) as body;
create function pg_temp.cut(p_text text, p_from int, p_to int) returns text language sql as $$
    select string_agg(line, E'\n' order by n) from regexp_split_to_table(p_text, E'\n') with ordinality as l(line, n) where n between p_from and p_to
$$;
select isnt(steadytext_summarize_text(body), '', 'summarize_text: far longer than the context') from long;
select isnt(steadytext_summarize_text(body), steadytext_summarize_text(pg_temp.cut(body, 1, 240)), 'summarize_text: its end is read') from long;
select isnt(steadytext_summarize_text(body), steadytext_summarize_text(pg_temp.cut(body, 10, 250)), 'summarize_text: its beginning is read') from long;
select is(steadytext_summarize_text(array[body, 'x y', null, body]), array[steadytext_summarize_text(body), steadytext_summarize_text('x y'), null, steadytext_summarize_text(body)],
    'summarize_text: an array of long and short texts') from long;
select isnt(steadytext_summarize_text(repeat('word', 2000)), null, 'summarize_text: one word without end');
select isnt(steadytext_summarize_text(repeat(E'漢字。😀\n\n', 300)), null, 'summarize_text: characters of many bytes');
select isnt(steadytext_summarize_text('x', max_words => 1000), null, 'summarize_text: more words than the context has room for');
select is(st_summarize_text('{}'::text[]), '{}', 'summarize_text: an empty array');
select is(steadytext_summarize_text(array[null, null]::text[]), array[null, null]::text[], 'summarize_text: nothing but NULLs');
select is(steadytext_summarize_text(null::text[]), null, 'summarize_text: no array');
select is(steadytext_summarize_text(array['x', ' '], on_error => 'null'), array[steadytext_summarize_text('x'), null], 'summarize_text: an element without a text');

create temporary table wrong (call text, code text, message text);
insert into wrong values
    ($$''$$, 'P0001', 'Text input cannot be empty'),
    ($$repeat('x', 1048577)$$, '54000', 'the text has 1048577 bytes, 1048576 are allowed'),
    ($$'x', '[]'$$, '22023', 'metadata must be a JSON object'),
    ($$'x', '"a"'$$, '22023', 'metadata must be a JSON object'),
    ($$'x', jsonb_build_object('a', repeat('x', 9000))$$, '54000', 'the metadata have 9003 bytes, 8192 are allowed'),
    ($$'x', (select jsonb_object_agg(i, i) from generate_series(1, 300) as i)$$, '22023', 'the metadata are nested too deeply, have too many elements, or a number out of range'),
    ($$'x', max_words => 0$$, '22023', 'max_words must be an integer between 1 and 1000'),
    ($$'x', max_words => 1001$$, '22023', 'max_words must be an integer between 1 and 1000'),
    ($$'x', model => 'embedding'$$, '42809', 'model "embedding" is registered for task embed, not generate');
select throws_ok(format('select steadytext_summarize_text%s(%s)', form, call), code, message, form || ': ' || left(call, 60)) from wrong, unnest(array['_async', '']) as form;
select throws_ok($$ select steadytext_summarize_text(array['x', '']) $$, 'P0001', 'element 2: Text input cannot be empty', 'summarize_text: which element');
select throws_ok($$ insert into steadytext_queue (request_type, prompt, prompts) values ('summarize', 'x', '{a}') $$, '22023', 'requests of type summarize take no prompts array', 'a row without prompts');
select throws_ok($$ insert into steadytext_queue (request_type, prompt, params) values ('summarize', 'x', '{"max_tokens": 3}') $$, '22023', 'requests of type summarize take no parameter max_tokens', 'a row with a parameter that it does not take');
create function pg_temp.request(p_id uuid) returns steadytext_queue language sql as $$ select * from steadytext_queue where request_id = p_id $$;
select is(row((r).request_type, (r).prompt, (r).params, (r).priority)::text, '(summarize,x,"{""seed"": 3, ""metadata"": {""a"": 1}, ""max_words"": 9, ""use_cache"": false}",8)', 'summarize_text_async: the row')
from pg_temp.request(st_summarize_text_async('x', '{"a": 1}', 9, false, 3, null, 8)) as r;
select is((r).params, '{}', 'summarize_text_async: without what is the default') from pg_temp.request(steadytext_summarize_text_async('x')) as r;

-- Groups: whatever the order, unless it is given.
create temporary table expected as select steadytext_summarize(body) as of_all, steadytext_agg(body, 'What is slow?') as of_task from notes;
select isnt(of_all, '', 'summarize: a group') from expected;
select is((select steadytext_summarize(body) from (select body from notes order by n desc offset 0) as t), of_all, 'summarize: another order of rows') from expected;
select is((select steadytext_summarize(body) from (select body from notes order by md5(body) offset 0) as t), of_all, 'summarize: and another') from expected;
select is((select steadytext_summarize(body order by body collate "C") from notes), of_all, 'summarize: ORDER BY as without') from expected;
select isnt((select steadytext_summarize(body order by n desc) from notes), of_all, 'summarize: ORDER BY counts') from expected;
select isnt((select steadytext_summarize(body order by n desc) from notes), (select steadytext_summarize(body order by n) from notes), 'summarize: either way');
select is((select st_summarize(body order by n) from (select * from notes order by md5(body) offset 0) as t), (select steadytext_summarize(body order by n) from notes), 'st_summarize: ORDER BY, whatever the rows are found in');
select is((select steadytext_summarize(distinct body) from (select * from notes union all select * from notes) as t), of_all, 'summarize: DISTINCT') from expected;
select isnt((select steadytext_summarize(body) from (select * from notes union all select * from notes) as t), of_all, 'summarize: what comes twice counts twice') from expected;
select is((select steadytext_summarize(body) filter (where kind = 'a') from notes), (select steadytext_summarize(body) from notes where kind = 'a'), 'summarize: FILTER');
select is((select steadytext_summarize(body) from (select body from notes union all select null union all select E' \n') as t), of_all, 'summarize: NULLs and blank values are passed over') from expected;
select is((select steadytext_summarize(body) from notes where false), null, 'summarize: no rows');
select is((select steadytext_summarize(null::text) from notes), null, 'summarize: nothing but NULLs');
select is((select steadytext_summarize(' ') from notes), null, 'summarize: nothing but blanks');
select is((select count(*) from (select steadytext_summarize(body) from notes where false group by kind) as t), 0::bigint, 'summarize: no groups');
select results_eq(
    $$ select kind, steadytext_summarize(body) from notes group by rollup (kind) order by kind nulls last $$,
    $$ select * from (select kind, (select steadytext_summarize(o.body) from notes as o where o.kind = k.kind) from (select distinct kind from notes) as k order by 1) as t
       union all select null, of_all from expected $$, 'summarize: ROLLUP');
select results_eq(
    $$ select kind, steadytext_summarize(body) from notes group by grouping sets ((kind), (kind), ()) order by kind nulls last $$,
    $$ select kind, s from (select kind, steadytext_summarize(body) as s from notes group by kind union all select kind, steadytext_summarize(body) from notes group by kind) as t
       union all select null, of_all from expected order by kind nulls last $$, 'summarize: GROUPING SETS');

-- Metadata.
select is((select steadytext_summarize(body, '{}') from notes), of_all, 'summarize: no metadata') from expected;
select is((select steadytext_summarize(body, null) from notes), of_all, 'summarize: metadata that are NULL') from expected;
select isnt((select steadytext_summarize(body, '{"topic": "trouble"}') from notes), of_all, 'summarize: metadata of all rows') from expected;
select isnt((select steadytext_summarize(body, jsonb_build_object('kind', kind)) from notes), of_all, 'summarize: metadata of each row') from expected;
select is((select steadytext_summarize(body, jsonb_build_object('kind', kind)) from (select * from notes order by md5(body) offset 0) as t), (select st_summarize(body, jsonb_build_object('kind', kind)) from notes), 'summarize: in any order');
select is((select steadytext_summarize(body, '{"topic": "a", "size": 3}') from notes), (select steadytext_summarize(body, '{"size": 3, "topic": "a"}') from notes), 'summarize: metadata are equal whatever the order of their keys');
select throws_ok($$ select steadytext_summarize(body, '[1]') from notes $$, '22023', 'metadata must be a JSON object', 'summarize: metadata that are none');
select throws_ok($$ select steadytext_summarize(body, jsonb_build_object('a', repeat('x', 9000))) from notes $$, '54000', 'the metadata have 9003 bytes, 8192 are allowed', 'summarize: too much of them');

-- A task.
select isnt(of_task, of_all, 'agg: the task is read') from expected;
select is((select st_agg(body, 'What is slow?') from (select * from notes order by n desc offset 0) as t), of_task, 'agg: another order, the twin') from expected;
select isnt((select steadytext_agg(body, 'What is late?') from notes), of_task, 'agg: another task') from expected;
select is((select steadytext_agg(body, 'What?') from notes where false), null, 'agg: no rows');
select is((select steadytext_agg(null, 'What?') from notes), null, 'agg: nothing but NULLs');
select throws_ok($$ select steadytext_agg(body, 'What about ' || kind) from notes $$, '22023', 'task_description differs among the rows of a group', 'agg: one task for a group');
select throws_ok($$ select steadytext_agg(body, null) from notes $$, '22023', 'task_description must be a text of 1 to 8192 bytes', 'agg: no task');
select throws_ok($$ select steadytext_agg(body, ' ') from notes $$, '22023', 'task_description must be a text of 1 to 8192 bytes', 'agg: an empty task');
select results_eq(
    $$ select kind, steadytext_agg(body, 'What about ' || kind) from notes where kind < 'c' group by kind order by kind $$,
    $$ select k, (select steadytext_agg(body, 'What about ' || k) from notes where kind = k) from unnest(array['a', 'b']) as k order by k $$, 'agg: a task for each group');

-- Windows.
select results_eq(
    $$ select distinct kind, steadytext_summarize(body) over (partition by kind) from notes order by kind $$,
    $$ select kind, steadytext_summarize(body) from notes group by kind order by kind $$, 'summarize: a window for each group');
select results_eq(
    $$ select n, steadytext_summarize(body) over (order by n rows between 1 preceding and current row) from notes where n <= 5 order by n $$,
    $$ select n, (select steadytext_summarize(i.body) from notes as i where i.n between o.n - 1 and o.n) from notes as o where n <= 5 order by n $$, 'summarize: a moving frame');
select results_eq(
    $$ select n, steadytext_summarize(body) over (order by n) from notes where n <= 5 order by n $$,
    $$ select n, (select steadytext_summarize(i.body) from notes as i where i.n <= o.n) from notes as o where n <= 5 order by n $$, 'summarize: a growing frame');

-- Parts of a group.
create temporary table parts as select kind, steadytext_summarize_partial(body, '{}') as part from notes group by kind;
select is((select sum((part ->> 'rows')::int) from parts), 24::bigint, 'summarize_partial: how many rows it stands for');
select is((select steadytext_summarize_final(part) from parts), of_all, 'summarize_final: small parts hold their values') from expected;
select is((select st_summarize_final(part) from (select * from parts order by kind desc offset 0) as t), of_all, 'summarize_final: in any order, the twin') from expected;
select is((select steadytext_summarize_final(part) from (select part from parts union all select null union all select 'null') as t), of_all, 'summarize_final: NULLs are passed over') from expected;
select is((select steadytext_summarize_partial(body, '{}') from notes where false), null, 'summarize_partial: no rows');
select is((select steadytext_summarize_final(part) from parts where false), null, 'summarize_final: no parts');
create temporary table large_parts as select i % 3 as part_of, st_summarize_partial('Line ' || i || ' is about table ' || i % 17 || ' and an index', '{"topic": "tables"}') as part from generate_series(1, 450) as i group by 1;
select ok((select bool_and(length(part::text) < 3000 and (part ->> 'rows')::int = 150) from large_parts), 'summarize_partial: of many values it holds a summary');
select ok((select bool_and(part #>> '{values,0,1}' = 'topic: tables') from large_parts), 'summarize_partial: with what is known about all of them');
select isnt((select steadytext_summarize_final(part) from large_parts), '', 'summarize_final: of summaries');
select throws_ok(format('select steadytext_summarize_final(%L::jsonb)', wrong), '22023', 'the value is no partial summary', 'summarize_final: ' || wrong)
from unnest(array['1', '"a"', '[]', '{}', '{"values": 1}', '{"values": [1]}', '{"values": [["a"]]}', '{"values": [["a", 1]]}', '{"values": [["a", "b", "c"]]}']) as wrong;

-- 10,000 rows, by one process and by several.
create table many_notes as select i, 'n' || i % 10 as body, i % 3 as kind from generate_series(1, 10000) as i;
analyze many_notes;
set local max_parallel_workers_per_gather = 0;
select isnt(steadytext_summarize(body), '', 'summarize: 10,000 rows') from many_notes;
create temporary table serial as
select null::int as kind, steadytext_summarize(body) as s, steadytext_agg(body, 'Which one?') as a from many_notes where i <= 400
union all select kind, steadytext_summarize(body), null from many_notes where i <= 100 group by kind;
set local min_parallel_table_scan_size = 0;
set local parallel_setup_cost = 0;
set local parallel_tuple_cost = 0;
set local max_parallel_workers_per_gather = 2;
select matches(pg_temp.plan_of('select steadytext_summarize(body), steadytext_agg(body, ''Which one?'') from many_notes where i <= 400'), 'Finalize Aggregate.*Gather.*Partial Aggregate', 'summarize: a parallel plan');
-- pgTAP's functions execute no parallel plans: these are statements of their own.
create temporary table parallel as select steadytext_summarize(body) as s, steadytext_agg(body, 'Which one?') as a from many_notes where i <= 400;
select results_eq('select s, a from parallel', 'select s, a from serial where kind is null', 'summarize and agg: the same bytes from parallel workers');
set local enable_sort = off;
select matches(pg_temp.plan_of('select kind, steadytext_summarize(body) from many_notes where i <= 100 group by kind'), 'Gather', 'summarize: groups in parallel');
create temporary table parallel_groups as select kind, steadytext_summarize(body) as s from many_notes where i <= 100 group by kind;
select results_eq('select kind, s from parallel_groups order by kind', 'select kind, s from serial where kind is not null order by kind', 'summarize: groups from parallel workers');
select matches(pg_temp.plan_of('select steadytext_summarize(body) from many_notes where i <= 20', 'analyze, timing off, '), 'Workers Launched: [12]', 'summarize: workers that are launched');
set local enable_sort = on;
select doesnt_match(pg_temp.plan_of('select steadytext_summarize(body order by i) from many_notes'), 'Partial Aggregate', 'summarize: ORDER BY is not done in parts');
set local max_parallel_workers_per_gather = 0;

-- Ends when it is to.
create function pg_temp.ended_by(p_statement text) returns text language plpgsql as $$
begin
    execute p_statement;
    return 'not ended';
exception when query_canceled then
    return sqlerrm;
end $$;
set local statement_timeout = 100;
select pg_temp.ended_by($$ select steadytext_summarize(body || ' once more') from many_notes $$) as ended \gset
set local statement_timeout = 0;
select is(:'ended'::text, 'canceling statement due to statement timeout', 'summarize: statement_timeout ends it');
select isnt(steadytext_summarize('after that'), '', 'summarize: and the next one goes on');

-- Bounded memory.
select steadytext_config_set('max_prompt_bytes', '1000');
select throws_ok($$ select steadytext_summarize(body) from many_notes $$, '54000', 'the values of a group have more than 16000 bytes together', 'summarize: too much for a group');
select throws_ok($$ select steadytext_summarize_final('{"values": [["a", ""]]}') from generate_series(1, 3000) $$, '54000', null, 'summarize_final: too many parts');
select lives_ok($$ select steadytext_summarize(body) from notes $$, 'summarize: less goes');
select throws_ok(
    $$ select steadytext_summarize('x', case when i = 1 then '{}' else jsonb_build_object('a', repeat('y', 7000)) end) from generate_series(1, 10) as i $$,
    '54000', 'the values of a group have more than 16000 bytes together', 'summarize: metadata count as often as the text names them');
select throws_ok(
    $$ select steadytext_summarize('x', case when i = 9 then '{}' else jsonb_build_object('a', repeat('y', 1000 * i)) end) from generate_series(1, 9) as i $$,
    '54000', 'the values of a group have more than 16000 bytes together', 'summarize: however different they are');
select lives_ok(
    $$ select steadytext_summarize('a value', jsonb_build_object('a', repeat('y', 900))) from generate_series(1, 40) $$,
    'summarize: those that all values share are named once');
select throws_ok(
    $$ select steadytext_summarize_final(p) from generate_series(1, 10) as i, lateral (select jsonb_build_object('values', jsonb_build_array(jsonb_build_array('v', case when i = 1 then '' else repeat('y', 7000) end))) as p) as t $$,
    '54000', 'the values of a group have more than 16000 bytes together', 'summarize_final: metadata count as often as the text names them');
select throws_ok(
    $$ select steadytext_summarize_final(jsonb_build_object('values', jsonb_build_array(jsonb_build_array('v', repeat('y', 9000))))) $$,
    '22023', 'the value is no partial summary', 'summarize_final: metadata are no longer than summarize_partial leaves them');
set local max_parallel_workers_per_gather = 2;
select throws_ok($$ explain (analyze) select steadytext_summarize(body) from many_notes where i <= 5000 $$, '54000', 'the values of a group have more than 16000 bytes together', 'summarize: nor from parallel workers');
select throws_ok(
    $$ explain (analyze) select steadytext_summarize('x', case when i % 2 = 1 then '{}' else jsonb_build_object('a', repeat('y', 100)) end) from many_notes where i <= 5000 $$,
    '54000', 'the values of a group have more than 16000 bytes together', 'summarize: nor do metadata');
set local max_parallel_workers_per_gather = 0;
select steadytext_config_set('max_prompt_bytes', '1048576');

-- Many at once.
select is(
    steadytext_generate_batch(array['What is VACUUM?', null, 'What is a page?', 'What is VACUUM?'], 8),
    array[steadytext_generate('What is VACUUM?', 8), null, steadytext_generate('What is a page?', 8), steadytext_generate('What is VACUUM?', 8)], 'generate_batch: as one by one');
select is(st_generate_batch(array['a b', 'c d'], 8, false, 7, '[EOS]', 'builtin', null, 0.5, 'null', 'Be brief.', '{"top_k": 5}'),
    array[steadytext_generate('a b', 8, false, 7, '[EOS]', 'builtin', null, 0.5, 'null', 'Be brief.', '{"top_k": 5}'), steadytext_generate('c d', 8, false, 7, '[EOS]', 'builtin', null, 0.5, 'null', 'Be brief.', '{"top_k": 5}')],
    'generate_batch: every parameter, by position, the twin');
select is(steadytext_generate_batch('{}'), '{}', 'generate_batch: nothing');
select is(steadytext_generate_batch(null), null, 'generate_batch: NULL');
select is(steadytext_generate_batch(array[null]::text[]), array[null]::text[], 'generate_batch: only NULL');
select is(steadytext_generate_batch(array['a', '', repeat('word ', 5000)], 4, on_error => 'null'), array[steadytext_generate('a', 4), null, null], 'generate_batch: those that cannot be answered');
select throws_ok($$ select steadytext_generate_batch(array['a', ''], 4) $$, 'P0001', 'element 2: Prompt cannot be empty', 'generate_batch: which one cannot');
select throws_ok($$ select steadytext_generate_batch(array['a', 'a', null, ''], 4) $$, 'P0001', 'element 4: Prompt cannot be empty', 'generate_batch: its place, whatever is equal before it');
select throws_ok($$ select steadytext_generate_batch(array_fill('a'::text, array[1001])) $$, 'P0001', 'Batch size cannot exceed 1000 prompts', 'generate_batch: too many');
select throws_ok($$ select steadytext_generate_batch(array['a'], 0) $$, 'P0001', null, 'generate_batch: parameters are checked');
select is(cardinality(steadytext_generate_batch(array_fill('What is a page?'::text, array[1000]), 4)), 1000, 'generate_batch: equal ones');
select is(
    steadytext_embed_batch(array['a', null, 'b', 'a']), array[steadytext_embed('a'), null, steadytext_embed('b'), steadytext_embed('a')], 'embed_batch: as one by one');
select is(st_embed_batch(array['a', 'b'], false, 7, 'builtin', 'query', 'Find it', true, 'null'), array[steadytext_embed('a', false, 7, 'builtin', 'query', 'Find it'), steadytext_embed('b', false, 7, 'builtin', 'query', 'Find it')], 'embed_batch: every parameter, by position, the twin');
select is(cardinality(steadytext_embed_batch('{}')), 0, 'embed_batch: nothing');
select ok(steadytext_embed_batch(null) is null, 'embed_batch: NULL');
select is(steadytext_embed_batch(array['a', ''], on_error => 'null'), array[steadytext_embed('a'), null], 'embed_batch: those that cannot be answered');
select throws_ok($$ select steadytext_embed_batch(array['a', '']) $$, 'P0001', 'element 2: Text input cannot be empty', 'embed_batch: which one cannot');
select throws_ok($$ select steadytext_embed_batch(array_fill('a'::text, array[1001])) $$, 'P0001', 'Batch size cannot exceed 1000 texts', 'embed_batch: too many');

select results_eq(
    $$ select index, category, score from steadytext_classify_scores(array['The parcel is late', null, 'a bill', 'The parcel is late'], array['billing', 'delivery']) $$,
    $$ select n, s.category, s.score from (values (1, 'The parcel is late'), (3, 'a bill'), (4, 'The parcel is late')) as t(n, body), steadytext_classify_scores(body, array['billing', 'delivery']) as s order by n, s.score desc $$,
    'classify_scores: an array');
select results_eq(
    $$ select m.index::bigint, c from st_classify_multi(array['The parcel is late', 'a bill'], array['billing', 'delivery'], threshold => 0) as m, unnest(m.found) with ordinality as u(c, o) order by m.index, u.o $$,
    $$ select n::bigint, c from (values (1, 'The parcel is late'), (2, 'a bill')) as t(n, body), unnest(steadytext_classify_multi(body, array['billing', 'delivery'], threshold => 0)) with ordinality as m(c, o) order by n, o $$,
    'classify_multi: an array');
select is_empty($$ select steadytext_classify_scores(null::text[], array['a', 'b']) $$, 'classify_scores: no array');
select results_eq(
    $$ select index, found from steadytext_classify_multi(array[null, '']::text[], array['a', 'b'], on_error => 'null') $$,
    $$ values (1, null::text[]), (2, null) $$, 'classify_multi: nothing that can be classified');

-- Prompts.
select is(p.required_variables, steadytext.prompt_variables(p.template), 'prompt_get: the variables of ' || s)
from unnest(array['steadytext/summarize', 'steadytext/agg']) as s, steadytext_prompt_get(s) as p where p.version_num = 1;
select is(steadytext_prompt_render('steadytext/summarize', '{"source": "text", "is_part": false, "max_words": 50, "metadata": "topic: a", "input": "TEXT"}'),
    E'Below is a text. Write a summary of it in at most 50 words. Answer with the summary and nothing else.\n\nKnown about it: topic: a\n\nTEXT', 'prompt_render: a text');
select is(steadytext_prompt_render('steadytext/summarize', '{"source": "rows", "is_part": true, "max_words": 50, "metadata": "", "input": "- a\n- b"}'),
    E'Below is a list of some of the entries. Write one summary of all of them in at most 50 words. Answer with the summary and nothing else.\n\n- a\n- b', 'prompt_render: a part of a group');
select is(steadytext_prompt_render('steadytext/agg', '{"source": "rows", "is_part": false, "max_words": 100, "task_description": "What is slow?", "input": "- a"}'),
    E'What is slow?\n\nValues:\n\n- a', 'prompt_render: a task');

-- Rights.
select throws_ok(format('select pg_temp.run_as(%L, %L)', 'st_stranger', statement), '42501', null, 'a stranger may not: ' || statement)
from unnest(array['select steadytext_summarize(''x'')', 'select st_agg(''x'', ''y'')', 'select steadytext_summarize_text(''x'')', 'select steadytext_embed_batch(array[''x''])', 'select steadytext_summarize_final(''{}'')']) as statement;
select isnt(pg_temp.run_as('st_alice', statement), null, 'a user may: ' || statement)
from unnest(array['select steadytext_summarize(''x'')', 'select st_agg(''x'', ''y'')', 'select steadytext_summarize_text(''x'')', 'select steadytext_embed_batch(array[''x''])', 'select steadytext_summarize_text_async(''x'')',
    'select steadytext_summarize_final(p) from (select st_summarize_partial(''x'', ''{}'') as p) as t', 'select steadytext_generate_batch(array[''x''], 2)']) as statement;

select * from finish();
rollback;
