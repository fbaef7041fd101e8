//! The wake: worker and waiting callers sleep until something happens, and then act at once. The fallback
//! poll is an hour away in these tests, so that nothing here is its work.

use std::time::{Duration, SystemTime};

use postgres::fallible_iterator::FallibleIterator;
use steadytext_test_server::{
    Cluster, PATIENCE, Session, begins_to_wait, eventually, message_of, sleepy, wait_until,
};
use uuid::Uuid;

#[test]
fn an_api_call_wakes_the_worker() {
    let (_cluster, mut session) = sleepy();
    for _ in 0..5 {
        let id = session.generate("wake up", "max_tokens => 3, use_cache => false");
        session.answer(id);
        let id = session.embed("wake up", "use_cache => false");
        session.answer(id);
    }
}

#[test]
fn a_plain_insert_wakes_the_worker() {
    let (_cluster, mut session) = sleepy();
    let id: Uuid = session.one(
        "insert into steadytext_queue (request_type, prompt, params, priority)
         values ('generate', 'a plain insert', '{\"max_tokens\": 3}', 7) returning request_id",
    );
    session.answer(id);
}

#[test]
fn notify_from_a_plain_psql_wakes_the_worker() {
    let (cluster, mut session) = sleepy();
    let mut woken = 0;
    for _ in 0..20 {
        // Without triggers nothing wakes.
        session.run("alter table steadytext_queue disable trigger check_request");
        let id: Uuid = session.one(
            "insert into steadytext_queue (request_type, prompt, params)
             values ('generate', 'quietly', '{\"max_tokens\": 3}') returning request_id",
        );
        session.run("alter table steadytext_queue enable always trigger check_request");
        // The worker may have looked once more for what follows the request before.
        let slept = session.request(id).attempt == 0;
        cluster.psql("postgres", "notify steadytext_queue");
        session.answer(id);
        woken += usize::from(slept);
        if woken == 3 {
            break;
        }
    }
    assert_eq!(woken, 3, "something else wakes the worker");
    // The listener keeps its place in the notification queue, so that the queue does not fill up.
    wait_until("the notification queue is empty", || {
        session.one::<f64>("select pg_notification_queue_usage()") == 0.0
    });
}

#[test]
fn making_a_failed_request_pending_wakes_the_worker() {
    let (_cluster, mut session) = sleepy();
    session.run(
        "insert into steadytext_models (name, task, file) values ('missing', 'generate', 'missing.gguf')",
    );
    let id = session.generate("fails", "model => 'missing'");
    session.wait_for(id, "failed");
    session.run("delete from steadytext_models where name = 'missing'");
    session.run("insert into steadytext_models (name, task, file) values ('missing', 'generate', 'still missing.gguf')");
    session.run("update steadytext_queue set status = 'pending', retry_count = 0 where status = 'failed'");
    wait_until("it fails again", || {
        let request = session.request(id);
        request.attempt == 2 && request.error.is_some_and(|error| error.contains("still missing.gguf"))
    });
}

#[test]
fn a_pause_ends_at_once() {
    let (_cluster, mut session) = sleepy();
    session.pause();
    let id = session.generate("meanwhile", "max_tokens => 3");
    assert_eq!(session.request(id).status, "pending");
    session.run("select steadytext_daemon_start()");
    session.answer(id);
}

/// The time from the completion of a request until the caller that waited for it has the answer in hand.
fn wait_latency(cluster: &Cluster, session: &mut Session, begin: &str) -> Duration {
    // The waiter must wait already when the request ends: it is kept from being claimed until then.
    session.pause();
    let id = session.generate("somebody waits", "max_tokens => 3, use_cache => false");
    let mut waiter = cluster.session("postgres");
    let pid = waiter.backend_pid();
    let begin = begin.to_owned();
    let waiting = std::thread::spawn(move || {
        waiter.run(&begin);
        let row = waiter.query_one("select steadytext_get_async_result($1, 50)", &[&id]);
        let ended = SystemTime::now();
        (ended, row.map(|row| row.get::<_, Option<String>>(0)).map_err(|error| message_of(&error)))
    });
    let is_waiting = format!(
        "select state = 'active' and wait_event is not null and query like '%get_async_result%'
         from pg_stat_activity where pid = {pid}"
    );
    wait_until("the caller waits", || session.one::<bool>(&is_waiting));
    session.run("select steadytext_daemon_start()");
    let (ended, answer) = waiting.join().unwrap_or_else(|_| panic!("the waiter panicked"));
    assert_eq!(answer, Ok(session.request(id).answer));
    let completed: SystemTime =
        session.one(&format!("select completed_at from steadytext_queue where request_id = '{id}'"));
    ended.duration_since(completed).unwrap_or_default()
}

