//! The engine runs in another process of the server.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::Duration;

use steadytext_engine::socket::{Caller, Client, FromEngine, ServerState};
use steadytext_engine::{Error, Event, EventKind};

use super::terms::capacity;
use super::{EngineLink, EngineSubmission};
use crate::pg::engine_leader;
use crate::pg::guc;
use crate::pg::interrupts::WaitFd;

/// A connection to the engine, and the requests that the next engine would get.
pub(super) struct SocketLink {
    client: Client,
    /// Unfinished requests by key: in this order they are handed to the next engine.
    unfinished: BTreeMap<u64, SocketRequest>,
    events: VecDeque<Event>,
    models: Vec<(String, u64)>,
    /// The state that the engine has sent since it was asked for.
    state: Option<ServerState>,
    gone: bool,
}

struct SocketRequest {
    job: EngineSubmission,
    /// Its cancellation was sent.
    cancelled: bool,
}

impl SocketLink {
    /// Connects to the engine.
    ///
    /// # Errors
    ///
    /// An error where no engine takes connections.
    pub(super) fn connect() -> io::Result<Self> {
        if !engine_leader::is_open() {
            return Err(io::ErrorKind::ConnectionRefused.into());
        }
        SocketLink::connect_at_once()
    }

    /// As [`SocketLink::connect`], whether or not the leader says that there is an engine: by the leader.
    ///
    /// # Errors
    ///
    /// The errors of connecting.
    pub(super) fn connect_at_once() -> io::Result<Self> {
        Ok(SocketLink {
            client: Client::connect_as(
                Path::new(engine_leader::SOCKET),
                Caller { role: 0, process: std::process::id(), lasting: true },
            )?,
            unfinished: BTreeMap::new(),
            events: VecDeque::new(),
            models: Vec::new(),
            state: None,
            gone: false,
        })
    }

    /// Asks for the state of the engine, now and whenever it has changed.
    pub(super) fn watch(&mut self) {
        let asked = self.client.watch();
        self.note(asked);
    }

    /// The state of the engine, if it has said anything new.
    pub(super) fn take_state(&mut self) -> Option<ServerState> {
        self.state.take()
    }

    fn try_exchange(&mut self) -> io::Result<()> {
        for (key, submitted) in &mut self.unfinished {
            if submitted.job.ticket.is_cancelled() && !std::mem::replace(&mut submitted.cancelled, true) {
                self.client.cancel(*key)?;
            }
        }
        self.client.flush()?;
        while let Some(message) = self.client.receive()? {
            match message {
                // The error is one of the engine and not of the request, which the next engine will compute.
                FromEngine::Event(Event { kind: EventKind::Failed(Error::Stopped), .. }) => {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
                FromEngine::Event(event) => {
                    if matches!(event.kind, EventKind::Done(_) | EventKind::Failed(_)) {
                        self.unfinished.remove(&event.key);
                    }
                    self.events.push_back(event);
                }
                FromEngine::Models(models) => {
                    self.models = models.into_iter().map(|model| (model.name, model.memory_mb)).collect();
                }
                FromEngine::State(state) => self.state = Some(state),
                // The engine has no open file left; the next try may find one.
                FromEngine::Refused(_) => return Err(io::ErrorKind::ConnectionRefused.into()),
            }
        }
        Ok(())
    }

    /// Once the engine has gone, everything waits for the next one.
    fn note(&mut self, sent: io::Result<()>) {
        self.gone |= sent.is_err();
    }
}

impl EngineLink for SocketLink {
    fn submit(&mut self, job: EngineSubmission) {
        let key = job.request.key;
        let sent = self.client.submit_as(&job.request, job.standing);
        match sent {
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                let kind = EventKind::Failed(Error::InvalidRequest(error.to_string()));
                self.events.push_back(Event { key, turns: 0, kind });
            }
            sent => {
                self.unfinished.insert(key, SocketRequest { job, cancelled: false });
                self.note(sent);
            }
        }
    }

    fn exchange(&mut self) -> bool {
        if !self.gone {
            let exchanged = self.try_exchange();
            self.note(exchanged);
        }
        // The events that came before it went are still taken.
        !self.gone || !self.events.is_empty()
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    fn wait_fd(&self) -> Option<WaitFd> {
        Some(WaitFd { fd: self.client.as_raw_fd(), writing: self.client.wants_to_write() })
    }

    fn capacity(&self) -> usize {
        if self.gone { 0 } else { capacity(&guc::engine()) }
    }

    /// The models that the engine has reported last; asks again.
    fn models(&mut self) -> Vec<(String, u64)> {
        let asked = self.client.ask_for_models();
        self.note(asked);
        self.models.clone()
    }

    fn idle_for(&self) -> Duration {
        Duration::ZERO
    }

    fn leave(self: Box<Self>) -> Vec<EngineSubmission> {
        self.unfinished.into_values().map(|submitted| submitted.job).collect()
    }
}
