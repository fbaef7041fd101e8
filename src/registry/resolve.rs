//! From what a request says of its model, or the settings, to the file that answers.

use std::cell::RefCell;
use std::path::Path;

use pgrx::prelude::*;
use steadytext_engine::gguf::parts;
use steadytext_engine::{Error, ModelSource};

use super::choice::{self, Resolved, Search};
use super::defaults::{self, DefaultModel};
use super::directory::{self, DirectoryEntry};
use super::model_files::{LeadsOut, is_there, registered_path, set_path};
use super::names::{entry, gives_way, incomplete_file, of_file, path_of, row, seeded, shown, unseen_file};
use super::suggestions::{asks_through_the_queue, known};
use super::task::{AUTO, BUILTIN, ModelTask, RequestedModel};
use crate::pg::catalog_cache::{ModelRegistry, RegisteredModel};
use crate::pg::error::PgError;
use crate::pg::{guc, restore};

/// Resolved models, each with its task and the name that was asked for.
type ResolvedModels = Vec<(ModelTask, Option<String>, Resolved)>;

thread_local! {
    /// The models resolved since [`looking_once`] began.
    static KNOWN: RefCell<Option<ResolvedModels>> = const { RefCell::new(None) };
    /// The models that calls got which name none, in a session that restores a dump.
    static DEFAULTS_OF_RESTORE: RefCell<Vec<(ModelTask, ModelSource)>> = const { RefCell::new(Vec::new()) };
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

fn is_looking_once() -> bool {
    KNOWN.with_borrow(Option::is_some)
}

/// The model of a request that names one, by name or size, or the one that is the default.
///
/// # Errors
///
/// 42704 for a name that nothing has, 42710 for one that several have, 42809 for a model that is for another
/// task, 58030 for one whose file is not there or cannot be looked at, 58P01 where none can be used, XX001
/// for one whose file is known to be another than the registered, or whose card cannot be read.
pub(crate) fn resolve(
    task: ModelTask,
    wanted: RequestedModel<'_>,
    models: &ModelRegistry,
) -> Result<Resolved, PgError> {
    let (asked, setting) = match wanted {
        RequestedModel::Named(name) => (Some(name), None),
        RequestedModel::Remembered(name) => (Some(name), Some(defaults::of_sender(task))),
        RequestedModel::Default => (None, None),
    };
    let resolved = find_once(task, asked.filter(|name| *name != AUTO), models);
    match setting {
        Some(setting) => resolved
            .map(|resolved| resolved.set_by(&setting))
            .map_err(|error| defaults::named_by(error, &setting)),
        None => resolved,
    }
}

/// Resolves by the name alone, and looks for the model once while [`looking_once`] runs.
fn find_once(task: ModelTask, asked: Option<&str>, models: &ModelRegistry) -> Result<Resolved, PgError> {
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

/// The model of a name, whatever it is registered for; without one, that which generates. No other one takes
/// its place.
///
/// # Errors
///
/// As [`resolve`].
pub(crate) fn of_any_task(asked: Option<&str>, models: &ModelRegistry) -> Result<Resolved, PgError> {
    let asked = asked.filter(|name| *name != AUTO);
    let row = asked.and_then(|name| row(name, models));
    let task = row.and_then(|row| ModelTask::ALL.into_iter().find(|task| task.name() == row.task));
    Ok(look_for(task.unwrap_or(ModelTask::Generate), asked, models)?.alone())
}

fn look_for(task: ModelTask, asked: Option<&str>, models: &ModelRegistry) -> Result<Resolved, PgError> {
    match asked {
        Some(BUILTIN) => Ok(Resolved::builtin(false)),
        Some(name) => named(task, name, models),
        None => {
            let found = configured(task, task, models)?;
            note_default_of_restore(task, &found.source);
            Ok(found)
        }
    }
}

/// Notes the model that a call gets which names none, if this session restores a dump.
fn note_default_of_restore(task: ModelTask, source: &ModelSource) {
    if !restore::in_session() {
        return;
    }
    DEFAULTS_OF_RESTORE.with_borrow_mut(|defaults| {
        if !defaults.iter().any(|(of, _)| *of == task) {
            defaults.push((task, source.clone()));
        }
    });
}

/// The models that calls have got which name none, with their tasks; none in a session that restores no dump.
pub(super) fn defaults_of_restore() -> Vec<(ModelTask, ModelSource)> {
    DEFAULTS_OF_RESTORE.with_borrow(Clone::clone)
}

/// The model that is the default of a task, to be used for a purpose.
fn configured(purpose: ModelTask, task: ModelTask, models: &ModelRegistry) -> Result<Resolved, PgError> {
    let Some(DefaultModel { name, setting }) = defaults::of(task, models)? else {
        return automatic(purpose, task, models);
    };
    by_setting(task, &name, models)
        .map(|found| found.set_by(&setting))
        .map_err(|error| defaults::named_by(error, &setting))
}

/// The model of a name that a setting has, or of a path, which only settings have that a superuser has made.
///
/// # Errors
///
/// As [`resolve`].
pub(super) fn by_setting(task: ModelTask, name: &str, models: &ModelRegistry) -> Result<Resolved, PgError> {
    if name == BUILTIN {
        return Ok(Resolved::builtin(false));
    }
    if !guc::is_path(name) {
        return named(task, name, models);
    }
    let path = set_path(name);
    if !is_there(&path) {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("there is no model at \"{name}\""),
        )
        .hint("Give the path of a GGUF file or of an encoder's folder, or the name of a model: steadytext_model_list() shows which there are."));
    }
    // A row about the file applies to each of its names.
    let row = of_file(name, models);
    let found = Resolved::file(&path, name, row.and_then(|row| row.sha256), row)?;
    found.check_known().map(|()| found)
}

