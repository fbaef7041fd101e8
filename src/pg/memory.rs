//! Memory: a context of PostgreSQL's for repeated work in one call; the memory that the engine may take; and
//! the end of a process that has none left.

use std::ffi::{c_char, c_int};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use pgrx::prelude::*;
use steadytext_engine::memory::set_last_resort;

/// Runs `work` in a memory context of its own, which is gone afterwards: what `work` returns must not lie in
/// it. Without this, everything that a function makes stays until its statement ends.
pub(crate) fn in_scratch<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: the context is deleted when nothing is in use that lies in it; after an error the abort deletes
    // it, with its parent.
    unsafe {
        let scratch = pg_sys::AllocSetContextCreateExtended(
            pg_sys::CurrentMemoryContext,
            c"pg_steadytext scratch".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as pg_sys::Size,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as pg_sys::Size,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as pg_sys::Size,
        );
        let before = pg_sys::MemoryContextSwitchTo(scratch);
        let value = work();
        pg_sys::MemoryContextSwitchTo(before);
        pg_sys::MemoryContextDelete(scratch);
        value
    }
}

/// The engine's `oom_score_adj`. The kernel kills the process with the highest score when memory runs out,
/// and this counts as half of all memory. The engine is the largest process of the server, and the only one
/// that can be restarted without a loss for anybody; the kernel could not know that.
const OOM_SCORE_ADJ: i32 = 500;

/// Bytes of shared_buffers.
pub(crate) fn shared_buffers() -> u64 {
    // SAFETY: a plain global, set before any process of the server could run this.
    u64::try_from(unsafe { pg_sys::NBuffers }).unwrap_or(0) * u64::from(pg_sys::BLCKSZ)
}

/// This process is offered to the kernel before the others, as long as this lives.
pub(crate) struct Offered {
    before: String,
}

impl Offered {
    /// Offers the process to the system for that; None where the system has nothing of the kind, or would not
    /// have it.
    pub(crate) fn new() -> Option<Offered> {
        let before = std::fs::read_to_string(Self::FILE).ok()?;
        let score = before.trim().parse::<i32>().ok()?.max(OOM_SCORE_ADJ);
        // Raising it is everybody's right.
        std::fs::write(Self::FILE, score.to_string()).ok()?;
        Some(Offered { before })
    }

    const FILE: &str = "/proc/self/oom_score_adj";
}

impl Drop for Offered {
    fn drop(&mut self) {
        // Where the system does not allow it, the value stays as it is.
        let _ = std::fs::write(Self::FILE, self.before.trim());
    }
}

/// The thread of this process, and of those that are forked from it, that is PostgreSQL's.
static MAIN: OnceLock<libc::pthread_t> = OnceLock::new();

/// Sees to it that a process which has no memory left ends, in order. Called by the main thread.
pub(crate) fn install() {
    // SAFETY: asks for the calling thread.
    MAIN.get_or_init(|| unsafe { libc::pthread_self() });
    set_last_resort(end_without_memory);
}

unsafe extern "C-unwind" {
    fn errstart(level: c_int, domain: *const c_char) -> bool;
    fn errcode(code: c_int) -> c_int;
    fn errmsg(format: *const c_char, ...) -> c_int;
    fn errfinish(file: *const c_char, line: c_int, function: *const c_char);
}

/// An allocation has failed that nobody looks at, and the reserve is gone. Rust would abort, which ends every
/// session of the server. A backend ends its own session instead; a thread of the engine stops, and its
/// process ends when the main thread sees that (`worker::engine_link`).
fn end_without_memory() -> ! {
    static ENDING: AtomicBool = AtomicBool::new(false);
    // SAFETY: asks for the calling thread.
    let this = unsafe { libc::pthread_self() };
    // SAFETY: compares two threads.
    let is_main = MAIN.get().is_some_and(|main| unsafe { libc::pthread_equal(*main, this) } != 0);
    if is_main && !ENDING.swap(true, Ordering::Relaxed) {
        // SAFETY: on PostgreSQL's thread. FATAL runs the callbacks of the process's end and exits: nothing
        // unwinds into the allocator. PostgreSQL keeps memory for errors aside.
        unsafe {
            if errstart(PgLogLevel::FATAL as c_int, std::ptr::null()) {
                errcode(PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY as c_int);
                errmsg(c"%s".as_ptr(), c"out of memory".as_ptr());
                errfinish(std::ptr::null(), 0, std::ptr::null());
            }
            pg_sys::proc_exit(1);
        }
    }
    loop {
        // SAFETY: sleeps until a signal comes.
        unsafe { libc::pause() };
    }
}
