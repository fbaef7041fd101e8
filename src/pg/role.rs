//! Roles by name and number, for the type `steadytext.role_id`.

use std::cell::RefCell;
use std::ffi::{CStr, CString};

use pgrx::pg_sys;
use pgrx::prelude::*;

use super::error::PgError;
use super::transaction;

/// Names that one transaction is warned of, at most.
const WARNINGS: usize = 16;

/// The name of a role as it is now; `None` if there is no such role. In the server's encoding, whatever that
/// is.
pub(crate) fn name_of(role: pg_sys::Oid) -> Option<CString> {
    // SAFETY: a catalog look-up; the name is copied before its memory can go.
    unsafe {
        let name = pg_sys::GetUserNameFromId(role, true);
        (!name.is_null()).then(|| CStr::from_ptr(name).to_owned())
    }
}

/// The role of this name; `InvalidOid` where there is none. A restore must not end there, and a name may have
/// been mistyped, so the function raises a WARNING, once for each name in a transaction.
pub(crate) fn named(name: &CStr) -> pg_sys::Oid {
    if name.is_empty() {
        return pg_sys::InvalidOid;
    }
    // SAFETY: a catalog look-up.
    let role = unsafe { pg_sys::get_role_oid(name.as_ptr(), true) };
    if role == pg_sys::InvalidOid {
        warn_of(name);
    }
    role
}

fn warn_of(name: &CStr) {
    thread_local! {
        static WARNED: RefCell<(i64, Vec<CString>)> = const { RefCell::new((0, Vec::new())) };
    }
    let now = transaction::started_at();
    let is_new = WARNED.with_borrow_mut(|(since, names)| {
        if *since != now {
            *since = now;
            names.clear();
        }
        let is_new = names.len() < WARNINGS && !names.iter().any(|known| known.as_c_str() == name);
        if is_new {
            names.push(name.to_owned());
        }
        is_new
    });
    if is_new {
        // Anybody may send a text that is longer than a name can be, so only its beginning is shown.
        let shown: String = name.to_string_lossy().chars().take(pg_sys::NAMEDATALEN as usize - 1).collect();
        PgError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("role \"{shown}\" does not exist: its requests belong to nobody"),
        )
        .hint("Administrators see them. Create roles before you restore what belongs to them.")
        .report(PgLogLevel::WARNING);
    }
}

/// A text in the encoding of the client.
pub(crate) fn to_client(text: &CStr) -> Vec<u8> {
    let length = text.to_bytes().len() as i32;
    // SAFETY: a C string of this length; the result is that string, or another one in palloc's memory, and is
    // copied.
    unsafe { CStr::from_ptr(pg_sys::pg_server_to_client(text.as_ptr(), length)).to_bytes().to_vec() }
}

/// The whole of a message of the binary protocol as a text in the server's encoding.
pub(crate) fn text_of(message: pgrx::Internal) -> CString {
    // SAFETY: PostgreSQL passes a StringInfo to receive functions; the text that is made of it is copied.
    unsafe {
        let Some(message) = message.get::<pg_sys::StringInfoData>() else { return CString::default() };
        let message = std::ptr::from_ref(message).cast_mut();
        let mut length = 0;
        let text = pg_sys::pq_getmsgtext(message, (*message).len - (*message).cursor, &mut length);
        CStr::from_ptr(text).to_owned()
    }
}
