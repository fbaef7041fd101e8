//! A standby writes nothing; promoted, it answers what the primary has left.

use steadytext_test_server::{Cluster, Options, Shutdown, slow_model};

#[test]
fn a_standby_writes_nothing_and_works_once_it_is_promoted() {
    let mut primary = Cluster::with_extension();
    let mut session = primary.session("postgres");
    slow_model(&primary, &mut session);
    let standby = primary.standby();

    let finished = session.generate("finished on the primary", "max_tokens => 4");
    let answer = session.answer(finished);
    let running = session.generate("runs when the primary dies", "model => 'slow', max_tokens => 400");
    let waiting = session.generate("waits meanwhile", "model => 'slow', max_tokens => 200");
    session.wait_for_tokens(running);
    primary.wait_for_replay(&standby);

    let mut there = standby.session("postgres");
    assert_eq!(there.worker_of("postgres"), None);
    assert_eq!(there.request(finished).answer, Some(answer.clone()));
    assert_eq!(there.request(running).status, "processing");
    assert_eq!(there.error("select steadytext_generate_async('here')").code().code(), "25006");
    assert_eq!(there.one::<String>(&format!("select steadytext_get_async_result('{finished}', 5)")), answer);
    there.run("select * from steadytext_activity; select * from steadytext_daemon_status()");
    assert!(!standby.log().contains("ERROR:  cannot execute UPDATE"), "{}", standby.log());

    drop(session);
    primary.stop(Shutdown::Immediate);
    standby.promote();
    // The model file lies in the primary's directory, which the settings of both name.
    assert!(!there.answer(running).is_empty());
    assert!(!there.answer(waiting).is_empty());
    let id = there.generate("here", "max_tokens => 4");
    there.answer(id);
}

#[test]
fn a_library_that_is_not_preloaded_enqueues_with_a_warning_and_the_rows_are_answered_later() {
    let mut cluster = Options::new().without_preload().start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    session.notices();
    let id = session.generate("too early", "max_tokens => 3");
    let plain: uuid::Uuid = session.one(
        "insert into steadytext_queue (request_type, prompt) values ('embed', 'too early') returning request_id",
    );
    let warnings = session.notices();
    assert!(
        warnings.iter().any(|notice| notice.severity() == "WARNING"
            && format!("{} {}", notice.message(), notice.hint().unwrap_or_default())
                .contains("shared_preload_libraries")),
        "{warnings:?}"
    );
    assert!(session.worker_state().contains("not_preloaded"), "{}", session.worker_state());
    session.run("select * from steadytext_activity; select * from steadytext_daemon_status()");
    session.run("drop extension pg_steadytext; create extension pg_steadytext");
    assert_eq!(session.find(id), None);
    let id = session.generate("still too early", "max_tokens => 3");
    assert_eq!(session.find(plain), None);
    drop(session);
    cluster.configure("shared_preload_libraries", "pg_steadytext");
    cluster.restart();
    cluster.session("postgres").answer(id);
}

#[test]
fn waiting_in_vain_where_the_library_is_not_preloaded_says_why() {
    let cluster = Options::new().without_preload().start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    let id = session.generate("nobody comes", "max_tokens => 3");
    // A worker on another machine could come, so it is no error at once.
    let error = session.error(&format!("select steadytext_get_async_result('{id}', 1)"));
    assert_eq!(error.message(), "Timeout waiting for async result (1 seconds)");
    assert!(error.hint().is_some_and(|hint| hint.contains("shared_preload_libraries")), "{error:?}");
}
