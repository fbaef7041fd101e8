//! Many texts in one statement: embeddings beside the queue and beside many sessions, and the summary of a
//! large group.

use std::time::{Duration, Instant};

use steadytext_bench::Report;
use steadytext_test_server::{Cluster, Session};

use crate::neighbour::{pgbench, rate};

const TEXTS: usize = 1000;
const ROUNDS: usize = 3;
const SESSIONS: &str = "16";
const SECONDS: &str = "4";
const WAIT: Duration = Duration::from_millis(5);
/// Rows of the group.
const ROWS: usize = 10_000;

pub(crate) fn measure(cluster: &Cluster, report: &mut Report) {
    let mut session = cluster.session("postgres");
    // The first run loads the model.
    session.run("select steadytext_embed('hello'), steadytext_generate('hello', 1)");
    embeddings(cluster, &mut session, report);
    session.run(&format!(
        "create table note as select i, 'Note ' || i || ': the index on column ' || i % 97 || ' was rebuilt.' as body
         from generate_series(1, {ROWS}) as i"
    ));
    let since = Instant::now();
    let summary: String = session.one("select steadytext_summarize(body) from note");
    let seconds = since.elapsed().as_secs_f64();
    assert!(!summary.is_empty(), "there is no summary");
    report.add("summarize_10k_rows_s", seconds, "s");
    report.add("summarize_10k_rows_per_s", ROWS as f64 / seconds, "1/s");
}

/// Embeddings of short texts a second, medians of rounds that take turns; none of the texts comes twice.
fn embeddings(cluster: &Cluster, session: &mut Session, report: &mut Report) {
    let script = cluster.directory().join("embed_sessions.sql");
    let call = "\\set i random(1, 1000000000)\nselect steadytext_embed('session text ' || :i, false);\n";
    std::fs::write(&script, call).expect("the script can be written");
    let script = script.display().to_string();
    let texts = |what: &str, round: usize| {
        format!("(select array_agg('{what} text {round} ' || i) from generate_series(1, {TEXTS}) as i)")
    };
    let (mut batches, mut queued, mut sessions) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let since = Instant::now();
        session.run(&format!("select cardinality(steadytext_embed_batch({}, false))", texts("batch", round)));
        batches.push(TEXTS as f64 / since.elapsed().as_secs_f64());
        let since = Instant::now();
        session.run(&format!(
            "select cardinality(steadytext_embed_batch_async({}, use_cache => false))",
            texts("queue", round)
        ));
        let open = "select count(*) from steadytext_queue where status in ('pending', 'processing')";
        while session.one::<i64>(open) > 0 {
            std::thread::sleep(WAIT);
        }
        queued.push(TEXTS as f64 / since.elapsed().as_secs_f64());
        sessions.push(rate(&pgbench(
            cluster,
            &["-n", "-M", "prepared", "-f", &script, "-c", SESSIONS, "-j", "2", "-T", SECONDS],
        )));
    }
    let median = |mut rates: Vec<f64>| {
        rates.sort_by(f64::total_cmp);
        rates[ROUNDS / 2]
    };
    let (batch, queue, sessions) = (median(batches), median(queued), median(sessions));
    report.add("embed_batch_per_s", batch, "1/s");
    report.add("embed_batch_queue_per_s", queue, "1/s");
    report.add("embed_batch_sessions_per_s", sessions, "1/s");
    report.add("embed_batch_queue_ratio", batch / queue, "");
    report.add("embed_batch_sessions_ratio", batch / sessions, "");
}
