//! The cost of claims beside requests that their worker leaves to others.

use std::time::Instant;

use steadytext_bench::{Report, percentile};
use steadytext_test_server::Cluster;

const LEFT: i64 = 200_000;
const TAKEN: i64 = 16;
const CLAIMS: usize = 50;
/// The most time of a claim beside them, in multiples of one without.
const BAR: f64 = 2.0;
const CLAIM: &str =
    "select count(*) from steadytext.claim_requests('bench', 16, 60, null, false, p_models => '{far}')";

pub(crate) fn measure(cluster: &Cluster, report: &mut Report) {
    let mut session = cluster.session("postgres");
    session.run("select steadytext_daemon_stop()");
    session.wait_for_worker("paused");
    session.run(&format!(
        "truncate steadytext_queue;
         create role crowd login in role steadytext_user;
         insert into steadytext_models (name, task, file) values ('far', 'generate', 'far.gguf') on conflict do nothing;
         set role bench;
         insert into steadytext_queue (request_type, prompt, params)
         select 'generate', 'What is table ' || i || '?', '{{\"model\": \"far\"}}' from generate_series(1, {TAKEN}) i;
         reset role; checkpoint"
    ));
    let alone = claims(cluster);
    session.run(&format!(
        "set role crowd;
         insert into steadytext_queue (request_type, prompt) select 'generate', 'What is index ' || i || '?' from generate_series(1, {LEFT}) i;
         reset role; checkpoint"
    ));
    let beside = claims(cluster);
    session.run("truncate steadytext_queue; delete from steadytext_models where name = 'far'; checkpoint; select steadytext_daemon_start()");
    let ratio = percentile(&beside, 0.5) / percentile(&alone, 0.5);
    report.add("claim_filtered_alone_p50_ms", percentile(&alone, 0.5), "ms");
    report.add("claim_filtered_p50_ms", percentile(&beside, 0.5), "ms");
    report.add("claim_filtered_ratio", ratio, "");
    assert!(
        ratio <= BAR,
        "beside {LEFT} requests of others a claim takes {ratio:.2} times as long, {BAR} are allowed"
    );
}

/// Milliseconds of claims that are taken back; sorted.
fn claims(cluster: &Cluster) -> Vec<f64> {
    let mut session = cluster.session("postgres");
    let mut times: Vec<f64> = (0..CLAIMS)
        .map(|_| {
            session.run("begin");
            let begun = Instant::now();
            assert_eq!(session.one::<i64>(CLAIM), TAKEN);
            let took = begun.elapsed().as_secs_f64() * 1e3;
            session.run("rollback");
            took
        })
        .collect();
    times.sort_by(f64::total_cmp);
    times
}
