//! The times of work that nothing wakes a worker for.
//!
//! Commits wake a worker, and so do retries that come due. Nothing wakes it for rows that were locked and no
//! longer are, for requests that came without the queue's triggers (restored, replicated), and for the leases
//! of workers elsewhere that have died, so it looks for these from time to time: every `worker_poll_interval`
//! seconds while something waits. An idle worker looks [`IDLE_FACTOR`] times as seldom, and does its
//! heartbeat and the step of the retention in the same moment. It makes no other transactions but those of
//! the cache's eviction and, once an hour, of the audit log.

use std::sync::atomic::Ordering::Acquire;
use std::time::{Duration, Instant};

use super::protocol::QueueState;
use crate::pg::catalog_cache::DatabaseConfig;
use crate::pg::shmem::Slot;

/// Multiple of the poll interval at which an idle worker looks around.
const IDLE_FACTOR: u32 = 30;
const LONGEST_INTERVAL: Duration = Duration::from_secs(3600);
/// A look that walks through the queue begins no sooner than so many times what the last one took, if that
/// was long: while somebody keeps an old snapshot, it steps over all that requests have left behind.
const THOROUGH_REST: u32 = 100;
const LONG_LOOK: Duration = Duration::from_millis(20);
/// Shortest interval between looks around when others change the status of requests all the time.
const CHANGE_INTERVAL: Duration = Duration::from_millis(250);
/// Pause between two sweeps of the retention.
const RETENTION_INTERVAL: Duration = Duration::from_secs(60);
/// Pause between the steps of one: so many times as long as a step took, that a long queue is swept as fast
/// as it fills and the worker has most of its time for claims; within these bounds.
const RETENTION_REST: u32 = 4;
const SHORTEST_RETENTION_REST: Duration = Duration::from_millis(10);
const LONGEST_RETENTION_REST: Duration = Duration::from_millis(250);

/// The times at which things happen next.
pub(super) struct Due {
    slot: &'static Slot,
    /// `worker_poll_interval`.
    interval: Duration,
    paused: bool,
    begun: Instant,
    /// Time at which it looked around last.
    looked: Option<Instant>,
    /// The earliest moment at which it walks through the queue for that.
    thorough: Instant,
    /// Whether something waits, as far as it knows.
    waits: bool,
    /// Whether it has looked around since its last heartbeat, or has worked.
    awake: bool,
    /// Time at which the next retry is due.
    retry: Option<Instant>,
    changes_seen: u64,
    pub(super) claim: Instant,
    /// Before this, nothing is claimed unless it is urgent, and nothing stored as long as the engine has
    /// enough to do.
    pub(super) pace: Instant,
    /// The last claim was left out for that; commits do not wake the worker meanwhile.
    pub(super) paced: bool,
    pub(super) notified: Option<Instant>,
    pub(super) last_notified_claim: Option<Instant>,
    /// Time at which a claim was asked for last for the sake of a sweep.
    pub(super) swept_at: Option<Instant>,
    pub(super) heartbeat: Instant,
    pub(super) retention: Instant,
}

impl Due {
    /// Everything but the retention is due.
    pub(super) fn new(slot: &'static Slot) -> Due {
        let now = Instant::now();
        Due {
            slot,
            interval: Duration::from_secs(1),
            paused: false,
            begun: now,
            looked: None,
            thorough: now,
            waits: true,
            awake: true,
            retry: None,
            changes_seen: slot.changes.load(Acquire),
            claim: now,
            pace: now,
            paced: false,
            notified: None,
            last_notified_claim: None,
            swept_at: None,
            heartbeat: now,
            retention: now + RETENTION_INTERVAL,
        }
    }

    /// Goes by the configuration from now on.
    pub(super) fn obey(&mut self, config: &DatabaseConfig) {
        self.interval = Duration::from_secs_f64(config.worker_poll_interval_s.clamp(0.01, 3600.0));
        self.paused = config.worker_paused;
    }

    /// Before this, nothing is claimed, whatever was notified.
    pub(super) fn claimable(&self) -> Instant {
        if self.paced { self.claim.max(self.pace) } else { self.claim }
    }

    /// The time at which it looks around.
    pub(super) fn look(&self) -> Instant {
        let Some(looked) = self.looked else { return self.begun };
        let interval = if self.waits && !self.paused {
            self.interval
        } else {
            (self.interval * IDLE_FACTOR).min(LONGEST_INTERVAL)
        };
        let changed = self.slot.changes.load(Acquire) != self.changes_seen;
        let mut look = looked + interval;
        for at in [self.retry, changed.then_some(looked + CHANGE_INTERVAL)].into_iter().flatten() {
            look = look.min(at);
        }
        look
    }

    /// Notes that the worker begins to look around.
    pub(super) fn looks(&mut self) {
        self.changes_seen = self.slot.changes.load(Acquire);
    }

    /// Whether it walks through the queue, too.
    pub(super) fn is_thorough(&self) -> bool {
        Instant::now() >= self.thorough
    }

    /// Notes what the worker has seen; `busy`: it holds requests itself. `took`: how long the look took where
    /// it was thorough.
    pub(super) fn looked(&mut self, outlook: &QueueState, busy: bool, took: Option<Duration>) {
        let now = Instant::now();
        self.looked = Some(now);
        match took {
            Some(took) => {
                self.waits = busy || outlook.pending > 0 || outlook.elsewhere;
                self.thorough = if took > LONG_LOOK { now + took * THOROUGH_REST } else { now };
            }
            // A short look cannot tell that nothing waits.
            None => self.waits |= busy,
        }
        self.awake = true;
        // One that is due and still there is locked, or cannot be written now.
        let pause = |seconds: f64| if seconds > 0.0 { seconds + 0.001 } else { 1.0 };
        self.retry = outlook
            .due_in_s
            .and_then(|seconds| now.checked_add(Duration::try_from_secs_f64(pause(seconds)).ok()?));
    }

    /// Notes that the worker has tried to look, and will again.
    pub(super) fn looked_in_vain(&mut self) {
        self.looked = Some(Instant::now());
        self.waits = true;
        self.retry = None;
    }

    /// Notes that the worker claims: what it does not get now may come later.
    pub(super) fn busy(&mut self) {
        self.waits = true;
        self.awake = true;
    }

    /// Notes that the worker has stored results; `retried`: some requests are tried again, and it must look
    /// when.
    pub(super) fn retried(&mut self, retried: bool) {
        if retried {
            self.retry = Some(Instant::now());
        }
    }

    /// Whether something was done since this was asked last, or is going on.
    pub(super) fn is_awake(&mut self, busy: bool) -> bool {
        std::mem::take(&mut self.awake) || busy
    }

    /// A step of the retention was done that has taken so long; `more`: it goes on.
    pub(super) fn swept(&mut self, more: bool, took: Duration) {
        let rest = (took * RETENTION_REST).clamp(SHORTEST_RETENTION_REST, LONGEST_RETENTION_REST);
        self.retention = Instant::now() + if more { rest } else { RETENTION_INTERVAL };
    }
}
