//! Counts the work of workers elsewhere in the server's figures and limits.
//!
//! The server's own worker counts its requests itself. Requests of other workers begin and end in the
//! protocol's functions, which report them here; they count when the function's transaction commits.

use std::time::Duration;

use pgrx::prelude::*;

use crate::pg::catalog_cache::{self, ModelRegistry};
use crate::pg::ended_counts;
use crate::pg::error::OrRaise;
use crate::pg::request_statistics::{CountedRequest, OTHER};
use crate::registry::is_known;
use crate::request::checks::is_type;

/// Requests of a model and a type that have begun.
#[pg_extern(volatile, parallel_unsafe)]
fn count_begun(request_type: Option<&str>, model: Option<&str>, requests: i64) {
    let models = catalog_cache::models().or_raise();
    let (model, request_type) = (known_model(model, &models), known_type(request_type));
    let requests = u64::try_from(requests).unwrap_or(0);
    ended_counts::count(&model, request_type, CountedRequest { requests, ..CountedRequest::default() });
}

/// A request that has ended, or is tried again: the tokens that it took, which its role is charged for, and
/// its times in seconds.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments, reason = "the columns of a row")]
fn count_ended(
    owner: Option<pg_sys::Oid>,
    request_type: Option<&str>,
    model: Option<&str>,
    outcome: Option<&str>,
    prompt_tokens: Option<i32>,
    cached_tokens: Option<i32>,
    generated_tokens: Option<i32>,
    queue_s: Option<f64>,
    first_token_s: Option<f64>,
    total_s: Option<f64>,
) {
    let number = |tokens: Option<i32>| tokens.and_then(|tokens| u64::try_from(tokens).ok()).unwrap_or(0);
    let (prompt_tokens, generated_tokens) = (number(prompt_tokens), number(generated_tokens));
    let counted = match outcome {
        Some("completed") => CountedRequest {
            completed: 1,
            prompt_tokens,
            cached_tokens: number(cached_tokens),
            generated_tokens,
            known_cached: cached_tokens.is_some().into(),
            times: [queue_s, first_token_s, total_s].map(time),
            ..CountedRequest::default()
        },
        Some("retried") => CountedRequest { retried: 1, ..CountedRequest::default() },
        _ => CountedRequest { failed: 1, ..CountedRequest::default() },
    };
    let models = catalog_cache::models().or_raise();
    ended_counts::count(&known_model(model, &models), known_type(request_type), counted);
    if let Some(owner) = owner {
        ended_counts::spend(owner, prompt_tokens.saturating_add(generated_tokens));
    }
}

/// Clocks may be set back between a row's times.
fn time(seconds: Option<f64>) -> Option<Duration> {
    Duration::try_from_secs_f64(seconds?.max(0.0)).ok()
}

/// The model's name in the registry. A row may name anything, and each name takes a place.
fn known_model(model: Option<&str>, models: &ModelRegistry) -> String {
    let Some(model) = model else { return String::new() };
    let registered = models.iter().find(|known| known.name.eq_ignore_ascii_case(model));
    match registered {
        Some(known) => known.name.clone(),
        None if is_known(model, models) => model.to_owned(),
        None => OTHER.to_owned(),
    }
}

fn known_type(request_type: Option<&str>) -> &str {
    request_type.filter(|request_type| is_type(request_type)).unwrap_or(OTHER)
}
