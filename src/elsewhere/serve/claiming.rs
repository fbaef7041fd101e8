//! What is claimed, when, and how much of its work is fetched.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::Ordering::Relaxed;

use postgres::Client;
use postgres::error::{Severity, SqlState};
use steadytext_engine::errand::{self, Prepared, Refusal};
use steadytext_engine::{Error, Standing};

use super::storing::Ending;
use super::{Alone, Server};
use crate::flight::Wish;
use crate::protocol::{self, Claimed, Wanted};
use crate::trouble::Trouble;

impl Server<'_> {
    /// Claims what there is room for. True: there may be more.
    pub(super) fn claim(&mut self, client: &mut Client) -> Result<bool, Trouble> {
        let options = &self.shared.options;
        let is_empty = self.flight.len() == 0 && self.outcomes.is_empty();
        if self.alone == Alone::Runs && is_empty {
            // There may be another one.
            self.alone = Alone::Wanted;
        }
        let is_alone = self.alone == Alone::Wanted;
        let must_wait = match self.alone {
            Alone::No => self.is_claimed_out,
            Alone::Wanted => !is_empty,
            Alone::Runs => true,
        };
        if must_wait || (options.once && self.has_claimed) {
            return Ok(false);
        }
        let limit = self.shared.reserve(if is_alone { 1 } else { options.concurrency });
        if limit == 0 {
            return Ok(false);
        }
        let wanted = Wanted {
            worker: &self.shared.worker,
            limit,
            lease_s: options.lease_s,
            after_role: self.last_role,
            alone: is_alone,
            models: &self.names,
            types: options.types.as_deref(),
        };
        let claimed = protocol::claim(client, wanted);
        let count = claimed.as_ref().map_or(0, Vec::len);
        self.shared.free(limit.saturating_sub(count));
        let claimed = match claimed {
            Ok(claimed) => claimed,
            Err(Trouble::Database(error)) if error.code() == Some(&SqlState::FEATURE_NOT_SUPPORTED) => {
                return Err(Trouble::Fatal(Trouble::Database(error).to_string()));
            }
            Err(error) => return Err(error),
        };
        self.database.claimed.fetch_add(count as u64, Relaxed);
        self.has_claimed |= count > 0 || !is_alone;
        if is_alone {
            self.alone = if count > 0 { Alone::Runs } else { Alone::No };
            self.is_claimed_out = false;
        } else {
            // Until something is heard, or it is time to look again.
            self.is_claimed_out = count < limit;
        }
        self.last_role = claimed.last().map(|claimed| claimed.owner).or(self.last_role);
        for claimed in claimed {
            self.add(claimed);
        }
        Ok(is_alone && count == 0 || !is_alone && count == limit)
    }

    /// Fetches more of the work of requests of which all was handed over that is here. True: there may be more of it to fetch.
    pub(super) fn fetch(&mut self, client: &mut Client) -> Result<bool, Trouble> {
        let Some(wish) = self.flight.wish() else { return Ok(false) };
        let Wish { held, first, ref report, .. } = wish;
        let came = protocol::more_work(client, &self.shared.worker, held, first, report.as_deref());
        let came = match came {
            Ok(came) => came.map(|came| errand::decode(&came).unwrap_or_else(|error| unreadable(&error))),
            // What is wrong with one row must not hold up the others.
            Err(Trouble::Database(error)) => {
                let said = error.as_db_error().filter(|said| said.parsed_severity() == Some(Severity::Error));
                let Some(said) = said else { return Err(error.into()) };
                let (message, code) = (said.message().to_owned(), said.code().code().to_owned());
                Some(Prepared::Refused(Refusal { message, code, retry: true }))
            }
            Err(error) => return Err(error),
        };
        match came {
            Some(came) => {
                if let Some(ended) = self.flight.fulfil(&wish, came) {
                    self.note_end(ended);
                }
            }
            None => {
                let gone = self.flight.abandon(&[held]);
                self.database.lost.fetch_add(gone as u64, Relaxed);
                self.shared.free(gone);
            }
        }
        Ok(true)
    }

    fn add(&mut self, claimed: Claimed) {
        let Claimed { held, owner, priority, prepared } = claimed;
        let prepared = errand::decode(&prepared).unwrap_or_else(|error| unreadable(&error));
        let errand = match prepared {
            Prepared::Errand(errand) if !errand.works.is_empty() => errand,
            Prepared::Errand(_) => {
                let message = "there is nothing to be done".to_owned();
                return self.push(
                    held,
                    Ending::Refused(Refusal { message, code: "XX000".to_owned(), retry: false }),
                );
            }
            Prepared::Refused(refusal) => return self.push(held, Ending::Refused(refusal)),
        };
        match self.models.source(&errand.model) {
            Ok(source) => {
                // Roles of one number in two databases may be two people.
                let mut hasher = DefaultHasher::new();
                (self.number, owner).hash(&mut hasher);
                let salt = hasher.finish();
                let standing =
                    Standing { owner: owner ^ ((self.number as u32) << 24), priority, paced: false };
                self.flight.add(held, errand, source, standing, salt);
            }
            Err(refusal) => {
                self.names = self.models.names(&self.registered);
                self.push(held, Ending::Refused(refusal));
            }
        }
    }
}

/// What is made of work that cannot be read.
fn unreadable(error: &Error) -> Prepared {
    Prepared::Refused(Refusal { message: error.to_string(), code: "08P01".to_owned(), retry: true })
}
