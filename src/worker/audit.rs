//! The worker's part in the audit log: it writes refusals down, and deletes entries that are older than the
//! retention.
//!
//! The first refusal of a role is written at once, those that follow a minute later, so that a flood of them
//! is a few rows with counts. Each role has a clock of its own: nobody's flood delays entries about others.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use super::protocol;
use crate::pg::error::PgError;
use crate::pg::refusals;
use crate::pg::shmem::Slot;

/// Time for which refusals of a role gather before they are written.
const INTERVAL: Duration = Duration::from_secs(60);
/// Pause after refusals could not be written.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Pauses between two sweeps, and between the steps of one.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
const STEP_INTERVAL: Duration = Duration::from_secs(1);

/// The times at which refusals are written and swept.
pub(super) struct AuditKeeper {
    /// Time at which the next of those that gather is written.
    writes: Instant,
    /// After an error nothing is written before this moment.
    rests: Instant,
    /// Roles of which something was written within the interval, and when.
    written: HashMap<pg_sys::Oid, Instant>,
    /// Time at which the number of those was written that found no place.
    dropped: Option<Instant>,
    sweeps: Instant,
}

impl AuditKeeper {
    /// Everything is due.
    pub(super) fn new() -> AuditKeeper {
        let now = Instant::now();
        AuditKeeper { writes: now, rests: now, written: HashMap::new(), dropped: None, sweeps: now }
    }

    /// The time at which there is something to write; nothing wakes the worker for a sweep.
    pub(super) fn due(&self, slot: &Slot) -> Option<Instant> {
        if !refusals::any(slot) {
            return None;
        }
        Some(if refusals::any_new(slot) { self.rests } else { self.writes.max(self.rests) })
    }

    /// Does what is due.
    ///
    /// # Errors
    ///
    /// The database's.
    pub(super) fn step(&mut self, slot: &Slot) -> Result<(), PgError> {
        let now = Instant::now();
        if now >= self.sweeps {
            self.sweeps = now + SWEEP_INTERVAL;
            if protocol::sweep_audit_log()? {
                self.sweeps = now + STEP_INTERVAL;
            }
        }
        if self.due(slot).is_some_and(|due| now >= due) {
            self.rests = now + RETRY_INTERVAL;
            // After an error it looks at all of them again.
            self.writes = now;
            self.write_due(slot, now)?;
            self.rests = now;
        }
        Ok(())
    }

    /// Writes what was refused to roles of whom nothing was written within the interval.
    fn write_due(&mut self, slot: &Slot, now: Instant) -> Result<(), PgError> {
        refusals::look(slot);
        let (refused, dropped) = refusals::unwritten(slot);
        self.written.retain(|_, at| now < *at + INTERVAL);
        let (gathering, refused): (Vec<_>, Vec<_>) =
            refused.into_iter().partition(|refusal| self.written.contains_key(&refusal.role));
        let dropped_wait = self.dropped.map(|at| at + INTERVAL).filter(|due| dropped != 0 && now < *due);
        let dropped = if dropped_wait.is_some() { 0 } else { dropped };
        if !refused.is_empty() || dropped != 0 {
            protocol::note_refusals(&refused, dropped)?;
        }
        refusals::forget_written(slot, &refused, dropped);
        if dropped != 0 {
            self.dropped = Some(now);
        }
        self.written.extend(refused.iter().map(|refusal| (refusal.role, now)));
        let due = gathering.iter().filter_map(|refusal| Some(*self.written.get(&refusal.role)? + INTERVAL));
        // The refusals that were noted since were new, or joined those that have been looked at here.
        self.writes = due.chain(dropped_wait).min().unwrap_or(now + INTERVAL);
        Ok(())
    }

    /// Writes all refusals that were noted. Those that cannot be written wait; if this process ends after the
    /// transaction and before they are forgotten, they are written twice.
    ///
    /// # Errors
    ///
    /// The database's.
    pub(super) fn write(&mut self, slot: &Slot) -> Result<(), PgError> {
        let (refused, dropped) = refusals::unwritten(slot);
        if !refused.is_empty() || dropped != 0 {
            protocol::note_refusals(&refused, dropped)?;
        }
        refusals::forget_written(slot, &refused, dropped);
        Ok(())
    }
}
