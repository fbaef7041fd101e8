//! CREATE and DROP EXTENSION, in all their forms, while the worker is busy.

use steadytext_test_server::{Cluster, Options, Session, endless_text, slow_model, wait_until};

fn busy() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    keep_busy(&cluster, &mut session);
    (cluster, session)
}

fn keep_busy(cluster: &Cluster, session: &mut Session) {
    slow_model(cluster, session);
    let id = session.generate("without end", endless_text());
    session.generate("waiting", endless_text());
    session.wait_for_tokens(id);
}

fn worker_goes(session: &mut Session) {
    wait_until("the worker goes", || session.worker_of("postgres").is_none());
}

#[test]
fn create_extension_starts_a_worker_without_a_restart_and_drop_ends_it() {
    let (cluster, mut session) = busy();
    for _ in 0..3 {
        session.run_promptly("drop extension pg_steadytext");
        worker_goes(&mut session);
        assert!(!session.one::<bool>("select to_regnamespace('steadytext') is not null"));
        session.run("create extension pg_steadytext");
        session.assert_served();
        keep_busy(&cluster, &mut session);
    }
    let log = cluster.log();
    assert!(!log.contains("PANIC") && !log.contains("terminated by signal"), "{log}");
}

#[test]
fn drop_and_create_in_one_transaction_works() {
    let (_cluster, mut session) = busy();
    session.run_promptly("begin; drop extension pg_steadytext; create extension pg_steadytext; commit");
    assert_eq!(session.one::<i64>("select count(*) from steadytext_queue"), 0);
    session.assert_served();
}

#[test]
fn a_caller_that_waits_for_an_answer_does_not_keep_the_extension_from_being_dropped() {
    let (cluster, mut session) = busy();
    let mut waiter = cluster.session("postgres");
    let pid = waiter.backend_pid();
    // By its id alone: a statement that also reads a table or view of the extension holds that one's lock.
    let id = session.one::<String>("select request_id::text from steadytext_activity limit 1");
    let waiting = std::thread::spawn(move || {
        waiter.query(&format!("select steadytext_get_async_result('{id}', 60)"), &[]).is_err()
    });
    wait_until("the caller waits", || {
        session.one::<bool>(&format!(
            "select state = 'active' and wait_event_type is not distinct from 'Extension' from pg_stat_activity where pid = {pid}"
        ))
    });
    session.run_promptly("drop extension pg_steadytext cascade");
    assert!(waiting.join().expect("the waiter does not panic"), "its request is gone");
}

#[test]
fn drop_cascade_takes_dependent_objects_along() {
    let (_cluster, mut session) = busy();
    session.run("create view watched as select request_id from steadytext_queue");
    assert_eq!(session.error("drop extension pg_steadytext").code().code(), "2BP01");
    session.assert_served();
    session.run_promptly("drop extension pg_steadytext cascade");
    worker_goes(&mut session);
    session.create_extension();
    session.assert_served();
}

#[test]
fn dropping_the_extension_vector_with_cascade_ends_the_worker() {
    let (_cluster, mut session) = busy();
    session.run_promptly("drop extension vector cascade");
    worker_goes(&mut session);
    session.create_extension();
    session.assert_served();
}

#[test]
fn drop_schema_cascade_ends_the_worker() {
    let (cluster, mut session) = busy();
    session.run(
        "drop extension pg_steadytext; create schema ai; create extension pg_steadytext schema ai;
                 set search_path = public, ai",
    );
    keep_busy(&cluster, &mut session);
    session.run_promptly("drop schema ai cascade");
    worker_goes(&mut session);
    session.create_extension();
    session.assert_served();
}

#[test]
fn drop_owned_ends_the_worker() {
    let (cluster, mut session) = busy();
    session.run("drop extension pg_steadytext; create role boss superuser login");
    let mut boss = cluster.session_as("postgres", "boss");
    boss.create_extension();
    keep_busy(&cluster, &mut boss);
    session.run_promptly("drop owned by boss cascade");
    worker_goes(&mut session);
    session.create_extension();
    session.assert_served();
}

