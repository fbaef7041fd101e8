//! Restores: what was computed before the registry and the settings of the database were there.
//!
//! pg_dump writes tables in the order of their names, so that generated columns are computed while
//! steadytext_config and steadytext_models are as the extension makes them. A session that restores a dump
//! remembers which models it took for calls that name none, and fails where the rows that come later would
//! have chosen others.

use pgrx::prelude::*;

use super::resolve::{defaults_of_restore, resolve};
use super::task::RequestedModel;
use crate::pg::catalog_cache;
use crate::pg::error::PgError;
use crate::pg::restore;

/// Compares what was taken with what the rows choose that have come now.
///
/// # Errors
///
/// 55000 where that is another model: what was computed is not what the dump was made of.
pub(crate) fn check(table: pg_sys::Oid) -> Result<(), PgError> {
    if !restore::in_session() {
        return Ok(());
    }
    let taken = defaults_of_restore();
    if taken.is_empty() {
        return Ok(());
    }
    let is_registry = restore::see_changes(table)? == Some("steadytext_models");
    let models = catalog_cache::models()?;
    for (task, source) in taken {
        let differs = match resolve(task, RequestedModel::Default, &models) {
            Ok(found) => found.source != source,
            // Its row may be among those that come next.
            Err(_) => is_registry,
        };
        if differs {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                format!(
                    "rows of this restore were computed for task {} by another model than the database's settings choose",
                    task.name()
                ),
            )
            .hint("Restore steadytext_config and steadytext_models first, as docs/generated-columns.md shows, or name the model in the calls or in ALTER DATABASE … SET pg_steadytext.embedding_model."));
        }
    }
    Ok(())
}
