//! Claiming: which requests are claimed and when, and how much of their work is fetched.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use postgres::Client;
use postgres::error::{Severity, SqlState};
use steadytext_engine::remote_job::{self, JobRefusal, PreparedRow};
use steadytext_engine::{Error, Standing};

use super::storing::Ending;
use super::{Alone, ClaimedSet, DatabaseThread};
use crate::in_flight::{Computer, WorkRequest};
use crate::protocol::{self, ClaimRequest, ClaimedRow};
use crate::turn_error::TurnError;

impl DatabaseThread<'_> {
    /// Claims what there is room for. True: there may be more.
    pub(super) fn claim(&mut self, client: &mut Client) -> Result<bool, TurnError> {
        let options = &self.shared.options;
        let is_empty = self.in_flight.len() == 0 && self.outcomes.is_empty();
        if self.alone == Alone::Runs && is_empty {
            // The row that ran alone has ended, and there may be another one.
            self.alone = Alone::Wanted;
        }
        let is_alone = self.alone == Alone::Wanted;
        let must_wait = match self.alone {
            Alone::No => self.sets.iter().all(|set| set.is_claimed_out),
            Alone::Wanted => !is_empty,
            Alone::Runs => true,
        };
        if must_wait || !self.has_looked || (options.once && self.has_claimed) {
            return Ok(false);
        }
        let (mut is_more, mut is_crowded) = (false, false);
        // One after the other, so that none takes all the room for ever.
        for _ in 0..self.sets.len() {
            // Claimed work may show that a model is unusable, and the last set may have been removed with it.
            if self.sets.is_empty() {
                break;
            }
            let number = self.next_set % self.sets.len();
            self.next_set = number + 1;
            let set = &self.sets[number];
            if set.is_claimed_out && !is_alone {
                continue;
            }
            let wanted = self.room(set).min(if is_alone { 1 } else { options.concurrency });
            let limit = self.shared.reserve(wanted);
            if limit == 0 {
                is_crowded |= wanted > 0;
                continue;
            }
            let claimed = self.claim_of(client, number, limit, is_alone)?;
            let count = claimed.len();
            if is_alone && count > 0 {
                self.alone = Alone::Runs;
            }
            // Such a set rests until something is heard of new rows, or until it is time to look again.
            self.sets[number].is_claimed_out = count < limit && !is_alone;
            is_more |= count == limit && !is_alone;
            self.last_role = claimed.last().map(|claimed| claimed.owner).or(self.last_role);
            for claimed in claimed {
                self.add(claimed);
            }
            if self.alone == Alone::Runs {
                self.has_claimed = true;
                return Ok(false);
            }
        }
        if is_alone && !is_crowded {
            self.alone = Alone::No;
            return Ok(true);
        }
        self.has_claimed |= !is_crowded;
        Ok(is_more)
    }

    /// The number of requests that may be claimed of a set besides those that are held.
    fn room(&self, set: &ClaimedSet) -> usize {
        match &set.endpoint {
            None => usize::MAX,
            Some(endpoint) => endpoint.most_held().saturating_sub(self.in_flight.count_at(endpoint)),
        }
    }

    fn claim_of(
        &self,
        client: &mut Client,
        number: usize,
        limit: usize,
        is_alone: bool,
    ) -> Result<Vec<ClaimedRow>, TurnError> {
        let set = &self.sets[number];
        let wanted = ClaimRequest {
            worker: &self.shared.worker,
            limit,
            lease_s: self.shared.options.lease_s,
            after_role: self.last_role,
            alone: is_alone,
            models: &set.models,
            types: set.types.as_deref(),
        };
        let claimed = protocol::claim(client, wanted);
        let count = claimed.as_ref().map_or(0, Vec::len);
        self.shared.free(limit.saturating_sub(count));
        self.database.claimed.fetch_add(count as u64, Relaxed);
        match claimed {
            Err(TurnError::Database(error)) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
                Err(TurnError::Fatal(TurnError::Database(error).to_string()))
            }
            claimed => claimed,
        }
    }

    /// Fetches more of the work of requests of which all was handed over that is here. True: there may be
    /// more of it to fetch.
    pub(super) fn fetch(&mut self, client: &mut Client) -> Result<bool, TurnError> {
        let Some(request) = self.in_flight.work_request() else { return Ok(false) };
        let WorkRequest { held, first, ref report, .. } = request;
        let bytes = protocol::more_work(client, &self.shared.worker, held, first, report.as_deref());
        let prepared = match bytes {
            Ok(bytes) => {
                bytes.map(|bytes| remote_job::decode(&bytes).unwrap_or_else(|error| unreadable(&error)))
            }
            // An error that concerns one row must not hold up the others.
            Err(TurnError::Database(error)) => {
                let said = error.as_db_error().filter(|said| said.parsed_severity() == Some(Severity::Error));
                let Some(said) = said else { return Err(error.into()) };
                let (message, code) = (said.message().to_owned(), said.code().code().to_owned());
                Some(PreparedRow::Refused(JobRefusal { message, code, retry: true }))
            }
            Err(error) => return Err(error),
        };
        match prepared {
            Some(prepared) => {
                if let Some(ended) = self.in_flight.receive(&request, prepared) {
                    self.note_end(ended);
                }
            }
            None => {
                let gone = self.in_flight.abandon(&[held]);
                self.database.lost.fetch_add(gone as u64, Relaxed);
                self.shared.free(gone);
            }
        }
        Ok(true)
    }

    fn add(&mut self, claimed: ClaimedRow) {
        let ClaimedRow { held, owner, priority, prepared } = claimed;
        let prepared = remote_job::decode(&prepared).unwrap_or_else(|error| unreadable(&error));
        let job = match prepared {
            PreparedRow::Job(job) if !job.works.is_empty() => job,
            PreparedRow::Job(_) => {
                let message = "there is nothing to be done".to_owned();
                return self.end_row(
                    held,
                    Ending::Refused(JobRefusal { message, code: "XX000".to_owned(), retry: false }),
                );
            }
            PreparedRow::Refused(refusal) => return self.end_row(held, Ending::Refused(refusal)),
        };
        let endpoint = self.shared.endpoints.iter().find(|endpoint| {
            endpoint.name().eq_ignore_ascii_case(&job.model.name) && self.models.is_chosen(endpoint.name())
        });
        let computer = match endpoint {
            Some(endpoint) => Ok(Computer::Endpoint(Arc::clone(endpoint))),
            None => self.models.source(&job.model).map(Computer::Engine),
        };
        match computer {
            Ok(computer) => {
                // Roles of one number in two databases may be two people.
                let mut hasher = DefaultHasher::new();
                (self.number, owner).hash(&mut hasher);
                let salt = hasher.finish();
                let standing =
                    Standing { owner: owner ^ ((self.number as u32) << 24), priority, paced: false };
                self.in_flight.add(held, job, computer, standing, salt);
            }
            Err(refusal) => {
                self.choose_sets();
                self.end_row(held, Ending::Refused(refusal));
            }
        }
    }
}

/// The refusal of work that cannot be decoded.
fn unreadable(error: &Error) -> PreparedRow {
    PreparedRow::Refused(JobRefusal { message: error.to_string(), code: "08P01".to_owned(), retry: true })
}
