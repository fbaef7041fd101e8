//! The worker's calls of the queue protocol: SQL functions of schema steadytext, each in a short transaction
//! of its own.
//!
//! Invariant: all SQL that the processes of `worker` send is here and in the files of this folder (`make
//! lint` looks for it elsewhere), and all that they write is written by these calls. Beside them they only
//! read the extension's entry, configuration and registry (`pg::catalog_cache`) and the cache
//! (`pg::cache_table`).

mod accounts;
mod cache;
mod vectorizers;

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use pgrx::prelude::*;
use uuid::Uuid;

pub(super) use self::accounts::{
    Heartbeat, heartbeat, note_refusals, save_usage, saved_usage, sweep_audit_log,
};
pub(super) use self::cache::{count_accesses, evict, fill_cache_filter, plan_eviction, store_answers};
pub(super) use self::vectorizers::{
    has_vectorizers, note_definition_error, vectorizer_step, vectorizers_due, vectorizers_outlook,
};
use super::claims::{ClaimedRequest, Claims, HeldRequest, Outcome, RequestContent, Verdict};
use crate::pg::catalog_cache::{self, DatabaseConfig, Installation};
use crate::pg::error::PgError;
use crate::pg::memory::in_scratch;
use crate::pg::privilege::as_owner;
use crate::pg::spi::{self, Arg, Mode};
use crate::pg::transaction::transaction;
use crate::pg::{catalog, claim_floors, database_settings, listen, pending};
use crate::request::Answer;

/// Time for which a claim is valid without being extended, in seconds.
const LEASE_SECONDS: i32 = 60;
/// Rows that one sweep of the retention looks at.
const RETENTION_BATCH: i32 = 1000;
/// A request that says of itself that it has waited for longer, ten years, has not.
const MOST_WAITED_MS: f64 = 10.0 * 366.0 * 86_400_000.0;

/// The outcome of storing a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum StoreOutcome {
    /// The row has ended as it was said.
    Done,
    /// The row has ended as failed, because the table refused what was said.
    Failed,
    /// The row is no longer ours.
    Lost,
    /// The request is tried again later.
    Retried,
    /// Somebody has the row locked.
    Locked,
    /// The table refuses every change of the row.
    Refused,
}

/// The state of the queue that a look around finds.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct QueueState {
    /// Requests that are pending.
    pub(super) pending: i64,
    /// Whether one that must run alone is due.
    pub(super) alone_due: bool,
    /// Seconds until the next retry is due.
    pub(super) due_in_s: Option<f64>,
    /// Whether workers elsewhere have requests in flight, which may have to be rescued.
    pub(super) elsewhere: bool,
}

/// The extension in this database.
#[derive(Debug, Clone)]
pub(super) enum Presence {
    /// The extension is not installed.
    Absent,
    /// The extension is installed, with this configuration.
    Present(Rc<Installation>, Rc<DatabaseConfig>),
}

/// Looks whether the extension is there.
pub(super) fn presence() -> Result<Presence, PgError> {
    presence_and_defaults(false).map(|(presence, _)| presence)
}

/// Looks whether the extension is there, and, where `compares`, whether sessions would begin with other
/// default models than this process has.
pub(super) fn presence_and_defaults(compares: bool) -> Result<(Presence, bool), PgError> {
    transaction("look for the extension", || {
        if catalog::extension_oid().is_none() {
            return Ok((Presence::Absent, false));
        }
        let presence = Presence::Present(catalog_cache::installation()?, catalog_cache::config()?);
        Ok((presence, compares && database_settings::have_changed()?))
    })
}

/// Starts listening on channel steadytext_queue.
pub(super) fn listen() -> Result<(), PgError> {
    transaction("listen", || {
        listen::listen();
        Ok(())
    })
}

