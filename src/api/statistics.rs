//! Figures of requests and of the engine, for the views `steadytext_stat` and `steadytext_engine_stat`.

use pgrx::prelude::*;

use crate::pg::privilege::{current_user, reads_all_statistics};
use crate::pg::request_statistics::{self, StatisticsLine};
use crate::pg::{catalog, engine_leader, engine_page};

/// TimestampTz counts from 2000, in microseconds.
const FROM_1970_TO_2000: i64 = 946_684_800_000_000;

/// The counters of requests: of this database, and of all others for those who may read all statistics.
#[pg_extern(volatile, parallel_safe)]
#[allow(clippy::type_complexity, reason = "the columns of a view")]
fn request_statistics() -> TableIterator<
    'static,
    (
        name!(datid, pg_sys::Oid),
        name!(model, Option<String>),
        name!(request_type, String),
        name!(requests, i64),
        name!(completed, i64),
        name!(failed, i64),
        name!(cancelled, i64),
        name!(retried, i64),
        name!(cache_hits, i64),
        name!(prompt_tokens, i64),
        name!(cached_tokens, Option<i64>),
        name!(generated_tokens, i64),
        name!(queue_seconds, f64),
        name!(queue_buckets, Vec<i64>),
        name!(first_token_seconds, f64),
        name!(first_token_buckets, Vec<i64>),
        name!(total_seconds, f64),
        name!(total_buckets, Vec<i64>),
        name!(stats_reset, Option<TimestampWithTimeZone>),
    ),
> {
    let sees_all = reads_all_statistics(current_user());
    let of = (!sees_all).then(catalog::my_database);
    let row = |line: StatisticsLine| {
        let times = [0, 1, 2].map(|which| {
            let (seconds, buckets) = line.time(which);
            (seconds, buckets.iter().map(|count| signed(*count)).collect::<Vec<i64>>())
        });
        let [(queue, queue_buckets), (first, first_buckets), (total, total_buckets)] = times;
        let count = |which: usize| signed(line.numbers[which]);
        (
            pg_sys::Oid::from(line.database),
            Some(line.model.clone()).filter(|model| !model.is_empty()),
            line.request_type.clone(),
            count(0),
            count(1),
            count(2),
            count(3),
            count(4),
            count(5),
            count(6),
            // Embeddings have no such count, and most endpoints report none.
            Some(count(7)).filter(|_| count(9) > 0 || count(6) == 0),
            count(8),
            queue,
            queue_buckets,
            first,
            first_buckets,
            total,
            total_buckets,
            TimestampWithTimeZone::try_from(line.since).ok(),
        )
    };
    TableIterator::new(request_statistics::list(of).into_iter().map(row).collect::<Vec<_>>())
}

/// Upper bounds of the buckets, in seconds; the last bucket has none.
#[pg_extern(immutable, parallel_safe)]
fn bucket_bounds() -> Vec<f64> {
    request_statistics::BOUNDS.to_vec()
}

/// Counts anew in this database.
#[pg_extern(volatile, parallel_unsafe)]
fn reset_request_statistics() {
    request_statistics::reset();
}

/// The activity of the server's engine; one row. NULL where there is no engine, or none has done anything
/// yet.
#[pg_extern(volatile, parallel_safe)]
#[allow(clippy::type_complexity, reason = "the columns of a view")]
fn engine_statistics() -> TableIterator<
    'static,
    (
        name!(pid, Option<i32>),
        name!(updated_at, Option<TimestampWithTimeZone>),
        name!(running, Option<i64>),
        name!(suspended, Option<i64>),
        name!(waiting, Option<i64>),
        name!(kv_used_bytes, Option<i64>),
        name!(kv_kept_bytes, Option<i64>),
        name!(kv_limit_bytes, Option<i64>),
        name!(models, Option<i64>),
        name!(model_bytes, Option<i64>),
        name!(request_bytes, Option<i64>),
        name!(limit_bytes, Option<i64>),
        name!(passes, Option<i64>),
        name!(pass_requests, Option<i64>),
        name!(prefill_tokens, Option<i64>),
        name!(prefill_seconds, Option<f64>),
        name!(decode_tokens, Option<i64>),
        name!(decode_seconds, Option<f64>),
        name!(prefix_queries, Option<i64>),
        name!(prefix_hits, Option<i64>),
        name!(guessed_tokens, Option<i64>),
        name!(right_guesses, Option<i64>),
        name!(joined_requests, Option<i64>),
        name!(preemptions, Option<i64>),
        name!(recomputed_tokens, Option<i64>),
        name!(panics, i64),
        name!(crashes, i64),
        name!(stalled_seconds, Option<f64>),
    ),
> {
    let read = engine_page::read();
    let (figures, written_at) = (read.map(|(figures, _)| figures), read.map(|(_, written_at)| written_at));
    let done = figures.map(|figures| figures.statistics);
    let number = |number: Option<u64>| number.map(signed);
    let seconds = |micros: Option<u64>| micros.map(|micros| micros as f64 / 1e6);
    let updated_at =
        written_at.and_then(|at| TimestampWithTimeZone::try_from(signed(at) - FROM_1970_TO_2000).ok());
    let pid = engine_leader::engine_pid();
    TableIterator::once((
        pid,
        updated_at,
        number(figures.map(|figures| figures.running)),
        number(figures.map(|figures| figures.suspended)),
        number(figures.map(|figures| figures.waiting)),
        number(figures.map(|figures| figures.kv_used_bytes)),
        number(figures.map(|figures| figures.kv_kept_bytes)),
        number(figures.map(|figures| figures.kv_limit_bytes)),
        number(figures.map(|figures| figures.models)),
        number(figures.map(|figures| figures.model_bytes)),
        number(figures.map(|figures| figures.request_bytes)),
        number(figures.map(|figures| figures.limit_bytes).filter(|bytes| *bytes > 0)),
        number(done.map(|done| done.passes)),
        number(done.map(|done| done.pass_requests)),
        number(done.map(|done| done.prefill_tokens)),
        seconds(done.map(|done| done.prefill_micros)),
        number(done.map(|done| done.decode_tokens)),
        seconds(done.map(|done| done.decode_micros)),
        number(done.map(|done| done.looked_up_tokens)),
        number(done.map(|done| done.reused_tokens)),
        number(done.map(|done| done.guessed_tokens)),
        number(done.map(|done| done.right_guesses)),
        number(done.map(|done| done.joined_requests)),
        number(done.map(|done| done.suspended_requests)),
        number(done.map(|done| done.forgotten_tokens)),
        signed(engine_leader::panics()),
        signed(engine_leader::crashes()),
        pid.map(|_| engine_page::silence().as_secs_f64()),
    ))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
