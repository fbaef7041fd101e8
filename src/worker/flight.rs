//! What the worker is holding: requests that the engine works on, and results that wait to be stored.
//!
//! A request may have many parts ([`Parts`]), each of which is a request to the engine. Every row that is held has one of its parts in
//! the engine, so that none waits for another row's; what room is left goes to the rows that have the fewest there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;
use std::time::Instant;

use pgrx::pg_sys;
use steadytext_engine::{Error as EngineError, Event, EventKind, Request, Standing, Ticket};

use super::parts::{Answer, Parts, Progress};
use super::protocol::Claimed;
use super::request::{Prepared, Resolved};
use super::seat::Errand;
use crate::cache::{self, Author, Entry, Question};
use crate::pg::activity::{self, Phase, Place};
use crate::pg::caches::Model;
use crate::pg::error::{Failure, PgError};

/// A row that this worker has claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Held {
    /// steadytext_queue.id.
    pub(super) id: i64,
    /// The attempt that fences it.
    pub(super) attempt: i32,
}

/// How a request ended.
#[derive(Debug, Clone)]
pub(super) enum Verdict {
    /// With an answer.
    Answered(Answer),
    /// Without a result.
    Failed(Failure),
}

impl Verdict {
    /// About how many bytes it takes.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Verdict::Answered(answer) => answer.bytes(),
            Verdict::Failed(failure) => failure.error.message.len(),
        }
    }
}

/// A result that waits to be stored.
#[derive(Debug, Clone)]
pub(super) struct Outcome {
    /// The row.
    pub(super) held: Held,
    /// Whose it is.
    pub(super) owner: pg_sys::Oid,
    /// How it ended.
    pub(super) verdict: Verdict,
}

/// In which order rows get what room there is: by priority, then as they were claimed.
type Rank = (Reverse<u8>, u64);

/// A request that the engine works on.
struct Flight {
    held: Held,
    owner: pg_sys::Oid,
    /// Length of its texts and parameters.
    bytes: usize,
    /// Number in the order of the claims, which is that of their priorities.
    order: u64,
    resolved: Resolved,
    salt: u64,
    standing: Standing,
    parts: Parts,
    progress: Progress,
    /// Parts that an engine had when it went, which the next one gets.
    again: Vec<usize>,
    /// Parts that the engine has.
    under_way: usize,
    /// Cancels all of them.
    ticket: Ticket,
    verdict: Option<Verdict>,
    place: Option<Place>,
    prompt_tokens: usize,
    text: String,
    since: Instant,
    /// For the cache.
    question: Option<Question>,
    author: Author,
    /// The row is no longer ours: nobody wants the result.
    abandoned: bool,
    alone: bool,
}

impl Flight {
    /// What the cache is to keep of it.
    fn entry(&self, answer: &Answer) -> Option<Entry> {
        let (question, by) = self.question.as_ref().zip(self.author.get())?;
        question.entry(&self.parts, by, answer, self.since.elapsed())
    }

    /// Begins anew, with another model. What the engine still has of it is of no use.
    fn restart(&mut self, with: Resolved) {
        self.ticket.cancel();
        self.ticket = Ticket::new();
        self.question = self.question.as_ref().map(|question| question.with_model(&self.parts, &with.source));
        self.resolved = with;
        self.progress = Progress::new(&self.parts);
        self.again.clear();
        self.under_way = 0;
        self.author = Author::default();
        self.prompt_tokens = 0;
        self.text.clear();
    }

    /// Its place among the others.
    fn rank(&self) -> Rank {
        (Reverse(self.standing.priority), self.order)
    }

    /// Whether nothing more is handed over: it has all, or no more is wanted.
    fn is_closed(&self) -> bool {
        (self.progress.is_handed_over() && self.again.is_empty()) || self.abandoned || self.verdict.is_some()
    }
}

/// All of them.
#[derive(Default)]
pub(super) struct Flights {
    flights: HashMap<Held, Flight>,
    /// Those of which the engine has nothing and that want something, by their order; and some that were that once.
    waiting: BTreeMap<Rank, Held>,
    /// By the engine's key: the row and the number of the part.
    parts: HashMap<u64, (Held, usize)>,
    /// Never used twice, so that late events of a row that is claimed again are not taken for those of its new attempt.
    last_key: u64,
    /// Requests ever added.
    last_order: u64,
    /// Requests ended, of these failed, and the time they took in all.
    pub(super) ended: i64,
    pub(super) failed: i64,
    pub(super) spent_ms: f64,
    /// What the cache is to keep of those that have ended.
    pub(super) entries: Vec<Entry>,
    /// The registry as it was at the last claim.
    pub(super) registry: Rc<Vec<Model>>,
}

