//! Rights that PostgreSQL denies on the extension's objects. It checks most of them itself, and its errors
//! about them are noted here.
//!
//! An error on its way to the server log is seen there, and loses the context entries that [`own_context`]
//! leaves out. An error that a block with an exception handler catches gets no further; but when an error is
//! raised, its context is put together by callbacks, and one of them is ours as long as a statement runs. The
//! same callback adds a hint to the error about a column that keeps its type for a definition of ours
//! ([`column_types`]).
//!
//! Invariant: the callback is in the stack at most once, and costs a statement some instructions.

use std::cell::Cell;
use std::ffi::CStr;
use std::hash::{DefaultHasher, Hash, Hasher};

use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};

use super::refusals::{self, RIGHTS};
use super::{column_types, own_context, privilege, transaction};

/// Callbacks that are looked at for one of ours: where there are more, a statement runs already.
const MOST_CALLBACKS: usize = 8;

static mut PREVIOUS_LOG: pg_sys::emit_log_hook_type = None;
static mut PREVIOUS_RUN: pg_sys::ExecutorRun_hook_type = None;

/// The hint for a missing right on an object for users. A hint must not have characters that a format string
/// would interpret, such as `%`.
const HINT_OF_USERS: &CStr = c"Members of steadytext_user may use pg_steadytext, members of steadytext_admin configure it as well: GRANT steadytext_user TO the role. \"Roles\" in docs/sql.md says which role is for what.";
/// The hint for a missing right on an object for administrators only.
const HINT_OF_ADMINISTRATORS: &CStr = c"This is for members of steadytext_admin, who configure pg_steadytext: GRANT steadytext_admin TO the role. \"Roles\" in docs/sql.md says which role is for what.";
/// The hint for tables that users may read or change in part, and administrators otherwise: PostgreSQL does
/// not tell which operation was tried.
const HINT_OF_BOTH: &CStr = c"Members of steadytext_user may read it, or what is their own in it, members of steadytext_admin also change it as far as anybody may: GRANT one of them TO the role. \"Roles\" in docs/sql.md says which role is for what.";
/// Functions, tables and views that members of steadytext_user have no right to, without what their names
/// begin with. A test compares them with the catalogs.
const OF_ADMINISTRATORS: [&str; 30] = [
    "audit_log",
    "cache",
    "cache_clear",
    "cache_evict_by_age",
    "cache_evict_by_frecency",
    "cache_export",
    "cache_import",
    "cache_preview_eviction",
    "cache_scheduled_eviction",
    "cache_warmup",
    "cache_with_frecency",
    "config_set",
    "daemon_start",
    "daemon_stop",
    "diagnose",
    "disable_cache_eviction_cron",
    "limit_usage",
    "metrics",
    "model_inspect",
    "model_pull",
    "model_pull_cancel",
    "model_remove",
    "model_verify",
    "queue_counts",
    "rate_limits",
    "rate_usage",
    "reset_usage",
    "set_limit",
    "setup_cache_eviction_cron",
    "stat_reset",
];
/// A function in a view for users, which the planner calls before anybody looks at the right to the view.
const CALLED_BY_PLANNER: &str = "bucket_bounds";
/// The functions of PostgreSQL that report a missing right.
const DENIERS: [&CStr; 2] = [c"aclcheck_error", c"aclcheck_error_col"];

/// Its address marks a callback as ours.
static MARK: u8 = 0;

thread_local! {
    /// The statement in which the last error was noted, and the hash of its message.
    static LAST: Cell<(i64, u64)> = const { Cell::new((0, 0)) };
}

/// Installs the hooks. Only while shared_preload_libraries is processed.
pub(super) fn install() {
    // SAFETY: called once by the postmaster while it loads libraries; hooks are chained.
    unsafe {
        PREVIOUS_LOG = pg_sys::emit_log_hook;
        pg_sys::emit_log_hook = Some(see_error);
        PREVIOUS_RUN = pg_sys::ExecutorRun_hook;
        pg_sys::ExecutorRun_hook = Some(executor_run);
    }
}

