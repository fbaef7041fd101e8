//! The trigger for rows that are inserted into steadytext_queue.
//!
//! Plain INSERTs must meet the same limits as the API functions, so every limit is checked here, in a
//! trigger. A request that the cache can answer is completed at once; for any other one the worker is woken
//! after the commit.

use std::cell::Cell;
use std::convert::Infallible;
use std::ffi::CStr;
use std::num::NonZeroUsize;

use pgrx::heap_tuple::PgHeapTuple;
use pgrx::prelude::*;
use pgrx::{AllocatedByPostgres, IntoDatum, JsonB};
use serde_json::Value;
use uuid::Uuid;

use super::refuse::{MAX_RETRIES_LIMIT, refusal};
use crate::cache::{self, CacheReply, Effort};
use crate::pg::catalog_cache::{self, DatabaseConfig};
use crate::pg::error::{OrRaise, PgError, counted, hide_copied_row, show_copied_row};
use crate::pg::rate_limits::RequestChannel;
use crate::pg::tuple::{self, NewRow};
use crate::pg::{
    activity, after_commit, guc, kept_prompts, listen, pending, privilege, rate_limits, refusals, shmem,
    slots, transaction,
};
use crate::registry::{self, RequestedModel};
use crate::request::batch_checks;
use crate::request::checks::{check_columns, check_length, check_params, check_type, invalid, too_long};
use crate::request::params::{self, Unused};
use crate::request::prompt_source;
use crate::request::verb_checks::is_verb;
use crate::request::{
    DEFAULT_MODEL, RawRequest, RequestMetrics, Usage, check_model, check_vectors, default_to_remember,
    leave_choice, wanted,
};

/// Longest free label (user_id, session_id), in bytes.
const MAX_LABEL_BYTES: usize = 1024;

type QueueTuple<'a> = PgHeapTuple<'a, AllocatedByPostgres>;

/// The columns that are checked or filled in.
#[derive(Debug, Clone, Copy)]
enum QueueColumn {
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

impl QueueColumn {
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

/// The places of the columns. Looking them up by name costs more than everything else that is done with a
/// row, and they never move while a table lives.
#[derive(Debug, Clone, Copy)]
struct QueueColumns {
    table: pg_sys::Oid,
    numbers: [NonZeroUsize; QueueColumn::NAMES.len()],
}

impl QueueColumns {
    fn of(row: NewRow<'_>) -> Result<QueueColumns, PgError> {
        thread_local! {
            static KNOWN: Cell<Option<QueueColumns>> = const { Cell::new(None) };
        }
        if let Some(known) = KNOWN.get().filter(|known| known.table == row.table()) {
            return Ok(known);
        }
        let mut numbers = [NonZeroUsize::MIN; QueueColumn::NAMES.len()];
        for (number, name) in numbers.iter_mut().zip(QueueColumn::NAMES) {
            *number = row.column(name).ok_or_else(|| {
                let name = name.to_string_lossy();
                PgError::internal(format!("the table of this trigger has no column {name}"))
            })?;
        }
        let columns = QueueColumns { table: row.table(), numbers };
        KNOWN.set(Some(columns));
        Ok(columns)
    }

