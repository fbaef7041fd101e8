//! Where the server's own worker begins to look for requests in the index of claims, while somebody keeps an old snapshot.
//!
//! Whatever a request leaves behind in the index is stepped over by each claim until it can be marked as dead, and as long as a snapshot
//! is kept that may still see it, it cannot. So the worker remembers, for each priority and role, an id before which nothing of theirs is
//! pending: its floor. What comes to be pending before it says so:
//!
//! - A transaction that inserts requests leaves the lowest of their ids in the worker's slot when it has committed, and wakes the worker
//!   after that ([`note_inserted`]). The worker takes it before its next claim takes a snapshot, and lowers all floors to it. One that commits
//!   late, with ids that others are long past, lowers them far.
//! - Whoever changes requests otherwise is counted in the slot, and the worker begins from the first ones again, which is a sweep.
//! - Requests may come without anybody's word: restored or replicated without triggers. For these there are sweeps from time to time.
//!
//! A sweep may take long, which is why there are floors. So there is one only after a multiple of the time that the last one took, and where
//! it takes next to nothing every claim is one: then nothing is remembered.
//!
//! Invariant: floors are advice about where to begin. A request that they hide is found by the next sweep, and none is claimed twice because
//! of them: rows are locked before they are claimed.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, SeqCst};
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use super::bgworker;
use super::shmem::Slot;
use super::slots;

/// A search that visits so many pages, and so many for each user that it comes across, takes next to nothing.
const FEW_PAGES: u64 = 256;
const PAGES_OF_USER: u64 = 8;
/// A sweep begins after so many times what the last one took; where others have changed requests since, sooner.
const REST: u32 = 200;
const REST_AFTER_CHANGE: u32 = 10;
/// However long it took, for which the machine may have been busy: not later than that, or once more what it took.
const LONGEST_REST: Duration = Duration::from_secs(30);
const LONGEST_REST_AFTER_CHANGE: Duration = Duration::from_secs(2);
/// Priorities and roles that are remembered. With more of them each would cost more than it saves.
const MAX_FLOORS: usize = 64;

thread_local! {
    static MEMORY: RefCell<Memory> = RefCell::default();
}

/// In the order of the index: the highest priority first.
type Group = (Reverse<i32>, u32);

#[derive(Default)]
struct Memory {
    /// The extension it is about: when it is created anew, ids begin anew.
    extension: Option<pg_sys::Oid>,
    floors: BTreeMap<Group, i64>,
    /// The highest id that was found.
    highest: i64,
    /// The last sweep, if it took long enough for floors to be used.
    swept: Option<Swept>,
    /// [`Slot::changes`] when it began.
    changes: u64,
    /// This process has put requests back since.
    is_stale: bool,
    /// A sweep is going on: since when, and the pages that this process had visited.
    sweeping: Option<(Instant, u64)>,
}

struct Swept {
    ended: Instant,
    took: Duration,
}

/// A floor: of a priority and a role, nothing is pending before the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Floor {
    pub(crate) priority: i32,
    pub(crate) role: pg_sys::Oid,
    pub(crate) id: i64,
}

/// The lowest id of requests that were inserted since the worker looked, in a form in which the lower one is the larger number, and 0 is none.
fn to_mark(id: i64) -> u64 {
    !(id.cast_unsigned() ^ (1 << 63))
}

fn of_mark(mark: u64) -> Option<i64> {
    (mark != 0).then(|| (!mark ^ (1 << 63)).cast_signed())
}

/// A transaction has committed that has inserted requests, of which this is the lowest id. Before it wakes the worker. Nothing here can raise.
pub(super) fn note_inserted(slot: &Slot, lowest: i64) {
    slot.lowest_inserted.fetch_max(to_mark(lowest), SeqCst);
}

fn take_inserted(mark: &AtomicU64) -> Option<i64> {
    of_mark(mark.swap(0, SeqCst))
}

