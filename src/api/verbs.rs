//! Judgements: yes or no, a grade, a category, a similarity, of one text or of the elements of an array.
//!
//! As those of [`super::sync`] they are immutable. Arrays have the same functions: the engine works on their
//! elements together.

use pgrx::name;
use pgrx::prelude::*;
use serde_json::{Map, Value};

use super::answers::{self, Element};
use super::arrays::{self, SqlTexts};
use super::enqueue::enqueue;
use crate::pg::catalog_cache;
use crate::pg::error::{OrRaise, PgError};
use crate::pg::jsonb::{self, Jsonb};
use crate::pg::kept_prompts;
use crate::request::arguments::{classify_params, verb_params};
use crate::request::params::{check_bytes as check_bytes_of_params, check_elements};
use crate::request::{Answer, Categories, OnError, prompt_source, unexpected};

/// Most elements of the examples of a classification, brackets included.
const MAX_EXAMPLE_ELEMENTS: usize = 4096;

/// Whether the model says yes.
#[pg_extern(immutable, parallel_safe)]
fn verb_if(
    prompt: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> Option<bool> {
    text_of("if", prompt, verb_params(use_cache, seed, model), on_error).map(|text| text == "true")
}

/// As [`verb_if`], of each prompt.
#[pg_extern(immutable, parallel_safe)]
fn verb_if_array(
    prompts: SqlTexts<'_>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> Option<Vec<Option<bool>>> {
    let texts = texts_of("if", prompts, &verb_params(use_cache, seed, model), on_error)?;
    Some(texts.into_iter().map(|text| text.map(|text| text == "true")).collect())
}

/// A number: the probability of yes (type if_score), or a grade (type score).
fn number_of(
    request_type: &str,
    prompt: Option<&str>,
    params: Map<String, Value>,
    on_error: Option<&str>,
) -> Option<f64> {
    text_of(request_type, prompt, params, on_error).map(|text| number(&text))
}

fn numbers_of(
    request_type: &str,
    prompts: SqlTexts<'_>,
    params: &Map<String, Value>,
    on_error: Option<&str>,
) -> Option<Vec<Option<f64>>> {
    let texts = texts_of(request_type, prompts, params, on_error)?;
    Some(texts.into_iter().map(|text| text.map(|text| number(&text))).collect())
}

/// The probability of yes.
#[pg_extern(immutable, parallel_safe)]
fn verb_if_score(
    prompt: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> Option<f64> {
    number_of("if_score", prompt, verb_params(use_cache, seed, model), on_error)
}

/// As [`verb_if_score`], of each prompt.
#[pg_extern(immutable, parallel_safe)]
fn verb_if_score_array(
    prompts: SqlTexts<'_>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> Option<Vec<Option<f64>>> {
    numbers_of("if_score", prompts, &verb_params(use_cache, seed, model), on_error)
}

/// A grade.
#[pg_extern(immutable, parallel_safe)]
fn verb_score(
    prompt: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> Option<f64> {
    number_of("score", prompt, verb_params(use_cache, seed, model), on_error)
}

/// As [`verb_score`], of each prompt.
#[pg_extern(immutable, parallel_safe)]
fn verb_score_array(
    prompts: SqlTexts<'_>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> Option<Vec<Option<f64>>> {
    numbers_of("score", prompts, &verb_params(use_cache, seed, model), on_error)
}

/// The cosine of two texts.
#[pg_extern(immutable, parallel_safe)]
fn verb_similarity(
    a: Option<&str>,
    b: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> Option<f64> {
    let on_error = OnError::of(on_error);
    let texts = [Some(a?), Some(b?)];
    let params = verb_params(use_cache, seed, model);
    let answer = answers::answer("similarity", None, Some(&texts), params).and_then(Answer::into_text);
    on_error.settle(answer).map(|text| number(&text))
}

/// As [`verb_similarity`], of each two texts in the same place.
#[pg_extern(immutable, parallel_safe)]
fn verb_similarity_array(
    a: SqlTexts<'_>,
    b: SqlTexts<'_>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> Option<Vec<Option<f64>>> {
    let on_error = OnError::of(on_error);
    let (a, b) = (a?, b?);
    if a.len() != b.len() {
        PgError::new(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("the arrays have {} and {} elements", a.len(), b.len()),
        )
        .hint("Texts in the same place are compared.")
        .raise();
    }
    arrays::check_array(a.iter().chain(b.iter()), a.len(), "Texts").or_raise();
    let pairs = a.iter().zip(b.iter());
    let elements: Vec<Option<Element<'_>>> =
        pairs.map(|(a, b)| Some(Element { text: None, texts: Some([Some(a?), Some(b?)]) })).collect();
    let params = verb_params(use_cache, seed, model);
    let answers = answers::answers("similarity", &elements, &params, on_error).or_raise();
    Some(
        answers
            .into_iter()
            .map(|answer| answer.map(|answer| number(&answer.into_text().or_raise())))
            .collect(),
    )
}

/// An array as a parameter.
fn listed(name: &str, texts: SqlTexts<'_>) -> Result<Option<(String, Value)>, PgError> {
    let Some(texts) = texts else { return Ok(None) };
    check_elements(name, texts.len())?;
    arrays::check_bytes(texts.iter())?;
    Ok(Some((name.to_owned(), texts.iter().map(Value::from).collect())))
}

/// Adds the parameters of a classification: its categories with descriptions, its examples, and its options.
pub(super) fn with_categories(
    mut params: Map<String, Value>,
    categories: SqlTexts<'_>,
    (task_description, method, threshold): (Option<&str>, Option<&str>, Option<f64>),
    descriptions: SqlTexts<'_>,
    examples: Option<Jsonb<'_>>,
) -> Result<Map<String, Value>, PgError> {
    // Before anything is made of them.
    let bytes = examples.map_or(0, Jsonb::len);
    check_bytes_of_params("classify", bytes, &*catalog_cache::config()?)?;
    params.extend(classify_params(task_description, method, threshold));
    params.extend(listed("categories", categories)?);
    params.extend(listed("descriptions", descriptions)?);
    if let Some(examples) = examples.and_then(Jsonb::root) {
        let tree = jsonb::tree(examples, MAX_EXAMPLE_ELEMENTS).map_err(|_| {
            PgError::new(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                "examples is nested too deeply, has too many elements, or a number out of range",
            )
            .hint(r#"As [{"input": "a text", "category": "its category"}]."#)
        })?;
        if tree != Value::Null {
            params.insert("examples".to_owned(), tree);
        }
    }
    Ok(params)
}

/// The category of a text.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the contract's signature")]
fn verb_classify(
    input: Option<&str>,
    categories: SqlTexts<'_>,
    task_description: Option<&str>,
    descriptions: SqlTexts<'_>,
    examples: Option<Jsonb<'_>>,
    method: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> Option<String> {
    input?;
    let params = verb_params(use_cache, seed, model);
    let params =
        with_categories(params, categories, (task_description, method, None), descriptions, examples)
            .or_raise();
    text_of("classify", input, params, on_error)
}

/// As [`verb_classify`], of each text.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the contract's signature")]
fn verb_classify_array(
    input: SqlTexts<'_>,
    categories: SqlTexts<'_>,
    task_description: Option<&str>,
    descriptions: SqlTexts<'_>,
    examples: Option<Jsonb<'_>>,
    method: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> Option<Vec<Option<String>>> {
    let input = input?;
    let params = verb_params(use_cache, seed, model);
    let params =
        with_categories(params, categories, (task_description, method, None), descriptions, examples)
            .or_raise();
    texts_of("classify", Some(input), &params, on_error)
}

/// All categories with their probabilities, best first.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the contract's signature")]
fn verb_classify_scores(
    input: Option<&str>,
    categories: SqlTexts<'_>,
    task_description: Option<&str>,
    descriptions: SqlTexts<'_>,
    examples: Option<Jsonb<'_>>,
    method: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> TableIterator<'static, (name!(category, String), name!(score, Option<f64>))> {
    let lines = input.and_then(|input| {
        let params = verb_params(use_cache, seed, model);
        let params =
            with_categories(params, categories, (task_description, method, None), descriptions, examples)
                .or_raise();
        categories_of("classify_scores", input, params, on_error)
    });
    TableIterator::new(lines.map(|categories| categories.lines).unwrap_or_default())
}

/// The categories whose own score is high enough, best first.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the contract's signature")]
fn verb_classify_multi(
    input: Option<&str>,
    categories: SqlTexts<'_>,
    task_description: Option<&str>,
    descriptions: SqlTexts<'_>,
    examples: Option<Jsonb<'_>>,
    method: Option<&str>,
    threshold: Option<f64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> Option<Vec<String>> {
    let params = verb_params(use_cache, seed, model);
    let input = input?;
    let params =
        with_categories(params, categories, (task_description, method, threshold), descriptions, examples)
            .or_raise();
    let categories = categories_of("classify_multi", input, params, on_error)?;
    Some(categories.lines.into_iter().map(|(name, _)| name).collect())
}

/// Enqueues a judgement of a prompt.
fn enqueue_prompt(
    request_type: &str,
    prompt: Option<&str>,
    (use_cache, seed, model): (Option<bool>, Option<i64>, Option<&str>),
    priority: Option<i64>,
) -> Option<pgrx::Uuid> {
    enqueue(request_type, prompt, verb_params(use_cache, seed, model), priority)
}

/// Enqueues [`verb_if`].
#[pg_extern(volatile, parallel_unsafe)]
fn verb_if_async(
    prompt: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    priority: Option<i64>,
) -> Option<pgrx::Uuid> {
    enqueue_prompt("if", prompt, (use_cache, seed, model), priority)
}

/// Enqueues [`verb_if_score`].
#[pg_extern(volatile, parallel_unsafe)]
fn verb_if_score_async(
    prompt: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    priority: Option<i64>,
) -> Option<pgrx::Uuid> {
    enqueue_prompt("if_score", prompt, (use_cache, seed, model), priority)
}

/// Enqueues [`verb_score`].
#[pg_extern(volatile, parallel_unsafe)]
fn verb_score_async(
    prompt: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    priority: Option<i64>,
) -> Option<pgrx::Uuid> {
    enqueue_prompt("score", prompt, (use_cache, seed, model), priority)
}

/// Enqueues a classification: `request_type` says which one.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments, reason = "the contract's signature")]
fn verb_classify_async(
    request_type: Option<&str>,
    input: Option<&str>,
    categories: SqlTexts<'_>,
    task_description: Option<&str>,
    descriptions: SqlTexts<'_>,
    examples: Option<Jsonb<'_>>,
    method: Option<&str>,
    threshold: Option<f64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    priority: Option<i64>,
) -> Option<pgrx::Uuid> {
    let params = verb_params(use_cache, seed, model);
    let params =
        with_categories(params, categories, (task_description, method, threshold), descriptions, examples)
            .or_raise();
    enqueue(request_type.unwrap_or_default(), input, params, priority)
}

pub(super) fn text_of(
    request_type: &str,
    text: Option<&str>,
    params: Map<String, Value>,
    on_error: Option<&str>,
) -> Option<String> {
    let (on_error, text) = (OnError::of(on_error), text?);
    let params = worded(request_type, params).or_raise();
    on_error.settle(answers::answer(request_type, Some(text), None, params).and_then(Answer::into_text))
}

/// The answers to the texts of an array.
pub(super) fn answers_of(
    request_type: &str,
    texts: SqlTexts<'_>,
    params: &Map<String, Value>,
    on_error: Option<&str>,
) -> Option<Vec<Option<Answer>>> {
    answers_where(request_type, texts, params, on_error, |_| true)
}

/// The answers to those texts of an array that a model is needed for.
pub(super) fn answers_where(
    request_type: &str,
    texts: SqlTexts<'_>,
    params: &Map<String, Value>,
    on_error: Option<&str>,
    is_needed: impl Fn(&str) -> bool,
) -> Option<Vec<Option<Answer>>> {
    let params = worded(request_type, params.clone()).or_raise();
    arrays::answers_where(request_type, "Texts", texts, &params, on_error, is_needed).or_raise()
}

fn texts_of(
    request_type: &str,
    texts: SqlTexts<'_>,
    params: &Map<String, Value>,
    on_error: Option<&str>,
) -> Option<Vec<Option<String>>> {
    let answers = answers_of(request_type, texts, params, on_error)?;
    Some(answers.into_iter().map(|answer| answer.map(|answer| answer.into_text().or_raise())).collect())
}

/// The parameters with the prompt that the database keeps in the place of the library's, as the queue's
/// trigger adds it.
fn worded(request_type: &str, params: Map<String, Value>) -> Result<Map<String, Value>, PgError> {
    let mut params = Value::Object(params);
    prompt_source::keep(request_type, &mut params, &*kept_prompts::all()?)?;
    match params {
        Value::Object(params) => Ok(params),
        _ => Ok(Map::new()),
    }
}

fn categories_of(
    request_type: &str,
    text: &str,
    params: Map<String, Value>,
    on_error: Option<&str>,
) -> Option<Categories> {
    let on_error = OnError::of(on_error);
    let params = worded(request_type, params).or_raise();
    on_error.settle(answers::answer(request_type, Some(text), None, params).and_then(Answer::into_categories))
}

/// Reads the number of an answer.
fn number(text: &str) -> f64 {
    text.parse().map_err(|_| unexpected()).or_raise()
}
