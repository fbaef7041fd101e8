//! Sidecar files, which the engine keeps beside the file of a model: whose they are, and who may write them.
//!
//! A file is written as `NAME.new` by whoever has the lock on that, and renamed when it is complete; one that
//! a crash left there is taken over by the next who writes.

use std::ffi::OsString;
use std::fs::{File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, OFlags};

/// Suffix of the file with the checksum of a model's file.
pub(crate) const CHECKSUM_SUFFIX: &str = ".checksum";
/// Suffix of the file with the packed weights of a model's file.
pub(crate) const PANELS_SUFFIX: &str = ".panels";
/// Suffix of a file that is being written.
pub(crate) const NEW_SUFFIX: &str = ".new";

/// A path with something behind its name.
pub(crate) fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

/// Opens a regular file of ours that nobody else may write to, and not through a link.
///
/// # Errors
/// The system's; `PermissionDenied` for other files.
pub(crate) fn open_ours(options: &mut OpenOptions, path: &Path) -> io::Result<File> {
    let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = options.custom_flags(flags.bits() as i32).open(path)?;
    let metadata = file.metadata()?;
    let ours = metadata.uid() == rustix::process::geteuid().as_raw();
    // The number of links is 0 where the file was removed meanwhile.
    if ours && metadata.is_file() && metadata.nlink() <= 1 && metadata.mode() & 0o022 == 0 {
        Ok(file)
    } else {
        Err(io::ErrorKind::PermissionDenied.into())
    }
}

/// Opens the file of ours at the path, that nobody may write to.
///
/// # Errors
/// As [`open_ours`].
pub(crate) fn open_finished(path: &Path) -> io::Result<File> {
    let file = open_ours(OpenOptions::new().read(true), path)?;
    match file.metadata()?.mode() & 0o222 {
        0 => Ok(file),
        _ => Err(io::ErrorKind::PermissionDenied.into()),
    }
}

/// Opens the temporary file and locks it; None where another process has it.
///
/// # Errors
/// The system's.
pub(crate) fn lock(temporary: &Path) -> io::Result<Option<File>> {
    let file = open_ours(OpenOptions::new().read(true).write(true).create(true).mode(0o600), temporary)?;
    match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(rustix::io::Errno::WOULDBLOCK) => return Ok(None),
        Err(error) => return Err(error.into()),
    }
    // Where the file was renamed or removed before the lock was ours, it is no longer the temporary file.
    let same = std::fs::symlink_metadata(temporary).is_ok_and(|there| same_file(&there, &file));
    Ok(same.then_some(file))
}

/// Whether what is known of a path is of this file.
pub(crate) fn same_file(there: &Metadata, file: &File) -> bool {
    file.metadata().is_ok_and(|here| (here.dev(), here.ino()) == (there.dev(), there.ino()))
}
