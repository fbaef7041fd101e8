//! Several databases, and statements that need a database without sessions while its worker is busy.

use steadytext_test_server::{Cluster, Options, Session, endless_text, slow_model, wait_until};
use uuid::Uuid;

/// A server with a database `busy` whose worker is in the middle of a request; the session is on `postgres`.
fn busy() -> (Cluster, Session) {
    busy_with(endless_text())
}

/// A server as that of [`busy`], whose request takes `arguments`.
fn busy_with(arguments: &str) -> (Cluster, Session) {
    let cluster = Options::new().start();
    let mut session = cluster.session("postgres");
    session.run("create database busy");
    let mut there = cluster.session("busy");
    there.create_extension();
    slow_model(&cluster, &mut there);
    let id = there.generate("takes its time", arguments);
    there.wait_for_tokens(id);
    drop(there);
    // The end of that session is not yet the end of its process, and a statement that needs the database
    // empty would meet it.
    wait_until("only the worker is in the database", || {
        session.one::<i64>("select count(*) from pg_stat_activity where datname = 'busy' and backend_type = 'client backend'") == 0
    });
    (cluster, session)
}

#[test]
fn two_databases_are_worked_for_at_once() {
    let (cluster, mut session) = busy();
    session.run("create database other");
    let mut other = cluster.session("other");
    other.create_extension();
    slow_model(&cluster, &mut other);
    let id = other.generate("at the same time", endless_text());
    other.wait_for_tokens(id);
    let mut there = cluster.session("busy");
    let first: Uuid = there.one("select request_id from steadytext_activity");
    assert_ne!(first, id);
    assert_eq!(other.list::<Uuid>("select request_id from steadytext_activity"), [id]);
    assert_ne!(session.wait_for_worker_of("busy"), session.wait_for_worker_of("other"));
    other.cancel(id);
    there.cancel(first);
    for database in ["busy", "other"] {
        cluster.session(database).assert_served();
    }
}

#[test]
fn a_busy_database_can_be_dropped() {
    let (cluster, mut session) = busy();
    session.run_promptly("drop database busy");
    assert_eq!(session.worker_of("busy"), None);
    session.run("create database busy");
    cluster.session("busy").create_extension();
    cluster.session("busy").assert_served();
}

#[test]
fn a_busy_database_can_be_dropped_by_force() {
    let (_cluster, mut session) = busy();
    session.run_promptly("drop database busy with (force)");
    assert_eq!(session.worker_of("busy"), None);
}

#[test]
fn a_busy_database_can_be_dropped_by_an_owner_who_is_not_superuser() {
    for statement in ["drop database busy", "drop database busy with (force)"] {
        let (cluster, mut session) = busy();
        session.run("create role carol login createdb; alter database busy owner to carol");
        let mut carol = cluster.session_as("postgres", "carol");
        carol.run_promptly(statement);
    }
}

#[test]
fn somebody_without_the_right_to_drop_a_database_does_not_disturb_its_worker() {
    let (cluster, mut session) = busy();
    session.run("create role mallory login createdb");
    let worker = session.wait_for_worker_of("busy");
    let mut mallory = cluster.session_as("postgres", "mallory");
    for statement in [
        "drop database busy",
        "alter database busy rename to mine",
        "create database mine template busy",
        "alter database busy set tablespace pg_default",
    ] {
        assert_eq!(mallory.error(statement).code().code(), "42501");
    }
    assert_eq!(session.worker_of("busy"), Some(worker));
}

#[test]
fn a_busy_database_can_be_renamed_and_its_request_is_answered_under_the_new_name() {
    let (cluster, mut session) = busy_with("model => 'slow', max_tokens => 500");
    session.run_promptly("alter database busy rename to renamed");
    cluster.session("renamed").assert_served();
    let mut there = cluster.session("renamed");
    let id: Uuid = there.one("select request_id from steadytext_queue order by id limit 1");
    there.answer(id);
    assert_eq!(there.request(id).retry_count, 0);
}

#[test]
fn a_busy_database_can_be_moved_to_another_tablespace() {
    let (cluster, mut session) = busy();
    let directory = cluster.make_directory("tablespace");
    session.run(&format!("create tablespace elsewhere location '{}'", directory.display()));
    session.run_promptly("alter database busy set tablespace elsewhere");
    cluster.session("busy").assert_served();
}

#[test]
fn a_busy_database_can_be_a_template_and_both_work_afterwards() {
    let (cluster, mut session) = busy_with("model => 'slow', max_tokens => 500");
    session.run_promptly("create database copy template busy");
    cluster.session("busy").assert_served();
    cluster.session("copy").assert_served();
    // The request that was running when the copy was made is answered in both.
    for database in ["busy", "copy"] {
        let mut there = cluster.session(database);
        let id: Uuid = there.one("select request_id from steadytext_queue order by id limit 1");
        there.answer(id);
    }
}

#[test]
fn a_database_made_from_a_template_that_has_the_extension_gets_a_worker() {
    let cluster = Options::new().start();
    let mut session = cluster.session("postgres");
    cluster.session("template1").create_extension();
    wait_until("template1 is left alone", || session.worker_of("template1").is_none());
    session.run_promptly("create database child");
    cluster.session("child").assert_served();
    session.run_promptly("create database another");
    cluster.session("another").assert_served();
    assert_eq!(session.worker_of("template1"), None);
}

#[test]
fn after_a_statement_that_fails_the_worker_comes_back() {
    let (cluster, mut session) = busy();
    let directory = cluster.make_directory("tablespace");
    session.run(&format!("create tablespace elsewhere location '{}'", directory.display()));
    session.run("create database taken");
    for (statement, code) in [
        ("alter database busy rename to taken", "42P04"),
        ("create database taken template busy", "42P04"),
        ("alter database busy set tablespace nowhere", "42704"),
    ] {
        assert_eq!(session.error(statement).code().code(), code, "{statement}");
        cluster.session("busy").assert_served();
    }
    // PostgreSQL gives other sessions five seconds to leave.
    let guest = cluster.session("busy");
    assert_eq!(session.error("drop database busy").code().code(), "55006");
    cluster.session("busy").assert_served();
    drop(guest);
}

#[test]
fn the_worker_comes_back_when_the_statement_that_sent_it_away_is_killed() {
    let (cluster, mut session) = busy();
    let guest = cluster.session("busy");
    let mut dropper = cluster.session("postgres");
    let pid = dropper.backend_pid();
    let dropping = std::thread::spawn(move || dropper.batch_execute("drop database busy").is_err());
    wait_until("the worker is sent away", || session.worker_of("busy").is_none());
    session.one::<bool>(&format!("select pg_terminate_backend({pid})"));
    assert!(dropping.join().expect("the thread does not panic"));
    drop(guest);
    cluster.session("busy").assert_served();
}

#[test]
fn a_database_that_refuses_connections_is_left_alone_and_served_again_afterwards() {
    let (cluster, mut session) = busy();
    let worker = session.wait_for_worker_of("busy");
    session.run("alter database busy with allow_connections false");
    session.one::<bool>(&format!("select pg_terminate_backend({worker}, 120000)"));
    let from = cluster.log().len();
    session.run("create database other");
    cluster.session("other").create_extension();
    cluster.session("other").assert_served();
    assert_eq!(session.worker_of("busy"), None);
    assert!(!cluster.log()[from..].contains("FATAL"), "the log complains:\n{}", &cluster.log()[from..]);
    session.run("alter database busy with allow_connections true");
    cluster.session("busy").assert_served();
}
