//! The time from commit to claim, on an idle queue.

use std::thread::sleep;
use std::time::Duration;

use steadytext_bench::{Report, percentile};
use steadytext_test_server::Cluster;
use uuid::Uuid;

use crate::USER;

const REQUESTS: usize = 2000;
const WARM_UP: usize = 100;

/// Long enough for the worker to fall asleep again after the request before.
const IDLE: Duration = Duration::from_millis(4);

pub(crate) fn measure(cluster: &Cluster, report: &mut Report) {
    // The commit timestamp is taken before the transaction's WAL is flushed. Without that flush it is the
    // moment at which the row becomes visible, and what follows is the wake.
    for (setting, p50, p99) in
        [("off", "wake_p50_ms", "wake_p99_ms"), ("on", "wake_flushed_p50_ms", "wake_flushed_p99_ms")]
    {
        let latencies = latencies(cluster, setting);
        report.add(p50, percentile(&latencies, 0.5), "ms");
        report.add(p99, percentile(&latencies, 0.99), "ms");
    }
}

/// Milliseconds from commit to claim, sorted.
fn latencies(cluster: &Cluster, synchronous_commit: &str) -> Vec<f64> {
    let mut user = cluster.session_as("postgres", USER);
    user.run(&format!("set synchronous_commit = {synchronous_commit}"));
    let enqueue = user
        .prepare("select steadytext_generate_async('What is a table?', 16), pg_current_xact_id()::text")
        .expect("the statement is right");
    let wait = user.prepare("select steadytext_get_async_result($1, 30)").expect("the statement is right");
    let mut requests: Vec<(Uuid, String)> = Vec::new();
    for _ in 0..WARM_UP + REQUESTS {
        let row = user.query_one(&enqueue, &[]).expect("the request is enqueued");
        let id: Uuid = row.get(0);
        user.query_one(&wait, &[&id]).expect("the request is answered");
        requests.push((id, row.get(1)));
        sleep(IDLE);
    }
    let (ids, transactions): (Vec<Uuid>, Vec<String>) = requests.into_iter().skip(WARM_UP).unzip();
    let mut latencies: Vec<f64> = cluster
        .session("postgres")
        .query(
            "select (extract(epoch from q.started_at - pg_xact_commit_timestamp(t.id::xid)) * 1000)::float8
             from unnest($1::uuid[], $2::text[]) as t(request_id, id)
             join steadytext_queue q using (request_id)",
            &[&ids, &transactions],
        )
        .expect("the requests are there")
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(latencies.len(), REQUESTS);
    latencies.sort_by(f64::total_cmp);
    latencies
}