/// A watch, which sees the errors that are raised while it is there. Errors jump over its frame, and the
/// handler that catches them puts the stack of callbacks back: it holds nothing to drop.
pub(super) struct ErrorWatch {
    callback: pg_sys::ErrorContextCallback,
    is_there: bool,
}

impl ErrorWatch {
    /// One that sees nothing yet.
    pub(super) fn new() -> ErrorWatch {
        let callback = pg_sys::ErrorContextCallback {
            previous: std::ptr::null_mut(),
            callback: Some(see_context),
            arg: mark(),
        };
        ErrorWatch { callback, is_there: false }
    }

    /// From now on it sees them, unless another one does.
    ///
    /// # Safety
    ///
    /// It stays where it is until [`ErrorWatch::end`], or an error that leaves its frame.
    pub(super) unsafe fn begin(&mut self) {
        // SAFETY: callbacks in the stack are alive; this one is as the caller promises.
        unsafe {
            let mut below = pg_sys::error_context_stack;
            for _ in 0..MOST_CALLBACKS {
                if below.is_null() {
                    self.callback.previous = pg_sys::error_context_stack;
                    pg_sys::error_context_stack = &raw mut self.callback;
                    self.is_there = true;
                    return;
                }
                if (*below).arg == mark() {
                    return;
                }
                below = (*below).previous;
            }
        }
    }

    /// The statement has ended without an error.
    ///
    /// # Safety
    ///
    /// The stack is as [`ErrorWatch::begin`] left it.
    pub(super) unsafe fn end(&self) {
        if self.is_there {
            // SAFETY: the caller's promise.
            unsafe { pg_sys::error_context_stack = self.callback.previous };
        }
    }
}

fn mark() -> *mut core::ffi::c_void {
    (&raw const MARK).cast_mut().cast()
}

// Declared here because pgrx wraps the functions that it binds in a guard, which hooks must not have (see
// `hooks`).
unsafe extern "C-unwind" {
    #[cfg(not(feature = "pg18"))]
    fn standard_ExecutorRun(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
        execute_once: bool,
    );
    #[cfg(feature = "pg18")]
    fn standard_ExecutorRun(
        query: *mut pg_sys::QueryDesc,
        direction: pg_sys::ScanDirection::Type,
        count: u64,
    );
    fn CopyErrorData() -> *mut pg_sys::ErrorData;
    fn FreeErrorData(error: *mut pg_sys::ErrorData);
    fn geterrcode() -> core::ffi::c_int;
    fn errhint(format: *const core::ffi::c_char, ...) -> core::ffi::c_int;
}

#[cfg(not(feature = "pg18"))]
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
    execute_once: bool,
) {
    let mut watch = ErrorWatch::new();
    // SAFETY: the watch stays in this frame; arguments are passed on as they are.
    unsafe {
        watch.begin();
        match PREVIOUS_RUN {
            Some(previous) => previous(query, direction, count, execute_once),
            None => standard_ExecutorRun(query, direction, count, execute_once),
        }
        watch.end();
    }
}

#[cfg(feature = "pg18")]
unsafe extern "C-unwind" fn executor_run(
    query: *mut pg_sys::QueryDesc,
    direction: pg_sys::ScanDirection::Type,
    count: u64,
) {
    let mut watch = ErrorWatch::new();
    // SAFETY: the watch stays in this frame; arguments are passed on as they are.
    unsafe {
        watch.begin();
        match PREVIOUS_RUN {
            Some(previous) => previous(query, direction, count),
            None => standard_ExecutorRun(query, direction, count),
        }
        watch.end();
    }
}

/// Called for whatever is raised while a statement runs, caught or not, warnings as well.
unsafe extern "C-unwind" fn see_context(_arg: *mut core::ffi::c_void) {
    // SAFETY: called by PostgreSQL while it raises an error, which is the one that is copied; parallel
    // workers' errors are raised once more by their leader.
    unsafe {
        let is_denied = geterrcode() == PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE as i32;
        let is_unsupported = geterrcode() == PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED as i32;
        if !is_denied && !is_unsupported
            || pg_sys::ParallelWorkerNumber >= 0
            || pg_sys::TopTransactionContext.is_null()
        {
            return;
        }
        // The copy must not be in the context of errors, which is current.
        let before = pg_sys::CurrentMemoryContext;
        pg_sys::CurrentMemoryContext = pg_sys::TopTransactionContext;
        let error = CopyErrorData();
        note(error, false);
        let is_about_type = is_unsupported && column_types::is_kept(error);
        let hint = if is_denied { hint_about_own_object(error) } else { None };
        FreeErrorData(error);
        pg_sys::CurrentMemoryContext = before;
        if is_about_type {
            errhint(column_types::HINT.as_ptr());
        }
        if let Some(hint) = hint {
            errhint(hint.as_ptr());
        }
    }
}

