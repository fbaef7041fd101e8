//! The checksums of model files in shared memory.
//!
//! To hash a file takes seconds, and every process needs the checksum of a model's present file. The engine
//! keeps the checksum in a file beside the model; where it cannot write one, other processes find the
//! checksum here. This module also remembers from which files no model can be loaded, so that `auto` passes
//! them over.
//!
//! Invariant: the table is read and written under its lock; all zeros is an empty one.

use std::cell::{RefCell, UnsafeCell};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::{Acquire, Release};

use steadytext_engine::{FileId, ModelIdentity, ModelSource};

use super::shmem::{SharedContent, SharedPart};

/// Files that are remembered; the oldest makes room.
const FILES: usize = 64;
/// Files that are remembered as being no good; the oldest makes room.
const BAD_FILES: usize = 32;
/// Longest reason that is remembered.
const REASON_BYTES: usize = 400;

/// The table.
#[repr(C)]
pub(crate) struct ChecksumTable {
    inner: UnsafeCell<ChecksumsInner>,
    /// Whether there is anything to look for among the files that are no good.
    any_bad: AtomicBool,
}

// SAFETY: `inner` is only reached through `locked`, which holds the lock that all processes share.
unsafe impl Sync for ChecksumTable {}
// SAFETY: zeros are a table that is empty.
unsafe impl SharedContent for ChecksumTable {}

pub(super) static TABLE: SharedPart<ChecksumTable> = SharedPart::new();

#[repr(C)]
struct ChecksumsInner {
    /// Ever learned.
    count: u64,
    known: [KnownChecksum; FILES],
    /// Ever found to be no good.
    bad_count: u64,
    bad: [Bad; BAD_FILES],
    /// Ever seen.
    path_count: u64,
    paths: [PathContent; FILES],
}

/// The content that a path held when a model was last loaded from it. A path without a number is none.
#[repr(C)]
#[derive(Clone, Copy)]
struct PathContent {
    path: u64,
    hash: [u8; 32],
}

/// A file from which no model could be loaded for some use of it.
#[repr(C)]
#[derive(Clone, Copy)]
struct Bad {
    file: FileId,
    purpose: u8,
    /// The moment until which that is believed, as TimestampTz.
    until: i64,
    length: u16,
    reason: [u8; REASON_BYTES],
}

/// A file without an inode is none.
#[repr(C)]
#[derive(Clone, Copy)]
struct KnownChecksum {
    file: FileId,
    hash: [u8; 32],
    /// Without that of adapters.
    own_hash: [u8; 32],
}

thread_local! {
    /// The contents that this process has looked up before.
    static SEEN: RefCell<Vec<KnownChecksum>> = const { RefCell::new(Vec::new()) };
}

fn locked<R>(exclusive: bool, f: impl FnOnce(*mut ChecksumsInner) -> R) -> Option<R> {
    TABLE.with_lock(exclusive, |table| f(table.inner.get()))
}

/// Whether the file at the path had another content when a model was last loaded from it, which is told once.
pub(crate) fn is_replaced(path: &Path, hash: &[u8; 32]) -> bool {
    let mut hasher = DefaultHasher::new();
    path.hash(&mut hasher);
    let number = hasher.finish().max(1);
    let is_known = |content: &PathContent| content.path == number && content.hash == *hash;
    let known = locked(false, |inner| {
        // SAFETY: the lock is held; nobody writes.
        unsafe { &*inner }.paths.iter().any(is_known)
    });
    if known != Some(false) {
        return false;
    }
    locked(true, |inner| {
        // SAFETY: the lock is held, exclusively.
        let inner = unsafe { &mut *inner };
        if let Some(content) = inner.paths.iter_mut().find(|content| content.path == number) {
            return std::mem::replace(&mut content.hash, *hash) != *hash;
        }
        inner.paths[inner.path_count as usize % FILES] = PathContent { path: number, hash: *hash };
        inner.path_count += 1;
        false
    })
    .unwrap_or(false)
}

