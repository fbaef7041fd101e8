//! The cost for other users of one user's open transaction that has cancelled a hundred thousand waiting
//! requests.

use std::time::Instant;

use steadytext_bench::{Report, percentile};
use steadytext_test_server::{Cluster, Session};
use uuid::Uuid;

use crate::USER;

const LOCKED: i64 = 100_000;
const REQUESTS: usize = 1000;
const WARM_UP: usize = 100;
/// The largest median of the others, in multiples of the idle one.
const BAR: f64 = 2.0;

pub(crate) fn measure(cluster: &Cluster, report: &mut Report) {
    let mut session = cluster.session("postgres");
    session.run("create role holder login in role steadytext_user; truncate steadytext_queue; checkpoint");
    let idle = latencies(cluster);

    session.run("select steadytext_daemon_stop()");
    session.wait_for_worker("paused");
    session.run(&format!(
        "set role holder;
         insert into steadytext_queue (request_type, prompt)
         select 'generate', 'What is the difference between table ' || i || ' and its index?'
         from generate_series(1, {LOCKED}) i;
         reset role; checkpoint"
    ));
    let mut holder = cluster.session("postgres");
    holder.run("begin; update steadytext_queue set status = 'cancelled' where status = 'pending'");
    session.run("select steadytext_daemon_start()");
    let locked = latencies(cluster);
    holder.run("rollback");
    // Soon after, the oldest of them is claimed.
    let first: Uuid =
        session.one("select request_id from steadytext_queue where prompt like '%table 1 and%'");
    session.answer(first);
    session.run("select steadytext_daemon_stop()");
    session.wait_for_worker("paused");
    session.run("truncate steadytext_queue; checkpoint; select steadytext_daemon_start()");

    let ratio = percentile(&locked, 0.5) / percentile(&idle, 0.5);
    report.add("locked_idle_p50_ms", percentile(&idle, 0.5), "ms");
    report.add("locked_p50_ms", percentile(&locked, 0.5), "ms");
    report.add("locked_p99_ms", percentile(&locked, 0.99), "ms");
    report.add("locked_ratio", ratio, "");
    assert!(
        ratio <= BAR,
        "beside {LOCKED} locked requests others take {ratio:.2} times as long, {BAR} are allowed"
    );
}

/// Milliseconds from enqueuing to having the answer, one request after the other; sorted.
fn latencies(cluster: &Cluster) -> Vec<f64> {
    let mut user: Session = cluster.session_as("postgres", USER);
    let enqueue = user
        .prepare("select steadytext_generate_async('What is a table?', 1, use_cache => false)")
        .expect("the statement is right");
    let wait = user.prepare("select steadytext_get_async_result($1, 60)").expect("the statement is right");
    let mut times: Vec<f64> = (0..WARM_UP + REQUESTS)
        .map(|_| {
            let begun = Instant::now();
            let id: Uuid = user.query_one(&enqueue, &[]).expect("the request is enqueued").get(0);
            user.query_one(&wait, &[&id]).expect("the request is answered");
            begun.elapsed().as_secs_f64() * 1e3
        })
        .skip(WARM_UP)
        .collect();
    times.sort_by(f64::total_cmp);
    times
}