/// A claim begins. The floors from which it looks, in the order of the index; `None`: it looks from the first entry on.
pub(crate) fn begin(extension: pg_sys::Oid) -> Option<Vec<Floor>> {
    let slot = slots::mine().filter(|_| bgworker::is_worker())?;
    // Before the claim takes a snapshot, so that it sees whatever is in these.
    let (changes, inserted) = (slot.changes.load(Acquire), take_inserted(&slot.lowest_inserted));
    MEMORY.with_borrow_mut(|memory| {
        if memory.extension != Some(extension) {
            *memory = Memory { extension: Some(extension), ..Memory::default() };
        }
        memory.begin(inserted, changes, Instant::now(), pages())
    })
}

/// The search of a claim has come across so many users, and the first request is of this group; `None`: there is none.
pub(crate) fn searched(users: usize, first: Option<(i32, pg_sys::Oid)>) {
    MEMORY.with_borrow_mut(|memory| {
        let first = first.map(|(priority, role)| (Reverse(priority), role.to_u32()));
        memory.searched(users, first, Instant::now(), pages());
    });
}

/// The first pending request of a priority and a role has this id; `None`: there is none behind their floor.
pub(crate) fn note(priority: i32, role: pg_sys::Oid, id: Option<i64>) {
    if bgworker::is_worker() {
        MEMORY.with_borrow_mut(|memory| memory.note((Reverse(priority), role.to_u32()), id));
    }
}

/// A claim was undone that has noted what it saw: the next one sweeps.
pub(crate) fn forget() {
    MEMORY.with_borrow_mut(|memory| memory.swept = None);
}

/// This process puts requests back to pending.
pub(crate) fn note_change() {
    MEMORY.with_borrow_mut(|memory| memory.is_stale = true);
}

impl Memory {
    fn begin(&mut self, inserted: Option<i64>, changes: u64, now: Instant, pages: u64) -> Option<Vec<Floor>> {
        if let Some(lowest) = inserted {
            for floor in self.floors.values_mut() {
                *floor = lowest.min(*floor);
            }
        }
        let has_changed = self.is_stale || changes != self.changes;
        let (times, longest) =
            if has_changed { (REST_AFTER_CHANGE, LONGEST_REST_AFTER_CHANGE) } else { (REST, LONGEST_REST) };
        let rest = |took: Duration| took.saturating_mul(times).min(longest.max(took));
        self.sweeping = None;
        if self.swept.as_ref().is_some_and(|swept| now < swept.ended + rest(swept.took)) {
            let floor = |(group, id): (&Group, &i64)| Floor {
                priority: group.0.0,
                role: pg_sys::Oid::from(group.1),
                id: *id,
            };
            return Some(self.floors.iter().map(floor).collect());
        }
        // Whose floors these were is worth knowing; what is there is found anew.
        self.floors.values_mut().for_each(|floor| *floor = i64::MIN);
        (self.changes, self.is_stale, self.sweeping) = (changes, false, Some((now, pages)));
        None
    }

    fn searched(&mut self, users: usize, first: Option<Group>, now: Instant, pages: u64) {
        let Some((begun, before)) = self.sweeping.take() else { return };
        let few = FEW_PAGES + PAGES_OF_USER * users as u64;
        self.swept = (pages.saturating_sub(before) > few && self.floors.len() <= MAX_FLOORS)
            .then(|| Swept { ended: now, took: now - begun });
        // The search has passed them all.
        let highest = self.highest;
        for (group, floor) in &mut self.floors {
            if first.is_none_or(|first| *group < first) {
                *floor = highest.max(*floor);
            }
        }
    }

    fn note(&mut self, group: Group, id: Option<i64>) {
        match id {
            Some(id) => {
                self.highest = self.highest.max(id);
                self.floors.insert(group, id);
            }
            None => {
                let highest = self.highest;
                if let Some(floor) = self.floors.get_mut(&group) {
                    *floor = highest.max(*floor);
                }
            }
        }
        if self.floors.len() > MAX_FLOORS {
            self.floors.clear();
            self.swept = None;
        }
    }
}

/// Pages that this process has visited in shared buffers.
fn pages() -> u64 {
    // SAFETY: a plain global of this process.
    let usage = unsafe { pg_sys::pgBufferUsage };
    (usage.shared_blks_hit + usage.shared_blks_read).cast_unsigned()
}
