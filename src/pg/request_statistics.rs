//! Counters of requests by their outcome, in shared memory: by database, model and type of request.
//!
//! A request is counted where it ends, by the worker or by the process of a synchronous call, also in
//! transactions that are read-only or roll back, and on standbys. To count is to find an entry by its hash
//! and to add to some atomic numbers under the shared lock, which takes some tenths of a microsecond.
//!
//! The table has room for [`ENTRIES`], and a database for [`ENTRIES_OF_ONE`]. Requests without room are
//! counted under the model [`OTHER`], and where there is no room for that either, in one entry for the whole
//! server, whose database is 0.
//!
//! Invariant: entries come and go under the exclusive lock only, so that their keys stand still under the
//! shared one.

mod file;

use std::cell::UnsafeCell;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::Duration;

use pgrx::pg_sys;

use super::shmem::{SharedContent, SharedPart};
use super::{activity, catalog};

/// Entries of all databases, and of one.
pub(super) const ENTRIES: usize = 1024;
const ENTRIES_OF_ONE: usize = 256;
/// Entries that are looked at for one key.
const PROBES: usize = 64;
/// Most bytes of the name of a model, and of a type. Longer names are cut.
const MODEL_BYTES: usize = 96;
const TYPE_BYTES: usize = 24;
/// The model of what found no room.
pub(crate) const OTHER: &str = "(other)";

/// Upper bounds of the buckets of all times, in seconds; one more bucket has what took longer.
pub(crate) const BOUNDS: [f64; 18] = [
    0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0,
    1800.0,
];
/// Buckets of a time.
pub(crate) const BUCKETS: usize = BOUNDS.len() + 1;
/// Numbers that are counted of an entry: [`CountedRequest`], then sum and buckets of each time.
const COUNTERS: usize = 10;
pub(super) const NUMBERS: usize = COUNTERS + 3 * (1 + BUCKETS);

/// The numbers that are added to an entry.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct CountedRequest {
    /// Requests that have begun.
    pub(crate) requests: u64,
    /// Requests that ended with an answer.
    pub(crate) completed: u64,
    /// Requests that ended with an error.
    pub(crate) failed: u64,
    /// Requests that ended because nobody wanted the answer any more.
    pub(crate) cancelled: u64,
    /// Attempts that ended with an error and are made again.
    pub(crate) retried: u64,
    /// Answers of the cache.
    pub(crate) cache_hits: u64,
    /// Tokens of prompts.
    pub(crate) prompt_tokens: u64,
    /// Tokens of prompts that were not computed.
    pub(crate) cached_tokens: u64,
    /// Tokens of answers.
    pub(crate) generated_tokens: u64,
    /// Answers of which it is known how many tokens of their prompts were not computed.
    pub(crate) known_cached: u64,
    /// Times from the request to the beginning of the work; to the first token; to the end.
    pub(crate) times: [Option<Duration>; 3],
}

impl CountedRequest {
    /// The sum of both; `None` where both have times, each of which has a bucket of its own.
    pub(super) fn plus(&self, more: &CountedRequest) -> Option<CountedRequest> {
        let is_plain = |counted: &CountedRequest| counted.times.iter().all(Option::is_none);
        let times = match (is_plain(self), is_plain(more)) {
            (_, true) => self.times,
            (true, false) => more.times,
            (false, false) => return None,
        };
        Some(CountedRequest {
            requests: self.requests.saturating_add(more.requests),
            completed: self.completed.saturating_add(more.completed),
            failed: self.failed.saturating_add(more.failed),
            cancelled: self.cancelled.saturating_add(more.cancelled),
            retried: self.retried.saturating_add(more.retried),
            cache_hits: self.cache_hits.saturating_add(more.cache_hits),
            prompt_tokens: self.prompt_tokens.saturating_add(more.prompt_tokens),
            cached_tokens: self.cached_tokens.saturating_add(more.cached_tokens),
            generated_tokens: self.generated_tokens.saturating_add(more.generated_tokens),
            known_cached: self.known_cached.saturating_add(more.known_cached),
            times,
        })
    }
}

