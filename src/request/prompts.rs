//! The prompts of the functions that ask for a judgement: templates in files beside this one, with a version each.
//!
//! What is constant over many rows comes before what differs, so that its keys and values are computed once. Whoever changes a
//! byte of a template raises its version, which is part of the key of what is cached.
//!
//! A prompt is looked up by its slug in one place, [`find`]: prompts that a database puts in the place of these would be found there.

use minijinja::{Environment, Value};
use serde::Serialize;

use crate::pg::error::PgError;

/// Instructions that a template may run: some for each category and example.
const FUEL: u64 = 1_000_000;

/// A prompt with a version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub(crate) struct Prompt {
    /// `steadytext/…`
    pub(crate) slug: &'static str,
    /// Counted from 1.
    pub(crate) version: i32,
    /// In the language of the registry of prompts, `sql/48_prompts.sql`.
    #[serde(skip)]
    pub(crate) template: &'static str,
    /// Names that the template takes values for, sorted.
    #[serde(skip)]
    pub(crate) variables: &'static [&'static str],
}

/// A question that is answered with yes or no.
pub(crate) const IF: Prompt = Prompt {
    slug: "steadytext/if",
    version: 1,
    template: include_str!("prompts/if.jinja"),
    variables: &["prompt"],
};
/// A question that is answered with a grade.
pub(crate) const SCORE: Prompt = Prompt {
    slug: "steadytext/score",
    version: 1,
    template: include_str!("prompts/score.jinja"),
    variables: &["prompt"],
};
/// What the model is told before it gets a text of which it is to find the category.
pub(crate) const CLASSIFY: Prompt = Prompt {
    slug: "steadytext/classify",
    version: 1,
    template: include_str!("prompts/classify.jinja"),
    variables: &["categories", "examples", "task_description"],
};
/// Whether a text belongs to one category.
pub(crate) const CLASSIFY_MULTI: Prompt = Prompt {
    slug: "steadytext/classify-multi",
    version: 1,
    template: include_str!("prompts/classify_multi.jinja"),
    variables: &["category", "input", "task_description"],
};
/// A question that is answered from what a search has found; `sql/76_rag.sql` renders it.
const RAG: Prompt = Prompt {
    slug: "steadytext/rag",
    version: 1,
    template: include_str!("prompts/rag.jinja"),
    variables: &["question", "sources"],
};

/// All of them, in the order of their slugs.
const ALL: [Prompt; 5] = [CLASSIFY, CLASSIFY_MULTI, IF, RAG, SCORE];

/// The prompt of this slug; of this version where one is given.
pub(crate) fn find(slug: &str, version: Option<i64>) -> Option<Prompt> {
    ALL.into_iter().find(|prompt| {
        prompt.slug == slug && version.is_none_or(|wanted| i64::from(prompt.version) == wanted)
    })
}

impl Prompt {
    /// The text that it makes of some variables, which are put in as they are.
    ///
    /// # Errors
    ///
    /// XX000 for a template that cannot be rendered: a bug.
    pub(crate) fn render(self, variables: Value) -> Result<String, PgError> {
        let mut environment = Environment::new();
        environment.set_fuel(Some(FUEL));
        environment.render_str(self.template, variables).map_err(|error| {
            PgError::internal(format!("the prompt {} cannot be rendered: {error}", self.slug))
        })
    }
}
