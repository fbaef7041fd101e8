//! What goes into the engine and what comes out of it: requests, events, tickets.
//!
//! These types are all that other crates and processes know of inference. They own their data, and travel over channels
//! within a process and over a socket ([`crate::socket`]) between processes.

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crossbeam_channel::Sender;
use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use crate::chunks::{Chunk, Chunking};
use crate::gguf::Gguf;
use crate::verify::{Verification, Verify};
use crate::{Constraint, Error, ModelIdentity, Prompts, Sampling, adapters, builtin, safetensors};

/// One unit of work for [`crate::Engine::submit`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Chosen by the caller, comes back in every [`Event`]; the engine attaches no meaning to it.
    pub key: u64,
    /// The model that does the work.
    pub model: ModelSource,
    /// Who may share: requests of the same salt, and no others, reuse each other's keys and values where they
    /// begin with the same tokens. Results do not depend on it, but the time to the first token does, from which
    /// somebody could guess at the prompts of others.
    pub salt: u64,
    /// Requests of the same deduplication key and model ask for the same: they are computed once while they are in the engine
    /// together, and all get the result. A digest of everything that the result depends on, and of who may share it.
    pub dedup_key: Option<[u8; 32]>,
    /// What is to be done.
    pub work: Work,
}

/// For whom a request is, and how urgent it is. Results do not depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// Requests of the same priority go in turn among their owners.
    pub owner: u32,
    /// From 1 to 10, which goes first and takes the places of others.
    pub priority: u8,
    /// Its text is read piece by piece: it pauses while its reader does not read.
    pub paced: bool,
}

impl Default for Standing {
    fn default() -> Self {
        Standing { owner: 0, priority: 5, paced: false }
    }
}

/// Where a model comes from. Names are resolved by the caller: the engine only opens files.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum ModelSource {
    /// The small model compiled into the library.
    Builtin,
    /// A GGUF file, or the folder of an encoder with `model.safetensors`.
    File(#[serde(with = "crate::socket::wire::path")] PathBuf),
}

impl ModelSource {
    /// Opens and checks what describes the model; no weight is read.
    ///
    /// # Errors
    /// [`Error::ModelFile`], [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the file.
    pub fn open(&self) -> Result<Gguf, Error> {
        match self {
            ModelSource::Builtin => builtin::gguf(),
            ModelSource::File(path) if path.is_dir() => safetensors::open(path),
            ModelSource::File(path) => adapters::attach(path, Gguf::open(path)?),
        }
    }
}

/// The kinds of work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Work {
    /// Text from a prompt.
    Generate(Generate),
    /// A vector from a text.
    Embed(Embed),
    /// How well a document answers a query.
    Rerank(Rerank),
    /// How likely some given answers are.
    Likelihoods(Likelihoods),
    /// The tokens of a text by itself.
    Tokenize {
        /// The text.
        text: String,
    },
    /// A text in pieces of so many tokens.
    Chunk(Chunking),
    /// Whether the backends compute the same.
    Verify(Verify),
}

impl Work {
    /// Bytes of the texts that a user has given.
    pub fn text_bytes(&self) -> usize {
        match self {
            Work::Generate(how) => {
                let system = how.system.as_ref().map_or(0, String::len);
                let said = how.history.iter().map(|message| message.text.len());
                said.fold(how.prompt.len().saturating_add(system), usize::saturating_add)
            }
            Work::Embed(how) => how.text.len(),
            Work::Tokenize { text } => text.len(),
            Work::Chunk(how) => {
                how.text.len().saturating_add(how.beside.as_ref().map_or(0, |beside| beside.prompt.len()))
            }
            Work::Rerank(how) => {
                let texts = [&how.query, &how.document, &how.task];
                texts.iter().fold(0, |bytes, text| bytes.saturating_add(text.len()))
            }
            Work::Likelihoods(how) => {
                let system = how.system.as_ref().map_or(0, String::len);
                let begins = [system, how.begin.len()]
                    .iter()
                    .fold(how.prompt.len(), |all, bytes| all.saturating_add(*bytes));
                how.answers.iter().fold(begins, |bytes, answer| bytes.saturating_add(answer.len()))
            }
            Work::Verify(what) => what.text.as_ref().map_or(0, String::len),
        }
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
                    Purpose::Query { task: None } | Purpose::Passage | Purpose::Document => 0,
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

/// What a byte of an answer adds to a request beside what a byte of its other texts does: a token at most, which has a place in
/// the tree of all answers.
const ANSWER_BYTES_PER_BYTE: usize = 16;

/// Who says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Role {
    /// Whoever sets the assistant up.
    System,
    /// The user.
    User,
    /// The model.
    Assistant,
}

impl Role {
    /// Its name in chat templates.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
        }
    }
}

