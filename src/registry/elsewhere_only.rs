//! Models that only workers on other machines compute: what is said to who asks for them here.

use pgrx::prelude::*;

use crate::pg::catalog_cache::RegisteredModel;
use crate::pg::error::PgError;

/// Refuses a model that is only elsewhere.
///
/// # Errors
///
/// 0A000.
pub(super) fn refuse_elsewhere(model: &RegisteredModel) -> Result<(), PgError> {
    if !model.is_elsewhere() {
        return Ok(());
    }
    let asks = asks_through_the_queue(&model.task);
    Err(PgError::new(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!("model \"{}\" is computed by workers elsewhere only", model.name),
    )
    .hint(format!(
        "They answer requests of the queue, and {asks}(…, model => '{}'{}) makes one. Only models of this server count, cut and search at once: steadytext_model_list() shows the placement of each.",
        model.name,
        if model.task == "embed" { ", mode => 'query' for what is searched for" } else { "" },
    )))
}

/// The function that asks a model through the queue which is for this task.
pub(super) fn asks_through_the_queue(task: &str) -> &'static str {
    match task {
        "embed" => "steadytext_embed_async",
        "rerank" => "steadytext_rerank_async",
        _ => "steadytext_generate_async",
    }
}
