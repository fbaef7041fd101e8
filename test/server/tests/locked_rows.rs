//! Rows that a user's open transaction has locked: they wait, and nobody else does.

use steadytext_test_server::{Cluster, Session, eventually, slow_model};
use uuid::Uuid;

use std::time::Duration;

fn cluster() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.audit();
    session.run(
        "create role alice login in role steadytext_user; create role bob login in role steadytext_user",
    );
    (cluster, session)
}

#[test]
fn three_hundred_running_requests_that_one_user_has_locked_hold_up_no_other_user() {
    let (cluster, mut session) = cluster();
    slow_model(&cluster, &mut session);
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run(
        "select count(steadytext_generate_async('alice ' || i, 2, use_cache => false, model => 'slow'))
         from generate_series(1, 400) as i",
    );
    // As with steadytext_cancel_async() in an open transaction: whatever runs is locked, again and again.
    let mut holder = cluster.session("postgres");
    holder.run("begin");
    let mut locked = 0;
    let found = eventually(Duration::from_secs(300), || {
        let rows = holder
            .query("select id from steadytext_queue where status = 'processing' for update skip locked", &[])
            .expect("the rows lock");
        locked += rows.len();
        // Rows that were locked before are found again: they are this transaction's own.
        (session.one::<i64>(
            "select count(*) from (select from steadytext_queue where status = 'processing' for update skip locked) as free",
        ) == 0 && rows.len() >= 280
            || rows.len() >= 300)
            .then_some(())
    });
    assert!(found.is_some(), "{locked} rows were locked; {}", session.worker_state());
    let mut bob = cluster.session_as("postgres", "bob");
    for i in 0..40 {
        let id = bob.generate(&format!("bob {i}"), "max_tokens => 3, use_cache => false");
        bob.answer(id);
    }
    holder.run("rollback");
    let done = eventually(Duration::from_secs(600), || {
        session
            .one::<bool>("select not exists (select from steadytext_queue where status <> 'completed')")
            .then_some(())
    });
    assert!(done.is_some(), "{:?}", session.list::<String>("select distinct status from steadytext_queue"));
    assert_eq!(session.doubled(), 0);
    assert_eq!(session.one::<i64>("select count(*) from steadytext_queue where retry_count > 0"), 0);
}

#[test]
fn twenty_thousand_waiting_requests_that_are_locked_are_not_walked_over_by_each_claim() {
    const LOCKED: i64 = 20_000;
    const REQUESTS: i64 = 60;
    let (cluster, mut session) = cluster();
    session.pause();
    let mut alice = cluster.session_as("postgres", "alice");
    alice.run(&format!(
        "insert into steadytext_queue (request_type, prompt, params)
         select 'generate', 'alice ' || i, '{{\"max_tokens\": 2}}' from generate_series(1, {LOCKED}) as i"
    ));
    let first: Uuid = alice.one("select request_id from steadytext_queue order by id limit 1");
    let mut holder = cluster.session("postgres");
    holder.run("begin; select count(*) from (select from steadytext_queue for update) as locked");
    session.run("select steadytext_daemon_start()");
    let mut bob = cluster.session_as("postgres", "bob");
    let before = session.claim_entries_read();
    for i in 0..REQUESTS {
        let id = bob.generate(&format!("bob {i}"), "max_tokens => 3, use_cache => false");
        bob.answer(id);
    }
    // Statistics come with the transactions that follow.
    let read = session.claim_entries_read() - before;
    assert!(read < LOCKED * REQUESTS / 3, "{REQUESTS} requests took {read} entries of the index");
    assert_eq!(
        session.one::<i64>("select count(*) from steadytext_queue where status = 'completed'"),
        REQUESTS
    );
    // Free again, they are claimed, and the oldest one before the latest.
    holder.run("rollback");
    session.answer(first);
    // One claim may have been looking behind them just then.
    let sooner: i64 = session.one(&format!(
        "select count(*) from steadytext_queue where prompt like 'alice %'
             and started_at < (select started_at from steadytext_queue where request_id = '{first}')"
    ));
    assert!(sooner <= 64, "{sooner}");
    session.run("update steadytext_queue set status = 'cancelled' where status = 'pending'");
}

#[test]
fn a_users_reference_to_a_request_does_not_keep_it_from_being_answered() {
    let (cluster, mut session) = cluster();
    session.run("create table refers (request bigint references steadytext_queue)");
    session.pause();
    let id = session.generate("referred to", "max_tokens => 3");
    let mut holder = cluster.session("postgres");
    holder.run("begin; insert into refers select id from steadytext_queue");
    session.run("select steadytext_daemon_start()");
    session.answer(id);
    holder.run("commit");
}
