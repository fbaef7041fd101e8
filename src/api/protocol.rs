//! What the protocol's functions require of the workers that call them.

use pgrx::prelude::*;

use crate::pg::bgworker;
use crate::pg::error::PgError;

/// Longest lease: a worker elsewhere that dies holds its requests that long, and no lease need be longer than
/// the time between two extensions.
const MAX_LEASE_SECONDS: i32 = 3600;
/// Longest name of a worker, in bytes.
const MAX_NAME_BYTES: usize = 256;
/// How the names of servers' own workers begin.
const OWN: &str = "local:";

/// Whether this process is the worker of this server and database.
#[pg_extern(volatile, parallel_unsafe)]
fn is_own_worker() -> bool {
    bgworker::is_worker()
}

/// Refuses workers without a name, the names of servers' own workers from anybody else, and leases out of
/// range.
#[pg_extern(volatile, parallel_unsafe)]
fn check_worker(worker: Option<&str>, lease_seconds: Option<i32>) {
    if bgworker::is_worker() {
        return;
    }
    let name = worker.unwrap_or_default();
    if name.trim().is_empty() || name.len() > MAX_NAME_BYTES {
        invalid(format!("a worker must have a name of 1 to {MAX_NAME_BYTES} bytes"))
            .hint("Take one of its own for each worker, new at each start.")
            .raise();
    }
    if name.starts_with(OWN) {
        invalid("names that begin with \"local:\" are the server's own workers'")
            .hint("Take another name: it is for the server alone to know whether a local worker lives.")
            .raise();
    }
    if !lease_seconds.is_some_and(|seconds| (1..=MAX_LEASE_SECONDS).contains(&seconds)) {
        invalid(format!("a lease must be between 1 and {MAX_LEASE_SECONDS} seconds"))
            .hint("Extend it with steadytext.extend_leases() while the work goes on.")
            .raise();
    }
}

fn invalid(message: impl Into<String>) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
}
