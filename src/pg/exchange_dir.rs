//! Files of `pg_steadytext.exchange_dir`, the only directory from which and to which SQL functions read and
//! write files.
//!
//! Invariant: no path leads out of it. The directory that the setting names is opened once, and everything
//! below it step by step, each step relative to the one before and never through a symbolic link; the file
//! that is checked is the one that is used, even if another process changes the directory meanwhile.

use std::cell::Cell;
use std::ffi::{CStr, CString, OsStr};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{Error as IoError, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Component, Path};

use pgrx::prelude::*;

use super::error::PgError;
use super::{guc, interrupts};

/// Bytes copied between two looks for interrupts.
const PIECE_BYTES: usize = 1 << 20;
/// Bytes of a file at most.
const MAX_FILE_BYTES: u64 = 16 << 30;
/// The beginning of a file that may be replaced.
const SQLITE_MAGIC: &[u8] = b"SQLite format 3\0";

/// The path of a file in the exchange directory, whether or not the file is there.
pub(crate) struct ExchangePath {
    directory: OwnedFd,
    name: CString,
    /// The path as the caller wrote it.
    path: String,
}

impl ExchangePath {
    /// The path that `path` names: relative to the exchange directory, or absolute and below it.
    ///
    /// # Errors
    ///
    /// 55000 where no directory is configured, 42501 where the path leads out of it, and what the operating
    /// system says.
    pub(crate) fn at(path: &str) -> Result<Self, PgError> {
        let base = guc::exchange_dir();
        if base.is_empty() {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "no directory for the exchange of files is configured",
            )
            .hint("Set pg_steadytext.exchange_dir in postgresql.conf to a directory that is meant for nothing else, and reload."));
        }
        let steps = steps(Path::new(&base), path)?;
        let mut directory = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_DIRECTORY)
            .open(&base)
            .map(OwnedFd::from)
            .map_err(|error| file_error("open directory", &base, &error))?;
        refuse_data_directory(&directory, &base)?;
        let (name, parents) = steps.split_last().ok_or_else(|| outside(path))?;
        for parent in parents {
            directory = open_at(&directory, parent, libc::O_RDONLY | libc::O_DIRECTORY)
                .map_err(|error| file_error("open", path, &error))?;
        }
        Ok(ExchangePath { directory, name: name.clone(), path: path.to_owned() })
    }

    /// Copies the file into `target`.
    ///
    /// # Errors
    ///
    /// It is not there, no regular file, or too large; or the caller's statement was cancelled.
    pub(crate) fn copy_to(&self, target: &mut File) -> Result<(), PgError> {
        let said = |doing: &str, error: IoError| file_error(doing, &self.path, &error);
        // Without O_NONBLOCK, opening a named pipe would wait for somebody who writes.
        let mut source = open_at(&self.directory, &self.name, libc::O_RDONLY | libc::O_NONBLOCK)
            .map(File::from)
            .map_err(|error| said("open", error))?;
        let metadata = source.metadata().map_err(|error| said("read", error))?;
        if !metadata.is_file() {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
                format!("\"{}\" is not a regular file", self.path),
            ));
        }
        copy(&mut source, target, &self.path)
    }

    /// Whether a file of this name with `suffix` lies beside it and is not empty.
    pub(crate) fn has_beside(&self, suffix: &str) -> bool {
        let name = [self.name.as_bytes(), suffix.as_bytes()].concat();
        CString::new(name)
            .ok()
            .and_then(|name| open_at(&self.directory, &name, libc::O_RDONLY | libc::O_NONBLOCK).ok())
            .and_then(|file| File::from(file).metadata().ok())
            .is_some_and(|metadata| metadata.len() > 0)
    }

    /// Puts a copy of `source` here: under another name first, then in one step under its own. Mode 0600, or
    /// 0640 in a directory with the set-group-ID bit, whose group is meant to read it. An existing file is
    /// replaced only with `replace`, and only if it is an SQLite file.
    ///
    /// # Errors
    ///
    /// There is one already, or the operating system refuses; or the caller's statement was cancelled.
    pub(crate) fn put(&self, source: &mut File, replace: bool) -> Result<(), PgError> {
        let said = |doing: &str, error: IoError| file_error(doing, &self.path, &error);
        self.check_replaceable(replace)?;
        let draft = Draft::create(self).map_err(|error| said("create", error))?;
        copy(source, &mut &draft.file, &self.path)?;
        draft.file.sync_all().map_err(|error| said("write", error))?;
        if replace {
            draft.rename().map_err(|error| said("create", error))?;
        } else {
            draft.link().map_err(|error| said("create", error))?;
        }
        // SAFETY: a descriptor that is open.
        unsafe { libc::fsync(self.directory.as_raw_fd()) };
        Ok(())
    }

    fn is_for_its_group(&self) -> bool {
        let metadata = self.directory.try_clone().and_then(|directory| File::from(directory).metadata());
        metadata.is_ok_and(|metadata| metadata.permissions().mode() & libc::S_ISGID != 0)
    }

    fn check_replaceable(&self, replace: bool) -> Result<(), PgError> {
        let existing = match open_at(&self.directory, &self.name, libc::O_RDONLY | libc::O_NONBLOCK) {
            Ok(existing) => File::from(existing),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(file_error("replace", &self.path, &error)),
        };
        if !replace {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_DUPLICATE_FILE,
                format!("file \"{}\" exists already", self.path),
            )
            .hint("Choose another name, or say replace => true."));
        }
        let mut head = Vec::new();
        let is_file = existing.metadata().is_ok_and(|metadata| metadata.is_file());
        let is_read = is_file && existing.take(SQLITE_MAGIC.len() as u64).read_to_end(&mut head).is_ok();
        if is_read && head == SQLITE_MAGIC {
            Ok(())
        } else {
            Err(PgError::new(
                PgSqlErrorCode::ERRCODE_WRONG_OBJECT_TYPE,
                format!("\"{}\" exists already and is not an SQLite file", self.path),
            )
            .hint("Only an earlier cache file is replaced; choose another name."))
        }
    }
}

