//! A bound for the work of compiling `unevaluatedProperties` and `unevaluatedItems`.
//!
//! For each schema with one of these keywords, the crate that checks documents compiles all schemas that
//! apply to the same part of the document once more, and through references as often as there are ways to
//! them: some lines of schema can lead to more of them than any memory holds. It can neither be interrupted
//! nor limited, and it recurses. So its walk is counted here before it begins, one step for each schema that
//! it would compile.
//!
//! Invariant: the count follows the crate's walk, so that a schema is refused for its shape alone.

use serde_json::Value;

use super::invalid;
use super::plain::{inside, is_draft, unescaped};
use crate::Error;

/// Keywords that ask which parts of a document other keywords have evaluated.
pub(super) const UNEVALUATED: [&str; 2] = ["unevaluatedProperties", "unevaluatedItems"];
/// Keywords whose schemas evaluate the same part of the document.
const SAME: [&str; 7] = ["allOf", "anyOf", "oneOf", "if", "then", "else", "dependentSchemas"];
/// Keywords whose schemas are compiled where the walk meets them for the first time.
const COMPILED: [&str; 9] = [
    "allOf",
    "anyOf",
    "oneOf",
    "if",
    "additionalProperties",
    "patternProperties",
    "unevaluatedProperties",
    "unevaluatedItems",
    "contains",
];
/// Most schemas that are compiled once more: a few microseconds and some kilobytes each.
const MAX_STEPS: usize = 20_000;
/// Deepest recursion of the walk: of the crate's, each level takes some kilobytes of the stack.
const MAX_DEPTH: usize = 250;
/// Schemas of a draft's own schema.
const STEPS_OF_DRAFT: usize = 50;

/// Checks that a plain schema, whose references lead to parts of it, can be compiled in little time and
/// memory.
///
/// # Errors
/// [`Error::InvalidRequest`].
pub(super) fn check(schema: &Value) -> Result<(), Error> {
    let mut walk = Walk { root: schema, steps: 0, depth: 0, pending: Vec::new() };
    let mut left = vec![schema];
    while let Some(schema) = left.pop() {
        if asks(schema) && walk.evaluated(schema, false).is_none() {
            return invalid(
                "the schema has unevaluatedProperties or unevaluatedItems beside too many references",
            );
        }
        inside(schema, &mut |_, schema| left.push(schema));
    }
    Ok(())
}

/// Whether a schema has one of the keywords.
pub(super) fn asks(schema: &Value) -> bool {
    UNEVALUATED.iter().any(|name| schema.get(name).is_some_and(|value| value != &Value::Bool(true)))
}

/// The crate's walk. Its methods return None where there is too much of it.
struct Walk<'a> {
    root: &'a Value,
    steps: usize,
    depth: usize,
    /// The schemas whose evaluations are being compiled: a reference to one of them ends the walk.
    pending: Vec<&'a Value>,
}

impl<'a> Walk<'a> {
    fn enter(&mut self, steps: usize) -> Option<()> {
        self.steps += steps;
        self.depth += 1;
        (self.steps <= MAX_STEPS && self.depth <= MAX_DEPTH).then_some(())
    }

    /// A schema is compiled with all schemas inside it.
    fn compiled(&mut self, schema: &'a Value) -> Option<()> {
        self.enter(1)?;
        let mut all = Some(());
        inside(schema, &mut |_, schema| all = all.and_then(|()| self.compiled(schema)));
        all?;
        if asks(schema) {
            self.evaluated(schema, false)?;
        }
        self.depth -= 1;
        Some(())
    }

    /// The evaluations of a schema are compiled; `is_new` where the schema was not compiled at this place
    /// before, as behind a reference.
    fn evaluated(&mut self, schema: &'a Value, is_new: bool) -> Option<()> {
        self.enter(1)?;
        self.pending.push(schema);
        let mut all = Some(());
        inside(schema, &mut |keyword, schema| {
            if is_new && COMPILED.contains(&keyword) {
                all = all.and_then(|()| self.compiled(schema));
            }
            if SAME.contains(&keyword) {
                all = all.and_then(|()| self.evaluated(schema, false));
            }
        });
        all?;
        if let Some(Value::String(reference)) = schema.get("$ref") {
            self.referred(reference)?;
        }
        self.pending.pop();
        self.depth -= 1;
        Some(())
    }

