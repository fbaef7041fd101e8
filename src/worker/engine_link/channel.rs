//! The engine runs in this process, and serves the others of the server through its socket.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Once};
use std::time::{Duration, Instant};

use crossbeam_channel::Receiver;
use pgrx::{PgLogLevel, PgSqlErrorCode};
use steadytext_engine::memory::Machine;
use steadytext_engine::socket::Server;
use steadytext_engine::{Config, Engine, Event, Notifier, Reply};

use super::{EngineLink, Errand};
use crate::pg::bgworker::give_way;
use crate::pg::engine_leader;
use crate::pg::engine_page;
use crate::pg::error::{Failure, PgError};
use crate::pg::guc::EngineSettings;
use crate::pg::interrupts::{Line, with_signals_blocked};
use crate::pg::memory::{Offered, shared_buffers};

/// Requests claimed beyond those that run, so that the engine need not wait for the next claim.
const CLAIMED_AHEAD: usize = 16;
/// See [`fault`].
const FAULT: &str = "pg_stat_tmp/pg_steadytext.fault";
/// How often it is written to the server log that connections are refused.
const REFUSALS_INTERVAL: Duration = Duration::from_secs(60);
/// Requests that wait in the engine, from all databases and backends.
const QUEUE_CAPACITY: usize = 16_384;

/// An engine, the channel of its events, and the notifier that wakes the worker's main thread.
pub(super) struct ChannelLink {
    /// It is dropped before the engine, so that connections break before the engine ends: their owners then
    /// look for the next engine, and do not take the engine's end for that of their requests.
    server: Server,
    engine: Arc<Engine>,
    events: Receiver<Event>,
    reply: Reply,
    notifier: Notifier,
    capacity: usize,
    /// What was handed over when the engine had gone.
    unassigned: Vec<Errand>,
    /// Panics that were reported.
    panics: u64,
    /// The engine's end was reported.
    end_reported: bool,
    /// Connections whose refusal was reported, and when.
    refused: (u64, Option<Instant>),
    _offered: Option<Offered>,
}

/// How many requests a worker claims at once.
pub(super) fn capacity(settings: &EngineSettings) -> usize {
    settings.max_running + CLAIMED_AHEAD
}

impl ChannelLink {
    /// Starts the engine's threads and opens the socket.
    ///
    /// # Errors
    ///
    /// The system's, for want of threads or of the socket.
    pub(super) fn start(settings: &EngineSettings) -> Result<Self, PgError> {
        let no_socket = |error: std::io::Error| {
            PgError::new(
                PgSqlErrorCode::ERRCODE_IO_ERROR,
                format!("could not make the engine's socket \"{}\": {error}", engine_leader::SOCKET),
            )
            .hint("Check that the directory exists and that the server can write to it.")
        };
        let notifier = Notifier::new().map_err(no_socket)?;
        let (sender, events) = crossbeam_channel::unbounded();
        let config = Config {
            threads: settings.threads,
            nice: settings.nice,
            max_running: settings.max_running,
            queue_capacity: QUEUE_CAPACITY,
            context_length: settings.context_length,
            kv_cache_mb: settings.kv_cache_mb,
            backend: settings.backend,
            kv_cache_type: settings.kv_cache_type,
            memory_limit_mb: memory_limit_mb(settings),
            model_idle_timeout: (settings.model_idle_timeout_s != 0)
                .then(|| Duration::from_secs(settings.model_idle_timeout_s)),
            thread_start: Some(once(settings.nice)),
            ended: Some(notifier.handle()),
            figures: Some(Arc::new(engine_page::publish)),
            fault: fault(),
            ..Config::default()
        };
        with_signals_blocked(|| {
            let engine = Engine::start(config).map_err(|error| Failure::from(error).error)?;
            let engine = Arc::new(engine);
            let server =
                Server::start(Path::new(engine_leader::SOCKET), Arc::clone(&engine)).map_err(no_socket)?;
            let reply = Reply::with_notify(sender, notifier.handle());
            Ok(ChannelLink {
                server,
                engine,
                events,
                reply,
                notifier,
                capacity: capacity(settings),
                unassigned: Vec::new(),
                panics: 0,
                end_reported: false,
                refused: (0, None),
                _offered: Offered::new(),
            })
        })
    }
}

