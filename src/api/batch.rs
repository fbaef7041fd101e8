//! Batches: the requests that one query has enqueued, and functions about all of them together.

use std::time::{Duration, Instant};

use pgrx::Uuid;
use pgrx::prelude::*;

use super::result::{LOOK_AGAIN, TIMEOUT_SECONDS, deadline, waits_for_any};
use crate::pg::error::{OrRaise, PgError};
use crate::pg::privilege::{as_owner, current_user};
use crate::pg::spi::{self, Arg, Mode};
use crate::pg::transaction::{in_passing, is_own, with_latest_snapshot};
use crate::pg::waiters::{BucketSet, Waiter};
use crate::pg::{catalog_cache, cursor, interrupts, pending};
use crate::request::checks::{check_columns, invalid};
use crate::request::params::no_object;

/// Longest name of a batch, in bytes.
const MAX_NAME_BYTES: usize = 1024;
/// The shortest pause between two looks of a session that waits for a batch.
const PAUSE: Duration = Duration::from_millis(5);
/// Columns of the query that make the request; all others are the row's key.
const ASKED: [&str; 3] = ["prompt", "prompts", "params"];

/// Enqueues a request for each row of a query, and returns the id of all of them together. The query runs as
/// its caller and only reads; a bounded piece of its rows is in memory at a time.
#[pg_extern(volatile, parallel_unsafe)]
fn enqueue_query(
    query: Option<&str>,
    request_type: Option<&str>,
    params: Option<&str>,
    priority: Option<i64>,
    name: Option<&str>,
) -> Option<Uuid> {
    let query = query?;
    if name.is_some_and(|name| name.len() > MAX_NAME_BYTES) {
        invalid(format!("the name of a batch cannot be longer than {MAX_NAME_BYTES} bytes"))
            .hint("Give a shorter one, or none: the batch's id names it as well.")
            .raise();
    }
    let installation = catalog_cache::installation().or_raise();
    let request_type = request_type.unwrap_or("generate");
    // A query without rows has no request that would be refused.
    check_columns(request_type, false, false).or_raise();
    // PostgreSQL reads the parameters, because it knows numbers of any size.
    let params = params.unwrap_or("{}");
    let kind = "select pg_catalog.jsonb_typeof($1::pg_catalog.jsonb)";
    let kind = spi::query_one(kind, vec![params.into()], Mode::ReadOnly, |row| row.get::<String>(1));
    if kind.or_raise().flatten().as_deref() != Some("object") {
        no_object().raise();
    }
    let id = Uuid::from_bytes(*pending::new_id().as_bytes());
    let mut total: i64 = 0;
    cursor::read(query, check_names, |rows| {
        let args: Vec<Arg> =
            vec![id.into(), request_type.into(), params.into(), priority.into(), rows.into()];
        let added = spi::query_one(
            "select steadytext.enqueue_rows($1, $2, $3, $4, $5)",
            args,
            Mode::ReadWrite,
            |row| row.get::<i64>(1),
        )?;
        total += added.flatten().unwrap_or_default();
        Ok(())
    })
    .or_raise();
    let caller = current_user();
    as_owner(installation.owner, || {
        spi::query(
            &format!(
                "insert into {}.steadytext_batch_heads (batch, owner_role, name, request_type, total)
                 values ($1, pg_catalog.pg_get_userbyid($2)::steadytext.role_id, $3, $4, $5)",
                installation.schema
            ),
            vec![id.into(), caller.into(), name.into(), request_type.into(), total.into()],
            Mode::ReadWrite,
            |_| (),
        )
        .or_raise()
    });
    Some(id)
}

fn check_names(names: &[String]) -> Result<(), PgError> {
    if let Some(twice) = names.iter().enumerate().find(|(index, name)| names[..*index].contains(name)) {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_DUPLICATE_COLUMN,
            format!("the query has two columns named \"{}\"", twice.1),
        )
        .hint("Give one of them another name with AS."));
    }
    if !names.iter().any(|name| ASKED.contains(&name.as_str())) {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_COLUMN,
            "the query has no column named prompt, prompts or params",
        )
        .hint("Name the column with the text: select id, body as prompt from … The other columns are the key of each row."));
    }
    Ok(())
}

