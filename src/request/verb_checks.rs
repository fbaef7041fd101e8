//! Judgements: what a row or a call must say, and its limits.
//!
//! | type | text | params |
//! |---|---|---|
//! | if, if_score, score | prompt | |
//! | classify, classify_scores, classify_multi | prompt | categories, task_description, descriptions, examples, method; threshold of classify_multi |
//! | similarity | prompts: both texts | |

use std::collections::HashMap;

use serde_json::Value;

use super::asked::Asked;
use super::defaults;
use super::prompts;
use super::values::empty_text;
use super::verbs::{Category, Classification, Example, Verb, Wanted};
use crate::pg::error::PgError;
use pgrx::PgSqlErrorCode;

/// Most categories, most bytes of the name of one, and of all names together: what the engine compares.
const MAX_CATEGORIES: usize = 1000;
const MAX_CATEGORY_BYTES: usize = 1024;
const MAX_CATEGORIES_BYTES: usize = 1 << 16;
/// Most examples.
const MAX_EXAMPLES: usize = 100;

/// Whether requests of this type are judgements.
pub(crate) fn is_verb(request_type: &str) -> bool {
    matches!(request_type, "if" | "if_score" | "score" | "similarity") || is_classification(request_type)
}

/// Whether requests of this type are about categories.
pub(crate) fn is_classification(request_type: &str) -> bool {
    matches!(request_type, "classify" | "classify_scores" | "classify_multi")
}

/// Whether vectors answer a request.
pub(crate) fn is_by_vectors(request_type: &str, params: &Value) -> bool {
    request_type == "similarity" || params.get("method").and_then(Value::as_str) == Some("embed")
}

/// What a request asks for.
///
/// # Errors
///
/// P0001 where a text or the categories are missing, 22023 for parameters that cannot be used, 54000 for too much of them.
pub(crate) fn read(asked: Asked<'_>) -> Result<Verb, PgError> {
    let Asked { request_type, prompt, prompts: texts, .. } = asked;
    let text = prompt.unwrap_or_default();
    let is_empty = text.trim().is_empty();
    let question = |prompt: prompts::Prompt| prompt.render(minijinja::context! { prompt => text });
    match request_type {
        "if" | "if_score" | "score" if is_empty => Err(empty_text("Prompt cannot be empty")),
        "if" => Ok(Verb::If { prompt: question(prompts::IF)?, score: false }),
        "if_score" => Ok(Verb::If { prompt: question(prompts::IF)?, score: true }),
        "score" => Ok(Verb::Score { prompt: question(prompts::SCORE)? }),
        "similarity" => match texts {
            Some([Some(first), Some(second)]) => {
                if first.trim().is_empty() || second.trim().is_empty() {
                    return Err(empty_text("Text input cannot be empty"));
                }
                Ok(Verb::Similarity { texts: [(*first).to_owned(), (*second).to_owned()] })
            }
            _ => Err(invalid("requests of type similarity compare two texts")
                .hint("Put both of them into column prompts.")),
        },
        _ if is_empty => Err(empty_text("Text input cannot be empty")),
        _ => classification(request_type, text, asked.params).map(Verb::Classify),
    }
}

fn classification(request_type: &str, input: &str, params: &Value) -> Result<Classification, PgError> {
    let text = |name: &str| params.get(name).and_then(Value::as_str);
    let wanted = match request_type {
        "classify" => Wanted::Best,
        "classify_scores" => Wanted::Scores,
        _ => Wanted::AtLeast(params.get("threshold").and_then(Value::as_f64).unwrap_or(defaults::THRESHOLD)),
    };
    let names = categories(params.get("categories"), wanted)?;
    let descriptions = descriptions(params.get("descriptions"), names.len())?;
    let examples = examples(params.get("examples"), &names)?;
    let described = names.iter().zip(descriptions);
    let classification = Classification {
        input: input.to_owned(),
        categories: described
            .map(|(name, description)| Category { name: (*name).to_owned(), description })
            .collect(),
        task_description: text("task_description").map(|text| text.trim_end_matches([':', '.']).to_owned()),
        examples,
        by_vectors: is_by_vectors(request_type, params),
        wanted,
        prompt: if matches!(wanted, Wanted::AtLeast(_)) {
            prompts::CLASSIFY_MULTI
        } else {
            prompts::CLASSIFY
        },
    };
    classification.check_prompt()?;
    Ok(classification)
}