/// Claims up to `limit` requests of this priority at `least`, no more after those that have `bytes` together,
/// or one that must run alone.
///
/// # Errors
///
/// Also where the extension is no longer `extension`: its table is another one, whose ids begin anew, and
/// what the worker still holds of the old one would be taken for answers to these.
pub(super) fn claim(
    extension: pg_sys::Oid,
    worker: &str,
    limit: usize,
    after_role: Option<pg_sys::Oid>,
    alone: bool,
    least: u8,
    bytes: usize,
) -> Result<Claims, PgError> {
    let nothing = || {
        Ok(Claims {
            requests: Vec::new(),
            config: catalog_cache::config()?,
            models: catalog_cache::models()?,
        })
    };
    let mut paused_meanwhile = false;
    let claims = in_queue("claim requests", || {
        if catalog_cache::config()?.worker_paused {
            return nothing();
        }
        let args: Vec<Arg> = vec![
            worker.into(),
            i32::try_from(limit).unwrap_or(i32::MAX).into(),
            LEASE_SECONDS.into(),
            after_role.into(),
            alone.into(),
            i32::from(least).into(),
            i64::try_from(bytes).unwrap_or(i64::MAX).into(),
        ];
        let limits = catalog_cache::config()?;
        let requests = spi::query(
            "select id, request_id, attempt, request_type, prompt, params, owner_oid, prompts, priority, bytes, waited_ms
               from steadytext.claim_requests($1, $2, $3, $4, $5, $6, $7)",
            args,
            Mode::ReadWrite,
            |row| {
                let request_type: String = row.get(4)?;
                Some(ClaimedRequest {
                    held: HeldRequest { id: row.get(1)?, attempt: row.get(3)? },
                    request_id: Uuid::from_bytes(*row.get::<pgrx::Uuid>(2)?.as_bytes()),
                    // One row that cannot be read must not fail the claim of the others, and what is fetched
                    // of one is forgotten before the next.
                    content: in_scratch(|| RequestContent::read(row, &request_type, &limits)),
                    request_type,
                    owner: row.get(7).unwrap_or(pg_sys::InvalidOid),
                    priority: row.get::<i32>(9).and_then(|priority| u8::try_from(priority).ok()).unwrap_or(1),
                    bytes: row.get::<i64>(10).and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(0),
                    waited: Duration::from_secs_f64(row.get::<f64>(11).unwrap_or(0.0).clamp(0.0, MOST_WAITED_MS) / 1e3),
                })
            },
        )?;
        // After the claim, whose statements see later commits than this transaction's beginning: a model that
        // was registered before a request for it must be known, and a request that came after a pause is not
        // taken.
        let (config, models) = (catalog_cache::config()?, catalog_cache::models()?);
        if catalog_cache::installation()?.extension != extension {
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
                "extension pg_steadytext was created anew",
            ));
        }
        paused_meanwhile = config.worker_paused && !requests.is_empty();
        if paused_meanwhile {
            // Undoes the claim.
            return Err(PgError::internal("the worker is paused"));
        }
        Ok(Claims { requests: requests.into_iter().flatten().collect(), config, models })
    });
    if !alone && (paused_meanwhile || claims.is_err()) {
        // The requests that it has seen itself claim are pending again.
        claim_floors::forget();
    }
    if paused_meanwhile { in_queue("read the configuration", nothing) } else { claims }
}

/// Extends the leases of what is being worked on; returns what is no longer held, by row and attempt: the
/// same row may be held again by a later one.
pub(super) fn extend(worker: &str, held: &[HeldRequest]) -> Result<Vec<HeldRequest>, PgError> {
    let (ids, attempts) = columns(held);
    let lost = in_queue("extend leases", || {
        spi::query(
            "select id, attempt from steadytext.extend_leases($1, $2, $3, $4)",
            vec![worker.into(), ids.into(), attempts.into(), LEASE_SECONDS.into()],
            Mode::ReadWrite,
            |row| Some(HeldRequest { id: row.get(1)?, attempt: row.get(2)? }),
        )
    })?;
    Ok(lost.into_iter().flatten().collect())
}

/// Gives requests back that were not finished; this costs them no retry. `alone`: they are tried one at a
/// time from now on. Returns those that could not be given back now.
pub(super) fn release(worker: &str, held: &[HeldRequest], alone: bool) -> Result<Vec<i64>, PgError> {
    let (ids, attempts) = columns(held);
    pending::doubt_here();
    claim_floors::note_change();
    in_queue("release requests", || {
        spi::query(
            "select steadytext.release_requests($1, $2, $3, $4)",
            vec![worker.into(), ids.into(), attempts.into(), alone.into()],
            Mode::ReadWrite,
            |row| row.get::<i64>(1).unwrap_or_default(),
        )
    })
}

/// Stores results and failures, and returns the outcome of each; outcomes that it did not come to are
/// missing.
pub(super) fn store(worker: &str, outcomes: &[Outcome]) -> Result<HashMap<i64, StoreOutcome>, PgError> {
    in_queue("store results", || {
        let mut stored = complete(worker, outcomes)?;
        stored.extend(fail(worker, outcomes)?);
        Ok(stored.into_iter().collect())
    })
}

