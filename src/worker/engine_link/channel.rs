//! The engine runs in this process, and serves the others of the server through its socket.

use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::{Arc, Once};
use std::time::Duration;

use crossbeam_channel::Receiver;
use pgrx::PgSqlErrorCode;
use steadytext_engine::process::{QUEUE_CAPACITY, fault_while, give_way};
use steadytext_engine::socket::Server;
use steadytext_engine::watchdog::Watchdog;
use steadytext_engine::{Config, Engine, Event, Notifier, Reply};

use super::failures::{Reported, failed, hangs};
use super::terms::{Allowance, FAULT, capacity, fault_place};
use super::{EngineLink, EngineSubmission};
use crate::pg::engine_leader;
use crate::pg::engine_page;
use crate::pg::error::{PgError, RequestFailure};
use crate::pg::guc::{self, EngineSettings};
use crate::pg::interrupts::{WaitFd, with_signals_blocked};
use crate::pg::memory::Offered;

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
    /// Requests that were handed over when the engine had gone.
    unassigned: Vec<EngineSubmission>,
    reported: Reported,
    /// The engine's end was reported.
    end_reported: bool,
    watchdog: Watchdog,
    /// Whether it was reported that the engine hangs.
    hang_reported: bool,
    _offered: Option<Offered>,
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
        let allowance = Allowance::of(settings);
        allowance.report();
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
            memory_limit_mb: allowance.limit_mb,
            model_idle_timeout: settings.model_idle_timeout,
            thread_start: Some(once(settings.nice)),
            ended: Some(notifier.handle()),
            figures: Some(Arc::new(engine_page::publish)),
            fault: fault_place().map(|place| fault_while(place, FAULT.into())),
            ..Config::default()
        };
        with_signals_blocked(|| {
            let engine = Engine::start(config).map_err(|error| RequestFailure::from(error).error)?;
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
                reported: Reported::default(),
                end_reported: false,
                watchdog: Watchdog::default(),
                hang_reported: false,
                _offered: Offered::new(),
            })
        })
    }
}

impl ChannelLink {
    /// Notes for how long it has not got on; what the log is to say of that, once. A thread cannot be ended.
    fn watch_over(&mut self) -> Option<PgError> {
        let patience = guc::engine_hang_timeout().filter(|_| !self.engine.is_gone());
        self.watchdog.observe(self.engine.pulse());
        let silence = patience.map_or(Duration::ZERO, |patience| {
            self.watchdog.count(Watchdog::piece(patience), || Duration::ZERO)
        });
        engine_page::note_silence(silence);
        let hangs_now = patience.is_some_and(|patience| silence >= patience);
        let is_new = hangs_now && !std::mem::replace(&mut self.hang_reported, hangs_now);
        self.hang_reported = hangs_now;
        is_new.then(|| hangs(silence))
    }
}

impl EngineLink for ChannelLink {
    fn submit(&mut self, job: EngineSubmission) {
        if self.engine.is_gone() {
            self.unassigned.push(job);
        } else {
            let EngineSubmission { request, standing, ticket } = job;
            self.engine.submit_as(request, standing, self.reply.clone(), ticket);
        }
    }

    fn exchange(&mut self) -> bool {
        self.notifier.reset();
        // The events that came before it went are still taken.
        !self.engine.is_gone() || !self.events.is_empty()
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    fn wait_fd(&self) -> Option<WaitFd> {
        Some(WaitFd { fd: self.notifier.as_raw_fd(), writing: false })
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

    fn failure(&mut self) -> Option<PgError> {
        let gone = self.engine.is_gone() && !std::mem::replace(&mut self.end_reported, true);
        let (panics, refused) = (self.engine.statistics().panics, self.server.refused());
        let failure = self.reported.news(panics, refused).or_else(|| self.watch_over());
        if gone { Some(failed()) } else { failure }
    }

    fn look_again(&self) -> Option<Duration> {
        let patience = guc::engine_hang_timeout().filter(|_| !self.engine.pulse().at_rest)?;
        Some(Watchdog::piece(patience))
    }

    /// Submissions that the engine has not begun have come back as events by then.
    fn leave(self: Box<Self>) -> Vec<EngineSubmission> {
        engine_leader::close();
        self.unassigned
    }
}

/// The function that every engine thread runs first. The first of them makes the process give way to others.
fn once(nice: i32) -> Arc<dyn Fn() + Send + Sync> {
    let once = Once::new();
    Arc::new(move || once.call_once(|| give_way(nice)))
}
