//! Counters in shared memory of the uses of each entry of the cache since the worker wrote them down last.
//!
//! A hit must work in read-only transactions and parallel workers, and hits of the same entry must not wait
//! for each other, so a hit writes nothing but a counter here.
//!
//! Invariant: cells are counted up under the shared lock and taken out under the exclusive one, so that no
//! hit is lost or counted twice. One that finds no cell is not counted; a database has its share of them, a
//! small one while its worker is not there to write.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicI64, AtomicU64};

use super::shmem::{self, SharedContent, SharedPart, Slot};
use super::{activity, catalog, slots};

/// Entries that can be counted between two writings, over all databases, and of one.
const CELLS: usize = 16_384;
const CELLS_OF_ONE: u32 = 4096;
/// Most cells of a database whose worker is not there; it may come, or not.
const CELLS_WITHOUT_WORKER: u32 = 256;
/// Cells that are looked at for one entry.
const PROBES: usize = 64;
/// Bits of a cell's key that hold the number of the entry; those above hold the slot of the database, counted
/// from 1.
const ID_BITS: u32 = 56;

/// The table. A cell with key 0 is free.
#[repr(C)]
pub(crate) struct CounterTable {
    cells: [Cell; CELLS],
}

// SAFETY: zeros are cells that are free.
unsafe impl SharedContent for CounterTable {}

pub(super) static TABLE: SharedPart<CounterTable> = SharedPart::new();

#[repr(C)]
struct Cell {
    key: AtomicU64,
    count: AtomicU64,
    /// TimestampTz of the last one.
    last: AtomicI64,
}

/// The counts of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Accesses {
    /// steadytext_cache.id.
    pub(crate) entry: i64,
    /// Number of hits.
    pub(crate) count: u64,
    /// TimestampTz of the last one.
    pub(crate) last: i64,
}

/// Counts a hit of an entry of this process's database. Not on a standby, which has no worker that could
/// write it down.
pub(crate) fn count_hit(entry: i64) {
    let Some((shared, slot)) = shmem::get().zip(slots::mine()) else { return };
    slot.cache_hits.fetch_add(1, Relaxed);
    let Some(key) = key(shared.index_of(slot), entry) else { return };
    let now = activity::now();
    let most = if slot.pid.load(Relaxed) == 0 { CELLS_WITHOUT_WORKER } else { CELLS_OF_ONE };
    let database = catalog::my_database().to_u32();
    TABLE.with_lock(false, |table| {
        // The slot may be another database's by now; what was counted for the one before is taken out after
        // it has left, under the exclusive lock.
        if slot.database.load(Acquire) != database {
            return;
        }
        let start = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 16;
        for probe in 0..PROBES {
            let cell = &table.cells[(start + probe) % CELLS];
            let found = cell.key.load(Acquire);
            let claimed = found == 0
                && slot.access_cells.load(Relaxed) < most
                && cell.key.compare_exchange(0, key, AcqRel, Acquire).is_ok();
            if claimed {
                slot.access_cells.fetch_add(1, Relaxed);
            }
            if claimed || cell.key.load(Acquire) == key {
                cell.count.fetch_add(1, Relaxed);
                cell.last.fetch_max(now, Relaxed);
                break;
            }
        }
    });
    // The first one since the last writing tells the worker that there is something to write.
    if !slot.accesses_wait.swap(true, AcqRel) || is_crowded(slot) {
        slot.wake();
    }
}

/// Counts a request that the cache had no answer for.
pub(crate) fn count_miss() {
    if let Some(slot) = slots::mine() {
        slot.cache_misses.fetch_add(1, Relaxed);
    }
}

/// Whether what was counted for the database of a slot should be taken out soon.
pub(crate) fn is_crowded(slot: &Slot) -> bool {
    slot.access_cells.load(Relaxed) > CELLS_OF_ONE / 2
}

/// Takes out what was counted for the database of a slot.
pub(crate) fn take(slot: &'static Slot) -> Vec<Accesses> {
    let Some(shared) = shmem::get() else { return Vec::new() };
    let index = shared.index_of(slot);
    // Before the look: a hit that comes after it tells the worker anew.
    slot.accesses_wait.store(false, Relaxed);
    let mut taken = Vec::with_capacity(slot.access_cells.load(Relaxed) as usize + PROBES);
    TABLE.with_lock(true, |table| {
        for cell in &table.cells {
            let key = cell.key.load(Relaxed);
            if key >> ID_BITS == index as u64 + 1 {
                taken.push(Accesses {
                    entry: (key & ((1 << ID_BITS) - 1)) as i64,
                    count: cell.count.swap(0, Relaxed),
                    last: cell.last.swap(0, Relaxed),
                });
                cell.key.store(0, Relaxed);
                slot.access_cells.fetch_sub(1, Relaxed);
            }
        }
    });
    taken
}

/// Leaves one of each entry, in the order of their numbers. Several come about when a cell is freed before
/// another of its row, and when an entry is used again before its earlier uses could be written down.
pub(crate) fn add_up(accesses: &mut Vec<Accesses>) {
    accesses.sort_unstable_by_key(|accesses| accesses.entry);
    accesses.dedup_by(|later, kept| {
        let same = later.entry == kept.entry;
        if same {
            kept.count += later.count;
            kept.last = kept.last.max(later.last);
        }
        same
    });
}

fn key(slot: usize, entry: i64) -> Option<u64> {
    let entry = u64::try_from(entry).ok().filter(|entry| entry >> ID_BITS == 0)?;
    Some((slot as u64 + 1) << ID_BITS | entry)
}
