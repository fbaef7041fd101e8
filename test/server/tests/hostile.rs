//! Install and update where somebody has prepared the database: with objects that fit the script's words
//! better than PostgreSQL's own, and with default privileges that open everything.

use steadytext_test_server::{
    Cluster, Migration, Options, Session, TRAPS, install_script, opening_statement,
};

/// A database of dev's, who may create in its schema public but is nobody else; the extension vector is in
/// `vector_schema`.
fn prey(vector_schema: &str) -> (Cluster, Session) {
    let cluster = Options::new().start();
    let mut session = cluster.session("postgres");
    session.run("create role dev login");
    session.run("create database prey owner dev");
    session.run("create database clean");
    let own_functions = own_functions(&mut cluster.session("clean"));
    let mut session = cluster.session("prey");
    session.run(&format!(
        "create schema if not exists {vector_schema}; create extension vector schema {vector_schema};
         grant create, usage on schema public to dev; grant usage on schema {vector_schema} to public"
    ));
    let mut dev = cluster.session_as("prey", "dev");
    dev.run("create temporary table script (body text); create temporary table own_functions (name text, arguments text[])");
    dev.execute("insert into script values ($1)", &[&install_script()]).expect("the script is noted");
    for (name, arguments) in own_functions {
        dev.execute("insert into own_functions values ($1, $2)", &[&name, &arguments])
            .expect("a function is noted");
    }
    dev.run(TRAPS);
    // From here on, this session's own words must not spring a trap.
    session.run("set search_path = pg_catalog");
    (cluster, session)
}

