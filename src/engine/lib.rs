//! Deterministic inference of GGUF language models on the CPU.
//!
//! [`Engine::start`] starts the engine's threads; [`Engine::submit`] hands it a [`Request`] and returns a
//! [`Ticket`]; what becomes of it arrives as [`Event`]s on the channel of the request's [`Reply`].
//!
//! Invariant: this crate knows nothing of PostgreSQL.

mod backend;
pub mod builtin;
mod cache_key;
mod config;
mod constraints;
mod error;
pub mod gguf;
mod identity;
mod kernels;
mod mapping;
pub mod memory;
mod model;
#[doc(hidden)]
pub mod nearest;
mod notifier;
mod panic;
mod probe;
mod request;
mod rerank;
mod safetensors;
mod sampling;
mod scheduler;
mod sidecar;
pub mod socket;
pub mod summary;
pub mod template;
pub mod tokenizer;
mod verify;

pub use backend::BackendKind;
pub use cache_key::{CacheKey, cache_key, cache_key_of_many, dedup_key, hex};
pub use config::{BackendChoice, Config, PromptLookup};
pub use constraints::Constraint;
#[doc(hidden)]
pub use constraints::bench as constraint_bench;
pub use error::Error;
pub use identity::{KERNEL_VERSION, ModelIdentity};
#[doc(hidden)]
pub use kernels::bench as kernel_bench;
#[doc(hidden)]
pub use kernels::matrix::Instructions;
pub use mapping::FileId;
pub use model::{PackedState, verify_packed_weights};
pub use notifier::Notifier;
pub use probe::Probe;
pub use request::{
    DEFAULT_TASK, Embed, Event, EventKind, Finish, Generate, Message, ModelSource, Output, Purpose, Reply,
    Request, Rerank, Role, Sampling, Standing, Ticket, Work,
};
pub use scheduler::{Engine, LoadedModel, Statistics};
pub use verify::{Deviation, MAX_POSITIONS, Verification, Verify, verify};
