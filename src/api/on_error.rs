//! What a synchronous function does with a row that cannot be answered: its parameter `on_error`.

use pgrx::prelude::*;

use crate::pg::error::{OrRaise, PgError};

/// What is to become of the statement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnError {
    /// It ends with the error.
    Raise,
    /// It goes on, and the row has NULL, or no rows. Not after an error that may pass, or that every row would meet.
    Null,
}

impl OnError {
    /// From the parameter; raises 22023 for anything but `error` and `null`.
    pub(super) fn of(given: Option<&str>) -> OnError {
        match given {
            None | Some("error") => OnError::Raise,
            Some("null") => OnError::Null,
            Some(_) => PgError::new(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                "on_error must be \"error\" or \"null\"",
            )
            .hint("With null, a text that cannot be answered gives NULL instead of an error.")
            .raise(),
        }
    }

    /// The value; `None` in the place of an error about the row's text. Raises every other error.
    pub(super) fn settle<T>(self, result: Result<T, PgError>) -> Option<T> {
        match result {
            Err(error) if self == OnError::Null && error.lasting => None,
            result => Some(result.or_raise()),
        }
    }
}
