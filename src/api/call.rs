//! A synchronous call: this backend hands a request to the engine through its socket, and waits for the
//! answer.
//!
//! The backend waits on its latch and the socket, so that cancel, statement_timeout and termination are
//! answered at once; whatever ends the call early closes the connection, and with it the work ends within a
//! token. Nothing here touches a transaction, so that it works inside any.
//!
//! Invariant: the engine that answers is in another process; a backend never loads a model.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::AsRawFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pgrx::PgSqlErrorCode;
use pgrx::prelude::*;
use serde_json::{Map, Value};
use steadytext_engine::socket::FromEngine;
use steadytext_engine::{Error, Event, EventKind, Output, Request, Standing};
use uuid::Uuid;

use super::checked::{Checked, about_text, check};
use super::connection::{Crashes, EngineConnection, RefusedCalls, no_memory};
use crate::cache::{self, Author, CacheQuestion};
use crate::pg::activity::{self, ActivityLine, Phase};
use crate::pg::catalog_cache::ModelRegistry;
use crate::pg::error::{PgError, RequestFailure};
use crate::pg::interrupts::{self, WaitFd};
use crate::pg::rate_limits::{self, RequestChannel};
use crate::pg::{cache_queue, guc, privilege, rate_counters};
use crate::registry::{self, MOST_REPLACED, Resolved};
use crate::request::{Answer, EndedRequest, RequestMetrics, Stages, Subtasks, Usage};

/// Most times that a request that has not begun is handed to an engine.
const MOST_ATTEMPTS: u32 = 8;
/// Pause before the third of these times; each further pause is twice as long.
const ATTEMPT_PAUSE_MS: i64 = 5;
/// Subtasks of a call that wait in the engine beyond those that run.
const HANDED_OVER_AHEAD: usize = 16;
/// A wait ends after this long even if nothing happens; the call goes on.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

thread_local! {
    static LAST_KEY: Cell<u64> = const { Cell::new(0) };
    static WARNED_OF_BUILTIN: Cell<bool> = const { Cell::new(false) };
}

/// A request that is being worked on. Dropping it stops the work.
pub(super) struct Call {
    pub(super) model: Resolved,
    /// The registry, for the choice of another model.
    registry: Rc<ModelRegistry>,
    salt: u64,
    standing: Standing,
    stages: Stages,
    /// The subtasks of the present stage that the engine has, by their keys.
    under_way: BTreeMap<u64, usize>,
    /// Most subtasks that it has.
    capacity: usize,
    /// `None` when the last event has come.
    client: Option<EngineConnection>,
    attempts: u32,
    refusals: RefusedCalls,
    crashes: Crashes,
    /// An event of it has come from the engine.
    begun: bool,
    /// Its line in steadytext_activity.
    activity: Option<ActivityLine>,
    text: String,
    pub(super) usage: Usage,
    pub(super) since: Instant,
    /// `None` when it was counted how it ended.
    metrics: Option<RequestMetrics>,
    /// The questions to the cache; of the elements of an array, one for each.
    pub(super) questions: Vec<Option<CacheQuestion>>,
    author: Author,
    /// Number of times that it has begun anew because the file of its model was replaced.
    replaced: u32,
    /// Whether an element of an array that cannot be answered leaves the others as they are.
    pub(super) tolerant: bool,
}

/// The news of a call.
pub(super) enum News {
    /// More text, and it is not the last.
    Text(String),
    /// No news that the caller waits for.
    None,
    /// The end.
    Answer(Answer),
}

impl Call {
    /// Checks a request as the queue's trigger does, and hands it to the engine, whatever the cache has.
    ///
    /// # Errors
    ///
    /// The errors of the asynchronous functions and of the worker; 55000 where there is no engine and none
    /// can come.
    pub(super) fn begin(
        request_type: &str,
        text: Option<&str>,
        texts: Option<&[Option<&str>]>,
        params: Map<String, Value>,
    ) -> Result<Call, PgError> {
        let named =
            |error: PgError| if error.lasting { about_text(error, request_type, text) } else { error };
        let mut checked = check(request_type, text, texts, params).map_err(named)?;
        checked.question = None;
        Call::start(request_type, checked, true)
    }

    /// Begins a request that was checked. `paced`: the text is read piece by piece, and the work pauses while
    /// nobody reads.
    ///
    /// # Errors
    ///
    /// As [`Call::prepare`] and [`Call::begin_work`].
    pub(super) fn start(request_type: &str, checked: Checked, paced: bool) -> Result<Call, PgError> {
        let mut call = Call::prepare(request_type, checked, paced)?;
        call.begin_work()?;
        Ok(call)
    }

