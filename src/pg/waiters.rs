//! Callers that wait for a request to end sleep on a condition variable in shared memory, one of a few
//! buckets by request id, and are woken after the commit that ended it.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;

use pgrx::pg_sys;
use uuid::Uuid;

use super::shmem::{Content, Part};

/// Condition variables; a request id belongs to one of them.
const BUCKETS: usize = 64;

/// A set of buckets, one bit each.
pub(crate) type BucketSet = u64;
const _: () = assert!(BUCKETS == BucketSet::BITS as usize);

/// The buckets.
#[repr(C)]
pub(crate) struct WaiterTable {
    /// Woken when a request of their bucket ends.
    variables: [pg_sys::ConditionVariable; BUCKETS],
    /// Counts them, so that a waiter can tell whether it was too slow to be woken.
    endings: [AtomicU64; BUCKETS],
}

// SAFETY: zeros are counters, and each condition variable is initialised.
unsafe impl Content for WaiterTable {
    unsafe fn initialise(this: *mut Self) {
        for bucket in 0..BUCKETS {
            // SAFETY: memory for a condition variable, which no other process has seen.
            unsafe { pg_sys::ConditionVariableInit(&raw mut (*this).variables[bucket]) };
        }
    }
}

pub(super) static TABLE: Part<WaiterTable> = Part::new();

/// The bucket of a request: its last byte, which is random in a version 7 UUID.
fn bucket(request_id: Uuid) -> usize {
    usize::from(request_id.as_bytes()[15]) % BUCKETS
}

/// The set that holds the bucket of `request_id` alone.
pub(crate) fn bucket_set(request_id: Uuid) -> BucketSet {
    1 << bucket(request_id)
}

/// Wakes all sessions that wait for a request of these buckets. Nothing here can raise.
pub(crate) fn broadcast(buckets: BucketSet) {
    let Some(table) = TABLE.get() else { return };
    for bucket in (0..BUCKETS).filter(|bucket| buckets & (1 << bucket) != 0) {
        table.endings[bucket].fetch_add(1, SeqCst);
        // SAFETY: a condition variable in shared memory, initialised at server start; C takes it by a mutable
        // pointer and guards it by its own spinlock.
        unsafe { pg_sys::ConditionVariableBroadcast((&raw const table.variables[bucket]).cast_mut()) };
    }
}

/// A caller that waits for one request.
pub(crate) struct Waiter {
    table: Option<&'static WaiterTable>,
    bucket: usize,
}

/// How many requests of a bucket had ended at some moment.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Endings(u64);

impl Waiter {
    /// Waits for `request_id`.
    pub(crate) fn new(request_id: Uuid) -> Self {
        Waiter { table: TABLE.get(), bucket: bucket(request_id) }
    }

    /// Call before looking at the request; then no ending is missed between the look and [`Waiter::sleep`].
    pub(crate) fn endings(&self) -> Endings {
        Endings(self.table.map_or(0, |table| table.endings[self.bucket].load(SeqCst)))
    }

    /// Sleeps until a request of the bucket has ended since `seen`, `timeout_ms` have passed, or an interrupt
    /// ends the statement. May wake early.
    pub(crate) fn sleep(&self, seen: Endings, timeout_ms: i64) {
        let Some(table) = self.table else {
            // Not preloaded: nobody will wake us, a worker elsewhere may still answer.
            return super::interrupts::sleep_ms(timeout_ms.min(100));
        };
        let variable = (&raw const table.variables[self.bucket]).cast_mut();
        // SAFETY: as in `broadcast`. Sleeping handles interrupts, which may raise; the abort then leaves the
        // queue.
        unsafe {
            pg_sys::ConditionVariablePrepareToSleep(variable);
            if self.endings().0 == seen.0 {
                pg_sys::ConditionVariableTimedSleep(variable, timeout_ms, pg_sys::PG_WAIT_EXTENSION);
            }
            pg_sys::ConditionVariableCancelSleep();
        }
    }
}
