//! The queue's protocol: functions of schema steadytext, each call a transaction of its own.
//!
//! Invariant: all SQL that the worker sends is here.

use std::collections::HashMap;

use postgres::types::Oid;
use postgres::{Client, Error};
use steadytext_engine::BackendChoice;
use steadytext_engine::errand::{Refusal, VERSION};

use crate::engine::Terms;
use crate::models::Registered;

/// A row that this worker has claimed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Held {
    /// steadytext_queue.id.
    pub(crate) id: i64,
    /// The attempt that fences it.
    pub(crate) attempt: i32,
}

/// A claimed request.
#[derive(Debug)]
pub(crate) struct Claimed {
    pub(crate) held: Held,
    pub(crate) owner: u32,
    pub(crate) priority: u8,
    /// [`steadytext_engine::errand::Prepared`].
    pub(crate) prepared: Vec<u8>,
}

/// What a claim asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) worker: &'a str,
    pub(crate) limit: usize,
    pub(crate) lease_s: i32,
    pub(crate) after_role: Option<u32>,
    pub(crate) alone: bool,
    pub(crate) models: &'a [String],
    pub(crate) types: Option<&'a [String]>,
}

/// What became of a result.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stored {
    /// The row has ended or is tried again.
    Done,
    /// There is another stage, as [`steadytext_engine::errand::Prepared`].
    More(Vec<u8>),
    /// It is no longer ours.
    Lost,
    /// Somebody has it locked.
    Locked,
    /// The table refuses every change of it.
    Refused,
}

/// What waits in the queue.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Outlook {
    /// Whether a request is due that must run alone.
    pub(crate) alone_due: bool,
    /// Seconds until the next retry is due.
    pub(crate) due_in_s: Option<f64>,
}

/// What a worker says of itself.
#[derive(Debug)]
pub(crate) struct Heartbeat<'a> {
    pub(crate) worker: &'a str,
    pub(crate) endpoint: &'a str,
    pub(crate) status: &'a str,
    pub(crate) models: &'a [String],
    pub(crate) active: i32,
    pub(crate) total: i64,
    pub(crate) errors: i64,
}

/// The settings of the server on which bytes depend.
pub(crate) fn terms(client: &mut Client) -> Result<Terms, Error> {
    let row = client.query_one(
        "select coalesce(pg_catalog.current_setting('pg_steadytext.kv_cache_type', true), ''),
            coalesce(pg_catalog.current_setting('pg_steadytext.backend', true), ''),
            coalesce(pg_catalog.current_setting('pg_steadytext.context_length', true), '')",
        &[],
    )?;
    let text = |column: usize| row.get::<_, String>(column);
    Ok(Terms {
        kv_cache_type: text(0).parse().unwrap_or_default(),
        backend: BackendChoice::named(&text(1)).unwrap_or_default(),
        context_length: text(2).parse().unwrap_or_default(),
    })
}

/// The registered models that workers elsewhere may compute.
pub(crate) fn models(client: &mut Client) -> Result<Vec<Registered>, Error> {
    let rows = client.query("select name, file from steadytext.worker_models()", &[])?;
    Ok(rows.iter().map(|row| Registered { name: row.get(0), file: row.get(1) }).collect())
}

/// Claims requests, and has the server make work of them.
pub(crate) fn claim(client: &mut Client, wanted: Wanted<'_>) -> Result<Vec<Claimed>, Error> {
    let limit = i32::try_from(wanted.limit).unwrap_or(i32::MAX);
    let after: Option<Oid> = wanted.after_role;
    let rows = client.query(
        "select c.id, c.attempt, c.owner_oid, c.priority,
            steadytext.prepared_work($8, c.request_type, c.prompt, c.prompts, c.params)
         from steadytext.claim_requests(
            $1, $2, $3, $4, $5, p_models => $6::pg_catalog.text[], p_types => $7::pg_catalog.text[]) as c",
        &[
            &wanted.worker,
            &limit,
            &wanted.lease_s,
            &after,
            &wanted.alone,
            &wanted.models,
            &wanted.types,
            &VERSION,
        ],
    )?;
    let claimed = |row: &postgres::Row| Claimed {
        held: Held { id: row.get(0), attempt: row.get(1) },
        owner: row.get::<_, Option<Oid>>(2).unwrap_or(0),
        priority: u8::try_from(row.get::<_, i32>(3)).unwrap_or(1),
        prepared: row.get(4),
    };
    Ok(rows.iter().map(claimed).collect())
}

