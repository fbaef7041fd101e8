//! Verbs: the texts and parameters of their requests, and their limits.
//!
//! | type | text | params |
//! |---|---|---|
//! | if, if_score, score | prompt | |
//! | classify, classify_scores, classify_multi | prompt | categories, task_description, descriptions, examples, method; threshold of classify_multi |
//! | similarity | prompts: both texts | |
//! | analyze_sentiment | prompt | |
//! | extract | prompt: the document | fields or schema |
//! | translate | prompt | to_language |
//! | mask | prompt | labels |
//! | extract_facts | prompt | max_facts |
//! | deduplicate_facts | prompt: a JSON array | similarity_threshold |
//!
//! All of them that have a prompt of the library's also take `template`, which stands in its place.

use std::collections::HashMap;

use pgrx::PgSqlErrorCode;
use serde_json::{Map, Value, json};
use steadytext_engine::Constraint;

use super::asked::RawRequest;
use super::constraint::{check_keywords, refused_constraint};
use super::facts::Facts;
use super::masking::Masking;
use super::prompt_source::PromptSource;
use super::prompts::{self, Prompt};
use super::text_verbs::{TextVerb, What};
use super::values::empty_text;
use super::verbs::{Category, Classification, ClassificationForm, Example, Verb};
use super::{defaults, fields};
use crate::pg::catalog_cache::DatabaseConfig;
use crate::pg::error::PgError;

/// Most categories, most bytes of the name of one, and of all names together: what the engine compares.
const MAX_CATEGORIES: usize = 1000;
const MAX_CATEGORY_BYTES: usize = 1024;
const MAX_CATEGORIES_BYTES: usize = 1 << 16;
/// Most examples.
const MAX_EXAMPLES: usize = 100;

/// Most facts of a text.
const MAX_FACTS: i64 = 50;
/// Tokens of an answer: for each field of a document and each fact, and the fewest of all; of a document
/// whose schema was given; for each byte of a text that is translated. What is extracted stands in the text,
/// so that an answer also has a token for each byte of that.
const TOKENS: usize = 256;
const TOKENS_OF_FIELD: usize = 64;
const TOKENS_OF_DOCUMENT: usize = 2048;
const TOKENS_OF_BYTE: usize = 2;
/// The categories of sentiment analysis.
const SENTIMENTS: [(&str, Option<&str>); 4] = [
    ("positive", None),
    ("negative", None),
    ("neutral", None),
    ("mixed", Some("both positive and negative")),
];

const CATEGORIES_HINT: &str = "Give the names that there may be, as array['question', 'complaint'].";
const DESCRIPTIONS_HINT: &str = "Give one for each category; NULL where its name says it all.";

/// Whether requests of this type are verbs.
pub(crate) fn is_verb(request_type: &str) -> bool {
    matches!(
        request_type,
        "if" | "if_score" | "score" | "similarity" | "classify" | "classify_scores" | "classify_multi"
    ) || is_plain(request_type)
}

/// Whether requests of this type are verbs of one text that is answered with one.
pub(crate) fn is_plain(request_type: &str) -> bool {
    matches!(
        request_type,
        "analyze_sentiment" | "extract" | "translate" | "mask" | "extract_facts" | "deduplicate_facts"
    )
}

/// Whether vectors answer a request.
pub(crate) fn is_by_vectors(request_type: &str, params: &Value) -> bool {
    matches!(request_type, "similarity" | "deduplicate_facts")
        || params.get("method").and_then(Value::as_str) == Some("embed")
}

/// The verb of a request, with its checked parameters.
///
/// # Errors
///
/// P0001 where a text or the categories are missing, 22023 for parameters that cannot be used, 54000 for too
/// much of them, and those of [`PromptSource::render`].
pub(crate) fn read(asked: RawRequest<'_>, config: &DatabaseConfig) -> Result<Verb, PgError> {
    let RawRequest { request_type, prompt, prompts: texts, params } = asked;
    let text = prompt.unwrap_or_default();
    let is_empty = text.trim().is_empty();
    let question = |prompt: Prompt| render(prompt, params, json!({ "prompt": text }));
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
        "analyze_sentiment" => {
            let sentiment = sentiment(text, params);
            sentiment.check_prompt()?;
            Ok(Verb::Classify(sentiment))
        }
        "deduplicate_facts" => {
            let threshold = params.get("similarity_threshold").and_then(Value::as_f64);
            Facts::read(text, threshold.unwrap_or(defaults::SIMILARITY_THRESHOLD)).map(Verb::Deduplicate)
        }
        written if is_plain(written) => {
            let limit = usize::try_from(config.max_tokens_limit).unwrap_or(1).max(1);
            writing(written, text, params, limit).map(Verb::Write)
        }
        _ => classification(request_type, text, params).map(Verb::Classify),
    }
}

