//! The cache queue: answers on their way from the process that got them to the worker that may write them
//! down, in shared memory.
//!
//! A synchronous call must not write, and need not wait until the worker has written, so it adds its answer
//! to the queue of its database and goes on. An answer that is too long, or finds the queue full, is counted
//! and dropped; the next request computes it again.
//!
//! Invariant: the queues are read and written under their lock, and all zeros are empty queues. A slot leaves
//! its database under that lock too, so that no message is ever in the queue of another database than its
//! writer's.

use std::cell::UnsafeCell;
use std::sync::atomic::Ordering::{Acquire, Relaxed, SeqCst};

use super::catalog;
use super::shmem::{self, SLOTS, SharedContent, SharedPart, Slot};
use super::slots;

const CHUNKS: usize = 1024;
const CHUNK_BYTES: usize = 4080;
/// Longest message: what it takes must leave room for others.
pub(crate) const MAX_MESSAGE_BYTES: usize = 64 * CHUNK_BYTES;
/// Chunks that one database may fill.
const MAX_CHUNKS_OF_ONE: u32 = CHUNKS as u32 / 2;

/// The queues of all databases.
#[repr(C)]
pub(crate) struct CacheQueue {
    inner: UnsafeCell<CacheQueueInner>,
}

// SAFETY: `inner` is only reached through `locked`, which holds the lock that all processes share.
unsafe impl Sync for CacheQueue {}
// SAFETY: zeros are queues without messages.
unsafe impl SharedContent for CacheQueue {}

pub(super) static QUEUE: SharedPart<CacheQueue> = SharedPart::new();

/// Chunks are linked by their index, counted from 1; 0 is none.
#[repr(C)]
struct CacheQueueInner {
    /// The first of those that were given back.
    free: u32,
    /// Number of chunks that were ever taken; the others need no link.
    begun: u32,
    queues: [DatabaseQueue; SLOTS],
    chunks: [QueueChunk; CHUNKS],
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct DatabaseQueue {
    first: u32,
    last: u32,
    chunks: u32,
}

#[repr(C)]
struct QueueChunk {
    /// The rest of the message.
    next: u32,
    /// The next message of the queue.
    next_message: u32,
    /// Bytes of the whole message, in its first chunk.
    length: u32,
    bytes: [u8; CHUNK_BYTES],
}

fn locked<R>(f: impl FnOnce(&mut CacheQueueInner) -> R) -> Option<R> {
    // SAFETY: the lock is held, exclusively.
    QUEUE.with_lock(true, |queue| f(unsafe { &mut *queue.inner.get() }))
}

/// Adds a message for the worker of this process's database. While no worker runs it is dropped.
pub(crate) fn push(message: &[u8]) {
    let Some((shared, slot)) = shmem::get().zip(slots::mine()) else { return };
    if slot.pid.load(Relaxed) == 0 {
        return;
    }
    let (index, database) = (shared.index_of(slot), catalog::my_database().to_u32());
    let fits = message.len() <= MAX_MESSAGE_BYTES;
    // Under the lock, the slot is this database's or not: between the look for it and now, the launcher may
    // have given it to another one.
    let before = locked(|inner| {
        (slot.database.load(Acquire) == database).then(|| {
            (fits && inner.put(index, message)).then(|| slot.cache_queue_length.fetch_add(1, Relaxed))
        })
    });
    match before {
        Some(Some(Some(0))) => slot.wake(),
        Some(Some(Some(_)) | None) | None => {}
        Some(Some(None)) => {
            slot.cache_dropped.fetch_add(1, Relaxed);
        }
    }
}

/// Takes up to `most` messages of a queue, the oldest first.
pub(crate) fn take(slot: &Slot, most: usize) -> Vec<Vec<u8>> {
    let Some(shared) = shmem::get() else { return Vec::new() };
    if slot.cache_queue_length.load(Relaxed) == 0 {
        return Vec::new();
    }
    let index = shared.index_of(slot);
    let taken = locked(|inner| {
        let messages: Vec<Vec<u8>> = std::iter::from_fn(|| inner.take(index)).take(most).collect();
        slot.cache_queue_length.fetch_sub(messages.len() as u32, Relaxed);
        messages
    });
    taken.unwrap_or_default()
}

/// Empties a queue: its database is no longer there.
pub(crate) fn forget(slot: &Slot) {
    while !take(slot, CHUNKS).is_empty() {}
}

/// Takes a slot from its database; from now on nobody adds a message to its queue.
pub(crate) fn close(slot: &Slot) {
    locked(|_| slot.database.store(0, SeqCst));
    forget(slot);
}

impl CacheQueueInner {
    fn put(&mut self, queue: usize, message: &[u8]) -> bool {
        let count = message.len().div_ceil(CHUNK_BYTES).max(1) as u32;
        if self.queues[queue].chunks + count > MAX_CHUNKS_OF_ONE || !self.has_room(count) {
            return false;
        }
        let mut first = 0;
        // The parts are linked from the last one to the first, so that each knows the next.
        for part in message.chunks(CHUNK_BYTES).rev() {
            let number = self.take_free();
            let chunk = self.chunk(number);
            chunk.next = first;
            chunk.next_message = 0;
            chunk.bytes[..part.len()].copy_from_slice(part);
            first = number;
        }
        if first == 0 {
            return false;
        }
        self.chunk(first).length = message.len() as u32;
        let last = std::mem::replace(&mut self.queues[queue].last, first);
        match last {
            0 => self.queues[queue].first = first,
            last => self.chunk(last).next_message = first,
        }
        self.queues[queue].chunks += count;
        true
    }

    fn take(&mut self, queue: usize) -> Option<Vec<u8>> {
        let first = self.queues[queue].first;
        if first == 0 {
            return None;
        }
        let (mut left, next_message) = (self.chunk(first).length as usize, self.chunk(first).next_message);
        let mut message = Vec::with_capacity(left);
        let mut number = first;
        while number != 0 {
            let part = left.min(CHUNK_BYTES);
            let free = self.free;
            let chunk = self.chunk(number);
            message.extend_from_slice(&chunk.bytes[..part]);
            left -= part;
            let next = std::mem::replace(&mut chunk.next, free);
            self.free = number;
            number = next;
            self.queues[queue].chunks -= 1;
        }
        self.queues[queue].first = next_message;
        if next_message == 0 {
            self.queues[queue].last = 0;
        }
        Some(message)
    }

    fn chunk(&mut self, number: u32) -> &mut QueueChunk {
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
