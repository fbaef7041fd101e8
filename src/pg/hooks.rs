//! Hooks into the server: object access, where the extension is dropped; utility statements, which need a
//! database without sessions, lock tables of the extension, rename its schema or restore it; and the log, for
//! refusals.

use std::cell::Cell;
use std::ffi::CStr;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::error::{OrRaise, PgError};
use super::restore::{self, Afterwards};
use super::spi::{self, Mode};
use super::{after_commit, catalog, catalog_cache, denied, interrupts, privilege, shmem, slots};

/// Longest wait of a statement for a worker to go, before it meets PostgreSQL's own error "is being accessed
/// by other users".
const EVICTION_PATIENCE: Duration = Duration::from_secs(5);

static mut PREVIOUS_ACCESS: pg_sys::object_access_hook_type = None;
static mut PREVIOUS_UTILITY: pg_sys::ProcessUtility_hook_type = None;

/// Installs the hooks. Only while shared_preload_libraries is processed.
pub(crate) fn install() {
    // SAFETY: called once by the postmaster while it loads libraries; hooks are chained.
    unsafe {
        PREVIOUS_ACCESS = pg_sys::object_access_hook;
        pg_sys::object_access_hook = Some(object_access);
        PREVIOUS_UTILITY = pg_sys::ProcessUtility_hook;
        pg_sys::ProcessUtility_hook = Some(process_utility);
    }
    denied::install();
}

// The hooks themselves are not guarded by pgrx, and call what is behind them directly: a guard turns
// PostgreSQL's errors into panics and back, and loses their context, position and constraint on the way, for
// every statement of the server. Errors jump over these two frames, which is sound because they hold nothing
// to drop.

/// Sees the drop of the extension however it comes about: DROP EXTENSION, DROP SCHEMA, DROP OWNED, CASCADE.
unsafe extern "C-unwind" fn object_access(
    access: pg_sys::ObjectAccessType::Type,
    class: pg_sys::Oid,
    object: pg_sys::Oid,
    sub: i32,
    arg: *mut core::ffi::c_void,
) {
    // SAFETY: the previous hook is a valid function of another library.
    unsafe {
        if let Some(previous) = PREVIOUS_ACCESS {
            previous(access, class, object, sub, arg);
        }
    }
    if access == pg_sys::ObjectAccessType::OAT_DROP && class == pg_sys::ExtensionRelationId {
        note_drop(object);
    }
}

#[pg_guard]
extern "C-unwind" fn note_drop(extension: pg_sys::Oid) {
    if catalog::is_extension(extension) {
        after_commit::arm_review();
        after_commit::arm_call();
    }
}

// Declared here because pgrx wraps the functions that it binds in the guard described above.
unsafe extern "C-unwind" {
    fn standard_ProcessUtility(
        statement: *mut pg_sys::PlannedStmt,
        text: *const core::ffi::c_char,
        read_only: bool,
        context: pg_sys::ProcessUtilityContext::Type,
        params: pg_sys::ParamListInfo,
        environment: *mut pg_sys::QueryEnvironment,
        destination: *mut pg_sys::DestReceiver,
        completion: *mut pg_sys::QueryCompletion,
    );
}

unsafe extern "C-unwind" fn process_utility(
    statement: *mut pg_sys::PlannedStmt,
    text: *const core::ffi::c_char,
    read_only: bool,
    context: pg_sys::ProcessUtilityContext::Type,
    params: pg_sys::ParamListInfo,
    environment: *mut pg_sys::QueryEnvironment,
    destination: *mut pg_sys::DestReceiver,
    completion: *mut pg_sys::QueryCompletion,
) {
    // SAFETY: PostgreSQL passes a statement that is alive during the call; its arguments are passed on as
    // they are.
    unsafe {
        keep_schema_name((*statement).utilityStmt);
        keep_tables_open((*statement).utilityStmt);
        make_room_for((*statement).utilityStmt);
        wake_for((*statement).utilityStmt);
        note_other_database((*statement).utilityStmt);
        let afterwards = restore::before((*statement).utilityStmt);
        let mut watch = denied::ErrorWatch::new();
        watch.begin();
        match PREVIOUS_UTILITY {
            Some(previous) => {
                previous(statement, text, read_only, context, params, environment, destination, completion)
            }
            None => standard_ProcessUtility(
                statement,
                text,
                read_only,
                context,
                params,
                environment,
                destination,
                completion,
            ),
        }
        watch.end();
        if afterwards != Afterwards::Nothing {
            restore::after(afterwards);
        }
    }
}

