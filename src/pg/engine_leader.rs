//! The engine's leader, in shared memory: one process of the server runs the engine, all others reach it
//! through its socket.
//!
//! Invariant: a process that has become the leader remains it until its engine is gone, so that there are
//! never two engines.

use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64};

use pgrx::pg_sys;

use super::shmem::{self, SharedContent, SharedPart};
use super::{engine_page, slots};

/// The engine's socket. Relative to the data directory, which is every server process's working directory; in
/// this part of it, base backups leave it out.
pub(crate) const SOCKET: &str = "pg_stat_tmp/pg_steadytext.socket";

/// The leader.
#[repr(C)]
pub(crate) struct EngineLeader {
    /// The process that runs the engine, or has started the program that does; 0: none.
    pid: AtomicI32,
    /// The process in which the engine computes, once it takes connections: the leader itself, or that
    /// program; 0: none.
    engine: AtomicI32,
    /// Programs that have crashed since the server's start.
    crashes: AtomicU64,
    /// Its socket takes connections.
    open: AtomicBool,
    /// Somebody waits for an engine.
    wanted: AtomicBool,
    /// Panics that the server's engines have caught since its start.
    panics: AtomicU64,
}

// SAFETY: zeros are no leader.
unsafe impl SharedContent for EngineLeader {}

pub(super) static LEADER: SharedPart<EngineLeader> = SharedPart::new();

fn me() -> i32 {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::MyProcPid }
}

/// Becomes the leader if there is none. True if this process is the leader now, and must call [`step_down`].
#[cfg(not(feature = "noop-engine"))]
pub(crate) fn try_lead() -> bool {
    LEADER.get().is_some_and(|leader| leader.pid.compare_exchange(0, me(), SeqCst, SeqCst).is_ok())
}

/// Says that the engine of this process takes connections, or the one in a program that it has started.
#[cfg(not(feature = "noop-engine"))]
pub(crate) fn open(program: Option<i32>) {
    if let Some((leader, shared)) = LEADER.get().zip(shmem::get()) {
        leader.engine.store(program.unwrap_or_else(me), SeqCst);
        leader.wanted.store(false, SeqCst);
        leader.open.store(true, SeqCst);
        slots::wake_workers(shared);
    }
}

/// Says that the engine of this process takes no more connections: processes that look for an engine wait for
/// the next one.
#[cfg(not(feature = "noop-engine"))]
pub(crate) fn close() {
    if let Some(leader) = LEADER.get().filter(|_| leads()) {
        leader.open.store(false, SeqCst);
    }
}

/// Notes that the program of this process's engine has ended. This process remains the leader, and another
/// program follows. With `crashed` the program may have ended by the work that it had: the crash is counted
/// before the next program takes connections, so that those who connect to it know of the crash.
pub(crate) fn note_exit(crashed: bool) {
    let Some((leader, shared)) = LEADER.get().zip(shmem::get()).filter(|_| leads()) else { return };
    leader.open.store(false, SeqCst);
    leader.crashes.fetch_add(u64::from(crashed), SeqCst);
    leader.engine.store(0, SeqCst);
    engine_page::clear();
    slots::wake_workers(shared);
}

/// The number of crashes of programs that ran the engine since the server's start.
pub(crate) fn crashes() -> u64 {
    LEADER.get().map_or(0, |leader| leader.crashes.load(SeqCst))
}

/// Counts panics that the engine of this process has caught.
#[cfg(not(feature = "noop-engine"))]
pub(crate) fn count_panics(more: u64) {
    if let Some(leader) = LEADER.get() {
        leader.panics.fetch_add(more, Relaxed);
    }
}

/// Panics that the server's engines have caught since its start.
pub(crate) fn panics() -> u64 {
    LEADER.get().map_or(0, |leader| leader.panics.load(Relaxed))
}

/// Makes room for another leader, if this process is the leader.
pub(crate) fn step_down() {
    let Some((leader, shared)) = LEADER.get().zip(shmem::get()) else { return };
    if leads() {
        leader.open.store(false, SeqCst);
        leader.engine.store(0, SeqCst);
        engine_page::clear();
        leader.pid.store(0, SeqCst);
        slots::wake_workers(shared);
    }
}

/// Whether this process is the leader.
pub(crate) fn leads() -> bool {
    pid() == Some(me())
}

/// The process in which the engine computes: the leader's, or its program's. `None` while there is none,
/// although a leader may be there that is going to start it.
pub(crate) fn engine_pid() -> Option<i32> {
    LEADER.get().map(|leader| leader.engine.load(Acquire)).filter(|pid| *pid != 0)
}

/// The leader.
pub(crate) fn pid() -> Option<i32> {
    LEADER.get().map(|leader| leader.pid.load(Acquire)).filter(|pid| *pid != 0)
}

/// Whether there is an engine that takes connections.
pub(crate) fn is_open() -> bool {
    LEADER.get().is_some_and(|leader| leader.open.load(Acquire))
}

/// Asks for an engine: where no worker can run one, the launcher starts a process for it alone.
pub(crate) fn want() {
    if let Some((leader, shared)) = LEADER.get().zip(shmem::get()) {
        leader.wanted.store(true, SeqCst);
        slots::wake_launcher(shared);
    }
}

/// Whether somebody has asked for an engine since the last look.
pub(crate) fn is_wanted() -> bool {
    LEADER.get().is_some_and(|leader| leader.wanted.swap(false, SeqCst)) && pid().is_none()
}
