//! From what a row, or a synchronous call, says to a request for the engine.

use pgrx::prelude::*;
use serde_json::Value;
use steadytext_engine::{Embed, Generate, Request, Sampling, Work};

use super::flight::key;
pub(crate) use super::models::Resolved;
use super::models::{self, Task};
use super::protocol::Claimed;
use crate::pg::caches::{Config, Model};
use crate::pg::error::PgError;

/// The predecessor's word for "where the model itself ends".
const MODEL_DECIDES: &str = "[EOS]";

/// A request, and whether its model was chosen for want of another.
pub(super) struct Prepared {
    /// For the engine.
    pub(super) request: Request,
    /// See [`Resolved::for_want_of_another`].
    pub(super) for_want_of_another: bool,
}

/// Fills in what the row leaves to the defaults. The trigger has checked every value when the row was inserted, but
/// an owner of the table can store anything.
///
/// # Errors
///
/// Those of [`models::resolve`]; P0001 for an empty text; 0A000 for a type that this version does not know.
pub(super) fn prepare(claimed: &Claimed, config: &Config, models: &[Model]) -> Result<Prepared, PgError> {
    let text = claimed.prompt.as_deref().unwrap_or_default();
    let (work, Resolved { source, for_want_of_another }) =
        work(&claimed.request_type, text, &claimed.params, config, models)?;
    Ok(Prepared {
        request: Request {
            key: key(claimed.held),
            model: source,
            // How soon an answer begins must tell a role nothing of what others ask.
            salt: u64::from(claimed.owner.to_u32()),
            work,
        },
        for_want_of_another,
    })
}

/// The work, and the model that does it.
///
/// # Errors
///
/// As [`prepare`].
pub(crate) fn work(
    request_type: &str,
    text: &str,
    params: &Value,
    config: &Config,
    models: &[Model],
) -> Result<(Work, Resolved), PgError> {
    let is_empty = text.trim().is_empty();
    let (task, work) = match request_type {
        "generate" if is_empty => return Err(PgError::raised("Prompt cannot be empty")),
        "generate" => (Task::Generate, Work::Generate(generate(text, params, config))),
        "embed" if is_empty => return Err(PgError::raised("Text input cannot be empty")),
        "embed" => (Task::Embed, Work::Embed(Embed { text: text.to_owned() })),
        other => {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
                format!("request type \"{other}\" is not supported by this version"),
            ));
        }
    };
    let asked = params.get("model").or_else(|| params.get("size")).and_then(Value::as_str);
    Ok((work, models::resolve(task, asked, models)?))
}

/// What to say where [`Resolved::for_want_of_another`] is set.
pub(crate) fn builtin_warning() -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_WARNING,
        "pg_steadytext answers with its builtin model, which is for demonstrations and tests only",
    )
    .hint("Put a GGUF file into pg_steadytext.model_dir and name it in pg_steadytext.generation_model and pg_steadytext.embedding_model; set them to \"builtin\" to silence this.")
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
    }
}