/// Something that was said.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Message {
    /// Who has said it.
    pub role: Role,
    /// What was said.
    pub text: String,
}

/// Text generation.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Generate {
    /// The user's prompt; the model's chat template is put around it.
    pub prompt: String,
    /// Most tokens to generate, at least 1.
    pub max_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Generation ends before the first of these strings; none of them is part of the result.
    pub stop: Vec<String>,
    /// What the answer must match, whole; not together with `stop`.
    pub constraint: Option<Constraint>,
    /// What the model is told before everything else. An empty text keeps the chat template from saying something of its own.
    pub system: Option<String>,
    /// What was said before the prompt, by user and assistant in turn.
    pub history: Vec<Message>,
    /// Whether the model is to think before it answers, and its thoughts are part of the result. Without, it does not think
    /// where its chat template has a switch for that, and thoughts are left out of the result. An answer that has to match a
    /// constraint is given without thoughts.
    pub thinking: bool,
}

/// In text formats, which keys of results are made of, what was added later is left out where it is not used: such a request has
/// the key that it has always had.
impl Serialize for Generate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let whole = !serializer.is_human_readable();
        let Generate { prompt, max_tokens, sampling, stop, constraint, system, history, thinking } = self;
        let added = [whole || system.is_some(), whole || !history.is_empty(), whole || *thinking];
        let count = 5 + added.iter().filter(|added| **added).count();
        let mut fields = serializer.serialize_struct("Generate", count)?;
        fields.serialize_field("prompt", prompt)?;
        fields.serialize_field("max_tokens", max_tokens)?;
        fields.serialize_field("sampling", sampling)?;
        fields.serialize_field("stop", stop)?;
        fields.serialize_field("constraint", constraint)?;
        if added[0] {
            fields.serialize_field("system", system)?;
        }
        if added[1] {
            fields.serialize_field("history", history)?;
        }
        if added[2] {
            fields.serialize_field("thinking", thinking)?;
        }
        fields.end()
    }
}

/// Embedding of one text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Embed {
    /// The text; no chat template is put around it.
    pub text: String,
    /// What its vector is for.
    pub purpose: Purpose,
    /// Whether a text that is longer than the context is cut at its end; otherwise it is an error.
    pub truncate: bool,
    /// What stands before the text, whatever it is for; `None`: what the model's file says.
    pub prompt: Option<String>,
    /// How many elements of the vector are wanted, which are then scaled to length 1; `None`: all.
    pub dimensions: Option<usize>,
}

/// As with [`Generate`].
impl Serialize for Embed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let whole = !serializer.is_human_readable();
        let Embed { text, purpose, truncate, prompt, dimensions } = self;
        let added = [whole || prompt.is_some(), whole || dimensions.is_some()];
        let count = 3 + added.iter().filter(|added| **added).count();
        let mut fields = serializer.serialize_struct("Embed", count)?;
        fields.serialize_field("text", text)?;
        fields.serialize_field("purpose", purpose)?;
        fields.serialize_field("truncate", truncate)?;
        if added[0] {
            fields.serialize_field("prompt", prompt)?;
        }
        if added[1] {
            fields.serialize_field("dimensions", dimensions)?;
        }
        fields.end()
    }
}

/// What a vector is for. Models that were trained to tell the two apart get the text in the words that they
/// were trained with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Purpose {
    /// Nothing was said of it. It gets what stands before a text that is to be found; for most models, this is the text as it is.
    #[default]
    Passage,
    /// To find others with.
    Query {
        /// What is looked for, as a sentence; None for the model's usual task.
        task: Option<String>,
    },
    /// To be found, as somebody has said: models with adapters have one for such texts, and all others take it for a passage.
    Document,
}

/// What is looked for where nothing else is said.
pub const DEFAULT_TASK: &str = "Given a web search query, retrieve relevant passages that answer the query";

impl Embed {
    /// A text to be found.
    pub fn passage(text: impl Into<String>) -> Embed {
        Embed {
            text: text.into(),
            purpose: Purpose::Passage,
            truncate: false,
            prompt: None,
            dimensions: None,
        }
    }

