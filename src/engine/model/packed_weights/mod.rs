//! The weights of a model in panels: stored in a file beside the model and mapped, or in anonymous memory.
//!
//! The file is written once and shared by all processes that use the model. If it cannot be written (a
//! directory that is not ours to write to, a full disk), that is no error: anonymous memory serves as well,
//! but is not shared.

mod build;
mod manifest;
mod stored;
#[cfg(test)]
mod tests;

use std::path::PathBuf;
use std::sync::Arc;

use crate::Error;
use crate::computing::Loading;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::instructions::Instructions;
use crate::kernels::matrix::Packed;
use crate::mapping::Mapping;
use build::{PanelsFailure, PanelsTarget, build};
use manifest::Manifest;
use stored::PanelsClaim;

pub(crate) use super::tensors::panel_format;

/// All panels of a model.
pub(super) struct PackedWeights {
    manifest: Manifest,
    mapping: Arc<Mapping>,
    /// The offset of the first tensor in the mapping.
    start: usize,
}

impl PackedWeights {
    /// Maps the panels of a model, or makes them. The file must have been checked before, as the manifest is
    /// made from names and shapes alone.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`], [`Error::Stopped`].
    pub(super) fn open(gguf: &Gguf, loading: &Loading<'_>) -> Result<PackedWeights, Error> {
        let manifest = Manifest::of(gguf);
        if manifest.entries.is_empty() {
            return PackedWeights::anonymous(gguf, manifest, loading);
        }
        let Some((path, id)) = path(gguf).zip(gguf.file_id()) else {
            return PackedWeights::anonymous(gguf, manifest, loading);
        };
        let (key, entries) = (manifest.key(&id), manifest.entries.len());
        let size = manifest.size(&key);
        let claim = match stored::claim(&path, &key, entries, size, loading.stop) {
            PanelsClaim::Stored(mapping) => return Ok(PackedWeights::of_file(manifest, &key, mapping)),
            PanelsClaim::Build(claim) => claim,
            PanelsClaim::Elsewhere => return PackedWeights::anonymous(gguf, manifest, loading),
            PanelsClaim::Stopped => return Err(Error::Stopped),
        };
        let start = manifest::head_len(&key, entries) as u64;
        let built = build(gguf, &manifest, loading, PanelsTarget::File { file: claim.file(), start })
            .and_then(|sums| Ok(claim.publish(&key, &sums, || gguf.is_unchanged())?));
        match built.map(|()| stored::open(&path, &key, entries, size)) {
            Ok(Some(mapping)) if manifest.verify(&key, &mapping, loading) => {
                Ok(PackedWeights::of_file(manifest, &key, mapping))
            }
            Err(PanelsFailure::Stopped) => Err(Error::Stopped),
            // A disk that is full, or does not read back the bytes written to it.
            Ok(_) | Err(PanelsFailure::Write) => PackedWeights::anonymous(gguf, manifest, loading),
        }
    }

    fn anonymous(gguf: &Gguf, manifest: Manifest, loading: &Loading<'_>) -> Result<PackedWeights, Error> {
        let no_memory = || Error::OutOfMemory {
            what: format!("the weights of \"{}\"", gguf.path().display()),
            needed_mb: (manifest.panel_bytes() as u64).div_ceil(1 << 20),
            limit_mb: None,
        };
        let mut memory = crate::mapping::Blank::new(manifest.panel_bytes()).map_err(|_| no_memory())?;
        match build(
            gguf,
            &manifest,
            loading,
            PanelsTarget::Memory(&mut memory.bytes_mut()[..manifest.panel_bytes()]),
        ) {
            Ok(_) => {}
            Err(PanelsFailure::Stopped) => return Err(Error::Stopped),
            Err(PanelsFailure::Write) => return Err(no_memory()),
        }
        let mapping = Arc::new(memory.finish().map_err(|_| no_memory())?);
        Ok(PackedWeights { manifest, mapping, start: 0 })
    }

