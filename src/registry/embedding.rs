//! What a model's row, its card and its adapters say of embeddings: prompts, the lengths that vectors may
//! have, and tasks.
//!
//! A row that somebody has written comes first, then the card, then a row that came with the extension.

use std::sync::Arc;

use pgrx::prelude::*;
use steadytext_engine::card::Card;
use steadytext_engine::{Embed, Prompts, Purpose, Work, adapters};

use crate::pg::catalog_cache::Model;
use crate::pg::error::PgError;

/// All of them.
#[derive(Debug, Default)]
pub(crate) struct Embedding {
    /// What stands before texts.
    pub(crate) prompts: Prompts,
    dimensions: Vec<u32>,
    tasks: Tasks,
}

/// The tasks that a model has adapters for.
#[derive(Debug)]
pub(super) enum Tasks {
    /// As its file says; none where it has no adapters.
    Known(Arc<Vec<String>>),
    /// It is on another machine, or what says so cannot be read: who computes it knows.
    Unknown,
}

impl Default for Tasks {
    fn default() -> Self {
        Tasks::Known(Arc::default())
    }
}

impl Embedding {
    /// As row and card say, for a model with these tasks.
    pub(super) fn of(row: Option<&Model>, card: Option<&Card>, tasks: Tasks) -> Embedding {
        let prompt = |row: Option<&Model>, query: bool| {
            row.and_then(|row| if query { row.query_prompt.clone() } else { row.passage_prompt.clone() })
        };
        let (own, seeded) = (row.filter(|row| !row.is_default), row.filter(|row| row.is_default));
        let of_card = |query: bool| {
            card.and_then(|card| if query { card.query_prompt.clone() } else { card.passage_prompt.clone() })
        };
        let first = |query| prompt(own, query).or_else(|| of_card(query)).or_else(|| prompt(seeded, query));
        let lengths = [
            own.map(|row| &row.dimensions),
            card.map(|card| &card.dimensions),
            seeded.map(|row| &row.dimensions),
        ];
        let dimensions = lengths.into_iter().flatten().find(|lengths| !lengths.is_empty());
        Embedding {
            prompts: Prompts { query: first(true), passage: first(false) },
            dimensions: dimensions.cloned().unwrap_or_default(),
            tasks,
        }
    }

    /// The work, with what the model wants before its texts. For a model without adapters a text that is said
    /// to be a passage is one of which nothing is said, in the cache too.
    pub(crate) fn applied_to(&self, work: Work) -> Work {
        let mut work = work.prompted(&self.prompts);
        if let (Tasks::Known(tasks), Work::Embed(Embed { purpose, .. })) = (&self.tasks, &mut work)
            && tasks.is_empty()
            && *purpose == Purpose::Document
        {
            *purpose = Purpose::Passage;
        }
        work
    }

    /// Refuses a task that no adapter is for and no prompt has a place for, and lengths that the model was
    /// not trained for.
    ///
    /// # Errors
    ///
    /// 22023.
    pub(crate) fn check(
        &self,
        name: &str,
        task: Option<&str>,
        dimensions: Option<usize>,
    ) -> Result<(), PgError> {
        let invalid = |message| PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message);
        let tasks = match &self.tasks {
            Tasks::Known(tasks) => &tasks[..],
            Tasks::Unknown => &[],
        };
        if let Some(task) = task
            && !tasks.is_empty()
        {
            if !tasks.iter().any(|known| known == task) {
                let error = adapters::unknown_task(tasks.iter().map(|known| &**known));
                let hint = error.hint().unwrap_or_default().to_owned();
                return Err(invalid(format!("model \"{name}\" has no such task")).hint(hint));
            }
        } else if task.is_some() && !self.prompts.take_tasks() {
            return Err(invalid(format!("model \"{name}\" takes no task: its prompt for queries has no place for one"))
                .hint("Leave task out, or write {task} into query_prompt of its card or of its row in steadytext_models."));
        }
        let Some(dimensions) = dimensions else { return Ok(()) };
        if self.dimensions.iter().any(|known| usize::try_from(*known) == Ok(dimensions)) {
            return Ok(());
        }
        let lengths: Vec<String> = self.dimensions.iter().map(u32::to_string).collect();
        Err(invalid(format!("model \"{name}\" makes no vectors of {dimensions} dimensions")).hint(
            if lengths.is_empty() {
                "Leave dimensions out; or, if the model was trained for vectors that are cut, put the lengths into dimensions of its card or of its row in steadytext_models.".to_owned()
            } else {
                format!("It was trained for {}.", lengths.join(", "))
            },
        ))
    }
}
