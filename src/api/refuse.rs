//! The messages about rows that hold what they must not.
//!
//! PostgreSQL's own messages about constraints show the whole row, and with it the prompt; these name the
//! column and what it may hold.

use std::convert::Infallible;

use pgrx::AllocatedByPostgres;
use pgrx::heap_tuple::PgHeapTuple;
use pgrx::prelude::*;

use crate::pg::error::{PgError, hide_copied_row};

/// Longest name of a table or column, in characters.
const MAX_NAME: usize = 63;

/// What a column may hold, where there is more to say than that it must not be NULL.
fn allowed(column: &str) -> Option<&'static str> {
    match column {
        "status" => Some("pending, processing, completed, failed or cancelled"),
        "priority" => Some("between 1 and 10"),
        "attempt" | "retry_count" => Some("0 or more"),
        "max_retries" => Some("between 0 and 100, or NULL"),
        _ => None,
    }
}

/// Refuses a row because of one of its columns. The CHECK constraints of steadytext_queue and
/// steadytext_cache call it instead of being false.
#[pg_extern(volatile, parallel_safe)]
fn refuse_row(table: Option<&str>, column: Option<&str>) -> bool {
    // Never shown again: this always ends in an error.
    let _hidden = hide_copied_row();
    // Every user may call this: no more than a name goes into the message and the log.
    let name = |given: Option<&str>| given.unwrap_or_default().chars().take(MAX_NAME).collect::<String>();
    refusal(&name(table), &name(column)).raise()
}

/// BEFORE INSERT FOR EACH ROW, of rows without an id: what fails before any CHECK.
#[pg_trigger]
fn refuse_id<'a>(
    trigger: &'a PgTrigger<'a>,
) -> Result<Option<PgHeapTuple<'a, AllocatedByPostgres>>, Infallible> {
    let _hidden = hide_copied_row();
    refusal(&trigger.table_name().unwrap_or_default(), "id").raise()
}

/// Why a row is refused.
pub(super) fn refusal(table: &str, column: &str) -> PgError {
    match allowed(column) {
        Some(allowed) => PgError::new(
            PgSqlErrorCode::ERRCODE_CHECK_VIOLATION,
            format!("column \"{column}\" of \"{table}\" must be {allowed}"),
        ),
        None => PgError::new(
            PgSqlErrorCode::ERRCODE_NOT_NULL_VIOLATION,
            format!("column \"{column}\" of \"{table}\" must not be NULL"),
        ),
    }
}
