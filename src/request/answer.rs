//! What came of a request.

use super::ranking::Ranking;
use crate::pg::error::PgError;

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
}

impl Answer {
    /// About how many bytes it takes.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Answer::Text(text) => text.len(),
            Answer::Embedding(vector) => size_of_val(vector.as_slice()),
            Answer::Embeddings(vectors) => vectors.iter().map(|vector| size_of_val(vector.as_slice())).sum(),
            Answer::Ranking(ranking) => ranking.documents().map(|document| document.len() + 32).sum(),
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
            Answer::Embedding(_) | Answer::Embeddings(_) | Answer::Ranking(_) => Err(unexpected()),
        }
    }
}

/// An output, or an answer, that does not belong to the request.
pub(crate) fn unexpected() -> PgError {
    PgError::internal("the engine's answer is of another kind than the request")
}
