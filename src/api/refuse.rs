//! The messages about rows with values that are not allowed, and about calls for things that do not exist.
//!
//! PostgreSQL's own messages about constraints show the whole row, and with it the prompt; these name the
//! column and its allowed values.

use std::convert::Infallible;

use pgrx::AllocatedByPostgres;
use pgrx::heap_tuple::PgHeapTuple;
use pgrx::prelude::*;

use crate::pg::error::{PgError, hide_copied_row};

/// Longest name of a table or column, in characters.
const MAX_NAME: usize = 63;
/// Most retries that a request may ask for.
pub(super) const MAX_RETRIES_LIMIT: i32 = 100;

/// The values that a column allows, where NOT NULL is not its only constraint.
fn allowed(column: &str) -> Option<&'static str> {
    match column {
        "status" => Some("pending, processing, completed, failed or cancelled"),
        "priority" => Some("between 1 and 10"),
        "attempt" | "retry_count" => Some("0 or more"),
        "max_retries" => Some("between 0 and 100, or NULL"),
        _ => None,
    }
}

/// Whether the columns of a row of steadytext_queue hold what they may: true, or an error that names one of
/// them. This is its CHECK. PostgreSQL keeps a CHECK as text that it parses anew in each statement, so that
/// one call is several times as fast as the same conditions in SQL.
#[expect(clippy::too_many_arguments, reason = "the columns of a row")]
#[pg_extern(immutable, parallel_safe)]
fn check_queue_row(
    request_id: Option<pgrx::Uuid>,
    request_type: Option<&str>,
    created_at: Option<i64>,
    owner_role: Option<i32>,
    alone: Option<bool>,
    priority: Option<i32>,
    status: Option<&str>,
    retry_count: Option<i32>,
    attempt: Option<i32>,
    max_retries: Option<i32>,
) -> bool {
    let is_status =
        |status| matches!(status, "pending" | "processing" | "completed" | "failed" | "cancelled");
    let conditions = [
        ("request_id", request_id.is_some()),
        ("request_type", request_type.is_some()),
        ("created_at", created_at.is_some()),
        ("owner_role", owner_role.is_some()),
        ("alone", alone.is_some()),
        ("priority", priority.is_some_and(|priority| (1..=10).contains(&priority))),
        ("retry_count", retry_count.is_some_and(|count| count >= 0)),
        ("attempt", attempt.is_some_and(|attempt| attempt >= 0)),
        ("max_retries", max_retries.is_none_or(|retries| (0..=MAX_RETRIES_LIMIT).contains(&retries))),
        ("status", status.is_some_and(is_status)),
    ];
    let Some((column, _)) = conditions.iter().find(|(_, holds)| !holds) else { return true };
    let _hidden = hide_copied_row();
    refusal("steadytext_queue", column).raise()
}

/// Refuses a row because of one of its columns. The CHECK constraint of steadytext_cache calls it instead of
/// being false.
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

/// Refuses the unsafe mode of the Python extension, which sent prompts to other people's servers.
pub(super) fn refuse_unsafe(unsafe_mode: Option<bool>) {
    if unsafe_mode == Some(true) {
        PgError::new(PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED, "unsafe_mode is not supported")
            .hint("Models run in this server and on its own workers, and no prompt is sent to anybody else: name a local model in model, and leave unsafe_mode out.")
            .raise();
    }
}

/// The name of a model that an administrator does something about. Nothing would be done without one, and
/// nobody would hear of that.
///
/// # Errors
///
/// 22004.
pub(super) fn require_name(name: Option<&str>) -> Result<&str, PgError> {
    name.ok_or_else(|| {
        PgError::new(
            PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED,
            "the name of a model must not be null",
        )
        .hint("Name one: steadytext_model_list() shows the models there are, and steadytext_models those that can be downloaded.")
    })
}

/// The error by which a row is refused.
pub(super) fn refusal(table: &str, column: &str) -> PgError {
    const HINT: &str = "Leave the column to its default: docs/sql.md names those that an INSERT gives and an UPDATE changes.";
    match allowed(column) {
        Some(allowed) => PgError::new(
            PgSqlErrorCode::ERRCODE_CHECK_VIOLATION,
            format!("column \"{column}\" of \"{table}\" must be {allowed}"),
        )
        .hint(HINT),
        None => PgError::new(
            PgSqlErrorCode::ERRCODE_NOT_NULL_VIOLATION,
            format!("column \"{column}\" of \"{table}\" must not be NULL"),
        )
        .hint(HINT),
    }
}