impl Flights {
    /// How many there are.
    pub(super) fn len(&self) -> usize {
        self.flights.len()
    }

    /// The lowest priority of those whose result is wanted.
    pub(super) fn lowest_priority(&self) -> Option<u8> {
        let wanted = self.flights.values().filter(|flight| !flight.abandoned);
        wanted.map(|flight| flight.standing.priority).min()
    }

    /// Whether one runs that must have nothing beside it.
    pub(super) fn has_alone(&self) -> bool {
        self.flights.values().any(|flight| flight.alone)
    }

    /// How long the texts and parameters of all of them are together.
    pub(super) fn bytes(&self) -> usize {
        self.flights.values().map(|flight| flight.bytes).sum()
    }

    /// The rows of those whose result is wanted.
    pub(super) fn held(&self) -> Vec<Held> {
        let mut held: Vec<Held> =
            self.flights.values().filter(|flight| !flight.abandoned).map(|flight| flight.held).collect();
        held.sort_unstable_by_key(|held| held.id);
        held
    }

    /// Adds a request; [`Flights::next_part`] has its parts from now on.
    pub(super) fn add(&mut self, claimed: &Claimed, prepared: Prepared, alone: bool) {
        let Prepared { resolved, salt, parts, question } = prepared;
        self.last_order += 1;
        let flight = Flight {
            held: claimed.held,
            owner: claimed.owner,
            bytes: claimed.bytes,
            order: self.last_order,
            resolved,
            salt,
            standing: Standing { owner: claimed.owner.to_u32(), priority: claimed.priority, paced: false },
            progress: Progress::new(&parts),
            again: Vec::new(),
            under_way: 0,
            ticket: Ticket::new(),
            verdict: None,
            place: activity::begin(claimed.request_id, claimed.owner, &claimed.request_type),
            parts,
            prompt_tokens: 0,
            text: String::new(),
            since: Instant::now(),
            question,
            author: Author::default(),
            abandoned: false,
            alone,
        };
        self.waiting.insert(flight.rank(), claimed.held);
        self.flights.insert(claimed.held, flight);
    }

    /// The part to be handed to the engine next, as long as there is room for `capacity` of them in all, and beyond that for rows
    /// of which the engine has none.
    pub(super) fn next_part(&mut self, capacity: usize) -> Option<Errand> {
        let flight = match self.first_waiting() {
            Some(held) => self.flights.get_mut(&held)?,
            None if self.parts.len() >= capacity => return None,
            None => {
                let open = self.flights.values_mut().filter(|flight| !flight.is_closed());
                open.min_by_key(|flight| (flight.under_way, flight.rank()))?
            }
        };
        let index = flight.again.pop().or_else(|| flight.progress.take_next())?;
        flight.under_way += 1;
        self.last_key += 1;
        self.parts.insert(self.last_key, (flight.held, index));
        let work = flight.parts.work(index);
        let shared = flight.question.as_ref().and_then(|_| cache::flight(&work));
        let request = Request {
            key: self.last_key,
            model: flight.resolved.source.clone(),
            salt: flight.salt,
            dedup_key: shared,
            work,
        };
        Some(Errand { request, standing: flight.standing, ticket: flight.ticket.clone() })
    }

    /// The first row of which the engine has nothing; it is taken from among the waiting ones. To look at all rows for each part would
    /// take the square of their number.
    fn first_waiting(&mut self) -> Option<Held> {
        while let Some((_, held)) = self.waiting.pop_first() {
            let waits = |flight: &Flight| flight.under_way == 0 && !flight.is_closed();
            if self.flights.get(&held).is_some_and(waits) {
                return Some(held);
            }
        }
        None
    }

    /// Stops work whose row is no longer held.
    pub(super) fn abandon(&mut self, lost: &[Held]) {
        for held in lost {
            if let Some(flight) = self.flights.get_mut(held) {
                flight.abandoned = true;
                flight.ticket.cancel();
            }
        }
        self.flights.retain(|_, flight| {
            let gone = flight.abandoned && flight.under_way == 0;
            if gone {
                show(flight, activity::end);
            }
            !gone
        });
    }

