-- The common part of vectorizers and enrichments: names, columns that are dropped or renamed, broken definitions, models, leftovers.
\ir setup.psql
select plan(137);

grant create on schema public to st_alice, st_bob;
grant steadytext_user to current_user;
create function pg_temp.id_of(p_name text) returns uuid language sql as $$ select v.id from steadytext_vectorizers as v where v.name = p_name $$;
create function pg_temp.problem(p_name text) returns text language sql as $$ select p.problem from steadytext.vectorizer_place(pg_temp.id_of(p_name)) as p $$;
create function pg_temp.hint(p_statement text) returns text language plpgsql as $$
declare
    v_hint text;
begin
    execute p_statement;
    return 'no error';
exception when others then
    get stacked diagnostics v_hint = pg_exception_hint;
    return v_hint;
end $$;
create function pg_temp.trigger_count(p_table regclass) returns bigint language sql as $$
    select count(*) from pg_trigger where tgrelid = p_table and tgfoid = 'steadytext.note_row()'::regprocedure
$$;

-- A column that is embedded is dropped.
create table note (id int primary key, title text, body text);
select steadytext_create_vectorizer('note', array['body'], index => 'none');
insert into note values (1, 'a', 'one');
alter table note drop column body cascade;
select is(pg_temp.problem('note_body'), 'a column of table public.note that is read or filled was dropped', 'a column that was dropped is told from a table that is gone');
select is((select source::text from steadytext_vectorizer_status where name = 'note_body'), 'note', 'the table is known');
select is((select destination::text from steadytext_vectorizer_status where name = 'note_body'), 'note_body_embedding', 'so is that of the vectors');
select is((select state from steadytext_vectorizer_status where name = 'note_body'), 'broken', 'it is broken');
select lives_ok($$ update note set title = 'b' $$, 'rows change as before');
select lives_ok($$ insert into note values (2, 'c') $$, 'and come');
select throws_ok(
    $$ select steadytext_alter_vectorizer('note_body', chunk_size => 8) $$, '55000', 'a column of table public.note that is read or filled was dropped', 'it cannot be altered');
select is(
    pg_temp.hint($$ select steadytext_alter_vectorizer('note_body', chunk_size => 8) $$), 'Say what is embedded from now on: columns => array[''…''].', 'but to other columns');
select lives_ok($$ select steadytext_alter_vectorizer('note_body', columns => array['title']) $$, 'which are named');
select results_eq(
    $$ select p.source::text, p.source_columns, p.problem from steadytext.vectorizer_place(pg_temp.id_of('note_body (next)')) as p $$,
    $$ values ('note', array['title'], null::text) $$, 'a new definition is made beside it');
select is(pg_temp.trigger_count('note'), 5::bigint, 'with triggers of its own');
select lives_ok($$ select steadytext_drop_vectorizer('note_body', true) $$, 'both are dropped');
select is(pg_temp.trigger_count('note'), 0::bigint, 'with all their triggers');

-- A column that a prompt names is dropped.
alter table note add column body text;
select steadytext_create_enrichment('note', 'kind', '$body', 'generate_choice', '{"choices": ["a", "b"]}');
alter table note drop column body cascade;
select is(pg_temp.problem('note_kind'), 'a column of table public.note that is read or filled was dropped', 'the same of an enrichment');
select throws_ok($$ select steadytext_alter_enrichment('note_kind', params => '{"choices": ["a", "c"]}') $$, '55000', null, 'which has to be given a prompt');
select lives_ok($$ select steadytext_alter_enrichment('note_kind', priority => 4) $$, 'what is not about columns changes all the same');
select lives_ok($$ select steadytext_alter_enrichment('note_kind', prompt => '$title') $$, 'with one it works again');
select is(pg_temp.problem('note_kind'), null, 'nothing is wrong any more');
select is(pg_temp.trigger_count('note'), 3::bigint, 'there are as many triggers as before');
alter table note drop column kind cascade;
select is(
    pg_temp.hint($$ select steadytext_alter_enrichment('note_kind', prompt => 'Of $title') $$), 'The column that was filled is gone. Drop the enrichment and make another one.',
    'one whose target is gone is made anew');
select lives_ok($$ select steadytext_drop_enrichment('note_kind', true) $$, 'it can be dropped');

-- Columns that are renamed, and one that is called as what statements count by.
create table counted (n int primary key, "a b" text, other text);
select steadytext_create_enrichment('counted', 'kind', 'Of ${a b} ($n), for $$5: $other!', 'generate_choice', '{"choices": ["a", "b"]}');
alter table counted rename column "a b" to c;
select is(
    (select prompt from steadytext_enrichment_status where name = 'counted_kind'), 'Of ${c} (${n}), for $$5: ${other}!', 'the prompt is shown with its columns as they are called now');
