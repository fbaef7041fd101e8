//! The place in the index of claims at which the server's own worker begins to look for requests, while
//! somebody keeps an old snapshot.
//!
//! The dead index entries that a request leaves behind are stepped over by each claim until they can be
//! marked as dead, which is impossible as long as a snapshot is kept that may still see them. So the worker
//! remembers, for each priority and role, an id before which nothing of theirs is pending: its floor. A claim
//! begins there. As long as a search from the first entry takes next to nothing, nothing is remembered.
//!
//! Requests can become pending before a floor in three ways:
//!
//! - A transaction that inserts requests leaves the lowest of their ids in the worker's slot when it has
//!   committed, and wakes the worker after that ([`note_inserted`]). The worker takes it before its next
//!   claim takes a snapshot, and lowers all floors to it. One that commits very late, with ids that others
//!   are long past, is a change like the next ones.
//! - Other changes of requests are counted in the slot, and the requests before the floors are looked through
//!   soon after.
//! - Requests may come without notice: restored or replicated without triggers. For these, the requests
//!   before the floors are looked through from time to time.
//!
//! Looking through the entries before the floors is a sweep. It would hold up the claims for as long as it
//! takes, some hundred milliseconds for a million of requests that are done. So it goes in portions of a
//! millisecond, each at the beginning of a claim, with a rest of several times its duration after each of
//! them ([`index_walk`]). A request that it meets lowers the floor of its priority and role. A sweep also
//! goes along the requests in flight, which have an index with the same trouble. It leaves their ids to the
//! worker, which looks whether some of them must be rescued ([`take_in_flight`]).
//!
//! Invariant: floors are advice about where to begin. A request that they hide is found by the next sweep,
//! and none is claimed twice because of them: rows are locked before they are claimed.

use std::cell::RefCell;
use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{Acquire, SeqCst};
use std::time::{Duration, Instant};

use pgrx::{PgLogLevel, PgSqlErrorCode, pg_sys};

use super::bgworker;
use super::catalog_cache::Installation;
use super::error::PgError;
use super::index_walk::{self, IndexKey, QueueIndex, WalkStep, WalkedEntries};
use super::shmem::Slot;
use super::slots;

/// A search that visits so many pages, and so many for each user that it comes across, takes next to nothing.
const FEW_PAGES: u64 = 256;
const PAGES_OF_USER: u64 = 8;
/// Time budget of a portion of a sweep.
const PORTION: Duration = Duration::from_millis(1);
/// The next portion begins after so many times what the last one took; where others have changed requests
/// since, sooner.
const REST: u32 = 20;
const REST_AFTER_CHANGE: u32 = 4;
/// A floor is lowered by so many ids at once, for a request that was committed late; one that is further away
/// is for the next sweep.
const NEAR: i64 = 4096;
/// Pause between the end of a sweep and the next one, where nobody has changed anything.
const BETWEEN_SWEEPS: Duration = Duration::from_secs(30);
/// Priorities and roles that are remembered. With more of them each would cost more than it saves.
const MAX_FLOORS: usize = 64;
/// Time for which there are no floors after there were too many.
const CROWDED: Duration = Duration::from_secs(30);
/// Requests in flight that are remembered of a sweep. Where there are so many, there may be more.
pub(crate) const MAX_IN_FLIGHT: usize = 10_000;

thread_local! {
    static MEMORY: RefCell<FloorMemory> = RefCell::default();
}

/// A priority and a role, in the order of the index: the highest priority first.
type Group = (Reverse<i32>, u32);
type Floors = BTreeMap<Group, i64>;

#[derive(Default)]
struct FloorMemory {
    /// The extension it is about: when it is created anew, ids begin anew.
    extension: Option<pg_sys::Oid>,
    floors: Floors,
    /// The highest id that was found.
    highest: i64,
    /// A search from the first entry on takes long: claims begin at the floors.
    is_used: bool,
    /// Before this they are not, as there were too many.
    crowded: Option<Instant>,
    /// [`Slot::changes`] when it was looked at last.
    changes: u64,
    /// This process has put requests back since.
    is_stale: bool,
    /// A search is going on; the pages that this process had visited when it began.
    searching: Option<u64>,
    /// Floors and the highest id when the claim began that is going on, if they were in use then.
    before: Option<(Floors, i64)>,
    sweep: Sweep,
}

