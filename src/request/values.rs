//! Checks of single values, and their errors.

use pgrx::prelude::*;
use serde_json::Value;

use crate::pg::catalog_cache::DatabaseConfig;
use crate::pg::error::PgError;

/// Refuses a text that is too long, by its length alone.
///
/// # Errors
///
/// 54000.
pub(crate) fn check_length(bytes: usize, config: &DatabaseConfig) -> Result<(), PgError> {
    let limit = config.max_prompt_bytes;
    if bytes as i64 > limit {
        return Err(too_long(format!("the text has {bytes} bytes, {limit} are allowed"))
            .hint("Shorten the text, or raise max_prompt_bytes with steadytext_config_set().")
            .lasting());
    }
    Ok(())
}

/// The error that there is no text to compute anything of.
pub(crate) fn empty_text(message: impl Into<String>) -> PgError {
    PgError::raised(message)
        .hint("Leave out rows without text (WHERE … is not null); with on_error => 'null' functions that answer at once give NULL for them.")
        .lasting()
}

/// Whether a value is a number from `low` to `high`.
pub(super) fn in_range(value: &Value, low: f64, high: f64) -> bool {
    value.as_f64().is_some_and(|number| (low..=high).contains(&number))
}

/// Refuses the value of a parameter that is not what is wanted.
///
/// # Errors
///
/// 22023.
pub(super) fn require(holds: bool, key: &str, wanted: &str) -> Result<(), PgError> {
    if holds { Ok(()) } else { Err(invalid(format!("{key} must be {wanted}"))) }
}

/// An error about a value that a request must not have.
pub(crate) fn invalid(message: impl Into<String>) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
}

/// An error about something that is longer than it may be.
pub(crate) fn too_long(message: impl Into<String>) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, message)
}