select is((select format from steadytext_vectorizers where name = 'counted_kind'), 'Of ${a b} ($n), for $$5: $other!', 'and kept as it was given');
select steadytext_create_vectorizer('counted', array['other'], index => 'none');
insert into counted (n, other) values (1, 'one'), (2, 'two');
insert into counted_other_embedding (n, seq, chunk, embedding, model_hash, content_hash)
select i, 1, 'gone', steadytext_embed('gone'), '', '' from generate_series(2, 3) as i;
create function pg_temp.found(p_name text, p_which text, p_number integer, p_argument jsonb) returns jsonb language plpgsql as $$
declare
    v_statement text;
    v_result jsonb;
begin
    select to_jsonb(s) -> p_which ->> p_number into v_statement from steadytext.vectorizer_statements(pg_temp.id_of(p_name)) as s;
    execute v_statement into v_result using p_argument;
    return v_result;
end $$;
select is(pg_temp.found('counted_other', 'scan_destination', 0, '{"limit": 10}'), '{"last": [3], "keys": [[3]], "count": 2}', 'vectors without rows are found by a key called n');
select is(pg_temp.found('counted_other', 'scan_destination', 1, '{"limit": 10, "after": [2]}') ->> 'count', '1', 'and those behind one');
select is(pg_temp.found('counted_other', 'scan_source', 0, '{"limit": 1}') -> 'last', '[1]', 'so are rows without vectors');

-- Priority and name by themselves.
delete from steadytext_vectorizer_work;
select set_config('test.digest', steadytext.enrichment_digest(pg_temp.id_of('counted_kind'))::text, true);
select steadytext_alter_enrichment('counted_kind', priority => 7);
select steadytext_alter_enrichment('counted_kind', new_name => 'kinds');
select is((select priority from steadytext_vectorizers where name = 'kinds'), 7, 'a priority and a name change by themselves');
select is(steadytext.enrichment_digest(pg_temp.id_of('kinds'))::text, current_setting('test.digest'), 'what is asked is the same');
select is((select count(*) from steadytext_vectorizer_work), 0::bigint, 'so that nothing is made anew');

-- Back to the default model.
select steadytext_alter_enrichment('kinds', model => 'builtin');
select is((select model from steadytext_vectorizers where name = 'kinds'), 'builtin', 'a model is named');
select steadytext_alter_enrichment('kinds', params => '{"choices": ["a", "c"]}');
select is((select model from steadytext_vectorizers where name = 'kinds'), 'builtin', 'and stays');
select steadytext_alter_enrichment('kinds', model => 'auto');
select is((select model from steadytext_vectorizers where name = 'kinds'), null, 'auto is the default one');
select steadytext_create_vectorizer('counted', array['c'], model => 'builtin', index => 'none');
select steadytext_alter_vectorizer('counted_c', model => 'auto');
select is((select model from steadytext_vectorizers where name = 'counted_c (next)'), 'builtin', 'of a vectorizer the one that embeds by default now');
select steadytext_create_vectorizer('counted', array['c'], name => 'auto', destination => 'auto_vectors', model => 'auto', index => 'none');
select is((select model from steadytext_vectorizers where name = 'auto'), 'builtin', 'also where it is made: by its name, as defaults change');

-- Names.
create table another (id int primary key, other text);
select throws_ok(
    $$ select steadytext_create_vectorizer('another', array['other'], name => 'counted_other', if_not_exists => true) $$, '42710', null,
    'a name that is another table''s is not passed over');
select is(
    pg_temp.hint($$ select steadytext_create_vectorizer('another', array['other'], name => 'counted_other', if_not_exists => true) $$),
    'It is one of another table. Give another name.', 'and that is said');
select throws_ok($$ select steadytext_create_enrichment('another', 'x', '$other', name => 'kinds', if_not_exists => true) $$, '42710', null, 'the same of enrichments');
select is(steadytext_create_enrichment('counted', 'kind', '$other', name => 'kinds', if_not_exists => true), 'kinds', 'one of this table is');
set local role st_alice;
create table hers (id int primary key, body text);
select steadytext_create_enrichment('hers', 'x', '$body', name => 'secret');
reset role;
set local role st_bob;
create table his (id int primary key, body text);
select steadytext_create_enrichment('his', 'x', '$body', name => 'open');
reset role;
select throws_ok(
    $$ select pg_temp.run_as('st_bob', $i$ select steadytext_create_enrichment('his', 'y', '$body', name => 'secret') $i$) $$, '42710', 'enrichment "secret" already exists',
    'a name of somebody else''s, whose enrichments are not seen, is taken');
