//! The identity of a model, for those who keep its results: the content of its file, by checksum.
//!
//! A model with adapters is another one when these are others, while what is published and registered is the
//! checksum of its own file: both are known.
//!
//! The checksum is computed when a model is loaded, beside the engine thread, and kept in a file beside the
//! model's, so that it is known at once the next time and to processes that never load the model. Where that
//! file cannot be written, each load computes it.

use std::fs::Permissions;
use std::io::{self, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::gguf::{self, Gguf};
use crate::mapping::FileId;
use crate::{BackendKind, Error, ModelSource, adapters, builtin, safetensors, sidecar};

const MAGIC: &[u8; 8] = b"STSHA256";
/// The beginning of the record of a model with adapters.
const MAGIC_OF_ADAPTED: &[u8; 8] = b"STSHA2+A";
/// Magic, identity of the files, their checksum, that of the model's own ones where there are adapters as
/// well, and the CRC-32 of all that.
const RECORD_BYTES: usize = 8 + 5 * 8 + 32 + 4;
const RECORD_BYTES_OF_ADAPTED: usize = RECORD_BYTES + 32;
/// Bytes hashed between two looks at whether to stop.
const CHUNK_BYTES: usize = 4 << 20;

/// The identity of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
pub struct ModelIdentity {
    /// SHA-256 of its file; of its parts, one after the other, where there are several, and of its adapters
    /// behind them.
    pub hash: [u8; 32],
    /// SHA-256 of the model without its adapters, as it is published and registered.
    pub own_hash: [u8; 32],
    /// The file that it was loaded from; None for the builtin model.
    pub file: Option<FileId>,
    /// The backend that computes it, in the engine that has loaded it.
    pub backend: BackendKind,
}

impl ModelIdentity {
    /// The builtin model's.
    pub fn builtin() -> ModelIdentity {
        ModelIdentity { hash: builtin::SHA256, own_hash: builtin::SHA256, ..ModelIdentity::default() }
    }

    /// The state of a model's file; of the first part of a split one, that of all parts which are there; of a
    /// folder, that of all files in it that a model is made of. That of the adapters beside a file is part of
    /// it.
    ///
    /// # Errors
    /// The system's.
    pub fn file_of(path: &Path) -> io::Result<FileId> {
        let metadata = std::fs::metadata(path)?;
        if !metadata.is_dir() {
            let mut state = FileId::of(&metadata);
            for part in gguf::parts(path).iter().skip(1) {
                match FileId::of_path(part) {
                    Ok(part) => state = state.and(&part),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                    Err(error) => return Err(error),
                }
            }
            return adapters::state(path, state);
        }
        let mut files = safetensors::FILES.iter();
        let weights = safetensors::weights(path).map_err(io::Error::other)?;
        let mut state = None;
        for file in &weights {
            let file = FileId::of_path(file)?;
            state = Some(state.map_or(file, |state: FileId| state.and(&file)));
        }
        let mut state = state.ok_or(io::ErrorKind::NotFound)?;
        // The identity of a folder depends on which files there are, and on which ones they are.
        files.try_for_each(|name| -> io::Result<()> {
            state.inode = state.inode.wrapping_mul(0x100_0000_01b3);
            match FileId::of_path(&path.join(name)) {
                Ok(file) => {
                    state.inode ^= file.inode;
                    state.size = state.size.wrapping_add(file.size);
                    let latest =
                        (state.modified_s, state.modified_ns).max((file.modified_s, file.modified_ns));
                    (state.modified_s, state.modified_ns) = latest;
                    Ok(())
                }
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                Err(error) => Err(error),
            }
        })?;
        Ok(state)
    }

    /// The identity of a model's file, as far as it is on record: nothing is computed, and the backend is the
    /// native one. Costs the opening of a small file.
    pub fn recorded(path: &Path) -> Option<ModelIdentity> {
        let file = ModelIdentity::file_of(path).ok()?;
        let record = sidecar::open_finished(&sidecar::with_suffix(path, sidecar::CHECKSUM_SUFFIX)).ok()?;
        let mut bytes = Vec::with_capacity(RECORD_BYTES_OF_ADAPTED);
        record.take(RECORD_BYTES_OF_ADAPTED as u64).read_to_end(&mut bytes).ok()?;
        let (hash, own_hash) = match bytes.len() {
            RECORD_BYTES => {
                // One that was written before says nothing of the model's own file beside adapters.
                if !path.is_dir() && !adapters::paths_beside(path).ok()?.is_empty() {
                    return None;
                }
                let hash = hash_at(&bytes, 0)?;
                (hash, hash)
            }
            RECORD_BYTES_OF_ADAPTED => (hash_at(&bytes, 0)?, hash_at(&bytes, 1)?),
            _ => return None,
        };
        let identity = ModelIdentity { hash, own_hash, file: Some(file), ..ModelIdentity::default() };
        (bytes == make_record(&file, &identity)).then_some(identity)
    }

    /// The identity of an open model, whose file was `file` before it was opened. A checksum that is not on
    /// record is computed, which takes as long as reading the file, and recorded. The backend is the native
    /// one.
    ///
    /// # Errors
    /// [`Error::Stopped`].
    pub fn of(
        source: &ModelSource,
        gguf: &Gguf,
        file: Option<FileId>,
        stop: &dyn Fn() -> bool,
    ) -> Result<ModelIdentity, Error> {
        let ModelSource::File(path) = source else { return Ok(ModelIdentity::builtin()) };
        if let Some(recorded) = ModelIdentity::recorded(path).filter(|known| known.file == file) {
            return Ok(recorded);
        }
        let mut hasher = Sha256::new();
        let add = |content: Vec<&[u8]>, hasher: &mut Sha256| -> Result<(), Error> {
            for chunk in content.into_iter().flat_map(|part| part.chunks(CHUNK_BYTES)) {
                if stop() {
                    return Err(Error::Stopped);
                }
                hasher.update(chunk);
                gguf.release(chunk);
            }
            Ok(())
        };
        add(gguf.own_content(), &mut hasher)?;
        let own_hash = hasher.clone().finalize().into();
        add(gguf.attached_content(), &mut hasher)?;
        let hash = hasher.finalize().into();
        let identity = ModelIdentity { hash, own_hash, file, ..ModelIdentity::default() };
        let unchanged = ModelIdentity::file_of(path).ok().filter(|now| Some(*now) == file);
        // Bytes that could not be read were zeros, and must not be taken for the file's.
        if let Some(file) = unchanged.filter(|_| gguf.check_lost().is_ok()) {
            // A directory that is not ours to write to is no error.
            let _ = write_record(path, &make_record(&file, &identity));
        }
        Ok(identity)
    }
}

/// The files that a model is made of, as far as they are there: the parts of a split one, and the adapters
/// beside them; of a folder the weights and what is read beside them. Downloads may have left others in it.
pub fn model_files(path: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> = if path.is_dir() {
        // An index that cannot be read names no file.
        let weights = safetensors::weights(path).unwrap_or_default();
        weights.into_iter().chain(safetensors::FILES.map(|name| path.join(name))).collect()
    } else {
        gguf::parts(path).into_iter().chain(adapters::paths_beside(path).unwrap_or_default()).collect()
    };
    files.retain(|file| file.is_file());
    files
}

/// The checksum in a record behind those before it.
fn hash_at(record: &[u8], index: usize) -> Option<[u8; 32]> {
    record.get(8 + 5 * 8 + index * 32..)?.first_chunk().copied()
}

fn make_record(file: &FileId, identity: &ModelIdentity) -> Vec<u8> {
    let is_adapted = identity.own_hash != identity.hash;
    let mut record = if is_adapted { MAGIC_OF_ADAPTED } else { MAGIC }.to_vec();
    for number in [file.device, file.inode, file.size, file.modified_s as u64, file.modified_ns as u64] {
        record.extend(number.to_le_bytes());
    }
    record.extend(identity.hash);
    if is_adapted {
        record.extend(identity.own_hash);
    }
    record.extend(crc32fast::hash(&record).to_le_bytes());
    record
}

fn write_record(model: &Path, record: &[u8]) -> io::Result<()> {
    let path = sidecar::with_suffix(model, sidecar::CHECKSUM_SUFFIX);
    let temporary = sidecar::with_suffix(&path, sidecar::NEW_SUFFIX);
    let Some(mut file) = sidecar::lock(&temporary)? else { return Ok(()) };
    let written = file
        .set_len(0)
        .and_then(|()| file.write_all(record))
        .and_then(|()| file.set_permissions(Permissions::from_mode(0o400)))
        .and_then(|()| std::fs::rename(&temporary, &path));
    if written.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    written
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use sha2::{Digest, Sha256};
    use steadytext_test_models::{Architecture, Spec};

    use super::ModelIdentity;
    use crate::gguf::Gguf;
    use crate::{ModelSource, builtin};

    fn identify(path: &Path) -> ModelIdentity {
        let (source, file) = (ModelSource::File(path.into()), ModelIdentity::file_of(path).ok());
        ModelIdentity::of(&source, &Gguf::open(path).unwrap(), file, &|| false).unwrap()
    }

    #[test]
    fn the_builtin_model_has_the_checksum_that_is_written_down() {
        let gguf = builtin::gguf().unwrap();
        let hash: [u8; 32] = Sha256::digest(gguf.content().concat()).into();
        assert_eq!(hash, builtin::SHA256);
        let identity = ModelIdentity::of(&ModelSource::Builtin, &gguf, None, &|| false);
        assert_eq!(identity.unwrap(), ModelIdentity::builtin());
    }

    #[test]
    fn a_file_has_its_checksum_and_the_record_is_believed_only_as_long_as_the_file_is_the_same() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("model.gguf");
        steadytext_test_models::write(&Spec::tiny(Architecture::Qwen3), &path).unwrap();
        let hash: [u8; 32] = Sha256::digest(std::fs::read(&path).unwrap()).into();
        assert_eq!(ModelIdentity::recorded(&path), None);
        let identity = identify(&path);
        assert_eq!(identity.hash, hash);
        assert_eq!(ModelIdentity::recorded(&path), Some(identity));

        // The record is that of the first file: another file may hold other bytes, though this copy does not.
        let copy = directory.path().join("copy.gguf");
        std::fs::copy(&path, &copy).unwrap();
        std::fs::rename(&copy, &path).unwrap();
        assert_eq!(ModelIdentity::recorded(&path), None);
        let renewed = identify(&path);
        assert_eq!(renewed.hash, hash);
        assert_ne!(renewed.file, identity.file);

        // A record that somebody could have written to is none.
        let record = directory.path().join("model.gguf.checksum");
        let mut permissions = std::fs::metadata(&record).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut permissions, 0o600);
        std::fs::set_permissions(&record, permissions).unwrap();
        assert_eq!(ModelIdentity::recorded(&path), None);
    }
}
