-- What others have put on the vectors of a vectorizer when it is altered: it is there for the new vectors, or keeps the vectorizer from being altered.
\ir setup.psql
select plan(40);

create function pg_temp.id_of(p_name text) returns uuid language sql as $$ select v.id from steadytext_vectorizers as v where v.name = p_name $$;
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
-- Otherwise only the process that works for vectorizers may act as others.
create or replace function steadytext.run_as(p_role oid, p_statement text, p_argument jsonb) returns jsonb
language plpgsql as $$ begin execute p_statement; return null; end $$;
create function pg_temp.replace(p_name text) returns void language plpgsql as $$
begin
    perform steadytext.copy_indexes(v.replaces, v.id, v.owner_role::oid) from steadytext_vectorizers as v where v.id = pg_temp.id_of(p_name || ' (next)');
    perform steadytext.swap_vectorizer(pg_temp.id_of(p_name || ' (next)'));
end $$;
insert into steadytext_models (name, task, file, placement) values ('away', 'embed', 'away.gguf', 'elsewhere');
insert into steadytext_vector_lengths (model, file, length) values ('away', 'away.gguf', 8);
grant steadytext_user to current_user;

-- A table of its own.
create table article (id bigint primary key, title text, body text);
create table logged (what text);
create function noted() returns trigger language plpgsql as $$ begin return new; end $$;
select steadytext_create_vectorizer('article', array['body'], name => 'articles', destination => 'vectors', model => 'builtin');
alter table vectors set (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.01, toast.autovacuum_enabled = false);
alter table vectors alter column chunk set statistics 500, alter column chunk set storage external, alter column seq set (n_distinct = -0.5);
alter table vectors add column words tsvector generated always as (to_tsvector('simple', chunk)) stored;
alter table vectors add constraint short check (octet_length(chunk) < 100000), add constraint of_article foreign key (id) references article on delete cascade;
create index vectors_words on vectors using gin (words);
create index vectors_hash on vectors (content_hash) where seq = 1;
create index tuned on vectors using hnsw (embedding vector_cosine_ops) with (m = 8);
create statistics vectors_statistics on id, seq from vectors;
create trigger noted before insert on vectors for each row execute function noted();
create trigger always after insert on vectors for each row when (new.seq > 1) execute function noted();
alter table vectors enable always trigger always;
create rule logged as on delete to vectors do also insert into logged values ('deleted');
alter table vectors replica identity full;
create policy few on vectors for select to st_bob using (seq < 3);
alter table vectors enable row level security;
grant select on vectors to st_alice with grant option;
grant select (id, chunk), insert (chunk) on vectors to st_bob;
comment on table vectors is 'the table';
comment on column vectors.chunk is 'the chunk';
comment on index vectors_words is 'the index';
comment on policy few on vectors is 'the policy';
comment on trigger noted on vectors is 'the trigger';
comment on constraint short on vectors is 'the constraint';
create view shown with (security_barrier = true) as select id, chunk, embedding from vectors where seq = 1;
grant select on shown to st_bob;
comment on view shown is 'the view';
create view of_shown as select id from shown;
create function pg_temp.facts() returns table (fact text) language sql as $$
    select format('options: %s', reloptions) from pg_class where oid = 'vectors'::regclass
    union all select format('toast: %s', t.reloptions) from pg_class as c join pg_class as t on t.oid = c.reltoastrelid where c.oid = 'vectors'::regclass
    union all select format('replica identity: %s, row security: %s', relreplident, relrowsecurity) from pg_class where oid = 'vectors'::regclass
    union all select format('privileges: %s', array(select a::text from unnest(relacl) as a order by 1)) from pg_class where oid = 'vectors'::regclass
    union all select format('column %s: %s %s %s %s %s %s', attname, attstattarget, attstorage, array(select o from unnest(attoptions) as o where o ~ '^n_distinct'), attacl, attgenerated, col_description(attrelid, attnum))
        from pg_attribute where attrelid = 'vectors'::regclass and attnum > 0 and not attisdropped
    union all select format('constraint %s: %s %s', conname, pg_get_constraintdef(oid), obj_description(oid, 'pg_constraint'))
        from pg_constraint where conrelid = 'vectors'::regclass and contype <> 'p'
    union all select format('index %s %s', pg_get_indexdef(indexrelid), obj_description(indexrelid, 'pg_class'))
        from pg_index where indrelid = 'vectors'::regclass and indexrelid::regclass::text not like 'vectors_next_%' and indexrelid::regclass::text not in ('vectors_pkey', 'vectors_embedding_idx')
    union all select pg_get_statisticsobjdef(oid) from pg_statistic_ext where stxrelid = 'vectors'::regclass
    union all select format('%s %s %s', pg_get_triggerdef(oid), tgenabled, obj_description(oid, 'pg_trigger'))
        from pg_trigger where tgrelid = 'vectors'::regclass and not tgisinternal and tgname not like 'steadytext%'
    union all select pg_get_ruledef(oid) from pg_rewrite where ev_class = 'vectors'::regclass
    union all select format('policy %s: %s %s', polname, pg_get_expr(polqual, polrelid), obj_description(oid, 'pg_policy')) from pg_policy where polrelid = 'vectors'::regclass
    union all select format('view: %s %s %s %s', pg_get_viewdef(oid), reloptions, relacl, obj_description(oid, 'pg_class')) from pg_class where oid = 'shown'::regclass
