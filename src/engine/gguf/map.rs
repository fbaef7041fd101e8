//! The bytes of a model: a file mapped into memory, or bytes compiled into the library.
//!
//! Invariant: this is the only file of the reader with `unsafe` in it.
#![allow(unsafe_code, reason = "mapping a file is unsafe in every crate that offers it")]

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use memmap2::Mmap;

/// Immutable bytes that stay where they are for as long as this value lives.
#[derive(Debug)]
pub(super) enum Bytes {
    /// Pages of a file, shared with every process that maps it.
    Mapped(Mmap),
    /// Bytes of the library itself.
    Static(&'static [u8]),
}

impl Bytes {
    /// Maps a regular file read-only. An empty file gives no bytes; whatever else is not a regular file
    /// (a directory, a pipe that would block) is an error.
    pub(super) fn map(path: &Path) -> io::Result<Bytes> {
        // Asked before opening, because opening a named pipe waits for its writer; and again afterwards,
        // of what was really opened.
        regular(&std::fs::metadata(path)?)?;
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        regular(&metadata)?;
        if metadata.len() == 0 {
            return Ok(Bytes::Static(&[]));
        }
        // SAFETY: the mapping is private and read-only, and nobody in this process writes to the file. What
        // another process writes to it shows up as changed bytes; the reader copies no length or offset
        // out of the mapping twice, so that a check holds for the value that is used. A file that is cut
        // short while it is mapped raises SIGBUS on access, which no reader of mapped files can rule out.
        let map = unsafe { Mmap::map(&file)? };
        Ok(Bytes::Mapped(map))
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            Bytes::Mapped(map) => map,
            Bytes::Static(bytes) => bytes,
        }
    }
}

fn regular(metadata: &std::fs::Metadata) -> io::Result<()> {
    if metadata.is_file() {
        Ok(())
    } else {
        Err(io::Error::new(io::ErrorKind::InvalidInput, "it is not a regular file"))
    }
}