/// Extends leases; what is no longer held.
pub(crate) fn extend(
    client: &mut Client,
    worker: &str,
    held: &[Held],
    lease_s: i32,
) -> Result<Vec<Held>, Error> {
    let (ids, attempts) = columns(held);
    let rows = client.query(
        "select id, attempt from steadytext.extend_leases($1, $2, $3, $4)",
        &[&worker, &ids, &attempts, &lease_s],
    )?;
    Ok(rows.iter().map(|row| Held { id: row.get(0), attempt: row.get(1) }).collect())
}

/// Gives requests back.
pub(crate) fn release(client: &mut Client, worker: &str, held: &[Held]) -> Result<(), Error> {
    let (ids, attempts) = columns(held);
    client.query("select steadytext.release_requests($1, $2, $3)", &[&worker, &ids, &attempts]).map(|_| ())
}

/// Stores what became of requests.
pub(crate) fn report(
    client: &mut Client,
    worker: &str,
    reports: &[(Held, &[u8])],
) -> Result<HashMap<i64, Stored>, Error> {
    let (ids, attempts) = columns(&reports.iter().map(|(held, _)| *held).collect::<Vec<_>>());
    let bytes: Vec<&[u8]> = reports.iter().map(|(_, report)| *report).collect();
    let rows = client.query(
        "select id, outcome, more from steadytext.complete_reports($1, $2, $3, $4)",
        &[&worker, &ids, &attempts, &bytes],
    )?;
    Ok(outcomes(&rows))
}

/// Fails requests of which no work could be made.
pub(crate) fn refuse(
    client: &mut Client,
    worker: &str,
    refusals: &[(Held, &Refusal)],
) -> Result<HashMap<i64, Stored>, Error> {
    let (ids, attempts) = columns(&refusals.iter().map(|(held, _)| *held).collect::<Vec<_>>());
    let errors: Vec<&str> = refusals.iter().map(|(_, refusal)| refusal.message.as_str()).collect();
    let codes: Vec<&str> = refusals.iter().map(|(_, refusal)| refusal.code.as_str()).collect();
    let retries: Vec<bool> = refusals.iter().map(|(_, refusal)| refusal.retry).collect();
    let rows = client.query(
        "select id, outcome, null::pg_catalog.bytea from steadytext.fail_requests($1, $2, $3, $4, $5, $6)",
        &[&worker, &ids, &attempts, &errors, &codes, &retries],
    )?;
    Ok(outcomes(&rows))
}

/// Looks around: rows of dead workers elsewhere, retries that are due, what waits.
pub(crate) fn poll(
    client: &mut Client,
    models: &[String],
    types: Option<&[String]>,
) -> Result<Outlook, Error> {
    client.query("select steadytext.rescue_requests(null), steadytext.promote_requests()", &[])?;
    let row = client.query_one(
        "select alone_due, due_in from steadytext.queue_outlook(1, $1::pg_catalog.text[], $2::pg_catalog.text[])",
        &[&models, &types],
    )?;
    Ok(Outlook { alone_due: row.get::<_, Option<bool>>(0).unwrap_or(false), due_in_s: row.get(1) })
}

/// Says that the worker lives.
pub(crate) fn heartbeat(client: &mut Client, said: &Heartbeat<'_>) -> Result<(), Error> {
    let models = serde_json::Value::from(said.models).to_string();
    client
        .query(
            "select steadytext.record_heartbeat($1, $2, $3, $4, $5::pg_catalog.text::pg_catalog.jsonb, 0, $6, $7, $8, null)",
            &[
                &said.worker,
                &said.endpoint,
                &said.status,
                &VERSION,
                &models,
                &said.active,
                &said.total,
                &said.errors,
            ],
        )
        .map(|_| ())
}

fn columns(held: &[Held]) -> (Vec<i64>, Vec<i32>) {
    held.iter().map(|held| (held.id, held.attempt)).unzip()
}

fn outcomes(rows: &[postgres::Row]) -> HashMap<i64, Stored> {
    let stored = |row: &postgres::Row| match row.get::<_, Option<&str>>(1) {
        Some("locked") => Stored::Locked,
        Some("refused") => Stored::Refused,
        Some("lost") => Stored::Lost,
        Some("more") => Stored::More(row.get::<_, Option<Vec<u8>>>(2).unwrap_or_default()),
        _ => Stored::Done,
    };
    rows.iter().map(|row| (row.get(0), stored(row))).collect()
}
