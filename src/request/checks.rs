//! Checks of a request's type, text and parameters, whatever it comes from.
//!
//! The checks need no model and no table, so that the queue's trigger and the synchronous calls refuse the
//! same requests with the same words.

use serde_json::Value;

use super::asked::RawRequest;
use super::batch_checks::{check_embed, check_rerank};
use super::constraint::check_constraint;
use super::summary::{self, MOST_WORDS, Summary};
pub(crate) use super::values::{check_length, invalid, too_long};
use super::values::{empty_text, in_range, require};
use super::{conversation, options, params, verb_checks};
use crate::pg::catalog_cache::DatabaseConfig;
use crate::pg::error::PgError;

/// Longest string among the parameters (eos_string, model, size, task), in bytes.
const MAX_TEXT_PARAMETER_BYTES: usize = 1024;
const TYPES_HINT: &str = "Use request type generate, generate_json, generate_regex, generate_choice, embed, batch_embed, rerank, batch_rerank, if, if_score, classify, classify_scores, classify_multi, score, similarity, analyze_sentiment, extract, translate, mask, extract_facts, deduplicate_facts or summarize.";
/// Longest template in the place of the library's, in bytes: what the registry of prompts keeps.
const MAX_TEMPLATE_BYTES: usize = 1 << 15;
/// Elements of a vector at most: what vector can hold.
const MAX_DIMENSIONS: i64 = 16_000;
/// Longest task_description, in bytes.
const MAX_DESCRIPTION_BYTES: usize = 8192;

/// Checks a request's type and what the type asks of its text and its parameters.
///
/// # Errors
///
/// P0001, 22023 and 54000.
pub(crate) fn check_type(asked: RawRequest<'_>, config: &DatabaseConfig) -> Result<(), PgError> {
    let RawRequest { request_type, prompt: text, params, .. } = asked;
    check_columns(request_type, text.is_some(), asked.prompts.is_some())?;
    check_constraint(request_type, params)?;
    match request_type {
        "generate" | "generate_json" | "generate_regex" | "generate_choice" => {
            check_text(text, "Prompt cannot be empty", config)?;
            conversation::check(asked, config)
        }
        // Members of a batch fail alone, in the worker, not with the whole batch here.
        "embed" if params.get("batch") == Some(&Value::Bool(true)) => {
            check_length(text.map_or(0, str::len), config)
        }
        "embed" => check_text(text, "Text input cannot be empty", config),
        "rerank" | "batch_rerank" => {
            check_forms(asked)?;
            check_rerank(asked, config)
        }
        "batch_embed" => check_embed(asked, config),
        "summarize" => {
            check_text(text, "Text input cannot be empty", config)?;
            Summary::of_text(text.unwrap_or_default(), params, 0).map(|_| ())
        }
        verb if verb_checks::is_verb(verb) => {
            check_length(text.map_or(0, str::len), config)?;
            for text in asked.prompts.unwrap_or_default().iter().flatten() {
                check_length(text.len(), config)?;
            }
            verb_checks::read(asked, config).map(|_| ())
        }
        _ => Err(unknown_type(request_type)),
    }
}

fn unknown_type(request_type: &str) -> PgError {
    invalid(format!("unknown request type \"{}\"", truncated(request_type))).hint(TYPES_HINT)
}

/// Whether there is such a type of requests.
pub(crate) fn is_type(request_type: &str) -> bool {
    check_columns(request_type, request_type == "rerank", false).is_ok()
}

/// Refuses a column that the type has no use for.
///
/// # Errors
///
/// 22023.
pub(crate) fn check_columns(request_type: &str, has_prompt: bool, has_prompts: bool) -> Result<(), PgError> {
    match request_type {
        "generate" | "embed" | "generate_json" | "generate_regex" | "generate_choice" | "summarize"
            if has_prompts =>
        {
            Err(invalid(format!("requests of type {request_type} take no prompts array"))
                .hint("Put the text into column prompt, one row for each."))
        }
        verb if verb_checks::is_verb(verb) && verb != "similarity" && has_prompts => {
            Err(invalid(format!("requests of type {verb} take no prompts array"))
                .hint("Put the text into column prompt, one row for each."))
        }
        "similarity" if has_prompt => {
            Err(invalid("requests of type similarity take no prompt")
                .hint("Put both texts into column prompts."))
        }
        "batch_embed" if has_prompt => {
            Err(invalid("requests of type batch_embed take no prompt")
                .hint("Put the texts into column prompts."))
        }
        "batch_rerank" if has_prompt && has_prompts => Err(twice("the query", "prompt", "prompts")),
        "generate" | "embed" | "generate_json" | "generate_regex" | "generate_choice" | "batch_embed"
        | "rerank" | "batch_rerank" | "summarize" => Ok(()),
        verb if verb_checks::is_verb(verb) => Ok(()),
        _ => Err(unknown_type(request_type)),
    }
}

/// Refuses a ranking whose query or documents are in two places: one of them would be kept for nothing.
fn check_forms(asked: RawRequest<'_>) -> Result<(), PgError> {
    let RawRequest { request_type, prompt, prompts, params } = asked;
    let (query, documents) = (params.get("query").is_some(), params.get("documents").is_some());
    match request_type {
        _ if query && prompt.is_some() => Err(twice("the query", "prompt", "params")),
        "batch_rerank" if query && prompts.is_some() => Err(twice("the query", "prompts", "params")),
        "rerank" if documents && prompts.is_some() => Err(twice("the documents", "prompts", "params")),
        _ => Ok(()),
    }
}