/// Called for whatever goes into the server's log.
unsafe extern "C-unwind" fn see_error(error: *mut pg_sys::ErrorData) {
    // SAFETY: PostgreSQL passes an error that is alive during the call; the previous hook is a valid function
    // of another library.
    unsafe {
        if let Some(previous) = PREVIOUS_LOG {
            previous(error);
        }
        note(error, true);
        own_context::hide(error);
        // Rights on tables and functions of a statement are looked at before it runs, when the callback is
        // not there yet.
        if let Some(hint) = hint_about_own_object(error) {
            (*error).hint = pg_sys::MemoryContextStrdup((*error).assoc_context, hint.as_ptr());
        }
    }
}

/// The hint for an error by which PostgreSQL has denied a right on a function, a table or a view that is
/// called as the extension calls its own. `None` for other errors and those with a hint.
///
/// # Safety
///
/// The error is alive.
unsafe fn hint_about_own_object(error: *const pg_sys::ErrorData) -> Option<&'static CStr> {
    // SAFETY: the caller's promise; its texts end with a zero.
    unsafe {
        if (*error).sqlerrcode != PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE as i32
            || (*error).elevel != PgLogLevel::ERROR as i32
            || (*error).message.is_null()
            || (*error).funcname.is_null()
            || !(*error).hint.is_null()
            || !DENIERS.contains(&CStr::from_ptr((*error).funcname))
        {
            return None;
        }
        hint_about(&CStr::from_ptr((*error).message).to_string_lossy())
    }
}

/// The hint for a message such as `permission denied for function steadytext_config_set`. The catalogs, which
/// know who has the right, must not be read while an error is raised.
fn hint_about(message: &str) -> Option<&'static CStr> {
    let mut words = message.rsplit(' ');
    let (name, kind) = (words.next()?, words.next()?);
    if kind == "function" && name == CALLED_BY_PLANNER {
        return Some(HINT_OF_USERS);
    }
    let name = name.strip_prefix("steadytext_").or_else(|| name.strip_prefix("st_"))?;
    Some(if OF_ADMINISTRATORS.contains(&name) {
        HINT_OF_ADMINISTRATORS
    } else if kind == "function" {
        HINT_OF_USERS
    } else {
        HINT_OF_BOTH
    })
}

/// Notes an error that is about rights on something of the extension's, unless it was noted when it was
/// raised.
///
/// # Safety
///
/// The error is alive.
unsafe fn note(error: *mut pg_sys::ErrorData, is_logged: bool) {
    let denied = PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE;
    // SAFETY: the caller's promise; its texts end with a zero.
    let message = unsafe {
        if (*error).sqlerrcode != denied as i32
            || (*error).elevel != PgLogLevel::ERROR as i32
            || (*error).message.is_null()
            || (*error).funcname.is_null()
        {
            return;
        }
        // Errors that functions of others raise may have any text in them.
        let from = CStr::from_ptr((*error).funcname);
        if !DENIERS.contains(&from) && from != c"ExecWithCheckOptions" {
            return;
        }
        CStr::from_ptr((*error).message).to_string_lossy()
    };
    if !message.contains("steadytext") {
        return;
    }
    let mut hasher = DefaultHasher::new();
    message.hash(&mut hasher);
    let this = (transaction::statement_started_at(), hasher.finish());
    // An error that nobody has caught comes a second time, when it is written to the log.
    if is_logged && LAST.get() == this {
        return;
    }
    LAST.set(this);
    refusals::note(privilege::outer_user(), RIGHTS, denied, &message);
}
