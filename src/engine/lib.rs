//! Deterministic inference of GGUF language models on the CPU.
//!
//! [`Engine::start`] starts the engine's threads; [`Engine::submit`] hands it a [`Request`] and returns a
//! [`Ticket`]; what becomes of it arrives as [`Event`]s on the channel of the request's [`Reply`].
//!
//! Invariant: this crate knows nothing of PostgreSQL.

pub mod adapters;
mod backend;
pub mod builtin;
mod cache_key;
pub mod card;
mod chunks;
mod computing;
mod config;
mod constraints;
mod error;
pub mod gguf;
#[cfg(feature = "hub")]
pub mod hub;
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
pub mod process;
mod prompts;
pub mod pulse;
pub mod remote_job;
mod request;
mod rerank;
mod safetensors;
mod sampling;
mod scheduler;
mod scores;
mod sidecar;
pub mod socket;
pub mod summary;
pub mod task_guess;
pub mod template;
pub mod tokenizer;
mod verify;
pub mod watchdog;

pub use backend::BackendKind;
pub use cache_key::{CacheKey, cache_key, cache_key_of_many, dedup_key, hex};
pub use chunks::{Beside, Chunk, Chunking, MAX_CHUNK_TOKENS, Strategy};
pub use config::{BackendChoice, Config, PromptLookup};
pub use constraints::Constraint;
#[doc(hidden)]
pub use constraints::bench as constraint_bench;
pub use constraints::ordering::keep_written_order;
pub use error::Error;
pub use identity::{KERNEL_VERSION, ModelIdentity, model_files};
pub use kernels::attention::KvCacheType;
#[doc(hidden)]
pub use kernels::bench as kernel_bench;
#[doc(hidden)]
pub use kernels::matrix::Instructions;
pub use mapping::FileId;
pub use model::{PackedState, verify_packed_weights};
pub use notifier::Notifier;
pub use probe::Probe;
pub use prompts::Prompts;
pub use request::{
    DEFAULT_TASK, Embed, Event, EventKind, Finish, Generate, Likelihoods, Message, ModelSource, Output,
    Purpose, Reply, Request, Rerank, Role, Standing, Ticket, Work,
};
pub use sampling::{Penalties, Sampling};
pub use scheduler::{
    Engine, Figures, FiguresSink, LoadedModel, MAX_BIASES, MAX_HISTORY, MAX_STOP_BYTES, MAX_STOPS, Statistics,
};
pub use scores::{cosine, softmax};
pub use verify::{Deviation, MAX_POSITIONS, Verification, Verify, verify};
