//! The warning for users who set a key of steadytext_config that chooses a model.

use pgrx::prelude::*;

use crate::registry;

/// Warns where requests could not be answered by the model that a key is set to. For
/// `steadytext_config_set()`: what a restore brings is not looked at.
#[pg_extern(volatile, parallel_unsafe)]
fn warn_of_default_model(key: Option<&str>, name: Option<&str>) {
    if let (Some(key), Some(name)) = (key, name) {
        registry::warn_of_key(key, name);
    }
}
