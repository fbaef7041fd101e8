//! Templates of prompts: checked when they are kept, filled in when they are used. The tables and functions
//! around that are in `sql/48_prompts.sql`.

use std::borrow::Cow;

use pgrx::prelude::*;
use pgrx::{JsonB, name};
use serde_json::{Map, Value};
use steadytext_engine::template::prompts;

use crate::pg::catalog_cache;
use crate::pg::error::{OrRaise, PgError};
use crate::pg::interrupts::with_signals_blocked;
use crate::pg::jsonb::{self, Item, Jsonb};
use crate::pg::spi::{self, Mode};
use crate::request::prompt_source::{self, of_template};
use crate::request::prompts as builtin;

/// Values in the variables of a prompt, those in lists and objects included.
const MAX_VALUES: usize = 10_000;
/// Bytes that they have together.
const MAX_VARIABLE_BYTES: usize = 1 << 24;

/// Names of the variables that a template uses, sorted.
#[pg_extern(immutable, parallel_safe)]
fn prompt_variables(template: Option<&str>) -> Option<Vec<String>> {
    let template = template?;
    let names = with_signals_blocked(|| prompts::variables(template));
    Some(names.map_err(|error| of_template(&error)).or_raise())
}

/// The text that a template makes of the values of an object.
#[pg_extern(immutable, parallel_safe)]
fn render_prompt(
    template: Option<&str>,
    variables: Option<Jsonb<'_>>,
    strict: Option<bool>,
) -> Option<String> {
    let template = template?;
    let values = variables.map_or_else(|| Ok(Map::new()), values).or_raise();
    let text = with_signals_blocked(|| prompts::render(template, &values, strict != Some(false)));
    Some(text.map_err(|error| of_template(&error)).or_raise())
}

/// A prompt of this library; no row where there is none.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::type_complexity, reason = "a row of SQL")]
fn builtin_prompt(
    slug: Option<&str>,
    version: Option<i64>,
) -> TableIterator<
    'static,
    (name!(version_num, i32), name!(template, String), name!(required_variables, Vec<String>)),
> {
    let found = slug.and_then(|slug| builtin::find(slug, version));
    TableIterator::new(found.map(|prompt| {
        let variables = prompt.variables.iter().map(|name| (*name).to_owned()).collect();
        (prompt.version, prompt.template.to_owned(), variables)
    }))
}

/// Refuses a template that cannot take the place of one of this library's.
#[pg_extern(immutable, parallel_safe)]
fn check_replacement(slug: Option<&str>, template: Option<&str>) {
    if let (Some(slug), Some(template)) = (slug, template) {
        prompt_source::check(slug, template).or_raise();
    }
}

/// The prompt of a call that generates: the text that is given, or, where variables are, what the prompt of
/// that name makes of them. With the rights of the caller.
///
/// # Errors
///
/// As steadytext_prompt_render.
pub(super) fn filled<'a>(
    prompt: Option<&'a str>,
    variables: Option<Jsonb<'_>>,
) -> Result<Option<Cow<'a, str>>, PgError> {
    let (Some(slug), Some(variables)) = (prompt, variables) else { return Ok(prompt.map(Cow::Borrowed)) };
    let values = JsonB(Value::Object(values(variables)?));
    let sql = format!(
        "select {}.steadytext_prompt_render($1, $2, null::pg_catalog.int8, true)",
        catalog_cache::installation()?.schema
    );
    let text = spi::query_one(&sql, vec![slug.into(), values.into()], Mode::ReadOnly, |row| row.get(1))?;
    Ok(text.flatten().map(Cow::Owned))
}

fn values(variables: Jsonb<'_>) -> Result<Map<String, Value>, PgError> {
    let invalid = |message: &str| {
        PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
            .hint("Give an object with a value for each variable, as {\"name\": \"value\"}.")
    };
    let bytes = variables.len();
    if bytes > MAX_VARIABLE_BYTES {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            format!("the variables of a prompt have {bytes} bytes, at most {MAX_VARIABLE_BYTES} are allowed"),
        )
        .hint("A prompt is no longer than max_prompt_bytes allows, whatever it is made of."));
    }
    let Some(root @ Item::Object(_)) = variables.root() else {
        return Err(invalid("the variables of a prompt are not a JSON object"));
    };
    match jsonb::tree(root, MAX_VALUES) {
        Ok(Value::Object(values)) => Ok(values),
        _ => Err(invalid("the variables of a prompt are too many, too deep, or out of range")),
    }
}
