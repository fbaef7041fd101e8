//! A backend's connection to the engine: made when there is something to ask, kept for the next call.
//!
//! The engine closes connections that are not in use, and may have none left for this backend. The backend
//! notices a closed connection when it sends the next request, and connects again; where none is left it
//! tries again for a moment before it raises an error.

use std::cell::Cell;
use std::io;
use std::ops::{Deref, DerefMut};
use std::os::fd::AsRawFd;
use std::path::Path;
use std::time::{Duration, Instant};

use pgrx::PgSqlErrorCode;
use steadytext_engine::LoadedModel;
use steadytext_engine::socket::{Caller, Client, ConnectionRefusal, FromEngine};

use crate::pg::error::PgError;
use crate::pg::files::Descriptor;
use crate::pg::interrupts::WaitFd;
use crate::pg::{engine_leader, interrupts, privilege};

/// Longest wait of a call for an engine to be there.
const PATIENCE: Duration = Duration::from_secs(10);
/// Longest wait for the list of the loaded models.
const LISTING_PATIENCE: Duration = Duration::from_secs(2);
/// Interval at which it asks for an engine.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// Interval at which it looks for one, in milliseconds.
const LOOK_INTERVAL_MS: i64 = 5;
/// Time for which a call that was refused tries again: calls are short, as a rule, and their connections soon
/// idle.
const REFUSAL_PATIENCE: Duration = Duration::from_secs(2);
/// Pause before it tries again for the first time; each further pause is twice as long, up to 32 times this.
const REFUSAL_PAUSE_MS: i64 = 25;

thread_local! {
    /// The connection of the last call, for the next one.
    static KEPT: Cell<Option<EngineConnection>> = const { Cell::new(None) };
}

/// A connection.
pub(super) struct EngineConnection {
    client: Client,
    _descriptor: Descriptor,
}

impl Deref for EngineConnection {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl DerefMut for EngineConnection {
    fn deref_mut(&mut self) -> &mut Client {
        &mut self.client
    }
}

impl EngineConnection {
    /// The connection of the last call, if it is still there.
    pub(super) fn kept() -> Option<EngineConnection> {
        KEPT.take()
    }

    /// Keeps it for the next call.
    pub(super) fn keep(connection: Option<EngineConnection>) {
        KEPT.set(connection);
    }

    /// Connects to the engine; asks for one where there is none, and waits for it.
    ///
    /// # Errors
    ///
    /// 55000 where there is no engine; 53300 where this process has too many open files, or more sessions
    /// connect than the engine can accept; 53200 where it has no memory.
    pub(super) fn open() -> Result<EngineConnection, PgError> {
        let deadline = Instant::now() + PATIENCE;
        let mut asked: Option<Instant> = None;
        let mut crowded = false;
        // The second one is for the wait, which needs one, too.
        let (Some(descriptor), Some(_spare)) = (Descriptor::acquire(), Descriptor::acquire()) else {
            return Err(too_many_files());
        };
        loop {
            if engine_leader::is_open() {
                match connect() {
                    Ok(client) => return Ok(EngineConnection { client, _descriptor: descriptor }),
                    Err(error) if is_lack_of_files(&error) => return Err(too_many_files()),
                    Err(error) if error.kind() == io::ErrorKind::OutOfMemory => return Err(no_memory()),
                    Err(error) => crowded = error.kind() == io::ErrorKind::WouldBlock,
                }
            }
            if engine_leader::pid().is_none() && asked.is_none_or(|at| at.elapsed() >= ASK_INTERVAL) {
                asked = Some(Instant::now());
                engine_leader::want();
            }
            if Instant::now() >= deadline && crowded {
                return Err(PgError::new(
                    PgSqlErrorCode::ERRCODE_TOO_MANY_CONNECTIONS,
                    "too many sessions connect to pg_steadytext's engine at once",
                )
                .hint("Try again, with fewer sessions at once."));
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
}

/// The models that the engine has loaded; none where no engine runs, which this does not change. In vain,
/// after a moment, where it has no time to say.
///
/// # Errors
///
/// As [`EngineConnection::open`].
pub(super) fn loaded_models() -> Result<Vec<LoadedModel>, PgError> {
    if !engine_leader::is_open() {
        return Ok(Vec::new());
    }
    let deadline = Instant::now() + LISTING_PATIENCE;
    let mut connection = match EngineConnection::kept() {
        Some(kept) => kept,
        None => EngineConnection::open()?,
    };
    let mut sent = connection.ask_for_models();
    // The one that was kept may have been closed.
    if sent.is_err() {
        connection = EngineConnection::open()?;
        sent = connection.ask_for_models();
    }
    while sent.is_ok() && Instant::now() < deadline {
        interrupts::check();
        match connection.flush().and_then(|()| connection.receive()) {
            Ok(Some(FromEngine::Models(models))) => {
                EngineConnection::keep(Some(connection));
                return Ok(models);
            }
            Ok(Some(FromEngine::Event(_) | FromEngine::State(_))) => {}
            Ok(None) => {
                let wait_fd = WaitFd { fd: connection.as_raw_fd(), writing: connection.wants_to_write() };
                interrupts::wait(deadline.saturating_duration_since(Instant::now()), Some(wait_fd));
            }
            Ok(Some(FromEngine::Refused(_))) => break,
            Err(error) if error.kind() == io::ErrorKind::OutOfMemory => return Err(no_memory()),
            Err(_) if engine_leader::is_open() => {
                connection = EngineConnection::open()?;
                sent = connection.ask_for_models();
            }
            Err(_) => break,
        }
    }
    Ok(Vec::new())
}

fn connect() -> io::Result<Client> {
    let role = privilege::current_user().to_u32();
    let caller = Caller { role, process: std::process::id(), lasting: false };
    Client::connect_as(Path::new(engine_leader::SOCKET), caller)
}

/// The error that this session has no memory for what goes to the engine and comes from it.
pub(super) fn no_memory() -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY,
        "the system has no memory for this call's messages to pg_steadytext's engine",
    )
}

/// Whether the process, or the system, may open no more files.
fn is_lack_of_files(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EMFILE | libc::ENFILE))
}

