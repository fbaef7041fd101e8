//! The engine seat in shared memory: one process of the server runs the engine, all others reach it through its socket.
//!
//! Invariant: who has taken the seat gives it back only when its engine is gone, so that there are never two engines.

use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64};

use pgrx::pg_sys;

use super::shmem::{self, Content, Part};
use super::slots;

/// The engine's socket. Relative to the data directory, which is every server process's working directory; in this part of it,
/// base backups leave it out.
pub(crate) const SOCKET: &str = "pg_stat_tmp/pg_steadytext.socket";

/// The seat.
#[repr(C)]
pub(crate) struct EngineSeat {
    /// The process that runs the engine; 0: none.
    holder: AtomicI32,
    /// Its socket takes connections.
    open: AtomicBool,
    /// Somebody waits for an engine.
    wanted: AtomicBool,
    /// Panics that the server's engines have caught since its start.
    panics: AtomicU64,
}

// SAFETY: zeros are a seat that nobody has.
unsafe impl Content for EngineSeat {}

pub(super) static SEAT: Part<EngineSeat> = Part::new();

fn me() -> i32 {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::MyProcPid }
}

/// Takes the seat if it is free. True if this process has it now, and must call [`leave`].
#[cfg(not(feature = "noop-engine"))]
pub(crate) fn take() -> bool {
    SEAT.get().is_some_and(|seat| seat.holder.compare_exchange(0, me(), SeqCst, SeqCst).is_ok())
}

/// Says that the engine of this process takes connections.
#[cfg(not(feature = "noop-engine"))]
pub(crate) fn open() {
    if let Some((seat, shared)) = SEAT.get().zip(shmem::get()) {
        seat.wanted.store(false, SeqCst);
        seat.open.store(true, SeqCst);
        slots::wake_workers(shared);
    }
}

/// Says that the engine of this process takes no more connections: who looks for one waits for the next.
#[cfg(not(feature = "noop-engine"))]
pub(crate) fn close() {
    if let Some(seat) = SEAT.get().filter(|_| is_mine()) {
        seat.open.store(false, SeqCst);
    }
}

/// Counts panics that the engine of this process has caught.
#[cfg(not(feature = "noop-engine"))]
pub(crate) fn count_panics(more: u64) {
    if let Some(seat) = SEAT.get() {
        seat.panics.fetch_add(more, Relaxed);
    }
}

/// Panics that the server's engines have caught since its start.
pub(crate) fn panics() -> u64 {
    SEAT.get().map_or(0, |seat| seat.panics.load(Relaxed))
}

/// Gives the seat back, if this process has it.
pub(crate) fn leave() {
    let Some((seat, shared)) = SEAT.get().zip(shmem::get()) else { return };
    if is_mine() {
        seat.open.store(false, SeqCst);
        seat.holder.store(0, SeqCst);
        slots::wake_workers(shared);
    }
}

/// Whether this process runs the engine.
pub(crate) fn is_mine() -> bool {
    holder() == Some(me())
}

/// The process that runs the engine.
pub(crate) fn holder() -> Option<i32> {
    SEAT.get().map(|seat| seat.holder.load(Acquire)).filter(|pid| *pid != 0)
}

/// Whether there is an engine that takes connections.
pub(crate) fn is_open() -> bool {
    SEAT.get().is_some_and(|seat| seat.open.load(Acquire))
}

/// Asks for an engine: where no worker can run one, the launcher starts a process for it alone.
pub(crate) fn want() {
    if let Some((seat, shared)) = SEAT.get().zip(shmem::get()) {
        seat.wanted.store(true, SeqCst);
        slots::wake_launcher(shared);
    }
}

/// Whether somebody has asked for an engine since the last look.
pub(crate) fn is_wanted() -> bool {
    SEAT.get().is_some_and(|seat| seat.wanted.swap(false, SeqCst)) && holder().is_none()
}
