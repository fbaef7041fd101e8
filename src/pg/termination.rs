//! How a worker takes SIGTERM: it ends its statement, gives back what it has claimed, and goes.
//!
//! PostgreSQL's own handler ends a process in the middle of a statement. The requests that it has in flight
//! would then look as if it had died of one of them: they would be tried one at a time, and one that was
//! alone would have lost a try, and wait, or fail. So the first SIGTERM only asks for the end. A statement
//! may wait for a lock or run somebody's trigger, and shutdown must not wait for that: PostgreSQL's handler
//! runs when [`GRACE`] is over, and at the second SIGTERM.

use std::cell::UnsafeCell;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use pgrx::pg_sys;

// Declared here because pgrx wraps the functions that it binds, and a signal handler may only call C
// functions.
unsafe extern "C-unwind" {
    fn die(signal: i32);
    fn SetLatch(latch: *mut pg_sys::Latch);
}

/// How long a statement may go on.
const GRACE: Duration = Duration::from_secs(2);

/// SIGTERM has arrived, and [`die`] has not been called for it.
static IS_ASKED: AtomicBool = AtomicBool::new(false);
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

/// The handler of SIGTERM.
pub(super) unsafe extern "C-unwind" fn ask(signal: i32) {
    // SAFETY: a handler, in the main thread; it leaves errno as it was.
    unsafe {
        let errno = *libc::__errno_location();
        if !IS_ASKED.swap(true, SeqCst) && TIMER.set(GRACE) {
            SetLatch(pg_sys::MyLatch);
        } else {
            die(signal);
        }
        *libc::__errno_location() = errno;
    }
}

/// Whether SIGTERM has arrived that [`ask`] handles.
pub(super) fn is_asked() -> bool {
    IS_ASKED.load(SeqCst)
}

/// What is done from now on may take as long as it takes, unless a second SIGTERM arrives.
pub(super) fn stop_timer() {
    TIMER.set(Duration::ZERO);
}
