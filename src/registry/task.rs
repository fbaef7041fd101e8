//! Tasks of models, and the model that a request asks for.

use steadytext_engine::card;

/// The name of the model inside the library.
pub(crate) const BUILTIN: &str = "builtin";
/// The setting that leaves the choice to the next level.
pub(crate) const AUTO: &str = "auto";

/// Task of a model.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ModelTask {
    /// Text generation.
    Generate,
    /// Embeddings.
    Embed,
    /// Scores of documents.
    Rerank,
}

impl ModelTask {
    /// All of them, by their numbers.
    pub(crate) const ALL: [ModelTask; 3] = [ModelTask::Generate, ModelTask::Embed, ModelTask::Rerank];

    /// The word for it in steadytext_models.
    pub(crate) fn name(self) -> &'static str {
        match self {
            ModelTask::Generate => "generate",
            ModelTask::Embed => "embed",
            ModelTask::Rerank => "rerank",
        }
    }

    /// Its number in shared memory.
    pub(super) fn number(self) -> u8 {
        self as u8
    }

    /// The task in a card.
    pub(super) fn of_card(self) -> card::Task {
        match self {
            ModelTask::Generate => card::Task::Generate,
            ModelTask::Embed => card::Task::Embed,
            ModelTask::Rerank => card::Task::Rerank,
        }
    }
}

/// The model that a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestedModel<'a> {
    /// The one of this name.
    Named(&'a str),
    /// The one that was the default of the session which enqueued it.
    Remembered(&'a str),
    /// Any: the default of this session.
    Default,
}
