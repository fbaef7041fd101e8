//! The engine's current state and its counters since the start, for monitoring.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

/// The engine's current state, and its counters since the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Figures {
    /// Requests that are being computed.
    pub running: u64,
    /// Requests that have given their places away for a while, or whose reader is behind.
    pub suspended: u64,
    /// Requests that have not begun.
    pub waiting: u64,
    /// Bytes of keys and values that requests have or are going to have.
    pub kv_used_bytes: u64,
    /// Bytes of keys and values that are kept for requests to come, and that nobody has.
    pub kv_kept_bytes: u64,
    /// Bytes that keys and values may take.
    pub kv_limit_bytes: u64,
    /// Models that are loaded.
    pub models: u64,
    /// Bytes of models that are loaded or being loaded: weights, vocabularies and workspaces.
    pub model_bytes: u64,
    /// Bytes of prompts that wait, of constraints, and of messages on their way.
    pub request_bytes: u64,
    /// Bytes that all of it may take; 0 for no limit.
    pub limit_bytes: u64,
    /// The counters since the start.
    pub statistics: Statistics,
}

/// Takes them. It must not block or panic.
pub type FiguresSink = Arc<dyn Fn(&Figures) + Send + Sync>;

/// Counts since the start of the engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Statistics {
    /// Passes through a model.
    pub passes: u64,
    /// Requests in all of them: divided by the passes, how many are computed together.
    pub pass_requests: u64,
    /// Tokens that went through a model, guesses included.
    pub computed_tokens: u64,
    /// Computed tokens that belong to prompts and texts, and microseconds that they took.
    pub prefill_tokens: u64,
    /// See `prefill_tokens`.
    pub prefill_micros: u64,
    /// The other computed tokens, guesses included, and microseconds that they took.
    pub decode_tokens: u64,
    /// See `decode_tokens`.
    pub decode_micros: u64,
    /// Tokens of prompts that were looked for among the kept keys and values.
    pub looked_up_tokens: u64,
    /// Tokens of prompts whose keys and values were there already.
    pub reused_tokens: u64,
    /// Tokens guessed by prompt lookup.
    pub guessed_tokens: u64,
    /// Guessed tokens that were right.
    pub right_guesses: u64,
    /// Requests that got the result of another one that asked for the same at the same time.
    pub joined_requests: u64,
    /// Turns in which something was computed: steps of models, and slices of texts on encoders.
    pub turns: u64,
    /// Number of times that a running request has given its place to another one, or paused.
    pub suspended_requests: u64,
    /// Tokens of such requests whose keys and values had to make room, and are computed again.
    pub forgotten_tokens: u64,
    /// Panics that the engine's thread has caught. Each is a bug.
    pub panics: u64,
}
