//! The engine's input and output: requests and events.
//!
//! These types are all that other crates and processes know of inference. They own their data, and travel
//! over channels within a process and over a socket ([`crate::socket`]) between processes.

use std::sync::Arc;

use crossbeam_channel::Sender;
use serde::{Deserialize, Serialize};

use crate::chunks::Chunk;
use crate::verify::Verification;
use crate::{Constraint, Error, ModelIdentity, ModelSource, Purpose, Work};

/// One unit of work for [`crate::Engine::submit`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the caller, comes back in every [`Event`]; the engine attaches no meaning to it.
    pub key: u64,
    /// The model that does the work.
    pub model: ModelSource,
    /// The group that may share: requests of the same salt, and no others, reuse each other's keys and values
    /// where they begin with the same tokens. Results do not depend on it, but the time to the first token
    /// does, from which somebody could guess at the prompts of others.
    pub salt: u64,
    /// Requests of the same deduplication key and model ask for the same: they are computed once while they
    /// are in the engine together, and all get the result. A digest of everything that the result depends on,
    /// and of those who may share it.
    pub dedup_key: Option<[u8; 32]>,
    /// The work to be done.
    pub work: Work,
}

/// The owner and the urgency of a request. Results do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Requests of the same priority go in turn among their owners.
    pub owner: u32,
    /// Priority from 1 to 10, which goes first and takes the places of others.
    pub priority: u8,
    /// Its text is read piece by piece: it pauses while its reader does not read.
    pub paced: bool,
}

impl Default for Standing {
    fn default() -> Self {
        Standing { owner: 0, priority: 5, paced: false }
    }
}

impl Request {
    /// Bytes of everything in it that has no fixed size.
    pub(crate) fn bytes(&self) -> usize {
        let more = match &self.work {
            Work::Generate(how) => {
                let stop = how.stop.iter().map(String::len).sum::<usize>();
                let history = std::mem::size_of_val(how.history.as_slice())
                    + std::mem::size_of_val(how.sampling.logit_bias.as_slice());
                stop.saturating_add(how.constraint.as_ref().map_or(0, Constraint::bytes))
                    .saturating_add(history)
            }
            Work::Embed(how) => {
                let task = match &how.purpose {
                    Purpose::Query { task: Some(task) } => task.len(),
                    Purpose::Query { task: None }
                    | Purpose::Passage
                    | Purpose::Document
                    | Purpose::Similarity
                    | Purpose::Classification => 0,
                };
                task.saturating_add(how.prompt.as_ref().map_or(0, String::len))
            }
            Work::Rerank(how) => [&how.prompts.query, &how.prompts.passage]
                .into_iter()
                .flatten()
                .fold(0_usize, |bytes, prompt| bytes.saturating_add(prompt.len())),
            Work::Tokenize { .. } | Work::Chunk(_) | Work::Verify(_) => 0,
            Work::Likelihoods(how) => {
                let texts =
                    how.answers.iter().fold(0_usize, |bytes, answer| bytes.saturating_add(answer.len()));
                texts
                    .saturating_mul(ANSWER_BYTES_PER_BYTE)
                    .saturating_add(size_of_val(how.answers.as_slice()))
            }
        };
        self.work.text_bytes().saturating_add(more)
    }
}

/// The bytes that each byte of an answer adds to a request, besides those that any text's byte adds: it is a
/// token at most, which has a place in the tree of all answers.
const ANSWER_BYTES_PER_BYTE: usize = 16;

/// An event of the request `key`. The last event of a request is `Done` or `Failed`; every submitted request
/// gets exactly one of them, also after a cancel or a shutdown.
#[derive(Debug, Serialize, Deserialize)]
pub struct Event {
    /// [`Request::key`].
    pub key: u64,
    /// Number of turns that the engine has computed since it took the request in: steps of models, and slices
    /// of texts on encoders.
    pub turns: u64,
    /// The kind of the event.
    pub kind: EventKind,
}

/// The kind of an event.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum EventKind {
    /// The model is being opened; comes only where that takes time.
    Loading,
    /// The prompt is tokenized and its prefill begins.
    Started {
        /// Length of the prompt in tokens, template included.
        prompt_tokens: usize,
        /// The model that computes it.
        model: ModelIdentity,
    },
    /// The prompt of a text is computed and its first token chosen. Not where the answer was known without a
    /// model.
    FirstToken {
        /// Tokens of the prompt that did not have to be computed, as others had begun with the same.
        cached_tokens: usize,
    },
    /// Some tokens were generated.
    Progress {
        /// Tokens generated up to now.
        generated_tokens: usize,
        /// Text that is new since the last progress event: whole characters, never part of a stop string.
        text: String,
    },
    /// The result; last event.
    Done(Output),
    /// There is no result; last event.
    Failed(Error),
}

/// The result of a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Output {
    /// The output of [`Work::Generate`].
    Text {
        /// The whole text, without the stop string.
        text: String,
        /// Tokens generated.
        generated_tokens: usize,
        /// The reason why generation ended.
        finish: Finish,
        /// Whether the context had room for fewer tokens than were asked for, and the answer ended where it
        /// did for that.
        out_of_context: bool,
    },
    /// The output of [`Work::Embed`]: L2-normalised, as long as the model's embedding is wide.
    Embedding(Vec<f32>),
    /// The output of [`Work::Rerank`]: from 0 to 1.
    Score(f32),
    /// The output of [`Work::Likelihoods`], in the order of the answers: the natural logarithm of the
    /// probability that the model's answer begins with that one, or, where another one goes on behind it, is
    /// just that one.
    LogProbabilities(Vec<f64>),
    /// The output of [`Work::Tokenize`].
    Tokens(Vec<u32>),
    /// The output of [`Work::Chunk`], in the order of the chunks.
    Chunks(Vec<Chunk>),
    /// The output of [`Work::Verify`].
    Verification(Verification),
}

/// The reason why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// The model said so.
    EndOfText,
    /// A stop string was reached.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// The answer is complete: nothing that matches the constraint can follow.
    Complete,
    /// The answer matches the constraint, but is another one than the model would have given with more
    /// tokens: some that it wanted would have left too few for the end.
    Closed,
}

/// The receiver of a request's events: a channel, and optionally a function that is called after each send,
/// for receivers that sleep on a file descriptor rather than on the channel.
#[derive(Clone)]
pub struct Reply {
    sender: Sender<Event>,
    notify: Option<Arc<dyn Fn() + Send + Sync>>,
}

impl Reply {
    /// Events to `sender`.
    pub fn new(sender: Sender<Event>) -> Self {
        Reply { sender, notify: None }
    }

    /// Events to `sender`, and `notify` called after each. It must not block or panic.
    pub fn with_notify(sender: Sender<Event>, notify: Arc<dyn Fn() + Send + Sync>) -> Self {
        Reply { sender, notify: Some(notify) }
    }

    /// Sends one event. A receiver that has gone is no error: nobody wants to know.
    pub fn send(&self, key: u64, turns: u64, kind: EventKind) {
        if self.sender.send(Event { key, turns, kind }).is_ok()
            && let Some(notify) = &self.notify
        {
            notify();
        }
    }
}
