//! What ends a turn of a database's thread.

/// What went wrong.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TurnError {
    /// In the database, or on the way to it. It is tried again.
    #[error("{}", words(.0))]
    Database(#[from] postgres::Error),
    /// The server has answered what it was not asked. The connection is made anew.
    #[error("the server's answer is not what was asked for: {0}")]
    Unexpected(&'static str),
    /// There is no going on.
    #[error("{0}")]
    Fatal(String),
}

/// An error of the database or of the network with its reason.
fn words(error: &postgres::Error) -> String {
    if let Some(said) = error.as_db_error() {
        let code = said.code().code();
        return match said.hint() {
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
