//! Requests of many texts: their texts and parameters, their limits, and their subtasks.
//!
//! | type | texts | also taken |
//! |---|---|---|
//! | rerank | prompt: the query; prompts: the documents | params.query and params.documents in their place |
//! | batch_embed | prompts: the texts | |
//! | batch_rerank | prompts: the queries; params.documents | for a single query, prompt or params.query in the place of prompts |
//!
//! Invariant: whatever the texts are, the subtasks, their bytes together and the bytes of their answer are
//! bounded.

use pgrx::prelude::*;
use serde_json::Value;
use steadytext_engine::Purpose;

use super::asked::{RawRequest, dimensions, truncates};
use super::defaults;
use super::ranking::Reranking;
use super::subtasks::Subtasks;
use super::values::empty_text;
use crate::pg::catalog_cache::DatabaseConfig;
use crate::pg::error::PgError;

/// Most pairs of a query and a document in one request.
const MAX_PAIRS: usize = 100_000;
/// The texts of all subtasks of a request together, as a multiple of max_prompt_bytes.
const TOTAL_FACTOR: usize = 64;

/// Checks the texts of a batch of embeddings.
///
/// # Errors
///
/// As [`check_rerank`].
pub(crate) fn check_embed(asked: RawRequest<'_>, config: &DatabaseConfig) -> Result<(), PgError> {
    texts(asked, config).map(|_| ())
}

/// The subtasks of a batch of embeddings: one for each text.
///
/// # Errors
///
/// As [`check_rerank`].
pub(crate) fn embed(
    asked: RawRequest<'_>,
    purpose: Purpose,
    config: &DatabaseConfig,
) -> Result<Subtasks, PgError> {
    Ok(Subtasks::Embed {
        texts: owned(texts(asked, config)?),
        purpose,
        truncate: truncates(asked.params),
        dimensions: dimensions(asked.params),
    })
}

fn texts<'a>(asked: RawRequest<'a>, config: &DatabaseConfig) -> Result<Vec<&'a str>, PgError> {
    let given = asked.prompts.map(<[_]>::to_vec);
    let texts = elements(given, "Texts", config)?;
    if let Some(index) = texts.iter().position(|text| text.trim().is_empty()) {
        return Err(empty_text(format!("text {}: Text input cannot be empty", index + 1)));
    }
    check_bytes(bytes(&texts), "the texts", config)?;
    Ok(texts)
}

fn owned(texts: Vec<&str>) -> Vec<String> {
    texts.into_iter().map(str::to_owned).collect()
}

fn bytes(texts: &[&str]) -> usize {
    texts.iter().map(|text| text.len()).fold(0, usize::saturating_add)
}

/// The texts of a reranking, checked.
struct RerankTexts<'a> {
    queries: Vec<&'a str>,
    documents: Vec<&'a str>,
}

/// Checks the texts of a reranking.
///
/// # Errors
///
/// P0001 with the predecessor's words where something is missing or there is too much of it; 54000 for what
/// is too long.
pub(crate) fn check_rerank(asked: RawRequest<'_>, config: &DatabaseConfig) -> Result<(), PgError> {
    let RerankTexts { documents, .. } = read(asked, config)?;
    ids(asked.params, documents.len(), config).map(|_| ())
}

/// The subtasks of a reranking: one for each query and document.
///
/// # Errors
///
/// As [`check_rerank`].
pub(crate) fn rerank(asked: RawRequest<'_>, config: &DatabaseConfig) -> Result<Subtasks, PgError> {
    let RerankTexts { queries, documents } = read(asked, config)?;
    let ids = ids(asked.params, documents.len(), config)?.map(owned);
    let task = asked.params.get("task").and_then(Value::as_str).unwrap_or(defaults::RERANK_TASK);
    Ok(Subtasks::Rerank(Reranking {
        queries: owned(queries),
        documents: owned(documents),
        task: task.to_owned(),
        scores: asked.params.get("return_scores").and_then(Value::as_bool).unwrap_or(defaults::RETURN_SCORES),
        batch: asked.request_type == "batch_rerank",
        truncate: truncates(asked.params),
        ids,
    }))
}

/// The caller's ids of the documents.
fn ids<'a>(
    params: &'a Value,
    documents: usize,
    config: &DatabaseConfig,
) -> Result<Option<Vec<&'a str>>, PgError> {
    let Some(ids) = params.get("document_ids") else { return Ok(None) };
    let invalid = |message: String| PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message);
    let Some(ids) = ids.as_array() else {
        return Err(invalid("document_ids must be an array of texts".to_owned())
            .hint("Give one id for each document, in their order."));
    };
    if ids.len() != documents {
        return Err(invalid(format!("there are {documents} documents, but {} document_ids", ids.len()))
            .hint("Give one id for each document, in their order."));
    }
    let ids: Vec<&str> = ids.iter().map(Value::as_str).collect::<Option<_>>().ok_or_else(|| {
        invalid("document_ids must be texts".to_owned()).hint("NULL is no id; numbers are cast: id::text.")
    })?;
    check_bytes(bytes(&ids), "the document_ids", config)?;
    Ok(Some(ids))
}

