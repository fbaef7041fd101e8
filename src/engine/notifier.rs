//! Wakes a thread that sleeps on file descriptors when something has been sent to it on a channel.
//!
//! It is the self-pipe of the [self-pipe trick](https://cr.yp.to/docs/selfpipe.html), with a flag that keeps
//! a receiver that is behind from being written to more than once.

use std::io::{Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The receiving end: a descriptor that becomes readable once somebody has notified it.
#[derive(Debug)]
pub struct Notifier {
    receiver: UnixStream,
    sender: Arc<UnixStream>,
    notified: Arc<AtomicBool>,
}

impl Notifier {
    /// A notifier that nobody has notified yet.
    ///
    /// # Errors
    /// The system's, when it has no more descriptors.
    pub fn new() -> std::io::Result<Notifier> {
        let (receiver, sender) = UnixStream::pair()?;
        receiver.set_nonblocking(true)?;
        sender.set_nonblocking(true)?;
        Ok(Notifier { receiver, sender: Arc::new(sender), notified: Arc::default() })
    }

    /// The function that notifies it. It may be called from any thread and never blocks.
    pub fn handle(&self) -> Arc<dyn Fn() + Send + Sync> {
        let (sender, notified) = (Arc::clone(&self.sender), Arc::clone(&self.notified));
        Arc::new(move || {
            if !notified.swap(true, Ordering::AcqRel) {
                // A socket that is full makes the receiver readable already.
                let _ = (&*sender).write(&[1]);
            }
        })
    }

    /// Resets it, so that the next notification is seen. The caller resets it before it looks at what has
    /// come.
    pub fn reset(&self) {
        let mut bytes = [0; 16];
        while matches!((&self.receiver).read(&mut bytes), Ok(count) if count > 0) {}
        // A store would not do, because it may become visible only after what the caller reads next.
        self.notified.swap(false, Ordering::AcqRel);
    }
}

impl AsRawFd for Notifier {
    fn as_raw_fd(&self) -> RawFd {
        self.receiver.as_raw_fd()
    }
}

impl AsFd for Notifier {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.receiver.as_fd()
    }
}
