-- Names at their longest, names that differ by case, columns that only have the name of a definition's, and refusals that nobody makes up.
\ir setup.psql
select plan(64);

grant steadytext_user to current_user;
create function pg_temp.id_of(p_name text) returns uuid language sql as $$ select v.id from steadytext_vectorizers as v where v.name = p_name $$;
create function pg_temp.columns_of(p_table regclass) returns text[] language sql as $$
    select array_agg(a.attname::text order by a.attnum) from pg_attribute as a where a.attrelid = p_table and a.attnum > 0 and not a.attisdropped
$$;
-- A name of so many bytes that begins with as many characters of four bytes as fit before the last three bytes.
create function pg_temp.name_of(p_bytes integer) returns text language sql as $$
    select repeat(U&'\+01F600', (p_bytes - 3) / 4) || repeat('x', p_bytes - 4 * ((p_bytes - 3) / 4))
$$;

-- Names with something behind them.
select is(
    (select count(*) from generate_series(1, 70) as n cross join unnest(array['x', U&'\00E9', U&'\20AC', U&'\+01F600']) as c(character)
        cross join unnest(array['_hash', '_next', '_12345678']) as s(suffix)
        cross join lateral (select steadytext.appended_name(repeat(c.character, n), s.suffix) as name) as a
        where octet_length(a.name) > 63 or a.name <> left(repeat(c.character, n), length(a.name) - length(s.suffix)) || s.suffix
            or octet_length(a.name) + 4 <= 63 and length(a.name) < n + length(s.suffix)),
    0::bigint, 'names with something behind them are identifiers, no shorter than they must be, and end between characters');

-- Vectorizers into columns.
create function pg_temp.lives_in_column(p_bytes integer) returns text language plpgsql as $$
declare
    v_target text := pg_temp.name_of(p_bytes);
    v_step text := 'create';
begin
    create table held (id int primary key, body text, title text);
    perform steadytext_create_vectorizer('held', array['body'], name => 'held', target_column => v_target, index => 'none', model => 'builtin');
    if pg_temp.columns_of('held') <> array['id', 'body', 'title', v_target, steadytext.appended_name(v_target, '_hash')] then
        return 'columns are ' || pg_temp.columns_of('held')::text;
    end if;
    if (select p.target_column from steadytext.vectorizer_place(pg_temp.id_of('held')) as p) is distinct from v_target then
        return 'its column is not known';
    end if;
    v_step := 'alter';
    perform steadytext_alter_vectorizer('held', columns => array['title']);
    if cardinality(pg_temp.columns_of('held')) <> 7 or (select p.target_column from steadytext.vectorizer_place(pg_temp.id_of('held (next)')) as p)
        is distinct from steadytext.appended_name(v_target, '_next')
    then
        return 'columns are ' || pg_temp.columns_of('held')::text;
    end if;
    v_step := 'drop';
    perform steadytext_drop_vectorizer('held', drop_all => true);
    if pg_temp.columns_of('held') <> '{id,body,title}' then
        return 'columns are left: ' || pg_temp.columns_of('held')::text;
    end if;
    v_step := 'enrichment';
    perform steadytext_create_enrichment('held', v_target, '$body', name => 'kept');
    perform steadytext_alter_enrichment('kept', prompt => '$title');
    if (select p.target_column from steadytext.vectorizer_place(pg_temp.id_of('kept')) as p) is distinct from v_target then
        return 'the column of the enrichment is not known';
    end if;
    perform steadytext_drop_enrichment('kept', drop_all => true);
    if pg_temp.columns_of('held') <> '{id,body,title}' then
        return 'columns are left: ' || pg_temp.columns_of('held')::text;
    end if;
    drop table held;
    return 'ok';
exception when others then
    return v_step || ': ' || sqlerrm;
end $$;
select is(pg_temp.lives_in_column(n), 'ok', 'a column whose name has ' || n || ' bytes') from generate_series(55, 63) as n;

-- And into tables of their own, of a table whose name is as long.
create function pg_temp.lives_in_table(p_bytes integer) returns text language plpgsql as $$
declare
    v_table text := pg_temp.name_of(p_bytes);
    v_destination text := 'y' || pg_temp.name_of(p_bytes - 1);
    v_before bigint := (select count(*) from pg_class);
    v_step text := 'create';
begin
    execute format('create table %I (id int primary key, %I text)', v_table, v_destination);
    perform steadytext_create_vectorizer(format('%I', v_table)::regclass, array[v_destination], destination => v_destination, index => 'none', model => 'builtin');
    v_step := 'alter';
    perform steadytext_alter_vectorizer((select v.name from steadytext_vectorizers as v), chunk_size => 16);
    if to_regclass(format('%I', steadytext.appended_name(v_destination, '_next'))) is null then
        return 'the next table is not there';
    end if;
    v_step := 'drop';
    perform steadytext_drop_vectorizer((select v.name from steadytext_vectorizers as v where v.replaces is null), drop_all => true);
    execute format('drop table %I', v_table);
    if (select count(*) from pg_class) <> v_before or exists (select from steadytext_vectorizers) then
        return 'something is left';
    end if;
    return 'ok';
