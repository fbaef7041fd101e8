//! The model of a request: what its file must be, and which model takes its place where `auto` has chosen it
//! and the file is no good.
//!
//! Invariant: a file is taken for no good only because of what it holds or because it cannot be read, and
//! only for the use that was made of it, never because of what somebody asked.

use std::cell::RefCell;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use pgrx::prelude::*;
use steadytext_engine::card::Card;
use steadytext_engine::{Error, ModelIdentity, ModelSource, hex};

use super::defaults;
use super::directory;
use super::embedding::Embedding;
use super::model_files::{registered_path, see_whether_there};
use super::names::{path_of, seeded};
use super::task::{BUILTIN, ModelTask};
use crate::pg::catalog_cache::{ModelRegistry, RegisteredModel};
use crate::pg::error::{PgError, RequestFailure};
use crate::pg::{activity, bgworker, model_checksums, predecessor_variables};

/// Time for which a file that could not be read is passed over before it is tried again: its permissions may
/// have changed, which leave no trace in what tells one content from another.
const UNREADABLE: Duration = Duration::from_secs(60);
/// Times that a request begins anew because the file of its model was replaced while it was computed.
pub(crate) const MOST_REPLACED: u32 = 8;
/// Warnings that a session remembers.
const MAX_WARNINGS: usize = 64;

thread_local! {
    /// The warnings that this session has had.
    static WARNED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A model that was found.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    /// Its file, or the builtin model.
    pub(crate) source: ModelSource,
    /// Nobody chose it: it is the builtin one because no other is there.
    pub(crate) is_fallback: bool,
    name: String,
    /// SHA-256 of its own file, without adapters, in its row or its card.
    sha256: Option<[u8; 32]>,
    /// The purpose for which `auto` has chosen it, where it has.
    auto: Option<ModelTask>,
    /// Warnings about the models before it that were passed over.
    passed_over: Vec<PgError>,
    embedding: Arc<Embedding>,
    /// The setting that has chosen it, where one has.
    setting: Option<Arc<str>>,
}

impl Resolved {
    /// The builtin model.
    pub(super) fn builtin(is_fallback: bool) -> Resolved {
        Resolved {
            source: ModelSource::Builtin,
            is_fallback,
            name: BUILTIN.to_owned(),
            sha256: None,
            auto: None,
            passed_over: Vec::new(),
            embedding: Arc::default(),
            setting: None,
        }
    }

    /// A file, and the row that says something of it. Where nothing else says what its content must be, its
    /// card does.
    ///
    /// # Errors
    ///
    /// XX001 for a card that cannot be read.
    pub(super) fn file(
        path: &Path,
        name: &str,
        sha256: Option<[u8; 32]>,
        row: Option<&RegisteredModel>,
    ) -> Result<Resolved, PgError> {
        let card = directory::card(path)?;
        let sha256 = sha256.or_else(|| card.as_ref().and_then(|card| card.checksum()));
        let embedding =
            Arc::new(Embedding::of_file(path, row, card.as_deref(), directory::adapted_tasks(path)));
        let source = ModelSource::File(path.to_owned());
        Ok(Resolved { source, name: name.to_owned(), sha256, embedding, ..Resolved::builtin(false) })
    }

    /// One whose file is on another machine.
    pub(super) fn elsewhere(row: &RegisteredModel) -> Resolved {
        Resolved {
            source: ModelSource::File(row.file.clone().into()),
            name: row.name.clone(),
            sha256: row.sha256,
            embedding: Arc::new(Embedding::elsewhere(row)),
            ..Resolved::builtin(false)
        }
    }

    /// The SHA-256 that its file must have, where one is registered.
    pub(super) fn sha256(&self) -> Option<[u8; 32]> {
        self.sha256
    }

    /// The properties of its embeddings.
    pub(crate) fn embedding(&self) -> &Arc<Embedding> {
        &self.embedding
    }

    /// The name by which it was found.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// Sets the setting that has chosen it.
    pub(super) fn set_by(self, setting: &str) -> Resolved {
        Resolved { setting: Some(setting.into()), ..self }
    }

    /// An error about the model, with the setting that has chosen it: whoever meets the error may not have
    /// named the model, and does not know where it comes from.
    pub(crate) fn with_setting(&self, error: PgError) -> PgError {
        match &self.setting {
            Some(setting) => defaults::named_by(error, setting),
            None => error,
        }
    }

