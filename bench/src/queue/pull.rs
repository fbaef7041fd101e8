//! The effect of a download on the requests that run beside it: tokens generated in slices of time, with and
//! without one in turns.

use std::time::{Duration, Instant};

use steadytext_bench::{Report, percentile};
use steadytext_engine::process::give_way;
use steadytext_test_models::hub::LocalHub;
use steadytext_test_models::{Architecture, Spec, write};
use steadytext_test_server::{Cluster, PATIENCE, Session, eventually};
use uuid::Uuid;

/// Requests that run at a time.
const REQUESTS: usize = 16;
const SLICE: Duration = Duration::from_secs(4);
const PAIRS: usize = 5;
/// A connection of a gigabit.
const BYTES_PER_S: u64 = 100_000_000;
/// The least of all priorities.
const LAST_NICE: i32 = 19;
/// More than comes in a slice.
const FILE_BYTES: u64 = 1 << 30;

pub(crate) fn measure(hub: &LocalHub, cluster: &Cluster, report: &mut Report) {
    // The hub would be another machine: it takes no time of this one that the engine wants, where this
    // program leads a session of its own (`setsid`).
    give_way(LAST_NICE);
    let mut session = cluster.session("postgres");
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
    let source = cluster.directory().join("source");
    std::fs::File::create(&source).and_then(|file| file.set_len(FILE_BYTES)).expect("our own directory");
    hub.limit_rate(BYTES_PER_S);
    let begin = |session: &mut Session| -> Vec<Uuid> {
        (0..REQUESTS)
            .map(|i| session.generate(&format!("Tell story {i}."), "model => 'busy', max_tokens => 4096"))
            .collect()
    };
    let mut pairs = Vec::new();
    for pair in 0..PAIRS {
        // Content that no other file has had.
        let file = format!("file{pair}.gguf");
        hub.add_file("acme/large", &file, &source).expect("our own file");
        let reference = format!("acme/large:{file}");
        let ids = begin(&mut session);
        session.wait_for_tokens(ids[0]);
        slice(&mut session);
        // Contexts grow and tokens take longer, so that the slice beside the download lies between two
        // others.
        let before = slice(&mut session);
        session.one::<String>(&format!("select steadytext_model_pull('{reference}', wait => false)"));
        eventually(PATIENCE, || (bytes(&mut session) > 0).then_some(())).expect("the download begins");
        let begun = (bytes(&mut session), Instant::now());
        let beside = slice(&mut session);
        let rate = (bytes(&mut session) - begun.0) as f64 / begun.1.elapsed().as_secs_f64();
        assert!(
            session.one::<bool>(&format!("select steadytext_model_pull_cancel('{reference}')")),
            "it ended too early"
        );
        eventually(PATIENCE, || (bytes(&mut session) == 0).then_some(())).expect("the download ends");
        let after = slice(&mut session);
        ids.iter().for_each(|id| _ = session.cancel(*id));
        let idle = "select not exists (select from steadytext_activity)";
        eventually(PATIENCE, || session.one::<bool>(idle).then_some(())).expect("everything ends");
        pairs.push(((before + after) / 2.0, beside, rate));
    }
    let median = |value: fn(&(f64, f64, f64)) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        percentile(&values, 0.5)
    };
    report.add("pull_alone_tokens_per_s", median(|pair| pair.0), "1/s");
    report.add("pull_beside_tokens_per_s", median(|pair| pair.1), "1/s");
    report.add("pull_ratio", median(|pair| pair.1 / pair.0), "");
    report.add("pull_mb_per_s", median(|pair| pair.2 / 1e6), "MB/s");
}

/// Bytes of the download that are there.
fn bytes(session: &mut Session) -> i64 {
    session.one("select coalesce(sum(bytes_done), 0)::bigint from steadytext_activity where request_type = 'model_pull'")
}

/// Tokens in a second over a slice of time.
fn slice(session: &mut Session) -> f64 {
    let tokens = "select coalesce(sum(generated_tokens), 0)::bigint from steadytext_activity";
    let (begin, before) = (Instant::now(), session.one::<i64>(tokens));
    std::thread::sleep(SLICE);
    (session.one::<i64>(tokens) - before) as f64 / begin.elapsed().as_secs_f64()
}