fn read<'a>(asked: RawRequest<'a>, config: &DatabaseConfig) -> Result<RerankTexts<'a>, PgError> {
    let RawRequest { request_type, prompt, prompts, params } = asked;
    let query = prompt.or_else(|| params.get("query").and_then(Value::as_str));
    let given = prompts.map(<[_]>::to_vec);
    let among_params = params
        .get("documents")
        .and_then(Value::as_array)
        .map(|texts| texts.iter().map(Value::as_str).collect::<Vec<_>>());
    let (queries, documents) = match request_type {
        "batch_rerank" => (given.or_else(|| query.map(|query| vec![Some(query)])), among_params),
        _ => (Some(vec![query]), given.or(among_params)),
    };
    let queries = elements(queries, "Queries", config)?;
    if queries.iter().any(|query| query.trim().is_empty()) {
        return Err(empty_text("Query cannot be empty"));
    }
    let documents = elements(documents, "Documents", config)?;
    check_total(&queries, &documents, config)?;
    Ok(RerankTexts { queries, documents })
}

/// The elements of an array that must have some, and no NULL among them.
fn elements<'a>(
    array: Option<Vec<Option<&'a str>>>,
    what: &str,
    config: &DatabaseConfig,
) -> Result<Vec<&'a str>, PgError> {
    // A single query that is NULL.
    if what == "Queries" && array.as_deref() == Some(&[None]) {
        return Err(empty_text("Query cannot be empty"));
    }
    let array = array.filter(|array| !array.is_empty());
    let Some(array) = array else {
        return Err(refusal(format!("{what} array cannot be empty"))
            .hint("Give one element at least; where there is nothing to do, do not call it."));
    };
    check_count(array.len(), what, config)?;
    let mut texts = Vec::with_capacity(array.len());
    for (index, text) in array.into_iter().enumerate() {
        let Some(text) = text else {
            return Err(PgError::raised(format!("{what} cannot contain null elements"))
                .detail(format!("Element {} is NULL.", index + 1))
                .hint("Leave them out, for example with array_remove(…, null).")
                .lasting());
        };
        check_length(text, || format!("element {} of the {}", index + 1, what.to_lowercase()), config)?;
        texts.push(text);
    }
    Ok(texts)
}

/// Refuses more texts than a request may have; by their number alone, before anything is made of them.
///
/// # Errors
///
/// P0001 with the predecessor's words.
pub(crate) fn check_count(count: usize, what: &str, config: &DatabaseConfig) -> Result<(), PgError> {
    let limit = config.max_batch_size;
    if count as i64 > limit {
        return Err(refusal(format!("Batch size cannot exceed {limit} {}", what.to_lowercase()))
            .hint("Send several requests, or let an administrator raise the setting max_batch_size."));
    }
    Ok(())
}

/// Refuses a text that is too long.
///
/// # Errors
///
/// 54000.
pub(crate) fn check_length(
    text: &str,
    name: impl FnOnce() -> String,
    config: &DatabaseConfig,
) -> Result<(), PgError> {
    let limit = config.max_prompt_bytes;
    if text.len() as i64 > limit {
        return Err(too_long(
            format!("{} has {} bytes, {limit} are allowed", name(), text.len()),
            "Shorten the text, or raise max_prompt_bytes with steadytext_config_set().",
        ));
    }
    Ok(())
}

/// The name of the elements of column prompts in messages.
pub(crate) fn name_of_prompts(request_type: &str) -> &'static str {
    match request_type {
        "rerank" => "Documents",
        "batch_rerank" => "Queries",
        _ => "Texts",
    }
}

/// Most bytes that the texts of a request may have together.
pub(crate) fn most_bytes(config: &DatabaseConfig) -> usize {
    usize::try_from(config.max_prompt_bytes).unwrap_or(usize::MAX).saturating_mul(TOTAL_FACTOR)
}

/// Refuses column prompts, or what stands in its place, if it is too long as it is stored; by its length
/// alone.
///
/// # Errors
///
/// 54000.
pub(crate) fn check_stored(bytes: usize, config: &DatabaseConfig) -> Result<(), PgError> {
    /// Bytes that an array needs for each of its texts besides the text.
    const BYTES_OF_ELEMENT: usize = 8;
    let elements = usize::try_from(config.max_batch_size).unwrap_or(usize::MAX);
    let most = most_bytes(config).saturating_add(elements.saturating_mul(BYTES_OF_ELEMENT));
    // The message gives the limit of the texts alone: what their array adds is no concern of the caller's.
    if bytes > most { check_bytes(bytes, "the texts", config) } else { Ok(()) }
}

/// Every query goes together with every document.
fn check_total(queries: &[&str], documents: &[&str], config: &DatabaseConfig) -> Result<(), PgError> {
    let pairs = queries.len().saturating_mul(documents.len());
    if pairs > MAX_PAIRS {
        return Err(too_long(
            format!("the request has {pairs} pairs of a query and a document, {MAX_PAIRS} are allowed"),
            "Send several requests.",
        ));
    }
    let all = bytes(queries)
        .saturating_mul(documents.len())
        .saturating_add(bytes(documents).saturating_mul(queries.len()));
    check_bytes(all, "the pairs of a query and a document", config)
}

/// Bounds what the subtasks of a request have together.
fn check_bytes(all: usize, what: &str, config: &DatabaseConfig) -> Result<(), PgError> {
    let limit = most_bytes(config);
    if all > limit {
        return Err(too_long(
            format!("{what} have {all} bytes together, {limit} are allowed"),
            "Send several requests, or raise max_prompt_bytes with steadytext_config_set().",
        ));
    }
    Ok(())
}

fn too_long(message: String, hint: &str) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, message).hint(hint).lasting()
}

/// Texts that cannot be worked with, in the predecessor's words.
fn refusal(message: impl Into<String>) -> PgError {
    PgError::raised(message).lasting()
}
