//! The order of an object's members: `propertyOrdering`, a list of names in a schema, which come first and in
//! this order in the document; the others follow in the order of `properties`. A value of type jsonb keeps no
//! order of its own.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::invalid;
use crate::Error;

const KEYWORD: &str = "propertyOrdering";
/// Keywords whose values are documents rather than schemas.
const DOCUMENTS: [&str; 4] = ["const", "enum", "default", "examples"];
/// Keywords whose values are schemas by names of their own.
const SCHEMAS_BY_NAME: [&str; 6] =
    ["properties", "patternProperties", "$defs", "definitions", "dependentSchemas", "dependencies"];

/// Puts the properties of all schemas in a schema, whose nesting is bounded, into the order that it asks for.
///
/// # Errors
/// [`Error::InvalidRequest`] where a list has anything but names of properties, or one of them twice.
pub(super) fn ordered(schema: &mut Value) -> Result<(), Error> {
    match schema {
        Value::Array(items) => items.iter_mut().try_for_each(ordered),
        Value::Object(keywords) => {
            // A property may have this name, too: then it is no list.
            if let Some(names) = keywords.get(KEYWORD).and_then(Value::as_array).cloned() {
                order(keywords, &names)?;
                keywords.shift_remove(KEYWORD);
            }
            keywords.iter_mut().try_for_each(|(keyword, value)| match value {
                // Their names are not keywords.
                Value::Object(schemas) if SCHEMAS_BY_NAME.contains(&keyword.as_str()) => {
                    schemas.values_mut().try_for_each(ordered)
                }
                _ if DOCUMENTS.contains(&keyword.as_str()) => Ok(()),
                value => ordered(value),
            })
        }
        _ => Ok(()),
    }
}

fn order(keywords: &mut Map<String, Value>, names: &[Value]) -> Result<(), Error> {
    let Some(Value::Object(properties)) = keywords.get_mut("properties") else {
        return invalid("the schema has propertyOrdering where it has no properties");
    };
    let mut seen = HashSet::new();
    for name in names {
        match name.as_str() {
            Some(name) if !properties.contains_key(name) => {
                return invalid("propertyOrdering names something that is not among the properties");
            }
            Some(name) if seen.insert(name) => {}
            Some(_) => return invalid("propertyOrdering names a property twice"),
            None => return invalid("propertyOrdering has something else than names"),
        }
    }
    let mut rest = std::mem::take(properties);
    for name in names.iter().filter_map(Value::as_str) {
        if let Some(property) = rest.get_mut(name) {
            properties.insert(name.to_owned(), property.take());
        }
    }
    rest.retain(|name, _| !seen.contains(name.as_str()));
    properties.append(&mut rest);
    Ok(())
}

/// Adds the keyword wherever PostgreSQL's type jsonb, which orders names by their length and then by their
/// bytes, would lose the order in which properties are written. Returns whether it was added anywhere.
pub fn keep_written_order(schema: &mut Value) -> bool {
    match schema {
        Value::Array(items) => items.iter_mut().fold(false, |added, item| keep_written_order(item) | added),
        Value::Object(keywords) => {
            let mut added = false;
            if !keywords.get(KEYWORD).is_some_and(Value::is_array)
                && let Some(names) = keywords.get("properties").and_then(forgotten_order)
            {
                keywords.insert(KEYWORD.to_owned(), names);
                added = true;
            }
            for (keyword, value) in keywords.iter_mut() {
                added |= match value {
                    // Their names are not keywords.
                    Value::Object(schemas) if SCHEMAS_BY_NAME.contains(&keyword.as_str()) => {
                        schemas.values_mut().fold(false, |added, schema| keep_written_order(schema) | added)
                    }
                    _ if DOCUMENTS.contains(&keyword.as_str()) => false,
                    value => keep_written_order(value),
                };
            }
            added
        }
        _ => false,
    }
}

