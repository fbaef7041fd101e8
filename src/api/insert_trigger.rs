//! What happens when a row is inserted into steadytext_queue: every limit is checked here, so that plain INSERTs
//! meet the same ones as the API functions, an answer that the cache has is filled in, and otherwise the worker's wake is armed.

use std::cell::Cell;
use std::convert::Infallible;
use std::ffi::CStr;
use std::num::NonZeroUsize;

use pgrx::heap_tuple::PgHeapTuple;
use pgrx::prelude::*;
use pgrx::{AllocatedByPostgres, IntoDatum};
use serde_json::Value;
use uuid::Uuid;

use super::cache_lookup;
use super::constrained::check_constraint;
use super::refuse::refusal;
use crate::pg::cache_table::Found;
use crate::pg::caches::{self, Config};
use crate::pg::error::{OrRaise, PgError};
use crate::pg::tuple::{self, NewRow};
use crate::pg::{activity, copied, guc, listen, pending, privilege, shmem, slots, transaction, wake};
use crate::request::batch_checks::{self, check_embed, check_rerank};
use crate::request::params::{self, Unused};
use crate::request::{Answer, Asked, check_model, named_model};

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
    Id,
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
    OwnerRole,
}

impl Column {
    const NAMES: [&CStr; 19] = [
        c"id",
        c"request_id",
        c"request_type",
        c"prompt",
        c"prompts",
        c"params",
        c"priority",
        c"user_id",
        c"session_id",
        c"max_retries",
        c"created_at",
        c"status",
        c"result",
        c"results",
        c"embedding",
        c"started_at",
        c"completed_at",
        c"processing_time_ms",
        c"owner_role",
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
    fn of(row: NewRow<'_>) -> Result<Places, PgError> {
        thread_local! {
            static KNOWN: Cell<Option<Places>> = const { Cell::new(None) };
        }
        if let Some(known) = KNOWN.get().filter(|known| known.table == row.table()) {
            return Ok(known);
        }
        let mut numbers = [NonZeroUsize::MIN; Column::NAMES.len()];
        for (number, name) in numbers.iter_mut().zip(Column::NAMES) {
            *number = row.column(name).ok_or_else(|| {
                let name = name.to_string_lossy();
                PgError::internal(format!("the table of this trigger has no column {name}"))
            })?;
        }
        let places = Places { table: row.table(), numbers };
        KNOWN.set(Some(places));
        Ok(places)
    }

    fn at(&self, column: Column) -> NonZeroUsize {
        self.numbers[column as usize]
    }
}

/// A version 7 UUID: ids made later sort later, so the unique index grows at its right end.
#[pg_extern(volatile, parallel_safe)]
fn new_request_id() -> pgrx::Uuid {
    pgrx::Uuid::from_bytes(*pending::new_id().as_bytes())
}

/// BEFORE INSERT FOR EACH ROW on steadytext_queue.
#[pg_trigger]
fn check_request<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<Row<'a>>, Infallible> {
    let hidden = copied::hide();
    let Some(row) = NewRow::of(trigger) else {
        PgError::internal("this trigger is for rows that are about to be inserted").raise()
    };
    let config = caches::config().or_raise();
    let places = Places::of(row).or_raise();
    let owner = row.role(places.at(Column::OwnerRole));
    // PostgreSQL's own message would show the row; no CHECK is asked before it.
    if row.is_null(places.at(Column::Id), pg_sys::INT8OID) {
        refusal("steadytext_queue", "id").raise();
    }
    // Rows from a dump come with their time and pass unchecked: a limit that was lowered since must not refuse the whole
    // COPY. Users may not write created_at. A WHEN clause would be parsed anew in every statement. What is applied from
    // another server was checked there, and an answer must not be put into it here.
    if !transaction::applies_changes()
        && row.time(places.at(Column::CreatedAt)).is_none_or(|at| at == transaction::started_at())
    {
        let given = check_row(row, &places, &config).or_raise();
        if let Some((found, answer)) = from_cache(row, &places, &given, &config) {
            let row = complete(trigger, row, &places, &found, &answer);
            copied::show(hidden);
            return Ok(Some(row));
        }
        check_queue_length(owner, &config).or_raise();
    }
    if row.text(places.at(Column::Status)) == Some("pending") {
        let id = row.uuid(places.at(Column::RequestId));
        pending::inserting(owner, id.map(|id| Uuid::from_bytes(*id.as_bytes())));
        wake::arm_enqueued(row.integer(places.at(Column::Priority)).unwrap_or_default());
    }
    if guc::notify()
        && let Some(id) = row.uuid(places.at(Column::RequestId))
    {
        listen::notify(c"steadytext_queue", &id.to_string());
    }
    warn_once_if_not_preloaded();
    copied::show(hidden);
    Ok(trigger.new())
}

