//! The engine thread: takes requests in, admits them, computes steps until it is told to stop.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::encodings::Encodings;
use super::loaded::{Settings, Texts};
use super::loader::{Hook, Job, Report, Worker};
use super::models::{Missing, Models};
use super::running::{Plan, Running};
use super::step::Stepper;
use super::{Message, Shared, Submission};
use crate::config::Config;
use crate::kernels::{Pool, pool};
use crate::mapping::unblock_sigbus;
use crate::panic::{catch, mark_thread};
use crate::{Error, EventKind, Generate, ModelSource, Work};

/// How long the thread waits for a request before it looks around.
const LOOK_AROUND: Duration = Duration::from_secs(60);

/// How often it looks for cancelled requests while all of them wait for a model.
const LOOK_FOR_CANCELS: Duration = Duration::from_millis(10);
/// Stack of threads on which nothing recurses deeply.
const STACK_BYTES: usize = 2 << 20;
/// Schemas and patterns are compiled there, of which each reference and each nesting takes some kilobytes.
const COMPILER_STACK_BYTES: usize = 256 << 20;
/// Documents and schemas are walked through there.
const CHECKER_STACK_BYTES: usize = 64 << 20;

/// How much nicer than the rest the threads are that tokenize, compile and check.
const BESIDE_NICE: i32 = 5;

/// Texts up to this length are tokenized at once, which takes less than waking another thread is worth.
const SHORT_BYTES: usize = 4096;

/// Starts the engine thread and its compute threads.
pub(super) fn start(
    config: Config,
    shared: Arc<Shared>,
    queue: Sender<Message>,
    messages: Receiver<Message>,
) -> Result<JoinHandle<()>, Error> {
    let hook = |more_nice| {
        let on_start = config.on_thread_start(more_nice);
        let hook: Hook = Arc::new(move || {
            mark_thread();
            on_start();
            unblock_sigbus();
        });
        hook
    };
    let marked = hook(0);
    let pool = Pool::new(config.compute_threads(), config.instructions, &marked).map_err(no_thread)?;
    let settings = Settings::of(&config);
    let worker = |name, stack_bytes, hook: &Hook| {
        let (hook, shared) = (Arc::clone(hook), Arc::clone(&shared));
        Worker::start(name, stack_bytes, hook, settings.clone(), shared, queue.clone()).map_err(no_thread)
    };
    // A step waits for the last of its threads, and these would be in their way for longer than it takes.
    let beside = hook(BESIDE_NICE);
    let helpers = Helpers {
        tokenizer: worker("st-tokenize", STACK_BYTES, &beside)?,
        compiler: worker("st-grammar", COMPILER_STACK_BYTES, &beside)?,
        checker: worker("st-check", CHECKER_STACK_BYTES, &beside)?,
    };
    let loader = worker("st-load", STACK_BYTES, &marked)?;
    let models = Models::new(&config, loader, Arc::clone(&shared.loaded));
    std::thread::Builder::new()
        .name("st-engine".to_owned())
        .stack_size(pool::STACK_BYTES)
        .spawn(move || {
            // A hook of the caller that panics has nobody to be told.
            let _ = catch(|| marked());
            EngineThread::new(&config, shared, messages, pool, models, helpers).run();
        })
        .map_err(no_thread)
}

fn no_thread(error: std::io::Error) -> Error {
    Error::Panicked(format!("could not start a thread: {error}"))
}

/// A request that has not begun.
struct Waiting {
    submission: Submission,
    /// Its tokens, if it only waits for memory.
    plan: Option<Plan>,
    /// Its number, while it is tokenized on another thread.
    planning: Option<u64>,
    told_loading: bool,
}

/// Threads beside the engine thread, apart from the one that loads models.
struct Helpers {
    /// Tokenizes long texts.
    tokenizer: Worker,
    /// Compiles constraints, and tokenizes what they come with.
    compiler: Worker,
    /// Checks what was made under constraints.
    checker: Worker,
}

/// The state of the engine thread.
struct EngineThread {
    shared: Arc<Shared>,
    messages: Receiver<Message>,
    models: Models,
    helpers: Helpers,
    /// Numbers given to requests that are tokenized there.
    planned: u64,
    /// Nothing can be done before something arrives.
    stalled: bool,
    waiting: VecDeque<Waiting>,
    running: Vec<Running>,
    /// Texts on encoders.
    encodings: Encodings,
    max_running: usize,
    kv_budget: u64,
    prefix_reuse: bool,
    stepper: Stepper,
}