    /// A call of which the engine has nothing yet. One that a limit refuses is none, and is not counted.
    ///
    /// # Errors
    ///
    /// 53400 where a limit of the role is reached.
    pub(super) fn prepare(request_type: &str, checked: Checked, paced: bool) -> Result<Call, PgError> {
        let Checked { subtasks, model, registry, question } = checked;
        warn_of_choice(&model);
        rate_limits::admit(privilege::current_user(), subtasks.requests(), RequestChannel::Call)?;
        let role = privilege::current_user().to_u32();
        Ok(Call {
            metrics: Some(RequestMetrics::begin(request_type, Some(model.name()), true)),
            model,
            registry,
            salt: u64::from(role),
            standing: Standing { owner: role, priority: guc::call_priority(), paced },
            under_way: BTreeMap::new(),
            capacity: guc::engine().max_running + HANDED_OVER_AHEAD,
            client: EngineConnection::kept(),
            attempts: 0,
            refusals: RefusedCalls::default(),
            crashes: Crashes::new(),
            begun: false,
            activity: if subtasks.is_shown() { show(request_type) } else { None },
            stages: Stages::new(subtasks),
            text: String::new(),
            usage: Usage::default(),
            since: Instant::now(),
            questions: vec![question],
            author: Author::default(),
            replaced: 0,
            tolerant: false,
        })
    }

    /// Hands as much of it to the engine as there is room for.
    ///
    /// # Errors
    ///
    /// 55000 where no engine can be reached.
    pub(super) fn begin_work(&mut self) -> Result<(), PgError> {
        let connected = if self.client.is_none() { self.connect() } else { Ok(()) };
        let begun = connected.and_then(|()| self.fill());
        begun.inspect_err(|error| self.count_failure(error))
    }

    /// Waits for the next event. Not after the last one.
    ///
    /// # Errors
    ///
    /// The request's; 55000 when the engine goes away in the middle of it.
    pub(super) fn next(&mut self) -> Result<News, PgError> {
        let news = self.advance();
        match &news {
            Ok(News::Answer(_)) => {
                if let Some(metrics) = self.metrics.take() {
                    metrics.completed(&self.usage);
                }
            }
            Ok(News::Text(_) | News::None) => {}
            Err(error) => self.count_failure(error),
        }
        news
    }

    fn count_failure(&mut self, error: &PgError) {
        if let Some(metrics) = self.metrics.take() {
            metrics.failed(error);
        }
    }

    fn advance(&mut self) -> Result<News, PgError> {
        loop {
            interrupts::check();
            let Some(client) = &mut self.client else {
                return Err(PgError::internal("the call has ended"));
            };
            match client.flush().and_then(|()| client.receive()) {
                // The engine's end, not the request's.
                Ok(Some(FromEngine::Event(Event { kind: EventKind::Failed(Error::Stopped), .. }))) => {
                    self.recover(Err(io::ErrorKind::UnexpectedEof.into()))?;
                }
                Ok(Some(FromEngine::Event(event))) => {
                    if let Some(index) = self.under_way.get(&event.key) {
                        return self.take(*index, event);
                    }
                }
                Ok(Some(FromEngine::Refused(refusal))) => {
                    self.client = None;
                    self.refusals.wait(refusal)?;
                    self.attempts = 0;
                    self.recover(Err(io::ErrorKind::ConnectionRefused.into()))?;
                }
                Ok(Some(FromEngine::Models(_) | FromEngine::State(_))) => {}
                Ok(None) => {
                    let wait_fd = WaitFd { fd: client.as_raw_fd(), writing: client.wants_to_write() };
                    interrupts::wait(LONGEST_WAIT, Some(wait_fd));
                }
                Err(error) => self.recover(Err(error))?,
            }
        }
    }

    /// Waits for the answer.
    ///
    /// # Errors
    ///
    /// As [`Call::next`].
    pub(super) fn finish(mut self) -> Result<Answer, PgError> {
        loop {
            if let News::Answer(answer) = self.next()? {
                return Ok(answer);
            }
        }
    }

