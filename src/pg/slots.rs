//! The bookkeeping in shared memory of the processes that run: one slot per database's worker, calls for a
//! worker, and statements that keep workers away.
//!
//! Invariant: only the launcher gives and takes slots; a worker fills its own slot and empties it when it
//! ends; everybody else only reads them, counts in them, and sets latches.

use std::cell::Cell;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use pgrx::pg_sys;

use super::shmem::{self, DatabaseProcess, Shared, Slot, VectorizerPace};

/// The state of a worker, as its slot says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum WorkerState {
    /// No worker runs.
    Stopped = 0,
    /// The worker is being started, or connects.
    Starting = 1,
    /// The worker claims and runs requests.
    Working = 2,
    /// steadytext_daemon_stop() was called.
    Paused = 3,
    /// Library and extension are of different versions.
    VersionMismatch = 4,
}

/// The way in which the last worker of a slot ended: the launcher's next step depends on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(crate) enum WorkerExit {
    /// The worker did not say how: it failed, was terminated, or is still running.
    Unexpectedly = 0,
    /// The database does not have the extension.
    NoExtension = 1,
    /// The extension was created anew, or the settings of the engine changed: start another at once.
    Again = 2,
}

impl Slot {
    /// The worker's state.
    pub(crate) fn state(&self) -> WorkerState {
        match self.state.load(Acquire) {
            1 => WorkerState::Starting,
            2 => WorkerState::Working,
            3 => WorkerState::Paused,
            4 => WorkerState::VersionMismatch,
            _ => WorkerState::Stopped,
        }
    }

    /// Sets the worker's state.
    pub(crate) fn set_state(&self, state: WorkerState) {
        self.state.store(state as u32, Release);
    }

    /// The way in which the last worker ended.
    pub(crate) fn ended(&self) -> WorkerExit {
        match self.ended.load(Acquire) {
            1 => WorkerExit::NoExtension,
            2 => WorkerExit::Again,
            _ => WorkerExit::Unexpectedly,
        }
    }

    /// Says how the worker is about to end.
    pub(crate) fn set_ended(&self, ended: WorkerExit) {
        self.ended.store(ended as u32, Release);
    }

    /// The unique id of the running worker.
    pub(crate) fn worker_id(&self) -> Option<uuid::Uuid> {
        match (self.worker[0].load(Acquire), self.worker[1].load(Acquire)) {
            (0, 0) => None,
            (high, low) => Some(uuid::Uuid::from_u64_pair(high, low)),
        }
    }

    /// Sets the worker's latch, if there is one. Safe at any time, also after commit: nothing here can raise.
    pub(crate) fn wake(&self) {
        set_latch(self.latch.load(Acquire));
    }

    /// Sets the latches of the processes that work for vectorizers; false if the first of them does not run.
    /// Safe at any time, as [`Slot::wake`] is.
    pub(crate) fn wake_vectorizers(&self) -> bool {
        let latches = self.vectorizers.each_ref().map(|process| process.latch.load(Acquire));
        latches.into_iter().for_each(set_latch);
        !latches[VectorizerPace::Fast as usize].is_null()
    }

    /// Notes that there may be something to do for vectorizers, so that a process that is about to wait looks
    /// once more. False if the first process does not run.
    pub(crate) fn note_for_vectorizers(&self) -> bool {
        self.vectorizer_notes.fetch_add(1, SeqCst);
        self.wake_vectorizers()
    }

    /// Puts this process into the slot as one that works for vectorizers. False if the slot is another
    /// database's, or there is one.
    pub(crate) fn begin_vectorizing(
        &self,
        pace: VectorizerPace,
        database: pg_sys::Oid,
        latch: *mut pg_sys::Latch,
    ) -> bool {
        let me = std::process::id() as i32;
        let process = &self.vectorizers[pace as usize];
        if self.database.load(SeqCst) != database.to_u32()
            || process.pid.compare_exchange(0, me, SeqCst, SeqCst).is_err()
        {
            return false;
        }
        process.latch.store(latch, SeqCst);
        true
    }