/// Remembers the file that a model was loaded from.
pub(crate) fn learn(identity: &ModelIdentity) {
    let Some(file) = identity.file else { return };
    if find(&file).is_some() {
        return;
    }
    locked(true, |inner| {
        // SAFETY: the lock is held, exclusively.
        let inner = unsafe { &mut *inner };
        let ModelIdentity { hash, own_hash, .. } = *identity;
        inner.known[inner.count as usize % FILES] = KnownChecksum { file, hash, own_hash };
        inner.count += 1;
    });
}

/// SHA-256 of the model's files as they are now, adapters included, if somebody has computed it.
pub(crate) fn of(model: &ModelSource) -> Option<[u8; 32]> {
    both_of(model).map(|[hash, _]| hash)
}

/// SHA-256 of the model's own file as it is now, which is the one that is registered, if somebody has
/// computed it.
pub(crate) fn own_of(model: &ModelSource) -> Option<[u8; 32]> {
    both_of(model).map(|[_, own_hash]| own_hash)
}

fn both_of(model: &ModelSource) -> Option<[[u8; 32]; 2]> {
    let ModelSource::File(path) = model else { return Some([ModelIdentity::builtin().hash; 2]) };
    let file = ModelIdentity::file_of(path).ok()?;
    find(&file).or_else(|| {
        let identity = ModelIdentity::recorded(path).filter(|identity| identity.file == Some(file))?;
        learn(&identity);
        Some([identity.hash, identity.own_hash])
    })
}

/// The part of a reason that fits into the table.
pub(crate) fn fitting(reason: &str) -> &str {
    &reason[..reason.floor_char_boundary(REASON_BYTES)]
}

/// Notes that a model could not be loaded from the file as it is now, and that this is to be believed until
/// then. Whether that is news; `None` where it cannot be noted.
pub(crate) fn note_bad(path: &Path, purpose: u8, reason: &str, until: i64) -> Option<bool> {
    let file = ModelIdentity::file_of(path).ok()?;
    let reason = fitting(reason).as_bytes();
    let mut bad = Bad { file, purpose, until, length: reason.len() as u16, reason: [0; REASON_BYTES] };
    bad.reason[..reason.len()].copy_from_slice(reason);
    let is_news = locked(true, |inner| {
        // SAFETY: the lock is held, exclusively.
        let inner = unsafe { &mut *inner };
        let same = |other: &Bad| other.length == bad.length && other.reason == bad.reason;
        let is_news = !inner.bad.iter().any(|other| other.file == file && same(other));
        let known = inner.bad.iter().position(|other| other.file == file && other.purpose == purpose);
        let place = known.unwrap_or(inner.bad_count as usize % BAD_FILES);
        if known.is_none() {
            inner.bad_count += 1;
        }
        inner.bad[place] = bad;
        is_news
    })?;
    TABLE.get()?.any_bad.store(true, Release);
    Some(is_news)
}

/// The reason why no model can be loaded from the file as it is now, if that was tried.
pub(crate) fn why_bad(path: &Path, purpose: u8, now: i64) -> Option<String> {
    if !TABLE.get()?.any_bad.load(Acquire) {
        return None;
    }
    let file = ModelIdentity::file_of(path).ok()?;
    let found = locked(false, |inner| {
        // SAFETY: the lock is held; nobody writes.
        let inner = unsafe { &*inner };
        inner
            .bad
            .iter()
            .find(|bad| bad.length > 0 && bad.file == file && bad.purpose == purpose && bad.until > now)
            .copied()
    })??;
    Some(String::from_utf8_lossy(&found.reason[..usize::from(found.length)]).into_owned())
}

fn find(file: &FileId) -> Option<[[u8; 32]; 2]> {
    let seen = SEEN.with_borrow(|seen| seen.iter().find(|known| known.file == *file).copied());
    if let Some(known) = seen {
        return Some([known.hash, known.own_hash]);
    }
    let found = locked(false, |inner| {
        // SAFETY: the lock is held; nobody writes.
        let inner = unsafe { &*inner };
        inner.known.iter().find(|known| known.file.inode != 0 && known.file == *file).copied()
    })
    .flatten()?;
    SEEN.with_borrow_mut(|seen| {
        seen.truncate(FILES - 1);
        seen.insert(0, found);
    });
    Some([found.hash, found.own_hash])
}
