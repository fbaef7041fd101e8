-- Vectorizers: definitions, what their triggers note, statements, rights. For the processing of the notes see
-- test/server/tests/vectorizers.rs.
\ir setup.psql
select plan(118);

grant create on schema public to st_alice, st_bob;
create function pg_temp.notes(p_name text) returns jsonb
language sql as $$
    select coalesce(jsonb_agg(w.key order by w.id), '[]')
    from steadytext_vectorizer_work as w join steadytext_vectorizers as v on v.id = w.vectorizer_id
    where v.name = p_name
$$;
create function pg_temp.forget() returns void language sql as $$ delete from steadytext_vectorizer_work $$;
create function pg_temp.id_of(p_name text) returns uuid language sql as $$ select v.id from steadytext_vectorizers as v where v.name = p_name $$;

-- Making one.
set local role st_alice;
create table article (id bigint primary key, title text, body text, read int default 0);
create table keyless (body text);
create view shown as select * from article;
reset role;
select is(
    pg_temp.run_as('st_alice', $$ select steadytext_create_vectorizer('article', array['title', 'body'], format => '$title: $chunk') $$),
    'article_title', 'a vectorizer is made, and named after table and column');
select has_table('article_title_embedding'::name, 'with a table for its vectors');
select is((select tableowner::text from pg_tables where tablename = 'article_title_embedding'), 'st_alice', 'which belongs to the owner of the source');
select is(
    (select owner_role::name::text from steadytext_vectorizers where name = 'article_title'), 'st_alice', 'as the definition does');
select results_eq(
    $$ select a.attname::text collate "default", format_type(a.atttypid, null) collate "default" from pg_attribute as a where a.attrelid = 'article_title_embedding'::regclass and a.attnum > 0 order by a.attnum $$,
    $$ values ('id', 'bigint'), ('seq', 'integer'), ('chunk', 'text'), ('embedding', 'vector'), ('model_hash', 'bytea'), ('content_hash', 'bytea') $$,
    'it has the key, the chunk, the vector and two hashes');
select results_eq(
    $$ select source::text, key_columns, key_types, source_columns, target_column, destination::text, problem
       from steadytext.vectorizer_place((select id from steadytext_vectorizers where name = 'article_title')) $$,
    $$ values ('article', array['id'], array['bigint'], array['title', 'body'], null::text, 'article_title_embedding', null::text) $$,
    'its place is known by its triggers');
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array['title']) $$, '42710', null, 'a name is taken once');
select is(
    steadytext_create_vectorizer('article', array['title'], if_not_exists => true), 'article_title', 'unless it need not be made');
select throws_ok($$ select steadytext_create_vectorizer('keyless', array['body']) $$, '42P16', null, 'a table needs a key');
select throws_ok($$ select steadytext_create_vectorizer('shown', array['body']) $$, '42809', null, 'a view cannot be vectorized');
select throws_ok($$ select steadytext_create_vectorizer('pg_class', array['relname']) $$, '42809', null, 'nor can a catalog');
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array['nothing'], name => 'x') $$, '42703', null, 'nor a column that there is not');
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array[]::text[], name => 'x') $$, '22023', null, 'there is at least one column');
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array['id'], name => 'x') $$, '22023', null, 'which is none of the key');
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array['body'], name => 'x', format => 'no chunk') $$, '22023', null, 'a format says where the text goes');
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array['body'], name => 'x', format => '$chunk $other') $$, '22023', null, 'and names columns of the vectorizer');
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array['body'], name => 'x', format => '$chunk $') $$, '22023', null, 'and has no lonely dollar');
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array['body'], name => 'x', format => '$body $chunk') $$, '22023', null, 'and leaves something to be cut');
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array['body'], name => 'x', destination => 'x1', index => 'btree') $$, '22023', null, 'an index is of a type for vectors');
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array['body'], name => 'x', destination => 'x1', priority => 11) $$, '22023', null, 'a priority is one of the queue');
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array['body'], name => 'x', destination => 'x1', model => 'no such model') $$, null, null, 'a model exists');
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array['body'], name => 'x', target_column => 'read') $$, '42804', null, 'a column for vectors has their type');
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array['body'], name => 'x', target_column => 'v', destination => 'x1') $$, '22023', null, 'vectors are in one place');
select is((select count(*) from steadytext_vectorizers), 1::bigint, 'what was refused has left nothing');

