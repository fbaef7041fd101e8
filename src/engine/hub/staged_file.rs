//! The paths of a file while it is fetched, and the properties of one that has arrived.

use std::fs::{File, Metadata};
use std::io::{self, ErrorKind, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::HubError;
use super::listing::Remote;
use super::pace::DownloadPace;
use super::progress::Progress;
use crate::cache_key::hex;

/// Bytes that are read at once.
const BUFFER: usize = 256 << 10;

/// A file that has arrived.
#[derive(Debug, Clone)]
pub(super) struct Arrived {
    pub(super) path: PathBuf,
    pub(super) size: u64,
    /// In hexadecimal digits.
    pub(super) sha256: String,
}

/// The paths of a file while it is fetched.
pub(super) struct Paths {
    pub(super) part: PathBuf,
    pub(super) done: PathBuf,
    pub(super) etag: PathBuf,
    /// A link to the file that is in place already, where that is the same one.
    pub(super) kept: PathBuf,
}

impl Paths {
    pub(super) fn new(staging: &Path, remote: &Remote, commit: &str) -> Paths {
        let content = remote.sha256.as_deref().or(remote.blob.as_deref()).unwrap_or(commit);
        let key = hex(&Sha256::digest(format!("{}\0{content}", remote.path)));
        let path = |end: &str| staging.join(format!("{}.{end}", &key[..32]));
        Paths { part: path("part"), done: path("done"), etag: path("etag"), kept: path("kept") }
    }

    /// Bytes that are there.
    pub(super) fn length(&self) -> u64 {
        let length = |path: &Path| {
            std::fs::symlink_metadata(path).ok().filter(|there| !is_shared(there)).map(|there| there.len())
        };
        length(&self.done).or_else(|| length(&self.part)).unwrap_or(0)
    }

    /// Removes what has got its place under another name before the download was cut off: bytes that are in
    /// place are not written to.
    ///
    /// # Errors
    /// [`HubError::File`].
    pub(super) fn unshare(&self) -> Result<(), HubError> {
        for path in [&self.done, &self.part] {
            if std::fs::symlink_metadata(path).is_ok_and(|there| is_shared(&there)) {
                std::fs::remove_file(path).map_err(|error| HubError::file(path, error))?;
            }
        }
        Ok(())
    }

    pub(super) fn has(&self, path: &Path) -> bool {
        [&self.part, &self.done, &self.etag].into_iter().any(|ours| ours == path)
    }
}

fn is_shared(there: &Metadata) -> bool {
    there.nlink() > 1
}

/// Refuses to put into its place what every request would fail with.
///
/// # Errors
/// [`HubError::Damaged`].
pub(super) fn check_head(arrived: &[Arrived]) -> Result<(), HubError> {
    for Arrived { path, .. } in arrived {
        let mut head = [0; 4];
        let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
        if read.is_err() || &head != b"GGUF" {
            // The next download must not continue from this file.
            let _ = std::fs::remove_file(path);
            let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
            return Err(HubError::Damaged { file, reason: "it is no GGUF file".to_owned() });
        }
    }
    Ok(())
}

/// SHA-256 of a file, in hexadecimal digits.
///
/// # Errors
/// [`HubError::File`] and [`HubError::Cancelled`].
pub(super) fn sha256_of(path: &Path, progress: &Progress) -> Result<String, HubError> {
    let mut hash = Sha256::new();
    add_to(&mut hash, path, progress)?;
    Ok(hex(&hash.finalize()))
}

/// Adds the bytes of a file to a hash.
///
/// # Errors
/// As [`sha256_of`].
pub(super) fn add_to(hash: &mut Sha256, path: &Path, progress: &Progress) -> Result<(), HubError> {
    let failed = |error| HubError::file(path, error);
    let mut file = File::open(path).map_err(failed)?;
    read_through(&mut file, progress, failed, |bytes| hash.update(bytes))
}

/// Reads a file to its end, and gives way to others as a download does.
///
/// # Errors
/// What `failed` makes of the system's, and [`HubError::Cancelled`].
pub(super) fn read_through(
    file: &mut File,
    progress: &Progress,
    failed: impl Fn(io::Error) -> HubError,
    mut each: impl FnMut(&[u8]),
) -> Result<(), HubError> {
    let mut buffer = vec![0; BUFFER];
    let mut pace = DownloadPace::new(progress);
    loop {
        progress.check()?;
        match file.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(read) => each(&buffer[..read]),
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
        pace.keep(progress)?;
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::atomic::Ordering::Relaxed;

    use sha2::{Digest, Sha256};

    use super::super::partial::Partial;
    use super::{Paths, Progress, Remote, hex, sha256_of};

    #[test]
    fn reading_what_is_there_gives_way_as_receiving_does() {
        let directory = tempfile::tempdir().unwrap();
        let bytes = vec![7; 1 << 20];
        let sha256 = hex(&Sha256::digest(&bytes));
        let remote = Remote {
            path: "m.gguf".to_owned(),
            size: Some(2 << 20),
            sha256: Some(sha256.clone()),
            blob: None,
        };
        let paths = || Paths::new(directory.path(), &remote, "1");
        std::fs::write(paths().part, &bytes).unwrap();
        for gives_way in [false, true] {
            let progress = Progress::default();
            progress.set_gives_way(gives_way);
            assert_eq!(sha256_of(&paths().part, &progress).unwrap(), sha256);
            let of_checksum = progress.looks.load(Relaxed);
            let partial = Partial::open(&remote, paths(), None, &progress, directory.path()).unwrap();
            assert_eq!(progress.done(), 1 << 20);
            drop(partial);
            let of_partial = progress.looks.load(Relaxed) - of_checksum;
            assert_eq!((of_checksum > 0, of_partial > 0), (gives_way, gives_way));
        }
    }

    #[test]
    fn a_file_that_has_its_place_is_no_part_of_a_download_any_more() {
        let directory = tempfile::tempdir().unwrap();
        let remote = Remote { path: "m.gguf".to_owned(), size: Some(3), sha256: None, blob: None };
        let paths = Paths::new(directory.path(), &remote, "1");
        let place: PathBuf = directory.path().join("m.gguf");
        for staged in [&paths.done, &paths.part] {
            std::fs::write(staged, b"abc").unwrap();
            assert_eq!(paths.length(), 3);
            std::fs::hard_link(staged, &place).unwrap();
            assert_eq!(paths.length(), 0, "another one comes");
            paths.unshare().unwrap();
            assert!(!staged.exists());
            assert_eq!(std::fs::read(&place).unwrap(), b"abc");
            std::fs::remove_file(&place).unwrap();
        }
    }
}
