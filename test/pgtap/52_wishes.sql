-- What users ask vectorizers and enrichments for holds until it is done, whatever comes in between: rows that are locked, requests that fail or are lost,
-- definitions that are altered. The steps run in this session, which answers the requests in the place of a worker.
\ir setup.psql
select plan(41);

create function pg_temp.id_of(p_name text) returns uuid language sql as $$ select v.id from steadytext_vectorizers as v where v.name = p_name $$;
-- Otherwise only the process that works for definitions may act as others. While test.locked is on, every row seems to be locked by somebody.
create or replace function steadytext.run_as(p_role oid, p_statement text, p_argument jsonb) returns jsonb
language plpgsql as $$
declare
    v_result jsonb;
begin
    if p_argument is null then
        execute p_statement;
    elsif current_setting('test.locked', true) is distinct from 'on' or p_statement !~ 'skip locked' then
        execute p_statement into v_result using p_argument;
    end if;
    return v_result;
end $$;
-- All that can be done now, work that waits for a time included.
create function pg_temp.steps(p_name text, p_look boolean default false) returns void language plpgsql as $$
begin
    update steadytext_vectorizer_work set run_after = null where vectorizer_id = pg_temp.id_of(p_name);
    for v_step in 1 .. 100 loop
        if not steadytext.vectorizer_step(pg_temp.id_of(p_name), p_look and v_step = 1, false) then
            return;
        end if;
    end loop;
    raise exception 'the steps come to no end';
end $$;
create function pg_temp.answer(p_value text) returns void language sql as $$
    update steadytext_queue set status = 'completed', result = p_value, completed_at = now() where status = 'pending'
$$;
create function pg_temp.fail(p_code text) returns void language sql as $$
    update steadytext_queue set status = 'failed', error = 'a failure of the test', error_code = p_code, completed_at = now() where status = 'pending'
$$;
create function pg_temp.asked() returns bigint language sql as $$ select count(*) from steadytext_queue where status = 'pending' $$;

grant steadytext_user to current_user;
create table t (id int primary key, body text, kind text);
create function pg_temp.kinds() returns text language sql as $$ select string_agg(coalesce(t.kind, '-'), ' ' order by t.id) from t $$;
insert into t values (1, 'one', 'mine'), (2, 'two', 'mine'), (3, 'three', null);
select steadytext_create_enrichment('t', 'kind', '$body', 'generate_choice', '{"choices": ["a", "b"]}', name => 'kinds', model => 'builtin');
select pg_temp.steps('kinds');
select is(pg_temp.asked(), 1::bigint, 'one row has no value');
select pg_temp.answer('a');
select pg_temp.steps('kinds');
select is(pg_temp.kinds(), 'mine mine a', 'it gets one, and what somebody has written is kept');
select steadytext_refresh_enrichment('kinds');
select pg_temp.steps('kinds');
select is(pg_temp.asked(), 1::bigint, 'also when values are made anew');
select pg_temp.answer('b');
select pg_temp.steps('kinds');
select is(pg_temp.kinds(), 'mine mine b', 'which are those that were made');

-- Rows that are locked when their values come.
select steadytext_refresh_enrichment('kinds', kept => true);
select pg_temp.steps('kinds');
select is(pg_temp.asked(), 3::bigint, 'every value is made anew where that is said');
select is((select stale from steadytext_enrichment_status where name = 'kinds'), 3::bigint, 'and counts as stale until then');
set test.locked = on;
select pg_temp.answer('L');
select pg_temp.steps('kinds');
set test.locked = off;
select is(pg_temp.kinds(), 'mine mine b', 'nothing is written into rows that are locked');
select pg_temp.steps('kinds');
select is(pg_temp.kinds(), 'L L L', 'but afterwards, also over what somebody had written');
select is(pg_temp.asked(), 0::bigint, 'and nothing is asked twice');

-- Requests that fail for a reason of the moment, are lost, or cannot be made for a while.
update t set kind = 'mine' where id < 3;
select pg_temp.steps('kinds');
select is((select kept from steadytext_enrichment_status where name = 'kinds'), 2::bigint, 'what is written over a value counts as kept');
select steadytext_refresh_enrichment('kinds', kept => true);
select pg_temp.steps('kinds');
select pg_temp.fail('XX000');
select pg_temp.steps('kinds');
select pg_temp.steps('kinds');
select is(pg_temp.asked(), 3::bigint, 'requests that fail for a reason of the moment are made again');
delete from steadytext_queue;
select pg_temp.steps('kinds');
select pg_temp.steps('kinds');
select is(pg_temp.asked(), 3::bigint, 'so are requests that are gone');
-- A worker that was killed leaves the request to another one, or it fails; either way it ends.
select pg_temp.answer('M');
select pg_temp.steps('kinds');
select is(pg_temp.kinds(), 'M M M', 'and their answers are written');

