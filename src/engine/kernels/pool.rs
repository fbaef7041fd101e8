//! The compute threads.
//!
//! [`Pool::run`] calls a function once for each of a number of items; the calling thread and the pool's
//! threads claim items from a shared counter, so that a thread the system has set aside holds up one item.
//! A thread that finds nothing to do spins for some microseconds, which bridges the gap between two phases
//! of a step, and then sleeps.
#![allow(unsafe_code, reason = "a job borrows from the stack of its caller; threads write disjoint ranges")]

use std::any::Any;
use std::marker::PhantomData;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a thread looks for the next job before it sleeps.
const SPIN: Duration = Duration::from_micros(20);

/// A fixed number of threads that compute.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

/// What the threads of a pool share.
struct Shared {
    state: Mutex<State>,
    /// A job was posted, or the pool stops.
    posted: Condvar,
    /// The last helper has left the job.
    left: Condvar,
    /// Number of jobs posted; lets threads look for a job without the lock.
    jobs: AtomicUsize,
    /// The next item of the current job that nobody has claimed.
    next: AtomicUsize,
    /// Helpers inside the current job; changed under the lock, read without.
    inside: AtomicUsize,
    stop: AtomicBool,
}

#[derive(Default)]
struct State {
    job: Option<Job>,
    panic: Option<Box<dyn Any + Send>>,
}

/// A borrowed function and the number of items to call it for.
#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(usize, usize) + Sync),
    items: usize,
}

// SAFETY: the function is Sync, and `Pool::run` does not return while a helper may call it.
unsafe impl Send for Job {}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing under the lock panics half way, so a poisoned state is still a sound one.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn claim(&self, job: &Job, worker: usize) {
        loop {
            let item = self.next.fetch_add(1, Ordering::Relaxed);
            if item >= job.items {
                return;
            }
            // SAFETY: whoever calls `claim` has entered the job, and `run` waits for it to leave.
            unsafe { (*job.work)(worker, item) };
        }
    }
}

