//! Names of models: each refers to a row of steadytext_models, or to a file or folder of the directory of the
//! models.

use std::path::PathBuf;

use super::directory::{self, DirectoryEntry};
use super::model_files::{is_file_there, is_there, registered_path, set_path};
use super::task::BUILTIN;
use crate::pg::catalog_cache::{ModelRegistry, RegisteredModel};
use crate::pg::error::PgError;

/// The row of a name.
pub(super) fn row<'a>(name: &str, models: &'a ModelRegistry) -> Option<&'a RegisteredModel> {
    models.iter().find(|model| model.name == name).filter(|model| !gives_way(model))
}

/// Whether a file or folder of the row's name is meant by it: the row came with the extension, nobody has
/// changed it, and its own file is not there.
pub(crate) fn gives_way(row: &RegisteredModel) -> bool {
    row.is_default && !is_file_there(&row.file) && !matches!(entry(&row.name), Ok(None))
}

/// The row of a file that came with the extension: what others say is said of their names.
pub(super) fn seeded<'a>(file: &str, models: &'a ModelRegistry) -> Option<&'a RegisteredModel> {
    models.iter().find(|model| model.is_default && model.file == file)
}

/// The first row of a file.
pub(super) fn of_file<'a>(file: &str, models: &'a ModelRegistry) -> Option<&'a RegisteredModel> {
    models.iter().find(|model| model.file == file)
}

/// The model of this name in the directory of the models.
///
/// # Errors
///
/// 42710 where several have it.
pub(super) fn entry(name: &str) -> Result<Option<DirectoryEntry>, PgError> {
    directory::find(name, |entry| path_of(entry).is_some_and(|path| is_there(&path)))
}

/// The file or folder of this name directly in the directory of the models, whatever it is for; `None` where
/// a row has the name, and where there is none.
///
/// # Errors
///
/// 42710 where several have it.
pub(crate) fn named_file(name: &str, models: &ModelRegistry) -> Result<Option<PathBuf>, PgError> {
    if row(name, models).is_some() {
        return Ok(None);
    }
    Ok(entry(name)?.and_then(|entry| path_of(&entry)))
}

/// The first part of a split model of this name directly in the directory of the models, of which another
/// part is missing.
///
/// # Errors
///
/// 42710 where several have the name.
pub(crate) fn incomplete_file(name: &str) -> Result<Option<PathBuf>, PgError> {
    let of = |entry: &DirectoryEntry| path_of(entry).filter(|path| path.is_file() && !is_there(path));
    Ok(directory::find(name, |entry| of(entry).is_some())?.and_then(|entry| of(&entry)))
}

/// The error with which the directory of the models, or the model of this name in it, cannot be looked at:
/// whether there is one is not known. `None` where it can.
///
/// # Errors
///
/// 42710 where several have the name.
pub(super) fn unseen_file(name: &str) -> Result<Option<PgError>, PgError> {
    if let Some(error) = directory::listing().unreadable() {
        return Ok(Some(error.clone()));
    }
    let error_of = |entry: &DirectoryEntry| {
        let path = path_of(entry)?;
        path.try_exists().err().map(|error| directory::unseen(&path, &error))
    };
    Ok(directory::find(name, |entry| error_of(entry).is_some())?.and_then(|entry| error_of(&entry)))
}

/// The model of a name that needs no download: the file of a row without a repository, or one that is in the
/// directory of the models, or the builtin model. `None` where there is none. A download by the name of a row
/// that gives way to a file would let the name mean another model from then on.
///
/// # Errors
///
/// 42710 where several files have the name.
pub(crate) fn there_without_pull(name: &str, models: &ModelRegistry) -> Result<Option<String>, PgError> {
    if name == BUILTIN {
        return Ok(Some(BUILTIN.to_owned()));
    }
    match models.iter().find(|model| model.name == name) {
        Some(row) if row.repository.is_none() && is_file_there(&row.file) => Ok(Some(row.file.clone())),
        Some(row) if !gives_way(row) => Ok(None),
        _ => Ok(entry(name)?.map(|entry| entry.file)),
    }
}

/// Whether a model is called so: the builtin one, a registered one, or one in the directory of the models.
pub(crate) fn is_known(name: &str, models: &ModelRegistry) -> bool {
    name == BUILTIN || models.iter().any(|model| model.name == name) || matches!(entry(name), Ok(Some(_)))
}

/// The path of an entry of the directory; `None` for links that lead out of it.
pub(crate) fn path_of(entry: &DirectoryEntry) -> Option<PathBuf> {
    if entry.is_plain { Some(set_path(&entry.file)) } else { registered_path(&entry.file).ok() }
}

/// The beginning of what a user sent, fit for an error message.
pub(super) fn shown(name: &str) -> String {
    name.chars().take(64).collect()
}
