//! Making work for the engine from a claimed row.

use super::claims::ClaimedRequest;
use crate::cache::CacheQuestion;
use crate::pg::catalog_cache::{DatabaseConfig, ModelRegistry};
use crate::pg::error::PgError;
use crate::registry::Resolved;
use crate::request::{self, RawRequest, Subtasks};

/// A request's work, and whether its model was chosen for want of another.
pub(super) struct PreparedRequest {
    /// The model that does it.
    pub(super) resolved: Resolved,
    /// The salt of those whose keys and values it may share.
    pub(super) salt: u64,
    /// The work for the engine.
    pub(super) subtasks: Subtasks,
    /// The question to the cache.
    pub(super) question: Option<CacheQuestion>,
}

/// Fills in what the row leaves to the defaults. The trigger has checked every value when the row was
/// inserted, but an owner of the table can store anything.
///
/// # Errors
///
/// As [`request::subtasks`].
pub(super) fn prepare(
    claimed: &ClaimedRequest,
    config: &DatabaseConfig,
    models: &ModelRegistry,
) -> Result<PreparedRequest, PgError> {
    let content = claimed.content.as_ref().map_err(PgError::clone)?;
    let prompts: Option<Vec<Option<&str>>> =
        content.prompts.as_ref().map(|texts| texts.iter().map(Option::as_deref).collect());
    let params = &content.params;
    let asked = RawRequest {
        request_type: &claimed.request_type,
        prompt: content.prompt.as_deref(),
        prompts: prompts.as_deref(),
        params,
    };
    let (subtasks, resolved) = request::subtasks(asked, config, models)?;
    // The time to the beginning of an answer must tell a role nothing of what others ask.
    let salt = u64::from(claimed.owner.to_u32());
    let question = CacheQuestion::of(&claimed.request_type, params, &subtasks, &resolved, config);
    Ok(PreparedRequest { resolved, salt, subtasks, question })
}
