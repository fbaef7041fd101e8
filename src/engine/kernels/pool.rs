//! The pool of compute threads.
//!
//! [`Pool::run`] calls a function once for each of a number of items; the calling thread and the pool's
//! helpers claim items from a shared counter, so that a thread that the system has descheduled holds up only
//! one item. A job gives its worth, in shares of some two microseconds: where there are many threads, a small
//! job would be done before all of them had come.
//!
//! A helper without work spins for some microseconds, which bridges the gap between two phases of a step, and
//! then parks. Jobs begin and end by atomics; locks are for panics and for a caller that waits long.
//!
//! Invariant: helpers call a job's function only while they are inside its [`Gate`], and `run` returns when
//! no helper is inside.
#![allow(unsafe_code, reason = "a job borrows from the stack of its caller")]

use std::cell::{Cell, UnsafeCell};
use std::ops::Range;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{JoinHandle, Thread};
use std::time::{Duration, Instant};

use crossbeam_utils::CachePadded;

use super::disjoint::Disjoint;
use super::float_environment::{self, Standard};
use super::instructions::Instructions;
use crate::panic::{Panic, hold};
use crate::process::COMPUTING_STACK_BYTES;

/// Time for which a thread looks for the next job, or for the end of one, before it sleeps.
const SPIN: Duration = Duration::from_micros(20);
/// Helpers that one thread wakes; those wake others.
const WAKES: u64 = 2;

/// A fixed number of threads that compute. One thread at a time may give it work.
pub(crate) struct Pool {
    shared: Arc<PoolShared>,
    threads: Vec<JoinHandle<()>>,
    instructions: Instructions,
    /// Counts its jobs.
    beats: Option<Arc<AtomicU64>>,
    /// Whether there is a job. As a [`Cell`] it also keeps the pool from being shared by threads.
    busy: Cell<bool>,
}

/// The part of a pool that its threads share.
struct PoolShared {
    /// A [`Gate`].
    gate: CachePadded<AtomicU64>,
    /// The next item of the job that is not claimed.
    next: CachePadded<AtomicUsize>,
    /// Changed only while no helper is inside the gate or may enter it.
    job: CachePadded<UnsafeCell<Option<PoolJob>>>,
    helpers: Vec<Helper>,
    /// Number of helpers asleep.
    sleepers: CachePadded<AtomicU64>,
    /// The thread of the caller, which waits for the last helper to leave.
    caller: Mutex<Option<Thread>>,
    caller_sleeps: AtomicBool,
    panic: Mutex<Option<Panic>>,
    stop: AtomicBool,
}

// SAFETY: `job` is written by the pool's one caller while the gate is shut and empty, and read by threads
// that have entered the gate.
unsafe impl Sync for PoolShared {}
// SAFETY: a job's function is Sync.
unsafe impl Send for PoolShared {}

/// The handle of a helper for the other threads.
#[derive(Default)]
struct Helper {
    thread: OnceLock<Thread>,
    asleep: AtomicBool,
}

/// A borrowed function and the number of items to call it for.
#[derive(Clone, Copy)]
struct PoolJob {
    work: *const (dyn Fn(usize, usize) + Sync),
    items: usize,
}

/// The admission of helpers to the job, in one word: the job's number, the places that are free for helpers,
/// and the number of helpers inside.
#[derive(Clone, Copy)]
struct Gate(u64);

impl Gate {
    const INSIDE: u64 = 1;
    const PLACE: u64 = 1 << 16;
    const PLACES: u64 = 0xffff << 16;
    const NUMBER_SHIFT: u32 = 32;

    /// The gate of the next job, with no helper inside.
    fn next(self, places: usize) -> Gate {
        let number = self.number().wrapping_add(1);
        Gate(u64::from(number) << Self::NUMBER_SHIFT | (places as u64).min(0xffff) << 16)
    }

    fn number(self) -> u32 {
        (self.0 >> Self::NUMBER_SHIFT) as u32
    }

    fn places(self) -> u64 {
        (self.0 & Self::PLACES) >> 16
    }

    fn inside(self) -> u64 {
        self.0 & 0xffff
    }
}

