//! Leases: extended while requests are worked on, and given back when they cannot be completed.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use postgres::Client;

use super::DatabaseThread;
use crate::protocol::{self, HeartbeatParameters, HeldRow};
use crate::turn_error::TurnError;

impl DatabaseThread<'_> {
    /// Extends the leases of all rows in hand, and abandons rows that are no longer ours.
    pub(super) fn extend(&mut self, client: &mut Client) -> Result<(), TurnError> {
        // The server writes nothing for leases of which more than a half is left.
        let lease = Duration::from_secs(u64::try_from(self.shared.options.lease_s).unwrap_or(60));
        self.extend_at = Instant::now() + lease / 4;
        let mut held = self.in_flight.held();
        held.extend(self.outcomes.iter().map(|outcome| outcome.held));
        if held.is_empty() {
            return Ok(());
        }
        let lost = protocol::extend(client, &self.shared.worker, &held, self.shared.options.lease_s)?;
        let gone = self.in_flight.abandon(&lost);
        self.database.lost.fetch_add(gone as u64, Relaxed);
        self.shared.free(gone);
        Ok(())
    }

    /// Gives requests back after the program was told to stop: those not begun, or all of them when it is
    /// late.
    pub(super) fn stop(&mut self, client: &mut Client) -> Result<(), TurnError> {
        let is_late =
            self.shared.stopping() > 1 || self.stop_at.is_some_and(|stop_at| Instant::now() >= stop_at);
        let held = if is_late { self.in_flight.held() } else { self.in_flight.not_begun() };
        self.give_back(client, &held)?;
        if is_late {
            // Results that could not be stored up to now are given back by their leases.
            self.shared.free(self.outcomes.len());
            self.outcomes.clear();
        }
        Ok(())
    }

    /// Gives requests back.
    pub(super) fn give_back(&mut self, client: &mut Client, held: &[HeldRow]) -> Result<(), TurnError> {
        if held.is_empty() {
            return Ok(());
        }
        protocol::release(client, &self.shared.worker, held)?;
        let count = self.in_flight.abandon(held);
        self.shared.free(count);
        self.database.given_back.fetch_add(count as u64, Relaxed);
        Ok(())
    }

    /// Removes the worker's heartbeat, so that nobody takes the worker for one that has died. Without a
    /// connection the heartbeat stays, until the server deletes it for its age.
    pub(super) fn say_goodbye(&self, client: Option<&mut Client>) {
        if let Some(client) = client {
            drop(protocol::end_heartbeat(client, &self.shared.worker));
        }
    }

    /// Says that the worker lives.
    pub(super) fn heartbeat(&mut self, client: &mut Client) -> Result<(), TurnError> {
        let count = |counter: &AtomicU64| i64::try_from(counter.load(Relaxed)).unwrap_or(i64::MAX);
        let endpoint = format!("{}/{}", self.shared.host, std::process::id());
        protocol::heartbeat(
            client,
            &HeartbeatParameters {
                worker: &self.shared.worker,
                endpoint: &endpoint,
                status: if self.in_flight.len() > 0 { "running" } else { "idle" },
                models: &self.shared.engine.models(),
                active: i32::try_from(self.in_flight.len()).unwrap_or(i32::MAX),
                total: count(&self.database.completed) + count(&self.database.failed),
                errors: count(&self.database.failed),
                claims: &self.claims,
            },
        )?;
        Ok(())
    }
}
