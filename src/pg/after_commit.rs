//! Wake-ups after a transaction's commit: of the worker, the launcher, and sessions that wait.
//!
//! Triggers and functions *arm* a wake while the transaction runs; one registered callback fires it after the
//! commit, when the rows are visible, and forgets it after an abort. At PREPARE TRANSACTION it is forgotten
//! too: the session that commits it cannot know its contents, so each COMMIT PREPARED wakes the worker
//! (`hooks`).
//!
//! Before the commit, it has the keys written that `noted_keys` has gathered.
//!
//! Invariant: after the commit, the callback only touches atomics, latches and condition variables. An error
//! then would be a PANIC of the server.

use std::cell::Cell;

use pgrx::pg_sys;
use pgrx::prelude::*;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Release, SeqCst};
use uuid::Uuid;

use super::claim_floors;
use super::ended_counts;
use super::noted_keys;
use super::pending;
use super::rate_counters;
use super::shmem;
use super::slots;
use super::waiters::{self, BucketSet};

/// The work to be done after the commit.
#[derive(Clone, Copy, Default)]
struct Armed {
    /// Rows became pending: the worker should claim.
    work: bool,
    /// The highest priority among them.
    priority: i32,
    /// The lowest id of those that were inserted.
    lowest_inserted: Option<i64>,
    /// Somebody else than the worker changed the status of requests, or deleted some: they must be counted.
    change: bool,
    /// Requests were cancelled, the configuration changed or the extension was dropped: the worker should
    /// look around.
    review: bool,
    /// What all sessions of a database begin with has changed: the workers of all databases should look
    /// around.
    review_all: bool,
    /// The launcher should look at this database.
    call: bool,
    /// Requests of these buckets ended.
    ended: BucketSet,
    /// Whether there is something to do for a vectorizer.
    noted: bool,
}

thread_local! {
    static ARMED: Cell<Option<Armed>> = const { Cell::new(None) };
}

fn arm(change: impl FnOnce(&mut Armed)) {
    let mut armed = ARMED.get().unwrap_or_default();
    change(&mut armed);
    ARMED.set(Some(armed));
}

/// After commit, the worker of this database claims: requests were enqueued ([`pending::inserting`] counts
/// them).
pub(crate) fn arm_enqueued(id: i64, priority: i32) {
    arm(|armed| {
        armed.work = true;
        armed.lowest_inserted = Some(armed.lowest_inserted.map_or(id, |lowest| lowest.min(id)));
        armed.priority = armed.priority.max(priority);
    });
}

/// After commit, the worker of this database claims, and counts what is pending.
pub(crate) fn arm_change() {
    // A change concerns requests of all priorities.
    arm(|armed| (armed.work, armed.change, armed.priority) = (true, true, i32::MAX));
}

/// After commit, the worker of this database checks whether its running requests are still its own, and the
/// configuration as it was.
pub(crate) fn arm_review() {
    arm(|armed| armed.review = true);
}

/// After commit, the processes of all databases look whether sessions would begin with other settings.
pub(super) fn arm_review_of_all() {
    arm(|armed| armed.review_all = true);
}

/// After commit, the launcher looks at this database.
pub(crate) fn arm_call() {
    arm(|armed| armed.call = true);
}

/// After commit, sessions that wait for `request_id` look at it.
pub(crate) fn arm_ended(request_id: Uuid) {
    arm(|armed| armed.ended |= waiters::bucket_set(request_id));
}

/// After commit, the process that works for vectorizers looks for work.
pub(crate) fn arm_noted() {
    arm(|armed| armed.noted = true);
}

/// Registers the callbacks for this process and, where the postmaster does it, for all that it forks.
pub(crate) fn install() {
    // SAFETY: the callback lives as long as the library, which is never unloaded.
    unsafe {
        pg_sys::RegisterXactCallback(Some(after_transaction), std::ptr::null_mut());
        pg_sys::RegisterSubXactCallback(Some(after_subtransaction), std::ptr::null_mut());
    }
}