impl PoolShared {
    fn claim(&self, job: &PoolJob, worker: usize) {
        loop {
            let item = self.next.fetch_add(1, Relaxed);
            if item >= job.items {
                return;
            }
            // SAFETY: whoever calls `claim` is the caller of `run` or inside the gate.
            unsafe { (*job.work)(worker, item) };
        }
    }

    fn gate(&self) -> Gate {
        Gate(self.gate.load(SeqCst))
    }

    /// Enters a job later than number `seen`, if there is one with a free place.
    fn enter(&self, seen: &mut u32) -> Option<PoolJob> {
        let mut gate = Gate(self.gate.load(Acquire));
        while gate.number() != *seen && gate.places() > 0 {
            let entered = gate.0 - Gate::PLACE + Gate::INSIDE;
            match self.gate.compare_exchange_weak(gate.0, entered, AcqRel, Acquire) {
                Ok(_) => {
                    *seen = gate.number();
                    // SAFETY: the caller writes it before it opens the gate, and not while somebody is
                    // inside.
                    return unsafe { *self.job.get() };
                }
                Err(now) => gate = Gate(now),
            }
        }
        None
    }

    fn leave(&self) {
        // This is ordered with the operations of a caller that goes to sleep, so that one of the two sees the
        // other.
        let was = Gate(self.gate.fetch_sub(Gate::INSIDE, SeqCst));
        if was.inside() == 1
            && self.caller_sleeps.load(SeqCst)
            && let Some(caller) = &*lock(&self.caller)
        {
            caller.unpark();
        }
    }

    /// Lets no other helper in and waits until none is inside.
    fn close(&self) {
        if Gate(self.gate.fetch_and(!Gate::PLACES, AcqRel)).inside() == 0 {
            return;
        }
        let start = Instant::now();
        while start.elapsed() < SPIN {
            for _ in 0..16 {
                if Gate(self.gate.load(Acquire)).inside() == 0 {
                    return;
                }
                std::hint::spin_loop();
            }
        }
        *lock(&self.caller) = Some(std::thread::current());
        self.caller_sleeps.store(true, SeqCst);
        while self.gate().inside() > 0 {
            std::thread::park();
        }
        self.caller_sleeps.store(false, SeqCst);
    }

    /// Wakes some of the helpers that the job has places for. They may come too late for it, but not for the
    /// next ones.
    fn wake(&self) {
        let sleepers = self.sleepers.load(SeqCst);
        if sleepers == 0 {
            return;
        }
        let gate = self.gate();
        let spinning = (self.helpers.len() as u64).saturating_sub(sleepers + gate.inside());
        let mut wanted = gate.places().saturating_sub(spinning).min(WAKES);
        // Always the first helpers, so that a job for few threads finds them awake.
        for helper in &self.helpers {
            if wanted == 0 {
                return;
            }
            if helper.asleep.load(SeqCst) && self.rouse(helper) {
                wanted -= 1;
                if let Some(thread) = helper.thread.get() {
                    thread.unpark();
                }
            }
        }
    }

    /// Marks a helper as awake; true if it was asleep.
    fn rouse(&self, helper: &Helper) -> bool {
        let was_asleep = helper.asleep.swap(false, SeqCst);
        if was_asleep {
            self.sleepers.fetch_sub(1, SeqCst);
        }
        was_asleep
    }

    fn sleep(&self, helper: &Helper, seen: u32) {
        // Counted first: the thread that rouses it counts it out. This is ordered with the operations of a
        // caller that opens the gate, as in `leave`.
        self.sleepers.fetch_add(1, SeqCst);
        helper.asleep.store(true, SeqCst);
        while helper.asleep.load(SeqCst) {
            // A job may have come whose caller has not seen this thread asleep.
            let gate = self.gate();
            if self.stop.load(SeqCst) || gate.number() != seen && gate.places() > 0 {
                self.rouse(helper);
                return;
            }
            std::thread::park();
        }
    }

