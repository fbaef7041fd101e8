//! Hostile constraints.

use serde_json::{Map, Value, json};
use steadytext_engine::Constraint;

/// Names and constraints; some are refused, some cannot end, some are only slow.
pub(crate) fn corpus() -> Vec<(&'static str, Constraint)> {
    let json = |schema: Value| Constraint::Json(schema.to_string());
    let regex = |pattern: &str| Constraint::Regex(pattern.to_owned());
    let nested = |keyword: &str, depth: usize| {
        (0..depth).fold(json!({ "type": "string" }), |inner, _| match keyword {
            "allOf" | "anyOf" | "oneOf" => json!({ keyword: [inner.clone(), { "type": "null" }] }),
            "properties" => json!({ "type": "object", "properties": { "a": inner }, "required": ["a"] }),
            _ => json!({ keyword: inner }),
        })
    };
    let mut chain = Map::new();
    for i in 0..1500 {
        chain.insert(format!("a{i}"), json!({ "$ref": format!("#/$defs/a{}", i + 1) }));
    }
    chain.insert("a1500".to_owned(), json!({ "type": "integer" }));
    let mut ladder = Map::new();
    for i in 0..30 {
        let next = json!({ "$ref": format!("#/$defs/a{}", i + 1) });
        ladder.insert(format!("a{i}"), json!({ "anyOf": [next, next], "allOf": [next] }));
    }
    ladder.insert("a30".to_owned(), json!({ "type": "string", "maxLength": 3 }));
    let mut doubled = Map::new();
    for i in 0..45 {
        let next = json!({ "$ref": format!("#/$defs/a{}", i + 1) });
        doubled.insert(format!("a{i}"), json!({ "anyOf": [next, next] }));
    }
    doubled.insert("a45".to_owned(), json!({ "type": "object" }));
    let asking = |depth: usize| {
        (0..depth).fold(
            json!({ "type": "object" }),
            |inner, _| json!({ "anyOf": [inner, { "properties": { "a": true } }], "unevaluatedProperties": false }),
        )
    };
    let many: Vec<String> = (0..4000).map(|i| format!("value {i}")).collect();
    let properties: Map<String, Value> =
        (0..1500).map(|i| (format!("p{i}"), json!({ "type": "integer" }))).collect();
    let alternatives: Vec<String> = (0..700).map(|i| format!("{i:03}[a-z]*x")).collect();
    vec![
        ("a reference to itself", json(json!({ "$ref": "#" }))),
        ("itself or null", json(json!({ "anyOf": [{ "$ref": "#" }, { "type": "null" }] }))),
        ("all of itself", json(json!({ "allOf": [{ "$ref": "#" }, { "type": "object" }] }))),
        (
            "a circle",
            json(
                json!({ "$ref": "#/$defs/a", "$defs": { "a": { "$ref": "#/$defs/b" }, "b": { "$ref": "#/$defs/a" } } }),
            ),
        ),
        ("arrays of itself", json(json!({ "type": "array", "items": { "$ref": "#" }, "minItems": 1 }))),
        (
            "two trees at once",
            json(json!({
                "allOf": [{ "$ref": "#/$defs/t" }, { "$ref": "#/$defs/u" }],
                "$defs": {
                    "t": { "type": "object", "properties": { "c": { "$ref": "#/$defs/t" } } },
                    "u": { "type": "object", "properties": { "c": { "$ref": "#/$defs/u" } } }
                }
            })),
        ),
        ("a chain of references", json(json!({ "$ref": "#/$defs/a0", "$defs": chain }))),
        ("a ladder of references", json(json!({ "$ref": "#/$defs/a0", "$defs": ladder }))),
        (
            "unevaluated members of a ladder",
            json(json!({ "unevaluatedProperties": false, "$ref": "#/$defs/a0", "$defs": doubled })),
        ),
        (
            "unevaluated items of a ladder",
            json(json!({ "unevaluatedItems": false, "$ref": "#/$defs/a0", "$defs": doubled })),
        ),
        ("nested unevaluated members", json(asking(29))),
        (
            "many large patterns",
            json(
                json!({ "anyOf": (0..7000).map(|i| json!({ "pattern": format!("a\\p{{L}}{{40}}b{i}") })).collect::<Vec<_>>() }),
            ),
        ),
        (
            "many patterns of names",
            json(
                json!({ "patternProperties": (0..7000).map(|i| (format!("a\\p{{L}}{{40}}b{i}"), json!(true))).collect::<Map<_, _>>() }),
            ),
        ),
        ("a long pattern that is not regular", json(json!({ "pattern": "(?=x)\\p{L}{40}".repeat(9000) }))),
        ("a large enum", json(json!({ "enum": many }))),
        (
            "an enum of objects",
            json(json!({ "enum": (0..400).map(|i| json!({ "k": i, "v": [i] })).collect::<Vec<_>>() })),
        ),
        (
            "many properties",
            json(json!({ "type": "object", "properties": properties, "additionalProperties": false })),
        ),
        ("nothing", json(json!(false))),
        ("no number", json(json!({ "type": "integer", "minimum": 3, "maximum": 2 }))),
        (
            "required but impossible",
            json(json!({ "type": "object", "properties": { "a": false }, "required": ["a"] })),
        ),
        (
            "no end",
            json(json!({ "type": "object", "properties": { "a": { "$ref": "#" } }, "required": ["a"] })),
        ),
        ("nested properties", json(nested("properties", 25))),
        ("nested items", json(nested("items", 60))),
        ("nested anyOf", json(nested("anyOf", 29))),
        ("nested allOf", json(nested("allOf", 29))),
        ("nested oneOf", json(nested("oneOf", 29))),
        ("brackets", Constraint::Json("[".repeat(50_000))),
        (
            "many items",
            json(json!({ "type": "array", "minItems": 1_000_000_000u64, "items": { "type": "null" } })),
        ),
        (
            "few of many items",
            json(json!({ "type": "array", "maxItems": 1_000_000_000u64, "items": { "type": "null" } })),
        ),
        ("many members", json(json!({ "type": "object", "minProperties": 100_000_000u64 }))),
        ("a long string", json(json!({ "type": "string", "minLength": 1_000_000_000u64 }))),
        (
            "a string of a length",
            json(json!({ "type": "string", "minLength": 5000, "maxLength": 6000, "pattern": "a.*b.*c" })),
        ),
        (
            "multiples",
            json(json!({ "type": "number", "multipleOf": 1e-30, "minimum": 1e-300, "maximum": 1e300 })),
        ),
        (
            "multiples of much",
            json(
                json!({ "allOf": [{ "multipleOf": 999_983 }, { "multipleOf": 1_000_003 }], "type": "integer" }),
            ),
        ),
        (
            "patterns of names",
            json(
                json!({ "type": "object", "patternProperties": { "(a|aa)+$": { "type": "null" }, "^(b|bb)*c": { "type": "null" } }, "minProperties": 2 }),
            ),
        ),
        ("a pattern inside", json(json!({ "type": "string", "pattern": "^(([a-z])+.)+[A-Z]([a-z])+$" }))),
        ("broken characters", Constraint::Json(format!("{{\"enum\": \"{}\"}}", "é".repeat(99)))),
        ("nested repetitions", regex("(((a{1,50}){1,50}){1,20})b")),
        ("stars of stars", regex("((a*)*b?)*c")),
        ("exponential states", regex("(a|b)*a(a|b){40}c")),
        ("a long repetition", regex("a{1,30000}b")),
        ("a forced repetition", regex("a{20000}")),
        ("all characters", regex("\\w{500}\\W{500}")),
        ("alternatives", regex(&alternatives.join("|"))),
        ("nested groups", regex(&format!("{}a{}", "(".repeat(60), ")*".repeat(60)))),
        ("an intersection of classes", regex("[\\p{L}&&[^\\p{Lu}]]{100}[[:^ascii:]]+")),
        ("nothing at all", regex("[^\\x00-\\x{10FFFF}]")),
        ("zero bytes", regex("\\x00{3}")),
        ("long choices", Constraint::Choice(vec!["a".repeat(30_000), format!("{}b", "a".repeat(29_999))])),
        (
            "choices that begin alike",
            Constraint::Choice((1..300).map(|i| "ab".repeat(i)).take(250).collect()),
        ),
        (
            "many choices",
            Constraint::Choice((0..1000).map(|i| format!("{}{i}", "x".repeat(i % 50))).collect()),
        ),
    ]
}