    fn take(&mut self, index: usize, event: Event) -> Result<News, PgError> {
        let Event { key, turns, kind } = event;
        self.begun = true;
        if let (EventKind::Progress { .. }, true, Some(client)) =
            (&kind, self.standing.paced, &mut self.client)
        {
            // If the connection has ended, the next look finds it.
            let _ = client.read(key);
        }
        if let EventKind::Started { model, .. } = &kind {
            self.author.note(model);
            if let Err(error) = self.model.check_loaded(model) {
                if let Some(next) = self.model.next(&self.registry) {
                    return self.restart(next);
                }
                // The work ends with the connection.
                self.client = None;
                return Err(error);
            }
            if self.author.is_two() {
                if self.replaced >= MOST_REPLACED {
                    self.client = None;
                    return Err(self.model.replaced_too_often());
                }
                self.replaced += 1;
                return self.restart(self.model.clone());
            }
        }
        match &kind {
            EventKind::Started { prompt_tokens, .. } => self.usage.started(*prompt_tokens, self.since),
            EventKind::FirstToken { cached_tokens } => self.usage.first_token(*cached_tokens, self.since),
            EventKind::Progress { generated_tokens, .. } if self.stages.whole().is_text() => {
                self.usage.grown(*generated_tokens);
            }
            _ => {}
        }
        if let Some(line) = self.activity {
            match &kind {
                EventKind::Loading => activity::set_phase(line, Phase::Loading, None),
                EventKind::Started { prompt_tokens, .. } => {
                    activity::set_phase(line, Phase::Prefill, Some(*prompt_tokens));
                }
                EventKind::Progress { generated_tokens, text } if self.stages.whole().is_text() => {
                    self.text.push_str(text);
                    activity::set_progress(line, *generated_tokens, turns, &self.text);
                }
                EventKind::Progress { .. }
                | EventKind::FirstToken { .. }
                | EventKind::Done(_)
                | EventKind::Failed(_) => {}
            }
        }
        match kind {
            EventKind::Loading | EventKind::Started { .. } | EventKind::FirstToken { .. } => Ok(News::None),
            EventKind::Progress { text, .. } => Ok(News::Text(text)),
            EventKind::Done(output) => {
                self.under_way.remove(&key);
                self.done(index, output, turns)
            }
            EventKind::Failed(error) => {
                if let Some(next) = self.model.pass_over(&error, &self.registry) {
                    return self.restart(next);
                }
                self.under_way.remove(&key);
                let failure = self.model.failure(error).error;
                if self.tolerant && failure.lasting {
                    // An output that no element asks for: it has no answer.
                    return self.done(index, Output::Score(f32::NAN), turns);
                }
                let client = self.client.take();
                // The engine cancels the call's other subtasks when the connection ends.
                EngineConnection::keep(client.filter(|_| self.under_way.is_empty()));
                let error = self.stages.now().blame(index, failure);
                Err(error.detail(self.stages.now().describe(index)))
            }
        }
    }

    /// Takes the output of a subtask; the answer where it was the last.
    fn done(&mut self, index: usize, output: Output, turns: u64) -> Result<News, PgError> {
        let ended = match self.stages.store(index, output) {
            Ok(ended) => ended,
            Err(error) => {
                EngineConnection::keep(self.client.take());
                return Err(error);
            }
        };
        if let (Some(line), Some((text, tokens))) = (self.activity, self.stages.shown()) {
            activity::set_progress(line, tokens, turns, &text);
        }
        let Some(EndedRequest { answer, are_whole, text }) = ended else {
            self.fill()?;
            return Ok(News::None);
        };
        EngineConnection::keep(self.client.take());
        self.usage.ended(text, self.since);
        self.post(&answer, &are_whole);
        Ok(News::Answer(answer))
    }

    /// Begins anew, with another model. Subtasks that the engine still has are cancelled with the connection.
    fn restart(&mut self, with: Resolved) -> Result<News, PgError> {
        warn_of_choice(&with);
        self.stages.whole().check_model(&with)?;
        let parts = parts_of(self.stages.whole());
        for (question, subtasks) in self.questions.iter_mut().zip(parts) {
            *question = question.as_ref().map(|question| question.with_model(subtasks, &with));
        }
        self.metrics.iter_mut().for_each(|metrics| metrics.name_model(with.name()));
        self.model = with;
        self.stages.restart();
        self.under_way.clear();
        self.author = Author::default();
        self.text.clear();
        self.usage = Usage::default();
        (self.begun, self.attempts, self.client) = (false, 0, None);
        self.connect()?;
        self.fill()?;
        Ok(News::None)
    }

