//! Many texts in one call: the engine works on all of them together, on equal ones once.

use std::collections::HashMap;

use pgrx::Array;
use pgrx::prelude::*;
use serde_json::{Map, Value};

use super::answers::{self, Element};
use crate::pg::catalog_cache;
use crate::pg::error::{OrRaise, PgError};
use crate::pg::jsonb::Jsonb;
use crate::request::arguments::{embed_params, generate_params};
use crate::request::options::with_options;
use crate::request::{Answer, OnError, batch_checks, unexpected};

/// Texts as they come from SQL.
pub(super) type SqlTexts<'a> = Option<Array<'a, &'a str>>;

/// Generates a text from each prompt.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "those of generate")]
fn generate_batch(
    prompts: SqlTexts<'_>,
    max_tokens: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    eos_string: Option<&str>,
    model: Option<&str>,
    size: Option<&str>,
    temperature: Option<f64>,
    on_error: Option<&str>,
    system_prompt: Option<&str>,
    options: Option<Jsonb<'_>>,
) -> Option<Vec<Option<String>>> {
    let params = generate_params(max_tokens, use_cache, seed, eos_string, model, size, temperature);
    let params = with_options(params, system_prompt, options).or_raise();
    let answers = answers("generate", "Prompts", prompts, &params, on_error).or_raise()?;
    Some(answers.into_iter().map(|answer| answer.map(|answer| answer.into_text().or_raise())).collect())
}

/// Computes the embedding of each text.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "those of embed")]
fn embed_batch(
    texts: SqlTexts<'_>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    mode: Option<&str>,
    task: Option<&str>,
    truncate: Option<bool>,
    on_error: Option<&str>,
    dimensions: Option<i64>,
) -> SetOfIterator<'static, Option<Vec<f32>>> {
    let params = embed_params(use_cache, seed, model, mode, task, truncate, dimensions);
    let answers = answers("embed", "Texts", texts, &params, on_error).or_raise().unwrap_or_default();
    SetOfIterator::new(answers.into_iter().map(|answer| match answer {
        None => None,
        Some(Answer::Embedding(vector)) => Some(vector),
        Some(_) => unexpected().raise(),
    }))
}

/// The answer to each text of an array; `None` for NULL, and under `on_error => 'null'` for those that cannot
/// be answered.
///
/// # Errors
///
/// As [`answers::answers`]; P0001 and 54000 for too many texts, or too long ones, before they are copied.
pub(super) fn answers(
    request_type: &str,
    name: &str,
    texts: SqlTexts<'_>,
    params: &Map<String, Value>,
    on_error: Option<&str>,
) -> Result<Option<Vec<Option<Answer>>>, PgError> {
    answers_where(request_type, name, texts, params, on_error, |_| true)
}

/// As [`answers`], with a model only for the texts for which `is_needed` is true; the others get `None`.
///
/// # Errors
///
/// As [`answers`].
pub(super) fn answers_where(
    request_type: &str,
    name: &str,
    texts: SqlTexts<'_>,
    params: &Map<String, Value>,
    on_error: Option<&str>,
    is_needed: impl Fn(&str) -> bool,
) -> Result<Option<Vec<Option<Answer>>>, PgError> {
    let on_error = OnError::of(on_error);
    let Some(texts) = texts else { return Ok(None) };
    check_array(texts.iter(), texts.len(), name)?;
    let mut places = HashMap::new();
    let mut firsts = Vec::with_capacity(texts.len());
    let elements: Vec<Option<Element<'_>>> = texts
        .iter()
        .map(|text| text.filter(|text| is_needed(text)))
        .enumerate()
        .map(|(place, text)| {
            let first = text.map(|text| *places.entry(text).or_insert(place));
            firsts.push(first);
            let is_first = first == Some(place);
            Some(Element { text: Some(text.filter(|_| is_first)?), texts: None })
        })
        .collect();
    let answers = answers::answers(request_type, &elements, params, on_error)?;
    Ok(Some(firsts.into_iter().map(|first| answers[first?].clone()).collect()))
}

/// Refuses an array of too many texts, or of texts that are too long together, before they are copied.
///
/// # Errors
///
/// P0001 and 54000.
pub(super) fn check_array<'a>(
    texts: impl Iterator<Item = Option<&'a str>>,
    count: usize,
    name: &str,
) -> Result<(), PgError> {
    batch_checks::check_count(count, name, &*catalog_cache::config()?)?;
    check_bytes(texts)
}

/// Refuses texts that are too long together.
///
/// # Errors
///
/// 54000.
pub(super) fn check_bytes<'a>(texts: impl Iterator<Item = Option<&'a str>>) -> Result<(), PgError> {
    let bytes = texts.flatten().map(str::len).fold(0, usize::saturating_add);
    batch_checks::check_stored(bytes, &*catalog_cache::config()?)
}
