//! Triggers on vectorized tables, and statements that a vectorizer runs as its owner.

use std::convert::Infallible;
use std::time::Duration;

use pgrx::heap_tuple::PgHeapTuple;
use pgrx::prelude::*;
use pgrx::{AllocatedByPostgres, AnyElement};

use crate::pg::changed_row::{Changed, Firing};
use crate::pg::error::{OrRaise, PgError};
use crate::pg::privilege::as_owner;
use crate::pg::rate_limits::StatementOfOthers;
use crate::pg::shmem::VectorizerPace;
use crate::pg::spi::{self, Arg, KeptPlans, Mode, Row};
use crate::pg::{after_commit, catalog_cache, interrupts, noted_keys, slots};
use crate::registry::{self, ModelTask, RequestedModel};

type NoRow<'a> = Result<Option<PgHeapTuple<'a, AllocatedByPostgres>>, Infallible>;

/// Time limit of each part of a step after the step as a whole has taken too long.
const RENEWED_LIMIT: Duration = Duration::from_secs(5);
/// Longest time limit of what is made in one piece, such as an index.
const LONGEST_LIMIT: Duration = Duration::from_secs(24 * 3600);
/// Time after that limit at which the process ends, where the work has not stopped.
const EXTENDED_GRACE: Duration = Duration::from_secs(30);

/// AFTER triggers on vectorized tables and on the tables of their vectors.
#[pg_trigger]
fn note_row<'a>(trigger: &'a PgTrigger<'a>) -> NoRow<'a> {
    let firing = Firing::of(trigger);
    let changed = firing.changed().or_raise();
    let Some(place) = firing.place() else { return Ok(None) };
    match changed {
        Changed::Nothing => return Ok(None),
        Changed::Everything => noted_keys::note(place, None).or_raise(),
        Changed::Key(key) => noted_keys::note(place, Some(&key)).or_raise(),
        Changed::Keys(keys) => {
            keys.iter().for_each(|key| noted_keys::note(place, Some(key)).or_raise());
        }
    }
    after_commit::arm_noted();
    Ok(None)
}

/// AFTER INSERT OR UPDATE OR DELETE FOR EACH STATEMENT on the tables of definitions and of work: somebody has
/// asked for something. Every session that notes changed rows knows the definitions' owners.
#[pg_trigger]
fn wake_vectorizers<'a>(trigger: &'a PgTrigger<'a>) -> NoRow<'a> {
    let table = trigger.relid().ok();
    if let Some(table) =
        table.filter(|table| catalog_cache::installation().is_ok_and(|known| known.definitions == *table))
    {
        catalog_cache::invalidate(table);
    }
    if !slots::is_vectorizing() {
        after_commit::arm_noted();
    }
    Ok(None)
}

thread_local! {
    /// The plans of statements with an argument: they come with each step.
    static PLANS: KeptPlans = KeptPlans::new();
}

/// Runs a statement as another role, in the process that works for vectorizers and nowhere else. It gets
/// `argument` as its only parameter, and returns one value, which is this function's.
#[pg_extern(volatile, parallel_unsafe)]
fn run_as(role: pg_sys::Oid, statement: &str, argument: Option<AnyElement>) -> Option<AnyElement> {
    if !slots::is_vectorizing() {
        PgError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "only the process that works for vectorizers acts as other roles",
        )
        .raise();
    }
    let run = || {
        // Deferred triggers would run when the role is no longer the one that was asked for.
        let _asked_by_others = StatementOfOthers::begin();
        spi::query("set constraints all immediate", vec![], Mode::ReadWrite, |_| ())?;
        let first = |row: &Row| row.get_copy(1);
        let argument_of = Arg::jsonb(argument.as_ref());
        if argument.is_some() {
            PLANS.with(|plans| plans.query_one(role, statement, &[argument_of], first))
        } else {
            spi::query_one(statement, vec![argument_of], Mode::ReadWrite, first)
        }
    };
    as_owner(role, run).or_raise().flatten()
}

/// Says so where texts are embedded by the builtin model for want of another, and whether that is so. A
/// vectorizer keeps the name of its model, so that nothing says so later.
#[pg_extern(volatile, parallel_unsafe)]
fn warn_of_builtin_vectors() -> bool {
    let models = catalog_cache::models().or_raise();
    let found = registry::resolve(ModelTask::Embed, RequestedModel::Default, &models);
    let is_fallback = found.is_ok_and(|model| model.is_fallback);
    if is_fallback {
        registry::builtin_warning()
            .hint("Put a GGUF file that embeds into pg_steadytext.model_dir, and call steadytext_alter_vectorizer(…, model => 'auto') then; model => 'builtin' says that it is meant.")
            .report(PgLogLevel::WARNING);
    }
    is_fallback
}

/// Whether this process is the one that works for vectorizers.
#[pg_extern(volatile, parallel_unsafe)]
fn is_vectorizing() -> bool {
    slots::is_vectorizing()
}

/// Renews the time limit of a vectorizer's step whose time is over, for the rest of the step. Returns false
/// in a process that does not renew it: a process of the slow pace begins the step anew.
#[pg_extern(volatile, parallel_unsafe)]
fn renew_step_limit() -> bool {
    let renews = slots::my_pace() == Some(VectorizerPace::Slow);
    if renews {
        interrupts::renew_time_limit(RENEWED_LIMIT);
    }
    renews
}

/// Extends the time limit of a vectorizer's step to so many seconds from now.
#[pg_extern(volatile, parallel_unsafe)]
fn extend_step_limit(seconds: i32) {
    if slots::is_vectorizing() {
        let limit =
            Duration::from_secs(u64::try_from(seconds).unwrap_or(0).clamp(1, LONGEST_LIMIT.as_secs()));
        interrupts::extend_time_limits(limit, limit + EXTENDED_GRACE);
    }
}
