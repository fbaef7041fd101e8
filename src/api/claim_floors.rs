//! Functions for `steadytext.claim_requests`: where it begins to look.

use pgrx::prelude::*;

use crate::pg::error::OrRaise;
use crate::pg::{catalog_cache, claim_floors};

/// The floors of this process: by priority and role, in the order of the index of claims, the id before which
/// nothing is pending. NULLs where a claim begins with the first entry.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn claim_floors_now() -> TableIterator<
    'static,
    (
        name!(priorities, Option<Vec<i32>>),
        name!(roles, Option<Vec<pg_sys::Oid>>),
        name!(ids, Option<Vec<i64>>),
    ),
> {
    let floors = claim_floors::begin(&catalog_cache::installation().or_raise());
    let Some(floors) = floors else { return TableIterator::once((None, None, None)) };
    TableIterator::once((
        Some(floors.iter().map(|floor| floor.priority).collect()),
        Some(floors.iter().map(|floor| floor.role).collect()),
        Some(floors.iter().map(|floor| floor.id).collect()),
    ))
}

/// Takes note of what a search from the first entry on has come to: users, and the group of the first
/// request.
#[pg_extern(volatile, parallel_unsafe)]
fn note_search(users: i32, priority: Option<i32>, role: Option<pg_sys::Oid>) {
    claim_floors::searched(usize::try_from(users).unwrap_or(0), priority.zip(role));
}

/// Takes note of the first pending request of a priority and a role.
#[pg_extern(volatile, parallel_unsafe)]
fn note_floor(priority: i32, role: pg_sys::Oid, id: Option<i64>) {
    claim_floors::note(priority, role, id);
}
