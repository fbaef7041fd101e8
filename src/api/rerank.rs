//! The synchronous functions that rank documents. As those of [`super::sync`] they are immutable.

use pgrx::prelude::*;
use pgrx::{Array, name};
use serde_json::Value;

use super::call;
use super::request::rerank_params;
use crate::pg::caches;
use crate::pg::error::{OrRaise, PgError};
use crate::worker::many;
use crate::worker::request::{Answer, Ranked, unexpected};

/// Documents and their scores, best first.
#[pg_extern(immutable, parallel_safe)]
fn rerank(
    query: Option<&str>,
    documents: Option<Array<'_, &str>>,
    task: Option<&str>,
    return_scores: Option<bool>,
    seed: Option<i32>,
    model: Option<&str>,
) -> TableIterator<'static, (name!(document, String), name!(score, Option<f64>))> {
    let lines = ranked(query, documents, task, return_scores, seed, model);
    TableIterator::new(lines.into_iter().map(|line| (line.document, line.score.map(f64::from))))
}

/// As [`rerank`], without the scores.
#[pg_extern(immutable, parallel_safe)]
fn rerank_docs_only(
    query: Option<&str>,
    documents: Option<Array<'_, &str>>,
    task: Option<&str>,
    seed: Option<i32>,
    model: Option<&str>,
) -> SetOfIterator<'static, String> {
    let lines = ranked(query, documents, task, None, seed, model);
    SetOfIterator::new(lines.into_iter().map(|line| line.document))
}

/// The first lines of [`rerank`].
#[pg_extern(immutable, parallel_safe)]
fn rerank_top_k(
    query: Option<&str>,
    documents: Option<Array<'_, &str>>,
    top_k: Option<i32>,
    task: Option<&str>,
    return_scores: Option<bool>,
    seed: Option<i32>,
    model: Option<&str>,
) -> TableIterator<'static, (name!(document, String), name!(score, Option<f64>))> {
    let Some(top_k) = top_k.and_then(|top_k| usize::try_from(top_k).ok()).filter(|top_k| *top_k > 0) else {
        PgError::raised("top_k must be greater than 0").raise()
    };
    let mut lines = ranked(query, documents, task, return_scores, seed, model);
    lines.truncate(top_k);
    TableIterator::new(lines.into_iter().map(|line| (line.document, line.score.map(f64::from))))
}

/// [`rerank`] for several queries, which are counted from 0.
#[pg_extern(immutable, parallel_safe)]
fn rerank_batch(
    queries: Option<Array<'_, &str>>,
    documents: Option<Array<'_, &str>>,
    task: Option<&str>,
    return_scores: Option<bool>,
    seed: Option<i32>,
    model: Option<&str>,
) -> TableIterator<'static, (name!(query_index, i32), name!(document, String), name!(score, Option<f64>))> {
    let mut params = rerank_params(task, return_scores, seed, model);
    if let Some(documents) = texts(documents.as_ref(), "Documents").or_raise() {
        check_together(&documents).or_raise();
        params.insert("documents".to_owned(), documents.into_iter().map(Value::from).collect());
    }
    let queries = texts(queries.as_ref(), "Queries").or_raise();
    let answer = call::answer("batch_rerank", None, queries.as_deref(), params);
    let lines = answer.and_then(lines).or_raise();
    TableIterator::new(
        lines.into_iter().map(|line| (line.query as i32, line.document, line.score.map(f64::from))),
    )
}

fn ranked(
    query: Option<&str>,
    documents: Option<Array<'_, &str>>,
    task: Option<&str>,
    return_scores: Option<bool>,
    seed: Option<i32>,
    model: Option<&str>,
) -> Vec<Ranked> {
    let params = rerank_params(task, return_scores, seed, model);
    let documents = texts(documents.as_ref(), "Documents").or_raise();
    call::answer("rerank", query, documents.as_deref(), params).and_then(lines).or_raise()
}

fn lines(answer: Answer) -> Result<Vec<Ranked>, PgError> {
    match answer {
        Answer::Ranking(ranking) => Ok(ranking.lines),
        Answer::Text(_) | Answer::Embedding(_) | Answer::Embeddings(_) => Err(unexpected()),
    }
}

/// The elements of an array, if they are not too many or too long together; nothing is copied.
fn texts<'a>(
    array: Option<&'a Array<'_, &str>>,
    what: &str,
) -> Result<Option<Vec<Option<&'a str>>>, PgError> {
    let Some(array) = array else { return Ok(None) };
    let config = caches::config()?;
    many::check_count(array.len(), what, &config)?;
    Ok(Some(array.iter().collect()))
}

/// Refuses texts that are too long together, before they are copied.
fn check_together(texts: &[Option<&str>]) -> Result<(), PgError> {
    let bytes = texts.iter().flatten().map(|text| text.len()).fold(0, usize::saturating_add);
    let config = caches::config()?;
    many::check_stored(bytes, &config)
}
