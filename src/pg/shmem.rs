//! The extension's shared memory: one block, laid out at server start, in which each module that needs some
//! has a part.
//!
//! A part is a struct of the module that owns it, declared there as a `static` [`SharedPart`]; `super::PARTS`
//! lists all of them. Two things are common to all, which this module does: every part has a lock, and it
//! exists only while the library is in shared_preload_libraries. [`SharedPart::get`] is `None` otherwise, and
//! every user has to handle that.
//!
//! This module's own part is [`Shared`]: the launcher's mailbox and a slot for each database's worker.
//!
//! Invariant: everything in a part is an atomic, a condition variable or guarded by the part's lock.

use std::alloc::Layout;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicI64, AtomicPtr, AtomicU32, AtomicU64, Ordering};

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::error::PgError;

/// Databases with a worker, at most.
pub(crate) const SLOTS: usize = 128;
/// Requests for a worker that the launcher has not read yet, at most; more make it probe all databases.
pub(crate) const CALLS: usize = 64;
/// Statements that keep workers away from a database, at most.
pub(crate) const EVICTIONS: usize = 64;

/// The part of shared memory that a module keeps.
///
/// # Safety
///
/// Zeros, of which [`SharedContent::initialise`] has made what it makes, are a valid value of the type.
pub(super) unsafe trait SharedContent: Sync + Sized + 'static {
    /// Completes a value that is all zeros. Called in the postmaster, once in a server's life and once after
    /// each crash.
    ///
    /// # Safety
    ///
    /// `_this` points to zeros of the type's size, which no other process has seen.
    unsafe fn initialise(_this: *mut Self) {}
}

/// A part of the shared memory and its lock.
pub(super) struct SharedPart<T> {
    content: AtomicPtr<T>,
    lock: AtomicPtr<pg_sys::LWLock>,
}

impl<T: SharedContent> SharedPart<T> {
    /// A part that has no memory yet.
    pub(super) const fn new() -> SharedPart<T> {
        SharedPart {
            content: AtomicPtr::new(std::ptr::null_mut()),
            lock: AtomicPtr::new(std::ptr::null_mut()),
        }
    }

    /// The content, or `None` where the library was not preloaded.
    pub(super) fn get(&self) -> Option<&'static T> {
        // SAFETY: the pointer is null or set once, before the first fork, to memory that lives as long as the
        // server and was initialised by `startup_hook`.
        unsafe { self.content.load(Ordering::Relaxed).as_ref() }
    }

    /// Runs `work` while this process has the part's lock; `None` where the library was not preloaded. `work`
    /// must not raise a PostgreSQL error.
    pub(super) fn with_lock<R>(&self, exclusive: bool, work: impl FnOnce(&'static T) -> R) -> Option<R> {
        let content = self.get()?;
        let mode = if exclusive { pg_sys::LWLockMode::LW_EXCLUSIVE } else { pg_sys::LWLockMode::LW_SHARED };
        // SAFETY: a lock of the extension's tranche, found before the part could be reached.
        unsafe {
            let lock = self.lock.load(Ordering::Relaxed);
            pg_sys::LWLockAcquire(lock, mode);
            let result = work(content);
            pg_sys::LWLockRelease(lock);
            Some(result)
        }
    }
}

/// A part, whatever it holds.
pub(super) trait AnyPart: Sync {
    /// The memory that it needs.
    fn layout(&self) -> Layout;

    /// Gives it memory and a lock.
    ///
    /// # Safety
    ///
    /// The memory and the lock are in the server's shared memory, and the memory is as [`AnyPart::layout`]
    /// says: zeros if `is_new`, and otherwise as an earlier call of this function has left it.
    unsafe fn settle(&self, memory: *mut u8, lock: *mut pg_sys::LWLock, is_new: bool);
}

impl<T: SharedContent> AnyPart for SharedPart<T> {
    fn layout(&self) -> Layout {
        Layout::new::<T>()
    }

    unsafe fn settle(&self, memory: *mut u8, lock: *mut pg_sys::LWLock, is_new: bool) {
        let content: *mut T = memory.cast();
        if is_new {
            // SAFETY: the caller's promise.
            unsafe { T::initialise(content) };
        }
        self.lock.store(lock, Ordering::Relaxed);
        self.content.store(content, Ordering::Relaxed);
    }
}

/// The processes that run, and their databases.
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
    /// Databases of calls that the launcher has taken and is answering.
    pub(crate) answering: [AtomicU32; CALLS],
    /// Statements that need a database without sessions.
    pub(crate) evictions: [SessionEviction; EVICTIONS],
    /// One per database that has, or is being asked for, the extension. Only the launcher hands them out.
    pub(crate) slots: [Slot; SLOTS],
}