/// Users delete rows of their own from some of the extension's tables, and PostgreSQL lets a role that may
/// delete from a table lock all of it, for as long as a transaction is open. So LOCK TABLE is for superusers
/// there, in modes that keep others out, and also where a view leads to it.
#[pg_guard]
unsafe extern "C-unwind" fn keep_tables_open(statement: *mut pg_sys::Node) {
    // SAFETY: the node's tag says what it is; its list is one of RangeVar nodes.
    let names: Vec<*mut pg_sys::RangeVar> = unsafe {
        let lock: *mut pg_sys::LockStmt = statement.cast();
        if (*statement).type_ != pg_sys::NodeTag::T_LockStmt
            || (*lock).mode <= pg_sys::RowExclusiveLock as i32
            || pg_sys::superuser()
            || catalog::extension_oid().is_none()
        {
            return;
        }
        let list = (*lock).relations;
        let count = if list.is_null() { 0 } else { (*list).length };
        (0..count as usize).map(|index| (*(*list).elements.add(index)).ptr_value.cast()).collect()
    };
    for name in names {
        // SAFETY: a catalog look-up without a lock; what is not there is for LOCK TABLE to say.
        let table = unsafe {
            pg_sys::RangeVarGetRelidExtended(
                name,
                pg_sys::NoLock as i32,
                pg_sys::RVROption::RVR_MISSING_OK,
                None,
                std::ptr::null_mut(),
            )
        };
        if table != pg_sys::InvalidOid && leads_to_ours(table).or_raise() {
            PgError::new(
                PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
                "permission denied to lock a table of pg_steadytext".to_owned(),
            )
            .hint("LOCK TABLE in a mode that keeps others out would stop everybody's work.")
            .raise();
        }
    }
}

/// Whether a relation is a table of the extension's, or a view of one that belongs to another role.
fn leads_to_ours(relation: pg_sys::Oid) -> Result<bool, PgError> {
    const QUESTION: &str = "
        with recursive seen (oid) as (
            select $1
            union
            select d.refobjid
            from seen as s
            join pg_catalog.pg_rewrite as r on r.ev_class operator(pg_catalog.=) s.oid
            join pg_catalog.pg_depend as d on d.objid operator(pg_catalog.=) r.oid
                and d.classid operator(pg_catalog.=) 'pg_catalog.pg_rewrite'::pg_catalog.regclass::pg_catalog.oid
                and d.refclassid operator(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid
        )
        select pg_catalog.bool_or(not pg_catalog.pg_has_role(c.relowner, 'usage'))
        from seen as s
        join pg_catalog.pg_class as c on c.oid operator(pg_catalog.=) s.oid and c.relkind operator(pg_catalog.=) 'r'
        join pg_catalog.pg_depend as d on d.objid operator(pg_catalog.=) c.oid and d.deptype operator(pg_catalog.=) 'e'
            and d.classid operator(pg_catalog.=) 'pg_catalog.pg_class'::pg_catalog.regclass::pg_catalog.oid
        join pg_catalog.pg_extension as e on e.oid operator(pg_catalog.=) d.refobjid
            and e.extname operator(pg_catalog.=) 'pg_steadytext'";
    // SAFETY: catalog look-ups, which need no snapshot: LOCK TABLE comes before a transaction has one.
    unsafe {
        if pg_sys::get_rel_relkind(relation) as u8 != pg_sys::RELKIND_VIEW {
            let extension = pg_sys::getExtensionOfObject(pg_sys::RelationRelationId, relation);
            return Ok(Some(extension) == catalog::extension_oid());
        }
    }
    let found = spi::query_one(QUESTION, vec![relation.into()], Mode::ReadWrite, |row| row.get::<bool>(1))?;
    Ok(found.flatten() == Some(true))
}

/// The extension's functions name their tables by their schema, and run as the extension's owner. The owner
/// of the schema, mostly that of the database, could rename it and put tables of their own in the place of
/// the extension's; so it cannot be renamed.
#[pg_guard]
unsafe extern "C-unwind" fn keep_schema_name(statement: *mut pg_sys::Node) {
    // SAFETY: the node's tag says what it is; names are the parser's C strings.
    let quoted = unsafe {
        let rename: *mut pg_sys::RenameStmt = statement.cast();
        if (*statement).type_ != pg_sys::NodeTag::T_RenameStmt
            || (*rename).renameType != pg_sys::ObjectType::OBJECT_SCHEMA
            || catalog::extension_oid().is_none()
        {
            return;
        }
        CStr::from_ptr(pg_sys::quote_identifier((*rename).subname)).to_string_lossy().into_owned()
    };
    let Ok(installation) = catalog_cache::installation() else { return };
    if quoted == installation.schema || quoted == "steadytext" {
        PgError::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("schema {quoted} cannot be renamed: it holds the extension pg_steadytext"),
        )
        .hint("Create the extension in another schema, CREATE EXTENSION pg_steadytext SCHEMA …, and move what it should keep by pg_dump --data-only.")
        .raise();
    }
}

