//! The extension's shared memory: one fixed struct of atomics, laid out at server start.
//!
//! It exists only while the library is in shared_preload_libraries; [`get`] is `None` otherwise, and
//! every user has to say what it does then.
//!
//! Invariant: everything in it is an atomic, a condition variable or guarded by one of the locks, and the
//! all-zero pattern is its valid initial state.

use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::activity::ActivityTable;
use super::error::PgError;
use super::hits::HitTable;
use super::identities::IdentityTable;
use super::letters::LetterBox;
use super::pending::PendingTable;
use super::seat::EngineSeat;

/// Databases with a worker, at most.
pub(crate) const SLOTS: usize = 128;
/// Requests for a worker that the launcher has not read yet, at most; more make it probe all databases.
pub(crate) const CALLS: usize = 64;
/// Statements that keep workers away from a database, at most.
pub(crate) const EVICTIONS: usize = 64;
/// Condition variables for callers who wait for a result; a request id belongs to one of them.
pub(crate) const BUCKETS: usize = 64;

/// The whole of it.
#[repr(C)]
pub(crate) struct Shared {
    /// The launcher's latch, null while none runs.
    pub(crate) launcher_latch: AtomicPtr<pg_sys::Latch>,
    /// The launcher should read the list of databases again.
    pub(crate) rescan: AtomicBool,
    /// The launcher should look into every database again: there was no room for a call.
    pub(crate) reprobe: AtomicBool,
    /// Databases whose extension was created or altered: the launcher probes them at once.
    pub(crate) calls: [AtomicU32; CALLS],
    /// Statements that need a database without sessions.
    pub(crate) evictions: [Eviction; EVICTIONS],
    /// Who runs the engine.
    pub(crate) seat: EngineSeat,
    /// One per database that has, or is being asked for, the extension. Only the launcher hands them out.
    pub(crate) slots: [Slot; SLOTS],
    /// Woken when a request of their bucket ends.
    pub(crate) waiters: [pg_sys::ConditionVariable; BUCKETS],
    /// Counts them, so that a waiter can tell whether it was too slow to be woken.
    pub(crate) endings: [AtomicU64; BUCKETS],
    /// What is running now.
    pub(crate) activity: ActivityTable,
    /// Uses of the cache's entries.
    pub(crate) hits: HitTable,
    /// Answers that are to be cached.
    pub(crate) letters: LetterBox,
    /// Pending requests of each role.
    pub(crate) pending: PendingTable,
    /// Checksums of model files.
    pub(crate) identities: IdentityTable,
}

impl Shared {
    /// The number of a slot.
    pub(crate) fn index_of(&self, slot: &Slot) -> usize {
        (std::ptr::from_ref(slot) as usize - self.slots.as_ptr() as usize) / std::mem::size_of::<Slot>()
    }
}

/// What guards the parts that are no atomics.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
pub(super) enum Lock {
    /// [`Shared::activity`].
    Activity,
    /// [`Shared::hits`].
    Hits,
    /// [`Shared::letters`].
    Letters,
    /// [`Shared::identities`].
    Identities,
}
const LOCKS: usize = 4;

/// A statement that needs a database without sessions, while it runs.
#[repr(C)]
pub(crate) struct Eviction {
    /// The process that runs the statement; 0: the entry is free. If it dies, the entry means nothing.
    pub(crate) pid: AtomicI32,
    /// The database; 0 while the entry is being filled.
    pub(crate) database: AtomicU32,
}

/// A database's worker.
#[repr(C)]
pub(crate) struct Slot {
    /// The database's OID; 0: free.
    pub(crate) database: AtomicU32,
    /// The worker's process id, 0 while none runs.
    pub(crate) pid: AtomicI32,
    /// The worker's latch, null while none runs.
    pub(crate) latch: AtomicPtr<pg_sys::Latch>,
    /// A [`super::slots::State`].
    pub(crate) state: AtomicU32,
    /// What [`super::slots::Ended`] says of the last run.
    pub(crate) ended: AtomicU32,
    /// Counts commits that made work.
    pub(crate) wakes: AtomicU64,
    /// The worker looks at `wakes` by itself before it can take more work: commits need not wake it for requests of a lower
    /// priority than this.
    pub(crate) deaf_below: AtomicU32,
    /// Counts commits that made work at or above that priority.
    pub(crate) urgent: AtomicU64,
    /// Counts commits that cancelled something or ended the extension: running work must be looked at.
    pub(crate) reviews: AtomicU64,
    /// Requests that are pending: enqueuers add, the worker takes away what it claims.
    pub(crate) pending: AtomicI64,
    /// Something happened of which nobody knows what it means for `pending`: the worker should count the rows.
    pub(crate) recount: AtomicBool,
    /// Requests of transactions that have begun to commit, and of those among them whose commit has ended and that are in `pending`.
    pub(crate) committing: AtomicU64,
    /// See `committing`.
    pub(crate) committed: AtomicU64,
    /// The worker's unique id (UUID, big-endian halves); 0 while none runs.
    pub(crate) worker: [AtomicU64; 2],
    /// The last request that could not be written, why (an SQLSTATE, packed), when (TimestampTz), and how many there were.
    pub(crate) trouble_id: AtomicI64,
    /// See `trouble_id`.
    pub(crate) trouble_code: AtomicU32,
    /// See `trouble_id`; 0: none.
    pub(crate) trouble_at: AtomicI64,
    /// See `trouble_id`.
    pub(crate) troubles: AtomicU64,
    /// Counts commits of others that changed the status of requests.
    pub(crate) changes: AtomicU64,
    /// When the worker started, as TimestampTz.
    pub(crate) started_at: AtomicI64,
    /// Requests running now.
    pub(crate) running: AtomicI32,
    /// Memory of the loaded models.
    pub(crate) memory_mb: AtomicI32,
    /// Answers that the cache gave since `cache_reset_at`.
    pub(crate) cache_hits: AtomicU64,
    /// Requests that it had no answer for.
    pub(crate) cache_misses: AtomicU64,
    /// Answers that did not get into it: too long for [`Shared::letters`], without room there or at the worker, or refused by the table.
    pub(crate) cache_dropped: AtomicU64,
    /// Since when they are counted, as TimestampTz; 0: since the server's start.
    pub(crate) cache_reset_at: AtomicI64,
    /// There are hits that the worker has not written down.
    pub(crate) hits_wait: AtomicBool,
    /// Cells of [`Shared::hits`] that count them.
    pub(crate) hit_cells: AtomicU32,
    /// Letters in the pile.
    pub(crate) letters: AtomicU32,
}

