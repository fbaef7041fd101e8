//! Texts that a model generates in a form that the caller relies on: documents of a schema, translations,
//! masked texts, lists of facts.
//!
//! The instruction is the system message, the same for all rows, and the text is the user's message.
//!
//! Invariant: an answer is whole. One that did not fit into its tokens is an error, not half an answer;
//! except for masked texts, whose words are replaced as far as the model names them.

use serde::Serialize;
use serde_json::{Value, json};
use steadytext_engine::{Constraint, Finish, Generate, Output, Work};

use super::answer::unexpected;
use super::json_text::without_zeros;
use super::masking::Masking;
use super::values::too_long;
use crate::pg::error::PgError;

/// A text, and what a model is to write about it.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct TextVerb {
    /// The system message.
    pub(super) system: String,
    /// The kind of the answer, with the text.
    pub(super) what: What,
    /// Most tokens of an answer.
    pub(super) max_tokens: usize,
}

/// The kinds of answers that a model generates.
#[derive(Debug, Clone, Serialize)]
pub(super) enum What {
    /// A document of a schema.
    Document { text: String, schema: String },
    /// The text in another language.
    Translation { text: String },
    /// A list of facts.
    Facts { text: String, max_facts: i64 },
    /// The text with some words replaced.
    Masked(Masking),
}

impl TextVerb {
    /// The number of subtasks.
    pub(super) fn len(&self) -> usize {
        match &self.what {
            What::Masked(masking) => masking.len(),
            _ => 1,
        }
    }

    /// The engine's work for subtask `index`.
    pub(super) fn work(&self, index: usize) -> Work {
        let (text, schema, max_tokens) = match &self.what {
            What::Document { text, schema } => (text.as_str(), Some(schema.clone()), self.max_tokens),
            What::Translation { text } => (text.as_str(), None, self.max_tokens),
            What::Facts { text, max_facts } => {
                (text.as_str(), Some(facts_schema(*max_facts).to_string()), self.max_tokens)
            }
            What::Masked(masking) => (
                masking.piece(index),
                Some(masking.schema().to_string()),
                self.max_tokens.min(masking.max_tokens(index)),
            ),
        };
        Work::Generate(Generate {
            prompt: text.to_owned(),
            max_tokens,
            constraint: schema.map(Constraint::Json),
            system: Some(self.system.clone()),
            ..Generate::default()
        })
    }

    /// The text that it is about.
    pub(super) fn text(&self) -> &str {
        match &self.what {
            What::Document { text, .. } | What::Translation { text } | What::Facts { text, .. } => text,
            What::Masked(masking) => &masking.text,
        }
    }

    /// The answer that the outputs make.
    ///
    /// # Errors
    ///
    /// 54000 for an answer that did not fit into its tokens; XX000 for an output of another kind than its
    /// work: a bug.
    pub(super) fn answer(&self, outputs: &[Output]) -> Result<String, PgError> {
        let written: Vec<&str> = outputs
            .iter()
            .map(|output| match output {
                Output::Text { finish, generated_tokens, out_of_context, .. } if self.is_cut(*finish) => {
                    Err(self.incomplete(*generated_tokens, *out_of_context))
                }
                Output::Text { text, .. } => Ok(text.as_str()),
                _ => Err(unexpected()),
            })
            .collect::<Result<_, _>>()?;
        let first = *written.first().ok_or_else(unexpected)?;
        match &self.what {
            What::Document { .. } => without_zeros(first).ok_or_else(unexpected),
            What::Translation { .. } => Ok(first.trim().to_owned()),
            What::Facts { max_facts, .. } => facts(first, *max_facts),
            What::Masked(masking) => masking.masked(written.into_iter()),
        }
    }

    /// Whether an answer that ended for this reason lacks something. A list of words to mask has as many
    /// tokens as its text, so that it only comes to its limit by words that are not there.
    fn is_cut(&self, finish: Finish) -> bool {
        match self.what {
            What::Masked(_) => false,
            What::Document { .. } | What::Translation { .. } | What::Facts { .. } => {
                matches!(finish, Finish::Length | Finish::Closed)
            }
        }
    }

    /// The error that an answer did not fit into its tokens. A document can always be closed with few of
    /// them, but with less in it than the text says.
    fn incomplete(&self, generated_tokens: usize, out_of_context: bool) -> PgError {
        let (what, hint) = match &self.what {
            What::Document { .. } => ("the document is", "Extract from the text in parts"),
            What::Translation { .. } => ("the translation is", "Translate the text in parts"),
            What::Facts { .. } => ("the facts are", "Extract from the text in parts"),
            What::Masked(_) => ("the list of words is", "Mask the text in parts"),
        };
        let hint = if out_of_context {
            format!("{hint}, raise pg_steadytext.context_length, or use a model with a longer context.")
        } else {
            format!("{hint}, or take a larger model: small ones may find no end.")
        };
        too_long(format!("{what} not complete after {generated_tokens} tokens")).hint(hint).lasting()
    }
}

/// The schema of a list of facts.
fn facts_schema(max_facts: i64) -> Value {
    json!({
        "type": "object",
        "properties": {
            "facts": {
                "type": "array",
                "items": { "type": "string", "minLength": 1, "maxLength": 500 },
                "maxItems": max_facts,
            },
        },
        "required": ["facts"],
        "additionalProperties": false,
    })
}

/// A list of facts, each of them once.
fn facts(answer: &str, max_facts: i64) -> Result<String, PgError> {
    let most = usize::try_from(max_facts).unwrap_or(0);
    let answer: Value = serde_json::from_str(answer).map_err(|_| unexpected())?;
    let given = answer.get("facts").and_then(Value::as_array).ok_or_else(unexpected)?;
    let mut facts: Vec<String> = Vec::new();
    for fact in given.iter().take(most).filter_map(Value::as_str) {
        let fact = fact.replace('\0', "").trim().to_owned();
        if !fact.is_empty() && !facts.contains(&fact) {
            facts.push(fact);
        }
    }
    Ok(json!({ "facts": facts }).to_string())
}
