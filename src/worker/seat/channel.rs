//! The engine runs in this process, and serves the others of the server through its socket.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Once};
use std::time::Duration;

use crossbeam_channel::Receiver;
use pgrx::PgSqlErrorCode;
use steadytext_engine::socket::Server;
use steadytext_engine::{Bell, Config, Engine, Event, Reply, Request, Ticket};

use super::Seat;
use crate::pg::bgworker::give_way;
use crate::pg::error::{Failure, PgError};
use crate::pg::guc::EngineSettings;
use crate::pg::interrupts::{Line, with_signals_blocked};
use crate::pg::seat;

/// Requests claimed beyond those that run, so that the engine need not wait for the next claim.
const CLAIMED_AHEAD: usize = 16;
/// Requests that wait in the engine, from all databases and backends.
const QUEUE_CAPACITY: usize = 16_384;

/// An engine, the channel of its events, and the bell that wakes the worker's main thread.
pub(super) struct ChannelSeat {
    /// Before the engine, so that nobody is told of the engine's end as if it were the request's: connections break, and their
    /// owners look for the next engine.
    server: Server,
    engine: Arc<Engine>,
    events: Receiver<Event>,
    reply: Reply,
    bell: Bell,
    capacity: usize,
}

/// How many requests a worker claims at once.
pub(super) fn capacity(settings: &EngineSettings) -> usize {
    settings.max_running + CLAIMED_AHEAD
}

impl ChannelSeat {
    /// Starts the engine's threads and opens the socket.
    ///
    /// # Errors
    ///
    /// The system's, for want of threads or of the socket.
    pub(super) fn start(settings: &EngineSettings) -> Result<Self, PgError> {
        let no_socket = |error: std::io::Error| {
            PgError::new(
                PgSqlErrorCode::ERRCODE_IO_ERROR,
                format!("could not make the engine's socket \"{}\": {error}", seat::SOCKET),
            )
            .hint("Check that the directory exists and that the server can write to it.")
        };
        let bell = Bell::new().map_err(no_socket)?;
        let (sender, events) = crossbeam_channel::unbounded();
        let config = Config {
            threads: settings.threads,
            nice: settings.nice,
            max_running: settings.max_running,
            queue_capacity: QUEUE_CAPACITY,
            context_length: settings.context_length,
            kv_cache_mb: settings.kv_cache_mb,
            memory_limit_mb: match settings.memory_limit_mb {
                0 => machine_memory_mb() * 4 / 5,
                limit => limit,
            },
            model_idle_timeout: (settings.model_idle_timeout_s != 0)
                .then(|| Duration::from_secs(settings.model_idle_timeout_s)),
            thread_start: Some(once(settings.nice)),
            ..Config::default()
        };
        with_signals_blocked(|| {
            let engine = Engine::start(config).map_err(|error| Failure::from(error).error)?;
            let engine = Arc::new(engine);
            let server = Server::start(Path::new(seat::SOCKET), Arc::clone(&engine)).map_err(no_socket)?;
            let reply = Reply::with_bell(sender, bell.ringer());
            Ok(ChannelSeat { server, engine, events, reply, bell, capacity: capacity(settings) })
        })
    }
}

impl Seat for ChannelSeat {
    fn submit(&mut self, request: Request, ticket: Ticket) {
        self.engine.submit_with(request, self.reply.clone(), ticket);
    }

    fn exchange(&mut self) -> bool {
        self.bell.silence();
        true
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    fn line(&self) -> Option<Line> {
        Some(Line { fd: self.bell.as_raw_fd(), writing: false })
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn models(&mut self) -> Vec<(String, u64)> {
        self.engine.loaded_models().into_iter().map(|model| (model.name, model.memory_mb)).collect()
    }

    fn idle_for(&self) -> Duration {
        self.server.idle_for()
    }

    fn leave(self: Box<Self>) -> Vec<(Request, Ticket)> {
        // They end with the process.
        Vec::new()
    }
}

/// What every engine thread runs first, and the first of them does: the process gives way to others.
fn once(nice: i32) -> Arc<dyn Fn() + Send + Sync> {
    let once = Once::new();
    Arc::new(move || once.call_once(|| give_way(nice)))
}

/// The machine's memory; 0 (no limit) where it cannot be told.
fn machine_memory_mb() -> u64 {
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|kb| kb.parse::<u64>().ok())
        .map_or(0, |kb| kb / 1024)
}
