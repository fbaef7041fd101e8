//! Masking: a text with some of its words replaced by `[LABEL]`.
//!
//! The model does not write the text anew, it names the words: the other words stay as they were, by
//! construction. A long text is read piece by piece; words that are named in one piece are replaced in all.
//!
//! Invariant: the same words in the same places, whatever order the pieces came in.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::answer::unexpected;
use super::text_spans;
use super::values::{invalid, too_long};
use crate::pg::error::PgError;

/// Most labels, and most bytes of one.
const MAX_LABELS: usize = 50;
const MAX_LABEL_BYTES: usize = 128;
/// Most words that are named for a label in one piece, and most characters of each.
const MAX_NAMED: usize = 32;
const MAX_NAMED_CHARACTERS: usize = 200;
/// Tokens of an answer, besides one for each byte of its piece and of the labels.
const TOKENS: usize = 64;
const TOKENS_OF_LABEL: usize = 16;

const LABELS_HINT: &str = "Name what is to be masked in a word or two, as array['person', 'email address'].";

fn no_labels() -> PgError {
    PgError::raised("Labels array cannot be empty").hint(LABELS_HINT)
}

/// A text, and the labels of the words to mask in it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Masking {
    pub(super) text: String,
    labels: Vec<String>,
    /// The ends of the pieces.
    ends: Vec<usize>,
}

impl Masking {
    /// # Errors
    ///
    /// P0001 where there are no labels, 22023 for what is no label and for one that is there twice, 54000 for
    /// too much.
    pub(super) fn read(text: &str, labels: Option<&Value>) -> Result<Masking, PgError> {
        let labels = match labels {
            None => return Err(no_labels()),
            Some(Value::Array(labels)) if labels.is_empty() => return Err(no_labels()),
            Some(Value::Array(labels)) => labels,
            Some(_) => return Err(invalid("labels must be an array of texts").hint(LABELS_HINT)),
        };
        if labels.len() > MAX_LABELS {
            let count = labels.len();
            return Err(too_long(format!("there are {count} labels, at most {MAX_LABELS} are allowed"))
                .hint("Mask them with several calls."));
        }
        let mut read: Vec<String> = Vec::with_capacity(labels.len());
        for (index, label) in labels.iter().enumerate() {
            let number = index + 1;
            let label =
                label.as_str().ok_or_else(|| invalid("labels must be texts").hint("NULL is no label."))?;
            let label = label.trim();
            if label.is_empty() {
                return Err(invalid(format!("label {number} is empty")).hint(LABELS_HINT));
            }
            if label.len() > MAX_LABEL_BYTES {
                return Err(too_long(format!(
                    "label {number} has {} bytes, {MAX_LABEL_BYTES} are allowed",
                    label.len()
                ))
                .hint(LABELS_HINT));
            }
            if read.iter().any(|known| mark(known) == mark(label)) {
                return Err(invalid(format!("label {number} is the same as one before it"))
                    .hint("Case and blanks make no difference: leave one of them out."));
            }
            read.push(label.to_owned());
        }
        Ok(Masking { text: text.to_owned(), labels: read, ends: text_spans::ends(text) })
    }

    pub(super) fn len(&self) -> usize {
        self.ends.len()
    }

    pub(super) fn labels(&self) -> &[String] {
        &self.labels
    }

    pub(super) fn piece(&self, index: usize) -> &str {
        let begin = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.ends.get(index).and_then(|end| self.text.get(begin..*end)).unwrap_or_default()
    }

    /// Tokens that the answer about a piece may have.
    pub(super) fn max_tokens(&self, index: usize) -> usize {
        let labels: usize = self.labels.iter().map(|label| TOKENS_OF_LABEL + label.len()).sum();
        TOKENS + labels + self.piece(index).len()
    }

    /// The schema of the answers.
    pub(super) fn schema(&self) -> Value {
        let named = json!({
            "type": "array",
            "items": { "type": "string", "minLength": 1, "maxLength": MAX_NAMED_CHARACTERS },
            "maxItems": MAX_NAMED,
        });
        let properties: Map<String, Value> =
            self.labels.iter().map(|label| (label.clone(), named.clone())).collect();
        json!({
            "type": "object",
            "properties": properties,
            "propertyOrdering": self.labels,
            "required": self.labels,
            "additionalProperties": false,
        })
    }

    /// The text with what the answers name replaced.
    ///
    /// # Errors
    ///
    /// XX000 for an answer that is no document of the schema: a bug.
    pub(super) fn masked<'a>(&self, answers: impl Iterator<Item = &'a str>) -> Result<String, PgError> {
        let mut named: Vec<(String, usize)> = Vec::new();
        for answer in answers {
            let answer: Value = serde_json::from_str(answer).map_err(|_| unexpected())?;
            for (label, name) in self.labels.iter().enumerate() {
                let words = answer.get(name).and_then(Value::as_array).ok_or_else(unexpected)?;
                let words = words.iter().filter_map(Value::as_str).map(str::trim);
                named.extend(words.map(|words| (words.to_owned(), label)));
            }
        }
        Ok(text_spans::replaced(&self.text, named, |label| mark(&self.labels[label])))
    }
}

/// The replacement of masked words.
fn mark(label: &str) -> String {
    format!("[{}]", label.to_uppercase())
}
