//! Acting as another role, the way PostgreSQL does it for maintenance commands.

use pgrx::pg_sys;

/// The role whose rights are in force.
pub(crate) fn current_user() -> pg_sys::Oid {
    // SAFETY: a plain getter.
    unsafe { pg_sys::GetUserId() }
}

/// The role that the session has taken on: that of its login, or of SET ROLE.
pub(crate) fn outer_user() -> pg_sys::Oid {
    // SAFETY: a plain getter.
    unsafe { pg_sys::GetOuterUserId() }
}

/// The role that has logged in.
pub(crate) fn session_user() -> pg_sys::Oid {
    // SAFETY: a plain getter.
    unsafe { pg_sys::GetSessionUserId() }
}

/// Whether `member` has the rights of `role`; a superuser has everybody's.
fn has_privileges_of(member: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: looks catalogs up inside a transaction.
    unsafe { pg_sys::has_privs_of_role(member, role) }
}

/// Whether `caller` administers pg_steadytext: a member of steadytext_admin, or a superuser.
pub(crate) fn is_administrator(caller: pg_sys::Oid) -> bool {
    // SAFETY: catalog look-ups.
    let (superuser, admin) =
        unsafe { (pg_sys::superuser_arg(caller), pg_sys::get_role_oid(c"steadytext_admin".as_ptr(), true)) };
    superuser || (admin != pg_sys::InvalidOid && has_privileges_of(caller, admin))
}

/// Whether `caller` may use pg_steadytext: a member of steadytext_user, or who administers it.
pub(crate) fn is_user(caller: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up.
    let user = unsafe { pg_sys::get_role_oid(c"steadytext_user".as_ptr(), true) };
    (user != pg_sys::InvalidOid && has_privileges_of(caller, user)) || is_administrator(caller)
}

/// Whether `member` belongs to `role`, directly or not; a superuser belongs to what it was made a member of.
pub(crate) fn is_member(member: pg_sys::Oid, role: pg_sys::Oid) -> bool {
    // SAFETY: looks catalogs up inside a transaction.
    unsafe { pg_sys::is_member_of_role_nosuper(member, role) }
}

/// Whether `caller` may see and cancel what belongs to `owner`: its own roles' requests, and everybody's for
/// members of steadytext_admin.
pub(crate) fn may_manage(caller: pg_sys::Oid, owner: pg_sys::Oid) -> bool {
    has_privileges_of(caller, owner) || is_administrator(caller)
}

/// Whether `caller` may watch the whole server: a member of pg_monitor.
pub(crate) fn is_monitor(caller: pg_sys::Oid) -> bool {
    has_privileges_of(caller, pg_sys::Oid::from(pg_sys::ROLE_PG_MONITOR))
}

/// Whether `caller` may read the statistics of all databases and roles: a member of pg_read_all_stats, as
/// those of pg_monitor are.
pub(crate) fn reads_all_statistics(caller: pg_sys::Oid) -> bool {
    has_privileges_of(caller, pg_sys::Oid::from(pg_sys::ROLE_PG_READ_ALL_STATS))
}

/// Runs `work`, a statement that leaves no name open, as `owner`, restricted as [`as_owner`] does it, and
/// with the search path as it is: setting it costs as much as writing a row. After an error, the abort
/// restores the caller.
pub(crate) fn with_rights_of<T>(owner: pg_sys::Oid, work: impl FnOnce() -> T) -> T {
    let mut saved_user = pg_sys::InvalidOid;
    let mut saved_context = 0;
    // SAFETY: the user is restored afterwards; see above for errors.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut saved_user, &mut saved_context);
        let context = saved_context
            | (pg_sys::SECURITY_RESTRICTED_OPERATION | pg_sys::SECURITY_LOCAL_USERID_CHANGE) as i32;
        pg_sys::SetUserIdAndSecContext(owner, context);
        let value = work();
        pg_sys::SetUserIdAndSecContext(saved_user, saved_context);
        value
    }
}

/// Runs `work` as `owner`, restricted so that code which others planted on the owner's objects cannot escape,
/// and with a search path on which they have no place. After an error, the abort restores the caller.
pub(crate) fn as_owner<T>(owner: pg_sys::Oid, work: impl FnOnce() -> T) -> T {
    let mut saved_user = pg_sys::InvalidOid;
    let mut saved_context = 0;
    // SAFETY: user and settings are restored in reverse order; see above for errors.
    unsafe {
        pg_sys::GetUserIdAndSecContext(&mut saved_user, &mut saved_context);
        let context = saved_context
            | (pg_sys::SECURITY_RESTRICTED_OPERATION | pg_sys::SECURITY_LOCAL_USERID_CHANGE) as i32;
        pg_sys::SetUserIdAndSecContext(owner, context);
        let level = pg_sys::NewGUCNestLevel();
        pg_sys::set_config_option(
            c"search_path".as_ptr(),
            c"pg_catalog, pg_temp".as_ptr(),
            pg_sys::GucContext::PGC_USERSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_SAVE,
            true,
            0,
            false,
        );
        let value = work();
        // The settings that code of the owner's has made are taken back as well, because what follows is not
        // the owner's.
        pg_sys::AtEOXact_GUC(false, level);
        pg_sys::SetUserIdAndSecContext(saved_user, saved_context);
        value
    }
}
