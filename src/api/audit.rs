//! The audit log: acts of administrators, and refusals.

use pgrx::prelude::*;
use serde_json::Value;

use crate::pg::catalog;
use crate::pg::catalog_cache::{self, Installation};
use crate::pg::error::PgError;
use crate::pg::privilege::{as_owner, current_user, outer_user};
use crate::pg::refusals::{self, OwnedObject};
use crate::pg::spi::{self, Mode};

/// Characters of a model's name that are noted.
const MAX_NAME: usize = 200;

/// The role that the session has taken on, whatever function with rights of its own is running.
#[pg_extern(stable, parallel_restricted)]
fn outer_role() -> pg_sys::Oid {
    outer_user()
}

/// Notes that the caller was refused a change of what belongs to somebody else. For
/// `steadytext.refuse_change()`, which runs as the extension's owner and knows whether that is so.
#[pg_extern(volatile, parallel_unsafe)]
fn note_refusal(kind: Option<&str>) {
    let kind = match kind {
        Some("vectorizer") => OwnedObject::Vectorizer,
        Some("enrichment") => OwnedObject::Enrichment,
        Some("prompt") => OwnedObject::Prompt,
        _ => return,
    };
    refusals::note_other_owner(kind);
}

/// Notes in the audit log what an administrator did to everybody's data. Runs as the owner of the extension's
/// tables.
///
/// # Errors
///
/// As [`spi::query`].
pub(super) fn note_in_audit_log(
    installation: &Installation,
    caller: pg_sys::Oid,
    action: &str,
    details: Value,
    failure: Option<&str>,
) -> Result<(), PgError> {
    let sql = format!(
        "insert into {}.steadytext_audit_log (user_id, action, details, success, error_message) values ($1, $2, $3, $4, $5)",
        installation.schema
    );
    let args = vec![
        catalog::role_name(caller).into(),
        action.into(),
        pgrx::JsonB(details).into(),
        failure.is_none().into(),
        failure.map(str::to_owned).into(),
    ];
    spi::query(&sql, args, Mode::ReadWrite, |_| ()).map(|_| ())
}

/// Notes what an administrator does to the files of a model, in the audit log and in the server's: no
/// rollback undoes the act, while it undoes the entry in the table.
///
/// # Errors
///
/// As [`spi::query`].
pub(super) fn note_act_of_files(action: &str, name: &str) -> Result<(), PgError> {
    let name: String = name.chars().take(MAX_NAME).collect();
    let caller = current_user();
    let message = format!("{action} of \"{name}\" by role \"{}\"", catalog::role_name(caller));
    PgError::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message).report(PgLogLevel::LOG);
    let Ok(installation) = catalog_cache::installation() else { return Ok(()) };
    if catalog::in_recovery() {
        return Ok(());
    }
    let details = serde_json::json!({ "model": name });
    as_owner(installation.owner, || note_in_audit_log(&installation, caller, action, details, None))
}
