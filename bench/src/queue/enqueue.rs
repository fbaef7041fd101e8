//! Enqueuing by 16 clients, beside plain INSERTs into an identical bare table.

use std::path::{Path, PathBuf};

use steadytext_bench::{Report, percentile};
use steadytext_test_server::{Cluster, Session};

use crate::USER;

const CLIENTS: &str = "16";
const SLICES: usize = 10;
/// Entries of a full cache.
const ENTRIES: usize = 100_000;
const WORKING_SLICES: usize = 4;
/// Long enough that what each new session does once (loading functions, planning) hardly counts.
const SLICE_SECONDS: &str = "4";

const ENQUEUE: &str =
    "select steadytext_generate_async('What is the difference between a table and an index?');\n";
const INSERT: &str = "insert into bare (request_type, prompt, params, priority) values ('generate', \
     'What is the difference between a table and an index?', '{}', 5) returning request_id;\n";

pub(crate) fn measure(cluster: &Cluster, report: &mut Report) {
    let mut session = cluster.session("postgres");
    session.run(&format!(
        "create table bare (like steadytext_queue including all);
         grant insert, select on bare to {USER};
         select steadytext_config_set('max_queue_size', '1000000000');
         select steadytext_config_set('max_queue_size_per_role', '1000000000');
         select steadytext_daemon_stop()"
    ));
    session.wait_for_worker("paused");
    let directory = cluster.make_directory("pgbench");
    let scripts = [("enqueue.sql", ENQUEUE), ("insert.sql", INSERT)].map(|(name, text)| {
        let path = directory.join(name);
        std::fs::write(&path, text).expect("the script can be written");
        path
    });
    // Caches fill, relations grow their first pages.
    let _ = scripts.each_ref().map(|script| slice(cluster, script));
    let rates = in_turns(cluster, &scripts, SLICES);
    report.add("enqueue_per_s", rates.enqueue, "1/s");
    report.add("plain_insert_per_s", rates.insert, "1/s");
    report.add("enqueue_ratio", rates.ratio, "");
    session.run("truncate steadytext_queue, bare; checkpoint");
    report.add("enqueue_limited_ratio", limited_ratio(cluster, &mut session, &scripts[0]), "");
    session.run("truncate steadytext_queue; checkpoint; select steadytext_daemon_start()");
    let rates = in_turns(cluster, &scripts, WORKING_SLICES);
    report.add("enqueue_working_per_s", rates.enqueue, "1/s");
    report.add("enqueue_working_ratio", rates.ratio, "");

    // None of them answers the request: what is measured is a look that finds nothing.
    session.run(&format!(
        "select steadytext_config_set('cache_eviction_enabled', 'false');
         insert into steadytext_cache (cache_key, prompt, response, request_type, imported)
         select 'question ' || i, 'question ' || i, repeat(md5(i::text), 5), 'generate', true from generate_series(1, {ENTRIES}) as i"
    ));
    session.run("vacuum analyze steadytext_cache");
    let rates = in_turns(cluster, &scripts, WORKING_SLICES);
    report.add("enqueue_full_working_ratio", rates.ratio, "");
    session.run("select steadytext_daemon_stop()");
    session.wait_for_worker("paused");
    session.run("truncate steadytext_queue, bare; checkpoint");
    let rates = in_turns(cluster, &scripts, SLICES);
    report.add("enqueue_full_per_s", rates.enqueue, "1/s");
    report.add("enqueue_full_ratio", rates.ratio, "");
    session.run("truncate steadytext_queue, steadytext_cache; drop table bare; checkpoint");
}

/// The median ratio of the rate with limits of the role that nobody meets to the rate without any.
fn limited_ratio(cluster: &Cluster, session: &mut Session, script: &Path) -> f64 {
    let limits = [
        "requests_per_minute => 1000000000, requests_per_hour => 1000000000, requests_per_day => 1000000000, \
         tokens_per_day => 1000000000",
        "requests_per_day => null",
    ];
    let mut ratios = Vec::new();
    for round in 0..SLICES {
        let mut pair = [0.0; 2];
        for which in [round % 2, 1 - round % 2] {
            session.run(&format!("select steadytext_set_limit('{USER}', {})", limits[which]));
            pair[which] = slice(cluster, script);
        }
        ratios.push(pair[0] / pair[1]);
    }
    session.run(&format!("select steadytext_set_limit('{USER}')"));
    ratios.sort_by(f64::total_cmp);
    percentile(&ratios, 0.5)
}

/// Medians over all slices.
struct Rates {
    enqueue: f64,
    insert: f64,
    /// Ratio of neighbouring slices, so that other work on the machine hits both.
    ratio: f64,
}

/// Runs slices of both scripts in turns: A B, B A, ….
fn in_turns(cluster: &Cluster, scripts: &[PathBuf; 2], slices: usize) -> Rates {
    let mut pairs = Vec::new();
    for round in 0..slices {
        let mut pair = [0.0; 2];
        for which in [round % 2, 1 - round % 2] {
            pair[which] = slice(cluster, &scripts[which]);
        }
        pairs.push(pair);
    }
    let median = |value: fn(&[f64; 2]) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        percentile(&values, 0.5)
    };
    Rates {
        enqueue: median(|pair| pair[0]),
        insert: median(|pair| pair[1]),
        ratio: median(|pair| pair[0] / pair[1]),
    }
}

/// Transactions per second of one slice.
fn slice(cluster: &Cluster, script: &Path) -> f64 {
    let output = cluster
        .client_program("pgbench")
        .args(["-n", "-M", "prepared", "-c", CLIENTS, "-j", "2", "-T", SLICE_SECONDS, "-U", USER, "-f"])
        .arg(script)
        .arg("postgres")
        .output()
        .expect("pgbench starts");
    let text = String::from_utf8_lossy(&output.stdout);
    let rate = text.lines().find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok());
    match rate {
        Some(rate) if output.status.success() => rate,
        _ => panic!("pgbench failed:\n{text}\n{}", String::from_utf8_lossy(&output.stderr)),
    }
}
