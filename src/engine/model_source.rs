//! Where models come from.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::gguf::Gguf;
use crate::{Error, adapters, builtin, safetensors};

/// Where a model comes from. Names are resolved by the caller: the engine only opens files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ModelSource {
    /// The small model compiled into the library.
    Builtin,
    /// A GGUF file, or the folder of an encoder with `model.safetensors`.
    File(#[serde(with = "crate::wire::path")] PathBuf),
}

impl ModelSource {
    /// Opens and checks what describes the model; no weight is read.
    ///
    /// # Errors
    /// [`Error::ModelFile`], [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the file.
    pub fn open(&self) -> Result<Gguf, Error> {
        match self {
            ModelSource::Builtin => builtin::gguf(),
            ModelSource::File(path) if path.is_dir() => safetensors::open(path),
            ModelSource::File(path) => adapters::attach(path, Gguf::open(path)?),
        }
    }
}

/// The tasks that a file or folder has adapters for, in the order of these; none for one that has no
/// adapters.
///
/// # Errors
/// [`Error::ModelFile`] where what says so cannot be read, [`Error::CorruptModel`] where it is not what it
/// should be.
pub fn adapter_tasks(model: &Path) -> Result<Vec<String>, Error> {
    if model.is_dir() { safetensors::tasks(model) } else { adapters::tasks_beside(model) }
}

/// Bytes of a model's file together with those of the adapters beside it; `None` for a folder, and where that
/// cannot be read.
pub fn file_bytes(model: &Path) -> Option<u64> {
    let length =
        |path: &Path| path.metadata().ok().filter(std::fs::Metadata::is_file).map(|metadata| metadata.len());
    let adapters = adapters::paths_beside(model).ok()?;
    adapters.iter().try_fold(length(model)?, |sum, path| Some(sum.saturating_add(length(path)?)))
}
