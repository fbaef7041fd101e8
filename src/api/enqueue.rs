//! What happens when a row is inserted into steadytext_queue: every limit is checked here, so that plain INSERTs
//! meet the same ones as the API functions, an answer that the cache has is filled in, and otherwise the worker's wake is armed.

use std::cell::Cell;
use std::convert::Infallible;
use std::num::NonZeroUsize;
use std::sync::atomic::Ordering::Relaxed;

use pgrx::heap_tuple::PgHeapTuple;
use pgrx::prelude::*;
use pgrx::{AllocatedByPostgres, Array, IntoDatum, JsonB};
use serde_json::Value;
use uuid::Uuid;

use super::cache;
use super::constrained::check_constraint;
use crate::pg::cache_table::Found;
use crate::pg::caches::{self, Config};
use crate::pg::error::{OrRaise, PgError};
use crate::pg::{activity, guc, listen, shmem, slots, transaction, tuple, wake};
use crate::worker::request::{Answer, Asked, check_embed, check_rerank};

/// Longest free label (user_id, session_id), in bytes.
const MAX_LABEL_BYTES: usize = 1024;
/// Longest string among the parameters (eos_string, model, size, task), in bytes.
const MAX_TEXT_PARAMETER_BYTES: usize = 1024;
const TYPES_HINT: &str = "Use request type generate, generate_json, generate_regex, generate_choice, embed, batch_embed, rerank or batch_rerank.";
const MAX_RETRIES_LIMIT: i32 = 100;

type Row<'a> = PgHeapTuple<'a, AllocatedByPostgres>;

/// The columns that are checked or filled in.
#[derive(Debug, Clone, Copy)]
enum Column {
    RequestId,
    RequestType,
    Prompt,
    Prompts,
    Params,
    Priority,
    UserId,
    SessionId,
    MaxRetries,
    CreatedAt,
    Status,
    Result,
    Results,
    Embedding,
    StartedAt,
    CompletedAt,
    ProcessingTimeMs,
}

impl Column {
    const NAMES: [&str; 17] = [
        "request_id",
        "request_type",
        "prompt",
        "prompts",
        "params",
        "priority",
        "user_id",
        "session_id",
        "max_retries",
        "created_at",
        "status",
        "result",
        "results",
        "embedding",
        "started_at",
        "completed_at",
        "processing_time_ms",
    ];
}

/// Where the columns are. Looking them up by name costs more than everything else that is done with a row, and they never
/// move while a table lives.
#[derive(Debug, Clone, Copy)]
struct Places {
    table: pg_sys::Oid,
    numbers: [NonZeroUsize; Column::NAMES.len()],
}

impl Places {
    fn of(row: &Row<'_>, table: pg_sys::Oid) -> Result<Places, PgError> {
        thread_local! {
            static KNOWN: Cell<Option<Places>> = const { Cell::new(None) };
        }
        if let Some(known) = KNOWN.get().filter(|known| known.table == table) {
            return Ok(known);
        }
        let mut numbers = [NonZeroUsize::MIN; Column::NAMES.len()];
        for (number, name) in numbers.iter_mut().zip(Column::NAMES) {
            (*number, _) = row.get_attribute_by_name(name).ok_or_else(|| {
                PgError::internal(format!("the table of this trigger has no column {name}"))
            })?;
        }
        let places = Places { table, numbers };
        KNOWN.set(Some(places));
        Ok(places)
    }

    fn get<'a, T>(&self, row: &'a Row<'_>, column: Column) -> Result<Option<T>, PgError>
    where
        T: pgrx::FromDatum + pgrx::IntoDatum + pgrx::datum::UnboxDatum<As<'a> = T> + 'a,
    {
        row.get_by_index(self.numbers[column as usize])
            .map_err(|error| PgError::internal(format!("column {}: {error}", Column::NAMES[column as usize])))
    }
}

/// A version 7 UUID: ids made later sort later, so the unique index grows at its right end.
#[pg_extern(volatile, parallel_safe)]
fn new_request_id() -> pgrx::Uuid {
    pgrx::Uuid::from_bytes(*Uuid::now_v7().as_bytes())
}