/// The model that is used where no default is set.
fn automatic(purpose: ModelTask, task: ModelTask, models: &ModelRegistry) -> Result<Resolved, PgError> {
    let Search { found, passed_over, is_claimed } = choice::search(purpose, models, task)?;
    let found = match found {
        Some(found) => found,
        // Vectors rank documents, too, and those of the model that was chosen for vectors do so best.
        None if task == ModelTask::Rerank => configured(purpose, ModelTask::Embed, models)?,
        // The builtin model must not stand in for the one that computed the stored results, or is to.
        None if is_claimed => return Err(choice::none_usable(task, &passed_over)),
        None => Resolved::builtin(true),
    };
    Ok(choice::after(found, passed_over))
}

/// Refuses names that [`resolve`] would not find.
///
/// # Errors
///
/// 42704, 42710 and 42809, as [`resolve`]; 58030 where that cannot be seen.
pub(crate) fn check(task: ModelTask, name: &str, models: &ModelRegistry) -> Result<(), PgError> {
    if name == BUILTIN {
        return Ok(());
    }
    // Who looks once more for what is found needs not look.
    if is_looking_once() && find_once(task, Some(name), models).is_ok() {
        return Ok(());
    }
    find(task, name, models).map(|_| ())
}

/// Refuses a model that is only elsewhere.
///
/// # Errors
///
/// 0A000.
pub(super) fn refuse_elsewhere(model: &RegisteredModel) -> Result<(), PgError> {
    if !model.is_elsewhere() {
        return Ok(());
    }
    let asks = asks_through_the_queue(&model.task);
    Err(PgError::new(
        PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
        format!("model \"{}\" is computed by workers elsewhere only", model.name),
    )
    .hint(format!(
        "They answer requests of the queue, and {asks}(…, model => '{}'{}) makes one. Only models of this server count, cut and search at once: steadytext_model_list() shows the placement of each.",
        model.name,
        if model.task == "embed" { ", mode => 'query' for what is searched for" } else { "" },
    )))
}

/// The model that a name refers to.
enum NamedModel<'a> {
    Row(&'a RegisteredModel),
    Entry(DirectoryEntry),
}

/// A row of this name, or else a model in the directory.
fn find<'a>(task: ModelTask, name: &str, models: &'a ModelRegistry) -> Result<NamedModel<'a>, PgError> {
    let shown = shown(name);
    let of_other_task = |verb: &str, tasks: &str| {
        PgError::new(
            PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
            format!("model \"{shown}\" is {verb} for task {tasks}, not {}", task.name()),
        )
        .hint(known(task, name, models))
    };
    if let Some(model) = row(name, models) {
        return if model.task == task.name() {
            Ok(NamedModel::Row(model))
        } else {
            Err(of_other_task("registered", &model.task))
        };
    }
    let Some(entry) = entry(name)? else {
        if let Some(path) = incomplete_file(name)? {
            return Err(not_whole(&shown, &path));
        }
        if let Some(error) = unseen_file(name)? {
            return Err(error);
        }
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("model \"{shown}\" is not registered"),
        )
        .hint(known(task, name, models)));
    };
    if let Some(path) = path_of(&entry)
        && let Some(card) = directory::card(&path)?
        && !card.tasks.is_empty()
        && !card.tasks.contains(&task.of_card())
    {
        let tasks: Vec<&str> = card.tasks.iter().map(|task| task.name()).collect();
        return Err(of_other_task("meant", &tasks.join(", ")));
    }
    Ok(NamedModel::Entry(entry))
}

