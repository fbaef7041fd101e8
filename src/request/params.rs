//! The parameters of a request: which ones each type takes, how much they may hold, and how they are read.
//!
//! Invariant: a parameter that the type does not have is refused and never copied. Bytes, elements and depth
//! are known from lengths and counts that the value has at its head, and are looked at before anything is
//! made of it.

use pgrx::prelude::*;
use serde_json::{Map, Value};

use super::{batch_checks, constraint};
use crate::pg::catalog_cache::DatabaseConfig;
use crate::pg::error::PgError;
use crate::pg::jsonb::{self, Item, Jsonb, TreeError};

/// Most bytes of params as they are stored, besides the texts of a ranking or a conversation.
const MAX_BYTES: usize = 1 << 20;
/// Most elements of a schema or a list of choices.
const MAX_ELEMENTS: usize = 65_536;

/// The parameters of all types that generate.
const GENERATE: &[&str] = &[
    "max_tokens",
    "seed",
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repeat_penalty",
    "presence_penalty",
    "frequency_penalty",
    "logit_bias",
    "system_prompt",
    "messages",
    "use_cache",
    "model",
    "size",
    "default_model",
];
const EMBED: &[&str] =
    &["mode", "task", "truncate", "dimensions", "seed", "use_cache", "model", "size", "default_model"];
const RERANK: &[&str] = &[
    "query",
    "documents",
    "document_ids",
    "task",
    "return_scores",
    "truncate",
    "seed",
    "use_cache",
    "model",
    "size",
    "default_model",
];

/// The parameters of all verbs, those that classifications have besides, and those with a threshold.
const VERB: &[&str] = &["template", "seed", "use_cache", "model", "size", "default_model"];
/// Those of a summary, whose template cannot be replaced for one request.
const SUMMARIZE: &[&str] = &["seed", "use_cache", "model", "size", "default_model"];
const CLASSIFY: &[&str] = &["categories", "task_description", "descriptions", "examples", "method"];
const CLASSIFY_MULTI: &[&str] =
    &["categories", "task_description", "descriptions", "examples", "method", "threshold"];

/// Types that take all parameters that there are, besides those of a constraint.
const KNOWN_BY: [&str; 10] = [
    "generate",
    "embed",
    "rerank",
    "classify_multi",
    "extract",
    "translate",
    "mask",
    "extract_facts",
    "deduplicate_facts",
    "summarize",
];

/// The parameters of a type: its own, and those that it shares with other types. `None` for a type that this
/// version does not know.
fn parameters_of(request_type: &str) -> Option<(&'static [&'static str], &'static [&'static str])> {
    Some(match request_type {
        "generate" => (&["eos_string", "stop", "thinking"], GENERATE),
        "generate_json" => (&["schema"], GENERATE),
        "generate_regex" => (&["pattern"], GENERATE),
        "generate_choice" => (&["choices"], GENERATE),
        "embed" => (&["batch"], EMBED),
        "batch_embed" => (&[], EMBED),
        "rerank" | "batch_rerank" => (&[], RERANK),
        "if" | "if_score" | "score" | "similarity" | "analyze_sentiment" => (&[], VERB),
        "extract" => (&["fields", "schema"], VERB),
        "translate" => (&["to_language"], VERB),
        "mask" => (&["labels"], VERB),
        "extract_facts" => (&["max_facts"], VERB),
        "deduplicate_facts" => (&["similarity_threshold"], VERB),
        "classify" | "classify_scores" => (CLASSIFY, VERB),
        "classify_multi" => (CLASSIFY_MULTI, VERB),
        "summarize" => (&["metadata", "max_words"], SUMMARIZE),
        _ => return None,
    })
}

/// Whether requests of this type take a parameter of this name.
fn takes(request_type: &str, name: &str) -> bool {
    parameters_of(request_type).is_some_and(|(own, shared)| own.contains(&name) || shared.contains(&name))
}

/// Whether requests of this type have the texts of a ranking among their parameters.
fn is_ranking(request_type: &str) -> bool {
    matches!(request_type, "rerank" | "batch_rerank")
}

/// Refuses parameters that are too long as they are stored, by their length alone.
///
/// # Errors
///
/// 54000.
pub(crate) fn check_bytes(request_type: &str, bytes: usize, config: &DatabaseConfig) -> Result<(), PgError> {
    let limit = most_bytes(request_type, config);
    if bytes > limit {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!("params has {bytes} bytes, {limit} are allowed"),
        )
        .hint("Give less, or send several requests."));
    }
    Ok(())
}

fn most_bytes(request_type: &str, config: &DatabaseConfig) -> usize {
    let texts = if is_ranking(request_type) {
        batch_checks::most_bytes(config)
    } else if takes(request_type, "messages") {
        usize::try_from(config.max_prompt_bytes).unwrap_or(usize::MAX)
    } else {
        0
    };
    texts.saturating_add(MAX_BYTES)
}