impl Pool {
    /// A pool of `threads` threads including the caller of [`Pool::run`]. `start` runs first on each new one.
    pub(crate) fn new(threads: usize, start: &Arc<dyn Fn() + Send + Sync>) -> std::io::Result<Pool> {
        let shared = Arc::new(Shared {
            state: Mutex::new(State::default()),
            posted: Condvar::new(),
            left: Condvar::new(),
            jobs: AtomicUsize::new(0),
            next: AtomicUsize::new(0),
            inside: AtomicUsize::new(0),
            stop: AtomicBool::new(false),
        });
        let mut pool = Pool { shared: Arc::clone(&shared), threads: Vec::new() };
        for worker in 1..threads {
            let (shared, start) = (Arc::clone(&shared), Arc::clone(start));
            let thread =
                std::thread::Builder::new().name(format!("st-compute-{worker}")).spawn(move || {
                    let _ = catch_unwind(AssertUnwindSafe(|| start()));
                    help(&shared, worker);
                })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Number of threads that may run a job, the caller included; worker numbers are below it.
    pub(crate) fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `work(worker, item)` once for each item below `items`, and returns when all calls have.
    /// A panic in one of them is raised again here.
    pub(crate) fn run(&self, items: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        if items <= 1 || self.threads.is_empty() {
            for item in 0..items {
                work(0, item);
            }
            return;
        }
        // SAFETY: only the lifetime changes. `Leave` below waits, even in a panic, until no helper is inside.
        let work = unsafe {
            std::mem::transmute::<
                *const (dyn Fn(usize, usize) + Sync + '_),
                *const (dyn Fn(usize, usize) + Sync + 'static),
            >(work)
        };
        let job = Job { work, items };
        {
            let mut state = self.shared.lock();
            self.shared.next.store(0, Ordering::Relaxed);
            state.job = Some(job);
            self.shared.jobs.fetch_add(1, Ordering::Release);
        }
        self.shared.posted.notify_all();
        let leave = Leave(&self.shared);
        self.shared.claim(&job, 0);
        drop(leave);
        let panic = self.shared.lock().panic.take();
        if let Some(panic) = panic {
            resume_unwind(panic);
        }
    }

    /// [`Pool::run`] over ranges of about `grain` of `count` things.
    pub(crate) fn ranges(&self, count: usize, grain: usize, work: &(dyn Fn(usize, Range<usize>) + Sync)) {
        let grain = grain.max(1);
        self.run(count.div_ceil(grain), &|worker, item| {
            let start = item * grain;
            work(worker, start..count.min(start + grain));
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        {
            let _state = self.shared.lock();
            self.shared.stop.store(true, Ordering::Release);
        }
        self.shared.posted.notify_all();
        for thread in self.threads.drain(..) {
            // A helper catches every panic, so there is no error to pass on.
            let _ = thread.join();
        }
    }
}

/// Closes the job and waits for the helpers inside it.
struct Leave<'a>(&'a Shared);

impl Drop for Leave<'_> {
    fn drop(&mut self) {
        // After a panic in the caller's share the helpers need not do the rest.
        self.0.next.fetch_add(usize::MAX / 2, Ordering::Relaxed);
        self.0.lock().job = None;
        let start = Instant::now();
        while self.0.inside.load(Ordering::Acquire) > 0 {
            if start.elapsed() < SPIN {
                std::hint::spin_loop();
                continue;
            }
            let mut state = self.0.lock();
            while self.0.inside.load(Ordering::Acquire) > 0 {
                state = self.0.left.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
        }
    }
}

/// The life of a helper thread.
fn help(shared: &Shared, worker: usize) {
    let mut seen = 0;
    while let Some(job) = next_job(shared, &mut seen) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| shared.claim(&job, worker))) {
            shared.lock().panic.get_or_insert(panic);
        }
        // Under the lock, so that the caller cannot miss the notification between its look and its wait.
        let _state = shared.lock();
        if shared.inside.fetch_sub(1, Ordering::AcqRel) == 1 {
            shared.left.notify_one();
        }
    }
}

/// Waits for a job later than `seen` and enters it; None when the pool stops.
fn next_job(shared: &Shared, seen: &mut usize) -> Option<Job> {
    let start = Instant::now();
    while shared.jobs.load(Ordering::Acquire) == *seen && start.elapsed() < SPIN {
        for _ in 0..16 {
            std::hint::spin_loop();
        }
    }
    let mut state = shared.lock();
    loop {
        if shared.stop.load(Ordering::Acquire) {
            return None;
        }
        let jobs = shared.jobs.load(Ordering::Acquire);
        if jobs != *seen {
            *seen = jobs;
            if let Some(job) = state.job {
                shared.inside.fetch_add(1, Ordering::AcqRel);
                return Some(job);
            }
        }
        state = shared.posted.wait(state).unwrap_or_else(PoisonError::into_inner);
    }
}

/// A mutable slice that threads write to in disjoint ranges.
pub(crate) struct Disjoint<'a, T> {
    start: *mut T,
    length: usize,
    borrow: PhantomData<&'a mut [T]>,
}

// SAFETY: threads get at the elements only through `range`, whose callers promise disjoint ranges.
unsafe impl<T: Send> Send for Disjoint<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Disjoint<'_, T> {}

impl<'a, T> Disjoint<'a, T> {
    /// Borrows the slice for as long as its parts are in use.
    pub(crate) fn new(slice: &'a mut [T]) -> Self {
        Disjoint { start: slice.as_mut_ptr(), length: slice.len(), borrow: PhantomData }
    }

    /// Where an element is, to fetch it into the cache.
    pub(crate) fn address(&self, index: usize) -> *const T {
        self.start.wrapping_add(index)
    }

    /// A part of the slice; panics when it is out of bounds.
    ///
    /// # Safety
    /// While the result lives, no other range that overlaps it may be taken.
    #[allow(clippy::mut_from_ref, reason = "the caller promises that ranges are disjoint")]
    pub(crate) unsafe fn range(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.length, "range {range:?} of {}", self.length);
        // SAFETY: within the borrowed slice, and not aliased by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::Pool;

    fn pool(threads: usize) -> Pool {
        let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
        Pool::new(threads, &start).unwrap()
    }

    #[test]
    fn every_item_runs_once_over_many_jobs() {
        let pool = pool(4);
        for items in (0..2_000).map(|i| i % 37) {
            let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            pool.run(items, &|worker, item| {
                assert!(worker < 4);
                counts[item].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = pool(3);
        for _ in 0..50 {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(64, &|_, item| assert!(item != 33, "item 33"));
            }));
            assert!(result.is_err());
            let sum = AtomicUsize::new(0);
            pool.run(64, &|_, item| {
                sum.fetch_add(item, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 64 * 63 / 2);
        }
    }
}
