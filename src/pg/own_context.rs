//! What PostgreSQL adds to an error about where it was raised, where that is a function of the extension's.
//!
//! PL/pgSQL names each function and each statement between the caller and the error. Those of the extension say nothing to who has made a mistake
//! in an argument, and hide what does: they are left out, up to the first function that is somebody else's. Everything stays with
//! log_error_verbosity = verbose, of internal errors, which are bugs, and in the processes of the extension.

use std::ffi::CStr;

use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};

/// How entries about functions begin.
const FUNCTIONS: [&[u8]; 2] = [b"PL/pgSQL function ", b"SQL function \""];
/// How entries begin that stand before those of the function that they are in.
const STATEMENTS: [&[u8]; 3] = [b"SQL statement \"", b"SQL expression \"", b"PL/pgSQL assignment \""];

/// Takes the extension's own functions out of an error's context.
///
/// # Safety
///
/// The error is alive, and goes to the log and the client next.
pub(super) unsafe fn hide(error: *mut pg_sys::ErrorData) {
    // SAFETY: the caller's promise; the context is a text that ends with a zero, or NULL, and is never freed by itself.
    unsafe {
        if (*error).elevel < PgLogLevel::ERROR as i32
            || (*error).sqlerrcode == PgSqlErrorCode::ERRCODE_INTERNAL_ERROR as i32
            || (*error).context.is_null()
            || pg_sys::MyBackendType != pg_sys::BackendType::B_BACKEND
            || pg_sys::Log_error_verbosity as u32 >= pg_sys::PGErrorVerbosity::PGERROR_VERBOSE
        {
            return;
        }
        let context = CStr::from_ptr((*error).context).to_bytes();
        let own = length_of_own(context);
        (*error).context =
            if own == context.len() { std::ptr::null_mut() } else { (*error).context.add(own) };
    }
}

/// Bytes at the beginning of a context that are about the extension's functions.
fn length_of_own(context: &[u8]) -> usize {
    let begins = |line: &[u8], with: &[&[u8]]| with.iter().any(|with| line.starts_with(with));
    if !begins(context, &FUNCTIONS) && !begins(context, &STATEMENTS) {
        // What was read there, say.
        return 0;
    }
    let (mut position, mut own) = (0, 0);
    // A statement may have many lines, of which none counts.
    for line in context.split_inclusive(|byte| *byte == b'\n') {
        position += line.len();
        if begins(line, &FUNCTIONS) {
            if !is_own(line, own > 0) {
                break;
            }
            own = position;
        }
    }
    own
}

/// Whether an entry is about a function of the extension's. The twins' names, which others have as well, count behind others.
fn is_own(line: &[u8], takes_twins: bool) -> bool {
    let name = FUNCTIONS.iter().find_map(|begin| line.strip_prefix(*begin)).unwrap_or_default();
    let name = name.split(|byte| matches!(byte, b'(' | b'"')).next().unwrap_or_default();
    let last = name.rsplit(|byte| *byte == b'.').next().unwrap_or_default();
    name.starts_with(b"steadytext.")
        || last.starts_with(b"steadytext_")
        || (takes_twins && last.starts_with(b"st_"))
}