$$;
create temporary table before as select fact from pg_temp.facts();
-- What default privileges give is not what the owner has given.
alter default privileges grant select on tables to st_stranger;
create temporary table old_table as select 'vectors'::regclass::oid as oid;
select steadytext_alter_vectorizer('articles', format => 'Text: $chunk');
select is((select count(*) from pg_attribute where attrelid = 'vectors_next'::regclass and attname = 'words'), 0::bigint, 'nothing that the owner has written is computed for who alters a vectorizer');
select steadytext.add_generated_columns(v.replaces, v.id, v.owner_role::oid) from steadytext_vectorizers as v where v.replaces is not null;
select is(has_table_privilege('st_stranger', 'vectors_next', 'select'), false, 'nobody else reads new vectors that are on their way');
insert into article values (1, 't', 'one');
insert into vectors_next (id, seq, chunk, embedding, model_hash, content_hash) values (1, 1, 'new', steadytext_embed('new'), '', '');
select pg_temp.replace('articles');
select isnt('vectors'::regclass::oid, (select oid from old_table), 'another table takes the place');
select set_eq('select fact from pg_temp.facts()', 'select fact from before', 'everything that others had put on the old one is on it');
select is((select words::text from vectors), '''new'':1', 'generated columns are filled');
select is((select chunk from shown), 'new', 'views read the new vectors');
select is((select count(*) from of_shown), 1::bigint, 'also views of views');
select is((select count(*) from pg_class where oid = (select oid from old_table)), 0::bigint, 'and the old ones are gone');
alter default privileges revoke select on tables from st_stranger;
select is((select count(*) from pg_class where relname like 'vectors%' and relkind = 'r'), 1::bigint, 'nothing stays behind');
select is((select count(*) from pg_class as c join pg_index as i on i.indexrelid = c.oid where i.indrelid = 'vectors'::regclass), 4::bigint, 'nor is an index made twice');

-- Obstacles.
select steadytext_alter_vectorizer('articles', format => 'Again: $chunk');
select pg_temp.replace('articles');
select is((select chunk from shown), null, 'it can be altered again');
select throws_ok(
    $$ select steadytext_alter_vectorizer('articles', model => 'away', chunk_size => 0) $$, '2BP01', 'view public.shown depends on the vectors that are to be replaced',
    'a view that shows the vectors cannot be one of vectors of another length');
drop view shown cascade;
create materialized view copied as select id from vectors;
select throws_ok(
    $$ select steadytext_alter_vectorizer('articles', distance => 'l2') $$, '2BP01', 'materialized view public.copied depends on the vectors that are to be replaced',
    'what cannot read the new vectors by itself keeps the vectorizer from being altered');
select is(
    pg_temp.hint($$ select steadytext_alter_vectorizer('articles', distance => 'l2') $$), 'Drop it, and make it anew when the new vectors have taken their place.', 'with a hint');
select is((select count(*) from steadytext_vectorizers where name = 'articles (next)'), 0::bigint, 'and nothing is made');
drop materialized view copied;
create table likes (id bigint, seq int, foreign key (id, seq) references vectors);
select throws_like($$ select steadytext_alter_vectorizer('articles', distance => 'l2') $$, 'constraint likes_id_seq_fkey on table %likes depends%', 'a foreign key does');
drop table likes;
create function first_of(vectors) returns int language sql as 'select 1';
select throws_like($$ select steadytext_alter_vectorizer('articles', distance => 'l2') $$, 'function %first_of%depends%', 'so does a function of its rows');
drop function first_of;
create table outside (id bigint);
create policy seen on outside using (id in (select v.id from vectors as v));
select throws_like($$ select steadytext_alter_vectorizer('articles', distance => 'l2') $$, 'policy seen on table %outside depends%', 'a policy of another table');
drop table outside;
create publication sent for table vectors;
select throws_like($$ select steadytext_alter_vectorizer('articles', distance => 'l2') $$, 'publication sent depends%', 'a publication');
select matches(pg_temp.hint($$ select steadytext_alter_vectorizer('articles', distance => 'l2') $$), 'ALTER PUBLICATION sent DROP TABLE public.vectors', 'with a hint of its own');
drop publication sent;
alter table vectors add column mine text;
select throws_like($$ select steadytext_alter_vectorizer('articles', distance => 'l2') $$, 'column mine of table %vectors depends%', 'and a column with values that nobody makes anew');
alter table vectors drop column mine;
create role st_carol;
grant select on vectors to st_carol;
grant create on schema public to st_carol;
set local role st_carol;
create view hers as select id from vectors;
reset role;
create table article_2 (id int primary key, body text);
alter table article_2 owner to st_alice;
grant create on schema public to st_alice;
select pg_temp.run_as('st_alice', $$ select steadytext_create_vectorizer('article_2', array['body'], name => 'hers', destination => 'vectors_2', index => 'none', model => 'builtin') $$);
grant select on vectors_2 to st_carol;
set local role st_carol;
create view others_view as select id from vectors_2;
reset role;
select throws_like(
    $$ select pg_temp.run_as('st_alice', $i$ select steadytext_alter_vectorizer('hers', format => 'X: $chunk') $i$) $$, '%others_view depends%',
    'a view of a role whose rights the owner has not');
drop view others_view;
select lives_ok($$ select pg_temp.run_as('st_alice', $i$ select steadytext_alter_vectorizer('hers', format => 'X: $chunk') $i$) $$, 'the owner alters it by rights of its own');
-- One that comes between.
create materialized view copied as select id from vectors_2;
select throws_like($$ select steadytext.swap_vectorizer(pg_temp.id_of('hers (next)')) $$, 'materialized view public.copied depends%Drop it, and make it anew%',
    'what comes while the new vectors are made keeps the old ones in their place');
drop materialized view copied;
select lives_ok($$ select steadytext.swap_vectorizer(pg_temp.id_of('hers (next)')) $$, 'until it is gone');
drop view hers;

-- Settings that are those of the whole table, and are made while it is empty.
create table plain (id int primary key, body text);
select steadytext_create_vectorizer('plain', array['body'], name => 'plain', destination => 'plain_vectors', index => 'none', model => 'builtin');
alter table plain_vectors set unlogged;
select steadytext_alter_vectorizer('plain', format => 'X: $chunk');
select is((select relpersistence from pg_class where relname = 'plain_vectors_next'), 'u', 'a table that is not logged is followed by one that is not');

-- A column of the table itself.
create table note (id int primary key, body text, tenant int);
select steadytext_create_vectorizer('note', array['body'], name => 'notes', target_column => 'vec', model => 'builtin');
alter table note alter column vec set statistics 300, alter column vec set storage plain, alter column vec_hash set statistics 10;
grant select (vec), update (vec) on note to st_bob;
grant select (vec_hash) on note to st_bob;
comment on column note.vec is 'the vector';
create index note_half on note using hnsw ((vec::halfvec(256)) halfvec_l2_ops) where tenant = 1;
comment on index note_half is 'halves';
create view note_vectors as select id, vec from note;
grant select on note_vectors to st_bob;
create function pg_temp.column_facts() returns table (fact text) language sql as $$
    select format('column %s: %s %s %s %s %s', attname, format_type(atttypid, atttypmod), attstattarget, attstorage, attacl, col_description(attrelid, attnum))
        from pg_attribute where attrelid = 'note'::regclass and attnum > 0 and not attisdropped
    union all select format('index %s %s', pg_get_indexdef(indexrelid), obj_description(indexrelid, 'pg_class'))
        from pg_index where indrelid = 'note'::regclass and indexrelid::regclass::text not in ('note_vec_idx', 'note_vec_next_idx')
    union all select format('view: %s %s', pg_get_viewdef(oid), relacl) from pg_class where oid = 'note_vectors'::regclass
$$;
create temporary table column_before as select fact from pg_temp.column_facts();
select steadytext_alter_vectorizer('notes', format => 'Note: $chunk');
select is((select count(*) from pg_index where indrelid = 'note'::regclass), 5::bigint, 'the indexes of others are made over the new column while it is empty');
insert into note (id, body, tenant, vec_next) values (1, 'one', 1, steadytext_embed('one'));
select pg_temp.replace('notes');
select set_eq('select fact from pg_temp.column_facts()', 'select fact from column_before', 'everything that others had put on the old column is on the new one');
select is((select count(vec) from note_vectors), 1::bigint, 'views read the new vectors');
select is((select array_agg(attname order by attnum) from pg_attribute where attrelid = 'note'::regclass and attnum > 0 and not attisdropped),
    array['id', 'body', 'tenant', 'vec', 'vec_hash']::name[], 'and no column stays behind');
select throws_like($$ select steadytext_alter_vectorizer('notes', model => 'away') $$, 'index public.note_half depends%', 'an index over vectors of one length is an obstacle to others');
drop index note_half;
select throws_like($$ select steadytext_alter_vectorizer('notes', model => 'away') $$, 'view public.note_vectors depends%', 'so is a view');
drop view note_vectors;
alter table note add column size int generated always as (vector_dims(vec)) stored;
select throws_like($$ select steadytext_alter_vectorizer('notes', format => 'X: $chunk') $$, '%column size of table %note depends%', 'a generated column');
alter table note drop column size;
alter table note add constraint long check (vector_dims(vec) > 1);
select throws_like($$ select steadytext_alter_vectorizer('notes', format => 'X: $chunk') $$, 'constraint long on table %note depends%', 'a constraint');
alter table note drop constraint long;
create trigger watched after update of vec on note for each row execute function noted();
select throws_like($$ select steadytext_alter_vectorizer('notes', format => 'X: $chunk') $$, 'trigger watched on table %note depends%', 'and a trigger');
drop trigger watched on note;
select lives_ok($$ select steadytext_alter_vectorizer('notes', model => 'away') $$, 'otherwise it can be altered to other vectors');
select pg_temp.replace('notes');
select is((select format_type(atttypid, atttypmod) from pg_attribute where attrelid = 'note'::regclass and attname = 'vec'), 'vector(8)', 'which take the place');

-- Partitions have privileges of their own.
create table parted (part int, id int, body text, primary key (part, id)) partition by list (part);
create table parted_1 partition of parted for values in (1);
select steadytext_create_vectorizer('parted', array['body'], name => 'parted', target_column => 'vec', index => 'none', model => 'builtin');
grant select (vec) on parted_1 to st_bob;
create index parted_own on parted using hnsw (vec vector_ip_ops);
select steadytext_alter_vectorizer('parted', format => 'X: $chunk');
select pg_temp.replace('parted');
select is(has_column_privilege('st_bob', 'parted_1', 'vec', 'select'), true, 'a partition keeps what its column had');
select is(has_column_privilege('st_bob', 'parted', 'vec', 'select'), false, 'and the table as little as before');
select is(pg_get_indexdef('parted_own'::regclass), 'CREATE INDEX parted_own ON ONLY public.parted USING hnsw (vec vector_ip_ops)', 'its indexes are those of the new column');

select * from finish();
rollback;
