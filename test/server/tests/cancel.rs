//! Cancelling: pending requests never run, running ones stop within a token.

use steadytext_test_server::{audited_with_slow_model, endless_text, message_of, wait_until};
use uuid::Uuid;

#[test]
fn a_cancelled_pending_request_never_runs() {
    let (_cluster, mut session) = audited_with_slow_model();
    session.pause();
    let id = session.generate("never to be run", "max_tokens => 3");
    let other = session.generate("to be run", "max_tokens => 3");
    assert!(session.cancel(id));
    session.run("select steadytext_daemon_start()");
    session.answer(other);
    let request = session.request(id);
    assert_eq!((request.status.as_str(), request.attempt), ("cancelled", 0));
    assert_eq!(request.error_code.as_deref(), Some("57014"));
    assert!(!session.cancel(id), "a cancelled request cannot be cancelled");
    assert!(!session.cancel(other), "a completed request cannot be cancelled");
}

#[test]
fn a_cancelled_running_request_stops_within_a_token() {
    let (_cluster, mut session) = audited_with_slow_model();
    let id = session.generate("without end", endless_text());
    session.wait_for_tokens(id);
    assert!(session.cancel(id));
    assert_eq!(session.request(id).status, "cancelled");
    wait_until("the engine lets go of it", || {
        session.one::<bool>("select not exists (select from steadytext_activity)")
    });
    // The worker is as good as before, and nothing is written over the cancelled row.
    let next = session.generate("the next one", "max_tokens => 3");
    session.answer(next);
    assert_eq!(session.request(id).status, "cancelled");
    assert_eq!(session.doubled(), 0);
}

#[test]
fn a_rolled_back_cancel_cancels_nothing() {
    let (_cluster, mut session) = audited_with_slow_model();
    let id = session.generate("goes on", "model => 'slow', max_tokens => 500");
    session.wait_for_tokens(id);
    session.run("begin");
    assert!(session.cancel(id));
    session.run("rollback");
    session.answer(id);
    assert_eq!(session.request(id).attempt, 1);
}

#[test]
fn a_waiting_caller_learns_of_the_cancel_at_once() {
    let (cluster, mut session) = audited_with_slow_model();
    let id = session.generate("without end", endless_text());
    session.wait_for_tokens(id);
    let mut waiter = cluster.session("postgres");
    let pid = waiter.backend_pid();
    let waiting = std::thread::spawn(move || {
        waiter.query_one("select steadytext_get_async_result($1, 600)", &[&id]).map(|_| ())
    });
    wait_until("the caller waits", || {
        session.one::<bool>(&format!("select state = 'active' from pg_stat_activity where pid = {pid}"))
    });
    assert!(session.cancel(id));
    let result = waiting.join().expect("the waiter does not panic");
    let message = message_of(&result.expect_err("there is no result"));
    assert!(message.contains("cancelled"), "{message}");
}

#[test]
fn a_cancelled_wait_leaves_the_request_alone() {
    let (cluster, mut session) = audited_with_slow_model();
    let id = session.generate("goes on", "model => 'slow', max_tokens => 400");
    session.wait_for_tokens(id);
    let mut waiter = cluster.session("postgres");
    let error = {
        waiter.run("set statement_timeout = '50ms'");
        waiter
            .query_one("select steadytext_get_async_result($1, 60)", &[&id])
            .expect_err("the statement times out")
    };
    assert_eq!(error.code().map(|code| code.code()), Some("57014"));
    session.answer(id);
}

#[test]
fn many_cancels_in_the_middle_of_a_batch_leave_the_others_alone() {
    let (_cluster, mut session) = audited_with_slow_model();
    let ids: Vec<Uuid> = (0..12)
        .map(|i| session.generate(&format!("one of many {i}"), "model => 'slow', max_tokens => 120"))
        .collect();
    session.wait_for_tokens(ids[0]);
    for id in ids.iter().skip(1).step_by(2) {
        assert!(session.cancel(*id));
    }
    for (i, id) in ids.iter().enumerate() {
        if i % 2 == 0 {
            session.answer(*id);
        } else {
            assert_eq!(session.request(*id).status, "cancelled");
        }
    }
    assert_eq!(session.doubled(), 0);
}
