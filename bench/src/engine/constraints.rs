//! Speed of generation along a constraint beside free generation, and the time of the masks alone.

use std::path::Path;
use std::time::Duration;

use steadytext_bench::{Report, percentile};
use steadytext_engine::Constraint;
use steadytext_engine::constraint_bench::Walker;
use steadytext_engine::gguf::Gguf;
use steadytext_engine::tokenizer::Tokenizer;

use crate::ours::Ours;
use crate::rounds::median;
use crate::settings::Settings;

const REQUESTS: usize = 8;
const PROMPT_TOKENS: usize = 128;
const STEPS: usize = 128;
/// Random walks along each constraint, and their longest.
const WALKS: u64 = 20;
const WALK_STEPS: usize = 200;

/// A document that goes on for longer than anybody measures, of the kind that is asked for most: records.
const RECORDS: &str = r#"{"type": "array", "minItems": 100000, "items": {"type": "object",
    "properties": {"title": {"type": "string", "minLength": 20, "maxLength": 120}, "kind": {"enum": ["table", "index", "view", "sequence"]},
        "rows": {"type": "integer", "minimum": 0}, "tags": {"type": "array", "items": {"type": "string", "maxLength": 30}, "maxItems": 4},
        "owner": {"anyOf": [{"type": "string", "maxLength": 40}, {"type": "null"}]}},
    "required": ["title", "kind", "rows", "tags", "owner"], "additionalProperties": false}}"#;

/// Measures what is wanted on one model.
pub(crate) fn measure(quant: &str, path: &Path, settings: &Settings, report: &mut Report) {
    let names = ["free_8", "constrained_8"].map(|name| format!("{name}.{quant}.tok_s"));
    let ratio = format!("constrained_ratio.{quant}");
    if names.iter().chain([&ratio]).any(|name| settings.wants(name)) {
        let mut ours = Ours::open(path, settings);
        let records = Constraint::Json(RECORDS.to_owned());
        // The trie is made and the schema compiled.
        ours.decode(1, 16, 64, Some(&records));
        let runs: Vec<(f64, f64)> = (0..settings.rounds)
            .map(|_| {
                let free = ours.decode(REQUESTS, PROMPT_TOKENS, STEPS, None);
                (free, ours.decode(REQUESTS, PROMPT_TOKENS, STEPS, Some(&records)))
            })
            .collect();
        report.add(&names[0], median(runs.iter().map(|run| run.0)), "tokens/s");
        report.add(&names[1], median(runs.iter().map(|run| run.1)), "tokens/s");
        report.add(&ratio, median(runs.iter().map(|run| run.1 / run.0)), "");
    }
    for (kind, samples) in [("json", schemas()), ("regex", patterns())] {
        let names = ["mask_p50_us", "mask_p99_us", "mask_max_us", "random_mask_p99_us", "compile_max_ms"]
            .map(|name| format!("{kind}_{name}.{quant}"));
        if !names.iter().any(|name| settings.wants(name)) {
            continue;
        }
        let gguf = Gguf::open(path).expect("the model can be opened");
        let tokenizer = Tokenizer::from_gguf(&gguf).expect("the model has a tokenizer");
        let walker = Walker::new(tokenizer).expect("the vocabulary serves");
        let (mut along, mut random, mut compile) = (Vec::new(), Vec::new(), Vec::new());
        for (constraint, texts) in &samples {
            compile.push(walker.compile(constraint).expect("it can be compiled"));
            for text in *texts {
                along.extend(walker.along(constraint, text).expect("the text matches"));
            }
            for seed in 1..=WALKS {
                random.extend(walker.random(constraint, seed, WALK_STEPS).expect("it can be followed"));
            }
        }
        let sorted = |times: Vec<Duration>| {
            let mut us: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
            us.sort_by(f64::total_cmp);
            us
        };
        let (along, random, compile) = (sorted(along), sorted(random), sorted(compile));
        report.add(&names[0], percentile(&along, 0.5), "us");
        report.add(&names[1], percentile(&along, 0.99), "us");
        report.add(&names[2], percentile(&along, 1.0), "us");
        report.add(&names[3], percentile(&random, 0.99), "us");
        report.add(&names[4], percentile(&compile, 1.0) / 1e3, "ms");
    }
}

/// A constraint, and texts that match it.
type Sample = (Constraint, &'static [&'static str]);

