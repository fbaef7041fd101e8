//! The engine for other processes: a Unix socket with the same requests and events as
//! [`crate::Engine::submit`].
//!
//! [`Server`] serves an engine from a thread of its own; [`Client`] is the other end, which never blocks. A
//! message is four bytes of length, little-endian, and its postcard form. Both ends are of the same build:
//! where they are programs of their own, they have compared their [`crate::process::BUILD`] before.
//!
//! A client says first who it is, and may be refused then ([`ServerLimits`]). One that asks for nothing is
//! disconnected after a while, which is no error: it connects again when it has a request. When a connection
//! ends, whatever its client had submitted is cancelled.
//!
//! Invariant: arriving bytes are not trusted. A length is checked before anything is kept, memory is only
//! taken for bytes that have arrived, and a message that cannot be read ends its connection and nothing else.

mod acceptor;
mod client;
mod connection;
mod frame;
#[cfg(test)]
mod limit_tests;
mod limits;
mod server;
mod state;
#[cfg(test)]
mod tests;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

pub use client::Client;
pub use limits::{Caller, ConnectionRefusal, ServerLimits};
pub use server::Server;
pub use state::{Board, ServerState};

use crate::{Event, LoadedModel, Request, Standing};

/// Most bytes of a message.
pub const MAX_MESSAGE_BYTES: usize = 32 << 20;

/// A message of a client.
#[derive(Debug, Serialize, Deserialize)]
#[expect(clippy::large_enum_variant, reason = "it is sent as soon as it is made")]
enum ToEngine<'a> {
    /// First of all, and once: who this is.
    Hello(Caller),
    /// Do this; [`Request::key`] is the client's own.
    Submit(Cow<'a, Request>, Standing),
    /// A piece of the text of a request that is paced was read.
    Read { key: u64 },
    /// Stop doing it. There will be a last event all the same.
    Cancel { key: u64 },
    /// Answer with [`FromEngine::Models`].
    ListModels,
    /// Answer with [`FromEngine::State`], and send it whenever the engine has told new figures.
    Watch,
}

/// A message to a client.
#[derive(Debug, Serialize, Deserialize)]
pub enum FromEngine {
    /// An event of a request.
    Event(Event),
    /// The models that are loaded now.
    Models(Vec<LoadedModel>),
    /// The engine's state, for clients that watch it.
    State(ServerState),
    /// There is no connection left for this client. This is the last message.
    Refused(ConnectionRefusal),
}
