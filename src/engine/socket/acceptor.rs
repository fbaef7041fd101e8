//! Accepts connections, and refuses those for which there is no room.
//!
//! Invariant: it never waits. At the limit of open files a spare one is given up to take in one connection,
//! tell it so and close it.

use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use rustix::io::Errno;

use super::connection::ClientConnection;
use super::limits::ConnectionRefusal;

/// Time for which nobody is let in when the system has no open file left, not even the spare one.
const NO_DESCRIPTORS: Duration = Duration::from_millis(20);

/// The listening socket, and what is kept for when the process may open no more.
pub(super) struct Acceptor {
    listener: UnixListener,
    spare: Option<OwnedFd>,
    shut_until: Option<Instant>,
}

/// The result of looking for a connection.
pub(super) enum Accepted {
    /// A connection.
    Someone(UnixStream),
    /// One that was refused, as there was no open file for it.
    Refused,
    /// No connection for now.
    Nobody,
}

impl Acceptor {
    pub(super) fn new(listener: UnixListener) -> Acceptor {
        let mut acceptor = Acceptor { listener, spare: None, shut_until: None };
        acceptor.keep_spare();
        acceptor
    }

    /// The descriptor to wait for, unless nobody is let in for a while.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.shut_until.is_none_or(|until| until <= Instant::now()).then(|| self.listener.as_fd())
    }

    /// The time for which nobody is let in.
    pub(super) fn shut_for(&self) -> Option<Duration> {
        let until = self.shut_until?;
        Some(until.saturating_duration_since(Instant::now())).filter(|left| !left.is_zero())
    }

    fn keep_spare(&mut self) {
        if self.spare.is_none() {
            self.spare = rustix::io::fcntl_dupfd_cloexec(&self.listener, 0).ok();
        }
    }

    /// Lets the next one in, or refuses it where the process may open no more files. `full` is what it is
    /// told then.
    pub(super) fn next(&mut self, full: ConnectionRefusal) -> Accepted {
        self.keep_spare();
        match self.accept() {
            Ok(Some(stream)) => Accepted::Someone(stream),
            Ok(None) => Accepted::Nobody,
            Err(error) if is_lack_of_files(&error) => self.refuse(full),
            // The error is that of the client that wanted to connect.
            Err(_) => self.shut(),
        }
    }

    fn refuse(&mut self, full: ConnectionRefusal) -> Accepted {
        if self.spare.take().is_none() {
            return self.shut();
        }
        let accepted = match self.accept() {
            Ok(Some(stream)) => {
                ClientConnection::new(stream).refuse(full);
                Accepted::Refused
            }
            Ok(None) => Accepted::Nobody,
            // Somebody else was faster.
            Err(_) => self.shut(),
        };
        self.keep_spare();
        accepted
    }

    fn shut(&mut self) -> Accepted {
        self.shut_until = Some(Instant::now() + NO_DESCRIPTORS);
        Accepted::Nobody
    }

    fn accept(&self) -> io::Result<Option<UnixStream>> {
        loop {
            match self.listener.accept() {
                Ok((stream, _)) => {
                    stream.set_nonblocking(true)?;
                    return Ok(Some(stream));
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(None),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Whether the process, or the system, can open no more files.
pub(super) fn is_lack_of_files(error: &io::Error) -> bool {
    let code = error.raw_os_error().map(Errno::from_raw_os_error);
    matches!(code, Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS))
}
