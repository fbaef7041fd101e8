//! The registry of models: from the name of a model, or the settings, to the file that answers.
//!
//! A name is that of a row of steadytext_models; otherwise that of a file or folder directly below
//! pg_steadytext.model_dir; otherwise `builtin`. Where none is named, [`defaults`] says which one was set, and
//! [`choice`] takes one where none was.
//!
//! Invariant: a request can only name such a model. Paths are given by administrators in the registry, and by
//! superusers in settings.

mod choice;
mod defaults;
pub(crate) mod directory;
mod download_request;
mod elsewhere;
mod embedding;
mod model_files;
pub(crate) mod restored;
mod suggestions;

use std::cell::RefCell;
use std::path::{Path, PathBuf};

use pgrx::prelude::*;
use steadytext_engine::gguf::parts;
use steadytext_engine::{ModelSource, card};

pub(crate) use self::choice::Resolved;
use self::choice::Search;
use self::defaults::DefaultModel;
pub(crate) use self::defaults::is_obeyed;
use self::directory::Entry;
pub(crate) use self::download_request::DownloadRequest;
pub(crate) use self::elsewhere::{default_names, resolve_elsewhere};
pub(crate) use self::embedding::Embedding;
use self::model_files::{LeadsOut, locate};
use self::suggestions::known;
use crate::pg::catalog_cache::{Model, Models};
use crate::pg::error::PgError;
use crate::pg::guc;

/// The name of the model inside the library.
pub(crate) const BUILTIN: &str = "builtin";
/// The setting that leaves the choice to the next level.
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
    /// All of them, by their numbers.
    pub(crate) const ALL: [Task; 3] = [Task::Generate, Task::Embed, Task::Rerank];

    /// The word for it in steadytext_models.
    pub(crate) fn name(self) -> &'static str {
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

    /// The same in cards.
    fn of_card(self) -> card::Task {
        match self {
            Task::Generate => card::Task::Generate,
            Task::Embed => card::Task::Embed,
            Task::Rerank => card::Task::Rerank,
        }
    }
}

/// Which model a request wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted<'a> {
    /// The one of this name.
    Named(&'a str),
    /// The one that was the default of the session which enqueued it.
    Remembered(&'a str),
    /// Any: the default of this session.
    Default,
}

/// The model of a request that names one, by name or size, or the one that is the default.
///
/// # Errors
///
/// 42704 for a name that nothing has, 42710 for one that several have, 42809 for a model that is for another task, 58030
/// for one whose file is not there, 58P01 where none can be used, XX001 for one whose file is known to be another than the
/// registered, or whose card cannot be read.
pub(crate) fn resolve(task: Task, wanted: Wanted<'_>, models: &Models) -> Result<Resolved, PgError> {
    let asked = match wanted {
        Wanted::Named(name) | Wanted::Remembered(name) => Some(name),
        Wanted::Default => None,
    };
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
pub(crate) fn of_any_task(asked: Option<&str>, models: &Models) -> Result<Resolved, PgError> {
    let row = asked.and_then(|name| row(name, models));
    let task = row.and_then(|row| Task::ALL.into_iter().find(|task| task.name() == row.task));
    Ok(look_for(task.unwrap_or(Task::Generate), asked, models)?.alone())
}

fn look_for(task: Task, asked: Option<&str>, models: &Models) -> Result<Resolved, PgError> {
    match asked {
        Some(BUILTIN) => Ok(Resolved::builtin(false)),
        Some(name) => named(task, name, models),
        None => {
            let found = configured(task, task, models)?;
            restored::note(task, &found.source);
            Ok(found)
        }
    }
}

/// The model that is the default of a task, to be used for a purpose.
fn configured(purpose: Task, task: Task, models: &Models) -> Result<Resolved, PgError> {
    let Some(DefaultModel { name, setting }) = defaults::of(task, models)? else {
        return automatic(purpose, task, models);
    };
    if name == BUILTIN {
        return Ok(Resolved::builtin(false));
    }
    if models.iter().any(|model| model.name == name) || (!guc::is_path(&name) && entry(&name)?.is_some()) {
        return named(task, &name, models);
    }
    // Only settings that a superuser has made have paths.
    let path = set_path(&name);
    if !guc::is_path(&name) || !is_there(&path) {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("{setting} is \"{name}\", which is neither a registered model nor a file"),
        )
        .hint("Register the model in steadytext_models, or put its file into pg_steadytext.model_dir."));
    }
    // What is registered of the file holds for every name of it.
    let row = of_file(&name, models);
    let found = Resolved::file(&path, &name, row.and_then(|row| row.sha256), row)?;
    found.check_known().map(|()| found)
}

