//! Generated constraints: schemas, patterns and choices that follow from a seed.

use serde_json::{Map, Value, json};
use steadytext_engine::Constraint;

use super::random::Random;

const WORDS: [&str; 12] = [
    "a",
    "id",
    "name",
    "größe",
    "a b",
    "say \"it\"",
    "back\\slash",
    "new\nline",
    "日本",
    "🙂",
    "$ref",
    "longer-key_0",
];

/// A constraint of one of the three kinds.
pub(crate) fn constraint(random: &mut Random) -> Constraint {
    match random.below(5) {
        0 => Constraint::Choice(choices(random)),
        1 | 2 => Constraint::Regex(pattern(random, 2)),
        _ => {
            let mut schema = schema(random, 3);
            if let Value::Object(schema) = &mut schema {
                schema.insert("$defs".to_owned(), json!({ "leaf": leaf(random) }));
            }
            Constraint::Json(schema.to_string())
        }
    }
}

fn choices(random: &mut Random) -> Vec<String> {
    let mut choices: Vec<String> = Vec::new();
    for _ in 0..2 + random.below(8) {
        // Many choices begin alike.
        let beginning =
            if choices.is_empty() || random.below(2) == 0 { String::new() } else { random.of(&choices) };
        choices.push(format!("{beginning}{}", random.of(&WORDS)));
    }
    choices
}

fn pattern(random: &mut Random, depth: usize) -> String {
    let atom = |random: &mut Random| match random.below(if depth == 0 { 6 } else { 8 }) {
        0 => "[a-z]".to_owned(),
        1 => "\\d".to_owned(),
        2 => random.of(&["x", "yes", "\\.", "ä", "/", "\"", "\\n", "日"]).to_owned(),
        3 => "[^a-z\\s]".to_owned(),
        4 => "\\w".to_owned(),
        5 => ".".to_owned(),
        6 => format!("({}|{})", pattern(random, depth - 1), pattern(random, depth - 1)),
        _ => format!("(?:{})", pattern(random, depth - 1)),
    };
    let mut pattern = String::new();
    for _ in 0..1 + random.below(3) {
        pattern.push_str(&atom(random));
        let least = random.below(3);
        match random.below(6) {
            0 => pattern.push('?'),
            1 => pattern.push_str(&format!("{{{least},{}}}", least + 1 + random.below(3))),
            2 => pattern.push('+'),
            _ => {}
        }
    }
    if depth == 2 && random.below(4) == 0 { format!("^{pattern}$") } else { pattern }
}

fn leaf(random: &mut Random) -> Value {
    match random.below(8) {
        0 => json!({ "type": "boolean" }),
        1 => json!({ "type": "null" }),
        2 => {
            let least = random.below(200) as i64 - 100;
            json!({ "type": "integer", "minimum": least, "maximum": least + random.below(1000) as i64 })
        }
        3 => json!({ "type": "number", "minimum": 0, "maximum": 1 + random.below(10) }),
        4 => json!({ "const": random.of(&WORDS) }),
        5 => {
            json!({ "enum": [random.of(&WORDS), random.below(100), null, [true], { "k": random.of(&WORDS) }] })
        }
        6 => json!({ "type": "string", "pattern": "^[a-f]{1,4}-\\d+$", "maxLength": 9 }),
        _ => {
            let least = random.below(3);
            json!({ "type": "string", "minLength": least, "maxLength": least + random.below(9) })
        }
    }
}

fn schema(random: &mut Random, depth: usize) -> Value {
    if depth == 0 {
        return leaf(random);
    }
    match random.below(8) {
        0 => leaf(random),
        1 => {
            let least = random.below(2);
            let items = schema(random, depth - 1);
            json!({ "type": "array", "items": items, "minItems": least, "maxItems": least + 1 + random.below(2) })
        }
        2 => json!({ "anyOf": [schema(random, depth - 1), schema(random, depth - 1)] }),
        3 => json!({ "oneOf": [schema(random, depth - 1), leaf(random)] }),
        4 => json!({ "$ref": "#/$defs/leaf" }),
        _ => {
            let mut properties = Map::new();
            for _ in 0..1 + random.below(4) {
                properties.insert(random.of(&WORDS).to_owned(), schema(random, depth - 1));
            }
            let required: Vec<&String> = properties.keys().filter(|_| random.below(3) > 0).collect();
            json!({
                "type": "object", "required": required, "properties": properties, "additionalProperties": false
            })
        }
    }
}
