//! Waiting for a request's result.

use std::time::{Duration, Instant};

use pgrx::AnyElement;
use pgrx::prelude::*;
use uuid::Uuid;

use crate::pg::error::{OrRaise, PgError};
use crate::pg::spi::{self, Mode, Row, SqlValue};
use crate::pg::transaction::{in_passing, is_own, with_latest_snapshot};
use crate::pg::waiters::{self, Waiter};
use crate::pg::{catalog, catalog_cache, interrupts};

/// Interval at which a waiting caller looks by itself, should a wake be missed.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// Longest wait of callers that set none, in seconds.
pub(super) const TIMEOUT_SECONDS: i64 = 30;
/// The longest wait: a century.
const LONGEST_SECONDS: u64 = 3_155_760_000;

/// The result of a request that is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum ResultKind {
    Text,
    Embedding,
}

/// The text of a completed request, or the text form of its embedding or embeddings; waits for it.
#[pg_extern(volatile, parallel_unsafe)]
fn get_async_result(request_id: Option<pgrx::Uuid>, timeout_seconds: Option<i64>) -> Option<String> {
    await_result(request_id, timeout_seconds, ResultKind::Text).and_then(SqlValue::into_text)
}

/// The embedding of a completed request; waits for it.
#[pg_extern(volatile, parallel_unsafe)]
fn get_async_embedding(request_id: Option<pgrx::Uuid>, timeout_seconds: Option<i64>) -> Option<AnyElement> {
    await_result(request_id, timeout_seconds, ResultKind::Embedding).and_then(SqlValue::into_datum)
}

/// The result of a look at the request's row.
enum RowState {
    NotFound,
    Unfinished { own: bool },
    Ended(Result<Option<SqlValue>, PgError>),
}

fn await_result(
    request_id: Option<pgrx::Uuid>,
    timeout_seconds: Option<i64>,
    wanted: ResultKind,
) -> Option<SqlValue> {
    let id = request_id?;
    let uuid = Uuid::from_bytes(*id.as_bytes());
    let seconds = timeout_seconds.unwrap_or(TIMEOUT_SECONDS);
    let deadline = deadline(seconds);
    let schema = catalog_cache::installation().or_raise().schema.clone();
    let sql = format!(
        "select status, xmin, error, error_code, result, embedding, embeddings from {schema}.steadytext_queue
          where request_id operator(pg_catalog.=) $1"
    );
    let waiter = Waiter::new(waiters::bucket_set(uuid));
    loop {
        let seen = waiter.endings();
        match look(&sql, id, wanted) {
            RowState::NotFound => not_found(uuid).raise(),
            RowState::Ended(result) => return result.or_raise(),
            RowState::Unfinished { own: true } => uncommitted(uuid).raise(),
            RowState::Unfinished { own: false } => {}
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            PgError::raised(format!("Timeout waiting for async result ({seconds} seconds)"))
                .hint(timeout_hint())
                .raise();
        }
        waiter.sleep(seen, left.min(LOOK_AGAIN));
    }
}

/// The moment at which a caller that waits so many seconds gives up.
pub(super) fn deadline(seconds: i64) -> Instant {
    match u64::try_from(seconds) {
        Ok(seconds) => Instant::now() + Duration::from_secs(seconds.min(LONGEST_SECONDS)),
        Err(_) => {
            invalid("timeout_seconds must not be negative").hint("0 looks once, without waiting.").raise()
        }
    }
}

fn invalid(message: &str) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
}

fn not_found(id: Uuid) -> PgError {
    PgError::raised(format!("Request ID {id} not found"))
        .hint("It may have been removed after queue_retention_hours, or belong to another role.")
}

fn uncommitted(id: Uuid) -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!("Request ID {id} was enqueued by the current transaction, which has not been committed"),
    )
    .hint("Commit first: the worker sees a request only then.")
}

