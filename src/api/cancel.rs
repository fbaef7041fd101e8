//! Cancelling requests.

use pgrx::prelude::*;
use uuid::Uuid;

use crate::pg::error::OrRaise;
use crate::pg::privilege::{as_owner, current_user, may_manage};
use crate::pg::request_statistics::OTHER;
use crate::pg::spi::{self, Mode};
use crate::pg::{after_commit, catalog_cache, ended_counts, guc, listen};
use crate::registry::is_known;
use crate::request::checks::is_type;

/// Cancels a request that is pending or being processed. True if it did; false if the request had ended, does
/// not exist, or belongs to somebody whose rights the caller does not have.
#[pg_extern(volatile, parallel_unsafe)]
fn cancel_async(request_id: Option<pgrx::Uuid>) -> bool {
    request_id.is_some_and(|id| cancel(vec![id]) > 0)
}

/// Cancels all of these requests that [`cancel_async`] would; how many that are.
#[pg_extern(volatile, parallel_unsafe)]
fn cancel_async_batch(request_ids: Option<Vec<Option<pgrx::Uuid>>>) -> i64 {
    cancel(request_ids.into_iter().flatten().flatten().collect())
}

/// The caller has no right to write a row's result columns, hence this is not SQL: it checks the caller's
/// right, then acts as the queue's owner.
fn cancel(mut ids: Vec<pgrx::Uuid>) -> i64 {
    if ids.is_empty() {
        return 0;
    }
    let installation = catalog_cache::installation().or_raise();
    let caller = current_user();
    let models = catalog_cache::models().or_raise();
    let cancelled = as_owner(installation.owner, || {
        let table = format!("{}.steadytext_queue", installation.schema);
        let found = spi::query(
            &format!(
                "select q.request_id, q.owner_role::oid from {table} q
                  where q.request_id operator(pg_catalog.=) any ($1) and q.status in ('pending', 'processing')"
            ),
            vec![ids.into()],
            Mode::ReadWrite,
            |row| (row.get::<pgrx::Uuid>(1), row.get::<pg_sys::Oid>(2)),
        )
        .or_raise();
        // Rows of a dropped role belong to nobody but administrators and the queue's owner.
        let may = |owner: Option<pg_sys::Oid>| {
            owner.is_some_and(|owner| may_manage(caller, owner) || may_manage(caller, installation.owner))
        };
        ids = found.into_iter().filter(|(_, owner)| may(*owner)).filter_map(|(id, _)| id).collect();
        if ids.is_empty() {
            return Vec::new();
        }
        // Locked in the order in which everybody locks rows.
        spi::query(
            &format!(
                "update {table} q
                    set status = 'cancelled', error = 'Request was cancelled', error_code = '57014',
                        completed_at = pg_catalog.clock_timestamp(), lease_expires_at = null, run_after = null
                   from (select l.id, l.status from {table} l
                          where l.request_id operator(pg_catalog.=) any ($1) and l.status in ('pending', 'processing')
                          order by l.id for update) as locked
                  where q.id operator(pg_catalog.=) locked.id
                    and q.status in ('pending', 'processing')
                 returning q.request_id, q.request_type, q.attempt operator(pg_catalog.=) 0,
                       locked.status operator(pg_catalog.=) 'pending' or not pg_catalog.starts_with(q.worker, 'local:'), q.params operator(pg_catalog.->>) 'model'"
            ),
            vec![ids.into()],
            Mode::ReadWrite,
            |row| {
                // The server's own worker knows more of a request that is being worked on.
                if row.get::<bool>(4) == Some(true) {
                    // A row may name anything, and each name takes a place.
                    let (request_type, model) = (row.get::<String>(2), row.get::<String>(5));
                    let request_type = request_type.filter(|request_type| is_type(request_type));
                    let model = model.map(|model| if is_known(&model, &models) { model } else { OTHER.to_owned() });
                    ended_counts::cancelled(
                        model.as_deref().unwrap_or_default(),
                        request_type.as_deref().unwrap_or(OTHER),
                        row.get(3) == Some(true),
                    );
                }
                row.get::<pgrx::Uuid>(1)
            },
        )
        .or_raise()
    });
    for id in cancelled.iter().flatten() {
        let id = Uuid::from_bytes(*id.as_bytes());
        after_commit::arm_review();
        after_commit::arm_ended(id);
        if guc::notify() {
            listen::notify(c"steadytext_result", &id.to_string());
        }
    }
    i64::try_from(cancelled.len()).unwrap_or(i64::MAX)
}