/// The names of properties in their order, where jsonb would order them otherwise.
fn forgotten_order(properties: &Value) -> Option<Value> {
    let names: Vec<&String> = properties.as_object()?.keys().collect();
    let is_kept = names.is_sorted_by_key(|name| (name.len(), name.as_bytes()));
    (!is_kept).then(|| names.into_iter().cloned().collect())
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::{keep_written_order, ordered};

    fn result(mut schema: Value) -> Option<String> {
        ordered(&mut schema).ok().map(|()| schema["properties"].to_string())
    }

    #[test]
    fn listed_properties_come_first_in_their_order_and_the_others_stay() {
        let schema = json!({"properties": {"a": 1, "b": 2, "c": 3, "d": 4}, "propertyOrdering": ["d", "b"]});
        assert_eq!(result(schema).unwrap(), r#"{"d":4,"b":2,"a":1,"c":3}"#);
        let none = json!({"properties": {"b": 1, "a": {}}});
        assert_eq!(result(none).unwrap(), r#"{"b":1,"a":{}}"#);
    }

    #[test]
    fn it_holds_inside_of_schemas_and_not_of_documents() {
        let inner = json!({"properties": {"a": 1, "b": 2}, "propertyOrdering": ["b"]});
        let schema =
            json!({"properties": {"x": {"items": [inner.clone()]}, "propertyOrdering": {"const": inner}}});
        let text = result(schema).unwrap();
        assert!(text.contains(r#""items":[{"properties":{"b":2,"a":1}"#), "{text}");
        assert!(text.contains(r#""const":{"properties":{"a":1,"b":2}"#), "{text}");
    }

    #[test]
    fn it_holds_for_properties_that_are_called_as_keywords_are() {
        let inner = json!({"properties": {"a": 1, "b": 2}, "propertyOrdering": ["b"]});
        for name in ["default", "const", "enum", "examples", "propertyOrdering"] {
            let text = result(json!({ "properties": { name: inner } })).unwrap();
            assert!(text.contains(r#""properties":{"b":2,"a":1}"#), "{name}: {text}");
            let defined = json!({ "properties": {}, "$defs": { name: inner } });
            let mut schema = defined.clone();
            ordered(&mut schema).unwrap();
            assert_ne!(schema, defined);
            assert_eq!(schema["$defs"][name].to_string(), r#"{"properties":{"b":2,"a":1}}"#);
        }
    }

    #[test]
    fn lists_that_make_no_sense_are_refused() {
        for list in [json!([1]), json!(["a", "a"]), json!(["x"])] {
            assert!(result(json!({"properties": {"a": 1}, "propertyOrdering": list})).is_none());
        }
        assert!(result(json!({"propertyOrdering": []})).is_none());
    }

    #[test]
    fn an_order_that_jsonb_would_forget_is_written_down() {
        let kept = |schema: &str| {
            let mut schema = serde_json::from_str(schema).unwrap();
            let added = keep_written_order(&mut schema);
            (added, schema.to_string())
        };
        let written = r#"{"properties":{"reasoning":{"properties":{"b":1,"a":2}},"answer":{}}}"#;
        let with = r#"{"properties":{"reasoning":{"properties":{"b":1,"a":2},"propertyOrdering":["b","a"]},"answer":{}},"propertyOrdering":["reasoning","answer"]}"#;
        assert_eq!(kept(written), (true, with.to_owned()));
        for same in [
            r#"{"properties":{"a":1,"b":2,"aa":{}}}"#,
            r#"{"properties":{"b":1,"a":2},"propertyOrdering":["a"]}"#,
            r#"{"const":{"properties":{"b":1,"a":2}}}"#,
            // Properties of these names, which are no keywords.
            r#"{"properties":{"properties":{"type":"string"}}}"#,
            r#"{"$defs":{"properties":{"type":"string"}}}"#,
            "true",
        ] {
            assert_eq!(kept(same), (false, same.to_owned()));
        }
    }
}
