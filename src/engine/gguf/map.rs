//! The bytes of a model: a file mapped into memory, or bytes compiled into the library.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::path::Path;

use crate::mapping::Mapping;

/// Immutable bytes that stay where they are for as long as this value lives.
#[derive(Debug)]
pub(super) enum GgufBytes {
    /// Pages of a file, shared with every process that maps it.
    Mapped(Mapping),
    /// Bytes of the library itself.
    Static(&'static [u8]),
}

impl GgufBytes {
    /// Maps a regular file read-only. An empty file gives no bytes; anything else but a regular file (a
    /// directory, a pipe that would block) is an error.
    pub(super) fn map(path: &Path) -> io::Result<GgufBytes> {
        // Checked before opening, because opening a named pipe waits for its writer; and again afterwards,
        // for the file that was actually opened.
        regular(&std::fs::metadata(path)?)?;
        let file = File::open(path)?;
        let metadata = file.metadata()?;
        regular(&metadata)?;
        if metadata.len() == 0 {
            return Ok(GgufBytes::Static(&[]));
        }
        Mapping::file(&file).map(GgufBytes::Mapped)
    }

    /// The mapping, if it is a file's.
    pub(super) fn mapping(&self) -> Option<&Mapping> {
        match self {
            GgufBytes::Mapped(mapping) => Some(mapping),
            GgufBytes::Static(_) => None,
        }
    }
}

impl Deref for GgufBytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match self {
            GgufBytes::Mapped(mapping) => mapping,
            GgufBytes::Static(bytes) => bytes,
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