fn complete(worker: &str, outcomes: &[Outcome]) -> Result<Vec<(i64, StoreOutcome)>, PgError> {
    let (mut held, mut texts, mut numbers, mut lengths, mut counts) =
        (vec![], vec![], Vec::<f32>::new(), vec![], vec![]);
    let (mut lists, mut list_lengths) = (vec![], vec![]);
    let (mut prompt_tokens, mut cached_tokens, mut generated_tokens) = (vec![], vec![], vec![]);
    let (mut finish_reasons, mut first_token_ms) = (vec![], vec![]);
    let count = |count: usize| i32::try_from(count).unwrap_or(i32::MAX);
    for outcome in outcomes {
        let Verdict::Answered(answer, usage) = &outcome.verdict else { continue };
        let (text, vectors, many) = match answer {
            Answer::Text(text) => (Some(text.clone()), &[][..], false),
            Answer::Embedding(vector) => (None, std::slice::from_ref(vector), false),
            Answer::Embeddings(vectors) => (None, vectors.as_slice(), true),
            Answer::Ranking(ranking) => (Some(ranking.json()), &[][..], false),
            Answer::Categories(categories) => (Some(categories.json()), &[][..], false),
            // No row of the queue asks for these.
            Answer::Tokens(_) | Answer::Chunks(_) | Answer::Many(_) | Answer::Verification(_) => {
                (None, &[][..], false)
            }
        };
        prompt_tokens.push(usage.prompt_tokens);
        cached_tokens.push(usage.cached_tokens);
        generated_tokens.push(usage.generated_tokens);
        finish_reasons.push(usage.finish_reason.map(str::to_owned));
        first_token_ms.push(usage.first_token_ms);
        let before = lists.len();
        let list: Option<Vec<&str>> = answer.list();
        lists.extend(list.iter().flatten().map(|text| (*text).to_owned()));
        list_lengths.push(list.map(|_| count(lists.len() - before)));
        texts.push(text);
        numbers.extend(vectors.iter().flatten());
        // All vectors of a request are of one model.
        lengths.push(count(vectors.first().map_or(0, Vec::len)));
        counts.push(many.then(|| count(vectors.len())));
        held.push(outcome.held);
    }
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let (ids, attempts) = columns(&held);
    what_became(
        "select id, outcome
           from steadytext.complete_requests($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14)",
        vec![
            worker.into(),
            ids.into(),
            attempts.into(),
            texts.into(),
            numbers.into(),
            lengths.into(),
            counts.into(),
            lists.into(),
            list_lengths.into(),
            prompt_tokens.into(),
            cached_tokens.into(),
            generated_tokens.into(),
            finish_reasons.into(),
            first_token_ms.into(),
        ],
    )
}

fn fail(worker: &str, outcomes: &[Outcome]) -> Result<Vec<(i64, StoreOutcome)>, PgError> {
    let (mut held, mut errors, mut codes, mut retries) = (vec![], vec![], vec![], vec![]);
    for outcome in outcomes {
        let Verdict::Failed(failure) = &outcome.verdict else { continue };
        held.push(outcome.held);
        errors.push(match &failure.error.hint {
            Some(hint) => format!("{}\nHINT: {hint}", failure.error.message),
            None => failure.error.message.clone(),
        });
        codes.push(failure.error.sqlstate());
        retries.push(failure.retry);
        if failure.retry {
            pending::doubt_here();
        }
    }
    if held.is_empty() {
        return Ok(Vec::new());
    }
    let (ids, attempts) = columns(&held);
    what_became(
        "select id, outcome from steadytext.fail_requests($1, $2, $3, $4, $5, $6)",
        vec![worker.into(), ids.into(), attempts.into(), errors.into(), codes.into(), retries.into()],
    )
}

fn what_became(sql: &str, args: Vec<Arg>) -> Result<Vec<(i64, StoreOutcome)>, PgError> {
    spi::query(sql, args, Mode::ReadWrite, |row| {
        let stored = match row.get::<String>(2).as_deref() {
            Some("locked") => StoreOutcome::Locked,
            Some("refused") => StoreOutcome::Refused,
            Some("retried") => StoreOutcome::Retried,
            Some("lost") => StoreOutcome::Lost,
            Some("failed") => StoreOutcome::Failed,
            _ => StoreOutcome::Done,
        };
        (row.get(1).unwrap_or_default(), stored)
    })
}

/// The extent of a look around.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Depth {
    /// The look walks through the queue.
    Thorough,
    /// Requests in flight are known from a sweep, by their ids.
    Swept(Vec<i64>),
    /// The look rescues nothing, and the outlook has only the parts that need no walk.
    Short,
}

