//! Order of execution: rows and calls go by priority, users in turn, and requests that are in nobody's way go
//! on.

use std::thread;

use steadytext_test_server::{Options, Session, endless_text, slow_model, wait_until};
use uuid::Uuid;

/// Steps of the engine until the first token of a request that runs.
fn first_token_turns(session: &mut Session, id: Uuid) -> i32 {
    let sql = format!(
        "select coalesce(max(first_token_turns), -1) from steadytext_activity where request_id = '{id}'"
    );
    wait_until("it has its first token", || session.one::<i32>(&sql) >= 0);
    session.one(&sql)
}

fn decoding(session: &mut Session) -> i64 {
    session.one("select count(*) from steadytext_activity where phase = 'decoding'")
}

#[test]
fn a_row_of_priority_10_has_its_first_token_three_steps_after_its_claim_beside_64_long_ones() {
    let cluster = Options::new().start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    slow_model(&cluster, &mut session);
    let long: Vec<Uuid> =
        (0..64).map(|i| session.generate(&format!("long story {i}"), endless_text())).collect();
    wait_until("all places are taken", || decoding(&mut session) >= 16);
    // The worker has claimed as much as the engine has room for, and more of these rows wait behind.
    wait_until("the worker has enough", || {
        session.one::<i64>("select count(*) from steadytext_queue where status = 'processing'") >= 32
    });
    for priority in [10, 8] {
        let id = session.generate("urgent", format!("{}, priority => {priority}", endless_text()));
        let turns = first_token_turns(&mut session, id);
        assert!(turns <= 3, "priority {priority} took {turns} steps");
        session.cancel(id);
        session.wait_for_end(id);
    }
    // No request was lost or counted as a failure, and the others go on.
    let lost: i64 = session.one(
        "select count(*) from steadytext_queue
         where prompt like 'long%' and (status not in ('pending', 'processing') or retry_count > 0)",
    );
    assert_eq!(lost, 0);
    for id in long {
        session.cancel(id);
    }
    wait_until("everything stops", || session.one("select not exists (select from steadytext_activity)"));
}

#[test]
fn another_users_call_is_answered_while_the_streams_of_one_go_on() {
    let cluster = Options::new().set("pg_steadytext.max_running", 2).start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    slow_model(&cluster, &mut session);
    session.run(
        "create role alice login in role steadytext_user; create role bob login in role steadytext_user",
    );
    let streams: Vec<_> = (0..3)
        .map(|i| {
            let mut alice = cluster.session_as("postgres", "alice");
            let pid = alice.backend_pid();
            let call = thread::spawn(move || {
                alice.error(&format!(
                    "select count(*) from
                         steadytext_generate_stream('stream {i}', model => 'slow', max_tokens => 4096)"
                ))
            });
            (pid, call)
        })
        .collect();
    wait_until("both places are taken", || decoding(&mut session) >= 2);
    let mut bob = cluster.session_as("postgres", "bob");
    for i in 0..3 {
        bob.run(&format!(
            "select steadytext_generate('a word {i}', model => 'slow', max_tokens => 1, use_cache => false)"
        ));
    }
    assert_eq!(
        session.one::<i64>("select count(*) from steadytext_activity where owner_role = 'alice'"),
        3,
        "all of hers still run"
    );
    for (pid, call) in streams {
        session.one::<bool>(&format!("select pg_cancel_backend({pid})"));
        assert_eq!(call.join().expect("it does not panic").code().code(), "57014");
    }
}

#[test]
fn call_priority_decides_between_calls_and_can_be_set_by_everybody_from_1_to_10() {
    let cluster = Options::new().set("pg_steadytext.max_running", 1).start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    slow_model(&cluster, &mut session);
    session.run("create role alice login in role steadytext_user");
    let mut alice = cluster.session_as("postgres", "alice");
    assert_eq!(alice.one::<String>("show pg_steadytext.call_priority"), "8");
    for value in ["0", "11", "'high'"] {
        let error = alice.error(&format!("set pg_steadytext.call_priority = {value}"));
        assert_eq!(error.code().code(), "22023", "{error:?}");
    }
    let pid = alice.backend_pid();
    let long = "select steadytext_generate('a long call', model => 'slow', max_tokens => 4096)";
    let call = thread::spawn(move || alice.error(long));
    wait_until("it has the only place", || decoding(&mut session) == 1);
    let mut other = cluster.session_as("postgres", "alice");
    other.run(
        "set pg_steadytext.call_priority = 10;
         select steadytext_generate('a word', model => 'slow', max_tokens => 1, use_cache => false)",
    );
    assert_eq!(session.one::<i64>("select count(*) from steadytext_activity"), 1, "the first still runs");
    // One that is less urgent waits for it.
    let mut patient = cluster.session_as("postgres", "alice");
    patient.run("set statement_timeout = '1s'; set pg_steadytext.call_priority = 1");
    let error = patient.error(
        "select steadytext_generate('no hurry', model => 'slow', max_tokens => 1, use_cache => false)",
    );
    assert_eq!(error.code().code(), "57014", "{error:?}");
    session.one::<bool>(&format!("select pg_cancel_backend({pid})"));
    assert_eq!(call.join().expect("it does not panic").code().code(), "57014");
}

#[test]
fn a_cursor_that_is_not_read_leaves_its_place_to_others_and_goes_on_when_it_is() {
    let cluster = Options::new().set("pg_steadytext.max_running", 1).start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    slow_model(&cluster, &mut session);
    let stream = "steadytext_generate_stream('a stream', model => 'slow', max_tokens => 200)";
    let whole: String = session.one(&format!("select string_agg(p, '') from {stream} p"));
    session.run(&format!("begin; declare pieces cursor for select {stream}"));
    let mut pieces: Vec<String> = session.list("fetch 1 from pieces");
    // Calls of the same user, as urgent as the stream, which uses the only place.
    let mut other = cluster.session("postgres");
    for i in 0..3 {
        other.run(&format!(
            "select steadytext_generate('a word {i}', model => 'slow', max_tokens => 1, use_cache => false)"
        ));
    }
    pieces.extend(session.list::<String>("fetch all from pieces"));
    assert_eq!(pieces.concat(), whole);
    session.run("commit");
}
