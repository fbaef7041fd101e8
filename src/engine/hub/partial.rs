//! One file on its way: what has arrived of it, kept over retries, restarts and kills, until it is whole and
//! what it should be.
//!
//! It grows as `KEY.part`, and is renamed to `KEY.done` when its size and its SHA-256 are those that the hub
//! announced. The key is made of its path and of what tells its content from others, so that bytes of two
//! versions never meet. `KEY.etag` has what the place that the bytes came from calls them: it sends the whole
//! file where it has another one by now.
//!
//! Invariant: bytes that are on the disk already are read again before others are appended, so that the
//! checksum is that of the file and not of what was sent.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use sha2::{Digest, Sha256};

use super::client::{Answered, AttemptFailure, HubClient, HubResponse, Retry};
use super::error::HubError;
use super::listing::Remote;
use super::pace::DownloadPace;
use super::progress::Progress;
use super::reference::Reference;
use super::staged_file::{Arrived, Paths, read_through};
use super::{Hub, place};
use crate::cache_key::hex;
use crate::sidecar;

const BUFFER: usize = 256 << 10;
/// Bytes after which they are written to the disk, so that what a busy server keeps in memory of them stays
/// small.
const SYNC_BYTES: u64 = 32 << 20;
/// Bytes written between two checks of the free space.
const MEASURED_BYTES: u64 = 8 << 20;
const MAX_ETAG: u64 = 256;
/// Number of times a damaged file is fetched again from its beginning before the download fails.
const MAX_DAMAGED: u32 = 1;

/// Bytes that must arrive for the attempts to be counted anew: a part of the file, and of a large one so
/// many.
const GAIN: u64 = 1 << 20;
const GAIN_PART: u64 = 16;

/// A file while it is fetched.
pub(super) struct Partial<'a> {
    remote: &'a Remote,
    paths: Paths,
    file: File,
    length: u64,
    unsynced: u64,
    unmeasured: u64,
    hash: Sha256,
    /// The hash of several files one after the other, up to here and up to the beginning of this one. `None`
    /// in the first one: it is that of the file.
    whole: Option<Sha256>,
    whole_before: Option<Sha256>,
    /// Bytes of the files before it.
    before: u64,
    progress: &'a Progress,
    directory: &'a Path,
}

/// Bytes that are progress, for a file of that size.
fn gain(size: Option<u64>) -> u64 {
    size.map_or(GAIN, |size| (size / GAIN_PART).clamp(1, GAIN))
}