/// A file that is still being written. It has no name where the file system knows such files, so that nothing
/// is left of it however the process ends; elsewhere it has one until it is dropped, and what a process that
/// was killed has left is removed by the next one that writes to the same place.
struct Draft<'p> {
    target: &'p ExchangePath,
    /// Its name, or the name that it will have in the moment before it takes another's place.
    name: CString,
    file: File,
    is_named: Cell<bool>,
}

impl<'p> Draft<'p> {
    fn create(target: &'p ExchangePath) -> Result<Self, IoError> {
        let name = CString::new(draft_name(target, &std::process::id().to_string()))?;
        remove_abandoned(target);
        let (file, is_named) = match open_at(&target.directory, c".", libc::O_WRONLY | libc::O_TMPFILE) {
            Ok(file) => (File::from(file), false),
            // These are the errors of file systems that have no such files, and of kernels that do not know
            // the flag.
            Err(error)
                if matches!(
                    error.raw_os_error(),
                    Some(libc::EOPNOTSUPP | libc::EISDIR | libc::EINVAL | libc::ENOENT)
                ) =>
            {
                let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
                let file = File::from(open_at(&target.directory, &name, flags)?);
                // Says that somebody is writing it, until the process ends.
                let _ = file.try_lock();
                (file, true)
            }
            Err(error) => return Err(error),
        };
        let draft = Draft { target, name, file, is_named: Cell::new(is_named) };
        if target.is_for_its_group() {
            draft.file.set_permissions(Permissions::from_mode(0o640))?;
        }
        Ok(draft)
    }

    /// Takes the place of what has the name now.
    fn rename(&self) -> Result<(), IoError> {
        if !self.is_named.get() {
            self.link_as(&self.name)?;
            self.is_named.set(true);
        }
        let directory = self.target.directory.as_raw_fd();
        // SAFETY: two strings and an open descriptor.
        let status =
            unsafe { libc::renameat(directory, self.name.as_ptr(), directory, self.target.name.as_ptr()) };
        result(status)?;
        self.is_named.set(false);
        Ok(())
    }

    /// Takes the name if nothing has it.
    fn link(&self) -> Result<(), IoError> {
        self.link_as(&self.target.name)
    }

    fn link_as(&self, name: &CStr) -> Result<(), IoError> {
        let directory = self.target.directory.as_raw_fd();
        // SAFETY: strings and open descriptors.
        let status = unsafe {
            if self.is_named.get() {
                libc::linkat(directory, self.name.as_ptr(), directory, name.as_ptr(), 0)
            } else {
                // The way to a file without a name that needs no privilege.
                let path = CString::new(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
                libc::linkat(libc::AT_FDCWD, path.as_ptr(), directory, name.as_ptr(), libc::AT_SYMLINK_FOLLOW)
            }
        };
        result(status).map(|_| ())
    }
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if self.is_named.get() {
            unlink(self.target, &self.name);
        }
    }
}

fn draft_name(target: &ExchangePath, process: &str) -> Vec<u8> {
    [b".", target.name.as_bytes(), b".", process.as_bytes(), b".draft"].concat()
}

/// Removes drafts for this place whose process has gone: nobody holds their lock.
fn remove_abandoned(target: &ExchangePath) {
    let link = format!("/proc/self/fd/{}", target.directory.as_raw_fd());
    let head = draft_name(target, "");
    let head = head.strip_suffix(b".draft").unwrap_or(&head);
    for entry in std::fs::read_dir(link).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let process = name.as_bytes().strip_prefix(head).and_then(|rest| rest.strip_suffix(b".draft"));
        let is_one =
            process.is_some_and(|process| !process.is_empty() && process.iter().all(u8::is_ascii_digit));
        let Some(name) = CString::new(name.as_bytes()).ok().filter(|_| is_one) else { continue };
        let Ok(file) = open_at(&target.directory, &name, libc::O_RDONLY | libc::O_NONBLOCK) else { continue };
        if File::from(file).try_lock().is_ok() {
            unlink(target, &name);
        }
    }
}

