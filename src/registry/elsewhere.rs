//! Models as workers on other machines know them: by a name, a file below their own directory, and its
//! checksum.
//!
//! Invariant: a model is chosen as the server's own worker would choose it. Only where its row is there and
//! its file is not, or is not meant to be, nothing is looked at: the file is somebody else's.

use std::path::Path;

use steadytext_engine::remote_job::WantedModel;
use steadytext_engine::{ModelIdentity, ModelSource, file_bytes};

use super::choice::Resolved;
use super::defaults;
use super::directory::{self, Tasks};
use super::model_files::is_file_there;
use super::names::row;
use super::resolve::resolve;
use super::task::{ModelTask, RequestedModel};
use crate::pg::catalog_cache::ModelRegistry;
use crate::pg::error::PgError;
use crate::pg::guc;
use crate::pg::model_checksums;

/// The model of a request, for a worker elsewhere.
///
/// # Errors
///
/// As [`resolve`], except that a missing file is no error.
pub(crate) fn resolve_elsewhere(
    task: ModelTask,
    wanted: RequestedModel<'_>,
    models: &ModelRegistry,
) -> Result<Resolved, PgError> {
    defaults::as_the_worker(|| look(task, wanted, models))
}

/// The model of a request as this session gets it, wherever its file is.
///
/// # Errors
///
/// As [`resolve`], except that a missing file is no error.
pub(super) fn look(
    task: ModelTask,
    wanted: RequestedModel<'_>,
    models: &ModelRegistry,
) -> Result<Resolved, PgError> {
    let name = match wanted {
        RequestedModel::Named(name) | RequestedModel::Remembered(name) => Some(name.to_owned()),
        RequestedModel::Default => defaults::of(task, models)?.map(|default| default.name),
    };
    let row = name.as_deref().and_then(|name| row(name, models));
    match row.filter(|row| row.task == task.name()) {
        Some(row) if row.is_elsewhere() || !is_file_there(&row.file) => Ok(Resolved::elsewhere(row)),
        _ => resolve(task, wanted, models),
    }
}

/// The name of the model that embeds in this session where none is named. `None` where there is none, and for
/// a file that a superuser has named by its path: it has no other name.
pub(crate) fn default_embedding_name(models: &ModelRegistry) -> Option<String> {
    let found = look(ModelTask::Embed, RequestedModel::Default, models).ok()?;
    Some(found.name().to_owned()).filter(|name| !guc::is_path(name))
}

/// The names of the models that requests get which name none, by the numbers of the tasks; `None` where there
/// is none.
pub(crate) fn default_names(models: &ModelRegistry) -> [Option<String>; 3] {
    ModelTask::ALL.map(|task| {
        let resolved = resolve_elsewhere(task, RequestedModel::Default, models).ok()?;
        Some(resolved.name().to_owned())
    })
}

impl Resolved {
    /// In words that hold on any machine.
    pub(crate) fn wanted_model(&self) -> WantedModel {
        let name = self.name().to_owned();
        let file = match &self.source {
            ModelSource::Builtin => {
                let sha256 = Some(ModelIdentity::builtin().hash);
                return WantedModel { name, file: None, sha256, with_adapters: None, bytes: None };
            }
            ModelSource::File(path) => path,
        };
        // The checksum of the file here, where none is registered.
        let sha256 = self.sha256().or_else(|| model_checksums::own_of(&self.source));
        let with_adapters = model_checksums::of(&self.source);
        // To hash it takes too long here. Another length is another file at least, or other adapters. A
        // checksum that is registered decides by itself, as the file here may be on its way, but it says
        // nothing of adapters.
        let is_here = with_adapters.is_none() && (file.is_absolute() || file.starts_with(guc::model_dir()));
        let is_decided = || {
            self.sha256().is_some()
                && matches!(directory::adapted_tasks(file), Tasks::Known(tasks) if tasks.is_empty())
        };
        let bytes = if is_here && !is_decided() { file_bytes(file) } else { None };
        WantedModel { name, file: Some(below_model_dir(file)), sha256, with_adapters, bytes }
    }
}

/// A path as it is written below the directory of the models; of others, the name alone.
fn below_model_dir(path: &Path) -> String {
    let directory = guc::model_dir();
    let relative = if path.is_relative() && !path.starts_with(&directory) {
        Some(path)
    } else {
        path.strip_prefix(&directory).ok()
    };
    let name = || path.file_name().map(Path::new).unwrap_or(path);
    relative.unwrap_or_else(name).to_string_lossy().into_owned()
}
