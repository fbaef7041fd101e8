//! Summaries of texts.

use pgrx::prelude::*;
use serde_json::{Map, Value};

use super::answers;
use super::arrays::{self, SqlTexts};
use super::enqueue::enqueue;
use super::refuse::refuse_unsafe;
use crate::pg::error::{OrRaise, PgError};
use crate::pg::jsonb::{self, Jsonb};
use crate::request::arguments::verb_params;
use crate::request::checks::invalid;
use crate::request::{Answer, OnError, defaults};

/// Elements of metadata, brackets included.
const MAX_METADATA_ELEMENTS: usize = 256;

/// The summary of a text.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the contract's signature")]
fn summarize_text(
    input_text: Option<&str>,
    metadata: Option<Jsonb<'_>>,
    max_words: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
    unsafe_mode: Option<bool>,
) -> Option<String> {
    refuse_unsafe(unsafe_mode);
    let (on_error, text) = (OnError::of(on_error), input_text?);
    let params = params(metadata, max_words, verb_params(use_cache, seed, model)).or_raise();
    on_error.settle(answers::answer("summarize", Some(text), None, params).and_then(Answer::into_text))
}

/// As [`summarize_text`], of each text.
#[pg_extern(immutable, parallel_safe)]
fn summarize_text_array(
    input_text: SqlTexts<'_>,
    metadata: Option<Jsonb<'_>>,
    max_words: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> Option<Vec<Option<String>>> {
    let params = params(metadata, max_words, verb_params(use_cache, seed, model)).or_raise();
    let answers = arrays::answers("summarize", "Texts", input_text, &params, on_error).or_raise()?;
    Some(answers.into_iter().map(|answer| answer.map(|answer| answer.into_text().or_raise())).collect())
}

/// Enqueues [`summarize_text`].
#[pg_extern(volatile, parallel_unsafe)]
fn summarize_text_async(
    input_text: Option<&str>,
    metadata: Option<Jsonb<'_>>,
    max_words: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    priority: Option<i64>,
) -> Option<pgrx::Uuid> {
    let params = params(metadata, max_words, verb_params(use_cache, seed, model)).or_raise();
    enqueue("summarize", input_text, params, priority)
}

/// The parameters of a summary that differ from the defaults.
fn params(
    metadata: Option<Jsonb<'_>>,
    max_words: Option<i64>,
    mut params: Map<String, Value>,
) -> Result<Map<String, Value>, PgError> {
    if let Some(metadata) = metadata.and_then(Jsonb::root) {
        let tree = jsonb::tree(metadata, MAX_METADATA_ELEMENTS).map_err(|_| {
            invalid("the metadata are nested too deeply, have too many elements, or a number out of range")
                .hint(
                    "They are told to the model in words: give a few members, as {\"topic\": \"databases\"}.",
                )
        })?;
        if !matches!(&tree, Value::Null) && tree != Value::Object(Map::new()) {
            params.insert("metadata".to_owned(), tree);
        }
    }
    if let Some(max_words) = max_words.filter(|words| *words != defaults::MAX_WORDS) {
        params.insert("max_words".to_owned(), Value::from(max_words));
    }
    Ok(params)
}