fn unlink(target: &ExchangePath, name: &CStr) {
    // SAFETY: a string and an open descriptor; there may be nothing to remove.
    unsafe { libc::unlinkat(target.directory.as_raw_fd(), name.as_ptr(), 0) };
}

/// The names of a path below the exchange directory, one after the other.
fn steps(base: &Path, path: &str) -> Result<Vec<CString>, PgError> {
    let mut below = Path::new(path);
    if below.is_absolute() {
        below = below.strip_prefix(base).map_err(|_| outside(path))?;
    }
    let name = |component| match component {
        Component::Normal(name) => CString::new(OsStr::as_bytes(name)).ok(),
        _ => None,
    };
    let steps = below.components().filter(|component| *component != Component::CurDir);
    steps.map(|component| name(component).ok_or_else(|| outside(path))).collect()
}

fn outside(path: &str) -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("path \"{path}\" is not in the directory for the exchange of files"),
    )
    .hint("Give the path relative to the directory that pg_steadytext.exchange_dir names, without \"..\".")
}

/// The directory with the server's own files would let a cache file be put among them.
fn refuse_data_directory(directory: &OwnedFd, base: &str) -> Result<(), PgError> {
    use std::os::unix::fs::MetadataExt;
    let identity = |path: &Path| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let link = format!("/proc/self/fd/{}", directory.as_raw_fd());
    // The data directory is every server process's working directory.
    match identity(Path::new(".")) {
        Some(data) if identity(Path::new(&link)).or_else(|| identity(Path::new(base))) == Some(data) => {
            Err(PgError::new(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                "pg_steadytext.exchange_dir is the data directory",
            )
            .hint("Set it to a directory that is meant for nothing else."))
        }
        _ => Ok(()),
    }
}

fn open_at(directory: &OwnedFd, name: &CStr, flags: i32) -> Result<OwnedFd, IoError> {
    let flags = flags | libc::O_NOFOLLOW | libc::O_CLOEXEC | libc::O_NOCTTY;
    // SAFETY: a string and an open descriptor; the new descriptor is owned by nobody else.
    unsafe {
        let opened = result(libc::openat(directory.as_raw_fd(), name.as_ptr(), flags, 0o600))?;
        Ok(OwnedFd::from_raw_fd(opened))
    }
}

fn result(status: i32) -> Result<i32, IoError> {
    if status < 0 { Err(IoError::last_os_error()) } else { Ok(status) }
}

fn copy(source: &mut File, target: &mut impl Write, path: &str) -> Result<(), PgError> {
    let mut piece = vec![0; PIECE_BYTES];
    let mut copied = 0;
    loop {
        if interrupts::is_stop_pending() {
            return Err(stopped());
        }
        interrupts::answer_barriers();
        let length = source.read(&mut piece).map_err(|error| file_error("read", path, &error))?;
        if length == 0 {
            return Ok(());
        }
        copied += length as u64;
        if copied > MAX_FILE_BYTES {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                format!("file \"{path}\" is larger than {} GB", MAX_FILE_BYTES >> 30),
            ));
        }
        target.write_all(&piece[..length]).map_err(|error| file_error("write", path, &error))?;
    }
}

/// PostgreSQL's error for a cancelled statement, for cancellations that are acted on here: a draft must be
/// removed first.
pub(crate) fn stopped() -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_QUERY_CANCELED, "canceling statement due to user request")
}

/// An error of the operating system, with the SQLSTATE that PostgreSQL gives it.
pub(crate) fn file_error(doing: &str, path: &str, error: &IoError) -> PgError {
    use PgSqlErrorCode as Code;
    let code = match error.raw_os_error() {
        Some(libc::ENOENT) => Code::ERRCODE_UNDEFINED_FILE,
        Some(libc::EEXIST) => Code::ERRCODE_DUPLICATE_FILE,
        Some(libc::EACCES | libc::EPERM | libc::EROFS | libc::ELOOP) => Code::ERRCODE_INSUFFICIENT_PRIVILEGE,
        Some(libc::ENOTDIR | libc::EISDIR) => Code::ERRCODE_WRONG_OBJECT_TYPE,
        Some(libc::ENOSPC | libc::EDQUOT) => Code::ERRCODE_DISK_FULL,
        Some(libc::ENFILE | libc::EMFILE) => Code::ERRCODE_INSUFFICIENT_RESOURCES,
        Some(libc::ENAMETOOLONG) => Code::ERRCODE_INVALID_PARAMETER_VALUE,
        _ => Code::ERRCODE_IO_ERROR,
    };
    let said = PgError::new(code, format!("could not {doing} \"{path}\": {error}"));
    match error.raw_os_error() {
        Some(libc::ELOOP) => said.hint("Symbolic links are not followed there."),
        Some(libc::EACCES) => said.hint("The operating system user of the server needs the right."),
        _ => said,
    }
}
