//! Look-ups in PostgreSQL's catalogs.

use std::ffi::CStr;

use pgrx::pg_sys;
use pgrx::pg_sys::ffi::pg_guard_ffi_boundary;

use super::role;

/// The extension's name.
pub(crate) const EXTENSION: &CStr = c"pg_steadytext";

/// A database of this server.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Database {
    /// Its OID.
    pub(crate) oid: pg_sys::Oid,
    /// Whether a worker may connect: it accepts connections and is no template. A worker in a template would
    /// make every CREATE DATABASE from it fail.
    pub(crate) eligible: bool,
}

/// All databases. Inside a transaction; works without being connected to one.
pub(crate) fn databases() -> Vec<Database> {
    let mut found = Vec::new();
    // SAFETY: a heap scan of a shared catalog, as autovacuum's launcher does; the tuples are looked at while
    // the scan holds them.
    unsafe {
        let relation =
            pg_sys::table_open(pg_sys::DatabaseRelationId, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
        let scan = pg_sys::systable_beginscan(
            relation,
            pg_sys::InvalidOid,
            false,
            std::ptr::null_mut(),
            0,
            std::ptr::null_mut(),
        );
        loop {
            let tuple = pg_sys::systable_getnext(scan);
            if tuple.is_null() {
                break;
            }
            let form: pg_sys::Form_pg_database = pg_sys::GETSTRUCT(tuple).cast();
            // datconnlimit -2 marks a database whose DROP was interrupted.
            let eligible = (*form).datallowconn && !(*form).datistemplate && (*form).datconnlimit != -2;
            found.push(Database { oid: (*form).oid, eligible });
        }
        pg_sys::systable_endscan(scan);
        pg_sys::table_close(relation, pg_sys::AccessShareLock as pg_sys::LOCKMODE);
    }
    found
}

/// The extension's OID in this database, if it is there. Inside a transaction.
pub(crate) fn extension_oid() -> Option<pg_sys::Oid> {
    // SAFETY: a catalog look-up.
    let oid = unsafe { pg_sys::get_extension_oid(EXTENSION.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Whether this OID is the extension's.
pub(crate) fn is_extension(oid: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up; the name is compared before its memory can go.
    unsafe {
        let name = pg_sys::get_extension_name(oid);
        !name.is_null() && CStr::from_ptr(name) == EXTENSION
    }
}

/// The OID of the database of this name, if there is one.
pub(crate) fn database_oid(name: &CStr) -> Option<pg_sys::Oid> {
    // SAFETY: a catalog look-up.
    let oid = unsafe { pg_sys::get_database_oid(name.as_ptr(), true) };
    (oid != pg_sys::InvalidOid).then_some(oid)
}

/// Whether this process's database stores text as UTF-8.
pub(crate) fn encoding_is_utf8() -> bool {
    // SAFETY: a plain getter.
    unsafe { pg_sys::GetDatabaseEncoding() == pg_sys::pg_enc::PG_UTF8 as i32 }
}

/// The role's name; empty if it has been dropped.
pub(crate) fn role_name(oid: pg_sys::Oid) -> String {
    role::name_of(oid).unwrap_or_default().to_string_lossy().into_owned()
}

/// This process's database.
pub(crate) fn my_database() -> pg_sys::Oid {
    // SAFETY: a plain global of this process.
    unsafe { pg_sys::MyDatabaseId }
}

/// The time at which the server started, as TimestampTz.
pub(crate) fn server_started_at() -> i64 {
    // SAFETY: a global that the postmaster sets before it forks.
    unsafe { pg_sys::PgStartTime }
}

/// Whether the server is a standby.
pub(crate) fn in_recovery() -> bool {
    // SAFETY: a plain getter.
    unsafe { pg_sys::RecoveryInProgress() }
}

/// Whether shared_preload_libraries is being processed, in the postmaster.
pub(crate) fn preloading() -> bool {
    // SAFETY: a plain global.
    unsafe { pg_sys::process_shared_preload_libraries_in_progress }
}

/// Whether the server runs for pg_upgrade.
pub(crate) fn binary_upgrade() -> bool {
    // SAFETY: a plain global.
    unsafe { pg_sys::IsBinaryUpgrade }
}

unsafe extern "C-unwind" {
    /// The OIDs of the partitioned tables that a partition belongs to, from its own parent to the top.
    /// `catalog/partition.h`, which pgrx has no binding for.
    fn get_partition_ancestors(partition: pg_sys::Oid) -> *mut pg_sys::List;
}

/// Whether a partition belongs to a partitioned table of this owner, at whatever level. Inside a transaction.
pub(crate) fn has_ancestor_of(partition: pg_sys::Oid, owner: pg_sys::Oid) -> bool {
    // SAFETY: the list holds OIDs, and is null for what is no partition.
    unsafe {
        let ancestors = pg_guard_ffi_boundary(|| get_partition_ancestors(partition));
        if ancestors.is_null() {
            return false;
        }
        let count = usize::try_from((*ancestors).length).unwrap_or(0);
        let mut cells = std::slice::from_raw_parts((*ancestors).elements, count).iter();
        cells.any(|cell| owner_of(cell.oid_value) == Some(owner))
    }
}

/// The owner of a relation; `None` where there is none. Inside a transaction.
fn owner_of(relation: pg_sys::Oid) -> Option<pg_sys::Oid> {
    // SAFETY: an entry of a catalog, released after it was read.
    unsafe {
        let entry =
            pg_sys::SearchSysCache1(pg_sys::SysCacheIdentifier::RELOID as i32, pg_sys::Datum::from(relation));
        if entry.is_null() {
            return None;
        }
        let form: pg_sys::Form_pg_class = pg_sys::GETSTRUCT(entry).cast();
        let owner = (*form).relowner;
        pg_sys::ReleaseSysCache(entry);
        Some(owner)
    }
}