// SAFETY: zeros are a launcher that does not run, no calls, no evictions, and slots that are free.
unsafe impl SharedContent for Shared {}

pub(super) static SHARED: SharedPart<Shared> = SharedPart::new();

impl Shared {
    /// The number of a slot.
    pub(crate) fn index_of(&self, slot: &Slot) -> usize {
        (std::ptr::from_ref(slot) as usize - self.slots.as_ptr() as usize) / std::mem::size_of::<Slot>()
    }
}

/// A statement that needs a database without sessions, while it runs.
#[repr(C)]
pub(crate) struct SessionEviction {
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
    /// A [`super::slots::WorkerState`].
    pub(crate) state: AtomicU32,
    /// The way in which the last run ended, as a [`super::slots::WorkerExit`].
    pub(crate) ended: AtomicU32,
    /// Counts commits that made work.
    pub(crate) wakes: AtomicU64,
    /// The worker looks at `wakes` by itself before it can take more work: commits need not wake it for
    /// requests of a lower priority than this.
    pub(crate) deaf_below: AtomicU32,
    /// Counts commits that made work at or above that priority.
    pub(crate) urgent: AtomicU64,
    /// The lowest id that was inserted since the worker's last claim, as [`super::claim_floors`] writes it.
    pub(crate) lowest_inserted: AtomicU64,
    /// Counts commits that cancelled something or ended the extension: running work must be looked at.
    pub(crate) reviews: AtomicU64,
    /// Requests that are pending: enqueuers add, the worker takes away what it claims.
    pub(crate) pending: AtomicI64,
    /// Whether something happened of which it is not known what it means for `pending`: the worker should
    /// count the rows.
    pub(crate) recount: AtomicBool,
    /// Requests of transactions that have begun to commit, and of those among them whose commit has ended and
    /// that are in `pending`.
    pub(crate) committing: AtomicU64,
    /// See `committing`.
    pub(crate) committed: AtomicU64,
    /// The worker's unique id (UUID, big-endian halves); 0 while none runs.
    pub(crate) worker: [AtomicU64; 2],
    /// The last request that could not be written, why (an SQLSTATE, packed), when (TimestampTz), and how
    /// many there were.
    pub(crate) row_error_id: AtomicI64,
    /// See `row_error_id`.
    pub(crate) row_error_code: AtomicU32,
    /// See `row_error_id`; 0: none.
    pub(crate) row_error_at: AtomicI64,
    /// See `row_error_id`.
    pub(crate) row_errors: AtomicU64,
    /// Counts commits of others that changed the status of requests.
    pub(crate) changes: AtomicU64,
    /// The time at which the worker started, as TimestampTz.
    pub(crate) started_at: AtomicI64,
    /// Requests running now.
    pub(crate) running: AtomicI32,
    /// Memory of the loaded models.
    pub(crate) memory_mb: AtomicI32,
    /// Answers that the cache gave since `cache_reset_at`.
    pub(crate) cache_hits: AtomicU64,
    /// Requests that it had no answer for.
    pub(crate) cache_misses: AtomicU64,
    /// Answers that did not get into it: too long for [`super::cache_queue`], without room there or at the
    /// worker, or refused by the table.
    pub(crate) cache_dropped: AtomicU64,
    /// Time since which they are counted, as TimestampTz; 0: since the server's start.
    pub(crate) cache_reset_at: AtomicI64,
    /// Whether there are hits that the worker has not written down.
    pub(crate) accesses_wait: AtomicBool,
    /// Cells of [`super::access_counters`] that count them.
    pub(crate) access_cells: AtomicU32,
    /// Counts commits that noted work for vectorizers.
    pub(crate) vectorizer_notes: AtomicU64,
    /// Counts what may make the worker start one of the processes that work for them.
    pub(crate) vectorizer_calls: AtomicU64,
    /// The processes that work for vectorizers, by [`VectorizerPace`].
    pub(crate) vectorizers: [Vectorizing; PACES],
    /// The usage of roles, which [`super::rate_counters`] counts, has changed since it was written down.
    pub(crate) usage_waits: AtomicBool,
    /// Whether there are refusals that are not written down yet.
    pub(crate) refusals_wait: AtomicBool,
    /// Some of these the worker has not looked at.
    pub(crate) refusals_new: AtomicBool,
    /// Refusals that found no place.
    pub(crate) refusals_dropped: AtomicU64,
    /// Messages in its cache queue.
    pub(crate) cache_queue_length: AtomicU32,
    /// Processes for which there was no place among max_worker_processes, a bit for each [`DatabaseProcess`].
    pub(crate) without_place: AtomicU32,
}

