//! Synchronous calls: their round trip beside the engine's own time, and what many backends get together.

use std::path::Path;
use std::time::Instant;

use postgres::types::ToSql;
use steadytext_bench::{Report, percentile};
use steadytext_engine::{Config, Embed, Engine, EventKind, ModelSource, Reply, Request, Work};
use steadytext_test_server::{Cluster, copied_model, wait_until};

use crate::neighbour::{pgbench, rate};

const CALLS: usize = 3000;
const WARM_UP: usize = 200;
const TEXT: &str = "hello";
const BACKENDS: &str = "32";
const PAIRS: usize = 3;

/// The statements of many backends, each with another text, and for how many seconds they run: the vector of
/// a short text, and a sentence.
const WORKLOADS: [(&str, u32, &str); 2] = [
    ("embed", 4, "select steadytext_embed('text ' || :i, false);"),
    ("generate", 4, "select steadytext_generate('Describe index ' || :i, 24, false);"),
];
/// The workload of a model that is given.
const OF_MODEL: (&str, u32, &str) =
    ("model", 20, "select steadytext_generate('Describe index ' || :i, 16, false, model => 'measured');");

pub(crate) fn measure(cluster: &Cluster, model: Option<&Path>, report: &mut Report) {
    let calls = calls(cluster);
    let engine = engine();
    report.add("sync_embed_p50_ms", percentile(&calls, 0.5), "ms");
    report.add("sync_embed_p99_ms", percentile(&calls, 0.99), "ms");
    report.add("sync_engine_p50_ms", percentile(&engine, 0.5), "ms");
    report.add("sync_overhead_ms", percentile(&calls, 0.5) - percentile(&engine, 0.5), "ms");

    compare_places(cluster, report);
    let mut workloads = WORKLOADS.to_vec();
    if let Some(model) = model {
        copied_model(cluster, &mut cluster.session("postgres"), "measured", model);
        workloads.push(OF_MODEL);
    }
    for (name, seconds, statement) in workloads {
        let slice = |backends| slice(cluster, statement, backends, seconds);
        // The first slice loads the model.
        slice("1");
        let mut ratios: Vec<(f64, f64)> = (0..PAIRS).map(|_| (slice("1"), slice(BACKENDS))).collect();
        ratios.sort_by(|a, b| (a.1 / a.0).total_cmp(&(b.1 / b.0)));
        let (one, many) = ratios[PAIRS / 2];
        report.add(&format!("sync_{name}_1_per_s"), one, "1/s");
        report.add(&format!("sync_{name}_32_per_s"), many, "1/s");
        report.add(&format!("sync_{name}_32_ratio"), many / one, "");
    }
}

/// An engine in a worker beside one in a program of its own, in rounds that take turns: medians of round
/// trips, and of the time that the queue takes for many short requests.
fn compare_places(cluster: &Cluster, report: &mut Report) {
    const PLACES: [&str; 2] = ["worker", "separate"];
    let mut measured = [const { Vec::new() }; PLACES.len()];
    for _ in 0..PAIRS {
        for (place, rounds) in PLACES.iter().zip(&mut measured) {
            move_engine(cluster, place);
            rounds.push((percentile(&calls(cluster), 0.5), queued(cluster)));
        }
    }
    let median = |numbers: &mut Vec<f64>| {
        numbers.sort_by(f64::total_cmp);
        numbers[numbers.len() / 2]
    };
    let [(worker, queued), (separate, queued_apart)] = measured.map(|rounds| {
        let (mut calls, mut queued): (Vec<f64>, Vec<f64>) = rounds.into_iter().unzip();
        (median(&mut calls), median(&mut queued))
    });
    report.add("sync_worker_p50_ms", worker, "ms");
    report.add("sync_separate_p50_ms", separate, "ms");
    report.add("sync_separate_ratio", separate / worker, "");
    report.add("queue_worker_ms", queued, "ms");
    report.add("queue_separate_ms", queued_apart, "ms");
    report.add("queue_separate_ratio", queued_apart / queued, "");
    move_engine(cluster, PLACES[0]);
}

/// Has the engine run there, and waits until it does.
fn move_engine(cluster: &Cluster, place: &str) {
    cluster.configure("pg_steadytext.engine_process", place);
    cluster.reload();
    let mut session = cluster.session("postgres");
    wait_until("the engine has moved", || {
        session.one(&format!(
            "select coalesce((select a.pid is null from steadytext_engine_stat as e
                              left join pg_stat_activity as a on a.pid = e.pid where e.pid is not null), not {0}) = {0}
                    and current_setting('pg_steadytext.engine_process') = '{place}'
                    and steadytext_embed('{TEXT}', false) is not null",
            place == "separate"
        ))
    });
}

/// Milliseconds from enqueuing many requests to the last answer.
fn queued(cluster: &Cluster) -> f64 {
    const REQUESTS: usize = 2000;
    let mut session = cluster.session("postgres");
    let begun = Instant::now();
    session.run(&format!(
        "select steadytext_embed_async('text ' || i, use_cache => false) from generate_series(1, {REQUESTS}) as i"
    ));
    wait_until("all are answered", || {
        session
            .one("select not exists (select from steadytext_queue where status in ('pending', 'processing'))")
    });
    begun.elapsed().as_secs_f64() * 1e3
}

/// Milliseconds of calls from a client, sorted.
fn calls(cluster: &Cluster) -> Vec<f64> {
    let mut session = cluster.session("postgres");
    // As a parameter: a constant would be embedded once, when the statement is planned. Not from the cache.
    let statement = session
        .prepare("select steadytext_embed($1, use_cache => false) is not null")
        .expect("the statement is right");
    let parameters: [&(dyn ToSql + Sync); 1] = [&TEXT];
    timed(|| {
        session.query_one(&statement, &parameters).expect("the call is answered");
    })
}

/// Milliseconds of the same request in an engine of this process, sorted.
fn engine() -> Vec<f64> {
    let engine = Engine::start(Config::default()).expect("the engine starts");
    let (sender, events) = crossbeam_channel::unbounded();
    timed(|| {
        let work = Work::Embed(Embed::passage(TEXT));
        let request = Request { key: 1, model: ModelSource::Builtin, salt: 0, dedup_key: None, work };
        engine.submit(request, Reply::new(sender.clone()));
        while !matches!(events.recv().expect("the engine answers").kind, EventKind::Done(_)) {}
    })
}

fn timed(mut call: impl FnMut()) -> Vec<f64> {
    let mut times: Vec<f64> = (0..WARM_UP + CALLS)
        .map(|_| {
            let begun = Instant::now();
            call();
            begun.elapsed().as_secs_f64() * 1e3
        })
        .skip(WARM_UP)
        .collect();
    times.sort_by(f64::total_cmp);
    times
}

/// Calls per second of so many backends, each of which sends one after the other.
fn slice(cluster: &Cluster, statement: &str, backends: &str, seconds: u32) -> f64 {
    let script = cluster.directory().join("sync.sql");
    std::fs::write(&script, format!("\\set i random(1, 1000000)\n{statement}\n"))
        .expect("the script can be written");
    let script = script.display().to_string();
    rate(&pgbench(
        cluster,
        &["-n", "-M", "prepared", "-f", &script, "-c", backends, "-j", "2", "-T", &seconds.to_string()],
    ))
}
