//! `pg_steadytext.log_min_duration`: a line in the server's log for each request that took long.
//!
//! Invariant: a line has numbers and names, and no part of a prompt or an answer.

use std::ffi::{CString, c_char};
use std::time::Duration;

use pgrx::guc::{GucContext, GucFlags, GucRegistry, GucSetting};
use pgrx::prelude::*;

// pgrx binds some of these only, and those each with a boundary of its own.
unsafe extern "C-unwind" {
    fn errstart(level: i32, domain: *const c_char) -> bool;
    fn errmsg_internal(format: *const c_char, ...) -> i32;
    fn errhidestmt(hide: bool) -> i32;
    fn errhidecontext(hide: bool) -> i32;
    fn errfinish(file: *const c_char, line: i32, function: *const c_char);
}

static LOG_MIN_DURATION: GucSetting<i32> = GucSetting::<i32>::new(-1);

/// Defines the setting. Only while shared_preload_libraries is processed.
pub(super) fn define() {
    GucRegistry::define_int_guc(
        c"pg_steadytext.log_min_duration",
        c"Minimum duration of the requests that are written to the log when they have ended.",
        c"0 writes all of them, -1 none. Neither prompts nor answers are written.",
        &LOG_MIN_DURATION,
        -1,
        i32::MAX,
        GucContext::Suset,
        GucFlags::UNIT_MS,
    );
}

/// Whether a request that took this long is written to the log.
pub(crate) fn is_wanted(took: Duration) -> bool {
    let least = LOG_MIN_DURATION.get();
    least >= 0 && took.as_millis() >= least as u128
}

/// Writes a line. Statement and context are left out, which the log has beside other messages: they say what
/// was asked.
pub(crate) fn write(line: &str) {
    let Ok(line) = CString::new(line) else { return };
    // SAFETY: what the macro ereport of PostgreSQL does; below ERROR it returns. The line is no format, and
    // is copied.
    unsafe {
        pg_sys::ffi::pg_guard_ffi_boundary(|| {
            if errstart(PgLogLevel::LOG as i32, std::ptr::null()) {
                errmsg_internal(c"%s".as_ptr(), line.as_ptr());
                errhidestmt(true);
                errhidecontext(true);
                errfinish(c"request_log.rs".as_ptr(), 0, c"write".as_ptr());
            }
        });
    }
}
