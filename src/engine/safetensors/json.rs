//! The small JSON files of a folder.

use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;

use crate::Error;

/// Most bytes of a configuration file.
const MAX_BYTES: u64 = 1 << 20;

/// Reads a file of at most 1 MB.
///
/// # Errors
/// As [`optional`]; [`Error::ModelFile`] also where there is none.
pub(super) fn required<T: DeserializeOwned>(path: &Path) -> Result<T, Error> {
    parse(path, &bytes(path, MAX_BYTES)?)
}

/// Reads a file of at most 1 MB, if there is one.
///
/// # Errors
/// [`Error::ModelFile`] where it cannot be read, [`Error::CorruptModel`] where its content is not of the
/// expected form.
pub(super) fn optional<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, Error> {
    if is_there(path)? { required(path).map(Some) } else { Ok(None) }
}

/// Whether there is a file at a path.
///
/// # Errors
/// [`Error::ModelFile`] where that cannot be seen: a folder that nobody may enter can have the file in it,
/// and the model would be another one without.
pub(super) fn is_there(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(|source| Error::reading(path, source))
}

/// The bytes of a regular file that is not longer than `most`.
///
/// # Errors
/// [`Error::ModelFile`], [`Error::CorruptModel`] where it is longer.
pub(super) fn bytes(path: &Path, most: u64) -> Result<Vec<u8>, Error> {
    let failed = |source| Error::reading(path, source);
    // Checked before opening, because opening a named pipe waits for its writer.
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(failed(std::io::Error::new(
            std::io::ErrorKind::InvalidInput,
            "it is not a regular file",
        )));
    }
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(failed)?;
    file.take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > most {
        return Err(corrupt(path, format!("it has more than {most} bytes")));
    }
    Ok(bytes)
}

/// The bytes as JSON. Its depth is limited by the parser.
///
/// # Errors
/// [`Error::CorruptModel`].
pub(super) fn parse<T: DeserializeOwned>(path: &Path, bytes: &[u8]) -> Result<T, Error> {
    serde_json::from_slice(bytes).map_err(|error| corrupt(path, error.to_string()))
}

/// The file contradicts itself or its format.
pub(super) fn corrupt(path: &Path, reason: impl Into<String>) -> Error {
    Error::CorruptModel { path: path.into(), reason: reason.into() }
}

/// The file needs something that the engine cannot do.
pub(super) fn unsupported(path: &Path, reason: impl Into<String>) -> Error {
    Error::UnsupportedModel { path: path.into(), reason: reason.into(), hint: None }
}
