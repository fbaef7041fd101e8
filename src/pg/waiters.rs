//! Callers that wait for a request to end sleep on a condition variable in shared memory, one of a few
//! buckets by request id, and are woken after the commit that ended it.

use pgrx::pg_sys;
use uuid::Uuid;

use super::shmem::{self, BUCKETS};

/// A set of buckets, one bit each.
pub(crate) type BucketSet = u64;
const _: () = assert!(BUCKETS == BucketSet::BITS as usize);

/// The bucket of a request: its last byte, which is random in a version 7 UUID.
fn bucket(request_id: Uuid) -> usize {
    usize::from(request_id.as_bytes()[15]) % BUCKETS
}

/// The set that holds the bucket of `request_id` alone.
pub(crate) fn bucket_set(request_id: Uuid) -> BucketSet {
    1 << bucket(request_id)
}

/// Wakes everybody who waits for a request of these buckets. Nothing here can raise.
pub(crate) fn broadcast(buckets: BucketSet) {
    let Some(shared) = shmem::get() else { return };
    for bucket in (0..BUCKETS).filter(|bucket| buckets & (1 << bucket) != 0) {
        // SAFETY: a condition variable in shared memory, initialised at server start; C takes it by a mutable
        // pointer and guards it by its own spinlock.
        unsafe { pg_sys::ConditionVariableBroadcast((&raw const shared.waiters[bucket]).cast_mut()) };
    }
}

/// A caller's place in the queue of sleepers of one request; leaves it when dropped.
pub(crate) struct Sleeper {
    variable: Option<*mut pg_sys::ConditionVariable>,
}

impl Sleeper {
    /// Queues up for `request_id`. Look at the request's state only after this: then no wake is missed.
    pub(crate) fn new(request_id: Uuid) -> Self {
        let variable = shmem::get().map(|shared| (&raw const shared.waiters[bucket(request_id)]).cast_mut());
        if let Some(variable) = variable {
            // SAFETY: as in `broadcast`.
            unsafe { pg_sys::ConditionVariablePrepareToSleep(variable) };
        }
        Sleeper { variable }
    }

    /// Sleeps until woken, `timeout_ms` have passed, or an interrupt ends the statement. May wake early.
    pub(crate) fn sleep(&self, timeout_ms: i64) {
        match self.variable {
            // SAFETY: as in `broadcast`; handles interrupts, which may raise.
            Some(variable) => unsafe {
                pg_sys::ConditionVariableTimedSleep(variable, timeout_ms, pg_sys::PG_WAIT_EXTENSION);
            },
            // Not preloaded: nobody will wake us, a worker elsewhere may still answer.
            None => super::interrupts::sleep_ms(timeout_ms.min(100)),
        }
    }
}

impl Drop for Sleeper {
    fn drop(&mut self) {
        if self.variable.is_some() {
            // SAFETY: leaves whatever queue this process is in; does nothing otherwise.
            unsafe { pg_sys::ConditionVariableCancelSleep() };
        }
    }
}
