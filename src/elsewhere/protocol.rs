//! The queue's protocol: functions of schema steadytext, each call a transaction of its own.
//!
//! Statements are sent with the types of their parameters, so that each is one round trip and no prepared
//! statement is left in a session, which poolers give to others.
//!
//! Invariants: all SQL that the worker sends is here. Answers of the server are not trusted: columns of other
//! types and more rows than were asked for are errors.

use std::collections::HashMap;

use postgres::error::{Severity, SqlState};
use postgres::fallible_iterator::FallibleIterator;
use postgres::types::{FromSql, Oid, ToSql, Type};
use postgres::{Client, Row};
use serde::Serialize;
use steadytext_engine::BackendChoice;
use steadytext_engine::remote_job::{JobRefusal, VERSION};

use crate::engine::Terms;
use crate::models::Registered;
use crate::turn_error::TurnError;

/// Claims that are reported, and their bytes: what a heartbeat may have.
const MAX_CLAIMS: usize = 256;
const MAX_CLAIMS_BYTES: usize = 200_000;
/// Registered models that are looked at.
const MAX_MODELS: usize = 10_000;

/// A row that this worker has claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct HeldRow {
    /// steadytext_queue.id.
    pub(crate) id: i64,
    /// The attempt that fences it.
    pub(crate) attempt: i32,
}

/// A claimed request.
#[derive(Debug)]
pub(crate) struct ClaimedRow {
    pub(crate) held: HeldRow,
    pub(crate) owner: u32,
    pub(crate) priority: u8,
    /// [`steadytext_engine::remote_job::PreparedRow`].
    pub(crate) prepared: Vec<u8>,
}

/// The parameters of a claim.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ClaimRequest<'a> {
    pub(crate) worker: &'a str,
    pub(crate) limit: usize,
    pub(crate) lease_s: i32,
    pub(crate) after_role: Option<u32>,
    pub(crate) alone: bool,
    pub(crate) models: &'a [String],
    pub(crate) types: Option<&'a [String]>,
}

/// The outcome of storing a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StoreReply {
    /// The row has ended or is tried again.
    Done,
    /// There is another stage, as [`steadytext_engine::remote_job::PreparedRow`].
    More(Vec<u8>),
    /// The row is no longer ours.
    Lost,
    /// Somebody has the row locked.
    Locked,
    /// The table refuses every change of the row.
    Refused,
}

/// The state of the queue, as far as it decides when to claim again.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct DueRequests {
    /// Whether a request is due that must run alone.
    pub(crate) alone_due: bool,
    /// Seconds until the next retry is due.
    pub(crate) due_in_s: Option<f64>,
}

/// The parameters of a heartbeat.
#[derive(Debug)]
pub(crate) struct HeartbeatParameters<'a> {
    pub(crate) worker: &'a str,
    pub(crate) endpoint: &'a str,
    pub(crate) status: &'a str,
    pub(crate) models: &'a [String],
    pub(crate) active: i32,
    pub(crate) total: i64,
    pub(crate) errors: i64,
    pub(crate) claims: &'a [ClaimFilter],
}

/// The models and types of requests that a worker claims.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct ClaimFilter {
    models: Vec<String>,
    /// `None`: all types.
    types: Option<Vec<String>>,
}

impl ClaimFilter {
    pub(crate) fn new(models: &[String], types: Option<&[String]>) -> ClaimFilter {
        ClaimFilter { models: models.to_vec(), types: types.map(<[String]>::to_vec) }
    }
}

/// A parameter, and its type.
type Parameter<'a> = (&'a (dyn ToSql + Sync), Type);

