-- As 53_replacements.sql, by the processes that work for vectorizers, with the rights of an owner who is no superuser. The rows are committed.
\ir setup.psql
rollback;
select plan(12);

create role st_owner nologin;
create role st_reader nologin;
grant steadytext_user to st_owner;
grant create on schema public to st_owner;
create procedure pg_temp.rest() language plpgsql as $$
declare
    v_deadline timestamptz := clock_timestamp() + interval '5 minutes';
begin
    while exists (select from steadytext_vectorizer_status where state <> 'idle') loop
        commit;
        if clock_timestamp() > v_deadline then
            raise exception 'vectorizers do not come to rest: %', (select string_agg(concat_ws(' ', s.name, s.state, s.problem), '; ') from steadytext_vectorizer_status as s);
        end if;
        perform pg_sleep(0.05);
    end loop;
end
$$;
set role st_owner;
create table st_article (id bigint primary key, body text);
insert into st_article select i, 'row ' || i from generate_series(1, 30) as i;
create function st_noted() returns trigger language plpgsql as $$ begin return new; end $$;
create function st_length(p_text text) returns int immutable language plpgsql as $$ begin return length(p_text); end $$;
select steadytext_create_vectorizer('st_article', array['body'], name => 'st_table', destination => 'st_vectors', model => 'builtin');
select steadytext_create_vectorizer('st_article', array['body'], name => 'st_column', target_column => 'vec', model => 'builtin');
call pg_temp.rest();
alter table st_vectors add column size int generated always as (public.st_length(chunk)) stored, add constraint of_article foreign key (id) references st_article on delete cascade;
create index st_sizes on st_vectors (size);
create index st_tuned on st_vectors using hnsw (embedding vector_l2_ops) with (m = 8);
create trigger noted before insert on st_vectors for each row execute function st_noted();
create policy few on st_vectors for select to st_reader using (id < 4);
alter table st_vectors enable row level security;
grant select (id, chunk) on st_vectors to st_reader;
create view st_shown as select id, chunk, embedding from st_vectors where seq = 1;
create view st_inside as select id, vec from st_article;
create index st_half on st_article using hnsw ((vec::halfvec(256)) halfvec_l2_ops) where id > 3;
grant select (vec) on st_article to st_reader;
reset role;
create temporary table before as select 'st_vectors'::regclass::oid as vectors, a.attnum as column
from pg_attribute as a where a.attrelid = 'st_article'::regclass and a.attname = 'vec';
set role st_owner;
select steadytext_alter_vectorizer('st_table', format => 'T: $chunk');
select steadytext_alter_vectorizer('st_column', format => 'T: $chunk');
call pg_temp.rest();
reset role;
select is((select count(*) from steadytext_vectorizer_errors), 0::bigint, 'no row fails');
select isnt('st_vectors'::regclass::oid, (select vectors from before), 'the new table has taken the place of the old one');
select isnt((select a.attnum from pg_attribute as a where a.attrelid = 'st_article'::regclass and a.attname = 'vec'), (select "column" from before), 'and so has the new column');
select is((select count(*) from st_shown as s join st_article as a using (id) where s.embedding::text = steadytext_embed('T: ' || a.body)::text), 30::bigint, 'a view shows the new vectors of the table');
select is((select count(*) from st_inside as s join st_article as a using (id) where s.vec::text = steadytext_embed('T: ' || a.body)::text), 30::bigint, 'and those of the column');
select is((select count(*) from st_vectors as v where v.size = length(v.chunk)), 30::bigint, 'a generated column has its values');
set role st_reader;
select is((select count(chunk) from st_vectors), 3::bigint, 'others see what they saw, and no more');
select throws_ok('select embedding from st_vectors', '42501', null, 'by the columns that they may read');
select lives_ok('select vec from st_article', 'also of the source');
reset role;
select is(
    (select array_agg(c.relname order by c.relname) from pg_class as c join pg_index as i on i.indexrelid = c.oid
        where i.indrelid in ('st_vectors'::regclass, 'st_article'::regclass) and c.relname in ('st_sizes', 'st_tuned', 'st_half')),
    array['st_half', 'st_sizes', 'st_tuned']::name[], 'the indexes are there under their names');
select is((select array_agg(t.tgname) from pg_trigger as t where t.tgrelid = 'st_vectors'::regclass and not t.tgisinternal and t.tgname not like 'steadytext%'), array['noted']::name[], 'so is the trigger');
delete from st_article where id = 1;
select is((select count(*) from st_vectors where id = 1), 0::bigint, 'and the foreign key');

select steadytext_drop_vectorizer('st_table');
select steadytext_drop_vectorizer('st_column');
drop owned by st_owner, st_reader cascade;
drop role st_owner, st_reader;
select * from finish();
