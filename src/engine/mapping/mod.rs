//! Memory that is mapped: files to be read, and anonymous memory that is filled once.
//!
//! Invariant: a mapping that has become a [`Mapping`] is read-only and stays where it is until it is dropped.
#![allow(unsafe_code, reason = "mapping a file is unsafe in every crate that offers it; signal handlers")]

mod sigbus;
#[cfg(test)]
mod tests;

use std::fs::{File, Metadata};
use std::io;
use std::ops::Deref;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use memmap2::{Advice, Mmap, MmapMut, UncheckedAdvice};
use serde::{Deserialize, Serialize};

use sigbus::RangeWatch;
pub(crate) use sigbus::unblock as unblock_sigbus;

/// The identity and the state of a file: two files of the same identity have the same content, unless
/// somebody set the clock or the file's time back on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileId {
    /// The device that it is on.
    pub device: u64,
    /// Its number there.
    pub inode: u64,
    /// Bytes.
    pub size: u64,
    /// Time of the last modification: whole seconds since the epoch,
    pub modified_s: i64,
    /// and nanoseconds.
    pub modified_ns: i64,
}

impl FileId {
    /// The file at a path, now.
    ///
    /// # Errors
    /// The system's.
    pub fn of_path(path: &Path) -> io::Result<FileId> {
        Ok(FileId::of(&std::fs::metadata(path)?))
    }

    /// The identity of two files together, of which the order matters.
    #[must_use]
    pub(crate) fn and(&self, other: &FileId) -> FileId {
        let modified = [other.modified_s as u64, other.modified_ns as u64];
        let mixed = [other.device, other.inode, other.size].into_iter().chain(modified);
        FileId {
            device: self.device,
            // Everything goes in here: the size alone says little, and times may go back.
            inode: mixed.fold(self.inode, |mixed, number| (mixed ^ number).wrapping_mul(0x100_0000_01b3)),
            size: self.size.wrapping_add(other.size),
            modified_s: self.modified_s,
            modified_ns: self.modified_ns,
        }
    }

    pub(crate) fn of(metadata: &Metadata) -> FileId {
        FileId {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.len(),
            modified_s: metadata.mtime(),
            modified_ns: metadata.mtime_nsec(),
        }
    }
}

/// Bytes in mapped memory, read-only.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// Before the mapping itself, as it ends first. None for anonymous memory.
    watch: Option<RangeWatch>,
    map: Mmap,
    file: Option<FileId>,
}

impl Mapping {
    /// Maps a file that is not empty. Its pages are shared with every process that maps it.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn file(file: &File) -> io::Result<Mapping> {
        let id = FileId::of(&file.metadata()?);
        let length = usize::try_from(id.size).map_err(|_| io::ErrorKind::FileTooLarge)?;
        // SAFETY: the mapping is read-only, and nobody in this process writes to the file. What another
        // process writes to it shows up as changed bytes; readers copy no length or offset out of the mapping
        // twice, so that a check holds for the value that is used. Pages that are gone are zeros (`sigbus`).
        let map = unsafe { memmap2::MmapOptions::new().len(length).map(file)? };
        let watch =
            RangeWatch::new(map.as_ptr() as usize, length.next_multiple_of(rustix::param::page_size()))?;
        Ok(Mapping { watch: Some(watch), map, file: Some(id) })
    }

    /// The file at the time it was mapped; None for anonymous memory.
    pub(crate) fn file_id(&self) -> Option<FileId> {
        self.file
    }

    /// Whether a page of the file could not be read, because the file was cut short or the disk failed. All
    /// bytes read as zeros then, or already were such when they were used last.
    pub(crate) fn lost(&self) -> bool {
        self.watch.as_ref().is_some_and(RangeWatch::lost)
    }

    /// Tells the system that all of it will be read soon.
    pub(crate) fn will_need(&self) {
        // Advice: without it pages are read when they are touched.
        let _ = self.map.advise(Advice::WillNeed);
    }

    /// Gives back the pages that hold `part`, which lies in a mapped file; whoever reads them gets them from
    /// the file again. Does nothing to anonymous memory, which would lose its content.
    pub(crate) fn release(&self, part: &[u8]) {
        let start = (part.as_ptr() as usize).wrapping_sub(self.map.as_ptr() as usize);
        if self.file.is_none() || start > self.map.len() || part.len() > self.map.len() - start {
            return;
        }
        // SAFETY: the mapping is a read-only one of a file, so that nothing written to it can be lost.
        let _ = unsafe { self.map.unchecked_advise_range(UncheckedAdvice::DontNeed, start, part.len()) };
    }
}

impl Deref for Mapping {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.map
    }
}

/// Anonymous memory, zeroed, to be filled.
#[derive(Debug)]
pub(crate) struct Blank(MmapMut);

impl Blank {
    /// Memory of `length` bytes, at least one page. Nothing is taken from the system before it is written to.
    ///
    /// # Errors
    /// An error if the system does not have or grant it.
    pub(crate) fn new(length: usize) -> io::Result<Blank> {
        let map = MmapMut::map_anon(length.max(1))?;
        // Advice: large pages are read faster.
        #[cfg(target_os = "linux")]
        let _ = map.advise(Advice::HugePage);
        Ok(Blank(map))
    }

    /// The bytes, to be written.
    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        &mut self.0
    }

    /// Ends the writing.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn finish(self) -> io::Result<Mapping> {
        Ok(Mapping { watch: None, map: self.0.make_read_only()?, file: None })
    }
}
