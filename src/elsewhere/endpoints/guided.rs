//! Constraints on answers, as fields of the endpoints' protocols.
//!
//! Invariant: whatever an endpoint is told, its answer is checked afterwards by the code that checks the
//! engine's own.

use serde::Deserialize;
use serde_json::{Map, Value, json};
use steadytext_engine::{Constraint, Error};

use super::settings::{EndpointSettings, Guided};

/// The only field of the document that a choice comes in where endpoints know documents only.
const FIELD: &str = "answer";

/// The form in which the endpoint gives the text of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// The answer itself.
    Plain,
    /// A document around a choice.
    Wrapped,
}

#[derive(Deserialize)]
struct Wrapped {
    answer: String,
}

/// The reason why there is no such field.
pub(super) enum NoField {
    /// The endpoint has no words for it.
    Unknown(&'static str),
    /// The constraint is none.
    Invalid(Error),
}

/// Whether an endpoint can be told of constraints of this kind.
pub(super) fn knows_patterns(guided: Guided) -> bool {
    matches!(guided, Guided::StructuredOutputs | Guided::Fields)
}

/// Adds the field that says what an answer has to match.
///
/// # Errors
///
/// [`NoField`].
pub(super) fn add(
    body: &mut Map<String, Value>,
    constraint: &Constraint,
    settings: &EndpointSettings,
) -> Result<Form, NoField> {
    let schema = || constraint.portable_schema().map_err(NoField::Invalid);
    let (form, field, value) = match (settings.guided, constraint) {
        (Guided::None, _) => return Err(NoField::Unknown("answers with a schema, a pattern or choices")),
        (Guided::ResponseFormat | Guided::JsonObject, Constraint::Json(_)) => {
            (Form::Plain, "response_format", response_format(settings, schema()?))
        }
        (Guided::ResponseFormat | Guided::JsonObject, Constraint::Choice(choices)) => {
            (Form::Wrapped, "response_format", response_format(settings, document_of(choices)))
        }
        (Guided::Grammar, Constraint::Json(_)) => (Form::Plain, "json_schema", schema()?),
        (Guided::Grammar, Constraint::Choice(choices)) => (Form::Plain, "grammar", grammar(choices).into()),
        (Guided::ResponseFormat | Guided::JsonObject | Guided::Grammar, Constraint::Regex(_)) => {
            return Err(NoField::Unknown("answers with a pattern"));
        }
        (Guided::StructuredOutputs, Constraint::Json(_)) => {
            (Form::Plain, "structured_outputs", json!({ "json": schema()? }))
        }
        (Guided::StructuredOutputs, Constraint::Regex(pattern)) => {
            (Form::Plain, "structured_outputs", json!({ "regex": pattern }))
        }
        (Guided::StructuredOutputs, Constraint::Choice(choices)) => {
            (Form::Plain, "structured_outputs", json!({ "choice": choices }))
        }
        (Guided::Fields, Constraint::Json(_)) => (Form::Plain, "guided_json", schema()?),
        (Guided::Fields, Constraint::Regex(pattern)) => {
            (Form::Plain, "guided_regex", pattern.as_str().into())
        }
        (Guided::Fields, Constraint::Choice(choices)) => (Form::Plain, "guided_choice", json!(choices)),
    };
    body.insert(field.to_owned(), value);
    Ok(form)
}

fn response_format(settings: &EndpointSettings, schema: Value) -> Value {
    match settings.guided {
        Guided::JsonObject => json!({ "type": "json_object", "schema": schema }),
        _ => json!({
            "type": "json_schema",
            "json_schema": { "name": FIELD, "schema": schema, "strict": settings.strict },
        }),
    }
}

/// The schema of a document that is around a choice.
fn document_of(choices: &[String]) -> Value {
    json!({
        "type": "object",
        "properties": { FIELD: { "type": "string", "enum": choices } },
        "required": [FIELD],
        "additionalProperties": false,
    })
}

/// Choices in llama.cpp's language of grammars.
fn grammar(choices: &[String]) -> String {
    let literal = |choice: &String| {
        let mut literal = String::from("\"");
        for character in choice.chars() {
            match character {
                '"' | '\\' => literal.extend(['\\', character]),
                '\n' => literal.push_str("\\n"),
                '\r' => literal.push_str("\\r"),
                '\t' => literal.push_str("\\t"),
                _ => literal.push(character),
            }
        }
        literal + "\""
    };
    format!("root ::= {}", choices.iter().map(literal).collect::<Vec<_>>().join(" | "))
}

/// The text of an answer; `None` where it has not the form that was asked for.
pub(super) fn unwrapped(form: Form, text: String) -> Option<String> {
    match form {
        Form::Plain => Some(text),
        Form::Wrapped => serde_json::from_str(&text).ok().map(|Wrapped { answer }| answer),
    }
}
