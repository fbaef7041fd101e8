//! Moments in which somebody waits for the server: after a crash, after CREATE EXTENSION, at a cancel, a
//! drop, a shutdown.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use steadytext_bench::{Report, percentile};
use steadytext_test_server::{
    Cluster, PATIENCE, Session, Shutdown, Signal, endless_text, eventually, slow_model, wait_until,
};
use uuid::Uuid;

/// Each moment is measured so often, and the slowest one counts.
const ROUNDS: usize = 5;
const CANCELS: usize = 200;
/// More than the engine computes at a time, so that some wait in it and some in the queue.
const REQUESTS: usize = 40;
const READY: &str = "database system is ready to accept connections";

/// The largest value of each measurement, in milliseconds.
const BARS: [(&str, f64); 7] = [
    ("recovery_to_claim_ms", 2000.0),
    ("restart_to_claim_ms", 2000.0),
    ("create_extension_to_claim_ms", 1000.0),
    ("cancel_request_p99_ms", 250.0),
    ("cancel_call_p99_ms", 250.0),
    ("drop_database_ms", 2000.0),
    ("fast_shutdown_ms", 2000.0),
];

/// Measures all of them; whether each is within its bar.
pub(crate) fn measure(cluster: &mut Cluster, report: &mut Report) -> bool {
    let mut session = cluster.session("postgres");
    slow_model(cluster, &mut session);
    let calls = cancelled_calls(cluster, &mut session);
    let requests = cancelled_requests(&mut session);
    let (creations, claims) = new_databases(cluster, &mut session);
    let drops = dropped_databases(cluster, &mut session);
    drop(session);
    let recoveries: Vec<f64> = (0..ROUNDS).map(|_| recovery(cluster)).collect();
    let (restarts, shutdowns): (Vec<f64>, Vec<f64>) = (0..ROUNDS).map(|_| restart(cluster)).unzip();

    let values = [
        slowest(&recoveries),
        slowest(&restarts),
        slowest(&claims),
        percentile(&requests, 0.99),
        percentile(&calls, 0.99),
        slowest(&drops),
        slowest(&shutdowns),
    ];
    report.add("create_extension_ms", slowest(&creations), "ms");
    report.add("cancel_request_p50_ms", percentile(&requests, 0.5), "ms");
    report.add("cancel_call_p50_ms", percentile(&calls, 0.5), "ms");
    let mut holds = true;
    for ((name, bar), value) in BARS.into_iter().zip(values) {
        report.add(name, value, "ms");
        if value > bar {
            eprintln!("bench-queue: {name} may be {bar}");
            holds = false;
        }
    }
    holds
}

fn slowest(values: &[f64]) -> f64 {
    values.iter().copied().fold(0.0, f64::max)
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}

/// Enqueues more than the worker can do for a long time, and waits until it computes.
fn keep_busy(session: &mut Session, what: impl Display) {
    let ids: Vec<Uuid> = (0..REQUESTS)
        .map(|i| session.generate(&format!("Tell story {i} of {what}."), endless_text()))
        .collect();
    session.wait_for_tokens(ids[0]);
}

/// Takes all work away, and waits until the worker has let go of it.
fn calm(session: &mut Session) {
    session.run("update steadytext_queue set status = 'cancelled' where status in ('pending', 'processing')");
    wait_until("the worker lets go of cancelled requests", || {
        session.one("select not exists (select from steadytext_activity)")
    });
    session.run("delete from steadytext_queue");
}

/// The time from pg_cancel_backend() to the error of a call that generates; sorted.
fn cancelled_calls(cluster: &Cluster, session: &mut Session) -> Vec<f64> {
    let mut caller = cluster.session("postgres");
    let pid = caller.backend_pid();
    let (begin, begun) = std::sync::mpsc::channel::<()>();
    let (end, ended) = std::sync::mpsc::channel::<Instant>();
    let calls = thread::spawn(move || {
        while begun.recv().is_ok() {
            let call =
                caller.query("select steadytext_generate('Go on.', 4096, false, model => 'slow')", &[]);
            let at = Instant::now();
            assert!(call.is_err(), "a call without end has ended");
            if end.send(at).is_err() {
                break;
            }
        }
    });
    let mut times = Vec::new();
    for _ in 0..CANCELS {
        begin.send(()).expect("the caller lives");
        wait_until("the call generates", || {
            session.one("select coalesce(sum(running), 0) > 0 from steadytext_engine_stat")
        });
        let since = Instant::now();
        let cancelled: bool = session.one(&format!("select pg_cancel_backend({pid})"));
        assert!(cancelled);
        let at = ended.recv_timeout(PATIENCE).expect("the call ends");
        times.push(at.saturating_duration_since(since).as_secs_f64() * 1e3);
        wait_until("the engine has let go of it", || {
            session.one("select coalesce(sum(running), 0) = 0 from steadytext_engine_stat")
        });
    }
    drop(begin);
    calls.join().expect("the caller does not panic");
    times.sort_by(f64::total_cmp);
    times
}