/// Schemas of the kind that people ask for.
fn schemas() -> Vec<Sample> {
    let records = RECORDS.replace("100000", "1");
    let json: [(&str, &[&str]); 6] = [
        (
            &records,
            &[
                r#"[{"title": "Orders that were placed in the last quarter", "kind": "table", "rows": 18234, "tags": ["sales", "finance"], "owner": "anna"}, {"title": "Customers by region and by segment", "kind": "view", "rows": 311, "tags": [], "owner": null}]"#,
                r#"[{"title": "An index over names, e-mail addresses & phone numbers", "kind": "index", "rows": 0, "tags": ["btree", "unique", "people"], "owner": "Jürgen Weiß"}, {"title": "Numbers for invoices, without gaps", "kind": "sequence", "rows": 1, "tags": ["billing"], "owner": "billing_service"}]"#,
                r#"[{"title": "顧客の注文と配送の状況を示す表です。毎晩、新しく作られます。", "kind": "table", "rows": 77, "tags": ["日本"], "owner": null}, {"title": "Everything else that nobody wants to own", "kind": "table", "rows": 4, "tags": ["misc", "legacy", "do not touch"], "owner": null}]"#,
            ],
        ),
        (
            "true",
            &[
                r#"{"a": [1, 2.5e3, {"b": null}], "text": "Line one.\nLine two: é and \"quotes\".", "ok": true}"#,
            ],
        ),
        (
            r#"{"type": "object", "properties": {"answer": {"type": "string"}, "confidence": {"type": "number", "minimum": 0, "maximum": 1}},
                "required": ["answer", "confidence"], "additionalProperties": false}"#,
            &[
                r#"{"answer": "VACUUM reclaims the space of dead rows, and updates the visibility map so that index-only scans can skip the heap.", "confidence": 0.93}"#,
                r#"{"answer": "No.", "confidence": 1}"#,
                r#"{"answer": "The parcel was delivered on 12 March at 09:41; the customer's signature (\"M. Okafor\") is on file.", "confidence": 0.5}"#,
            ],
        ),
        (
            r#"{"type": "object", "properties": {"when": {"type": "string", "format": "date-time"}, "where": {"type": "string", "pattern": "^[A-Z][a-z]+( [A-Z][a-z]+)*$"},
                "who": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 60}, "minItems": 1}}, "required": ["when", "where", "who"]}"#,
            &[
                r#"{"when": "2026-03-12T09:41:00Z", "where": "Rio De Janeiro", "who": ["Ada Lovelace", "Grace Hopper"]}"#,
                r#"{"when": "1999-12-31T23:59:59.5+02:00", "where": "Berlin", "who": ["the whole team of the second floor"]}"#,
            ],
        ),
        (
            r##"{"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20},
                "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}, "required": ["name", "children"], "additionalProperties": false}}}"##,
            &[
                r#"{"name": "animals", "children": [{"name": "mammals", "children": [{"name": "whales", "children": []}, {"name": "bats", "children": []}]}, {"name": "birds", "children": []}]}"#,
                r#"{"name": "root of everything", "children": [{"name": "a", "children": [{"name": "b", "children": [{"name": "c", "children": []}]}]}]}"#,
            ],
        ),
        (
            r#"{"type": "object", "patternProperties": {"^[a-z_]{1,20}$": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]}},
                "additionalProperties": false, "minProperties": 3}"#,
            &[
                r#"{"name": "Widget, large", "price": 19.99, "discount": null, "stock_level": 140}"#,
                r#"{"first_name": "Chidi", "last_name": "Anagonye", "age": 36, "employer": "St. John's University"}"#,
            ],
        ),
    ];
    json.into_iter().map(|(schema, texts)| (Constraint::Json(schema.to_owned()), texts)).collect()
}

/// And patterns.
fn patterns() -> Vec<Sample> {
    let patterns: [(&str, &[&str]); 4] = [
        (r"[A-Z][a-z]+ [A-Z][a-z]+, \d{1,3} years", &["Marie Curie, 66 years", "Jeanne Calment, 122 years"]),
        (
            r"(\w+ ){5,30}\w+\.",
            &[
                "The planner prefers an index scan when only a few rows match the condition.",
                "Größere Übungen für Anfänger sind im nächsten Kapitel des Buches zu finden.",
            ],
        ),
        (
            r"[a-z0-9._]{1,30}@[a-z0-9]{1,30}(\.[a-z]{2,10}){1,3}",
            &["ada.lovelace@example.com", "orders_2026@warehouse7.example.co.uk"],
        ),
        (
            r"SELECT [a-z_, ]{1,60} FROM [a-z_]{1,30}( WHERE [a-z_]+ (=|<|>) ('[^']*'|\d+))?;",
            &[
                "SELECT id, customer_name, total FROM orders WHERE total > 100;",
                "SELECT city FROM addresses WHERE country = 'Côte d’Ivoire';",
            ],
        ),
    ];
    patterns.into_iter().map(|(pattern, texts)| (Constraint::Regex(pattern.to_owned()), texts)).collect()
}
