//! Callers that wait for requests to end sleep on a condition variable in shared memory, and are woken after
//! the commit that ended one. There is a variable for each of a few buckets of request ids, and one for those
//! who wait for several buckets.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::SeqCst;
use std::time::{Duration, Instant};

use pgrx::pg_sys;
use uuid::Uuid;

use super::shmem::{SharedContent, SharedPart};

/// Condition variables; a request id belongs to one of them.
const BUCKETS: usize = 64;

/// A set of buckets, one bit each.
pub(crate) type BucketSet = u64;
const _: () = assert!(BUCKETS == BucketSet::BITS as usize);

/// The buckets.
#[repr(C)]
pub(crate) struct WaiterTable {
    /// Woken when a request of their bucket ends, the last one when any does.
    variables: [pg_sys::ConditionVariable; BUCKETS + 1],
    /// Counts them, so that a waiter can tell whether it was too slow to be woken.
    endings: [AtomicU64; BUCKETS],
}

// SAFETY: zeros are counters, and each condition variable is initialised.
unsafe impl SharedContent for WaiterTable {
    unsafe fn initialise(this: *mut Self) {
        for index in 0..=BUCKETS {
            // SAFETY: memory for a condition variable, which no other process has seen.
            unsafe { pg_sys::ConditionVariableInit(&raw mut (*this).variables[index]) };
        }
    }
}

pub(super) static TABLE: SharedPart<WaiterTable> = SharedPart::new();

/// The bucket of a request: its last byte, which is random in a version 7 UUID.
fn bucket(request_id: Uuid) -> usize {
    usize::from(request_id.as_bytes()[15]) % BUCKETS
}

/// The set that holds the bucket of `request_id` alone.
pub(crate) fn bucket_set(request_id: Uuid) -> BucketSet {
    1 << bucket(request_id)
}

/// Wakes all sessions that wait for a request of these buckets. Never raises an error.
pub(crate) fn broadcast(buckets: BucketSet) {
    let Some(table) = TABLE.get() else { return };
    members(buckets).for_each(|bucket| _ = table.endings[bucket].fetch_add(1, SeqCst));
    for index in members(buckets).chain([BUCKETS]) {
        // SAFETY: a condition variable in shared memory, initialised at server start; C takes it by a mutable
        // pointer and guards it by its own spinlock.
        unsafe { pg_sys::ConditionVariableBroadcast((&raw const table.variables[index]).cast_mut()) };
    }
}

fn members(buckets: BucketSet) -> impl Iterator<Item = usize> {
    (0..BUCKETS).filter(move |bucket| buckets & (1 << bucket) != 0)
}

/// A caller that waits for a request, or for one of several.
pub(crate) struct Waiter {
    table: Option<&'static WaiterTable>,
    buckets: BucketSet,
}

/// The number of requests of the buckets that had ended at some moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Endings(u64);

impl Waiter {
    /// Waits for requests of these buckets.
    pub(crate) fn new(buckets: BucketSet) -> Self {
        Waiter { table: TABLE.get(), buckets }
    }

    /// Call before looking at the requests; then no ending is missed between the look and [`Waiter::sleep`].
    pub(crate) fn endings(&self) -> Endings {
        let count = |table: &WaiterTable| {
            let counts = members(self.buckets).map(|bucket| table.endings[bucket].load(SeqCst));
            counts.fold(0, u64::wrapping_add)
        };
        Endings(self.table.map_or(0, count))
    }

    /// Sleeps until a request of the buckets has ended since `seen`, `timeout` has passed, or an interrupt
    /// ends the statement. May wake early.
    pub(crate) fn sleep(&self, seen: Endings, timeout: Duration) {
        let milliseconds = |left: Duration| i64::try_from(left.as_millis()).unwrap_or(i64::MAX).max(1);
        let Some(table) = self.table else {
            // The library is not preloaded, so nobody will wake us, and a worker elsewhere may still answer.
            return super::interrupts::sleep_ms(milliseconds(timeout).min(100));
        };
        let one = self.buckets.is_power_of_two().then(|| self.buckets.trailing_zeros() as usize);
        let variable = (&raw const table.variables[one.unwrap_or(BUCKETS)]).cast_mut();
        let deadline = Instant::now() + timeout;
        // SAFETY: as in `broadcast`. Sleeping handles interrupts, which may raise; the abort then leaves the
        // queue.
        unsafe {
            pg_sys::ConditionVariablePrepareToSleep(variable);
            while self.endings() == seen {
                let left = deadline.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                pg_sys::ConditionVariableTimedSleep(variable, milliseconds(left), pg_sys::PG_WAIT_EXTENSION);
            }
            pg_sys::ConditionVariableCancelSleep();
        }
    }
}
