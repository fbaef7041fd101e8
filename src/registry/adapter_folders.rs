//! Folders that look like those of adapters beside a model's file, and that no model has: a name that differs
//! by a letter, or by its case, is another name, and what lies there is used by nobody.

use std::path::{Path, PathBuf};

use steadytext_engine::adapters;

use super::directory;
use super::names::path_of;
use crate::pg::guc;

/// Entries of the directory that are looked at.
const MAX_ENTRIES: usize = 16_384;
/// Folders that are told of.
const MAX_STRAY: usize = 20;

/// A folder with the ending of adapters that is beside no file of its name.
#[derive(Debug, Clone)]
pub(crate) struct StrayAdapters {
    /// Its name.
    pub(crate) folder: String,
    /// The file that it may be meant for.
    meant_for: Option<String>,
}

impl StrayAdapters {
    /// Whether it may be meant for the file of a model directly below the directory of the models.
    pub(crate) fn is_meant_for(&self, model: &Path) -> bool {
        let directory = PathBuf::from(guc::model_dir());
        self.meant_for.as_ref().is_some_and(|file| directory.join(file) == model)
    }

    /// The hint of an error about it.
    pub(crate) fn hint(&self) -> String {
        let (folder, suffix) = (&self.folder, adapters::SUFFIX);
        match &self.meant_for {
            Some(file) => format!(
                "Adapters of \"{file}\" are read from \"{file}{suffix}\" only: rename folder \"{folder}\" so."
            ),
            None => format!(
                "Call it NAME.gguf{suffix} for the model's file NAME.gguf, to the letter, or remove it; each adapter in it is called by its task, such as retrieval.query.gguf."
            ),
        }
    }
}

/// The folders of that kind, in the order of their names.
pub(crate) fn stray_adapters() -> Vec<StrayAdapters> {
    let directory = PathBuf::from(guc::model_dir());
    let Ok(entries) = directory.read_dir() else { return Vec::new() };
    let mut stray: Vec<StrayAdapters> = entries
        .take(MAX_ENTRIES)
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_file()))
        .filter_map(|entry| stray_of(&directory, entry.file_name().into_string().ok()?))
        .collect();
    stray.sort_unstable_by(|one, other| one.folder.cmp(&other.folder));
    stray.truncate(MAX_STRAY);
    stray
}

fn stray_of(directory: &Path, folder: String) -> Option<StrayAdapters> {
    let lower = folder.to_lowercase();
    let wanted = lower.strip_suffix(adapters::SUFFIX)?;
    // The letters of the ending count as well.
    let of = folder.strip_suffix(adapters::SUFFIX).map(|file| directory.join(file));
    if of.is_some_and(|file| file.is_file()) {
        return None;
    }
    // By the whole name of a file, or by its stem alone.
    let files = directory::entries();
    let is_meant = |entry: &&directory::DirectoryEntry| {
        [&entry.file, &entry.name].iter().any(|name| name.to_lowercase() == wanted)
            && path_of(entry).is_some_and(|path| path.is_file())
    };
    let meant_for = files.iter().find(is_meant).map(|entry| entry.file.clone());
    Some(StrayAdapters { folder, meant_for })
}
