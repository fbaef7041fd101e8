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
}

/// What is looked for where nothing else is said.
pub const DEFAULT_TASK: &str = "Given a web search query, retrieve relevant passages that answer the query";
