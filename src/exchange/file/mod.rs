//! SteadyText's cache file: an SQLite database with the table
//!
//! ```sql
//! create table cache (
//!     key text primary key,
//!     value blob not null,           -- a pickle
//!     frequency integer default 1,
//!     last_access integer not null,  -- microseconds since 1970
//!     size integer not null          -- bytes of value
//! )
//! ```
//!
//! in write-ahead mode, with an index on (frequency, last_access).

mod reader;
#[cfg(test)]
mod tests;
mod writer;

pub use reader::Reader;
pub use writer::{Sink, Writer};

use crate::key::{self, Key};
use crate::pickle::{self, PickleValue};

/// An entry of a cache file.
#[derive(Debug, Clone, PartialEq)]
pub struct CacheFileEntry {
    /// The request that it answers.
    pub key: Key,
    /// The answer.
    pub value: PickleValue,
    /// Number of its uses, at least 1.
    pub frequency: i64,
    /// Time of its last use, in microseconds since 1970.
    pub last_access_us: i64,
}

/// A row of a cache file that is no entry, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("row {row}: {reason}")]
pub struct RefusedRow {
    /// Its rowid.
    pub row: i64,
    /// Why.
    pub reason: Reason,
}

/// The reason why a row is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// The key was refused.
    #[error(transparent)]
    Key(#[from] key::Error),
    /// The value was refused.
    #[error(transparent)]
    Value(#[from] pickle::Error),
    /// A column is of another type.
    #[error("column {0} is of another type")]
    Type(&'static str),
}

/// The reason why a file cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file does not have the table.
    #[error("the file has no table cache with columns key, value, frequency and last_access")]
    NoTable,
    /// The file has more rows than fit into it.
    #[error("the file has more rows than fit into it")]
    Endless,
    /// The caller wanted to stop.
    #[error("stopped")]
    Stopped,
    /// SQLite says so.
    #[error("{0}")]
    Sqlite(String),
}

impl From<rusqlite::Error> for Error {
    fn from(error: rusqlite::Error) -> Self {
        match error {
            rusqlite::Error::SqliteFailure(failure, _)
                if failure.code == rusqlite::ErrorCode::OperationInterrupted =>
            {
                Error::Stopped
            }
            rusqlite::Error::SqliteFailure(failure, message) => {
                said(message.unwrap_or_else(|| failure.to_string()))
            }
            // The message is taken without the statement that comes with it.
            rusqlite::Error::SqlInputError { msg, .. } => said(msg),
            other => said(other.to_string()),
        }
    }
}

/// An error of SQLite, whose message may hold names from the file: it is cut and escaped.
fn said(message: String) -> Error {
    Error::Sqlite(message.chars().take(200).flat_map(char::escape_debug).collect())
}
