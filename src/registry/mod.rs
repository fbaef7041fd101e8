//! The registry of models: from the name of a model, or the server's settings, to the file that answers.
//!
//! Invariant: a request can only name a row of steadytext_models, or the builtin model. Files are named by
//! administrators, in that table and in the server's settings.

mod choice;
mod model_files;

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use pgrx::prelude::*;
use steadytext_engine::ModelSource;
use steadytext_engine::gguf::parts;
use strsim::levenshtein;

pub(crate) use self::choice::Resolved;
use self::model_files::{LeadsOut, locate};
use crate::pg::catalog_cache::Model;
use crate::pg::error::PgError;
use crate::pg::guc;

/// The name of the model inside the library.
const BUILTIN: &str = "builtin";
/// The setting that leaves the choice to the registry.
const AUTO: &str = "auto";

/// What the model is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Task {
    /// Text generation.
    Generate,
    /// Embeddings.
    Embed,
    /// Scores of documents.
    Rerank,
}

impl Task {
    /// The word for it in steadytext_models.
    fn name(self) -> &'static str {
        match self {
            Task::Generate => "generate",
            Task::Embed => "embed",
            Task::Rerank => "rerank",
        }
    }

    /// Its number in shared memory.
    fn number(self) -> u8 {
        self as u8
    }

    fn setting(self) -> (&'static str, String) {
        match self {
            Task::Generate => ("pg_steadytext.generation_model", guc::generation_model()),
            Task::Embed => ("pg_steadytext.embedding_model", guc::embedding_model()),
            Task::Rerank => ("pg_steadytext.reranker_model", guc::reranker_model()),
        }
    }
}

/// The model of a request that names one, by name or size, or the one that the server's settings choose.
///
/// # Errors
///
/// 42704 for a name that is not registered, 42809 for a model that is registered for another task, 58030 for
/// one whose file is not there, XX001 for one whose file is known to be another than the registered.
pub(crate) fn resolve(task: Task, asked: Option<&str>, models: &[Model]) -> Result<Resolved, PgError> {
    let known = KNOWN.with_borrow(|known| {
        let mut known = known.iter().flatten();
        known.find(|known| known.0 == task && known.1.as_deref() == asked).map(|known| known.2.clone())
    });
    if let Some(known) = known {
        return Ok(known);
    }
    let resolved = look_for(task, asked, models)?;
    KNOWN.with_borrow_mut(|known| {
        if let Some(known) = known {
            known.push((task, asked.map(str::to_owned), resolved.clone()));
        }
    });
    Ok(resolved)
}

/// The model of a name, whatever it is registered for; without one, that which generates. No other one takes its place.
///
/// # Errors
///
/// Those of [`resolve`].
pub(crate) fn named(asked: Option<&str>, models: &[Model]) -> Result<Resolved, PgError> {
    let row = asked.and_then(|name| models.iter().find(|model| model.name == name));
    let tasks = [Task::Generate, Task::Embed, Task::Rerank];
    let task = row.and_then(|row| tasks.into_iter().find(|task| task.name() == row.task));
    Ok(look_for(task.unwrap_or(Task::Generate), asked, models)?.alone())
}

fn look_for(task: Task, asked: Option<&str>, models: &[Model]) -> Result<Resolved, PgError> {
    match asked {
        Some(BUILTIN) => Ok(Resolved::builtin(false)),
        Some(name) => registered(task, name, models),
        None => configured(task, task, models),
    }
}

/// The model that the server's settings choose for a task, to be used for a purpose.
fn configured(purpose: Task, task: Task, models: &[Model]) -> Result<Resolved, PgError> {
    let (setting, name) = task.setting();
    match name.as_str() {
        BUILTIN => Ok(Resolved::builtin(false)),
        AUTO | "" => {
            let (found, passed_over) = choice::first_good(purpose, models, task);
            let found = match found {
                Some(found) => found,
                // Vectors rank documents, too, and those of the model that was chosen for vectors do so best.
                None if task == Task::Rerank => configured(purpose, Task::Embed, models)?,
                None => Resolved::builtin(true),
            };
            Ok(choice::after(found, passed_over))
        }
        name if models.iter().any(|model| model.name == name) => registered(task, name, models),
        name => {
            let path = path_of(name);
            if !is_there(&path) {
                return Err(PgError::new(
                    PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                    format!("{setting} is \"{name}\", which is neither a registered model nor a file"),
                )
                .hint(
                    "Register the model in steadytext_models, or put its file into pg_steadytext.model_dir.",
                ));
            }
            // What is registered of the file holds for every name of it.
            let sha256 = models.iter().find(|model| model.file == name).and_then(|model| model.sha256);
            let found = Resolved::file(&path, name, sha256);
            found.check_known().map(|()| found)
        }
    }
}

/// What is known of the model in a row of the registry.
pub(crate) struct Status {
    /// `ready`, `missing` or `unusable`.
    pub(crate) state: &'static str,
    /// Why it is unusable.
    pub(crate) reason: Option<String>,
    /// Whether requests get it that name none.
    pub(crate) is_chosen: bool,
}