fn twice(what: &str, column: &str, other: &str) -> PgError {
    invalid(format!("{what} may be in {column} or in {other}, not in both")).hint("Leave one of them NULL.")
}

fn check_text(text: Option<&str>, if_empty: &'static str, config: &DatabaseConfig) -> Result<(), PgError> {
    if text.is_none_or(|text| text.trim().is_empty()) {
        return Err(empty_text(if_empty));
    }
    check_length(text.map_or(0, str::len), config)
}

/// Checks the parameters of a request of any type.
///
/// # Errors
///
/// P0001 and 22023.
pub(crate) fn check_params(
    request_type: &str,
    params: &Value,
    config: &DatabaseConfig,
) -> Result<(), PgError> {
    check_values(request_type, params, config).map_err(|error| match error.hint {
        Some(_) => error,
        None => error.hint("Leave it out for its default; docs/sql.md says what each parameter does."),
    })
}

fn check_values(request_type: &str, params: &Value, config: &DatabaseConfig) -> Result<(), PgError> {
    let params = match params {
        Value::Null => return Ok(()),
        Value::Object(params) => params,
        _ => return Err(params::no_object()),
    };
    for (key, value) in params {
        params::check_name(request_type, key)?;
        match key.as_str() {
            "max_tokens" => {
                let limit = config.max_tokens_limit;
                if !value.as_i64().is_some_and(|tokens| (1..=limit).contains(&tokens)) {
                    return Err(PgError::raised(format!("max_tokens must be between 1 and {limit}"))
                        .hint("Ask for less, or let an administrator raise max_tokens_limit with steadytext_config_set()."));
                }
            }
            "seed" => require(value.is_i64(), key, "an integer")?,
            "temperature" => require(in_range(value, 0.0, 100.0), key, "a number between 0 and 100")?,
            // These were checked with the type.
            "schema" | "pattern" | "choices" | "system_prompt" | "messages" | "categories"
            | "descriptions" | "examples" | "fields" | "labels" | "max_facts" => {}
            "use_cache" | "batch" | "return_scores" | "truncate" => {
                require(value.is_boolean(), key, "true or false")?
            }
            "dimensions" => {
                let fits = value.as_i64().is_some_and(|count| (1..=MAX_DIMENSIONS).contains(&count));
                require(fits, key, &format!("an integer between 1 and {MAX_DIMENSIONS}"))?;
            }
            "mode" => {
                require(matches!(value.as_str(), Some("query" | "passage")), key, "\"query\" or \"passage\"")?
            }
            "method" => require(
                matches!(value.as_str(), Some("generate" | "embed")),
                key,
                "\"generate\" or \"embed\"",
            )?,
            "max_words" => {
                let range = format!("an integer between 1 and {MOST_WORDS}");
                require(value.as_i64().is_some_and(|words| (1..=MOST_WORDS).contains(&words)), key, &range)?;
            }
            "metadata" if value.is_object() => {}
            "metadata" => return Err(summary::not_an_object()),
            "threshold" => require(in_range(value, 0.0, 1.0), key, "a number between 0 and 1")?,
            "task_description" => {
                let fits = |text: &str| !text.trim().is_empty() && text.len() <= MAX_DESCRIPTION_BYTES;
                let range = format!("a text of 1 to {MAX_DESCRIPTION_BYTES} bytes");
                require(value.as_str().is_some_and(fits), key, &range)?;
            }
            // The predecessor's words.
            "similarity_threshold" => {
                if !in_range(value, 0.0, 1.0) {
                    return Err(PgError::raised("similarity_threshold must be between 0.0 and 1.0").hint(
                        "It is the cosine from which on two facts are the same; 0.85 is the default.",
                    ));
                }
            }
            "template" => {
                let fits = |text: &str| !text.is_empty() && text.len() <= MAX_TEMPLATE_BYTES;
                let range = format!("a text of 1 to {MAX_TEMPLATE_BYTES} bytes");
                require(value.as_str().is_some_and(fits), key, &range)?;
            }
            "eos_string" | "to_language" | "model" | "size" | "default_model" | "task" => {
                let fits = |text: &str| !text.is_empty() && text.len() <= MAX_TEXT_PARAMETER_BYTES;
                let range = format!("a text of 1 to {MAX_TEXT_PARAMETER_BYTES} bytes");
                require(value.as_str().is_some_and(fits), key, &range)?;
            }
            // Texts, with limits of their own.
            "query" => require(value.is_string(), key, "a text")?,
            "documents" | "document_ids" => require(value.is_array(), key, "an array of texts")?,
            _ if options::check(key, value)? => {}
            _ => return Err(invalid(format!("unknown parameter \"{}\"", truncated(key)))),
        }
    }
    if params.contains_key("task") && params.get("mode").and_then(Value::as_str) == Some("passage") {
        return Err(invalid("a task is for texts of mode query, and the mode is passage").hint(
            "Leave task out, or give it with mode => 'query' or without mode. A task says what a query looks for, in words; of a model with adapters it is one of those in column adapters of steadytext_model_inspect(), among which retrieval.passage is what mode => 'passage' takes, and retrieval.query what mode => 'query' takes.",
        ));
    }
    Ok(())
}

/// The beginning of something a user sent, fit for an error message.
fn truncated(text: &str) -> String {
    text.chars().take(64).collect()
}
