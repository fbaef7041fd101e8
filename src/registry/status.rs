//! State of the registered models: whether their files are there and good, and which ones are defaults.

use steadytext_engine::ModelSource;

use super::choice;
use super::model_files::{is_there, registered_path};
use super::resolve::resolve;
use super::task::{ModelTask, RequestedModel};
use crate::pg::catalog_cache::{ModelRegistry, RegisteredModel};

/// State of the model in a row of the registry.
pub(crate) struct Status {
    /// `ready`, `missing` or `unusable`.
    pub(crate) state: &'static str,
    /// The reason why it is unusable.
    pub(crate) reason: Option<String>,
    /// Whether requests that name no model get it.
    pub(crate) is_chosen: bool,
}

/// The state of each model, in their order.
pub(crate) fn status(models: &ModelRegistry) -> Vec<Status> {
    let of = |model: &RegisteredModel| {
        let Some(task) = ModelTask::ALL.into_iter().find(|task| task.name() == model.task) else {
            return Status { state: "unusable", reason: None, is_chosen: false };
        };
        let Ok(path) = registered_path(&model.file) else {
            let reason = "its file leads out of pg_steadytext.model_dir".to_owned();
            return Status { state: "unusable", reason: Some(reason), is_chosen: false };
        };
        let reason = is_there(&path).then(|| choice::why_bad(task, model, &path)).flatten();
        let state = match reason {
            _ if !is_there(&path) => "missing",
            Some(_) => "unusable",
            None => "ready",
        };
        let chosen = resolve(task, RequestedModel::Default, models).ok().map(|found| found.source);
        Status { state, reason, is_chosen: chosen == Some(ModelSource::File(path)) }
    };
    models.iter().map(of).collect()
}