/// The progress of a sweep.
#[derive(Default)]
struct Sweep {
    /// The place where the next portion begins; `None`: a new sweep.
    at: Option<(QueueIndex, Option<IndexKey>)>,
    /// The earliest moment for the next portion.
    due: Option<Instant>,
    /// Whether the floors are new: then everything is looked through at once, so that all are known.
    is_first: bool,
    /// Number of sweeps that must come to their end soon, because requests were changed.
    owed: u32,
    /// A priority and a role of whom nothing was known; everything of them before this id, their floor, is
    /// dead.
    learning: Option<(Group, i64)>,
    /// Entries of dead requests before the floors that this sweep has met.
    dead: u64,
    /// Requests in flight that it has met.
    in_flight: Vec<i64>,
    /// The requests in flight that the last sweep has met.
    ended: Option<Vec<i64>>,
}

/// A floor: of a priority and a role, nothing is pending before the id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Floor {
    pub(crate) priority: i32,
    pub(crate) role: pg_sys::Oid,
    pub(crate) id: i64,
}

/// The lowest id of requests that were inserted since the worker looked, in a form in which the lower one is
/// the larger number, and 0 is none.
fn to_mark(id: i64) -> u64 {
    !(id.cast_unsigned() ^ (1 << 63))
}

fn of_mark(mark: u64) -> Option<i64> {
    (mark != 0).then(|| (!mark ^ (1 << 63)).cast_signed())
}

/// A transaction has committed that has inserted requests, of which this is the lowest id. Before it wakes
/// the worker. Never raises an error.
pub(super) fn note_inserted(slot: &Slot, lowest: i64) {
    slot.lowest_inserted.fetch_max(to_mark(lowest), SeqCst);
}

fn take_inserted(mark: &AtomicU64) -> Option<i64> {
    of_mark(mark.swap(0, SeqCst))
}

/// A claim begins; where a portion of a sweep is due, it is swept. The floors from which it looks, in the
/// order of the index; `None`: it looks from the first entry on.
pub(crate) fn begin(installation: &Installation) -> Option<Vec<Floor>> {
    let slot = slots::mine().filter(|_| bgworker::is_worker())?;
    // Before the claim takes a snapshot, and the sweep, so that they see whatever is in these.
    let (changes, inserted) = (slot.changes.load(Acquire), take_inserted(&slot.lowest_inserted));
    let portion = MEMORY.with_borrow_mut(|memory| {
        if memory.extension != Some(installation.extension) {
            *memory = FloorMemory { extension: Some(installation.extension), ..FloorMemory::default() };
        }
        memory.begin(inserted, changes, Instant::now())
    });
    if let Some(mut portion) = portion {
        let begun = Instant::now();
        let walked = portion.walk(installation.queue());
        let now = Instant::now();
        MEMORY.with_borrow_mut(|memory| memory.swept(portion, walked, now - begun, now));
    }
    MEMORY.with_borrow_mut(|memory| memory.search(pages()))
}

/// The search of a claim has come across so many users, and the first request is of this group; `None`: there
/// is none.
pub(crate) fn searched(users: usize, first: Option<(i32, pg_sys::Oid)>) {
    MEMORY.with_borrow_mut(|memory| {
        let first = first.map(|(priority, role)| (Reverse(priority), role.to_u32()));
        memory.searched(users, first, Instant::now(), pages());
    });
}

/// The first pending request of a priority and a role has this id; `None`: there is none behind their floor.
pub(crate) fn note(priority: i32, role: pg_sys::Oid, id: Option<i64>) {
    if bgworker::is_worker() {
        MEMORY.with_borrow_mut(|memory| memory.note((Reverse(priority), role.to_u32()), id, Instant::now()));
    }
}

/// A claim was undone that has noted what it saw.
pub(crate) fn forget() {
    MEMORY.with_borrow_mut(|memory| match memory.before.clone() {
        Some((floors, highest)) => (memory.floors, memory.highest) = (floors, highest),
        None => memory.is_used = false,
    });
}

/// This process puts requests back to pending.
pub(crate) fn note_change() {
    MEMORY.with_borrow_mut(|memory| memory.is_stale = true);
}

