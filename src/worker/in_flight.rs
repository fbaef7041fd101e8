//! Requests in flight: claimed by this worker, and handed to the engine.
//!
//! A request may have many subtasks ([`Stages`]), each of which is a request to the engine. No row may wait
//! for another row's subtasks, so every row that is held has one of its own in the engine; the remaining room
//! goes to the rows that have the fewest there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;
use std::time::Instant;

use pgrx::{PgSqlErrorCode, pg_sys};
use steadytext_engine::{Error as EngineError, Event, EventKind, Request, Standing, Ticket};

use super::claims::{ClaimedRequest, HeldRequest, Outcome, Verdict};
use super::engine_link::EngineSubmission;
use super::prepare::PreparedRequest;
use crate::cache::{self, Author, CacheQuestion, NewEntry};
use crate::pg::activity::{self, ActivityLine, Phase};
use crate::pg::catalog_cache::ModelRegistry;
use crate::pg::error::{PgError, RequestFailure, counted};
use crate::pg::rate_counters;
use crate::registry::{MOST_REPLACED, Resolved};
use crate::request::{Answer, EndedRequest, RequestMetrics, Stages, Usage};

/// The order in which rows get what room there is: by priority, then as they were claimed.
type RowRank = (Reverse<u8>, u64);

/// A request that the engine works on.
struct RunningRequest {
    held: HeldRequest,
    owner: pg_sys::Oid,
    /// Length of its texts and parameters.
    bytes: usize,
    /// Number in the order of the claims, which is that of their priorities.
    order: u64,
    resolved: Resolved,
    salt: u64,
    standing: Standing,
    stages: Stages,
    /// Subtasks that an engine had when it went, which the next one gets.
    again: Vec<usize>,
    /// Subtasks that the engine has.
    under_way: usize,
    /// Cancels all of them.
    ticket: Ticket,
    verdict: Option<Verdict>,
    activity: Option<ActivityLine>,
    usage: Usage,
    text: String,
    since: Instant,
    metrics: RequestMetrics,
    /// The question to the cache.
    question: Option<CacheQuestion>,
    author: Author,
    /// Number of times that it has begun anew because the file of its model was replaced.
    replaced: u32,
    /// The row is no longer ours: nobody wants the result.
    abandoned: bool,
    alone: bool,
}

impl RunningRequest {
    /// The cache's entry for its answer.
    fn entry(&self, answer: &Answer) -> Option<NewEntry> {
        let (question, by) = self.question.as_ref().zip(self.author.get())?;
        question.entry(self.stages.whole(), by, answer, self.since.elapsed())
    }

    /// Begins anew, with another model. Results of the engine that are still to come are ignored.
    fn restart(&mut self, with: Resolved) {
        self.ticket.cancel();
        self.ticket = Ticket::new();
        self.question =
            self.question.as_ref().map(|question| question.with_model(self.stages.whole(), &with));
        self.metrics.name_model(with.name());
        self.resolved = with;
        self.stages.restart();
        self.again.clear();
        self.under_way = 0;
        self.author = Author::default();
        self.usage = Usage::default();
        self.text.clear();
    }

    /// Its place among the others.
    fn rank(&self) -> RowRank {
        (Reverse(self.standing.priority), self.order)
    }

    /// Whether nothing more is handed over: it has all, or no more is wanted.
    fn is_closed(&self) -> bool {
        (self.stages.is_handed_over() && self.again.is_empty()) || self.abandoned || self.verdict.is_some()
    }
}

/// The requests in flight.
#[derive(Default)]
pub(super) struct InFlight {
    requests: HashMap<HeldRequest, RunningRequest>,
    /// Requests that want something of which the engine has nothing yet, by their order; and some that did
    /// once.
    waiting: BTreeMap<RowRank, HeldRequest>,
    /// The row and the number of a subtask, by the engine's key.
    subtasks: HashMap<u64, (HeldRequest, usize)>,
    /// Never used twice, so that late events of a row that is claimed again are not taken for those of its
    /// new attempt.
    last_key: u64,
    /// Requests ever added.
    last_order: u64,
    /// Requests ended, of these failed, and the time they took in all.
    pub(super) ended: i64,
    pub(super) failed: i64,
    pub(super) spent_ms: f64,
    /// The cache's entries for those that have ended.
    pub(super) entries: Vec<NewEntry>,
    /// The registry as it was at the last claim.
    pub(super) registry: Rc<ModelRegistry>,
}

