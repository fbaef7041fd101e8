//! Workers elsewhere on this machine, over TCP on loopback, with an engine that answers at once.

use std::path::Path;
use std::process::{Child, Command, Stdio};

use steadytext_bench::{Report, percentile};
use steadytext_test_server::{Cluster, Session, Signal, signal, wait_until};

/// Numbers of workers that are measured.
const WORKERS: [usize; 4] = [1, 2, 4, 8];
/// Requests that are enqueued one at a time.
const WAKES: usize = 300;

/// Workers that are told to end with this.
struct Workers(Vec<Child>);

impl Workers {
    fn start(program: &Path, address: &str, count: usize, session: &mut Session) -> Workers {
        let start = |_| {
            let url = format!("host={address} port=5432 user=remote dbname=postgres sslmode=disable");
            let mut command = Command::new(program);
            command.args(["--database-url", &url, "--concurrency", "500", "--threads", "1"]);
            command.args(["--poll-interval", "60", "--model-dir", "/"]);
            command.stderr(Stdio::null()).spawn().expect("the program that was named")
        };
        let workers = Workers((0..count).map(start).collect());
        wait_until("all workers are there and listen", || {
            session.one::<i64>(
                "select count(*) from pg_stat_activity where usename = 'remote' and query ilike 'listen %'",
            ) == count as i64
                && session.one::<i64>(
                    "select count(*) from steadytext_daemon_health where daemon_id not like 'local:%'",
                ) == count as i64
        });
        workers
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for worker in &mut self.0 {
            signal(worker.id() as i32, Signal::TERM);
        }
        for worker in &mut self.0 {
            // It was told to end.
            let _ = worker.wait();
        }
    }
}

/// Measures; false where the program has a real engine.
pub(crate) fn measure(cluster: &Cluster, address: &str, program: &Path, report: &mut Report) -> bool {
    let mut session = cluster.session("postgres");
    session.run("create role remote login in role steadytext_worker");
    // The server's own worker must not take them.
    session.pause();
    let requests = std::env::var("REQUESTS").ok().map_or(20_000, |text| text.parse().expect("a number"));
    for count in WORKERS {
        let workers = Workers::start(program, address, count, &mut session);
        enqueue(&mut session, requests);
        wait_until("all have ended", || !is_busy(&mut session));
        let rate: f64 = session.one(
            "select (count(*) / extract(epoch from max(completed_at) - min(started_at)))::float8
             from steadytext_queue where status = 'completed' and not starts_with(worker, 'local:') and attempt = 1",
        );
        if session.one::<i64>("select count(*) from steadytext_queue where result = 'ok'") < requests {
            return false;
        }
        report.add(&format!("elsewhere_{count}_per_s"), rate, "requests/s");
        drop(workers);
        session.run("truncate steadytext_queue; delete from steadytext_daemon_health where daemon_id not like 'local:%'");
    }
    let workers = Workers::start(program, address, 1, &mut session);
    let mut waits: Vec<f64> = Vec::with_capacity(WAKES);
    for number in 0..WAKES {
        // From the commit on: the statement's own work is none of the wake.
        let committed: f64 = session.one(&format!(
            "with r as (insert into steadytext_queue (request_type, prompt, params)
                 values ('generate', 'wake {number}', '{{\"use_cache\": false}}') returning id)
             select extract(epoch from clock_timestamp())::float8 from r"
        ));
        wait_until("it has ended", || !is_busy(&mut session));
        let started: f64 = session.one(
            "select extract(epoch from started_at)::float8 from steadytext_queue order by id desc limit 1",
        );
        waits.push((started - committed) * 1e3);
    }
    drop(workers);
    waits.sort_by(f64::total_cmp);
    report.add("elsewhere_wake_p50_ms", percentile(&waits, 0.5), "ms");
    report.add("elsewhere_wake_p99_ms", percentile(&waits, 0.99), "ms");
    true
}

fn enqueue(session: &mut Session, requests: i64) {
    session.run(&format!(
        "insert into steadytext_queue (request_type, prompt, params)
         select 'generate', 'question ' || n, '{{\"use_cache\": false}}' from generate_series(1, {requests}) as n"
    ));
}

fn is_busy(session: &mut Session) -> bool {
    session.one("select exists (select from steadytext_queue where status in ('pending', 'processing'))")
}
