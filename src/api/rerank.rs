//! The synchronous functions that rank documents. As those of [`super::sync`] they are immutable.

use pgrx::prelude::*;
use pgrx::{Array, name};
use serde_json::{Map, Value};

use super::answers;
use crate::pg::catalog_cache;
use crate::pg::error::PgError;
use crate::request::arguments::rerank_params;
use crate::request::{Answer, OnError, Ranked, batch_checks, unexpected};

/// Documents and their scores, best first.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature, and more")]
fn rerank(
    query: Option<&str>,
    documents: Option<Array<'_, &str>>,
    task: Option<&str>,
    return_scores: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    truncate: Option<bool>,
    on_error: Option<&str>,
    document_ids: Option<Array<'_, &str>>,
) -> TableIterator<
    'static,
    (
        name!(document, String),
        name!(score, Option<f64>),
        name!(index, i32),
        name!(document_id, Option<String>),
    ),
> {
    let params = rerank_params(task, return_scores, seed, model, truncate);
    TableIterator::new(ranked(query, documents, document_ids, params, on_error).into_iter().map(columns))
}

/// As [`rerank`], without the scores.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature, and more")]
fn rerank_docs_only(
    query: Option<&str>,
    documents: Option<Array<'_, &str>>,
    task: Option<&str>,
    seed: Option<i64>,
    model: Option<&str>,
    truncate: Option<bool>,
    on_error: Option<&str>,
) -> SetOfIterator<'static, String> {
    let lines = ranked(query, documents, None, rerank_params(task, None, seed, model, truncate), on_error);
    SetOfIterator::new(lines.into_iter().map(|line| line.document))
}

/// The first lines of [`rerank`].
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature, and more")]
fn rerank_top_k(
    query: Option<&str>,
    documents: Option<Array<'_, &str>>,
    top_k: Option<i64>,
    task: Option<&str>,
    return_scores: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    truncate: Option<bool>,
    on_error: Option<&str>,
    document_ids: Option<Array<'_, &str>>,
) -> TableIterator<
    'static,
    (
        name!(document, String),
        name!(score, Option<f64>),
        name!(index, i32),
        name!(document_id, Option<String>),
    ),
> {
    let Some(top_k) = top_k.and_then(|top_k| usize::try_from(top_k).ok()).filter(|top_k| *top_k > 0) else {
        PgError::raised("top_k must be greater than 0")
            .hint("It is how many of the documents are returned, the best ones.")
            .raise()
    };
    let params = rerank_params(task, return_scores, seed, model, truncate);
    let mut lines = ranked(query, documents, document_ids, params, on_error);
    lines.truncate(top_k);
    TableIterator::new(lines.into_iter().map(columns))
}

/// [`rerank`] for several queries, which are counted from 0.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature, and more")]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn rerank_batch(
    queries: Option<Array<'_, &str>>,
    documents: Option<Array<'_, &str>>,
    task: Option<&str>,
    return_scores: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    truncate: Option<bool>,
    on_error: Option<&str>,
    document_ids: Option<Array<'_, &str>>,
) -> TableIterator<
    'static,
    (
        name!(query_index, i32),
        name!(document, String),
        name!(score, Option<f64>),
        name!(index, i32),
        name!(document_id, Option<String>),
    ),
> {
    let on_error = OnError::of(on_error);
    let answer = queries.zip(documents).and_then(|(queries, documents)| {
        let mut params = rerank_params(task, return_scores, seed, model, truncate);
        let answer = texts(&documents, "Documents").and_then(|documents| {
            check_together(&documents)?;
            with_ids(&mut params, document_ids)?;
            params.insert("documents".to_owned(), documents.into_iter().map(Value::from).collect());
            answers::answer("batch_rerank", None, Some(&texts(&queries, "Queries")?), params)
        });
        on_error.settle(answer.and_then(lines))
    });
    TableIterator::new(answer.unwrap_or_default().into_iter().map(|line| {
        let query = line.query as i32;
        let (document, score, index, id) = columns(line);
        (query, document, score, index, id)
    }))
}

/// The lines; none where there is no query, or nothing that could be ranked.
fn ranked(
    query: Option<&str>,
    documents: Option<Array<'_, &str>>,
    ids: Option<Array<'_, &str>>,
    mut params: Map<String, Value>,
    on_error: Option<&str>,
) -> Vec<Ranked> {
    let on_error = OnError::of(on_error);
    let Some((query, documents)) = query.zip(documents) else { return Vec::new() };
    let answer = texts(&documents, "Documents").and_then(|documents| {
        with_ids(&mut params, ids)?;
        answers::answer("rerank", Some(query), Some(&documents), params)
    });
    on_error.settle(answer.and_then(lines)).unwrap_or_default()
}

fn lines(answer: Answer) -> Result<Vec<Ranked>, PgError> {
    match answer {
        Answer::Ranking(ranking) => Ok(ranking.lines),
        _ => Err(unexpected()),
    }
}

/// The elements of an array, if they are not too many or too long together; nothing is copied.
fn texts<'a>(array: &'a Array<'_, &str>, what: &str) -> Result<Vec<Option<&'a str>>, PgError> {
    batch_checks::check_count(array.len(), what, &*catalog_cache::config()?)?;
    Ok(array.iter().collect())
}

/// Adds what the caller calls the documents.
fn with_ids(params: &mut Map<String, Value>, ids: Option<Array<'_, &str>>) -> Result<(), PgError> {
    let Some(ids) = ids else { return Ok(()) };
    let ids = texts(&ids, "Documents")?;
    check_together(&ids)?;
    params.insert("document_ids".to_owned(), ids.into_iter().map(Value::from).collect());
    Ok(())
}

/// A line as SQL shows it, where documents are counted from 1.
fn columns(line: Ranked) -> (String, Option<f64>, i32, Option<String>) {
    (line.document, line.score.map(f64::from), line.index as i32 + 1, line.id)
}

/// Refuses texts that are too long together, before they are copied.
fn check_together(texts: &[Option<&str>]) -> Result<(), PgError> {
    let bytes = texts.iter().flatten().map(|text| text.len()).fold(0, usize::saturating_add);
    let config = catalog_cache::config()?;
    batch_checks::check_stored(bytes, &config)
}
