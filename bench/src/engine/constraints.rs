//! What is generated along a constraint beside what is generated freely, and the time of the masks alone.

use std::path::Path;

use steadytext_bench::{Report, percentile};
use steadytext_engine::gguf::Gguf;
use steadytext_engine::tokenizer::Tokenizer;
use steadytext_engine::{Constraint, constraint_bench};

use crate::ours::Ours;
use crate::rounds::median;
use crate::settings::Settings;

const REQUESTS: usize = 8;
const PROMPT_TOKENS: usize = 128;
const STEPS: usize = 128;
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
        let mut ours = Ours::open(path, settings.threads);
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
    for (kind, constraints) in [("json", schemas()), ("regex", patterns())] {
        let names = ["mask_p50_us", "mask_p99_us", "mask_max_us", "compile_max_ms"]
            .map(|name| format!("{kind}_{name}.{quant}"));
        if names.iter().any(|name| settings.wants(name)) {
            let gguf = Gguf::open(path).expect("the model can be opened");
            let tokenizer = Tokenizer::from_gguf(&gguf).expect("the model has a tokenizer");
            let (times, compilations) =
                constraint_bench::mask_times(tokenizer, &constraints, WALKS, WALK_STEPS)
                    .expect("they can be followed");
            let mut us: Vec<f64> = times.iter().map(|time| time.as_secs_f64() * 1e6).collect();
            us.sort_by(f64::total_cmp);
            let slowest = compilations.iter().max().map_or(0.0, |time| time.as_secs_f64() * 1e3);
            report.add(&names[0], percentile(&us, 0.5), "us");
            report.add(&names[1], percentile(&us, 0.99), "us");
            report.add(&names[2], percentile(&us, 1.0), "us");
            report.add(&names[3], slowest, "ms");
        }
    }
}

/// Some schemas of the kind that people ask for.
fn schemas() -> Vec<Constraint> {
    let json = [
        RECORDS,
        "true",
        r#"{"type": "object", "properties": {"answer": {"type": "string"}, "confidence": {"type": "number", "minimum": 0, "maximum": 1}},
            "required": ["answer", "confidence"], "additionalProperties": false}"#,
        r#"{"type": "object", "properties": {"when": {"type": "string", "format": "date-time"}, "where": {"type": "string", "pattern": "^[A-Z][a-z]+( [A-Z][a-z]+)*$"},
            "who": {"type": "array", "items": {"type": "string", "minLength": 1, "maxLength": 60}, "minItems": 1}}, "required": ["when", "where", "who"]}"#,
        r##"{"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {"name": {"type": "string", "maxLength": 20},
            "children": {"type": "array", "items": {"$ref": "#/$defs/node"}}}, "required": ["name", "children"], "additionalProperties": false}}}"##,
        r#"{"type": "object", "patternProperties": {"^[a-z_]{1,20}$": {"anyOf": [{"type": "string"}, {"type": "number"}, {"type": "null"}]}},
            "additionalProperties": false, "minProperties": 3}"#,
    ];
    json.iter().map(|schema| Constraint::Json((*schema).to_owned())).collect()
}

/// And some patterns.
fn patterns() -> Vec<Constraint> {
    let patterns = [
        r"[A-Z][a-z]+ [A-Z][a-z]+, \d{1,3} years",
        r"(\w+ ){5,30}\w+\.",
        r"[a-z0-9._]{1,30}@[a-z0-9]{1,30}(\.[a-z]{2,10}){1,3}",
        r"SELECT [a-z_, ]{1,60} FROM [a-z_]{1,30}( WHERE [a-z_]+ (=|<|>) ('[^']*'|\d+))?;",
    ];
    patterns.iter().map(|pattern| Constraint::Regex((*pattern).to_owned())).collect()
}
