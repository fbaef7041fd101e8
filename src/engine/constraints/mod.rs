//! Answers that match a JSON schema, a regular expression or one of some choices, by llguidance: before each
//! token is chosen, all tokens are masked out that no such answer continues with.
//!
//! A [`Constraint`] comes with a request. The model's [`Grammars`] compile it into a [`Grammar`], which later
//! requests find again, and each request follows it with its own [`Matcher`]. Masks of patterns and choices
//! come from their automaton ([`regular`]), which needs no parser and is faster. The finished answer is
//! checked once more by other code ([`Checker`]), as the last line of defence.
//!
//! Invariant: a matcher's state depends on its constraint and the tokens it was given, and on nothing else,
//! so that masks, forced tokens and failures are the same whatever else is running.
//!
//! Invariant: a user's constraint is bounded before any recursive code reads it, and all work on it is
//! bounded by counted steps: fuel, items, states, and bytes of automata.

#[doc(hidden)]
pub mod bench;
mod checker;
mod closing;
mod counting;
mod grammar;
mod guide;
mod matcher;
pub(crate) mod ordering;
mod pattern_size;
mod patterns;
mod plain;
mod regular;
mod schema;
mod spans;
#[cfg(test)]
mod tests;
mod tree;
mod trie;
mod unevaluated;

use serde::{Deserialize, Serialize};

pub(crate) use checker::Checker;
pub(crate) use grammar::Grammars;
pub(crate) use matcher::{GrammarPlace, Matcher, Taken};

use crate::Error;

/// Most bytes of a schema.
const MAX_SCHEMA_BYTES: usize = 256 << 10;
/// Deepest nesting of brackets in a schema.
const MAX_SCHEMA_DEPTH: usize = 64;
/// Most bytes of a pattern.
const MAX_PATTERN_BYTES: usize = 8 << 10;
/// Most steps to find that a text does not match a pattern, where undecided checks may be skipped: a tenth of
/// a second, or less.
const MAX_REFUTING_STEPS: u64 = 30_000_000;
/// Most choices.
const MAX_CHOICES: usize = 1000;
/// Most bytes of all choices.
const MAX_CHOICES_BYTES: usize = 64 << 10;

/// The constraint that a whole answer has to match.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Constraint {
    /// A JSON document that conforms to this schema, which is JSON itself.
    Json(String),
    /// A text that this regular expression matches from end to end.
    Regex(String),
    /// One of these texts, verbatim.
    Choice(Vec<String>),
}

impl Constraint {
    /// Bytes of its text.
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Constraint::Json(text) | Constraint::Regex(text) => text.len(),
            Constraint::Choice(choices) => {
                choices.iter().map(|choice| choice.len() + size_of::<String>()).sum()
            }
        }
    }

    /// Checks sizes and nesting, before any other code reads the constraint.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`].
    pub fn check_limits(&self) -> Result<(), Error> {
        match self {
            Constraint::Json(schema) => {
                check_bytes("the schema has", schema.len(), MAX_SCHEMA_BYTES)?;
                let depth = depth(schema);
                if depth > MAX_SCHEMA_DEPTH {
                    return invalid(format!("the schema is nested more than {MAX_SCHEMA_DEPTH} levels deep"));
                }
                Ok(())
            }
            Constraint::Regex(pattern) => {
                if pattern.is_empty() {
                    return invalid("the pattern is empty");
                }
                check_bytes("the pattern has", pattern.len(), MAX_PATTERN_BYTES)
            }
            Constraint::Choice(choices) => {
                if choices.is_empty() {
                    return invalid("there are no choices");
                }
                if choices.len() > MAX_CHOICES {
                    return invalid(format!(
                        "there are {} choices, at most {MAX_CHOICES} are allowed",
                        choices.len()
                    ));
                }
                if choices.iter().any(String::is_empty) {
                    return invalid("a choice is empty");
                }
                check_bytes("the choices have", choices.iter().map(String::len).sum(), MAX_CHOICES_BYTES)
            }
        }
    }

    /// Checks all that can be checked without a model and in little time. A constraint that passes may still
    /// be refused when a model's grammar is made of it.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`].
    pub fn check(&self) -> Result<(), Error> {
        self.check_limits()?;
        Checker::new(self).map(drop)
    }

    /// Checks an answer of another engine in the same way as those of this one.
    ///
    /// # Errors
    /// [`Error::Mismatch`], without the answer; those of [`Constraint::check`].
    pub fn check_answer(&self, answer: &str) -> Result<(), Error> {
        self.check_limits()?;
        Checker::new(self)?.check(answer, &[])
    }

    /// Whether an answer certainly does not match, as far as that can be found in little time. Checks that
    /// take longer are skipped: the author of the answer has to make them.
    pub fn refutes(&self, answer: &str) -> bool {
        let Ok(checker) = Checker::new(self) else { return false };
        match self {
            Constraint::Json(_) => {
                serde_json::from_str::<serde::de::IgnoredAny>(answer).is_err()
                    || checker.flaw(answer).is_some()
            }
            Constraint::Regex(pattern) => {
                patterns::most_steps(pattern, answer.len()) <= MAX_REFUTING_STEPS
                    && checker.check(answer, &[]).is_err()
            }
            Constraint::Choice(_) => checker.check(answer, &[]).is_err(),
        }
    }

    /// The schema of a document in the form that other engines take: its properties are in the wanted order,
    /// and `propertyOrdering`, which gives that order, is removed.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] for what is no schema.
    pub fn portable_schema(&self) -> Result<serde_json::Value, Error> {
        let Constraint::Json(schema) = self else { return invalid("there is no schema") };
        self.check_limits()?;
        let mut schema = checker::parse(schema)?;
        ordering::ordered(&mut schema)?;
        Ok(schema)
    }
}

fn check_bytes(what: &str, bytes: usize, limit: usize) -> Result<(), Error> {
    if bytes > limit { invalid(format!("{what} {bytes} bytes, at most {limit} are allowed")) } else { Ok(()) }
}

fn invalid<T>(reason: impl Into<String>) -> Result<T, Error> {
    Err(Error::InvalidRequest(reason.into()))
}

/// The depth of nested brackets in a JSON text, counted without a stack. For other texts the number has no
/// meaning.
fn depth(json: &str) -> usize {
    let (mut depth, mut deepest) = (0usize, 0);
    let (mut in_string, mut escaped) = (false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}