/// The number of times that a call was refused, and the time of the first.
#[derive(Default)]
pub(super) struct RefusedCalls {
    since: Option<Instant>,
    count: u32,
}

impl RefusedCalls {
    /// Waits until it is worth trying again.
    ///
    /// # Errors
    ///
    /// 53300 where that would help nothing, or took too long.
    pub(super) fn wait(&mut self, refusal: ConnectionRefusal) -> Result<(), PgError> {
        let since = *self.since.get_or_insert_with(Instant::now);
        if matches!(refusal, ConnectionRefusal::Process { .. }) || since.elapsed() >= REFUSAL_PATIENCE {
            return Err(refused(refusal));
        }
        // Sessions that were refused together must not all try again at the same moment.
        let jitter = i64::from(std::process::id() % 16);
        interrupts::sleep_ms((REFUSAL_PAUSE_MS << self.count.min(5)) + jitter);
        self.count += 1;
        Ok(())
    }
}

/// Crashes of the engine that a call lives through.
pub(super) struct Crashes {
    before: u64,
}

impl Crashes {
    /// A count that begins now: crashes before it are none of this call's.
    pub(super) fn new() -> Crashes {
        Crashes { before: engine_leader::crashes() }
    }

    /// Whether there was more than one: the call may be the reason, and is not handed over for a third time.
    pub(super) fn are_many(&self) -> bool {
        engine_leader::crashes() > self.before + 1
    }
}

fn refused(refusal: ConnectionRefusal) -> PgError {
    let (message, hint) = match refusal {
        ConnectionRefusal::Full { connections } => (
            format!("all {connections} connections to pg_steadytext's engine are in use"),
            "Try again, or close cursors of steadytext_generate_stream. A higher limit of open files (ulimit -n, LimitNOFILE) of the server allows more.",
        ),
        ConnectionRefusal::Role { share } => (
            format!("this role has its share of {share} connections to pg_steadytext's engine in use"),
            "Try again, or close cursors of steadytext_generate_stream in other sessions of the role. A higher limit of open files (ulimit -n, LimitNOFILE) of the server allows more.",
        ),
        ConnectionRefusal::Process { share } => (
            format!("this session has its share of {share} connections to pg_steadytext's engine in use"),
            "Close cursors of steadytext_generate_stream. A higher limit of open files (ulimit -n, LimitNOFILE) of the server allows more.",
        ),
    };
    PgError::new(PgSqlErrorCode::ERRCODE_TOO_MANY_CONNECTIONS, message).hint(hint)
}

fn too_many_files() -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_TOO_MANY_CONNECTIONS,
        "this session has too many open files to connect to pg_steadytext's engine",
    )
    .hint("Close cursors of steadytext_generate_stream, or raise max_files_per_process and the limit of open files (ulimit -n, LimitNOFILE) of the server.")
}