exception when others then
    return v_step || ': ' || sqlerrm;
end $$;
select is(pg_temp.lives_in_table(n), 'ok', 'tables whose names have ' || n || ' bytes') from generate_series(55, 63) as n;

create table long (id int primary key, body text, title text);
select throws_ok(
    format($$ select steadytext_create_vectorizer('long', array['body'], target_column => %L, index => 'none') $$, pg_temp.name_of(64)), '42622', null,
    'what PostgreSQL would cut is no name of a column');
select throws_ok(
    format($$ select steadytext_create_vectorizer('long', array['body'], destination => %L, index => 'none') $$, pg_temp.name_of(64)), '42622', null, 'nor of a table');
select throws_ok(format($$ select steadytext_create_enrichment('long', %L, '$body') $$, pg_temp.name_of(64)), '42622', null, 'nor of one that is enriched');

-- Names of definitions that begin alike.
select lives_ok(format(
    $$ select steadytext_create_vectorizer('long', array['body'], name => %L, target_column => %L, index => 'none', model => 'builtin') $$, repeat('n', 95) || e, 'vec_' || e),
    'a long name that ends with ' || e) from unnest(array['a', 'b']) as e;
select lives_ok(format($$ select steadytext_alter_vectorizer(%L, columns => array['title']) $$, repeat('n', 95) || e), 'is altered') from unnest(array['a', 'b']) as e;
select is((select count(*) from steadytext_vectorizers where name like '% (next)'), 2::bigint, 'both at the same time');
select steadytext_drop_vectorizer(repeat('n', 95) || e, drop_all => true) from unnest(array['a', 'b']) as e;

-- A column of the user's own, of the same name and type as the one that was dropped, with the hashes still there.
create table owned (id int primary key, body text, title text);
select steadytext_create_vectorizer('owned', array['body'], name => 'owned', target_column => 'vec', index => 'none', model => 'builtin');
alter table owned drop column vec cascade;
do $$ begin
    execute format('alter table owned add column vec %s(256)', (
        select format_type(a.atttypid, null) from pg_attribute as a where a.attrelid = 'steadytext_queue'::regclass and a.attname = 'embedding'));
end $$;
insert into owned (id, vec) select 1, ('[' || array_to_string(array_fill(1, array[256]), ',') || ']')::text::public.vector;
select results_eq(
    $$ select p.target_column, p.hash_column from steadytext.vectorizer_place(pg_temp.id_of('owned')) as p $$, $$ values (null::text, 'vec_hash') $$,
    'a column that is made anew is not the definition''s, and the hashes still are');
select steadytext_alter_vectorizer('owned', columns => array['title']);
select steadytext_drop_vectorizer('owned', drop_all => true);
select is(pg_temp.columns_of('owned'), '{id,body,title,vec}', 'with everything of the definition it stays');
select is((select count(vec) from owned), 1::bigint, 'with its values');
-- A column of an enrichment that was made anew.
select steadytext_create_enrichment('owned', 'kind', '$body', name => 'owned');
alter table owned drop column kind cascade;
alter table owned add column kind text;
select is((select p.target_column from steadytext.vectorizer_place(pg_temp.id_of('owned')) as p), null, 'nor is one of an enrichment');
select steadytext_drop_enrichment('owned', drop_all => true);
select has_column('owned', 'kind', 'which stays as well');

-- A target that was renamed, and then a column that is read is dropped.
create table renamed (id int primary key, body text, title text);
select steadytext_create_vectorizer('renamed', array['body'], name => 'renamed', target_column => 'vec', index => 'none', model => 'builtin');
select steadytext_create_enrichment('renamed', 'kind', '$body', name => 'renamed_too');
alter table renamed rename column vec to direction;
alter table renamed rename column vec_hash to origin;
alter table renamed rename column kind to sort;
alter table renamed drop column body cascade;
select results_eq(
    $$ select p.target_column, p.hash_column, p.source_columns from steadytext.vectorizer_place(pg_temp.id_of('renamed')) as p $$,
    $$ values ('direction', 'origin', null::text[]) $$, 'it is known by its present name');
select steadytext_alter_vectorizer('renamed', columns => array['title']);
select is(
    (select p.target_column from steadytext.vectorizer_place(pg_temp.id_of('renamed (next)')) as p), 'direction_next', 'and the next one is called after that');
select lives_ok($$ select steadytext_alter_enrichment('renamed_too', prompt => '$title') $$, 'an enrichment is given another prompt');
select is((select p.target_column from steadytext.vectorizer_place(pg_temp.id_of('renamed_too')) as p), 'sort', 'and fills the same column');
select steadytext_drop_vectorizer('renamed', drop_all => true);
select steadytext_drop_enrichment('renamed_too', drop_all => true);
select is(pg_temp.columns_of('renamed'), '{id,title}', 'all of it is dropped by its present name');