#[pg_guard]
unsafe extern "C-unwind" fn after_transaction(event: pg_sys::XactEvent::Type, _arg: *mut core::ffi::c_void) {
    match event {
        pg_sys::XactEvent::XACT_EVENT_PRE_COMMIT => {
            noted_keys::committing();
            pending::committing();
            ended_counts::committing();
        }
        pg_sys::XactEvent::XACT_EVENT_PRE_PREPARE => {
            noted_keys::committing();
            ended_counts::committing();
        }
        pg_sys::XactEvent::XACT_EVENT_COMMIT => {
            slots::end_evictions();
            noted_keys::ended();
            match ARMED.take() {
                Some(armed) => fire(armed),
                // The transaction has only said that it would put requests back.
                None => pending::forget(),
            }
            pending::ended();
            rate_counters::committed();
            ended_counts::committed();
        }
        pg_sys::XactEvent::XACT_EVENT_ABORT | pg_sys::XactEvent::XACT_EVENT_PREPARE => {
            slots::end_evictions();
            noted_keys::ended();
            // The requests of a transaction that PREPARE TRANSACTION puts aside count.
            if event == pg_sys::XactEvent::XACT_EVENT_ABORT {
                rate_counters::rolled_back();
            } else {
                rate_counters::committed();
                ended_counts::committed();
            }
            ARMED.set(None);
            pending::forget();
            pending::ended();
            ended_counts::forget();
        }
        _ => {}
    }
}

/// Work that was armed in a subtransaction that is rolled back stays: a wake for nothing does no harm. Counts
/// do not stay.
#[pg_guard]
unsafe extern "C-unwind" fn after_subtransaction(
    event: pg_sys::SubXactEvent::Type,
    _own: pg_sys::SubTransactionId,
    _parent: pg_sys::SubTransactionId,
    _arg: *mut core::ffi::c_void,
) {
    match event {
        pg_sys::SubXactEvent::SUBXACT_EVENT_COMMIT_SUB => end_subtransaction(true),
        pg_sys::SubXactEvent::SUBXACT_EVENT_ABORT_SUB => end_subtransaction(false),
        _ => {}
    }
}

fn end_subtransaction(committed: bool) {
    pending::end_subtransaction(committed);
    rate_counters::end_subtransaction(committed);
    ended_counts::end_subtransaction(committed);
    noted_keys::end_subtransaction(committed);
}

fn fire(armed: Armed) {
    let Some(shared) = shmem::get() else { return pending::forget() };
    if armed.ended != 0 {
        waiters::broadcast(armed.ended);
    }
    let slot = slots::mine();
    let doubtful = pending::committed(slot) || armed.change;
    if let Some(slot) = slot {
        let recount = doubtful && !slot.recount.swap(true, AcqRel);
        let mut wanted = armed.review || recount;
        if armed.change {
            slot.changes.fetch_add(1, Release);
        }
        if let Some(lowest) = armed.lowest_inserted {
            claim_floors::note_inserted(slot, lowest);
        }
        if armed.work {
            slot.wakes.fetch_add(1, SeqCst);
            if i64::from(armed.priority) >= i64::from(slot.deaf_below.load(SeqCst)) {
                slot.urgent.fetch_add(1, SeqCst);
                wanted = true;
            }
        }
        if armed.review {
            slot.reviews.fetch_add(1, Release);
        }
        if armed.review || armed.noted {
            // If no such process runs, the worker starts one.
            wanted |= !slot.note_for_vectorizers();
        }
        if wanted {
            slot.wake();
        }
    }
    if armed.review_all {
        for slot in shared.slots.iter().filter(|slot| slot.database.load(Acquire) != 0) {
            slot.reviews.fetch_add(1, Release);
            slot.note_for_vectorizers();
            slot.wake();
        }
    }
    if armed.call {
        // SAFETY: a plain global of this process.
        slots::call_launcher(shared, unsafe { pg_sys::MyDatabaseId });
    }
}
