//! The limits of steadytext_rate_limits: which of them bind a role, and whether it may ask for more.
//!
//! A limit binds the role that it names and each of its members, for whom it counts by itself: of all that
//! bind a role the strictest one holds, for each kind. One without a name is everybody's. Superusers and
//! members of steadytext_admin, who could change it, are bound by those only that name them.
//!
//! The limits that bind each role are cached by each process until the extension's tables change, or roles
//! do.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;

use pgrx::pg_sys;
use pgrx::prelude::*;
use serde_json::json;

use super::catalog_cache::{self, Installation, may_keep, read_as_owner};
use super::error::{PgError, counted};
use super::rate_counters::{self, Allowed, Exceeded};
use super::spi::{self, Mode};
use super::{catalog, pending, privilege, refusals, slots};

/// Roles whose limits a process keeps.
const MAX_RESOLVED: usize = 256;

/// A row of steadytext_rate_limits.
#[derive(Debug, Clone)]
struct RateLimitRule {
    /// `None`: everybody.
    role: Option<pg_sys::Oid>,
    limits: RoleLimits,
}

/// The limits of a role.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct RoleLimits {
    /// Requests and tokens allowed in each period.
    pub(crate) allowed: Allowed,
    /// Requests of it that may be pending.
    pub(crate) pending: Option<u64>,
}

impl RoleLimits {
    fn stricter(self, other: RoleLimits) -> RoleLimits {
        let least = |a: Option<u64>, b: Option<u64>| a.into_iter().chain(b).min();
        let each =
            |a: [Option<u64>; 3], b: [Option<u64>; 3]| std::array::from_fn(|index| least(a[index], b[index]));
        RoleLimits {
            allowed: Allowed {
                requests: each(self.allowed.requests, other.allowed.requests),
                tokens: each(self.allowed.tokens, other.allowed.tokens),
            },
            pending: least(self.pending, other.pending),
        }
    }
}

#[derive(Default)]
struct LimitsCache {
    /// The generation of the catalog cache that it is good for.
    generation: Option<u64>,
    rules: Rc<Vec<RateLimitRule>>,
    resolved: HashMap<u32, RoleLimits>,
}

thread_local! {
    static KNOWN: RefCell<LimitsCache> = RefCell::default();
    static ROLES_CHANGED: Cell<bool> = const { Cell::new(false) };
    static REGISTERED: Cell<bool> = const { Cell::new(false) };
    /// Nesting depth of statements that this process runs for others.
    static STATEMENTS_OF_OTHERS: Cell<u32> = const { Cell::new(0) };
}

/// Guard: while it lives, requests count as made by a user's statement, and not by the process that runs the
/// statement for them.
#[derive(Debug)]
pub(crate) struct StatementOfOthers(());

impl StatementOfOthers {
    /// A statement begins.
    pub(crate) fn begin() -> StatementOfOthers {
        STATEMENTS_OF_OTHERS.set(STATEMENTS_OF_OTHERS.get() + 1);
        StatementOfOthers(())
    }
}

impl Drop for StatementOfOthers {
    fn drop(&mut self) {
        STATEMENTS_OF_OTHERS.set(STATEMENTS_OF_OTHERS.get().saturating_sub(1));
    }
}

/// The way in which a role asks, which says what is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum RequestChannel {
    /// A row of the queue: it no longer counts when it is rolled back.
    Row,
    /// A call, which is worked on at once.
    Call,
}

/// Counts requests of a role, unless they are more than it may ask for.
///
/// # Errors
///
/// 53400, with the seconds to wait; what reading the limits raises.
pub(crate) fn admit(role: pg_sys::Oid, count: u64, asking: RequestChannel) -> Result<(), PgError> {
    let limits = limits_of(role)?;
    if count == 0 || limits == RoleLimits::default() {
        return Ok(());
    }
    if let (Some(most), RequestChannel::Row, Some(slot)) = (limits.pending, asking, slots::mine()) {
        let pending = u64::try_from(pending::count(slot, role).own).unwrap_or(0);
        if pending >= most {
            let refusal = too_many_pending(role, most, pending);
            refusals::note(role, "max_pending", refusal.code, &refusal.message);
            return Err(refusal);
        }
    }
    // The first text of a vectorizer's request only tells which model it was, and is none of its owner's.
    // Requests of other people's triggers and functions, which its statements run, are not a vectorizer's.
    let is_own = STATEMENTS_OF_OTHERS.get() == 0 && slots::is_vectorizing();
    let count = if is_own && count > 1 { count - 1 } else { count };
    rate_counters::charge(role, count, &limits.allowed, asking == RequestChannel::Call).map_err(|exceeded| {
        let refusal = refusal(role, count, &exceeded);
        let limit = format!("{}_per_{}", exceeded.what, exceeded.period.name);
        refusals::note(role, &limit, refusal.code, &refusal.message);
        refusal
    })
}

