//! Properties of a model's embeddings, from its row, its card and its adapters: prompts, the lengths that
//! vectors may have, and tasks.
//!
//! A row that somebody has written comes first, then the card, then a row that came with the extension, and
//! in the end what the model's file says.

use std::borrow::Cow;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use pgrx::prelude::*;
use steadytext_engine::card::Card;
use steadytext_engine::task_guess::Vectors;
use steadytext_engine::{Embed, ModelSource, Prompts, Purpose, Work, adapters};

use super::directory::{self, Tasks};
use crate::pg::catalog_cache::RegisteredModel;
use crate::pg::error::PgError;

/// The properties of a model's embeddings.
#[derive(Debug, Default)]
pub(crate) struct Embedding {
    /// The prompts that are put before texts.
    prompts: Prompts,
    /// The vector lengths in the row or the card.
    dimensions: Vec<u32>,
    tasks: Tasks,
    /// The file that says the rest, which is looked at where a request asks for it.
    file: ModelPlace,
}

/// Place of the file of a model.
#[derive(Debug, Default)]
enum ModelPlace {
    /// In the library.
    #[default]
    Builtin,
    Here(PathBuf),
    /// On another machine.
    Elsewhere,
}

impl ModelPlace {
    fn vectors(&self) -> Option<Rc<Vectors>> {
        match self {
            ModelPlace::Builtin => directory::vectors(&ModelSource::Builtin),
            ModelPlace::Here(path) => directory::vectors(&ModelSource::File(path.clone())),
            ModelPlace::Elsewhere => None,
        }
    }
}

impl Embedding {
    /// Of a file on this machine, as row and card say, for a model with these tasks.
    pub(super) fn of_file(
        path: &Path,
        row: Option<&RegisteredModel>,
        card: Option<&Card>,
        tasks: Tasks,
    ) -> Embedding {
        Embedding { file: ModelPlace::Here(path.to_owned()), ..Embedding::of(row, card, tasks) }
    }

    /// Of a file on another machine, as its row says.
    pub(super) fn elsewhere(row: &RegisteredModel) -> Embedding {
        Embedding::of(Some(row), None, Tasks::Unknown)
    }

    fn of(row: Option<&RegisteredModel>, card: Option<&Card>, tasks: Tasks) -> Embedding {
        let prompt = |row: Option<&RegisteredModel>, query: bool| {
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
            file: ModelPlace::Elsewhere,
        }
    }

    /// The work, with what the model wants before its texts. What is said of a text that makes no difference
    /// to this model is left out, so that it is the same text in the cache, too.
    pub(crate) fn applied_to(&self, work: Work) -> Work {
        match work {
            Work::Embed(how) => Work::Embed(self.applied_to_text(how)),
            other => other.prompted(&self.of_pairs()),
        }
    }

    /// A prompt goes with its adapter: a model that has adapters wants none before a text that is computed
    /// without.
    fn applied_to_text(&self, mut how: Embed) -> Embed {
        // All elements of a vector are the vector itself, in the cache too.
        if let Some(dimensions) = how.dimensions
            && u32::try_from(dimensions).ok() == self.file.vectors().and_then(|vectors| vectors.dimensions)
        {
            how.dimensions = None;
        }
        let Tasks::Known(tasks) = &self.tasks else {
            how.prompt = self.prompts.before(&how.purpose).map(Cow::into_owned);
            return how;
        };
        if tasks.is_empty() {
            how.prompt = self.prompts.before(&how.purpose).map(Cow::into_owned);
        } else if let Some(task) = self.adapter_for(&how.purpose) {
            how.prompt = self.prompts.with_adapter(task).map(Cow::into_owned);
            if matches!(how.purpose, Purpose::Similarity | Purpose::Classification) {
                how.purpose = Purpose::Query { task: Some(task.to_owned()) };
            }
            return how;
        }
        match how.purpose {
            Purpose::Document | Purpose::Similarity | Purpose::Classification => {
                how.purpose = Purpose::Passage;
            }
            Purpose::Passage | Purpose::Query { .. } => {}
        }
        how
    }

