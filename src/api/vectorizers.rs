//! Triggers on vectorized tables, and statements that a vectorizer runs as its owner.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::rc::Rc;
use std::time::Duration;

use pgrx::heap_tuple::PgHeapTuple;
use pgrx::prelude::*;
use pgrx::{AllocatedByPostgres, JsonB};

use crate::pg::changed_row::{Changed, Firing};
use crate::pg::error::{OrRaise, PgError};
use crate::pg::privilege::{as_owner, with_rights_of};
use crate::pg::spi::{self, Arg, Mode, SavedPlan};
use crate::pg::{after_commit, catalog_cache, interrupts, slots};

type NoRow<'a> = Result<Option<PgHeapTuple<'a, AllocatedByPostgres>>, Infallible>;

/// How long each part of a step may take after the step as a whole has taken too long.
const RENEWED_LIMIT: Duration = Duration::from_secs(5);

thread_local! {
    /// The statements that note a key, by the types of its columns, and whether the table is a partition.
    static PLANS: RefCell<HashMap<(Vec<pg_sys::Oid>, bool), Rc<SavedPlan>>> = RefCell::new(HashMap::new());
}

/// AFTER triggers on vectorized tables and on the tables of their vectors.
#[pg_trigger]
fn note_row<'a>(trigger: &'a PgTrigger<'a>) -> NoRow<'a> {
    let firing = Firing::of(trigger);
    let keys = match firing.changed().or_raise() {
        Changed::Nothing => return Ok(None),
        // Which is no key.
        Changed::Everything => vec![Vec::new()],
        Changed::Keys(keys) => keys,
    };
    let Some(definition) = firing.definition() else { return Ok(None) };
    let extension = catalog_cache::installation().or_raise();
    for key in keys {
        note(&firing, definition, key, &extension).or_raise();
    }
    after_commit::arm_noted();
    Ok(None)
}

/// Adds a key to the work. Only the table of the definition's owner counts: who may put triggers on a table of
/// theirs may name any definition in it.
fn note(
    firing: &Firing<'_>,
    definition: &str,
    key: Vec<Arg>,
    extension: &catalog_cache::Installation,
) -> Result<(), PgError> {
    let (table, is_clone) = firing.table();
    let types: Vec<pg_sys::Oid> = key.iter().map(Arg::oid).collect();
    let parameters: Vec<String> = (0..key.len()).map(|index| format!("${}", index + 3)).collect();
    let plan = PLANS.with_borrow_mut(|plans| {
        Rc::clone(plans.entry((types, is_clone)).or_insert_with(|| Rc::new(SavedPlan::new())))
    });
    let sql = || {
        let value = if parameters.is_empty() {
            "null".to_owned()
        } else {
            format!("pg_catalog.jsonb_build_array({})", parameters.join(", "))
        };
        let owner = if is_clone {
            "(select c.relowner from pg_catalog.pg_class as c
                where c.oid operator(pg_catalog.=) pg_catalog.pg_partition_root($2::pg_catalog.regclass)::pg_catalog.oid)"
        } else {
            "$2"
        };
        format!(
            "insert into {schema}.steadytext_vectorizer_work (vectorizer_id, key)
             select v.id, {value}
             from {schema}.steadytext_vectorizers as v
             where v.id operator(pg_catalog.=) $1::pg_catalog.uuid
                 and v.owner_role::pg_catalog.oid operator(pg_catalog.=) {owner}",
            schema = extension.schema,
        )
    };
    let mut args: Vec<Arg> =
        vec![definition.into(), if is_clone { table.into() } else { firing.owner().into() }];
    args.extend(key);
    with_rights_of(extension.owner, || plan.query_one(extension.extension, sql, &args, |_| ()))?;
    Ok(())
}

/// AFTER INSERT OR UPDATE OR DELETE FOR EACH STATEMENT on the tables of definitions and of work: somebody has asked for
/// something.
#[pg_trigger]
fn wake_vectorizers<'a>(_trigger: &'a PgTrigger<'a>) -> NoRow<'a> {
    if !slots::is_vectorizing() {
        after_commit::arm_noted();
    }
    Ok(None)
}

/// Runs a statement as another role, in the process that works for vectorizers and nowhere else. It gets `argument` as
/// its only parameter, and returns one value, which is this function's.
#[pg_extern(volatile, parallel_unsafe)]
fn run_as(role: pg_sys::Oid, statement: &str, argument: Option<JsonB>) -> Option<JsonB> {
    if !slots::is_vectorizing() {
        PgError::new(
            PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
            "only the process that works for vectorizers acts as other roles",
        )
        .raise();
    }
    let run = || {
        // Deferred triggers would run when the role is no longer the one that was asked for.
        spi::query("set constraints all immediate", vec![], Mode::ReadWrite, |_| ())?;
        spi::query_one(statement, vec![argument.into()], Mode::ReadWrite, |row| row.get::<JsonB>(1))
    };
    as_owner(role, run).or_raise().flatten()
}

/// Whether this process is the one that works for vectorizers.
#[pg_extern(volatile, parallel_unsafe)]
fn is_vectorizing() -> bool {
    slots::is_vectorizing()
}

/// What follows in this step of a vectorizer, whose time was over, gets some more.
#[pg_extern(volatile, parallel_unsafe)]
fn renew_step_limit() {
    if slots::is_vectorizing() {
        interrupts::renew_time_limit(RENEWED_LIMIT);
    }
}

/// What follows in this step of a vectorizer may take as long as it takes.
#[pg_extern(volatile, parallel_unsafe)]
fn lift_step_limit() {
    if slots::is_vectorizing() {
        interrupts::lift_time_limit();
    }
}
