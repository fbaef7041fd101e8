//! Protection from mapped files that lose their pages: cut short by somebody, or unreadable on the disk.
//!
//! Reading such a page raises SIGBUS, which would end the process, and with it all sessions of a PostgreSQL
//! server. The handler here puts zeros in the place of the whole mapping and marks it as lost; whoever
//! computes with it looks at the mark before the result is used. Signals at other addresses go to the handler
//! that was there before.
//!
//! Invariant: the handler touches atomics and calls mmap, sigaction and raise, nothing else; all of them may
//! be called in a signal handler.

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicPtr, AtomicUsize, Ordering};

/// Most mapped files of a process at a time.
const SLOTS: usize = 1024;

/// A watched range of addresses.
struct WatchedRange {
    /// Odd while the slot is being changed, so that the handler does not mix two ranges.
    version: AtomicUsize,
    taken: AtomicBool,
    /// 0 where there is no range.
    start: AtomicUsize,
    end: AtomicUsize,
    lost: AtomicBool,
}

static WATCHED: [WatchedRange; SLOTS] = [const {
    WatchedRange {
        version: AtomicUsize::new(0),
        taken: AtomicBool::new(false),
        start: AtomicUsize::new(0),
        end: AtomicUsize::new(0),
        lost: AtomicBool::new(false),
    }
}; SLOTS];

/// The handler of SIGBUS before this one; null until this one is installed.
static PREVIOUS: AtomicPtr<libc::sigaction> = AtomicPtr::new(ptr::null_mut());

impl WatchedRange {
    fn set(&self, start: usize, end: usize) {
        self.version.fetch_add(1, Ordering::SeqCst);
        self.start.store(start, Ordering::SeqCst);
        self.end.store(end, Ordering::SeqCst);
        self.lost.store(false, Ordering::SeqCst);
        self.version.fetch_add(1, Ordering::SeqCst);
    }

    /// The range, if it holds the address. A slot that is being changed belongs to a mapping that nobody
    /// reads.
    fn range_of(&self, address: usize) -> Option<(usize, usize)> {
        let version = self.version.load(Ordering::SeqCst);
        let (start, end) = (self.start.load(Ordering::SeqCst), self.end.load(Ordering::SeqCst));
        let steady = version.is_multiple_of(2) && self.version.load(Ordering::SeqCst) == version;
        (steady && start != 0 && (start..end).contains(&address)).then_some((start, end))
    }
}

/// A range of addresses that is watched for as long as this value lives. It must end before the mapping does.
#[derive(Debug)]
pub(super) struct RangeWatch(usize);

impl RangeWatch {
    /// Watches a mapping of a file, whole pages from `start` on.
    ///
    /// # Errors
    /// An error if too many files are mapped, or the handler cannot be installed.
    pub(super) fn new(start: usize, length: usize) -> io::Result<RangeWatch> {
        install()?;
        let taken = |slot: &WatchedRange| {
            slot.taken.compare_exchange(false, true, Ordering::SeqCst, Ordering::SeqCst).is_ok()
        };
        let index =
            WATCHED.iter().position(taken).ok_or_else(|| io::Error::other("too many files are mapped"))?;
        WATCHED[index].set(start, start + length);
        Ok(RangeWatch(index))
    }

    /// Whether a page could not be read. Zeros are in the place of all pages then.
    pub(super) fn lost(&self) -> bool {
        WATCHED[self.0].lost.load(Ordering::SeqCst)
    }
}

impl Drop for RangeWatch {
    fn drop(&mut self) {
        WATCHED[self.0].set(0, 0);
        WATCHED[self.0].taken.store(false, Ordering::SeqCst);
    }
}

