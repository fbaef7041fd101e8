//! The kinds of work that the engine does, and their parameters.

use std::borrow::Cow;

use serde::ser::SerializeStruct;
use serde::{Deserialize, Serialize, Serializer};

use crate::chunks::Chunking;
use crate::kernels::instructions::Instructions;
use crate::kernels::norm::normalise;
use crate::verify::Verify;
use crate::{Constraint, DEFAULT_TASK, Error, Message, Prompts, Purpose, Sampling};

/// The kinds of work.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub enum Work {
    /// Text from a prompt.
    Generate(Generate),
    /// A vector from a text.
    Embed(Embed),
    /// The rating of how well a document answers a query.
    Rerank(Rerank),
    /// The likelihoods of some given answers.
    Likelihoods(Likelihoods),
    /// The tokens of a text by itself.
    Tokenize {
        /// The text.
        text: String,
    },
    /// A text in pieces of so many tokens.
    Chunk(Chunking),
    /// Whether the backends compute the same.
    Verify(Verify),
}

impl Work {
    /// Bytes of the texts that a user has given.
    pub fn text_bytes(&self) -> usize {
        match self {
            Work::Generate(how) => {
                let system = how.system.as_ref().map_or(0, String::len);
                let said = how.history.iter().map(|message| message.text.len());
                said.fold(how.prompt.len().saturating_add(system), usize::saturating_add)
            }
            Work::Embed(how) => how.text.len(),
            Work::Tokenize { text } => text.len(),
            Work::Chunk(how) => {
                how.text.len().saturating_add(how.beside.as_ref().map_or(0, |beside| beside.prompt.len()))
            }
            Work::Rerank(how) => {
                let texts = [&how.query, &how.document, &how.task];
                texts.iter().fold(0, |bytes, text| bytes.saturating_add(text.len()))
            }
            Work::Likelihoods(how) => {
                let system = how.system.as_ref().map_or(0, String::len);
                let begins = [system, how.begin.len()]
                    .iter()
                    .fold(how.prompt.len(), |all, bytes| all.saturating_add(*bytes));
                how.answers.iter().fold(begins, |bytes, answer| bytes.saturating_add(answer.len()))
            }
            Work::Verify(what) => what.text.as_ref().map_or(0, String::len),
        }
    }
}

/// Text generation.
#[derive(Debug, Clone, Default, Deserialize)]
pub struct Generate {
    /// The user's prompt; the model's chat template is put around it.
    pub prompt: String,
    /// Most tokens to generate, at least 1.
    pub max_tokens: usize,
    /// The choice of the next token.
    pub sampling: Sampling,
    /// Generation ends before the first of these strings; none of them is part of the result.
    pub stop: Vec<String>,
    /// The constraint that the whole answer must match; not together with `stop`.
    pub constraint: Option<Constraint>,
    /// The system message. An empty one keeps the chat template from adding its default.
    pub system: Option<String>,
    /// The messages before the prompt, of user and assistant in turn.
    pub history: Vec<Message>,
    /// Whether the model is to think before it answers, and its thoughts are part of the result. Without, it
    /// does not think where its chat template has a switch for that, and thoughts are left out of the result.
    /// An answer that has to match a constraint is given without thoughts.
    pub thinking: bool,
}

/// Text formats, from which the keys of results are made, leave out fields that were added later where they
/// are not used: such a request keeps the key that it has always had.
impl Serialize for Generate {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let whole = !serializer.is_human_readable();
        let Generate { prompt, max_tokens, sampling, stop, constraint, system, history, thinking } = self;
        let added = [whole || system.is_some(), whole || !history.is_empty(), whole || *thinking];
        let count = 5 + added.iter().filter(|added| **added).count();
        let mut fields = serializer.serialize_struct("Generate", count)?;
        fields.serialize_field("prompt", prompt)?;
        fields.serialize_field("max_tokens", max_tokens)?;
        fields.serialize_field("sampling", sampling)?;
        fields.serialize_field("stop", stop)?;
        fields.serialize_field("constraint", constraint)?;
        if added[0] {
            fields.serialize_field("system", system)?;
        }
        if added[1] {
            fields.serialize_field("history", history)?;
        }
        if added[2] {
            fields.serialize_field("thinking", thinking)?;
        }
        fields.end()
    }
}

/// Embedding of one text.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct Embed {
    /// The text; no chat template is put around it.
    pub text: String,
    /// The purpose of its vector.
    pub purpose: Purpose,
    /// Whether a text that is longer than the context is cut at its end; otherwise it is an error.
    pub truncate: bool,
    /// The prefix of the text, whatever its purpose; `None`: the one of the model's file.
    pub prompt: Option<String>,
    /// Number of elements of the vector that are wanted, which are then scaled to length 1; `None`: all.
    pub dimensions: Option<usize>,
}

/// Text formats leave out fields that were added later, as for [`Generate`].
impl Serialize for Embed {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let whole = !serializer.is_human_readable();
        let Embed { text, purpose, truncate, prompt, dimensions } = self;
        let added = [whole || prompt.is_some(), whole || dimensions.is_some()];
        let count = 3 + added.iter().filter(|added| **added).count();
        let mut fields = serializer.serialize_struct("Embed", count)?;
        fields.serialize_field("text", text)?;
        fields.serialize_field("purpose", purpose)?;
        fields.serialize_field("truncate", truncate)?;
        if added[0] {
            fields.serialize_field("prompt", prompt)?;
        }
        if added[1] {
            fields.serialize_field("dimensions", dimensions)?;
        }
        fields.end()
    }
}

