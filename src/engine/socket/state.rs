//! The engine's state, on its way to those who watch it from another process.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use serde::{Deserialize, Serialize};

use crate::pulse::Pulse;
use crate::{Figures, FiguresSink};

/// The state of a server and its engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct ServerState {
    /// The engine's latest figures; `None` where it has done nothing yet.
    pub figures: Option<Figures>,
    /// Panics that it has caught.
    pub panics: u64,
    /// Connections that were refused.
    pub refused: u64,
    /// Time since the last request of the socket has ended, in milliseconds; 0 while one has not.
    pub idle_ms: u64,
    /// Whether its thread lives.
    pub pulse: Pulse,
}

/// The place where the engine's thread leaves its figures for the thread of the socket.
#[derive(Default)]
pub struct Board {
    latest: Mutex<Option<Figures>>,
    changed: AtomicBool,
    /// Wakes the thread of the socket.
    waker: OnceLock<Arc<dyn Fn() + Send + Sync>>,
}

impl std::fmt::Debug for Board {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Board").field("latest", &self.latest).finish_non_exhaustive()
    }
}

impl Board {
    /// A sink for [`Config::figures`](crate::Config::figures).
    pub fn sink(self: &Arc<Board>) -> FiguresSink {
        let board = Arc::clone(self);
        Arc::new(move |figures| {
            *board.latest.lock().unwrap_or_else(PoisonError::into_inner) = Some(*figures);
            board.changed.store(true, Ordering::Release);
            if let Some(waker) = board.waker.get() {
                waker();
            }
        })
    }

    /// Sets the function that wakes the server's thread.
    pub(super) fn wakes(&self, waker: Arc<dyn Fn() + Send + Sync>) {
        // A board has one server.
        let _ = self.waker.set(waker);
    }

    /// Whether figures have come since the last look.
    pub(super) fn has_changed(&self) -> bool {
        self.changed.swap(false, Ordering::AcqRel)
    }

    /// The latest.
    pub(super) fn figures(&self) -> Option<Figures> {
        *self.latest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