select throws_ok(
    $$ select pg_temp.run_as('st_bob', $i$ select steadytext_alter_enrichment('open', new_name => 'secret') $i$) $$, '42710', 'enrichment "secret" already exists',
    'also for one that is renamed');

-- Definitions that are not as they should be.
select throws_ok(
    $$ select pg_temp.run_as('st_alice', $i$ update steadytext_vectorizers set format = '$nothing' where name = 'secret' $i$) $$, '22023', null,
    'a prompt that names no column is refused, whoever writes it where');
alter table steadytext_vectorizers disable trigger check_vectorizer;
update steadytext_vectorizers set format = '$nothing' where name = 'secret';
alter table steadytext_vectorizers enable always trigger check_vectorizer;
select is((select state from steadytext_enrichment_status where name = 'secret'), 'broken', 'one that is there all the same is broken');
select matches((select problem from steadytext_enrichment_status where name = 'secret'), 'none of the columns', 'and says why');
select is((select state from steadytext_enrichment_status where name = 'open'), 'scanning', 'others are shown beside it');
select lives_ok(
    $$ select pg_temp.run_as('st_bob', $i$ select steadytext_create_enrichment('his', 'z', '$body') $i$) $$, 'and made');

-- Hints for rows that have failed.
insert into steadytext_vectorizer_failures (vectorizer_id, key, error, error_code) values (pg_temp.id_of('kinds'), '[1]', 'too long', '54000');
select matches(
    (select hint from steadytext_enrichment_errors where name = 'kinds'), 'shorter prompt', 'what helps against a text that is too long is said of enrichments, too');
select unalike((select hint from steadytext_enrichment_errors where name = 'kinds'), '%truncate%', 'which cut no texts');

-- Logical replication, whose changes come under this setting.
delete from steadytext_vectorizer_work;
set session_replication_role = replica;
insert into counted (n, other) values (10, 'replicated');
select is((select count(*) from steadytext_vectorizer_work), 0::bigint, 'what is replicated is not noted');
do $$ begin
    execute format('alter table counted enable always trigger %I', steadytext.vectorizer_trigger(pg_temp.id_of('counted_other'), 'rows'));
end $$;
insert into counted (n, other) values (11, 'replicated');
set session_replication_role = origin;
select is((select jsonb_agg(w.key) from steadytext_vectorizer_work as w), '[[11]]', 'but where its trigger always fires');

-- Leftovers of definitions that are gone.
delete from steadytext_vectorizer_work;
insert into steadytext_vectorizer_work (vectorizer_id, key) values (gen_random_uuid(), '[1]'), (pg_temp.id_of('kinds'), '[1]'), (gen_random_uuid(), '[2]');
insert into steadytext_vectorizer_failures (vectorizer_id, key, error, error_code) values (gen_random_uuid(), '[1]', 'x', '22023');
insert into steadytext_vectorizer_state (vectorizer_id) values (gen_random_uuid());
insert into steadytext_vectorizer_batches (request_id, vectorizer_id, keys) values (gen_random_uuid(), gen_random_uuid(), '[]');
insert into steadytext_enrichment_rows (enrichment_id, key, content_hash, made_by) values (gen_random_uuid(), '[1]', '', gen_random_uuid());
insert into steadytext_vectorizer_kept (vectorizer_id, key, content_hash) values (gen_random_uuid(), '[1]', ''), (pg_temp.id_of('kinds'), '[1]', '');
select steadytext.sweep_definitions();
select is((select jsonb_agg(k.vectorizer_id) from steadytext_vectorizer_kept as k), jsonb_build_array(pg_temp.id_of('kinds')), 'so does what is kept');
select is((select count(*) from steadytext_vectorizer_work), 1::bigint, 'work of definitions that are gone goes, that of others stays');
select is((select count(*) from steadytext_vectorizer_failures), 1::bigint, 'so do failures');
select is(
    (select count(*) from steadytext_vectorizer_state) + (select count(*) from steadytext_vectorizer_batches) + (select count(*) from steadytext_enrichment_rows),
    0::bigint, 'and everything else');