    /// A text to find others with.
    pub fn query(text: impl Into<String>, task: Option<String>) -> Embed {
        Embed { purpose: Purpose::Query { task }, ..Embed::passage(text) }
    }

    /// The text in the words of Qwen3-Embedding, which decoders that embed have in common: a query comes with its
    /// task, a passage is as it is.
    pub(crate) fn instructed(&self) -> Cow<'_, str> {
        match (&self.prompt, &self.purpose) {
            (None, Purpose::Passage | Purpose::Document) => Cow::Borrowed(&self.text),
            (Some(_), _) | (None, Purpose::Query { .. }) => Cow::Owned(self.instruction() + &self.text),
        }
    }

    /// What [`Embed::instructed`] puts before the text.
    pub(crate) fn instruction(&self) -> String {
        match (&self.prompt, &self.purpose) {
            (Some(prompt), _) => prompt.clone(),
            (None, Purpose::Passage | Purpose::Document) => String::new(),
            (None, Purpose::Query { task }) => {
                format!("Instruct: {}\nQuery:", task.as_deref().unwrap_or(DEFAULT_TASK))
            }
        }
    }
}

/// Scoring of one document. Requests of one query compute what they have in common once.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Rerank {
    /// What is looked for.
    pub query: String,
    /// Where it may be found.
    pub document: String,
    /// What makes a document a good one, in the words of an instruction; encoders take no notice of it.
    pub task: String,
    /// Whether a document that is longer than the context has room for is cut at its end; otherwise it is an error.
    pub truncate: bool,
    /// What stands before query and document where their vectors are compared.
    pub prompts: Prompts,
}

impl Rerank {
    /// The document where its vector is compared.
    pub(crate) fn document_by_itself(&self) -> Embed {
        let prompt = self.prompts.passage.clone();
        Embed {
            truncate: self.truncate,
            prompt,
            purpose: Purpose::Document,
            ..Embed::passage(&self.document)
        }
    }
}

/// How likely some answers to a prompt are. The prompt is computed once, and so is each token that answers begin with in common.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Likelihoods {
    /// The user's prompt; the model's chat template is put around it.
    pub prompt: String,
    /// What the model is told before everything else. An empty text keeps the chat template from saying something of its own.
    pub system: Option<String>,
    /// What every answer begins with, as if the model had said it already.
    pub begin: String,
    /// The answers, at least one. None of them is empty.
    pub answers: Vec<String>,
    /// Whether others will ask for just the same, so that the engine remembers what came of it.
    pub repeated: bool,
}

/// Something that happened to the request `key`. The last event of a request is `Done` or `Failed`;
/// every submitted request gets exactly one of them, also after a cancel or a shutdown.
#[derive(Debug, Serialize, Deserialize)]
pub struct Event {
    /// [`Request::key`].
    pub key: u64,
    /// How many turns the engine has computed since it took the request in: steps of models, and slices of texts on encoders.
    pub turns: u64,
    /// What happened.
    pub kind: EventKind,
}

/// What happened to a request.
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
    /// The prompt of a text is computed and its first token chosen. Not where the answer was known without a model.
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
    /// Of [`Work::Generate`].
    Text {
        /// The whole text, without the stop string.
        text: String,
        /// Tokens generated.
        generated_tokens: usize,
        /// Why generation ended.
        finish: Finish,
    },
    /// Of [`Work::Embed`]: L2-normalised, as long as the model's embedding is wide.
    Embedding(Vec<f32>),
    /// Of [`Work::Rerank`]: from 0 to 1.
    Score(f32),
    /// Of [`Work::Likelihoods`], in the order of the answers: the natural logarithm of the probability that the model's answer
    /// begins with that one, or, where another one goes on behind it, is just that one.
    LogProbabilities(Vec<f64>),
    /// Of [`Work::Tokenize`].
    Tokens(Vec<u32>),
    /// Of [`Work::Chunk`], in their order.
    Chunks(Vec<Chunk>),
    /// Of [`Work::Verify`].
    Verification(Verification),
}

/// Why generation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Finish {
    /// The model said so.
    EndOfText,
    /// A stop string was reached.
    Stop,
    /// `max_tokens` were generated.
    Length,
    /// Nothing more can follow in an answer that matches the constraint.
    Complete,
}

/// Where a request's events go: a channel, and optionally a function that is called after each send, for
/// receivers that sleep on a file descriptor rather than on the channel.
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