-- Failures that last.
update t set kind = 'mine' where id < 3;
select pg_temp.steps('kinds');
select steadytext_refresh_enrichment('kinds', kept => true);
select pg_temp.steps('kinds');
select pg_temp.fail('22023');
select pg_temp.steps('kinds');
select is((select count(*) from steadytext_enrichment_errors where name = 'kinds'), 3::bigint, 'rows whose requests fail for good are shown');
select is(pg_temp.kinds(), 'mine mine M', 'with the values that they had');
select pg_temp.steps('kinds', p_look => true);
select is(pg_temp.asked(), 0::bigint, 'and not asked about by themselves');
select is(steadytext_retry_enrichment('kinds'), 3::bigint, 'they are tried again');
select pg_temp.steps('kinds');
select is(pg_temp.asked(), 3::bigint, 'as they were meant to be');
create function pg_temp.refuse() returns trigger language plpgsql as $$ begin raise exception 'not now'; end $$;
create trigger refuse before update on t for each row when (new.kind = 'N') execute function pg_temp.refuse();
select pg_temp.answer('N');
select pg_temp.steps('kinds');
drop trigger refuse on t;
select is((select count(*) from steadytext_enrichment_errors where name = 'kinds' and error = 'not now'), 3::bigint, 'so are rows into which nothing can be written');
select is(steadytext_retry_enrichment('kinds'), 3::bigint, 'which are tried again, too');
delete from steadytext_queue;
select pg_temp.steps('kinds');
select pg_temp.steps('kinds');
select pg_temp.answer('O');
select pg_temp.steps('kinds');
select is(pg_temp.kinds(), 'O O O', 'until they have their values');

-- Values that somebody writes after the wish.
update t set kind = 'mine' where id < 3;
select pg_temp.steps('kinds');
select steadytext_pause_enrichment('kinds');
select steadytext_refresh_enrichment('kinds', kept => true);
update t set kind = 'newer' where id = 1;
insert into t values (4, 'four', 'newest');
update t set body = 'TWO' where id = 2;
select steadytext_resume_enrichment('kinds');
select pg_temp.steps('kinds');
select is(pg_temp.asked(), 2::bigint, 'what somebody has written since is not asked about');
update t set kind = 'by hand' where id = 3;
select pg_temp.answer('P');
select pg_temp.steps('kinds');
select is(pg_temp.kinds(), 'newer P by hand newest', 'and stays, also what was written while the model was asked');
select pg_temp.steps('kinds', p_look => true);
select is(pg_temp.asked(), 0::bigint, 'for as long as the rows do not change');
update steadytext_vectorizer_state set signature = 'another', scan = 'all', scan_after = '[2]', scan_since = 0 where vectorizer_id = pg_temp.id_of('kinds');
select ok(steadytext.vectorizer_step(pg_temp.id_of('kinds'), true, false), 'a table that was written anew is looked through');
select results_eq(
    $$ select s.scan, s.scan_after from steadytext_vectorizer_state as s where s.vectorizer_id = pg_temp.id_of('kinds') $$,
    $$ values ('all', '[2]'::jsonb) $$, 'without a second look at what was to be made anew');
select pg_temp.steps('kinds');
select is(pg_temp.asked(), 2::bigint, 'which is about the rest of it');
select pg_temp.answer('Q');
select pg_temp.steps('kinds');
select is(pg_temp.kinds(), 'newer P Q Q', 'so that later values of somebody''s are not lost');

-- The wish and other changes of the definition.
update t set kind = 'mine' where id < 3;
select pg_temp.steps('kinds');
select steadytext_refresh_enrichment('kinds', kept => true);
select pg_temp.steps('kinds');
select steadytext_alter_enrichment('kinds', params => '{"choices": ["x", "y"]}');
select pg_temp.steps('kinds');
select is(pg_temp.asked(), 4::bigint, 'a definition that is altered meanwhile makes all values anew, too');
select steadytext_refresh_enrichment('kinds');
select pg_temp.steps('kinds');
select pg_temp.answer('x');
select pg_temp.steps('kinds');
select is(pg_temp.kinds(), 'x x x x', 'so does one of which only the others are asked for once more');