/// The numbers of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StatisticsLine {
    /// 0: of all databases.
    pub(crate) database: u32,
    /// The model's name; empty where none was known.
    pub(crate) model: String,
    /// `generate`, `embed`, …
    pub(crate) request_type: String,
    /// TimestampTz since when it is counted.
    pub(crate) since: i64,
    /// The numbers, in the order of [`CountedRequest`]; then for each time its sum in microseconds and the
    /// buckets.
    pub(crate) numbers: [u64; NUMBERS],
}

impl StatisticsLine {
    /// The sum of a time in seconds, and its buckets.
    pub(crate) fn time(&self, which: usize) -> (f64, &[u64]) {
        let start = COUNTERS + which * (1 + BUCKETS);
        (self.numbers[start] as f64 / 1e6, &self.numbers[start + 1..start + 1 + BUCKETS])
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
struct StatisticsKey {
    database: u32,
    model: [u8; MODEL_BYTES],
    request_type: [u8; TYPE_BYTES],
}

#[repr(C)]
struct StatisticsNumbers {
    /// TimestampTz.
    since: AtomicI64,
    numbers: [AtomicU64; NUMBERS],
}

/// The table. An entry whose hash is 0 is free.
#[repr(C)]
pub(crate) struct StatisticsTable {
    hashes: [AtomicU64; ENTRIES],
    keys: UnsafeCell<[StatisticsKey; ENTRIES]>,
    numbers: [StatisticsNumbers; ENTRIES],
    /// The numbers of requests for which there was no entry.
    beyond: StatisticsNumbers,
}

// SAFETY: `keys` are written under the exclusive lock and read under either.
unsafe impl Sync for StatisticsTable {}
// SAFETY: zeros are entries that are free.
unsafe impl SharedContent for StatisticsTable {
    unsafe fn initialise(this: *mut Self) {
        // SAFETY: the caller's promise; in the postmaster, which no other process has been forked from.
        let table = unsafe { &*this };
        file::at_start(|line| table.restore(line));
    }
}

pub(super) static TABLE: SharedPart<StatisticsTable> = SharedPart::new();

/// Adds to the entry of a model and a type of this process's database.
pub(crate) fn count(model: &str, request_type: &str, counted: &CountedRequest) {
    let database = catalog::my_database().to_u32();
    let key = StatisticsKey::new(database, model, request_type);
    let counts = |table: &StatisticsTable| table.find(&key).map(|index| table.numbers[index].add(counted));
    if TABLE.with_lock(false, counts).is_none_or(|counted| counted.is_some()) {
        return;
    }
    let other = StatisticsKey::new(database, OTHER, request_type);
    let now = activity::now();
    TABLE.with_lock(true, |table| {
        let made = table.find_or_make(&key, ENTRIES_OF_ONE, now);
        match made.or_else(|| table.find_or_make(&other, ENTRIES, now)) {
            Some(index) => table.numbers[index].add(counted),
            None => {
                let _ = table.beyond.since.compare_exchange(0, now, Relaxed, Relaxed);
                table.beyond.add(counted);
            }
        }
    });
}

/// An entry to which something is added later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StatisticsSlot {
    /// `None`: that of what found no room.
    index: Option<usize>,
    hash: u64,
}

/// The entry of a model and a type of this process's database, to which [`count_at`] adds. `None` where there
/// is no shared memory.
pub(crate) fn place_of(model: &str, request_type: &str) -> Option<StatisticsSlot> {
    let database = catalog::my_database().to_u32();
    let now = activity::now();
    let [key, other] = [model, OTHER].map(|model| StatisticsKey::new(database, model, request_type));
    let known = TABLE.with_lock(false, |table| table.find(&key));
    if let Some(index) = known? {
        return Some(StatisticsSlot { index: Some(index), hash: key.hash() });
    }
    TABLE.with_lock(true, |table| {
        let made = table.find_or_make(&key, ENTRIES_OF_ONE, now).map(|index| (index, key.hash()));
        let made = made.or_else(|| Some((table.find_or_make(&other, ENTRIES, now)?, other.hash())));
        let Some((index, hash)) = made else {
            let _ = table.beyond.since.compare_exchange(0, now, Relaxed, Relaxed);
            return StatisticsSlot { index: None, hash: 0 };
        };
        StatisticsSlot { index: Some(index), hash }
    })
}

/// Adds to an entry, unless it has been freed. Without a lock, and without anything that can raise: what is
/// freed and taken by another one in this very moment counts there.
pub(super) fn count_at(place: StatisticsSlot, counted: &CountedRequest) {
    let Some(table) = TABLE.get() else { return };
    match place.index {
        None => table.beyond.add(counted),
        Some(index) if table.hashes[index].load(Acquire) == place.hash => table.numbers[index].add(counted),
        Some(_) => {}
    }
}

/// All entries of a database, or of all of them.
pub(crate) fn list(of: Option<pg_sys::Oid>) -> Vec<StatisticsLine> {
    TABLE.with_lock(false, |table| table.lines(of.map(pg_sys::Oid::to_u32))).unwrap_or_default()
}

/// Forgets what was counted of this process's database.
pub(crate) fn reset() {
    let database = catalog::my_database().to_u32();
    TABLE.with_lock(true, |table| table.retain(|of| of != database));
}

/// Forgets what was counted of databases that are not there any more.
pub(crate) fn keep_only(databases: &[pg_sys::Oid]) {
    let is_there = |of: u32| databases.iter().any(|database| database.to_u32() == of);
    let any = TABLE.with_lock(false, |table| table.taken().any(|(_, key)| !is_there(key.database)));
    if any == Some(true) {
        TABLE.with_lock(true, |table| table.retain(is_there));
    }
}

/// Everything, for the file. In the postmaster, when all other processes have ended.
fn all_at_end() -> Vec<StatisticsLine> {
    TABLE.get().map(|table| table.lines(None)).unwrap_or_default()
}

impl StatisticsKey {
    fn new(database: u32, model: &str, request_type: &str) -> StatisticsKey {
        StatisticsKey { database, model: padded(model), request_type: padded(request_type) }
    }

