//! Triggers and functions that wake other processes when something has changed in the extension's tables.

use std::convert::Infallible;

use pgrx::heap_tuple::PgHeapTuple;
use pgrx::prelude::*;
use pgrx::{AllocatedByPostgres, Array};
use uuid::Uuid;

use crate::pg::error::{OrRaise, PgError};
use crate::pg::{
    after_commit, bgworker, cache_filter, catalog, catalog_cache, guc, listen, pending, privilege, shmem,
    slots, transaction,
};
use crate::registry::restored;

type NoRow<'a> = Result<Option<PgHeapTuple<'a, AllocatedByPostgres>>, Infallible>;

/// AFTER UPDATE OF what decides when a request is claimed FOR EACH STATEMENT on steadytext_queue: somebody
/// may have made rows pending again. The worker's own updates need no wake. One that a trigger makes beside
/// them is somebody else's.
#[pg_trigger]
fn wake_worker<'a>(_trigger: &'a PgTrigger<'a>) -> NoRow<'a> {
    if !bgworker::is_worker() || transaction::trigger_depth() > 1 {
        after_commit::arm_change();
    }
    Ok(None)
}

/// AFTER UPDATE OF status FOR EACH ROW on steadytext_queue, where a request is pending again. In the worker's
/// own update a trigger of somebody else may have made it so, before the row was written.
#[pg_trigger]
fn count_retry<'a>(trigger: &'a PgTrigger<'a>) -> NoRow<'a> {
    let before: Option<String> = trigger.old().and_then(|row| row.get_by_name("status").ok().flatten());
    if before.as_deref() == Some("failed") {
        pending::retried(privilege::current_user());
    }
    if bgworker::is_worker() {
        after_commit::arm_change();
    }
    Ok(None)
}

/// AFTER DELETE OR TRUNCATE FOR EACH STATEMENT on steadytext_queue: pending rows may be gone. The worker and
/// the process that works for vectorizers only delete others.
#[pg_trigger]
fn recount_requests<'a>(_trigger: &'a PgTrigger<'a>) -> NoRow<'a> {
    if !bgworker::is_worker() && !slots::is_vectorizing() {
        after_commit::arm_change();
    }
    Ok(None)
}

/// AFTER INSERT OR UPDATE OF cache_key FOR EACH ROW on steadytext_cache.
#[pg_trigger]
fn note_key<'a>(trigger: &'a PgTrigger<'a>) -> NoRow<'a> {
    let Some(filter) = cache_filter::mine() else { return Ok(None) };
    let row = trigger.new();
    let hash = row.as_ref().and_then(|row| row.get_by_name::<&[u8]>("key_hash").ok().flatten());
    match hash.and_then(|hash| hash.try_into().ok()) {
        Some(hash) => filter.add(hash),
        // Somebody has changed the table.
        None => filter.empty(),
    }
    Ok(None)
}

/// AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE FOR EACH STATEMENT on steadytext_config and
/// steadytext_models.
#[pg_trigger]
fn note_change<'a>(trigger: &'a PgTrigger<'a>) -> NoRow<'a> {
    if let Ok(table) = trigger.relid() {
        catalog_cache::invalidate(table);
        restored::check(table).or_raise();
    }
    after_commit::arm_review();
    Ok(None)
}

/// After commit, wakes the sessions that wait for these requests, and notifies clients if the settings ask
/// for it.
#[pg_extern(volatile, parallel_unsafe)]
fn announce(request_ids: Array<'_, pgrx::Uuid>) {
    let notify = guc::notify();
    for id in request_ids.iter().flatten() {
        let id = Uuid::from_bytes(*id.as_bytes());
        after_commit::arm_ended(id);
        if notify {
            listen::notify(c"steadytext_result", &id.to_string());
        }
    }
}

/// Asks for a worker in this database, at commit. The last line of the install script.
#[pg_extern(volatile, parallel_unsafe)]
fn start_worker() {
    if !catalog::encoding_is_utf8() {
        PgError::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            "pg_steadytext needs a database with encoding UTF8",
        )
        .hint("Create one with CREATE DATABASE … ENCODING 'UTF8' TEMPLATE template0.")
        .raise();
    }
    if shmem::get().is_none() {
        shmem::not_preloaded("requests will be enqueued, but no worker runs: pg_steadytext is not preloaded")
            .report(PgLogLevel::WARNING);
    }
    after_commit::arm_call();
}