impl Embed {
    /// A text to be found.
    pub fn passage(text: impl Into<String>) -> Embed {
        Embed {
            text: text.into(),
            purpose: Purpose::Passage,
            truncate: false,
            prompt: None,
            dimensions: None,
        }
    }

    /// A text to find others with.
    pub fn query(text: impl Into<String>, task: Option<String>) -> Embed {
        Embed { purpose: Purpose::Query { task }, ..Embed::passage(text) }
    }

    /// The text in the words of Qwen3-Embedding, which decoders that embed have in common: a query comes with
    /// its task, a passage is as it is.
    pub(crate) fn instructed(&self) -> Cow<'_, str> {
        match (&self.prompt, &self.purpose) {
            (None, Purpose::Passage | Purpose::Document | Purpose::Similarity | Purpose::Classification) => {
                Cow::Borrowed(&self.text)
            }
            (Some(_), _) | (None, Purpose::Query { .. }) => Cow::Owned(self.instruction() + &self.text),
        }
    }

    /// The prefix that [`Embed::instructed`] puts before the text.
    pub(crate) fn instruction(&self) -> String {
        match (&self.prompt, &self.purpose) {
            (Some(prompt), _) => prompt.clone(),
            (None, Purpose::Passage | Purpose::Document | Purpose::Similarity | Purpose::Classification) => {
                String::new()
            }
            (None, Purpose::Query { task }) => {
                format!("Instruct: {}\nQuery:", task.as_deref().unwrap_or(DEFAULT_TASK))
            }
        }
    }
}

/// Scoring of one document. Requests of one query compute what they have in common once.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Rerank {
    /// The query.
    pub query: String,
    /// The document whose relevance is scored.
    pub document: String,
    /// The criterion of relevance, in the words of an instruction; encoders ignore it.
    pub task: String,
    /// Whether a document that is longer than the context has room for is cut at its end; otherwise it is an
    /// error.
    pub truncate: bool,
    /// The prefixes of query and document where their vectors are compared.
    pub prompts: Prompts,
}

impl Rerank {
    /// The document where its vector is compared.
    pub(crate) fn document_by_itself(&self) -> Embed {
        let prompt = self.prompts.passage.clone();
        Embed {
            truncate: self.truncate,
            prompt,
            purpose: Purpose::Document,
            ..Embed::passage(&self.document)
        }
    }
}

/// The likelihoods of some answers to a prompt. The prompt is computed once, and so is each token that
/// answers begin with in common.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Likelihoods {
    /// The user's prompt; the model's chat template is put around it.
    pub prompt: String,
    /// The system message. An empty one keeps the chat template from adding its default.
    pub system: Option<String>,
    /// The beginning that all answers have in common, as if the model had generated it already.
    pub begin: String,
    /// The answers, at least one. None of them is empty.
    pub answers: Vec<String>,
    /// Whether others will ask for just the same, so that the engine keeps the result.
    pub repeated: bool,
}

impl Work {
    /// The same work, with the model's prefixes for its texts.
    pub fn prompted(self, prompts: &Prompts) -> Work {
        match self {
            Work::Embed(mut how) => {
                how.prompt = prompts.before(&how.purpose).map(Cow::into_owned);
                Work::Embed(how)
            }
            Work::Rerank(mut how) => {
                how.prompts = Prompts {
                    query: prompts.before(&Purpose::Query { task: None }).map(Cow::into_owned),
                    passage: prompts.passage.clone(),
                };
                Work::Rerank(how)
            }
            other => other,
        }
    }
}

/// The vector that is wanted of a text's, of length 1 as that is.
///
/// # Errors
/// [`Error::InvalidRequest`] for more elements than it has, and for none.
pub(crate) fn shortened(
    work: &Work,
    mut vector: Vec<f32>,
    instructions: Instructions,
) -> Result<Vec<f32>, Error> {
    let Work::Embed(Embed { dimensions: Some(dimensions), .. }) = work else { return Ok(vector) };
    if !(1..=vector.len()).contains(dimensions) {
        let message = format!("{dimensions} dimensions are wanted of vectors that have {}", vector.len());
        return Err(Error::InvalidRequest(message));
    }
    vector.truncate(*dimensions);
    Ok(normalise(instructions, vector))
}

#[cfg(test)]
mod tests {
    use super::{Embed, Work};
    use crate::Prompts;

    #[test]
    fn each_text_gets_the_prompt_of_its_purpose() {
        let prompts = Prompts { query: Some("query: ".to_owned()), passage: Some("passage: ".to_owned()) };
        let of = |embed: Embed| match Work::Embed(embed).prompted(&prompts) {
            Work::Embed(how) => how.prompt,
            _ => None,
        };
        assert_eq!(of(Embed::passage("x")).as_deref(), Some("passage: "));
        assert_eq!(of(Embed::query("x", None)).as_deref(), Some("query: "));
        let Work::Embed(plain) = Work::Embed(Embed::passage("x")).prompted(&Prompts::default()) else {
            panic!()
        };
        assert_eq!(plain, Embed::passage("x"));
    }
}
