//! The limits and the usage of roles: functions that show them, and those by which administrators reset them.

use pgrx::prelude::*;

use serde_json::json;

use super::audit::note_in_audit_log;
use crate::pg::error::OrRaise;
use crate::pg::privilege::{as_owner, current_user};
use crate::pg::rate_counters::{self, PERIODS, Used};
use crate::pg::rate_limits;
use crate::pg::{activity, catalog, catalog_cache, pending, slots};

/// The limits that bind the caller, and what is left of each.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn my_limits() -> TableIterator<
    'static,
    (
        name!(limit_name, String),
        name!(seconds, Option<i32>),
        name!(allowed, i64),
        name!(used, i64),
        name!(remaining, i64),
        name!(resets_at, Option<TimestampWithTimeZone>),
    ),
> {
    let role = current_user();
    let limits = rate_limits::limits_of(role).or_raise();
    let used = rate_counters::used(Some(role)).pop();
    let now = activity::now();
    let number = |count: u64| i64::try_from(count).unwrap_or(i64::MAX);
    let mut rows = Vec::new();
    for (what, allowed, used) in [
        ("requests", limits.allowed.requests, used.as_ref().map(|used| used.requests)),
        ("tokens", limits.allowed.tokens, used.as_ref().map(|used| used.tokens)),
    ] {
        for (index, period) in PERIODS.iter().enumerate() {
            let Some(allowed) = allowed[index] else { continue };
            let (used, wait_s) = used.map_or((0, None), |used| used[index]);
            let resets_at =
                wait_s.and_then(|seconds| TimestampWithTimeZone::try_from(now + seconds * 1_000_000).ok());
            rows.push((
                format!("{what}_per_{}", period.name),
                i32::try_from(period.seconds()).ok(),
                number(allowed),
                number(used),
                number(allowed.saturating_sub(used)),
                resets_at,
            ));
        }
    }
    if let Some(allowed) = limits.pending {
        let used = slots::mine().map_or(0, |slot| pending::count(slot, role).own.max(0));
        let allowed = number(allowed);
        rows.push(("max_pending".to_owned(), None, allowed, used, (allowed - used).max(0), None));
    }
    TableIterator::new(rows)
}

/// The usage of the roles of this database that a limit binds.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::type_complexity, reason = "the columns of a table function")]
fn limit_usage() -> TableIterator<
    'static,
    (
        name!(user_id, String),
        name!(requests_last_minute, i64),
        name!(requests_last_hour, i64),
        name!(requests_last_day, i64),
        name!(tokens_last_minute, i64),
        name!(tokens_last_hour, i64),
        name!(tokens_last_day, i64),
    ),
> {
    let rows: Vec<_> = rate_counters::used(None)
        .into_iter()
        .map(|Used { role, requests, tokens }| {
            let number = |(count, _): (u64, Option<i64>)| i64::try_from(count).unwrap_or(i64::MAX);
            let ([a, b, c], [d, e, f]) = (requests.map(number), tokens.map(number));
            (catalog::role_name(role), a, b, c, d, e, f)
        })
        .collect();
    TableIterator::new(rows)
}

/// Forgets what a role has used. Whether anything was known of it.
#[pg_extern(volatile, parallel_unsafe)]
fn reset_usage(role: pg_sys::Oid) -> bool {
    let installation = catalog_cache::installation().or_raise();
    let caller = current_user();
    let details = json!({ "role": catalog::role_name(role) });
    as_owner(installation.owner, || note_in_audit_log(&installation, caller, "usage_reset", details, None))
        .or_raise();
    let is_known = rate_counters::reset(role);
    // Rows of its vectorizers and enrichments may wait for this.
    if let Some(slot) = slots::mine()
        && !slot.note_for_vectorizers()
    {
        slot.wake();
    }
    is_known
}

/// Seconds until a role may ask for as many requests at once; `None` where it may now.
#[pg_extern(volatile, parallel_unsafe)]
fn limit_wait(role: pg_sys::Oid, count: i64) -> Option<f64> {
    rate_limits::wait_of(role, u64::try_from(count).unwrap_or(0)).or_raise()
}

/// The number of requests that a role may make at once, now, or when it has made none lately; `None`: no
/// limit.
#[pg_extern(volatile, parallel_unsafe)]
fn limit_room(role: pg_sys::Oid, now: bool) -> Option<i64> {
    let room = rate_limits::room_of(role, now).or_raise();
    room.map(|room| i64::try_from(room).unwrap_or(i64::MAX))
}
