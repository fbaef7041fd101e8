//! Checks of an enrichment's request when the enrichment is created: the queue will check each row's request
//! in the same way, and the model that will answer must be usable.

use pgrx::prelude::*;

use crate::pg::catalog_cache;
use crate::pg::error::{OrRaise, PgError};
use crate::pg::jsonb::Jsonb;
use crate::pg::kept_prompts;
use crate::registry::{self, RequestedModel};
use crate::request::checks::{check_columns, check_params, check_type};
use crate::request::params::{self, Unused};
use crate::request::verb_checks::is_verb;
use crate::request::{RawRequest, check_model, prompt_source, task_of, wanted};

/// Stands for the text of a row, which is checked when there is one.
const ANY_TEXT: &str = "pg_steadytext";

/// Refuses a type and parameters that no request about a text can have, with the errors of the queue; and,
/// where the server's own worker answers, a model that it cannot load.
#[pg_extern(stable, parallel_safe)]
fn check_enrichment_request(request_type: &str, params: Jsonb<'_>, is_answered_here: bool) -> bool {
    check(request_type, params, is_answered_here).or_raise();
    true
}

fn check(request_type: &str, params: Jsonb<'_>, is_answered_here: bool) -> Result<(), PgError> {
    let config = catalog_cache::config()?;
    check_columns(request_type, true, false)?;
    let mut params = params::read(request_type, Some(params), Unused::Refused, &config)?;
    if is_verb(request_type) {
        prompt_source::keep(request_type, &mut params, &*kept_prompts::all()?)?;
    }
    check_type(RawRequest { request_type, prompt: Some(ANY_TEXT), prompts: None, params: &params }, &config)?;
    check_params(request_type, &params, &config)?;
    let models = catalog_cache::models()?;
    let task = task_of(request_type, &params);
    if let RequestedModel::Named(name) | RequestedModel::Remembered(name) = wanted(&params) {
        check_model(request_type, &params, &models)?;
        let is_elsewhere =
            models.iter().any(|model| model.is_elsewhere() && model.name.eq_ignore_ascii_case(name));
        // A request may name a model that is downloaded meanwhile. Of an enrichment each row's would fail,
        // again and again.
        if is_answered_here && !is_elsewhere {
            registry::resolve(task, wanted(&params), &models)?;
        }
    } else if registry::resolve(task, RequestedModel::Default, &models).is_ok_and(|model| model.is_fallback) {
        // The worker's own warning would reach the server log only.
        registry::builtin_warning().report(PgLogLevel::WARNING);
    }
    Ok(())
}
