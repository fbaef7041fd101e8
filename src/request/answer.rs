//! Answers to requests, and the values that functions return where there is no answer.

use pgrx::prelude::*;
use steadytext_engine::Verification;

use steadytext_engine::Chunk;

use super::categories::Categories;
use super::ranking::Ranking;
use crate::pg::error::{OrRaise, PgError};

/// The answer to a request.
#[derive(Debug, Clone)]
pub(crate) enum Answer {
    /// A text.
    Text(String),
    /// A vector.
    Embedding(Vec<f32>),
    /// A vector for each text, in the order of the texts.
    Embeddings(Vec<Vec<f32>>),
    /// Documents, best first.
    Ranking(Ranking),
    /// The tokens of a text.
    Tokens(Vec<u32>),
    /// A text in pieces.
    Chunks(Vec<Chunk>),
    /// Categories, best first.
    Categories(Categories),
    /// The answers to the elements of an array; `None` where one cannot be answered.
    Many(Vec<Option<Answer>>),
    /// The deviations between the backends.
    Verification(Verification),
}

impl Answer {
    /// About how many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Answer::Text(text) => text.len(),
            Answer::Embedding(vector) => size_of_val(vector.as_slice()),
            Answer::Embeddings(vectors) => vectors.iter().map(|vector| size_of_val(vector.as_slice())).sum(),
            Answer::Ranking(ranking) => ranking.documents().map(|document| document.len() + 32).sum(),
            Answer::Verification(verified) => verified.rows.len() * 64,
            Answer::Tokens(tokens) => size_of_val(tokens.as_slice()),
            Answer::Chunks(chunks) => size_of_val(chunks.as_slice()),
            Answer::Categories(categories) => categories.names().map(|name| name.len() + 64).sum(),
            Answer::Many(answers) => answers.iter().flatten().map(Answer::bytes).sum(),
        }
    }

    /// The list in the form of steadytext_queue.results: documents or categories, best first.
    pub(crate) fn list(&self) -> Option<Vec<&str>> {
        match self {
            Answer::Ranking(ranking) => Some(ranking.documents().collect()),
            Answer::Categories(categories) => Some(categories.names().collect()),
            _ => None,
        }
    }

    /// The text of an answer to a request that generates.
    ///
    /// # Errors
    ///
    /// XX000 for an answer of another kind: a bug.
    pub(crate) fn into_text(self) -> Result<String, PgError> {
        match self {
            Answer::Text(text) => Ok(text),
            _ => Err(unexpected()),
        }
    }

    /// The categories of an answer to a classification.
    ///
    /// # Errors
    ///
    /// XX000 for an answer of another kind: a bug.
    pub(crate) fn into_categories(self) -> Result<Categories, PgError> {
        match self {
            Answer::Categories(categories) => Ok(categories),
            _ => Err(unexpected()),
        }
    }
}

/// An output, or an answer, that does not belong to the request.
pub(crate) fn unexpected() -> PgError {
    PgError::internal("the engine's answer is of another kind than the request")
}

/// A statement's treatment of a row that cannot be answered: the parameter `on_error` of the functions that
/// answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OnError {
    /// The call ends with the error.
    Raise,
    /// The call goes on, and the row has NULL, or no rows. An error that may pass, or that every row would
    /// meet, is raised all the same.
    Null,
}

impl OnError {
    /// From the parameter; raises 22023 for anything but `error` and `null`.
    pub(crate) fn of(given: Option<&str>) -> OnError {
        match given {
            None | Some("error") => OnError::Raise,
            Some("null") => OnError::Null,
            Some(_) => PgError::new(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                "on_error must be \"error\" or \"null\"",
            )
            .hint("With null, a text that cannot be answered gives NULL instead of an error.")
            .raise(),
        }
    }

    /// The value; `None` in the place of an error about the row's text. Raises every other error.
    pub(crate) fn settle<T>(self, result: Result<T, PgError>) -> Option<T> {
        match result {
            Err(error) if self == OnError::Null && error.lasting => None,
            result => Some(result.or_raise()),
        }
    }
}