fn categories(given: Option<&Value>, wanted: Wanted) -> Result<Vec<&str>, PgError> {
    let given = match given {
        None | Some(Value::Null) => return Err(PgError::raised("Categories array cannot be empty")),
        Some(Value::Array(given)) if given.is_empty() => {
            return Err(PgError::raised("Categories array cannot be empty"));
        }
        Some(Value::Array(given)) => given,
        Some(_) => return Err(invalid("categories must be an array of texts")),
    };
    if given.len() < 2 && !matches!(wanted, Wanted::AtLeast(_)) {
        return Err(PgError::raised("Must provide at least 2 categories"));
    }
    if given.len() > MAX_CATEGORIES {
        let count = given.len();
        return Err(too_much(format!("there are {count} categories, at most {MAX_CATEGORIES} are allowed")));
    }
    let names: Option<Vec<&str>> = given.iter().map(Value::as_str).collect();
    let names = names.ok_or_else(|| invalid("categories must be texts").hint("NULL is no category."))?;
    let mut seen = HashMap::new();
    for (index, name) in names.iter().enumerate() {
        if name.trim().is_empty() {
            return Err(invalid(format!("category {} is empty", index + 1)));
        }
        if name.len() > MAX_CATEGORY_BYTES {
            let bytes = name.len();
            return Err(too_much(format!(
                "category {} has {bytes} bytes, {MAX_CATEGORY_BYTES} are allowed",
                index + 1
            ))
            .hint("Give it a short name, and say in descriptions what belongs to it."));
        }
        if let Some(before) = seen.insert(*name, index) {
            return Err(invalid(format!("category {} is the same as category {}", index + 1, before + 1)));
        }
    }
    let bytes: usize = names.iter().map(|name| name.len()).sum();
    if bytes > MAX_CATEGORIES_BYTES {
        return Err(too_much(format!(
            "the categories have {bytes} bytes together, {MAX_CATEGORIES_BYTES} are allowed"
        )));
    }
    Ok(names)
}

fn descriptions(given: Option<&Value>, count: usize) -> Result<Vec<Option<String>>, PgError> {
    let given = match given {
        None | Some(Value::Null) => return Ok(vec![None; count]),
        Some(Value::Array(given)) => given,
        Some(_) => return Err(invalid("descriptions must be an array of texts")),
    };
    if given.len() != count {
        return Err(invalid(format!("there are {} descriptions of {count} categories", given.len()))
            .hint("Give one for each category; NULL where its name says it all."));
    }
    let description = |value: &Value| match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone()).filter(|text| !text.trim().is_empty())),
        _ => Err(invalid("descriptions must be texts")),
    };
    given.iter().map(description).collect()
}

fn examples(given: Option<&Value>, categories: &[&str]) -> Result<Vec<Example>, PgError> {
    const FORM: &str = "examples must be an array of objects with input and category";
    let given = match given {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(given)) => given,
        Some(_) => return Err(invalid(FORM)),
    };
    if given.len() > MAX_EXAMPLES {
        let count = given.len();
        return Err(too_much(format!("there are {count} examples, at most {MAX_EXAMPLES} are allowed")));
    }
    let example = |(index, value): (usize, &Value)| {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let (Some(input), Some(category)) = (text("input"), text("category")) else {
            return Err(invalid(FORM).hint(r#"As [{"input": "a text", "category": "its category"}]."#));
        };
        if value.as_object().is_some_and(|object| object.len() != 2) {
            return Err(invalid(FORM));
        }
        if !categories.contains(&category) {
            return Err(invalid(format!("the category of example {} is none of the categories", index + 1)));
        }
        Ok(Example { input: input.to_owned(), category: category.to_owned() })
    };
    given.iter().enumerate().map(example).collect()
}

fn invalid(message: impl Into<String>) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
}

fn too_much(message: String) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, message)
}
