//! The audit log: what administrators did to everybody's data.

use pgrx::prelude::*;
use serde_json::Value;

use crate::pg::catalog;
use crate::pg::catalog_cache::Installation;
use crate::pg::error::PgError;
use crate::pg::spi::{self, Mode};

/// Notes an act. As the owner of the extension's tables.
///
/// # Errors
///
/// As [`spi::query`].
pub(super) fn note(
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
