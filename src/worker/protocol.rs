//! The worker's calls of the queue protocol: SQL functions of schema steadytext, each in a short transaction
//! of its own.
//!
//! Invariant: all SQL that the worker sends is here, and all that it writes is written by these calls. Beside
//! them it only reads the extension's entry, configuration and registry (`pg::catalog_cache`) and the cache
//! (`pg::cache_table`).

use std::collections::HashMap;
use std::rc::Rc;
use std::time::Duration;

use pgrx::prelude::*;
use serde_json::Value as Json;
use uuid::Uuid;

use super::claims::{Claimed, Claims, Content, Held, Outcome, Verdict};
use crate::cache::NewEntry;
use crate::pg::access_counters::Accesses;
use crate::pg::catalog_cache::{self, Config, Installation};
use crate::pg::error::PgError;
use crate::pg::memory::in_scratch;
use crate::pg::privilege::as_owner;
use crate::pg::rate_counters::Saved;
use crate::pg::refusals::Refusal;
use crate::pg::spi::{self, Arg, Mode};
use crate::pg::transaction::transaction;
use crate::pg::{cache_table, catalog, listen, pending};
use crate::request::Answer;

/// How long a claim is valid without being extended.
const LEASE_SECONDS: i32 = 60;
/// Rows that one sweep of the retention looks at.
const RETENTION_BATCH: i32 = 1000;
/// A request that says of itself that it has waited for longer, ten years, has not.
const MOST_WAITED_MS: f64 = 10.0 * 366.0 * 86_400_000.0;

/// What became of a result that was to be stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stored {
    /// The row has ended as it was said,
    Done,
    /// or as failed, as the table refused what was said.
    Failed,
    /// It is no longer ours.
    Lost,
    /// It is tried again later.
    Retried,
    /// Somebody has it locked.
    Locked,
    /// The table refuses every change of the row.
    Refused,
}

/// What the queue looks like.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Outlook {
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
    /// It is not installed.
    Absent,
    /// It is, with this configuration.
    Present(Rc<Installation>, Rc<Config>),
}

