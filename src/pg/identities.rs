//! The checksums of model files, as processes have learned them, in shared memory: where the engine cannot leave them beside
//! the model, this is how the others know.
//!
//! Invariant: the table is read and written under its lock; all zeros is an empty one.

use std::cell::{RefCell, UnsafeCell};

use steadytext_engine::{FileId, ModelIdentity, ModelSource};

use super::shmem::{self, Lock};

/// Files that are remembered; the oldest makes room.
const FILES: usize = 64;

/// The table.
#[repr(C)]
pub(crate) struct IdentityTable {
    inner: UnsafeCell<Inner>,
}

// SAFETY: `inner` is only reached through `locked`, which holds the lock that all processes share.
unsafe impl Sync for IdentityTable {}

#[repr(C)]
struct Inner {
    /// Ever learned.
    count: u64,
    known: [Known; FILES],
}

/// A file without an inode is none.
#[repr(C)]
#[derive(Clone, Copy)]
struct Known {
    file: FileId,
    hash: [u8; 32],
}

thread_local! {
    /// What this process has looked up before.
    static SEEN: RefCell<Vec<Known>> = const { RefCell::new(Vec::new()) };
}

fn locked<R>(exclusive: bool, f: impl FnOnce(*mut Inner) -> R) -> Option<R> {
    let shared = shmem::get()?;
    Some(shmem::with_lock(Lock::Identities, exclusive, || f(shared.identities.inner.get())))
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
        inner.known[inner.count as usize % FILES] = Known { file, hash: identity.hash };
        inner.count += 1;
    });
}

/// SHA-256 of the model's file as it is now, if somebody has computed it.
pub(crate) fn of(model: &ModelSource) -> Option<[u8; 32]> {
    let ModelSource::File(path) = model else { return Some(ModelIdentity::BUILTIN.hash) };
    let file = ModelIdentity::file_of(path).ok()?;
    find(&file).or_else(|| {
        let identity = ModelIdentity::recorded(path).filter(|identity| identity.file == Some(file))?;
        learn(&identity);
        Some(identity.hash)
    })
}

fn find(file: &FileId) -> Option<[u8; 32]> {
    let seen = SEEN.with_borrow(|seen| seen.iter().find(|known| known.file == *file).copied());
    if let Some(known) = seen {
        return Some(known.hash);
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
    Some(found.hash)
}
