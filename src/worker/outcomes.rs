//! Results on their way into the table, and those that cannot get there now, because their row is locked or
//! the table refuses it.
//!
//! Invariant: the memory for rows that cannot be written is bounded for each role. Beyond that an answer is
//! dropped, and only the row is remembered, to be given back when it can be; the role's other requests are
//! not claimed meanwhile, and everybody else's are.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::claims::{HeldRequest, Outcome, Verdict, refused};
use super::protocol::{self, Presence, StoreOutcome};
use crate::pg::error::PgError;
use crate::pg::set_aside;
use crate::request::RequestMetrics;

/// Rows written in one transaction.
const AT_ONCE: usize = 1000;
/// Rows of one role that wait, with their answers, and bytes of these.
const MAX_ANSWERS: usize = 128;
const MAX_ANSWER_BYTES: usize = 4 << 20;
/// Rows of one role that wait, before its requests are not claimed any more.
const MAX_ROWS: usize = 256;
/// Pause after outcomes could not be written.
const RETRY_PAUSE: Duration = Duration::from_millis(250);
/// The pauses between tries for a row that somebody has locked: the first, and the longest.
const LOCKED: Pauses = Pauses(RETRY_PAUSE, Duration::from_secs(4));
/// The pauses between tries for a row that the table refuses.
const REFUSED: Pauses = Pauses(Duration::from_secs(1), Duration::from_secs(60));
/// Time for which a role's requests are left alone each time.
const ROLE_PAUSE: Duration = Duration::from_secs(2);

/// The outcomes that wait to be written.
pub(super) struct Outcomes {
    ready: Vec<Outcome>,
    waiting: Vec<WaitingOutcome>,
    /// Later than now where the database does not take anything.
    not_before: Instant,
}

struct WaitingOutcome {
    held: HeldRequest,
    owner: pg_sys::Oid,
    /// `None`: the row is to be given back.
    verdict: Option<Verdict>,
    metrics: Option<RequestMetrics>,
    /// Whether the row is to be given back as one that must run alone.
    alone: bool,
    tries: u32,
    at: Instant,
}

/// The first pause and the longest one; each is twice as long as the one before.
#[derive(Clone, Copy)]
struct Pauses(Duration, Duration);

impl Pauses {
    fn after(self, tries: u32) -> Duration {
        (self.0 * 2_u32.pow(tries.min(6))).min(self.1)
    }
}

/// The outcomes of a role that wait.
#[derive(Default)]
struct RoleOutcomes {
    rows: usize,
    answers: usize,
    bytes: usize,
}

impl Outcomes {
    /// An empty list.
    pub(super) fn new() -> Outcomes {
        Outcomes { ready: Vec::new(), waiting: Vec::new(), not_before: Instant::now() }
    }

    /// Adds one.
    pub(super) fn push(&mut self, outcome: Outcome) {
        self.ready.push(outcome);
    }

    /// Adds a row that is to be given back, as nothing was done for it.
    pub(super) fn give_back(&mut self, held: HeldRequest, owner: pg_sys::Oid) {
        self.give_back_as(held, owner, false);
    }

    /// Adds a row that is to be given back, and to be tried alone. It is claimed again at once, unlike one
    /// that is set aside ([`set_aside`]), which nobody claims for a while.
    pub(super) fn set_apart(&mut self, held: HeldRequest, owner: pg_sys::Oid) {
        self.give_back_as(held, owner, true);
    }

    fn give_back_as(&mut self, held: HeldRequest, owner: pg_sys::Oid, alone: bool) {
        let at = Instant::now();
        self.waiting.push(WaitingOutcome { held, owner, verdict: None, metrics: None, alone, tries: 0, at });
    }

    /// Whether there are any.
    pub(super) fn is_empty(&self) -> bool {
        self.ready.is_empty() && self.waiting.is_empty()
    }

