//! Restores of data alone, with triggers switched off (`pg_dump --data-only --disable-triggers`), into a
//! database that has the extension already.
//!
//! Two obstacles are in their way, which the triggers would remove. The default rows of steadytext_config and
//! steadytext_models have the keys of the rows that come: while a COPY runs, they are given others. And
//! `ENABLE TRIGGER ALL`, the last line of such a restore, turns triggers that always fire into ordinary ones:
//! they are turned back.

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::after_commit;
use super::catalog_cache::{self, Installation, Registry};
use super::error::{OrRaise, PgError};
use super::guc;
use super::privilege::as_owner;
use super::spi::{self, Mode};

/// Whether this session restores a dump: pg_dump and pg_restore begin with these settings, which nothing else
/// has together.
pub(crate) fn in_session() -> bool {
    let is = |name, value: &str| guc::server_setting(name).is_some_and(|set| set == value);
    is(c"check_function_bodies", "off") && is(c"search_path", "")
}

/// Makes what a statement has written visible to what reads the configuration and the registry next. The
/// table's name, if it is one of these.
///
/// # Errors
///
/// As [`catalog_cache::installation`].
pub(crate) fn see_changes(table: pg_sys::Oid) -> Result<Option<&'static str>, PgError> {
    // SAFETY: in a trigger of the statement, which is not a parallel one.
    unsafe { pg_sys::CommandCounterIncrement() };
    catalog_cache::forget();
    Ok(catalog_cache::installation()?.registry(table).map(|registry| registry.name))
}

/// The work to be done when the statement has run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub(super) enum Afterwards {
    /// Nothing: most statements are no concern of this module.
    Nothing,
    /// Default rows of this table take their names again, unless a row has come in their place.
    Unveil(pg_sys::Oid),
    /// Triggers of this table, which may be the extension's, were switched on.
    Strengthen(pg_sys::Oid),
}

/// Looks at a statement before it runs.
///
/// # Safety
///
/// `statement` is a statement as the parser makes it.
#[pg_guard]
pub(super) unsafe extern "C-unwind" fn before(statement: *mut pg_sys::Node) -> Afterwards {
    // SAFETY: the node's tag says what it is.
    let relation = unsafe {
        match (*statement).type_ {
            pg_sys::NodeTag::T_CopyStmt => {
                let copy: *mut pg_sys::CopyStmt = statement.cast();
                if !(*copy).is_from {
                    return Afterwards::Nothing;
                }
                (*copy).relation
            }
            pg_sys::NodeTag::T_AlterTableStmt => {
                let alter: *mut pg_sys::AlterTableStmt = statement.cast();
                if !enables_all_triggers((*alter).cmds) {
                    return Afterwards::Nothing;
                }
                (*alter).relation
            }
            _ => return Afterwards::Nothing,
        }
    };
    // SAFETY: as above.
    let Some(table) = (unsafe { table_of(relation) }) else { return Afterwards::Nothing };
    // SAFETY: as above.
    if unsafe { (*statement).type_ } == pg_sys::NodeTag::T_AlterTableStmt {
        return Afterwards::Strengthen(table);
    }
    let Ok(installation) = catalog_cache::installation() else { return Afterwards::Nothing };
    match installation.registry(table) {
        Some(registry) if veil(&installation, registry, table).or_raise() => Afterwards::Unveil(table),
        _ => Afterwards::Nothing,
    }
}

/// Does what [`before`] has found to be done.
#[pg_guard]
pub(super) extern "C-unwind" fn after(afterwards: Afterwards) {
    let Ok(installation) = catalog_cache::installation() else { return };
    let table = match afterwards {
        Afterwards::Nothing => return,
        Afterwards::Unveil(table) => {
            if let Some(registry) = installation.registry(table) {
                unveil(&installation, registry).or_raise();
            }
            table
        }
        Afterwards::Strengthen(table) => {
            strengthen(&installation, table).or_raise();
            table
        }
    };
    // The triggers, which do not fire here, would have done this.
    catalog_cache::invalidate(table);
    after_commit::arm_change();
    after_commit::arm_review();
}

