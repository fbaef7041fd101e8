//! Open files that PostgreSQL does not open itself, but has to know of: it keeps files of its own open as long as there is room for
//! them, and gives some up where others need it.

use pgrx::pg_sys;

/// An open file of this process that is counted. Dropping it gives its place back.
#[derive(Debug)]
pub(crate) struct Descriptor(());

impl Descriptor {
    /// A place for one more open file. `None` where this process has too many already: PostgreSQL allows a third of what
    /// it may open in all.
    pub(crate) fn acquire() -> Option<Descriptor> {
        // SAFETY: counts, and closes files that PostgreSQL can open again; in the main thread.
        unsafe { pg_sys::AcquireExternalFD() }.then_some(Descriptor(()))
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        // SAFETY: counts; it was acquired before.
        unsafe { pg_sys::ReleaseExternalFD() };
    }
}
