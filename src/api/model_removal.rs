//! Removal of a model: its row and, where that is asked for, its files.

use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use pgrx::prelude::*;
use steadytext_engine::{adapters, card, gguf};

use super::audit::note_act_of_files;
use super::models::require_administrator;
use super::refuse::require_name;
use crate::pg::catalog_cache::{self, RegisteredModel};
use crate::pg::error::{OrRaise, PgError};
use crate::pg::guc;
use crate::pg::spi::{self, Mode};
use crate::registry;

/// Folders in that of an encoder: it has some for its layers, and one for each of other runtimes.
const MAX_FOLDERS: usize = 64;

/// Removes a model from the registry and, if that is wanted, its files from the directory of the models,
/// which cannot be undone. Whether there was anything.
#[pg_extern(volatile, parallel_unsafe)]
fn model_remove(name: Option<&str>, delete_file: Option<bool>) -> bool {
    require_administrator().or_raise();
    let name = require_name(name).or_raise();
    let any = remove(name, delete_file.unwrap_or(false)).or_raise();
    if !any {
        tell_of_none(name).or_raise();
    }
    any
}

/// Says that there was nothing to remove, and what may have been meant.
fn tell_of_none(name: &str) -> Result<(), PgError> {
    let said = if name == registry::BUILTIN {
        PgError::new(
            PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
            "the builtin model is part of the library, and is not removed",
        )
        .hint("Requests get it where they name it, or where there is no other: steadytext_model_list() shows which there are.")
    } else {
        let shown: String = name.chars().take(64).collect();
        PgError::new(
            PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
            format!("there is no model \"{shown}\" to remove"),
        )
        .hint(
            registry::close(name, &*catalog_cache::models()?)
                .unwrap_or_else(|| "steadytext_model_list() shows the models there are.".to_owned()),
        )
    };
    said.report(PgLogLevel::NOTICE);
    Ok(())
}

fn remove(name: &str, delete_file: bool) -> Result<bool, PgError> {
    let installation = catalog_cache::installation()?;
    let models = catalog_cache::models()?;
    let row = models.iter().find(|model| model.name == name && !(delete_file && registry::gives_way(model)));
    let path = match row {
        Some(_) if !delete_file => None,
        Some(model) if model.file.starts_with('/') => {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("the file of model \"{}\" is not in pg_steadytext.model_dir", model.name),
            )
            .hint("Remove the model without its file."));
        }
        Some(model) => Some(registry::registered_path(&model.file).map_err(|_| {
            PgError::new(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                format!("the file of model \"{}\" leads out of pg_steadytext.model_dir", model.name),
            )
            .hint("Remove the model without its file.")
        })?),
        None => registry::named_file(name, &models)?,
    };
    if row.is_none() && !delete_file && path.is_some() {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("model \"{name}\" is a file in pg_steadytext.model_dir, and no row of the registry"),
        )
        .hint("With delete_file => true its files are deleted, for all databases of the server."));
    }
    if let Some(path) = path.as_ref().filter(|_| delete_file) {
        let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
        let (path, directory) = (real(path), real(Path::new(&guc::model_dir())));
        if directory.starts_with(&path) {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
                format!("the file of model \"{name}\" is the whole of pg_steadytext.model_dir"),
            )
            .hint("Remove the model without its file."));
        }
        if let Some(inside) = model_inside(&path) {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
                format!("the folder of model \"{name}\" has another model in it: \"{}\"", inside.display()),
            )
            .hint("Remove that file first, or remove the model without its files."));
        }
        // Another model whose file lies in this one's folder would lose it as well.
        let is_other = |model: &&RegisteredModel| {
            model.name != name
                && registry::registered_path(&model.file).is_ok_and(|other| real(&other).starts_with(&path))
        };
        if let Some(other) = models.iter().find(is_other) {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_IN_USE,
                format!("the file of model \"{name}\" is that of model \"{}\", too", other.name),
            )
            .hint("Remove that one first, or remove the model without its file."));
        }
    }
    if row.is_some() {
        // The statement runs with the rights of the caller.
        let sql = format!(
            "delete from {}.steadytext_models where name operator(pg_catalog.=) $1",
            installation.schema
        );
        spi::query(&sql, vec![name.into()], Mode::ReadWrite, |_| ())?;
    }
    let mut any = row.is_some();
    if let Some(path) = path.filter(|_| delete_file) {
        // The trigger of the registry notes rows, and these files may have none.
        note_act_of_files("model_remove", name)?;
        any |= delete(&path).map_err(|error| {
            PgError::new(
                PgSqlErrorCode::ERRCODE_IO_ERROR,
                format!("could not delete file \"{}\": {error}", path.display()),
            )
            .hint("Delete it as the operating system user of the server, or give that user the right to.")
        })?;
    }
    Ok(any)
}

/// A GGUF file somewhere in a folder, which an encoder's has not.
fn model_inside(folder: &Path) -> Option<PathBuf> {
    let mut folders = vec![folder.to_owned()];
    let mut looked_at = 0;
    while let Some(folder) = folders.pop().filter(|_| looked_at < MAX_FOLDERS) {
        looked_at += 1;
        for entry in folder.read_dir().into_iter().flatten().flatten() {
            match entry.file_type() {
                Ok(kind) if kind.is_dir() => folders.push(entry.path()),
                _ if is_gguf(&entry.path()) => return Some(entry.path()),
                _ => {}
            }
        }
    }
    // A folder that is so large is none of an encoder's.
    folders.pop()
}

fn is_gguf(path: &Path) -> bool {
    path.extension().is_some_and(|ending| ending.eq_ignore_ascii_case("gguf"))
}

/// Deletes the files of a model and what stands beside them. Whether there was a model.
fn delete(path: &Path) -> io::Result<bool> {
    let missing = |error: io::Error| {
        if error.kind() == io::ErrorKind::NotFound { Ok(false) } else { Err(error) }
    };
    let is_folder = path.symlink_metadata().is_ok_and(|metadata| metadata.is_dir());
    // Whatever a row says: nothing but models is deleted.
    let has_name = path.components().next_back().is_some_and(|last| matches!(last, Component::Normal(_)));
    let is_model = if is_folder { path.join("config.json").is_file() } else { is_gguf(path) };
    if !has_name || !is_model {
        return Ok(false);
    }
    let mut any = false;
    if is_folder {
        any |= fs::remove_dir_all(path).map(|()| true).or_else(missing)?;
    } else {
        // Where something is wrong with these, the model is still there.
        delete_adapters(path)?;
        for part in gguf::parts(path) {
            any |= fs::remove_file(part).map(|()| true).or_else(missing)?;
        }
    }
    for suffix in [".panels", ".checksum", card::SUFFIX] {
        let mut beside = path.as_os_str().to_owned();
        beside.push(suffix);
        fs::remove_file(beside).map(|()| true).or_else(missing)?;
    }
    Ok(any)
}

/// Deletes the adapters beside a model's file, and their folder where nothing else is in it.
fn delete_adapters(path: &Path) -> io::Result<()> {
    let folder = adapters::described_in(path);
    if !folder.symlink_metadata().is_ok_and(|metadata| metadata.is_dir()) {
        return Ok(());
    }
    for entry in folder.read_dir()? {
        let entry = entry?;
        if entry.file_type()?.is_file() && is_gguf(&entry.path()) {
            fs::remove_file(entry.path())?;
        }
    }
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => Err(error),
        _ => Ok(()),
    }
}
