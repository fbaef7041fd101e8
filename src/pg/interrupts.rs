//! Signals, latches and sleeping.

use std::cell::Cell;
use std::os::fd::RawFd;
use std::sync::OnceLock;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::atomic::{AtomicBool, AtomicPtr};
use std::time::Duration;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::termination;

// Declared here because pgrx wraps the functions that it binds, and a signal handler must be the C function
// itself.
unsafe extern "C-unwind" {
    // A macro for this name since version 18.
    #[cfg_attr(feature = "pg18", link_name = "pqsignal_be")]
    fn pqsignal(signal: i32, handler: Option<unsafe extern "C-unwind" fn(i32)>);
    fn die(signal: i32);
    fn enable_timeout_after(timeout: i32, delay_ms: i32);
    fn disable_timeout(timeout: i32, keep_indicator: bool);
    fn RegisterTimeout(timeout: i32, handler: Option<unsafe extern "C-unwind" fn()>) -> i32;
    fn SignalHandlerForConfigReload(signal: i32);
}

/// The effect of SIGTERM on a process of ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Termination {
    /// The process ends at the next look for interrupts, as PostgreSQL's own processes do.
    AtOnce,
    /// The process ends between two transactions ([`check_between_transactions`]), unless a statement takes
    /// too long ([`super::termination`]).
    AfterStatement,
}

/// Installs the handlers of a worker that acts on its own interrupts, and lets signals in.
///
/// A background worker is started with SIGHUP ignored: one that comes before this is lost, and the process
/// would keep the settings that it was forked with. So it reads the configuration now.
pub(crate) fn accept_signals(termination: Termination) {
    let terminate: unsafe extern "C-unwind" fn(i32) = match termination {
        Termination::AtOnce => die,
        Termination::AfterStatement => {
            termination::prepare();
            termination::ask
        }
    };
    // SAFETY: PostgreSQL's own handlers and one of ours, for a process that has just been started with
    // signals blocked.
    unsafe {
        pqsignal(libc::SIGTERM, Some(terminate));
        pqsignal(libc::SIGHUP, Some(SignalHandlerForConfigReload));
        pg_sys::BackgroundWorkerUnblockSignals();
        pg_sys::ConfigReloadPending = 1;
    }
    reload_configuration();
}

/// Whether SIGTERM has arrived.
pub(crate) fn termination_requested() -> bool {
    // SAFETY: a flag that the signal handler of this process sets.
    termination::is_asked() || unsafe { std::ptr::read_volatile(&raw const pg_sys::ProcDiePending) != 0 }
}

/// Runs `work` with a termination that has arrived put aside, so that a last transaction can be committed. A
/// second SIGTERM, and the end of its time, end the process all the same.
pub(crate) fn postponing_termination<T>(work: impl FnOnce() -> T) -> T {
    termination::begin_last_grace();
    // SAFETY: the flags belong to this process; they are set again afterwards.
    unsafe {
        pg_sys::ProcDiePending = 0;
        let value = work();
        pg_sys::ProcDiePending = 1;
        pg_sys::InterruptPending = 1;
        value
    }
}

/// Whether the statement must stop: the next [`check`] will not return. For where nothing may be raised.
pub(crate) fn is_stop_pending() -> bool {
    // SAFETY: flags that the signal handlers of this process set.
    unsafe {
        std::ptr::read_volatile(&raw const pg_sys::ProcDiePending) != 0
            || std::ptr::read_volatile(&raw const pg_sys::QueryCancelPending) != 0
    }
}

/// Answers a session that waits for all processes, as DROP DATABASE does, at a place where nothing may be
/// raised. This stops nothing.
pub(crate) fn answer_barriers() {
    // SAFETY: a flag that the signal handler of this process sets; in the main thread. Answering a barrier
    // closes files.
    unsafe {
        if std::ptr::read_volatile(&raw const pg_sys::ProcSignalBarrierPending) != 0 {
            pg_sys::ProcessProcSignalBarrier();
        }
    }
}

/// Acts on whatever has arrived; does not return after SIGTERM.
pub(crate) fn check() {
    pgrx::check_for_interrupts!();
}

/// Acts on whatever has arrived between two transactions of a worker. A cancel means the statement that was
/// running, and none is: as in every idle session, it is ignored.
pub(crate) fn check_between_transactions() {
    // SAFETY: flags of this process.
    unsafe {
        pg_sys::QueryCancelPending = 0;
        if termination::is_asked() {
            pg_sys::ProcDiePending = 1;
            pg_sys::InterruptPending = 1;
        }
    }
    check();
}

