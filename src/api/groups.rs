//! Aggregates over the values of a group: the functions that PostgreSQL calls for each value and in the end.
//! The aggregates themselves are declared in `sql/54_summaries.sql`.
//!
//! Invariant: without an ORDER BY in the aggregate, the answer depends on the values and on nothing else,
//! such as the plan that has found them: they are sorted by their bytes.

use pgrx::datum::Internal;
use pgrx::prelude::*;
use pgrx::{JsonB, pg_sys};
use serde_json::{Map, Value, json};

use super::answers;
use crate::pg::catalog_cache;
use crate::pg::error::{OrRaise, PgError};
use crate::pg::group_state::{self, GroupState};
use crate::pg::guc;
use crate::pg::jsonb::{self, Item, Jsonb};
use crate::registry::ModelTask;
use crate::request::checks::invalid;
use crate::request::defaults;
use crate::request::summary::{
    MOST_METADATA_BYTES, Summary, SummaryLevel, SummaryRow, in_words, not_an_object,
};
use crate::request::{Answer, Subtasks};

/// The bytes of a group, as a multiple of max_prompt_bytes.
const GROUP_FACTOR: usize = 16;
/// Elements of the metadata of a value.
const MAX_METADATA_ELEMENTS: usize = 256;
/// Bytes of values that a partial summary holds as they are; of more it holds a summary, of so many words.
const PARTIAL_BYTES: usize = 4096;
const PARTIAL_WORDS: i64 = 100;
/// Bytes of what is asked about a group.
const MOST_TASK_BYTES: usize = 8192;

/// Adds a value.
#[pg_extern(immutable, parallel_safe)]
fn summarize_add(state: Internal, value: Option<&str>, call: pg_sys::FunctionCallInfo) -> Internal {
    added(state, value, call, || Ok(String::new())).or_raise()
}

/// Adds a value with what is known about it.
#[pg_extern(immutable, parallel_safe)]
fn summarize_add_about(
    state: Internal,
    value: Option<&str>,
    metadata: Option<Jsonb<'_>>,
    call: pg_sys::FunctionCallInfo,
) -> Internal {
    added(state, value, call, || metadata.map_or_else(|| Ok(String::new()), note)).or_raise()
}

/// Adds a value with what is asked about all of them.
#[pg_extern(immutable, parallel_safe)]
fn agg_add(
    state: Internal,
    value: Option<&str>,
    task_description: Option<&str>,
    call: pg_sys::FunctionCallInfo,
) -> Internal {
    let task = || match task_description {
        Some(task) if !task.trim().is_empty() && task.len() <= MOST_TASK_BYTES => Ok(task.to_owned()),
        _ => Err(invalid(format!("task_description must be a text of 1 to {MOST_TASK_BYTES} bytes"))
            .hint("Say what is to be made of the values of a group, as 'What do they have in common?'.")),
    };
    added(state, value, call, task).or_raise()
}

/// Adds the values of a partial summary.
#[pg_extern(immutable, parallel_safe)]
fn summarize_add_partial(
    state: Internal,
    partial: Option<Jsonb<'_>>,
    call: pg_sys::FunctionCallInfo,
) -> Internal {
    let mut state = GroupState::of(state, call).or_raise();
    if let Some(partial) = partial {
        add_partial(&mut state, partial).or_raise();
    }
    state.into_internal()
}

/// Puts the values of two states together.
#[pg_extern(immutable, parallel_safe)]
fn group_combine(state: Internal, other: Internal, call: pg_sys::FunctionCallInfo) -> Internal {
    let mut state = GroupState::of(state, call).or_raise();
    state.append(&group_state::records(other), most_bytes).or_raise();
    state.into_internal()
}

/// A state on its way between processes.
#[pg_extern(immutable, parallel_safe)]
fn group_serialize(state: Internal) -> Vec<u8> {
    group_state::records(state)
}

/// A state that has come from another process.
#[pg_extern(immutable, parallel_safe)]
fn group_deserialize(records: &[u8], _unused: Internal) -> Internal {
    let mut state = GroupState::new();
    state.append(records, || Ok(usize::MAX)).or_raise();
    state.into_internal()
}

/// The summary of a group.
#[pg_extern(immutable, parallel_safe)]
fn summarize_finish(state: Internal, call: pg_sys::FunctionCallInfo) -> Option<String> {
    let state = GroupState::of(state, call).or_raise();
    let rows = rows(&state, call).or_raise();
    (!rows.is_empty()).then(|| summary(&rows, defaults::MAX_WORDS).or_raise())
}