    fn at(&self, column: QueueColumn) -> NonZeroUsize {
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
fn check_request<'a>(trigger: &'a PgTrigger<'a>) -> Result<Option<QueueTuple<'a>>, Infallible> {
    let hidden = hide_copied_row();
    let Some(row) = NewRow::of(trigger) else {
        PgError::internal("this trigger is for rows that are about to be inserted").raise()
    };
    let config = catalog_cache::config().or_raise();
    let columns = QueueColumns::of(row).or_raise();
    let owner = row.role(columns.at(QueueColumn::OwnerRole));
    // PostgreSQL's own message would show the row; no CHECK is asked before it.
    if row.is_null(columns.at(QueueColumn::Id), pg_sys::INT8OID) {
        refusal("steadytext_queue", "id").raise();
    }
    // Rows from a dump come with their time and pass unchecked: a limit that was lowered since must not
    // refuse the whole COPY. Users may not write created_at. A WHEN clause would be parsed anew in every
    // statement. Rows that are applied from another server were checked there, and must not get an answer
    // here.
    let mut stored = None;
    if !transaction::applies_changes()
        && row.time(columns.at(QueueColumn::CreatedAt)).is_none_or(|at| at == transaction::started_at())
    {
        let (given, cached) = registry::looking_once(|| {
            let given = check_row(row, &columns, &config)?;
            let cached = from_cache(row, &columns, &given, &config);
            Ok::<_, PgError>((given, cached))
        })
        .or_raise();
        if let Some(cached) = cached {
            let row = complete(trigger, row, &columns, &given, &cached);
            count_found(given.request_type, cached.model.as_deref());
            show_copied_row(hidden);
            return Ok(Some(row));
        }
        check_queue_length(owner, &config).or_raise();
        if row.text(columns.at(QueueColumn::Status)) == Some("pending") {
            rate_limits::admit(owner, given.count(), RequestChannel::Row).or_raise();
        }
        stored = params_to_store(&given).or_raise();
    }
    if row.text(columns.at(QueueColumn::Status)) == Some("pending") {
        let id = row.uuid(columns.at(QueueColumn::RequestId));
        pending::inserting(owner, id.map(|id| Uuid::from_bytes(*id.as_bytes())));
        after_commit::arm_enqueued(
            row.long(columns.at(QueueColumn::Id)).unwrap_or(i64::MIN),
            row.integer(columns.at(QueueColumn::Priority)).unwrap_or_default(),
        );
    }
    if guc::notify()
        && let Some(id) = row.uuid(columns.at(QueueColumn::RequestId))
    {
        listen::notify(c"steadytext_queue", &id.to_string());
    }
    warn_once_if_not_preloaded();
    show_copied_row(hidden);
    Ok(match stored {
        Some(params) => Some(tuple::with_values(trigger, &[(columns.at(QueueColumn::Params), params)])),
        None => trigger.new(),
    })
}

/// The parameters of a request, where the server adds something to them: the model that is the default of
/// this session alone, where the request names none, and the prompt that the database keeps in the place of
/// the library's.
fn params_to_store(given: &Given<'_>) -> Result<Option<pg_sys::Datum>, PgError> {
    let mut params = given.params.clone();
    let mut is_changed = given.leaves_choice || given.has_kept_prompt;
    if wanted(&given.params) == RequestedModel::Default && guc::any_model_of_session() {
        let models = catalog_cache::models()?;
        if let Some(name) = default_to_remember(given.request_type, &given.params, &models)? {
            is_changed = true;
            match &mut params {
                Value::Object(params) => {
                    params.insert(DEFAULT_MODEL.to_owned(), name.into());
                }
                _ => params = serde_json::json!({ DEFAULT_MODEL: name }),
            }
        }
    }
    Ok(if is_changed { JsonB(params).into_datum() } else { None })
}

/// The request of a row.
struct Given<'a> {
    request_type: &'a str,
    prompt: Option<&'a str>,
    prompts: Option<Vec<Option<&'a str>>>,
    params: Value,
    /// The word for no choice of a model was taken out of the parameters.
    leaves_choice: bool,
    /// The database keeps the prompt that it is asked with, which is among the parameters.
    has_kept_prompt: bool,
}

impl Given<'_> {
    /// The number of requests that it counts as: each text of a batch is one.
    fn count(&self) -> u64 {
        let texts = self.prompts.as_ref().filter(|_| self.request_type.starts_with("batch_"));
        texts.map_or(1, |texts| texts.len() as u64)
    }

    fn asked(&self) -> RawRequest<'_> {
        RawRequest {
            request_type: self.request_type,
            prompt: self.prompt,
            prompts: self.prompts.as_deref(),
            params: &self.params,
        }
    }
}

/// The answer to a request, if the cache has it. An error in the request itself is left for the worker to
/// report.
fn from_cache(
    row: NewRow<'_>,
    columns: &QueueColumns,
    given: &Given<'_>,
    config: &DatabaseConfig,
) -> Option<CacheReply> {
    if row.text(columns.at(QueueColumn::Status)) != Some("pending") {
        return None;
    }
    cache::find(given.asked(), config, Effort::Little).ok()?
}

/// The row of a request that is answered: no worker sees it, and nobody has to be woken.
fn complete<'a>(
    trigger: &'a PgTrigger<'a>,
    row: NewRow<'_>,
    columns: &QueueColumns,
    given: &Given<'_>,
    CacheReply { found, answer, .. }: &CacheReply,
) -> QueueTuple<'a> {
    let now = pg_sys::Datum::from(activity::now());
    let list: Option<Vec<String>> = answer.list().map(|texts| texts.into_iter().map(str::to_owned).collect());
    let values = [
        (QueueColumn::Status, "completed".into_datum()),
        (QueueColumn::Result, found.response),
        (QueueColumn::Results, list.into_datum()),
        (QueueColumn::Embedding, found.embedding),
        (QueueColumn::StartedAt, Some(now)),
        (QueueColumn::CompletedAt, Some(now)),
        (QueueColumn::ProcessingTimeMs, 0.into_datum()),
        (
            QueueColumn::Params,
            given.leaves_choice.then(|| JsonB(given.params.clone()).into_datum()).flatten(),
        ),
    ];
    if guc::notify()
        && let Some(id) = row.uuid(columns.at(QueueColumn::RequestId))
    {
        listen::notify(c"steadytext_result", &id.to_string());
    }
    let values: Vec<_> =
        values.into_iter().filter_map(|(column, datum)| Some((columns.at(column), datum?))).collect();
    tuple::with_values(trigger, &values)
}

/// Counts a request that the cache has answered.
fn count_found(request_type: &str, model: Option<&str>) {
    let mut metrics = RequestMetrics::begin(request_type, model, true);
    metrics.found();
    metrics.completed(&Usage::default());
}