impl ChannelLink {
    /// What is to be said of connections that were refused.
    fn refusals(&mut self) -> Option<PgError> {
        let refused = self.server.refused();
        let (reported, at) = self.refused;
        if refused == reported || at.is_some_and(|at| at.elapsed() < REFUSALS_INTERVAL) {
            return None;
        }
        self.refused = (refused, Some(Instant::now()));
        let message = format!(
            "pg_steadytext's engine has refused {} connections: there is none left",
            refused - reported
        );
        let error = PgError::new(PgSqlErrorCode::ERRCODE_TOO_MANY_CONNECTIONS, message);
        Some(error.hint("A higher limit of open files (ulimit -n, LimitNOFILE) of the server allows more; open cursors of steadytext_generate_stream have one each."))
    }
}

impl EngineLink for ChannelLink {
    fn submit(&mut self, errand: Errand) {
        if self.engine.is_gone() {
            self.unassigned.push(errand);
        } else {
            let Errand { request, standing, ticket } = errand;
            self.engine.submit_as(request, standing, self.reply.clone(), ticket);
        }
    }

    fn exchange(&mut self) -> bool {
        self.notifier.reset();
        // What came before it went is still taken.
        !self.engine.is_gone() || !self.events.is_empty()
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    fn line(&self) -> Option<Line> {
        Some(Line { fd: self.notifier.as_raw_fd(), writing: false })
    }

    fn capacity(&self) -> usize {
        if self.engine.is_gone() { 0 } else { self.capacity }
    }

    fn models(&mut self) -> Vec<(String, u64)> {
        self.engine.loaded_models().into_iter().map(|model| (model.name, model.memory_mb)).collect()
    }

    fn idle_for(&self) -> Duration {
        self.server.idle_for()
    }

    fn trouble(&mut self) -> Option<PgError> {
        let gone = self.engine.is_gone() && !std::mem::replace(&mut self.end_reported, true);
        let panics = self.engine.statistics().panics;
        let new = panics - std::mem::replace(&mut self.panics, panics);
        engine_leader::count_panics(new);
        let what = match (gone, new) {
            (true, _) => "pg_steadytext's engine failed whatever it did, and is started anew",
            (false, 1..) => "pg_steadytext's engine failed at a request, and goes on",
            (false, 0) => return self.refusals(),
        };
        Some(
            PgError::internal(what)
                .hint("This is a bug in pg_steadytext; please report it with the error of the request."),
        )
    }

    /// Those that it has not begun have come back as events by then.
    fn leave(self: Box<Self>) -> Vec<Errand> {
        engine_leader::close();
        self.unassigned
    }
}

/// Makes the engine panic, for tests of what happens then: at the place that the server's environment names,
/// as long as a file is there.
fn fault() -> Option<Arc<dyn Fn(&'static str) + Send + Sync>> {
    let place = std::env::var("STEADYTEXT_TEST_FAULT").ok()?;
    Some(Arc::new(move |here| {
        assert!(here != place || !Path::new(FAULT).exists(), "a fault in {here}");
    }))
}

/// What every engine thread runs first, and the first of them does: the process gives way to others.
fn once(nice: i32) -> Arc<dyn Fn() + Send + Sync> {
    let once = Once::new();
    Arc::new(move || once.call_once(|| give_way(nice)))
}

/// How much memory the engine may take, said in the log with what it was computed from; 0 (no limit) where
/// nothing is known.
fn memory_limit_mb(settings: &EngineSettings) -> u64 {
    let machine = Machine::read();
    let shared = shared_buffers();
    let (limit_mb, why) = match (settings.memory_limit_mb, machine.engine_bytes(shared)) {
        (0, Some(bytes)) => {
            let available_mb = machine.available_bytes().unwrap_or(0) >> 20;
            let whose = match &machine.group {
                Some((limit, group)) if Some(*limit) == machine.available_bytes() => {
                    format!("the limit of the control group \"{}\"", group.display())
                }
                _ => "the machine's memory".to_owned(),
            };
            let why = format!(
                "four fifths of {available_mb} MB ({whose}), less {} MB of shared_buffers",
                shared >> 20
            );
            (bytes >> 20, why)
        }
        (0, None) => (0, String::new()),
        (set, _) => (set, "pg_steadytext.memory_limit_mb".to_owned()),
    };
    let message = match limit_mb {
        0 => "pg_steadytext's engine may take any amount of memory: the machine's cannot be told".to_owned(),
        limit_mb => format!("pg_steadytext's engine may take {limit_mb} MB of memory: {why}"),
    };
    PgError::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message).report(PgLogLevel::LOG);
    limit_mb
}
