//! Code that others have planted never runs with the rights of the extension's owner, even long after the
//! installation.

use steadytext_test_server::{Cluster, Options, Shutdown, wait_until};

/// Calls of the protocol as a worker elsewhere makes them.
const PROTOCOL: [&str; 8] = [
    "steadytext.claim_requests('elsewhere', 1, 60, null, false)",
    "steadytext.extend_leases('elsewhere', '{1}', '{1}', 60)",
    "steadytext.release_requests('elsewhere', '{1}', '{1}')",
    "steadytext.complete_requests('elsewhere', '{1}', '{1}', '{a}', '{}', '{0}')",
    "steadytext.fail_requests('elsewhere', '{1}', '{1}', '{no}', '{22000}', '{false}')",
    "steadytext.rescue_requests(null)",
    "steadytext.promote_requests()",
    "steadytext.expire_requests(0, 100)",
];

#[test]
fn deferred_triggers_of_a_worker_elsewhere_run_with_its_own_rights() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("create role elsewhere login in role steadytext_worker");
    session.pause();
    // Something to do for each function: a request of a worker that is gone, one that is due, one that has
    // aged.
    for prompt in ["abandoned", "due", "old"] {
        session.generate(prompt, "max_tokens => 3");
    }
    session.run(
        "update steadytext_queue set status = 'processing', attempt = 1, worker = 'gone', lease_expires_at = '-infinity'
         where prompt = 'abandoned';
         update steadytext_queue set run_after = now() - interval '1 hour' where prompt = 'due';
         update steadytext_queue set status = 'completed', completed_at = '-infinity' where prompt = 'old'",
    );
    let mut elsewhere = cluster.session_as("postgres", "elsewhere");
    elsewhere.run(
        "create temporary table ran (as_whom text);
         create temporary table planted (i int);
         create function pg_temp.planted() returns trigger language plpgsql as $$
         begin insert into pg_temp.ran values (current_user); return null; end $$;
         grant all on ran, planted to public;
         create constraint trigger planted after insert on planted deferrable initially deferred
             for each row execute function pg_temp.planted()",
    );
    for call in PROTOCOL {
        elsewhere.run("begin; insert into planted values (1)");
        elsewhere.run(&format!("select * from {call}"));
        elsewhere.run("commit");
    }
    assert_eq!(
        elsewhere.list::<String>("select distinct as_whom || ' ' || count(*) from ran group by as_whom"),
        [format!("elsewhere {}", PROTOCOL.len())]
    );
}

#[test]
fn a_worker_elsewhere_ends_no_request_that_it_does_not_hold_whatever_error_it_makes() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("create role elsewhere login in role steadytext_worker");
    session.pause();
    let id = session.generate("of somebody", "max_tokens => 3");
    let number: i64 = session.one("select id from steadytext_queue");
    let mut elsewhere = cluster.session_as("postgres", "elsewhere");
    let hostile = format!(
        "select outcome from steadytext.complete_requests('elsewhere', '{{{number}}}', '{{99}}', '{{a}}', '{{1}}', '{{2147483647}}', '{{2}}')"
    );
    assert_eq!(elsewhere.error(&hostile).code().code(), "22023");
    assert_eq!(session.request(id).status, "pending");
    for call in [
        format!("complete_requests('elsewhere', '{{{number}}}', '{{99}}', '{{a}}', null, null)"),
        format!("fail_requests('elsewhere', '{{{number}}}', '{{99}}', '{{no}}', '{{22000}}', '{{false}}')"),
    ] {
        let outcomes: Vec<String> = elsewhere.list(&format!("select outcome from steadytext.{call}"));
        assert_eq!(outcomes, ["lost"], "{call}");
        assert_eq!(session.request(id).status, "pending", "{call}");
    }
}

