//! A bell between threads: whoever sleeps on file descriptors hears that something is in a channel.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The listening end: a descriptor that can be read once the bell was rung.
#[derive(Debug)]
pub struct Bell {
    listener: UnixStream,
    ringer: Arc<UnixStream>,
    rung: Arc<AtomicBool>,
}

impl Bell {
    /// A bell that is silent.
    ///
    /// # Errors
    /// The system's, when it has no more descriptors.
    pub fn new() -> std::io::Result<Bell> {
        let (listener, ringer) = UnixStream::pair()?;
        listener.set_nonblocking(true)?;
        ringer.set_nonblocking(true)?;
        Ok(Bell { listener, ringer: Arc::new(ringer), rung: Arc::default() })
    }

    /// What rings it, from any thread; never blocks.
    pub fn ringer(&self) -> Arc<dyn Fn() + Send + Sync> {
        let (ringer, rung) = (Arc::clone(&self.ringer), Arc::clone(&self.rung));
        Arc::new(move || {
            if !rung.swap(true, Ordering::AcqRel) {
                // A full socket is a bell that rings already.
                let _ = (&*ringer).write(&[1]);
            }
        })
    }

    /// Makes it ring anew for what comes from now on: call it before looking at what has come.
    pub fn silence(&self) {
        let mut rings = [0; 16];
        while matches!((&self.listener).read(&mut rings), Ok(count) if count > 0) {}
        // Not a store, which may become visible only after what the caller reads next.
        self.rung.swap(false, Ordering::AcqRel);
    }
}

impl AsRawFd for Bell {
    fn as_raw_fd(&self) -> RawFd {
        self.listener.as_raw_fd()
    }
}

impl AsFd for Bell {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }
}
