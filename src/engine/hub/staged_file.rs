//! The paths of a file while it is fetched, and the properties of one that has arrived.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::error::HubError;
use super::listing::Remote;
use super::progress::Progress;
use crate::cache_key::hex;

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
}

impl Paths {
    pub(super) fn new(staging: &Path, remote: &Remote, commit: &str) -> Paths {
        let content = remote.sha256.as_deref().or(remote.blob.as_deref()).unwrap_or(commit);
        let key = hex(&Sha256::digest(format!("{}\0{content}", remote.path)));
        let path = |end: &str| staging.join(format!("{}.{end}", &key[..32]));
        Paths { part: path("part"), done: path("done"), etag: path("etag") }
    }

    /// Bytes that are there.
    pub(super) fn length(&self) -> u64 {
        let length = |path: &Path| std::fs::symlink_metadata(path).map(|metadata| metadata.len());
        length(&self.done).or_else(|_| length(&self.part)).unwrap_or(0)
    }

    pub(super) fn has(&self, path: &Path) -> bool {
        [&self.part, &self.done, &self.etag].into_iter().any(|ours| ours == path)
    }
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
    let failed = |error| HubError::file(path, error);
    let mut file = File::open(path).map_err(failed)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        progress.check()?;
        match file.read(&mut buffer).map_err(failed)? {
            0 => return Ok(hex(&hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}