    fn of_file(manifest: Manifest, key: &[u8], mapping: Mapping) -> PackedWeights {
        mapping.will_need();
        let start = manifest::head_len(key, manifest.entries.len());
        PackedWeights { manifest, mapping: Arc::new(mapping), start }
    }

    /// The panels of a tensor.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where there are none of this shape, as there are for every matrix of the
    /// decoder.
    pub(super) fn get(
        &self,
        gguf: &Gguf,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Packed, Error> {
        let entry =
            self.manifest.entry(name).filter(|entry| (entry.inputs, entry.outputs) == (inputs, outputs));
        entry
            .and_then(|entry| {
                let mapping = Arc::clone(&self.mapping);
                Packed::stored(entry.format, inputs, outputs, mapping, self.start + entry.offset)
            })
            .ok_or_else(|| gguf.corrupt(format!("tensor \"{name}\" has no panels")))
    }

    /// The memory that they lie in.
    pub(super) fn mapping(&self) -> Arc<Mapping> {
        Arc::clone(&self.mapping)
    }

    /// Whether they are a file's.
    #[cfg(test)]
    pub(super) fn stored(&self) -> bool {
        self.mapping.file_id().is_some()
    }
}

/// The file with the panels of a model's file.
pub(super) fn path(gguf: &Gguf) -> Option<PathBuf> {
    gguf.file_id()?;
    stored::path_of(gguf.path())
}

/// Checks that all parts of a model's file and its panels that were read so far could be read.
///
/// # Errors
/// [`Error::LostModel`], naming the file.
pub(super) fn check_lost(gguf: &Gguf, panels: Option<&Mapping>) -> Result<(), Error> {
    gguf.check_lost()?;
    match panels {
        Some(mapping) if mapping.lost() => {
            Err(Error::LostModel { path: path(gguf).unwrap_or_else(|| gguf.path().into()) })
        }
        _ => Ok(()),
    }
}

/// The state of the file of packed weights beside a model's file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PackedState {
    /// The model has no file of packed weights.
    Absent,
    /// The file belongs to another model or layout, or somebody else could have written it: loading replaces
    /// it.
    Stale,
    /// Its content differs from the panels of the model's weights.
    Corrupt,
    /// Every byte is right.
    Sound,
}

/// Reads all of a model's file of panels and the tensors that it was made of, and compares them. Returns the
/// file's path too, if the model may have such a file.
///
/// # Errors
/// [`Error::Panicked`] where the system has no thread for it.
pub fn verify_packed_weights(gguf: &Gguf, threads: usize) -> Result<(Option<PathBuf>, PackedState), Error> {
    let Some((path, id)) = path(gguf).zip(gguf.file_id()) else { return Ok((None, PackedState::Absent)) };
    let pool =
        Pool::new(threads.max(1), Instructions::best(), &(Arc::new(|| {}) as Arc<dyn Fn() + Send + Sync>))
            .map_err(|error| Error::Panicked(format!("could not start a thread: {error}")))?;
    let loading = Loading { pool: &pool, stop: &|| false };
    let manifest = Manifest::of(gguf);
    let key = manifest.key(&id);
    let state = match stored::open(&path, &key, manifest.entries.len(), manifest.size(&key)) {
        None if std::fs::symlink_metadata(&path).is_ok() => PackedState::Stale,
        None => PackedState::Absent,
        Some(mapping) => {
            let sums = build(gguf, &manifest, &loading, PanelsTarget::Nothing).unwrap_or_default();
            let sound = manifest.sums(&key, &mapping).eq(sums) && manifest.verify(&key, &mapping, &loading);
            if sound { PackedState::Sound } else { PackedState::Corrupt }
        }
    };
    Ok((Some(path), state))
}

/// Bytes of panels that the model of a file needs, and those of the tensors that they replace.
pub(super) fn sizes(gguf: &Gguf) -> (u64, u64) {
    let manifest = Manifest::of(gguf);
    let replaced = manifest.entries.iter().filter_map(|entry| gguf.opt_tensor(&entry.name).ok().flatten());
    (manifest.panel_bytes() as u64, replaced.map(|tensor| tensor.data.len() as u64).sum())
}
