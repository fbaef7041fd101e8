//! The lanes of requests: rows of the queue that are the same to a worker which takes some models or types
//! and leaves others.

use pgrx::prelude::*;

use crate::pg::jsonb::{Container, Item, Jsonb};

/// Bits of a lane that are the hash of what is asked for, and below the owner.
const KIND_BITS: u32 = 28;
const OWNER_SHIFT: u32 = 32;
/// The parameters that name a model, in the order in which they count.
const NAMES: [&str; 3] = ["model", "size", "default_model"];
/// The parameter that decides what for the default model is, where none is named.
const METHOD: &str = "method";

/// The lane of a row. It is in an index: what it is must never change.
#[pg_extern(immutable, parallel_safe)]
fn claim_lane(
    owner_role: Option<i32>,
    priority: Option<i32>,
    request_type: Option<&str>,
    params: Option<Jsonb<'_>>,
) -> i64 {
    let owner = i64::from(owner_role.unwrap_or(0).cast_unsigned()) << OWNER_SHIFT;
    let priority = i64::from(priority.unwrap_or(0) & 0xf) << KIND_BITS;
    let named = match params.and_then(Jsonb::root) {
        Some(Item::Object(params)) => named(params),
        _ => None,
    };
    owner | priority | i64::from(kind(request_type.unwrap_or_default(), named))
}

/// What a request says about its model, and whether it is the method; of several parameters the first that is
/// a text.
fn named(params: Container<'_>) -> Option<(bool, &str)> {
    let mut found = [None; NAMES.len() + 1];
    for (key, value) in params.pairs().flatten() {
        if let (Some(place), Item::Text(text)) =
            (NAMES.iter().chain([&METHOD]).position(|name| *name == key), value)
        {
            found[place] = Some(text);
        }
    }
    found.into_iter().enumerate().find_map(|(place, text)| Some((place == NAMES.len(), text?)))
}

/// FNV-1a of all of it, folded.
fn kind(request_type: &str, named: Option<(bool, &str)>) -> u32 {
    let (is_method, name) = named.unwrap_or_default();
    let bytes = request_type.bytes().chain([u8::from(is_method)]).chain(name.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    });
    let hash = hash ^ hash >> 32;
    ((hash ^ hash >> KIND_BITS) & ((1 << KIND_BITS) - 1)) as u32
}