/// Whether claims begin at floors, as what requests have left behind is much: whatever walks along the
/// queue's indexes takes long.
pub(crate) fn are_used() -> bool {
    MEMORY.with_borrow(|memory| memory.is_used)
}

/// The time at which a claim is due for the sake of the next portion of a sweep.
pub(crate) fn sweep_due() -> Option<Instant> {
    MEMORY.with_borrow(|memory| memory.sweep.due.filter(|_| memory.is_used))
}

/// The requests that were in flight when a sweep went over them, if one has ended since this was asked last;
/// of very many, none but these is known ([`MAX_IN_FLIGHT`]).
pub(crate) fn take_in_flight() -> Option<Vec<i64>> {
    MEMORY.with_borrow_mut(|memory| memory.sweep.ended.take())
}

/// The id at which the retention goes on behind an id: it passes over requests that are long deleted. `Ok`:
/// there is a request behind this one, or none is left. `Err`: it has not found one yet, and is to be asked
/// again with this id.
pub(crate) fn pass_deleted(installation: &Installation, after: i64) -> Result<i64, i64> {
    let mut found = None;
    let walked = index_walk::walk(
        installation.queue(),
        QueueIndex::Ids,
        Some(IndexKey::of_id(after.saturating_add(1))),
        PORTION,
        |key, is_alive| {
            if !is_alive {
                return WalkStep::On;
            }
            found = found.or(Some(key.id));
            WalkStep::Stop
        },
    );
    let Some(walked) = walked else { return Ok(after) };
    match (found, walked.next) {
        (Some(found), _) => Ok(found.saturating_sub(1)),
        (None, Some(next)) => Err(next.id.saturating_sub(1)),
        (None, None) => Ok(i64::MAX),
    }
}

impl FloorMemory {
    /// The portion that is to be swept now.
    fn begin(&mut self, inserted: Option<i64>, changes: u64, now: Instant) -> Option<Portion> {
        let mut has_changed = std::mem::take(&mut self.is_stale) | (changes != self.changes);
        self.changes = changes;
        if !self.is_used {
            return None;
        }
        if let Some(lowest) = inserted {
            for floor in self.floors.values_mut().filter(|floor| lowest < **floor) {
                if floor.saturating_sub(NEAR) <= lowest {
                    *floor = lowest;
                } else {
                    // The claim would step over all that has been answered since.
                    has_changed = true;
                }
            }
        }
        let sweep = &mut self.sweep;
        if has_changed {
            // The requests behind the place where a sweep is now may have been changed after it had passed
            // them.
            sweep.owed = if sweep.at.is_some() { 2 } else { 1 };
            if sweep.at.is_none() {
                sweep.due = Some(now);
            }
        }
        if sweep.due.is_some_and(|due| now < due) {
            return None;
        }
        let (index, from) = sweep.at.unwrap_or((QueueIndex::Claims, None));
        Some(Portion {
            index,
            from,
            budget: if sweep.is_first { Duration::MAX } else { PORTION },
            floors: self.floors.clone(),
            learning: sweep.learning,
            dead: 0,
            in_flight: Vec::new(),
        })
    }

    fn swept(&mut self, portion: Portion, walked: Option<WalkedEntries>, took: Duration, now: Instant) {
        let Some(walked) = walked else { return self.crowd(now) };
        PgError::new(
            PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION,
            format!("a sweep has passed {} entries of the queue", walked.entries),
        )
        .report(PgLogLevel::DEBUG1);
        let sweep = &mut self.sweep;
        self.floors = portion.floors;
        sweep.is_first = false;
        sweep.learning = portion.learning;
        sweep.dead += portion.dead;
        sweep.in_flight.extend(portion.in_flight);
        let rest = took * if sweep.owed > 0 { REST_AFTER_CHANGE } else { REST };
        sweep.due = Some(now + rest);
        sweep.at = match (walked.next, portion.index) {
            (Some(next), index) => Some((index, Some(next))),
            (None, QueueIndex::Claims) => Some((QueueIndex::InFlight, None)),
            (None, _) => None,
        };
        if sweep.at.is_none() {
            sweep.owed = sweep.owed.saturating_sub(1);
            if sweep.owed == 0 {
                sweep.due = Some(now + BETWEEN_SWEEPS);
            }
            sweep.ended = Some(std::mem::take(&mut sweep.in_flight));
            let few = FEW_PAGES + PAGES_OF_USER * self.floors.len() as u64;
            self.is_used = std::mem::take(&mut sweep.dead) > few;
        }
        if self.floors.len() > MAX_FLOORS {
            self.crowd(now);
        }
    }

