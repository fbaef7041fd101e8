//! The default models of requests that name none: the settings, by level.
//!
//! From the nearest to the farthest: SET, ALTER ROLE and ALTER DATABASE of the settings
//! `pg_steadytext.*_model`; steadytext_config of the database; the same settings in postgresql.conf; the
//! predecessor's variables of the server's environment. `auto` on a level leaves it to the next; where all
//! do, the registry and the directory of the models decide.

use std::cell::Cell;

use pgrx::prelude::*;

use super::directory;
use super::names::{entry, path_of};
use super::task::{AUTO, ModelTask};
use crate::pg::catalog_cache::ModelRegistry;
use crate::pg::error::PgError;
use crate::pg::guc::{ModelSetting, SettingLevel};
use crate::pg::{bgworker, predecessor_variables};

thread_local! {
    /// A worker elsewhere asks: what is set for its role is meant for nobody's requests, as with the server's
    /// own.
    static IS_FOR_WORKER: Cell<bool> = const { Cell::new(false) };
}

/// Looks for models as the worker does.
pub(super) fn as_the_worker<T>(look: impl FnOnce() -> T) -> T {
    /// Ends it however `look` ends.
    struct AsWorkerGuard(bool);
    impl Drop for AsWorkerGuard {
        fn drop(&mut self) {
            IS_FOR_WORKER.set(self.0);
        }
    }
    let _before = AsWorkerGuard(IS_FOR_WORKER.replace(true));
    look()
}

/// A model that somebody has set for requests that name none.
#[derive(Debug, Clone)]
pub(super) struct DefaultModel {
    /// Its name; a path where a superuser has given one.
    pub(super) name: String,
    /// The setting that names it, in words for messages.
    pub(super) setting: String,
}

impl ModelTask {
    pub(super) fn setting(self) -> ModelSetting {
        match self {
            ModelTask::Generate => ModelSetting::Generation,
            ModelTask::Embed => ModelSetting::Embedding,
            ModelTask::Rerank => ModelSetting::Reranker,
        }
    }

    /// The predecessor's word for it, in variables of the environment.
    fn variable(self) -> &'static str {
        match self {
            ModelTask::Generate => "GENERATION",
            ModelTask::Embed => "EMBEDDING",
            ModelTask::Rerank => "RERANKING",
        }
    }
}

/// The default model of a task.
///
/// # Errors
///
/// 42704 for a variable of the environment that speaks of a model which is not there.
pub(super) fn of(task: ModelTask, models: &ModelRegistry) -> Result<Option<DefaultModel>, PgError> {
    let setting = task.setting();
    let name = setting.name().to_string_lossy();
    // The settings of the role that the worker runs as do not apply to requests.
    let is_worker = bgworker::is_worker() || IS_FOR_WORKER.get();
    let is_own = !is_worker || setting.level() < SettingLevel::Session;
    let own = Some(setting.value()).filter(|value| is_own && says_something(value));
    let own = own.map(|value| DefaultModel { name: value, setting: name.clone().into_owned() });
    if own.is_some() && setting.level() > SettingLevel::Server {
        return Ok(own);
    }
    let key = name.rsplit('.').next().unwrap_or_default();
    let of_database = models.defaults[task as usize].as_deref().filter(|value| says_something(value));
    if let Some(value) = of_database {
        return Ok(Some(DefaultModel {
            name: value.to_owned(),
            setting: format!("{key} of steadytext_config"),
        }));
    }
    if own.is_some() {
        return Ok(own);
    }
    of_environment(task, models)
}

/// The default set for this session, its role or its database: the worker does not know of it, or not yet.
pub(super) fn of_session(task: ModelTask) -> Option<DefaultModel> {
    let setting = task.setting();
    let value = Some(setting.value()).filter(|value| says_something(value))?;
    (setting.level() > SettingLevel::Server)
        .then(|| DefaultModel { name: value, setting: setting.name().to_string_lossy().into_owned() })
}

/// Whether this session, or its role, leaves the choice to the next level, and hides from itself alone what
/// is set for the database or in the server's files.
pub(super) fn hides_others(task: ModelTask) -> bool {
    let setting = task.setting();
    setting.level() > SettingLevel::Database && !says_something(&setting.value())
}

/// Whether a value names a model, and does not leave the choice to the next level.
pub(super) fn says_something(value: &str) -> bool {
    !value.is_empty() && value != AUTO
}

/// An error about a model that a setting has chosen.
pub(super) fn named_by(error: PgError, setting: &str) -> PgError {
    let message = format!("{}; {setting} names this model", error.message);
    PgError { message, ..error }
}

/// The setting behind a name that a queued request remembers.
pub(super) fn of_sender(task: ModelTask) -> String {
    format!("{} of the session that enqueued the request", task.setting().name().to_string_lossy())
}

fn of_environment(task: ModelTask, models: &ModelRegistry) -> Result<Option<DefaultModel>, PgError> {
    let variable = |what: &str| format!("{}{}_MODEL_{what}", predecessor_variables::PREFIX, task.variable());
    let (file, repository) = (variable("FILENAME"), variable("REPO"));
    let rows = || models.iter().filter(|model| model.task == task.name());
    let (setting, value, found) = if let Some(value) = predecessor_variables::value(&file) {
        let row = rows().find(|model| model.file == value).map(|model| model.name.clone());
        let found = match row {
            Some(name) => Some(name),
            None => entry(&value)?.map(|entry| entry.file),
        };
        (file, value, found)
    } else if let Some(value) = predecessor_variables::value(&repository) {
        let row = rows().find(|model| model.repository.as_deref() == Some(&value));
        let found = row.map(|model| model.name.clone()).or_else(|| {
            let is_of = |entry: &&directory::DirectoryEntry| {
                let card = path_of(entry).and_then(|path| directory::card(&path).ok()?);
                card.is_some_and(|card| card.repository.as_deref() == Some(&value))
            };
            directory::entries().iter().find(is_of).map(|entry| entry.file.clone())
        });
        (repository, value, found)
    } else {
        return Ok(None);
    };
    match found {
        Some(name) => {
            Ok(Some(DefaultModel { name, setting: format!("{setting} of the server's environment") }))
        }
        None => Err(PgError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("{setting} of the server's environment is \"{value}\", and no such model is here"),
        )
        .hint("Put the file into pg_steadytext.model_dir, or set pg_steadytext.generation_model, pg_steadytext.embedding_model or pg_steadytext.reranker_model.")),
    }
}

/// Variables of the environment that decide something here.
pub(crate) fn is_obeyed(variable: &str) -> bool {
    let tasks = ModelTask::ALL;
    variable == predecessor_variables::DEFAULT_SEED
        || variable == predecessor_variables::USE_FALLBACK_MODEL
        || tasks.iter().any(|task| {
            let rest = variable
                .strip_prefix(predecessor_variables::PREFIX)
                .and_then(|rest| rest.strip_prefix(task.variable()));
            matches!(rest, Some("_MODEL_REPO" | "_MODEL_FILENAME"))
        })
}
