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
    /// A text that is compared with texts of its kind. Models with adapters may have one for such texts, and
    /// all others treat it as a passage.
    Similarity,
    /// A text that is put into a category, or the name of a category; otherwise as [`Purpose::Similarity`].
    Classification,
}

/// The task of published adapters for queries.
pub(crate) const QUERY: &str = "retrieval.query";
/// The task of published adapters for the texts that queries find.
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
            Purpose::Passage | Purpose::Document | Purpose::Similarity | Purpose::Classification => {
                self.passage.as_deref().map(Cow::Borrowed)
            }
            Purpose::Query { task } => self.query.as_deref().map(|query| filled(query, task.as_deref())),
        }
    }

    /// The prefix of a text that an adapter for a task computes: the prompt for queries, or for passages,
    /// where that is the task. A text of another task gets the prefix that its adapter has, unless the prompt
    /// for queries has a place for the task.
    pub fn with_adapter(&self, task: &str) -> Option<Cow<'_, str>> {
        let query = self.query.as_deref();
        match task {
            QUERY => query.map(|query| filled(query, None)),
            PASSAGE => self.passage.as_deref().map(Cow::Borrowed),
            task => query.filter(|query| place(query).is_some()).map(|query| filled(query, Some(task))),
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

    #[test]
    fn each_adapter_has_the_prompt_of_its_task() {
        let of =
            |query: &str, task: &str| prompts(query).with_adapter(task).map(|prompt| prompt.into_owned());
        assert_eq!(of("query: ", "retrieval.query").as_deref(), Some("query: "));
        assert_eq!(of("query: ", "retrieval.passage").as_deref(), Some("passage: "));
        assert_eq!(of("query: ", "text-matching"), None);
        assert_eq!(of("{task=x}: ", "text-matching").as_deref(), Some("text-matching: "));
        assert_eq!(of("{task=x}: ", "retrieval.query").as_deref(), Some("x: "));
    }
}
