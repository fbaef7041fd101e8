//! Calls about vectorizers and enrichments: which of them are due, a step for one of them, and errors.

use std::time::Duration;

use pgrx::prelude::*;

use super::in_queue;
use crate::pg::error::PgError;
use crate::pg::interrupts;
use crate::pg::spi::{self, Mode};

/// The work to be done for definitions.
pub(in crate::worker) struct VectorizersOutlook {
    /// There is any definition.
    pub(in crate::worker) any_left: bool,
    /// Requests are under way.
    pub(in crate::worker) waits: bool,
    /// Seconds until something comes due.
    pub(in crate::worker) due_in_s: Option<f64>,
    /// Whether work is left to the process of the other pace.
    pub(in crate::worker) hands_over: bool,
}

/// The definitions for which something can be done, with their owners.
pub(in crate::worker) fn vectorizers_due(
    looks: bool,
    is_slow: bool,
) -> Result<Vec<(pgrx::Uuid, pg_sys::Oid)>, PgError> {
    let due = in_queue("look for work of vectorizers", || {
        spi::query(
            "select id, owner from steadytext.vectorizers_due($1, $2)",
            vec![looks.into(), is_slow.into()],
            Mode::ReadWrite,
            |row| row.get::<pgrx::Uuid>(1).zip(row.get::<pg_sys::Oid>(2)),
        )
    })?;
    Ok(due.into_iter().flatten().collect())
}

/// One step for a definition; true if there may be more to do. It is cancelled after the first of the limits,
/// and its process ended after the second one.
pub(in crate::worker) fn vectorizer_step(
    id: pgrx::Uuid,
    looks: bool,
    is_slow: bool,
    (limit, end): (Duration, Duration),
) -> Result<bool, PgError> {
    let step = in_queue("work for a vectorizer", || {
        let step = || {
            spi::query_one(
                "select steadytext.vectorizer_step($1, $2, $3)",
                vec![id.into(), looks.into(), is_slow.into()],
                Mode::ReadWrite,
                |row| row.get::<bool>(1),
            )
        };
        interrupts::with_time_limits(limit, end, step)
    });
    Ok(step?.flatten() == Some(true))
}

/// The work to be done next, after a round that took so many seconds.
pub(in crate::worker) fn vectorizers_outlook(
    is_slow: bool,
    round_s: f64,
) -> Result<Option<VectorizersOutlook>, PgError> {
    in_queue("look for work of vectorizers", || {
        spi::query_one(
            "select any_left, waits, due_in, hands_over from steadytext.vectorizers_outlook($1, $2)",
            vec![is_slow.into(), round_s.into()],
            Mode::ReadWrite,
            |row| VectorizersOutlook {
                any_left: row.get(1).unwrap_or(false),
                waits: row.get(2).unwrap_or(false),
                due_in_s: row.get(3),
                hands_over: row.get(4).unwrap_or(false),
            },
        )
    })
}

/// Whether there is a definition for the process of a pace.
pub(in crate::worker) fn has_vectorizers(is_slow: bool) -> Result<bool, PgError> {
    let outlook = in_queue("look for vectorizers", || {
        spi::query_one(
            "select any_left from steadytext.vectorizers_outlook($1, $2)",
            vec![is_slow.into(), 0.0_f64.into()],
            Mode::ReadWrite,
            |row| row.get::<bool>(1),
        )
    })?;
    Ok(outlook.flatten() == Some(true))
}

/// Writes down what has gone wrong with a definition. `code`: the SQLSTATE; `None` where the process was
/// ended.
pub(in crate::worker) fn note_definition_error(
    id: pgrx::Uuid,
    message: &str,
    code: Option<String>,
    is_slow: bool,
) -> Result<(), PgError> {
    in_queue("note an error of a vectorizer", || {
        spi::query(
            "select steadytext.note_definition_error($1, $2, $3, $4)",
            vec![id.into(), message.into(), code.into(), is_slow.into()],
            Mode::ReadWrite,
            |_| (),
        )
    })?;
    Ok(())
}
