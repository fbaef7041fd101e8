//! Facts: a list of them without those that repeat an earlier one.
//!
//! Two facts are the same where their texts are, or where the cosine of their vectors is high enough. The
//! text of a fact is the string that it is, or its member `text` or `fact`; of anything else it is the JSON.
//!
//! Invariant: facts that are kept are as they were given, to the byte, and in their order.

use std::collections::HashMap;

use serde::Serialize;
use serde::de::IgnoredAny;
use serde_json::Value;
use steadytext_engine::{Direction, Output};

use super::answer::unexpected;
use super::json_text::elements;
use super::values::{invalid, too_long};
use crate::pg::error::PgError;

/// Most facts.
const MAX_FACTS: usize = 500;

/// A list of facts.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Facts {
    /// The facts as JSON.
    given: Vec<String>,
    /// The different texts.
    texts: Vec<String>,
    /// The index of the text of each fact.
    text_of: Vec<usize>,
    /// Cosine from which on two texts are the same.
    threshold: f64,
}

impl Facts {
    /// Reads a list.
    ///
    /// # Errors
    ///
    /// P0001 for an empty list, 22023 for what is none, 54000 for too many.
    pub(super) fn read(json: &str, threshold: f64) -> Result<Facts, PgError> {
        if serde_json::from_str::<Vec<IgnoredAny>>(json).is_err() {
            return Err(invalid("facts must be a JSON array of facts")
                .hint("As [\"a fact\", \"another\"], or objects that have text or fact; of what steadytext_extract_facts() gives, its member facts.")
                .lasting());
        }
        let given = elements(json);
        if given.is_empty() {
            return Err(PgError::raised("Facts array cannot be empty")
                .hint("Give one fact at least, as [\"a fact\"].")
                .lasting());
        }
        if given.len() > MAX_FACTS {
            let count = given.len();
            return Err(too_long(format!("there are {count} facts, at most {MAX_FACTS} are compared"))
                .hint("Deduplicate them in parts, and what is left of these together.")
                .lasting());
        }
        let mut known = HashMap::new();
        let mut facts = Facts { given: Vec::new(), texts: Vec::new(), text_of: Vec::new(), threshold };
        for fact in given {
            let text = text(fact)?;
            let next = facts.texts.len();
            let place = *known.entry(text.clone()).or_insert(next);
            if place == next {
                facts.texts.push(text);
            }
            facts.text_of.push(place);
            facts.given.push(fact.to_owned());
        }
        Ok(facts)
    }

    /// The texts whose vectors are wanted.
    pub(super) fn texts(&self) -> &[String] {
        &self.texts
    }

    /// The facts as they were given.
    pub(super) fn given(&self) -> &[String] {
        &self.given
    }

    /// The facts that are left, as JSON.
    ///
    /// # Errors
    ///
    /// XX000 for an output that is no vector: a bug.
    pub(super) fn distinct(&self, outputs: &[Output]) -> Result<String, PgError> {
        let vectors = outputs.iter().map(|output| match output {
            Output::Embedding(vector) => Ok(Direction::of(vector)),
            _ => Err(unexpected()),
        });
        let vectors = vectors.collect::<Result<Vec<Direction<'_>>, _>>()?;
        let mut kept: Vec<Direction<'_>> = Vec::new();
        let mut seen = vec![false; self.texts.len()];
        let mut left: Vec<&str> = Vec::new();
        for (fact, place) in self.given.iter().zip(&self.text_of) {
            if std::mem::replace(&mut seen[*place], true) {
                continue;
            }
            let vector = *vectors.get(*place).ok_or_else(unexpected)?;
            if !kept.iter().any(|before| before.cosine(&vector) >= self.threshold) {
                kept.push(vector);
                left.push(fact);
            }
        }
        Ok(format!("[{}]", left.join(", ")))
    }
}

fn text(fact: &str) -> Result<String, PgError> {
    let value: Value = serde_json::from_str(fact).map_err(|_| {
        invalid("a fact is nested too deeply, or has a number out of range")
            .hint("Give facts as texts, or as objects that have text or fact.")
            .lasting()
    })?;
    let said = match &value {
        Value::String(text) => Some(text),
        Value::Object(members) => ["text", "fact"].iter().find_map(|name| match members.get(*name) {
            Some(Value::String(text)) => Some(text),
            _ => None,
        }),
        _ => None,
    };
    Ok(said.filter(|text| !text.trim().is_empty()).map_or_else(|| fact.to_owned(), String::clone))
}