    /// Says that this process has gone, and has the worker look whether another one is wanted. By the process
    /// itself, last of all.
    pub(crate) fn end_vectorizing(&self, pace: VectorizerPace) {
        let process = &self.vectorizers[pace as usize];
        process.latch.store(std::ptr::null_mut(), SeqCst);
        process.waits.store(false, SeqCst);
        process.pid.store(0, SeqCst);
        self.vectorizer_calls.fetch_add(1, SeqCst);
        self.wake();
    }

    /// Tells that process that there is something to do; where it is missing, the worker starts it.
    pub(crate) fn call_vectorizer(&self, pace: VectorizerPace) {
        let latch = self.vectorizers[pace as usize].latch.load(Acquire);
        set_latch(latch);
        if latch.is_null() {
            self.vectorizer_calls.fetch_add(1, SeqCst);
            self.wake();
        }
    }

    /// The pace of this process, if it is one of the two of this slot that work for vectorizers.
    pub(crate) fn pace_of_me(&self) -> Option<VectorizerPace> {
        let me = std::process::id() as i32;
        VectorizerPace::ALL.into_iter().find(|pace| self.vectorizers[*pace as usize].pid.load(Relaxed) == me)
    }

    /// Notes whether there was a place for a process when it was to be started.
    pub(crate) fn note_place(&self, process: DatabaseProcess, is_found: bool) {
        if is_found {
            self.without_place.fetch_and(!bit(process), SeqCst);
        } else {
            self.without_place.fetch_or(bit(process), SeqCst);
        }
    }

    /// Whether there was none.
    pub(crate) fn is_without_place(&self, process: DatabaseProcess) -> bool {
        self.without_place.load(SeqCst) & bit(process) != 0
    }

    /// Says that the worker has gone. By the worker itself, last of all.
    pub(crate) fn leave(&self) {
        self.latch.store(std::ptr::null_mut(), SeqCst);
        self.worker.iter().for_each(|half| half.store(0, SeqCst));
        self.deaf_below.store(0, SeqCst);
        self.running.store(0, Relaxed);
        self.memory_mb.store(0, Relaxed);
        self.row_error_at.store(0, Relaxed);
        self.row_errors.store(0, Relaxed);
        self.pid.store(0, SeqCst);
    }

    /// Counts anew what the cache does, from `now` (TimestampTz) on.
    pub(crate) fn reset_cache_counters(&self, now: i64) {
        for counter in [&self.cache_hits, &self.cache_misses, &self.cache_dropped] {
            counter.store(0, Relaxed);
        }
        self.cache_reset_at.store(now, Relaxed);
    }

    /// Empties the slot for another database. Only the launcher, and only while no worker runs.
    pub(crate) fn free(&'static self) {
        self.set_state(WorkerState::Stopped);
        self.without_place.store(0, SeqCst);
        self.reset_cache_counters(0);
        for process in &self.vectorizers {
            process.overran.store(false, Relaxed);
        }
    }
}

fn bit(process: DatabaseProcess) -> u32 {
    match process {
        DatabaseProcess::Worker => 1,
        DatabaseProcess::Vectorizer(pace) => 2 << pace as u32,
    }
}

/// The slot of `database`.
pub(crate) fn find(shared: &'static Shared, database: pg_sys::Oid) -> Option<&'static Slot> {
    let database = database.to_u32();
    shared.slots.iter().find(|slot| slot.database.load(Acquire) == database)
}

/// The slot of this process's database.
pub(crate) fn mine() -> Option<&'static Slot> {
    // SAFETY: a plain global of this process.
    let database = unsafe { pg_sys::MyDatabaseId };
    if database == pg_sys::InvalidOid {
        return None;
    }
    find(shmem::get()?, database)
}

/// The state of this process's database's worker. One that the launcher was asked for and has not started yet
/// is starting.
pub(crate) fn my_state() -> WorkerState {
    // SAFETY: a plain global of this process.
    let database = unsafe { pg_sys::MyDatabaseId }.to_u32();
    // Looked at before the state: what the launcher has answered since then, the state says.
    let is_called = shmem::get().is_some_and(|shared| {
        let calls = shared.calls.iter().chain(&shared.answering);
        !shared.launcher_latch.load(Acquire).is_null()
            && calls.filter(|_| database != 0).any(|call| call.load(SeqCst) == database)
    });
    match mine().map_or(WorkerState::Stopped, |slot| slot.state()) {
        WorkerState::Stopped if is_called => WorkerState::Starting,
        state => state,
    }
}