/// BEFORE INSERT FOR EACH ROW on steadytext_queue.
#[pg_trigger]
fn check_request<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Row<'a>>, Infallible> {
    let row = trigger.new();
    if let Some(row) = &row {
        let config = caches::config().or_raise();
        let places = Places::of(row, trigger.relid().unwrap_or(pg_sys::InvalidOid)).or_raise();
        // Rows from a dump come with their time and pass unchecked: a limit that was lowered since must not refuse the whole
        // COPY. Users may not write created_at. A WHEN clause would be parsed anew in every statement.
        let created_at = places.get::<TimestampWithTimeZone>(row, Column::CreatedAt).or_raise();
        if created_at.is_none_or(|at| i64::from(at) == transaction::started_at()) {
            check_row(row, &places, &config).or_raise();
            if let Some((found, answer)) = from_cache(row, &places, &config) {
                return Ok(Some(complete(trigger, row, &places, &found, &answer)));
            }
            check_queue_length(&config).or_raise();
        }
        wake::arm_enqueued();
        if guc::notify()
            && let Some(id) = places.get::<pgrx::Uuid>(row, Column::RequestId).or_raise()
        {
            listen::notify(c"steadytext_queue", &id.to_string());
        }
        warn_once_if_not_preloaded();
    }
    Ok(row)
}

/// The answer to a request, if the cache has it. What keeps it from being looked up is the worker's to say.
fn from_cache(row: &Row<'_>, places: &Places, config: &Config) -> Option<(Found, Answer)> {
    if places.get::<&str>(row, Column::Status).ok()? != Some("pending") {
        return None;
    }
    let params = params(row, places).ok()?;
    let request_type = places.get::<&str>(row, Column::RequestType).ok()??;
    let (prompt, texts) = (places.get::<&str>(row, Column::Prompt).ok()?, texts(row, places).ok()?);
    cache::find(Asked { request_type, prompt, prompts: texts.as_deref(), params: &params }, config).ok()?
}

/// The row of a request that is answered: no worker sees it, and nobody has to be woken.
fn complete<'a>(
    trigger: &'a PgTrigger<'a>,
    row: &Row<'_>,
    places: &Places,
    found: &Found,
    answer: &Answer,
) -> Row<'a> {
    let now = pg_sys::Datum::from(activity::now());
    let documents: Option<Vec<String>> = match answer {
        Answer::Ranking(ranking) => Some(ranking.documents().map(str::to_owned).collect()),
        Answer::Text(_) | Answer::Embedding(_) | Answer::Embeddings(_) => None,
    };
    let values = [
        (Column::Status, "completed".into_datum()),
        (Column::Result, found.response),
        (Column::Results, documents.into_datum()),
        (Column::Embedding, found.embedding),
        (Column::StartedAt, Some(now)),
        (Column::CompletedAt, Some(now)),
        (Column::ProcessingTimeMs, 0.into_datum()),
    ];
    if guc::notify()
        && let Some(id) = places.get::<pgrx::Uuid>(row, Column::RequestId).or_raise()
    {
        listen::notify(c"steadytext_result", &id.to_string());
    }
    let values: Vec<_> = values
        .into_iter()
        .filter_map(|(column, datum)| Some((places.numbers[column as usize], datum?)))
        .collect();
    tuple::with_values(trigger, &values)
}

/// Column prompts.
fn texts(row: &Row<'_>, places: &Places) -> Result<Option<Vec<Option<String>>>, PgError> {
    let texts = places.get::<Array<'_, &str>>(row, Column::Prompts)?;
    Ok(texts.map(|texts| texts.iter().map(|text| text.map(str::to_owned)).collect()))
}