-- Columns of somebody's own, by names that definitions use.
create table owned (id int primary key, body text, title text, vec_next vector(256));
select steadytext_create_vectorizer('owned', array['body'], name => 'owned', target_column => 'vec', index => 'none', model => 'builtin');
select throws_ok($$ select steadytext_alter_vectorizer('owned', columns => array['title']) $$, '42701', null, 'a column in the way is not taken for the new vectors');
alter table owned drop column vec_next;
alter table owned drop column vec cascade;
alter table owned add column vec text, drop column vec_hash cascade;
alter table owned add column vec_hash text;
select steadytext_drop_vectorizer('owned', drop_all => true);
select has_column('owned', 'vec', 'no column goes that came in the place of its own');
select has_column('owned', 'vec_hash', 'nor the one beside it');
select steadytext_create_enrichment('owned', 'kind', '$body', 'generate_choice', '{"choices": ["a", "b"]}', name => 'owned', model => 'builtin');
alter table owned drop column kind cascade;
alter table owned add column kind int;
select steadytext_drop_enrichment('owned', drop_all => true);
select has_column('owned', 'kind', 'nor one of an enrichment');

-- A vectorizer that is altered again before the new vectors are there.
insert into steadytext_models (name, task, file, placement) values ('away', 'embed', 'away.gguf', 'elsewhere');
insert into steadytext_vector_lengths (model, file, length) values ('away', 'away.gguf', 8);
create table again (id int primary key, body text, title text);
select steadytext_create_vectorizer('again', array['body'], name => 'again', index => 'none', model => 'builtin', chunk_size => 400);
select steadytext_alter_vectorizer('again', model => 'away', chunk_size => 0);
select steadytext_alter_vectorizer('again', format => 'A: $chunk');
select steadytext_alter_vectorizer('again', distance => 'l2');
select results_eq(
    $$ select v.model, v.format, v.chunk_size, v.distance, v.dimensions from steadytext_vectorizers as v where v.name = 'again (next)' $$,
    $$ values ('away', 'A: $chunk', null::integer, 'l2', 8) $$, 'what one call changes is not lost by the next one, also in one transaction');
select results_eq(
    $$ select v.model, v.format, v.chunk_size, v.distance from steadytext_vectorizers as v where v.name = 'again' $$,
    $$ values ('builtin', null::text, 400, 'cosine') $$, 'and nothing of it is true yet');
select is((select count(*) from pg_class where relname like 'again_body_embedding%' and relkind = 'r'), 2::bigint, 'one definition at a time is made');
select steadytext_alter_vectorizer('again', columns => array['title']);
select steadytext_alter_vectorizer('again', format => '$chunk.');
select is(
    (select p.source_columns from steadytext.vectorizer_place(pg_temp.id_of('again (next)')) as p), array['title'], 'the columns that were named stay named');
select steadytext_alter_vectorizer('again', priority => 9, truncate => true, new_name => 'once more');
select results_eq(
    $$ select v.name, v.priority, v.truncate from steadytext_vectorizers as v where v.name like 'once more%' order by v.name $$,
    $$ values ('once more', 9, true), ('once more (next)', 9, true) $$, 'what needs no new vectors is said to both');
-- Otherwise only the process that works for vectorizers may act as others.
create or replace function steadytext.run_as(p_role oid, p_statement text, p_argument jsonb) returns jsonb
language plpgsql as $$ begin execute p_statement; return null; end $$;
select steadytext.swap_vectorizer(pg_temp.id_of('once more (next)'));
select results_eq(
    $$ select v.name, v.model, v.format, v.priority, v.truncate from steadytext_vectorizers as v where v.name like 'once more%' $$,
    $$ values ('once more', 'away', '$chunk.', 9, true) $$, 'so that it is still there when they change places');
select steadytext_alter_vectorizer('once more', format => 'B: $chunk');
select steadytext_pause_vectorizer('once more');
select steadytext_alter_vectorizer('once more', distance => 'inner_product');
select is((select v.is_paused from steadytext_vectorizers as v where v.name = 'once more (next)'), true, 'a pause goes on');
select steadytext_alter_vectorizer('once more', format => '$chunk.');
select is((select v.distance from steadytext_vectorizers as v where v.name = 'once more (next)'), 'inner_product', 'one thing is as it was, another one is not');
select steadytext_alter_vectorizer('once more', distance => 'l2');
select is((select count(*) from steadytext_vectorizers as v where v.name = 'once more (next)'), 0::bigint, 'when all is as it was, nothing is made');
select is((select count(*) from pg_class where relname like 'again_body_embedding%' and relkind = 'r'), 1::bigint, 'and what was being made is gone');
select steadytext_drop_vectorizer('once more', true);
select steadytext_create_vectorizer('again', array['body'], name => 'again', index => 'none', model => 'builtin', chunk_size => 400);
select steadytext_alter_vectorizer('again', chunk_size => 16);
select is((select v.chunk_overlap from steadytext_vectorizers as v where v.name = 'again (next)'), 8, 'smaller chunks have less in common');
select steadytext_alter_vectorizer('again', chunk_size => 300);
select is((select v.chunk_overlap from steadytext_vectorizers as v where v.name = 'again (next)'), 50, 'larger ones as much as before');
select steadytext_alter_vectorizer('again', chunk_size => 400);
select is((select count(*) from steadytext_vectorizers as v where v.name = 'again (next)'), 0::bigint, 'chunks as before are no change');
alter table again drop column body cascade;
select steadytext_alter_vectorizer('again', columns => array['title']);
select lives_ok($$ select steadytext_alter_vectorizer('again', format => 'C: $chunk') $$, 'columns that are there need not be named again');
select is((select v.columns from steadytext_vectorizers as v where v.name = 'again (next)'), array['title'], 'nor are they lost');
select steadytext_drop_vectorizer('again', true);

