//! The functions that enqueue one request, and the form in which requests carry their parameters. In Rust because they are on the hot path of every enqueuing transaction: the
//! plan of their INSERT is made once per session, and nothing is interpreted.

use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::{Map, Value};

use crate::pg::caches;
use crate::pg::error::OrRaise;
use crate::pg::spi::{Arg, SavedPlan};
use crate::request::DEFAULT_TASK;

const DEFAULT_SEED: i64 = 42;
const MODEL_DECIDES: &str = "[EOS]";
const DEFAULT_PRIORITY: i64 = 5;

thread_local! {
    static INSERT: SavedPlan = const { SavedPlan::new() };
}

/// Enqueues the generation of a text. Parameters that say what would happen anyway are left out of params.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature")]
fn generate_async(
    prompt: Option<&str>,
    max_tokens: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    eos_string: Option<&str>,
    model: Option<&str>,
    size: Option<&str>,
    temperature: Option<f64>,
    priority: Option<i64>,
) -> Option<pgrx::Uuid> {
    let params = generate_params(max_tokens, use_cache, seed, eos_string, model, size, temperature);
    enqueue("generate", prompt, params, priority)
}

/// Enqueues the embedding of a text.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature, and more")]
fn embed_async(
    text_input: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    priority: Option<i64>,
    mode: Option<&str>,
    task: Option<&str>,
    truncate: Option<bool>,
) -> Option<pgrx::Uuid> {
    enqueue("embed", text_input, embed_params(use_cache, seed, model, mode, task, truncate), priority)
}

/// The parameters of a generation that differ from the defaults.
pub(super) fn generate_params(
    max_tokens: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    eos_string: Option<&str>,
    model: Option<&str>,
    size: Option<&str>,
    temperature: Option<f64>,
) -> Map<String, Value> {
    let temperature = temperature.filter(|value| *value != 0.0);
    // An explicit seed is kept wherever it matters, so that a changed default never alters what was asked for.
    let seed = seed.filter(|seed| *seed != DEFAULT_SEED || temperature.is_some());
    params([
        ("max_tokens", max_tokens.map(Value::from)),
        ("use_cache", use_cache.filter(|use_cache| !use_cache).map(Value::from)),
        ("seed", seed.map(Value::from)),
        ("eos_string", eos_string.filter(|text| *text != MODEL_DECIDES).map(Value::from)),
        ("model", model.map(Value::from)),
        ("size", size.map(Value::from)),
        ("temperature", temperature.map(number)),
    ])
}

/// The parameters of an embedding that differ from the defaults.
pub(super) fn embed_params(
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    mode: Option<&str>,
    task: Option<&str>,
    truncate: Option<bool>,
) -> Map<String, Value> {
    params([
        ("use_cache", use_cache.filter(|use_cache| !use_cache).map(Value::from)),
        ("seed", seed.filter(|seed| *seed != DEFAULT_SEED).map(Value::from)),
        ("model", model.map(Value::from)),
        ("mode", mode.map(Value::from)),
        ("task", task.map(Value::from)),
        ("truncate", truncate.filter(|truncate| *truncate).map(Value::from)),
    ])
}

/// The parameters of a reranking that differ from the defaults.
pub(super) fn rerank_params(
    task: Option<&str>,
    return_scores: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    truncate: Option<bool>,
) -> Map<String, Value> {
    params([
        ("task", task.filter(|task| *task != DEFAULT_TASK).map(Value::from)),
        ("return_scores", return_scores.filter(|scores| !scores).map(Value::from)),
        ("seed", seed.filter(|seed| *seed != DEFAULT_SEED).map(Value::from)),
        ("model", model.map(Value::from)),
        ("truncate", truncate.filter(|truncate| *truncate).map(Value::from)),
    ])
}

fn params<const N: usize>(given: [(&str, Option<Value>); N]) -> Map<String, Value> {
    given.into_iter().filter_map(|(key, value)| Some((key.to_owned(), value?))).collect()
}

/// JSON knows no infinities; as texts they meet the trigger's own message.
fn number(value: f64) -> Value {
    serde_json::Number::from_f64(value).map_or_else(|| Value::from(value.to_string()), Value::Number)
}

/// A priority as the column holds it; what that cannot hold is out of range there, too.
fn column(priority: i64) -> i32 {
    i32::try_from(priority).unwrap_or(if priority < 0 { i32::MIN } else { i32::MAX })
}

/// With the rights of the caller, like the INSERT that it is.
pub(super) fn enqueue(
    request_type: &str,
    text: Option<&str>,
    params: Map<String, Value>,
    priority: Option<i64>,
) -> Option<pgrx::Uuid> {
    let installation = caches::installation().or_raise();
    let args: [Arg; 4] = [
        request_type.into(),
        text.into(),
        if params.is_empty() { Arg::empty_object() } else { JsonB(Value::Object(params)).into() },
        column(priority.unwrap_or(DEFAULT_PRIORITY)).into(),
    ];
    INSERT.with(|plan| {
        plan.query_one(
            installation.extension,
            || {
                format!(
                    "insert into {}.steadytext_queue (request_type, prompt, params, priority)
                     values ($1, $2, $3, $4) returning request_id",
                    installation.schema
                )
            },
            &args,
            |row| row.get(1),
        )
        .or_raise()
        .flatten()
    })
}