unsafe fn enables_all_triggers(commands: *mut pg_sys::List) -> bool {
    use pg_sys::AlterTableType;
    // SAFETY: a list of AlterTableCmd, as the grammar makes it; null is the empty list.
    unsafe {
        let Some(list) = commands.as_ref() else { return false };
        (0..list.length as usize).any(|index| {
            let command: *mut pg_sys::AlterTableCmd = (*list.elements.add(index)).ptr_value.cast();
            let all = [AlterTableType::AT_EnableTrigAll, AlterTableType::AT_EnableTrigUser];
            all.contains(&(*command).subtype)
        })
    }
}

/// The table that is meant, if its name is like those of the extension's.
unsafe fn table_of(relation: *mut pg_sys::RangeVar) -> Option<pg_sys::Oid> {
    // SAFETY: the parser's; null where a query is copied.
    unsafe {
        let name = CStr::from_ptr(relation.as_ref()?.relname);
        if !name.to_bytes().starts_with(b"steadytext_") {
            return None;
        }
        let oid = pg_sys::RangeVarGetRelidExtended(
            relation,
            pg_sys::NoLock as pg_sys::LOCKMODE,
            pg_sys::RVROption::RVR_MISSING_OK,
            None,
            std::ptr::null_mut(),
        );
        (oid != pg_sys::InvalidOid).then_some(oid)
    }
}

/// Gives default rows other keys, where no trigger is on.
fn veil(installation: &Installation, registry: Registry, table: pg_sys::Oid) -> Result<bool, PgError> {
    let Registry { name, key } = registry;
    let schema = &installation.schema;
    as_owner(installation.owner, || {
        let off = spi::query_one(
            "select not exists (select from pg_trigger where tgrelid = $1 and not tgisinternal and tgenabled <> 'D')",
            vec![table.into()],
            Mode::ReadWrite,
            |row| row.get::<bool>(1),
        )?;
        if off.flatten() != Some(true) {
            return Ok(false);
        }
        let sql = format!("update {schema}.{name} set {key} = chr(1) || {key} where is_default");
        spi::query(&sql, vec![], Mode::ReadWrite, |_| ())?;
        Ok(true)
    })
}

fn unveil(installation: &Installation, registry: Registry) -> Result<(), PgError> {
    let Registry { name, key } = registry;
    let schema = &installation.schema;
    as_owner(installation.owner, || {
        for sql in [
            format!(
                "delete from {schema}.{name} as d where starts_with(d.{key}, chr(1))
                     and exists (select from {schema}.{name} as r
                         where lower(r.{key} collate \"C\") = lower(substr(d.{key}, 2) collate \"C\"))"
            ),
            format!("update {schema}.{name} set {key} = substr({key}, 2) where starts_with({key}, chr(1))"),
        ] {
            spi::query(&sql, vec![], Mode::ReadWrite, |_| ())?;
        }
        Ok(())
    })
}

fn strengthen(installation: &Installation, table: pg_sys::Oid) -> Result<(), PgError> {
    as_owner(installation.owner, || {
        let statements = spi::query(
            "select format('alter table %s enable always trigger %I', t.tgrelid::regclass, t.tgname)
               from pg_trigger as t
               join pg_proc as p on p.oid = t.tgfoid
               join pg_depend as d on d.classid = 'pg_class'::regclass and d.objid = t.tgrelid and d.deptype = 'e'
                and d.refclassid = 'pg_extension'::regclass and d.refobjid = $2
              where t.tgrelid = $1 and not t.tgisinternal and t.tgenabled = 'O'
                and p.pronamespace = 'steadytext'::regnamespace",
            vec![table.into(), installation.extension.into()],
            Mode::ReadWrite,
            |row| row.get::<String>(1),
        )?;
        for statement in statements.into_iter().flatten() {
            spi::query(&statement, vec![], Mode::ReadWrite, |_| ())?;
        }
        Ok(())
    })
}