#[test]
fn a_drop_that_is_rolled_back_loses_nothing() {
    let (cluster, mut session) = busy();
    session.audit();
    let ids: Vec<_> = (0..3)
        .map(|i| session.generate(&format!("kept {i}"), "model => 'slow', max_tokens => 60, priority => 10"))
        .collect();
    session.run_promptly("begin; drop extension pg_steadytext cascade; rollback");
    let mut other = cluster.session("postgres");
    for id in ids {
        other.answer(id);
    }
    assert_eq!(other.doubled(), 0);
}

#[test]
fn a_create_that_is_rolled_back_leaves_no_worker_and_the_next_one_works() {
    let (_cluster, mut session) = busy();
    session.run("drop extension pg_steadytext");
    worker_goes(&mut session);
    session.run("begin; create extension pg_steadytext");
    session.generate("never", "");
    session.run("rollback");
    session.run("create extension pg_steadytext");
    session.assert_served();
}

#[test]
fn errors_of_other_statements_keep_their_words() {
    let (_cluster, mut session) = busy();
    let error = session.error("drop table nonexistent");
    assert_eq!((error.code().code(), error.detail()), ("42P01", None));
    session.run("create table parent (id int primary key); create table child (id int references parent)");
    let error = session.error("drop table parent");
    assert!(
        error.detail().is_some_and(|detail| !detail.contains("pgrx") && detail.contains("child")),
        "{error:?}"
    );
    let error = session.error("create extension nonexistent");
    assert!(error.detail().is_none_or(|detail| !detail.contains("pgrx")), "{error:?}");
    session.assert_served();
}

#[test]
fn moving_the_extension_to_another_schema_is_refused() {
    let (_cluster, mut session) = busy();
    session.run("create schema ai");
    assert_eq!(session.error("alter extension pg_steadytext set schema ai").code().code(), "0A000");
}

#[test]
fn it_works_from_a_schema_that_is_not_in_the_search_path() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.run(
        "drop extension pg_steadytext; drop extension vector; create schema \"Odd Name\"; create schema v;
                 create extension vector schema v; create extension pg_steadytext schema \"Odd Name\"",
    );
    let id: uuid::Uuid = session.one("select \"Odd Name\".steadytext_embed_async('from elsewhere')");
    let text: String = session.one(&format!("select \"Odd Name\".steadytext_get_async_result('{id}', 50)"));
    assert!(text.starts_with('['), "{text}");
    let id: uuid::Uuid = session.one("select \"Odd Name\".steadytext_generate_async('from elsewhere', 3)");
    session.one::<String>(&format!("select \"Odd Name\".steadytext_get_async_result('{id}', 50)"));
    session.run(
        "select * from \"Odd Name\".steadytext_activity; select \"Odd Name\".steadytext_daemon_status()",
    );
}

/// It decides how the install script, and later sessions, write the schema's name.
#[test]
fn quote_all_identifiers_makes_no_difference() {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    for (create, call) in [("on", "off"), ("off", "on")] {
        session.run(&format!(
            "drop extension pg_steadytext; set quote_all_identifiers = {create}; create extension pg_steadytext"
        ));
        let mut other = cluster.session("postgres");
        other.run(&format!("set quote_all_identifiers = {call}"));
        let id: uuid::Uuid = other.one("select steadytext_generate_async('by any name', 3)");
        other.answer(id);
    }
}

#[test]
fn a_schema_of_the_protocols_name_is_refused_with_what_to_do() {
    let cluster = Options::new().start();
    let mut session = cluster.session("postgres");
    session.run("create extension vector; create schema steadytext");
    for sql in ["create extension pg_steadytext schema steadytext", "create extension pg_steadytext"] {
        let error = session.error(sql);
        assert_eq!(error.code().code(), "42P06", "{error}");
        assert!(error.hint().is_some_and(|hint| hint.contains("SCHEMA public")), "{error:?}");
    }
    session.run("drop schema steadytext; create extension pg_steadytext schema public");
    session.assert_served();
}
