//! Rows that COPY brings. An error that is raised while COPY has a row comes with the beginning of its line as CONTEXT, which says what the row says:
//! to the client, and in the server's log.

use pgrx::pg_sys;

// Declared here because pgrx would give the address of a function of its own.
unsafe extern "C-unwind" {
    fn CopyFromErrorCallback(arg: *mut core::ffi::c_void);
}

/// The contexts of errors as they were, for [`show`].
#[must_use]
pub(crate) struct Hidden(*mut pg_sys::ErrorContextCallback);

/// From now on, errors do not say what COPY was reading, if this was called by it. An error ends that by itself, as it restores the contexts of
/// who catches it; where there is none, [`show`] must end it: hence this is nothing that is done on dropping a value, which errors do too early.
pub(crate) fn hide() -> Hidden {
    // SAFETY: a global of this process; its first entry belongs to a function that has called this one and is alive.
    unsafe {
        let contexts = pg_sys::error_context_stack;
        let is_copy = |callback: unsafe extern "C-unwind" fn(*mut core::ffi::c_void)| {
            callback as usize == CopyFromErrorCallback as *const () as usize
        };
        if !contexts.is_null() && (*contexts).callback.is_some_and(is_copy) {
            pg_sys::error_context_stack = (*contexts).previous;
        }
        Hidden(contexts)
    }
}

/// Errors say again what they said before.
pub(crate) fn show(hidden: Hidden) {
    // SAFETY: whoever was there at `hide` is there still: this is called from the same function.
    unsafe { pg_sys::error_context_stack = hidden.0 };
}