/// What a row asks.
struct Given<'a> {
    request_type: &'a str,
    prompt: Option<&'a str>,
    prompts: Option<Vec<Option<&'a str>>>,
    params: Value,
}

impl Given<'_> {
    fn asked(&self) -> Asked<'_> {
        Asked {
            request_type: self.request_type,
            prompt: self.prompt,
            prompts: self.prompts.as_deref(),
            params: &self.params,
        }
    }
}

/// The answer to a request, if the cache has it. What keeps it from being looked up is the worker's to say.
fn from_cache(
    row: NewRow<'_>,
    places: &Places,
    given: &Given<'_>,
    config: &Config,
) -> Option<(Found, Answer)> {
    if row.text(places.at(Column::Status)) != Some("pending") {
        return None;
    }
    cache_lookup::find(given.asked(), config).ok()?
}

/// The row of a request that is answered: no worker sees it, and nobody has to be woken.
fn complete<'a>(
    trigger: &'a PgTrigger<'a>,
    row: NewRow<'_>,
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
        && let Some(id) = row.uuid(places.at(Column::RequestId))
    {
        listen::notify(c"steadytext_result", &id.to_string());
    }
    let values: Vec<_> =
        values.into_iter().filter_map(|(column, datum)| Some((places.at(column), datum?))).collect();
    tuple::with_values(trigger, &values)
}

/// Checks what a row asks, and reads it. Whatever is known by its length or number is looked at before anything is fetched or copied.
fn check_row<'a>(row: NewRow<'a>, places: &Places, config: &Config) -> Result<Given<'a>, PgError> {
    let bytes = |column, of| row.bytes(places.at(column), of);
    let text_bytes = |column| bytes(column, pg_sys::TEXTOID);
    for column in [Column::RequestType, Column::UserId, Column::SessionId] {
        if text_bytes(column) > MAX_LABEL_BYTES {
            let label = Column::NAMES[column as usize].to_string_lossy();
            return Err(too_long(format!("{label} cannot be longer than {MAX_LABEL_BYTES} bytes")));
        }
    }
    let request_type = row.text(places.at(Column::RequestType)).unwrap_or_default();
    let has_prompt = !row.is_null(places.at(Column::Prompt), pg_sys::TEXTOID);
    let has_prompts = !row.is_null(places.at(Column::Prompts), pg_sys::TEXTARRAYOID);
    check_columns(request_type, has_prompt, has_prompts)?;
    check_length(text_bytes(Column::Prompt), config)?;
    batch_checks::check_stored(bytes(Column::Prompts, pg_sys::TEXTARRAYOID), config)?;
    params::check_bytes(request_type, bytes(Column::Params, pg_sys::JSONBOID), config)?;

    let most = usize::try_from(config.max_batch_size).unwrap_or(usize::MAX);
    let prompts = match row.texts(places.at(Column::Prompts), most) {
        Ok(prompts) => prompts,
        Err(count) => {
            batch_checks::check_count(count, batch_checks::name_of_prompts(request_type), config)?;
            None
        }
    };
    let params = params::read(request_type, row.jsonb(places.at(Column::Params)), Unused::Refused, config)?;
    let given = Given { request_type, prompt: row.text(places.at(Column::Prompt)), prompts, params };
    check_type(given.asked(), config)?;
    if !row.integer(places.at(Column::Priority)).is_some_and(|priority| (1..=10).contains(&priority)) {
        return Err(
            invalid("priority must be between 1 and 10").hint("10 is served first, 5 is the default.")
        );
    }
    if !row
        .integer(places.at(Column::MaxRetries))
        .is_none_or(|retries| (0..=MAX_RETRIES_LIMIT).contains(&retries))
    {
        return Err(invalid(format!("max_retries must be between 0 and {MAX_RETRIES_LIMIT}")));
    }
    check_params(request_type, &given.params, config)?;
    // The registry is only read for requests that name one of its models.
    if named_model(&given.params).is_some() {
        check_model(request_type, &given.params, &caches::models()?)?;
    }
    Ok(given)
}

/// Checks a request's type and what the type asks of its text and its parameters.
pub(super) fn check_type(asked: Asked<'_>, config: &Config) -> Result<(), PgError> {
    let Asked { request_type, prompt: text, params, .. } = asked;
    check_columns(request_type, text.is_some(), asked.prompts.is_some())?;
    check_constraint(request_type, params)?;
    match request_type {
        "generate" => check_text(text, "Prompt cannot be empty", config),
        // Members of a batch fail alone, in the worker, not with the whole batch here.
        "embed" if params.get("batch") == Some(&Value::Bool(true)) => {
            check_length(text.map_or(0, str::len), config)
        }
        "embed" => check_text(text, "Text input cannot be empty", config),
        "generate_json" | "generate_regex" | "generate_choice" => {
            check_text(text, "Prompt cannot be empty", config)
        }
        "rerank" | "batch_rerank" => {
            check_forms(asked)?;
            check_rerank(asked, config)
        }
        "batch_embed" => check_embed(asked, config),
        _ => Err(unknown_type(request_type)),
    }
}