-- A definition that waits for a limit is not broken.
create table waiting (id int primary key, body text);
select steadytext_create_vectorizer('waiting', array['body'], name => 'waiting', target_column => 'vec', index => 'none', model => 'builtin');
select steadytext_create_enrichment('waiting', 'kind', '$body', name => 'waiting');
insert into steadytext_vectorizer_state (vectorizer_id) select v.id from steadytext_vectorizers as v;
select lives_ok(
    $$ select steadytext.note_definition_error(v.id, 'role "x" has used up its 1 request per day', '53400', false) from steadytext_vectorizers as v $$,
    'a limit is met');
select is((select s.state from steadytext_vectorizer_status as s), 'waiting_for_limit', 'the vectorizer waits');
select is((select s.problem from steadytext_vectorizer_status as s), 'role "x" has used up its 1 request per day', 'and says for what');
select is((select s.state from steadytext_enrichment_status as s), 'waiting_for_limit', 'so does the enrichment');
select steadytext.note_definition_error(v.id, 'something else', 'XX000', false) from steadytext_vectorizers as v;
select is((select s.state from steadytext_vectorizer_status as s), 'broken', 'something else is something else');
select is((select s.state from steadytext_enrichment_status as s), 'broken', 'of an enrichment, too');

-- The room that a limit leaves.
select is(steadytext.limit_room('st_alice'::regrole, true), null, 'without a limit there is room');
select steadytext_set_limit('st_alice', requests_per_minute => 5, requests_per_day => 7);
select is(steadytext.limit_room('st_alice'::regrole, true), 5::bigint, 'the strictest one counts');
select pg_temp.run_as('st_alice', $$ select steadytext_generate_async('x') $$) from generate_series(1, 3);
select is(steadytext.limit_room('st_alice'::regrole, true), 2::bigint, 'what was asked for is no room');
select is(steadytext.limit_room('st_alice'::regrole, false), 5::bigint, 'but later');
select is(steadytext.limit_wait('st_alice'::regrole, 2), null, 'two more may be asked for at once');
select ok(steadytext.limit_wait('st_alice'::regrole, 3) between 1 and 61, 'three more in a while');
select is(steadytext.limit_wait('st_alice'::regrole, 6), 3600::double precision, 'six never');

-- Names of models.
insert into steadytext_models (name, task, file) values ('Mine', 'generate', 'mine.gguf');
select throws_ok($$ insert into steadytext_models (name, task, file) values ('mINE', 'embed', 'x.gguf') $$, '23505', null, 'case makes no other name');
select throws_ok($$ update steadytext_models set name = 'MINE' where name = 'embedding' $$, '23505', null, 'not by a change either');
select lives_ok($$ update steadytext_models set name = 'mine' where name = 'Mine' $$, 'a row may be written in another case');
select lives_ok(
    $$ insert into steadytext_models (name, task, file) values ('mine', 'generate', 'other.gguf') on conflict (name) do update set file = excluded.file $$,
    'or be given again by its name');
select is((select file from steadytext_models where name = 'mine'), 'other.gguf', 'and has changed');
alter table steadytext_models disable trigger check_model;
select throws_ok($$ insert into steadytext_models (name, task, file) values ('MINE', 'generate', 'x.gguf') $$, '23505', null, 'an index says so where triggers do not');
alter table steadytext_models enable always trigger check_model;
select lives_ok($$ insert into steadytext_models (name, task, file) values ('SMALL', 'generate', 'x.gguf') $$, 'a row takes the place of a default one');
select is((select array_agg(name) from steadytext_models where lower(name) = 'small'), '{SMALL}', 'in whatever case');

-- Refusals.
select is(
    array(select r from unnest(array['st_alice', 'st_root', 'st_remote', 'st_stranger']) as r where has_function_privilege(r, 'steadytext.note_refusal(text)', 'execute')),
    '{}', 'nobody notes refusals of his own');
select throws_ok(
    $$ select pg_temp.run_as('st_alice', $i$ select steadytext.refuse_change('vectorizer', 'waiting', null) $i$) $$, '42501', 'must be owner of vectorizer "waiting"',
    'who calls what refuses is refused');
select throws_ok(
    $$ select pg_temp.run_as('st_alice', $i$ select steadytext_pause_vectorizer('waiting') $i$) $$, '42501', 'must be owner of vectorizer "waiting"', 'as by what calls it');

-- The messages of failures are bounded.
create temporary table held as
select c.id, c.attempt from steadytext.claim_requests('local:a', 3, 60, null, false) as c;
select is((select count(*) from held), 3::bigint, 'three requests are claimed');
select lives_ok(
    $$ select steadytext.fail_requests('local:a', array_agg(h.id order by h.id), array_agg(h.attempt order by h.id),
        array[repeat('x', 1000000), null, 'said'], array['way too long a code', E'\n\n\n\n\n', '22023'], array[false, null, false]) from held as h $$, 'they fail');
select results_eq(
    $$ select length(q.error), q.error_code, q.status from steadytext_queue as q join held as h using (id) order by id $$,
    $$ values (65536, 'XX000', 'failed'), (13, 'XX000', 'failed'), (4, '22023', 'failed') $$, 'with as much of an error as a row has room for, and a code that is one');

select * from finish();
rollback;
