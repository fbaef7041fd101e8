//! The handle on a request that was submitted.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

/// The caller's handle on a submitted request.
#[derive(Debug, Clone)]
pub struct Ticket {
    state: Arc<TicketState>,
}

#[derive(Debug, Default)]
struct TicketState {
    cancelled: AtomicBool,
    held: AtomicBool,
}

impl Ticket {
    /// A ticket that nobody has cancelled.
    pub fn new() -> Self {
        Ticket { state: Arc::default() }
    }

    /// Asks the engine to stop within a token. The request still gets its last event:
    /// `Failed(Error::Cancelled)`, or `Done` if it was finished already.
    pub fn cancel(&self) {
        self.state.cancelled.store(true, Ordering::Release);
    }

    /// Whether [`Ticket::cancel`] was called.
    pub fn is_cancelled(&self) -> bool {
        self.state.cancelled.load(Ordering::Acquire)
    }

    /// Pauses the request: it gives its place to others. [`crate::Engine::wake`] after it is let go on.
    pub fn hold(&self, held: bool) {
        self.state.held.store(held, Ordering::Release);
    }

    /// Whether it is paused.
    pub fn is_held(&self) -> bool {
        self.state.held.load(Ordering::Acquire)
    }
}

impl Default for Ticket {
    fn default() -> Self {
        Ticket::new()
    }
}
