//! `soak`: whether a server that works for a long time stays as it is. See [`HELP`].
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "a program of measurements that cannot go on has nothing to say"
)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a command line program")]

mod clients;
mod loads;
mod series;
mod server;

use std::process::ExitCode;
use std::time::Duration;

use steadytext_bench::Report;

const HELP: &str = "\
usage: soak [--minutes N] [--loads N]

With --minutes, or without an option for 30 minutes: a throwaway server with the installed extension and the builtin model, and clients
that ask for everything: requests of the queue, some of which are cancelled, rolled back, or fail; synchronous calls, streams, calls that run
into a timeout; sessions that come and go; a table with a vectorizer and an enrichment that is written all the time. An hour of the
retention lasts a minute, and the cache is trimmed to 1,000 entries.

Every five seconds it is looked at what each process of the extension, and one session, takes. The first third of the time is not judged:
caches fill. Of the rest, a straight line by least squares says how much more it is in an hour:

soak_worker_memory_mb_per_hour  Memory of its own that no file is behind, of the database's worker, in which the engine runs;
                                vectorizer, vectorizer_slow, launcher, session: the same of these
soak_worker_memory_mb           Its mean. Beside it soak_worker_rss_mb and soak_worker_pss_mb
soak_…_descriptors_per_hour     Open files
soak_…_threads_per_hour         Threads
soak_queue_mb, soak_cache_mb    The largest size of table and indexes in the middle third, and in the last (late)

What has grown over the judged time by more than 5 % and 2 MB, three descriptors or a thread, fails; so does a table that was 1.5 times as large
in the last third, a process of the extension that has died, and an error that no client has asked for.

With --loads: an engine in this process, whose memory limit has room for one of two tiny models, which are asked in turns, until N were loaded.

loads_per_s                     Models loaded, and unloaded for the other one, a second
loads_memory_mb_per_1000        How much more memory the process has after 1,000 loads; the first third is not judged. More than 0.5 MB fails
";

fn main() -> ExitCode {
    let (mut minutes, mut loads) = (None, None);
    let mut arguments = std::env::args().skip(1);
    while let Some(argument) = arguments.next() {
        match argument.as_str() {
            "--help" | "-h" => {
                print!("{HELP}");
                return ExitCode::SUCCESS;
            }
            "--version" => {
                println!("soak {}", env!("CARGO_PKG_VERSION"));
                return ExitCode::SUCCESS;
            }
            "--minutes" | "--loads" => {
                let value = arguments.next().and_then(|value| value.parse::<f64>().ok());
                let Some(value) = value.filter(|value| (0.01..1e9).contains(value)) else {
                    eprintln!("soak: option {argument} needs a number above 0");
                    return ExitCode::from(2);
                };
                if argument == "--minutes" {
                    minutes = Some(value);
                } else {
                    loads = Some(value as u64);
                }
            }
            other => {
                eprintln!("soak: there is no option {other}\nsoak --help says what can be asked for");
                return ExitCode::from(2);
            }
        }
    }
    let mut report = Report::new(if loads.is_some() { "loads" } else { "soak" });
    let faults = match loads {
        Some(loads) => loads::measure(loads, &mut report),
        None => server::measure(Duration::from_secs_f64(60.0 * minutes.unwrap_or(30.0)), &mut report),
    };
    for fault in &faults {
        eprintln!("soak: {fault}");
    }
    println!("{}", if faults.is_empty() { "flat" } else { "not flat" });
    match report.write() {
        Ok(()) if faults.is_empty() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("soak: bench/out: {error}");
            ExitCode::FAILURE
        }
    }
}
