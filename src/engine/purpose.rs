//! What vectors are for.

use serde::{Deserialize, Serialize};

/// What a vector is for. Models that were trained to tell the two apart get the text in the words that they
/// were trained with.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Purpose {
    /// Nothing was said of it. It gets what stands before a text that is to be found; for most models, this
    /// is the text as it is.
    #[default]
    Passage,
    /// To find others with.
    Query {
        /// What is looked for, as a sentence; None for the model's usual task.
        task: Option<String>,
    },
    /// To be found, as somebody has said: models with adapters have one for such texts, and all others take
    /// it for a passage.
    Document,
    /// To be compared with texts of its kind. As with the next one, models with adapters may have one for
    /// that, and all others take it for a passage.
    Similarity,
    /// To be put into a category, or to be a category's.
    Classification,
}

/// The tasks of adapters that models are published with: of queries, and of the texts that they find.
pub(crate) const QUERY: &str = "retrieval.query";
/// See [`QUERY`].
pub(crate) const PASSAGE: &str = "retrieval.passage";

impl Purpose {
    /// The task of the adapter that such texts are computed with, where the model has it; `None`: none is.
    pub fn adapter_task(&self) -> Option<&str> {
        match self {
            Purpose::Passage => None,
            Purpose::Query { task } => Some(task.as_deref().unwrap_or(QUERY)),
            Purpose::Document => Some(PASSAGE),
            Purpose::Similarity => Some("text-matching"),
            Purpose::Classification => Some("classification"),
        }
    }
}

/// What is looked for where nothing else is said.
pub const DEFAULT_TASK: &str = "Given a web search query, retrieve relevant passages that answer the query";