-- The notes of the triggers.
insert into article (id, title, body) values (1, 'a', 'one'), (2, 'b', 'two');
select is(pg_temp.notes('article_title'), '[[1], [2]]', 'new rows are noted');
select pg_temp.forget();
update article set read = read + 1;
select is(pg_temp.notes('article_title'), '[]', 'a change of another column is not');
update article set body = body;
select is(pg_temp.notes('article_title'), '[]', 'nor one that changes nothing');
update article set body = 'three' where id = 2;
select is(pg_temp.notes('article_title'), '[[2]]', 'a change of a text is');
select pg_temp.forget();
update article set id = 3 where id = 2;
select is(pg_temp.notes('article_title'), '[[2], [3]]', 'a change of a key is noted for both');
select pg_temp.forget();
delete from article where id = 3;
select is(pg_temp.notes('article_title'), '[[3]]', 'so is the end of a row');
select pg_temp.forget();
create function shout() returns trigger language plpgsql as $$ begin new.body := upper(new.body); return new; end $$;
create trigger shout before update on article for each row execute function shout();
update article set read = 7 where id = 1;
select is(pg_temp.notes('article_title'), '[[1]]', 'what a trigger changes is noted though the statement does not name it');
drop trigger shout on article;
select pg_temp.forget();
insert into article (id, title) values (1, 'again') on conflict (id) do update set title = excluded.title;
-- MERGE came with PostgreSQL 15.
select current_setting('server_version_num')::int >= 150000 as has_merge \gset
\if :has_merge
merge into article as a using (values (1), (9)) as v(id) on a.id = v.id
when matched then update set title = 'merged' when not matched then insert (id, body) values (v.id, 'nine');
\else
update article set title = 'merged' where id = 1;
insert into article (id, body) values (9, 'nine');
\endif
select is(pg_temp.notes('article_title'), '[[1], [1], [9]]', 'so is what ON CONFLICT and MERGE do');
select pg_temp.forget();
savepoint a;
insert into article (id, body) values (10, 'gone');
rollback to a;
select is(pg_temp.notes('article_title'), '[]', 'what is rolled back was never noted');
truncate article;
select is(pg_temp.notes('article_title'), '[null]', 'TRUNCATE is noted for the whole table');
select pg_temp.forget();
truncate article_title_embedding;
select is(pg_temp.notes('article_title'), '[null]', 'so is one of the vectors');
select pg_temp.forget();

-- Keys of several types.
create type mood as enum ('good', 'bad');
create domain small as int check (value < 100);
create table odd (a uuid, b timestamptz, c mood, d small, "E ""e" text, f numeric, body text, primary key (a, b, c, d, "E ""e", f));
grant steadytext_user to current_user;
select steadytext_create_vectorizer('odd', array['body']);
set timezone = 'Asia/Tokyo';
set datestyle = 'German';
insert into odd values ('00000000-0000-0000-0000-000000000001', '2026-01-02 03:04:05+00', 'bad', 7, 'it''s "x"', 1.50, 'text');
select is(
    pg_temp.notes('odd_body'), '[["00000000-0000-0000-0000-000000000001", "2026-01-02T03:04:05+00:00", "bad", 7, "it''s \"x\"", "1.50"]]',
    'keys are written the same way whatever the session''s settings');
set datestyle = 'ISO';
set timezone = 'UTC';
create function pg_temp.statement(p_name text, p_which text) returns text language plpgsql as $$
declare v jsonb;
begin
    select to_jsonb(s) into v from steadytext_vectorizers as d cross join steadytext.vectorizer_statements(d.id) as s where d.name = p_name;
    return v ->> p_which;
end $$;
create function pg_temp.result(p_statement text, p_argument jsonb) returns jsonb language plpgsql as $$
declare v jsonb;
begin
    execute p_statement into v using p_argument;
    return v;
end $$;
select is(
    pg_temp.result(pg_temp.statement('odd_body', 'read_rows'),
        (select jsonb_agg(jsonb_build_object('key', k, 'forced', false)) from jsonb_array_elements(pg_temp.notes('odd_body')) as k)) #>> '{rows,0,chunks,0}',
    'text', 'and the row is found again by it');