    /// The loop of a helper; the caller of `run` is worker 0.
    fn help(&self, worker: usize) {
        let helper = &self.helpers[worker - 1];
        let _ = helper.thread.set(std::thread::current());
        let (mut seen, mut slept, mut idle_since) = (0, false, Instant::now());
        while !self.stop.load(SeqCst) {
            if let Some(job) = self.enter(&mut seen) {
                if std::mem::take(&mut slept) {
                    self.wake();
                }
                if let Err(panic) = hold(|| self.claim(&job, worker)) {
                    lock(&self.panic).get_or_insert(panic);
                }
                self.leave();
                idle_since = Instant::now();
            } else if idle_since.elapsed() < SPIN {
                for _ in 0..16 {
                    std::hint::spin_loop();
                }
            } else {
                self.sleep(helper, seen);
                (slept, idle_since) = (true, Instant::now());
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code under these locks panics half way, so a poisoned state is still a sound one.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool of `threads` threads including the caller of [`Pool::run`], which use these instructions, or
    /// portable ones where the processor lacks them. `start` runs first on each new thread.
    pub(crate) fn new(
        threads: usize,
        instructions: Instructions,
        start: &Arc<dyn Fn() + Send + Sync>,
    ) -> std::io::Result<Pool> {
        let shared = Arc::new(PoolShared {
            gate: CachePadded::new(AtomicU64::new(0)),
            next: CachePadded::new(AtomicUsize::new(0)),
            job: CachePadded::new(UnsafeCell::new(None)),
            helpers: (1..threads).map(|_| Helper::default()).collect(),
            sleepers: CachePadded::new(AtomicU64::new(0)),
            caller: Mutex::new(None),
            caller_sleeps: AtomicBool::new(false),
            panic: Mutex::new(None),
            stop: AtomicBool::new(false),
        });
        let instructions = if instructions.present() { instructions } else { Instructions::Portable };
        let mut pool = Pool {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
            instructions,
            beats: None,
            busy: Cell::new(false),
        };
        for worker in 1..threads {
            let (shared, start) = (Arc::clone(&shared), Arc::clone(start));
            let thread = std::thread::Builder::new()
                .name(format!("st-compute-{worker}"))
                .stack_size(COMPUTING_STACK_BYTES)
                .spawn(move || {
                    let _ = hold(|| start());
                    float_environment::set();
                    shared.help(worker);
                })?;
            pool.threads.push(thread);
        }
        Ok(pool)
    }

    /// Makes `beats` count each job from now on.
    pub(crate) fn counting(mut self, beats: Arc<AtomicU64>) -> Pool {
        self.beats = Some(beats);
        self
    }

    /// Number of threads that may run a job, the caller included; worker numbers are below it.
    pub(crate) fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// The instructions that kernels on this pool may use; the processor has them.
    pub(crate) fn instructions(&self) -> Instructions {
        self.instructions
    }

    /// Calls `work(worker, item)` once for each item below `items`, on as many threads at most as it is
    /// `worth` shares, and returns when all calls have. A panic in one of them is raised again here. All
    /// threads, the caller's too, compute in the standard floating-point environment.
    pub(crate) fn run(&self, items: usize, worth: usize, work: &(dyn Fn(usize, usize) + Sync)) {
        let _standard = Standard::enter();
        if let Some(beats) = &self.beats {
            beats.fetch_add(1, Relaxed);
        }
        let helpers = self.threads.len().min(items.saturating_sub(1)).min(worth.saturating_sub(1));
        if helpers == 0 {
            for item in 0..items {
                work(0, item);
            }
            return;
        }
        // SAFETY: only the lifetime changes. `Close` below waits, even in a panic, until no helper is inside.
        let work = unsafe {
            std::mem::transmute::<
                *const (dyn Fn(usize, usize) + Sync + '_),
                *const (dyn Fn(usize, usize) + Sync + 'static),
            >(work)
        };
        let (shared, job) = (&*self.shared, PoolJob { work, items });
        assert!(!self.busy.replace(true), "a job of the pool gives it another one");
        let close = Close(self);
        // SAFETY: there is one caller, and the gate is shut and empty between its jobs.
        unsafe { *shared.job.get() = Some(job) };
        shared.next.store(0, Relaxed);
        shared.gate.store(shared.gate().next(helpers).0, SeqCst);
        shared.wake();
        shared.claim(&job, 0);
        drop(close);
        let panic = lock(&shared.panic).take();
        if let Some(panic) = panic {
            panic.resume();
        }
    }

    /// Calls `work` once for each of `items`, each thread with its own one of `states`, of which there are as
    /// many as threads. See [`Pool::run`].
    pub(crate) fn each<S: Send, T: Send>(
        &self,
        states: &mut [S],
        items: &mut [T],
        worth: usize,
        work: &(dyn Fn(&mut S, &mut T) + Sync),
    ) {
        let (count, states, items) = (items.len(), Disjoint::new(states), Disjoint::new(items));
        self.run(count, worth, &|worker, item| {
            // SAFETY: each thread has a worker number of its own, and each item is one thread's.
            let (state, item) =
                unsafe { (&mut states.range(worker..worker + 1)[0], &mut items.range(item..item + 1)[0]) };
            work(state, item);
        });
    }

    /// [`Pool::run`] over ranges of about `grain` of `count` elements.
    pub(crate) fn ranges(
        &self,
        count: usize,
        grain: usize,
        worth: usize,
        work: &(dyn Fn(usize, Range<usize>) + Sync),
    ) {
        let grain = grain.max(1);
        self.run(count.div_ceil(grain), worth, &|worker, item| {
            let start = item * grain;
            work(worker, start..count.min(start + grain));
        });
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            // A helper catches every panic, so there is no error to pass on.
            let _ = thread.join();
        }
    }
}

/// Ends the job, also where the caller's share of it panics.
struct Close<'a>(&'a Pool);

impl Drop for Close<'_> {
    fn drop(&mut self) {
        let shared = &self.0.shared;
        // After a panic in the caller's share, the helpers need not do the rest, and a panic of theirs must
        // not be reported for another job.
        shared.next.fetch_add(usize::MAX / 2, Relaxed);
        shared.close();
        if std::thread::panicking() {
            *lock(&shared.panic) = None;
        }
        self.0.busy.set(false);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::time::Duration;

    use super::{Instructions, Pool};

    fn pool(threads: usize) -> Pool {
        let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
        Pool::new(threads, Instructions::best(), &start).unwrap()
    }

    #[test]
    fn every_item_runs_once_over_many_jobs() {
        let pool = pool(4);
        for items in (0..2_000).map(|i| i % 37) {
            let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
            pool.run(items, 4, &|worker, item| {
                assert!(worker < 4);
                counts[item].fetch_add(1, Ordering::Relaxed);
            });
            assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
        }
    }

    /// Helpers that sleep and wake, callers that wait for them, and more threads than processors.
    #[test]
    fn every_item_runs_once_however_long_threads_sleep() {
        for threads in [2, 3, 9] {
            let pool = pool(threads);
            for job in 0..600_u64 {
                let items = 1 + job as usize * 7 % 41;
                let counts: Vec<AtomicUsize> = (0..items).map(|_| AtomicUsize::new(0)).collect();
                pool.run(items, [usize::MAX, 3, 100][job as usize % 3], &|worker, item| {
                    // The last item to end is that of a helper, or the caller's own.
                    if item as u64 == job % 5 && (worker > 0) == job.is_multiple_of(2) {
                        std::thread::sleep(Duration::from_micros(job % 7 * 40));
                    }
                    counts[item].fetch_add(1, Ordering::Relaxed);
                });
                assert!(counts.iter().all(|count| count.load(Ordering::Relaxed) == 1));
                if job % 3 == 0 {
                    std::thread::sleep(Duration::from_micros(job % 11 * 10));
                }
            }
        }
    }

    #[test]
    fn each_item_is_changed_once_and_states_are_not_shared() {
        let pool = pool(4);
        let (mut states, mut items) = (vec![0; 4], (0..500).collect::<Vec<u64>>());
        pool.each(&mut states, &mut items, usize::MAX, &|state: &mut u64, item| {
            *state += *item;
            *item += 1000;
        });
        assert_eq!(states.iter().sum::<u64>(), 499 * 500 / 2);
        assert!(items.iter().enumerate().all(|(index, item)| *item == index as u64 + 1000));
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_survives() {
        let pool = pool(3);
        for _ in 0..50 {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(64, 3, &|_, item| assert!(item != 33, "item 33"));
            }));
            assert!(result.is_err());
            let all = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
                pool.run(64, 3, &|_, item| panic!("item {item}"));
            }));
            assert!(all.is_err());
            let sum = AtomicUsize::new(0);
            pool.run(64, 3, &|_, item| {
                sum.fetch_add(item, Ordering::Relaxed);
            });
            assert_eq!(sum.load(Ordering::Relaxed), 64 * 63 / 2);
        }
    }
}
