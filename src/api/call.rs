//! A synchronous call: this backend hands a request to the engine through its socket, and waits for what comes back.
//!
//! The backend waits on its latch and the socket, so that cancel, statement_timeout and termination are answered at once; whatever
//! ends the call early closes the connection, and with it the work ends within a token. Nothing here touches a transaction, so
//! that it works inside any.
//!
//! Invariant: the engine that answers is in another process; a backend never loads a model.

use std::cell::Cell;
use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use pgrx::PgSqlErrorCode;
use pgrx::prelude::*;
use serde_json::{Map, Value};
use steadytext_engine::socket::{Client, FromEngine};
use steadytext_engine::{Error, Event, EventKind, Output, Request, Work};
use uuid::Uuid;

use super::enqueue::{check_params, check_type, not_preloaded};
use crate::pg::activity::{self, Phase, Place};
use crate::pg::error::{Failure, PgError};
use crate::pg::interrupts::{self, Line};
use crate::pg::{bgworker, caches, privilege, seat, shmem};
use crate::worker::request;

/// How long a call waits for an engine to be there.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often it asks for one.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// How often it looks, in milliseconds.
const LOOK_INTERVAL_MS: i64 = 5;
/// How often a request that has not begun is handed to the next engine.
const MOST_ATTEMPTS: u32 = 5;
/// A wait ends after this long even if nothing happens; the call goes on.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

thread_local! {
    /// The connection of the last call, for the next one.
    static KEPT: Cell<Option<Client>> = const { Cell::new(None) };
    static LAST_KEY: Cell<u64> = const { Cell::new(0) };
    static WARNED_OF_BUILTIN: Cell<bool> = const { Cell::new(false) };
}

/// A request that is being worked on. Dropping it stops the work.
pub(super) struct Call {
    request: Request,
    /// `None` when the last event has come.
    client: Option<Client>,
    attempts: u32,
    /// The engine has told something of it.
    begun: bool,
    /// Its line in steadytext_activity.
    place: Option<Place>,
    text: String,
}

impl Call {
    /// Checks a request as the queue's trigger does, and hands it to the engine.
    ///
    /// # Errors
    ///
    /// Those of the asynchronous functions and of the worker; 55000 where there is no engine and none can come.
    pub(super) fn begin(
        request_type: &str,
        text: Option<&str>,
        params: Map<String, Value>,
    ) -> Result<Call, PgError> {
        let params = Value::Object(params);
        let (config, models) = (caches::config()?, caches::models()?);
        check_type(request_type, text, &params, &config)?;
        check_params(&params, &config)?;
        if shmem::get().is_none() {
            return Err(not_preloaded(
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
        let (work, model) = request::work(request_type, text.unwrap_or_default(), &params, &config, &models)?;
        if model.for_want_of_another {
            warn_of_builtin();
        }
        let salt = u64::from(privilege::current_user().to_u32());
        let key = LAST_KEY.get() + 1;
        LAST_KEY.set(key);
        let place = match &work {
            Work::Generate(_) => show(),
            _ => None,
        };
        let mut call = Call {
            request: Request { key, model: model.source, salt, work },
            client: None,
            attempts: 0,
            begun: false,
            place,
            text: String::new(),
        };
        call.client = KEPT.take();
        match &mut call.client {
            Some(client) => {
                let sent = client.submit(&call.request);
                call.recover(sent)?;
            }
            None => call.hand_over()?,
        }
        Ok(call)
    }

    /// Waits for the next event. Not after the last one.
    ///
    /// # Errors
    ///
    /// The request's; 55000 when the engine goes away in the middle of it.
    pub(super) fn next(&mut self) -> Result<EventKind, PgError> {
        loop {
            interrupts::check();
            let Some(client) = &mut self.client else {
                return Err(PgError::internal("the call has ended"));
            };
            match client.flush().and_then(|()| client.receive()) {
                Ok(Some(FromEngine::Event(Event { key, kind }))) if key == self.request.key => {
                    return self.take(kind);
                }
                Ok(Some(_)) => {}
                Ok(None) => {
                    let line = Line { fd: client.as_raw_fd(), writing: client.wants_to_write() };
                    interrupts::wait(LONGEST_WAIT, Some(line));
                }
                Err(error) => self.recover(Err(error))?,
            }
        }
    }

    /// Waits for the result.
    ///
    /// # Errors
    ///
    /// As [`Call::next`].
    pub(super) fn output(mut self) -> Result<Output, PgError> {
        loop {
            if let EventKind::Done(output) = self.next()? {
                return Ok(output);
            }
        }
    }

    fn take(&mut self, kind: EventKind) -> Result<EventKind, PgError> {
        self.begun = true;
        if matches!(kind, EventKind::Done(_) | EventKind::Failed(_)) {
            KEPT.set(self.client.take());
        }
        if let Some(place) = self.place {
            match &kind {
                EventKind::Loading => activity::set_phase(place, Phase::Loading, None),
                EventKind::Started { prompt_tokens } => {
                    activity::set_phase(place, Phase::Prefill, Some(*prompt_tokens));
                }
                EventKind::Progress { generated_tokens, text } => {
                    self.text.push_str(text);
                    activity::set_progress(place, *generated_tokens, &self.text);
                }
                EventKind::Done(_) | EventKind::Failed(_) => {}
            }
        }
        match kind {
            EventKind::Failed(Error::Stopped) => {
                KEPT.take();
                Err(engine_went())
            }
            EventKind::Failed(error) => Err(Failure::from(error).error),
            kind => Ok(kind),
        }
    }

    /// Goes on after an error of the connection: a request that has not begun is handed to the next engine.
    fn recover(&mut self, sent: io::Result<()>) -> Result<(), PgError> {
        match sent {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => {
                Err(Failure::from(Error::InvalidRequest(error.to_string())).error)
            }
            Err(_) if self.begun || self.attempts >= MOST_ATTEMPTS => Err(engine_went()),
            Err(_) => self.hand_over(),
        }
    }

    fn hand_over(&mut self) -> Result<(), PgError> {
        self.attempts += 1;
        let mut client = connect()?;
        let sent = client.submit(&self.request);
        self.client = Some(client);
        self.recover(sent)
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            activity::end(place);
        }
    }
}

/// Connects to the engine; asks for one where there is none, and waits for it.
fn connect() -> Result<Client, PgError> {
    let deadline = Instant::now() + PATIENCE;
    let mut asked: Option<Instant> = None;
    loop {
        if seat::is_open()
            && let Ok(client) = Client::connect(Path::new(seat::SOCKET))
        {
            return Ok(client);
        }
        if seat::holder().is_none() && asked.is_none_or(|at| at.elapsed() >= ASK_INTERVAL) {
            asked = Some(Instant::now());
            seat::want();
        }
        if Instant::now() >= deadline {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "pg_steadytext's engine does not run",
            )
            .hint("The server log says why; max_worker_processes may be used up."));
        }
        interrupts::sleep_ms(LOOK_INTERVAL_MS);
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
fn show() -> Option<Place> {
    interrupts::before_exit(|| activity::end_all_of(std::process::id() as i32));
    activity::begin(Uuid::now_v7(), privilege::current_user(), false)
}

fn warn_of_builtin() {
    if !WARNED_OF_BUILTIN.replace(true) {
        request::builtin_warning().report(PgLogLevel::WARNING);
    }
}
