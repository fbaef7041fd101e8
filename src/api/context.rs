//! What a search and an answer from what it has found must know beforehand: whether a filter is one condition, and how
//! long a prompt may be.

use pgrx::prelude::*;
use steadytext_engine::summary::{Load, Summary};

use super::models::of_engine;
use crate::pg::error::OrRaise;
use crate::pg::{catalog_cache, expression, guc};
use crate::registry::{self, Task, Wanted};

/// True, or an error where the text is not one SQL expression.
#[pg_extern(immutable, parallel_safe)]
fn check_filter(filter: Option<&str>) -> bool {
    if let Some(filter) = filter {
        expression::check(filter).or_raise();
    }
    true
}

/// Tokens that prompt and answer may have together with a model that generates.
#[pg_extern(stable, parallel_safe)]
fn context_tokens(model: Option<&str>) -> i64 {
    let models = catalog_cache::models().or_raise();
    let wanted = model.map_or(Wanted::Default, Wanted::Named);
    let source = registry::resolve(Task::Generate, wanted, &models).or_raise().source;
    let settings = guc::engine();
    let load = Load {
        requests: settings.max_running,
        tokens: 0,
        threads: settings.threads.max(1),
        kv_cache_type: settings.kv_cache_type,
    };
    let (summary, _) = Summary::of(&source, load).map_err(of_engine).or_raise();
    let of_model = summary.context_length.unwrap_or(usize::MAX);
    let tokens = if settings.context_length == 0 { of_model } else { of_model.min(settings.context_length) };
    i64::try_from(tokens).unwrap_or(i64::MAX)
}
