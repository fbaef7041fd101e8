//! The model of a request: what its file must be, and which model takes its place where `auto` has chosen it
//! and the file is no good.
//!
//! Invariant: a file is taken for no good only because of what it holds or because it cannot be read, and
//! only for the use that was made of it, never because of what somebody asked.

use std::cell::RefCell;
use std::path::Path;
use std::time::Duration;

use pgrx::prelude::*;
use steadytext_engine::{Error, ModelIdentity, ModelSource, hex};

use super::{self as registry, Task};
use crate::pg::catalog_cache::Model;
use crate::pg::error::{Failure, PgError};
use crate::pg::{activity, model_checksums};

/// How long a file that could not be read is passed over before it is tried again: its permissions may have
/// changed, which leave no trace in what tells one content from another.
const UNREADABLE: Duration = Duration::from_secs(60);
/// Warnings that a session remembers.
const MAX_WARNINGS: usize = 64;

thread_local! {
    /// The warnings that this session has had.
    static WARNED: RefCell<Vec<String>> = const { RefCell::new(Vec::new()) };
}

/// A model that was found.
#[derive(Debug, Clone)]
pub(crate) struct Resolved {
    /// Where it is.
    pub(crate) source: ModelSource,
    /// Nobody chose it: it is the builtin one because no other is there.
    pub(crate) is_fallback: bool,
    name: String,
    /// What its row says of the content of its file.
    sha256: Option<[u8; 32]>,
    /// What it is for, where `auto` has chosen it.
    auto: Option<Task>,
    /// Why others were passed over that come before it.
    passed_over: Vec<PgError>,
}

impl Resolved {
    /// The builtin model.
    pub(super) fn builtin(is_fallback: bool) -> Resolved {
        Resolved {
            source: ModelSource::Builtin,
            is_fallback,
            name: registry::BUILTIN.to_owned(),
            sha256: None,
            auto: None,
            passed_over: Vec::new(),
        }
    }

    /// A file.
    pub(super) fn file(path: &Path, name: &str, sha256: Option<[u8; 32]>) -> Resolved {
        Resolved {
            source: ModelSource::File(path.to_owned()),
            name: name.to_owned(),
            sha256,
            ..Resolved::builtin(false)
        }
    }

    /// The same, without others that would take its place.
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
        model_checksums::of(&self.source).map_or(Ok(()), |hash| self.check(&hash))
    }

    /// Compares the content of the file that computes an answer with what is registered.
    ///
    /// # Errors
    ///
    /// XX001 for another one.
    pub(crate) fn check_loaded(&self, model: &ModelIdentity) -> Result<(), PgError> {
        self.check(&model.hash)
    }

    fn check(&self, hash: &[u8; 32]) -> Result<(), PgError> {
        if self.sha256.is_none_or(|sha256| sha256 == *hash) {
            return Ok(());
        }
        let file = match &self.source {
            ModelSource::File(path) => path.display().to_string(),
            ModelSource::Builtin => registry::BUILTIN.to_owned(),
        };
        Err(PgError::new(
            PgSqlErrorCode::ERRCODE_DATA_CORRUPTED,
            format!(
                "file \"{file}\" of model \"{}\" is not the registered one: its SHA-256 is {}",
                self.name,
                hex(hash)
            ),
        )
        .hint("Fetch the file again; or, if it is the right one, correct sha256 of the model in steadytext_models."))
    }

    /// The model that is taken in the place of this one, whose loading has failed. `None` where the failure
    /// is not the file's, or where somebody chose the model.
    pub(crate) fn pass_over(&self, error: &Error, models: &[Model]) -> Option<Resolved> {
        let until = match error {
            Error::ModelFile { .. } => activity::now() + UNREADABLE.as_micros() as i64,
            Error::CorruptModel { .. } | Error::UnsupportedModel { .. } | Error::Template { .. } => i64::MAX,
            _ => return None,
        };
        let (purpose, ModelSource::File(path)) = (self.auto?, &self.source) else { return None };
        let reason = Failure::from(error.clone()).error.message;
        note(path, purpose, &self.name, &reason, until)?;
        self.next(models)
    }

    /// The model that is taken in the place of this one, whose content is known by now, and another one than
    /// the registered.
    pub(crate) fn next(&self, models: &[Model]) -> Option<Resolved> {
        let next = registry::resolve(self.auto?, None, models).ok()?;
        (next.source != self.source).then_some(next)
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

/// What `auto` takes for a purpose: the first of these models whose file is there and good, as far as that is
/// known.
pub(super) fn first_good(purpose: Task, models: &[Model], task: Task) -> (Option<Resolved>, Vec<PgError>) {
    let mut passed_over = Vec::new();
    for model in models.iter().filter(|model| model.task == task.name()) {
        let Some(path) = registry::registered_path(&model.file).ok().filter(|path| registry::is_there(path))
        else {
            continue;
        };
        let mut found = Resolved::file(&path, &model.name, model.sha256);
        if let Err(error) = found.check_known() {
            // Not to be believed: the row may be corrected.
            note(&path, purpose, &model.name, &error.message, 0);
            passed_over.push(warning(&model.name, &error.message));
        } else if let Some(reason) = model_checksums::why_bad(&path, purpose.number(), activity::now()) {
            passed_over.push(warning(&model.name, &reason));
        } else {
            found.auto = Some(purpose);
            return (Some(found), passed_over);
        }
    }
    (None, passed_over)
}

/// The same, with what was passed over before it.
pub(super) fn after(mut found: Resolved, mut passed_over: Vec<PgError>) -> Resolved {
    passed_over.append(&mut found.passed_over);
    found.passed_over = passed_over;
    found
}

/// Why the file of a model is no good for its task, as far as that is known.
pub(super) fn why_bad(task: Task, model: &Model, path: &Path) -> Option<String> {
    let known = Resolved::file(path, &model.name, model.sha256).check_known();
    known
        .err()
        .map(|error| error.message)
        .or_else(|| model_checksums::why_bad(path, task.number(), activity::now()))
}

/// Notes that a file is no good; the first process that does so writes it to the log.
fn note(path: &Path, purpose: Task, name: &str, reason: &str, until: i64) -> Option<()> {
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
    .hint("The next registered model answers. Mend or remove the file, or name another model in the server's settings.")
}
