//! The synchronous functions that rank documents. As those of [`super::sync`] they are immutable.

use pgrx::prelude::*;
use pgrx::{Array, name};
use serde_json::Value;

use super::call;
use super::request::rerank_params;
use crate::pg::error::{OrRaise, PgError};
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
    if let Some(documents) = documents {
        params.insert("documents".to_owned(), documents.iter().map(Value::from).collect());
    }
    let answer = call::answer("batch_rerank", None, owned(queries).as_deref(), params);
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
    call::answer("rerank", query, owned(documents).as_deref(), params).and_then(lines).or_raise()
}

fn lines(answer: Answer) -> Result<Vec<Ranked>, PgError> {
    match answer {
        Answer::Ranking(ranking) => Ok(ranking.lines),
        Answer::Text(_) | Answer::Embedding(_) | Answer::Embeddings(_) => Err(unexpected()),
    }
}

fn owned(texts: Option<Array<'_, &str>>) -> Option<Vec<Option<String>>> {
    texts.map(|texts| texts.iter().map(|text| text.map(str::to_owned)).collect())
}
