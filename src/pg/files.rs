//! Files that PostgreSQL keeps account of: temporary ones, which go with the transaction, with the process,
//! or with the next start of the server; and open files that it does not open itself but has to know of. It
//! keeps files of its own open as long as there is room for them, and closes some of them where others need
//! it.

use std::ffi::{CStr, CString};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use pgrx::pg_sys;

use super::error::PgError;
use super::guc;

/// Whether the server's processes may make files in a directory.
pub(crate) fn may_write(directory: &Path) -> bool {
    use std::os::unix::ffi::OsStrExt;
    let Ok(path) = CString::new(directory.as_os_str().as_bytes()) else { return false };
    // SAFETY: a path that ends with a zero byte.
    unsafe { libc::access(path.as_ptr(), libc::W_OK | libc::X_OK) == 0 }
}

/// Makes the directory of the models where it is missing and the one above it is there, so that it belongs to
/// the operating system user of the server and nobody else may write to it.
///
/// # Errors
///
/// 58030 where that cannot be done.
pub(crate) fn make_model_directory() -> Result<(), PgError> {
    let name = guc::model_dir();
    let path = Path::new(&name);
    if name.is_empty() || path.symlink_metadata().is_ok() {
        return Ok(());
    }
    std::fs::DirBuilder::new().mode(0o700).create(path).map_err(|error| {
        PgError::new(
            pgrx::PgSqlErrorCode::ERRCODE_IO_ERROR,
            format!("could not make the directory of the models \"{name}\": {error}"),
        )
        .hint("Make it, owned by the operating system user of the server, or change pg_steadytext.model_dir.")
    })
}

/// An empty file of this transaction's, for what wants a path.
pub(crate) struct TemporaryFile {
    file: pg_sys::File,
    path: PathBuf,
}

impl TemporaryFile {
    /// Makes one. Inside a transaction.
    pub(crate) fn create() -> Self {
        use std::os::unix::ffi::OsStrExt;
        // SAFETY: the file belongs to the current resource owner until it is closed; its name is copied.
        unsafe {
            let file = pg_sys::OpenTemporaryFile(false);
            let path = CStr::from_ptr(pg_sys::FilePathName(file));
            let path = PathBuf::from(std::ffi::OsStr::from_bytes(path.to_bytes()));
            TemporaryFile { file, path }
        }
    }

    /// Its path.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for TemporaryFile {
    fn drop(&mut self) {
        // After an error, the end of the transaction closes it.
        if !std::thread::panicking() {
            // SAFETY: opened by this value, and closed once.
            unsafe { pg_sys::FileClose(self.file) };
        }
    }
}

/// An open file of this process that is counted. Dropping it gives its place back.
#[derive(Debug)]
pub(crate) struct Descriptor(());

impl Descriptor {
    /// A place for one more open file. `None` where this process has too many already: PostgreSQL allows a
    /// third of what it may open in all.
    pub(crate) fn acquire() -> Option<Descriptor> {
        // SAFETY: counts, and closes files that PostgreSQL can open again; in the main thread.
        unsafe { pg_sys::AcquireExternalFD() }.then_some(Descriptor(()))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: counts; it was acquired before.
        unsafe { pg_sys::ReleaseExternalFD() };
    }
}
