//! The type `steadytext.role_id`: a role by its number, written as its name.

use std::ffi::{CStr, CString};

use pgrx::prelude::*;

use crate::pg::privilege::current_user;
use crate::pg::role;

/// The role of this name, or nobody.
#[pg_extern(stable, parallel_safe)]
fn role_id_in(name: &CStr) -> i32 {
    value_of(role::named(name))
}

/// Its name; empty where it is gone.
#[pg_extern(stable, parallel_safe)]
fn role_id_out(role: pg_sys::Oid) -> CString {
    role::name_of(role).unwrap_or_default()
}

/// As [`role_id_in`], for the binary protocol.
#[pg_extern(stable, parallel_safe)]
fn role_id_recv(message: pgrx::Internal) -> i32 {
    value_of(role::named(&role::text_of(message)))
}

/// As [`role_id_out`], for the binary protocol.
#[pg_extern(stable, parallel_safe)]
fn role_id_send(role: pg_sys::Oid) -> Vec<u8> {
    role::to_client(&role::name_of(role).unwrap_or_default())
}

/// The role whose rights are in force.
#[pg_extern(stable, parallel_safe)]
fn current_role_id() -> i32 {
    value_of(current_user())
}

/// Four bytes passed by value, as an OID is; pgrx would make NULL of the OID 0.
fn value_of(role: pg_sys::Oid) -> i32 {
    role.to_u32().cast_signed()
}
