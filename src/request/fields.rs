//! Fields that are extracted from a text: `name`, `name: description` or `name: type - description`, and the
//! schema of a document that has all of them.
//!
//! Invariant: the schema has the fields in the order in which they were given, and each of them may be null.

use std::collections::HashSet;

use pgrx::PgSqlErrorCode;
use serde::Serialize;
use serde_json::{Map, Value, json};

use super::values::{invalid, too_long};
use crate::pg::error::PgError;

/// Most fields, and most bytes of one.
const MAX_FIELDS: usize = 100;
const MAX_FIELD_BYTES: usize = 1024;
/// Most elements of a field that is an array.
const MAX_ELEMENTS: usize = 32;
/// Most characters of a string: models that find no end shall not spend all tokens on one field.
const MAX_CHARACTERS: usize = 1000;
/// Greatest integer: fifteen digits, which every reader of JSON takes exactly.
const MAX_INTEGER: i64 = 999_999_999_999_999;
const TYPES_HINT: &str = "A field is written name, name: description, or name: type - description, where the type is string, integer, number, boolean, date, or array of one of these.";

/// A field, as prompts name it.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Field {
    /// The name of the member.
    pub(super) name: String,
    /// Its type, in words.
    #[serde(rename = "type")]
    pub(super) kind: String,
    /// Its meaning, for the model.
    pub(super) description: Option<String>,
    #[serde(skip)]
    scalar: Scalar,
    #[serde(skip)]
    is_array: bool,
}

/// The type of a field, or of the elements of one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Scalar {
    String,
    Integer,
    Number,
    Boolean,
    Date,
}

impl Scalar {
    fn of(name: &str) -> Option<Scalar> {
        Some(match name.to_ascii_lowercase().as_str() {
            "string" | "text" => Scalar::String,
            "integer" | "int" | "bigint" => Scalar::Integer,
            "number" | "float" | "numeric" => Scalar::Number,
            "boolean" | "bool" => Scalar::Boolean,
            "date" => Scalar::Date,
            _ => return None,
        })
    }

    fn name(self) -> &'static str {
        match self {
            Scalar::String => "string",
            Scalar::Integer => "integer",
            Scalar::Number => "number",
            Scalar::Boolean => "boolean",
            Scalar::Date => "date, as 2024-12-31",
        }
    }

    fn schema(self) -> Value {
        match self {
            Scalar::String => json!({ "type": "string", "minLength": 1, "maxLength": MAX_CHARACTERS }),
            Scalar::Integer => json!({ "type": "integer", "minimum": -MAX_INTEGER, "maximum": MAX_INTEGER }),
            Scalar::Number => json!({ "type": "number" }),
            Scalar::Boolean => json!({ "type": "boolean" }),
            Scalar::Date => json!({ "type": "string", "format": "date" }),
        }
    }
}

/// A type in words; `None` for other words.
fn type_of(words: &str) -> Option<(Scalar, bool)> {
    let words = words.trim();
    let element = words.get(..9).filter(|begin| begin.eq_ignore_ascii_case("array of "));
    match element {
        Some(_) => Scalar::of(words[9..].trim()).map(|scalar| (scalar, true)),
        None => Scalar::of(words).map(|scalar| (scalar, false)),
    }
}

/// Reads fields as they are given.
///
/// # Errors
///
/// P0001 where there are none, 22023 for what is no field and for a name that is there twice, 54000 for too
/// much.
pub(super) fn read(given: &Value) -> Result<Vec<Field>, PgError> {
    let Value::Array(given) = given else {
        return Err(invalid("fields must be an array of texts").hint(TYPES_HINT));
    };
    if given.is_empty() {
        return Err(PgError::raised("Fields array cannot be empty").hint(TYPES_HINT));
    }
    if given.len() > MAX_FIELDS {
        return Err(too_long(format!("there are {} fields, at most {MAX_FIELDS} are allowed", given.len()))
            .hint("Extract them with several calls."));
    }
    let mut names = HashSet::new();
    let mut fields = Vec::with_capacity(given.len());
    for (index, field) in given.iter().enumerate() {
        let number = index + 1;
        let text = field.as_str().ok_or_else(|| invalid("fields must be texts").hint("NULL is no field."))?;
        if text.len() > MAX_FIELD_BYTES {
            return Err(too_long(format!(
                "field {number} has {} bytes, {MAX_FIELD_BYTES} are allowed",
                text.len()
            ))
            .hint("Say what is meant by it in fewer words."));
        }
        let field = field_of(text, number)?;
        if !names.insert(field.name.clone()) {
            return Err(invalid(format!("field {number} has the name of one before it"))
                .hint("Each field is a member of the document: give it a name of its own."));
        }
        fields.push(field);
    }
    Ok(fields)
}

fn field_of(text: &str, number: usize) -> Result<Field, PgError> {
    let (name, rest) = text.split_once(':').unwrap_or((text, ""));
    let (name, rest) = (name.trim(), rest.trim());
    if name.is_empty() {
        return Err(invalid(format!("field {number} has no name")).hint(TYPES_HINT));
    }
    let (before, after) = rest.split_once(" - ").map_or((rest, None), |(a, b)| (a.trim(), Some(b.trim())));
    let ((scalar, is_array), description) = match (type_of(before), after) {
        (Some(found), description) => (found, description.unwrap_or_default()),
        // One word where a type would be, and no type.
        (None, Some(_)) if is_like_type(before) => {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
                format!("field {number} has a type that there is not"),
            )
            .hint(TYPES_HINT));
        }
        (None, _) => ((Scalar::String, false), rest),
    };
    let kind = if is_array { format!("array of {}", scalar.name()) } else { scalar.name().to_owned() };
    let description = (!description.is_empty()).then(|| description.to_owned());
    Ok(Field { name: name.to_owned(), kind, description, scalar, is_array })
}

fn is_like_type(words: &str) -> bool {
    let words = words.strip_prefix("array of ").unwrap_or(words);
    !words.contains(char::is_whitespace)
}

/// The schema of an object that has all of the fields.
pub(super) fn schema(fields: &[Field]) -> Value {
    let mut properties = Map::new();
    for field in fields {
        let mut schema = field.scalar.schema();
        if field.is_array {
            schema = json!({ "type": "array", "items": schema, "maxItems": MAX_ELEMENTS });
        }
        properties.insert(field.name.clone(), json!({ "anyOf": [schema, { "type": "null" }] }));
    }
    let names: Vec<&str> = fields.iter().map(|field| field.name.as_str()).collect();
    json!({
        "type": "object",
        "properties": properties,
        "propertyOrdering": names,
        "required": names,
        "additionalProperties": false,
    })
}
