//! Behaviour where the system has no more memory.
//!
//! Rust's default is to abort, which in a server's process ends all sessions of the server. Here there are
//! three steps instead:
//!
//! - Allocations whose size comes from a user or a model are made by [`try_vec`], [`try_grow`] or inside
//!   [`fallible`], and a failure is that request's error.
//! - Allocations of crates for a request are made inside [`watched`]: it first tries whether the system has
//!   as much as the work may take, and if memory runs out all the same, a reserve is given back to the
//!   system. The work goes on to its end with the reserve; then its result is dropped and it has failed.
//! - Where the reserve is used up too, a last resort ends the session, or the process that runs the engine,
//!   in order ([`set_last_resort`]). An allocator must not unwind, but it need not return.
//!
//! All this needs [`Allocator`] to be the program's global allocator; without it the first part holds.
#![allow(unsafe_code, reason = "a global allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release};
use std::sync::atomic::{AtomicBool, AtomicPtr};

use crate::Error;

/// Bytes of the reserve. They are never touched, so they take no pages, but they take part of the address
/// space and of the memory that the system has promised.
const RESERVE: Layout = match Layout::from_size_align(16 << 20, 16) {
    Ok(layout) => layout,
    Err(_) => panic!("a size and an alignment"),
};

static RESERVED: AtomicPtr<u8> = AtomicPtr::new(std::ptr::null_mut());
/// Whether [`prepare`] was called: then the reserve is taken again before more work.
static PREPARED: AtomicBool = AtomicBool::new(false);
/// A `fn() -> !`.
static LAST_RESORT: AtomicPtr<()> = AtomicPtr::new(std::ptr::null_mut());
static EXHAUSTED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// The code that runs checks each allocation for failure.
    static FALLIBLE: Cell<bool> = const { Cell::new(false) };
    /// This thread has needed the reserve.
    static DIPPED: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, with a reserve. For `#[global_allocator]`.
#[derive(Debug)]
pub struct Allocator;

// SAFETY: memory comes from the system's allocator, by its rules, and goes back to it. Nothing here unwinds.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        or_reserve(|| unsafe { System.alloc(layout) })
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise.
        or_reserve(|| unsafe { System.alloc_zeroed(layout) })
    }

    unsafe fn dealloc(&self, memory: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(memory, layout) }
    }

    unsafe fn realloc(&self, memory: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise; where it returns null the memory is as it was.
        or_reserve(|| unsafe { System.realloc(memory, layout, size) })
    }
}

#[inline]
fn or_reserve(allocate: impl Fn() -> *mut u8) -> *mut u8 {
    let memory = allocate();
    if memory.is_null() { without_memory(&allocate) } else { memory }
}

#[cold]
fn without_memory(allocate: &dyn Fn() -> *mut u8) -> *mut u8 {
    if FALLIBLE.get() {
        return std::ptr::null_mut();
    }
    let reserved = RESERVED.swap(std::ptr::null_mut(), AcqRel);
    if !reserved.is_null() {
        // SAFETY: it was allocated with this layout, and the swap has made it this thread's.
        unsafe { System.dealloc(reserved, RESERVE) };
    }
    DIPPED.set(true);
    let memory = allocate();
    let resort = LAST_RESORT.load(Acquire);
    if memory.is_null() && !resort.is_null() {
        EXHAUSTED.store(true, Release);
        // SAFETY: only `set_last_resort` writes to it.
        let resort: fn() -> ! = unsafe { std::mem::transmute::<*mut (), fn() -> !>(resort) };
        resort();
    }
    memory
}

/// Sets the function that is called where the system has no memory and the reserve is used up. It is called
/// on any thread, must not need memory, must not unwind, and holds up the thread or ends the process.
pub fn set_last_resort(resort: fn() -> !) {
    LAST_RESORT.store(resort as *mut (), Release);
    let _ = prepare();
}

/// Ends the process at once: nothing is dropped, nothing is flushed, no memory is needed.
pub fn exit_at_once(status: i32) -> ! {
    // SAFETY: it does not return, and reads nothing of the process.
    unsafe { libc::_exit(status) }
}

