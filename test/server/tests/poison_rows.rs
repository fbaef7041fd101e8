//! Code that the owner of the queue attaches to it, such as a trigger that raises for one row: that row alone
//! suffers, and its error tells why.

use steadytext_test_server::{Cluster, Request, Session, wait_until};
use uuid::Uuid;

/// A cluster with a trigger function that does what a program's own might do wrong.
fn cluster() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.audit();
    session.run(
        "create table log_of_mine (prompt text);
         create function note_mine() returns trigger language plpgsql as $$
         begin
             insert into log_of_mine values (new.prompt);
             return new;
         end $$;
         create function refuse() returns trigger language plpgsql as $$
         begin
             raise exception 'nobody wants %', new.prompt;
         end $$;
         create function keep() returns trigger language plpgsql as $$ begin return null; end $$",
    );
    (cluster, session)
}

/// Requests that nothing is wrong with.
fn others(session: &mut Session, count: usize) -> Vec<Uuid> {
    (0..count).map(|i| session.generate(&format!("beside it {i}"), "max_tokens => 3")).collect()
}

/// Enqueues the poison one among others while the worker is paused, so that it claims them together; waits
/// until the others are answered.
fn run_beside_others(session: &mut Session) -> Uuid {
    session.pause();
    let mut beside = others(session, 5);
    let mine = session.generate("mine to know", "max_tokens => 3");
    beside.extend(others(session, 15));
    session.run("select steadytext_daemon_start()");
    for id in beside {
        session.answer(id);
    }
    mine
}

fn lines_about(cluster: &Cluster, text: &str) -> usize {
    cluster.log().lines().filter(|line| line.contains(text)).count()
}

#[test]
fn a_trigger_that_raises_for_one_answer_fails_that_request_alone() {
    let (cluster, mut session) = cluster();
    session.run(
        "create trigger mine after update of status on steadytext_queue for each row
         when (new.status = 'completed' and new.prompt = 'mine to know') execute function note_mine()",
    );
    let mine = run_beside_others(&mut session);
    let request = session.wait_for(mine, "failed");
    assert_eq!(request.error_code.as_deref(), Some("42P01"), "{request:?}");
    assert!(request.error.is_some_and(|error| error.contains("log_of_mine")));
    let number: i64 = session.one(&format!("select id from steadytext_queue where request_id = '{mine}'"));
    assert_eq!(lines_about(&cluster, &format!("request {number} could not be completed: SQLSTATE 42P01")), 1);
    let message: String = session.one("select message from steadytext.worker_state()");
    assert!(
        message.contains(&format!("request {number} could not be written (SQLSTATE 42P01)")),
        "{message}"
    );
    assert_eq!(session.doubled(), 0);
}

#[test]
fn the_words_of_a_request_that_a_trigger_puts_into_its_error_are_for_the_row_and_not_for_the_log() {
    let (cluster, mut session) = cluster();
    session.run(
        "create trigger mine before update of status on steadytext_queue for each row
         when (new.status = 'completed' and new.prompt = 'mine to know') execute function refuse()",
    );
    let mine = run_beside_others(&mut session);
    let request = session.wait_for(mine, "failed");
    assert_eq!(request.error.as_deref(), Some("nobody wants mine to know"));
    assert_eq!(lines_about(&cluster, "could not be completed: SQLSTATE P0001"), 1);
    assert!(!cluster.log().contains("mine to know"), "{}", cluster.log());
}

#[test]
fn a_deferred_constraint_trigger_fails_the_request_it_raises_for() {
    let (_cluster, mut session) = cluster();
    session.run(
        "create constraint trigger mine after update on steadytext_queue deferrable initially deferred for each row
         when (new.status = 'completed' and new.prompt = 'mine to know') execute function note_mine()",
    );
    let mine = run_beside_others(&mut session);
    assert_eq!(session.wait_for(mine, "failed").error_code.as_deref(), Some("42P01"));
}

#[test]
fn an_answer_that_a_trigger_suppresses_is_not_lost_in_silence() {
    let (_cluster, mut session) = cluster();
    session.run(
        "create trigger mine before update of status on steadytext_queue for each row
         when (new.status = 'completed' and new.prompt = 'mine to know') execute function keep()",
    );
    let mine = run_beside_others(&mut session);
    assert_eq!(session.wait_for(mine, "failed").error_code.as_deref(), Some("09000"));
}

#[test]
fn a_request_that_cannot_be_claimed_fails_and_holds_up_no_other() {
    let (cluster, mut session) = cluster();
    session.run(
        "create trigger mine before update of status on steadytext_queue for each row
         when (new.status = 'processing' and new.prompt = 'mine to know') execute function note_mine()",
    );
    let mine = run_beside_others(&mut session);
    assert_eq!(session.wait_for(mine, "failed").error_code.as_deref(), Some("42P01"));
    assert_eq!(lines_about(&cluster, "could not be claimed: SQLSTATE 42P01; it has failed"), 1);
}

#[test]
fn a_request_that_cannot_be_changed_at_all_is_set_aside_until_it_can() {
    let (cluster, mut session) = cluster();
    session.run(
        "create trigger mine before update of status on steadytext_queue for each row
         when (old.status = 'pending' and new.prompt = 'mine to know') execute function note_mine()",
    );
    let mine = run_beside_others(&mut session);
    assert_eq!(session.request(mine).status, "pending");
    // Claim after claim goes by it.
    for _ in 0..10 {
        let id = session.generate("one by one", "max_tokens => 3, use_cache => false");
        session.answer(id);
    }
    assert_eq!(session.request(mine).status, "pending");
    assert_eq!(lines_about(&cluster, "could not be claimed"), 1);
    session.run("drop trigger mine on steadytext_queue");
    session.answer(mine);
}

#[test]
fn an_answer_for_a_row_that_cannot_be_changed_is_kept_until_it_can() {
    let (_cluster, mut session) = cluster();
    session.run(
        "create trigger mine before update of status on steadytext_queue for each row
         when (old.status = 'processing' and new.prompt = 'mine to know') execute function note_mine()",
    );
    let mine = run_beside_others(&mut session);
    assert_eq!(session.request(mine).status, "processing");
    for id in others(&mut session, 50) {
        session.answer(id);
    }
    session.run("drop trigger mine on steadytext_queue");
    session.answer(mine);
    let Request { attempt, error, .. } = session.request(mine);
    assert_eq!((attempt, error), (1, None), "the answer was kept, not computed again");
}

#[test]
fn a_trigger_that_refuses_every_change_stops_the_queue_only_as_long_as_it_is_there() {
    let (cluster, mut session) = cluster();
    session.run(
        "create trigger closed before update on steadytext_queue for each statement execute function keep();
         create or replace function keep() returns trigger language plpgsql as $$ begin raise exception 'closed'; end $$",
    );
    let ids = others(&mut session, 20);
    wait_until("the log says it", || cluster.log().contains("could not be claimed: SQLSTATE P0001"));
    session.run("drop trigger closed on steadytext_queue");
    for id in ids {
        session.answer(id);
    }
    assert!(!cluster.log().contains("terminated by signal"), "{}", cluster.log());
}
