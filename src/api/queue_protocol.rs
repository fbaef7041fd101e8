//! Functions that the queue's protocol in SQL calls: requirements on workers, the place where a claim begins
//! to look, and the lanes of requests.

use pgrx::prelude::*;

use crate::pg::error::{OrRaise, PgError};
use crate::pg::jsonb::{Container, Item, Jsonb};
use crate::pg::{bgworker, catalog_cache, claim_floors};

/// Longest lease: a worker elsewhere that dies holds its requests that long, and no lease need be longer than
/// the time between two extensions.
const MAX_LEASE_SECONDS: i32 = 3600;
/// Longest name of a worker, in bytes.
const MAX_NAME_BYTES: usize = 256;
/// Beginning of the names of servers' own workers.
const OWN: &str = "local:";

/// Whether this process is the worker of this server and database.
#[pg_extern(volatile, parallel_unsafe)]
fn is_own_worker() -> bool {
    bgworker::is_worker()
}

/// Refuses workers without a name, the names of servers' own workers from anybody else, and leases out of
/// range.
#[pg_extern(volatile, parallel_unsafe)]
fn check_worker(worker: Option<&str>, lease_seconds: Option<i32>) {
    if bgworker::is_worker() {
        return;
    }
    let name = worker.unwrap_or_default();
    if name.trim().is_empty() || name.len() > MAX_NAME_BYTES {
        invalid(format!("a worker must have a name of 1 to {MAX_NAME_BYTES} bytes"))
            .hint("Take one of its own for each worker, new at each start.")
            .raise();
    }
    if name.starts_with(OWN) {
        invalid("names that begin with \"local:\" are the server's own workers'")
            .hint("Take another name: it is for the server alone to know whether a local worker lives.")
            .raise();
    }
    if !lease_seconds.is_some_and(|seconds| (1..=MAX_LEASE_SECONDS).contains(&seconds)) {
        invalid(format!("a lease must be between 1 and {MAX_LEASE_SECONDS} seconds"))
            .hint("Extend it with steadytext.extend_leases() while the work goes on.")
            .raise();
    }
}

fn invalid(message: impl Into<String>) -> PgError {
    PgError::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
}

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

/// Bits of a lane that are the hash of what is asked for, and below the owner.
const KIND_BITS: u32 = 28;
const OWNER_SHIFT: u32 = 32;
/// The parameters that name a model, in the order in which they count.
const NAMES: [&str; 3] = ["model", "size", "default_model"];
/// The parameter that decides what for the default model is, where none is named.
const METHOD: &str = "method";

/// The lane of a row. It is in an index: what it is must never change.
#[pg_extern(immutable, parallel_safe)]
fn claim_lane(
    owner_role: Option<i32>,
    priority: Option<i32>,
    request_type: Option<&str>,
    params: Option<Jsonb<'_>>,
) -> i64 {
    let owner = i64::from(owner_role.unwrap_or(0).cast_unsigned()) << OWNER_SHIFT;
    let priority = i64::from(priority.unwrap_or(0) & 0xf) << KIND_BITS;
    let named = match params.and_then(Jsonb::root) {
        Some(Item::Object(params)) => named(params),
        _ => None,
    };
    owner | priority | i64::from(kind(request_type.unwrap_or_default(), named))
}

/// The parameter of a request that decides its model, and whether that is the method; of several such
/// parameters the first that is a text.
fn named(params: Container<'_>) -> Option<(bool, &str)> {
    let mut found = [None; NAMES.len() + 1];
    for (key, value) in params.pairs().flatten() {
        if let (Some(place), Item::Text(text)) =
            (NAMES.iter().chain([&METHOD]).position(|name| *name == key), value)
        {
            found[place] = Some(text);
        }
    }
    found.into_iter().enumerate().find_map(|(place, text)| Some((place == NAMES.len(), text?)))
}

/// FNV-1a of all of it, folded.
fn kind(request_type: &str, named: Option<(bool, &str)>) -> u32 {
    let (is_method, name) = named.unwrap_or_default();
    let bytes = request_type.bytes().chain([u8::from(is_method)]).chain(name.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = hash ^ hash >> 32;
    ((hash ^ hash >> KIND_BITS) & ((1 << KIND_BITS) - 1)) as u32
}
