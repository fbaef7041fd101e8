//! The worker's way to an engine.
//!
//! One trait, so that the worker does not know where the engine's threads run. For now each worker runs an engine
//! of its own and talks to it over channels.
//!
//! Invariant: a seat never calls PostgreSQL, and its threads are started with every signal blocked.

use std::cell::RefCell;
use std::os::fd::RawFd;

use steadytext_engine::{Event, Request, Ticket};

use crate::pg::guc::EngineSettings;

#[cfg(not(feature = "noop-engine"))]
mod channel;
#[cfg(feature = "noop-engine")]
mod noop;

/// An engine, as the worker sees it.
pub(super) trait Seat {
    /// Hands over a request; everything else arrives as events.
    fn submit(&mut self, request: Request) -> Ticket;
    /// The next event, if there is one.
    fn next_event(&mut self) -> Option<Event>;
    /// A descriptor that becomes readable when an event arrives.
    fn bell(&self) -> Option<RawFd>;
    /// Makes the bell ring anew for events that arrive from now on.
    fn silence(&mut self);
    /// How many requests it is worth having claimed at once.
    fn capacity(&self) -> usize;
    /// Names and sizes in MB of the loaded models.
    fn models(&self) -> Vec<(String, u64)>;
}

thread_local! {
    /// Here rather than in the worker's frame, because a FATAL error ends the process without unwinding it, and the
    /// engine's threads must stop before the process leaves shared memory.
    static SEAT: RefCell<Option<Box<dyn Seat>>> = const { RefCell::new(None) };
}

/// Starts the engine.
///
/// # Errors
///
/// The engine's, when it cannot start.
pub(super) fn take(settings: &EngineSettings) -> Result<(), steadytext_engine::Error> {
    #[cfg(not(feature = "noop-engine"))]
    let seat = channel::ChannelSeat::start(settings)?;
    #[cfg(feature = "noop-engine")]
    let seat = noop::NoopSeat::start(settings);
    SEAT.set(Some(Box::new(seat)));
    crate::pg::interrupts::before_exit(leave);
    Ok(())
}

/// Stops the engine; does nothing if there is none.
pub(super) fn leave() {
    // Taken out first: dropping joins threads. A borrow in progress means that the process ends inside one of the
    // calls below; its threads end with it.
    let seat = SEAT.with(|seat| seat.try_borrow_mut().ok().and_then(|mut seat| seat.take()));
    drop(seat);
}

/// Calls the seat; `None` if there is none.
pub(super) fn with<R>(work: impl FnOnce(&mut dyn Seat) -> R) -> Option<R> {
    SEAT.with_borrow_mut(|seat| seat.as_mut().map(|seat| work(seat.as_mut())))
}
