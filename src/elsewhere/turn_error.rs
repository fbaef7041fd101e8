//! Errors that end a turn of a database's thread.

use postgres::error::SqlState;

/// An error of a turn.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TurnError {
    /// An error of the database or of the connection. It is tried again.
    #[error("{}", words(.0))]
    Database(#[from] postgres::Error),
    /// The server's answer is not of the expected form. The connection is made anew.
    #[error("the server's answer is not what was asked for: {0}")]
    Unexpected(&'static str),
    /// The worker cannot go on.
    #[error("{0}")]
    Fatal(String),
}

impl TurnError {
    /// Whether trying again cannot help, as long as nobody changes something on the server: what is said to
    /// the one who started the program for this one time.
    pub(crate) fn lasts(&self) -> bool {
        let TurnError::Database(error) = self else { return false };
        // A password that is not there, say: nothing was sent to the server.
        let is_ours = error.to_string().starts_with("invalid configuration");
        is_ours
            || error.code().is_some_and(|code| {
                [
                    SqlState::INVALID_CATALOG_NAME,
                    SqlState::INVALID_PASSWORD,
                    SqlState::INVALID_AUTHORIZATION_SPECIFICATION,
                    SqlState::INSUFFICIENT_PRIVILEGE,
                    SqlState::INVALID_SCHEMA_NAME,
                    SqlState::UNDEFINED_FUNCTION,
                ]
                .contains(code)
            })
    }
}

/// An error of the database or of the network with its reason.
fn words(error: &postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        let code = said.code().code();
        let hint = said.hint().or_else(|| advice(said.code()));
        return match hint {
            Some(hint) => format!("{} ({code}): {hint}", said.message()),
            None => format!("{} ({code})", said.message()),
        };
    }
    let mut words = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(reason) = cause {
        words.push_str(&format!(": {reason}"));
        cause = reason.source();
    }
    words
}

/// A hint for the server's errors whose messages do not tell what to do about this program.
fn advice(code: &SqlState) -> Option<&'static str> {
    Some(match *code {
        SqlState::INVALID_SCHEMA_NAME => {
            "CREATE EXTENSION pg_steadytext CASCADE in this database, or name another one."
        }
        SqlState::INSUFFICIENT_PRIVILEGE => "GRANT steadytext_worker to the role.",
        SqlState::INVALID_PASSWORD => {
            "The password is that of PGPASSWORD, ~/.pgpass or the URL; what the server asks for stands in its pg_hba.conf."
        }
        _ => return None,
    })
}
