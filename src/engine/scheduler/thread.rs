//! The engine thread: takes requests in, admits them, and computes steps until it is told to stop.
//!
//! Invariant: a panic ends the work in which it happens, is reported to the requests concerned, and is
//! counted; the thread goes on. Only where every turn panics does the thread end, and it says so.

mod admission;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, RecvTimeoutError, Sender};

use super::encode_batches::EncodeBatches;
use super::job_queue::EngineJob;
use super::load_settings::LoadSettings;
use super::loaded::RequestPlanner;
use super::loader::{Hook, JobReport, JobThread};
use super::models::EngineModels;
use super::sequence::{Sequence, Suspended};
use super::step::Stepper;
use super::turns::{Age, Users, WaitingRequest, WaitingRequests};
use super::watch::FiguresWatch;
use super::{EngineMessage, EngineShared, Queued, Submission};
use crate::config::Config;
use crate::constraints::Checker;
use crate::kernels::{Pool, float_environment};
use crate::mapping::unblock_sigbus;
use crate::panic::{catch, mark_thread};
use crate::process::COMPUTING_STACK_BYTES;
use crate::{Error, Figures, Generate, ModelSource, Output, Work};

/// Time for which the thread waits for a request before it looks around.
const LOOK_AROUND: Duration = Duration::from_secs(60);

/// The same while there are paused requests, which their listeners may let go on.
const LOOK_AT_HELD: Duration = Duration::from_secs(1);

/// Interval at which it looks for cancelled requests while all of them wait for a model.
const LOOK_FOR_CANCELS: Duration = Duration::from_millis(10);
/// Stack of threads on which nothing recurses deeply.
const STACK_BYTES: usize = 2 << 20;
/// Schemas and patterns are compiled there; each reference and each nesting takes some kilobytes.
const COMPILER_STACK_BYTES: usize = 256 << 20;
/// Documents and schemas are traversed there.
const CHECKER_STACK_BYTES: usize = 64 << 20;

/// Niceness of the threads that tokenize, compile and check, beyond that of the others.
const BESIDE_NICE: i32 = 5;

/// The thread ends after so many panics without any work done between them.
const MOST_PANICS: u32 = 16;

/// Texts up to this length are tokenized at once, which takes less time than to wake another thread.
const SHORT_BYTES: usize = 4096;

/// Starts the engine thread and its compute threads.
pub(super) fn start(
    config: Config,
    shared: Arc<EngineShared>,
    queue: Sender<EngineMessage>,
    messages: Receiver<EngineMessage>,
) -> Result<JoinHandle<()>, Error> {
    let marked = hook(&config, 0);
    let pool = Pool::new(config.compute_threads(), config.instructions, &marked)
        .map_err(|error| Error::no_thread(&error))?
        .counting(shared.heart.beats());
    let settings = LoadSettings::of(&config, &shared.memory);
    let worker = |name, stack_bytes, hook: &Hook| {
        let (hook, shared) = (Arc::clone(hook), Arc::clone(&shared));
        JobThread::start(name, stack_bytes, hook, settings.clone(), shared, queue.clone())
            .map_err(|error| Error::no_thread(&error))
    };
    // A step waits for the last of its threads, and these other threads would delay it.
    let beside = hook_beside(&config);
    let helpers = Helpers {
        tokenizer: worker("st-tokenize", STACK_BYTES, &beside)?,
        compiler: worker("st-grammar", COMPILER_STACK_BYTES, &beside)?,
        checker: worker("st-check", CHECKER_STACK_BYTES, &beside)?,
    };
    let loader = worker("st-load", STACK_BYTES, &marked)?;
    let models = EngineModels::new(&config, loader, Arc::clone(&shared.loaded), Arc::clone(&shared.memory));
    std::thread::Builder::new()
        .name("st-engine".to_owned())
        .stack_size(COMPUTING_STACK_BYTES)
        .spawn(move || {
            // There is nobody to tell of a panic in the caller's hook.
            let _ = catch(|| marked());
            let gone = Arc::clone(&shared);
            let ran = catch(|| EngineThread::new(&config, shared, messages, pool, models, helpers).run());
            // Only after an orderly end is there no reason to start another engine.
            if !matches!(ran, Ok(true)) {
                gone.gone.store(true, Ordering::Release);
                if let Some(ended) = &config.ended {
                    let _ = catch(|| ended());
                }
            }
        })
        .map_err(|error| Error::no_thread(&error))
}

/// The function that every thread of the engine runs first.
fn hook(config: &Config, more_nice: i32) -> Hook {
    let on_start = config.on_thread_start(more_nice);
    Arc::new(move || {
        mark_thread();
        on_start();
        float_environment::set();
        unblock_sigbus();
    })
}

