//! Classifications of the elements of an array, of which each has a list of its own: as rows, with the number
//! of the element.

use pgrx::name;
use pgrx::prelude::*;

use super::arrays::SqlTexts;
use super::verbs::{answers_of, with_categories};
use crate::pg::error::OrRaise;
use crate::pg::jsonb::Jsonb;
use crate::request::arguments::verb_params;
use crate::request::{Answer, Categories};

/// All categories of each text with their probabilities, best first; none of what is NULL.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the contract's signature")]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn verb_classify_scores_array(
    input: SqlTexts<'_>,
    categories: SqlTexts<'_>,
    task_description: Option<&str>,
    descriptions: SqlTexts<'_>,
    examples: Option<Jsonb<'_>>,
    method: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> TableIterator<'static, (name!(index, i32), name!(category, String), name!(score, Option<f64>))> {
    let answers = input.and_then(|input| {
        let params = verb_params(use_cache, seed, model);
        let params =
            with_categories(params, categories, (task_description, method, None), descriptions, examples)
                .or_raise();
        answers_of("classify_scores", Some(input), &params, on_error)
    });
    let lines = numbered(answers).flat_map(|(index, answer)| {
        let lines = answer.map(|categories| categories.lines).unwrap_or_default();
        lines.into_iter().map(move |(category, score)| (index, category, score))
    });
    TableIterator::new(lines.collect::<Vec<_>>())
}

/// The categories of each text whose own score is high enough, best first; NULL of what is NULL.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the contract's signature")]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn verb_classify_multi_array(
    input: SqlTexts<'_>,
    categories: SqlTexts<'_>,
    task_description: Option<&str>,
    descriptions: SqlTexts<'_>,
    examples: Option<Jsonb<'_>>,
    method: Option<&str>,
    threshold: Option<f64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    on_error: Option<&str>,
) -> TableIterator<'static, (name!(index, i32), name!(categories, Option<Vec<String>>))> {
    let answers = input.and_then(|input| {
        let params = verb_params(use_cache, seed, model);
        let told = (task_description, method, threshold);
        let params = with_categories(params, categories, told, descriptions, examples).or_raise();
        answers_of("classify_multi", Some(input), &params, on_error)
    });
    let lines = numbered(answers).map(|(index, answer)| {
        let names = |categories: Categories| categories.lines.into_iter().map(|(name, _)| name).collect();
        (index, answer.map(names))
    });
    TableIterator::new(lines.collect::<Vec<_>>())
}

/// The answers with the numbers of their elements, from 1.
fn numbered(answers: Option<Vec<Option<Answer>>>) -> impl Iterator<Item = (i32, Option<Categories>)> {
    let answers = answers.into_iter().flatten();
    (1..).zip(answers.map(|answer| answer.map(|answer| answer.into_categories().or_raise())))
}
