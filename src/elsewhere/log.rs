//! Lines on standard error: for people, or one JSON object each.

use std::io::Write;
use std::process::ExitCode;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

/// The format of lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum LogFormat {
    /// Words.
    #[default]
    Text,
    /// Objects.
    Json,
}

/// The severity of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Severity {
    /// Normal operation.
    Info,
    /// A problem that passes by itself.
    Warning,
    /// A problem that somebody has to look at.
    Error,
}

static FORMAT: OnceLock<LogFormat> = OnceLock::new();

/// Chooses the format, once.
pub(crate) fn start(format: LogFormat) {
    FORMAT.get_or_init(|| format);
}

/// Most characters of a message, which may be a server's.
const MAX_CHARACTERS: usize = 2000;

/// Writes a line. Messages never contain a prompt, a password or an answer.
pub(crate) fn say(level: Severity, database: Option<&str>, message: &str) {
    // One line each, and nothing that a terminal would obey.
    let printable = |character: char| if character.is_control() { ' ' } else { character };
    let message: String = message.chars().take(MAX_CHARACTERS).map(printable).collect();
    let level = match level {
        Severity::Info => "info",
        Severity::Warning => "warning",
        Severity::Error => "error",
    };
    let line = match FORMAT.get().copied().unwrap_or_default() {
        LogFormat::Text => match database {
            Some(database) => format!("steadytext-worker: {level}: {database}: {message}\n"),
            None => format!("steadytext-worker: {level}: {message}\n"),
        },
        LogFormat::Json => {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            let line = json!({
                "time": now.as_millis() as u64, "level": level, "database": database, "message": message,
            });
            format!("{line}\n")
        }
    };
    // Nobody is left to be told when this fails.
    let _ = std::io::stderr().write_all(line.as_bytes());
}

/// Writes to standard output.
pub(crate) fn print(text: &str) -> ExitCode {
    match std::io::stdout().write_all(text.as_bytes()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}