/// The rows of a statement that has no more than `most`.
fn rows(
    client: &mut Client,
    sql: &str,
    parameters: &[Parameter<'_>],
    most: usize,
) -> Result<Vec<Row>, TurnError> {
    let parameters = parameters.iter().map(|(value, kind)| (*value, kind.clone()));
    let mut coming = client.query_typed_raw(sql, parameters)?;
    let mut rows = Vec::new();
    while let Some(row) = coming.next()? {
        if rows.len() == most {
            return Err(TurnError::Unexpected("there are too many rows"));
        }
        rows.push(row);
    }
    Ok(rows)
}

/// The one row of a statement.
fn only_row(client: &mut Client, sql: &str, parameters: &[Parameter<'_>]) -> Result<Row, TurnError> {
    let row = rows(client, sql, parameters, 1)?.pop();
    row.ok_or(TurnError::Unexpected("there is no row"))
}

fn get<'a, T: FromSql<'a>>(row: &'a Row, column: usize) -> Result<T, TurnError> {
    row.try_get(column).map_err(|_| TurnError::Unexpected("a column has another type"))
}

/// The settings of the server on which bytes depend.
pub(crate) fn terms(client: &mut Client) -> Result<Terms, TurnError> {
    let row = only_row(
        client,
        "select coalesce(pg_catalog.current_setting('pg_steadytext.kv_cache_type', true), ''),
            coalesce(pg_catalog.current_setting('pg_steadytext.backend', true), ''),
            coalesce(pg_catalog.current_setting('pg_steadytext.context_length', true), '')",
        &[],
    )?;
    Ok(Terms {
        kv_cache_type: get::<&str>(&row, 0)?.parse().unwrap_or_default(),
        backend: BackendChoice::named(get(&row, 1)?).unwrap_or_default(),
        context_length: get::<&str>(&row, 2)?.parse().unwrap_or_default(),
    })
}

/// The registered models that workers elsewhere may compute.
pub(crate) fn models(client: &mut Client) -> Result<Vec<Registered>, TurnError> {
    let rows = rows(
        client,
        "select name, file, sha256, placement from steadytext.worker_models() limit 10000",
        &[],
        MAX_MODELS,
    )?;
    let registered = |row: &Row| {
        Ok(Registered {
            name: get(row, 0)?,
            file: get(row, 1)?,
            has_sha256: get::<Option<&str>>(row, 2)?.is_some(),
            is_elsewhere: get::<&str>(row, 3)? == "elsewhere",
        })
    };
    rows.iter().map(registered).collect()
}

/// Claims requests, and has the server make work of them.
pub(crate) fn claim(client: &mut Client, wanted: ClaimRequest<'_>) -> Result<Vec<ClaimedRow>, TurnError> {
    match claim_by(client, wanted, "make_work") {
        // An error about one row undoes the claim of all. They are claimed once more, each row for itself,
        // which takes half as long again.
        Err(TurnError::Database(error)) if may_be_of_a_row(&error) => {
            claim_by(client, wanted, "prepared_work")
        }
        claimed => claimed,
    }
}

/// Whether the server has raised it while it made work, as far as its code says.
fn may_be_of_a_row(error: &postgres::Error) -> bool {
    let said = error.as_db_error().filter(|said| said.parsed_severity() == Some(Severity::Error));
    said.is_some_and(|said| {
        let code = said.code();
        let is_ours = [SqlState::FEATURE_NOT_SUPPORTED, SqlState::INSUFFICIENT_PRIVILEGE].contains(code);
        !is_ours && !matches!(code.code().get(..2), Some("08" | "25" | "57"))
    })
}

/// Claims requests with one of the two functions that make work of a row.
fn claim_by(
    client: &mut Client,
    wanted: ClaimRequest<'_>,
    function: &str,
) -> Result<Vec<ClaimedRow>, TurnError> {
    let limit = i32::try_from(wanted.limit).unwrap_or(i32::MAX);
    let after: Option<Oid> = wanted.after_role;
    let rows = rows(
        client,
        &format!(
            "select c.id, c.attempt, c.owner_oid, c.priority,
                steadytext.{function}($8, c.request_type, c.prompt, c.prompts, c.params)
             from steadytext.claim_requests($1, $2, $3, $4, $5, p_models => $6, p_types => $7) as c"
        ),
        &[
            (&wanted.worker, Type::TEXT),
            (&limit, Type::INT4),
            (&wanted.lease_s, Type::INT4),
            (&after, Type::OID),
            (&wanted.alone, Type::BOOL),
            (&wanted.models, Type::TEXT_ARRAY),
            (&wanted.types, Type::TEXT_ARRAY),
            (&VERSION, Type::TEXT),
        ],
        wanted.limit,
    )?;
    let claimed = |row: &Row| {
        Ok(ClaimedRow {
            held: HeldRow { id: get(row, 0)?, attempt: get(row, 1)? },
            owner: get::<Option<Oid>>(row, 2)?.unwrap_or(0),
            priority: u8::try_from(get::<i32>(row, 3)?).unwrap_or(1),
            prepared: get(row, 4)?,
        })
    };
    rows.iter().map(claimed).collect()
}

/// More of the work of a request; `None` where it is no longer held.
pub(crate) fn more_work(
    client: &mut Client,
    worker: &str,
    held: HeldRow,
    first: usize,
    report: Option<&[u8]>,
) -> Result<Option<Vec<u8>>, TurnError> {
    let first = i32::try_from(first).unwrap_or(i32::MAX);
    let row = only_row(
        client,
        "select steadytext.more_work($1, $2, $3, $4, $5)",
        &[
            (&worker, Type::TEXT),
            (&held.id, Type::INT8),
            (&held.attempt, Type::INT4),
            (&first, Type::INT4),
            (&report, Type::BYTEA),
        ],
    )?;
    get(&row, 0)
}

/// Extends leases; what is no longer held.
pub(crate) fn extend(
    client: &mut Client,
    worker: &str,
    held: &[HeldRow],
    lease_s: i32,
) -> Result<Vec<HeldRow>, TurnError> {
    let (ids, attempts) = columns(held);
    let rows = rows(
        client,
        "select id, attempt from steadytext.extend_leases($1, $2, $3, $4)",
        &[
            (&worker, Type::TEXT),
            (&ids, Type::INT8_ARRAY),
            (&attempts, Type::INT4_ARRAY),
            (&lease_s, Type::INT4),
        ],
        held.len(),
    )?;
    rows.iter().map(|row| Ok(HeldRow { id: get(row, 0)?, attempt: get(row, 1)? })).collect()
}

/// Gives requests back; those that could not be, because somebody has them locked.
pub(crate) fn release(client: &mut Client, worker: &str, held: &[HeldRow]) -> Result<Vec<i64>, TurnError> {
    let (ids, attempts) = columns(held);
    let parameters: [Parameter<'_>; 3] =
        [(&worker, Type::TEXT), (&ids, Type::INT8_ARRAY), (&attempts, Type::INT4_ARRAY)];
    let kept = rows(client, "select steadytext.release_requests($1, $2, $3)", &parameters, held.len())?;
    kept.iter().map(|row| get(row, 0)).collect()
}

/// Stores the reports of requests.
pub(crate) fn report(
    client: &mut Client,
    worker: &str,
    reports: &[(HeldRow, &[u8])],
) -> Result<HashMap<i64, StoreReply>, TurnError> {
    let (ids, attempts) = columns(&reports.iter().map(|(held, _)| *held).collect::<Vec<_>>());
    let bytes: Vec<&[u8]> = reports.iter().map(|(_, report)| *report).collect();
    let rows = rows(
        client,
        "select id, outcome, more from steadytext.complete_reports($1, $2, $3, $4)",
        &[
            (&worker, Type::TEXT),
            (&ids, Type::INT8_ARRAY),
            (&attempts, Type::INT4_ARRAY),
            (&bytes, Type::BYTEA_ARRAY),
        ],
        reports.len(),
    )?;
    outcomes(&rows)
}

/// Fails requests of which no work could be made.
pub(crate) fn refuse(
    client: &mut Client,
    worker: &str,
    refusals: &[(HeldRow, &JobRefusal)],
) -> Result<HashMap<i64, StoreReply>, TurnError> {
    let (ids, attempts) = columns(&refusals.iter().map(|(held, _)| *held).collect::<Vec<_>>());
    let errors: Vec<&str> = refusals.iter().map(|(_, refusal)| refusal.message.as_str()).collect();
    let codes: Vec<&str> = refusals.iter().map(|(_, refusal)| refusal.code.as_str()).collect();
    let retries: Vec<bool> = refusals.iter().map(|(_, refusal)| refusal.retry).collect();
    let rows = rows(
        client,
        "select id, outcome, null::pg_catalog.bytea from steadytext.fail_requests($1, $2, $3, $4, $5, $6)",
        &[
            (&worker, Type::TEXT),
            (&ids, Type::INT8_ARRAY),
            (&attempts, Type::INT4_ARRAY),
            (&errors, Type::TEXT_ARRAY),
            (&codes, Type::TEXT_ARRAY),
            (&retries, Type::BOOL_ARRAY),
        ],
        refusals.len(),
    )?;
    outcomes(&rows)
}

/// Looks after rows of dead workers elsewhere, and retries that are due.
pub(crate) fn tidy(client: &mut Client) -> Result<(), TurnError> {
    only_row(client, "select steadytext.rescue_requests(null), steadytext.promote_requests()", &[]).map(drop)
}

/// The [`DueRequests`] for requests of these models and types.
pub(crate) fn outlook(
    client: &mut Client,
    models: &[String],
    types: Option<&[String]>,
) -> Result<DueRequests, TurnError> {
    let row = only_row(
        client,
        "select alone_due, due_in from steadytext.queue_outlook(1, $1, $2)",
        &[(&models, Type::TEXT_ARRAY), (&types, Type::TEXT_ARRAY)],
    )?;
    Ok(DueRequests { alone_due: get::<Option<bool>>(&row, 0)?.unwrap_or(false), due_in_s: get(&row, 1)? })
}

/// Says that the worker lives.
pub(crate) fn heartbeat(client: &mut Client, said: &HeartbeatParameters<'_>) -> Result<(), TurnError> {
    let models = serde_json::Value::from(said.models).to_string();
    let claims = serde_json::json!(said.claims).to_string();
    // A worker that claims more names than can be reported says nothing, which means that it may claim
    // anything.
    let is_short = said.claims.len() <= MAX_CLAIMS && claims.len() <= MAX_CLAIMS_BYTES;
    let claims = is_short.then_some(claims);
    only_row(
        client,
        "select null::pg_catalog.text
         from steadytext.record_heartbeat($1, $2, $3, $4, $5::pg_catalog.jsonb, 0, $6, $7, $8, null,
             $9::pg_catalog.jsonb)",
        &[
            (&said.worker, Type::TEXT),
            (&said.endpoint, Type::TEXT),
            (&said.status, Type::TEXT),
            (&VERSION, Type::TEXT),
            (&models, Type::TEXT),
            (&said.active, Type::INT4),
            (&said.total, Type::INT8),
            (&said.errors, Type::INT8),
            (&claims, Type::TEXT),
        ],
    )
    .map(|_| ())
}

/// Says that the worker has ended.
pub(crate) fn end_heartbeat(client: &mut Client, worker: &str) -> Result<(), TurnError> {
    let parameters: [Parameter<'_>; 1] = [(&worker, Type::TEXT)];
    only_row(client, "select null::pg_catalog.text from steadytext.end_heartbeat($1)", &parameters).map(drop)
}

fn columns(held: &[HeldRow]) -> (Vec<i64>, Vec<i32>) {
    held.iter().map(|held| (held.id, held.attempt)).unzip()
}

fn outcomes(rows: &[Row]) -> Result<HashMap<i64, StoreReply>, TurnError> {
    let stored = |row: &Row| {
        let stored = match get::<&str>(row, 1)? {
            "done" | "retried" | "failed" => StoreReply::Done,
            "locked" => StoreReply::Locked,
            "refused" => StoreReply::Refused,
            "lost" => StoreReply::Lost,
            "more" => StoreReply::More(get::<Option<Vec<u8>>>(row, 2)?.unwrap_or_default()),
            _ => return Err(TurnError::Unexpected("the outcome is none that there is")),
        };
        Ok((get(row, 0)?, stored))
    };
    rows.iter().map(stored).collect()
}