select is(
    pg_temp.result((pg_temp.statement('odd_body', 'scan_source')::jsonb) ->> 0, '{"limit": 10}') ->> 'count', '1', 'a search finds it');
select is(
    pg_temp.result((pg_temp.statement('odd_body', 'scan_source')::jsonb) ->> 1,
        jsonb_build_object('limit', 10, 'after', pg_temp.result((pg_temp.statement('odd_body', 'scan_source')::jsonb) ->> 0, '{"limit": 10}') -> 'last')) ->> 'count',
    '0', 'and nothing behind it');

-- Values that are written otherwise under other settings.
create table settings_matter (a float8, b tstzrange, c interval, d date[], e real[], f bytea, g regclass, h text, body text,
    primary key (a, b, c, d, e, f, g, h));
select steadytext_create_vectorizer('settings_matter', array['body'], index => 'none');
create schema elsewhere;
create table elsewhere.thing ();
set extra_float_digits = -3; set datestyle = 'SQL, DMY'; set intervalstyle = 'sql_standard'; set bytea_output = 'escape'; set timezone = 'Asia/Tokyo';
set search_path = elsewhere, public;
insert into settings_matter values (0.1::float8 + 0.2, '[2026-02-01 01:02:03.456789+00,)', '-1 year 2 months -3 days 04:05:06.7', array[date '2026-03-04'],
    array[1::real / 3], '\x00ff', 'thing'::regclass, E'a "quote" \\ and\n\x01', 'text');
reset extra_float_digits; reset datestyle; reset intervalstyle; reset bytea_output; reset search_path; set timezone = 'UTC';
select is(
    pg_temp.notes('settings_matter_body'),
    jsonb_build_array(jsonb_build_array(0.1::float8 + 0.2, '["2026-02-01 01:02:03.456789+00",)', '-10 mons -3 days +04:05:06.7', '{2026-03-04}', '{0.33333334}',
        '\x00ff', (select oid::text from pg_class where relname = 'thing'), E'a "quote" \\ and\n\x01')),
    'no setting changes what is noted of a key');
select is(
    pg_temp.result(pg_temp.statement('settings_matter_body', 'read_rows'),
        (select jsonb_agg(jsonb_build_object('key', k, 'forced', false)) from jsonb_array_elements(pg_temp.notes('settings_matter_body')) as k)) #>> '{rows,0,chunks,0}',
    'text', 'and the row is found again by it');
drop table settings_matter cascade;
select steadytext_drop_vectorizer('settings_matter_body', true);

-- Conflicts with existing objects.
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array['title'], name => 'second') $$, '42710', 'there is a table public.article_title_embedding already',
    'a table for vectors is of one vectorizer');
create table inside (id int primary key, body text);
select steadytext_create_vectorizer('inside', array['body'], target_column => 'v', index => 'none');
select throws_ok(
    $$ select steadytext_create_vectorizer('inside', array['body'], name => 'second', target_column => 'v') $$, '42710', 'column "v" has the vectors of another vectorizer',
    'so is a column');
select steadytext_drop_vectorizer('inside_body', true);
select columns_are('inside'::name, array['id', 'body']::name[], 'both columns go with it');
select is(
    (select truncate from steadytext_vectorizers where name = 'article_title'), false, 'texts are not cut unsaid');
select steadytext_alter_vectorizer('article_title', truncate => true);
select is((select truncate from steadytext_vectorizers where name = 'article_title'), true, 'but where that is wanted');

-- Sizes that the model cannot take.
select throws_ok(
    $$ select steadytext_create_vectorizer('article', array['body'], name => 'x', destination => 'x1', chunk_size => 3000) $$,
    '22023', format('chunk_size is 3000, and the model takes %s tokens', steadytext.context_tokens('builtin', 'embed')), 'a chunk is no longer than a text of the model');
select throws_ok(
    $$ select steadytext_alter_vectorizer('article_title', chunk_size => 3000) $$,
    '22023', format('chunk_size is 3000, and the model takes %s tokens', steadytext.context_tokens('builtin', 'embed')), 'also when it is altered');
