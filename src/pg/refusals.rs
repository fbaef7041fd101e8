//! Requests and rights that were refused, on their way into the audit log.
//!
//! A refusal is an error, which rolls back whatever the same transaction could write about it. So it is noted
//! here, in shared memory, and the worker writes it down.
//!
//! Refusals of the same role about the same thing are one entry with a count, until they are written; a role
//! has a few entries at most, and a database some. Refusals that find no place are counted.
//!
//! Invariant: everything here is guarded by the part's lock. No text of a request gets here: the messages
//! that are noted have names and numbers only.

use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};
use std::sync::atomic::{AtomicI64, AtomicU8, AtomicU32, AtomicU64};

use pgrx::{PgSqlErrorCode, pg_sys};

use super::error::PgError;
use super::shmem::{SharedContent, SharedPart, Slot};
use super::{activity, catalog, privilege, slots};

/// Entries of all databases, of one of them, and of one role in it.
const ENTRIES: usize = 256;
const ENTRIES_OF_DATABASE: usize = 128;
const ENTRIES_OF_ROLE: usize = 8;
/// Most bytes of the name of a limit, and of a message.
const WHAT_BYTES: usize = 64;
const MESSAGE_BYTES: usize = 256;

/// The name under which rights are refused, which are no limit.
pub(super) const RIGHTS: &str = "rights";

/// The entries.
#[repr(C)]
pub(crate) struct Refusals {
    entries: [RefusalEntry; ENTRIES],
}

// SAFETY: zeros are entries that are free.
unsafe impl SharedContent for Refusals {}

pub(super) static TABLE: SharedPart<Refusals> = SharedPart::new();

#[repr(C)]
struct RefusalEntry {
    /// 0: free.
    database: AtomicU32,
    role: AtomicU32,
    session: AtomicU32,
    /// An SQLSTATE, packed.
    code: AtomicU32,
    count: AtomicU64,
    first: AtomicI64,
    last: AtomicI64,
    what: AtomicText<WHAT_BYTES>,
    message: AtomicText<MESSAGE_BYTES>,
}

/// A short text; what is longer is cut.
#[repr(C)]
struct AtomicText<const N: usize> {
    length: AtomicU32,
    bytes: [AtomicU8; N],
}

impl<const N: usize> AtomicText<N> {
    fn cut(text: &str) -> &str {
        let mut end = text.len().min(N);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        &text[..end]
    }

    fn set(&self, text: &str) {
        let text = Self::cut(text);
        self.length.store(text.len() as u32, Relaxed);
        self.bytes.iter().zip(text.bytes()).for_each(|(cell, byte)| cell.store(byte, Relaxed));
    }

    fn get(&self) -> String {
        let length = self.length.load(Relaxed) as usize;
        let bytes = self.bytes.iter().take(length).map(|cell| cell.load(Relaxed)).collect();
        String::from_utf8(bytes).unwrap_or_default()
    }

    fn is(&self, text: &str) -> bool {
        let text = Self::cut(text);
        self.length.load(Relaxed) as usize == text.len()
            && self.bytes.iter().zip(text.bytes()).all(|(cell, byte)| cell.load(Relaxed) == byte)
    }
}

impl RefusalEntry {
    fn refusal(&self) -> Refusal {
        Refusal {
            role: pg_sys::Oid::from(self.role.load(Relaxed)),
            session: pg_sys::Oid::from(self.session.load(Relaxed)),
            what: self.what.get(),
            code: PgError::unpack(self.code.load(Relaxed).cast_signed()),
            message: self.message.get(),
            count: self.count.load(Relaxed),
            first: self.first.load(Relaxed),
            last: self.last.load(Relaxed),
        }
    }
}

/// A refusal.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// The role that was refused something.
    pub(crate) role: pg_sys::Oid,
    /// The role that had logged in.
    pub(crate) session: pg_sys::Oid,
    /// The limit, or `rights`.
    pub(crate) what: String,
    /// The SQLSTATE of the first error.
    pub(crate) code: String,
    /// Its message.
    pub(crate) message: String,
    /// Number of refusals.
    pub(crate) count: u64,
    /// Times of the first refusal and of the last one, as TimestampTz.
    pub(crate) first: i64,
    /// See `first`.
    pub(crate) last: i64,
}

impl Refusal {
    fn is_of_the_same_entry(&self, other: &Refusal) -> bool {
        (self.role, self.session, &self.what) == (other.role, other.session, &other.what)
    }
}

