//! Columns whose types PostgreSQL keeps because a definition of a vectorizer or an enrichment lists them in
//! its triggers. Its error names the trigger; a hint is added here.

use std::ffi::CStr;

use pgrx::pg_sys;

/// The hint of the error. It must not have characters that a format string would interpret, such as `%`.
pub(super) const HINT: &CStr = c"A vectorizer or an enrichment knows its columns by this trigger. In one transaction, drop the trigger, change the type, and name the columns anew: steadytext_alter_vectorizer(…, columns => …), or steadytext_alter_enrichment(…, prompt => …).";

/// Whether an error is about the type of a column that a trigger of a definition lists.
///
/// # Safety
///
/// The error is alive.
pub(super) unsafe fn is_kept(error: *const pg_sys::ErrorData) -> bool {
    // SAFETY: the caller's promise; its texts end with a zero.
    unsafe {
        if (*error).funcname.is_null() || (*error).detail.is_null() || !(*error).hint.is_null() {
            return false;
        }
        // The function in which it is raised depends on the version of PostgreSQL.
        let from = CStr::from_ptr((*error).funcname);
        [c"ATExecAlterColumnType", c"RememberAllDependentForRebuilding"].contains(&from)
            && names_own_trigger(&CStr::from_ptr((*error).detail).to_string_lossy())
    }
}

/// Whether a text contains the name of a trigger as `steadytext.vectorizer_trigger()` makes it:
/// `steadytext_`, eight characters of the definition's number, and its purpose.
fn names_own_trigger(detail: &str) -> bool {
    detail.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_').any(|word| {
        word.strip_prefix("steadytext_").and_then(|rest| rest.split_once('_')).is_some_and(
            |(number, what)| {
                number.len() == 8
                    && number.bytes().all(|byte| byte.is_ascii_hexdigit())
                    && ["rows", "filled", "hashed"].contains(&what)
            },
        )
    })
}
