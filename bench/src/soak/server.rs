//! A server under mixed work, and what its processes take.

use std::time::{Duration, Instant};

use steadytext_bench::Report;
use steadytext_test_server::{Cluster, Footprint, Options, Session};

use crate::clients::{self, KEPT};
use crate::series::Series;

const LOOK_INTERVAL: Duration = Duration::from_secs(5);
/// Interval between two reports of the progress.
const WORD_INTERVAL: Duration = Duration::from_secs(60);
/// The length of an hour of the retention here, in seconds.
const HOUR_S: u32 = 60;
/// The share of the time that is not judged, as caches fill.
const WARM_UP: f64 = 1.0 / 3.0;

/// Sizes of a table and its indexes, by second.
struct Table {
    name: &'static str,
    sizes: Vec<(f64, f64)>,
}

/// Lets it work for so long; what is wrong, in the end.
pub(crate) fn measure(time: Duration, report: &mut Report) -> Vec<String> {
    let cluster = Options::new()
        .set("max_connections", 100)
        // The memory for kept prompts fills within the first minutes.
        .set("pg_steadytext.kv_cache_mb", 32)
        .set("autovacuum_naptime", "10s")
        .start();
    let mut session = cluster.session("postgres");
    session.create_extension();
    session.run(
        "select steadytext_config_set('queue_retention_hours', '1');
         select steadytext_config_set('cache_max_entries', '1000');
         select steadytext_config_set('cache_min_age_hours', '0');
         select steadytext_config_set('cache_eviction_interval', '5')",
    );
    session.shorten_retention(HOUR_S);
    let clients = clients::start(&cluster, &mut session);

    let begun = Instant::now();
    let mut processes: Vec<Series> = Vec::new();
    let mut tables = [Table { name: "queue", sizes: Vec::new() }, Table { name: "cache", sizes: Vec::new() }];
    let mut word = Instant::now();
    while begun.elapsed() < time {
        let second = begun.elapsed().as_secs_f64();
        look(&mut session, second, &mut processes);
        for table in &mut tables {
            let sql = format!("select pg_total_relation_size('steadytext_{}')::float8 / 1e6", table.name);
            table.sizes.push((second, session.one(&sql)));
        }
        if word.elapsed() >= WORD_INTERVAL {
            word = Instant::now();
            say(&cluster, &mut session, second, &processes);
        }
        std::thread::sleep(LOOK_INTERVAL.min(time.saturating_sub(begun.elapsed())));
    }
    let counts: Vec<(String, i64)> = session
        .query("select request_type, sum(requests)::bigint from steadytext_stat group by 1 order by 1", &[])
        .expect("the figures are there")
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    let mut faults = clients.end();
    for (request_type, requests) in counts {
        report.add(&format!("soak_requests_{request_type}"), requests as f64, "");
    }
    faults.extend(judge(begun.elapsed().as_secs_f64(), &processes, &tables, report));
    let log = cluster.log();
    faults.extend(
        log.lines()
            .filter(|line| line.contains("PANIC") || line.contains("terminated by signal"))
            .map(str::to_owned),
    );
    faults
}

/// Notes what each process takes.
fn look(session: &mut Session, second: f64, processes: &mut Vec<Series>) {
    let sql = format!(
        "select pid, case application_name when '{KEPT}' then 'session'
             else replace(replace(backend_type, 'pg_steadytext ', ''), ' ', '_') end
         from pg_stat_activity where backend_type like 'pg_steadytext%' or application_name = '{KEPT}'"
    );
    for row in session.query(&sql, &[]).expect("the processes are known") {
        let (pid, kind): (i32, String) = (row.get(0), row.get(1));
        let Some(footprint) = Footprint::of(pid) else { continue };
        let place = processes.iter().position(|series| series.pid == pid).unwrap_or_else(|| {
            processes.push(Series::new(&kind, pid));
            processes.len() - 1
        });
        processes[place].note(second, footprint);
    }
}

fn say(cluster: &Cluster, session: &mut Session, second: f64, processes: &[Series]) {
    let requests: i64 = session.one("select coalesce(sum(requests), 0)::bigint from steadytext_stat");
    let waiting: i64 =
        session.one("select count(*) from steadytext_queue where status in ('pending', 'processing')");
    let kinds: Vec<&str> = processes.iter().map(|series| series.kind.as_str()).collect();
    eprintln!(
        "{:>5.0} s  {requests} requests, {waiting} open, log {} kB, processes seen: {}",
        second,
        cluster.log().len() / 1024,
        kinds.join(" ")
    );
}

fn judge(end: f64, processes: &[Series], tables: &[Table], report: &mut Report) -> Vec<String> {
    let from = WARM_UP * end;
    let mut faults = Vec::new();
    // Of each kind the process that was there longest; others that came and went are told.
    let mut kinds: Vec<&str> = processes.iter().map(|series| series.kind.as_str()).collect();
    kinds.sort_unstable();
    kinds.dedup();
    for kind in ["worker", "vectorizer", "session"] {
        if !kinds.contains(&kind) {
            faults.push(format!("no process of the kind {kind} was seen"));
        }
    }
    for kind in kinds {
        let of_kind = || processes.iter().filter(|series| series.kind == kind);
        report.add(&format!("soak_{kind}_processes"), of_kind().count() as f64, "");
        let Some(series) = of_kind().max_by(|a, b| a.span(from).total_cmp(&b.span(from))) else { continue };
        if series.span(from) < 0.9 * (end - from) - 2.0 * LOOK_INTERVAL.as_secs_f64() {
            // Downloads, and what looks for databases, end by themselves.
            if ["worker", "vectorizer", "launcher", "session"].contains(&kind) {
                faults.push(format!("no process of the kind {kind} was there all the time"));
            }
            continue;
        }
        faults.extend(series.judge(from, report));
    }
    for table in tables {
        let largest = |from: f64, until: f64| {
            table
                .sizes
                .iter()
                .filter(|size| size.0 >= from && size.0 < until)
                .map(|size| size.1)
                .fold(0.0, f64::max)
        };
        let (middle, late) = (largest(from, 2.0 * from), largest(2.0 * from, end));
        report.add(&format!("soak_{}_mb", table.name), middle, "MB");
        report.add(&format!("soak_{}_late_mb", table.name), late, "MB");
        if late > 1.5 * middle {
            faults.push(format!("steadytext_{} has grown from {middle:.1} to {late:.1} MB", table.name));
        }
    }
    faults
}
