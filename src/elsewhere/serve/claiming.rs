//! Claiming: which requests are claimed and when, and how much of their work is fetched.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use postgres::Client;
use postgres::error::{Severity, SqlState};
use steadytext_engine::remote_job::{self, Prepared, Refusal};
use steadytext_engine::{Error, Standing};

use super::storing::Ending;
use super::{Alone, Server, Set};
use crate::in_flight::{By, Wish};
use crate::log::Level;
use crate::protocol::{self, Claim, Claimed, Wanted};
use crate::turn_error::TurnError;

impl Server<'_> {
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
    fn room(&self, set: &Set) -> usize {
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
    ) -> Result<Vec<Claimed>, TurnError> {
        let set = &self.sets[number];
        let wanted = Wanted {
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

    /// Chooses what is claimed: the models of this machine for the engine, and for each endpoint its own,
    /// with the types that it can answer. Says what is asked for and not there.
    pub(super) fn choose_sets(&mut self) {
        let shared = self.shared;
        let types = shared.options.types.as_deref();
        let names = self.models.names(&self.registered, &shared.endpoints);
        let mut complaints: Vec<String> = Vec::new();
        for missing in self.models.missing(&names, &shared.endpoints) {
            complaints.push(format!(
                "model \"{missing}\" of --models is answered by no file and no endpoint of this machine"
            ));
        }
        let mut sets = Vec::with_capacity(1 + shared.endpoints.len());
        for endpoint in shared.endpoints.iter().filter(|endpoint| self.models.is_chosen(endpoint.name())) {
            let name = endpoint.name();
            let row = self.registered.iter().find(|model| model.name.eq_ignore_ascii_case(name));
            match row {
                // Bytes that are promised come from the file that has them.
                Some(row) if row.is_elsewhere && !row.has_sha256 => {}
                Some(row) if row.is_elsewhere => {
                    complaints.push(format!(
                        "model \"{name}\" has a sha256 in steadytext_models, which no endpoint can vouch for: it is left to others"
                    ));
                    continue;
                }
                _ => {
                    complaints.push(format!(
                        "model \"{name}\" of the endpoints has no row in steadytext_models with placement = 'elsewhere': it is left to others"
                    ));
                    continue;
                }
            }
            let can = endpoint.types().iter().copied();
            let of_set = can.filter(|can| types.is_none_or(|types| types.iter().any(|wanted| wanted == can)));
            let of_set: Vec<String> = of_set.map(str::to_owned).collect();
            if !of_set.is_empty() {
                let (models, types) = (vec![name.to_owned()], Some(of_set));
                sets.push(Set { models, types, endpoint: Some(Arc::clone(endpoint)), is_claimed_out: false });
            }
        }
        if !names.is_empty() {
            let types = types.map(<[String]>::to_vec);
            sets.push(Set { models: names, types, endpoint: None, is_claimed_out: false });
        }
        if sets.is_empty() {
            complaints.push("there is no model on this machine that could be served".to_owned());
        }
        let claims = sets.iter().map(|set| Claim::new(&set.models, set.types.as_deref())).collect::<Vec<_>>();
        if claims != self.claims {
            self.claims = claims;
            // The next heartbeat is due now: the server tells by it which requests nobody claims.
            self.heartbeat_at = Instant::now();
        }
        self.sets = sets;
        if complaints != self.complaints {
            let level = if self.sets.is_empty() { Level::Error } else { Level::Warning };
            complaints.iter().for_each(|complaint| self.say(level, complaint));
            self.complaints = complaints;
        }
    }

    /// Fetches more of the work of requests of which all was handed over that is here. True: there may be
    /// more of it to fetch.
    pub(super) fn fetch(&mut self, client: &mut Client) -> Result<bool, TurnError> {
        let Some(wish) = self.in_flight.wish() else { return Ok(false) };
        let Wish { held, first, ref report, .. } = wish;
        let came = protocol::more_work(client, &self.shared.worker, held, first, report.as_deref());
        let came = match came {
            Ok(came) => came.map(|came| remote_job::decode(&came).unwrap_or_else(|error| unreadable(&error))),
            // An error that concerns one row must not hold up the others.
            Err(TurnError::Database(error)) => {
                let said = error.as_db_error().filter(|said| said.parsed_severity() == Some(Severity::Error));
                let Some(said) = said else { return Err(error.into()) };
                let (message, code) = (said.message().to_owned(), said.code().code().to_owned());
                Some(Prepared::Refused(Refusal { message, code, retry: true }))
            }
            Err(error) => return Err(error),
        };
        match came {
            Some(came) => {
                if let Some(ended) = self.in_flight.fulfil(&wish, came) {
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

    fn add(&mut self, claimed: Claimed) {
        let Claimed { held, owner, priority, prepared } = claimed;
        let prepared = remote_job::decode(&prepared).unwrap_or_else(|error| unreadable(&error));
        let job = match prepared {
            Prepared::Job(job) if !job.works.is_empty() => job,
            Prepared::Job(_) => {
                let message = "there is nothing to be done".to_owned();
                return self.push(
                    held,
                    Ending::Refused(Refusal { message, code: "XX000".to_owned(), retry: false }),
                );
            }
            Prepared::Refused(refusal) => return self.push(held, Ending::Refused(refusal)),
        };
        let endpoint = self.shared.endpoints.iter().find(|endpoint| {
            endpoint.name().eq_ignore_ascii_case(&job.model.name) && self.models.is_chosen(endpoint.name())
        });
        let by = match endpoint {
            Some(endpoint) => Ok(By::Endpoint(Arc::clone(endpoint))),
            None => self.models.source(&job.model).map(By::Engine),
        };
        match by {
            Ok(by) => {
                // Roles of one number in two databases may be two people.
                let mut hasher = DefaultHasher::new();
                (self.number, owner).hash(&mut hasher);
                let salt = hasher.finish();
                let standing =
                    Standing { owner: owner ^ ((self.number as u32) << 24), priority, paced: false };
                self.in_flight.add(held, job, by, standing, salt);
            }
            Err(refusal) => {
                self.choose_sets();
                self.push(held, Ending::Refused(refusal));
            }
        }
    }
}

/// The refusal of work that cannot be decoded.
fn unreadable(error: &Error) -> Prepared {
    Prepared::Refused(Refusal { message: error.to_string(), code: "08P01".to_owned(), retry: true })
}
