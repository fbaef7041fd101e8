//! Whether a document conforms to a generated schema: written for these tests, so that no code of the engine
//! judges itself.

use serde_json::Value;

/// Knows the keywords that [`crate::made_up`] writes, and no others.
pub(crate) fn conforms(document: &Value, schema: &Value, root: &Value) -> bool {
    let Value::Object(schema) = schema else { return schema == &Value::Bool(true) };
    let number = |name: &str| schema.get(name).and_then(Value::as_f64);
    let length = |count: usize, least: &str, most: &str| {
        number(least).is_none_or(|least| count as f64 >= least)
            && number(most).is_none_or(|most| count as f64 <= most)
    };
    schema.iter().all(|(keyword, value)| match keyword.as_str() {
        "type" => match value.as_str().unwrap() {
            "boolean" => document.is_boolean(),
            "null" => document.is_null(),
            "integer" => document.as_f64().is_some_and(|number| number.fract() == 0.0),
            "number" => document.is_number(),
            "string" => document.is_string(),
            "array" => document.is_array(),
            "object" => document.is_object(),
            other => panic!("type {other}"),
        },
        "const" => document == value,
        "enum" => value.as_array().unwrap().iter().any(|one| same(document, one)),
        "minimum" => document.as_f64().is_none_or(|number| number >= value.as_f64().unwrap()),
        "maximum" => document.as_f64().is_none_or(|number| number <= value.as_f64().unwrap()),
        "minLength" | "maxLength" => {
            document.as_str().is_none_or(|text| length(text.chars().count(), "minLength", "maxLength"))
        }
        "pattern" => {
            let pattern = regex::Regex::new(value.as_str().unwrap()).unwrap();
            document.as_str().is_none_or(|text| pattern.is_match(text))
        }
        "minItems" | "maxItems" => {
            document.as_array().is_none_or(|items| length(items.len(), "minItems", "maxItems"))
        }
        "items" => {
            document.as_array().is_none_or(|items| items.iter().all(|item| conforms(item, value, root)))
        }
        "properties" => document.as_object().is_none_or(|object| {
            object
                .iter()
                .all(|(key, member)| value.get(key).is_none_or(|schema| conforms(member, schema, root)))
        }),
        "additionalProperties" => document
            .as_object()
            .is_none_or(|object| object.keys().all(|key| schema["properties"].get(key).is_some())),
        "required" => document.as_object().is_none_or(|object| {
            value.as_array().unwrap().iter().all(|key| object.contains_key(key.as_str().unwrap()))
        }),
        "anyOf" => value.as_array().unwrap().iter().any(|schema| conforms(document, schema, root)),
        "oneOf" => {
            value.as_array().unwrap().iter().filter(|schema| conforms(document, schema, root)).count() == 1
        }
        "$ref" => {
            conforms(document, root.pointer(value.as_str().unwrap().trim_start_matches('#')).unwrap(), root)
        }
        "$defs" => true,
        other => panic!("keyword {other}"),
    })
}

/// Equality of JSON Schema, to which 1 and 1.0 are the same.
fn same(a: &Value, b: &Value) -> bool {
    match (a.as_f64(), b.as_f64()) {
        (Some(a), Some(b)) => a == b,
        _ => a == b,
    }
}
