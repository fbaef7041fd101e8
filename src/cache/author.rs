//! The model that has computed an answer.

use steadytext_engine::ModelIdentity;

use crate::pg::model_checksums;

/// The model that computes an answer.
#[derive(Debug, Default)]
pub(crate) struct Author {
    model: Option<ModelIdentity>,
    /// Subtasks of it were computed by another one, whose file was replaced.
    mixed: bool,
}

impl Author {
    /// This one computes it, or a subtask of it.
    pub(crate) fn note(&mut self, model: &ModelIdentity) {
        if self.model.as_ref() != Some(model) {
            model_checksums::learn(model);
            self.mixed = self.model.replace(*model).is_some();
        }
    }

    /// The one that has computed all of it.
    pub(crate) fn get(&self) -> Option<&ModelIdentity> {
        self.model.as_ref().filter(|_| !self.mixed)
    }
}
