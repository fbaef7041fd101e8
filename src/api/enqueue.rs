//! The functions that enqueue one request. They are in Rust because they are on the hot path of every
//! enqueuing transaction: the plan of their INSERT is made once per session, and nothing is interpreted.

use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::{Map, Value};

use super::prompt;
use super::refuse::refuse_unsafe;
use crate::pg::catalog_cache;
use crate::pg::error::OrRaise;
use crate::pg::jsonb::Jsonb;
use crate::pg::spi::{Arg, SavedPlan};
use crate::request::arguments::{embed_params, generate_params};
use crate::request::defaults;
use crate::request::options::with_options;

thread_local! {
    static INSERT: SavedPlan = const { SavedPlan::new() };
    /// The INSERT of a request that leaves params and priority to their columns' defaults. PostgreSQL checks
    /// the rights to each column that an INSERT names, so that naming fewer is cheaper.
    static INSERT_PLAIN: SavedPlan = const { SavedPlan::new() };
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
    system_prompt: Option<&str>,
    options: Option<Jsonb<'_>>,
    variables: Option<Jsonb<'_>>,
) -> Option<pgrx::Uuid> {
    let params = generate_params(max_tokens, use_cache, seed, eos_string, model, size, temperature);
    let params = with_options(params, system_prompt, options).or_raise();
    let prompt = prompt::filled(prompt, variables).or_raise();
    enqueue("generate", prompt.as_deref(), params, priority)
}

/// The parameters of a generation that differ from the defaults, for functions in SQL.
#[pg_extern(stable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "those of generate")]
fn generate_params_of(
    max_tokens: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    eos_string: Option<&str>,
    model: Option<&str>,
    size: Option<&str>,
    temperature: Option<f64>,
    system_prompt: Option<&str>,
    options: Option<Jsonb<'_>>,
) -> JsonB {
    let params = generate_params(max_tokens, use_cache, seed, eos_string, model, size, temperature);
    JsonB(Value::Object(with_options(params, system_prompt, options).or_raise()))
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
    dimensions: Option<i64>,
    unsafe_mode: Option<bool>,
) -> Option<pgrx::Uuid> {
    refuse_unsafe(unsafe_mode);
    let params = embed_params(use_cache, seed, model, mode, task, truncate, dimensions);
    enqueue("embed", text_input, params, priority)
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
    let installation = catalog_cache::installation().or_raise();
    let priority = priority.unwrap_or(defaults::PRIORITY);
    let plain = params.is_empty() && priority == defaults::PRIORITY;
    let args: [Arg; 4] = [
        request_type.into(),
        text.into(),
        if params.is_empty() { Arg::empty_object() } else { JsonB(Value::Object(params)).into() },
        column(priority).into(),
    ];
    let (plan, args, columns, values) = if plain {
        (&INSERT_PLAIN, &args[..2], "request_type, prompt", "$1, $2")
    } else {
        (&INSERT, &args[..], "request_type, prompt, params, priority", "$1, $2, $3, $4")
    };
    plan.with(|plan| {
        plan.insert_one(
            installation.extension,
            || {
                format!(
                    "insert into {}.steadytext_queue ({columns}) values ({values}) returning request_id",
                    installation.schema
                )
            },
            args,
        )
        .or_raise()
    })
}
