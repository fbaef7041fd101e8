//! One client's connection, as the server sees it.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use super::frame::{Incoming, Outgoing};
use super::limits::{Caller, ConnectionRefusal};
use super::{FromEngine, ServerLimits};
use crate::{Error, Event, EventKind, Standing, Ticket};

/// A client that lets more than this wait for it is cut off.
const MAX_UNSENT_BYTES: usize = 64 << 20;

/// Pieces of a text that its reader has not read yet, before it pauses.
const MOST_UNREAD: u32 = 4;

/// A request of a client that has not ended.
pub(super) struct ClientRequest {
    /// The engine's key.
    pub(super) key: u64,
    pub(super) ticket: Ticket,
    /// Number of pieces that were sent and not read, where it waits for its reader.
    unread: Option<u32>,
}

impl ClientRequest {
    pub(super) fn new(key: u64, ticket: Ticket, standing: Standing) -> ClientRequest {
        ClientRequest { key, ticket, unread: standing.paced.then_some(0) }
    }

    /// A piece is sent.
    fn sent(&mut self) {
        if let Some(unread) = &mut self.unread {
            *unread += 1;
            self.ticket.hold(*unread >= MOST_UNREAD);
        }
    }

    /// A piece was read; whether the request goes on now.
    fn read(&mut self) -> bool {
        let Some(unread) = &mut self.unread else { return false };
        *unread = unread.saturating_sub(1);
        let goes_on = self.ticket.is_held() && *unread < MOST_UNREAD;
        if goes_on {
            self.ticket.hold(false);
        }
        goes_on
    }
}

/// One client.
pub(super) struct ClientConnection {
    pub(super) stream: UnixStream,
    pub(super) incoming: Incoming,
    pub(super) outgoing: Outgoing,
    /// The client's requests, by its keys.
    pub(super) requests: HashMap<u64, ClientRequest>,
    /// The role and process of the client, once it has said them.
    pub(super) caller: Option<Caller>,
    /// Whether the client is told the state of the engine.
    pub(super) watches: bool,
    /// Whether the state has changed since it was told.
    pub(super) is_behind: bool,
    /// Time since which it has nothing to do.
    since: Instant,
}

impl ClientConnection {
    pub(super) fn new(stream: UnixStream) -> ClientConnection {
        ClientConnection {
            stream,
            incoming: Incoming::default(),
            outgoing: Outgoing::default(),
            requests: HashMap::new(),
            caller: None,
            watches: false,
            is_behind: false,
            since: Instant::now(),
        }
    }

    /// Adds a message to those that are to be sent.
    pub(super) fn send(&mut self, message: &FromEngine) -> io::Result<()> {
        self.outgoing.push(message)?;
        if self.outgoing.len() > MAX_UNSENT_BYTES {
            return Err(ErrorKind::TimedOut.into());
        }
        Ok(())
    }

    pub(super) fn fail(&mut self, key: u64, error: Error) -> io::Result<()> {
        self.send(&FromEngine::Event(Event { key, turns: 0, kind: EventKind::Failed(error) }))
    }

    /// Tells why it is closed, as far as that goes without waiting: a message of some bytes to somebody who
    /// was told little before.
    pub(super) fn refuse(&mut self, refusal: ConnectionRefusal) {
        if self.outgoing.push(&FromEngine::Refused(refusal)).is_ok() {
            // If it does not go the client sees the end of the connection.
            let _ = self.outgoing.flush(&self.stream);
        }
    }

    /// Passes on what has happened to a request.
    pub(super) fn pass_on(&mut self, event: Event) -> io::Result<()> {
        let progress = matches!(event.kind, EventKind::Progress { .. });
        if let Some(submitted) = self.requests.get_mut(&event.key).filter(|_| progress) {
            submitted.sent();
        }
        self.send(&FromEngine::Event(event))
    }

    /// A piece of a text was read; whether its request goes on now.
    pub(super) fn has_read(&mut self, key: u64) -> bool {
        self.requests.get_mut(&key).is_some_and(ClientRequest::read)
    }

    /// Memory that its messages take.
    pub(super) fn memory(&self) -> u64 {
        (self.incoming.memory() + self.outgoing.memory()) as u64
    }

    /// A request has ended.
    pub(super) fn ended(&mut self, key: u64) {
        self.requests.remove(&key);
        self.since = Instant::now();
    }

    /// Whether it asks for nothing, and has been told everything. Not while nobody knows who it is.
    pub(super) fn is_idle(&self) -> bool {
        self.requests.is_empty()
            && self.outgoing.len() == 0
            && self.incoming.len() == 0
            && self.caller.is_some_and(|caller| !caller.lasting)
    }

    /// The time since which it has nothing to do.
    pub(super) fn since(&self) -> Instant {
        self.since
    }

    /// The time that it may still stay if nothing happens; None for no limit.
    pub(super) fn patience(&self, limits: &ServerLimits) -> Option<Duration> {
        let most = match self.caller {
            None => limits.silent,
            Some(_) if self.is_idle() => limits.idle,
            Some(_) => return None,
        };
        Some(most.saturating_sub(self.since.elapsed()))
    }
}