/// What is taken where nobody has set a default.
fn automatic(purpose: Task, task: Task, models: &Models) -> Result<Resolved, PgError> {
    let Search { found, passed_over, is_claimed } = choice::search(purpose, models, task)?;
    let found = match found {
        Some(found) => found,
        // Vectors rank documents, too, and those of the model that was chosen for vectors do so best.
        None if task == Task::Rerank => configured(purpose, Task::Embed, models)?,
        // What was computed by another model, or is to be, is not the builtin one's.
        None if is_claimed => return Err(choice::none_usable(task, &passed_over)),
        None => Resolved::builtin(true),
    };
    Ok(choice::after(found, passed_over))
}

/// What a request has to remember that is enqueued now and names no model: the default of this session, its role or its
/// database. The worker knows what is set for the server and in steadytext_config.
///
/// # Errors
///
/// Those of [`check`]; 0A000 for a path, which the queue must not carry.
pub(crate) fn to_remember(task: Task, models: &Models) -> Result<Option<String>, PgError> {
    let Some(DefaultModel { name, setting }) = defaults::of_session(task) else { return Ok(None) };
    if guc::is_path(&name) {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("{setting} is a path in this session, which requests of the queue cannot name"),
        )
        .hint("Register the file in steadytext_models, and set its name."));
    }
    check(task, &name, models)?;
    Ok(Some(name))
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
pub(crate) fn status(models: &Models) -> Vec<Status> {
    let of = |model: &Model| {
        let Some(task) = Task::ALL.into_iter().find(|task| task.name() == model.task) else {
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
        let chosen = resolve(task, Wanted::Default, models).ok().map(|found| found.source);
        Status { state, reason, is_chosen: chosen == Some(ModelSource::File(path)) }
    };
    models.iter().map(of).collect()
}

/// Whether there is a model at a path of the registry.
pub(crate) fn is_file_there(file: &str) -> bool {
    registered_path(file).is_ok_and(|path| is_there(&path))
}

/// Refuses names that [`resolve`] would not find.
///
/// # Errors
///
/// 42704, 42710 and 42809, as [`resolve`].
pub(crate) fn check(task: Task, name: &str, models: &Models) -> Result<(), PgError> {
    if name == BUILTIN {
        return Ok(());
    }
    find(task, name, models).map(|_| ())
}

/// The row of a name.
fn row<'a>(name: &str, models: &'a Models) -> Option<&'a Model> {
    models.iter().find(|model| model.name == name).filter(|model| !gives_way(model))
}

/// Whether a file or folder of the row's name is meant by it: the row came with the extension, nobody has changed it, and its own
/// file is not there.
pub(crate) fn gives_way(row: &Model) -> bool {
    row.is_default && !is_file_there(&row.file) && !matches!(entry(&row.name), Ok(None))
}

/// What a name stands for.
enum Found<'a> {
    Row(&'a Model),
    Entry(Entry),
}