select lives_ok(
    $$ select steadytext_create_vectorizer('article', array['body'], name => 'x', destination => 'x1', chunk_size => steadytext.context_tokens('builtin', 'embed')) $$,
    'as long as one is allowed');
select lives_ok($$ select steadytext_drop_vectorizer('x', drop_all => true, if_exists => true) $$, 'it is dropped');
select hasnt_table('x1'::name, 'with its vectors');
select lives_ok($$ select steadytext_drop_vectorizer('x', if_exists => true) $$, 'and need not be there');
select lives_ok($$ select st_drop_vectorizer('x', true, true) $$, 'by the short name, too');
select throws_ok($$ select steadytext_drop_vectorizer('x') $$, '42704', 'vectorizer "x" does not exist', 'otherwise it must be there');
select throws_ok($$ select pg_temp.run_as('st_bob', 'select steadytext_drop_vectorizer(''article_title'', if_exists => true)') $$, '42501', null, 'and belong to the caller');

-- The last try to write waits as long as the tries before it, between two seconds and a minute.
insert into steadytext_vectorizer_kept (vectorizer_id, key, content_hash, kept_at)
select v.id, to_jsonb(array[i.seconds]), '', clock_timestamp() - i.seconds * interval '1 second'
from steadytext_vectorizers as v cross join unnest(array[0, 20, 7200]) as i(seconds) where v.name = 'article_title';
select results_eq(
    $$ select round(extract(epoch from steadytext.kept_pause(k.vectorizer_id, k.key)) / 2) from steadytext_vectorizer_kept as k order by k.kept_at desc $$,
    $$ values (1::numeric), (10), (30) $$, 'tries come more and more rarely');
select is(steadytext.kept_pause((select id from steadytext_vectorizers where name = 'article_title'), '[1]'), null, 'where nothing is kept, nothing is said');
delete from steadytext_vectorizer_kept;
select steadytext_config_set('max_vectorizers_per_role', '1');
select throws_ok(
    $$ select pg_temp.run_as('st_alice', $i$ select steadytext_create_vectorizer('article', array['body'], name => 'x', destination => 'x1', index => 'none') $i$) $$,
    '53400', 'role "st_alice" has 1 vectorizers, as many as it may have', 'a role has so many of them');
select throws_ok(
    $$ select pg_temp.run_as('st_alice', $i$ insert into steadytext_vectorizers (name, source, columns, destination, dimensions, replaces)
        select 'x' || i, 'article', array['body'], 'x1', 256, v.id from steadytext_vectorizers as v, generate_series(1, 2) as i where v.name = 'article_title' $i$) $$,
    '23505', null, 'one definition at a time replaces another one, so that this is no way around');
select throws_ok(
    $$ select pg_temp.run_as('st_alice', $i$ insert into steadytext_vectorizers (name, source, columns, destination, dimensions, replaces)
        values ('x', 'article', array['body'], 'x1', 256, gen_random_uuid()) $i$) $$,
    '22023', null, 'nor is one that replaces nothing');
select steadytext_config_set('max_vectorizers_per_role', '100');

-- Administrators.
select throws_ok(
    $$ select pg_temp.run_as('st_root', $i$ update steadytext_vectorizers set format = 'mine: $chunk' where name = 'article_title' $i$) $$,
    '42501', 'must be owner of vectorizer "article_title"', 'an administrator does not say what is written into a table of somebody else''s');
select throws_ok(
    $$ select pg_temp.run_as('st_root', $i$ update steadytext_vectorizers set owner_role = steadytext.current_role_id() where name = 'article_title' $i$) $$,
    '42501', 'vectorizer "article_title" can only be given to the owner of its table', 'nor takes it over');
select is(
    pg_temp.run_as('st_root', $$ update steadytext_vectorizers set is_paused = false where name = 'article_title' returning is_paused $$),
    'false', 'but may pause it');

-- A domain for which somebody has made an operator in the schema of the type that it is made of.
create extension citext;
create domain mail as citext;
create function planted(mail, mail) returns boolean language plpgsql as $$ begin raise exception 'planted'; end $$;
create operator = (leftarg = mail, rightarg = mail, function = planted);
do $$
declare
    v_is boolean;
