//! The template that a request is asked with: the library's prompt, or the one that its database keeps under
//! the same name.
//!
//! The choice is made with the request: a template that a database keeps is written into the request's
//! parameters, so that the worker asks with the same words, whatever was changed or deleted meanwhile.
//!
//! Invariant: a template that is not the library's runs in the sandbox of prompts.

use std::collections::BTreeMap;

use minijinja::Environment;
use pgrx::PgSqlErrorCode;
use serde::Serialize;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};
use steadytext_engine::hex;
use steadytext_engine::template::prompts::{self as templates, PromptError};

use super::prompts::{self, Prompt};
use crate::pg::error::PgError;
use crate::pg::interrupts::with_signals_blocked;

/// The parameter that has the template of a request that is not asked with the library's.
pub(crate) const TEMPLATE: &str = "template";
/// Instructions that a template of the library may run: some for each category and example.
const FUEL: u64 = 1_000_000;

/// A template, and what tells it from others in the key of what is cached.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum PromptSource {
    /// One of the library's.
    Builtin {
        /// Its slug, `steadytext/…`.
        slug: &'static str,
        /// Counted from 1.
        version: i32,
        #[serde(skip)]
        /// The template.
        template: &'static str,
    },
    /// One that a database keeps.
    Kept {
        /// The prompt of the library that it stands for.
        slug: &'static str,
        /// The SHA-256 of its text, in hexadecimal digits.
        sha256: String,
        #[serde(skip)]
        /// The template.
        template: String,
    },
}

impl PromptSource {
    /// The prompt of a request with these parameters.
    pub(super) fn of(prompt: Prompt, params: &Value) -> PromptSource {
        let Prompt { slug, version, template, .. } = prompt;
        match params.get(TEMPLATE).and_then(Value::as_str) {
            None => PromptSource::Builtin { slug, version, template },
            Some(kept) => {
                PromptSource::Kept { slug, sha256: hex(&Sha256::digest(kept)), template: kept.to_owned() }
            }
        }
    }

    /// The text that it makes of some variables, which are put in as they are.
    ///
    /// # Errors
    ///
    /// As [`of_template`] for a template that a database keeps; XX000 for one of the library, which is a bug.
    pub(super) fn render(&self, variables: &Map<String, Value>) -> Result<String, PgError> {
        match self {
            PromptSource::Builtin { slug, template, .. } => {
                let mut environment = Environment::new();
                environment.set_fuel(Some(FUEL));
                environment.render_str(template, variables).map_err(|error| {
                    PgError::internal(format!("the prompt {slug} cannot be rendered: {error}"))
                })
            }
            PromptSource::Kept { slug, template, .. } => {
                let text = with_signals_blocked(|| templates::render(template, variables, true));
                text.map_err(|error| of_template(&error).hint(format!("The prompt is the one that this database keeps under the name {slug}; without it that of the extension is used.")))
            }
        }
    }
}

/// Templates that a database keeps in the place of the library's, by their slugs.
pub(crate) type KeptPrompts = BTreeMap<String, String>;

/// Writes the template that a database keeps for requests of a type into the parameters of one of them.
/// Whether there was one.
///
/// # Errors
///
/// 22023 where the request brings a template of its own: each is rendered in the worker, so that whose it is
/// matters.
pub(crate) fn keep(request_type: &str, params: &mut Value, kept: &KeptPrompts) -> Result<bool, PgError> {
    let is_asked = params.get("method").is_none_or(|method| method != "embed");
    let template = prompts::of(request_type).filter(|_| is_asked).and_then(|prompt| kept.get(prompt.slug));
    if let Some(given) = params.get(TEMPLATE) {
        if template.is_some_and(|template| given == template.as_str()) {
            return Ok(false);
        }
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            "a request does not bring its template",
        )
        .hint("The server adds it where an administrator keeps a prompt in the place of the extension's."));
    }
    let Some(template) = template else { return Ok(false) };
    if params.is_null() {
        *params = Value::Object(Map::new());
    }
    if let Some(params) = params.as_object_mut() {
        params.insert(TEMPLATE.to_owned(), template.as_str().into());
    }
    Ok(true)
}

