//! The model that a request which is enqueued without one keeps: what is set for its session alone, of which
//! the worker knows nothing.

use pgrx::prelude::*;

use super::defaults::{self, DefaultModel};
use super::elsewhere::look;
use super::resolve::check;
use super::task::{ModelTask, RequestedModel};
use crate::pg::catalog_cache::ModelRegistry;
use crate::pg::error::PgError;
use crate::pg::guc;

/// The model that a request which is enqueued now without one has to store: the default of this session, its
/// role or its database; or, where the session has left to `auto` what is set for all, the model that it gets
/// instead. The worker knows what is set for the server and in steadytext_config.
///
/// # Errors
///
/// As [`check`]; 0A000 for a path, which the queue must not carry; where `auto` finds none, as
/// [`resolve`](super::resolve()).
pub(crate) fn to_remember(task: ModelTask, models: &ModelRegistry) -> Result<Option<String>, PgError> {
    if defaults::hides_others(task) {
        return instead(task, models);
    }
    let Some(DefaultModel { name, setting }) = defaults::of_session(task) else { return Ok(None) };
    if guc::is_path(&name) {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("{setting} is a path in this session, which requests of the queue cannot name"),
        )
        .hint("Register the file in steadytext_models, and set its name."));
    }
    check(task, &name, models).map_err(|error| defaults::named_by(error, &setting))?;
    Ok(Some(name))
}

/// The name of the model that this session gets. `None` where it has no name by which others would find it,
/// and for the builtin model in the place of one that may come yet.
fn instead(task: ModelTask, models: &ModelRegistry) -> Result<Option<String>, PgError> {
    let found = look(task, RequestedModel::Default, models)?;
    if found.is_fallback || guc::is_path(found.name()) {
        return Ok(None);
    }
    let by_name = look(task, RequestedModel::Named(found.name()), models);
    Ok(by_name.is_ok_and(|named| named.source == found.source).then(|| found.name().to_owned()))
}
