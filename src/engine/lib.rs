//! Deterministic inference of GGUF language models on the CPU.
//!
//! [`Engine::start`] starts the engine's threads; [`Engine::submit`] hands it a [`Request`] and returns a
//! [`Ticket`]; what becomes of it arrives as [`Event`]s on the channel of the request's [`Reply`].
//!
//! Invariant: this crate knows nothing of PostgreSQL.

mod error;
mod request;

pub use error::Error;
pub use request::{
    Embed, Event, EventKind, Finish, Generate, ModelSource, Output, Reply, Request, Sampling, Ticket, Work,
};