    /// The number of those that have not been tried: there are many where the database takes nothing.
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// The time at which there is something to write.
    pub(super) fn due(&self) -> Option<Instant> {
        let ready = (!self.ready.is_empty()).then_some(self.not_before);
        let due = ready.into_iter().chain(self.waiting.iter().map(|waiting| waiting.at)).min()?;
        Some(due.max(self.not_before))
    }

    /// Everything is due.
    pub(super) fn hurry(&mut self) {
        let now = Instant::now();
        self.not_before = now;
        self.waiting.iter_mut().for_each(|waiting| waiting.at = now);
    }

    /// Writes what is due. True: a request waits for another try now.
    ///
    /// # Errors
    ///
    /// The database's; what could not be written is kept.
    pub(super) fn store(&mut self, worker: &str, extension: pg_sys::Oid) -> Result<bool, PgError> {
        let now = Instant::now();
        if self.due().is_none_or(|due| due > now) {
            return Ok(false);
        }
        let (due, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.waiting).into_iter().partition(|waiting| waiting.at <= now);
        self.waiting = waiting;
        let mut failure = None;
        let mut retried = self.give_back_due(worker, &due, &mut failure);
        let mut tries: HashMap<HeldRequest, u32> = HashMap::new();
        for WaitingOutcome { held, owner, verdict, metrics, tries: before, .. } in due {
            let Some(verdict) = verdict else { continue };
            tries.insert(held, before);
            self.ready.push(Outcome { held, owner, verdict, metrics });
        }
        let mut ready = std::mem::take(&mut self.ready);
        ready.sort_unstable_by_key(|outcome| outcome.held.id);
        let mut parts: Vec<Vec<Outcome>> = Vec::new();
        while !ready.is_empty() {
            let rest = ready.split_off(ready.len().min(AT_ONCE));
            parts.push(std::mem::replace(&mut ready, rest));
        }
        parts.reverse();
        while let Some(mut part) = parts.pop() {
            // The database takes nothing now.
            if self.not_before > now {
                self.ready.extend(part);
                continue;
            }
            match protocol::store(worker, &part) {
                Ok(stored) => {
                    retried |= stored.values().any(|stored| *stored == StoreOutcome::Retried);
                    self.settle(part, &stored, &tries);
                }
                Err(error) if is_of_the_moment(&error, extension) => {
                    self.not_before = Instant::now() + RETRY_PAUSE;
                    self.ready.extend(part);
                    failure.get_or_insert(error);
                }
                // No function of the protocol can catch what the commit raises.
                Err(error) if part.len() > 1 => {
                    let rest = part.split_off(part.len() / 2);
                    parts.extend([rest, part]);
                    failure.get_or_insert(error);
                }
                Err(error) => {
                    for outcome in part {
                        let held = outcome.held;
                        let outcome = if matches!(outcome.verdict, Verdict::Failed(_)) {
                            outcome
                        } else {
                            let refused = refused(held, outcome.owner, error.clone(), false);
                            Outcome { metrics: outcome.metrics, ..refused }
                        };
                        self.wait(outcome, REFUSED, tries.get(&held).copied());
                    }
                    failure.get_or_insert(error);
                }
            }
        }
        self.keep_within_bounds(extension);
        failure.map_or(Ok(retried), Err)
    }

    /// Gives back rows without an answer. Whether there were any that could be.
    fn give_back_due(&mut self, worker: &str, due: &[WaitingOutcome], failure: &mut Option<PgError>) -> bool {
        let mut given_back = false;
        for alone in [false, true] {
            let rows: Vec<&WaitingOutcome> =
                due.iter().filter(|waiting| waiting.verdict.is_none() && waiting.alone == alone).collect();
            for part in rows.chunks(AT_ONCE) {
                let held: Vec<HeldRequest> = part.iter().map(|waiting| waiting.held).collect();
                let left = protocol::release(worker, &held, alone).unwrap_or_else(|error| {
                    failure.get_or_insert(error);
                    held.iter().map(|held| held.id).collect()
                });
                given_back |= left.len() < held.len();
                for waiting in part.iter().filter(|waiting| left.contains(&waiting.held.id)) {
                    self.waiting.push(WaitingOutcome {
                        held: waiting.held,
                        owner: waiting.owner,
                        verdict: None,
                        metrics: None,
                        alone,
                        tries: waiting.tries + 1,
                        at: Instant::now() + LOCKED.after(waiting.tries),
                    });
                }
            }
        }
        given_back
    }