begin
    execute format('select %s', steadytext.key_comparison('''A''::mail', '=', '''a''::mail', 'mail'::regtype)) into v_is;
    perform set_config('test.is', v_is::text, true);
end
$$;
select is(current_setting('test.is'), 'true', 'keys are compared by the operator of their type''s order, whatever fits better');

-- In PostgreSQL, a role that may delete from a table may lock it.
create view st_view as select * from steadytext_vectorizer_work;
create view st_view_of_view as select * from st_view;
grant select, delete on st_view_of_view to st_bob;
select throws_ok(
    $$ select pg_temp.run_as('st_bob', 'lock table steadytext_vectorizer_work in access exclusive mode') $$,
    '42501', 'permission denied to lock a table of pg_steadytext', 'but not one of these');
select throws_ok(
    $$ select pg_temp.run_as('st_bob', 'lock table article, st_view_of_view in share mode') $$,
    '42501', 'permission denied to lock a table of pg_steadytext', 'nor by way of views');
create table st_plain (a int);
grant delete on st_plain to st_bob;
create view st_plain_view as select * from st_plain;
grant delete on st_plain_view to st_bob;
set local role st_bob;
select lives_ok('lock table st_plain in access exclusive mode', 'others are locked as ever');
select lives_ok('lock table st_plain_view in access exclusive mode', 'and views of others');
reset role;

-- Partitions.
create table parted (id int, part int, body text, primary key (part, id)) partition by list (part);
create table parted_1 partition of parted for values in (1);
create table parted_2 (body text, part int not null, id int not null);
select steadytext_create_vectorizer('parted', array['body'], index => 'none');
select steadytext.vectorizer_signature(pg_temp.id_of('parted_body')) as before \gset
alter table parted attach partition parted_2 for values in (2);
select isnt(steadytext.vectorizer_signature(pg_temp.id_of('parted_body')), :'before', 'a partition more is another signature');
insert into parted_2 values ('two', 2, 5);
insert into parted values (6, 1, 'one');
select is(pg_temp.notes('parted_body'), '[[2, 5], [1, 6]]', 'partitions note their rows, whatever the order of their columns');
select steadytext.vectorizer_signature(pg_temp.id_of('parted_body')) as before \gset
truncate parted_2;
select isnt(steadytext.vectorizer_signature(pg_temp.id_of('parted_body')), :'before', 'so is one that was emptied');
select steadytext.vectorizer_signature(pg_temp.id_of('parted_body')) as before \gset
alter table parted detach partition parted_1;
alter table parted attach partition parted_1 for values in (1);
select isnt(steadytext.vectorizer_signature(pg_temp.id_of('parted_body')), :'before', 'and one that was away');
-- In less time than lies between two looks.
create function pg_temp.differs(p_change text) returns boolean language plpgsql as $$
declare
    v_before text := steadytext.vectorizer_signature(pg_temp.id_of('parted_body'));
begin
    -- A transaction of its own writes with a number of its own.
    begin
        execute p_change;
    exception when division_by_zero then
        null;
    end;
    return steadytext.vectorizer_signature(pg_temp.id_of('parted_body')) <> v_before;
end
$$;
select ok(pg_temp.differs('alter table parted disable trigger user; alter table parted enable trigger user'), 'so is a table whose triggers were disabled for a moment');
select ok(pg_temp.differs('alter table parted_1 disable trigger user; alter table parted_1 enable trigger user'), 'and one of which a partition''s were');
select ok(pg_temp.differs('alter table parted owner to st_bob; alter table parted owner to st_alice'), 'and one that was another role''s');
select ok(not pg_temp.differs('alter table parted rename column body to said; alter table parted rename column said to body; create index on parted (id); analyze parted'),
    'names, indexes and statistics change nothing');

-- Renaming.
alter table odd rename column body to "the text";
alter table odd rename to odder;
select results_eq(
    $$ select source::text, source_columns from steadytext.vectorizer_place((select id from steadytext_vectorizers where name = 'odd_body')) $$,
    $$ values ('odder', array['the text']) $$, 'a definition follows its table and its columns');
select throws_ok('alter table odder drop column "the text"', '2BP01', null, 'which cannot be dropped without CASCADE');
drop table odder cascade;
select matches(
    (select problem from steadytext.vectorizer_place((select id from steadytext_vectorizers where name = 'odd_body'))), 'is gone',
    'a table that is gone is told');
select is((select state from steadytext_vectorizer_status where name = 'odd_body'), 'broken', 'in the status, too');
select lives_ok($$ select steadytext_drop_vectorizer('odd_body', true) $$, 'and its definition can be dropped');
select hasnt_table('odd_body_embedding'::name, 'with its vectors');

-- Formats.
select results_eq(
    $f$ select literal, name from steadytext.format_pieces('A $$ ${a b} $chunk.', array['a b']) order by n $f$,
    $$ values ('A ', null), ('$', null), (' ', null), (null, 'a b'), (' ', null), (null, 'chunk'), ('.', null) $$,
    'a format is texts and names');

-- Rights.
select throws_ok(
    $$ select pg_temp.run_as('st_bob', $i$ select steadytext_create_vectorizer('article', array['body'], name => 'bob') $i$) $$, '42501', null,
    'only the owner of a table has it vectorized');
select throws_ok(
    $$ select pg_temp.run_as('st_stranger', $i$ select steadytext_create_vectorizer('article', array['body'], name => 'x') $i$) $$, '42501', null,
    'and not without the right to use the extension');
select throws_ok(
    $$ select pg_temp.run_as('st_bob', $i$ select steadytext_drop_vectorizer('article_title') $i$) $$, '42501', null, 'others cannot drop it');
select throws_ok(
    $$ select pg_temp.run_as('st_bob', $i$ select steadytext_pause_vectorizer('article_title') $i$) $$, '42501', null, 'nor pause it');
select throws_ok(
    $$ select pg_temp.run_as('st_bob', $i$ select steadytext_reembed('article_title') $i$) $$, '42501', null, 'nor have it done again');
select throws_ok(
    $$ select pg_temp.run_as('st_bob', $i$ select steadytext.run_as(10, 'select 1', null) $i$) $$, '42501', null, 'nobody acts as others');
select throws_ok($$ select steadytext.run_as(10, 'select to_jsonb(1)', null) $$, '42501', null, 'not even superusers, but the process that works for vectorizers');
select is(
    pg_temp.written_as('st_bob', $$ update steadytext_vectorizers set is_paused = true $$), 0::bigint, 'definitions of others do not change');
select throws_ok(
    $$ select pg_temp.run_as('st_bob', $i$ insert into steadytext_vectorizers (name, owner_role, source, columns, destination, dimensions)
        values ('x', 'st_alice', 'article', '{body}', 'x', 256) $i$) $$, '42501', null, 'nobody makes definitions for others');
select throws_ok(
    $$ select pg_temp.run_as('st_bob', $i$ insert into steadytext_vectorizers (name, owner_role, source, columns, destination, dimensions, replaces)
        select 'x', 'st_bob', 'article', '{body}', 'x', 256, id from steadytext_vectorizers where name = 'article_title' $i$) $$, '22023', null, 'nor successors of theirs');
insert into article (id, body) values (1, 'one');
select is(pg_temp.run_as('st_bob', $$ select count(*) from steadytext_vectorizer_work $$), '0', 'others do not see what is to be done');
select is(pg_temp.run_as('st_alice', $$ select count(*) from steadytext_vectorizer_work w join steadytext_vectorizers v on v.id = w.vectorizer_id where v.name = 'article_title' $$), '1', 'the owner does');
-- A trigger that names somebody else's definition.
select set_config('test.id', id::text, true) from steadytext_vectorizers where name = 'article_title';
select pg_temp.forget();
set local role st_bob;
create table trap (id int primary key, body text);
do $$ begin
    execute format('create trigger trap after insert or delete or update of id, body on trap for each row execute function steadytext.note_row(%L, 1, 1)', current_setting('test.id'));
end $$;
insert into trap values (1, 'flood');
reset role;
select is(pg_temp.notes('article_title'), '[]', 'a trigger on a table of another role notes nothing');
select is(
    (select source::text from steadytext.vectorizer_place(current_setting('test.id')::uuid)), 'article', 'and changes nothing about the place');
select is(
    pg_temp.run_as('st_bob', $$ select count(*) from steadytext_vectorizer_status $$), '0', 'the status is of one''s own vectorizers');
select is(
    pg_temp.run_as('st_root', $$ select count(*) from steadytext_vectorizer_status where name = 'article_title' $$), '1', 'administrators see all');
select is(
    pg_temp.run_as('st_alice', $$ select steadytext_drop_vectorizer('article_title', true) $$), '', 'the owner drops it');
select is(
    (select count(*) from pg_trigger where tgrelid = 'article'::regclass), 0::bigint, 'and its triggers are gone');

-- A column of plain vector, of which pgvector makes no index.
create function pg_temp.type_of(p_column text) returns text language sql as $$
    select format_type(a.atttypid, a.atttypmod) from pg_attribute as a where a.attrelid = to_regclass('plain') and a.attname = p_column
$$;
set local role st_alice;
create table plain (id bigint primary key, body text, empty vector, fitting vector, other vector, seen vector);
insert into plain (id, body) values (1, 'one'), (2, 'two');
update plain set other = '[1,2,3]', fitting = steadytext_embed(body) where id = 1;
create view seen as select seen from plain;
select steadytext_create_vectorizer('plain', array['body'], name => 'empty', target_column => 'empty');
select steadytext_create_vectorizer('plain', array['body'], name => 'fitting', target_column => 'fitting');
reset role;
select is(pg_temp.type_of('empty'), 'vector(256)', 'gets its dimensions where it is empty');
select is(pg_temp.type_of('fitting'), 'vector(256)', 'and where its vectors have them');
select is(
    (select count(*) from pg_index as i join pg_am as a on a.amname = 'hnsw' join pg_class as c on c.oid = i.indexrelid and c.relam = a.oid
     where i.indrelid = 'plain'::regclass), 2::bigint, 'so that both are indexed');
select throws_ok(
    $$ select pg_temp.run_as('st_alice', $i$ select steadytext_create_vectorizer('plain', array['body'], name => 'x', target_column => 'other') $i$) $$,
    '42804', 'column "other" has vectors of any length, and an index takes those of one length', 'vectors of another length are in the way');
select throws_ok(
    $$ select pg_temp.run_as('st_alice', $i$ select steadytext_create_vectorizer('plain', array['body'], name => 'x', target_column => 'seen') $i$) $$,
    '42804', 'column "seen" has vectors of any length, and an index takes those of one length', 'and so is a view of the column');
select is(
    pg_temp.run_as('st_alice', $$ select steadytext_create_vectorizer('plain', array['body'], name => 'other', target_column => 'other', index => 'none') $$)
        || ' ' || pg_temp.type_of('other'), 'other vector', 'but where no index is wanted, the type stays');

-- A definition that waits for a limit of its owner's is due as soon as the limit allows something; one that waits for a full
-- queue is not.
insert into steadytext_vectorizer_state (vectorizer_id, is_limited, is_out_of_requests, retry_at)
select v.id, true, v.name = 'empty', clock_timestamp() + case v.name when 'empty' then interval '4 seconds' else interval '1 hour' end
from steadytext_vectorizers as v where v.name in ('empty', 'fitting')
on conflict (vectorizer_id) do update set is_limited = true, is_out_of_requests = excluded.is_out_of_requests, retry_at = excluded.retry_at;
select is(
    (select array_agg(v.name order by v.name) from steadytext.vectorizers_due(true, false) as d join steadytext_vectorizers as v on v.id = d.id
     where v.name in ('empty', 'fitting')), array['empty'], 'a limit that has gone is not waited for, but a full queue');
update steadytext_vectorizer_state set retry_at = clock_timestamp() + interval '1 hour';
select pg_temp.run_as('st_root', $$ select steadytext_set_limit('st_alice', requests_per_minute => 0) $$);
select is(
    (select count(*) from steadytext.vectorizers_due(true, false) as d join steadytext_vectorizers as v on v.id = d.id
     where v.name in ('empty', 'fitting')), 0::bigint, 'and neither is due while the limit is there');

-- A table that gets another owner, and its definition with it.
set local role st_alice;
create table given (id int primary key, body text);
select steadytext_create_vectorizer('given', array['body'], name => 'given', index => 'none', model => 'builtin');
reset role;
alter table given owner to st_bob;
select throws_ok(
    $$ select pg_temp.written_as('st_root', $i$ update steadytext_vectorizers set owner_role = 'st_stranger' where name = 'given' $i$) $$, '42501', null,
    'an administrator gives a definition to nobody but the owner of its table');
select is(
    pg_temp.written_as('st_root', $$ update steadytext_vectorizers set owner_role = 'st_bob' where name = 'given' $$), 1::bigint, 'to whom it is given');
alter table given_body_embedding owner to st_bob;
select is(steadytext.definition_problem(pg_temp.id_of('given')), null, 'it works for that one then');
set local role st_bob;
create table lure (id int primary key, body text);
do $$ begin
    execute format('create trigger lure after insert on lure for each row execute function steadytext.note_row(%L, 1, 1)', pg_temp.id_of('empty'));
end $$;
reset role;
select throws_ok(
    $$ select pg_temp.written_as('st_root', $i$ update steadytext_vectorizers set owner_role = 'st_bob' where name = 'empty' $i$) $$, '42501', null,
    'who names a definition in a trigger is not the owner of its table');

select pg_temp.run_as('st_root', $$ select steadytext_set_limit('st_alice', requests_per_minute => 1000) $$);
-- A definition that its owner drops, who is no superuser, leaves nothing and has nothing computed any more.
set local role st_alice;
create table dropped (id int primary key, body text);
select steadytext_create_vectorizer('dropped', array['body'], name => 'dropped', index => 'none', model => 'builtin');
insert into dropped values (1, 'one');
select steadytext_embed_async('asked for it', use_cache => false) as request_id \gset
reset role;
select set_config('test.dropped', pg_temp.id_of('dropped')::text, true);
insert into steadytext_vectorizer_state (vectorizer_id) select current_setting('test.dropped')::uuid on conflict do nothing;
insert into steadytext_vectorizer_batches (request_id, vectorizer_id, keys) values (:'request_id', current_setting('test.dropped')::uuid, '[]');
insert into steadytext_vectorizer_failures (vectorizer_id, key, error, error_code) values (current_setting('test.dropped')::uuid, '[1]', 'x', '22023');
insert into steadytext_vectorizer_kept (vectorizer_id, key, content_hash) values (current_setting('test.dropped')::uuid, '[1]', '');
insert into steadytext_enrichment_rows (enrichment_id, key, content_hash, made_by) values (current_setting('test.dropped')::uuid, '[1]', '', gen_random_uuid());
create function pg_temp.left_of(p_id uuid) returns text[] language sql as $$
    select array_agg(t.name order by t.name)
    from (
        select 'work' from steadytext_vectorizer_work where vectorizer_id = p_id
        union select 'state' from steadytext_vectorizer_state where vectorizer_id = p_id
        union select 'batches' from steadytext_vectorizer_batches where vectorizer_id = p_id
        union select 'failures' from steadytext_vectorizer_failures where vectorizer_id = p_id
        union select 'kept' from steadytext_vectorizer_kept where vectorizer_id = p_id
        union select 'rows' from steadytext_enrichment_rows where enrichment_id = p_id
    ) as t(name)
$$;
select is(pg_temp.left_of(current_setting('test.dropped')::uuid), array['batches', 'failures', 'kept', 'rows', 'state', 'work'], 'there is something of everything');
select pg_temp.run_as('st_alice', $$ select steadytext_drop_vectorizer('dropped', true) $$);
select is(pg_temp.left_of(current_setting('test.dropped')::uuid), null, 'and nothing afterwards');
select is((select q.status from steadytext_queue as q where q.request_id = :'request_id'), 'cancelled', 'the request is cancelled');

-- Columns of the key that are called as those of the table of the vectors.
create table numbered (seq int, key_seq int, chunk text, body text, primary key (seq, key_seq, chunk));
select lives_ok($$ select steadytext_create_vectorizer('numbered', array['body'], name => 'numbered', index => 'none', model => 'builtin') $$, 'keys of any names are possible');
select is(
    (select array_agg(a.attname::text order by a.attnum) from pg_attribute as a where a.attrelid = 'numbered_body_embedding'::regclass and a.attnum between 1 and 4),
    array['key_key_seq', 'key_seq', 'key_chunk', 'seq'], 'the columns for them have names of their own');

select * from finish();
rollback;
