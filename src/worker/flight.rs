//! What the worker is holding: requests that the engine works on, and results that wait to be stored.

use std::collections::HashMap;
use std::time::Instant;

use steadytext_engine::{Event, EventKind, Output, Ticket};

use super::protocol::Claimed;
use crate::pg::activity::{self, Phase, Place};
use crate::pg::error::{Failure, PgError};

/// A row that this worker has claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Held {
    /// steadytext_queue.id.
    pub(super) id: i64,
    /// The attempt that fences it.
    pub(super) attempt: i32,
}

/// How a request ended.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    /// With a text.
    Text(String),
    /// With a vector.
    Embedding(Vec<f32>),
    /// Without a result.
    Failed(Failure),
}

/// A result that waits to be stored.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// The row.
    pub(super) held: Held,
    /// How it ended.
    pub(super) verdict: Verdict,
}

/// A request that the engine works on.
struct Flight {
    held: Held,
    ticket: Ticket,
    place: Option<Place>,
    text: String,
    since: Instant,
    /// The row is no longer ours: nobody wants the result.
    abandoned: bool,
    alone: bool,
}

/// All of them, by key.
#[derive(Default)]
pub(super) struct Flights {
    flights: HashMap<u64, Flight>,
    /// Requests ended, of these failed, and the time they took in all.
    pub(super) ended: i64,
    pub(super) failed: i64,
    pub(super) spent_ms: f64,
}

impl Flights {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.flights.len()
    }

    /// Whether one runs that must have nothing beside it.
    pub(super) fn has_alone(&self) -> bool {
        self.flights.values().any(|flight| flight.alone)
    }

    /// The rows of those whose result is wanted.
    pub(super) fn held(&self) -> Vec<Held> {
        let mut held: Vec<Held> =
            self.flights.values().filter(|flight| !flight.abandoned).map(|flight| flight.held).collect();
        held.sort_unstable_by_key(|held| held.id);
        held
    }

    /// Adds a request that was handed to the engine.
    pub(super) fn add(&mut self, claimed: &Claimed, ticket: Ticket, alone: bool) {
        let embedding = claimed.request_type == "embed";
        let flight = Flight {
            held: claimed.held,
            ticket,
            place: activity::begin(claimed.request_id, claimed.owner, embedding),
            text: String::new(),
            since: Instant::now(),
            abandoned: false,
            alone,
        };
        self.flights.insert(key(claimed.held), flight);
    }

    /// Stops work whose row is no longer held.
    pub(super) fn abandon(&mut self, ids: &[i64]) {
        for flight in self.flights.values_mut().filter(|flight| ids.contains(&flight.held.id)) {
            flight.abandoned = true;
            flight.ticket.cancel();
        }
    }

    /// Takes note of an event; returns the outcome if the request has ended and its result is wanted.
    pub(super) fn take(&mut self, event: Event) -> Option<Outcome> {
        let flight = self.flights.get_mut(&event.key)?;
        let verdict = match event.kind {
            EventKind::Loading => {
                show(flight, |place| activity::set_phase(place, Phase::Loading, None));
                return None;
            }
            EventKind::Started { prompt_tokens } => {
                // For the second time, where the engine that had begun it has gone.
                flight.text.clear();
                show(flight, |place| activity::set_phase(place, Phase::Prefill, Some(prompt_tokens)));
                return None;
            }
            EventKind::Progress { generated_tokens, text } => {
                flight.text.push_str(&text);
                if let Some(place) = flight.place {
                    activity::set_progress(place, generated_tokens, &flight.text);
                }
                return None;
            }
            EventKind::Done(Output::Text { text, .. }) => Verdict::Text(text),
            EventKind::Done(Output::Embedding(vector)) => Verdict::Embedding(vector),
            EventKind::Failed(error) => Verdict::Failed(Failure::from(error)),
        };
        let flight = self.flights.remove(&event.key)?;
        show(&flight, activity::end);
        self.ended += 1;
        self.spent_ms += flight.since.elapsed().as_secs_f64() * 1e3;
        if matches!(verdict, Verdict::Failed(_)) && !flight.abandoned {
            self.failed += 1;
        }
        (!flight.abandoned).then_some(Outcome { held: flight.held, verdict })
    }

    /// Forgets everything; the rows of what was held.
    pub(super) fn clear(&mut self) -> Vec<Held> {
        let held = self.held();
        self.flights.drain().for_each(|(_, flight)| {
            flight.ticket.cancel();
            show(&flight, activity::end);
        });
        held
    }
}

/// A request that never reached the engine.
pub(super) fn refused(held: Held, error: PgError, retry: bool) -> Outcome {
    Outcome { held, verdict: Verdict::Failed(Failure { error, retry }) }
}

/// The engine's key for a row. A row that is claimed again while the engine still ends its last attempt has another one.
pub(super) fn key(held: Held) -> u64 {
    ((held.id as u64) << 16) | u64::from(held.attempt as u16)
}

fn show(flight: &Flight, change: impl FnOnce(Place)) {
    if let Some(place) = flight.place {
        change(place);
    }
}