/// A process of a database that is started when it is wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum DatabaseProcess {
    /// The worker.
    Worker,
    /// One that works for vectorizers.
    Vectorizer(VectorizerPace),
}

/// Number of processes that work for the vectorizers of a database.
pub(crate) const PACES: usize = 2;

/// The two processes that work for the vectorizers of a database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VectorizerPace {
    /// The one whose steps are short.
    Fast = 0,
    /// The one that builds indexes, and that works for vectorizers whose tables have code that takes its
    /// time.
    Slow = 1,
}

impl VectorizerPace {
    /// All paces.
    pub(crate) const ALL: [VectorizerPace; PACES] = [VectorizerPace::Fast, VectorizerPace::Slow];

    /// The one that this is not.
    pub(crate) fn other(self) -> VectorizerPace {
        match self {
            VectorizerPace::Fast => VectorizerPace::Slow,
            VectorizerPace::Slow => VectorizerPace::Fast,
        }
    }
}

/// A process that works for vectorizers.
#[repr(C)]
pub(crate) struct Vectorizing {
    /// Its process id, 0 while none runs.
    pub(crate) pid: AtomicI32,
    /// Its latch, null while none runs.
    pub(crate) latch: AtomicPtr<pg_sys::Latch>,
    /// Whether it waits for requests of its own to end.
    pub(crate) waits: AtomicBool,
    /// The definition for which it takes a step (UUID, big-endian halves); 0: none.
    pub(crate) step: [AtomicU64; 2],
    /// Whether that step had not ended when its time was over for good, and the process ended for this.
    pub(crate) overran: AtomicBool,
}

/// The slots and the launcher's mailbox, or `None` where the library was not preloaded.
pub(crate) fn get() -> Option<&'static Shared> {
    SHARED.get()
}

/// The error of functions that need the library in shared_preload_libraries.
pub(crate) fn not_preloaded(message: &'static str) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message)
        .hint("Add shared_preload_libraries = 'pg_steadytext' to postgresql.conf and restart the server.")
}

/// The name of the block and of the tranche of its locks.
const NAME: &std::ffi::CStr = c"pg_steadytext";
/// Parts begin at multiples of this, so that no two of them share a line of a processor's cache. PostgreSQL
/// aligns the block so, too.
const ALIGNMENT: usize = 128;

static PARTS: OnceLock<&[&dyn AnyPart]> = OnceLock::new();

fn parts() -> &'static [&'static dyn AnyPart] {
    PARTS.get().copied().unwrap_or_default()
}

/// The offset of each part in the block, and the number of bytes of the block.
fn arrangement() -> (Vec<usize>, usize) {
    let mut end = 0;
    let starts = parts().iter().map(|part| {
        let start = usize::next_multiple_of(end, ALIGNMENT.max(part.layout().align()));
        end = start + part.layout().size();
        start
    });
    let starts = starts.collect();
    (starts, end)
}

#[cfg(not(feature = "pg14"))]
static mut PREVIOUS_REQUEST: pg_sys::shmem_request_hook_type = None;
static mut PREVIOUS_STARTUP: pg_sys::shmem_startup_hook_type = None;

/// Asks for shared memory for these parts. Only while shared_preload_libraries is processed.
pub(super) fn install(parts: &'static [&'static dyn AnyPart]) {
    PARTS.get_or_init(|| parts);
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
        pg_sys::RequestAddinShmemSpace(arrangement().1);
        pg_sys::RequestNamedLWLockTranche(NAME.as_ptr(), parts().len() as i32);
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
    // SAFETY: runs in the postmaster, also when it starts anew after a crash, when the block is new as well.
    // The tranche has a lock for each part.
    unsafe {
        if let Some(previous) = PREVIOUS_STARTUP {
            pg_sys::ffi::pg_guard_ffi_boundary(|| previous());
        }
        let (starts, bytes) = arrangement();
        let mut found = false;
        let block: *mut u8 = pg_sys::ShmemInitStruct(NAME.as_ptr(), bytes, &mut found).cast();
        if !found {
            std::ptr::write_bytes(block, 0, bytes);
        }
        let locks = pg_sys::GetNamedLWLockTranche(NAME.as_ptr());
        for (index, (part, start)) in parts().iter().zip(starts).enumerate() {
            part.settle(block.add(start), &raw mut (*locks.add(index)).lock, !found);
        }
    }
}
