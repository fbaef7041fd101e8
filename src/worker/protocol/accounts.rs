//! Calls for the records beside the requests: the usage of roles, refusals, and heartbeats.

use pgrx::prelude::*;
use serde_json::Value as Json;

use super::in_queue;
use crate::pg::error::PgError;
use crate::pg::rate_counters::Saved;
use crate::pg::refusals::Refusal;
use crate::pg::spi::{self, Mode};

/// Writes down what roles have used.
pub(in crate::worker) fn save_usage(changed: &[Saved]) -> Result<(), PgError> {
    let roles: Vec<pg_sys::Oid> = changed.iter().map(|saved| saved.role).collect();
    let seconds: Vec<i64> = changed.iter().map(|saved| saved.second).collect();
    let counts = |of: fn(&Saved) -> &Vec<u32>| -> Vec<i64> {
        changed.iter().flat_map(|saved| of(saved).iter().map(|count| i64::from(*count))).collect()
    };
    in_queue("write down what roles have used", || {
        spi::query(
            "select steadytext.save_usage($1, $2, $3, $4)",
            vec![
                roles.into(),
                seconds.into(),
                counts(|saved| &saved.requests).into(),
                counts(|saved| &saved.tokens).into(),
            ],
            Mode::ReadWrite,
            |_| (),
        )
        .map(|_| ())
    })
}

/// The use of roles when it was written down.
pub(in crate::worker) fn saved_usage() -> Result<Vec<Saved>, PgError> {
    let counts = |column: Option<Vec<Option<i64>>>| -> Vec<u32> {
        let column = column.unwrap_or_default().into_iter();
        column.map(|count| u32::try_from(count.unwrap_or(0)).unwrap_or(0)).collect()
    };
    in_queue("read what roles have used", || {
        spi::query(
            "select owner, second, requests, tokens from steadytext.saved_usage()",
            vec![],
            Mode::ReadWrite,
            |row| Saved {
                role: row.get(1).unwrap_or(pg_sys::InvalidOid),
                second: row.get(2).unwrap_or(0),
                requests: counts(row.get(3)),
                tokens: counts(row.get(4)),
            },
        )
    })
}

/// Writes what was refused into the audit log; `dropped`: refusals of which nothing else is known.
pub(in crate::worker) fn note_refusals(refused: &[Refusal], dropped: u64) -> Result<(), PgError> {
    let texts =
        |of: fn(&Refusal) -> &String| refused.iter().map(|refusal| of(refusal).clone()).collect::<Vec<_>>();
    let times = |of: fn(&Refusal) -> i64| -> Vec<Option<TimestampWithTimeZone>> {
        refused.iter().map(|refusal| TimestampWithTimeZone::try_from(of(refusal)).ok()).collect()
    };
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let roles: Vec<pg_sys::Oid> = refused.iter().map(|refusal| refusal.role).collect();
    let sessions: Vec<pg_sys::Oid> = refused.iter().map(|refusal| refusal.session).collect();
    let counts: Vec<i64> = refused.iter().map(|refusal| number(refusal.count)).collect();
    in_queue("note refusals", || {
        spi::query(
            "select steadytext.note_refusals($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            vec![
                roles.into(),
                sessions.into(),
                texts(|refusal| &refusal.what).into(),
                texts(|refusal| &refusal.code).into(),
                texts(|refusal| &refusal.message).into(),
                counts.into(),
                times(|refusal| refusal.first).into(),
                times(|refusal| refusal.last).into(),
                number(dropped).into(),
            ],
            Mode::ReadWrite,
            |_| (),
        )
        .map(|_| ())
    })
}

/// Deletes a portion of what is older than the audit log keeps. Whether there may be more.
pub(in crate::worker) fn sweep_audit_log() -> Result<bool, PgError> {
    in_queue("sweep the audit log", || {
        let more = spi::query_one("select steadytext.sweep_audit_log()", vec![], Mode::ReadWrite, |row| {
            row.get::<bool>(1)
        })?;
        Ok(more.flatten() == Some(true))
    })
}

/// The report of a worker about itself.
pub(in crate::worker) struct Heartbeat<'a> {
    /// The worker's id.
    pub(in crate::worker) worker: &'a str,
    /// `running` or `paused`.
    pub(in crate::worker) status: &'a str,
    /// Loaded models.
    pub(in crate::worker) models: Vec<(String, u64)>,
    /// Requests running.
    pub(in crate::worker) active: usize,
    /// Requests ended since the worker started.
    pub(in crate::worker) total: i64,
    /// Number of these that have failed.
    pub(in crate::worker) errors: i64,
    /// Average time from claim to end.
    pub(in crate::worker) average_ms: f64,
}

/// Writes the worker's row of steadytext_daemon_health.
pub(in crate::worker) fn heartbeat(beat: &Heartbeat<'_>) -> Result<(), PgError> {
    let names: Vec<&str> = beat.models.iter().map(|(name, _)| name.as_str()).collect();
    let memory_mb: u64 = beat.models.iter().map(|(_, memory_mb)| memory_mb).sum();
    in_queue("record heartbeat", || {
        spi::query(
            "select steadytext.record_heartbeat($1, 'local', $2, $3, $4, $5, $6, $7, $8, $9)",
            vec![
                beat.worker.into(),
                beat.status.into(),
                env!("CARGO_PKG_VERSION").into(),
                pgrx::JsonB(Json::from(names)).into(),
                i32::try_from(memory_mb).unwrap_or(i32::MAX).into(),
                i32::try_from(beat.active).unwrap_or(i32::MAX).into(),
                beat.total.into(),
                beat.errors.into(),
                beat.average_ms.into(),
            ],
            Mode::ReadWrite,
            |_| (),
        )
        .map(|_| ())
    })
}
