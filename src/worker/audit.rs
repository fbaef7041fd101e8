//! What the worker does for the audit log: it writes down what was refused, and deletes what is older than is kept.
//!
//! The first refusal is written at once, those that follow a minute later, so that a flood of them is a few rows with counts.

use std::time::{Duration, Instant};

use super::protocol;
use crate::pg::error::PgError;
use crate::pg::refusals;
use crate::pg::shmem::Slot;

/// How long refusals gather before they are written.
const INTERVAL: Duration = Duration::from_secs(60);
/// How soon what could not be written is tried again.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Between two sweeps, and between the steps of one.
const SWEEP_INTERVAL: Duration = Duration::from_secs(3600);
const STEP_INTERVAL: Duration = Duration::from_secs(1);

/// When it does what.
pub(super) struct AuditKeeper {
    writes: Instant,
    sweeps: Instant,
}

impl AuditKeeper {
    /// Everything is due.
    pub(super) fn new() -> AuditKeeper {
        let now = Instant::now();
        AuditKeeper { writes: now, sweeps: now }
    }

    /// When there is something to write; nothing wakes the worker for a sweep.
    pub(super) fn due(&self, slot: &Slot) -> Option<Instant> {
        refusals::any(slot).then_some(self.writes)
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
        if now >= self.writes && refusals::any(slot) {
            self.writes = now + RETRY_INTERVAL;
            self.write(slot)?;
            self.writes = now + INTERVAL;
        }
        Ok(())
    }

    /// Writes what was refused. What cannot be written waits; if this process ends after the transaction and before it is
    /// forgotten, it is written twice.
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