#[test]
fn a_waiting_caller_is_woken_by_completion_in_every_isolation_level() {
    let (cluster, mut session) = sleepy();
    for begin in [
        "",
        "begin isolation level read committed",
        "begin isolation level repeatable read",
        "begin isolation level serializable",
        "begin isolation level repeatable read; select count(*) from steadytext_queue",
    ] {
        // A session that is not woken looks again after a second, and sees by chance within a tenth of one:
        // most of ten never do. A busy machine delays everybody, now and then.
        let woken = eventually(PATIENCE, || {
            let latencies = (0..10).map(|_| wait_latency(&cluster, &mut session, begin));
            let soon = latencies.filter(|latency| *latency < Duration::from_millis(100)).count();
            (soon > 5).then_some(())
        });
        assert!(woken.is_some(), "{begin:?}: nobody is woken");
    }
}

#[test]
fn many_waiting_callers_all_get_their_own_answer() {
    let (cluster, mut session) = sleepy();
    session.pause();
    let ids: Vec<Uuid> =
        (0..12).map(|i| session.generate(&format!("number {}", i / 2), "max_tokens => 6")).collect();
    let waiting: Vec<_> = ids
        .iter()
        .map(|id| {
            let (mut waiter, id) = (cluster.session("postgres"), *id);
            std::thread::spawn(move || {
                waiter.one::<String>(&format!("select steadytext_get_async_result('{id}', 50)"))
            })
        })
        .collect();
    wait_until("all of them wait", || {
        session.one::<i64>("select count(*) from pg_stat_activity where state = 'active' and query like '%get_async_result(''%'")
            >= 12
    });
    session.run("select steadytext_daemon_start()");
    for (id, waiter) in ids.iter().zip(waiting) {
        assert_eq!(Some(waiter.join().expect("the waiter gets an answer")), session.request(*id).answer);
    }
}

#[test]
fn a_caller_that_waits_for_several_is_woken_by_the_first_or_the_last() {
    let (cluster, mut session) = sleepy();
    session.pause();
    let ids: Vec<Uuid> = (0..40)
        .map(|i| session.generate(&format!("of many {i}"), "max_tokens => 2, use_cache => false"))
        .collect();
    let array = format!("'{{{}}}'", ids.iter().map(Uuid::to_string).collect::<Vec<_>>().join(","));
    let any = begins_to_wait(&cluster, &mut session, format!("steadytext_wait({array}, 'any', 3000)"));
    let all = begins_to_wait(&cluster, &mut session, format!("steadytext_wait({array}, 'all', 3000)"));
    session.cancel(ids[7]);
    assert!(any.join().expect("one has ended"));
    assert!(!all.is_finished(), "39 have not ended");
    assert!(!session.one::<bool>(&format!("select steadytext_wait({array}, 'all', 0)")));
    session.run("select steadytext_daemon_start()");
    assert!(all.join().expect("all have ended"));
    let open = "select count(*) from steadytext_queue where status in ('pending', 'processing')";
    assert_eq!(session.one::<i64>(open), 0);
}

#[test]
fn a_wait_that_is_too_short_says_so_and_changes_nothing() {
    let (_cluster, mut session) = sleepy();
    session.pause();
    let id = session.generate("nobody works", "max_tokens => 3");
    let error = session.error(&format!("select steadytext_get_async_result('{id}', 1)"));
    assert_eq!(error.code().code(), "P0001");
    assert_eq!(error.message(), "Timeout waiting for async result (1 seconds)");
    assert_eq!(session.request(id).status, "pending");
}

#[test]
fn with_notify_on_clients_that_listen_learn_of_requests_and_results() {
    let (cluster, _session) = sleepy();
    let mut listener = cluster.session("postgres");
    listener.run("listen steadytext_queue; listen steadytext_result");
    cluster.configure("pg_steadytext.notify", "on");
    cluster.reload();
    let mut session = cluster.session("postgres");
    wait_until("the setting is read", || session.one::<String>("show \"pg_steadytext.notify\"") == "on");
    let id = session.generate("announced", "max_tokens => 3").to_string();
    let mut heard = Vec::new();
    let mut notifications = listener.notifications();
    let mut iterator = notifications.timeout_iter(PATIENCE);
    while heard.len() < 2 {
        let notification = iterator.next().expect("the connection holds").expect("both come in time");
        if notification.payload() == id {
            heard.push(notification.channel().to_owned());
        }
    }
    assert_eq!(heard, ["steadytext_queue", "steadytext_result"]);
}