-- A value that somebody has written is kept until the columns change, however soon that is after a change of the definition.
update t set kind = 'mine' where id < 3;
select pg_temp.steps('kinds');
select steadytext_refresh_enrichment('kinds');
update t set body = 'changed' where id = 1;
select pg_temp.steps('kinds');
select is(pg_temp.asked(), 3::bigint, 'a row that has changed since its values were asked for is not kept');
select pg_temp.answer('y');
select pg_temp.steps('kinds');
select steadytext_alter_enrichment('kinds', params => '{"choices": ["y", "z"]}');
update t set body = 'changed' where id = 2;
select pg_temp.steps('kinds');
select pg_temp.answer('z');
select pg_temp.steps('kinds');
select is(pg_temp.kinds(), 'z z z z', 'nor one that has changed since the definition was altered');

-- Vectorizers: a row that changes while it is made anew, and changes back.
create table note (id int primary key, body text);
insert into note values (1, 'first'), (2, 'other');
select steadytext_create_vectorizer('note', array['body'], name => 'notes', index => 'none', model => 'builtin', chunk_size => 0);
create function pg_temp.embed() returns void language sql as $$
    update steadytext_queue as q set status = 'completed', completed_at = now(), embeddings = array(select steadytext_embed(p.prompt) from unnest(q.prompts) as p(prompt))
    where q.status = 'pending'
$$;
select pg_temp.steps('notes');
select pg_temp.embed();
select pg_temp.steps('notes');
select is((select count(*) from note_body_embedding), 2::bigint, 'rows have their vectors');
update note_body_embedding set chunk = 'old';
select steadytext_reembed('notes');
select pg_temp.steps('notes');
update note set body = 'second' where id = 1;
delete from note where id = 2;
select pg_temp.embed();
-- The answers are taken, and the change is not.
delete from steadytext_vectorizer_work where vectorizer_id = pg_temp.id_of('notes');
select steadytext.vectorizer_step(pg_temp.id_of('notes'), false, false);
select is((select count(*) from note_body_embedding where chunk = 'old'), 2::bigint, 'a vector of another text is not written');
update note set body = 'first' where id = 1;
select pg_temp.steps('notes');
select pg_temp.embed();
select pg_temp.steps('notes');
select is((select string_agg(chunk, ' ') from note_body_embedding), 'first', 'a row that has its text back is made anew all the same, and one that is gone has none');
-- The column of a table itself.
select steadytext_create_vectorizer('note', array['body'], name => 'inside', target_column => 'v', index => 'none', model => 'builtin');
select pg_temp.steps('inside');
select pg_temp.embed();
select pg_temp.steps('inside');
select steadytext_reembed('inside');
select pg_temp.steps('inside');
update note set body = 'third' where id = 1;
delete from steadytext_vectorizer_work where vectorizer_id = pg_temp.id_of('inside');
select pg_temp.embed();
select steadytext.vectorizer_step(pg_temp.id_of('inside'), false, false);
select is((select count(*) from steadytext_vectorizer_work as w where w.vectorizer_id = pg_temp.id_of('inside') and w.is_forced and w.key = '[1]'), 1::bigint, 'the same of a column');
update note set body = 'first' where id = 1;
select pg_temp.steps('inside');
select is(pg_temp.asked(), 1::bigint, 'which is asked about again');


-- What was asked for before a wish does not come over what is made by it.
delete from steadytext_queue;
select steadytext_reembed('notes');
select pg_temp.steps('notes');
create temporary table before as select q.request_id from steadytext_queue as q where q.status = 'pending';
select is((select count(*) from before), 1::bigint, 'a row is made anew');
select steadytext_reembed('notes');
select pg_temp.steps('notes');
select results_eq(
    $$ select pg_temp.asked(), count(*) from steadytext_queue as q join before as b using (request_id) $$, $$ values (1::bigint, 0::bigint) $$,
    'and once more by another request, while the one before is none any more');

-- A request that was made before its owner said that texts are cut.
select steadytext_alter_vectorizer('notes', truncate => true);
select pg_temp.fail('54000');
select pg_temp.steps('notes');
select pg_temp.steps('notes');
select results_eq(
    $$ select pg_temp.asked(), count(*), (select bool_and((q.params -> 'truncate')::boolean) from steadytext_queue as q where q.status = 'pending')
       from steadytext_vectorizer_errors where name = 'notes' $$,
    $$ values (1::bigint, 0::bigint, true) $$, 'a text that is too long for it is asked about anew, and is no failure');

-- A value that comes with a new row, and is also that of another row which has changed.
delete from t;
insert into t values (1, 'one', null);
select pg_temp.steps('kinds');
select pg_temp.answer('y');
select pg_temp.steps('kinds');
update t set body = 'changed' where id = 1;
insert into t values (5, 'five', 'y');
select pg_temp.steps('kinds');
select pg_temp.answer('z');
select pg_temp.steps('kinds');
select is(pg_temp.kinds(), 'z y', 'is kept, as the other row has it yet');

select * from finish();
rollback;