impl InFlight {
    /// The number of requests.
    pub(super) fn len(&self) -> usize {
        self.requests.len()
    }

    /// The lowest priority of those whose result is wanted.
    pub(super) fn lowest_priority(&self) -> Option<u8> {
        let wanted = self.requests.values().filter(|running| !running.abandoned);
        wanted.map(|running| running.standing.priority).min()
    }

    /// Whether one runs that must have nothing beside it.
    pub(super) fn has_alone(&self) -> bool {
        self.requests.values().any(|running| running.alone)
    }

    /// The length of the texts and parameters of all of them together.
    pub(super) fn bytes(&self) -> usize {
        self.requests.values().map(|running| running.bytes).sum()
    }

    /// The rows of those whose result is wanted.
    pub(super) fn held(&self) -> Vec<HeldRequest> {
        let mut held: Vec<HeldRequest> =
            self.requests.values().filter(|running| !running.abandoned).map(|running| running.held).collect();
        held.sort_unstable_by_key(|held| held.id);
        held
    }

    /// Adds a request; [`InFlight::next_subtask`] has its subtasks from now on.
    pub(super) fn add(&mut self, claimed: &ClaimedRequest, prepared: PreparedRequest, alone: bool) {
        let metrics = claimed.metrics(Some(prepared.resolved.name()));
        let PreparedRequest { resolved, salt, subtasks, question } = prepared;
        self.last_order += 1;
        let running = RunningRequest {
            held: claimed.held,
            owner: claimed.owner,
            bytes: claimed.bytes,
            order: self.last_order,
            resolved,
            salt,
            standing: Standing { owner: claimed.owner.to_u32(), priority: claimed.priority, paced: false },
            again: Vec::new(),
            under_way: 0,
            ticket: Ticket::new(),
            verdict: None,
            activity: activity::begin(claimed.request_id, claimed.owner, &claimed.request_type),
            stages: Stages::new(subtasks),
            usage: Usage::default(),
            text: String::new(),
            since: Instant::now(),
            metrics,
            question,
            author: Author::default(),
            replaced: 0,
            abandoned: false,
            alone,
        };
        self.waiting.insert(running.rank(), claimed.held);
        self.requests.insert(claimed.held, running);
    }

    /// The subtask to be handed to the engine next, as long as there is room for `capacity` of them in all,
    /// and beyond that for rows of which the engine has none.
    pub(super) fn next_subtask(&mut self, capacity: usize) -> Option<EngineSubmission> {
        let running = match self.first_waiting() {
            Some(held) => self.requests.get_mut(&held)?,
            None if self.subtasks.len() >= capacity => return None,
            None => {
                let open = self.requests.values_mut().filter(|running| !running.is_closed());
                open.min_by_key(|running| (running.under_way, running.rank()))?
            }
        };
        let index = running.again.pop().or_else(|| running.stages.take_next())?;
        running.under_way += 1;
        self.last_key += 1;
        self.subtasks.insert(self.last_key, (running.held, index));
        let work = running.stages.work(index, &running.resolved);
        let dedup_key = running.question.as_ref().and_then(|_| cache::dedup_key_of(&work));
        let request = Request {
            key: self.last_key,
            model: running.resolved.source.clone(),
            salt: running.salt,
            dedup_key,
            work,
        };
        Some(EngineSubmission { request, standing: running.standing, ticket: running.ticket.clone() })
    }

    /// The first row of which the engine has nothing; it is taken from among the waiting ones. To look at all
    /// rows for each subtask would take the square of their number.
    fn first_waiting(&mut self) -> Option<HeldRequest> {
        while let Some((_, held)) = self.waiting.pop_first() {
            let waits = |running: &RunningRequest| running.under_way == 0 && !running.is_closed();
            if self.requests.get(&held).is_some_and(waits) {
                return Some(held);
            }
        }
        None
    }

