//! Purposes of vectors, and the prefixes that models expect before the texts that they embed, as their cards
//! say: "query: " and the like.
//!
//! A prompt may have a place for a task, `{task}`, or `{task=…}` with the task for requests that name none.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

const PLACE: &str = "{task";
/// The task of a search where none is given.
pub const DEFAULT_TASK: &str = "Given a web search query, retrieve relevant passages that answer the query";

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

/// The prompts of a model. Where there is none, the model's file has the say.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Prompts {
    /// The prefix of a query.
    pub query: Option<String>,
    /// The prefix of a text that queries are to find.
    pub passage: Option<String>,
}

impl Prompts {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.query.is_none() && self.passage.is_none()
    }

    /// Whether a query may name a task, as far as the prompts have the say.
    pub fn take_tasks(&self) -> bool {
        self.query.as_deref().is_none_or(|query| place(query).is_some())
    }

    /// The prefix of a text of a purpose.
    pub fn before(&self, purpose: &Purpose) -> Option<Cow<'_, str>> {
        match purpose {
            Purpose::Passage | Purpose::Document => self.passage.as_deref().map(Cow::Borrowed),
            Purpose::Query { task } => self.query.as_deref().map(|query| filled(query, task.as_deref())),
        }
    }
}

/// The place that a prompt has for a task, and the text that stands there otherwise.
fn place(prompt: &str) -> Option<(std::ops::Range<usize>, &str)> {
    let begin = prompt.find(PLACE)?;
    let inner = &prompt[begin + PLACE.len()..];
    let end = inner.find('}')?;
    let usual = match inner[..end].strip_prefix('=') {
        Some(usual) => usual,
        None if end == 0 => DEFAULT_TASK,
        None => return None,
    };
    Some((begin..begin + PLACE.len() + end + 1, usual))
}

fn filled<'a>(prompt: &'a str, task: Option<&str>) -> Cow<'a, str> {
    match place(prompt) {
        Some((range, usual)) => {
            let mut text = prompt.to_owned();
            text.replace_range(range, task.unwrap_or(usual));
            Cow::Owned(text)
        }
        None => Cow::Borrowed(prompt),
    }
}

#[cfg(test)]
mod tests {
    use super::Prompts;
    use crate::{DEFAULT_TASK, Purpose};

    fn prompts(query: &str) -> Prompts {
        Prompts { query: Some(query.to_owned()), passage: Some("passage: ".to_owned()) }
    }

    fn before(query: &str, task: Option<&str>) -> String {
        let purpose = Purpose::Query { task: task.map(str::to_owned) };
        prompts(query).before(&purpose).unwrap().into_owned()
    }

    #[test]
    fn a_prompt_may_have_a_place_for_a_task() {
        assert_eq!(before("query: ", None), "query: ");
        assert_eq!(before("Instruct: {task}\nQuery:", Some("Find {task}")), "Instruct: Find {task}\nQuery:");
        assert_eq!(before("Instruct: {task}\nQuery:", None), format!("Instruct: {DEFAULT_TASK}\nQuery:"));
        assert_eq!(before("task: {task=search result} | query: ", None), "task: search result | query: ");
        assert_eq!(before("task: {task=search result} | query: ", Some("x")), "task: x | query: ");
        for (query, takes) in [
            ("{task}", true),
            ("{task=}", true),
            ("{task", false),
            ("{tasks}", false),
            ("é{task=ü}", true),
            ("", false),
        ] {
            assert_eq!(prompts(query).take_tasks(), takes, "{query}");
        }
        assert!(Prompts::default().take_tasks());
    }
}