/// Reads the configuration files again if SIGHUP has arrived. True if so.
pub(crate) fn reload_configuration() -> bool {
    // SAFETY: a flag of this process; the file is read outside of transactions, as in every worker.
    unsafe {
        if std::ptr::read_volatile(&raw const pg_sys::ConfigReloadPending) == 0 {
            return false;
        }
        pg_sys::ConfigReloadPending = 0;
        pg_sys::ProcessConfigFile(pg_sys::GucContext::PGC_SIGHUP);
        true
    }
}

/// This process's latch, in shared memory.
pub(crate) fn my_latch() -> *mut pg_sys::Latch {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::MyLatch }
}

/// A descriptor to wait for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WaitFd {
    /// The descriptor, which is waited for until it can be read.
    pub(crate) fd: RawFd,
    /// Whether it is also waited for until it can be written.
    pub(crate) writing: bool,
}

/// Waits until the latch is set, `wait_fd` (if any) is ready, or the time is over; then resets the latch.
/// Ends the process when the postmaster has died.
pub(crate) fn wait(timeout: Duration, wait_fd: Option<WaitFd>) {
    let mut events = pg_sys::WL_LATCH_SET | pg_sys::WL_TIMEOUT | pg_sys::WL_EXIT_ON_PM_DEATH;
    if let Some(wait_fd) = wait_fd {
        events |= pg_sys::WL_SOCKET_READABLE;
        if wait_fd.writing {
            events |= pg_sys::WL_SOCKET_WRITEABLE;
        }
    }
    // Rounded up: a process that waits until a moment would otherwise wake before it, again and again.
    let timeout_ms =
        i64::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(i64::MAX).min(i64::from(i32::MAX));
    // SAFETY: waits on the latch of this process and a descriptor that the caller keeps open.
    unsafe {
        pg_sys::WaitLatchOrSocket(
            pg_sys::MyLatch,
            events as i32,
            wait_fd.map_or(pg_sys::PGINVALID_SOCKET, |wait_fd| wait_fd.fd),
            timeout_ms,
            wait_event(),
        );
        pg_sys::ResetLatch(pg_sys::MyLatch);
    }
}

/// The wait event that pg_stat_activity shows: with a name of its own where extensions can register one.
fn wait_event() -> u32 {
    #[cfg(any(feature = "pg17", feature = "pg18"))]
    {
        thread_local! {
            static EVENT: Cell<Option<u32>> = const { Cell::new(None) };
        }
        EVENT.get().unwrap_or_else(|| {
            // SAFETY: a plain global of this process; a name that is registered again has the same number.
            let event = unsafe {
                let is_worker = !pg_sys::MyBgworkerEntry.is_null() && super::bgworker::is_own();
                let name = if is_worker { c"SteadytextMain" } else { c"SteadytextAnswer" };
                pg_sys::WaitEventExtensionNew(name.as_ptr())
            };
            EVENT.set(Some(event));
            event
        })
    }
    #[cfg(not(any(feature = "pg17", feature = "pg18")))]
    pg_sys::PG_WAIT_EXTENSION
}

/// PostgreSQL's number of the timeout for statements, in all versions.
const STATEMENT_TIMEOUT: i32 = 3;
/// A number behind those that PostgreSQL itself has, in all versions: it asks for one that is free.
const USER_TIMEOUT: i32 = 15;

/// The number of the timeout that ends the process, once it has been registered.
static END_TIMEOUT: OnceLock<i32> = OnceLock::new();
/// The flag to set when that timeout ends the process; it points to shared memory.
static OVERRAN: AtomicPtr<AtomicBool> = AtomicPtr::new(std::ptr::null_mut());

/// Ends the process as SIGTERM does, at its next look for interrupts. No exception handler of a user's can
/// prevent that.
unsafe extern "C-unwind" fn end_by_timeout() {
    // SAFETY: null, or memory of the server that is there as long as this process; PostgreSQL's own handler,
    // which is one for signals.
    unsafe {
        if let Some(overran) = OVERRAN.load(SeqCst).as_ref() {
            overran.store(true, SeqCst);
        }
        die(libc::SIGTERM);
    }
}