/// Evicts the worker that would be in the statement's way, until the end of the transaction.
#[pg_guard]
unsafe extern "C-unwind" fn make_room_for(statement: *mut pg_sys::Node) {
    // SAFETY: as above.
    if let Some(database) = unsafe { database_to_vacate(statement) } {
        vacate(database);
    }
}

/// Wakes the worker after COMMIT PREPARED and ROLLBACK PREPARED: the requests that the transaction has
/// enqueued, or held locked, are the worker's then. Wakes all processes after ALTER DATABASE and ALTER ROLE
/// ALL have set or reset something of the extension's.
#[pg_guard]
unsafe extern "C-unwind" fn wake_for(statement: *mut pg_sys::Node) {
    use pg_sys::TransactionStmtKind::{TRANS_STMT_COMMIT_PREPARED, TRANS_STMT_ROLLBACK_PREPARED};
    // SAFETY: the node's tag says what it is.
    let ends_prepared = unsafe {
        (*statement).type_ == pg_sys::NodeTag::T_TransactionStmt
            && matches!(
                (*statement.cast::<pg_sys::TransactionStmt>()).kind,
                TRANS_STMT_COMMIT_PREPARED | TRANS_STMT_ROLLBACK_PREPARED
            )
    };
    if ends_prepared {
        after_commit::arm_change();
    }
    // SAFETY: the node's tag says what it is.
    if unsafe { sets_for_all(statement) } {
        after_commit::arm_review_of_all();
    }
}

/// Whether a statement may change the extension's settings for all roles of a database: long-lived processes
/// have those of their beginning.
unsafe fn sets_for_all(node: *mut pg_sys::Node) -> bool {
    // SAFETY: the node's tag says what it is; names are the parser's C strings, or null.
    unsafe {
        let set = match (*node).type_ {
            pg_sys::NodeTag::T_AlterDatabaseSetStmt => (*node.cast::<pg_sys::AlterDatabaseSetStmt>()).setstmt,
            pg_sys::NodeTag::T_AlterRoleSetStmt => {
                let statement: *mut pg_sys::AlterRoleSetStmt = node.cast();
                if !(*statement).role.is_null() {
                    return false;
                }
                (*statement).setstmt
            }
            _ => return false,
        };
        let Some(set) = set.as_ref() else { return false };
        set.kind == pg_sys::VariableSetKind::VAR_RESET_ALL
            || (!set.name.is_null()
                && CStr::from_ptr(set.name).to_bytes().to_ascii_lowercase().starts_with(b"pg_steadytext."))
    }
}

thread_local! {
    /// The start of the command whose last utility statement sets something for another database.
    static SETS_ELSEWHERE: Cell<Option<i64>> = const { Cell::new(None) };
}

/// Whether the statement that runs sets something for another database, whose models are not this one's.
pub(crate) fn sets_for_another_database() -> bool {
    // SAFETY: a plain getter.
    SETS_ELSEWHERE.get() == Some(unsafe { pg_sys::GetCurrentStatementStartTimestamp() })
}

#[pg_guard]
unsafe extern "C-unwind" fn note_other_database(node: *mut pg_sys::Node) {
    // SAFETY: the node's tag says what it is; names are the parser's C strings, or null. A plain getter.
    let sets_elsewhere = unsafe {
        let name = match (*node).type_ {
            pg_sys::NodeTag::T_AlterDatabaseSetStmt => (*node.cast::<pg_sys::AlterDatabaseSetStmt>()).dbname,
            pg_sys::NodeTag::T_AlterRoleSetStmt => (*node.cast::<pg_sys::AlterRoleSetStmt>()).database,
            _ => std::ptr::null_mut(),
        };
        let is_other =
            !name.is_null() && catalog::database_oid(CStr::from_ptr(name)) != Some(pg_sys::MyDatabaseId);
        is_other.then(|| pg_sys::GetCurrentStatementStartTimestamp())
    };
    SETS_ELSEWHERE.set(sets_elsewhere);
}

