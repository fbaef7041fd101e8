//! Cancelling a request.

use pgrx::prelude::*;
use uuid::Uuid;

use crate::pg::error::OrRaise;
use crate::pg::privilege::{as_owner, current_user, may_manage};
use crate::pg::spi::{self, Mode};
use crate::pg::{caches, guc, listen, wake};

/// Cancels a request that is pending or being processed. True if it did; false if the request had ended, does not
/// exist, or belongs to somebody whose rights the caller does not have.
///
/// The caller has no right to write the row's result columns, hence this is not SQL: it checks the caller's right,
/// then acts as the queue's owner.
#[pg_extern(volatile, parallel_unsafe)]
fn cancel_async(request_id: Option<pgrx::Uuid>) -> bool {
    let Some(id) = request_id else { return false };
    let installation = caches::installation().or_raise();
    let caller = current_user();
    let cancelled = as_owner(installation.owner, || {
        let table = format!("{}.steadytext_queue", installation.schema);
        let owner = spi::query_one(
            &format!("select owner_role::oid from {table} where request_id = $1"),
            vec![id.into()],
            Mode::ReadWrite,
            |row| row.get::<pg_sys::Oid>(1),
        )
        .or_raise()
        .flatten();
        // Rows of a dropped role belong to nobody but administrators and the queue's owner.
        if !owner.is_some_and(|owner| may_manage(caller, owner) || may_manage(caller, installation.owner)) {
            return false;
        }
        spi::query_one(
            &format!(
                "update {table}
                    set status = 'cancelled', error = 'Request was cancelled', error_code = '57014',
                        completed_at = clock_timestamp(), lease_expires_at = null, run_after = null
                  where request_id = $1
                    and status in ('pending', 'processing')
                 returning true"
            ),
            vec![id.into()],
            Mode::ReadWrite,
            |row| row.get::<bool>(1),
        )
        .or_raise()
        .is_some()
    });
    if cancelled {
        let id = Uuid::from_bytes(*id.as_bytes());
        wake::arm_review();
        wake::arm_ended(id);
        if guc::notify() {
            listen::notify(c"steadytext_result", &id.to_string());
        }
    }
    cancelled
}