#[test]
fn the_schema_of_the_extension_keeps_its_name_whoever_owns_it() {
    let mut cluster = Options::new().without_preload().start();
    let mut session = cluster.session("postgres");
    session.run("create role dev login");
    session.run("create database devs owner dev");
    let mut inside = cluster.session("devs");
    inside.create_extension();
    let rename = "alter schema public rename to elsewhere";
    // Without the library nobody stops the owner of the database.
    cluster.session_as("devs", "dev").run(rename);
    drop((session, inside));
    cluster.stop(Shutdown::Fast);
    cluster.configure("shared_preload_libraries", "pg_steadytext");
    cluster.start();
    // The extension uses nothing under the name that is somebody else's now.
    let mut dev = cluster.session_as("devs", "dev");
    dev.run(
        "create schema public;
         create table public.steadytext_config (key text, value jsonb);
         create function public.planted() returns boolean language plpgsql as $$
         begin raise log 'planted code ran as %', current_user; return true; end $$;
         create view public.steadytext_queue as select 'pending'::text as status where public.planted()",
    );
    cluster.wait_for_log(0, "the schema of pg_steadytext was renamed to elsewhere");
    let mut session = cluster.session("devs");
    let error = session.error("select elsewhere.steadytext_generate_async('x')");
    assert_eq!(error.code().code(), "55000", "{error:?}");
    assert!(!cluster.log().contains("planted code ran as postgres"));
    dev.run("drop schema public cascade; alter schema elsewhere rename to public");
    let id = session.generate("it goes on", "max_tokens => 3");
    session.answer(id);
    // From now on it stays.
    for session in [&mut dev, &mut session] {
        let error = session.error(rename);
        assert_eq!(error.code().code(), "0A000", "{error:?}");
    }
}

#[test]
fn keys_of_a_domain_are_compared_by_the_operators_of_its_type() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create extension citext;
         create role bob login in role steadytext_user;
         grant create on schema public to bob;
         create domain mail as citext;
         create table staff (address mail primary key, note text);
         insert into staff values ('a@example.org', 'hello'), ('b@example.org', 'words')",
    );
    // It fits better than citext's own, and stands where that is looked for.
    cluster.session_as("postgres", "bob").run(
        "create function public.planted(mail, mail) returns boolean language plpgsql as $$
             begin raise exception 'ran as %', current_user; end $$;
         create operator public.= (leftarg = mail, rightarg = mail, function = public.planted);
         create operator public.> (leftarg = mail, rightarg = mail, function = public.planted);
         create operator public.>= (leftarg = mail, rightarg = mail, function = public.planted)",
    );
    session.run("select steadytext_create_vectorizer('staff', array['note'], index => 'none')");
    wait_until("the rows are embedded", || {
        session.one("select count(*) = 2 from staff_note_embedding where embedding is not null")
    });
    session.run("update staff set note = 'other words'");
    wait_until("and again", || {
        session.one("select count(*) = 2 from staff_note_embedding where chunk = 'other words'")
    });
    assert_eq!(session.one::<i64>("select count(*) from steadytext_search('staff_note', 'words')"), 2);
    assert_eq!(
        session.list::<String>("select problem from steadytext_vectorizer_status where problem is not null"),
        Vec::<String>::new()
    );
}

#[test]
fn no_user_locks_the_tables_of_all() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run("create role bob login in role steadytext_user");
    let tables: Vec<String> = session.list(
        "select c.oid::regclass::text from pg_class as c join pg_depend as d on d.objid = c.oid and d.classid = 'pg_class'::regclass and d.deptype = 'e'
         join pg_extension as e on e.oid = d.refobjid and e.extname = 'pg_steadytext' where c.relkind = 'r' order by 1",
    );
    assert!(tables.len() > 15, "{tables:?}");
    let mut bob = cluster.session_as("postgres", "bob");
    for table in &tables {
        for mode in
            ["share update exclusive", "share", "share row exclusive", "exclusive", "access exclusive"]
        {
            let error = bob.error(&format!("lock table {table} in {mode} mode"));
            assert_eq!(error.code().code(), "42501", "{table} in {mode} mode");
        }
    }
}

#[test]
fn an_administrator_pauses_a_definition_and_changes_nothing_else_of_it() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "create role alice login in role steadytext_user; create role adm login in role steadytext_admin;
         create schema a authorization alice",
    );
    cluster.session_as("postgres", "alice").run(
        "create table a.tickets (id int primary key, note text);
         select steadytext_create_enrichment('a.tickets', 'verdict', '$note', 'generate_choice', '{\"choices\": [\"ok\", \"bad\"]}', name => 'verdicts')",
    );
    let mut admin = cluster.session_as("postgres", "adm");
    for change in [
        "format = 'mine'",
        "params = '{\"choices\": [\"x\", \"y\"]}'",
        "request_type = 'generate'",
        "columns = '{id}'",
        "priority = 9",
        "owner_role = steadytext.current_role_id()",
    ] {
        let error =
            admin.error(&format!("update steadytext_vectorizers set {change} where name = 'verdicts'"));
        assert_eq!(error.code().code(), "42501", "{change}");
    }
    admin.run("update steadytext_vectorizers set is_paused = true where name = 'verdicts'");
    assert!(session.one::<bool>("select is_paused from steadytext_vectorizers where name = 'verdicts'"));
}
