//! The directory of the models: who downloads into it, how much room there is, and how a model appears in it
//! as a whole.
//!
//! Unfinished downloads lie in `.pull`, in a folder for each model, which only the process that holds its
//! lock may touch. A model appears by being renamed; of a split one the first part comes last, as a model
//! without it is none.

use std::fs::{DirBuilder, File, Permissions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::error::HubError;
use super::progress::Progress;
use super::staged_file::{Arrived, Paths};
use crate::cache_key::hex;
use crate::card::{Card, CardError};
use crate::sidecar;

/// The folder of downloads in the directory of the models.
pub(super) const STAGING: &str = ".pull";
/// Room that must be left: the directory is often the server's own, which needs room for its write-ahead log.
/// It is a twentieth of the file system within these limits, and never more than a quarter.
const LEAST_RESERVE: u64 = 1 << 30;
const MOST_RESERVE: u64 = 10 << 30;
/// Interval at which a waiting process checks whether another one has released the lock.
const LOCK_INTERVAL: Duration = Duration::from_millis(200);

/// The place of a download, locked.
pub(super) struct Staging {
    pub(super) path: PathBuf,
    lock_path: PathBuf,
    _lock: File,
}

impl Staging {
    /// Waits until nobody else downloads a model of that name.
    ///
    /// # Errors
    /// [`HubError::File`] and [`HubError::Cancelled`].
    pub(super) fn enter(directory: &Path, name: &str, progress: &Progress) -> Result<Staging, HubError> {
        let readable: String = name
            .chars()
            .map(|c| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' })
            .take(80)
            .collect();
        let folder = format!("{readable}-{}", &hex(&Sha256::digest(name))[..8]);
        let all = directory.join(STAGING);
        make_folder(&all)?;
        let (path, lock_path) = (all.join(&folder), all.join(format!("{folder}.lock")));
        let lock = loop {
            progress.check()?;
            match sidecar::lock(&lock_path).map_err(|error| HubError::file(&lock_path, error))? {
                Some(lock) => break lock,
                None => progress.pause(LOCK_INTERVAL, "another process is downloading it")?,
            }
        };
        make_folder(&path)?;
        Ok(Staging { path, lock_path, _lock: lock })
    }

    /// Removes what is of other versions of the model.
    pub(super) fn keep_only(&self, wanted: &[Paths]) {
        for entry in self.path.read_dir().into_iter().flatten().flatten() {
            let path = entry.path();
            if !wanted.iter().any(|paths| paths.has(&path)) {
                let _ =
                    if path.is_dir() { std::fs::remove_dir_all(&path) } else { std::fs::remove_file(&path) };
            }
        }
    }

    /// Removes it all: the model is there.
    pub(super) fn leave(self) {
        let _ = std::fs::remove_dir_all(&self.path);
        let _ = std::fs::remove_file(&self.lock_path);
    }

    /// Puts files into their places below the directory.
    ///
    /// # Errors
    /// [`HubError::File`].
    pub(super) fn place_files(&self, files: &[(Arrived, PathBuf)]) -> Result<(), HubError> {
        let new = self.path.join("new");
        for (file, target) in files.iter().rev() {
            self.take(file, &new)?;
            std::fs::rename(&new, target).map_err(|error| HubError::file(target, error))?;
        }
        files.first().and_then(|(_, target)| target.parent()).map_or(Ok(()), sync_folder)
    }

    /// Puts a folder into its place, with files under their paths in it.
    ///
    /// # Errors
    /// [`HubError::File`].
    pub(super) fn place_folder(&self, files: &[(Arrived, String)], target: &Path) -> Result<(), HubError> {
        let (new, old) = (self.path.join("new"), self.path.join("old"));
        for left in [&new, &old] {
            match std::fs::remove_dir_all(left) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(HubError::file(left, error)),
                _ => {}
            }
        }
        for (file, path) in files {
            let path = new.join(path);
            let parent = path.parent().unwrap_or(&new);
            make_folder(parent)?;
            self.take(file, &path)?;
            sync_folder(parent)?;
        }
        let moved = match std::fs::rename(target, &old) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
            other => other,
        };
        moved.and_then(|()| std::fs::rename(&new, target)).map_err(|error| HubError::file(target, error))?;
        target.parent().map_or(Ok(()), sync_folder)
    }

    /// Gives a file another name; the one that it has stays where the file system has links, so that nothing
    /// need be fetched again when it is interrupted here.
    fn take(&self, file: &Arrived, path: &Path) -> Result<(), HubError> {
        let failed = |error| HubError::file(path, error);
        let mode = Permissions::from_mode(0o644);
        std::fs::set_permissions(&file.path, mode).map_err(failed)?;
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
            _ => {}
        }
        std::fs::hard_link(&file.path, path).or_else(|_| std::fs::rename(&file.path, path)).map_err(failed)
    }
}

