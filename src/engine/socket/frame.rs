//! Messages as bytes: buffers for arriving and for outgoing ones.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::MAX_MESSAGE_BYTES;
use crate::Error;
use crate::memory::{try_grow, watched};

/// The purpose of the memory, as errors name it.
const MESSAGE: &str = "a message";

/// Length of the length.
const HEADER_BYTES: usize = 4;
/// Bytes read at once.
const READ_BYTES: usize = 64 << 10;
/// Beyond this, memory that is no longer needed is given back.
const KEPT_BYTES: usize = 256 << 10;

/// Bytes that have arrived, from `taken` on not yet decoded.
#[derive(Debug, Default)]
pub(super) struct Incoming {
    bytes: Vec<u8>,
    taken: usize,
}

impl Incoming {
    /// Reads once, without waiting. False if the other end has closed.
    ///
    /// # Errors
    /// The connection's.
    pub(super) fn read(&mut self, stream: &UnixStream) -> io::Result<bool> {
        let mut buffer = [0; READ_BYTES];
        loop {
            match (&*stream).read(&mut buffer) {
                Ok(0) => return Ok(false),
                Ok(count) => {
                    try_grow(MESSAGE, &mut self.bytes, count).map_err(no_memory)?;
                    self.bytes.extend_from_slice(&buffer[..count]);
                    return Ok(true);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(true),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }

    /// The next message that has arrived as a whole.
    ///
    /// # Errors
    /// `InvalidData` for what is no message; there is no going on after that.
    pub(super) fn next<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let rest = &self.bytes[self.taken..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER_BYTES>() else {
            self.forget_taken();
            return Ok(None);
        };
        let length = u32::from_le_bytes(*header) as usize;
        if length > MAX_MESSAGE_BYTES {
            return Err(malformed());
        }
        let Some(message) = rest.get(..length) else {
            self.forget_taken();
            return Ok(None);
        };
        // Texts are copied out of it, and nothing else in it is larger than what stands for it.
        let read = watched(MESSAGE, 2 * length, || postcard::take_from_bytes(message));
        match read.map_err(no_memory)? {
            Ok((message, [])) => {
                self.taken += HEADER_BYTES + length;
                Ok(Some(message))
            }
            Ok(_) | Err(_) => Err(malformed()),
        }
    }

    /// Bytes that have arrived and were not taken.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.taken
    }

    /// Memory that it takes.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    fn forget_taken(&mut self) {
        self.bytes.drain(..std::mem::take(&mut self.taken));
        if self.bytes.is_empty() && self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
    }
}

fn no_memory(error: Error) -> io::Error {
    io::Error::new(ErrorKind::OutOfMemory, error)
}

fn malformed() -> io::Error {
    io::Error::new(ErrorKind::InvalidData, "the other end sent something that is no message")
}

/// Bytes to be sent, from `sent` on not yet written.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    bytes: Vec<u8>,
    sent: usize,
}

impl Outgoing {
    /// Adds a message.
    ///
    /// # Errors
    /// `InvalidInput` for one that is too long, which is not added.
    pub(super) fn push<T: Serialize>(&mut self, message: &T) -> io::Result<()> {
        let too_long = || {
            io::Error::new(
                ErrorKind::InvalidInput,
                format!("a message has more than {} MB", MAX_MESSAGE_BYTES >> 20),
            )
        };
        let message = watched(MESSAGE, KEPT_BYTES, || postcard::to_allocvec(message)).map_err(no_memory)?;
        let message = message.map_err(io::Error::other)?;
        let length = u32::try_from(message.len()).map_err(|_| too_long())?;
        if message.len() > MAX_MESSAGE_BYTES {
            return Err(too_long());
        }
        try_grow(MESSAGE, &mut self.bytes, HEADER_BYTES + message.len()).map_err(no_memory)?;
        self.bytes.extend_from_slice(&length.to_le_bytes());
        self.bytes.extend_from_slice(&message);
        Ok(())
    }

    /// Sends as much as goes without waiting.
    ///
    /// # Errors
    /// The connection's.
    pub(super) fn flush(&mut self, stream: &UnixStream) -> io::Result<()> {
        while self.sent < self.bytes.len() {
            match (&*stream).write(&self.bytes[self.sent..]) {
                Ok(count) => self.sent += count,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        self.sent = 0;
        self.bytes.clear();
        if self.bytes.capacity() > KEPT_BYTES {
            self.bytes = Vec::new();
        }
        Ok(())
    }

    /// Memory that it takes.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// Bytes that are still to be sent.
    pub(super) fn len(&self) -> usize {
        self.bytes.len() - self.sent
    }
}
