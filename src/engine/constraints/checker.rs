//! The check of a finished answer: by the crates `jsonschema` and `regex`, which share no code with the
//! grammar that guided it.

use std::ops::Range;

use jsonschema::{Draft, ValidationError, Validator};
use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::ordering::ordered;
use super::patterns::{self, KnownPatterns, within};
use super::plain::plain;
use super::schema::Graph;
use super::spans::span;
use super::{Constraint, invalid};
use crate::{Error, Ticket};

/// Most bytes of a compiled regular expression, and of its cache.
const MAX_REGEX_BYTES: usize = 2 << 20;
/// Deepest nesting of groups in a regular expression.
const MAX_REGEX_DEPTH: u32 = 64;
/// Most steps that all patterns take together for one answer; some 300,000 a millisecond, and seldom as few
/// as 100,000.
const MAX_STEPS: u64 = 300_000_000;
/// The same, and the most schemas that are applied, for a check between two tokens.
const MAX_STEPS_BETWEEN: u64 = 1_000_000;
const MAX_CHECKS_BETWEEN: u64 = 2_000;
/// Digits of a number that is small enough in any case.
const MAX_DIGITS: usize = 250;
/// Most bytes of such an answer.
const MAX_BYTES_BETWEEN: usize = 64 << 10;
/// Most characters of another library's message that are shown.
const MAX_REASON: usize = 300;

/// Checks answers.
pub(crate) enum Checker {
    Json(Box<(Validator, Graph)>),
    Regex(Regex),
    Choice(Vec<String>),
}

impl Checker {
    /// The checker of a constraint that is within the limits.
    ///
    /// # Errors
    /// [`Error::InvalidRequest`] where it makes no sense.
    pub(crate) fn new(constraint: &Constraint) -> Result<Checker, Error> {
        Ok(match constraint {
            Constraint::Json(schema) => {
                let mut schema = parse(schema)?;
                ordered(&mut schema)?;
                let schema = plain(schema)?;
                let graph = Graph::new(&schema)?;
                Checker::Json(Box::new((validator(&schema)?, graph)))
            }
            Constraint::Regex(pattern) => Checker::Regex(full_match(pattern)?),
            Constraint::Choice(choices) => Checker::Choice(choices.clone()),
        })
    }

    /// Whether the check covers more than the grammar that has guided the answer.
    pub(crate) fn is_stricter(&self) -> bool {
        matches!(self, Checker::Json(_))
    }

    /// The part of an answer that does not match, if the answer can be checked within [`MAX_STEPS_BETWEEN`].
    pub(crate) fn flaw(&self, answer: &str) -> Option<Range<usize>> {
        let Checker::Json(json) = self else { return None };
        let (validator, graph) = &**json;
        if answer.len() > MAX_BYTES_BETWEEN {
            return None;
        }
        let document = match serde_json::from_str::<Value>(answer) {
            Ok(document) => document,
            // As a rule, a number that is too large. It stands on one line.
            Err(error) => {
                let end = error.column().min(answer.len());
                let number = |byte: &u8| byte.is_ascii_digit() || b"+-.eE".contains(byte);
                let digits = answer.as_bytes()[..end].iter().rev().take_while(|byte| number(byte)).count();
                return Some(end - digits..end - digits + digits.min(MAX_DIGITS));
            }
        };
        if !graph.is_checked_within(MAX_CHECKS_BETWEEN, &document) {
            return None;
        }
        let place = within(MAX_STEPS_BETWEEN, &[], || {
            if validator.is_valid(&document) {
                return None;
            }
            let error = validator.validate(&document).err()?;
            Some(error.instance_path().as_str().to_owned())
        });
        Some(span(answer, &place??))
    }

    /// Checks an answer. Ends early where all `tickets`, of the listeners of the request, are cancelled.
    ///
    /// # Errors
    /// [`Error::Mismatch`], without the answer.
    pub(crate) fn check(&self, answer: &str, tickets: &[Ticket]) -> Result<(), Error> {
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
                // `validate` would also name the wrong part of the document, but take longer than was
                // counted.
                match within(MAX_STEPS, tickets, || validator.is_valid(&document)) {
                    Some(true) => Ok(()),
                    Some(false) => mismatch("the document does not conform to the schema".to_owned()),
                    None => mismatch("its patterns would take too many steps".to_owned()),
                }
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

/// A validator that fetches nothing: the schema must contain all that it refers to. Formats are checked. A
/// schema that does not name its draft may be of an older one.
fn validator(schema: &Value) -> Result<Validator, Error> {
    let patterns = KnownPatterns::default();
    let newest = build(schema, None, &patterns);
    let older = || {
        let mut drafts = [Draft::Draft7, Draft::Draft4].into_iter();
        drafts.find_map(|draft| build(schema, Some(draft), &patterns).ok())
    };
    let known = schema.get("$schema").is_some();
    newest.or_else(|error| {
        let older = if known { None } else { older() };
        older.map_or_else(
            || invalid(brief(&format!("the schema is invalid at \"{}\": {error}", error.instance_path()))),
            Ok,
        )
    })
}

/// Patterns of strings are counted ([`Pattern`]). Patterns of names are matched in linear time if they are
/// regular, and in bounded time otherwise.
fn build(
    schema: &Value,
    draft: Option<Draft>,
    patterns: &KnownPatterns,
) -> Result<Validator, ValidationError<'static>> {
    let options = || {
        let patterns = patterns.clone();
        let options = jsonschema::options()
            .should_validate_formats(true)
            .with_keyword("pattern", move |_, pattern, _| Ok(Box::new(patterns.pattern(pattern)?)));
        match draft {
            Some(draft) => options.with_draft(draft),
            None => options,
        }
    };
    options().with_pattern_options(patterns::regular()).build(schema).or_else(|error| {
        options().with_pattern_options(patterns::of_names()).build(schema).map_err(|_| error)
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
    // The pattern is compiled by itself first, so that errors are about the user's text, and its brackets are
    // balanced. A comment at its end, under the flag `x`, goes on to the end of the line.
    let whole = compile(pattern).and_then(|_| {
        compile(&format!("\\A(?:{pattern})\\z")).or_else(|_| compile(&format!("\\A(?:{pattern}\n)\\z")))
    });
    whole.or_else(|error| invalid(format!("the pattern is invalid: {}", regex_reason(&error))))
}

/// The reason alone, without the pattern and the arrow into it.
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
