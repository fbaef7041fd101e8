//! Categories as an answer, and their form in the queue and the cache.

use serde_json::{Map, Value};

/// Categories, best first.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Categories {
    /// The categories and, where they are wanted, their probabilities.
    pub(crate) lines: Vec<(String, Option<f64>)>,
}

impl Categories {
    /// The categories in the form of steadytext_queue.result: an array of objects with scores, or of names
    /// without.
    pub(crate) fn json(&self) -> String {
        let lines = self.lines.iter().map(|(name, score)| match score {
            Some(score) => {
                let mut object = Map::new();
                object.insert("category".into(), name.as_str().into());
                object.insert("score".into(), (*score).into());
                Value::Object(object)
            }
            None => Value::from(name.as_str()),
        });
        Value::Array(lines.collect()).to_string()
    }

    /// Reads the output of [`Categories::json`]; `None` for anything else.
    pub(crate) fn from_json(json: &str) -> Option<Categories> {
        let Value::Array(lines) = serde_json::from_str(json).ok()? else { return None };
        let line = |line: Value| match line {
            Value::String(name) => Some((name, None)),
            Value::Object(mut object) => {
                let score = object.get("score")?.as_f64()?;
                let Value::String(name) = object.remove("category")? else { return None };
                Some((name, Some(score)))
            }
            _ => None,
        };
        Some(Categories { lines: lines.into_iter().map(line).collect::<Option<_>>()? })
    }

    /// The names, in the form of steadytext_queue.results.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.lines.iter().map(|(name, _)| name.as_str())
    }
}
