//! Signs of life of an engine, for those who watch whether it hangs.
//!
//! The engine's thread counts its turns, and its pool counts each job that it is given. A pass through a
//! model is many jobs, so that a thread with something to do counts up many times a second, however long its
//! prompts and however slow the machine. While it waits for a model that another thread loads it goes on
//! taking turns.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicU64};

use serde::{Deserialize, Serialize};

/// The visible signs of life of an engine's thread. It hangs if it is not at rest and its beats do not
/// change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Pulse {
    /// Counts up while it does anything.
    pub beats: u64,
    /// Whether the thread waits for something to do, and there is nothing.
    pub at_rest: bool,
}

/// The counts that the engine's thread and its pool keep.
#[derive(Debug, Default)]
pub(crate) struct Heart {
    beats: Arc<AtomicU64>,
    rests: AtomicBool,
}

impl Heart {
    /// A counter for [`Pool::counting`](crate::kernels::Pool::counting).
    pub(crate) fn beats(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.beats)
    }

    /// A turn begins.
    pub(crate) fn beat(&self) {
        self.beats.fetch_add(1, Relaxed);
    }

    /// Waits for a message by `wait`.
    pub(crate) fn rest<T>(&self, wait: impl FnOnce() -> T) -> T {
        self.rests.store(true, Release);
        let came = wait();
        self.rests.store(false, Release);
        came
    }

    /// `has_messages`: there is something that the thread has not taken.
    pub(crate) fn pulse(&self, has_messages: bool) -> Pulse {
        Pulse { beats: self.beats.load(Relaxed), at_rest: self.rests.load(Acquire) && !has_messages }
    }
}