/// The database that must have no sessions for this statement to work, if the caller has the right to run it:
/// a worker is not evicted for somebody who will be refused.
unsafe fn database_to_vacate(node: *mut pg_sys::Node) -> Option<pg_sys::Oid> {
    shmem::get()?;
    // SAFETY: the node's tag says what it is.
    unsafe {
        match (*node).type_ {
            pg_sys::NodeTag::T_DropdbStmt => {
                let statement: *mut pg_sys::DropdbStmt = node.cast();
                owned_database((*statement).dbname)
            }
            pg_sys::NodeTag::T_RenameStmt => {
                let statement: *mut pg_sys::RenameStmt = node.cast();
                if (*statement).renameType != pg_sys::ObjectType::OBJECT_DATABASE {
                    return None;
                }
                owned_database((*statement).subname).filter(|_| may_create_databases())
            }
            pg_sys::NodeTag::T_AlterDatabaseStmt => {
                let statement: *mut pg_sys::AlterDatabaseStmt = node.cast();
                option((*statement).options, c"tablespace")?;
                owned_database((*statement).dbname)
            }
            pg_sys::NodeTag::T_CreatedbStmt => {
                let statement: *mut pg_sys::CreatedbStmt = node.cast();
                let template = option((*statement).options, c"template")?;
                if !may_create_databases() {
                    return None;
                }
                owned_database(pg_sys::defGetString(template))
            }
            _ => None,
        }
    }
}

/// The option of this name, if the statement has it.
unsafe fn option(options: *mut pg_sys::List, name: &CStr) -> Option<*mut pg_sys::DefElem> {
    // SAFETY: a list of DefElem, as the grammar makes it; null is the empty list.
    unsafe {
        let list = options.as_ref()?;
        (0..list.length as usize)
            .map(|index| (*list.elements.add(index)).ptr_value.cast::<pg_sys::DefElem>())
            .find(|element| CStr::from_ptr((**element).defname) == name)
    }
}

/// The database of this name, if the caller owns it. Everybody may copy a database that is marked as a
/// template, but one of those never has a worker.
unsafe fn owned_database(name: *const core::ffi::c_char) -> Option<pg_sys::Oid> {
    // SAFETY: the parser's C string.
    let oid = unsafe { catalog::database_oid(CStr::from_ptr(name)) }?;
    is_owner(oid).then_some(oid)
}

fn is_owner(database: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up inside the statement's transaction.
    unsafe {
        #[cfg(any(feature = "pg14", feature = "pg15"))]
        return pg_sys::pg_database_ownercheck(database, privilege::current_user());
        #[cfg(not(any(feature = "pg14", feature = "pg15")))]
        return pg_sys::object_ownercheck(pg_sys::DatabaseRelationId, database, privilege::current_user());
    }
}

fn may_create_databases() -> bool {
    // SAFETY: catalog look-ups inside the statement's transaction.
    unsafe {
        if pg_sys::superuser() {
            return true;
        }
        let role = pg_sys::SearchSysCache1(
            pg_sys::SysCacheIdentifier::AUTHOID as i32,
            pg_sys::Datum::from(privilege::current_user()),
        );
        if role.is_null() {
            return false;
        }
        let form: pg_sys::Form_pg_authid = pg_sys::GETSTRUCT(role).cast();
        let may = (*form).rolcreatedb;
        pg_sys::ReleaseSysCache(role);
        may
    }
}

/// Keeps workers away from `database` until the end of the transaction, and waits until the one that is there
/// has gone.
fn vacate(database: pg_sys::Oid) {
    let Some(shared) = shmem::get() else { return };
    slots::evict(shared, database);
    let deadline = Instant::now() + EVICTION_PATIENCE;
    let mut signalled = [0; 3];
    while let Some(slot) = slots::find(shared, database) {
        let [prompt, slow] = slot.vectorizers.each_ref().map(|process| process.pid.load(SeqCst));
        let pids = [slot.pid.load(SeqCst), prompt, slow];
        if pids == [0; 3] || Instant::now() >= deadline {
            break;
        }
        for (pid, signalled) in pids.into_iter().zip(&mut signalled).filter(|(pid, _)| *pid != 0) {
            if pid != *signalled {
                // SAFETY: the process id of one of our own workers; should it have ended just now, nothing
                // happens.
                unsafe { libc::kill(pid, libc::SIGTERM) };
                *signalled = pid;
            }
        }
        interrupts::sleep_ms(5);
    }
}