    /// An error of the engine as SQL reports it, with the setting where the error is about the model.
    pub(crate) fn failure(&self, error: Error) -> RequestFailure {
        let is_about_model = matches!(
            error,
            Error::ModelFile { .. }
                | Error::LostModel { .. }
                | Error::CorruptModel { .. }
                | Error::UnsupportedModel { .. }
                | Error::Template { .. }
                | Error::UnknownTask { .. }
                | Error::NonFinite { .. }
        );
        let RequestFailure { error, retry } = RequestFailure::from(error);
        RequestFailure { error: if is_about_model { self.with_setting(error) } else { error }, retry }
    }

    /// Prevents other models from taking its place when it cannot be used.
    pub(super) fn alone(self) -> Resolved {
        Resolved { auto: None, ..self }
    }

    /// Compares the file as it is with what is registered, if its checksum is known already; otherwise that
    /// is done when it is loaded.
    ///
    /// # Errors
    ///
    /// XX001 for another one.
    pub(super) fn check_known(&self) -> Result<(), PgError> {
        if self.sha256.is_none() {
            return Ok(());
        }
        model_checksums::own_of(&self.source).map_or(Ok(()), |hash| self.check(&hash))
    }

    /// Compares the content of the file with what is registered; `compute` is asked for its checksum where
    /// nobody has computed it before.
    ///
    /// # Errors
    ///
    /// XX001 for another one.
    pub(super) fn check_content(&self, compute: impl FnOnce() -> Option<[u8; 32]>) -> Result<(), PgError> {
        if self.sha256.is_none() {
            return Ok(());
        }
        model_checksums::own_of(&self.source).or_else(compute).map_or(Ok(()), |hash| self.check(&hash))
    }

    /// Compares the content of the file that computes an answer with what is registered.
    ///
    /// # Errors
    ///
    /// XX001 for another one.
    pub(crate) fn check_loaded(&self, model: &ModelIdentity) -> Result<(), PgError> {
        if let ModelSource::File(path) = &self.source
            && model_checksums::is_replaced(path, &model.hash)
        {
            PgError::new(
                PgSqlErrorCode::ERRCODE_WARNING,
                format!("file \"{}\" of model \"{}\" has another content than before", path.display(), self.name),
            )
            .hint("What was computed before is not what the model computes now: columns of vectors are to be written anew.")
            .report(PgLogLevel::LOG);
        }
        self.check(&model.own_hash).map_err(|error| self.with_setting(error))
    }

    /// The error of a request during which its file was replaced again and again: an answer comes from one
    /// content.
    pub(crate) fn replaced_too_often(&self) -> PgError {
        self.with_setting(
            PgError::new(
                PgSqlErrorCode::ERRCODE_IO_ERROR,
                format!(
                    "the file of model \"{}\" was replaced again and again during the request",
                    self.name
                ),
            )
            .hint("Ask again when the file stays as it is."),
        )
    }

    fn check(&self, hash: &[u8; 32]) -> Result<(), PgError> {
        if self.sha256.is_none_or(|sha256| sha256 == *hash) {
            return Ok(());
        }
        let file = match &self.source {
            ModelSource::File(path) => path.display().to_string(),
            ModelSource::Builtin => BUILTIN.to_owned(),
        };
        Err(PgError::new(
            PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
            format!(
                "file \"{file}\" of model \"{}\" is not the registered one: its SHA-256 is {}",
                self.name,
                hex(hash)
            ),
        )
        .hint("Fetch the file again; or, if it is the right one, correct sha256 of the model in steadytext_models or in the card beside it."))
    }

    /// The purpose for which `auto` has chosen it, where it has.
    pub(super) fn auto(&self) -> Option<ModelTask> {
        self.auto
    }

    /// Notes that loading its file has failed. `None` where the failure is not the file's, or where somebody
    /// chose the model.
    pub(super) fn note_failure(&self, error: &Error) -> Option<()> {
        let until = match error {
            Error::ModelFile { .. } => activity::now() + UNREADABLE.as_micros() as i64,
            Error::CorruptModel { .. } | Error::UnsupportedModel { .. } | Error::Template { .. } => i64::MAX,
            _ => return None,
        };
        let (purpose, ModelSource::File(path)) = (self.auto?, &self.source) else { return None };
        let reason = RequestFailure::from(error.clone()).error.message;
        note(path, purpose, &self.name, &reason, until)
    }

