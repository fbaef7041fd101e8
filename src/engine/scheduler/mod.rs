//! The engine: a thread that computes the steps of all running requests, and threads beside it that load
//! models and tokenize long texts.
//!
//! [`Engine::submit`] puts a request into a bounded queue. The engine thread admits waiting requests by
//! priority, users in turn, as far as keys and values fit into their budget, and computes steps: each is one
//! forward pass over a row of every request that generates, and a slice of the prompts that are not computed
//! yet. Texts on encoders are computed in passes of their own, some layers between two steps.

mod answer_tree;
mod beginning;
mod detokenizer;
mod encode_batches;
mod generation;
mod job_queue;
mod likelihood_memo;
mod load_settings;
mod loaded;
mod loaded_encoder;
mod loader;
mod models;
mod plan;
mod prefix;
mod prompt_lookup;
mod rows;
mod sequence;
mod statistics;
mod step;
mod submission;
mod thoughts;
mod thread;
mod turns;
mod verifier;
mod watch;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use crossbeam_channel::Sender;

use crate::config::Config;
use crate::memory::Ledger;
use crate::pulse::{Heart, Pulse};
use crate::{Error, Reply, Request, Role, Standing, Statistics, Ticket, Work, verify};

pub(crate) use load_settings::limits;
pub use models::LoadedModel;
use statistics::Counters;
use submission::Submission;
use verifier::Verifier;

/// Most bytes of a prompt or text; a context takes far less.
const MAX_TEXT_BYTES: usize = 16 << 20;
/// Most stop strings of a request.
pub const MAX_STOPS: usize = 64;
/// Most bytes of a stop string.
pub const MAX_STOP_BYTES: usize = 1024;
/// Most messages before the prompt, the system message apart.
pub const MAX_HISTORY: usize = 256;
/// Most tokens of a request that have a bias.
pub const MAX_BIASES: usize = 1024;
/// Bound of a bias and of a penalty: at most so much is added to or subtracted from a logit.
const MAX_BIAS: f32 = 100.0;
/// Most answers whose likelihoods are wanted, most bytes of one, and of all of them.
const MAX_ANSWERS: usize = 1000;
const MAX_ANSWER_BYTES: usize = 1024;
const MAX_ANSWERS_BYTES: usize = 1 << 16;

/// An engine. Dropping it stops it: requests that are not finished fail with [`Error::Stopped`].
#[derive(Debug)]
pub struct Engine {
    shared: Arc<EngineShared>,
    queue: Sender<EngineMessage>,
    capacity: usize,
    thread: Option<JoinHandle<()>>,
    verifier: Verifier,
}

/// State that the engine's threads and its owner share.
#[derive(Debug, Default)]
struct EngineShared {
    /// Requests that were submitted and have not begun.
    waiting: AtomicUsize,
    stop: AtomicBool,
    /// The engine thread has ended without being told to.
    gone: AtomicBool,
    memory: Arc<Ledger>,
    loaded: Arc<Mutex<Vec<models::Listed>>>,
    statistics: Counters,
    heart: Heart,
}

/// Messages to the engine thread.
enum EngineMessage {
    Submit(Box<Queued>),
    /// A job was done on another thread.
    Report(loader::JobReport),
    /// Look at the stop flag.
    Wake,
}

/// A request on its way to the engine thread.
struct Queued {
    submission: Submission,
    slot: QueueSlot,
}

/// A place in the queue of waiting requests. Dropping it frees the place, whatever has become of its request.
struct QueueSlot(Arc<EngineShared>);

impl QueueSlot {
    /// Takes a place in the queue; None where all of them are taken.
    fn take(shared: &Arc<EngineShared>, capacity: usize) -> Option<QueueSlot> {
        let slot = QueueSlot(Arc::clone(shared));
        (shared.waiting.fetch_add(1, Ordering::AcqRel) < capacity).then_some(slot)
    }
}

impl Drop for QueueSlot {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Ordering::AcqRel);
    }
}

impl Engine {
    /// Starts the engine's threads. No model is loaded yet.
    ///
    /// # Errors
    /// [`Error::Panicked`] where the system has no more threads.
    pub fn start(config: Config) -> Result<Engine, Error> {
        crate::panic::contain();
        crate::memory::prepare();
        let memory = Ledger::new(config.memory_limit_mb);
        let shared = Arc::new(EngineShared { memory, ..EngineShared::default() });
        let (queue, messages) = crossbeam_channel::unbounded();
        let capacity = config.queue_capacity;
        let verifier =
            Verifier::new(config.compute_threads(), config.instructions, thread::hook_beside(&config));
        let thread = thread::start(config, Arc::clone(&shared), queue.clone(), messages)?;
        Ok(Engine { shared, queue, capacity, thread: Some(thread), verifier })
    }

    /// Submits a request. Its events go to `reply`; all errors come as [`EventKind::Failed`], also those that
    /// are found at once.
    pub fn submit(&self, request: Request, reply: Reply) -> Ticket {
        let ticket = Ticket::new();
        self.submit_with(request, reply, ticket.clone());
        ticket
    }

    /// As [`Engine::submit`], with a ticket that the caller has already.
    pub fn submit_with(&self, request: Request, reply: Reply, ticket: Ticket) {
        self.submit_as(request, Standing::default(), reply, ticket);
    }

