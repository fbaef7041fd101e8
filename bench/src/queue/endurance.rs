//! A million requests: whether the last ones are claimed as soon as the first ones, and the table stays
//! small.

use std::time::{Duration, Instant};

use steadytext_bench::{Report, percentile};
use steadytext_test_server::{Cluster, Session};

use crate::USER;

/// Requests of one transaction.
const TOGETHER: i64 = 100;
/// The length of an hour of the retention here, in seconds.
const HOUR_S: u32 = 10;
/// Before this, requests may still be on their way.
const SETTLED: Duration = Duration::from_secs(2);
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// Time after which somebody takes a snapshot, and time for which it is kept.
const HOLD_AFTER: Duration = Duration::from_secs(20);
const HOLD_FOR: Duration = Duration::from_secs(300);

/// The load of the measurement.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Load {
    /// Requests in all.
    pub(crate) requests: i64,
    /// Requests a second.
    pub(crate) rate: i64,
    /// Somebody keeps a snapshot for five minutes meanwhile.
    pub(crate) held: bool,
}

/// The table at one moment.
struct Size {
    /// The share of the requests that were enqueued.
    at: f64,
    table_mb: f64,
    indexes_mb: f64,
}

/// Whether the bars hold: the last tenth's 99th percentile beside the first's, and the sizes.
pub(crate) fn measure(cluster: &Cluster, load: Load, report: &mut Report) -> bool {
    let mut session = cluster.session("postgres");
    session.shorten_retention(HOUR_S);
    // Where claims fall behind, that is to be measured.
    session.run(
        "select steadytext_config_set('queue_retention_hours', '1');
         select steadytext_config_set('max_queue_size_per_role', '1000000'); truncate steadytext_queue",
    );
    let mut user = cluster.session_as("postgres", USER);
    let enqueue = user
        .prepare(
            "insert into steadytext_queue (request_type, prompt, params)
             select 'generate', 'What is the difference between table ' || i || ' and its index?', '{\"use_cache\": false}'
             from generate_series($1::bigint, $2::bigint) as i",
        )
        .expect("the statement is right");

    let begun = Instant::now();
    let mut looker = Looker::new(&mut session);
    let mut holder: Option<Session> = None;
    let (mut enqueued, mut looked, mut marks) = (0, Instant::now(), Vec::new());
    let mut sizes = Vec::new();
    while enqueued < load.requests {
        if load.held
            && holder.is_none()
            && begun.elapsed() >= HOLD_AFTER
            && begun.elapsed() < HOLD_AFTER + HOLD_FOR
        {
            let mut session = cluster.session("postgres");
            session.run("begin isolation level repeatable read; select count(*) from steadytext_config");
            holder = Some(session);
        }
        if begun.elapsed() >= HOLD_AFTER + HOLD_FOR
            && let Some(mut session) = holder.take()
        {
            session.run("rollback");
        }
        user.execute(&enqueue, &[&(enqueued + 1), &(enqueued + TOGETHER)])
            .expect("the requests are enqueued");
        enqueued += TOGETHER;
        marks.push((Instant::now(), enqueued));
        if looked.elapsed() >= LOOK_INTERVAL {
            looked = Instant::now();
            let settled = marks.iter().rev().find(|(at, _)| at.elapsed() >= SETTLED).map_or(0, |mark| mark.1);
            looker.look(settled);
            sizes.push(looker.size(enqueued as f64 / load.requests as f64));
        }
        let due = begun + Duration::from_secs_f64(enqueued as f64 / load.rate as f64);
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
    let seconds = begun.elapsed().as_secs_f64();
    drop(holder);
    std::thread::sleep(SETTLED);
    looker.look(enqueued);

    let name = if load.held { "endurance_held" } else { "endurance" };
    let tenth = load.requests / 10;
    let (first, last) = (looker.latencies(0, tenth), looker.latencies(load.requests - tenth, load.requests));
    let ratio = percentile(&last, 0.99) / percentile(&first, 0.99);
    report.add(&format!("{name}_requests"), load.requests as f64, "");
    report.add(&format!("{name}_per_s"), load.requests as f64 / seconds, "1/s");
    for part in 0..10 {
        let latencies = looker.latencies(part * tenth, (part + 1) * tenth);
        report.add(&format!("{name}_claim_p50_{}_ms", part + 1), percentile(&latencies, 0.5), "ms");
        report.add(&format!("{name}_claim_p99_{}_ms", part + 1), percentile(&latencies, 0.99), "ms");
    }
    report.add(&format!("{name}_claim_p99_ratio"), ratio, "");
    let largest = |from: f64, until: f64, value: fn(&Size) -> f64| {
        sizes.iter().filter(|size| size.at > from && size.at <= until).map(value).fold(0.0, f64::max)
    };
    let table = (largest(0.0, 0.5, |size| size.table_mb), largest(0.5, 1.0, |size| size.table_mb));
    let indexes = (largest(0.0, 0.5, |size| size.indexes_mb), largest(0.5, 1.0, |size| size.indexes_mb));
    report.add(&format!("{name}_table_mb"), table.0, "MB");
    report.add(&format!("{name}_table_late_mb"), table.1, "MB");
    report.add(&format!("{name}_indexes_mb"), indexes.0, "MB");
    report.add(&format!("{name}_indexes_late_mb"), indexes.1, "MB");
    let claims_hold = ratio <= 1.3;
    if !claims_hold {
        eprintln!("bench-queue: {name}_claim_p99_ratio may be 1.3");
    }
    // While a snapshot is kept nothing can be reused.
    let sizes_hold = load.held || (table.1 <= 1.3 * table.0 && indexes.1 <= 1.3 * indexes.0);
    if !sizes_hold {
        eprintln!(
            "bench-queue: table and indexes may be 1.3 times as large in the second half as in the first"
        );
    }
    claims_hold && sizes_hold
}

/// Reads how long requests waited before the retention removes them.
struct Looker<'a> {
    session: &'a mut Session,
    statement: postgres::Statement,
    /// The id of the first request, less one.
    base: i64,
    seen: i64,
    /// Number of a request, and the milliseconds that it waited.
    waited: Vec<(i64, f64)>,
}