static SHARED: AtomicPtr<Shared> = AtomicPtr::new(std::ptr::null_mut());
const LOCK_NAME: &std::ffi::CStr = c"pg_steadytext";
/// The first of the locks.
static LOCK_TRANCHE: AtomicPtr<pg_sys::LWLockPadded> = AtomicPtr::new(std::ptr::null_mut());

/// The shared memory, or `None` where the library was not preloaded.
pub(crate) fn get() -> Option<&'static Shared> {
    // SAFETY: the pointer is null or set once, before the first fork, to memory that lives as long as the
    // server and was initialised by `startup`.
    unsafe { SHARED.load(Ordering::Relaxed).as_ref() }
}

/// What to say where the library is not in shared_preload_libraries.
pub(crate) fn not_preloaded(message: &'static str) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message)
        .hint("Add shared_preload_libraries = 'pg_steadytext' to postgresql.conf and restart the server.")
}

/// Runs `work` while this process has the lock. `work` must not raise a PostgreSQL error.
pub(super) fn with_lock<R>(lock: Lock, exclusive: bool, work: impl FnOnce() -> R) -> R {
    let mode = if exclusive { pg_sys::LWLockMode::LW_EXCLUSIVE } else { pg_sys::LWLockMode::LW_SHARED };
    // SAFETY: the tranche has as many locks, and was found before anybody could reach the shared memory.
    unsafe {
        let lock = &raw mut (*LOCK_TRANCHE.load(Ordering::Relaxed).add(lock as usize)).lock;
        pg_sys::LWLockAcquire(lock, mode);
        let result = work();
        pg_sys::LWLockRelease(lock);
        result
    }
}

#[cfg(not(feature = "pg14"))]
static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Asks for the shared memory. Only while shared_preload_libraries is processed.
pub(crate) fn install() {
    // SAFETY: called once by the postmaster while it loads libraries; hooks are chained.
    unsafe {
        #[cfg(not(feature = "pg14"))]
        {
            PREVIOUS_REQUEST = pg_sys::shmem_request_hook;
            pg_sys::shmem_request_hook = Some(request_hook);
        }
        #[cfg(feature = "pg14")]
        request();
        PREVIOUS_STARTUP = pg_sys::shmem_startup_hook;
        pg_sys::shmem_startup_hook = Some(startup_hook);
    }
}

fn request() {
    // SAFETY: called where PostgreSQL allows requests for shared memory.
    unsafe {
        pg_sys::RequestAddinShmemSpace(std::mem::size_of::<Shared>());
        pg_sys::RequestNamedLWLockTranche(LOCK_NAME.as_ptr(), LOCKS as i32);
    }
}

#[cfg(not(feature = "pg14"))]
#[pg_guard]
unsafe extern "C-unwind" fn request_hook() {
    // SAFETY: the previous hook is a valid function of another library.
    unsafe {
        if let Some(previous) = PREVIOUS_REQUEST {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
    }
    request();
}

#[pg_guard]
unsafe extern "C-unwind" fn startup_hook() {
    // SAFETY: runs in the postmaster, also when it starts anew after a crash; the struct's initial state is
    // all zeros but for the condition variables, which have an initialiser of their own.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
        let mut found = false;
        let shared: *mut Shared =
            pg_sys::ShmemInitStruct(LOCK_NAME.as_ptr(), std::mem::size_of::<Shared>(), &mut found).cast();
        if !found {
            std::ptr::write_bytes(shared, 0, 1);
            for bucket in 0..BUCKETS {
                pg_sys::ConditionVariableInit(&raw mut (*shared).waiters[bucket]);
            }
        }
        LOCK_TRANCHE.store(pg_sys::GetNamedLWLockTranche(LOCK_NAME.as_ptr()), Ordering::Relaxed);
        SHARED.store(shared, Ordering::Relaxed);
    }
}