    /// Takes note of an event; returns the outcome if the request has ended and its result is wanted.
    pub(super) fn take(&mut self, event: Event) -> Option<Outcome> {
        let (held, index) = *self.parts.get(&event.key)?;
        let flight = self.flights.get_mut(&held)?;
        match event.kind {
            EventKind::Loading => {
                show(flight, |place| activity::set_phase(place, Phase::Loading, None));
                return None;
            }
            EventKind::Started { prompt_tokens, model } => {
                flight.author.note(&model);
                if let Err(error) = flight.resolved.check_loaded(&model) {
                    match flight.resolved.next(&self.registry) {
                        Some(next) if flight.verdict.is_none() => {
                            flight.restart(next);
                            self.parts.retain(|_, (of, _)| *of != held);
                        }
                        _ => {
                            flight.verdict.get_or_insert(Verdict::Failed(Failure { error, retry: false }));
                            flight.ticket.cancel();
                        }
                    }
                    return None;
                }
                // For the second time, where the engine that had begun it has gone.
                flight.text.clear();
                flight.prompt_tokens =
                    if flight.parts.is_text() { prompt_tokens } else { flight.prompt_tokens + prompt_tokens };
                let tokens = flight.prompt_tokens;
                show(flight, |place| activity::set_phase(place, Phase::Prefill, Some(tokens)));
                return None;
            }
            EventKind::Progress { generated_tokens, text } => {
                flight.text.push_str(&text);
                if let Some(place) = flight.place {
                    activity::set_progress(place, generated_tokens, event.turns, &flight.text);
                }
                return None;
            }
            EventKind::Done(output) => {
                if let Some(outputs) = flight.progress.store(index, output) {
                    let is_whole = flight.parts.is_whole(&outputs);
                    flight.verdict = Some(match flight.parts.answer(outputs) {
                        Ok(answer) => {
                            self.entries.extend(flight.entry(&answer).filter(|_| is_whole));
                            Verdict::Answered(answer)
                        }
                        Err(error) => Verdict::Failed(Failure { error, retry: false }),
                    });
                }
            }
            // That is the engine's end, not the request's.
            EventKind::Failed(EngineError::Stopped) => flight.again.push(index),
            // The first one tells why; the others are cancelled, and that is no reason.
            EventKind::Failed(error) => {
                if flight.verdict.is_none()
                    && !flight.abandoned
                    && let Some(next) = flight.resolved.pass_over(&error, &self.registry)
                {
                    flight.restart(next);
                    self.parts.retain(|_, (of, _)| *of != held);
                    return None;
                }
                if flight.verdict.is_none() {
                    let Failure { error, retry } = Failure::from(error);
                    let error = flight.parts.blame(index, error);
                    flight.verdict = Some(Verdict::Failed(Failure { error, retry }));
                    flight.ticket.cancel();
                }
            }
        }
        self.parts.remove(&event.key);
        flight.under_way -= 1;
        if flight.under_way == 0 && !flight.is_closed() {
            self.waiting.insert(flight.rank(), held);
            return None;
        }
        if flight.under_way > 0 {
            return None;
        }
        self.end(held)
    }

    /// Takes out a request of which the engine has nothing any more.
    fn end(&mut self, held: Held) -> Option<Outcome> {
        let flight = self.flights.remove(&held)?;
        show(&flight, activity::end);
        self.ended += 1;
        self.spent_ms += flight.since.elapsed().as_secs_f64() * 1e3;
        if flight.abandoned {
            return None;
        }
        let verdict = flight.verdict?;
        if matches!(verdict, Verdict::Failed(_)) {
            self.failed += 1;
        }
        Some(Outcome { held, owner: flight.owner, verdict })
    }

    /// Forgets everything; the rows of what was held.
    pub(super) fn clear(&mut self) -> Vec<Held> {
        let held = self.held();
        self.parts.clear();
        self.waiting.clear();
        self.flights.drain().for_each(|(_, flight)| {
            flight.ticket.cancel();
            show(&flight, activity::end);
        });
        held
    }
}

/// A request that never reached the engine.
pub(super) fn refused(held: Held, owner: pg_sys::Oid, error: PgError, retry: bool) -> Outcome {
    Outcome { held, owner, verdict: Verdict::Failed(Failure { error, retry }) }
}

fn show(flight: &Flight, change: impl FnOnce(Place)) {
    if let Some(place) = flight.place {
        change(place);
    }
}
