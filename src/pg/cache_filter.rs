//! A Bloom filter of the keys that steadytext_cache may have, for a database, in shared memory.
//!
//! Most requests are new, and each of them is looked up twice: when it is enqueued, and when it is claimed.
//! The filter answers for those that the cache cannot have, without a lock, a relation or an index. A key
//! that it does not exclude is looked up as without it.
//!
//! A trigger adds the key of each entry after its row and the index's tuple have been written, whatever
//! becomes of the transaction. The worker fills a filter from the index ([`super::cache_table::walk_keys`]),
//! with the tuples of transactions that are still open. So each key is added by one or the other after the
//! filter was emptied, and none is missing when the walk through the index has ended.
//!
//! Invariant: a filter that is complete for an index has all keys of that index, unless somebody has switched
//! the table's triggers off; that changes the table's definition, after which the worker fills the filter
//! anew. A missing key costs one computation.
//!
//! The filter is split into blocks of a processor's cache line, so that a look-up touches one line. See
//! Putze, Sanders and Singler, "Cache-, hash- and space-efficient Bloom filters" (2007).

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicU32, AtomicU64, fence};

use pgrx::pg_sys;

use super::catalog;
use super::shmem::{self, SharedContent, SharedPart};
use super::slots;

/// Databases that have a filter at the same time. The caches of others are looked into each time.
const FILTERS: usize = 8;
/// Blocks of a filter. With 100,000 keys one look-up in 50,000 finds all bits set by chance, with a million
/// one in ten.
const BLOCKS: usize = 8192;
const WORDS: usize = 8;
/// Bits of a block that a key sets: one for each nine bits of 64 of its hash.
const PROBES: u32 = 4;

/// The filters of all databases.
#[repr(C)]
pub(crate) struct Filters {
    heads: [FilterHead; FILTERS],
    blocks: [[FilterBlock; BLOCKS]; FILTERS],
}

// SAFETY: zeros are filters that belong to nobody.
unsafe impl SharedContent for Filters {}

pub(super) static TABLE: SharedPart<Filters> = SharedPart::new();

#[repr(C)]
struct FilterHead {
    /// The database whose filter it is; 0 where it is nobody's.
    database: AtomicU32,
    /// The index all of whose keys it has; 0 as long as it does not.
    index: AtomicU32,
    /// Keys that were added since it was emptied.
    keys: AtomicU64,
}

#[repr(C, align(64))]
struct FilterBlock([AtomicU64; WORDS]);

/// A filter.
#[derive(Clone, Copy)]
pub(crate) struct Filter {
    head: &'static FilterHead,
    blocks: &'static [FilterBlock; BLOCKS],
}

/// The bits of a key in its block: the number of a word, and a bit of it.
fn bits(hash: &[u8; 32]) -> (usize, impl Iterator<Item = (usize, u64)>) {
    let number = |at: usize| u64::from_le_bytes(std::array::from_fn(|n| hash[at + n]));
    let (block, probes) = (number(0) as usize % BLOCKS, number(8));
    let bits = (0..PROBES).map(move |probe| {
        let bit = (probes >> (9 * probe)) as usize % (64 * WORDS);
        (bit / 64, 1 << (bit % 64))
    });
    (block, bits)
}

impl Filter {
    fn has(self, hash: &[u8; 32]) -> bool {
        let (block, mut bits) = bits(hash);
        bits.all(|(word, bit)| self.blocks[block].0[word].load(Relaxed) & bit != 0)
    }

    /// Adds a key, by its SHA-256.
    pub(crate) fn add(self, hash: &[u8; 32]) {
        let (block, bits) = bits(hash);
        // The index has the key before the filter has it.
        fence(SeqCst);
        for (word, bit) in bits {
            self.blocks[block].0[word].fetch_or(bit, Relaxed);
        }
        self.head.keys.fetch_add(1, Relaxed);
    }

    /// Empties it: until [`Filter::complete`] it excludes nothing.
    pub(crate) fn empty(self) {
        self.head.index.store(0, Release);
        // The walk that follows meets the keys that were added before this.
        for word in self.blocks.iter().flat_map(|block| &block.0) {
            word.store(0, Relaxed);
        }
        self.head.keys.store(0, Release);
        fence(SeqCst);
    }

    /// Notes that the filter has all keys of this index.
    pub(crate) fn complete(self, index: pg_sys::Oid) {
        self.head.index.store(index.to_u32(), Release);
    }

    /// Whether it has all keys of this index.
    pub(crate) fn is_complete(self, index: pg_sys::Oid) -> bool {
        self.head.index.load(Acquire) == index.to_u32()
    }

    /// Keys that were added since it was emptied, those of entries that are gone included.
    pub(crate) fn keys(self) -> u64 {
        self.head.keys.load(Relaxed)
    }
}

fn filter_of(filters: &'static Filters, database: u32) -> Option<Filter> {
    let number = filters.heads.iter().position(|head| head.database.load(Acquire) == database)?;
    Some(Filter { head: &filters.heads[number], blocks: &filters.blocks[number] })
}

/// The filter of this process's database, if it has one.
pub(crate) fn mine() -> Option<Filter> {
    filter_of(TABLE.get()?, catalog::my_database().to_u32())
}

/// Whether an index has no entry of a key, by its SHA-256.
pub(super) fn excludes(index: pg_sys::Oid, hash: &[u8; 32]) -> bool {
    mine().is_some_and(|filter| filter.is_complete(index) && !filter.has(hash))
}

/// The filter of this process's database; one that is nobody's, or that of a database without a worker's
/// slot, if it has none yet. For the worker.
pub(crate) fn take() -> Option<Filter> {
    let (shared, database) = (shmem::get()?, catalog::my_database().to_u32());
    TABLE.with_lock(true, |filters| {
        if let Some(filter) = filter_of(filters, database) {
            return Some(filter);
        }
        let is_left = |of: u32| of == 0 || slots::find(shared, pg_sys::Oid::from(of)).is_none();
        let number = filters.heads.iter().position(|head| is_left(head.database.load(Relaxed)))?;
        let filter = Filter { head: &filters.heads[number], blocks: &filters.blocks[number] };
        // Processes of the database that had it look their keys up as long as it is not theirs any more.
        filter.head.index.store(0, Release);
        filter.head.database.store(database, Release);
        Some(filter)
    })?
}