    /// Gives the answers that are whole to the worker, which may write them into the cache.
    fn post(&self, answer: &Answer, are_whole: &[bool]) {
        let one = [Some(answer.clone())];
        let answers = match answer {
            Answer::Many(answers) => answers.as_slice(),
            _ => &one,
        };
        let parts = parts_of(self.stages.whole()).iter().zip(are_whole);
        for ((question, (subtasks, is_whole)), answer) in self.questions.iter().zip(parts).zip(answers) {
            if *is_whole
                && let Some(((question, by), answer)) =
                    question.as_ref().zip(self.author.get()).zip(answer.as_ref())
                && let Some(entry) = question.entry(subtasks, by, answer, self.since.elapsed())
                && let Some(message) = entry.to_message()
            {
                cache_queue::push(&message);
            }
        }
    }

    /// Hands over subtasks as long as there are some and room for them.
    fn fill(&mut self) -> Result<(), PgError> {
        while self.under_way.len() < self.capacity
            && let Some(index) = self.stages.take_next()
        {
            let key = LAST_KEY.get() + 1;
            LAST_KEY.set(key);
            self.under_way.insert(key, index);
            let sent = self.submit(key, index);
            self.recover(sent)?;
        }
        Ok(())
    }

    fn submit(&mut self, key: u64, index: usize) -> io::Result<()> {
        let work = self.stages.work(index, &self.model);
        let dedup_key =
            self.questions.first().and_then(Option::as_ref).and_then(|_| cache::dedup_key_of(&work));
        let request = Request { key, model: self.model.source.clone(), salt: self.salt, dedup_key, work };
        match &mut self.client {
            Some(client) => client.submit_as(&request, self.standing),
            None => Err(io::ErrorKind::NotConnected.into()),
        }
    }

    /// Goes on after an error of the connection: a request that has not begun is handed to the next engine.
    fn recover(&mut self, sent: io::Result<()>) -> Result<(), PgError> {
        let mut sent = sent;
        while let Err(error) = sent {
            if error.kind() == io::ErrorKind::InvalidInput {
                return Err(RequestFailure::from(Error::InvalidRequest(error.to_string())).error);
            }
            if error.kind() == io::ErrorKind::OutOfMemory {
                return Err(no_memory());
            }
            if self.begun || self.attempts >= MOST_ATTEMPTS {
                return Err(engine_went());
            }
            self.connect()?;
            let under_way: Vec<(u64, usize)> =
                self.under_way.iter().map(|(key, index)| (*key, *index)).collect();
            sent = under_way.into_iter().try_for_each(|(key, index)| self.submit(key, index));
        }
        Ok(())
    }

    fn connect(&mut self) -> Result<(), PgError> {
        // The first time it may only have been closed while nobody used it, the second time with its engine.
        if self.attempts > 1 {
            interrupts::sleep_ms(ATTEMPT_PAUSE_MS << (self.attempts - 2));
        }
        self.attempts += 1;
        self.client = None;
        self.client = Some(EngineConnection::open()?);
        if self.crashes.are_many() { Err(engine_went()) } else { Ok(()) }
    }
}

/// The parts of a request that have cache entries of their own: the elements of an array, or all of it.
fn parts_of(subtasks: &Subtasks) -> &[Subtasks] {
    match subtasks {
        Subtasks::Many(parts, ..) => parts,
        whole => std::slice::from_ref(whole),
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        // However it has ended.
        rate_counters::spend(self.standing.owner.into(), self.usage.tokens());
        if let Some(line) = self.activity {
            activity::end(line);
        }
        // An interrupt, or nobody reads on.
        if let Some(metrics) = self.metrics.take() {
            metrics.cancelled();
        }
    }
}

/// Counts a call that the cache has answered.
pub(super) fn count_found(request_type: &str, model: &Resolved) {
    let mut metrics = RequestMetrics::begin(request_type, Some(model.name()), true);
    metrics.found();
    metrics.completed(&Usage::default());
}

fn engine_went() -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
        "pg_steadytext's engine went away before it had answered",
    )
    .hint("Repeat the statement: another process runs the engine by now.")
}

/// A line in steadytext_activity, which goes with this process if not before.
fn show(request_type: &str) -> Option<ActivityLine> {
    interrupts::before_exit(|| activity::end_all_of(std::process::id() as i32));
    activity::begin(Uuid::now_v7(), privilege::current_user(), request_type)
}

/// Warns the client of what it should know about the choice of the model.
fn warn_of_choice(model: &Resolved) {
    model.warn_of_passed_over();
    if model.is_fallback {
        warn_of_builtin();
    }
}

fn warn_of_builtin() {
    if !WARNED_OF_BUILTIN.replace(true) {
        registry::builtin_warning().report(PgLogLevel::WARNING);
    }
}
