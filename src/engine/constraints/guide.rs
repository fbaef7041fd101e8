//! The part of a schema that guides an answer: as much of it as llguidance can be given. The rest is left to
//! the check of the finished answer.

use regex_syntax::Parser;
use serde_json::{Map, Value, json};

use super::plain::{is_draft, visit};

/// Depth of the schemas that guide where the whole is too large, and the members that each has beside the
/// required ones.
const SHALLOW: usize = 4;
const FEW: usize = 24;

/// The part of a schema that guides an answer. Each variant names what is left out, from little to nearly
/// all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SchemaPart {
    /// Keywords that have no meaning for a grammar.
    Whole,
    /// Patterns that are not regular.
    Regular,
    /// All patterns, formats and multiples.
    Shape,
    /// Schemas deep inside.
    Top,
    /// All but types and required members of the outermost.
    Outline,
}

pub(super) const PARTS: [SchemaPart; 5] =
    [SchemaPart::Whole, SchemaPart::Regular, SchemaPart::Shape, SchemaPart::Top, SchemaPart::Outline];

impl SchemaPart {
    /// This part of a plain schema. All documents that conform to the schema conform to it, except for
    /// [`SchemaPart::Top`], which leaves out some members that a document may have.
    pub(super) fn of(self, schema: &Value) -> Value {
        let mut part = schema.clone();
        // Drafts 4 to 7 ignore keywords beside a reference.
        let old =
            part.get("$schema").and_then(Value::as_str).is_some_and(|draft| !draft.contains("draft/20"));
        visit(&mut part, &mut |keywords| {
            let reference = keywords.get("$ref").and_then(Value::as_str).map(str::to_owned);
            match reference {
                Some(reference) if is_draft(&reference) => drop(keywords.shift_remove("$ref")),
                Some(_) if old && self != SchemaPart::Whole => keywords
                    .retain(|name, _| matches!(name.as_str(), "$ref" | "$schema" | "definitions" | "$defs")),
                _ => {}
            }
            match self {
                SchemaPart::Whole => {}
                SchemaPart::Regular => without_irregular(keywords),
                SchemaPart::Shape | SchemaPart::Top | SchemaPart::Outline => without_patterns(keywords),
            }
        });
        match self {
            SchemaPart::Top => cut(&mut part, SHALLOW),
            SchemaPart::Outline => part = outline(&part),
            SchemaPart::Whole | SchemaPart::Regular | SchemaPart::Shape => {}
        }
        part
    }
}

fn is_regular(pattern: &str) -> bool {
    Parser::new().parse(pattern).is_ok_and(|parsed| {
        let looks = parsed.properties().look_set();
        // llguidance supports anchors, but not word boundaries.
        !looks.contains_word()
    })
}

fn without_irregular(keywords: &mut Map<String, Value>) {
    if keywords.get("pattern").and_then(Value::as_str).is_some_and(|pattern| !is_regular(pattern)) {
        keywords.shift_remove("pattern");
    }
    if let Some(Value::Object(members)) = keywords.get_mut("patternProperties") {
        let before = members.len();
        members.retain(|pattern, _| is_regular(pattern));
        if members.len() < before {
            // Members that the omitted patterns allow must not be forbidden as additional ones.
            keywords.shift_remove("additionalProperties");
        }
    }
}

fn without_patterns(keywords: &mut Map<String, Value>) {
    for name in ["pattern", "format", "multipleOf"] {
        keywords.shift_remove(name);
    }
    if keywords.shift_remove("patternProperties").is_some() {
        keywords.shift_remove("additionalProperties");
    }
}

/// Leaves out items and members deeper than `levels`, and members beyond a number.
fn cut(schema: &mut Value, levels: usize) {
    let Value::Object(keywords) = schema else { return };
    if levels == 0 {
        let kept = |name: &str| matches!(name, "type" | "enum" | "const");
        keywords.retain(|name, _| kept(name));
        return;
    }
    let required: Vec<Value> =
        keywords.get("required").and_then(Value::as_array).cloned().unwrap_or_default();
    for (keyword, value) in keywords.iter_mut() {
        match (keyword.as_str(), value) {
            ("properties", Value::Object(members)) => {
                let mut others = 0;
                members.retain(|key, _| {
                    let needed = required.iter().any(|one| one == key);
                    others += usize::from(!needed);
                    needed || others <= FEW
                });
                members.values_mut().for_each(|member| cut(member, levels - 1));
            }
            // References lead to them from everywhere.
            ("$defs" | "definitions", Value::Object(members)) => {
                members.values_mut().for_each(|member| cut(member, levels.min(2)));
            }
            ("items" | "additionalItems" | "additionalProperties", value) if value.is_object() => {
                cut(value, levels - 1);
            }
            ("items" | "prefixItems" | "anyOf" | "oneOf" | "allOf", Value::Array(items)) => {
                items.iter_mut().for_each(|item| cut(item, levels - 1));
            }
            _ => {}
        }
    }
}

fn outline(schema: &Value) -> Value {
    let mut outline = Map::new();
    for name in ["type", "enum", "const", "required"] {
        if let Some(value) = schema.get(name) {
            outline.insert(name.to_owned(), value.clone());
        }
    }
    if outline.is_empty() { json!(true) } else { Value::Object(outline) }
}
