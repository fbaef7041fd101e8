//! Administration of the whole cache: emptying it, and having pg_cron trim it.

use pgrx::prelude::*;
use serde_json::json;

use super::audit::note_in_audit_log;
use crate::pg::catalog_cache;
use crate::pg::error::{OrRaise, PgError};
use crate::pg::privilege::{as_owner, current_user};
use crate::pg::spi::{self, Mode};

/// Empties the cache; returns how many entries there were.
#[pg_extern(volatile, parallel_unsafe)]
fn cache_clear() -> i64 {
    let installation = catalog_cache::installation().or_raise();
    let caller = current_user();
    as_owner(installation.owner, || {
        let sql = format!(
            "with gone as (delete from {}.steadytext_cache returning 1) select count(*) from gone",
            installation.schema
        );
        let count = spi::query_one(&sql, vec![], Mode::ReadWrite, |row| row.get::<i64>(1))?.flatten();
        let count = count.unwrap_or_default();
        note_in_audit_log(&installation, caller, "cache_clear", json!({ "entries": count }), None)?;
        Ok(count)
    })
    .or_raise()
}

/// Schedules the eviction with pg_cron. Returns a message about the outcome.
#[pg_extern(volatile, parallel_unsafe)]
fn setup_eviction_cron() -> String {
    change_schedule("cache_eviction_cron_setup", "steadytext.schedule_eviction")
}

/// Removes the eviction from pg_cron's schedule. Returns a message about the outcome.
#[pg_extern(volatile, parallel_unsafe)]
fn disable_eviction_cron() -> String {
    change_schedule("cache_eviction_cron_disable", "steadytext.unschedule_eviction")
}

fn change_schedule(action: &str, function: &str) -> String {
    let installation = catalog_cache::installation().or_raise();
    let caller = current_user();
    let (message, hint) = as_owner(installation.owner, || {
        let (done, message, hint) = spi::query_one(
            &format!("select done, message, hint from {function}()"),
            vec![],
            Mode::ReadWrite,
            |row| (row.get::<bool>(1), row.get::<String>(2).unwrap_or_default(), row.get::<String>(3)),
        )?
        .unwrap_or_default();
        let failure = (done != Some(true)).then_some(message.as_str());
        note_in_audit_log(&installation, caller, action, json!({ "message": message }), failure)?;
        Ok::<_, PgError>((message, hint))
    })
    .or_raise();
    if let Some(hint) = hint {
        PgError::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message.clone())
            .hint(hint)
            .report(PgLogLevel::NOTICE);
    }
    message
}
