//! The exchange of cache files with SteadyText for Python.
//!
//! A file is copied out of the exchange directory before it is read, and copied into it after it was written:
//! SQLite works on a temporary file that nobody else knows, and a path of the caller's is used once, for one
//! open file.

mod export;
mod import;

use pgrx::prelude::*;

use crate::pg::error::{OrRaise, PgError};
use crate::pg::interrupts;

/// Takes the entries of a file: how many are new, were there already, and are of no use.
#[pg_extern(volatile, parallel_unsafe)]
fn cache_import(
    path: Option<&str>,
    replace: Option<bool>,
) -> TableIterator<'static, (name!(imported, i64), name!(skipped, i64), name!(refused, i64))> {
    let counts = or_stop(import::run(&given(path), replace.unwrap_or(false)));
    TableIterator::once((counts.imported, counts.skipped, counts.refused))
}

/// Writes a file: how many entries are in it, and how many were left out.
#[pg_extern(volatile, parallel_unsafe)]
fn cache_export(
    path: Option<&str>,
    replace: Option<bool>,
    all_entries: Option<bool>,
    key_format: Option<&str>,
) -> TableIterator<'static, (name!(exported, i64), name!(skipped, i64))> {
    let options = export::ExportOptions {
        replace: replace.unwrap_or(false),
        all_entries: all_entries.unwrap_or(false),
        coding: export::coding(key_format.unwrap_or("base64")).or_raise(),
    };
    let counts = or_stop(export::run(&given(path), options));
    TableIterator::once((counts.exported, counts.skipped))
}

fn given(path: Option<&str>) -> String {
    match path {
        Some(path) => path.to_owned(),
        None => PgError::new(PgSqlErrorCode::ERRCODE_NULL_VALUE_NOT_ALLOWED, "path must not be null")
            .hint("Give the path of a file on the server.")
            .raise(),
    }
}

/// Files are closed and drafts removed by now: PostgreSQL may end the statement, and say why.
fn or_stop<T>(result: Result<T, PgError>) -> T {
    if result.is_err() {
        interrupts::check();
    }
    result.or_raise()
}

/// An error of a cache file.
fn of_file(path: &str, error: &steadytext_exchange::file::Error) -> PgError {
    use steadytext_exchange::file::Error;
    match error {
        Error::Stopped => crate::pg::exchange_dir::stopped(),
        Error::NoTable | Error::Endless | Error::Sqlite(_) => {
            PgError::new(PgSqlErrorCode::ERRCODE_DATA_CORRUPTED, format!("cache file \"{path}\": {error}"))
        }
    }
}
