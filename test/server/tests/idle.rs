//! A worker that has nothing to do does nothing, and what comes due wakes it.

use std::time::{Duration, Instant};

use steadytext_test_server::{Options, Session, eventually, sleepy, wait_until};
use uuid::Uuid;

/// Transactions that have ended in a database, as far as the statistics know.
fn transactions(session: &mut Session, database: &str) -> i64 {
    session.one(&format!(
        "select xact_commit + xact_rollback from pg_stat_database where datname = '{database}'"
    ))
}

#[test]
fn a_worker_makes_no_transactions_while_nothing_waits() {
    let cluster = Options::new().set("autovacuum", "off").start();
    let mut session = cluster.session("postgres");
    session.run("create database quiet");
    session.run("create database clock");
    for database in ["quiet", "clock"] {
        let mut inside = cluster.session(database);
        inside.create_extension();
        let id = inside.generate("to begin with", "max_tokens => 3");
        inside.answer(id);
    }
    // The clock: a worker that looks around ten times a second, as a request waits that somebody has locked.
    let mut inside = cluster.session("clock");
    inside.run("select steadytext_config_set('worker_poll_interval', '0.1')");
    inside.pause();
    inside.generate("locked", "max_tokens => 3");
    let mut holder = cluster.session("clock");
    holder.run("begin; select from steadytext_queue where status = 'pending' for update");
    inside.run("select steadytext_daemon_start()");
    let wait_for_looks = |session: &mut Session, looks: i64| {
        let until = transactions(session, "clock") + looks;
        let there =
            eventually(Duration::from_secs(300), || (transactions(session, "clock") >= until).then_some(()));
        assert!(there.is_some(), "the clock stands still");
    };
    // The worker of the other database looks around once more after its work, and at its cache.
    wait_for_looks(&mut session, 100);
    let (before, since) = (transactions(&mut session, "quiet"), Instant::now());
    // Of a look in each second, there would be some by now.
    wait_for_looks(&mut session, 450);
    let made = transactions(&mut session, "quiet") - before;
    // The looks of an idle worker, one in half a minute, and what is done with each, however slow the machine
    // and its clock are.
    let most = 4 * (2 + since.elapsed().as_secs() / 30);
    assert!(made <= most as i64, "{made} transactions of an idle worker");
}

#[test]
fn a_retry_that_comes_due_wakes_the_worker_however_seldom_it_looks() {
    let (_cluster, mut session) = sleepy();
    session.pause();
    let id = session.generate("fails elsewhere", "max_tokens => 3");
    session.run(
        "create temporary table held as select id, attempt from steadytext.claim_requests('elsewhere', 1, 600, null, false)",
    );
    session.run("select steadytext_daemon_start()");
    session.wait_for_worker("idle");
    session.run(
        "select steadytext.fail_requests('elsewhere', array[id], array[attempt], '{disk full}', '{53100}', '{t}') from held",
    );
    assert_eq!(session.request(id).retry_count, 1);
    session.answer(id);
}

#[test]
fn an_interval_that_is_lowered_counts_at_once() {
    let (_cluster, mut session) = sleepy();
    // Without triggers, as from a dump: nothing wakes.
    session.run("alter table steadytext_queue disable trigger all");
    let id: Uuid = session.one(
        "insert into steadytext_queue (request_type, prompt, params)
         values ('generate', 'quietly', '{\"max_tokens\": 3}') returning request_id",
    );
    session.run("alter table steadytext_queue enable trigger all");
    session.run("select steadytext_config_set('worker_poll_interval', '0.05')");
    session.answer(id);
}

#[test]
fn a_request_of_a_prepared_transaction_is_answered_at_its_commit_however_seldom_the_worker_looks() {
    let (_cluster, mut session) = sleepy();
    for i in 0..3 {
        session.run("begin");
        let id = session.generate(&format!("in two phases {i}"), "max_tokens => 3");
        session.run("prepare transaction 'enqueue'");
        session.run("commit prepared 'enqueue'");
        session.answer(id);
    }
    wait_until("nothing is left", || {
        session.one::<bool>("select not exists (select from steadytext_queue where status <> 'completed')")
    });
}
