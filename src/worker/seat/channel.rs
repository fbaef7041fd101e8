//! An engine whose threads run in this process.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::Receiver;
use steadytext_engine::{Config, Engine, Error, Event, Reply, Request, Ticket};

use super::Seat;
use crate::pg::guc::EngineSettings;
use crate::pg::interrupts::with_signals_blocked;

/// Requests claimed beyond those that run, so that the engine need not wait for the next claim.
const CLAIMED_AHEAD: usize = 16;

/// An engine, the channel of its events, and a socket pair as the bell that wakes the worker's main thread.
pub(super) struct ChannelSeat {
    engine: Engine,
    events: Receiver<Event>,
    reply: Reply,
    listener: UnixStream,
    rung: Arc<AtomicBool>,
    capacity: usize,
}

impl ChannelSeat {
    /// Starts the engine's threads.
    pub(super) fn start(settings: &EngineSettings) -> Result<Self, Error> {
        let capacity = settings.max_running + CLAIMED_AHEAD;
        let no_socket = |error: std::io::Error| Error::InvalidRequest(format!("no socket pair: {error}"));
        let (listener, ringer) = UnixStream::pair().map_err(no_socket)?;
        listener.set_nonblocking(true).map_err(no_socket)?;
        ringer.set_nonblocking(true).map_err(no_socket)?;
        let rung = Arc::new(AtomicBool::new(false));
        let ring = {
            let rung = rung.clone();
            move || {
                if !rung.swap(true, Ordering::AcqRel) {
                    // A full socket is a bell that rings already.
                    let _ = (&ringer).write(&[1]);
                }
            }
        };
        let (sender, events) = crossbeam_channel::unbounded();
        let config = Config {
            threads: settings.threads,
            nice: settings.nice,
            max_running: settings.max_running,
            queue_capacity: capacity,
            context_length: settings.context_length,
            kv_cache_mb: settings.kv_cache_mb,
            memory_limit_mb: match settings.memory_limit_mb {
                0 => machine_memory_mb() * 4 / 5,
                limit => limit,
            },
            model_idle_timeout: (settings.model_idle_timeout_s != 0)
                .then(|| Duration::from_secs(settings.model_idle_timeout_s)),
            ..Config::default()
        };
        let engine = with_signals_blocked(|| Engine::start(config))?;
        let reply = Reply::with_bell(sender, Arc::new(ring));
        Ok(ChannelSeat { engine, events, reply, listener, rung, capacity })
    }
}

impl Seat for ChannelSeat {
    fn submit(&mut self, request: Request) -> Ticket {
        self.engine.submit(request, self.reply.clone())
    }

    fn next_event(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }

    fn bell(&self) -> Option<RawFd> {
        Some(self.listener.as_raw_fd())
    }

    fn silence(&mut self) {
        let mut rings = [0; 16];
        while matches!((&self.listener).read(&mut rings), Ok(count) if count > 0) {}
        self.rung.store(false, Ordering::Release);
    }

    fn capacity(&self) -> usize {
        self.capacity
    }

    fn models(&self) -> Vec<(String, u64)> {
        self.engine.loaded_models().into_iter().map(|model| (model.name, model.memory_mb)).collect()
    }
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
