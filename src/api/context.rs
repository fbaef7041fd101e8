//! Checks that precede a search or an answer from its results: whether a filter is one condition, and how
//! long a prompt may be.

use std::cell::RefCell;
use std::time::SystemTime;

use pgrx::prelude::*;
use steadytext_engine::ModelSource;
use steadytext_engine::summary::{Load, ModelSummary};

use super::models::of_engine;
use crate::pg::error::{OrRaise, PgError};
use crate::pg::{catalog_cache, expression, guc};
use crate::registry::{self, ModelTask, RequestedModel};

/// The identity of a model's file: the source, and the file's length and modification time.
type FileStamp = (ModelSource, Option<(u64, SystemTime)>);

/// True, or an error where the text is not one SQL expression.
#[pg_extern(immutable, parallel_safe)]
fn check_filter(filter: Option<&str>) -> bool {
    if let Some(filter) = filter {
        expression::check(filter).or_raise();
    }
    true
}

/// Tokens that prompt and answer may have together with a model that generates; those of a text with one that
/// embeds.
#[pg_extern(stable, parallel_safe)]
fn context_tokens(model: Option<&str>, task: Option<&str>) -> i64 {
    let task = if task == Some(ModelTask::Embed.name()) { ModelTask::Embed } else { ModelTask::Generate };
    let models = catalog_cache::models().or_raise();
    let wanted = model.map_or(RequestedModel::Default, RequestedModel::Named);
    let source = registry::resolve(task, wanted, &models).or_raise().source;
    let of_model = summary_of(&source).or_raise().context_length.unwrap_or(usize::MAX);
    let settings = guc::engine();
    let tokens = if settings.context_length == 0 { of_model } else { of_model.min(settings.context_length) };
    i64::try_from(tokens).unwrap_or(i64::MAX)
}

/// The summary of a model's files.
///
/// # Errors
///
/// The error that keeps them from being read.
pub(super) fn summary_of(source: &ModelSource) -> Result<ModelSummary, PgError> {
    let settings = guc::engine();
    let load = Load {
        requests: settings.max_running,
        tokens: 0,
        threads: settings.threads.max(1),
        kv_cache_type: settings.kv_cache_type,
    };
    ModelSummary::of(source, load).map(|(summary, _)| summary).map_err(of_engine)
}

/// The number of elements of the vectors of a model whose file is here.
pub(super) fn width_of(source: &ModelSource) -> Option<usize> {
    thread_local! {
        static LAST: RefCell<Option<(FileStamp, Option<usize>)>> = const { RefCell::new(None) };
    }
    let state = match source {
        ModelSource::Builtin => None,
        // The width of a folder's vectors follows from its modules, which are known only when they are
        // loaded.
        ModelSource::File(path) => {
            let file = path.is_absolute().then(|| path.metadata().ok()).flatten()?;
            Some((file.is_file().then_some(file.len())?, file.modified().ok()?))
        }
    };
    let known = (source.clone(), state);
    if let Some(width) =
        LAST.with_borrow(|last| last.as_ref().filter(|last| last.0 == known).map(|last| last.1))
    {
        return width;
    }
    let width = summary_of(source).ok().and_then(|summary| usize::try_from(summary.dimensions?).ok());
    LAST.set(Some((known, width)));
    width
}