-- Problems are shown with a hint, and a paused worker is no problem.
create table amiss (id int primary key, body text, other text);
select steadytext_create_vectorizer('amiss', array['body'], name => 'amiss', index => 'none', model => 'builtin');
select steadytext_create_enrichment('amiss', 'kind', '$other', 'generate_choice', '{"choices": ["a", "b"]}', name => 'amiss', model => 'builtin');
create function pg_temp.shown() returns setof text language sql as $$
    select s.state || ': ' || coalesce(s.problem, '') from steadytext_vectorizer_status as s where s.name = 'amiss'
    union all
    select s.state || ': ' || coalesce(s.problem, '') from steadytext_enrichment_status as s where s.name = 'amiss'
$$;
alter table amiss disable trigger user;
select is(array_agg(s), array_fill('broken: the triggers of table public.amiss are disabled: ALTER TABLE public.amiss ENABLE TRIGGER USER'::text, array[2]), 'triggers that are disabled')
from pg_temp.shown() as s;
alter table amiss enable trigger user;
create or replace function steadytext.worker_state()
returns table (
    state text, pid integer, worker text, started_at timestamptz, library_version text, message text, running integer, memory_mb integer
)
language sql volatile set search_path = pg_catalog, pg_temp as $$
    select 'paused', 1, 'local:1', now(), '2.0.0', null::text, 0, 0
$$;
select is(array_agg(s), array_fill('paused: the worker is paused: steadytext_daemon_start() has it go on'::text, array[2]), 'a worker that is paused')
from pg_temp.shown() as s;
select steadytext_pause_vectorizer('amiss');
select is((select s.state || coalesce(s.problem, '') from steadytext_vectorizer_status as s where s.name = 'amiss'), 'paused', 'one that is paused itself waits for nothing');
alter table amiss drop column body cascade, drop column other cascade;
select is(array_agg(substring(s from '[a-z]+_[a-z_]+\(.*')), array['steadytext_alter_vectorizer(''amiss'', columns => …) names others',
    'steadytext_alter_enrichment(''amiss'', prompt => …) names others'], 'columns that are gone') from pg_temp.shown() as s;
drop table amiss_body_embedding, amiss cascade;
select is(array_agg(substring(s from '[a-z]+_[a-z]+_(?:v|e)[a-z]+\(.*')), array[
    'steadytext_drop_vectorizer(''amiss'') ends it, and steadytext_create_vectorizer() makes another one',
    'steadytext_drop_enrichment(''amiss'') ends it, and steadytext_create_enrichment() makes another one'], 'tables that are gone') from pg_temp.shown() as s;

-- Tables and columns that cannot be made, and models that make no vectors.
create table taken (id int primary key, body text);
select is(
    pg_temp.hint($$ select steadytext_create_vectorizer('taken', array['body'], destination => 'taken') $$),
    'Give the table of the vectors another name as destination, or drop the one that is there.', 'a table that is no vectorizer''s is not said to be one''s');
select throws_ok(
    $$ select steadytext_create_vectorizer('taken', array['body'], destination => 'nowhere.vectors') $$, '22023', 'destination "nowhere.vectors" has a dot in it',
    'a destination has no schema');
select throws_ok($$ select steadytext_create_vectorizer('taken', array['body'], destination => '') $$, '22023', 'destination cannot be empty', 'it has a name');
select throws_ok($$ select steadytext_create_vectorizer('taken', array['body'], target_column => '') $$, '22023', 'target_column cannot be empty', 'so has a column');
select throws_ok($$ select steadytext_create_enrichment('taken', '', '$body') $$, '22023', 'target_column cannot be empty', 'also of an enrichment');
insert into steadytext_models (name, task, file, placement) values ('talker', 'generate', 'talker.gguf', 'elsewhere');
select throws_ok(format('select steadytext_create_vectorizer(''taken'', array[''body''], model => ''talker'', %s)', e), '42809', 'model "talker" is registered for task generate, not embed',
    'a model that is elsewhere is first of all for the task')
