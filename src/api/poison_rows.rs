//! Functions for the queue protocol in `sql/`: sizes of values that are not read, and the memory of rows that
//! must not hold up the others.

use std::sync::atomic::Ordering::Relaxed;

use pgrx::prelude::*;
use pgrx::{AnyElement, Array};

use crate::pg::error::{OrRaise, PgError};
use crate::pg::{activity, catalog_cache, pending, set_aside, slots, tuple};

fn extension() -> pg_sys::Oid {
    catalog_cache::installation().or_raise().extension
}

/// Bytes of a value of variable length as it is uncompressed. Does not read it.
#[pg_extern(immutable, parallel_safe)]
fn raw_size(value: AnyElement) -> i64 {
    tuple::raw_size(&value)
}

/// The requests that this process has set aside.
#[pg_extern(volatile, parallel_unsafe)]
fn rows_aside() -> Vec<i64> {
    set_aside::rows(extension())
}

/// The place where the claim of a role's requests begins.
#[pg_extern(volatile, parallel_unsafe)]
fn passed_rows(
    priority: i32,
    owner: pg_sys::Oid,
) -> TableIterator<'static, (name!(behind, i64), name!(again_after, i64), name!(again_rows, i32))> {
    let beginning = set_aside::beginning(extension(), priority, owner);
    TableIterator::once((beginning.behind, beginning.again_after, beginning.again_rows))
}

/// Remembers that a role's requests are locked up to an id.
#[pg_extern(volatile, parallel_unsafe)]
fn note_passed_rows(priority: i32, owner: pg_sys::Oid, until: i64, holders: Array<'_, i64>) {
    let holders: Vec<i64> = holders.iter().flatten().collect();
    set_aside::pass(extension(), priority, owner, until, &holders);
}

/// Takes note of a second look at locked requests.
#[pg_extern(volatile, parallel_unsafe)]
fn note_second_look(priority: i32, owner: pg_sys::Oid, found: bool, until: Option<i64>) {
    set_aside::look_again(extension(), priority, owner, found, until);
}

/// Tells the log and `worker_state()` that a request cannot be written, and sets it aside where it was left
/// as it is. The message of the error may have been made of the request's own words, so it is not for the
/// log.
#[pg_extern(volatile, parallel_unsafe)]
fn note_row_error(step: &str, id: i64, owner: Option<pg_sys::Oid>, code: &str, outcome: &str) {
    let extension = extension();
    let is_claiming = matches!(step, "claimed" | "rescued" | "tried again");
    if is_claiming && matches!(outcome, "locked" | "refused") {
        set_aside::set_aside(extension, id, owner.unwrap_or(pg_sys::InvalidOid));
    }
    // Whatever became of it, it is not the usual way.
    pending::doubt_here();
    if let Some(slot) = slots::mine() {
        slot.row_error_id.store(id, Relaxed);
        slot.row_error_code.store(packed(code), Relaxed);
        slot.row_error_at.store(activity::now(), Relaxed);
        slot.row_errors.fetch_add(1, Relaxed);
    }
    if set_aside::is_news(extension, id, step) {
        let (what, hint) = match outcome {
            "failed" => ("it has failed", "Its error is in steadytext_queue."),
            "locked" => ("it is tried again later", HINT),
            _ => ("it is left as it is", HINT),
        };
        PgError::new(
            PgSqlErrorCode::ERRCODE_WARNING,
            format!("request {id} could not be {step}: SQLSTATE {code}; {what}"),
        )
        .hint(hint)
        .report(PgLogLevel::WARNING);
    }
}

const HINT: &str =
    "Look at the triggers, rules and constraints of steadytext_queue, and at the tables that refer to it.";

/// The five characters of an SQLSTATE in six bits each, as PostgreSQL packs them.
fn packed(code: &str) -> u32 {
    code.bytes()
        .take(5)
        .enumerate()
        .fold(0, |packed, (index, byte)| packed | u32::from(byte.wrapping_sub(b'0') & 0x3f) << (6 * index))
}

/// The five characters of a packed SQLSTATE.
pub(super) fn unpacked(code: u32) -> String {
    (0..5).map(|index| char::from(b'0' + (code >> (6 * index) & 0x3f) as u8)).collect()
}
