//! The work for the engine that a request means, and the model that does it.

use pgrx::prelude::*;
use serde_json::Value;
use steadytext_engine::{Embed, Generate, Sampling, Work};

use super::asked::{RawRequest, dimensions, purpose, truncates, wanted};
use super::batch_checks;
use super::constraint::{constraint, enough_tokens};
use super::subtasks::{Subtasks, check_embedding};
use super::summary::{Summary, SummaryLevel};
use super::{conversation, defaults, options, verb_checks};
use crate::pg::catalog_cache::{self, DatabaseConfig, ModelRegistry};
use crate::pg::error::PgError;
use crate::pg::guc;
use crate::registry::{self, ModelTask, RequestedModel, Resolved};

/// The work, and the model that does it.
///
/// # Errors
///
/// As [`work`], [`model`] and [`Subtasks::check_model`].
pub(crate) fn subtasks(
    asked: RawRequest<'_>,
    config: &DatabaseConfig,
    models: &ModelRegistry,
) -> Result<(Subtasks, Resolved), PgError> {
    let (task, subtasks) = work(asked, config)?;
    let model = model(task, asked.params, models)?;
    subtasks.check_model(&model)?;
    Ok((subtasks, model))
}

/// The subtasks and the model for a worker elsewhere.
///
/// # Errors
///
/// As [`subtasks`], but for a file that is not on this machine.
pub(crate) fn subtasks_elsewhere(
    asked: RawRequest<'_>,
    config: &DatabaseConfig,
    models: &ModelRegistry,
) -> Result<(Subtasks, Resolved), PgError> {
    let (task, subtasks) = work(asked, config)?;
    let model = registry::resolve_elsewhere(task, wanted(asked.params), models)?;
    subtasks.check_model(&model)?;
    Ok((subtasks, model))
}

/// The model that does a request's work.
///
/// # Errors
///
/// As [`registry::resolve`].
pub(crate) fn model(task: ModelTask, params: &Value, models: &ModelRegistry) -> Result<Resolved, PgError> {
    registry::resolve(task, wanted(params), models)
}

/// The work by itself, and what its model has to be for: to look for a model costs a look at files.
///
/// The queue's trigger has checked every value when the row was inserted, but an owner of the table can store
/// anything.
///
/// # Errors
///
/// P0001 for an empty text; 0A000 for a type that this version does not know; 22023 for parameters that
/// cannot be read.
pub(crate) fn work(asked: RawRequest<'_>, config: &DatabaseConfig) -> Result<(ModelTask, Subtasks), PgError> {
    let RawRequest { request_type, prompt, params, .. } = asked;
    let text = prompt.unwrap_or_default();
    let is_empty = text.trim().is_empty();
    Ok(match request_type {
        "generate" if is_empty => return Err(PgError::raised("Prompt cannot be empty").lasting()),
        "generate" => (ModelTask::Generate, Subtasks::One(Work::Generate(generate(text, params, config)?))),
        "generate_json" | "generate_regex" | "generate_choice" if is_empty => {
            return Err(PgError::raised("Prompt cannot be empty").lasting());
        }
        "generate_json" | "generate_regex" | "generate_choice" => {
            let constraint = constraint(request_type, params)?;
            let mut how = generate(text, params, config)?;
            // A long choice must not fail for a limit that nobody has set.
            if params.get("max_tokens").is_none()
                && let Some(enough) = constraint.as_ref().and_then(enough_tokens)
            {
                how.max_tokens = enough;
            }
            (ModelTask::Generate, Subtasks::One(Work::Generate(Generate { constraint, ..how })))
        }
        "embed" if is_empty => return Err(PgError::raised("Text input cannot be empty").lasting()),
        "embed" => {
            let embed = Embed {
                purpose: purpose(params),
                truncate: truncates(params),
                dimensions: dimensions(params),
                ..Embed::passage(text)
            };
            (ModelTask::Embed, Subtasks::One(Work::Embed(embed)))
        }
        "batch_embed" => (ModelTask::Embed, batch_checks::embed(asked, purpose(params), config)?),
        "rerank" | "batch_rerank" => (ModelTask::Rerank, batch_checks::rerank(asked, config)?),
        "summarize" => {
            let level = SummaryLevel::first(Summary::of_text(text, params, guc::engine().context_length)?);
            level.check_prompt()?;
            (ModelTask::Generate, Subtasks::Summary(level))
        }
        verb if verb_checks::is_verb(verb) => {
            (task_of_verb(verb, params), Subtasks::Verb(verb_checks::read(asked, config)?))
        }
        other => {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("request type \"{other}\" is not supported by this version"),
            ));
        }
    })
}

