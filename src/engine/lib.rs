//! Deterministic inference of GGUF language models on the CPU.
//!
//! [`Engine::start`] starts the engine's threads; [`Engine::submit`] hands it a [`Request`] and returns a
//! [`Ticket`]; the outcome arrives as [`Event`]s on the channel of the request's [`Reply`].
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
mod figures;
pub mod gguf;
#[cfg(feature = "hub")]
pub mod hub;
mod identity;
mod kernels;
mod mapping;
pub mod memory;
mod message;
mod model;
mod model_source;
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
mod ticket;
pub mod tokenizer;
mod verify;
pub mod watchdog;
mod wire;
mod work;

pub use backend::{BackendKind, KERNEL_VERSION};
pub use cache_key::{CacheKey, cache_key, cache_key_of_many, dedup_key, hex};
pub use chunks::{Beside, Chunk, Chunking, MAX_CHUNK_TOKENS, Strategy};
pub use config::{BackendChoice, Config, PromptLookup};
pub use constraints::Constraint;
#[doc(hidden)]
pub use constraints::bench as constraint_bench;
pub use constraints::ordering::keep_written_order;
pub use error::Error;
pub use figures::{Figures, FiguresSink, Statistics};
pub use identity::{ModelIdentity, model_files};
#[doc(hidden)]
pub use kernels::bench as kernel_bench;
#[doc(hidden)]
pub use kernels::instructions::Instructions;
pub use kernels::tile::KvCacheType;
pub use mapping::FileId;
pub use message::{Message, Role};
pub use model::{PackedState, verify_packed_weights};
pub use model_source::{ModelSource, adapter_tasks, file_bytes};
pub use notifier::Notifier;
pub use probe::Probe;
pub use prompts::{DEFAULT_TASK, Prompts, Purpose};
pub use request::{Event, EventKind, Finish, Output, Reply, Request, Standing};
pub use sampling::{DEFAULT_SEED, Penalties, Sampling};
pub use scheduler::{Engine, LoadedModel, MAX_BIASES, MAX_HISTORY, MAX_STOP_BYTES, MAX_STOPS};
pub use scores::{Direction, cosine, softmax};
pub use ticket::Ticket;
pub use verify::{Deviation, MAX_POSITIONS, Verification, Verify, verify};
pub use work::{Embed, Generate, Likelihoods, Rerank, Work};