    /// Stops work whose row is no longer held.
    pub(super) fn abandon(&mut self, lost: &[HeldRequest]) {
        for held in lost {
            if let Some(running) = self.requests.get_mut(held) {
                if !std::mem::replace(&mut running.abandoned, true) {
                    running.metrics.cancelled();
                }
                running.ticket.cancel();
            }
        }
        self.requests.retain(|_, running| {
            let gone = running.abandoned && running.under_way == 0;
            if gone {
                rate_counters::spend(running.owner, running.usage.tokens());
                show(running, activity::end);
            }
            !gone
        });
    }

    /// Takes note of an event; returns the outcome if the request has ended and its result is wanted.
    pub(super) fn take(&mut self, event: Event) -> Option<Outcome> {
        let (held, index) = *self.subtasks.get(&event.key)?;
        let running = self.requests.get_mut(&held)?;
        match event.kind {
            EventKind::Loading => {
                show(running, |line| activity::set_phase(line, Phase::Loading, None));
                return None;
            }
            EventKind::Started { prompt_tokens, model } => {
                running.author.note(&model);
                if let Err(error) = running.resolved.check_loaded(&model) {
                    match running.resolved.next(&self.registry) {
                        Some(next) if running.verdict.is_none() => self.begin_anew(held, next),
                        _ => {
                            running
                                .verdict
                                .get_or_insert(Verdict::Failed(RequestFailure { error, retry: false }));
                            running.ticket.cancel();
                        }
                    }
                    return None;
                }
                if running.author.is_two() && running.verdict.is_none() && !running.abandoned {
                    if running.replaced < MOST_REPLACED {
                        let replaced = running.replaced + 1;
                        let same = running.resolved.clone();
                        self.begin_anew(held, same);
                        self.requests.get_mut(&held)?.replaced = replaced;
                    } else {
                        let error = running.resolved.replaced_too_often();
                        running.verdict = Some(Verdict::Failed(RequestFailure { error, retry: true }));
                        running.ticket.cancel();
                    }
                    return None;
                }
                // The request begins for the second time where the engine that had begun it has gone.
                running.text.clear();
                if running.stages.whole().is_text() {
                    running.usage = Usage::default();
                }
                running.usage.started(prompt_tokens, running.since);
                let tokens = running.usage.prompt_tokens.and_then(|tokens| usize::try_from(tokens).ok());
                show(running, |line| activity::set_phase(line, Phase::Prefill, tokens));
                return None;
            }
            EventKind::FirstToken { cached_tokens } => {
                running.usage.first_token(cached_tokens, running.since);
                return None;
            }
            // A request of many texts shows none of them as it grows.
            EventKind::Progress { .. } if !running.stages.whole().is_text() => return None,
            EventKind::Progress { generated_tokens, text } => {
                running.usage.grown(generated_tokens);
                running.text.push_str(&text);
                if let Some(line) = running.activity {
                    activity::set_progress(line, generated_tokens, event.turns, &running.text);
                }
                return None;
            }
            EventKind::Done(output) => {
                match running.stages.store(index, output) {
                    Ok(None) => {}
                    Ok(Some(EndedRequest { answer, are_whole, text })) => {
                        running.usage.ended(text, running.since);
                        self.entries.extend(running.entry(&answer).filter(|_| are_whole == [true]));
                        running.verdict = Some(Verdict::Answered(answer, running.usage));
                    }
                    Err(error) => {
                        running.verdict = Some(Verdict::Failed(RequestFailure { error, retry: false }))
                    }
                }
                if let (Some(line), Some((text, tokens))) = (running.activity, running.stages.shown()) {
                    activity::set_progress(line, tokens, event.turns, &text);
                }
            }
            // The engine has ended, and not the request.
            EventKind::Failed(EngineError::Stopped) => running.again.push(index),
            // The first one tells why; the others are cancelled, and that is no reason.
            EventKind::Failed(error) => {
                if running.verdict.is_none()
                    && !running.abandoned
                    && let Some(next) = running.resolved.pass_over(&error, &self.registry)
                {
                    self.begin_anew(held, next);
                    return None;
                }
                if running.verdict.is_none() {
                    let RequestFailure { error, retry } = running.resolved.failure(error);
                    let error = running.stages.now().blame(index, error);
                    running.verdict = Some(Verdict::Failed(RequestFailure { error, retry }));
                    running.ticket.cancel();
                }
            }
        }
        self.subtasks.remove(&event.key);
        running.under_way -= 1;
        if running.under_way == 0 && !running.is_closed() {
            self.waiting.insert(running.rank(), held);
            return None;
        }
        if running.under_way > 0 {
            return None;
        }
        self.end(held)
    }

