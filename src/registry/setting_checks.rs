//! Warnings about a model that is set as a default and cannot answer requests as things are. The setting is
//! accepted all the same, because the model may be downloaded or registered later.
//!
//! Invariant: only what somebody sets at this moment is looked at, in a transaction.

use pgrx::prelude::*;
use steadytext_engine::ModelSource;

use super::defaults::says_something;
use super::directory;
use super::names::{row, shown};
use super::resolve::by_setting;
use super::suggestions::known;
use super::task::ModelTask;
use crate::pg::catalog_cache::{self, ModelRegistry};
use crate::pg::error::PgError;
use crate::pg::guc::ModelSetting;
use crate::pg::{hooks, privilege};

/// Warns who sets one of the settings `pg_steadytext.*_model`, unless that is for another database: what that
/// one has registered is not seen from here.
pub(crate) fn warn_of_setting(setting: ModelSetting, name: &str) {
    if hooks::sets_for_another_database() {
        return;
    }
    let task = ModelTask::ALL.into_iter().find(|task| task.setting() == setting);
    if let Some(task) = task {
        warn(task, &setting.name().to_string_lossy(), name);
    }
}

/// Warns who sets a key of steadytext_config, if it is one that chooses a model.
pub(crate) fn warn_of_key(key: &str, name: &str) {
    let is_of_key =
        |task: &ModelTask| task.setting().name().to_bytes().ends_with(format!(".{key}").as_bytes());
    if let Some(task) = ModelTask::ALL.into_iter().find(is_of_key) {
        warn(task, &format!("{key} of steadytext_config"), name);
    }
}

/// Warns the current user, where requests could fail and the names of models are for that role to see: a
/// database without the extension has no requests, and every role may set its settings.
fn warn(task: ModelTask, setting: &str, name: &str) {
    if !says_something(name) || !privilege::is_user(privilege::current_user()) {
        return;
    }
    let Ok(models) = catalog_cache::models() else { return };
    if let Some(reason) = why_unusable(task, name, &models) {
        let message = format!("requests fail with what {setting} is set to now: {}", reason.message);
        PgError { message, code: PgSqlErrorCode::ERRCODE_WARNING, ..reason }.report(PgLogLevel::WARNING);
    }
}

/// The reason why a model cannot answer requests of a task, as far as that can be told without reading its
/// file in full. `None` where it can; whether workers elsewhere have it is theirs to find.
fn why_unusable(task: ModelTask, name: &str, models: &ModelRegistry) -> Option<PgError> {
    let row = row(name, models);
    if row.is_some_and(|row| row.is_elsewhere() && row.task == task.name()) {
        return None;
    }
    let found = match by_setting(task, name, models) {
        Ok(found) => found,
        Err(error) => return Some(error),
    };
    // A row says what its file is for. Decoders embed and rank as well as they can, and what embeds ranks.
    if row.is_some() || task != ModelTask::Generate {
        return None;
    }
    let ModelSource::File(path) = &found.source else { return None };
    let tasks = directory::tasks(path).unwrap_or_default();
    let [of_file, ..] = tasks.as_slice() else { return None };
    if tasks.contains(&task.of_card()) {
        return None;
    }
    let (shown, of_file) = (shown(name), of_file.name());
    Some(
        PgError::new(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("model \"{shown}\" is for task {of_file}, not {}", task.name()),
        )
        .hint(known(task, name, models)),
    )
}
