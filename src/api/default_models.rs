//! Default models: the one that a vectorizer begins with, and the warning for users who set a key of
//! steadytext_config that chooses one.

use pgrx::prelude::*;

use crate::pg::catalog_cache;
use crate::pg::error::OrRaise;
use crate::registry;

/// The name of the model that embeds by default in this session, as its calls get it. `None` where there is
/// none, or where its file has no other name than its path.
#[pg_extern(volatile, parallel_unsafe)]
fn default_embedding_model() -> Option<String> {
    registry::default_embedding_name(&catalog_cache::models().or_raise())
}

/// Warns where requests could not be answered by the model that a key is set to. For
/// `steadytext_config_set()`: what a restore brings is not looked at.
#[pg_extern(volatile, parallel_unsafe)]
fn warn_of_default_model(key: Option<&str>, name: Option<&str>) {
    if let (Some(key), Some(name)) = (key, name) {
        registry::warn_of_key(key, name);
    }
}
