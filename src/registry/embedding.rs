//! What a model's row and its card say of embeddings: prompts, and the lengths that vectors may have.
//!
//! A row that somebody has written comes first, then the card, then a row that came with the extension.

use pgrx::prelude::*;
use steadytext_engine::Prompts;
use steadytext_engine::card::Card;

use crate::pg::catalog_cache::Model;
use crate::pg::error::PgError;

/// Both of them.
#[derive(Debug, Default)]
pub(crate) struct Embedding {
    /// What stands before texts.
    pub(crate) prompts: Prompts,
    dimensions: Vec<u32>,
}

impl Embedding {
    /// As row and card say.
    pub(super) fn of(row: Option<&Model>, card: Option<&Card>) -> Embedding {
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
        }
    }

    /// Refuses a task that no prompt has a place for, and lengths that the model was not trained for.
    ///
    /// # Errors
    ///
    /// 22023.
    pub(crate) fn check(&self, name: &str, has_task: bool, dimensions: Option<usize>) -> Result<(), PgError> {
        let invalid = |message| PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message);
        if has_task && !self.prompts.take_tasks() {
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