/// Refuses a request that names a model which nobody has registered for what it asks. That its file is there
/// is seen when it is wanted.
///
/// # Errors
///
/// 42704 and 42809.
pub(crate) fn check_model(request_type: &str, params: &Value, models: &ModelRegistry) -> Result<(), PgError> {
    match wanted(params) {
        RequestedModel::Named(name) | RequestedModel::Remembered(name) => {
            registry::check(task_of(request_type, params), name, models)
        }
        RequestedModel::Default => Ok(()),
    }
}

/// Refuses a task or a length of vectors that the model of a request does not have, where its file is here.
/// Where it is not, or where the choice may be another one by the time that the request runs, that is seen
/// then.
///
/// # Errors
///
/// 22023, see [`Embedding::check`](crate::registry::Embedding::check); those of the registry.
pub(crate) fn check_vectors(request_type: &str, params: &Value) -> Result<(), PgError> {
    let is_asked = matches!(request_type, "embed" | "batch_embed")
        && (params.get("task").is_some() || params.get("dimensions").is_some());
    if !is_asked {
        return Ok(());
    }
    let Ok(model) = model(ModelTask::Embed, params, &*catalog_cache::models()?) else { return Ok(()) };
    if model.is_fallback {
        return Ok(());
    }
    check_embedding(&model, &purpose(params), dimensions(params))
}

/// The default model that a request without a model has to remember of this session's settings.
///
/// # Errors
///
/// As [`registry::to_remember`].
pub(crate) fn default_to_remember(
    request_type: &str,
    params: &Value,
    models: &ModelRegistry,
) -> Result<Option<String>, PgError> {
    registry::to_remember(task_of(request_type, params), models)
}

/// The task of a request's model.
pub(crate) fn task_of(request_type: &str, params: &Value) -> ModelTask {
    match request_type {
        "embed" | "batch_embed" => ModelTask::Embed,
        "rerank" | "batch_rerank" => ModelTask::Rerank,
        verb if verb_checks::is_verb(verb) => task_of_verb(verb, params),
        _ => ModelTask::Generate,
    }
}

/// The task of a verb's model.
fn task_of_verb(request_type: &str, params: &Value) -> ModelTask {
    if verb_checks::is_by_vectors(request_type, params) { ModelTask::Embed } else { ModelTask::Generate }
}

fn generate(prompt: &str, params: &Value, config: &DatabaseConfig) -> Result<Generate, PgError> {
    let integer = |name: &str| params.get(name).and_then(Value::as_i64);
    let float = |name: &str| params.get(name).and_then(Value::as_f64).map(|value| value as f32);
    // The number that was asked for has no upper limit here, because the row was let in under the limit of
    // its time.
    let default = || config.default_max_tokens.unwrap_or(defaults::MAX_TOKENS).min(config.max_tokens_limit);
    let max_tokens = integer("max_tokens").unwrap_or_else(default).max(1);
    let eos_string =
        params.get("eos_string").and_then(Value::as_str).filter(|stop| *stop != defaults::EOS_STRING);
    let mut stop: Vec<String> = Vec::new();
    for text in eos_string.into_iter().chain(options::stops(params)) {
        if !stop.iter().any(|known| known == text) {
            stop.push(text.to_owned());
        }
    }
    Ok(Generate {
        prompt: prompt.to_owned(),
        max_tokens: usize::try_from(max_tokens).unwrap_or(1),
        sampling: Sampling {
            temperature: float("temperature").unwrap_or(defaults::TEMPERATURE as f32),
            seed: integer("seed").or(config.default_seed).unwrap_or(defaults::SEED) as u64,
            ..options::sampling(params)
        },
        stop,
        system: params.get("system_prompt").and_then(Value::as_str).map(str::to_owned),
        history: conversation::history(params)?,
        thinking: params.get("thinking").and_then(Value::as_bool).unwrap_or(false),
        ..Generate::default()
    })
}