/// The answer to what is asked about a group.
#[pg_extern(immutable, parallel_safe)]
fn agg_finish(state: Internal, call: pg_sys::FunctionCallInfo) -> Option<String> {
    let state = GroupState::of(state, call).or_raise();
    let rows = rows(&state, call).or_raise();
    let task = rows.first()?.note;
    if rows.iter().any(|row| row.note != task) {
        invalid("task_description differs among the rows of a group")
            .hint("Give one task for the whole group, or group by it.")
            .raise();
    }
    let summary = Summary::of_task(&rows, task, guc::engine().context_length);
    Some(answer(summary).or_raise())
}

/// The state of a partial summary: the values, or, of many, a summary of them.
#[pg_extern(immutable, parallel_safe)]
fn summarize_finish_partial(state: Internal, call: pg_sys::FunctionCallInfo) -> Option<JsonB> {
    let state = GroupState::of(state, call).or_raise();
    let rows = rows(&state, call).or_raise();
    let first = rows.first()?;
    let count = rows.len();
    let bytes: usize = rows.iter().map(|row| row.value.len() + row.note.len()).sum();
    let values = if bytes <= PARTIAL_BYTES {
        rows.iter().map(|row| json!([row.value, row.note])).collect()
    } else {
        // Metadata that all values share belong to their summary as well.
        let common = if rows.iter().all(|row| row.note == first.note) { first.note } else { "" };
        vec![json!([summary(&rows, PARTIAL_WORDS).or_raise(), common])]
    };
    Some(JsonB(json!({ "rows": count, "values": Value::Array(values) })))
}

/// Adds a value, unless it is NULL or blank: there is nothing in it.
fn added(
    state: Internal,
    value: Option<&str>,
    call: pg_sys::FunctionCallInfo,
    note: impl FnOnce() -> Result<String, PgError>,
) -> Result<Internal, PgError> {
    let mut state = GroupState::of(state, call)?;
    if let Some(value) = value.filter(|value| !value.trim().is_empty()) {
        state.push(value, &note()?, most_bytes)?;
    }
    Ok(state.into_internal())
}

/// Metadata of a value, in words.
fn note(metadata: Jsonb<'_>) -> Result<String, PgError> {
    match metadata.root() {
        Some(Item::Null) => Ok(String::new()),
        Some(root @ Item::Object(_)) => match jsonb::tree(root, MAX_METADATA_ELEMENTS) {
            Ok(Value::Object(metadata)) => in_words(&metadata),
            _ => Err(invalid(
                "the metadata are nested too deeply, have too many elements, or a number out of range",
            )
            .hint("They are told to the model in words: give a few members, as {\"topic\": \"databases\"}.")),
        },
        _ => Err(not_an_object()),
    }
}

fn add_partial(state: &mut GroupState, partial: Jsonb<'_>) -> Result<(), PgError> {
    let foreign = || {
        invalid("the value is no partial summary")
            .hint("steadytext_summarize_final takes what steadytext_summarize_partial has made.")
    };
    let object = match partial.root() {
        Some(Item::Object(object)) => object,
        Some(Item::Null) => return Ok(()),
        _ => return Err(foreign()),
    };
    let values = object.pairs().find_map(|pair| match pair {
        Some(("values", Item::Array(values))) => Some(values),
        _ => None,
    });
    for pair in values.ok_or_else(foreign)?.values() {
        let Some(Item::Array(pair)) = pair else { return Err(foreign()) };
        let mut texts = pair.values();
        let (Some(Some(Item::Text(value))), Some(Some(Item::Text(note))), None) =
            (texts.next(), texts.next(), texts.next())
        else {
            return Err(foreign());
        };
        if note.len() > MOST_METADATA_BYTES {
            return Err(foreign());
        }
        if !value.trim().is_empty() {
            state.push(value, note, most_bytes)?;
        }
    }
    Ok(())
}

/// The values of a group in the order that counts.
fn rows(state: &GroupState, call: pg_sys::FunctionCallInfo) -> Result<Vec<SummaryRow<'_>>, PgError> {
    let mut rows: Vec<SummaryRow<'_>> =
        state.rows()?.into_iter().map(|(value, note)| SummaryRow { value, note }).collect();
    if !group_state::is_ordered(call) {
        rows.sort_unstable();
    }
    Ok(rows)
}

fn summary(rows: &[SummaryRow<'_>], max_words: i64) -> Result<String, PgError> {
    answer(Summary::of_rows(rows, max_words, guc::engine().context_length))
}

fn answer(summary: Summary) -> Result<String, PgError> {
    let level = SummaryLevel::first(summary);
    level.check_prompt()?;
    answers::answer_of("summarize", ModelTask::Generate, Subtasks::Summary(level), Map::new())
        .and_then(Answer::into_text)
}

/// Most bytes of the values of a group.
fn most_bytes() -> Result<usize, PgError> {
    let limit = usize::try_from(catalog_cache::config()?.max_prompt_bytes).unwrap_or(usize::MAX);
    Ok(limit.saturating_mul(GROUP_FACTOR))
}