/// What is known of the models, in their order.
pub(crate) fn status(models: &[Model]) -> Vec<Status> {
    let tasks = [Task::Generate, Task::Embed, Task::Rerank];
    let of = |model: &Model| {
        let Some(task) = tasks.into_iter().find(|task| task.name() == model.task) else {
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
        let chosen = resolve(task, None, models).ok().map(|found| found.source);
        Status { state, reason, is_chosen: chosen == Some(ModelSource::File(path)) }
    };
    models.iter().map(of).collect()
}

/// Refuses names that [`resolve`] would not find.
///
/// # Errors
///
/// 42704 and 42809, as [`resolve`].
pub(crate) fn check(task: Task, name: &str, models: &[Model]) -> Result<(), PgError> {
    if name == BUILTIN {
        return Ok(());
    }
    find(task, name, models).map(|_| ())
}

/// The row of a model.
fn find<'a>(task: Task, name: &str, models: &'a [Model]) -> Result<&'a Model, PgError> {
    let shown = shown(name);
    let model = models.iter().find(|model| model.name == name).ok_or_else(|| {
        PgError::new(PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT, format!("model \"{shown}\" is not registered"))
            .hint(known(task, name, models))
    })?;
    if model.task != task.name() {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("model \"{shown}\" is registered for task {}, not {}", model.task, task.name()),
        )
        .hint(known(task, name, models)));
    }
    Ok(model)
}

/// The beginning of what a user sent, fit for an error message.
fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

/// Which models there are for a task: those whose names are close, or the first ones.
fn known(task: Task, name: &str, models: &[Model]) -> String {
    let names = || models.iter().filter(|model| model.task == task.name()).map(|model| model.name.as_str());
    let mut close: Vec<(usize, &str)> = names()
        .map(|known| (levenshtein(&shown(name).to_lowercase(), &known.to_lowercase()), known))
        .filter(|(distance, known)| *distance <= known.chars().count() / 3 + 1)
        .collect();
    close.sort_unstable();
    let quoted = |name: &str| format!("\"{name}\"");
    if !close.is_empty() {
        let close: Vec<String> = close.into_iter().take(3).map(|(_, name)| quoted(name)).collect();
        return format!("Did you mean {}? steadytext_models lists the models there are.", close.join(", "));
    }
    let known: Vec<String> = names().take(8).chain([BUILTIN]).map(quoted).collect();
    format!(
        "Models for this task: {}. steadytext_models lists all; administrators add to it.",
        known.join(", ")
    )
}

fn registered(task: Task, name: &str, models: &[Model]) -> Result<Resolved, PgError> {
    let (model, shown) = (find(task, name, models)?, shown(name));
    // Said in the same words whether or not there is something.
    let path = registered_path(&model.file).map_err(|LeadsOut| {
        PgError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("the file of model \"{shown}\" leads out of pg_steadytext.model_dir"),
        )
        .hint("Put the file itself into that directory, or let a superuser register its absolute path.")
    })?;
    if !is_there(&path) {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("the file of model \"{shown}\" is not there: \"{}\"", path.display()),
        )
        .hint(
            "Put the file there, or change pg_steadytext.model_dir or the model's row in steadytext_models.",
        ));
    }
    let found = Resolved::file(&path, name, model.sha256);
    found.check_known().map(|()| found)
}

/// What to say where [`Resolved::is_fallback`] is set.
pub(crate) fn builtin_warning() -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_WARNING,
        "pg_steadytext answers with its builtin model, which is for demonstrations and tests only",
    )
    .hint("Put a GGUF file into pg_steadytext.model_dir and name it in pg_steadytext.generation_model, pg_steadytext.embedding_model or pg_steadytext.reranker_model; set them to \"builtin\" to silence this.")
}

/// What was resolved: for what, by which name, to which model.
type Known = Vec<(Task, Option<String>, Resolved)>;

thread_local! {
    /// What was resolved since [`looking_once`] began.
    static KNOWN: RefCell<Option<Known>> = const { RefCell::new(None) };
}

/// Runs `work`, in which files are looked at once, however many requests ask for the same model.
pub(crate) fn looking_once<T>(work: impl FnOnce() -> T) -> T {
    /// Forgets them however `work` ends.
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            KNOWN.set(None);
        }
    }
    let _forget = Forget;
    KNOWN.set(Some(Vec::new()));
    work()
}

/// Whether there is a model: a GGUF file, or a folder of an encoder.
fn is_there(path: &Path) -> bool {
    // Of a split model, all parts.
    parts(path).iter().all(|part| part.is_file()) || path.join("config.json").is_file()
}

/// A file of the registry, which administrators fill who are no superusers.
fn registered_path(file: &str) -> Result<PathBuf, LeadsOut> {
    locate(Path::new(&guc::model_dir()), file)
}

/// A file that a setting names: relative names are under pg_steadytext.model_dir.
fn path_of(file: &str) -> PathBuf {
    Path::new(&guc::model_dir()).join(file)
}
