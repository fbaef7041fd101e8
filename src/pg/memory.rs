//! Memory of PostgreSQL's for what is made again and again in one call.

use pgrx::pg_sys;

/// Runs `work` in a memory context of its own, which is gone afterwards: what `work` returns must not lie in it. Without
/// this, everything that a function makes stays until its statement ends.
pub(crate) fn in_scratch<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: the context is deleted when nothing is in use that lies in it; after an error the abort deletes it, with its parent.
    unsafe {
        let scratch = pg_sys::AllocSetContextCreateExtended(
            pg_sys::CurrentMemoryContext,
            c"pg_steadytext scratch".as_ptr(),
            pg_sys::ALLOCSET_DEFAULT_MINSIZE as pg_sys::Size,
            pg_sys::ALLOCSET_DEFAULT_INITSIZE as pg_sys::Size,
            pg_sys::ALLOCSET_DEFAULT_MAXSIZE as pg_sys::Size,
        );
        let before = pg_sys::MemoryContextSwitchTo(scratch);
        let value = work();
        pg_sys::MemoryContextSwitchTo(before);
        pg_sys::MemoryContextDelete(scratch);
        value
    }
}