/// Looks whether a template can take the place of the library's of this slug.
///
/// # Errors
///
/// 22023 where the library has no such prompt, and for a template that leaves out what it must have, or wants
/// what there is not; those of [`of_template`] where it makes no text of variables as they may come.
pub(crate) fn check(slug: &str, template: &str) -> Result<(), PgError> {
    let invalid = |message: String| PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message);
    let can_be_replaced = |prompt: &Prompt| !prompt.required.is_empty();
    let Some(prompt) = prompts::find(slug, None).filter(can_be_replaced) else {
        let replaceable = prompts::ALL.into_iter().filter(can_be_replaced);
        let slugs = replaceable.map(|prompt| prompt.slug).collect::<Vec<_>>().join(", ");
        let slug: String = slug.chars().take(100).collect();
        return Err(invalid(format!("the extension has no prompt \"{slug}\" that could be replaced"))
            .hint(format!("It has {slugs}.")));
    };
    let names =
        with_signals_blocked(|| templates::variables(template)).map_err(|error| of_template(&error))?;
    let has = |name: &str| names.iter().any(|known| known == name);
    let list = || prompt.variables.join(", ");
    if let Some(missing) = prompt.required.iter().find(|name| !has(name)) {
        return Err(invalid(format!("the prompt {slug} must use the variable {missing}"))
            .hint(format!("It gets: {}.", list())));
    }
    if let Some(unknown) = names.iter().find(|name| !prompt.variables.contains(&name.as_str())) {
        let unknown: String = unknown.chars().take(64).collect();
        return Err(invalid(format!("the prompt {slug} gets no variable {unknown}"))
            .hint(format!("It gets: {}.", list())));
    }
    let source =
        PromptSource::Kept { slug: prompt.slug, sha256: String::new(), template: template.to_owned() };
    for described in [true, false] {
        let mut variables = sample(described);
        variables.retain(|name, _| prompt.variables.contains(&name.as_str()));
        // The hint is about prompts that are in use.
        source.render(&variables).map_err(|error| PgError { hint: None, ..error })?;
    }
    Ok(())
}

/// A value for each variable that there is.
fn sample(described: bool) -> Map<String, Value> {
    let text = |text: &str| if described { Value::from(text) } else { Value::Null };
    let category = json!({ "name": "a name", "description": text("a description") });
    let examples = if described { json!([{ "input": "a text", "category": "a name" }]) } else { json!([]) };
    let field = json!({ "name": "a name", "type": "string", "description": text("a description") });
    let values = json!({
        "categories": [category, { "name": "another", "description": null }],
        "category": category,
        "examples": examples,
        "fields": if described { json!([field]) } else { Value::Null },
        "input": "a text",
        "labels": ["a label", "another"],
        "max_facts": 10,
        "prompt": "a question",
        "schema": "{}",
        "task_description": text("a task"),
        "to_language": "a language",
    });
    match values {
        Value::Object(values) => values,
        _ => Map::new(),
    }
}

/// The predecessor's words; its errors about values had the code of an internal error.
pub(crate) fn of_template(error: &PromptError) -> PgError {
    let (code, words) = match error {
        PromptError::Syntax(_) => (PgSqlErrorCode::ERRCODE_SYNTAX_ERROR, "Invalid Jinja2 template"),
        PromptError::Undefined(_) => {
            (PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "Undefined variable in template")
        }
        PromptError::Rendering(_) => (PgSqlErrorCode::ERRCODE_INTERNAL_ERROR, "Template rendering error"),
    };
    PgError::new(code, format!("{words}: {error}"))
        .hint("docs/prompts.md says what templates may use, and steadytext_prompt_get() which variables this one needs.")
}