/// The path of a model below the directory; folders on the way are made.
///
/// # Errors
/// [`HubError::File`] where links on the way lead out of the directory.
pub(super) fn target(directory: &Path, name: &str) -> Result<PathBuf, HubError> {
    let target = directory.join(name);
    let parent = target.parent().unwrap_or(directory);
    make_folder(parent)?;
    let real = |path: &Path| path.canonicalize().map_err(|error| HubError::file(path, error));
    if !real(parent)?.starts_with(real(directory)?) {
        let outside =
            io::Error::new(ErrorKind::PermissionDenied, "it leads out of the directory of the models");
        return Err(HubError::file(&target, outside));
    }
    Ok(target)
}

/// Makes a folder, and those that it is in, for nobody else.
pub(super) fn make_folder(path: &Path) -> Result<(), HubError> {
    DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|error| HubError::file(path, error))
}

/// Removes a file from its place, if there is one.
///
/// # Errors
/// [`HubError::File`].
pub(super) fn remove(place: &Path) -> Result<(), HubError> {
    match std::fs::remove_file(place) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(HubError::file(place, error)),
        // It is gone before anything else comes, also where the machine stops.
        Ok(()) => place.parent().map_or(Ok(()), sync_folder),
    }
}

fn sync_folder(path: &Path) -> Result<(), HubError> {
    File::open(path).and_then(|folder| folder.sync_all()).map_err(|error| HubError::file(path, error))
}

/// Writes the card beside a model's place.
///
/// # Errors
/// [`HubError::File`].
pub(super) fn write_card(card: &Card, target: &Path) -> Result<(), HubError> {
    card.write(target).map_err(|error| match error {
        CardError::File { path, source } => HubError::File { path, source },
        CardError::Invalid { path, reason } => {
            HubError::file(&path, io::Error::new(io::ErrorKind::InvalidData, reason))
        }
    })
}

/// Refuses what would not fit.
///
/// # Errors
/// [`HubError::DiskFull`].
pub(super) fn check_room(directory: &Path, name: &str, needed: u64) -> Result<(), HubError> {
    let statistics =
        rustix::fs::statvfs(directory).map_err(|error| HubError::file(directory, error.into()))?;
    let available = statistics.f_bavail.saturating_mul(statistics.f_frsize);
    let reserve = reserve(statistics.f_blocks.saturating_mul(statistics.f_frsize));
    if needed > 0 && needed.saturating_add(reserve) > available {
        return Err(disk_full(name, directory, needed));
    }
    Ok(())
}

/// Room that must be left in a file system of that size.
fn reserve(size: u64) -> u64 {
    (size / 20).clamp(LEAST_RESERVE, MOST_RESERVE).min(size / 4)
}

/// The error of a full disk.
pub(super) fn disk_full(file: &str, directory: &Path, needed: u64) -> HubError {
    let available = rustix::fs::statvfs(directory).map_or(0, |s| s.f_bavail.saturating_mul(s.f_frsize));
    let (needed_mb, available_mb) = (needed.div_ceil(1 << 20), available >> 20);
    HubError::DiskFull { file: file.to_owned(), directory: directory.to_owned(), needed_mb, available_mb }
}

#[cfg(test)]
mod tests {
    use super::{check_room, reserve, target};
    use crate::hub::HubError;

    #[test]
    fn what_does_not_fit_is_refused_before_it_comes() {
        let directory = tempfile::tempdir().unwrap();
        check_room(directory.path(), "m", 1).unwrap();
        let error = check_room(directory.path(), "m", u64::MAX / 2).unwrap_err();
        assert!(matches!(error, HubError::DiskFull { needed_mb, .. } if needed_mb > 1 << 40), "{error}");
    }

    #[test]
    fn what_is_left_free_follows_the_size_of_the_disk() {
        const GB: u64 = 1 << 30;
        assert_eq!(reserve(GB / 2), GB / 8, "a small one could not be used otherwise");
        assert_eq!((reserve(10 * GB), reserve(20 * GB)), (GB, GB));
        assert_eq!((reserve(100 * GB), reserve(10_000 * GB)), (5 * GB, 10 * GB));
    }

    #[test]
    fn folders_on_the_way_are_made_and_links_out_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let other = tempfile::tempdir().unwrap();
        let path = target(directory.path(), "a/b/c.gguf").unwrap();
        assert!(path.parent().unwrap().is_dir());
        std::os::unix::fs::symlink(other.path(), directory.path().join("out")).unwrap();
        let error = target(directory.path(), "out/c.gguf").unwrap_err();
        assert!(error.to_string().contains("leads out"), "{error}");
    }
}
