//! Purposes of vectors.

use serde::{Deserialize, Serialize};

/// The purpose of a vector. Models that were trained to tell the purposes apart get the text in the words
/// that they were trained with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Purpose {
    /// No purpose was given. The text gets the prefix of texts that queries are to find; most models have
    /// none.
    #[default]
    Passage,
    /// A query, which other texts are compared with.
    Query {
        /// The task of the search, as a sentence; None for the model's usual task.
        task: Option<String>,
    },
    /// Explicitly a text that queries are to find: models with adapters have one for such texts, and all
    /// others treat it as a passage.
    Document,
}

/// The task of a search where none is given.
pub const DEFAULT_TASK: &str = "Given a web search query, retrieve relevant passages that answer the query";
