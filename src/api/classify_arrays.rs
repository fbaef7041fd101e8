//! The categories of each text of an array, where a text has several: rows that name the place of their text, from 1.

use pgrx::name;
use pgrx::prelude::*;
use serde_json::{Map, Value};

use super::batch::{self, Texts};
use super::verbs::with_categories;
use crate::pg::error::{OrRaise, PgError};
use crate::pg::jsonb::Jsonb;
use crate::request::arguments::verb_params;
use crate::request::{Answer, Categories, unexpected};

/// All categories of each text with their probabilities, best first.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the contract's signature")]
fn verb_classify_scores_array(
    input: Texts<'_>,
    categories: Texts<'_>,
    task_description: Option<&str>,
    descriptions: Texts<'_>,
    examples: Option<Jsonb<'_>>,
    method: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> TableIterator<'static, (name!(index, i32), name!(category, String), name!(score, Option<f64>))> {
    let params = verb_params(use_cache, seed, model);
    let found = with_categories(params, categories, (task_description, method, None), descriptions, examples)
        .and_then(|params| lines("classify_scores", input, &params, on_error));
    TableIterator::new(found.or_raise())
}

/// The categories of each text whose own score is high enough, best first.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the contract's signature")]
fn verb_classify_multi_array(
    input: Texts<'_>,
    categories: Texts<'_>,
    task_description: Option<&str>,
    descriptions: Texts<'_>,
    examples: Option<Jsonb<'_>>,
    method: Option<&str>,
    threshold: Option<f64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> TableIterator<'static, (name!(index, i32), name!(category, String))> {
    let params = verb_params(use_cache, seed, model);
    let about = (task_description, method, threshold);
    let found = with_categories(params, categories, about, descriptions, examples)
        .and_then(|params| lines("classify_multi", input, &params, on_error));
    TableIterator::new(found.or_raise().into_iter().map(|(place, category, _)| (place, category)))
}

/// The lines of all texts, in their order. Those that are NULL have none.
fn lines(
    request_type: &str,
    input: Texts<'_>,
    params: &Map<String, Value>,
    on_error: Option<&str>,
) -> Result<Vec<(i32, String, Option<f64>)>, PgError> {
    let answers = batch::answers(request_type, "Texts", input, params, on_error)?.unwrap_or_default();
    let mut lines = Vec::new();
    for (place, answer) in (1..).zip(answers) {
        match answer {
            None => {}
            Some(Answer::Categories(Categories { lines: of_one })) => {
                lines.extend(of_one.into_iter().map(|(category, score)| (place, category, score)));
            }
            Some(_) => return Err(unexpected()),
        }
    }
    Ok(lines)
}
