//! The cache by itself: the key of a request, an answer without computing one, and the counters.

use std::sync::atomic::Ordering::Relaxed;

use pgrx::prelude::*;
use serde_json::{Map, Value};

use super::prompt;
use super::refuse::refuse_unsafe;
use crate::cache::{self, Effort};
use crate::pg::catalog_cache;
use crate::pg::error::{OrRaise, PgError};
use crate::pg::jsonb::Jsonb;
use crate::pg::{access_counters, activity, catalog, kept_prompts, slots};
use crate::request::arguments::{embed_params, generate_params};
use crate::request::checks::{check_params, check_type};
use crate::request::options::with_options;
use crate::request::params::{self, Unused};
use crate::request::{self, Answer, OnError, RawRequest, prompt_source};

/// The key that a request has as things are; NULL where it depends on a model file that was never loaded.
#[pg_extern(stable, parallel_safe)]
fn cache_key(request_type: Option<&str>, prompt: Option<&str>, params: Option<Jsonb<'_>>) -> Option<String> {
    let request_type = request_type.unwrap_or_default();
    let (config, models) = (catalog_cache::config().or_raise(), catalog_cache::models().or_raise());
    let mut params = params::read(request_type, params, Unused::Refused, &config).or_raise();
    prompt_source::keep(request_type, &mut params, &kept_prompts::all().or_raise()).or_raise();
    let asked = RawRequest { request_type, prompt, prompts: None, params: &params };
    check_type(asked, &config).or_raise();
    check_params(request_type, &params, &config).or_raise();
    let (subtasks, model) = request::subtasks(asked, &config, &models).or_raise();
    cache::key_of(request_type, &params, &subtasks, &model).map(|key| key.text)
}

/// A text, if the cache has it.
#[pg_extern(stable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "those of generate")]
fn generate_cached(
    prompt: Option<&str>,
    max_tokens: Option<i64>,
    seed: Option<i64>,
    eos_string: Option<&str>,
    model: Option<&str>,
    size: Option<&str>,
    temperature: Option<f64>,
    on_error: Option<&str>,
    system_prompt: Option<&str>,
    options: Option<Jsonb<'_>>,
    variables: Option<Jsonb<'_>>,
) -> Option<String> {
    let (on_error, prompt) = (OnError::of(on_error), prompt::filled(prompt, variables).or_raise()?);
    let params = generate_params(max_tokens, None, seed, eos_string, model, size, temperature);
    let params = with_options(params, system_prompt, options).or_raise();
    match on_error.settle(look("generate", Some(&prompt), params))?? {
        Answer::Text(text) => Some(text),
        _ => None,
    }
}

/// An embedding, if the cache has it.
#[pg_extern(stable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "those of embed")]
fn embed_cached(
    text_input: Option<&str>,
    seed: Option<i64>,
    model: Option<&str>,
    mode: Option<&str>,
    task: Option<&str>,
    truncate: Option<bool>,
    on_error: Option<&str>,
    dimensions: Option<i64>,
    unsafe_mode: Option<bool>,
) -> Option<Vec<f32>> {
    refuse_unsafe(unsafe_mode);
    let (on_error, text) = (OnError::of(on_error), text_input?);
    let params = embed_params(None, seed, model, mode, task, truncate, dimensions);
    match on_error.settle(look("embed", Some(text), params))?? {
        Answer::Embedding(vector) => Some(vector),
        _ => None,
    }
}

fn look(
    request_type: &str,
    text: Option<&str>,
    params: Map<String, Value>,
) -> Result<Option<Answer>, PgError> {
    let (params, config) = (Value::Object(params), catalog_cache::config()?);
    let asked = RawRequest { request_type, prompt: text, prompts: None, params: &params };
    check_type(asked, &config)?;
    check_params(request_type, &params, &config)?;
    let found = cache::find(asked, &config, Effort::Whole)?;
    if found.is_none() && config.cache_enabled {
        access_counters::count_miss();
    }
    Ok(found.map(|cached| cached.answer))
}

/// The cache's counters of this database; one row. Zeros where the library is not preloaded, and on a
/// standby.
#[pg_extern(volatile, parallel_unsafe)]
fn cache_counters() -> TableIterator<
    'static,
    (name!(hits, i64), name!(misses, i64), name!(dropped, i64), name!(since, Option<TimestampWithTimeZone>)),
> {
    let slot = slots::mine();
    let count = |counter: fn(&crate::pg::shmem::Slot) -> u64| {
        slot.map_or(0, |slot| i64::try_from(counter(slot)).unwrap_or(i64::MAX))
    };
    let since = match slot.map(|slot| slot.cache_reset_at.load(Relaxed)) {
        None | Some(0) => catalog::server_started_at(),
        Some(at) => at,
    };
    TableIterator::once((
        count(|slot| slot.cache_hits.load(Relaxed)),
        count(|slot| slot.cache_misses.load(Relaxed)),
        count(|slot| slot.cache_dropped.load(Relaxed)),
        TimestampWithTimeZone::try_from(since).ok(),
    ))
}

/// Counts anew.
#[pg_extern(volatile, parallel_unsafe)]
fn reset_cache_counters() {
    if let Some(slot) = slots::mine() {
        slot.reset_cache_counters(activity::now());
    }
}
