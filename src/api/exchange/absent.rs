//! The functions of `exchange` in a build without that feature: SQL declares them all the same, and their
//! error names the missing feature.

use pgrx::prelude::*;

use crate::pg::error::PgError;

/// Raises 0A000.
#[pg_extern(volatile, parallel_unsafe)]
fn cache_import(
    _path: Option<&str>,
    _replace: Option<bool>,
) -> TableIterator<'static, (name!(imported, i64), name!(skipped, i64), name!(refused, i64))> {
    absent()
}

/// Raises 0A000.
#[pg_extern(volatile, parallel_unsafe)]
fn cache_export(
    _path: Option<&str>,
    _replace: Option<bool>,
    _all_entries: Option<bool>,
    _key_format: Option<&str>,
) -> TableIterator<'static, (name!(exported, i64), name!(skipped, i64))> {
    absent()
}

fn absent() -> ! {
    PgError::new(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        "this build of pg_steadytext does not exchange cache files",
    )
    .hint("Build it with the Cargo feature exchange, which is on by default.")
    .raise()
}