/// Notes that a role was refused something. Never raises an error.
pub(crate) fn note(role: pg_sys::Oid, what: &str, code: PgSqlErrorCode, message: &str) {
    // A standby has nobody who could write it down.
    let Some(slot) = slots::mine() else { return };
    let (database, role, now) = (catalog::my_database().to_u32(), role.to_u32(), activity::now());
    let session = privilege::session_user().to_u32();
    let mut is_new = false;
    let noted = TABLE.with_lock(true, |table| {
        let (mut of_database, mut of_role, mut free) = (0, 0, None);
        for entry in &table.entries {
            let of = entry.database.load(Relaxed);
            if of == 0 {
                free = free.or(Some(entry));
            } else if of == database {
                of_database += 1;
                if entry.role.load(Relaxed) != role {
                    continue;
                }
                if entry.session.load(Relaxed) == session && entry.what.is(what) {
                    entry.count.fetch_add(1, Relaxed);
                    entry.last.store(now, Relaxed);
                    return true;
                }
                of_role += 1;
            }
        }
        let Some(entry) = free.filter(|_| of_database < ENTRIES_OF_DATABASE && of_role < ENTRIES_OF_ROLE)
        else {
            return false;
        };
        entry.role.store(role, Relaxed);
        entry.session.store(session, Relaxed);
        entry.code.store((code as i32).cast_unsigned(), Relaxed);
        entry.count.store(1, Relaxed);
        entry.first.store(now, Relaxed);
        entry.last.store(now, Relaxed);
        entry.what.set(what);
        entry.message.set(message);
        entry.database.store(database, Relaxed);
        is_new = true;
        true
    });
    match noted {
        None => return,
        Some(true) => {}
        Some(false) => {
            slot.refusals_dropped.fetch_add(1, Relaxed);
        }
    }
    let is_first = !slot.refusals_wait.swap(true, AcqRel);
    if is_new {
        slot.refusals_new.store(true, Release);
    }
    // Others of the same entry wait with it.
    if is_first || is_new {
        slot.wake();
    }
}

/// Whether there is something to be written down for the database of a slot.
pub(crate) fn any(slot: &Slot) -> bool {
    slot.refusals_wait.load(Acquire)
}

/// Whether there are entries that were not there when this process took its last look.
pub(crate) fn any_new(slot: &Slot) -> bool {
    slot.refusals_new.load(Acquire)
}

/// This process is about to look at all entries.
pub(crate) fn look(slot: &Slot) {
    slot.refusals_new.store(false, SeqCst);
}

/// The refusals in the database of this process that are not written down, and how many found no place. They
/// stay until [`forget_written`]: the worker may be ended while it writes.
pub(crate) fn unwritten(slot: &Slot) -> (Vec<Refusal>, u64) {
    let database = catalog::my_database().to_u32();
    let dropped = slot.refusals_dropped.load(Relaxed);
    let unwritten = TABLE.with_lock(true, |table| {
        let of_database = |entry: &&RefusalEntry| entry.database.load(Relaxed) == database;
        table.entries.iter().filter(of_database).map(RefusalEntry::refusal).collect()
    });
    (unwritten.unwrap_or_default(), dropped)
}

/// Removes entries that have been written down. Refusals that were added to them meanwhile stay.
pub(crate) fn forget_written(slot: &Slot, written: &[Refusal], dropped: u64) {
    let database = catalog::my_database().to_u32();
    TABLE.with_lock(true, |table| {
        let mut more = slot.refusals_dropped.fetch_sub(dropped, Relaxed) > dropped;
        for entry in table.entries.iter().filter(|entry| entry.database.load(Relaxed) == database) {
            let now = entry.refusal();
            match written.iter().find(|refusal| refusal.is_of_the_same_entry(&now)) {
                Some(refusal) if refusal.count >= now.count => entry.database.store(0, Relaxed),
                Some(refusal) => {
                    entry.count.store(now.count - refusal.count, Relaxed);
                    entry.first.store(refusal.last, Relaxed);
                    more = true;
                }
                None => more = true,
            }
        }
        // A process that notes a refusal sets the flag after that, outside of the lock.
        if !more {
            slot.refusals_wait.store(false, Release);
        }
    });
}

/// Notes that the caller was refused a change of something of the extension's that belongs to somebody else.
/// Never raises an error.
pub(crate) fn note_other_owner(kind: OwnedObject) {
    let (what, message) = match kind {
        OwnedObject::Vectorizer => ("vectorizer", "must be owner of vectorizer \"…\""),
        OwnedObject::Enrichment => ("enrichment", "must be owner of enrichment \"…\""),
        OwnedObject::Prompt => ("prompt", "prompt \"…\" belongs to another role"),
    };
    let what = format!("{RIGHTS}:{what}");
    note(privilege::outer_user(), &what, PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE, message);
}

/// The kind of an object that belongs to somebody else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OwnedObject {
    Vectorizer,
    Enrichment,
    Prompt,
}