from unnest(array['chunk_size => 8', 'chunk_size => null', $t$target_column => 'v'$t$]) as e;
select steadytext_create_vectorizer('taken', array['body'], index => 'none', model => 'builtin', chunk_size => 100);
select throws_ok($$ select steadytext_alter_vectorizer('taken_body', model => 'talker') $$, '42809', 'model "talker" is registered for task generate, not embed', 'as where it is altered');

-- Acts of a definition's owner who is no superuser.
set local role st_alice;
create table asked (id int primary key, body text, told text);
select steadytext_create_vectorizer('asked', array['body'], index => 'none', model => 'builtin');
select steadytext_create_enrichment('asked', 'told', '$body', model => 'builtin');
reset role;
select is(pg_temp.run_as('st_alice', format('select %s(%L)::text is null or true', f, d)), 'true', format('the owner of a definition may call %s', f))
from (values
    ('steadytext_pause_vectorizer', 'asked_body'), ('steadytext_resume_vectorizer', 'asked_body'), ('steadytext_retry_vectorizer', 'asked_body'),
    ('steadytext_reembed', 'asked_body'), ('steadytext_pause_enrichment', 'asked_told'), ('steadytext_resume_enrichment', 'asked_told'),
    ('steadytext_retry_enrichment', 'asked_told'), ('steadytext_refresh_enrichment', 'asked_told')) as c(f, d);

-- Rows are found by their key under row-level security, too: a policy that has to be asked first is asked for each row of the table, for each key.
create function pg_temp.read_as_a_whole(p_role text, p_statement text) returns text[] language plpgsql as $$
declare
    v_line text;
    v_found text[] := '{}';
begin
    execute 'prepare as_the_step(jsonb) as ' || p_statement;
    execute format('set local role %I', p_role);
    for v_line in execute 'explain execute as_the_step(null)' loop
        if v_line ~ '(Seq|Index|Index Only|Bitmap Heap) Scan .*on (guarded|guarded_body_embedding) ' then
            v_found := v_found || v_line;
        elsif v_line ~ '(Index|Recheck) Cond: .*id' then
            v_found := v_found[1 : cardinality(v_found) - 1];
        end if;
    end loop;
    reset role;
    deallocate as_the_step;
    return v_found;
end $$;
create table guarded (id bigint primary key, tenant int, body text, told text, v vector(256));
insert into guarded select n, n % 7, 'body ' || n from generate_series(1, 2000) as n;
alter table guarded owner to st_alice;
alter table guarded enable row level security;
alter table guarded force row level security;
create policy own on guarded using (tenant = any (string_to_array(current_setting('test.tenants', true), ',')::int[]));
set local role st_alice;
select steadytext_create_vectorizer('guarded', array['body'], index => 'none');
select steadytext_create_vectorizer('guarded', array['body'], target_column => 'v', name => 'guarded_v');
select steadytext_create_enrichment('guarded', 'told', '$body', name => 'guarded_told');
alter table guarded_body_embedding enable row level security;
alter table guarded_body_embedding force row level security;
create policy own on guarded_body_embedding using (octet_length(chunk) < current_setting('test.most', true)::int);
reset role;
insert into guarded_body_embedding (id, seq, chunk, embedding, model_hash, content_hash)
select n, 1, 'chunk', array_fill(1, array[256])::vector, '', '' from generate_series(1, 2000) as n;
analyze guarded, guarded_body_embedding;
set local enable_seqscan = off;
set local enable_hashjoin = off;
set local enable_mergejoin = off;
set local plan_cache_mode = force_generic_plan;
select is(pg_temp.read_as_a_whole('st_alice', s.statement), '{}'::text[], format('%s finds rows by their key', s.what))
from (
    select v.name || ': ' || f.what as what, f.statement
    from steadytext_vectorizers as v
    cross join lateral steadytext.vectorizer_statements(v.id) as m
    cross join lateral (values ('read_rows', m.read_rows), ('delete_vectors', m.delete_vectors), ('present', m.present), ('write_vectors', m.write_vectors[1]),
        ('write_vectors of kept', m.write_vectors[2]), ('blank_vectors', m.blank_vectors), ('lockable', m.lockable),
        ('scan_source', m.scan_source[2]), ('scan_destination', m.scan_destination[2])) as f(what, statement)
    where v.name in ('guarded_body', 'guarded_v')
    union all
    select v.name || ': ' || f.what, f.statement
    from steadytext_vectorizers as v
    cross join lateral steadytext.enrichment_statements(v.id) as m
    cross join lateral (values ('read_rows', m.read_rows), ('present', m.present), ('lockable', m.lockable), ('write_values', m.write_values),
        ('scan_source', m.scan_source[2])) as f(what, statement)
    where v.name = 'guarded_told'
) as s
where s.statement is not null
order by s.what;
reset enable_seqscan;
reset enable_hashjoin;
reset enable_mergejoin;
reset plan_cache_mode;

