//! From what a row, or a synchronous call, says to a request for the engine.

use pgrx::prelude::*;
use serde_json::Value;
use steadytext_engine::{Embed, Generate, Purpose, Sampling, Work};

use super::constraint::{constraint, enough_tokens};
use super::many;
pub(crate) use super::many::DEFAULT_TASK;
pub(crate) use super::parts::{Answer, Parts, Progress, Ranking, description, unexpected};
use super::protocol::Claimed;
pub(crate) use super::ranking::Ranked;
use crate::cache::Question;
use crate::pg::caches::{Config, Model};
use crate::pg::error::PgError;
use crate::registry::{self, Resolved, Task};

/// The predecessor's word for "where the model itself ends".
const MODEL_DECIDES: &str = "[EOS]";

/// What a row, or a call, says.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// `generate`, `embed`, …
    pub(crate) request_type: &'a str,
    /// The text.
    pub(crate) prompt: Option<&'a str>,
    /// The texts of a request of many parts.
    pub(crate) prompts: Option<&'a [Option<&'a str>]>,
    /// The parameters.
    pub(crate) params: &'a Value,
}

/// A request's work, and whether its model was chosen for want of another.
pub(super) struct Prepared {
    /// The model that does it.
    pub(super) resolved: Resolved,
    /// Whose keys and values it may share.
    pub(super) salt: u64,
    /// For the engine.
    pub(super) parts: Parts,
    /// For the cache.
    pub(super) question: Option<Question>,
}

/// Fills in what the row leaves to the defaults. The trigger has checked every value when the row was inserted, but
/// an owner of the table can store anything.
///
/// # Errors
///
/// Those of [`registry::resolve`]; P0001 for an empty text; 0A000 for a type that this version does not know; 22023 for
/// parameters that cannot be read.
pub(super) fn prepare(claimed: &Claimed, config: &Config, models: &[Model]) -> Result<Prepared, PgError> {
    let content = claimed.content.as_ref().map_err(PgError::clone)?;
    let prompts: Option<Vec<Option<&str>>> =
        content.prompts.as_ref().map(|texts| texts.iter().map(Option::as_deref).collect());
    let params = &content.params;
    let asked = Asked {
        request_type: &claimed.request_type,
        prompt: content.prompt.as_deref(),
        prompts: prompts.as_deref(),
        params,
    };
    let (parts, resolved) = parts(asked, config, models)?;
    // How soon an answer begins must tell a role nothing of what others ask.
    let salt = u64::from(claimed.owner.to_u32());
    let question = Question::of(&claimed.request_type, params, &parts, &resolved.source, config);
    Ok(Prepared { resolved, salt, parts, question })
}

/// The work, and the model that does it.
///
/// # Errors
///
/// As [`prepare`].
pub(crate) fn parts(
    asked: Asked<'_>,
    config: &Config,
    models: &[Model],
) -> Result<(Parts, Resolved), PgError> {
    let (task, parts) = work(asked, config)?;
    Ok((parts, model(task, asked.params, models)?))
}

/// The model that does a request's work.
///
/// # Errors
///
/// Those of [`registry::resolve`].
pub(crate) fn model(task: Task, params: &Value, models: &[Model]) -> Result<Resolved, PgError> {
    registry::resolve(task, named_model(params), models)
}

/// The work by itself, and what its model has to be for: to look for a model costs a look at files.
///
/// # Errors
///
/// As [`prepare`].
pub(crate) fn work(asked: Asked<'_>, config: &Config) -> Result<(Task, Parts), PgError> {
    let Asked { request_type, prompt, params, .. } = asked;
    let text = prompt.unwrap_or_default();
    let is_empty = text.trim().is_empty();
    Ok(match request_type {
        "generate" if is_empty => return Err(PgError::raised("Prompt cannot be empty").lasting()),
        "generate" => (Task::Generate, Parts::One(Work::Generate(generate(text, params, config)))),
        "generate_json" | "generate_regex" | "generate_choice" if is_empty => {
            return Err(PgError::raised("Prompt cannot be empty").lasting());
        }
        "generate_json" | "generate_regex" | "generate_choice" => {
            let constraint = constraint(request_type, params)?;
            let mut how = generate(text, params, config);
            // There is no reason to fail on a long choice.
            if params.get("max_tokens").is_none()
                && let Some(enough) = constraint.as_ref().and_then(enough_tokens)
            {
                how.max_tokens = enough;
            }
            (Task::Generate, Parts::One(Work::Generate(Generate { constraint, ..how })))
        }
        "embed" if is_empty => return Err(PgError::raised("Text input cannot be empty").lasting()),
        "embed" => {
            let embed =
                Embed { text: text.to_owned(), purpose: purpose(params), truncate: truncates(params) };
            (Task::Embed, Parts::One(Work::Embed(embed)))
        }
        "batch_embed" => (Task::Embed, many::embed(asked, purpose(params), config)?),
        "rerank" | "batch_rerank" => (Task::Rerank, many::rerank(asked, config)?),
        other => {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("request type \"{other}\" is not supported by this version"),
            ));
        }
    })
}

/// Refuses a request that names a model which nobody has registered for what it asks. That its file is there is seen when it is
/// wanted.
///
/// # Errors
///
/// 42704 and 42809.
pub(crate) fn check_model(request_type: &str, params: &Value, models: &[Model]) -> Result<(), PgError> {
    let task = match request_type {
        "embed" | "batch_embed" => Task::Embed,
        "rerank" | "batch_rerank" => Task::Rerank,
        _ => Task::Generate,
    };
    named_model(params).map_or(Ok(()), |name| registry::check(task, name, models))
}

/// The name of the model that a request wants, if it does not leave the choice to the server.
pub(crate) fn named_model(params: &Value) -> Option<&str> {
    params.get("model").or_else(|| params.get("size")).and_then(Value::as_str)
}

/// Whether texts that are too long are cut.
pub(super) fn truncates(params: &Value) -> bool {
    params.get("truncate") == Some(&Value::Bool(true))
}

/// What an embedding is for: a task is a query's.
fn purpose(params: &Value) -> Purpose {
    let text = |name: &str| params.get(name).and_then(Value::as_str);
    match (text("mode"), text("task")) {
        (Some("query"), task) | (None, task @ Some(_)) => Purpose::Query { task: task.map(str::to_owned) },
        _ => Purpose::Passage,
    }
}

fn generate(prompt: &str, params: &Value, config: &Config) -> Generate {
    let integer = |name: &str| params.get(name).and_then(Value::as_i64);
    let float = |name: &str| params.get(name).and_then(Value::as_f64).map(|value| value as f32);
    // No upper limit here: the row was let in under the limit of its time.
    let max_tokens = integer("max_tokens").unwrap_or(config.default_max_tokens).max(1);
    let stop = params.get("eos_string").and_then(Value::as_str).filter(|stop| *stop != MODEL_DECIDES);
    Generate {
        prompt: prompt.to_owned(),
        max_tokens: usize::try_from(max_tokens).unwrap_or(1),
        sampling: Sampling {
            temperature: float("temperature").unwrap_or(0.0),
            top_k: integer("top_k").and_then(|k| usize::try_from(k).ok()).unwrap_or(0),
            top_p: float("top_p").unwrap_or(1.0),
            min_p: float("min_p").unwrap_or(0.0),
            seed: integer("seed").unwrap_or(config.default_seed) as u64,
        },
        stop: stop.map(str::to_owned).into_iter().collect(),
        constraint: None,
    }
}