/// The look around that a worker takes at its start and at every poll: rows of dead workers are rescued,
/// retries whose time has come become claimable. [`QueueState::pending`] only says whether there are any,
/// where it is thorough.
pub(super) fn poll(worker: &str, depth: &Depth) -> Result<QueueState, PgError> {
    let limit = i32::from(*depth == Depth::Thorough);
    in_queue("poll the queue", || {
        let mut elsewhere = false;
        match depth {
            Depth::Thorough => rescue(worker)?,
            Depth::Swept(ids) => {
                let flight = in_flight(worker, ids)?;
                elsewhere = flight.elsewhere;
                if flight.abandoned {
                    rescue(worker)?;
                }
            }
            Depth::Short => {}
        }
        promote()?;
        let outlook = spi::query_one(
            "select pending, alone_due, due_in, elsewhere from steadytext.queue_outlook($1)",
            vec![limit.into()],
            Mode::ReadWrite,
            |row| QueueState {
                pending: row.get(1).unwrap_or(0),
                alone_due: row.get(2).unwrap_or(false),
                due_in_s: row.get(3),
                elsewhere: elsewhere || row.get(4).unwrap_or(false),
            },
        )?;
        Ok(outlook.unwrap_or_default())
    })
}

/// Facts about some requests in flight.
#[derive(Default)]
struct InFlightFacts {
    /// Some belong to workers that are gone.
    abandoned: bool,
    /// Some belong to workers elsewhere.
    elsewhere: bool,
}

fn in_flight(worker: &str, ids: &[i64]) -> Result<InFlightFacts, PgError> {
    let live = vec![worker.to_owned()];
    let flight = spi::query_one(
        "select abandoned, elsewhere from steadytext.requests_in_flight($1, $2)",
        vec![ids.to_vec().into(), live.into()],
        Mode::ReadWrite,
        |row| InFlightFacts {
            abandoned: row.get(1).unwrap_or(false),
            elsewhere: row.get(2).unwrap_or(false),
        },
    )?;
    Ok(flight.unwrap_or_default())
}

fn rescue(worker: &str) -> Result<(), PgError> {
    let live = vec![worker.to_owned()];
    let rescued =
        spi::query_one("select steadytext.rescue_requests($1)", vec![live.into()], Mode::ReadWrite, |row| {
            row.get::<i32>(1)
        })?;
    if rescued.flatten() != Some(0) {
        pending::doubt_here();
        claim_floors::note_change();
    }
    Ok(())
}

fn promote() -> Result<(), PgError> {
    let promoted = spi::query_one("select steadytext.promote_requests()", vec![], Mode::ReadWrite, |row| {
        row.get::<i32>(1)
    })?;
    if promoted.flatten() != Some(0) {
        claim_floors::note_change();
    }
    Ok(())
}

/// Pending requests of each role.
pub(super) fn count_pending() -> Result<Vec<(pg_sys::Oid, i64)>, PgError> {
    in_queue("count pending requests", || {
        spi::query("select owner, pending from steadytext.count_pending()", vec![], Mode::ReadWrite, |row| {
            (row.get(1).unwrap_or(pg_sys::InvalidOid), row.get(2).unwrap_or(0))
        })
    })
}

/// Removes finished requests that are older than the retention, in one small step from `after`; returns where
/// to go on, or `None` at the end.
pub(super) fn expire(after: i64) -> Result<Option<i64>, PgError> {
    in_queue("remove old requests", || {
        let after = match claim_floors::pass_deleted(&*catalog_cache::installation()?, after) {
            Ok(after) => after,
            Err(reached) => return Ok(Some(reached)),
        };
        let step = spi::query_one(
            "select last_id from steadytext.expire_requests($1, $2)",
            vec![after.into(), RETENTION_BATCH.into()],
            Mode::ReadWrite,
            |row| row.get::<i64>(1),
        )?;
        Ok(step.flatten())
    })
}

/// Runs `work` in a transaction of its own, as the owner of the queue.
fn in_queue<T>(activity: &str, work: impl FnOnce() -> Result<T, PgError>) -> Result<T, PgError> {
    transaction(activity, || {
        let installation = catalog_cache::installation()?;
        // The owner of the queue can put triggers on it, and these would run with the rights of the protocol
        // functions.
        if installation.owner != installation.protocol_owner {
            // PostgreSQL sends no message when a function changes its owner: look again next time.
            catalog_cache::forget();
            return Err(PgError::new(
                PgSqlErrorCode::ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE,
                "steadytext_queue and the functions of schema steadytext belong to different roles",
            )
            .hint("Give all objects of the extension to one role: REASSIGN OWNED, or ALTER … OWNER TO."));
        }
        as_owner(installation.owner, work)
    })
}

fn columns(held: &[HeldRequest]) -> (Vec<i64>, Vec<i32>) {
    held.iter().map(|held| (held.id, held.attempt)).unzip()
}
