//! The errors of the engine, by what its caller can do about each.
//!
//! Messages name the file, key or tensor, and never contain a prompt.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::process::COMPUTING_STACK_BYTES;

/// An error of the engine. It crosses the socket with everything that its message is made of.
#[derive(Debug, Clone, thiserror::Error, Serialize, Deserialize)]
pub enum Error {
    /// The model file cannot be opened, mapped or read.
    #[error("could not read model file \"{}\"", path.display())]
    ModelFile {
        /// The file.
        #[serde(with = "crate::wire::path")]
        path: PathBuf,
        /// The system's error.
        #[source]
        #[serde(with = "crate::wire::io_error")]
        source: Arc<std::io::Error>,
    },
    /// The model file, or the file of panels beside it, lost pages while it was in use. The next request
    /// opens it anew.
    #[error("file \"{}\" could no longer be read while its model was in use", path.display())]
    LostModel {
        /// The file.
        #[serde(with = "crate::wire::path")]
        path: PathBuf,
    },
    /// The file is not what it says it is: not GGUF, truncated, a key or tensor of the wrong type or shape.
    #[error("model file \"{}\" is corrupt: {reason}", path.display())]
    CorruptModel {
        /// The file.
        #[serde(with = "crate::wire::path")]
        path: PathBuf,
        /// The reason, naming the key or tensor.
        reason: String,
    },
    /// The file is sound, but it needs something that this engine cannot do.
    #[error("model file \"{}\" is not supported: {reason}", path.display())]
    UnsupportedModel {
        /// The file.
        #[serde(with = "crate::wire::path")]
        path: PathBuf,
        /// The missing feature, naming the architecture, key or tensor type.
        reason: String,
        /// A sentence about what would work instead.
        hint: Option<String>,
    },
    /// The model's chat template cannot be rendered.
    #[error("the chat template of model file \"{}\" failed: {reason}", path.display())]
    Template {
        /// The file.
        #[serde(with = "crate::wire::path")]
        path: PathBuf,
        /// The template engine's error.
        reason: String,
    },
    /// Prompt and `max_tokens` do not fit into the context.
    #[error(
        "the prompt has {prompt_tokens} tokens, which leaves no room in the context of {context_length} tokens"
    )]
    PromptTooLong {
        /// Tokens of the prompt, template included.
        prompt_tokens: usize,
        /// The context length in force.
        context_length: usize,
    },
    /// The model has no tokens for the text.
    #[error("the model cannot read the text: {reason}")]
    UnreadableText {
        /// The part that it has no token for.
        reason: String,
    },
    /// The model has adapters, and none for the task.
    #[error("the model has no such task")]
    UnknownTask {
        /// Names its tasks, in a sentence.
        hint: String,
    },
    /// A parameter is out of range; a caller that validates never sees this.
    #[error("invalid request: {0}")]
    InvalidRequest(String),
    /// Loading the model or serving the request would exceed the memory limit.
    #[error("{what} needs {needed_mb} MB of memory, {}", allowance(*limit_mb))]
    OutOfMemory {
        /// The model or cache that needs it.
        what: String,
        /// Its need.
        needed_mb: u64,
        /// The limit or what is left of it; None where it is the system that has no more.
        limit_mb: Option<u64>,
    },
    /// The engine's queue is full: as many requests wait as it takes.
    #[error("the engine's queue of {capacity} requests is full")]
    QueueFull {
        /// Its length.
        capacity: usize,
    },
    /// The model computed an infinity or a NaN.
    #[error("the model computed a value that is not finite at position {position}")]
    NonFinite {
        /// Token position in the context.
        position: usize,
    },
    /// The model's answer cannot be a text value: invalid UTF-8, or a zero byte.
    #[error("the model's answer is not valid text at byte {position}")]
    InvalidText {
        /// Offset of the first byte that is not part of a valid character.
        position: usize,
    },
    /// `max_tokens` were generated, or the context is full, and the answer does not match its constraint yet.
    #[error("the answer is not complete after {generated_tokens} tokens")]
    Unfinished {
        /// Tokens generated.
        generated_tokens: usize,
    },
    /// `max_tokens`, or what is left of the context, is less than the shortest answer takes that matches the
    /// constraint.
    #[error(
        "the shortest answer that matches the constraint takes {needed} tokens, and {max_tokens} are allowed"
    )]
    TooFewTokens {
        /// Tokens of the shortest answer.
        needed: usize,
        /// Tokens that the answer may have.
        max_tokens: usize,
    },
    /// No token leads on to an answer that matches the constraint, or finding those that do would take too
    /// long.
    #[error("the constraint cannot be followed after {generated_tokens} tokens: {reason}")]
    Constraint {
        /// Tokens generated.
        generated_tokens: usize,
        /// The limit that was met.
        reason: String,
    },
    /// The answer was checked once more, and something that could not be enforced token by token does not
    /// hold.
    #[error("the answer does not match its constraint: {reason}")]
    Mismatch {
        /// The violated condition, without the answer.
        reason: String,
    },
    /// The request was cancelled by its ticket.
    #[error("the request was cancelled")]
    Cancelled,
    /// The engine was stopped before the request was finished.
    #[error("the engine was stopped")]
    Stopped,
    /// A bug: a panic was caught at the edge of an engine thread. Or the system had no thread for the engine.
    #[error("the engine failed: {0}")]
    Panicked(String),
}

impl Error {
    /// Advice about the error, where there is any.
    pub fn hint(&self) -> Option<&str> {
        match self {
            Error::UnsupportedModel { hint, .. } => hint.as_deref(),
            Error::UnknownTask { hint } => Some(hint),
            _ => None,
        }
    }

    /// A model's file that cannot be read; where the system has no memory for it, that is what it says.
    pub(crate) fn reading(path: &Path, source: io::Error) -> Error {
        if source.kind() == io::ErrorKind::OutOfMemory {
            let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            return Error::OutOfMemory {
                what: format!("model file \"{}\"", path.display()),
                needed_mb: bytes.div_ceil(1 << 20),
                limit_mb: None,
            };
        }
        Error::ModelFile { path: path.into(), source: Arc::new(source) }
    }

    /// A thread that cannot be started: for want of memory for its stack, as a rule, which the system tells
    /// as if all threads were in use.
    pub(crate) fn no_thread(source: &io::Error) -> Error {
        match source.kind() {
            io::ErrorKind::OutOfMemory | io::ErrorKind::WouldBlock => Error::OutOfMemory {
                what: "a thread of the engine".to_owned(),
                needed_mb: (COMPUTING_STACK_BYTES as u64).div_ceil(1 << 20),
                limit_mb: None,
            },
            _ => Error::Panicked(format!("could not start a thread: {source}")),
        }
    }
}

fn allowance(limit_mb: Option<u64>) -> String {
    match limit_mb {
        Some(limit_mb) => format!("{limit_mb} MB are allowed"),
        None => "which the system does not have".to_owned(),
    }
}
