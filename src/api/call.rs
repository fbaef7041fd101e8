//! A synchronous call: this backend hands a request to the engine through its socket, and waits for what
//! comes back.
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
use steadytext_engine::{Error, Event, EventKind, Request, Standing, Verification, Verify, Work};
use uuid::Uuid;

use super::connection::{Connection, Refusals, no_memory};
use crate::cache::{self, Author, Question};
use crate::pg::activity::{self, ActivityLine, Phase};
use crate::pg::catalog_cache::Model;
use crate::pg::error::{Failure, PgError};
use crate::pg::interrupts::{self, Line};
use crate::pg::{access_counters, bgworker, cache_queue, catalog_cache, guc, privilege, shmem};
use crate::registry::{self, Resolved};
use crate::request::checks::{check_params, check_type};
use crate::request::{self, Answer, Asked, Progress, Subtasks, description};

/// How often a request that has not begun is handed to the next engine.
const MOST_ATTEMPTS: u32 = 8;
/// How long it waits before it does so for the third time; each time twice as long.
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
    model: Resolved,
    /// What else there is.
    registry: Rc<Vec<Model>>,
    salt: u64,
    standing: Standing,
    subtasks: Subtasks,
    progress: Progress,
    /// The subtasks that the engine has, by their keys.
    under_way: BTreeMap<u64, usize>,
    /// How many it has at most.
    capacity: usize,
    /// `None` when the last event has come.
    client: Option<Connection>,
    attempts: u32,
    refusals: Refusals,
    /// An event of it has come from the engine.
    begun: bool,
    /// Its line in steadytext_activity.
    activity: Option<ActivityLine>,
    text: String,
    since: Instant,
    /// For the cache.
    question: Option<Question>,
    author: Author,
}

/// A request that was checked.
struct Checked {
    subtasks: Subtasks,
    model: Resolved,
    registry: Rc<Vec<Model>>,
    question: Option<Question>,
}

/// What has happened to a call.
pub(super) enum News {
    /// More text, and it is not the last.
    Text(String),
    /// Nothing that the caller waits for.
    None,
    /// The end.
    Answer(Answer),
}

/// The answer to a request: that of the cache, or the engine's.
///
/// # Errors
///
/// As [`Call::begin`] and [`Call::next`].
pub(super) fn answer(
    request_type: &str,
    text: Option<&str>,
    texts: Option<&[Option<&str>]>,
    params: Map<String, Value>,
) -> Result<Answer, PgError> {
    let named = |error: PgError| if error.lasting { about_text(error, request_type, text) } else { error };
    let checked = check(request_type, text, texts, params).map_err(named)?;
    if let Some(question) = &checked.question {
        if let Some(answer) = question.answer() {
            return Ok(answer);
        }
        access_counters::count_miss();
    }
    Call::start(request_type, checked, false)?.finish()
}

/// How far the backends are apart on a model, by its name in the registry, or on the one that generates.
///
/// # Errors
///
/// As [`answer`]; XX001 where the file is not the registered one.
pub(super) fn verification(name: Option<&str>, positions: usize) -> Result<Verification, PgError> {
    check_process()?;
    let registry = catalog_cache::models()?;
    let model = registry::named(name, &registry)?;
    let subtasks = Subtasks::One(Work::Verify(Verify { text: None, positions }));
    let checked = Checked { subtasks, model, registry, question: None };
    match Call::start("verify", checked, false)?.finish()? {
        Answer::Verification(verified) => Ok(verified),
        _ => Err(request::unexpected()),
    }
}

/// Says which of the rows of a statement an error is about.
fn about_text(error: PgError, request_type: &str, text: Option<&str>) -> PgError {
    let what = match request_type {
        "embed" => "text",
        "rerank" => "query",
        _ => "prompt",
    };
    match text {
        Some(text) => error.detail(format!("The {}.", description(what, text))),
        None => error,
    }
}

/// Checks a request as the queue's trigger does.
fn check(
    request_type: &str,
    text: Option<&str>,
    texts: Option<&[Option<&str>]>,
    params: Map<String, Value>,
) -> Result<Checked, PgError> {
    let params = Value::Object(params);
    let (config, models) = (catalog_cache::config()?, catalog_cache::models()?);
    let asked = Asked { request_type, prompt: text, prompts: texts, params: &params };
    check_type(asked, &config)?;
    check_params(request_type, &params, &config)?;
    check_process()?;
    let (subtasks, model) = request::subtasks(asked, &config, &models)?;
    let question = Question::of(request_type, &params, &subtasks, &model.source, &config);
    Ok(Checked { subtasks, model, registry: models, question })
}

/// Whether there may be an engine that answers this process.
fn check_process() -> Result<(), PgError> {
    if shmem::get().is_none() {
        return Err(shmem::not_preloaded(
            "there is no engine that could answer: pg_steadytext is not preloaded",
        ));
    }
    if bgworker::is_worker() {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "the worker of pg_steadytext cannot wait for an answer",
        )
        .hint("Call the asynchronous functions from triggers of steadytext_queue."));
    }
    Ok(())
}