/// The time from steadytext_cancel_async() of a running request to the moment in which the worker has let go
/// of it; sorted.
fn cancelled_requests(session: &mut Session) -> Vec<f64> {
    let mut times = Vec::new();
    for _ in 0..CANCELS {
        let id = session.generate("Go on.", endless_text());
        session.wait_for_tokens(id);
        let since = Instant::now();
        assert!(session.cancel(id));
        let is_gone = session
            .prepare("select not exists (select from steadytext_activity where request_id = $1)")
            .expect("the statement is right");
        while !session.query_one(&is_gone, &[&id]).expect("the statement runs").get::<_, bool>(0) {
            assert!(since.elapsed() < PATIENCE, "a cancelled request goes on");
            thread::sleep(Duration::from_millis(1));
        }
        times.push(milliseconds(since));
    }
    session.run("delete from steadytext_queue");
    times.sort_by(f64::total_cmp);
    times
}

/// Milliseconds that CREATE EXTENSION takes, and from its commit to the claim of a request that is enqueued
/// at once.
fn new_databases(cluster: &Cluster, session: &mut Session) -> (Vec<f64>, Vec<f64>) {
    (0..ROUNDS)
        .map(|i| {
            session.run(&format!("create database new{i}"));
            let mut new = cluster.session(&format!("new{i}"));
            new.run("create extension vector");
            let since = Instant::now();
            new.run("create extension pg_steadytext");
            let created = milliseconds(since);
            let committed: f64 = new.one("select extract(epoch from clock_timestamp())::float8");
            let id = new.generate("At once.", "max_tokens => 1");
            new.answer(id);
            let claimed: f64 = new.one(&format!(
                "select extract(epoch from started_at)::float8 from steadytext_queue where request_id = '{id}'"
            ));
            drop(new);
            session.run(&format!("drop database new{i} with (force)"));
            (created, (claimed - committed) * 1e3)
        })
        .unzip()
}

/// DROP DATABASE … WITH (FORCE) beside a worker that computes, and that holds the engine.
fn dropped_databases(cluster: &Cluster, session: &mut Session) -> Vec<f64> {
    (0..ROUNDS)
        .map(|i| {
            session.run(&format!("create database gone{i}"));
            let mut gone = cluster.session(&format!("gone{i}"));
            gone.create_extension();
            slow_model(cluster, &mut gone);
            keep_busy(&mut gone, i);
            let since = Instant::now();
            session.run(&format!("drop database gone{i} with (force)"));
            milliseconds(since)
        })
        .collect()
}

/// SIGKILL to a worker that computes: from the line that says that the server is ready to the first claim of
/// what it had in flight.
fn recovery(cluster: &Cluster) -> f64 {
    let mut session = cluster.session("postgres");
    keep_busy(&mut session, "recovery");
    let worker = session.worker_pid();
    let from = cluster.log().len();
    drop(session);
    cluster.crash(worker, Signal::KILL);
    let (mut session, ms) = first_claim(cluster, from, 2);
    calm(&mut session);
    ms
}

/// Fast shutdown beside a worker that computes, and start: how soon something is claimed, and how long the
/// shutdown took.
fn restart(cluster: &mut Cluster) -> (f64, f64) {
    let mut session = cluster.session("postgres");
    keep_busy(&mut session, "restart");
    drop(session);
    let from = cluster.log().len();
    let shutdown = cluster.stop(Shutdown::Fast).as_secs_f64() * 1e3;
    cluster.start();
    let (mut session, ms) = first_claim(cluster, from, 1);
    calm(&mut session);
    (ms, shutdown)
}

/// The time from the log's word that the server is ready, behind `from`, to the first claim after it;
/// `attempt` is the least that such a claim counts.
fn first_claim(cluster: &Cluster, from: usize, attempt: i32) -> (Session, f64) {
    let line = cluster.wait_for_log(from, READY);
    // The prefix begins with date, time with milliseconds, and time zone.
    let ready = line.split(' ').take(3).collect::<Vec<_>>().join(" ");
    let mut session = cluster.session("postgres");
    let sql = format!(
        "select min(extract(epoch from started_at - '{ready}'::timestamptz) * 1000)::float8 from steadytext_queue
         where attempt >= {attempt} and started_at >= '{ready}'"
    );
    let ms = eventually(PATIENCE, || session.one::<Option<f64>>(&sql));
    (session, ms.expect("something is claimed"))
}