    /// As [`Engine::submit_with`], with the user and the priority of the request.
    pub fn submit_as(&self, request: Request, standing: Standing, reply: Reply, ticket: Ticket) {
        let mut submission = Submission::new(request, standing, reply, ticket, Arc::clone(&self.shared));
        if let Err(error) = validate(&submission.request).and_then(|()| submission.hold(&self.shared.memory))
        {
            return submission.fail(error);
        }
        if let Work::Verify(what) = &submission.request.work {
            let what = what.clone();
            return self.verifier.begin(submission, what, &self.shared);
        }
        let Some(slot) = QueueSlot::take(&self.shared, self.capacity) else {
            return submission.fail(Error::QueueFull { capacity: self.capacity });
        };
        let queued = Box::new(Queued { submission, slot });
        if let Err(unsent) = self.queue.send(EngineMessage::Submit(queued))
            && let EngineMessage::Submit(queued) = unsent.into_inner()
        {
            queued.submission.fail(Error::Stopped);
        }
    }

    /// Makes the engine look at its requests: one that was paused may go on.
    pub fn wake(&self) {
        // Where there is no receiver, the thread has ended.
        let _ = self.queue.send(EngineMessage::Wake);
    }

    /// Whether its thread has ended without being told to: requests get no more results.
    pub fn is_gone(&self) -> bool {
        self.shared.gone.load(Ordering::Acquire)
    }

    /// A sign of life of its thread.
    pub fn pulse(&self) -> Pulse {
        self.shared.heart.pulse(!self.queue.is_empty())
    }

    /// Number of requests that have not begun.
    pub fn waiting(&self) -> usize {
        self.shared.waiting.load(Ordering::Acquire)
    }

    /// Notes the memory of messages on their way. False if that would exceed the limit.
    pub(crate) fn note_buffers(&self, bytes: u64) -> bool {
        self.shared.memory.note_buffers(bytes)
    }

    /// The models that are loaded now.
    pub fn loaded_models(&self) -> Vec<LoadedModel> {
        let listed = self.shared.loaded.lock().unwrap_or_else(PoisonError::into_inner);
        listed.iter().map(models::Listed::shown).collect()
    }

    /// Counters since the start: work that was computed, and work that was avoided.
    pub fn statistics(&self) -> Statistics {
        self.shared.statistics.read()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // Where there is no receiver, the thread has ended already.
        let _ = self.queue.send(EngineMessage::Wake);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Refuses parameters that make no sense.
fn validate(request: &Request) -> Result<(), Error> {
    let invalid = |reason: &str| Err(Error::InvalidRequest(reason.to_owned()));
    if request.work.text_bytes() > MAX_TEXT_BYTES {
        return invalid("the text is longer than 16 MB");
    }
    let how = match &request.work {
        Work::Generate(how) => how,
        Work::Chunk(how) => return how.check(),
        Work::Likelihoods(how) => return validate_answers(&how.answers),
        Work::Verify(what) => return verify::check(what),
        Work::Embed(_) | Work::Rerank(_) | Work::Tokenize { .. } => return Ok(()),
    };
    let sampling = &how.sampling;
    if how.history.len() > MAX_HISTORY {
        return invalid("there are more than 256 messages before the prompt");
    }
    if how.history.iter().any(|message| message.role == Role::System) {
        return invalid("a system message stands among those of user and assistant");
    }
    if how.max_tokens == 0 {
        return invalid("max_tokens is 0");
    }
    if !(sampling.temperature.is_finite() && sampling.temperature >= 0.0) {
        return invalid("temperature is not a number from 0 upward");
    }
    if !(0.0..=1.0).contains(&sampling.top_p) {
        return invalid("top_p is not between 0 and 1");
    }
    if !(0.0..=1.0).contains(&sampling.min_p) {
        return invalid("min_p is not between 0 and 1");
    }
    let penalties = &sampling.penalties;
    if !(penalties.repeat > 0.0 && penalties.repeat <= MAX_BIAS) {
        return invalid("repeat_penalty is not between 0 and 100, or is 0");
    }
    let subtracted = [penalties.presence, penalties.frequency];
    if subtracted.iter().any(|penalty| !(-MAX_BIAS..=MAX_BIAS).contains(penalty)) {
        return invalid("presence_penalty or frequency_penalty is not between -100 and 100");
    }
    if sampling.logit_bias.len() > MAX_BIASES {
        return invalid("more than 1,024 tokens have a bias");
    }
    if sampling.logit_bias.iter().any(|(_, bias)| !(-MAX_BIAS..=MAX_BIAS).contains(bias)) {
        return invalid("a bias is not between -100 and 100");
    }
    if how.stop.len() > MAX_STOPS {
        return invalid("there are more than 64 stop strings");
    }
    if how.stop.iter().any(|stop| stop.is_empty() || stop.len() > MAX_STOP_BYTES) {
        return invalid("a stop string is empty or longer than 1,024 bytes");
    }
    let Some(constraint) = &how.constraint else { return Ok(()) };
    if !how.stop.is_empty() {
        return invalid("stop strings would cut an answer that has to match a constraint");
    }
    constraint.check_limits()
}

/// Refuses answers whose likelihoods cannot be computed, and more of them than may be compared.
fn validate_answers(answers: &[String]) -> Result<(), Error> {
    let invalid = |reason: &str| Err(Error::InvalidRequest(reason.to_owned()));
    if answers.is_empty() {
        return invalid("there are no answers to compare");
    }
    if answers.len() > MAX_ANSWERS {
        return invalid("there are more than 1,000 answers to compare");
    }
    if answers.iter().any(|answer| answer.is_empty() || answer.len() > MAX_ANSWER_BYTES) {
        return invalid("an answer to compare is empty or longer than 1,024 bytes");
    }
    if answers.iter().map(String::len).sum::<usize>() > MAX_ANSWERS_BYTES {
        return invalid("the answers to compare have more than 65,536 bytes together");
    }
    Ok(())
}
