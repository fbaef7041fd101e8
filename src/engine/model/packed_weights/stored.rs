//! The file of panels beside a model's file: the lock for writing it, and the conditions for trusting it.
//!
//! It is `MODEL.panels`, mode 0400. The process that holds the lock on `MODEL.panels.new` writes that file,
//! syncs it, and renames it; a file that a crash left there is taken over by the next process. A file is
//! trusted only if it is a regular one, belongs to the user of this process, nobody else may write to it, and
//! it has the size and the head that belong to the model's file.

use std::fs::{File, Permissions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::manifest;
use crate::mapping::Mapping;
use crate::sidecar::{NEW_SUFFIX, PANELS_SUFFIX, lock, open_finished, same_file, with_suffix};

/// Time to wait for another process that writes the file.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// The outcome of looking for a model's panels.
pub(super) enum PanelsClaim {
    /// The file is there.
    Stored(Mapping),
    /// The file is to be made and published.
    Build(Building),
    /// The file can't be stored.
    Elsewhere,
    Stopped,
}

/// The file that is being written, locked.
pub(super) struct Building {
    file: File,
    temporary: PathBuf,
    path: PathBuf,
}

/// The file for the panels of a model's file.
pub(super) fn path_of(model: &Path) -> Option<PathBuf> {
    model.file_name()?;
    Some(with_suffix(model, PANELS_SUFFIX))
}

/// Maps the file if it can be trusted, and is `size` bytes with the head of `entries` tensors and this key.
pub(super) fn open(path: &Path, key: &[u8], entries: usize, size: usize) -> Option<Mapping> {
    let file = open_finished(path).ok()?;
    if file.metadata().ok()?.len() != size as u64 {
        return None;
    }
    let mapping = Mapping::file(&file).ok()?;
    (mapping.len() == size && manifest::has_head(&mapping, key, entries)).then_some(mapping)
}

/// Finds the file, or the right to write it. Waits for another process that is writing it.
pub(super) fn claim(
    path: &Path,
    key: &[u8],
    entries: usize,
    size: usize,
    stop: &(dyn Fn() -> bool + Sync),
) -> PanelsClaim {
    let temporary = with_suffix(path, NEW_SUFFIX);
    let begun = Instant::now();
    while begun.elapsed() < PATIENCE {
        if stop() {
            return PanelsClaim::Stopped;
        }
        if let Some(mapping) = open(path, key, entries, size) {
            clean(&temporary);
            return PanelsClaim::Stored(mapping);
        }
        match lock(&temporary) {
            // The last process that held the lock may have published the file in the meantime.
            Ok(Some(file)) => match open(path, key, entries, size) {
                Some(mapping) => {
                    let _ = std::fs::remove_file(&temporary);
                    return PanelsClaim::Stored(mapping);
                }
                None => return prepare(Building { file, temporary, path: path.into() }, path, size),
            },
            Ok(None) => std::thread::sleep(LOOK_AGAIN),
            Err(_) => return PanelsClaim::Elsewhere,
        }
    }
    PanelsClaim::Elsewhere
}

/// Makes room on the disk, unless another user's file is in its place in a directory that isn't ours either:
/// that user may need it.
fn prepare(building: Building, path: &Path, size: usize) -> PanelsClaim {
    let user = rustix::process::geteuid().as_raw();
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let others = std::fs::symlink_metadata(path).is_ok_and(|metadata| metadata.uid() != user);
    let ours = std::fs::metadata(directory).is_ok_and(|metadata| metadata.uid() == user);
    if (others && !ours) || reserve(&building.file, size).is_err() {
        return PanelsClaim::Elsewhere;
    }
    PanelsClaim::Build(building)
}

fn reserve(file: &File, size: usize) -> io::Result<()> {
    file.set_len(0)?;
    #[cfg(target_os = "linux")]
    match rustix::fs::fallocate(file, rustix::fs::FallocateFlags::empty(), 0, size as u64) {
        // If the file system cannot reserve room, the write fails instead.
        Err(rustix::io::Errno::OPNOTSUPP) | Ok(()) => {}
        Err(error) => return Err(error.into()),
    }
    file.set_len(size as u64)
}

/// Removes a temporary file that a crash left.
fn clean(temporary: &Path) {
    if std::fs::symlink_metadata(temporary).is_ok() && matches!(lock(temporary), Ok(Some(_))) {
        let _ = std::fs::remove_file(temporary);
    }
}

impl Building {
    /// The file to be written, as large as it will be.
    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Writes the head, syncs the file, and puts it in its place if `wanted` says so then.
    ///
    /// # Errors
    /// The system's; the temporary file is gone then.
    pub(super) fn publish(self, key: &[u8], sums: &[u32], wanted: impl FnOnce() -> bool) -> io::Result<()> {
        self.file.write_all_at(&manifest::head(key, sums), 0)?;
        self.file.set_permissions(Permissions::from_mode(0o400))?;
        self.file.sync_all()?;
        if !wanted() {
            return Err(io::ErrorKind::InvalidData.into());
        }
        std::fs::rename(&self.temporary, &self.path)?;
        // The name survives a power cut if the directory was synced; if not, the file is written again.
        if let Some(directory) = self.path.parent().and_then(|directory| File::open(directory).ok()) {
            let _ = directory.sync_all();
        }
        Ok(())
    }
}

impl Drop for Building {
    fn drop(&mut self) {
        // After `publish`, another process may already be writing the next file.
        if std::fs::symlink_metadata(&self.temporary).is_ok_and(|there| same_file(&there, &self.file)) {
            let _ = std::fs::remove_file(&self.temporary);
        }
    }
}
