//! State that the threads of all databases share.

use std::hash::{BuildHasher, Hasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering};

use crate::endpoints::Endpoint;
use crate::engine::SharedEngine;
use crate::options::WorkerOptions;

/// A database, as others see it.
#[derive(Debug, Default)]
pub(crate) struct ServedDatabase {
    /// Its name in messages.
    pub(crate) name: std::sync::OnceLock<String>,
    /// The last turn of its thread went well.
    pub(crate) is_ready: AtomicBool,
    /// Requests that are held.
    pub(crate) held: AtomicUsize,
    /// Requests that were claimed.
    pub(crate) claimed: AtomicU64,
    /// Requests that have ended with an answer.
    pub(crate) completed: AtomicU64,
    /// Requests that have ended without one.
    pub(crate) failed: AtomicU64,
    /// Requests that were given back.
    pub(crate) given_back: AtomicU64,
    /// Requests that somebody else has taken or cancelled.
    pub(crate) lost: AtomicU64,
    /// Connections that were made.
    pub(crate) connections: AtomicU64,
}

/// The state that all threads share.
#[derive(Debug)]
pub(crate) struct SharedState {
    pub(crate) options: WorkerOptions,
    /// The databases in the order of the options.
    pub(crate) databases: Vec<ServedDatabase>,
    pub(crate) engine: SharedEngine,
    /// The models that other engines answer.
    pub(crate) endpoints: Vec<Arc<Endpoint>>,
    /// The name by which leases are held: new at each start.
    pub(crate) worker: String,
    /// The machine.
    pub(crate) host: String,
    held: AtomicUsize,
    stopping: AtomicU8,
}

impl SharedState {
    /// The state at the start, when nothing is held.
    pub(crate) fn new(options: WorkerOptions, endpoints: Vec<Arc<Endpoint>>) -> SharedState {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let host: String = host.trim().chars().filter(|character| !character.is_control()).take(64).collect();
        let host = if host.is_empty() { "elsewhere".to_owned() } else { host };
        let random = RandomState::new().build_hasher().finish();
        SharedState {
            databases: options.database_urls.iter().map(|_| ServedDatabase::default()).collect(),
            engine: SharedEngine::default(),
            endpoints,
            worker: format!("{host}/{}/{random:016x}", std::process::id()),
            host,
            held: AtomicUsize::new(0),
            stopping: AtomicU8::new(0),
            options,
        }
    }

    /// The number of times that it was told to stop.
    pub(crate) fn stopping(&self) -> u8 {
        self.stopping.load(Ordering::Acquire)
    }

    /// Tells all threads to stop.
    pub(crate) fn stop(&self) {
        let _ =
            self.stopping.fetch_update(Ordering::AcqRel, Ordering::Acquire, |signals| signals.checked_add(1));
    }

    /// Reserves room for up to `wanted` requests; how many there is room for.
    pub(crate) fn reserve(&self, wanted: usize) -> usize {
        let mut got = 0;
        let _ = self.held.fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| {
            got = wanted.min(self.options.concurrency.saturating_sub(held));
            Some(held + got)
        });
        got
    }

    /// Gives room back.
    pub(crate) fn free(&self, count: usize) {
        let _ = self
            .held
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |held| Some(held.saturating_sub(count)));
    }
}