/// Waits until all requests of a batch have ended, or any of them; false where that does not happen in time.
#[pg_extern(volatile, parallel_unsafe)]
fn wait_for_batch(batch: Option<Uuid>, mode: Option<&str>, timeout_seconds: Option<i64>) -> Option<bool> {
    let batch = batch?;
    let any = waits_for_any(mode);
    let deadline = deadline(timeout_seconds.unwrap_or(TIMEOUT_SECONDS));
    let schema = catalog_cache::installation().or_raise().schema.clone();
    let queries = WaitQueries::new(&schema, any);
    loop {
        // Any request that ends may be one of the batch, or its last.
        let waiter = Waiter::new(BucketSet::MAX);
        let (seen, began) = (waiter.endings(), Instant::now());
        if queries.have_ended(batch).or_raise() {
            return Some(true);
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Some(false);
        }
        // Looks take no more than half of the time, however much ends meanwhile.
        interrupts::sleep_ms(began.elapsed().max(PAUSE).min(left).as_millis() as i64);
        waiter.sleep(seen, left.min(LOOK_AGAIN));
    }
}

/// The queries that tell whether the wait for a batch is over.
struct WaitQueries {
    head: String,
    open: String,
    ended: Option<String>,
}

impl WaitQueries {
    fn new(schema: &str, any: bool) -> Self {
        let requests = format!(
            "select
               from {schema}.steadytext_batch_heads as head
               join {schema}.steadytext_queue as queue
                 on queue.batch operator(pg_catalog.=) head.batch
                    and queue.owner_role::pg_catalog.oid operator(pg_catalog.=) head.owner_role::pg_catalog.oid
              where head.batch operator(pg_catalog.=) $1 and queue.batch is not null"
        );
        let with_status = |states: &str| {
            format!("{requests} and queue.status operator(pg_catalog.=) any ('{{{states}}}') limit 1")
        };
        WaitQueries {
            head: format!(
                "select xmin from {schema}.steadytext_batch_heads where batch operator(pg_catalog.=) $1"
            ),
            open: with_status("pending,processing"),
            ended: any.then(|| with_status("completed,failed,cancelled")),
        }
    }

    /// Whether there is nothing to wait for any more.
    fn have_ended(&self, batch: Uuid) -> Result<bool, PgError> {
        in_passing(|| {
            with_latest_snapshot(|| {
                let is_there = |sql: &str| {
                    spi::query_one(sql, vec![batch.into()], Mode::ReadOnly, |_| ())
                        .map(|found| found.is_some())
                };
                let head = spi::query_one(&self.head, vec![batch.into()], Mode::ReadOnly, |row| {
                    row.get::<pg_sys::TransactionId>(1)
                })?;
                match head {
                    None => return Err(not_found(batch)),
                    Some(by) if by.is_some_and(is_own) => return Err(uncommitted(batch)),
                    Some(_) => {}
                }
                if let Some(ended) = &self.ended
                    && is_there(ended)?
                {
                    return Ok(true);
                }
                Ok(!is_there(&self.open)?)
            })
        })
    }
}

fn not_found(batch: Uuid) -> PgError {
    PgError::raised(format!("Batch {} not found", text(batch)))
        .hint("It may have been removed after queue_retention_hours, or belong to another role.")
}

fn uncommitted(batch: Uuid) -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        format!(
            "Batch {} was enqueued by the current transaction, which has not been committed",
            text(batch)
        ),
    )
    .hint("Commit first: the worker sees requests only then.")
}

fn text(batch: Uuid) -> uuid::Uuid {
    uuid::Uuid::from_bytes(*batch.as_bytes())
}
