//! SIGTERM in a worker: it ends its statement, gives back the requests that it has claimed, and exits.
//!
//! PostgreSQL's own handler ends a process in the middle of a statement. The requests that it has in flight
//! would then look as if it had died of one of them: they would be tried one at a time, and one that was
//! alone would have lost a try, and wait, or fail. So the first SIGTERM only asks for the end. A statement
//! may wait for a lock or run somebody's trigger, and shutdown must not wait for that: PostgreSQL's handler
//! runs when [`GRACE`] is over, and at a second SIGTERM. Giving requests back after that has a time limit of
//! its own, [`LAST_GRACE`], for the same reason: it runs users' triggers too, and its commit may wait for a
//! standby.
//!
//! The postmaster signals the process and, after that, the group that the process leads, so that one wish
//! arrives twice. A SIGTERM within [`ONE_WISH`] after the first one is taken for the same.

use std::cell::UnsafeCell;
use std::sync::atomic::AtomicI64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use pgrx::pg_sys;

// Declared here because pgrx wraps the functions that it binds, and a signal handler may only call C
// functions.
unsafe extern "C-unwind" {
    fn die(signal: i32);
    fn SetLatch(latch: *mut pg_sys::Latch);
}

/// Time that a statement has to end by itself.
const GRACE: Duration = Duration::from_secs(2);

/// Time limit of the last transactions.
const LAST_GRACE: Duration = Duration::from_secs(10);
/// Time after the first SIGTERM within which another one is taken for the same.
const ONE_WISH: Duration = Duration::from_millis(500);

/// The time at which the first SIGTERM arrived, in nanoseconds of the monotonic clock; 0: none has.
static ASKED_AT: AtomicI64 = AtomicI64::new(0);
static TIMER: Timer = Timer(UnsafeCell::new(None));

/// Sends SIGTERM to this process, once.
struct Timer(UnsafeCell<Option<libc::timer_t>>);

// SAFETY: it is made before signals are let in, and only read afterwards.
unsafe impl Sync for Timer {}

impl Timer {
    /// Begins anew; zero stops it. False if there is none. May be called in a signal handler.
    fn set(&self, time: Duration) -> bool {
        // SAFETY: nobody writes it any more; timer_settime is one of the functions that signal handlers may
        // call.
        unsafe {
            let Some(timer) = *self.0.get() else { return false };
            let mut spec: libc::itimerspec = std::mem::zeroed();
            spec.it_value.tv_sec = time.as_secs() as libc::time_t;
            libc::timer_settime(timer, 0, &spec, std::ptr::null_mut()) == 0
        }
    }
}

/// Makes what the handler needs. Once in a process, with signals blocked. Without a timer, SIGTERM ends the
/// process as PostgreSQL has it.
pub(super) fn prepare() {
    // SAFETY: zeros are a sigevent; the timer is this process's, and ends with it.
    unsafe {
        let mut event: libc::sigevent = std::mem::zeroed();
        event.sigev_notify = libc::SIGEV_SIGNAL;
        event.sigev_signo = libc::SIGTERM;
        let mut timer: libc::timer_t = std::ptr::null_mut();
        if libc::timer_create(libc::CLOCK_MONOTONIC, &mut event, &mut timer) == 0 {
            *TIMER.0.get() = Some(timer);
        }
    }
}

/// Nanoseconds of the monotonic clock, never 0. May be called in a signal handler.
fn now() -> i64 {
    // SAFETY: clock_gettime is one of the functions that signal handlers may call; it fills the structure.
    let time = unsafe {
        let mut time: libc::timespec = std::mem::zeroed();
        libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time);
        time
    };
    (time.tv_sec as i64).saturating_mul(1_000_000_000).saturating_add(time.tv_nsec as i64).max(1)
}

/// The handler of SIGTERM.
pub(super) unsafe extern "C-unwind" fn ask(signal: i32) {
    // SAFETY: a handler, in the main thread; it leaves errno as it was.
    unsafe {
        let errno = *libc::__errno_location();
        let now = now();
        match ASKED_AT.compare_exchange(0, now, SeqCst, SeqCst) {
            Ok(_) if TIMER.set(GRACE) => SetLatch(pg_sys::MyLatch),
            Err(first) if now - first < ONE_WISH.as_nanos() as i64 => {}
            _ => die(signal),
        }
        *libc::__errno_location() = errno;
    }
}

/// Whether SIGTERM has arrived that [`ask`] handles.
pub(super) fn is_asked() -> bool {
    ASKED_AT.load(SeqCst) != 0
}

/// Begins the last work of this process, if it was asked to end: from now on that work has a time limit of
/// its own, [`LAST_GRACE`].
pub(super) fn begin_last_grace() {
    if is_asked() {
        TIMER.set(LAST_GRACE);
    }
}