impl EngineThread {
    fn new(
        config: &Config,
        shared: Arc<Shared>,
        messages: Receiver<Message>,
        pool: Pool,
        models: Models,
        helpers: Helpers,
    ) -> EngineThread {
        EngineThread {
            models,
            helpers,
            planned: 0,
            stalled: false,
            prefix_reuse: config.prefix_reuse,
            stepper: Stepper::new(config, pool, Arc::clone(&shared)),
            encodings: Encodings::new(Arc::clone(&shared)),
            shared,
            messages,
            waiting: VecDeque::new(),
            running: Vec::new(),
            max_running: config.max_running.max(1),
            kv_budget: config.kv_cache_mb.saturating_mul(1 << 20),
        }
    }

    fn run(mut self) {
        while self.receive() {
            if let Err(Error::Panicked(message)) = catch(|| self.turn()) {
                // Not in a place that belongs to one request: all that were in it may be half done.
                for running in self.running.drain(..) {
                    running.submission.fail(Error::Panicked(message.clone()));
                }
                self.encodings.fail(&Error::Panicked(message), &|_| true);
            }
        }
        self.models.clear();
        for running in self.running.drain(..) {
            running.submission.fail(Error::Stopped);
        }
        self.encodings.fail(&Error::Stopped, &|_| true);
        // Closing the channel first leaves nobody in it.
        let queued = self.messages.try_iter().filter_map(|message| match message {
            Message::Submit(submission) => Some(*submission),
            Message::Report(_) | Message::Wake => None,
        });
        for submission in self.waiting.into_iter().map(|waiting| waiting.submission).chain(queued) {
            submission.fail(Error::Stopped);
        }
    }

    fn stopping(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    /// Takes in what was submitted, waiting for it when there is nothing else to do; false at the end.
    fn receive(&mut self) -> bool {
        if self.running.is_empty() && self.encodings.is_empty() && self.waiting.is_empty() {
            let idle = self.models.unload_idle(&|_| false).unwrap_or(LOOK_AROUND).min(LOOK_AROUND);
            match self.messages.recv_timeout(idle) {
                Ok(message) => self.take(message),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return false,
            }
        }
        if std::mem::take(&mut self.stalled)
            && let Ok(message) = self.messages.recv_timeout(LOOK_FOR_CANCELS)
        {
            self.take(message);
        }
        while let Ok(message) = self.messages.try_recv() {
            self.take(message);
        }
        !self.stopping()
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Submit(submission) => self.queue(*submission),
            Message::Report(report) => self.learn(report),
            Message::Wake => {}
        }
    }

    /// Lets a request wait for its turn, or for the result of one that asks for the same.
    fn queue(&mut self, submission: Submission) {
        let running = self.running.iter().map(|running| &running.submission);
        let mut begun = running.chain(self.encodings.submissions());
        let mut waiting = self.waiting.iter().map(|waiting| &waiting.submission);
        // What has begun goes on with the file that the model had then.
        let begun = begun
            .find(|other| other.is_same_flight(&submission))
            .filter(|_| !self.models.is_outdated(&submission.request.model));
        if let Some(same) = begun.or_else(|| waiting.find(|other| other.is_same_flight(&submission))) {
            same.take_in(submission);
            self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            self.shared.statistics.joined();
            return;
        }
        self.waiting.push_back(Waiting { submission, plan: None, planning: None, told_loading: false });
    }

    /// Takes in what was done beside this thread. A load that failed fails all that waited for it.
    fn learn(&mut self, report: Report) {
        let (source, outcome) = match report {
            Report::Opened(source, opened) => {
                let outcome = self.models.opened(&source, opened);
                (source, outcome)
            }
            Report::Loaded(source, loaded) => {
                let outcome = self.models.loaded(&source, loaded);
                (source, outcome)
            }
            Report::Planned { number, plan } => {
                let found = self.waiting.iter().position(|waiting| waiting.planning == Some(number));
                // It may have been cancelled, or its model unloaded.
                let Some(index) = found else { return };
                match plan {
                    Ok(plan) => {
                        self.waiting[index].planning = None;
                        self.waiting[index].plan = Some(*plan);
                    }
                    Err(error) => self.fail_waiting(&error, |waiting| waiting.planning == Some(number)),
                }
                return;
            }
        };
        if let Err(error) = outcome {
            self.fail_waiting(&error, |waiting| waiting.submission.request.model == source);
        }
    }

