//! Writes the usage of roles into its table, so that it is known after a restart of the server.
//!
//! Limits are checked against the counters in shared memory, which survive a worker. The table is written
//! from time to time, where anything has changed, and read once after the server's start. Usage that was
//! counted since the last writing is lost with the server.

use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};

use super::protocol;
use crate::pg::error::PgError;
use crate::pg::rate_counters;
use crate::pg::shmem::Slot;

/// Time for which counts gather before they are written.
const INTERVAL: Duration = Duration::from_secs(10);

/// The time at which they are written next.
pub(super) struct UsageKeeper {
    due: Instant,
}

impl UsageKeeper {
    /// A keeper that has written nothing down yet.
    pub(super) fn new() -> UsageKeeper {
        UsageKeeper { due: Instant::now() }
    }

    /// The time at which there is something to write.
    pub(super) fn due(&self, slot: &Slot) -> Option<Instant> {
        slot.usage_waits.load(Acquire).then_some(self.due)
    }

    /// Reads what was counted before the server's start, and writes what was since, if it is time for that.
    ///
    /// # Errors
    ///
    /// The database's.
    pub(super) fn step(&mut self, slot: &Slot) -> Result<(), PgError> {
        let now = Instant::now();
        if now < self.due {
            return Ok(());
        }
        if !rate_counters::is_restored(slot) {
            self.due = now + INTERVAL;
            rate_counters::restore(slot, &protocol::saved_usage()?);
        }
        if slot.usage_waits.load(Acquire) {
            self.due = now + INTERVAL;
            self.write(slot)?;
        }
        Ok(())
    }

    /// Writes what has changed.
    ///
    /// # Errors
    ///
    /// The database's; what could not be written is tried again.
    pub(super) fn write(&mut self, slot: &Slot) -> Result<(), PgError> {
        let changed = rate_counters::take_changed(slot);
        if changed.is_empty() {
            return Ok(());
        }
        let written = protocol::save_usage(&changed);
        if written.is_err() {
            rate_counters::put_back_changed(slot, &changed);
        }
        written
    }
}