/// Names and argument types of the API, as a database without traps has them.
fn own_functions(session: &mut Session) -> Vec<(String, Vec<String>)> {
    session.create_extension();
    let rows = session
        .query(
            "select p.proname::text, array(select a::regtype::text from unnest(p.proargtypes::oid[]) with ordinality as u(a, n) order by n)
             from pg_proc p join pg_depend d on d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e'
             join pg_extension e on e.oid = d.refobjid
             where e.extname = 'pg_steadytext' and p.pronamespace = 'public'::regnamespace and p.pronargs > 0
               and not 'vector'::regtype = any (p.proargtypes::oid[])",
            &[],
        )
        .expect("the functions are known");
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// Everything that belongs to the extension and what hangs on it, and what it depends on beside PostgreSQL,
/// itself and vector.
const FOREIGN: &str = "
with recursive belongings(extension, classid, objid) as (
    select e.extname, d.classid, d.objid
    from pg_depend d join pg_extension e on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid
    where e.extname in ('pg_steadytext', 'vector') and d.deptype = 'e'
    union
    select b.extension, d.classid, d.objid
    from pg_depend d join belongings b on d.refclassid = b.classid and d.refobjid = b.objid
    where d.deptype in ('a', 'i')
)
select distinct pg_describe_object(d.classid, d.objid, d.objsubid) || ' depends on '
    || pg_describe_object(d.refclassid, d.refobjid, d.refobjsubid)
from pg_depend d
join belongings b on d.classid = b.classid and d.objid = b.objid and b.extension = 'pg_steadytext'
where (d.refclassid, d.refobjid) not in (select classid, objid from belongings)
    and not (d.refclassid = 'pg_extension'::regclass)
    and not (d.refclassid = 'pg_language'::regclass)
    and not (d.refclassid = 'pg_namespace'::regclass
        and d.refobjid in (select oid from pg_namespace where nspname in ('public', 'steadytext')))
order by 1";

#[track_caller]
fn nothing_was_sprung(session: &mut Session, when: &str) {
    let sprung: Vec<String> =
        session.list("select distinct format('%s as %s', what, who) from public.caught order by 1");
    assert!(sprung.is_empty(), "{when}: {sprung:#?}");
    let foreign: Vec<String> = session.list(FOREIGN);
    assert!(foreign.is_empty(), "{when}: {foreign:#?}");
}

/// Statements of every kind that PostgreSQL parses when they are run, each with words that others' objects
/// would fit.
const ADDITIONS: &str = "
create table @extschema@.added (
    id bigint generated always as identity primary key,
    relation oid not null default '@extschema@.steadytext_queue'::regclass,
    name text not null default current_user check (name <> 'nobody' and name not like 'x%'),
    at timestamptz default now() - interval '1 day',
    twice text generated always as (name || name) stored
);
create index added_idx on @extschema@.added (lower(name)) where relation = '@extschema@.steadytext_queue'::regclass;
alter table @extschema@.added enable row level security;
create policy mine on @extschema@.added using (name = current_user);
create view @extschema@.added_view as
    select c.oid, c.relname || '!' as name from pg_class as c where c.oid = '@extschema@.added'::regclass;
create function @extschema@.added_sum(relation oid, x integer default length('x'))
returns boolean language sql stable
begin atomic
    select relation = '@extschema@.added'::regclass and x + 1 > date_part('epoch', now()) or array_length(array['a'], 1) = 1;
end;
create function steadytext.added_trigger() returns trigger language plpgsql set search_path = pg_catalog, pg_temp as
    $$ begin return new; end $$;
create trigger added_trigger before insert on @extschema@.added
    for each row when (new.relation = '@extschema@.added'::regclass) execute function steadytext.added_trigger();
create type @extschema@.added_type as enum ('a', 'b');
do $$
declare
    v_found regclass;
begin
    select c.oid into v_found from pg_class as c where c.oid = '@extschema@.added'::regclass and c.relname = format('%s', 'added');
    if v_found is null or not v_found::oid = any (array[v_found]) then
        raise exception 'not found';
    end if;
    insert into @extschema@.added (name) values (coalesce(to_regclass('@extschema@.added')::text, 'none'));
end
$$;
select pg_catalog.set_config('search_path', steadytext.vector_path(), true);
alter table @extschema@.added add column embedding vector;
set local search_path = pg_catalog, pg_temp;
create function @extschema@.steadytext_added(relation oid, name text default 'x', embedding real[] default '{1}')
returns table (a oid, b text) language plpgsql stable set search_path = pg_catalog, pg_temp as
    $$ begin return query select relation, name; end $$;
select steadytext.close_new_objects();
grant select on @extschema@.added to steadytext_user;
grant execute on function @extschema@.steadytext_added(oid, text, real[]) to steadytext_user;
select steadytext.make_twins();
select steadytext.make_twin('@extschema@.steadytext_embed_cached(text, bigint, text, text, text, boolean, text, bigint, boolean)'::regprocedure);
";

fn migration() -> Migration {
    Migration::write(&format!("{}\n{ADDITIONS}", opening_statement()))
}

/// Calls, with exact types, of functions that run statements made of names.
const BATCHES_AND_SEARCHES: &str = "
select public.steadytext_enqueue_query('select 1 as id, ''x'' as prompt'::text, 'embed'::text);
select * from public.steadytext_batches;
select public.steadytext_batch_results(batch), public.steadytext_wait(batch, 'all'::text, 60::bigint) from public.steadytext_batch_heads;
select public.steadytext_wait(batch::text, 'any'::text, 60::bigint), public.steadytext_cancel_batch(batch) from public.steadytext_batch_heads;
create table public.shelf (id bigint, part text, body text, primary key (id, part));
insert into public.shelf values (1::bigint, 'a'::text, 'rows of a table'::text), (2::bigint, 'b'::text, 'another'::text);
select public.steadytext_create_vectorizer('public.shelf'::regclass, array['body']::text[], 'shelf'::text);
insert into public.shelf_body_embedding (id, part, seq, chunk, embedding, model_hash, content_hash)
values (1::bigint, 'a'::text, 1::integer, 'rows of a table'::text, public.steadytext_embed('rows of a table'::text), ''::bytea, ''::bytea)
on conflict do nothing;
select public.steadytext_create_text_index('shelf'::text, 'english'::text);
select * from public.steadytext_search('shelf'::text, 'rows'::text, 5::bigint);
select * from public.steadytext_search('shelf'::text, 'rows'::text, 5::bigint, 'true'::text, true);
select * from public.steadytext_hybrid_search('shelf'::text, 'rows'::text, 5::bigint);
select * from public.steadytext_rag('shelf'::text, 'rows?'::text, 1::bigint, 4::bigint);
select * from public.st_search('shelf'::text, 'rows'::text, 5::bigint)";

fn installs_and_updates_untouched(vector_schema: &str) {
    let (_cluster, mut session) = prey(vector_schema);
    // PostgreSQL tells nobody where the traps are: there must be many, and they must work.
    assert!(
        session.one::<i64>("select count(*) from pg_operator where oprnamespace = 'public'::regnamespace")
            > 5_000
    );
    assert!(
        session.one::<i64>("select count(*) from pg_proc where pronamespace = 'public'::regnamespace")
            > 5_000
    );
    session.run(
        "set search_path = public; select 1::oid = 'public.caught'::regclass; set search_path = pg_catalog",
    );
    assert_eq!(session.one::<i64>("select count(*) from public.caught where who = 'postgres'"), 1);
    session.run("delete from public.caught");

    session.run("set search_path = public; create extension pg_steadytext schema public; set search_path = pg_catalog");
    nothing_was_sprung(&mut session, "after the install");

    // Code that runs later, called with exact types: the worker, the API, and the functions that it calls in
    // turn.
    session.run("set search_path = public, pg_temp");
    let id: uuid::Uuid = session.one("select public.steadytext_generate_async('hello'::text, 3::integer)");
    session.one::<String>(&format!("select public.steadytext_get_async_result('{id}'::uuid, 600::integer)"));
    session.run(
        "select public.steadytext_config_set('max_retries'::text, '4'::text); select public.steadytext_config_get('max_retries'::text);
         select public.steadytext_daemon_stop(); select public.steadytext_daemon_start(); select public.st_daemon_status();
         select public.st_daemon_stop(); select public.st_daemon_start();
         select public.steadytext_embed('hello'::text); select public.st_embed('hello'::text);
         select public.steadytext_embed_cached('hello'::text);
         select public.steadytext_embed('hello'::text, true, 42::bigint, 'builtin'::text, false);
         select public.steadytext_embed_cached('hello'::text, 42::bigint, 'builtin'::text, false);
         select public.steadytext_embed_async('hello'::text, true, 42::bigint, 'builtin'::text, false);
         select public.steadytext_generate('a'::text, 3::bigint, true, 42::bigint, 'e'::text, 'builtin'::text, null::text, null::text, null::text, false);
         select public.steadytext_generate_choice('a'::text, array['a', 'b']::text[], 3::bigint);
         select public.steadytext_generate_stream('a'::text, 3::bigint, true);
         select public.steadytext_config_get('max_retries'::varchar);
         select public.st_rerank_top_k('a'::text, array['b', 'c']::text[]);
         insert into public.steadytext_cache (cache_key, prompt, response) values ('a'::text, 'a'::text, 'b'::text);
         select * from public.steadytext_rerank('a'::text, array['b', 'c']::text[]);
         select public.steadytext_generate_json('a'::text, '{\"enum\": [\"a\", \"b\"]}'::jsonb, 20::integer);
         select public.steadytext_generate_batch_async(array['a', 'b']::text[]);
         select public.steadytext_embed_batch_async(array['a', 'b']::text[]);
         select public.steadytext_cache_stats(); select public.steadytext_cache_stats_extended(); select public.st_cache_stats();
         select public.steadytext_cache_analyze_usage(); select public.steadytext_cache_preview_eviction(5::integer);
         select public.steadytext_cache_evict_by_frecency(5::integer); select public.steadytext_cache_scheduled_eviction();
         select public.steadytext_cache_warmup(5::integer); select public.steadytext_cache_clear();
         select public.steadytext_setup_cache_eviction_cron();
         insert into public.steadytext_models (name, task, file) values ('m', 'generate', 'm.gguf');
         update public.steadytext_models set description = 'x' where name = 'm';
         update public.steadytext_config set value = '5' where key = 'max_retries';
         select * from public.steadytext_activity; select * from public.steadytext_queue_counts;
         select * from public.steadytext_cache_with_frecency; select * from steadytext.cache_entries;
         select public.steadytext_check_async(request_id) from public.steadytext_queue;
         select public.steadytext_cancel_async(request_id) from public.steadytext_queue;
         set search_path = pg_catalog",
    );
    nothing_was_sprung(&mut session, "after use");
    session.run("set search_path = public, pg_temp");
    BATCHES_AND_SEARCHES.split(";\n").for_each(|statement| session.run(statement));
    session.run("set search_path = pg_catalog");
    nothing_was_sprung(&mut session, "after batches and searches");

    let migration = migration();
    session.run(&format!(
        "set search_path = public; alter extension pg_steadytext update to '{}'; set search_path = pg_catalog",
        migration.version()
    ));
    nothing_was_sprung(&mut session, "after the update");
    assert_eq!(session.one::<i64>("select count(*) from public.added"), 1);
    // The twin of a new function is the extension's, and who may call one may call the other.
    assert!(session.one::<bool>(
        "select has_function_privilege('steadytext_user', p.oid, 'execute') and not has_function_privilege('dev', p.oid, 'execute')
             and exists (select from pg_depend d where d.classid = 'pg_proc'::regclass and d.objid = p.oid and d.deptype = 'e')
         from pg_proc p where p.oid = 'public.st_added(oid, text, real[])'::regprocedure"
    ));
}

#[test]
fn nothing_planted_in_the_target_schema_runs_at_install_or_update_with_vector_elsewhere() {
    installs_and_updates_untouched("vectors");
}

#[test]
fn nothing_planted_in_the_target_schema_runs_at_install_or_update_with_vector_in_it() {
    installs_and_updates_untouched("public");
}

/// Privileges of others than the owner, the three roles, and pg_monitor on what it may watch.
const HELD_BY_OTHERS: &str = "
with members as (
    select d.classid, d.objid from pg_depend d join pg_extension e on d.refclassid = 'pg_extension'::regclass and d.refobjid = e.oid
    where e.extname = 'pg_steadytext' and d.deptype = 'e'
),
privileges as (
    select m.classid, m.objid, 0 as sub, c.relowner as owner,
        coalesce(c.relacl, acldefault(case c.relkind when 'S' then 's' else 'r' end::\"char\", c.relowner)) as acl
    from members m join pg_class c on m.classid = 'pg_class'::regclass and c.oid = m.objid
    union all
    select m.classid, m.objid, a.attnum, c.relowner, a.attacl
    from members m join pg_class c on m.classid = 'pg_class'::regclass and c.oid = m.objid
    join pg_attribute a on a.attrelid = c.oid
    union all
    select m.classid, m.objid, 0, p.proowner, coalesce(p.proacl, acldefault('f', p.proowner))
    from members m join pg_proc p on m.classid = 'pg_proc'::regclass and p.oid = m.objid
    union all
    select m.classid, m.objid, 0, n.nspowner, coalesce(n.nspacl, acldefault('n', n.nspowner))
    from members m join pg_namespace n on m.classid = 'pg_namespace'::regclass and n.oid = m.objid
    union all
    select m.classid, m.objid, 0, t.typowner, coalesce(t.typacl, acldefault('T', t.typowner))
    from members m join pg_type t on m.classid = 'pg_type'::regclass and t.oid = m.objid and t.typelem = 0
)
select distinct format('%s: %s to %s', pg_describe_object(p.classid, p.objid, p.sub), x.privilege_type, r.name)
from privileges p
cross join aclexplode(p.acl) x
cross join lateral (select case x.grantee when 0 then 'public' else x.grantee::regrole::text end as name) r
where x.grantee <> p.owner and r.name not in ('steadytext_user', 'steadytext_admin', 'steadytext_worker', 'steadytext_auditor')
    and not (r.name = 'pg_monitor' and pg_describe_object(p.classid, p.objid, p.sub) in (
        'schema steadytext', 'view steadytext_queue_counts', 'view steadytext_activity', 'table steadytext_daemon_health',
        'function steadytext.activity()', 'function steadytext.worker_state()', 'function steadytext.unclaimed_requests()',
        'function steadytext_daemon_status()', 'function st_daemon_status()', 'function steadytext.server_checks()', 'function steadytext.pulls()',
        'function steadytext_diagnose()', 'function st_diagnose()', 'function steadytext_limit_usage()', 'function st_limit_usage()'))
    and not (r.name in ('pg_monitor', 'pg_read_all_stats') and pg_describe_object(p.classid, p.objid, p.sub) in (
        'schema steadytext', 'view steadytext_stat', 'view steadytext_stat_histogram', 'view steadytext_engine_stat', 'view steadytext_queue_metrics',
        'function steadytext.bucket_bounds()', 'function steadytext.request_statistics()', 'function steadytext.engine_statistics()',
        'function steadytext.queue_metrics()', 'function steadytext_metrics()', 'function st_metrics()'))
order by 1";

#[test]
fn whatever_the_default_privileges_nobody_but_the_roles_of_the_extension_holds_anything_after_install_and_update()
 {
    let cluster = Options::new().start();
    let mut session = cluster.session("postgres");
    session.run(
        "create role anon login; create extension vector;
         do $$
         declare
             v_what text;
         begin
             foreach v_what in array array['tables', 'sequences', 'routines', 'types'] loop
                 execute format('alter default privileges grant all on %s to public', v_what);
                 execute format('alter default privileges in schema public grant all on %s to anon with grant option', v_what);
             end loop;
             alter default privileges grant all on schemas to anon;
         end
         $$",
    );
    for install in [
        "create extension pg_steadytext",
        "begin; savepoint s; create extension pg_steadytext; release s; commit",
    ] {
        session.run("drop extension if exists pg_steadytext");
        session.run(install);
        assert_eq!(session.list::<String>(HELD_BY_OTHERS), [""; 0], "{install}");
    }
    let mut anon = cluster.session_as("postgres", "anon");
    for sql in [
        "select * from steadytext_cache",
        "truncate steadytext_queue",
        "delete from steadytext_audit_log",
        "insert into steadytext_models (name, task, file) values ('x', 'generate', 'x.gguf')",
        "select steadytext.claim_requests('w', 1, 60, null, false)",
        "select nextval('steadytext_queue_id_seq')",
        "create table steadytext.mine (x integer)",
    ] {
        assert_eq!(anon.error(sql).code().code(), "42501", "{sql}");
    }
    // A right that an administrator grants later is not an accident, and stays.
    session.run("grant select on steadytext_models to anon");
    let migration = migration();
    session.run(&format!(
        "begin; savepoint s; alter extension pg_steadytext update to '{}'; commit",
        migration.version()
    ));
    assert_eq!(session.list::<String>(HELD_BY_OTHERS), ["table steadytext_models: SELECT to anon"]);
    assert!(anon.one::<i64>("select count(*) from steadytext_models") > 0);
    assert_eq!(anon.error("select * from added").code().code(), "42501");
    assert!(
        session.one::<bool>("select has_table_privilege('steadytext_user', 'steadytext_queue', 'select')")
    );
}

#[test]
fn rows_that_belong_to_somebody_are_behind_row_level_security() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("create role reader login; grant select on steadytext_cache, steadytext_audit_log, steadytext_queue to reader; create role carol login in role steadytext_admin");
    let id = session.generate("kept in the cache", "max_tokens => 3");
    session.answer(id);
    session.run(
        "insert into steadytext_cache (cache_key, prompt, request_type) values ('k', 'secret', 'generate');
         select steadytext_cache_clear(); insert into steadytext_cache (cache_key, prompt, request_type) values ('k', 'secret', 'generate')",
    );
    let mut reader = cluster.session_as("postgres", "reader");
    let mut carol = cluster.session_as("postgres", "carol");
    for table in ["steadytext_cache", "steadytext_audit_log", "steadytext_queue"] {
        let sql = format!("select count(*) from {table}");
        assert_eq!(reader.one::<i64>(&sql), 0, "{table}");
        assert!(carol.one::<i64>(&sql) > 0, "{table}");
    }
}
