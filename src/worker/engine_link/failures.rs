//! Server-log messages about an engine in failure.

use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;
use std::time::{Duration, Instant};

use pgrx::PgSqlErrorCode;
use steadytext_engine::process::{FAILED_STATUS, NO_MEMORY_STATUS};

use crate::pg::engine_leader;
use crate::pg::error::PgError;

/// Shortest interval between two lines in the server log about connections that are refused.
const REFUSALS_INTERVAL: Duration = Duration::from_secs(60);
/// The hint of an error that is a bug.
const BUG: &str = "This is a bug in pg_steadytext; please report it with the error of the request.";

/// The numbers that were reported of an engine that goes on.
#[derive(Default)]
pub(super) struct Reported {
    panics: u64,
    refused: u64,
    refused_at: Option<Instant>,
}

impl Reported {
    /// The message for the log about so many panics, and connections that were refused.
    pub(super) fn news(&mut self, panics: u64, refused: u64) -> Option<PgError> {
        let new = panics.saturating_sub(std::mem::replace(&mut self.panics, panics));
        engine_leader::count_panics(new);
        if new > 0 {
            let what = "pg_steadytext's engine failed at a request, and goes on";
            return Some(PgError::internal(what).hint(BUG));
        }
        let is_soon = self.refused_at.is_some_and(|at| at.elapsed() < REFUSALS_INTERVAL);
        if refused == self.refused || is_soon {
            return None;
        }
        let message = format!(
            "pg_steadytext's engine has refused {} connections: there is none left",
            refused.saturating_sub(self.refused)
        );
        (self.refused, self.refused_at) = (refused, Some(Instant::now()));
        let error = PgError::new(PgSqlErrorCode::ERRCODE_TOO_MANY_CONNECTIONS, message);
        Some(error.hint("A higher limit of open files (ulimit -n, LimitNOFILE) of the server allows more; open cursors of steadytext_generate_stream have one each."))
    }
}

/// The error that the engine has come to its end by itself.
pub(super) fn failed() -> PgError {
    PgError::internal("pg_steadytext's engine failed whatever it did, and is started anew").hint(BUG)
}

/// The error that the engine does not get on, in a process that it cannot be taken out of.
pub(super) fn hangs(silence: Duration) -> PgError {
    PgError::internal(format!("pg_steadytext's engine has not got on for {} s", silence.as_secs()))
        .hint("An immediate shutdown ends it. With pg_steadytext.engine_process = separate one that hangs is killed, and its requests go on in the next one.")
}

/// The end of a program that ran the engine.
#[derive(Debug, Clone)]
pub(super) enum ProgramEnd {
    /// The program never took connections; this is what it has said of that.
    Refused(Option<String>),
    /// Its engine has failed whatever it did, and has said so to everybody.
    Failed,
    /// Somebody has told it to end.
    Told(i32),
    /// The program had no memory for something small.
    WithoutMemory,
    /// By a signal that nobody sends to end it in order,
    Signal(i32),
    /// or by itself.
    Exit(i32),
    /// The program was not to be reached any more, and was killed.
    Unknown,
    /// The program gave no sign of life for so long, and was killed.
    Hung(Duration),
}

impl ProgramEnd {
    /// The end of a program that had taken connections.
    pub(super) fn of(status: ExitStatus) -> ProgramEnd {
        match (status.signal(), status.code()) {
            (Some(signal @ (libc::SIGTERM | libc::SIGINT)), _) => ProgramEnd::Told(signal),
            (Some(signal), _) => ProgramEnd::Signal(signal),
            (None, Some(FAILED_STATUS)) => ProgramEnd::Failed,
            (None, Some(NO_MEMORY_STATUS)) => ProgramEnd::WithoutMemory,
            (None, code) => ProgramEnd::Exit(code.unwrap_or(-1)),
        }
    }

    /// Whether what it was doing may be the reason.
    pub(super) fn is_crash(&self) -> bool {
        !matches!(self, ProgramEnd::Refused(_) | ProgramEnd::Failed | ProgramEnd::Told(_))
    }

    /// The message for the log about the end; the process had this number.
    pub(super) fn report(&self, program: &str, pid: i32) -> PgError {
        let ended = |how: String| {
            PgError::internal(format!("pg_steadytext's engine (process {pid}) {how}, and is started anew"))
        };
        let suspects = "Requests that it had are tried one at a time.";
        match self {
            ProgramEnd::Refused(why) => PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                match why {
                    Some(why) => format!("pg_steadytext's engine cannot start: {why}"),
                    None => "pg_steadytext's engine does not start".to_owned(),
                },
            )
            .hint(format!("It is the program \"{program}\", which must be installed together with the library; restart the server after that.")),
            ProgramEnd::Failed => failed(),
            ProgramEnd::Told(signal) => ended(format!("was told to end by {}", name(*signal))),
            ProgramEnd::WithoutMemory => {
                let hint = format!("Lower pg_steadytext.memory_limit_mb, so that it refuses what does not fit. {suspects}");
                PgError { code: PgSqlErrorCode::ERRCODE_OUT_OF_MEMORY, ..ended("had no memory left".to_owned()) }.hint(hint)
            }
            ProgramEnd::Signal(libc::SIGKILL) => ended("was killed by signal 9".to_owned()).hint(format!(
                "If nobody has sent it, the kernel has, for want of memory: lower pg_steadytext.memory_limit_mb. {suspects}"
            )),
            ProgramEnd::Signal(signal) => ended(format!("crashed by {}", name(*signal)))
                .hint(format!("{suspects} Please report the one that is to blame.")),
            ProgramEnd::Exit(code) => ended(format!("ended with exit code {code}"))
                .hint(format!("{suspects} Please report the one that is to blame.")),
            ProgramEnd::Hung(silence) => ended(format!("gave no sign of life for {} s, was killed", silence.as_secs())).hint(format!(
                "Somebody may have stopped it, or it hangs, which is to be reported; pg_steadytext.engine_hang_timeout says how long it may. {suspects}"
            )),
            ProgramEnd::Unknown => ended("takes no connections any more".to_owned()).hint(suspects),
        }
    }
}

/// The name of a signal.
fn name(signal: i32) -> String {
    let name = match signal {
        libc::SIGABRT => "SIGABRT",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        libc::SIGINT => "SIGINT",
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGTERM => "SIGTERM",
        libc::SIGXCPU => "SIGXCPU",
        _ => return format!("signal {signal}"),
    };
    format!("signal {signal} ({name})")
}
