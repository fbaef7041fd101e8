//! LISTEN and NOTIFY. In a background worker the statement LISTEN is refused, but the function behind it
//! works; pgrx binds neither, so they are declared here.

use pgrx::pg_sys;

unsafe extern "C-unwind" {
    fn Async_Listen(channel: *const std::ffi::c_char);
    fn Async_Notify(channel: *const std::ffi::c_char, payload: *const std::ffi::c_char);
    fn ProcessNotifyInterrupt(flush: bool);
    static mut notifyInterruptPending: pg_sys::sig_atomic_t;
}

/// Listens on channel steadytext_queue from the next commit on. Inside a transaction.
pub(crate) fn listen() {
    // SAFETY: a C function that may raise, called through the guard; no destructors are pending inside it.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| Async_Listen(c"steadytext_queue".as_ptr())) };
}

/// Whether notifications have arrived. On any channel of the database: PostgreSQL signals every listener.
pub(crate) fn is_pending() -> bool {
    // SAFETY: a flag that the signal handler of this process sets.
    unsafe { std::ptr::read_volatile(&raw const notifyInterruptPending) != 0 }
}

/// Reads the notifications, so that the server's queue can shrink. Outside of a transaction; may raise.
pub(crate) fn process() {
    // SAFETY: as for `listen`.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| ProcessNotifyInterrupt(false)) };
}

/// Sends `payload`, which has no zero byte, on `channel` at commit. Inside a transaction.
pub(crate) fn notify(channel: &std::ffi::CStr, payload: &str) {
    let payload: Vec<u8> = payload.bytes().filter(|byte| *byte != 0).chain([0]).collect();
    // SAFETY: as for `listen`; strings that end with a zero, copied by the callee.
    unsafe { pg_sys::ffi::pg_guard_ffi_boundary(|| Async_Notify(channel.as_ptr(), payload.as_ptr().cast())) };
}