/// Looks whether the extension is there.
pub(super) fn presence() -> Result<Presence, PgError> {
    transaction("look for the extension", || {
        if catalog::extension_oid().is_none() {
            return Ok(Presence::Absent);
        }
        Ok(Presence::Present(catalog_cache::installation()?, catalog_cache::config()?))
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
                Some(Claimed {
                    held: Held { id: row.get(1)?, attempt: row.get(3)? },
                    request_id: Uuid::from_bytes(*row.get::<pgrx::Uuid>(2)?.as_bytes()),
                    // One row that cannot be read must not fail the claim of the others, and what is fetched
                    // of one is forgotten before the next.
                    content: in_scratch(|| Content::read(row, &request_type, &limits)),
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
    if paused_meanwhile { in_queue("read the configuration", nothing) } else { claims }
}

/// Extends the leases of what is being worked on; returns what is no longer held, by row and attempt: the
/// same row may be held again by a later one.
pub(super) fn extend(worker: &str, held: &[Held]) -> Result<Vec<Held>, PgError> {
    let (ids, attempts) = columns(held);
    let lost = in_queue("extend leases", || {
        spi::query(
            "select id, attempt from steadytext.extend_leases($1, $2, $3, $4)",
            vec![worker.into(), ids.into(), attempts.into(), LEASE_SECONDS.into()],
            Mode::ReadWrite,
            |row| Some(Held { id: row.get(1)?, attempt: row.get(2)? }),
        )
    })?;
    Ok(lost.into_iter().flatten().collect())
}

/// Gives requests back that were not finished; this costs them no retry. `alone`: they are tried one at a time
/// from now on. Returns those that could not be given back now.
pub(super) fn release(worker: &str, held: &[Held], alone: bool) -> Result<Vec<i64>, PgError> {
    let (ids, attempts) = columns(held);
    pending::doubt_here();
    in_queue("release requests", || {
        spi::query(
            "select steadytext.release_requests($1, $2, $3, $4)",
            vec![worker.into(), ids.into(), attempts.into(), alone.into()],
            Mode::ReadWrite,
            |row| row.get::<i64>(1).unwrap_or_default(),
        )
    })
}

/// Stores results and failures, and says what became of each; nothing of those that it did not come to.
pub(super) fn store(worker: &str, outcomes: &[Outcome]) -> Result<HashMap<i64, Stored>, PgError> {
    in_queue("store results", || {
        let mut stored = complete(worker, outcomes)?;
        stored.extend(fail(worker, outcomes)?);
        Ok(stored.into_iter().collect())
    })
}

fn complete(worker: &str, outcomes: &[Outcome]) -> Result<Vec<(i64, Stored)>, PgError> {
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

fn fail(worker: &str, outcomes: &[Outcome]) -> Result<Vec<(i64, Stored)>, PgError> {
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

fn what_became(sql: &str, args: Vec<Arg>) -> Result<Vec<(i64, Stored)>, PgError> {
    spi::query(sql, args, Mode::ReadWrite, |row| {
        let stored = match row.get::<String>(2).as_deref() {
            Some("locked") => Stored::Locked,
            Some("refused") => Stored::Refused,
            Some("retried") => Stored::Retried,
            Some("lost") => Stored::Lost,
            Some("failed") => Stored::Failed,
            _ => Stored::Done,
        };
        (row.get(1).unwrap_or_default(), stored)
    })
}

/// The look around that a worker takes at its start and at every poll: rows of dead workers are rescued,
/// retries whose time has come become claimable. [`Outlook::pending`] only says whether there are any.
pub(super) fn poll(worker: &str) -> Result<Outlook, PgError> {
    let limit = 1;
    in_queue("poll the queue", || {
        let live = vec![worker.to_owned()];
        let rescued = spi::query_one(
            "select steadytext.rescue_requests($1)",
            vec![live.into()],
            Mode::ReadWrite,
            |row| row.get::<i32>(1),
        )?;
        if rescued.flatten() != Some(0) {
            pending::doubt_here();
        }
        spi::query("select steadytext.promote_requests()", vec![], Mode::ReadWrite, |_| ())?;
        let outlook = spi::query_one(
            "select pending, alone_due, due_in, elsewhere from steadytext.queue_outlook($1)",
            vec![limit.into()],
            Mode::ReadWrite,
            |row| Outlook {
                pending: row.get(1).unwrap_or(0),
                alone_due: row.get(2).unwrap_or(false),
                due_in_s: row.get(3),
                elsewhere: row.get(4).unwrap_or(false),
            },
        )?;
        Ok(outlook.unwrap_or_default())
    })
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
        let step = spi::query_one(
            "select last_id from steadytext.expire_requests($1, $2)",
            vec![after.into(), RETENTION_BATCH.into()],
            Mode::ReadWrite,
            |row| row.get::<i64>(1),
        )?;
        Ok(step.flatten())
    })
}

/// Puts answers into the cache, all of them or none. False: somebody has locked the table.
pub(super) fn store_answers(entries: &[NewEntry]) -> Result<bool, PgError> {
    let column =
        |of: fn(&NewEntry) -> &String| entries.iter().map(|entry| of(entry).clone()).collect::<Vec<_>>();
    let responses: Vec<Option<String>> = entries.iter().map(|entry| entry.response.clone()).collect();
    let numbers: Vec<f32> = entries.iter().flat_map(|entry| entry.embedding.iter().copied()).collect();
    let lengths: Vec<i32> = entries.iter().map(|entry| entry.embedding.len() as i32).collect();
    let about: Vec<pgrx::JsonB> = entries
        .iter()
        .map(|entry| pgrx::JsonB(serde_json::from_str(&entry.about).unwrap_or(Json::Null)))
        .collect();
    in_queue("store answers in the cache", || {
        if !cache_is_free()? {
            return Ok(false);
        }
        spi::query(
            "select steadytext.store_answers($1, $2, $3, $4, $5, $6)",
            vec![
                column(|entry| &entry.key).into(),
                column(|entry| &entry.prompt).into(),
                responses.into(),
                numbers.into(),
                lengths.into(),
                about.into(),
            ],
            Mode::ReadWrite,
            |_| (),
        )
        .map(|_| true)
    })
}

/// Writes down how often entries of the cache were used, each of them given once. Returns those that somebody
/// has locked.
pub(super) fn count_accesses(accesses: &[Accesses]) -> Result<Vec<i64>, PgError> {
    if accesses.is_empty() {
        return Ok(Vec::new());
    }
    let entries: Vec<i64> = accesses.iter().map(|accesses| accesses.entry).collect();
    let counts: Vec<i64> =
        accesses.iter().map(|accesses| i64::try_from(accesses.count).unwrap_or(i64::MAX)).collect();
    let last: Vec<Option<TimestampWithTimeZone>> =
        accesses.iter().map(|accesses| TimestampWithTimeZone::try_from(accesses.last).ok()).collect();
    in_queue("count uses of the cache", || {
        if !cache_is_free()? {
            return Ok(entries);
        }
        spi::query(
            "select steadytext.count_accesses($1, $2, $3)",
            vec![entries.clone().into(), counts.into(), last.into()],
            Mode::ReadWrite,
            |row| row.get::<i64>(1).unwrap_or_default(),
        )
    })
}

/// Whether the cache can be written without waiting for a lock on the whole table. Inside a transaction.
///
/// # Errors
///
/// 55000 if the extension is not installed.
fn cache_is_free() -> Result<bool, PgError> {
    Ok(catalog_cache::installation()?.cache.is_some_and(cache_table::can_write))
}

/// The first `limit` entries that must go from the cache, with their access counts.
pub(super) fn plan_eviction(limit: i32) -> Result<Vec<(i64, i32)>, PgError> {
    in_queue("plan eviction", || {
        if !cache_is_free()? {
            return Ok(Vec::new());
        }
        spi::query(
            "select id, access_count from steadytext.plan_eviction($1)",
            vec![limit.into()],
            Mode::ReadWrite,
            |row| (row.get(1).unwrap_or_default(), row.get(2).unwrap_or_default()),
        )
    })
}

/// Evicts entries that have not been used since they were chosen; returns how many are gone.
pub(super) fn evict(victims: &[(i64, i32)]) -> Result<i32, PgError> {
    let (ids, counts): (Vec<i64>, Vec<i32>) = victims.iter().copied().unzip();
    in_queue("evict cache entries", || {
        if !cache_is_free()? {
            return Ok(0);
        }
        // What is raised at the commit would be out of the function's reach.
        spi::query("set constraints all immediate", vec![], Mode::ReadWrite, |_| ())?;
        let gone = spi::query_one(
            "select cardinality(steadytext.evict_entries($1, $2))",
            vec![ids.into(), counts.into()],
            Mode::ReadWrite,
            |row| row.get::<i32>(1),
        )?;
        Ok(gone.flatten().unwrap_or(0))
    })
}

/// Writes down what roles have used.
pub(super) fn save_usage(changed: &[Saved]) -> Result<(), PgError> {
    let roles: Vec<pg_sys::Oid> = changed.iter().map(|saved| saved.role).collect();
    let seconds: Vec<i64> = changed.iter().map(|saved| saved.second).collect();
    let counts = |of: fn(&Saved) -> &Vec<u32>| -> Vec<i64> {
        changed.iter().flat_map(|saved| of(saved).iter().map(|count| i64::from(*count))).collect()
    };
    in_queue("write down what roles have used", || {
        spi::query(
            "select steadytext.save_usage($1, $2, $3, $4)",
            vec![
                roles.into(),
                seconds.into(),
                counts(|saved| &saved.requests).into(),
                counts(|saved| &saved.tokens).into(),
            ],
            Mode::ReadWrite,
            |_| (),
        )
        .map(|_| ())
    })
}

/// What roles had used when it was written down.
pub(super) fn saved_usage() -> Result<Vec<Saved>, PgError> {
    let counts = |column: Option<Vec<Option<i64>>>| -> Vec<u32> {
        let column = column.unwrap_or_default().into_iter();
        column.map(|count| u32::try_from(count.unwrap_or(0)).unwrap_or(0)).collect()
    };
    in_queue("read what roles have used", || {
        spi::query(
            "select owner, second, requests, tokens from steadytext.saved_usage()",
            vec![],
            Mode::ReadWrite,
            |row| Saved {
                role: row.get(1).unwrap_or(pg_sys::InvalidOid),
                second: row.get(2).unwrap_or(0),
                requests: counts(row.get(3)),
                tokens: counts(row.get(4)),
            },
        )
    })
}

/// Writes what was refused into the audit log; `dropped`: refusals of which nothing else is known.
pub(super) fn note_refusals(refused: &[Refusal], dropped: u64) -> Result<(), PgError> {
    let texts =
        |of: fn(&Refusal) -> &String| refused.iter().map(|refusal| of(refusal).clone()).collect::<Vec<_>>();
    let times = |of: fn(&Refusal) -> i64| -> Vec<Option<TimestampWithTimeZone>> {
        refused.iter().map(|refusal| TimestampWithTimeZone::try_from(of(refusal)).ok()).collect()
    };
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let roles: Vec<pg_sys::Oid> = refused.iter().map(|refusal| refusal.role).collect();
    let sessions: Vec<pg_sys::Oid> = refused.iter().map(|refusal| refusal.session).collect();
    let counts: Vec<i64> = refused.iter().map(|refusal| number(refusal.count)).collect();
    in_queue("note refusals", || {
        spi::query(
            "select steadytext.note_refusals($1, $2, $3, $4, $5, $6, $7, $8, $9)",
            vec![
                roles.into(),
                sessions.into(),
                texts(|refusal| &refusal.what).into(),
                texts(|refusal| &refusal.code).into(),
                texts(|refusal| &refusal.message).into(),
                counts.into(),
                times(|refusal| refusal.first).into(),
                times(|refusal| refusal.last).into(),
                number(dropped).into(),
            ],
            Mode::ReadWrite,
            |_| (),
        )
        .map(|_| ())
    })
}

/// Deletes a portion of what is older than the audit log keeps. Whether there may be more.
pub(super) fn sweep_audit_log() -> Result<bool, PgError> {
    in_queue("sweep the audit log", || {
        let more = spi::query_one("select steadytext.sweep_audit_log()", vec![], Mode::ReadWrite, |row| {
            row.get::<bool>(1)
        })?;
        Ok(more.flatten() == Some(true))
    })
}

/// What a worker reports of itself.
pub(super) struct Heartbeat<'a> {
    /// The worker's id.
    pub(super) worker: &'a str,
    /// `running` or `paused`.
    pub(super) status: &'a str,
    /// Loaded models.
    pub(super) models: Vec<(String, u64)>,
    /// Requests running.
    pub(super) active: usize,
    /// Requests ended since the worker started.
    pub(super) total: i64,
    /// Of these, failed ones.
    pub(super) errors: i64,
    /// Average time from claim to end.
    pub(super) average_ms: f64,
}

/// Writes the worker's row of steadytext_daemon_health.
pub(super) fn heartbeat(beat: &Heartbeat<'_>) -> Result<(), PgError> {
    let names: Vec<&str> = beat.models.iter().map(|(name, _)| name.as_str()).collect();
    let memory_mb: u64 = beat.models.iter().map(|(_, memory_mb)| memory_mb).sum();
    in_queue("record heartbeat", || {
        spi::query(
            "select steadytext.record_heartbeat($1, 'local', $2, $3, $4, $5, $6, $7, $8, $9)",
            vec![
                beat.worker.into(),
                beat.status.into(),
                env!("CARGO_PKG_VERSION").into(),
                pgrx::JsonB(Json::from(names)).into(),
                i32::try_from(memory_mb).unwrap_or(i32::MAX).into(),
                i32::try_from(beat.active).unwrap_or(i32::MAX).into(),
                beat.total.into(),
                beat.errors.into(),
                beat.average_ms.into(),
            ],
            Mode::ReadWrite,
            |_| (),
        )
        .map(|_| ())
    })
}

/// Runs `work` in a transaction of its own, as the owner of the queue.
pub(super) fn in_queue<T>(activity: &str, work: impl FnOnce() -> Result<T, PgError>) -> Result<T, PgError> {
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

fn columns(held: &[Held]) -> (Vec<i64>, Vec<i32>) {
    held.iter().map(|held| (held.id, held.attempt)).unzip()
}