/// Installs the handler once; whoever comes later finds what the first one found.
fn install() -> io::Result<()> {
    static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
    let installed = INSTALLED.get_or_init(|| {
        let mut previous = MaybeUninit::<libc::sigaction>::zeroed();
        let failed = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL);
        // SAFETY: asks for the action without changing it; a zeroed structure is a valid one.
        let previous = unsafe {
            if libc::sigaction(libc::SIGBUS, ptr::null(), previous.as_mut_ptr()) != 0 {
                return Err(failed());
            }
            previous.assume_init()
        };
        // Before the handler may run, which reads it; never freed.
        PREVIOUS.store(Box::into_raw(Box::new(previous)), Ordering::SeqCst);
        let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) = on_sigbus;
        // SAFETY: the handler has the signature that SA_SIGINFO asks for.
        unsafe {
            let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
            action.sa_sigaction = handler as usize;
            // On the alternate stack where a thread has one, as the handler that was there may need it.
            action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_RESTART;
            libc::sigemptyset(&mut action.sa_mask);
            if libc::sigaction(libc::SIGBUS, &action, ptr::null_mut()) != 0 {
                return Err(failed());
            }
        }
        Ok(())
    });
    installed.map_err(io::Error::from_raw_os_error)
}

/// Lets SIGBUS through on the calling thread: a thread that blocks it would be ended together with its
/// process.
pub(crate) fn unblock() {
    // SAFETY: changes the mask of the calling thread only.
    unsafe {
        let mut set = MaybeUninit::<libc::sigset_t>::zeroed().assume_init();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGBUS);
        libc::pthread_sigmask(libc::SIG_UNBLOCK, &set, ptr::null_mut());
    }
}

extern "C" fn on_sigbus(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel passes a valid structure. Codes above 0 are its own: then there is an address.
    let address = unsafe { if (*info).si_code > 0 { (*info).si_addr() as usize } else { 0 } };
    if address == 0 || !replace(address) {
        chain(signal, info, context);
    }
}

/// Puts zeros in the place of the mapping that holds the address; false where there is none, or no zeros.
fn replace(address: usize) -> bool {
    for slot in &WATCHED {
        let Some((start, end)) = slot.range_of(address) else { continue };
        slot.lost.store(true, Ordering::SeqCst);
        // SAFETY: the range is a read-only mapping of a file, registered by its owner, and the thread that
        // was interrupted is reading it, so that it lives. Readers find other bytes there, as they may in any
        // file that somebody writes to. errno is put back for the code that was interrupted.
        return unsafe {
            let errno = libc::__errno_location();
            let before = *errno;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
            let zeros = libc::mmap(start as *mut c_void, end - start, libc::PROT_READ, flags, -1, 0);
            *errno = before;
            zeros != libc::MAP_FAILED
        };
    }
    false
}

/// Does what was done on SIGBUS before.
fn chain(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: stored before the handler was installed, and never changed or freed.
    let previous = unsafe { &*PREVIOUS.load(Ordering::SeqCst) };
    match previous.sa_sigaction {
        libc::SIG_DFL => default(signal, info),
        // The kernel does not let a faulting instruction go on either.
        // SAFETY: as in `on_sigbus`.
        libc::SIG_IGN => unsafe {
            if (*info).si_code > 0 {
                default(signal, info);
            }
        },
        handler if previous.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: the flag says that it has this signature.
            let handler = unsafe {
                std::mem::transmute::<usize, extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void)>(handler)
            };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: without the flag it has this signature.
            let handler = unsafe { std::mem::transmute::<usize, extern "C" fn(c_int)>(handler) };
            handler(signal);
        }
    }
}

/// Ends the process by the signal: at once where somebody sent it, else when the instruction faults again.
fn default(signal: c_int, info: *mut libc::siginfo_t) {
    // SAFETY: these may be called in a signal handler; the structure is the kernel's.
    unsafe {
        let mut action = MaybeUninit::<libc::sigaction>::zeroed().assume_init();
        action.sa_sigaction = libc::SIG_DFL;
        libc::sigaction(signal, &action, ptr::null_mut());
        if (*info).si_code <= 0 {
            libc::raise(signal);
        }
    }
}
