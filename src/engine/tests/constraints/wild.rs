//! Schemas as users write them, with parts that no grammar can express.

use std::path::Path;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use steadytext_engine::{Config, Constraint, Error, Generate, Output, Sampling};

use super::{constrained, engine, run, text};

/// Whether a document conforms to a schema as it was written, formats included.
fn is_valid(document: &str, schema: &Value) -> Option<bool> {
    let validator = jsonschema::options().should_validate_formats(true).build(schema).ok()?;
    Some(serde_json::from_str(document).is_ok_and(|document| validator.is_valid(&document)))
}

/// Each has a part that is only checked, or is written in an unusual way.
fn schemas() -> Vec<(&'static str, Value)> {
    let other = |words: &[&str]| json!({ "enum": ["a", "b", "c"], "not": { "enum": words } });
    let long: Vec<String> = (0..9000).map(|i| format!("choice {i}")).collect();
    let member = |name: &str| json!({ "type": "object", "properties": { name: { "type": "boolean" } } });
    vec![
        ("not the first", other(&["a"])),
        ("not the second", other(&["b"])),
        ("not the third", other(&["c"])),
        ("only the third", other(&["a", "b"])),
        ("only the first", other(&["b", "c"])),
        (
            "an identifier inside",
            json!({
                "$id": "https://example.com/schemas/order",
                "type": "object",
                "properties": { "at": { "$ref": "place" }, "to": { "$ref": "/schemas/place#/$defs/x" } },
                "required": ["at", "to"],
                "$defs": { "p": { "$id": "place", "enum": ["here", "there"], "$defs": { "x": { "const": 1 } } } }
            }),
        ),
        (
            "an anchor",
            json!({ "items": { "$ref": "#one" }, "type": "array", "minItems": 1, "maxItems": 1, "$defs": { "a": { "$anchor": "one", "const": 7 } } }),
        ),
        (
            "dependent members",
            json!({
                "type": "object",
                "properties": { "a": { "type": "null" }, "b": { "type": "null" } },
                "required": ["a"], "dependentRequired": { "a": ["b"] }, "additionalProperties": false
            }),
        ),
        (
            "dependencies of draft 7",
            json!({
                "$schema": "http://json-schema.org/draft-07/schema#",
                "type": "object",
                "properties": { "a": { "type": "null" }, "b": { "type": "null" } },
                "required": ["a"], "dependencies": { "a": ["b"] }, "additionalProperties": false
            }),
        ),
        (
            "dependent schemas",
            json!({
                "type": "object",
                "properties": { "a": { "type": "null" }, "b": { "enum": [1, 2, 3] } },
                "required": ["a", "b"], "additionalProperties": false,
                "dependentSchemas": { "a": { "properties": { "b": { "maximum": 1 } } } }
            }),
        ),
        (
            "if, then, else",
            json!({
                "type": "object",
                "properties": { "kind": { "enum": ["x", "y"] }, "size": { "enum": [1, 2] } },
                "required": ["kind", "size"], "additionalProperties": false,
                "if": { "properties": { "kind": { "const": "x" } } },
                "then": { "properties": { "size": { "const": 2 } } },
                "else": { "properties": { "size": { "const": 1 } } }
            }),
        ),
        (
            "different items",
            json!({ "type": "array", "items": { "enum": [1, 2, 3] }, "minItems": 3, "maxItems": 3, "uniqueItems": true }),
        ),
        (
            "one of the items",
            json!({ "type": "array", "items": { "enum": ["a", "b"] }, "minItems": 1, "maxItems": 2, "contains": { "const": "b" } }),
        ),
        ("a format that nobody knows", json!({ "type": "string", "format": "mood", "maxLength": 8 })),
        ("looking ahead", json!({ "enum": ["a", "b", "c"], "pattern": "^(?!a)" })),
        ("much to choose from", json!({ "enum": long })),
        (
            "one of two alike",
            json!({ "oneOf": [member("a"), { "type": "object", "required": ["b"], "properties": { "b": { "type": "boolean" } } }], "additionalProperties": false, "properties": { "a": true, "b": true } }),
        ),
    ]
}