fn unknown_type(request_type: &str) -> PgError {
    invalid(format!("unknown request type \"{}\"", truncated(request_type))).hint(TYPES_HINT)
}

/// Refuses a column that the type has no use for.
fn check_columns(request_type: &str, has_prompt: bool, has_prompts: bool) -> Result<(), PgError> {
    match request_type {
        "generate" | "embed" | "generate_json" | "generate_regex" | "generate_choice" if has_prompts => {
            Err(invalid(format!("requests of type {request_type} take no prompts array"))
                .hint("Put the text into column prompt, one row for each."))
        }
        "batch_embed" if has_prompt => {
            Err(invalid("requests of type batch_embed take no prompt")
                .hint("Put the texts into column prompts."))
        }
        "batch_rerank" if has_prompt && has_prompts => Err(twice("the query", "prompt", "prompts")),
        "generate" | "embed" | "generate_json" | "generate_regex" | "generate_choice" | "batch_embed"
        | "rerank" | "batch_rerank" => Ok(()),
        _ => Err(unknown_type(request_type)),
    }
}

/// Refuses a ranking whose query or documents are in two places: one of them would be kept for nothing.
fn check_forms(asked: Asked<'_>) -> Result<(), PgError> {
    let Asked { request_type, prompt, prompts, params } = asked;
    let (query, documents) = (params.get("query").is_some(), params.get("documents").is_some());
    match request_type {
        _ if query && prompt.is_some() => Err(twice("the query", "prompt", "params")),
        "batch_rerank" if query && prompts.is_some() => Err(twice("the query", "prompts", "params")),
        "rerank" if documents && prompts.is_some() => Err(twice("the documents", "prompts", "params")),
        _ => Ok(()),
    }
}

fn twice(what: &str, column: &str, other: &str) -> PgError {
    invalid(format!("{what} may be in {column} or in {other}, not in both")).hint("Leave one of them NULL.")
}

fn check_text(text: Option<&str>, if_empty: &'static str, config: &Config) -> Result<(), PgError> {
    if text.is_none_or(|text| text.trim().is_empty()) {
        return Err(PgError::raised(if_empty).lasting());
    }
    check_length(text.map_or(0, str::len), config)
}

fn check_length(bytes: usize, config: &Config) -> Result<(), PgError> {
    let limit = config.max_prompt_bytes;
    if bytes as i64 > limit {
        return Err(too_long(format!("the text has {bytes} bytes, {limit} are allowed"))
            .hint("Shorten the text, or raise max_prompt_bytes with steadytext_config_set().")
            .lasting());
    }
    Ok(())
}

/// Checks the parameters of a request of any type.
pub(super) fn check_params(request_type: &str, params: &Value, config: &Config) -> Result<(), PgError> {
    let params = match params {
        Value::Null => return Ok(()),
        Value::Object(params) => params,
        _ => return Err(invalid("params must be a JSON object")),
    };
    for (key, value) in params {
        params::check_name(request_type, key)?;
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
            "use_cache" | "batch" | "return_scores" | "truncate" => {
                require(value.is_boolean(), key, "true or false")?
            }
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
            _ => return Err(invalid(format!("unknown parameter \"{}\"", truncated(key)))),
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

/// Whether the caller may put one more request back to pending; it is counted then. Called by the policy for such updates, so that
/// those of the protocol, which no policy binds, pay nothing for it.
#[pg_extern(volatile, parallel_unsafe)]
fn admit_retry() -> bool {
    let role = privilege::current_user();
    check_queue_length(role, &caches::config().or_raise()).or_raise();
    pending::retrying(role);
    true
}

/// The counts are of committed rows, kept in shared memory, so the limits are met within the size of what
/// transactions enqueue at the same moment. Those who could raise the limit of a role are not bound by it.
fn check_queue_length(owner: pg_sys::Oid, config: &Config) -> Result<(), PgError> {
    let Some(slot) = slots::mine() else { return Ok(()) };
    let count = pending::count(slot, owner);
    let full = |message| PgError::new(PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, message);
    let (limit, limit_of_role) = (config.max_queue_size, config.max_queue_size_per_role);
    if count.all >= limit {
        return Err(full(format!("the queue is full: {limit} requests are pending"))
            .hint("Wait until some are answered, or raise max_queue_size with steadytext_config_set()."));
    }
    if count.own >= limit_of_role && !privilege::is_administrator(privilege::current_user()) {
        return Err(full(format!("the queue is full for this role: {limit_of_role} of its requests are pending")).hint(
            "Wait until some are answered, or let an administrator raise max_queue_size_per_role with steadytext_config_set().",
        ));
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
