//! The usage in a period that ends now.
//!
//! A window is a ring of buckets. It covers the bucket that is being filled and as many whole ones before it
//! as the period has, so that the usage in any stretch of the length of the period is never more than the
//! window's total.
//!
//! The module uses nothing of PostgreSQL; processes that share a window have a lock for it.

use std::sync::atomic::AtomicI64;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Buckets of a window: those of the period, and the one that is being filled.
pub(crate) const BUCKETS: usize = 61;

/// The length of a window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Period {
    /// Its name in settings and messages.
    pub(crate) name: &'static str,
    /// Seconds of one bucket.
    pub(crate) bucket_s: i64,
}

impl Period {
    /// Seconds of the whole.
    pub(crate) fn seconds(self) -> i64 {
        self.bucket_s * (BUCKETS as i64 - 1)
    }
}

/// The periods that limits are about, from the shortest to the longest.
pub(crate) const PERIODS: [Period; 3] = [
    Period { name: "minute", bucket_s: 1 },
    Period { name: "hour", bucket_s: 60 },
    Period { name: "day", bucket_s: 1440 },
];

/// Uses in buckets. All zeros is a window in which nothing was used.
#[derive(Default)]
#[repr(C)]
pub(crate) struct SlidingWindow {
    /// The number of the bucket that is being filled.
    latest: AtomicI64,
    /// The sum of all buckets.
    total: AtomicU64,
    counts: BucketCounts,
}

#[repr(transparent)]
struct BucketCounts([AtomicU32; BUCKETS]);

impl Default for BucketCounts {
    fn default() -> Self {
        BucketCounts([const { AtomicU32::new(0) }; BUCKETS])
    }
}

impl BucketCounts {
    fn of(&self, bucket: i64) -> &AtomicU32 {
        &self.0[bucket.rem_euclid(BUCKETS as i64) as usize]
    }
}

impl SlidingWindow {
    /// Forgets what is too old at this second; the number of the bucket that is being filled. A clock that
    /// was put back a little stands still until it has caught up; one that was put back by more than the
    /// window is long begins anew.
    fn advance(&self, period: Period, second: i64) -> i64 {
        let (now, latest) = (second.div_euclid(period.bucket_s), self.latest.load(Relaxed));
        if now <= latest && latest - now < BUCKETS as i64 {
            return latest;
        }
        let first = if now < latest { now - BUCKETS as i64 } else { latest.max(now - BUCKETS as i64) };
        for bucket in first + 1..=now {
            let gone = self.counts.of(bucket).swap(0, Relaxed);
            self.total.fetch_sub(u64::from(gone), Relaxed);
        }
        self.latest.store(now, Relaxed);
        now
    }

    /// The use in the period that ends at this second.
    pub(crate) fn used(&self, period: Period, second: i64) -> u64 {
        self.advance(period, second);
        self.total.load(Relaxed)
    }

    /// Counts so many uses at this second.
    pub(crate) fn add(&self, period: Period, second: i64, count: u64) {
        let bucket = self.advance(period, second);
        self.put(bucket, count);
    }

    fn put(&self, bucket: i64, count: u64) {
        let cell = self.counts.of(bucket);
        let before = cell.load(Relaxed);
        let after = before.saturating_add(u32::try_from(count).unwrap_or(u32::MAX));
        cell.store(after, Relaxed);
        self.total.fetch_add(u64::from(after - before), Relaxed);
    }

    /// Takes back uses that were counted at second `at`, as far as they still count.
    pub(crate) fn give_back(&self, period: Period, second: i64, at: i64, count: u64) {
        let (latest, bucket) = (self.advance(period, second), at.div_euclid(period.bucket_s));
        if bucket > latest || latest - bucket >= BUCKETS as i64 {
            return;
        }
        let cell = self.counts.of(bucket);
        let before = cell.load(Relaxed);
        let taken = before.min(u32::try_from(count).unwrap_or(u32::MAX));
        cell.store(before - taken, Relaxed);
        self.total.fetch_sub(u64::from(taken), Relaxed);
    }

    /// Seconds until so many of the uses no longer count; 0 where none have to go, `None` where there are not
    /// so many.
    pub(crate) fn wait(&self, period: Period, second: i64, to_go: u64) -> Option<i64> {
        let latest = self.advance(period, second);
        if to_go == 0 {
            return Some(0);
        }
        let mut gone = 0;
        for bucket in latest - BUCKETS as i64 + 1..=latest {
            gone += u64::from(self.counts.of(bucket).load(Relaxed));
            if gone >= to_go {
                return Some(((bucket + BUCKETS as i64) * period.bucket_s - second).max(1));
            }
        }
        None
    }

    /// All buckets, the latest first.
    pub(crate) fn counts(&self, period: Period, second: i64) -> [u32; BUCKETS] {
        let latest = self.advance(period, second);
        std::array::from_fn(|age| self.counts.of(latest - age as i64).load(Relaxed))
    }

    /// Counts in each bucket at least as much as there was at second `at`; the latest bucket is the first.
    pub(crate) fn restore(&self, period: Period, second: i64, at: i64, counts: &[u32]) {
        let latest = self.advance(period, second);
        let then = at.div_euclid(period.bucket_s).min(latest);
        for (bucket, count) in (0..).map(|age| then - age).zip(counts) {
            if latest - bucket >= BUCKETS as i64 {
                break;
            }
            self.put(bucket, u64::from(count.saturating_sub(self.counts.of(bucket).load(Relaxed))));
        }
    }

    /// Empties the window.
    pub(crate) fn clear(&self) {
        self.counts.0.iter().for_each(|cell| cell.store(0, Relaxed));
        self.total.store(0, Relaxed);
    }
}
