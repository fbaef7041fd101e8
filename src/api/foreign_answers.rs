//! Answers that workers elsewhere report as such, without an engine's outputs.

use pgrx::Array;
use pgrx::prelude::*;

use super::context::width_of;
use super::elsewhere::{RowTexts, work};
use crate::pg::jsonb::Jsonb;
use crate::request::ForeignAnswer;

/// The reason why an answer cannot be one to a row of the queue; NULL where the cheap checks find none.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments, reason = "a row and an answer")]
fn answer_flaw(
    request_type: Option<&str>,
    prompt: Option<&str>,
    prompts: RowTexts<'_>,
    params: Option<Jsonb<'_>>,
    result: Option<&str>,
    list: Option<Array<'_, &str>>,
    numbers: Option<Array<'_, f32>>,
    count: Option<i32>,
) -> Option<String> {
    let list: Option<Option<Vec<String>>> =
        list.map(|list| list.iter().map(|text| text.map(str::to_owned)).collect());
    let numbers: Vec<f32> =
        numbers.iter().flat_map(|numbers| numbers.iter()).map(|number| number.unwrap_or(f32::NAN)).collect();
    // A NULL is none of what was given.
    let Ok(list) = list.map_or(Ok(None), |list| list.map(Some).ok_or(())) else {
        return Some("has a list with NULL in it".to_owned());
    };
    if count == Some(0) {
        return None;
    }
    let (subtasks, model) = match work(request_type.unwrap_or_default(), prompt, prompts, params) {
        Ok(work) => work,
        Err(error) => return Some(format!("is to a request that has none: {}", error.message)),
    };
    let width = if numbers.is_empty() { None } else { width_of(&model.source) };
    let answer =
        ForeignAnswer { text: result.unwrap_or_default(), list: list.as_deref(), numbers: &numbers, width };
    subtasks.flaw(&answer).map(str::to_owned)
}
