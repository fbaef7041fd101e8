//! Transactions of the background workers: the one way in which they talk to a database.
//!
//! pgrx's own helper commits when its closure returns `Err` and does not abort after a caught error; this one
//! commits on `Ok` and aborts on everything else.

use std::panic::AssertUnwindSafe;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::error::PgError;

/// Runs `work` in a transaction of its own, in a memory context that is gone afterwards.
///
/// # Errors
///
/// The errors that `work` returned or raised; the transaction was aborted then.
pub(crate) fn transaction<T>(
    activity: &str,
    work: impl FnOnce() -> Result<T, PgError>,
) -> Result<T, PgError> {
    report_running(activity);
    // SAFETY: begins and ends a transaction outside of any other; `AbortCurrentTransaction` cleans up after
    // an error in whatever state it left the transaction, also one that never got to begin.
    let result = PgTryBuilder::new(AssertUnwindSafe(|| unsafe {
        pg_sys::SetCurrentStatementStartTimestamp();
        pg_sys::StartTransactionCommand();
        pg_sys::PushActiveSnapshot(pg_sys::GetTransactionSnapshot());
        let value = work()?;
        pg_sys::PopActiveSnapshot();
        pg_sys::CommitTransactionCommand();
        Ok(value)
    }))
    .catch_others(|caught| Err(PgError::from(caught)))
    .execute();
    // SAFETY: as above; the rest reports statistics and that the process is idle.
    unsafe {
        if result.is_err() {
            pg_sys::AbortCurrentTransaction();
        }
        pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        report_statistics();
        pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_IDLE, std::ptr::null());
    }
    result
}

/// The number of triggers that are running inside each other, this one included.
pub(crate) fn trigger_depth() -> i32 {
    // SAFETY: the function reads a variable of this process, and nothing of its arguments.
    unsafe {
        let mut arguments: pg_sys::FunctionCallInfoBaseData = std::mem::zeroed();
        pg_sys::pg_trigger_depth(&mut arguments).value() as i32
    }
}

/// Runs `work`, which begins and ends transactions itself, and cleans up after an error.
///
/// # Errors
///
/// The errors that `work` raised.
pub(crate) fn guarded(work: impl FnOnce()) -> Result<(), PgError> {
    let result = PgTryBuilder::new(AssertUnwindSafe(|| {
        work();
        Ok(())
    }))
    .catch_others(|caught| Err(PgError::from(caught)))
    .execute();
    if result.is_err() {
        // SAFETY: outside of any transaction of the caller's.
        unsafe {
            pg_sys::AbortCurrentTransaction();
            pg_sys::MemoryContextSwitchTo(pg_sys::TopMemoryContext);
        }
    }
    result
}

fn report_running(activity: &str) {
    let text: Vec<u8> = activity.bytes().filter(|byte| *byte != 0).chain([0]).collect();
    // SAFETY: a string that ends with a zero, copied by the callee.
    unsafe { pg_sys::pgstat_report_activity(pg_sys::BackendState::STATE_RUNNING, text.as_ptr().cast()) };
}

/// Reports what was counted to PostgreSQL's statistics. Without this, autovacuum would not see the rows that
/// a worker leaves dead.
fn report_statistics() {
    // SAFETY: called outside of transactions.
    unsafe {
        pg_sys::pgstat_report_stat(false);
    }
}

/// Runs `work` under PostgreSQL's latest snapshot, whatever the isolation level of the caller's transaction.
pub(crate) fn with_latest_snapshot<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: pushed and popped in pairs; after an error the abort pops it.
    unsafe {
        // The first snapshot of a transaction is its own, after which its isolation level cannot be set any
        // more: a statement such as SET, which needs none, must not have taken it. That of the catalogs
        // serves as well, and is not older than this moment.
        let snapshot = if pg_sys::FirstSnapshotSet {
            pg_sys::GetLatestSnapshot()
        } else {
            pg_sys::InvalidateCatalogSnapshot();
            pg_sys::GetCatalogSnapshot(pg_sys::RelationRelationId)
        };
        pg_sys::PushActiveSnapshot(snapshot);
        let value = work();
        pg_sys::PopActiveSnapshot();
        value
    }
}

/// Runs `work`, which only reads, without keeping the locks it takes: in a subtransaction that is rolled
/// back. A caller that looks at a table again and again must not hold up a session that wants to change the
/// table, nor, queued behind that one, the worker whose result it waits for.
pub(crate) fn in_passing<T>(work: impl FnOnce() -> T) -> T {
    // SAFETY: as PL/pgSQL does it for a block with an exception handler; memory context and resource owner
    // are the caller's before and after.
    unsafe {
        let context = pg_sys::CurrentMemoryContext;
        let owner = pg_sys::CurrentResourceOwner;
        pg_sys::BeginInternalSubTransaction(std::ptr::null());
        pg_sys::MemoryContextSwitchTo(context);
        let result = PgTryBuilder::new(AssertUnwindSafe(|| Ok(work())))
            .catch_others(|caught| Err(Box::new(caught)))
            .execute();
        pg_sys::RollbackAndReleaseCurrentSubTransaction();
        pg_sys::MemoryContextSwitchTo(context);
        pg_sys::CurrentResourceOwner = owner;
        result.unwrap_or_else(|caught| caught.rethrow())
    }
}

/// Whether this process takes part in a parallel query.
pub(crate) fn in_parallel_query() -> bool {
    // SAFETY: a plain getter.
    unsafe { pg_sys::IsInParallelMode() }
}

/// Whether it is one of those that were started for it.
pub(crate) fn is_parallel_worker() -> bool {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::ParallelWorkerNumber >= 0 }
}

/// The value of now() in this transaction, as TimestampTz.
pub(crate) fn started_at() -> i64 {
    // SAFETY: a plain getter.
    unsafe { pg_sys::GetCurrentTransactionStartTimestamp() }
}

/// The time at which the server received the statement that runs, as TimestampTz.
pub(crate) fn statement_started_at() -> i64 {
    // SAFETY: a plain getter.
    unsafe { pg_sys::GetCurrentStatementStartTimestamp() }
}

/// The nesting level of the current subtransaction; 1 outside of any.
pub(crate) fn nest_level() -> i32 {
    // SAFETY: a plain getter.
    unsafe { pg_sys::GetCurrentTransactionNestLevel() }
}

/// Whether `xid` is the caller's own transaction or one of its subtransactions.
pub(crate) fn is_own(xid: pg_sys::TransactionId) -> bool {
    // SAFETY: looks at the state of this process only.
    unsafe { pg_sys::TransactionIdIsCurrentTransactionId(xid) }
}

/// Whether this session applies what was changed elsewhere: session_replication_role is replica.
pub(crate) fn applies_changes() -> bool {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::SessionReplicationRole == pg_sys::SESSION_REPLICATION_ROLE_REPLICA as i32 }
}
