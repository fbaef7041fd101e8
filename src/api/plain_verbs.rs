//! Verbs of one text that are answered with one: the common part of the functions in
//! `sql/52_plain_verbs.sql`. Their parameters come as a JSON object, in the queue's form.

use pgrx::prelude::*;
use serde_json::{Map, Value};

use super::arrays::SqlTexts;
use super::enqueue::enqueue;
use super::verbs::{answers_where, text_of};
use crate::pg::catalog_cache;
use crate::pg::error::{OrRaise, PgError};
use crate::pg::jsonb::Jsonb;
use crate::request::arguments::verb_params;
use crate::request::checks::invalid;
use crate::request::params::{self, Unused};
use crate::request::verb_checks::is_plain;

/// The answer about a text.
#[pg_extern(immutable, parallel_safe)]
fn plain_verb(
    request_type: Option<&str>,
    text: Option<&str>,
    params: Option<Jsonb<'_>>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> Option<String> {
    let (request_type, text) = (request_type?, text?);
    if let Some(known) = known(request_type, text) {
        return Some(known.to_owned());
    }
    let params = all(request_type, params, verb_params(use_cache, seed, model)).or_raise();
    text_of(request_type, Some(text), params, on_error)
}

/// As [`plain_verb`], of each text.
#[pg_extern(immutable, parallel_safe)]
fn plain_verb_array(
    request_type: Option<&str>,
    texts: SqlTexts<'_>,
    params: Option<Jsonb<'_>>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> Option<Vec<Option<String>>> {
    let (request_type, texts) = (request_type?, texts?);
    let params = all(request_type, params, verb_params(use_cache, seed, model)).or_raise();
    let known_ones: Vec<Option<&str>> =
        texts.iter().map(|text| text.and_then(|text| known(request_type, text))).collect();
    let is_needed = |text: &str| known(request_type, text).is_none();
    let answers = answers_where(request_type, Some(texts), &params, on_error, is_needed)?;
    let answers = answers.into_iter().map(|answer| answer.map(|answer| answer.into_text().or_raise()));
    Some(answers.zip(known_ones).map(|(answer, known)| answer.or(known.map(str::to_owned))).collect())
}

/// Enqueues [`plain_verb`].
#[pg_extern(volatile, parallel_unsafe)]
fn plain_verb_async(
    request_type: Option<&str>,
    text: Option<&str>,
    params: Option<Jsonb<'_>>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    priority: Option<i64>,
) -> Option<pgrx::Uuid> {
    let request_type = request_type?;
    let params = all(request_type, params, verb_params(use_cache, seed, model)).or_raise();
    enqueue(request_type, text, params, priority)
}

/// Answers that need no model, as in the Python extension: an empty text has no facts.
fn known(request_type: &str, text: &str) -> Option<&'static str> {
    match request_type {
        "extract_facts" if text.trim().is_empty() => Some("{\"facts\": []}"),
        "deduplicate_facts" if text == "[]" => Some("[]"),
        _ => None,
    }
}

/// All parameters of a request.
fn all(
    request_type: &str,
    given: Option<Jsonb<'_>>,
    mut params: Map<String, Value>,
) -> Result<Map<String, Value>, PgError> {
    if !is_plain(request_type) {
        return Err(invalid("this function is for other types of requests")
            .hint("Call steadytext_… of the request's type."));
    }
    let given = params::read(request_type, given, Unused::Refused, &*catalog_cache::config()?)?;
    if let Value::Object(given) = given {
        params.extend(given);
    }
    Ok(params)
}