    /// Warns the client of models that were passed over, once in a session of each.
    pub(crate) fn warn_of_passed_over(&self) {
        for warning in &self.passed_over {
            if remember(&warning.message) {
                warning.clone().warn_client();
            }
        }
    }
}

/// The result of a search by `auto`.
pub(super) struct Search {
    /// The model.
    pub(super) found: Option<Resolved>,
    /// Warnings about the models before it that were passed over.
    pub(super) passed_over: Vec<PgError>,
    /// Somebody wants a model for the task here: the builtin one must not answer in its place.
    pub(super) is_claimed: bool,
}

impl Search {
    /// Passes over a model of which it cannot be seen whether it is meant for the task.
    fn pass_over(&mut self, name: &str, reason: &str) {
        self.is_claimed = true;
        self.passed_over.push(warning(name, reason));
    }

    /// Passes over a registered model whose file is not there. What others compute in its place is not what
    /// it computes, so that somebody must hear of it where it is the preferred one. Of those that came with
    /// the extension most are never there.
    fn miss(&mut self, model: &RegisteredModel) {
        if !model.is_preferred || model.is_default {
            return;
        }
        let warning = warning(&model.name, "its file is not there");
        // Nobody else tells the server's log.
        if bgworker::is_worker() && remember(&warning.message) {
            warning.clone().report(PgLogLevel::WARNING);
        }
        self.passed_over.push(warning);
    }

    /// Looks at the file of a model. Whether it is the one.
    fn consider(
        &mut self,
        purpose: ModelTask,
        path: &Path,
        name: &str,
        sha256: Option<[u8; 32]>,
        row: Option<&RegisteredModel>,
    ) -> bool {
        self.is_claimed = true;
        let mut found = match Resolved::file(path, name, sha256, row) {
            Ok(found) => found,
            Err(error) => {
                self.pass_over(name, &error.message);
                return false;
            }
        };
        if let Err(error) = found.check_known() {
            // Not to be believed: the row may be corrected.
            note(path, purpose, name, &error.message, 0);
            self.passed_over.push(warning(name, &error.message));
            return false;
        }
        if let Some(reason) = model_checksums::why_bad(path, purpose.number(), activity::now()) {
            self.passed_over.push(warning(name, &reason));
            return false;
        }
        found.auto = Some(purpose);
        self.found = Some(found);
        true
    }
}

/// The model that `auto` chooses for a purpose: the first of the registered models whose file is there and
/// good, as far as that is known; otherwise the first in the directory whose card prefers the task; otherwise
/// the only one in the directory that can be used for it.
///
/// # Errors
///
/// 42710 where there are several of the last kind.
pub(super) fn search(purpose: ModelTask, models: &ModelRegistry, task: ModelTask) -> Result<Search, PgError> {
    let mut search = Search { found: None, passed_over: Vec::new(), is_claimed: false };
    let mut rows: Vec<&RegisteredModel> = models.iter().filter(|model| model.task == task.name()).collect();
    if task == ModelTask::Generate && predecessor_variables::is_on(predecessor_variables::USE_FALLBACK_MODEL)
    {
        rows.sort_by_key(|model| !model.is_fallback);
    }
    let listing = directory::listing();
    for model in rows {
        // Rows that came with the extension say nothing of what is wanted here, and those of models elsewhere
        // only where they are preferred: nobody gets them without naming them.
        search.is_claimed |= !model.is_default && (!model.is_elsewhere() || model.is_preferred);
        if model.is_elsewhere() {
            continue;
        }
        let may_be_there = listing.may_have(&model.file);
        let Some(path) = may_be_there.then(|| registered_path(&model.file).ok()).flatten() else {
            search.miss(model);
            continue;
        };
        match see_whether_there(&path) {
            Ok(true) => {
                if search.consider(purpose, &path, &model.name, model.sha256, Some(model)) {
                    return Ok(search);
                }
            }
            Ok(false) => search.miss(model),
            Err(error) => search.pass_over(&model.name, &directory::unseen(&path, &error).message),
        }
    }
    if let Some(error) = listing.unreadable() {
        search.is_claimed = true;
        let warning = PgError { code: PgSqlErrorCode::ERRCODE_WARNING, ..error.clone() };
        search.passed_over.insert(0, warning);
    }
    for (file, card) in listing.stray_cards() {
        match card {
            Ok(card) => search.is_claimed |= prefers(card.as_deref(), task),
            Err(error) => search.pass_over(file, &error.message),
        }
    }
    let mut others = Vec::new();
    for entry in listing.entries() {
        let Some(path) = path_of(entry) else { continue };
        // A card that cannot be read may prefer the model for any task, and say what its texts begin with.
        let card = match directory::card(&path) {
            Ok(card) => card,
            Err(error) => {
                search.pass_over(&entry.file, &error.message);
                continue;
            }
        };
        let prefers = prefers(card.as_deref(), task);
        if !prefers && models.iter().any(|model| model.file == entry.file) {
            continue;
        }
        match see_whether_there(&path) {
            Ok(true) if prefers => {
                let row = seeded(&entry.file, models);
                if search.consider(purpose, &path, &entry.name, None, row) {
                    return Ok(search);
                }
            }
            Ok(true) => others.push((entry, path)),
            Ok(false) => search.is_claimed |= prefers,
            Err(error) => search.pass_over(&entry.name, &directory::unseen(&path, &error).message),
        }
    }
    others.retain(|(entry, path)| match directory::tasks(path) {
        Ok(tasks) => tasks.contains(&task.of_card()),
        Err(error) => {
            search.pass_over(&entry.name, &directory::unseen(path, &error).message);
            false
        }
    });
    if let [_, _, ..] = others.as_slice() {
        let names: Vec<String> =
            others.iter().take(8).map(|(entry, _)| format!("\"{}\"", entry.name)).collect();
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_DUPLICATE_OBJECT,
            format!("no model is preferred for task {} among several: {}", task.name(), names.join(", ")),
        )
        .hint(format!("Name one in {}.", task.setting().name().to_string_lossy())));
    }
    for (entry, path) in others {
        search.consider(purpose, &path, &entry.name, None, None);
    }
    Ok(search)
}