/// Seconds until a role may ask for as many requests at once; `None` where it may now. Where it never may,
/// that is an hour.
///
/// # Errors
///
/// Errors from reading the limits.
pub(crate) fn wait_of(role: pg_sys::Oid, count: u64) -> Result<Option<f64>, PgError> {
    const NEVER: i64 = 3600;
    let limits = limits_of(role)?;
    if let (Some(most), Some(slot)) = (limits.pending, slots::mine())
        && pending::count(slot, role).own >= i64::try_from(most).unwrap_or(i64::MAX)
    {
        return Ok(Some(1.0));
    }
    Ok(rate_counters::check(role, count, &limits.allowed)
        .map(|exceeded| exceeded.wait_s.unwrap_or(NEVER) as f64))
}

/// The number of requests that a role may make at once, now, or when it has made none lately; `None`: no
/// limit.
///
/// # Errors
///
/// Errors from reading the limits.
pub(crate) fn room_of(role: pg_sys::Oid, now: bool) -> Result<Option<u64>, PgError> {
    let allowed = limits_of(role)?.allowed;
    if now {
        return Ok(rate_counters::room(role, &allowed));
    }
    Ok(allowed.requests.into_iter().flatten().min())
}

/// The limits of a role. Inside a transaction.
///
/// # Errors
///
/// 55000 if the extension is not installed.
pub(crate) fn limits_of(role: pg_sys::Oid) -> Result<RoleLimits, PgError> {
    let rules = rules()?;
    if rules.is_empty() || role == pg_sys::InvalidOid {
        return Ok(RoleLimits::default());
    }
    register();
    if ROLES_CHANGED.replace(false) {
        KNOWN.with_borrow_mut(|known| known.resolved.clear());
    }
    if let Some(limits) = KNOWN.with_borrow(|known| known.resolved.get(&role.to_u32()).copied()) {
        return Ok(limits);
    }
    let governs = privilege::is_administrator(role);
    let binds = |rule: &&RateLimitRule| match rule.role {
        Some(of) if of == role => true,
        Some(of) => !governs && privilege::is_member(role, of),
        None => !governs,
    };
    let limits =
        rules.iter().filter(binds).fold(RoleLimits::default(), |limits, rule| limits.stricter(rule.limits));
    if may_keep() {
        KNOWN.with_borrow_mut(|known| {
            if known.resolved.len() >= MAX_RESOLVED {
                known.resolved.clear();
            }
            known.resolved.insert(role.to_u32(), limits);
        });
    }
    Ok(limits)
}

fn rules() -> Result<Rc<Vec<RateLimitRule>>, PgError> {
    let installation = catalog_cache::installation()?;
    let generation = catalog_cache::generation();
    let known =
        KNOWN.with_borrow(|known| (known.generation == Some(generation)).then(|| Rc::clone(&known.rules)));
    if let Some(known) = known {
        return Ok(known);
    }
    let rules = Rc::new(read(&installation)?);
    // If something changed while they were read, they are of another generation.
    if may_keep() && catalog_cache::generation() == generation {
        KNOWN.set(LimitsCache {
            generation: Some(generation),
            rules: Rc::clone(&rules),
            resolved: HashMap::new(),
        });
    }
    Ok(rules)
}