/// Prepares [`with_time_limits`], which sets `overran` before the process ends. Once in a process, after it
/// has connected.
pub(crate) fn prepare_time_limits(overran: &'static AtomicBool) {
    OVERRAN.store(std::ptr::from_ref(overran).cast_mut(), SeqCst);
    // SAFETY: the first number that is free is given out by PostgreSQL.
    END_TIMEOUT.get_or_init(|| unsafe { RegisterTimeout(USER_TIMEOUT, Some(end_by_timeout)) });
}

/// Runs `work`, which ends with an error (57014) if it takes longer than `limit`, as a statement with that
/// statement_timeout would. If it has caught that error, and takes longer than `end`, the process ends.
pub(crate) fn with_time_limits<T>(limit: Duration, end: Duration, work: impl FnOnce() -> T) -> T {
    struct TimeLimitsGuard;
    impl Drop for TimeLimitsGuard {
        fn drop(&mut self) {
            // SAFETY: timeouts of this process, whether they run or not.
            unsafe {
                disable_timeout(STATEMENT_TIMEOUT, false);
                if let Some(end) = END_TIMEOUT.get() {
                    disable_timeout(*end, false);
                }
            }
        }
    }
    extend_time_limits(limit, end);
    let _limits = TimeLimitsGuard;
    work()
}

/// Begins both limits of [`with_time_limits`] anew.
pub(crate) fn extend_time_limits(limit: Duration, end: Duration) {
    renew_time_limit(limit);
    if let Some(timeout) = END_TIMEOUT.get() {
        // SAFETY: registered by this process.
        unsafe { enable_timeout_after(*timeout, milliseconds(end)) };
    }
}

/// Begins the first limit of [`with_time_limits`] anew, also where it has ended something.
pub(crate) fn renew_time_limit(limit: Duration) {
    // SAFETY: every process that is connected to a database has a handler for it, which cancels its
    // statement.
    unsafe { enable_timeout_after(STATEMENT_TIMEOUT, milliseconds(limit)) };
}

fn milliseconds(time: Duration) -> i32 {
    i32::try_from(time.as_millis()).unwrap_or(i32::MAX)
}

/// Sleeps for a while, interruptibly.
pub(crate) fn sleep_ms(timeout_ms: i64) {
    check();
    wait(Duration::from_millis(u64::try_from(timeout_ms).unwrap_or(0)), None);
    check();
}

/// Runs `work` with every signal blocked, for starting threads: they inherit the mask, and PostgreSQL's
/// signal handlers must run on the main thread only.
pub(crate) fn with_signals_blocked<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: masks of this thread, restored afterwards.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut before);
        let value = work();
        libc::pthread_sigmask(libc::SIG_SETMASK, &before, std::ptr::null_mut());
        value
    }
}

thread_local! {
    static BEFORE_EXIT: Cell<Option<fn()>> = const { Cell::new(None) };
    static AT_EXIT: Cell<Option<fn()>> = const { Cell::new(None) };
}

/// Runs `work` when this process begins to end, while it is still connected. One per process.
pub(crate) fn before_exit(work: fn()) {
    if BEFORE_EXIT.replace(Some(work)).is_none() {
        // SAFETY: the callback lives as long as the library.
        unsafe { pg_sys::before_shmem_exit(Some(run_before_exit), pg_sys::Datum::from(0)) };
    }
}

/// Runs `work` when this process has left the database, if it is called before the process connects to one.
/// One per process.
pub(crate) fn at_exit(work: fn()) {
    if AT_EXIT.replace(Some(work)).is_none() {
        // SAFETY: the callback lives as long as the library.
        unsafe { pg_sys::on_shmem_exit(Some(run_at_exit), pg_sys::Datum::from(0)) };
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn run_before_exit(_code: i32, _arg: pg_sys::Datum) {
    if let Some(work) = BEFORE_EXIT.take() {
        work();
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn run_at_exit(_code: i32, _arg: pg_sys::Datum) {
    if let Some(work) = AT_EXIT.take() {
        work();
    }
}

/// Ends this process. Code 0 is an orderly end.
pub(crate) fn exit(code: i32) -> ! {
    // SAFETY: runs the exit callbacks and does not return.
    unsafe { pg_sys::proc_exit(code) };
    #[allow(unreachable_code, reason = "proc_exit is not declared as never returning in all versions")]
    std::process::abort()
}
