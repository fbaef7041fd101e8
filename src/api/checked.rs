//! A synchronous request that was checked as the queue's trigger checks a row, and its model.

use std::rc::Rc;

use pgrx::PgSqlErrorCode;
use serde_json::{Map, Value};

use super::pull;
use crate::cache::CacheQuestion;
use crate::pg::catalog_cache::ModelRegistry;
use crate::pg::error::PgError;
use crate::pg::{bgworker, catalog_cache, guc, shmem};
use crate::registry::Resolved;
use crate::request::checks::{check_params, check_type};
use crate::request::verb_checks::is_plain;
use crate::request::{self, RawRequest, Subtasks, description};

/// A request that was checked.
pub(super) struct Checked {
    pub(super) subtasks: Subtasks,
    pub(super) model: Resolved,
    pub(super) registry: Rc<ModelRegistry>,
    pub(super) question: Option<CacheQuestion>,
}

/// Checks a request as the queue's trigger does.
pub(super) fn check(
    request_type: &str,
    text: Option<&str>,
    texts: Option<&[Option<&str>]>,
    params: Map<String, Value>,
) -> Result<Checked, PgError> {
    let params = Value::Object(params);
    let (config, models) = (catalog_cache::config()?, catalog_cache::models()?);
    let asked = RawRequest { request_type, prompt: text, prompts: texts, params: &params };
    check_type(asked, &config)?;
    check_params(request_type, &params, &config)?;
    check_engine()?;
    let (subtasks, model) = match request::subtasks(asked, &config, &models) {
        Err(PgError { missing_model: Some(name), .. }) if guc::auto_pull() => {
            pull::fetch(&name)?;
            request::subtasks(asked, &config, &models)?
        }
        other => other?,
    };
    let question = CacheQuestion::of(request_type, &params, &subtasks, &model, &config);
    Ok(Checked { subtasks, model, registry: models, question })
}

/// Refuses a call where there is no engine, or nobody who may wait for it.
pub(super) fn check_engine() -> Result<(), PgError> {
    if shmem::get().is_none() {
        return Err(shmem::not_preloaded(
            "there is no engine that could answer: pg_steadytext is not preloaded",
        ));
    }
    if bgworker::is_worker() {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "the worker of pg_steadytext cannot wait for an answer",
        )
        .hint("Call the asynchronous functions from triggers of steadytext_queue."));
    }
    Ok(())
}

/// Says which of the rows of a statement an error is about.
pub(super) fn about_text(error: PgError, request_type: &str, text: Option<&str>) -> PgError {
    let what = match request_type {
        "embed" | "tokenize" | "similarity" | "classify" | "classify_scores" | "classify_multi"
        | "summarize" => "text",
        verb if is_plain(verb) => "text",
        "rerank" => "query",
        _ => "prompt",
    };
    match text {
        Some(text) => error.detail(format!("The {}.", description(what, text))),
        None => error,
    }
}