/// A row of this name, or else a model in the directory.
fn find<'a>(task: Task, name: &str, models: &'a Models) -> Result<Found<'a>, PgError> {
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
            Ok(Found::Row(model))
        } else {
            Err(of_other_task("registered", &model.task))
        };
    }
    let Some(entry) = entry(name)? else {
        if let Some(path) = incomplete_file(name)? {
            return Err(not_whole(&shown, &path));
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
    Ok(Found::Entry(entry))
}

/// The model of this name in the directory of the models.
///
/// # Errors
///
/// 42710 where several have it.
fn entry(name: &str) -> Result<Option<Entry>, PgError> {
    directory::find(name, |entry| path_of(entry).is_some_and(|path| is_there(&path)))
}

/// The file or folder of this name directly in the directory of the models, whatever it is for; `None` where a row has the name,
/// and where there is none.
///
/// # Errors
///
/// 42710 where several have it.
pub(crate) fn named_file(name: &str, models: &Models) -> Result<Option<PathBuf>, PgError> {
    if row(name, models).is_some() {
        return Ok(None);
    }
    Ok(entry(name)?.and_then(|entry| path_of(&entry)))
}

/// The first part of a split model of this name directly in the directory of the models, of which another part is missing.
///
/// # Errors
///
/// 42710 where several have the name.
pub(crate) fn incomplete_file(name: &str) -> Result<Option<PathBuf>, PgError> {
    let of = |entry: &Entry| path_of(entry).filter(|path| path.is_file() && !is_there(path));
    Ok(directory::find(name, |entry| of(entry).is_some())?.and_then(|entry| of(&entry)))
}

/// That a part of a split model is missing.
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

/// Whether a model is called so: the builtin one, a registered one, or one in the directory of the models.
pub(crate) fn is_known(name: &str, models: &Models) -> bool {
    name == BUILTIN || models.iter().any(|model| model.name == name) || matches!(entry(name), Ok(Some(_)))
}

/// The path of an entry of the directory; `None` for links that lead out of it.
pub(crate) fn path_of(entry: &Entry) -> Option<PathBuf> {
    if entry.is_plain { Some(set_path(&entry.file)) } else { registered_path(&entry.file).ok() }
}

/// The beginning of what a user sent, fit for an error message.
fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}

/// The model of a name that is not `builtin`.
fn named(task: Task, name: &str, models: &Models) -> Result<Resolved, PgError> {
    let (found, shown) = (find(task, name, models)?, shown(name));
    if let Found::Row(model) = &found {
        elsewhere::refuse_elsewhere(model)?;
    }
    let (file, sha256, row) = match &found {
        Found::Row(model) => (&model.file, model.sha256, Some(*model)),
        Found::Entry(entry) => (&entry.file, None, seeded(&entry.file, models)),
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

/// Compares the file that a name stands for with the checksum in its row or in its card, where one of them has one. `compute` is asked for that of
/// the file where nobody has computed it before.
///
/// # Errors
///
/// XX001 where they differ, or where the card cannot be read.
pub(crate) fn check_content(
    name: &str,
    path: &Path,
    models: &Models,
    compute: impl FnOnce() -> Option<[u8; 32]>,
) -> Result<(), PgError> {
    let is_of_path = |model: &&Model| registered_path(&model.file).is_ok_and(|of| of == path);
    let named = models.iter().find(|model| model.name == name && !gives_way(model));
    let row = named.or_else(|| models.iter().filter(|model| model.is_default).find(is_of_path));
    Resolved::file(path, name, row.and_then(|row| row.sha256), row)?.check_content(compute)
}

/// The row of a file that came with the extension: what others say is said of their names.
fn seeded<'a>(file: &str, models: &'a Models) -> Option<&'a Model> {
    models.iter().find(|model| model.is_default && model.file == file)
}

/// The first row of a file.
fn of_file<'a>(file: &str, models: &'a Models) -> Option<&'a Model> {
    models.iter().find(|model| model.file == file)
}

/// What to say where [`Resolved::is_fallback`] is set.
pub(crate) fn builtin_warning() -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_WARNING,
        "pg_steadytext answers with its builtin model, which is for demonstrations and tests only",
    )
    .hint("Put a GGUF file into pg_steadytext.model_dir; set pg_steadytext.generation_model, pg_steadytext.embedding_model and pg_steadytext.reranker_model to \"builtin\" to silence this.")
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
pub(crate) fn is_there(path: &Path) -> bool {
    // Of a split model, all parts.
    parts(path).iter().all(|part| part.is_file()) || path.join("config.json").is_file()
}

/// A file of the registry, which administrators fill who are no superusers.
pub(crate) fn registered_path(file: &str) -> Result<PathBuf, LeadsOut> {
    locate(Path::new(&guc::model_dir()), file)
}

/// A file that a setting names: relative names are under pg_steadytext.model_dir.
fn set_path(file: &str) -> PathBuf {
    Path::new(&guc::model_dir()).join(file)
}