fn render(prompt: Prompt, params: &Value, variables: Value) -> Result<String, PgError> {
    PromptSource::of(prompt, params).render(variables.as_object().unwrap_or(&Map::new()))
}

fn sentiment(text: &str, params: &Value) -> Classification {
    let category = |(name, description): (&str, Option<&str>)| Category {
        name: name.to_owned(),
        description: description.map(str::to_owned),
    };
    Classification {
        input: text.to_owned(),
        categories: SENTIMENTS.map(category).to_vec(),
        task_description: None,
        examples: Vec::new(),
        by_vectors: false,
        wanted: ClassificationForm::Best,
        prompt: PromptSource::of(prompts::ANALYZE_SENTIMENT, params),
    }
}

/// `limit`: most tokens of any answer.
fn writing(request_type: &str, text: &str, params: &Value, limit: usize) -> Result<TextVerb, PgError> {
    let owned = text.to_owned();
    let (what, system, max_tokens) = match request_type {
        "extract" => {
            let (fields, schema, tokens) = document(params)?;
            let tokens = tokens.saturating_add(text.len());
            let schema = schema.to_string();
            let variables = json!({ "fields": fields, "schema": schema });
            let system = render(prompts::EXTRACT, params, variables)?;
            (What::Document { text: owned, schema }, system, tokens)
        }
        "translate" => {
            let language = params.get("to_language").and_then(Value::as_str).unwrap_or_default().trim();
            if language.is_empty() {
                return Err(PgError::raised("Target language cannot be empty")
                    .hint("Name it in words, as to_language => 'German'."));
            }
            let system = render(prompts::TRANSLATE, params, json!({ "to_language": language }))?;
            let tokens = TOKENS.saturating_add(text.len().saturating_mul(TOKENS_OF_BYTE));
            (What::Translation { text: owned }, system, tokens)
        }
        "mask" => {
            let masking = Masking::read(text, params.get("labels"))?;
            let system = render(prompts::MASK, params, json!({ "labels": masking.labels() }))?;
            (What::Masked(masking), system, limit)
        }
        _ => {
            let max_facts = params.get("max_facts").map_or(Some(defaults::MAX_FACTS), Value::as_i64);
            let max_facts = max_facts.filter(|count| (1..=MAX_FACTS).contains(count)).ok_or_else(|| {
                PgError::raised(format!("max_facts must be between 1 and {MAX_FACTS}"))
                    .hint("Cut a long text with steadytext_chunk_text(), and extract from each piece.")
            })?;
            let system = render(prompts::EXTRACT_FACTS, params, json!({ "max_facts": max_facts }))?;
            let tokens = TOKENS + TOKENS_OF_FIELD * usize::try_from(max_facts).unwrap_or(1) + text.len();
            (What::Facts { text: owned, max_facts }, system, tokens)
        }
    };
    Ok(TextVerb { system, what, max_tokens: max_tokens.min(limit) })
}

/// The fields that are asked for, if that is how it is said, the schema of the answer, and the tokens that it
/// may have.
fn document(params: &Value) -> Result<(Option<Vec<fields::Field>>, Value, usize), PgError> {
    match (params.get("fields"), params.get("schema")) {
        (Some(_), Some(_)) => {
            Err(invalid("a document has fields or a schema, not both").hint("Leave one of them out."))
        }
        (Some(fields), None) => {
            let fields = fields::read(fields)?;
            let (schema, count) = (fields::schema(&fields), fields.len());
            Ok((Some(fields), schema, TOKENS + TOKENS_OF_FIELD * count))
        }
        (None, Some(schema)) => {
            Constraint::Json(schema.to_string()).check().map_err(refused_constraint)?;
            check_keywords(schema)?;
            Ok((None, schema.clone(), TOKENS_OF_DOCUMENT))
        }
        (None, None) => Err(PgError::raised("Must provide fields or a schema").hint(
            "Give fields, as array['name', 'age: integer - in years'], or a JSON schema of an object.",
        )),
    }
}

