//! Claimed requests whose model is on its way: their rows are kept, with their leases, until its download has
//! ended, and then given back, to be claimed in their turn.
//!
//! Invariant: none of their texts is kept, so that however many wait, there is room for requests of other
//! models.

use std::collections::HashMap;

use pgrx::PgSqlErrorCode;
use pgrx::pg_sys;

use super::claims::HeldRequest;
use crate::pg::error::PgError;
use crate::pg::pulls::{self, DownloadState, DownloadTicket, WantedDownload};
use crate::pg::transaction::transaction;
use crate::registry::DownloadRequest;
use crate::request::RequestMetrics;

/// Requests that are kept at most; others are tried again later.
const MOST: usize = 4096;

/// Requests that wait for downloads.
#[derive(Default)]
pub(super) struct Awaiting {
    waiting: Vec<AwaitingRequest>,
    /// Downloads, by the names of their models.
    tickets: HashMap<String, DownloadTicket>,
}

struct AwaitingRequest {
    held: HeldRequest,
    owner: pg_sys::Oid,
    turn: Turn,
    metrics: RequestMetrics,
}

/// The download that a request waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Turn {
    /// Its model's.
    Own(DownloadTicket),
    /// Another model's: when that has ended, there is room for its own.
    Next(DownloadTicket),
}

impl Turn {
    fn ticket(self) -> DownloadTicket {
        match self {
            Turn::Own(ticket) | Turn::Next(ticket) => ticket,
        }
    }
}

/// A download that has ended.
pub(super) struct EndedDownload {
    /// The name of its model.
    pub(super) model: String,
    /// The rows that waited for it, whose they are, and what is counted of them.
    pub(super) rows: Vec<(HeldRequest, pg_sys::Oid, RequestMetrics)>,
    /// The rows that waited for the end of it, whatever became of it, and whose they are.
    pub(super) next: Vec<(HeldRequest, pg_sys::Oid)>,
    /// Whether the model is there now.
    pub(super) outcome: Result<(), PgError>,
}

impl Awaiting {
    /// The download of a model, which begins if it has not yet, as one that this role wants. Where there is
    /// no room for it, a download that must end before.
    ///
    /// # Errors
    ///
    /// The reason why no request can wait for it.
    pub(super) fn download(&mut self, owner: pg_sys::Oid, model: &str) -> Result<Turn, PgError> {
        if self.waiting.len() >= MOST {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_RESOURCES,
                format!("model \"{model}\" is being downloaded, and many requests wait for it"),
            ));
        }
        if let Some(ticket) = self.tickets.get(model) {
            return Ok(Turn::Own(*ticket));
        }
        let ticket = match begin(owner, model) {
            Err(error) if error.code == PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED => {
                return self.tickets.values().next().map(|ticket| Turn::Next(*ticket)).ok_or(error);
            }
            begun => begun?,
        };
        self.tickets.insert(model.to_owned(), ticket);
        Ok(Turn::Own(ticket))
    }

    /// Keeps a request until a download has ended.
    pub(super) fn add(&mut self, held: HeldRequest, owner: pg_sys::Oid, turn: Turn, metrics: RequestMetrics) {
        self.waiting.push(AwaitingRequest { held, owner, turn, metrics });
    }

    /// The downloads that need not be waited for any more.
    pub(super) fn take(&mut self) -> Vec<EndedDownload> {
        let mut ended = Vec::new();
        let tickets: Vec<(String, DownloadTicket)> =
            self.tickets.iter().map(|(name, ticket)| (name.clone(), *ticket)).collect();
        for (name, ticket) in tickets {
            let outcome = match pulls::look(ticket) {
                DownloadState::Running(_) => continue,
                DownloadState::Done(..) => Ok(()),
                DownloadState::Failed(error) => Err(error),
            };
            self.tickets.remove(&name);
            let (mut rows, mut next) = (Vec::new(), Vec::new());
            for waiting in self.waiting.extract_if(.., |waiting| waiting.turn.ticket() == ticket) {
                match waiting.turn {
                    Turn::Own(_) => rows.push((waiting.held, waiting.owner, waiting.metrics)),
                    Turn::Next(_) => next.push((waiting.held, waiting.owner)),
                }
            }
            ended.push(EndedDownload { model: name, rows, next, outcome });
        }
        ended
    }

    pub(super) fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    /// Their rows.
    pub(super) fn held(&self) -> Vec<HeldRequest> {
        self.waiting.iter().map(|waiting| waiting.held).collect()
    }

    /// Forgets rows that are no longer ours.
    pub(super) fn abandon(&mut self, lost: &[HeldRequest]) {
        for waiting in self.waiting.extract_if(.., |waiting| lost.contains(&waiting.held)) {
            waiting.metrics.cancelled();
        }
    }

    /// Forgets all of them; their rows.
    pub(super) fn clear(&mut self) -> Vec<HeldRequest> {
        let held = self.held();
        *self = Awaiting::default();
        held
    }
}

/// The download goes on for good: the worker may be another one when it ends.
fn begin(owner: pg_sys::Oid, model: &str) -> Result<DownloadTicket, PgError> {
    transaction("begin a download", || {
        let request = DownloadRequest::for_request(model)?;
        let text = serde_json::to_string(&request)
            .map_err(|error| PgError::internal(format!("a download cannot be written: {error}")))?;
        let key = request.key();
        let label = &*request.label;
        let wanted =
            WantedDownload { key: &key, label, request: &text, owner, wait: false, for_request: true };
        pulls::begin(&wanted).map(|(ticket, _)| ticket)
    })
}
