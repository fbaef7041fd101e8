//! What comes of a call, and what is not even asked.

use serde::Deserialize;
use steadytext_engine::remote_job::Refusal;
use steadytext_engine::{Error, Output};

use super::client::Failed;

/// What an endpoint says that an answer has taken.
#[derive(Debug, Clone, Copy, Default, Deserialize)]
pub(super) struct Usage {
    #[serde(default)]
    pub(super) prompt_tokens: Option<u32>,
    #[serde(default)]
    pub(super) completion_tokens: Option<u32>,
    #[serde(default)]
    prompt_tokens_details: Option<Details>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
struct Details {
    #[serde(default)]
    cached_tokens: Option<u32>,
}

impl Usage {
    /// Tokens of the prompt that the endpoint had computed before.
    pub(super) fn cached_tokens(&self) -> Option<u32> {
        self.prompt_tokens_details.and_then(|details| details.cached_tokens)
    }
}

/// What has come of a piece of work.
pub(super) struct Answer {
    /// What the engine would have given, or said.
    pub(super) outcome: Result<Output, Error>,
    pub(super) usage: Usage,
}

/// Why an endpoint is not asked.
#[derive(Debug)]
pub(super) enum Refused {
    /// It has no words for something.
    Unsupported(String),
    /// The engine would not do it either.
    Engine(Error),
}

impl Refused {
    pub(super) fn unsupported(what: &str) -> Refused {
        Refused::Unsupported(format!("the endpoint of the model does not take {what}"))
    }
}

/// What the row of a request says that no endpoint has answered.
pub(super) fn refusal(message: String, code: &str, retry: bool) -> Refusal {
    Refusal { message, code: code.to_owned(), retry }
}

/// An answer that is none.
pub(super) fn unreadable(error: &serde_json::Error) -> Failed {
    // What the error says beside its place may be the endpoint's own words.
    let what = match error.classify() {
        serde_json::error::Category::Data => "has not the form that was asked for",
        _ => "is no JSON document",
    };
    Failed::Broken(format!("the endpoint's answer {what}: line {} column {}", error.line(), error.column()))
}