fn classification(request_type: &str, input: &str, params: &Value) -> Result<Classification, PgError> {
    let text = |name: &str| params.get(name).and_then(Value::as_str);
    let wanted = match request_type {
        "classify" => ClassificationForm::Best,
        "classify_scores" => ClassificationForm::Scores,
        _ => ClassificationForm::AtLeast(
            params.get("threshold").and_then(Value::as_f64).unwrap_or(defaults::THRESHOLD),
        ),
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
        prompt: PromptSource::of(
            if matches!(wanted, ClassificationForm::AtLeast(_)) {
                prompts::CLASSIFY_MULTI
            } else {
                prompts::CLASSIFY
            },
            params,
        ),
    };
    classification.check_prompt()?;
    Ok(classification)
}

fn categories(given: Option<&Value>, wanted: ClassificationForm) -> Result<Vec<&str>, PgError> {
    let given = match given {
        None | Some(Value::Null) => return Err(no_categories()),
        Some(Value::Array(given)) if given.is_empty() => return Err(no_categories()),
        Some(Value::Array(given)) => given,
        Some(_) => return Err(invalid("categories must be an array of texts").hint(CATEGORIES_HINT)),
    };
    if given.len() < 2 && !matches!(wanted, ClassificationForm::AtLeast(_)) {
        return Err(PgError::raised("Must provide at least 2 categories").hint(
            "With one alone there is nothing to choose: steadytext_if() says whether a text is of a kind, and steadytext_classify_multi() takes one category.",
        ));
    }
    if given.len() > MAX_CATEGORIES {
        let count = given.len();
        return Err(too_much(format!("there are {count} categories, at most {MAX_CATEGORIES} are allowed"))
            .hint("Classify in two steps: first into groups of categories."));
    }
    let names: Option<Vec<&str>> = given.iter().map(Value::as_str).collect();
    let names = names.ok_or_else(|| invalid("categories must be texts").hint("NULL is no category."))?;
    let mut seen = HashMap::new();
    for (index, name) in names.iter().enumerate() {
        if name.trim().is_empty() {
            return Err(invalid(format!("category {} is empty", index + 1)).hint(CATEGORIES_HINT));
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
            return Err(invalid(format!("category {} is the same as category {}", index + 1, before + 1))
                .hint("Leave one of them out."));
        }
    }
    let bytes: usize = names.iter().map(|name| name.len()).sum();
    if bytes > MAX_CATEGORIES_BYTES {
        return Err(too_much(format!(
            "the categories have {bytes} bytes together, {MAX_CATEGORIES_BYTES} are allowed"
        ))
        .hint("Give them short names, and say in descriptions what belongs to them."));
    }
    Ok(names)
}

fn no_categories() -> PgError {
    PgError::raised("Categories array cannot be empty").hint(CATEGORIES_HINT)
}

fn descriptions(given: Option<&Value>, count: usize) -> Result<Vec<Option<String>>, PgError> {
    let given = match given {
        None | Some(Value::Null) => return Ok(vec![None; count]),
        Some(Value::Array(given)) => given,
        Some(_) => return Err(invalid("descriptions must be an array of texts").hint(DESCRIPTIONS_HINT)),
    };
    if given.len() != count {
        return Err(invalid(format!("there are {} descriptions of {count} categories", given.len()))
            .hint(DESCRIPTIONS_HINT));
    }
    let description = |value: &Value| match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone()).filter(|text| !text.trim().is_empty())),
        _ => Err(invalid("descriptions must be texts").hint(DESCRIPTIONS_HINT)),
    };
    given.iter().map(description).collect()
}

fn examples(given: Option<&Value>, categories: &[&str]) -> Result<Vec<Example>, PgError> {
    const FORM: &str = "examples must be an array of objects with input and category";
    const HINT: &str = r#"As [{"input": "a text", "category": "its category"}]."#;
    let given = match given {
        None | Some(Value::Null) => return Ok(Vec::new()),
        Some(Value::Array(given)) => given,
        Some(_) => return Err(invalid(FORM).hint(HINT)),
    };
    if given.len() > MAX_EXAMPLES {
        let count = given.len();
        return Err(too_much(format!("there are {count} examples, at most {MAX_EXAMPLES} are allowed"))
            .hint("A few for each category are enough."));
    }
    let example = |(index, value): (usize, &Value)| {
        let text = |name: &str| value.get(name).and_then(Value::as_str);
        let (Some(input), Some(category)) = (text("input"), text("category")) else {
            return Err(invalid(FORM).hint(HINT));
        };
        if value.as_object().is_some_and(|object| object.len() != 2) {
            return Err(invalid(FORM).hint(HINT));
        }
        if !categories.contains(&category) {
            return Err(invalid(format!("the category of example {} is none of the categories", index + 1))
                .hint("Write it as it stands in categories, letter by letter."));
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
