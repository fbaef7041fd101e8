//! The way of what was claimed: to its answer in the cache, to the engine, or into the wait for the download
//! of its model.

use std::rc::Rc;

use pgrx::prelude::*;

use super::Worker;
use crate::pg::error::PgError;
use crate::pg::{guc, pending};
use crate::registry;
use crate::request::Usage;
use crate::worker::awaiting::EndedDownload;
use crate::worker::claims::{ClaimedRequest, Claims, Outcome, Verdict, refused};
use crate::worker::{cache_writer, prepare};

impl Worker {
    /// Prepares claimed requests, and hands those to the engine that the cache has no answer for. True: look
    /// at the engine again at once.
    pub(super) fn submit(&mut self, claims: Claims, limit: usize, alone: bool, bytes: usize) -> bool {
        let Claims { requests, config, models } = claims;
        // The claim ended with the request that exceeded them.
        let cut = requests.iter().map(|claimed| claimed.bytes).sum::<usize>() >= bytes;
        self.obey(config.clone());
        self.in_flight.registry = Rc::clone(&models);
        let claimed = requests.len();
        // Where a claim for a row that must run alone has found none, the others are claimed at once.
        self.maybe_more = alone || cut || claimed == limit;
        self.alone_due = alone && claimed > 0;
        self.maybe_more &= !self.paused;
        requests.iter().for_each(|claimed| pending::claimed(self.slot, claimed.owner));
        if let Some(last) = requests.last() {
            self.after_role = Some(last.owner);
        }
        let prepared: Vec<_> = registry::looking_once(|| {
            requests.iter().map(|claimed| prepare::prepare(claimed, &config, &models)).collect()
        });
        let asking = |(claimed, prepared)| cache_writer::CacheLookup::new(claimed, prepared);
        let questions: Vec<_> = requests.iter().zip(&prepared).map(asking).collect();
        let mut answers = cache_writer::look_up(&questions).unwrap_or_else(|error| {
            self.complain(error);
            Vec::new()
        });
        answers.resize(requests.len(), None);
        for ((claimed, prepared), answer) in requests.into_iter().zip(prepared).zip(answers) {
            if let Some(answer) = answer {
                self.in_flight.ended += 1;
                let (held, owner) = (claimed.held, claimed.owner);
                let verdict = Verdict::Answered(answer, Usage::default());
                let name = prepared.as_ref().ok().map(|prepared| prepared.resolved.name());
                let mut metrics = claimed.metrics(name);
                metrics.found();
                self.outcomes.push(Outcome { held, owner, verdict, metrics: Some(metrics) });
                continue;
            }
            match prepared {
                Ok(prepared) => {
                    if prepared.resolved.is_fallback {
                        self.warn_of_builtin();
                    }
                    self.in_flight.add(&claimed, prepared, alone);
                }
                Err(error) => self.refuse_or_wait(claimed, error),
            }
        }
        self.hand_over();
        self.publish();
        claimed > 0 || alone
    }

    /// A request that cannot be prepared has failed, unless its model can be downloaded.
    fn refuse_or_wait(&mut self, claimed: ClaimedRequest, error: PgError) {
        let (error, retry) = match error.missing_model.clone().filter(|_| guc::auto_pull()) {
            None => (error, false),
            Some(model) => match self.awaiting.download(claimed.owner, &model) {
                Ok(turn) => {
                    let metrics = claimed.metrics(Some(&model));
                    return self.awaiting.add(claimed.held, claimed.owner, turn, metrics);
                }
                Err(error) => {
                    let is_full = error.code == PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED;
                    let retry = is_full || error.is_transient();
                    (error, retry)
                }
            },
        };
        let metrics = claimed.metrics(None);
        let refused = refused(claimed.held, claimed.owner, error, retry);
        self.outcomes.push(Outcome { metrics: Some(metrics), ..refused });
    }

    /// Gives back the rows of requests whose model has arrived; fails those of one that will not.
    pub(super) fn resume(&mut self) {
        let ended = self.awaiting.take();
        if ended.is_empty() {
            return;
        }
        let registry = Rc::clone(&self.in_flight.registry);
        for EndedDownload { model, rows, next, outcome } in ended {
            next.into_iter().for_each(|(held, owner)| self.outcomes.give_back(held, owner));
            // A model that has arrived and cannot be found is not downloaded again and again.
            let outcome = outcome.and_then(|()| registry::of_any_task(Some(&model), &registry).map(|_| ()));
            for (held, owner, metrics) in rows {
                match &outcome {
                    Ok(()) => self.outcomes.give_back(held, owner),
                    Err(error) => {
                        let retry = error.is_transient();
                        let refused = refused(held, owner, error.clone(), retry);
                        self.outcomes.push(Outcome { metrics: Some(metrics), ..refused });
                    }
                }
            }
        }
        self.publish();
    }

    fn warn_of_builtin(&mut self) {
        if !std::mem::replace(&mut self.warned_of_builtin, true) {
            registry::builtin_warning().report(PgLogLevel::WARNING);
        }
    }
}