    /// Never 0.
    fn hash(&self) -> u64 {
        let mut hash = 0xcbf2_9ce4_8422_2325 ^ u64::from(self.database);
        let texts = self.model.as_chunks::<8>().0.iter().chain(self.request_type.as_chunks::<8>().0);
        for part in texts {
            hash = (hash ^ u64::from_le_bytes(*part)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            hash ^= hash >> 29;
        }
        hash.max(1)
    }
}

/// A name as it stands in a key: cut where it is too long, at the beginning of a character.
fn padded<const BYTES: usize>(name: &str) -> [u8; BYTES] {
    let mut padded = [0; BYTES];
    let end = (0..=name.len().min(BYTES)).rev().find(|end| name.is_char_boundary(*end)).unwrap_or(0);
    padded[..end].copy_from_slice(&name.as_bytes()[..end]);
    padded
}

fn unpadded(name: &[u8]) -> String {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

impl StatisticsNumbers {
    fn add(&self, counted: &CountedRequest) {
        let CountedRequest {
            requests,
            completed,
            failed,
            cancelled,
            retried,
            cache_hits,
            prompt_tokens,
            cached_tokens,
            generated_tokens,
            known_cached,
            times,
        } = *counted;
        let counters: [u64; COUNTERS] = [
            requests,
            completed,
            failed,
            cancelled,
            retried,
            cache_hits,
            prompt_tokens,
            cached_tokens,
            generated_tokens,
            known_cached,
        ];
        for (number, more) in self.numbers.iter().zip(counters) {
            if more > 0 {
                number.fetch_add(more, Relaxed);
            }
        }
        for (time, numbers) in times.iter().zip(self.numbers[COUNTERS..].chunks_exact(1 + BUCKETS)) {
            let Some(time) = time else { continue };
            let seconds = time.as_secs_f64();
            let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
            numbers[0].fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
            numbers[1 + bucket].fetch_add(1, Relaxed);
        }
    }

    fn clear(&self) {
        self.numbers.iter().for_each(|number| number.store(0, Relaxed));
        self.since.store(0, Relaxed);
    }

    fn read(&self) -> [u64; NUMBERS] {
        self.numbers.each_ref().map(|number| number.load(Relaxed))
    }
}

impl StatisticsTable {
    fn key(&self, index: usize) -> &StatisticsKey {
        // SAFETY: either lock is held, or no other process is there; keys are written under the exclusive
        // one.
        unsafe { &(*self.keys.get())[index] }
    }

    /// Entries that are taken.
    fn taken(&self) -> impl Iterator<Item = (usize, &StatisticsKey)> {
        let taken = self.hashes.iter().enumerate().filter(|(_, hash)| hash.load(Acquire) != 0);
        taken.map(|(index, _)| (index, self.key(index)))
    }

    fn find(&self, key: &StatisticsKey) -> Option<usize> {
        let hash = key.hash();
        let places = (0..PROBES).map(|probe| (hash as usize).wrapping_add(probe) % ENTRIES);
        places.into_iter().find(|index| self.hashes[*index].load(Acquire) == hash && self.key(*index) == key)
    }

    /// The entry of a key. Under the exclusive lock. `None`: it is not there, and there is no room for it, or
    /// its database has as many as it may have.
    fn find_or_make(&self, key: &StatisticsKey, most: usize, now: i64) -> Option<usize> {
        if let Some(index) = self.find(key) {
            return Some(index);
        }
        if self.taken().filter(|(_, other)| other.database == key.database).count() >= most {
            return None;
        }
        let hash = key.hash();
        let mut places = (0..PROBES).map(|probe| (hash as usize).wrapping_add(probe) % ENTRIES);
        let index = places.find(|index| self.hashes[*index].load(Acquire) == 0)?;
        // SAFETY: the exclusive lock is held, or no other process is there.
        unsafe { (*self.keys.get())[index] = *key };
        self.numbers[index].clear();
        self.numbers[index].since.store(now, Relaxed);
        self.hashes[index].store(hash, Release);
        Some(index)
    }

    /// Frees the entries of the other databases. Under the exclusive lock.
    fn retain(&self, keep: impl Fn(u32) -> bool) {
        for (index, key) in self.taken() {
            if !keep(key.database) {
                self.hashes[index].store(0, Release);
            }
        }
    }

    fn lines(&self, of: Option<u32>) -> Vec<StatisticsLine> {
        let wanted = self.taken().filter(|(_, key)| of.is_none_or(|database| key.database == database));
        let line = |(index, key): (usize, &StatisticsKey)| StatisticsLine {
            database: key.database,
            model: unpadded(&key.model),
            request_type: unpadded(&key.request_type),
            since: self.numbers[index].since.load(Relaxed),
            numbers: self.numbers[index].read(),
        };
        let mut lines: Vec<StatisticsLine> = wanted.map(line).collect();
        let since = self.beyond.since.load(Relaxed);
        if of.is_none() && since != 0 {
            let (model, request_type) = (OTHER.to_owned(), OTHER.to_owned());
            lines.push(StatisticsLine {
                database: 0,
                model,
                request_type,
                since,
                numbers: self.beyond.read(),
            });
        }
        lines.sort_by(|a, b| {
            (a.database, &a.model, &a.request_type).cmp(&(b.database, &b.model, &b.request_type))
        });
        lines
    }

    /// Takes in an entry of the file, before any process is there.
    fn restore(&self, line: &StatisticsLine) {
        let numbers = if line.database == 0 {
            self.beyond.since.store(line.since, Relaxed);
            &self.beyond
        } else {
            let key = StatisticsKey::new(line.database, &line.model, &line.request_type);
            let Some(index) = self.find_or_make(&key, ENTRIES_OF_ONE * 2, line.since) else { return };
            &self.numbers[index]
        };
        for (number, value) in numbers.numbers.iter().zip(line.numbers) {
            number.store(value, Relaxed);
        }
    }
}