    /// The task of the adapter that computes texts of a purpose, as far as it is known to have one.
    fn adapter_for(&self, purpose: &Purpose) -> Option<&str> {
        let Tasks::Known(tasks) = &self.tasks else { return None };
        let task = purpose.adapter_task()?;
        tasks.iter().map(|known| &**known).find(|known| *known == task)
    }

    /// The prompts of queries and documents whose vectors are compared.
    pub(crate) fn of_pairs(&self) -> Cow<'_, Prompts> {
        if !matches!(&self.tasks, Tasks::Known(tasks) if !tasks.is_empty()) {
            return Cow::Borrowed(&self.prompts);
        }
        let of = |purpose: Purpose, prompt: &Option<String>| {
            prompt.clone().filter(|_| self.adapter_for(&purpose).is_some())
        };
        let query = of(Purpose::Query { task: None }, &self.prompts.query);
        Cow::Owned(Prompts { query, passage: of(Purpose::Document, &self.prompts.passage) })
    }

    /// The task of the adapter that is used for texts of a purpose, if one is, and the prompt put before the
    /// texts. `None` where the model has no adapters or they are not known. The results of requests that are
    /// made of several vectors depend on it.
    pub(crate) fn adapted(&self, purpose: Purpose) -> Option<(Option<String>, Option<String>)> {
        let Tasks::Known(tasks) = &self.tasks else { return None };
        if tasks.is_empty() {
            return None;
        }
        let task = self.adapter_for(&purpose).map(str::to_owned);
        Some((task, self.applied_to_text(Embed { purpose, ..Embed::passage("") }).prompt))
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
        } else if task.is_some()
            && let Some(reason) = self.why_no_task()
        {
            return Err(invalid(format!("model \"{name}\" takes no task: {reason}"))
                .hint("Leave task out; or, if the model was trained for tasks, write {task} into query_prompt of its card or of its row in steadytext_models."));
        }
        let Some(dimensions) = dimensions else { return Ok(()) };
        let vectors = self.file.vectors();
        let whole = vectors.as_ref().and_then(|vectors| vectors.dimensions);
        let of_file = vectors.as_ref().map(|vectors| vectors.lengths.as_slice()).unwrap_or_default();
        let lengths = if self.dimensions.is_empty() { of_file } else { &self.dimensions };
        if lengths.iter().chain(&whole).any(|known| usize::try_from(*known) == Ok(dimensions)) {
            return Ok(());
        }
        let whole = whole.map(|whole| format!("whole vectors have {whole} dimensions"));
        let lengths: Vec<String> = lengths.iter().map(u32::to_string).collect();
        Err(invalid(format!("model \"{name}\" makes no vectors of {dimensions} dimensions")).hint(
            match (lengths.is_empty(), whole) {
                (true, whole) => format!(
                    "Leave dimensions out{}; or, if the model was trained for vectors that are cut, put the lengths into dimensions of its card or of its row in steadytext_models.",
                    whole.map(|whole| format!(": {whole}")).unwrap_or_default()
                ),
                (false, Some(whole)) => format!("It was trained for {}; {whole}.", lengths.join(", ")),
                (false, None) => format!("It was trained for {}.", lengths.join(", ")),
            },
        ))
    }

    /// The reason why a model without adapters takes no task. `None` where it may take one.
    fn why_no_task(&self) -> Option<&'static str> {
        if !self.prompts.take_tasks() {
            return Some("its prompt for queries has no place for one");
        }
        let reads_none = self.prompts.query.is_none()
            && matches!(self.tasks, Tasks::Known(_))
            && self.file.vectors().is_some_and(|vectors| !vectors.takes_tasks);
        reads_none.then_some("it has neither adapters nor a prompt for queries with a place for one")
    }
}