    fn referred(&mut self, reference: &str) -> Option<()> {
        if is_draft(reference) {
            self.steps += STEPS_OF_DRAFT;
            return Some(());
        }
        let pointer = unescaped(reference.strip_prefix('#').unwrap_or_default());
        let Some(target) = self.root.pointer(&pointer) else { return Some(()) };
        if self.pending.iter().any(|pending| std::ptr::eq(*pending, target)) {
            return Some(());
        }
        self.evaluated(target, true)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::super::Constraint;
    use super::check;

    /// A row of schemas, each of which refers to the next one as `link` says; the first stands beside `asks`.
    fn row(count: usize, asks: &str, link: impl Fn(Value) -> Value) -> Value {
        let mut schemas: Map<String, Value> = (0..count)
            .map(|i| (format!("a{i}"), link(json!({ "$ref": format!("#/$defs/a{}", i + 1) }))))
            .collect();
        schemas.insert(format!("a{count}"), json!({ "type": "object" }));
        json!({ asks: false, "$ref": "#/$defs/a0", "$defs": schemas })
    }

    #[test]
    fn schemas_whose_parts_would_be_compiled_again_and_again_are_refused() {
        for asks in ["unevaluatedProperties", "unevaluatedItems"] {
            for keyword in ["anyOf", "oneOf", "allOf"] {
                let doubled = |next: Value| json!({ keyword: [next, next] });
                assert!(check(&row(45, asks, doubled)).is_err(), "{asks} {keyword}");
                assert!(check(&row(8, asks, doubled)).is_ok(), "{asks} {keyword}");
            }
            let branches = |next: Value| json!({ "if": next, "then": next, "else": next });
            assert!(check(&row(30, asks, branches)).is_err(), "{asks}");
            assert!(check(&row(150, asks, |next| next)).is_ok(), "{asks}");
        }
    }

    /// The way goes on through a property, where the graph sees no chain.
    #[test]
    fn a_long_way_through_properties_is_refused() {
        let through = |next: Value| {
            let mut asking = next;
            asking["unevaluatedProperties"] = json!(false);
            json!({ "anyOf": [{ "properties": { "x": asking } }] })
        };
        assert!(check(&row(5000, "unevaluatedProperties", through)).is_err());
        assert!(check(&row(20, "unevaluatedProperties", through)).is_ok());
    }

    #[test]
    fn circles_through_properties_end() {
        let tree = json!({
            "$ref": "#/$defs/node", "unevaluatedProperties": false,
            "$defs": { "node": {
                "allOf": [{ "$ref": "#/$defs/base" }],
                "properties": { "children": { "type": "array", "items": { "$ref": "#/$defs/node" } } },
                "unevaluatedProperties": false
            }, "base": { "properties": { "name": { "type": "string" } } } }
        });
        assert!(check(&tree).is_ok());
        Constraint::Json(tree.to_string()).check().unwrap();
        // Every schema refers to every other one, so that there are as many ways as orders of them.
        let other = |i: usize| json!({ "$ref": format!("#/$defs/a{i}"), "unevaluatedProperties": false });
        let all: Vec<Value> = (0..12).map(|i| json!({ "properties": { "x": other(i) } })).collect();
        let schemas: Map<String, Value> =
            (0..12).map(|i| (format!("a{i}"), json!({ "anyOf": all }))).collect();
        let circle = json!({ "$ref": "#/$defs/a0", "unevaluatedProperties": false, "$defs": schemas });
        assert!(check(&circle).is_err());
    }

    /// What is let through is compiled in little time and on a small stack.
    #[test]
    fn the_deepest_way_that_is_let_through_is_compiled() {
        let through = |next: Value| {
            let mut asking = next;
            asking["unevaluatedProperties"] = json!(false);
            json!({ "anyOf": [{ "properties": { "x": asking } }] })
        };
        let most = |asks: &str, link: &dyn Fn(Value) -> Value| {
            let fits = |count: &usize| Constraint::Json(row(*count, asks, link).to_string()).check().is_ok();
            (1..190).rev().find(fits).unwrap()
        };
        let small = std::thread::Builder::new().stack_size(4 << 20);
        let found = small.spawn(move || {
            let ways = most("unevaluatedProperties", &through);
            let plain = most("unevaluatedItems", &|next| next);
            (ways, plain)
        });
        let (ways, plain) = found.unwrap().join().unwrap();
        assert!(ways > 20 && plain > 100, "{ways} {plain}");
    }
}
