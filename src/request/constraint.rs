//! Constraints on answers, from the parameters of a request.

use pgrx::prelude::*;
use serde_json::Value;
use steadytext_engine::{Constraint, Error};

use crate::pg::error::{PgError, RequestFailure};

/// The parameter of each constrained type.
const PARAMETERS: [(&str, &str); 3] =
    [("generate_json", "schema"), ("generate_regex", "pattern"), ("generate_choice", "choices")];

const CHOICES_HINT: &str = "Give the answers that there may be, as array['yes', 'no'].";
const PATTERN_HINT: &str =
    r"Give a regular expression that the whole answer matches, as '[0-9]{4}-[0-9]{2}'.";

/// A schema without any of them allows every document, which nobody has meant: it is a list of fields, say,
/// or an example.
const KEYWORDS: &[&str] = &[
    "$anchor",
    "$comment",
    "$defs",
    "$dynamicAnchor",
    "$dynamicRef",
    "$id",
    "$recursiveAnchor",
    "$recursiveRef",
    "$ref",
    "$schema",
    "$vocabulary",
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "const",
    "contains",
    "contentEncoding",
    "contentMediaType",
    "contentSchema",
    "default",
    "definitions",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "deprecated",
    "description",
    "else",
    "enum",
    "examples",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "format",
    "id",
    "if",
    "items",
    "maxContains",
    "maxItems",
    "maxLength",
    "maxProperties",
    "maximum",
    "minContains",
    "minItems",
    "minLength",
    "minProperties",
    "minimum",
    "multipleOf",
    "not",
    "nullable",
    "oneOf",
    "pattern",
    "patternProperties",
    "prefixItems",
    "properties",
    "propertyNames",
    "readOnly",
    "required",
    "then",
    "title",
    "type",
    "unevaluatedItems",
    "unevaluatedProperties",
    "uniqueItems",
    "writeOnly",
    "x-guidance",
];

/// The constrained type whose parameter this is.
pub(super) fn owner_of(parameter: &str) -> Option<&'static str> {
    PARAMETERS.iter().find(|(_, known)| *known == parameter).map(|(owner, _)| *owner)
}

/// The constraint of a request of this type; `None` where the type has none.
///
/// # Errors
///
/// P0001 where the type's parameter is missing, 22023 where it is of the wrong kind, or belongs to another
/// type.
pub(super) fn constraint(request_type: &str, params: &Value) -> Result<Option<Constraint>, PgError> {
    for (owner, parameter) in PARAMETERS {
        let is_shared = parameter == "schema" && request_type == "extract";
        if owner != request_type && !is_shared && params.get(parameter).is_some() {
            return Err(invalid(format!("parameter {parameter} is for requests of type {owner}"))
                .hint(format!("Leave it out, or enqueue a request of type {owner}.")));
        }
    }
    Ok(Some(match request_type {
        "generate_json" => match params.get("schema") {
            None | Some(Value::Null) => {
                return Err(PgError::raised("Schema cannot be null")
                    .hint(r#"Give a JSON schema, as {"type": "object", "properties": {"name": {"type": "string"}}}."#));
            }
            Some(schema) => Constraint::Json(schema.to_string()),
        },
        "generate_regex" => match params.get("pattern") {
            None | Some(Value::Null) => return Err(no_pattern()),
            Some(Value::String(pattern)) if pattern.is_empty() => return Err(no_pattern()),
            Some(Value::String(pattern)) => Constraint::Regex(pattern.clone()),
            Some(_) => return Err(invalid("pattern must be a text").hint(PATTERN_HINT)),
        },
        "generate_choice" => match params.get("choices") {
            None | Some(Value::Null) => return Err(too_few()),
            Some(Value::Array(choices)) if choices.len() < 2 => return Err(too_few()),
            Some(Value::Array(choices)) => {
                let texts: Option<Vec<String>> =
                    choices.iter().map(|choice| choice.as_str().map(str::to_owned)).collect();
                Constraint::Choice(texts.ok_or_else(|| {
                    invalid("choices must be texts").hint("NULL is no choice; numbers need quotes.")
                })?)
            }
            Some(_) => return Err(invalid("choices must be an array of texts").hint(CHOICES_HINT)),
        },
        _ => return Ok(None),
    }))
}

/// Tokens that are enough for any of the choices: a token has one byte at least.
pub(super) fn enough_tokens(constraint: &Constraint) -> Option<usize> {
    match constraint {
        Constraint::Choice(choices) => choices.iter().map(String::len).max(),
        Constraint::Json(_) | Constraint::Regex(_) => None,
    }
}

/// Checks what a request's parameters say of a constraint, as far as that needs no model.
///
/// # Errors
///
/// P0001 and 22023.
pub(super) fn check_constraint(request_type: &str, params: &Value) -> Result<(), PgError> {
    let Some(constraint) = constraint(request_type, params)? else { return Ok(()) };
    if params.get("eos_string").is_some() {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("eos_string cannot be combined with {request_type}"),
        )
        .hint("The constraint says where the answer ends."));
    }
    constraint.check().map_err(refused_constraint)?;
    params.get("schema").map_or(Ok(()), check_keywords)
}

/// Refuses a schema that says nothing by any keyword, as far as it is an object that is not empty.
///
/// # Errors
///
/// 22023.
pub(super) fn check_keywords(schema: &Value) -> Result<(), PgError> {
    let Some(members) = schema.as_object() else { return Ok(()) };
    let Some(first) = members.keys().next() else { return Ok(()) };
    if members.keys().any(|name| KEYWORDS.contains(&name.as_str())) {
        return Ok(());
    }
    let first: String = first.chars().take(64).collect();
    Err(invalid(format!("the schema says nothing about the document: \"{first}\" is no keyword of JSON Schema")).hint(
        r#"A document with a name is {"type": "object", "properties": {"name": {"type": "string"}}, "required": ["name"]}; steadytext_extract() takes a list of fields as well, as array['name', 'age: integer']."#,
    ))
}

/// The engine's refusal of a constraint, as an error of the statement that brings it.
pub(crate) fn refused_constraint(error: Error) -> PgError {
    match error {
        Error::InvalidRequest(reason) => invalid(reason).hint(
            "Change what it names; docs/sql.md says which schemas, patterns and choices can be followed.",
        ),
        other => RequestFailure::from(other).error,
    }
}

fn too_few() -> PgError {
    PgError::raised("Must provide at least 2 choices").hint(CHOICES_HINT)
}

fn no_pattern() -> PgError {
    PgError::raised("Pattern cannot be empty").hint(PATTERN_HINT)
}

fn invalid(message: impl Into<String>) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
}
