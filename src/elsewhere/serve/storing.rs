//! Outcomes of requests: noted when the engine or the server has decided them, and stored as soon as the
//! server accepts them.
//!
//! Invariant: an outcome is kept until the server has taken it or said that the row is no longer ours.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use postgres::Client;
use steadytext_engine::remote_job::{self, JobRefusal, PreparedRow, Report};

use super::DatabaseThread;
use crate::in_flight::{Again, EndedRow, RowOutcome, SpoiledModel, is_of_the_engine};
use crate::log::Severity;
use crate::protocol::{self, HeldRow, StoreReply};
use crate::turn_error::TurnError;

/// Results that are stored at once, and their bytes.
const MAX_STORED: usize = 256;
const MAX_STORED_BYTES: usize = 8 << 20;
/// Pauses before storing is tried again that has failed: the first, and the longest.
const RETRY_PAUSES: (Duration, Duration) = (Duration::from_millis(250), Duration::from_secs(30));

/// The end of a request that is not stored yet.
pub(super) enum Ending {
    Report {
        bytes: Vec<u8>,
        is_answer: bool,
        again: Again,
    },
    Refused(JobRefusal),
    /// The endpoint did not take it: it goes back to the queue.
    GivenBack,
}

/// A request that has ended.
pub(super) struct UnstoredRow {
    pub(super) held: HeldRow,
    ending: Ending,
    /// The time at which storing it is tried.
    pub(super) at: Instant,
    pause: Duration,
}

