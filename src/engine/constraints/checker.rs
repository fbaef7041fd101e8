//! The check of a finished answer: by the crates `jsonschema` and `regex`, which share no code with what guided it.

use jsonschema::{PatternOptions, Validator};
use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::ordering::ordered;
use super::schema::Graph;
use super::{Constraint, invalid};
use crate::Error;

/// Most bytes of a compiled regular expression, and of its cache.
const MAX_REGEX_BYTES: usize = 2 << 20;
/// Deepest nesting of groups in a regular expression.
const MAX_REGEX_DEPTH: u32 = 64;
/// Most characters of another library's message that are shown.
const MAX_REASON: usize = 300;

/// Checks answers.
pub(crate) enum Checker {
    Json(Box<(Validator, Graph)>),
    Regex(Regex),
    Choice(Vec<String>),
}

impl Checker {
    /// Of a constraint that is within the limits.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] where it makes no sense.
    pub(crate) fn new(constraint: &Constraint) -> Result<Checker, Error> {
        Ok(match constraint {
            Constraint::Json(schema) => {
                let mut schema = parse(schema)?;
                ordered(&mut schema)?;
                let graph = Graph::new(&schema)?;
                Checker::Json(Box::new((validator(&schema)?, graph)))
            }
            Constraint::Regex(pattern) => Checker::Regex(full_match(pattern)?),
            Constraint::Choice(choices) => Checker::Choice(choices.clone()),
        })
    }

    /// Whether the answer matches.
    ///
    /// # Errors
    /// [`Error::Mismatch`], without the answer.
    pub(crate) fn check(&self, answer: &str) -> Result<(), Error> {
        let mismatch = |reason: String| Err(Error::Mismatch { reason });
        match self {
            Checker::Json(json) => {
                let (validator, graph) = &**json;
                let document = match serde_json::from_str::<Value>(answer) {
                    Ok(document) => document,
                    Err(error) => return mismatch(format!("it is no JSON document: {error}")),
                };
                if !graph.is_checked_soon(&document) {
                    return mismatch("the schema applies to it in too many ways".to_owned());
                }
                // Not `validate`, which would say where: it takes longer than what was counted.
                if validator.is_valid(&document) {
                    return Ok(());
                }
                mismatch("the document does not conform to the schema".to_owned())
            }
            Checker::Regex(regex) if regex.is_match(answer) => Ok(()),
            Checker::Regex(_) => mismatch("the pattern does not match all of it".to_owned()),
            Checker::Choice(choices) if choices.iter().any(|choice| choice == answer) => Ok(()),
            Checker::Choice(_) => mismatch("it is none of the choices".to_owned()),
        }
    }
}

/// The schema as a value: an object or a boolean.
pub(super) fn parse(schema: &str) -> Result<Value, Error> {
    match serde_json::from_str(schema) {
        Ok(schema @ (Value::Object(_) | Value::Bool(_))) => Ok(schema),
        Ok(_) => invalid("the schema is neither an object nor a boolean"),
        Err(error) => invalid(format!("the schema is no JSON document: {error}")),
    }
}

/// Without anything that fetches what the schema refers to: it has to be complete.
fn validator(schema: &Value) -> Result<Validator, Error> {
    let patterns = PatternOptions::regex().size_limit(MAX_REGEX_BYTES).dfa_size_limit(MAX_REGEX_BYTES);
    jsonschema::options().with_pattern_options(patterns).build(schema).or_else(|error| {
        invalid(brief(&format!("the schema is invalid at \"{}\": {error}", error.instance_path())))
    })
}

/// The pattern, for a text from end to end.
fn full_match(pattern: &str) -> Result<Regex, Error> {
    let compile = |pattern: &str| {
        RegexBuilder::new(pattern)
            .size_limit(MAX_REGEX_BYTES)
            .dfa_size_limit(MAX_REGEX_BYTES)
            .nest_limit(MAX_REGEX_DEPTH)
            .build()
    };
    // By itself first: its errors are of the pattern as it was written, and its brackets close what they open.
    let whole = compile(pattern).and_then(|_| compile(&format!("\\A(?:{pattern})\\z")));
    whole.or_else(|error| invalid(format!("the pattern is invalid: {}", regex_reason(&error))))
}

/// The reason alone, without the pattern and an arrow into it.
fn regex_reason(error: &regex::Error) -> String {
    let text = error.to_string();
    brief(text.rsplit_once("error: ").map_or(text.as_str(), |(_, reason)| reason))
}

/// The beginning of a message, on one line.
pub(super) fn brief(text: &str) -> String {
    let mut brief: String = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((end, _)) = brief.char_indices().nth(MAX_REASON) {
        brief.truncate(end);
        brief.push('…');
    }
    brief
}