fn check_row(row: &Row<'_>, places: &Places, config: &Config) -> Result<(), PgError> {
    let params = params(row, places)?;
    let request_type = places.get::<&str>(row, Column::RequestType)?.unwrap_or_default();
    let text = places.get::<&str>(row, Column::Prompt)?;
    let texts = texts(row, places)?;
    check_type(Asked { request_type, prompt: text, prompts: texts.as_deref(), params: &params }, config)?;
    for column in [Column::UserId, Column::SessionId] {
        let label = Column::NAMES[column as usize];
        if places.get::<&str>(row, column)?.is_some_and(|text| text.len() > MAX_LABEL_BYTES) {
            return Err(too_long(format!("{label} cannot be longer than {MAX_LABEL_BYTES} bytes")));
        }
    }
    if !places.get::<i32>(row, Column::Priority)?.is_some_and(|priority| (1..=10).contains(&priority)) {
        return Err(
            invalid("priority must be between 1 and 10").hint("10 is served first, 5 is the default.")
        );
    }
    if !places
        .get::<i32>(row, Column::MaxRetries)?
        .is_none_or(|retries| (0..=MAX_RETRIES_LIMIT).contains(&retries))
    {
        return Err(invalid(format!("max_retries must be between 0 and {MAX_RETRIES_LIMIT}")));
    }
    check_params(&params, config)
}

/// The parameters. The type jsonb nests deeper than what parses it here.
fn params(row: &Row<'_>, places: &Places) -> Result<Value, PgError> {
    let given = PgTryBuilder::new(|| places.get::<JsonB>(row, Column::Params))
        .catch_rust_panic(|_| Err(invalid("params is nested too deeply, or has a number out of range")))
        .execute()?;
    Ok(given.map_or(Value::Null, |params| params.0))
}

/// Checks a request's type and what the type asks of its text and its parameters.
pub(super) fn check_type(asked: Asked<'_>, config: &Config) -> Result<(), PgError> {
    let Asked { request_type, prompt: text, params, .. } = asked;
    check_prompts(asked)?;
    check_constraint(request_type, params)?;
    match request_type {
        "generate" => check_text(text, "Prompt cannot be empty", config),
        // Members of a batch fail alone, in the worker, not with the whole batch here.
        "embed" if params.get("batch") == Some(&Value::Bool(true)) => check_length(text, config),
        "embed" => check_text(text, "Text input cannot be empty", config),
        "generate_json" | "generate_regex" | "generate_choice" => {
            check_text(text, "Prompt cannot be empty", config)
        }
        "rerank" | "batch_rerank" => check_rerank(asked, config),
        "batch_embed" => check_embed(asked, config),
        _ => Err(invalid(format!("unknown request type \"{}\"", truncated(request_type))).hint(TYPES_HINT)),
    }
}

/// Only requests of many parts have many texts.
fn check_prompts(asked: Asked<'_>) -> Result<(), PgError> {
    match asked.request_type {
        "generate" | "embed" | "generate_json" | "generate_regex" | "generate_choice"
            if asked.prompts.is_some() =>
        {
            Err(invalid(format!("requests of type {} take no prompts array", asked.request_type))
                .hint("Put the text into column prompt, one row for each."))
        }
        _ => Ok(()),
    }
}

fn check_text(text: Option<&str>, if_empty: &'static str, config: &Config) -> Result<(), PgError> {
    if text.is_none_or(|text| text.trim().is_empty()) {
        return Err(PgError::raised(if_empty));
    }
    check_length(text, config)
}

fn check_length(text: Option<&str>, config: &Config) -> Result<(), PgError> {
    let limit = config.max_prompt_bytes;
    match text {
        Some(text) if text.len() as i64 > limit => {
            Err(too_long(format!("the text has {} bytes, {limit} are allowed", text.len()))
                .hint("Shorten the text, or raise max_prompt_bytes with steadytext_config_set()."))
        }
        _ => Ok(()),
    }
}