    fn settle(
        &mut self,
        part: Vec<Outcome>,
        stored: &HashMap<i64, StoreOutcome>,
        tries: &HashMap<HeldRequest, u32>,
    ) {
        for outcome in part {
            let before = tries.get(&outcome.held).copied();
            match stored.get(&outcome.held.id) {
                Some(StoreOutcome::Locked) => self.wait(outcome, LOCKED, before),
                Some(StoreOutcome::Refused) => self.wait(outcome, REFUSED, before),
                Some(StoreOutcome::Done) => outcome.count(false),
                Some(StoreOutcome::Retried) => outcome.count(true),
                Some(StoreOutcome::Failed) => outcome.count_refused(),
                Some(StoreOutcome::Lost) => outcome.count_lost(),
                // The step took too long before it came to this one.
                None => self.ready.push(outcome),
            }
        }
    }

    fn wait(&mut self, outcome: Outcome, pauses: Pauses, tries: Option<u32>) {
        let Outcome { held, owner, verdict, metrics } = outcome;
        let tries = tries.unwrap_or(0);
        let at = Instant::now() + pauses.after(tries);
        let verdict = Some(verdict);
        self.waiting.push(WaitingOutcome {
            held,
            owner,
            verdict,
            metrics,
            alone: false,
            tries: tries + 1,
            at,
        });
    }

    /// Drops answers of roles that have many waiting, the latest ones first, and leaves their requests alone.
    fn keep_within_bounds(&mut self, extension: pg_sys::Oid) {
        if self.waiting.len() <= MAX_ANSWERS.min(MAX_ROWS) && self.bytes() <= MAX_ANSWER_BYTES {
            return;
        }
        let mut shares: HashMap<pg_sys::Oid, RoleOutcomes> = HashMap::new();
        for waiting in &mut self.waiting {
            let share = shares.entry(waiting.owner).or_default();
            share.rows += 1;
            let Some(verdict) = &waiting.verdict else { continue };
            let bytes = verdict.bytes();
            if share.answers >= MAX_ANSWERS || share.bytes + bytes > MAX_ANSWER_BYTES {
                waiting.verdict = None;
                continue;
            }
            share.answers += 1;
            share.bytes += bytes;
        }
        for (owner, share) in shares {
            if share.rows > MAX_ROWS {
                set_aside::leave_alone(extension, owner, ROLE_PAUSE + LOCKED.1);
            }
        }
    }

    /// Bytes of the answers that wait.
    pub(super) fn bytes(&self) -> usize {
        let waiting = self.waiting.iter().filter_map(|waiting| waiting.verdict.as_ref());
        waiting.chain(self.ready.iter().map(|outcome| &outcome.verdict)).map(Verdict::bytes).sum()
    }
}

/// Whether an error of a whole transaction does not concern a row in it. A missing table may be one that a
/// trigger names, or the extension's.
fn is_of_the_moment(error: &PgError, extension: pg_sys::Oid) -> bool {
    use PgSqlErrorCode as Code;
    if matches!(error.code, Code::ERRCODE_UNDEFINED_TABLE | Code::ERRCODE_UNDEFINED_FUNCTION) {
        let is_same = |now| matches!(now, Presence::Present(now, _) if now.extension == extension);
        return !protocol::presence().is_ok_and(is_same);
    }
    error.is_transient() || error.is_about_missing_objects()
}