impl Call {
    /// Checks a request as the queue's trigger does, and hands it to the engine, whatever the cache has.
    ///
    /// # Errors
    ///
    /// Those of the asynchronous functions and of the worker; 55000 where there is no engine and none can
    /// come.
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

    /// `paced`: the text is read piece by piece, and the work pauses while nobody reads.
    fn start(request_type: &str, checked: Checked, paced: bool) -> Result<Call, PgError> {
        let Checked { subtasks, model, registry, question } = checked;
        warn_of_choice(&model);
        let role = privilege::current_user().to_u32();
        let mut call = Call {
            model,
            registry,
            salt: u64::from(role),
            standing: Standing { owner: role, priority: guc::call_priority(), paced },
            progress: Progress::new(&subtasks),
            under_way: BTreeMap::new(),
            capacity: guc::engine().max_running + HANDED_OVER_AHEAD,
            client: Connection::kept(),
            attempts: 0,
            refusals: Refusals::default(),
            begun: false,
            activity: if subtasks.is_text() { show(request_type) } else { None },
            subtasks,
            text: String::new(),
            since: Instant::now(),
            question,
            author: Author::default(),
        };
        if call.client.is_none() {
            call.connect()?;
        }
        call.fill()?;
        Ok(call)
    }

    /// Waits for the next event. Not after the last one.
    ///
    /// # Errors
    ///
    /// The request's; 55000 when the engine goes away in the middle of it.
    pub(super) fn next(&mut self) -> Result<News, PgError> {
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
                Ok(Some(FromEngine::Models(_))) => {}
                Ok(None) => {
                    let line = Line { fd: client.as_raw_fd(), writing: client.wants_to_write() };
                    interrupts::wait(LONGEST_WAIT, Some(line));
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
    fn finish(mut self) -> Result<Answer, PgError> {
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
            // Where the connection has ended that is found by the next look.
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
        }
        if let Some(line) = self.activity {
            match &kind {
                EventKind::Loading => activity::set_phase(line, Phase::Loading, None),
                EventKind::Started { prompt_tokens, .. } => {
                    activity::set_phase(line, Phase::Prefill, Some(*prompt_tokens));
                }
                EventKind::Progress { generated_tokens, text } => {
                    self.text.push_str(text);
                    activity::set_progress(line, *generated_tokens, turns, &self.text);
                }
                EventKind::Done(_) | EventKind::Failed(_) => {}
            }
        }
        match kind {
            EventKind::Loading | EventKind::Started { .. } => Ok(News::None),
            EventKind::Progress { text, .. } => Ok(News::Text(text)),
            EventKind::Done(output) => {
                self.under_way.remove(&key);
                let Some(outputs) = self.progress.store(index, output) else {
                    self.fill()?;
                    return Ok(News::None);
                };
                Connection::keep(self.client.take());
                let is_whole = self.subtasks.is_whole(&outputs);
                let answer = self.subtasks.answer(outputs)?;
                if is_whole {
                    self.post(&answer);
                }
                Ok(News::Answer(answer))
            }
            EventKind::Failed(error) => {
                if let Some(next) = self.model.pass_over(&error, &self.registry) {
                    return self.restart(next);
                }
                self.under_way.remove(&key);
                let client = self.client.take();
                // What else the engine has of this call ends with the connection.
                Connection::keep(client.filter(|_| self.under_way.is_empty()));
                let error = self.subtasks.blame(index, Failure::from(error).error);
                Err(error.detail(self.subtasks.describe(index)))
            }
        }
    }

    /// Begins anew, with another model. What the engine still has of it ends with the connection.
    fn restart(&mut self, with: Resolved) -> Result<News, PgError> {
        warn_of_choice(&with);
        self.question =
            self.question.as_ref().map(|question| question.with_model(&self.subtasks, &with.source));
        self.model = with;
        self.progress = Progress::new(&self.subtasks);
        self.under_way.clear();
        self.author = Author::default();
        self.text.clear();
        (self.begun, self.attempts, self.client) = (false, 0, None);
        self.connect()?;
        self.fill()?;
        Ok(News::None)
    }

    /// Gives the answer to the worker, which may write it into the cache.
    fn post(&self, answer: &Answer) {
        if let Some((question, by)) = self.question.as_ref().zip(self.author.get())
            && let Some(entry) = question.entry(&self.subtasks, by, answer, self.since.elapsed())
            && let Some(message) = entry.to_message()
        {
            cache_queue::push(&message);
        }
    }

    /// Hands over subtasks as long as there are some and room for them.
    fn fill(&mut self) -> Result<(), PgError> {
        while self.under_way.len() < self.capacity
            && let Some(index) = self.progress.take_next()
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
        let work = self.subtasks.work(index);
        let dedup_key = self.question.as_ref().and_then(|_| cache::dedup_key_of(&work));
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
                return Err(Failure::from(Error::InvalidRequest(error.to_string())).error);
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
        self.client = Some(Connection::open()?);
        Ok(())
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(line) = self.activity {
            activity::end(line);
        }
    }
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