/// Checks the parameters of a request of any type.
pub(super) fn check_params(params: &Value, config: &Config) -> Result<(), PgError> {
    let params = match params {
        Value::Null => return Ok(()),
        Value::Object(params) => params,
        _ => return Err(invalid("params must be a JSON object")),
    };
    for (key, value) in params {
        match key.as_str() {
            "max_tokens" => {
                let limit = config.max_tokens_limit;
                if !value.as_i64().is_some_and(|tokens| (1..=limit).contains(&tokens)) {
                    return Err(PgError::raised(format!("max_tokens must be between 1 and {limit}")));
                }
            }
            "seed" => require(value.is_i64(), key, "an integer")?,
            "temperature" => require(in_range(value, 0.0, 100.0), key, "a number between 0 and 100")?,
            "top_k" => require(
                value.as_i64().is_some_and(|k| (0..=1_000_000).contains(&k)),
                key,
                "an integer between 0 and 1000000",
            )?,
            "top_p" => require(in_range(value, 0.0, 1.0), key, "a number between 0 and 1")?,
            "min_p" => require(in_range(value, 0.0, 1.0), key, "a number between 0 and 1")?,
            // They were checked with the type.
            "schema" | "pattern" | "choices" => {}
            "use_cache" | "batch" | "return_scores" => require(value.is_boolean(), key, "true or false")?,
            "mode" => {
                require(matches!(value.as_str(), Some("query" | "passage")), key, "\"query\" or \"passage\"")?
            }
            "eos_string" | "model" | "size" | "task" => {
                let fits = |text: &str| !text.is_empty() && text.len() <= MAX_TEXT_PARAMETER_BYTES;
                let range = format!("a text of 1 to {MAX_TEXT_PARAMETER_BYTES} bytes");
                require(value.as_str().is_some_and(fits), key, &range)?;
            }
            // Texts, with limits of their own.
            "query" => require(value.is_string(), key, "a text")?,
            "documents" => require(value.is_array(), key, "an array of texts")?,
            _ => {
                return Err(invalid(format!("unknown parameter \"{}\"", truncated(key))).hint(
                    "Known parameters: max_tokens, seed, temperature, top_k, top_p, min_p, use_cache, eos_string, model, size, mode, task, return_scores, query, documents, schema, pattern, choices.",
                ));
            }
        }
    }
    if params.contains_key("task") && params.get("mode").and_then(Value::as_str) == Some("passage") {
        return Err(invalid("a passage has no task").hint("Give a task with mode query, or leave mode out."));
    }
    Ok(())
}

fn in_range(value: &Value, low: f64, high: f64) -> bool {
    value.as_f64().is_some_and(|number| (low..=high).contains(&number))
}

fn require(holds: bool, key: &str, wanted: &str) -> Result<(), PgError> {
    if holds { Ok(()) } else { Err(invalid(format!("{key} must be {wanted}"))) }
}

/// The count is of committed rows, kept in shared memory, so the limit is met within the size of what
/// transactions enqueue at the same moment.
fn check_queue_length(config: &Config) -> Result<(), PgError> {
    let Some(slot) = slots::mine() else { return Ok(()) };
    let limit = config.max_queue_size;
    if slot.pending.load(Relaxed) + wake::enqueued_now() >= limit {
        return Err(PgError::new(
            PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
            format!("the queue is full: {limit} requests are pending"),
        )
        .hint("Wait until some are answered, or raise max_queue_size with steadytext_config_set()."));
    }
    Ok(())
}

fn warn_once_if_not_preloaded() {
    thread_local! {
        static WARNED: Cell<bool> = const { Cell::new(false) };
    }
    if shmem::get().is_none() && !WARNED.replace(true) {
        not_preloaded("the request is enqueued, but no worker runs: pg_steadytext is not preloaded")
            .report(PgLogLevel::WARNING);
    }
}

/// What to say where the library is not in shared_preload_libraries.
pub(super) fn not_preloaded(message: &'static str) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE, message)
        .hint("Add shared_preload_libraries = 'pg_steadytext' to postgresql.conf and restart the server.")
}

fn invalid(message: impl Into<String>) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
}

fn too_long(message: impl Into<String>) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED, message)
}

/// The beginning of something a user sent, fit for an error message.
fn truncated(text: &str) -> String {
    text.chars().take(64).collect()
}