impl DatabaseThread<'_> {
    pub(super) fn take_events(&mut self) {
        while let Some(event) = self.first_event.take().or_else(|| self.events.1.try_recv().ok()) {
            if let Some(ended) = self.in_flight.take(event) {
                self.note_end(ended);
            }
        }
        while let Some(event) =
            self.first_endpoint_event.take().or_else(|| self.endpoint_events.1.try_recv().ok())
        {
            if let Some(ended) = self.in_flight.take_endpoint_event(event) {
                self.note_end(ended);
            }
        }
        self.database.held.store(self.in_flight.len(), Relaxed);
    }

    /// Takes note of a row for which there is nothing more to be done.
    pub(super) fn note_end(&mut self, ended: EndedRow) {
        let EndedRow { held, outcome, again, spoiled } = ended;
        if let Some(SpoiledModel { name, source, reason }) = spoiled {
            self.say(
                Severity::Error,
                &format!("{reason}; it is left alone for a minute, or until its file has changed"),
            );
            self.models.spoil(&name, &source);
            self.choose_sets();
        }
        let report = match outcome {
            RowOutcome::Report(report) => report,
            RowOutcome::Refused(refusal) => return self.end_row(held, Ending::Refused(refusal)),
            RowOutcome::NotNow => return self.end_row(held, Ending::GivenBack),
        };
        if is_of_the_engine(&report) {
            // The lease gives it back.
            return self.shared.free(1);
        }
        let is_answer = report.outputs.is_ok();
        match remote_job::encode(&report) {
            Ok(bytes) => self.end_row(held, Ending::Report { bytes, is_answer, again }),
            Err(error) => {
                let (message, code) = (error.to_string(), "XX000".to_owned());
                self.end_row(held, Ending::Refused(JobRefusal { message, code, retry: false }));
            }
        }
    }

    pub(super) fn end_row(&mut self, held: HeldRow, ending: Ending) {
        self.outcomes.push_back(UnstoredRow { held, ending, at: Instant::now(), pause: RETRY_PAUSES.0 });
    }

    /// Stores what is due.
    pub(super) fn store(&mut self, client: &mut Client) -> Result<(), TurnError> {
        loop {
            let now = Instant::now();
            let mut part: Vec<UnstoredRow> = Vec::new();
            let mut bytes = 0;
            let mut kept = VecDeque::new();
            while let Some(outcome) = self.outcomes.pop_front() {
                let length = match &outcome.ending {
                    Ending::Report { bytes, .. } => bytes.len(),
                    Ending::Refused(refusal) => refusal.message.len(),
                    Ending::GivenBack => 0,
                };
                let fits = part.is_empty() || bytes + length <= MAX_STORED_BYTES;
                if outcome.at <= now && part.len() < MAX_STORED && fits {
                    bytes += length;
                    part.push(outcome);
                } else {
                    kept.push_back(outcome);
                }
            }
            self.outcomes = kept;
            if part.is_empty() {
                return Ok(());
            }
            let stored = self.send(client, &part);
            let stored = match stored {
                Ok(stored) => stored,
                Err(error) => {
                    // One that the server refuses as a whole must not hold up the others, nor the program.
                    let is_lost = client.is_closed();
                    for mut outcome in part {
                        if !is_lost {
                            outcome.at = now + outcome.pause;
                            outcome.pause = (outcome.pause * 2).min(RETRY_PAUSES.1);
                        }
                        self.outcomes.push_back(outcome);
                    }
                    return Err(error);
                }
            };
            for mut outcome in part {
                match stored.get(&outcome.held.id) {
                    Some(StoreReply::Done) => {
                        let counter = match outcome.ending {
                            Ending::Report { is_answer: true, .. } => &self.database.completed,
                            Ending::GivenBack => &self.database.given_back,
                            _ => &self.database.failed,
                        };
                        counter.fetch_add(1, Relaxed);
                        self.shared.free(1);
                    }
                    Some(StoreReply::More(more)) => self.go_on(outcome, more),
                    Some(StoreReply::Lost) => {
                        self.database.lost.fetch_add(1, Relaxed);
                        self.shared.free(1);
                    }
                    Some(StoreReply::Locked | StoreReply::Refused) | None => {
                        outcome.at = Instant::now() + outcome.pause;
                        outcome.pause = (outcome.pause * 2).min(RETRY_PAUSES.1);
                        self.outcomes.push_back(outcome);
                    }
                }
            }
        }
    }

    /// Goes on with the next stage of a request.
    fn go_on(&mut self, outcome: UnstoredRow, more: &[u8]) {
        let UnstoredRow { held, ending, .. } = outcome;
        let Ending::Report { bytes, again, .. } = ending else { return };
        match (remote_job::decode(more), remote_job::decode::<Report>(&bytes)) {
            (Ok(PreparedRow::Job(job)), Ok(report)) if !job.works.is_empty() => {
                self.in_flight.go_on(held, job, again, report);
            }
            _ => {
                let message = "the next stage cannot be read".to_owned();
                self.end_row(
                    held,
                    Ending::Refused(JobRefusal { message, code: "08P01".to_owned(), retry: false }),
                );
            }
        }
    }

    fn send(&self, client: &mut Client, part: &[UnstoredRow]) -> Result<HashMap<i64, StoreReply>, TurnError> {
        let worker = &self.shared.worker;
        let (mut reports, mut refusals, mut given_back) = (Vec::new(), Vec::new(), Vec::new());
        for outcome in part {
            match &outcome.ending {
                Ending::Report { bytes, .. } => reports.push((outcome.held, bytes.as_slice())),
                Ending::Refused(refusal) => refusals.push((outcome.held, refusal)),
                Ending::GivenBack => given_back.push(outcome.held),
            }
        }
        let mut stored = HashMap::new();
        if !reports.is_empty() {
            stored.extend(protocol::report(client, worker, &reports)?);
        }
        if !refusals.is_empty() {
            stored.extend(protocol::refuse(client, worker, &refusals)?);
        }
        if !given_back.is_empty() {
            let kept = protocol::release(client, worker, &given_back)?;
            stored.extend(given_back.iter().map(|held| {
                (held.id, if kept.contains(&held.id) { StoreReply::Locked } else { StoreReply::Done })
            }));
        }
        Ok(stored)
    }
}