/// [`hook`] for threads that give way to those that compute steps.
pub(super) fn hook_beside(config: &Config) -> Hook {
    hook(config, BESIDE_NICE)
}

/// The subject of a report.
enum About {
    Model(ModelSource),
    Plan(u64),
}

impl About {
    fn of(report: &JobReport) -> About {
        match report {
            JobReport::Opened(source, _) | JobReport::Loaded(source, _) => About::Model(source.clone()),
            JobReport::Planned { number, .. } => About::Plan(*number),
        }
    }
}

/// Threads beside the engine thread, apart from the one that loads models.
struct Helpers {
    /// Tokenizes long texts.
    tokenizer: JobThread,
    /// Compiles constraints, and tokenizes the texts of their requests.
    compiler: JobThread,
    /// Checks answers under constraints.
    checker: JobThread,
}

/// The state of the engine thread.
struct EngineThread {
    shared: Arc<EngineShared>,
    messages: Receiver<EngineMessage>,
    models: EngineModels,
    helpers: Helpers,
    /// The last number given to a request that is tokenized there.
    planned: u64,
    /// Whether requests are left of which nothing can be computed before something arrives.
    stalled: bool,
    waiting: WaitingRequests,
    running: Vec<Sequence>,
    /// Requests that have given their places away.
    suspended: Vec<Suspended>,
    users: Users,
    /// The number of this turn.
    now: u64,
    /// Number of requests that have come.
    arrivals: u64,
    /// Texts on encoders.
    encode_batches: EncodeBatches,
    max_running: usize,
    kv_budget: u64,
    prefix_reuse: bool,
    stepper: Stepper,
    watch: FiguresWatch,
    /// [`Config::fault`].
    fault: Option<Arc<dyn Fn(&'static str) + Send + Sync>>,
}

impl EngineThread {
    fn new(
        config: &Config,
        shared: Arc<EngineShared>,
        messages: Receiver<EngineMessage>,
        pool: Pool,
        models: EngineModels,
        helpers: Helpers,
    ) -> EngineThread {
        EngineThread {
            models,
            helpers,
            planned: 0,
            stalled: false,
            prefix_reuse: config.prefix_reuse,
            stepper: Stepper::new(config, pool, Arc::clone(&shared)),
            encode_batches: EncodeBatches::new(Arc::clone(&shared)),
            shared,
            messages,
            waiting: WaitingRequests::default(),
            running: Vec::new(),
            suspended: Vec::new(),
            users: Users::default(),
            now: 0,
            arrivals: 0,
            max_running: config.max_running.max(1),
            kv_budget: config.kv_cache_mb.saturating_mul(1 << 20),
            watch: FiguresWatch::new(config),
            fault: config.fault.clone(),
        }
    }

    /// Calls [`Config::fault`] at a place where tests may make the thread panic.
    fn fault(&self, place: &'static str) {
        if let Some(fault) = &self.fault {
            fault(place);
        }
    }

    /// Works until it is told to stop; false where it gives up after too many panics.
    fn run(mut self) -> bool {
        let mut panics = 0;
        while panics < MOST_PANICS {
            let received = catch(|| self.receive());
            if let Ok(false) = received {
                break;
            }
            // The request that was being taken in when it panicked has been told; the rest may go on.
            let mut went_well = self.note(&received).is_none();
            let turned = catch(|| self.turn());
            if let Some(error) = self.note(&turned) {
                // The panic was not in a place that belongs to one request, so all that were in it may be
                // half done.
                self.fail_begun(&error);
                went_well = false;
            }
            panics = if went_well { 0 } else { panics + 1 };
        }
        self.models.clear();
        self.fail_begun(&Error::Stopped);
        // Requests that are still in the channel fail as well. One that comes later is dropped with the
        // channel, which sends its last event.
        let queued = self.messages.try_iter().filter_map(|message| match message {
            EngineMessage::Submit(queued) => Some(queued.submission),
            EngineMessage::Report(_) | EngineMessage::Wake => None,
        });
        for submission in self.waiting.drain().map(|waiting| waiting.submission).chain(queued) {
            submission.fail(Error::Stopped);
        }
        self.shared.stop.load(Ordering::Acquire)
    }

    /// Counts the panic of an outcome, if there was one, and returns its error.
    fn note<T>(&self, outcome: &Result<T, Error>) -> Option<Error> {
        let error = outcome.as_ref().err()?;
        self.shared.statistics.panicked();
        Some(error.clone())
    }

    /// Fails everything that is being computed.
    fn fail_begun(&mut self, error: &Error) {
        let suspended = self.suspended.drain(..).map(|suspended| suspended.sequence);
        for running in self.running.drain(..).chain(suspended) {
            running.submission.fail(error.clone());
        }
        self.encode_batches.fail(error, &|_| true);
    }