fn read(installation: &Installation) -> Result<Vec<RateLimitRule>, PgError> {
    if installation.rate_limits == pg_sys::InvalidOid {
        return Ok(Vec::new());
    }
    let sql = format!(
        "select user_id::pg_catalog.oid, requests_per_minute, requests_per_hour, requests_per_day,
                tokens_per_minute, tokens_per_hour, tokens_per_day, max_pending
           from {}.steadytext_rate_limits",
        installation.schema
    );
    read_as_owner(installation, || {
        spi::query(&sql, vec![], Mode::ReadOnly, |row| {
            let limit = |column| row.get::<i64>(column).map(|limit| u64::try_from(limit).unwrap_or(0));
            RateLimitRule {
                role: row.get(1),
                limits: RoleLimits {
                    allowed: Allowed {
                        requests: [limit(2), limit(3), limit(4)],
                        tokens: [limit(5), limit(6), limit(7)],
                    },
                    pending: limit(8),
                },
            }
        })
    })
}

fn register() {
    if !REGISTERED.replace(true) {
        use pg_sys::SysCacheIdentifier::{AUTHMEMMEMROLE, AUTHMEMROLEMEM, AUTHOID};
        for cache in [AUTHMEMMEMROLE, AUTHMEMROLEMEM, AUTHOID] {
            // SAFETY: the callback lives as long as the library; registered once per process.
            unsafe {
                pg_sys::CacheRegisterSyscacheCallback(
                    cache as i32,
                    Some(roles_changed),
                    pg_sys::Datum::from(0),
                );
            }
        }
    }
}

/// Called in the middle of anything: it only notes what it heard.
#[pg_guard]
unsafe extern "C-unwind" fn roles_changed(_arg: pg_sys::Datum, _cache: i32, _hash: u32) {
    ROLES_CHANGED.set(true);
}

fn refusal(role: pg_sys::Oid, count: u64, exceeded: &Exceeded) -> PgError {
    let Exceeded { what, period, allowed, used, own, wait_s } = *exceeded;
    let name = catalog::role_name(role);
    // The requests of the transaction itself will be asked for again, so that there is no time after which
    // they fit.
    let is_own = wait_s.is_some() && own.saturating_add(count) > allowed;
    let wait_s = wait_s.filter(|_| !is_own);
    let message = match wait_s {
        None if is_own => format!(
            "role \"{name}\" may ask for {} per {}, and this transaction alone asks for more",
            counted(allowed, "requests"),
            period.name
        ),
        None if what == "requests" && allowed > 0 => {
            format!(
                "role \"{name}\" may ask for {} per {}, and not for {count} at once",
                counted(allowed, "requests"),
                period.name
            )
        }
        None => format!("role \"{name}\" may use no {what}"),
        Some(_) => format!("role \"{name}\" has used up its {} per {}", counted(allowed, what), period.name),
    };
    let hint = match wait_s {
        None if is_own => format!(
            "It has asked for {own} before this, which no longer count when it is rolled back. Ask for fewer in a transaction, or let an administrator raise the limit with steadytext_set_limit()."
        ),
        None if allowed > 0 => {
            "Ask for fewer at a time, or let an administrator raise the limit with steadytext_set_limit()."
                .to_owned()
        }
        None => "An administrator can raise the limit with steadytext_set_limit().".to_owned(),
        Some(seconds) => format!(
            "Try again in {}, or let an administrator raise the limit with steadytext_set_limit().",
            counted(seconds.unsigned_abs(), "seconds")
        ),
    };
    let detail = json!({
        "limit": format!("{what}_per_{}", period.name),
        "allowed": allowed,
        "used": used,
        "requested": count,
        "retry_after_s": wait_s,
    });
    PgError::new(PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED, message)
        .hint(hint)
        .detail(detail.to_string())
}

fn too_many_pending(role: pg_sys::Oid, allowed: u64, used: u64) -> PgError {
    let name = catalog::role_name(role);
    let detail = json!({ "limit": "max_pending", "allowed": allowed, "used": used, "requested": 1, "retry_after_s": null });
    PgError::new(
        PgSqlErrorCode::ERRCODE_CONFIGURATION_LIMIT_EXCEEDED,
        format!("role \"{name}\" may have {} pending", counted(allowed, "requests")),
    )
    .hint(
        "Wait until some are answered, or let an administrator raise the limit with steadytext_set_limit().",
    )
    .detail(detail.to_string())
}