#[test]
fn what_a_grammar_cannot_say_is_tried_until_it_holds() {
    let schemas = schemas();
    let request = |(name, schema): &(&str, Value)| {
        constrained(&format!("Write about {name}"), 60, Constraint::Json(schema.to_string()))
    };
    let requests: Vec<Generate> = schemas.iter().map(request).collect();
    let shown = |results: Vec<Result<Output, Error>>| -> Vec<String> {
        results.into_iter().map(|result| format!("{result:?}")).collect()
    };
    let results = run(&engine(Config { threads: 2, ..Config::default() }), &requests, 16);
    for ((name, schema), result) in schemas.iter().zip(&results) {
        let Ok(output) = result else { panic!("{name}: {result:?}") };
        assert_eq!(is_valid(text(output).0, schema), Some(true), "{name}: {}", text(output).0);
    }
    // Going back leads to the same bytes, whatever else is computed, and however much of the prompt is kept.
    let expected = shown(results);
    for (together, prefix_reuse) in [(1, false), (3, true)] {
        let engine = engine(Config { max_running: together, prefix_reuse, ..Config::default() });
        for _ in 0..2 {
            assert!(shown(run(&engine, &requests, together)) == expected, "{together} together");
        }
    }
}

#[test]
fn what_never_holds_fails_after_some_trials() {
    let engine = engine(Config::default());
    let never = json!({ "type": "object", "properties": { "a": { "type": "string" } }, "required": ["a"], "not": { "required": ["a"] } });
    let single = json!({ "const": 1, "not": { "const": 1 } });
    for schema in [never, single] {
        let results = run(&engine, &[constrained("x", 40, Constraint::Json(schema.to_string()))], 1);
        assert!(matches!(results[0], Err(Error::Mismatch { .. })), "{schema}: {:?}", results[0]);
    }
}

/// Goes through the folder that `SCHEMAS` names, takes one schema in as many as `EVERY` says, and prints the
/// results.
#[test]
#[ignore = "it is a measurement: scripts/bench-schemas.sh"]
fn a_folder_of_schemas() {
    let folder = std::env::var("SCHEMAS").expect("SCHEMAS names a folder");
    let every = std::env::var("EVERY").map_or(1, |every| every.parse().unwrap());
    let mut paths: Vec<_> =
        std::fs::read_dir(Path::new(&folder)).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    let texts: Vec<String> =
        paths.iter().step_by(every).filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    let engine = engine(Config { threads: 2, ..Config::default() });
    let request = |text: &String| {
        let how = constrained("Write a document about a small town.", 400, Constraint::Json(text.clone()));
        Generate { sampling: Sampling::default(), ..how }
    };
    let (mut complete, mut valid, mut refused, mut few, mut unfinished, mut mismatched) = (0, 0, 0, 0, 0, 0);
    let mut times = Vec::new();
    for text in &texts {
        let begun = Instant::now();
        let how = request(text);
        let first = run(&engine, &[Generate { max_tokens: 1, ..how.clone() }], 1).remove(0);
        times.push(begun.elapsed());
        if let Err(Error::InvalidRequest(reason)) = first {
            println!("refused: {reason}");
            refused += 1;
            continue;
        }
        match run(&engine, &[how], 1).remove(0) {
            Ok(output) => {
                complete += 1;
                let schema = serde_json::from_str(text).unwrap();
                match is_valid(super::text(&output).0, &schema) {
                    Some(true) => valid += 1,
                    Some(false) => println!("invalid: {}", super::text(&output).0),
                    None => println!("the schema cannot be checked as it is written"),
                }
            }
            Err(Error::TooFewTokens { .. }) => few += 1,
            Err(Error::Unfinished { .. }) => unfinished += 1,
            Err(Error::Mismatch { reason }) => {
                println!("no match: {reason}");
                mismatched += 1;
            }
            Err(error) => println!("failed: {error}"),
        }
    }
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or(Duration::ZERO);
    println!(
        "{} schemas: {complete} complete, {valid} of them valid; {refused} refused, {few} need more than 400 tokens, \
         {unfinished} unfinished, {mismatched} match nothing that was tried",
        texts.len()
    );
    println!(
        "compiled in {:.1?} in the median, {:.1?} in the 99th percentile, {:.1?} at most",
        at(50),
        at(99),
        times.last().copied().unwrap_or_default()
    );
}