impl<'a> Partial<'a> {
    /// Opens what there is of a file. `whole` is the hash of the files before it, `None` where there are none
    /// or nobody asks for it.
    ///
    /// # Errors
    /// [`HubError::File`] and [`HubError::Cancelled`].
    pub(super) fn open(
        remote: &'a Remote,
        paths: Paths,
        whole: Option<&Sha256>,
        progress: &'a Progress,
        directory: &'a Path,
    ) -> Result<Partial<'a>, HubError> {
        paths.unshare()?;
        // One that was complete is read again like all others.
        match std::fs::rename(&paths.done, &paths.part) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(HubError::file(&paths.done, error));
            }
            _ => {}
        }
        let mut options = OpenOptions::new();
        let file = sidecar::open_ours(options.read(true).write(true).create(true).mode(0o600), &paths.part)
            .map_err(|error| HubError::file(&paths.part, error))?;
        let mut partial = Partial {
            remote,
            paths,
            file,
            length: 0,
            unsynced: 0,
            unmeasured: 0,
            hash: Sha256::new(),
            whole: whole.cloned(),
            whole_before: whole.cloned(),
            before: progress.done(),
            progress,
            directory,
        };
        partial.read_again()?;
        Ok(partial)
    }

    fn read_again(&mut self) -> Result<(), HubError> {
        let length = self.file.metadata().map_err(|error| self.failed(error))?.len();
        let known = self.remote.sha256.is_some() || self.etag().is_some();
        if !known || self.remote.size.is_some_and(|size| length > size) {
            return self.restart();
        }
        let mut file = self.file.try_clone().map_err(|error| self.failed(error))?;
        let (progress, path, before) = (self.progress, self.paths.part.clone(), self.before);
        read_through(
            &mut file,
            progress,
            |error| HubError::file(&path, error),
            |bytes| {
                self.count(bytes);
                progress.set_done(before + self.length);
            },
        )
    }

    fn count(&mut self, bytes: &[u8]) {
        self.hash.update(bytes);
        if let Some(whole) = &mut self.whole {
            whole.update(bytes);
        }
        self.length += bytes.len() as u64;
    }

    /// Throws away what there is.
    fn restart(&mut self) -> Result<(), HubError> {
        self.file
            .set_len(0)
            .and_then(|()| io::Seek::rewind(&mut self.file))
            .map_err(|error| self.failed(error))?;
        let _ = std::fs::remove_file(&self.paths.etag);
        (self.length, self.hash, self.whole) = (0, Sha256::new(), self.whole_before.clone());
        self.progress.set_done(self.before);
        Ok(())
    }

    /// Fetches what is missing, and returns the hash of all files up to this one as well.
    ///
    /// # Errors
    /// [`HubError`]; what has arrived stays.
    pub(super) fn complete(
        mut self,
        client: &HubClient<'_>,
        hub: &Hub,
        reference: &Reference,
    ) -> Result<(Arrived, Sha256), HubError> {
        let mut retry = Retry::new(hub);
        let mut pace = DownloadPace::new(self.progress);
        let mut damaged = 0;
        let mut furthest = self.length;
        let mut expected = self.remote.sha256.clone();
        let mut size = self.remote.size;
        loop {
            if size != Some(self.length) {
                match self.fetch(client, reference, &mut size, &mut expected, &mut pace) {
                    Ok(()) => {}
                    Err(failed) => {
                        // Bytes that come once more after they were thrown away are no progress, and a few
                        // are not enough of it for a download to go on with them for ever.
                        if self.length >= furthest.saturating_add(gain(size)) {
                            furthest = self.length;
                            retry.reset();
                        }
                        client.wait(&mut retry, failed)?;
                        continue;
                    }
                }
            }
            match self.finish(expected.as_deref()) {
                Err(error @ HubError::Damaged { .. }) if damaged == MAX_DAMAGED => return Err(error),
                Err(HubError::Damaged { .. }) => damaged += 1,
                Err(error) => return Err(error),
                Ok(arrived) => return Ok((arrived, self.whole.unwrap_or(self.hash))),
            }
        }
    }

    /// One request for the rest.
    fn fetch(
        &mut self,
        client: &HubClient<'_>,
        reference: &Reference,
        size: &mut Option<u64>,
        expected: &mut Option<String>,
        pace: &mut DownloadPace,
    ) -> Result<(), AttemptFailure> {
        let etag = self.etag();
        let answer = match client.file(reference, &self.remote.path, self.length, etag.as_deref())? {
            Answered::With(answer) => answer,
            Answered::NothingBehind => {
                self.restart()?;
                let (host, reason) = (client.host(), "nothing behind what has arrived of a file".to_owned());
                return Err(AttemptFailure::ThisTime(HubError::Protocol { host, reason }, None));
            }
        };
        if answer.begin != self.length {
            self.restart()?;
        }
        if let (Some(announced), Some(sent)) = (*size, answer.size)
            && announced != sent
        {
            let reason = format!("it has {sent} bytes and not {announced}");
            return Err(self.damaged(reason).into());
        }
        *size = size.or(answer.size);
        if expected.is_none() {
            expected.clone_from(&answer.sha256);
        }
        self.note_etag(answer.etag.as_deref())?;
        self.receive(answer, *size, client, pace)
    }

    fn receive(
        &mut self,
        mut answer: HubResponse,
        size: Option<u64>,
        client: &HubClient<'_>,
        pace: &mut DownloadPace,
    ) -> Result<(), AttemptFailure> {
        let mut buffer = vec![0; BUFFER];
        loop {
            self.progress.check()?;
            let read = match answer.body.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(client.cut(&answer.from, &error)),
            };
            if size.is_some_and(|size| size - self.length.min(size) < read as u64) {
                self.restart()?;
                return Err(self.damaged("it is longer".to_owned()).into());
            }
            self.append(&buffer[..read])?;
            pace.keep(self.progress)?;
        }
        match size {
            Some(size) if self.length < size => {
                Err(client.cut(&answer.from, &ErrorKind::UnexpectedEof.into()))
            }
            _ => Ok(()),
        }
    }

    fn append(&mut self, bytes: &[u8]) -> Result<(), HubError> {
        self.file.write_all(bytes).map_err(|error| {
            // A part of them may be there, which the next one reads again.
            self.failed(error)
        })?;
        self.count(bytes);
        self.progress.arrived(bytes.len() as u64);
        self.unsynced += bytes.len() as u64;
        self.unmeasured += bytes.len() as u64;
        if self.unmeasured >= MEASURED_BYTES {
            self.unmeasured = 0;
            // The size of the file may be unknown, and other programs write to the disk as well.
            place::check_room(self.directory, &self.remote.path, 1)?;
        }
        if self.unsynced >= SYNC_BYTES {
            self.unsynced = 0;
            self.file.sync_data().map_err(|error| self.failed(error))?;
        }
        Ok(())
    }

    /// Whether it is the file that was announced.
    fn finish(&mut self, expected: Option<&str>) -> Result<Arrived, HubError> {
        let found = hex(&self.hash.clone().finalize());
        if let Some(expected) = expected.filter(|expected| **expected != found) {
            self.restart()?;
            return Err(self.damaged(format!("its SHA-256 is {found} and not {expected}")));
        }
        self.file.sync_all().map_err(|error| self.failed(error))?;
        std::fs::rename(&self.paths.part, &self.paths.done).map_err(|error| self.failed(error))?;
        Ok(Arrived { path: self.paths.done.clone(), size: self.length, sha256: found })
    }

    fn etag(&self) -> Option<String> {
        let file = sidecar::open_ours(OpenOptions::new().read(true), &self.paths.etag).ok()?;
        let mut text = String::new();
        file.take(MAX_ETAG).read_to_string(&mut text).ok()?;
        (!text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ')).then_some(text)
    }

    fn note_etag(&self, etag: Option<&str>) -> Result<(), HubError> {
        let written = match etag {
            Some(etag) => std::fs::write(&self.paths.etag, etag),
            None => match std::fs::remove_file(&self.paths.etag) {
                Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
                _ => Ok(()),
            },
        };
        written.map_err(|error| self.failed(error))
    }

    fn damaged(&self, reason: String) -> HubError {
        HubError::Damaged { file: self.remote.path.clone(), reason }
    }

    fn failed(&self, error: io::Error) -> HubError {
        if matches!(error.kind(), ErrorKind::StorageFull | ErrorKind::QuotaExceeded) {
            let missing = self.remote.size.unwrap_or(self.length).saturating_sub(self.length);
            return place::disk_full(&self.remote.path, self.directory, missing);
        }
        HubError::file(&self.paths.part, error)
    }
}