    fn stopping(&self) -> bool {
        self.shared.stop.load(Ordering::Acquire)
    }

    /// Takes in messages, waiting for them when there is nothing else to do; false at the end.
    fn receive(&mut self) -> bool {
        self.shared.heart.beat();
        if self.running.is_empty() && self.encode_batches.is_empty() && !self.wants_turn() {
            if self.watch.is_behind() {
                self.publish_figures();
            }
            let most = if self.suspended.is_empty() { LOOK_AROUND } else { LOOK_AT_HELD };
            let idle = self.models.unload_idle(&|_| false).unwrap_or(most).min(most);
            match self.shared.heart.rest(|| self.messages.recv_timeout(idle)) {
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

    fn take(&mut self, message: EngineMessage) {
        match message {
            EngineMessage::Submit(queued) => {
                self.fault("receive");
                self.queue(*queued);
            }
            EngineMessage::Report(report) => {
                let about = About::of(&report);
                // Without it, a request that waits for a lost report would wait for ever.
                let learnt = catch(|| self.learn(report));
                if let Some(error) = self.note(&learnt) {
                    self.give_up(&about, &error);
                }
            }
            EngineMessage::Wake => {}
        }
    }

    /// Whether a request waits for anything but its listener.
    fn wants_turn(&self) -> bool {
        let may_go_on = |suspended: &Suspended| {
            !suspended.sequence.submission.is_held() || suspended.sequence.submission.has_unanswered_cancel()
        };
        !self.waiting.is_empty() || self.suspended.iter().any(may_go_on)
    }

    /// Queues a request, or lets it wait for the result of one that asks for the same.
    fn queue(&mut self, Queued { submission, slot }: Queued) {
        let suspended = self.suspended.iter().map(|suspended| &suspended.sequence);
        let running = self.running.iter().chain(suspended).map(|running| &running.submission);
        // Requests that have begun go on with the file that the model had then.
        let begun = running
            .chain(self.encode_batches.submissions())
            .find(|other| other.is_duplicate_of(&submission))
            .filter(|_| !self.models.is_outdated(&submission.request.model));
        if let Some(same) = begun {
            same.take_in(submission);
            return self.shared.statistics.joined();
        }
        let waits = self.waiting.iter().any(|waiting| waiting.submission.is_duplicate_of(&submission));
        if waits {
            self.waiting.join(submission);
            return self.shared.statistics.joined();
        }
        self.arrivals += 1;
        self.waiting.add(WaitingRequest {
            submission,
            _slot: slot,
            plan: None,
            planning: None,
            loading_sent: false,
            age: Age { arrival: self.arrivals, since: self.now },
        });
    }

    /// Takes in a report of another thread. A failed load fails all requests that waited for it.
    fn learn(&mut self, report: JobReport) {
        self.fault("learn");
        let (source, outcome) = match report {
            JobReport::Opened(source, opened) => {
                let outcome = self.models.opened(&source, opened);
                (source, outcome)
            }
            JobReport::Loaded(source, loaded) => {
                let outcome = self.models.loaded(&source, loaded);
                (source, outcome)
            }
            JobReport::Planned { number, plan } => {
                let found = self.waiting.iter_mut().find(|waiting| waiting.planning == Some(number));
                // The request may have been cancelled, or its model unloaded.
                let Some(waiting) = found else { return };
                match plan {
                    Ok(plan) => {
                        waiting.planning = None;
                        waiting.plan = Some(*plan);
                    }
                    // A listener may have joined those that have cancelled.
                    Err(Error::Cancelled) => waiting.planning = None,
                    Err(error) => self.fail_waiting(&error, |waiting| waiting.planning == Some(number)),
                }
                return;
            }
        };
        if let Err(error) = outcome {
            self.fail_waiting(&error, |waiting| waiting.submission.request.model == source);
            self.fail_suspended(&error, &source);
        }
    }

    /// Fails the requests that wait for a report that is lost.
    fn give_up(&mut self, about: &About, error: &Error) {
        match about {
            About::Model(source) => {
                self.models.forget(source);
                self.fail_waiting(error, |waiting| waiting.submission.request.model == *source);
                self.fail_suspended(error, source);
            }
            About::Plan(number) => self.fail_waiting(error, |waiting| waiting.planning == Some(*number)),
        }
    }

    fn fail_suspended(&mut self, error: &Error, source: &ModelSource) {
        for suspended in self.suspended.extract_if(.., |suspended| suspended.sequence.source() == source) {
            suspended.sequence.submission.fail(error.clone());
        }
    }

    fn fail_waiting(&mut self, error: &Error, which: impl Fn(&WaitingRequest) -> bool) {
        self.waiting.retain(|waiting| {
            let failed = which(waiting);
            if failed {
                waiting.submission.fail(error.clone());
            }
            !failed
        });
    }

    /// One turn: drops cancelled requests, admits those that fit, computes a step.
    fn turn(&mut self) {
        self.fault("turn");
        self.waiting.retain(|waiting| !waiting.submission.fail_if_cancelled());
        self.suspended.retain(|suspended| !suspended.sequence.submission.fail_if_cancelled());
        self.note_memory();
        self.admit_all();
        let computes = !self.running.is_empty() || !self.encode_batches.is_empty();
        self.stalled = !computes && self.wants_turn();
        if computes {
            self.now = self.shared.statistics.turned();
        }
        let (running, suspended, encode_batches) = (&self.running, &self.suspended, &self.encode_batches);
        self.models.unload_idle(&|source| in_use(running, suspended, encode_batches, source));
        let stop = &self.shared.stop;
        let stop = || stop.load(Ordering::Acquire);
        for check in self.stepper.step(&mut self.running, &mut self.models, &stop) {
            self.helpers.checker.send(check);
        }
        let generating = !self.running.is_empty();
        if !self.encode_batches.is_empty() {
            let started = Instant::now();
            self.encode_batches.advance(&mut self.models, self.stepper.pool(), generating, &stop);
            self.shared.statistics.took(started.elapsed(), 1, 0);
        }
        self.drop_lost();
        if self.watch.is_due() {
            self.publish_figures();
        }
    }

    /// Publishes the figures.
    fn publish_figures(&mut self) {
        let (held, limit) = (self.models.held_bytes(), self.shared.memory.limit_bytes());
        let figures = Figures {
            running: (self.running.len() + self.encode_batches.submissions().count()) as u64,
            suspended: self.suspended.len() as u64,
            waiting: self.shared.waiting.load(Ordering::Acquire) as u64,
            kv_used_bytes: self.own_bytes() + held,
            kv_kept_bytes: self.models.kept_bytes().saturating_sub(held),
            kv_limit_bytes: self.kv_budget,
            models: self.models.count() as u64,
            model_bytes: self.models.bytes(),
            request_bytes: self.shared.memory.held_bytes(),
            limit_bytes: if limit == u64::MAX { 0 } else { limit },
            statistics: self.shared.statistics.read(),
        };
        self.watch.publish(&figures);
    }

    /// Publishes how much memory is left to reserve, and frees kept blocks of keys and values for
    /// reservations.
    fn note_memory(&mut self) {
        let own = self.own_bytes();
        self.shared.memory.note_others(self.models.bytes() + self.models.held_bytes() + own);
        // The keys and values that the windows of running requests have left behind are kept as well, as long
        // as there is room for them.
        self.models.trim_prefixes(self.models.room(own).min(self.kv_budget.saturating_sub(own)));
    }

    /// Unloads models whose files can no longer be read, and fails their running requests.
    fn drop_lost(&mut self) {
        for (source, error) in self.models.unload_lost() {
            for running in self.running.extract_if(.., |running| *running.source() == source) {
                running.submission.fail(error.clone());
            }
            self.encode_batches.fail(&error, &|other| *other == source);
        }
    }
}

/// Whether a request is computed with the model, or will be as soon as there is a place for it.
fn in_use(
    running: &[Sequence],
    suspended: &[Suspended],
    encode_batches: &EncodeBatches,
    source: &ModelSource,
) -> bool {
    let of_it = |running: &Sequence| running.source() == source;
    // A paused request does not keep its model loaded.
    let waits =
        |suspended: &Suspended| of_it(&suspended.sequence) && !suspended.sequence.submission.is_held();
    encode_batches.uses(source) || running.iter().any(of_it) || suspended.iter().any(waits)
}

impl Helpers {
    /// Has a request tokenized and its constraint compiled. Requests with constraints never wait for long
    /// texts.
    fn plan(&self, number: u64, submission: &Submission, texts: RequestPlanner) {
        let work = &submission.request.work;
        let helper = if is_constrained(work) { &self.compiler } else { &self.tokenizer };
        let (owner, tickets) = (submission.owner(), submission.tickets());
        helper.send(EngineJob::Plan { number, work: Box::new(work.clone()), texts, owner, tickets });
    }

    /// Has a whole answer checked, and its listeners told.
    fn check(&self, submission: Submission, output: Output, checker: Arc<Checker>) {
        self.checker.send(EngineJob::Check { submission: Box::new(submission), output, checker });
    }
}

/// Whether a request is planned on another thread.
fn takes_long(work: &Work) -> bool {
    is_constrained(work) || work.text_bytes() > SHORT_BYTES
}

fn is_constrained(work: &Work) -> bool {
    matches!(work, Work::Generate(Generate { constraint: Some(_), .. }))
}