/// Whether a thread was held up by the last resort.
pub fn is_exhausted() -> bool {
    EXHAUSTED.load(Acquire)
}

/// Takes the reserve, if that is not taken yet. False if the system has no memory for it.
pub fn prepare() -> bool {
    PREPARED.store(true, Release);
    if !RESERVED.load(Acquire).is_null() {
        return true;
    }
    // SAFETY: the layout has a size.
    let memory = unsafe { System.alloc(RESERVE) };
    if memory.is_null() {
        return false;
    }
    let taken = RESERVED.compare_exchange(std::ptr::null_mut(), memory, AcqRel, Acquire).is_ok();
    if !taken {
        // SAFETY: it was allocated above with this layout, and no other thread has it.
        unsafe { System.dealloc(memory, RESERVE) };
    }
    true
}

/// Whether the system would give so many bytes now; they are not touched, so this is no guarantee. The bytes
/// do not come from the allocator, which would keep them, and change its threshold for mapping large pieces.
fn has(bytes: usize) -> bool {
    let (length, protection) = (bytes.max(1), libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: these are new pages, used by nobody else, and unmapped at once.
    unsafe {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        let memory = libc::mmap(std::ptr::null_mut(), length, protection, flags, -1, 0);
        memory != libc::MAP_FAILED && libc::munmap(memory, length) == 0
    }
}

/// Runs code that checks each allocation for failure.
pub(crate) fn fallible<T>(work: impl FnOnce() -> T) -> T {
    let before = FALLIBLE.replace(true);
    let value = work();
    FALLIBLE.set(before);
    value
}

fn out_of_memory(what: &str, bytes: usize) -> Error {
    Error::OutOfMemory { what: what.to_owned(), needed_mb: (bytes as u64).div_ceil(1 << 20), limit_mb: None }
}

/// Runs work that may take about so many bytes for `what`.
///
/// # Errors
/// [`Error::OutOfMemory`] where the system does not have them, or ran out of memory during the work; the
/// result is dropped then.
pub(crate) fn watched<T>(what: &str, bytes: usize, work: impl FnOnce() -> T) -> Result<T, Error> {
    let prepared = !PREPARED.load(Acquire) || prepare();
    if !prepared || !has(bytes) {
        return Err(out_of_memory(what, bytes));
    }
    DIPPED.set(false);
    let value = work();
    if DIPPED.take() {
        drop(value);
        prepare();
        return Err(out_of_memory(what, bytes));
    }
    Ok(value)
}

/// An empty vector with room for `length` elements.
///
/// # Errors
/// [`Error::OutOfMemory`].
pub(crate) fn try_vec<T>(what: &str, length: usize) -> Result<Vec<T>, Error> {
    let mut vector = Vec::new();
    try_grow(what, &mut vector, length)?;
    Ok(vector)
}

/// Makes room for `more` elements.
///
/// # Errors
/// [`Error::OutOfMemory`]; the vector is as it was.
pub(crate) fn try_grow<T>(what: &str, vector: &mut Vec<T>, more: usize) -> Result<(), Error> {
    fallible(|| vector.try_reserve(more))
        .map_err(|_| out_of_memory(what, vector.len().saturating_add(more).saturating_mul(size_of::<T>())))
}

#[cfg(test)]
mod tests {
    use super::{try_grow, try_vec, watched};
    use crate::Error;

    #[test]
    fn what_the_system_does_not_have_is_an_error() {
        let Err(Error::OutOfMemory { what, limit_mb: None, .. }) = try_vec::<u64>("a test", usize::MAX / 64)
        else {
            panic!("more than an address space")
        };
        assert_eq!(what, "a test");
        let mut some = vec![1, 2, 3];
        assert!(try_grow("a test", &mut some, usize::MAX / 64).is_err());
        assert_eq!(some, [1, 2, 3]);
        assert!(watched("a test", usize::MAX / 4, || panic!("it must not run")).is_err());
        assert_eq!(watched("a test", 1 << 20, || 5).unwrap(), 5);
    }
}