impl<'a> Looker<'a> {
    fn new(session: &'a mut Session) -> Self {
        let statement = session
            .prepare(
                "select id, (extract(epoch from coalesce(started_at, clock_timestamp()) - created_at) * 1000)::float8
                 from steadytext_queue where id > $1 and id <= $2",
            )
            .expect("the statement is right");
        let base: i64 =
            session.one("select last_value - (not is_called)::integer from steadytext_queue_id_seq");
        Looker { session, statement, base, seen: 0, waited: Vec::new() }
    }

    /// Notes those up to this one.
    fn look(&mut self, until: i64) {
        let (from, to) = (self.base + self.seen, self.base + until);
        let rows = self.session.query(&self.statement, &[&from, &to]).expect("the requests are read");
        assert_eq!(rows.len() as i64, until - self.seen, "requests have gone before they were looked at");
        self.waited.extend(rows.iter().map(|row| (row.get::<_, i64>(0) - self.base, row.get::<_, f64>(1))));
        self.seen = until;
    }

    fn size(&mut self, at: f64) -> Size {
        let row = self
            .session
            .query_one(
                "select pg_table_size('steadytext_queue')::float8 / 1e6, pg_indexes_size('steadytext_queue')::float8 / 1e6",
                &[],
            )
            .expect("the query is right");
        Size { at, table_mb: row.get(0), indexes_mb: row.get(1) }
    }

    /// The latencies of the requests behind `from` and up to `until`, sorted.
    fn latencies(&self, from: i64, until: i64) -> Vec<f64> {
        let mut found: Vec<f64> =
            self.waited.iter().filter(|one| one.0 > from && one.0 <= until).map(|one| one.1).collect();
        found.sort_by(f64::total_cmp);
        found
    }
}
