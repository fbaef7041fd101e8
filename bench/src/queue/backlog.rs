//! A backlog, worked off by the no-op engine.

use steadytext_bench::{Report, percentile};
use steadytext_test_server::{Cluster, wait_until};
use uuid::Uuid;

const REQUESTS: usize = 20_000;
const RUNS: usize = 3;

pub(crate) fn measure(cluster: &Cluster, report: &mut Report) {
    let mut rates: Vec<f64> = (0..RUNS).map(|_| run(cluster)).collect();
    rates.sort_by(f64::total_cmp);
    report.add("noop_per_s", percentile(&rates, 0.5), "1/s");
}

/// Requests per second from the first claim to the commit of the last completion.
fn run(cluster: &Cluster) -> f64 {
    let mut session = cluster.session("postgres");
    session.run("select steadytext_daemon_stop()");
    session.wait_for_worker("paused");
    session.run("truncate steadytext_queue; checkpoint");
    session.run(&format!(
        "set role bench;
         insert into steadytext_queue (request_type, prompt)
         select 'generate', 'What is the difference between table ' || i || ' and its index?'
         from generate_series(1, {REQUESTS}) i;
         reset role"
    ));
    let last: Uuid = session.one("select request_id from steadytext_queue order by id desc limit 1");
    session.run("select steadytext_daemon_start()");
    // A caller that waits disturbs the worker less than one who looks.
    session.one::<String>(&format!("select steadytext_get_async_result('{last}', 120)"));
    wait_until("all are done", || {
        session.one::<bool>("select not exists (select from steadytext_queue where status <> 'completed')")
    });
    let seconds: f64 = session.one(
        "select extract(epoch from max(pg_xact_commit_timestamp(xmin)) - min(started_at))::float8
         from steadytext_queue",
    );
    REQUESTS as f64 / seconds
}
