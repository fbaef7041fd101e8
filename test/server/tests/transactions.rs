//! Requests and transactions: what is rolled back never was, and nobody's open transaction stalls the rest.

use steadytext_test_server::{Cluster, PATIENCE, Session, endless_text, eventually, slow_model};
use uuid::Uuid;

fn audited() -> (Cluster, Session) {
    let cluster = Cluster::with_extension();
    let mut session = cluster.session("postgres");
    session.audit();
    (cluster, session)
}

#[test]
fn a_rollback_leaves_nothing() {
    let (_cluster, mut session) = audited();
    session.run("begin");
    session.generate("rolled back", "max_tokens => 3");
    session.embed("rolled back", "");
    session.run("rollback");
    // One more request through the worker: had it seen the others, they would have been before it.
    let after = session.generate("after it", "max_tokens => 3");
    session.answer(after);
    assert_eq!(session.list::<Uuid>("select request_id from steadytext_queue"), [after]);
    assert_eq!(session.one::<i64>("select count(*) from audit.inserted"), 1);
}

#[test]
fn a_rollback_to_a_savepoint_leaves_nothing_of_what_came_after_it() {
    let (_cluster, mut session) = audited();
    session.run("begin");
    let before = session.generate("before", "max_tokens => 3");
    session.run("savepoint here");
    session.generate("inside", "max_tokens => 3");
    session.run("rollback to here");
    let after = session.generate("after", "max_tokens => 3");
    session.run("commit");
    session.answer(before);
    session.answer(after);
    assert_eq!(session.list::<Uuid>("select request_id from steadytext_queue order by id"), [before, after]);
}

#[test]
fn a_request_rolled_back_inside_a_function_leaves_nothing_and_its_neighbour_is_answered() {
    let (_cluster, mut session) = audited();
    session.run(
        "do $$ begin
             begin
                 perform steadytext_generate_async('inner', 3);
                 raise exception 'no';
             exception when raise_exception then null;
             end;
             perform steadytext_generate_async('outer', 3);
         end $$",
    );
    let ids = session.list::<Uuid>("select request_id from steadytext_queue");
    assert_eq!(ids.len(), 1);
    session.answer(ids[0]);
}

#[test]
fn a_prepared_transaction_is_answered_after_commit_prepared_and_not_before() {
    let (cluster, mut session) = audited();
    session.run("begin");
    let id = session.generate("in two phases", "max_tokens => 3");
    session.run("prepare transaction 'enqueue'");
    let mut other = cluster.session("postgres");
    let beside = other.generate("meanwhile", "max_tokens => 3");
    other.answer(beside);
    assert_eq!(other.find(id), None);
    other.run("commit prepared 'enqueue'");
    other.answer(id);

    session.run("begin");
    let id = session.generate("in two phases, rolled back", "max_tokens => 3");
    session.run("prepare transaction 'enqueue'");
    session.run("rollback prepared 'enqueue'");
    let beside = other.generate("afterwards", "max_tokens => 3");
    other.answer(beside);
    assert_eq!(other.find(id), None);
}

#[test]
fn no_transaction_is_open_during_inference() {
    let (cluster, mut session) = audited();
    slow_model(&cluster, &mut session);
    let id = session.generate("without end", endless_text());
    session.wait_for_tokens(id);
    let worker = session.worker_pid();
    // Its short transactions may be seen; a long one may not.
    let sql = format!(
        "select backend_xmin is null and xact_start is null and state is distinct from 'idle in transaction'
         from pg_stat_activity where pid = {worker}"
    );
    let looks = 200;
    let quiet = (0..looks).filter(|_| session.one::<bool>(&sql)).count();
    assert!(quiet > looks * 9 / 10, "no transaction in {quiet} of {looks} looks");
    let oldest: Option<f64> = session.one(
        "select max(extract(epoch from clock_timestamp() - xact_start))::float8
         from pg_stat_activity where backend_type like 'pg_steadytext%'",
    );
    assert!(oldest.unwrap_or(0.0) < 1.0, "a transaction of the worker is {oldest:?} s old");
    assert_eq!(session.request(id).status, "processing");
}

#[test]
fn a_row_that_somebody_has_locked_stalls_nobody_and_gets_its_result_afterwards() {
    let (cluster, mut session) = audited();
    slow_model(&cluster, &mut session);
    let locked = session.generate("locked", "model => 'slow', max_tokens => 400");
    session.wait_for_tokens(locked);
    let mut holder = cluster.session("postgres");
    holder.run("begin");
    holder
        .query("select from steadytext_queue where request_id = $1 for update", &[&locked])
        .expect("the row locks");
    assert_eq!(session.request(locked).status, "processing");
    let others: Vec<Uuid> =
        (0..40).map(|i| session.generate(&format!("beside {i}"), "max_tokens => 3")).collect();
    for id in others {
        session.answer(id);
    }
    let gone = eventually(PATIENCE, || {
        session.one::<bool>("select not exists (select from steadytext_activity)").then_some(())
    });
    assert!(gone.is_some(), "the engine is still busy with the locked request");
    assert_eq!(session.request(locked).status, "processing");
    holder.run("commit");
    session.answer(locked);
    assert_eq!(session.request(locked).attempt, 1, "the answer was kept, not computed again");
    assert_eq!(session.doubled(), 0);
}

#[test]
fn a_locked_pending_row_is_passed_over() {
    let (cluster, mut session) = audited();
    session.pause();
    let locked = session.generate("locked", "max_tokens => 3, priority => 10");
    let other = session.generate("beside it", "max_tokens => 3");
    let mut holder = cluster.session("postgres");
    holder.run("begin");
    holder
        .query("select from steadytext_queue where request_id = $1 for update", &[&locked])
        .expect("the row locks");
    session.run("select steadytext_daemon_start()");
    session.answer(other);
    assert_eq!(session.request(locked).status, "pending");
    holder.run("rollback");
    session.answer(locked);
}

#[test]
fn waiting_for_ones_own_uncommitted_request_is_an_error_at_once() {
    let (_cluster, mut session) = audited();
    for function in ["steadytext_get_async_result", "st_get_async_result"] {
        session.run("begin");
        let id = session.generate("not committed", "max_tokens => 3");
        let error = session.error(&format!("select {function}('{id}', 600)"));
        assert_eq!(error.code().code(), "55000", "{error}");
        assert!(error.hint().is_some_and(|hint| hint.to_lowercase().contains("commit")), "{error:?}");
        session.run("rollback");
    }
}

#[test]
fn a_failed_request_can_be_made_pending_again_as_documented() {
    let (cluster, mut session) = audited();
    session.run(
        "insert into steadytext_models (name, task, file) values ('late', 'generate', 'late.gguf');
         create role alice login in role steadytext_user",
    );
    let mut alice = cluster.session_as("postgres", "alice");
    let id = alice.generate("a file that comes late", "model => 'late', max_tokens => 3");
    let request = alice.wait_for(id, "failed");
    assert_eq!(request.error_code.as_deref(), Some("58030"), "{request:?}");
    steadytext_test_server::write_model(&cluster, "late.gguf");
    alice.run("update steadytext_queue set status = 'pending', retry_count = 0 where status = 'failed'");
    alice.answer(id);
    let request = alice.request(id);
    assert_eq!((request.error, request.error_code, request.retry_count), (None, None, 0));
}