    /// Notes that a search begins. The floors at which the claim begins to look; `None` if it begins at the
    /// first entry.
    fn search(&mut self, pages: u64) -> Option<Vec<Floor>> {
        self.searching = Some(pages);
        self.before = None;
        if !self.is_used {
            self.floors.clear();
            return None;
        }
        self.before = Some((self.floors.clone(), self.highest));
        let floor = |(group, id): (&Group, &i64)| Floor {
            priority: group.0.0,
            role: pg_sys::Oid::from(group.1),
            id: *id,
        };
        Some(self.floors.iter().map(floor).collect())
    }

    fn searched(&mut self, users: usize, first: Option<Group>, now: Instant, pages: u64) {
        let Some(before) = self.searching.take() else { return };
        let is_long = pages.saturating_sub(before) > FEW_PAGES + PAGES_OF_USER * users as u64;
        if self.is_used {
            if is_long && self.sweep.at.is_none() {
                // A sweep begins at once, because no floor is known of some of the requests.
                self.sweep.due = Some(now);
            }
            return;
        }
        if !is_long || self.crowded.is_some_and(|until| now < until) {
            return;
        }
        self.is_used = true;
        self.sweep = Sweep { is_first: true, ..Sweep::default() };
        // The search has passed them all.
        let highest = self.highest;
        for (group, floor) in &mut self.floors {
            if first.is_none_or(|first| *group < first) {
                *floor = highest.max(*floor);
            }
        }
    }

    fn note(&mut self, group: Group, id: Option<i64>, now: Instant) {
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
            self.crowd(now);
        }
    }

    /// Gives up the floors for a while, so that each claim looks at everything: there are too many of them,
    /// or none can be found.
    fn crowd(&mut self, now: Instant) {
        self.floors.clear();
        self.is_used = false;
        self.crowded = Some(now + CROWDED);
    }
}

/// A portion of a sweep.
struct Portion {
    index: QueueIndex,
    from: Option<IndexKey>,
    budget: Duration,
    floors: Floors,
    learning: Option<(Group, i64)>,
    dead: u64,
    in_flight: Vec<i64>,
}

impl Portion {
    fn walk(&mut self, queue: pg_sys::Oid) -> Option<WalkedEntries> {
        let (index, from, budget) = (self.index, self.from, self.budget);
        index_walk::walk(queue, index, from, budget, |key, is_alive| match index {
            QueueIndex::Claims => self.meet((Reverse(key.priority), key.role), key.id, is_alive),
            QueueIndex::InFlight | QueueIndex::Ids => {
                if is_alive && self.in_flight.len() < MAX_IN_FLIGHT {
                    self.in_flight.push(key.id);
                }
                WalkStep::On
            }
        })
    }

    /// Meets an entry of the index of claims. Entries behind a floor are skipped: the claims find those
    /// themselves.
    fn meet(&mut self, group: Group, id: i64, is_pending: bool) -> WalkStep {
        let floor = self.floors.get(&group).copied();
        // The learnt id is of no use once somebody else has moved the floor.
        let learns = floor.is_none()
            || self.learning.is_some_and(|learnt| floor == Some(learnt.1) && group == learnt.0);
        if !learns && floor.is_some_and(|floor| id >= floor) {
            return WalkStep::NextGroup;
        }
        if is_pending {
            self.floors.insert(group, id);
            return WalkStep::NextGroup;
        }
        self.dead += 1;
        if learns {
            let floor = id.saturating_add(1);
            self.floors.insert(group, floor);
            self.learning = Some((group, floor));
        }
        WalkStep::On
    }
}

/// Pages that this process has visited in shared buffers.
fn pages() -> u64 {
    // SAFETY: a plain global of this process.
    let usage = unsafe { pg_sys::pgBufferUsage };
    (usage.shared_blks_hit + usage.shared_blks_read).cast_unsigned()
}
