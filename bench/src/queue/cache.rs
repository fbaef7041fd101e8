//! The rate of calls and requests that the cache answers, and the cost of its writes.

use std::time::Instant;

use steadytext_bench::{Report, percentile};
use steadytext_test_server::{Cluster, Session, wait_until};

use crate::USER;
use crate::neighbour::{pgbench, rate};

const ENTRIES: i64 = 1000;
const CLIENTS: &str = "4";
const SLICES: usize = 3;
const SLICE_SECONDS: &str = "5";
const CALLS: usize = 3000;
const WARM_UP: usize = 200;

pub(crate) fn measure(cluster: &Cluster, report: &mut Report) {
    let mut session = cluster.session("postgres");
    // As if the model had computed them, which is looked at in every hit. Answers as long as those of 100
    // tokens.
    session.run("select steadytext_generate('the model', 1)");
    wait_until("an answer of the model is there", || {
        session.one::<i64>("select count(*) from steadytext_cache where prompt = 'the model'") == 1
    });
    session.run(&format!(
        "insert into steadytext_cache (cache_key, prompt, response, request_type, model_hash, kernel_version)
         select 'question ' || i, 'question ' || i, repeat(md5(i::text) || ' ', 15), 'generate', c.model_hash, c.kernel_version
         from steadytext_cache as c, generate_series(1, {ENTRIES}) as i where c.prompt = 'the model';
         create role {USER} login in role steadytext_user"
    ));
    session.run("vacuum analyze steadytext_cache");
    session.run("select steadytext.reset_cache_counters()");
    let script = cluster.directory().join("cache.sql");
    let text = format!("\\set i random(1, {ENTRIES})\nselect steadytext_generate('question ' || :i);\n");
    std::fs::write(&script, text).expect("the script can be written");
    let script = script.display().to_string();
    let slice = || {
        rate(&pgbench(
            cluster,
            &[
                "-n",
                "-U",
                USER,
                "-M",
                "prepared",
                "-f",
                &script,
                "-c",
                CLIENTS,
                "-j",
                "2",
                "-T",
                SLICE_SECONDS,
            ],
        ))
    };
    slice();
    wait_for_counts(&mut session);
    session.run("checkpoint; select steadytext.reset_cache_counters()");
    let before = written(&mut session);
    let mut rates: Vec<f64> = (0..SLICES).map(|_| slice()).collect();
    let hits = wait_for_counts(&mut session);
    let after = written(&mut session);
    rates.sort_by(f64::total_cmp);
    report.add("cache_hits_per_s", percentile(&rates, 0.5), "1/s");
    report.add("cache_wal_mb_per_10k", (after.0 - before.0) / hits * 1e4 / 1e6, "MB");
    report.add("cache_growth_mb_per_10k", (after.1 - before.1) / hits * 1e4 / 1e6, "MB");

    let mut user = cluster.session_as("postgres", USER);
    let call = timed(&mut user, "select steadytext_generate($1)");
    report.add("cache_hit_p50_ms", percentile(&call, 0.5), "ms");
    report.add("cache_hit_p99_ms", percentile(&call, 0.99), "ms");
    // Without the flush of the WAL, which is the disk's.
    user.run("set synchronous_commit = off");
    let enqueue = timed(&mut user, "select steadytext_generate_async($1)");
    report.add("enqueue_hit_p50_ms", percentile(&enqueue, 0.5), "ms");
    report.add("enqueue_hit_p99_ms", percentile(&enqueue, 0.99), "ms");
    let pending: i64 = session.one("select count(*) from steadytext_queue where status <> 'completed'");
    assert_eq!(pending, 0, "a request was not answered from the cache");
}

/// Waits until every hit is written down; how many there were.
fn wait_for_counts(session: &mut Session) -> f64 {
    let hits: i64 = session.one("select hits from steadytext.cache_counters()");
    assert_eq!(
        session.one::<i64>("select misses from steadytext.cache_counters()"),
        0,
        "an answer was computed"
    );
    let mut seen = -1;
    wait_until("the hits are written down", || {
        let sum: i64 = session.one("select sum(access_count) from steadytext_cache");
        std::mem::replace(&mut seen, sum) == sum && sum >= hits
    });
    hits as f64
}

/// Bytes of WAL ever written, and of the cache.
fn written(session: &mut Session) -> (f64, f64) {
    let row = session
        .query_one(
            "select (pg_current_wal_insert_lsn() - '0/0')::float8, pg_total_relation_size('steadytext_cache')::float8",
            &[],
        )
        .expect("the query is right");
    (row.get(0), row.get(1))
}

/// Milliseconds of a statement about one entry after another, as the client sees them; sorted.
fn timed(session: &mut Session, sql: &str) -> Vec<f64> {
    let statement = session.prepare(sql).expect("the statement is right");
    let mut times: Vec<f64> = (0..WARM_UP + CALLS)
        .map(|i| {
            let prompt = format!("question {}", i as i64 % ENTRIES + 1);
            let begun = Instant::now();
            session.query_one(&statement, &[&prompt]).expect("it is answered");
            begun.elapsed().as_secs_f64() * 1e3
        })
        .skip(WARM_UP)
        .collect();
    times.sort_by(f64::total_cmp);
    times
}
