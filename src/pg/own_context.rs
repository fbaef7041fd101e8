//! The context of errors that were raised inside the extension's own functions.
//!
//! PL/pgSQL adds each function and each statement between the caller and the error. Those of the extension
//! are of no use to a caller who has made a mistake in an argument, and hide those that are: they are left
//! out, up to the first function that is somebody else's. Everything stays with log_error_verbosity =
//! verbose, for internal errors, which are bugs, and in the processes of the extension.
//!
//! The catalogs cannot be read where an error is raised. The extension's functions are recognized by their
//! names, from the install script (`build.rs`), and by the schema that stands before them.

use std::ffi::CStr;

use super::catalog_cache;
use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};

include!(concat!(env!("OUT_DIR"), "/own_functions.rs"));

/// Beginnings of entries about functions.
const FUNCTIONS: [&[u8]; 2] = [b"PL/pgSQL function ", b"SQL function \""];
/// Beginnings of entries about statements, each of which stands before the entry of its function.
const STATEMENTS: [&[u8]; 3] = [b"SQL statement \"", b"SQL expression \"", b"PL/pgSQL assignment \""];

/// Takes the extension's own functions out of an error's context.
///
/// # Safety
///
/// The error is alive, and goes to the log and the client next.
pub(super) unsafe fn hide(error: *mut pg_sys::ErrorData) {
    // SAFETY: the caller's promise; the context is a text of this error's own that ends with a zero, or NULL.
    // PostgreSQL frees it by its address where the error ends the process, so that what is left is moved to
    // its beginning.
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
        let (own, length) = (length_of_own(context), context.len());
        if own == length {
            (*error).context = std::ptr::null_mut();
        } else {
            std::ptr::copy((*error).context.add(own), (*error).context, length - own + 1);
        }
    }
}

/// Bytes at the beginning of a context that are about the extension's functions.
fn length_of_own(context: &[u8]) -> usize {
    let begins = |line: &[u8], with: &[&[u8]]| with.iter().any(|with| line.starts_with(with));
    if !begins(context, &FUNCTIONS) && !begins(context, &STATEMENTS) {
        // The context begins with something else, such as what COPY was reading.
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

/// Whether an entry is about a function of the extension's. The twins' names, which others have as well,
/// count behind others.
///
/// PL/pgSQL writes the schema before the name of a function that is not in the caller's search_path; SQL only
/// writes the name.
fn is_own(line: &[u8], takes_twins: bool) -> bool {
    let name = match line.strip_prefix(FUNCTIONS[0]) {
        Some(signature) => signature.split(|byte| *byte == b'(').next(),
        None => line.strip_prefix(FUNCTIONS[1]).and_then(|name| name.split(|byte| *byte == b'"').next()),
    };
    let name = name.unwrap_or_default();
    let (schema, name) = match name.iter().rposition(|byte| *byte == b'.') {
        Some(dot) => (Some(&name[..dot]), &name[dot + 1..]),
        None => (None, name),
    };
    if schema == Some(b"steadytext".as_slice()) {
        return true;
    }
    let is_of_api = |name: &[u8]| OWN_FUNCTIONS.binary_search_by(|own| own.as_bytes().cmp(name)).is_ok();
    let twin_of =
        |name: &[u8]| name.strip_prefix(b"st_").map(|rest| [b"steadytext_".as_slice(), rest].concat());
    (is_of_api(name) || takes_twins && twin_of(name).is_some_and(|long| is_of_api(&long)))
        && schema.is_none_or(catalog_cache::may_be_schema)
}
