//! The effect of a busy worker on the other backends of its server: pgbench beside it, idle and busy in
//! turns.

use steadytext_bench::{Report, percentile};
use steadytext_test_models::{Architecture, Spec, write};
use steadytext_test_server::{Cluster, Session, eventually};
use uuid::Uuid;

const SCALE: &str = "10";
const CLIENTS: &str = "2";
const SLICE_SECONDS: &str = "5";
const PAIRS: usize = 5;
/// More than the worker runs at a time.
const REQUESTS: usize = 64;

pub(crate) fn measure(cluster: &Cluster, report: &mut Report) {
    let mut session = cluster.session("postgres");
    // Too large for the processor's caches, as real models are, and it never ends an answer by itself.
    let spec = Spec {
        architecture: Architecture::Qwen3,
        layers: 8,
        vocab: 16_384,
        context: 8192,
        endless: true,
        ..Spec::qwen3_0_6b()
    };
    write(&spec, &cluster.model_directory().join("busy.gguf")).expect("the model can be written");
    session.run("insert into steadytext_models (name, task, file) values ('busy', 'generate', 'busy.gguf')");
    pgbench(cluster, &["-i", "-q", "-s", SCALE]);
    // Loads the model and fills caches.
    let ids = begin(&mut session);
    end(&mut session, &ids);
    slice(cluster);

    let mut pairs = Vec::new();
    for _ in 0..PAIRS {
        let idle = slice(cluster);
        let ids = begin(&mut session);
        let busy = slice(cluster);
        end(&mut session, &ids);
        pairs.push((idle, busy));
    }
    let median = |value: fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        percentile(&values, 0.5)
    };
    report.add("neighbour_idle_tps", median(|pair| pair.0), "1/s");
    report.add("neighbour_busy_tps", median(|pair| pair.1), "1/s");
    report.add("neighbour_ratio", median(|pair| pair.1 / pair.0), "");
}

/// Gives the worker more than it can do at a time and waits until it generates.
fn begin(session: &mut Session) -> Vec<Uuid> {
    let ids: Vec<Uuid> = (0..REQUESTS)
        .map(|i| session.generate(&format!("Tell story {i}."), "model => 'busy', max_tokens => 4096"))
        .collect();
    session.wait_for_tokens(ids[0]);
    ids
}

/// Takes the work away and waits until the worker has let go of it.
fn end(session: &mut Session, ids: &[Uuid]) {
    // It must have been busy to the end.
    let left: i64 =
        session.one("select count(*) from steadytext_queue where status in ('pending', 'processing')");
    assert!(left > 0, "the worker ran out of work");
    for id in ids {
        session.cancel(*id);
    }
    let idle = "select not exists (select from steadytext_queue where status in ('pending', 'processing'))
                   and not exists (select from steadytext_activity)";
    eventually(steadytext_test_server::PATIENCE, || session.one::<bool>(idle).then_some(()))
        .expect("the worker lets go of cancelled requests");
}

/// Read-only transactions per second.
fn slice(cluster: &Cluster) -> f64 {
    let text =
        pgbench(cluster, &["-n", "-S", "-M", "prepared", "-c", CLIENTS, "-j", "2", "-T", SLICE_SECONDS]);
    rate(&text)
}

/// The rate that pgbench says.
pub(crate) fn rate(text: &str) -> f64 {
    text.lines()
        .find_map(|line| line.strip_prefix("tps = ")?.split(' ').next()?.parse().ok())
        .unwrap_or_else(|| panic!("pgbench says no rate:\n{text}"))
}

pub(crate) fn pgbench(cluster: &Cluster, arguments: &[&str]) -> String {
    let output =
        cluster.client_program("pgbench").args(arguments).arg("postgres").output().expect("pgbench starts");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "pgbench failed:\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
    text
}
