//! Generation along a constraint: a JSON schema, a regular expression, a list of choices.
//!
//! A value of type jsonb may nest deeper than a recursive parser should follow. So a schema comes as text,
//! whose depth is checked before it is parsed.

use pgrx::Array;
use pgrx::prelude::*;
use serde_json::{Map, Value};
use steadytext_engine::{Constraint, Error, keep_written_order};

use super::answers;
use super::enqueue::enqueue;
use super::prompt;
use super::refuse::refuse_unsafe;
use crate::pg::error::{OrRaise, PgError};
use crate::pg::jsonb::Jsonb;
use crate::request::arguments::generate_params;
use crate::request::options::with_options;
use crate::request::params::check_elements;
use crate::request::{Answer, OnError, refused_constraint};

/// Choices as they come from SQL.
type Choices<'a> = Option<Array<'a, &'a str>>;

/// Enqueues the generation of a JSON document that conforms to a schema.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature")]
fn generate_json_async(
    prompt: Option<&str>,
    schema: Option<&str>,
    max_tokens: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    temperature: Option<f64>,
    priority: Option<i64>,
    system_prompt: Option<&str>,
    options: Option<Jsonb<'_>>,
    variables: Option<Jsonb<'_>>,
) -> Option<pgrx::Uuid> {
    let params = generate_params(max_tokens, use_cache, seed, None, model, None, temperature);
    let params = with_options(params, system_prompt, options).or_raise();
    let prompt = prompt::filled(prompt, variables).or_raise();
    enqueue("generate_json", prompt.as_deref(), with_schema(params, schema).or_raise(), priority)
}

/// Generates a JSON document that conforms to a schema.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature, and more")]
fn generate_json(
    prompt: Option<&str>,
    schema: Option<&str>,
    max_tokens: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    temperature: Option<f64>,
    on_error: Option<&str>,
    system_prompt: Option<&str>,
    options: Option<Jsonb<'_>>,
    variables: Option<Jsonb<'_>>,
    unsafe_mode: Option<bool>,
) -> Option<String> {
    refuse_unsafe(unsafe_mode);
    let (on_error, prompt) = (OnError::of(on_error), prompt::filled(prompt, variables).or_raise()?);
    let params = generate_params(max_tokens, use_cache, seed, None, model, None, temperature);
    let params = with_options(params, system_prompt, options).or_raise();
    answer("generate_json", &prompt, with_schema(params, schema).or_raise(), on_error)
}

/// Enqueues the generation of a text that a pattern matches from end to end.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature")]
fn generate_regex_async(
    prompt: Option<&str>,
    pattern: Option<&str>,
    max_tokens: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    temperature: Option<f64>,
    priority: Option<i64>,
    system_prompt: Option<&str>,
    options: Option<Jsonb<'_>>,
    variables: Option<Jsonb<'_>>,
) -> Option<pgrx::Uuid> {
    let params = generate_params(max_tokens, use_cache, seed, None, model, None, temperature);
    let params = with_options(params, system_prompt, options).or_raise();
    let prompt = prompt::filled(prompt, variables).or_raise();
    enqueue("generate_regex", prompt.as_deref(), with_pattern(params, pattern), priority)
}

/// Generates a text that a pattern matches from end to end.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature, and more")]
fn generate_regex(
    prompt: Option<&str>,
    pattern: Option<&str>,
    max_tokens: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    temperature: Option<f64>,
    on_error: Option<&str>,
    system_prompt: Option<&str>,
    options: Option<Jsonb<'_>>,
    variables: Option<Jsonb<'_>>,
    unsafe_mode: Option<bool>,
) -> Option<String> {
    refuse_unsafe(unsafe_mode);
    let (on_error, prompt) = (OnError::of(on_error), prompt::filled(prompt, variables).or_raise()?);
    let params = generate_params(max_tokens, use_cache, seed, None, model, None, temperature);
    let params = with_options(params, system_prompt, options).or_raise();
    answer("generate_regex", &prompt, with_pattern(params, pattern), on_error)
}

/// Enqueues the choice of one of some texts.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature, and more")]
fn generate_choice_async(
    prompt: Option<&str>,
    choices: Choices<'_>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    priority: Option<i64>,
    system_prompt: Option<&str>,
    options: Option<Jsonb<'_>>,
    variables: Option<Jsonb<'_>>,
) -> Option<pgrx::Uuid> {
    let params = generate_params(None, use_cache, seed, None, model, None, None);
    let params = with_options(params, system_prompt, options).or_raise();
    let prompt = prompt::filled(prompt, variables).or_raise();
    enqueue("generate_choice", prompt.as_deref(), with_choices(params, choices).or_raise(), priority)
}

/// Chooses one of some texts.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature, and more")]
fn generate_choice(
    prompt: Option<&str>,
    choices: Choices<'_>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
    system_prompt: Option<&str>,
    options: Option<Jsonb<'_>>,
    variables: Option<Jsonb<'_>>,
    unsafe_mode: Option<bool>,
) -> Option<String> {
    refuse_unsafe(unsafe_mode);
    let (on_error, prompt) = (OnError::of(on_error), prompt::filled(prompt, variables).or_raise()?);
    let params = generate_params(None, use_cache, seed, None, model, None, None);
    let params = with_options(params, system_prompt, options).or_raise();
    answer("generate_choice", &prompt, with_choices(params, choices).or_raise(), on_error)
}

fn answer(request_type: &str, prompt: &str, params: Map<String, Value>, on_error: OnError) -> Option<String> {
    on_error.settle(answers::answer(request_type, Some(prompt), None, params).and_then(Answer::into_text))
}

/// The schema `stored`, which was `written` as another type than jsonb, with the order of properties that it
/// was written in.
#[pg_extern(immutable, parallel_safe, strict)]
fn with_written_order(written: &str, stored: String) -> String {
    // A text that serde_json cannot read is refused later, with an error that tells what is wrong with it.
    let Ok(mut schema) = serde_json::from_str(written) else { return stored };
    if keep_written_order(&mut schema) { schema.to_string() } else { stored }
}

fn with_schema(mut params: Map<String, Value>, schema: Option<&str>) -> Result<Map<String, Value>, PgError> {
    // A missing one, like JSON's null, gets the words of the check that follows.
    if let Some(schema) = schema.filter(|schema| *schema != "null") {
        // The rest is checked with all other parameters.
        Constraint::Json(schema.to_owned()).check_limits().map_err(refused_constraint)?;
        let value = serde_json::from_str(schema).map_err(|error| {
            refused_constraint(Error::InvalidRequest(format!("the schema is no JSON document: {error}")))
        })?;
        params.insert("schema".to_owned(), value);
    }
    Ok(params)
}

fn with_pattern(mut params: Map<String, Value>, pattern: Option<&str>) -> Map<String, Value> {
    params.extend(pattern.map(|pattern| ("pattern".to_owned(), pattern.into())));
    params
}

fn with_choices(mut params: Map<String, Value>, choices: Choices<'_>) -> Result<Map<String, Value>, PgError> {
    if let Some(choices) = choices {
        check_elements("choices", choices.len())?;
        params.insert("choices".to_owned(), choices.iter().map(Value::from).collect());
    }
    Ok(params)
}
