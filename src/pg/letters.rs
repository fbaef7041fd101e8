//! Answers on their way from the process that got them to the worker that may write them down: a box of letters in shared
//! memory, one pile per database.
//!
//! A synchronous call must not write, and need not wait until somebody has: it posts what it got. What is too long, or finds
//! the box full, is counted and forgotten; the next one computes it again.
//!
//! Invariant: everything in the box is read and written under its lock, and all zeros is an empty box. A slot leaves its database under
//! that lock too, so that no letter is ever in the pile of another database than its writer's.

use std::cell::UnsafeCell;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

use super::catalog;
use super::shmem::{self, Content, Part, SLOTS, Slot};
use super::slots;

const CHUNKS: usize = 1024;
const CHUNK_BYTES: usize = 4080;
/// Longest letter: what it takes must leave room for others.
pub(crate) const MAX_LETTER_BYTES: usize = 64 * CHUNK_BYTES;
/// Chunks that one database may fill.
const MAX_CHUNKS_OF_ONE: u32 = CHUNKS as u32 / 2;

/// The box.
#[repr(C)]
pub(crate) struct LetterBox {
    inner: UnsafeCell<Inner>,
}

// SAFETY: `inner` is only reached through `locked`, which holds the lock that all processes share.
unsafe impl Sync for LetterBox {}
// SAFETY: zeros are a box without letters.
unsafe impl Content for LetterBox {}

pub(super) static BOX: Part<LetterBox> = Part::new();

/// Chunks are linked by their index, counted from 1; 0 is none.
#[repr(C)]
struct Inner {
    /// The first of those that were given back.
    free: u32,
    /// How many were ever taken; the others need no link.
    begun: u32,
    piles: [Pile; SLOTS],
    chunks: [Chunk; CHUNKS],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Pile {
    first: u32,
    last: u32,
    chunks: u32,
}

#[repr(C)]
struct Chunk {
    /// The rest of the letter.
    next: u32,
    /// The next letter of the pile.
    next_letter: u32,
    /// Bytes of the whole letter, in its first chunk.
    length: u32,
    bytes: [u8; CHUNK_BYTES],
}

fn locked<R>(f: impl FnOnce(&mut Inner) -> R) -> Option<R> {
    // SAFETY: the lock is held, exclusively.
    BOX.with_lock(true, |letters| f(unsafe { &mut *letters.inner.get() }))
}

/// Posts a letter to the worker of this process's database. Without a worker there is nobody to post it to.
pub(crate) fn post(letter: &[u8]) {
    let Some((shared, slot)) = shmem::get().zip(slots::mine()) else { return };
    if slot.pid.load(Relaxed) == 0 {
        return;
    }
    let (index, database) = (shared.index_of(slot), catalog::my_database().to_u32());
    let fits = letter.len() <= MAX_LETTER_BYTES;
    // Under the lock, the slot is this database's or not: between the look for it and now, the launcher may have given it to another one.
    let before = locked(|inner| {
        (slot.database.load(Acquire) == database)
            .then(|| (fits && inner.put(index, letter)).then(|| slot.letters.fetch_add(1, Relaxed)))
    });
    match before {
        Some(Some(Some(0))) => slot.wake(),
        Some(Some(Some(_)) | None) | None => {}
        Some(Some(None)) => {
            slot.cache_dropped.fetch_add(1, Relaxed);
        }
    }
}

/// Takes up to `most` letters of a pile, in the order in which they were posted.
pub(crate) fn take(slot: &Slot, most: usize) -> Vec<Vec<u8>> {
    let Some(shared) = shmem::get() else { return Vec::new() };
    if slot.letters.load(Relaxed) == 0 {
        return Vec::new();
    }
    let index = shared.index_of(slot);
    let taken = locked(|inner| {
        let letters: Vec<Vec<u8>> = std::iter::from_fn(|| inner.take(index)).take(most).collect();
        slot.letters.fetch_sub(letters.len() as u32, Relaxed);
        letters
    });
    taken.unwrap_or_default()
}

/// Throws a pile away: its database is no longer there.
pub(crate) fn forget(slot: &Slot) {
    while !take(slot, CHUNKS).is_empty() {}
}

/// Takes a slot from its database; from now on nobody posts a letter there.
pub(super) fn close(slot: &Slot) {
    locked(|_| slot.database.store(0, SeqCst));
    forget(slot);
}

impl Inner {
    fn put(&mut self, pile: usize, letter: &[u8]) -> bool {
        let count = letter.len().div_ceil(CHUNK_BYTES).max(1) as u32;
        if self.piles[pile].chunks + count > MAX_CHUNKS_OF_ONE || !self.has_room(count) {
            return false;
        }
        let mut first = 0;
        // From the back, so that each knows the next.
        for part in letter.chunks(CHUNK_BYTES).rev() {
            let number = self.take_free();
            let chunk = self.chunk(number);
            chunk.next = first;
            chunk.next_letter = 0;
            chunk.bytes[..part.len()].copy_from_slice(part);
            first = number;
        }
        if first == 0 {
            return false;
        }
        self.chunk(first).length = letter.len() as u32;
        let last = std::mem::replace(&mut self.piles[pile].last, first);
        match last {
            0 => self.piles[pile].first = first,
            last => self.chunk(last).next_letter = first,
        }
        self.piles[pile].chunks += count;
        true
    }

    fn take(&mut self, pile: usize) -> Option<Vec<u8>> {
        let first = self.piles[pile].first;
        if first == 0 {
            return None;
        }
        let (mut left, next_letter) = (self.chunk(first).length as usize, self.chunk(first).next_letter);
        let mut letter = Vec::with_capacity(left);
        let mut number = first;
        while number != 0 {
            let part = left.min(CHUNK_BYTES);
            let free = self.free;
            let chunk = self.chunk(number);
            letter.extend_from_slice(&chunk.bytes[..part]);
            left -= part;
            let next = std::mem::replace(&mut chunk.next, free);
            self.free = number;
            number = next;
            self.piles[pile].chunks -= 1;
        }
        self.piles[pile].first = next_letter;
        if next_letter == 0 {
            self.piles[pile].last = 0;
        }
        Some(letter)
    }

    fn chunk(&mut self, number: u32) -> &mut Chunk {
        &mut self.chunks[number as usize - 1]
    }

    fn has_room(&mut self, count: u32) -> bool {
        let mut room = CHUNKS as u32 - self.begun;
        let mut free = self.free;
        while room < count && free != 0 {
            room += 1;
            free = self.chunk(free).next;
        }
        room >= count
    }

    /// A chunk; only where there is room.
    fn take_free(&mut self) -> u32 {
        match self.free {
            0 => self.begun += 1,
            free => {
                self.free = self.chunk(free).next;
                return free;
            }
        }
        self.begun
    }
}