fn prefers(card: Option<&Card>, task: ModelTask) -> bool {
    card.is_some_and(|card| card.preferred.contains(&task.of_card()))
}

/// The error where there are models for a task, and none that can be used.
pub(super) fn none_usable(task: ModelTask, passed_over: &[PgError]) -> PgError {
    let reason = passed_over.first().map_or("the files of its models are not there", |error| &error.message);
    PgError::new(
        PgSqlErrorCode::ERRCODE_UNDEFINED_FILE,
        format!("no model for task {} can be used: {reason}", task.name()),
    )
    .hint(format!(
        "Put a file into pg_steadytext.model_dir, or name a model in {}; \"builtin\" is one, and for demonstrations and tests only.",
        task.setting().name().to_string_lossy()
    ))
}

/// Puts warnings about models that were passed over earlier before those of the model.
pub(super) fn after(mut found: Resolved, mut passed_over: Vec<PgError>) -> Resolved {
    passed_over.append(&mut found.passed_over);
    found.passed_over = passed_over;
    found
}

/// The reason why the file of a model cannot be used for its task. `None` where none is known.
pub(super) fn why_bad(task: ModelTask, model: &RegisteredModel, path: &Path) -> Option<String> {
    let known = Resolved::file(path, &model.name, model.sha256, None).and_then(|found| found.check_known());
    known
        .err()
        .map(|error| error.message)
        .or_else(|| model_checksums::why_bad(path, task.number(), activity::now()))
}

/// Notes that a file is no good; the first process that does so writes it to the log.
fn note(path: &Path, purpose: ModelTask, name: &str, reason: &str, until: i64) -> Option<()> {
    let reason = model_checksums::fitting(reason);
    if model_checksums::note_bad(path, purpose.number(), reason, until)? {
        let warning = warning(name, reason);
        remember(&warning.message);
        warning.report(PgLogLevel::WARNING);
    }
    Some(())
}

/// Whether the session has not had this warning before.
fn remember(message: &str) -> bool {
    WARNED.with_borrow_mut(|warned| {
        if warned.iter().any(|known| known == message) {
            return false;
        }
        warned.truncate(MAX_WARNINGS - 1);
        warned.insert(0, message.to_owned());
        true
    })
}

fn warning(name: &str, reason: &str) -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_WARNING,
        format!("model \"{name}\" is passed over: {}", model_checksums::fitting(reason)),
    )
    .hint("Another model answers, if there is one. Mend or remove the file, or name another model in the settings.")
}