/// Refuses a parameter that no type has, or that has no meaning for this one.
///
/// # Errors
///
/// 22023.
pub(crate) fn check_name(request_type: &str, name: &str) -> Result<(), PgError> {
    // An unknown type has an error of its own.
    let Some((own, shared)) = parameters_of(request_type) else { return Ok(()) };
    if takes(request_type, name) {
        return Ok(());
    }
    let taken: Vec<&str> = own.iter().chain(shared).copied().collect();
    let hint = format!("Parameters of {request_type}: {}.", taken.join(", "));
    let is_known = KNOWN_BY.iter().any(|request_type| takes(request_type, name));
    let owner = constraint::owner_of(name);
    if let Some(owner) = owner {
        return Err(invalid(format!("parameter {name} is for requests of type {owner}")).hint(hint));
    }
    if !is_known {
        let shown: String = name.chars().take(64).collect();
        return Err(invalid(format!("unknown parameter \"{shown}\"")).hint(hint));
    }
    if matches!(name, "eos_string" | "stop" | "thinking")
        && own.iter().any(|own| constraint::owner_of(own).is_some())
    {
        return Err(invalid(format!("{name} cannot be combined with {request_type}"))
            .hint("The constraint says how the answer begins and where it ends."));
    }
    Err(invalid(format!("requests of type {request_type} take no parameter {name}")).hint(hint))
}

/// The treatment of parameters that the type does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unused {
    /// The request is refused with an error.
    Refused,
    /// The parameter is passed over, because the row was let in when that was allowed.
    Skipped,
}

/// Reads the parameters of a request. A JSON null counts as absent, and a number with only zeros behind its
/// point is an integer.
///
/// # Errors
///
/// 22023 for parameters that the type does not have and for those that cannot be read, 54000 for too many of
/// them or too long ones. The ranges of values are checked later.
pub(crate) fn read(
    request_type: &str,
    params: Option<Jsonb<'_>>,
    unused: Unused,
    config: &DatabaseConfig,
) -> Result<Value, PgError> {
    let Some(params) = params else { return Ok(Value::Null) };
    check_bytes(request_type, params.len(), config)?;
    let object = match params.root().ok_or_else(unreadable)? {
        Item::Object(object) => object,
        Item::Null => return Ok(Value::Null),
        _ => return Err(no_object()),
    };
    let mut read = Map::new();
    for pair in object.pairs() {
        let (name, item) = pair.ok_or_else(unreadable)?;
        if !takes(request_type, name) {
            match unused {
                Unused::Refused => check_name(request_type, name)?,
                Unused::Skipped => {}
            }
        } else if !matches!(item, Item::Null) {
            read.insert(name.to_owned(), value(name, item, config)?);
        }
    }
    Ok(Value::Object(read))
}

/// Reads the value of an option, whose bytes are bounded.
///
/// # Errors
///
/// As [`read`].
pub(super) fn value_of_option(name: &str, item: Item<'_>) -> Result<Value, PgError> {
    match item {
        Item::Array(_) | Item::Object(_) => {
            jsonb::tree(item, MAX_ELEMENTS).map_err(|error| of_tree(name, error))
        }
        item => scalar(item),
    }
}

fn value(name: &str, item: Item<'_>, config: &DatabaseConfig) -> Result<Value, PgError> {
    match (name, item) {
        (
            "schema" | "choices" | "messages" | "stop" | "logit_bias" | "categories" | "descriptions"
            | "examples" | "fields" | "labels" | "metadata",
            item,
        ) => jsonb::tree(item, MAX_ELEMENTS).map_err(|error| of_tree(name, error)),
        ("documents" | "document_ids", Item::Array(documents)) => {
            batch_checks::check_count(documents.len(), "Documents", config)?;
            // Only texts in an array are documents: what others are does not matter.
            let text = |item: Option<Item<'_>>| match item {
                Some(Item::Text(text)) => Value::from(text),
                _ => Value::Null,
            };
            Ok(Value::Array(documents.values().map(text).collect()))
        }
        ("query", Item::Text(query)) => {
            batch_checks::check_length(query, || "the query".to_owned(), config)?;
            Ok(Value::from(query))
        }
        (_, item) => scalar(item),
    }
}

fn scalar(item: Item<'_>) -> Result<Value, PgError> {
    match item {
        Item::Null => Ok(Value::Null),
        Item::Bool(value) => Ok(Value::from(value)),
        Item::Text(text) => Ok(Value::from(text)),
        Item::Number(number) => {
            let float = || number.float().and_then(serde_json::Number::from_f64).map(Value::Number);
            number.integer().map(Value::from).or_else(float).ok_or_else(unreadable)
        }
        // The elements of arrays and objects are not read, because a request with them is refused.
        Item::Array(_) => Ok(Value::Array(Vec::new())),
        Item::Object(_) => Ok(Value::Object(Map::new())),
    }
}

fn of_tree(name: &str, error: TreeError) -> PgError {
    match error {
        TreeError::Elements => too_many(name),
        TreeError::Depth | TreeError::Unreadable => unreadable(),
    }
}

/// Refuses a parameter that has too many elements, before anything is made of them.
///
/// # Errors
///
/// 54000.
pub(crate) fn check_elements(name: &str, count: usize) -> Result<(), PgError> {
    if count > MAX_ELEMENTS { Err(too_many(name)) } else { Ok(()) }
}

fn too_many(name: &str) -> PgError {
    PgError::new(
        PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        format!("{name} has more than {MAX_ELEMENTS} elements"),
    )
    .hint("Give fewer, or send several requests.")
}

/// The error that params are something else than an object.
pub(crate) fn no_object() -> PgError {
    invalid("params must be a JSON object").hint("As {\"max_tokens\": 64}.")
}

/// Something in a value that cannot be read.
pub(super) fn unreadable() -> PgError {
    invalid("params is nested too deeply, or has a number out of range")
        .hint("Values nest 64 deep at most, and numbers are those of double precision.")
}

fn invalid(message: impl Into<String>) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
}
