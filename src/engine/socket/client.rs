//! A client's end of the socket. It never blocks: its owner waits on the descriptor as it sees fit.

use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::frame::{Incoming, Outgoing};
use super::{Caller, FromEngine, ToEngine};
use crate::{Request, Standing};

/// A connection to a [`super::Server`]. Dropping it cancels what was submitted.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    incoming: Incoming,
    outgoing: Outgoing,
    /// The other end has closed; what it had sent can still be taken.
    closed: bool,
    /// Whether the other end takes nothing any more; [`Client::receive`] finds the reason.
    deaf: bool,
}

impl Client {
    /// Connects as nobody in particular.
    ///
    /// # Errors
    /// As [`Client::connect_as`].
    pub fn connect(path: &Path) -> io::Result<Client> {
        let caller = Caller { process: std::process::id(), ..Caller::default() };
        Client::connect_as(path, caller)
    }

    /// Connects.
    ///
    /// # Errors
    /// `NotFound` and `ConnectionRefused` where nobody serves, `WouldBlock` where too many connect at once;
    /// the system's where the process may open no more files.
    pub fn connect_as(path: &Path, caller: Caller) -> io::Result<Client> {
        // The standard library's way would wait for a server that does not accept.
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
        let mut client = Client {
            stream: UnixStream::from(socket),
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            closed: false,
            deaf: false,
        };
        client.send(&ToEngine::Hello(caller))?;
        Ok(client)
    }

    /// Hands a request over; what does not go at once goes with [`Client::flush`].
    ///
    /// # Errors
    /// `InvalidInput` for a request that is too long; others are the connection's.
    pub fn submit(&mut self, request: &Request) -> io::Result<()> {
        self.submit_as(request, Standing::default())
    }

    /// As [`Client::submit`], for somebody in particular.
    ///
    /// # Errors
    /// The same.
    pub fn submit_as(&mut self, request: &Request, standing: Standing) -> io::Result<()> {
        self.send(&ToEngine::Submit(Cow::Borrowed(request), standing))
    }

    /// Says that a piece of the text of a request that is paced was read: it pauses when some were not.
    ///
    /// # Errors
    /// The connection's.
    pub fn read(&mut self, key: u64) -> io::Result<()> {
        self.send(&ToEngine::Read { key })
    }

    /// Cancels a request; its last event comes all the same.
    ///
    /// # Errors
    /// The connection's.
    pub fn cancel(&mut self, key: u64) -> io::Result<()> {
        self.send(&ToEngine::Cancel { key })
    }

    /// Asks for the loaded models.
    ///
    /// # Errors
    /// The connection's.
    pub fn ask_for_models(&mut self) -> io::Result<()> {
        self.send(&ToEngine::ListModels)
    }

    /// Asks for the state of the engine, now and whenever it has changed.
    ///
    /// # Errors
    /// The connection's.
    pub fn watch(&mut self) -> io::Result<()> {
        self.send(&ToEngine::Watch)
    }

    fn send(&mut self, message: &ToEngine<'_>) -> io::Result<()> {
        self.outgoing.push(message)?;
        self.flush()
    }

    /// Sends what could not be sent before. Where the other end has closed that is found by
    /// [`Client::receive`], which first gives what it has said.
    ///
    /// # Errors
    /// The connection's.
    pub fn flush(&mut self) -> io::Result<()> {
        if self.deaf {
            return Ok(());
        }
        match self.outgoing.flush(&self.stream) {
            Err(error) if matches!(error.kind(), ErrorKind::BrokenPipe | ErrorKind::ConnectionReset) => {
                self.deaf = true;
                Ok(())
            }
            flushed => flushed,
        }
    }

    /// Whether something waits until the descriptor can be written.
    pub fn wants_to_write(&self) -> bool {
        !self.deaf && self.outgoing.len() > 0
    }

    /// The next message, if one is there.
    ///
    /// # Errors
    /// The connection's; `UnexpectedEof` when the other end has gone.
    pub fn receive(&mut self) -> io::Result<Option<FromEngine>> {
        loop {
            if let Some(message) = self.incoming.next()? {
                return Ok(Some(message));
            }
            if self.closed {
                return Err(ErrorKind::UnexpectedEof.into());
            }
            let before = self.incoming.len();
            self.closed = !self.incoming.read(&self.stream)?;
            if !self.closed && self.incoming.len() == before {
                return Ok(None);
            }
        }
    }
}

impl AsRawFd for Client {
    fn as_raw_fd(&self) -> RawFd {
        self.stream.as_raw_fd()
    }
}