/// The error about missing parts of a split model.
fn not_whole(shown: &str, path: &Path) -> PgError {
    let parts = parts(path);
    let (there, missing): (Vec<_>, Vec<_>) = parts.iter().partition(|part| part.is_file());
    PgError::new(
        PgSqlErrorCode::ERRCODE_IO_ERROR,
        format!(
            "model \"{shown}\" has {} of its {} files: \"{}\" is not there",
            there.len(),
            parts.len(),
            missing.first().map_or(path, |part| part.as_path()).display()
        ),
    )
    .hint("Put all parts into the directory of the first one, under the names that they were published with.")
}

/// The model of a name that is not `builtin`.
fn named(task: ModelTask, name: &str, models: &ModelRegistry) -> Result<Resolved, PgError> {
    let (found, shown) = (find(task, name, models)?, shown(name));
    if let NamedModel::Row(model) = &found {
        refuse_elsewhere(model)?;
    }
    let (file, sha256, row) = match &found {
        NamedModel::Row(model) => (&model.file, model.sha256, Some(*model)),
        NamedModel::Entry(entry) => (&entry.file, None, seeded(&entry.file, models)),
    };
    // Said in the same words whether or not there is something.
    let path = registered_path(file).map_err(|LeadsOut| {
        PgError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            format!("the file of model \"{shown}\" leads out of pg_steadytext.model_dir"),
        )
        .hint("Put the file itself into that directory, or let a superuser register its absolute path.")
    })?;
    if path.is_file() && !is_there(&path) {
        return Err(not_whole(&shown, &path).missing(name));
    }
    if !is_there(&path) {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("the file of model \"{shown}\" is not there: \"{}\"", path.display()),
        )
        .hint(
            "Let an administrator download it with steadytext_model_pull(), put the file there, or change pg_steadytext.model_dir or the model's row in steadytext_models.",
        )
        .missing(name));
    }
    let found = Resolved::file(&path, name, sha256, row)?;
    found.check_known().map(|()| found)
}

/// Compares the file that a name stands for with the checksum in its row or in its card, where one of them
/// has one. `compute` is asked for that of the file where nobody has computed it before.
///
/// # Errors
///
/// XX001 where they differ, or where the card cannot be read.
pub(crate) fn check_content(
    name: &str,
    path: &Path,
    models: &ModelRegistry,
    compute: impl FnOnce() -> Option<[u8; 32]>,
) -> Result<(), PgError> {
    let is_of_path = |model: &&RegisteredModel| registered_path(&model.file).is_ok_and(|of| of == path);
    let named = models.iter().find(|model| model.name == name && !gives_way(model));
    let row = named.or_else(|| models.iter().filter(|model| model.is_default).find(is_of_path));
    Resolved::file(path, name, row.and_then(|row| row.sha256), row)?.check_content(compute)
}

/// The warning for a model with [`Resolved::is_fallback`].
pub(crate) fn builtin_warning() -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_WARNING,
        "pg_steadytext answers with its builtin model, which is for demonstrations and tests only",
    )
    .hint("Put a GGUF file into pg_steadytext.model_dir; set pg_steadytext.generation_model, pg_steadytext.embedding_model and pg_steadytext.reranker_model to \"builtin\" to silence this.")
}

impl Resolved {
    /// The model that is taken in the place of this one, whose loading has failed. `None` where the failure
    /// is not the file's, or where somebody chose the model.
    pub(crate) fn pass_over(&self, error: &Error, models: &ModelRegistry) -> Option<Resolved> {
        self.note_failure(error)?;
        self.next(models)
    }

    /// The model that is taken in the place of this one, whose content is known by now, and another one than
    /// the registered.
    pub(crate) fn next(&self, models: &ModelRegistry) -> Option<Resolved> {
        let next = resolve(self.auto()?, RequestedModel::Default, models).ok()?;
        (next.source != self.source).then_some(next)
    }
}