/// Waits until all of some requests have ended, or one of them; false where that does not happen in time.
#[pg_extern(volatile, parallel_unsafe)]
fn wait_for_requests(
    ids: Option<Vec<Option<pgrx::Uuid>>>,
    mode: Option<&str>,
    timeout_seconds: Option<i64>,
) -> Option<bool> {
    let mut ids: Vec<pgrx::Uuid> = ids?.into_iter().flatten().collect();
    let any = waits_for_any(mode);
    let deadline = deadline(timeout_seconds.unwrap_or(TIMEOUT_SECONDS));
    let schema = catalog_cache::installation().or_raise().schema.clone();
    let sql = format!(
        "select asked.id, queue.status, queue.xmin
           from pg_catalog.unnest($1) as asked(id)
           left join {schema}.steadytext_queue as queue on queue.request_id operator(pg_catalog.=) asked.id
          where queue.status is null or queue.status operator(pg_catalog.=) any ('{{pending,processing}}')"
    );
    let uuid = |id: &pgrx::Uuid| Uuid::from_bytes(*id.as_bytes());
    loop {
        let waiter = Waiter::new(ids.iter().fold(0, |set, id| set | waiters::bucket_set(uuid(id))));
        let seen = waiter.endings();
        let (asked, began) = (ids.len(), Instant::now());
        ids = unfinished(&sql, ids).or_raise();
        if ids.is_empty() || (any && ids.len() < asked) {
            return Some(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Some(false);
        }
        // Looks at many requests take no more than half of the time.
        interrupts::sleep_ms(began.elapsed().min(left).as_millis() as i64);
        waiter.sleep(seen, left.min(LOOK_AGAIN));
    }
}

/// Whether the first of several is enough.
pub(super) fn waits_for_any(mode: Option<&str>) -> bool {
    match mode.unwrap_or("all") {
        "all" => false,
        "any" => true,
        _ => invalid("mode must be 'all' or 'any'")
            .hint("'all' waits for each of them, 'any' for the first.")
            .raise(),
    }
}

/// The requests among these that have not ended.
fn unfinished(sql: &str, ids: Vec<pgrx::Uuid>) -> Result<Vec<pgrx::Uuid>, PgError> {
    let found = in_passing(|| {
        with_latest_snapshot(|| {
            spi::query(sql, vec![ids.into()], Mode::ReadOnly, |row| {
                let id = row.get::<pgrx::Uuid>(1)?;
                let uuid = Uuid::from_bytes(*id.as_bytes());
                Some(match row.get::<String>(2) {
                    None => Err(not_found(uuid)),
                    Some(_) if row.get::<pg_sys::TransactionId>(3).is_some_and(is_own) => {
                        Err(uncommitted(uuid))
                    }
                    Some(_) => Ok(id),
                })
            })
        })
    })?;
    found.into_iter().flatten().collect()
}

fn look(sql: &str, id: pgrx::Uuid, wanted: ResultKind) -> RowState {
    let found = in_passing(|| {
        with_latest_snapshot(|| {
            spi::query_one(sql, vec![id.into()], Mode::ReadOnly, |row| {
                match row.get::<String>(1).as_deref().unwrap_or_default() {
                    "pending" | "processing" => {
                        RowState::Unfinished { own: row.get::<pg_sys::TransactionId>(2).is_some_and(is_own) }
                    }
                    "completed" => RowState::Ended(value(row, wanted)),
                    _ => RowState::Ended(Err(failure(row))),
                }
            })
        })
    });
    found.or_raise().unwrap_or(RowState::NotFound)
}

fn value(row: &Row, wanted: ResultKind) -> Result<Option<SqlValue>, PgError> {
    match wanted {
        ResultKind::Text => Ok((5..=7).find_map(|column| row.get_text(column)).map(SqlValue::Text)),
        ResultKind::Embedding => match row.get_copy(6) {
            None => Err(PgError::new(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                "the request has no embedding: it is of another type",
            )
            .hint("Use steadytext_get_async_result().")),
            some => Ok(some.map(SqlValue::Datum)),
        },
    }
}

fn failure(row: &Row) -> PgError {
    let error = row.get::<String>(3).unwrap_or_default();
    let (message, hint) = match error.split_once("\nHINT: ") {
        Some((message, hint)) => (message, Some(hint.to_owned())),
        None => (error.as_str(), None),
    };
    let mut failure = PgError::raised(format!("Async request failed: {message}"));
    failure.hint = hint;
    failure
}

fn timeout_hint() -> &'static str {
    if catalog::in_recovery() {
        "The server is a standby, which answers no queued requests."
    } else if crate::pg::shmem::get().is_none() {
        "No worker runs: add shared_preload_libraries = 'pg_steadytext' to postgresql.conf and restart the server."
    } else {
        "The request is still in the queue; steadytext_daemon_status() shows what the worker does, and an administrator sees by steadytext_diagnose() why requests wait."
    }
}