/// Checks what a row asks, and reads it. Whatever is known by its length or number is looked at before
/// anything is fetched or copied.
fn check_row<'a>(
    row: NewRow<'a>,
    columns: &QueueColumns,
    config: &DatabaseConfig,
) -> Result<Given<'a>, PgError> {
    let bytes = |column, of| row.bytes(columns.at(column), of);
    let text_bytes = |column| bytes(column, pg_sys::TEXTOID);
    for column in [QueueColumn::RequestType, QueueColumn::UserId, QueueColumn::SessionId] {
        if text_bytes(column) > MAX_LABEL_BYTES {
            let label = QueueColumn::NAMES[column as usize].to_string_lossy();
            return Err(too_long(format!("{label} cannot be longer than {MAX_LABEL_BYTES} bytes"))
                .hint("It is a label: keep what is longer in a table of your own, by request_id."));
        }
    }
    let request_type = row.text(columns.at(QueueColumn::RequestType)).unwrap_or_default();
    let has_prompt = !row.is_null(columns.at(QueueColumn::Prompt), pg_sys::TEXTOID);
    let has_prompts = !row.is_null(columns.at(QueueColumn::Prompts), pg_sys::TEXTARRAYOID);
    check_columns(request_type, has_prompt, has_prompts)?;
    check_length(text_bytes(QueueColumn::Prompt), config)?;
    batch_checks::check_stored(bytes(QueueColumn::Prompts, pg_sys::TEXTARRAYOID), config)?;
    params::check_bytes(request_type, bytes(QueueColumn::Params, pg_sys::JSONBOID), config)?;

    let most = usize::try_from(config.max_batch_size).unwrap_or(usize::MAX);
    let prompts = match row.texts(columns.at(QueueColumn::Prompts), most) {
        Ok(prompts) => prompts,
        Err(count) => {
            batch_checks::check_count(count, batch_checks::name_of_prompts(request_type), config)?;
            None
        }
    };
    let mut params =
        params::read(request_type, row.jsonb(columns.at(QueueColumn::Params)), Unused::Refused, config)?;
    let leaves_choice = leave_choice(&mut params);
    let has_kept_prompt =
        is_verb(request_type) && prompt_source::keep(request_type, &mut params, &*kept_prompts::all()?)?;
    let prompt = row.text(columns.at(QueueColumn::Prompt));
    let given = Given { request_type, prompt, prompts, params, leaves_choice, has_kept_prompt };
    check_type(given.asked(), config)?;
    if !row.integer(columns.at(QueueColumn::Priority)).is_some_and(|priority| (1..=10).contains(&priority)) {
        return Err(
            invalid("priority must be between 1 and 10").hint("10 is served first, 5 is the default.")
        );
    }
    if !row
        .integer(columns.at(QueueColumn::MaxRetries))
        .is_none_or(|retries| (0..=MAX_RETRIES_LIMIT).contains(&retries))
    {
        return Err(invalid(format!("max_retries must be between 0 and {MAX_RETRIES_LIMIT}"))
            .hint("NULL is the setting max_retries."));
    }
    check_params(request_type, &given.params, config)?;
    // The registry is only read for requests that name one of its models.
    if wanted(&given.params) != RequestedModel::Default {
        let models = catalog_cache::models()?;
        check_model(request_type, &given.params, &models)?;
    }
    check_vectors(request_type, &given.params)?;
    Ok(given)
}

/// Whether the caller may put one more request back to pending; it is counted then. Called by the policy for
/// such updates, so that those of the protocol, which no policy binds, pay nothing for it.
#[pg_extern(volatile, parallel_unsafe)]
fn admit_retry() -> bool {
    let role = privilege::current_user();
    check_queue_length(role, &catalog_cache::config().or_raise()).or_raise();
    rate_limits::admit(role, 1, RequestChannel::Row).or_raise();
    pending::retrying(role);
    true
}

/// The counts are of committed rows, kept in shared memory, so the limits are met within the size of what
/// transactions enqueue at the same moment. Administrators, who could raise the limit of a role, are not
/// bound by it.
fn check_queue_length(owner: pg_sys::Oid, config: &DatabaseConfig) -> Result<(), PgError> {
    let Some(slot) = slots::mine() else { return Ok(()) };
    let count = pending::count(slot, owner);
    let full = |key, message: String| {
        let code = PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED;
        refusals::note(owner, key, code, &message);
        PgError::new(code, message)
    };
    let (limit, limit_of_role) = (config.max_queue_size, config.max_queue_size_per_role);
    let be = |count| if count == 1 { "is" } else { "are" };
    if count.all >= limit {
        return Err(full(
            "max_queue_size",
            format!(
                "the queue is full: {} {} pending",
                counted(limit.cast_unsigned(), "requests"),
                be(limit)
            ),
        )
        .hint("Wait until some are answered, or raise max_queue_size with steadytext_config_set()."));
    }
    if count.own >= limit_of_role && !privilege::is_administrator(privilege::current_user()) {
        return Err(full("max_queue_size_per_role", format!("the queue is full for this role: {limit_of_role} of its requests {} pending", be(limit_of_role))).hint(
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
        shmem::not_preloaded("the request is enqueued, but no worker runs: pg_steadytext is not preloaded")
            .report(PgLogLevel::WARNING);
    }
}