    fn fail_waiting(&mut self, error: &Error, which: impl Fn(&Waiting) -> bool) {
        self.waiting.retain(|waiting| {
            let failed = which(waiting);
            if failed {
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
                waiting.submission.fail(error.clone());
            }
            !failed
        });
    }

    /// One turn: drop what was cancelled, admit what fits, compute a step.
    fn turn(&mut self) {
        self.waiting.retain(|waiting| {
            let cancelled = waiting.submission.fail_if_cancelled();
            if cancelled {
                self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
            }
            !cancelled
        });
        self.plan_ahead();
        // Models whose requests have to wait; those of the others go on.
        let mut coming: Vec<ModelSource> = Vec::new();
        // Requests that need keys and values wait in their order; texts on encoders need none.
        let mut blocked = false;
        // Requests that are tokenized or compiled on other threads are overtaken, but no more of these than may run.
        let mut planning = 0;
        let mut index = 0;
        while !self.stopping() {
            let Some(source) = self.waiting.get(index).map(|waiting| &waiting.submission.request.model)
            else {
                break;
            };
            let full = blocked || self.running.len() >= self.max_running;
            if coming.contains(source) || (full && !self.models.is_encoder(source)) {
                index += 1;
                continue;
            }
            let Some(next) = self.waiting.remove(index) else { break };
            match self.admit(next) {
                Some(later) => {
                    let source = later.submission.request.model.clone();
                    let is_planned = later.planning.is_some();
                    planning += usize::from(is_planned);
                    self.waiting.insert(index, later);
                    if is_planned && planning <= self.max_running {
                        index += 1;
                    } else if is_planned || self.models.is_coming(&source) || self.models.is_encoder(&source)
                    {
                        coming.push(source);
                    } else {
                        blocked = true;
                    }
                }
                None => {
                    self.shared.waiting.fetch_sub(1, Ordering::AcqRel);
                }
            }
        }
        self.stalled = self.running.is_empty() && self.encodings.is_empty() && !self.waiting.is_empty();
        let (running, encodings) = (&self.running, &self.encodings);
        self.models.unload_idle(&|source| in_use(running, encodings, source));
        let stop = &self.shared.stop;
        let stop = || stop.load(Ordering::Acquire);
        for check in self.stepper.step(&mut self.running, &mut self.models, &stop) {
            self.helpers.checker.send(check);
        }
        let generating = !self.running.is_empty();
        self.encodings.advance(&mut self.models, self.stepper.pool(), generating, &stop);
        self.drop_lost();
    }

    /// Unloads models whose files can no longer be read, and fails what was running on them.
    fn drop_lost(&mut self) {
        for (source, error) in self.models.unload_lost() {
            for running in self.running.extract_if(.., |running| *running.source() == source) {
                running.submission.fail(error.clone());
            }
            self.encodings.fail(&error, &|other| *other == source);
        }
    }

    /// Has long texts tokenized and constraints compiled on other threads before it is their turn.
    fn plan_ahead(&mut self) {
        let mut ahead = 0;
        for waiting in &mut self.waiting {
            let request = &waiting.submission.request;
            if !self.models.has(&request.model) {
                continue;
            }
            ahead += 1;
            if ahead > self.max_running {
                break;
            }
            if waiting.plan.is_none() && waiting.planning.is_none() && takes_long(&request.work) {
                let Some(texts) = self.models.texts(&request.model) else { continue };
                self.planned += 1;
                waiting.planning = Some(self.planned);
                self.helpers.plan(self.planned, request.work.clone(), texts);
            }
        }
    }

