//! Counting the pending requests from time to time, which sets right the counters that [`pending`] keeps.
//!
//! The counters are right by themselves as long as requests come and go in the usual ways. Anything else sets
//! a flag, upon which the rows are counted soon; and where there was work they are counted from time to time
//! all the same. An idle worker counts nothing.

use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};

use super::protocol;
use crate::pg::error::PgError;
use crate::pg::shmem::Slot;
use crate::pg::{claim_floors, pending};

/// Shortest pause before a count that was asked for.
const SOON: Duration = Duration::from_secs(1);
/// Shortest pause before a count that nobody has asked for, while requests come in.
const REGULAR: Duration = Duration::from_secs(30);
/// A pause is at least so many times as long as the count before it took: counting millions of rows must not
/// keep the worker from its work.
const SHARE: u32 = 50;
/// Where requests have left much behind that counting steps over, a pause is so many times as long, and
/// nobody counts without being asked to.
const SHARE_AMONG_DEAD: u32 = 200;
/// Counts in a row, at most, and how long one takes at most that is repeated at once.
const ATTEMPTS: usize = 5;
const QUICK: Duration = Duration::from_millis(20);
/// Steps in a row that met commits, before the counters are set all the same.
const PATIENCE: u32 = 5;

/// Counts the rows, once more if commits came in between: rows are seen a moment before they are in the
/// counters, and nobody knows whether these were counted. Whether the counters are right now; `anyway`: they
/// are set even so, off by those commits at most.
fn count(slot: &Slot, anyway: bool) -> Result<bool, PgError> {
    for attempt in 1..=ATTEMPTS {
        let begun = Instant::now();
        let before = pending::before_counting(slot);
        let counted = protocol::count_pending()?;
        let exact = pending::is_exact(slot, &before);
        let last = attempt == ATTEMPTS || begun.elapsed() > QUICK;
        if exact || last && anyway {
            pending::correct(slot, before, &counted);
        }
        if exact {
            return Ok(true);
        }
        if last {
            break;
        }
    }
    Ok(false)
}

/// The last count of the rows.
pub(super) struct Recount {
    begun: Instant,
    last: Option<Last>,
    /// Steps in a row that met commits.
    in_vain: u32,
}

struct Last {
    ended: Instant,
    took: Duration,
    /// Commits that had made work until then.
    wakes: u64,
}

impl Recount {
    /// The state at the start: the rows were not counted yet, and are due.
    pub(super) fn new() -> Recount {
        Recount { begun: Instant::now(), last: None, in_vain: 0 }
    }

    /// The time at which the rows are to be counted; `None` while the counters are right as far as anybody
    /// knows.
    pub(super) fn due(&self, slot: &Slot) -> Option<Instant> {
        let Some(last) = &self.last else { return Some(self.begun) };
        let among_dead = claim_floors::are_used();
        let pause = match slot.recount.load(Acquire) {
            true => SOON,
            false if slot.wakes.load(Acquire) != last.wakes && !among_dead => REGULAR,
            false => return None,
        };
        let share = if among_dead { SHARE_AMONG_DEAD } else { SHARE };
        last.ended.checked_add(pause.max(last.took.saturating_mul(share)))
    }

    /// Counts the rows, if it is time for that.
    ///
    /// # Errors
    ///
    /// The database's.
    pub(super) fn step(&mut self, slot: &Slot) -> Result<(), PgError> {
        let begun = Instant::now();
        if self.due(slot).is_none_or(|due| begun < due) {
            return Ok(());
        }
        let wakes = slot.wakes.load(Acquire);
        // If commits come all the time, there is never a better moment.
        let counted = count(slot, self.in_vain >= PATIENCE);
        let ended = Instant::now();
        self.last = Some(Last { ended, took: ended - begun, wakes });
        if matches!(counted, Ok(true)) {
            self.in_vain = 0;
        } else {
            self.in_vain += 1;
            pending::doubt_here();
        }
        counted.map(|_| ())
    }
}
