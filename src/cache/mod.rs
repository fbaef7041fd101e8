//! The result cache: the key of a request, whether an entry answers it, and the entry for an answer.
//!
//! A look-up writes nothing, so that it works in read-only transactions. A process that gets an answer from
//! the engine hands it to the worker of its database, which alone writes answers (`worker::cache_writer`).
//! Administrators import, clear and evict entries besides.
//!
//! Invariant: an entry answers a request only if the engine would compute the same now: an entry of the same
//! type and key, the same content of the model's file and the same kernel version, which covers the type of
//! kept keys and values. An entry that an administrator imported answers default requests whatever the model,
//! which is the purpose of an import.

mod keys;
mod new_entry;
mod question;

pub(crate) use self::keys::{dedup_key_of, key_of};
pub(crate) use self::new_entry::{Author, NewEntry, model_name};
pub(crate) use self::question::{CacheQuestion, CacheReply, Effort, find};