-- One trigger that does not fire, and leaves changes unseen, makes a definition broken, and the advice mends it.
create table watched (id int, part int, body text, primary key (part, id)) partition by list (part);
create table watched_1 partition of watched for values in (1);
select steadytext_create_vectorizer('watched', array['body'], name => 'watched', index => 'none', model => 'builtin');
create function pg_temp.named(p_statement text) returns text language sql as $$
    select replace(replace(replace(p_statement, '{rows}', steadytext.vectorizer_trigger(pg_temp.id_of('watched'), 'rows')),
        '{updates}', steadytext.vectorizer_trigger(pg_temp.id_of('watched'), 'updates')), '{truncate}', steadytext.vectorizer_trigger(pg_temp.id_of('watched'), 'truncate'))
$$;
create function pg_temp.told(p_change text) returns text language plpgsql as $$
declare
    v_problem text;
begin
    execute pg_temp.named(p_change);
    v_problem := (select s.problem from steadytext_vectorizer_status as s where s.name = 'watched' and s.state = 'broken');
    execute substring(v_problem from '(CREATE TRIGGER .*|ALTER TABLE .*)');
    return v_problem || coalesce(', and then ' || steadytext.definition_problem(pg_temp.id_of('watched')), '');
end
$$;
select is(steadytext.definition_problem(pg_temp.id_of('watched')), null, 'a definition whose triggers fire has no problem');
select is(pg_temp.told(c.change), pg_temp.named(c.problem), c.change)
from (values
    ('alter table watched disable trigger {updates}', 'trigger {updates} of table public.watched is disabled: ALTER TABLE public.watched ENABLE TRIGGER {updates}'),
    ('alter table watched enable replica trigger {updates}', 'trigger {updates} of table public.watched is disabled: ALTER TABLE public.watched ENABLE TRIGGER {updates}'),
    ('alter table watched disable trigger {truncate}', 'trigger {truncate} of table public.watched is disabled: ALTER TABLE public.watched ENABLE TRIGGER {truncate}'),
    ('alter table watched_1 disable trigger {rows}', 'trigger {rows} of table public.watched_1 is disabled: ALTER TABLE public.watched_1 ENABLE TRIGGER {rows}'),
    ('alter table watched_1 disable trigger {updates}', 'trigger {updates} of table public.watched_1 is disabled: ALTER TABLE public.watched_1 ENABLE TRIGGER {updates}'),
    ('drop trigger {updates} on watched', 'a trigger of table public.watched that notes its changes is gone: CREATE TRIGGER {updates} AFTER UPDATE ON public.watched FOR EACH ROW EXECUTE FUNCTION steadytext.note_row('''
        || pg_temp.id_of('watched')::text || ''')'),
    ('drop trigger {truncate} on watched', 'a trigger of table public.watched that notes its changes is gone: CREATE TRIGGER {truncate} AFTER TRUNCATE ON public.watched FOR EACH STATEMENT EXECUTE FUNCTION steadytext.note_row('''
        || pg_temp.id_of('watched')::text || ''')'),
    ('alter table only watched_1 enable always trigger {rows}',
        'trigger {rows} of table public.watched_1 fires for replicated changes, and {updates} does not: ALTER TABLE public.watched_1 ENABLE ALWAYS TRIGGER {updates}'))
    as c(change, problem);

-- The cast of a type that belongs to another role than the table would run with the rights of the table's owner.
set local role st_bob;
create type feeling as enum ('good', 'bad');
create function feeling_text(feeling) returns text language sql immutable as 'select ''said by st_bob''';
reset role;
set local role st_alice;
create table felt (id int primary key, body feeling);
select steadytext_create_vectorizer('felt', array['body'], name => 'felt', index => 'none', model => 'builtin');
create table keyed (id feeling primary key, body text);
select steadytext_create_vectorizer('keyed', array['body'], name => 'keyed', index => 'none', model => 'builtin');
reset role;
select is(steadytext.definition_problem(pg_temp.id_of('felt')), null, 'a type of somebody else''s is read as PostgreSQL writes it');
set local role st_bob;
create cast (feeling as text) with function feeling_text(feeling);
create function text_feeling(text) returns feeling language sql immutable as 'select ''bad''::feeling';
create cast (text as feeling) with function text_feeling(text);
reset role;
select is(steadytext.definition_problem(pg_temp.id_of('felt')),
    'column body of table public.felt is read by the cast of public.feeling to text, whose function belongs to st_bob: DROP CAST (public.feeling AS text), or ALTER FUNCTION … OWNER TO st_alice',
    'but not by a cast of that role');
drop cast (feeling as text);
select matches(steadytext.definition_problem(pg_temp.id_of('keyed')), 'cast of text to public.feeling, whose function belongs to st_bob', 'nor are keys');
alter function text_feeling(text) owner to st_alice;
select is(steadytext.definition_problem(pg_temp.id_of('keyed')), null, 'a function of the owner of the table is that role''s own');

-- Very many notes of a definition that does nothing become one, of the table as a whole.
create table idle (id int primary key, body text);
select steadytext_create_vectorizer('idle', array['body'], name => 'idle', index => 'none', model => 'builtin');
insert into steadytext_vectorizer_state (vectorizer_id, signature) values (pg_temp.id_of('idle'), 'seen') on conflict (vectorizer_id) do update set signature = 'seen';
insert into steadytext_vectorizer_work (vectorizer_id, key) select pg_temp.id_of('idle'), jsonb_build_array(i) from generate_series(1, 100001) as i;
insert into steadytext_vectorizer_work (vectorizer_id, key, is_forced) values (pg_temp.id_of('idle'), '[7]', true);
create function pg_temp.noted() returns text language sql as $$
    select format('%s notes, %s of the whole', count(*), count(*) filter (where w.key is null)) from steadytext_vectorizer_work as w where w.vectorizer_id = pg_temp.id_of('idle')
$$;
select steadytext.sweep_definitions();
select is(pg_temp.noted(), '100002 notes, 0 of the whole', 'what works has its notes');
select steadytext_pause_vectorizer('idle');
update steadytext_vectorizer_state set scan = 'mark' where vectorizer_id = pg_temp.id_of('idle');
select steadytext.sweep_definitions();
select is(pg_temp.noted(), '100002 notes, 0 of the whole', 'so has what does not know yet which rows are to wait');
update steadytext_vectorizer_state set scan = null where vectorizer_id = pg_temp.id_of('idle');
select steadytext.sweep_definitions();
select is(pg_temp.noted(), '2 notes, 1 of the whole', 'a pause turns very many into one, and leaves what is to be done in any case');
insert into steadytext_vectorizer_work (vectorizer_id, key) select pg_temp.id_of('idle'), jsonb_build_array(i) from generate_series(1, 100001) as i;
select steadytext.sweep_definitions();
select is(pg_temp.noted(), '2 notes, 1 of the whole', 'one is enough');

-- Vectorizers whose vectors are made of each other.
create table round (id int primary key, body text, v1 vector(256), v2 vector(256), v3 vector(256));
select steadytext_create_vectorizer('round', array['v2'], name => 'round_1', target_column => 'v1', index => 'none', model => 'builtin');
select steadytext_create_vectorizer('round', array['v3'], name => 'round_2', target_column => 'v2', index => 'none', model => 'builtin');
select throws_ok($$ select steadytext_create_vectorizer('round', array['v1'], name => 'round_3', target_column => 'v3', index => 'none', model => 'builtin') $$, '22023',
    'column "v1" is made of the vectors in column "v3"', 'vectors are not made of each other in a circle');
select lives_ok($$ select steadytext_create_vectorizer('round', array['body'], name => 'round_3', target_column => 'v3', index => 'none', model => 'builtin') $$, 'but one after the other');
select throws_ok($$ select steadytext_alter_vectorizer('round_3', columns => array['body', 'v1']) $$, '22023', null, 'nor is a circle closed afterwards');
select lives_ok($$ select steadytext_alter_vectorizer('round_1', format => 'Of $chunk') $$, 'what is altered is not in its own way');

-- Columns of which no trigger sees a change came with PostgreSQL 18.
select current_setting('server_version_num')::int >= 180000 as has_virtual \gset
create table computed (id int primary key, body text);
\if :has_virtual
alter table computed add column loud text generated always as (upper(body)) virtual;
select throws_ok($$ select steadytext_create_vectorizer('computed', array['loud']) $$, '0A000', null, 'a virtual column is not embedded');
select throws_ok($$ select steadytext_create_enrichment('computed', 'x', '$loud') $$, '0A000', null, 'nor asked about');
\else
alter table computed add column loud text generated always as (upper(body)) stored;
select lives_ok($$ select steadytext_create_vectorizer('computed', array['loud'], model => 'builtin') $$, 'a stored column is embedded');
select lives_ok($$ select steadytext_create_enrichment('computed', 'x', '$loud', model => 'builtin') $$, 'and asked about');
\endif

select * from finish();
rollback;