    /// Begins a request or fails it; returns it where it has to wait.
    fn admit(&mut self, mut waiting: Waiting) -> Option<Waiting> {
        let own: u64 = self.running.iter().map(Running::own_bytes).sum();
        let reserved = own + self.models.held_bytes();
        let source = waiting.submission.request.model.clone();
        let (running, encodings) = (&self.running, &self.encodings);
        if !self.models.renew(&source, &|source| in_use(running, encodings, source)) {
            return Some(waiting);
        }
        if !self.models.has(&source) {
            // What was tokenized for it belongs to a model that is gone.
            let same = self.waiting.iter_mut().filter(|other| other.submission.request.model == source);
            for waiting in same.chain([&mut waiting]) {
                (waiting.plan, waiting.planning) = (None, None);
            }
            if matches!(source, ModelSource::File(_)) && !waiting.told_loading {
                waiting.told_loading = true;
                waiting.submission.send(EventKind::Loading);
            }
        }
        let mut plan = match self.plan(&mut waiting, &source, reserved) {
            Ok(planned) => planned,
            Err(Missing::NoRoom | Missing::Coming) => return Some(waiting),
            Err(Missing::Failed(error)) => {
                waiting.submission.fail(error);
                return None;
            }
        };
        if let Some(output) = plan.take_output() {
            waiting.submission.send(EventKind::Started {
                prompt_tokens: plan.prompt_tokens(),
                model: self.models.identity(&source),
            });
            waiting.submission.send(EventKind::Done(output));
            return None;
        }
        if self.models.is_encoder(&source) {
            if self.encodings.is_full() {
                waiting.plan = Some(plan);
                return Some(waiting);
            }
            self.encodings.add(waiting.submission, plan, self.models.identity(&source));
            return None;
        }
        let Some(loaded) = self.models.get(&source) else { return Some(waiting) };
        let beginning = plan.begin(&waiting.submission.request, loaded, self.prefix_reuse);
        let (new, whole) = (beginning.own_bytes(), loaded.model.cache_shape().bytes(plan.positions));
        // Kept blocks that nobody holds make room; those that the request itself has found are held now.
        let most = self.kv_budget.min(self.models.room(0));
        let held = self.models.held_bytes();
        if own.saturating_add(held).saturating_add(new) > most {
            // What does not fit beside nothing never will.
            if whole <= most && reserved > 0 {
                waiting.plan = Some(plan);
                return Some(waiting);
            }
            waiting.submission.fail(Error::OutOfMemory {
                what: format!("the key-value cache for {} tokens", plan.positions),
                needed_mb: whole.div_ceil(1 << 20),
                limit_mb: Some(most >> 20),
            });
            return None;
        }
        self.models.trim_prefixes(most - own - new);
        self.shared.statistics.reused(beginning.reused());
        let identity = self.models.identity(&source);
        if let Some(loaded) = self.models.get(&source) {
            self.running.push(Running::new(waiting.submission, plan, beginning, loaded, identity));
        }
        None
    }

    /// Loads the model and tokenizes the request, unless that is done already.
    fn plan(&mut self, waiting: &mut Waiting, source: &ModelSource, reserved: u64) -> Result<Plan, Missing> {
        let (running, encodings, models, helpers) =
            (&self.running, &self.encodings, &mut self.models, &self.helpers);
        let number = self.planned + 1;
        let planned = catch(|| {
            models.load(source, &|source| in_use(running, encodings, source), reserved)?;
            if waiting.planning.is_some() {
                return Err(Missing::Coming);
            }
            match waiting.plan.take() {
                Some(plan) => Ok(plan),
                None if takes_long(&waiting.submission.request.work) => {
                    let texts = models.texts(source).ok_or(Missing::NoRoom)?;
                    waiting.planning = Some(number);
                    helpers.plan(number, waiting.submission.request.work.clone(), texts);
                    Err(Missing::Coming)
                }
                None => {
                    let texts = models.texts(source).ok_or(Missing::NoRoom)?;
                    texts.plan(&waiting.submission.request.work).map_err(Missing::Failed)
                }
            }
        });
        self.planned = number;
        planned.map_err(Missing::Failed)?
    }
}

/// Whether a request is being worked on with the model.
fn in_use(running: &[Running], encodings: &Encodings, source: &ModelSource) -> bool {
    encodings.uses(source) || running.iter().any(|request| request.source() == source)
}

impl Helpers {
    /// Has a request tokenized and its constraint compiled. What is constrained never waits for long texts.
    fn plan(&self, number: u64, work: Work, texts: Texts) {
        let helper = if is_constrained(&work) { &self.compiler } else { &self.tokenizer };
        helper.send(Job::Plan { number, work, texts });
    }
}

/// Whether a request is planned on another thread.
fn takes_long(work: &Work) -> bool {
    is_constrained(work) || work.text_bytes() > SHORT_BYTES
}

fn is_constrained(work: &Work) -> bool {
    matches!(work, Work::Generate(Generate { constraint: Some(_), .. }))
}