    /// Lets a request begin anew, with this model. Nothing that the engine still says of it counts.
    fn begin_anew(&mut self, held: HeldRequest, with: Resolved) {
        self.subtasks.retain(|_, (of, _)| *of != held);
        if let Some(running) = self.requests.get_mut(&held) {
            running.restart(with);
            self.waiting.insert(running.rank(), held);
        }
    }

    /// Takes out a request of which the engine has nothing any more.
    fn end(&mut self, held: HeldRequest) -> Option<Outcome> {
        let mut running = self.requests.remove(&held)?;
        show(&running, activity::end);
        running.metrics.stop();
        rate_counters::spend(running.owner, running.usage.tokens());
        self.ended += 1;
        self.spent_ms += running.since.elapsed().as_secs_f64() * 1e3;
        if running.abandoned {
            return None;
        }
        let verdict = running.verdict?;
        if matches!(verdict, Verdict::Failed(_)) {
            self.failed += 1;
        }
        Some(Outcome { held, owner: running.owner, verdict, metrics: Some(running.metrics) })
    }

    /// Takes out the requests that these are subtasks of, as an engine has died that had them. Any of them
    /// may have been the reason; one that was alone there is.
    pub(super) fn suspect(&mut self, keys: &[u64]) -> Suspects {
        let rows: HashSet<HeldRequest> =
            keys.iter().filter_map(|key| self.subtasks.get(key)).map(|(held, _)| *held).collect();
        self.subtasks.retain(|_, (held, _)| !rows.contains(held));
        let taken: Vec<RunningRequest> = rows.iter().filter_map(|held| self.requests.remove(held)).collect();
        let is_only = taken.iter().filter(|running| !running.abandoned).count() == 1;
        let mut suspects = Suspects::default();
        for mut running in taken {
            show(&running, activity::end);
            running.ticket.cancel();
            running.metrics.stop();
            rate_counters::spend(running.owner, running.usage.tokens());
            let (held, owner) = (running.held, running.owner);
            if running.abandoned {
                continue;
            }
            let died = || Verdict::Failed(RequestFailure { error: died(held), retry: true });
            match running.verdict.or_else(|| (running.alone || is_only).then(died)) {
                None => suspects.others.push((held, owner)),
                Some(verdict) => {
                    self.ended += 1;
                    self.failed += i64::from(matches!(verdict, Verdict::Failed(_)));
                    suspects.ended.push(Outcome { held, owner, verdict, metrics: Some(running.metrics) });
                }
            }
        }
        suspects
    }

    /// Forgets everything; the rows of what was held.
    pub(super) fn clear(&mut self) -> Vec<HeldRequest> {
        let held = self.held();
        self.subtasks.clear();
        self.waiting.clear();
        self.requests.drain().for_each(|(_, running)| {
            running.ticket.cancel();
            show(&running, activity::end);
        });
        held
    }
}

/// The requests that [`InFlight::suspect`] has taken out.
#[derive(Default)]
pub(super) struct Suspects {
    /// Requests that were alone, and those whose end was certain already.
    pub(super) ended: Vec<Outcome>,
    /// Requests that are to be tried one at a time.
    pub(super) others: Vec<(HeldRequest, pg_sys::Oid)>,
}

/// As `rescue_requests` says of a worker.
fn died(held: HeldRequest) -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_SYSTEM_ERROR,
        format!(
            "The engine died while running this request ({})",
            counted(u64::try_from(held.attempt).unwrap_or(0), "attempts")
        ),
    )
}

fn show(running: &RunningRequest, change: impl FnOnce(ActivityLine)) {
    if let Some(line) = running.activity {
        change(line);
    }
}