/// The pace of this process, if it works for vectorizers.
pub(crate) fn my_pace() -> Option<VectorizerPace> {
    mine()?.pace_of_me()
}

/// Whether this process works for vectorizers.
pub(crate) fn is_vectorizing() -> bool {
    my_pace().is_some()
}

/// Whether this process takes a step for the definition of this id now.
pub(crate) fn is_step_for(definition: &str) -> bool {
    let Some(slot) = mine() else { return false };
    let Some(pace) = slot.pace_of_me() else { return false };
    let step = &slot.vectorizers[pace as usize].step;
    uuid::Uuid::parse_str(definition)
        .is_ok_and(|id| id.as_u64_pair() == (step[0].load(Relaxed), step[1].load(Relaxed)))
}

/// Asks the launcher to look at `database` now. Never raises an error.
pub(crate) fn call_launcher(shared: &Shared, database: pg_sys::Oid) {
    let wanted = database.to_u32();
    let taken = shared.calls.iter().any(|call| {
        call.load(Acquire) == wanted || call.compare_exchange(0, wanted, AcqRel, Acquire).is_ok()
    });
    if !taken {
        shared.reprobe.store(true, Release);
    }
    wake_launcher(shared);
}

/// Sets the launcher's latch. Never raises an error.
pub(crate) fn wake_launcher(shared: &Shared) {
    set_latch(shared.launcher_latch.load(Acquire));
}

/// Sets the latches of all workers. Never raises an error.
pub(crate) fn wake_workers(shared: &Shared) {
    shared.slots.iter().filter(|slot| slot.pid.load(Acquire) != 0).for_each(Slot::wake);
}

fn set_latch(latch: *mut pg_sys::Latch) {
    if !latch.is_null() {
        // SAFETY: a latch in PostgreSQL's shared memory, which never moves. If its owner has gone, some other
        // process wakes once for nothing.
        unsafe { pg_sys::SetLatch(latch) };
    }
}

/// Whether a running statement keeps workers away from `database`. Entries of processes that died are
/// cleared.
pub(crate) fn is_evicted(shared: &Shared, database: pg_sys::Oid) -> bool {
    let wanted = database.to_u32();
    shared.evictions.iter().any(|entry| {
        let pid = entry.pid.load(SeqCst);
        if pid == 0 || entry.database.load(SeqCst) != wanted {
            return false;
        }
        // SAFETY: looks the process up under PostgreSQL's own lock.
        let alive = unsafe { !pg_sys::BackendPidGetProc(pid).is_null() };
        if !alive {
            entry.database.store(0, SeqCst);
            entry.pid.store(0, SeqCst);
        }
        alive
    })
}

/// Keeps workers away from `database` until [`end_evictions`], without waiting for one that is there. If too
/// many statements do so already, this one has to take its chance with PostgreSQL's own wait for sessions.
pub(crate) fn evict(shared: &'static Shared, database: pg_sys::Oid) {
    // SAFETY: a plain global of this process.
    let me = unsafe { pg_sys::MyProcPid };
    let free =
        shared.evictions.iter().find(|entry| entry.pid.compare_exchange(0, me, SeqCst, SeqCst).is_ok());
    if let Some(entry) = free {
        entry.database.store(database.to_u32(), SeqCst);
        EVICTING.set(true);
    }
}

thread_local! {
    static EVICTING: Cell<bool> = const { Cell::new(false) };
}

/// Ends the evictions of this process, at the end of a transaction. Never raises an error.
pub(crate) fn end_evictions() {
    let Some(shared) = shmem::get().filter(|_| EVICTING.take()) else { return };
    // SAFETY: a plain global of this process.
    let me = unsafe { pg_sys::MyProcPid };
    for entry in shared.evictions.iter().filter(|entry| entry.pid.load(SeqCst) == me) {
        entry.database.store(0, SeqCst);
        entry.pid.store(0, SeqCst);
    }
    shared.rescan.store(true, Release);
    wake_launcher(shared);
}
