//! A slice that the threads of a job write to, each in ranges of its own.
#![allow(unsafe_code, reason = "threads write disjoint ranges of one slice")]

use std::marker::PhantomData;
use std::ops::Range;

/// A mutable slice that threads write to in disjoint ranges.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    length: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: threads get at the elements only through `range`, whose callers promise disjoint ranges.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Borrows the slice for as long as its parts are in use.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Disjoint { start: slice.as_mut_ptr(), length: slice.len(), borrow: PhantomData }
    }

    /// Number of elements.
    pub(crate) fn len(&self) -> usize {
        self.length
    }

    /// The address of an element, to fetch it into the cache.
    pub(crate) fn address(&self, index: usize) -> *const T {
        self.start.wrapping_add(index)
    }

    /// A part of the slice; panics when it is out of bounds.
    ///
    /// # Safety
    /// While the result lives, no other range that overlaps it may be taken.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that ranges are disjoint")]
    pub(crate) unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.length, "range {range:?} of {}", self.length);
        // SAFETY: within the borrowed slice, and not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}
