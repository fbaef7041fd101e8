//! Where a file lies while it is fetched, and what is known of one that has arrived.

use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::listing::Remote;
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
