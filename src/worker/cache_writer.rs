//! The worker's part in the cache: it looks answers up before it hands requests to the engine, and writes
//! down new answers and the uses of old ones.
//!
//! Invariant: no request waits for a write here, and none fails by it: the table is written only while nobody
//! has locked it, and a turn ends soon, whatever rows are locked.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use pgrx::prelude::*;

use super::claims::ClaimedRequest;
use super::prepare::PreparedRequest;
use super::protocol;
use crate::cache::{CacheQuestion, NewEntry};
use crate::pg::access_counters::{self, Accesses};
use crate::pg::cache_queue;
use crate::pg::error::PgError;
use crate::pg::shmem::Slot;
use crate::pg::transaction::transaction;
use crate::request::Answer;

/// Interval at which uses are written down.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);
/// Pause after an error that may pass.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// After this time a turn begins no further transaction.
const TURN: Duration = Duration::from_millis(50);
/// The time of the last turn, before the worker ends.
const LAST_TURN: Duration = Duration::from_millis(500);
/// Entries written, and entries whose uses are, in one transaction.
const ENTRIES_AT_ONCE: usize = 256;
const COUNTS_AT_ONCE: usize = 1000;
/// Entries that wait to be written, at most; more are forgotten.
const MAX_ENTRIES: usize = 1024;

/// The answers and uses that wait to be written.
pub(super) struct CacheWriter {
    slot: &'static Slot,
    entries: Vec<NewEntry>,
    /// Number of them that are stored together: fewer, the more of them cannot be.
    together: usize,
    accesses: Vec<Accesses>,
    store_at: Instant,
    count_at: Instant,
}

/// A claimed request as the cache sees it.
pub(super) struct CacheLookup<'a> {
    /// The key under which it is looked up; None if it must not be.
    question: Option<&'a CacheQuestion>,
    /// Whether this is its first attempt.
    is_new: bool,
}

impl<'a> CacheLookup<'a> {
    /// The question of a claimed request, if it could be prepared.
    pub(super) fn new(claimed: &ClaimedRequest, prepared: &'a Result<PreparedRequest, PgError>) -> Self {
        let question = prepared.as_ref().ok().and_then(|prepared| prepared.question.as_ref());
        CacheLookup { question, is_new: claimed.held.attempt <= 1 }
    }
}

/// The answers that the cache has, in the order of the requests.
///
/// # Errors
///
/// The database's.
pub(super) fn look_up(questions: &[CacheLookup<'_>]) -> Result<Vec<Option<Answer>>, PgError> {
    if questions.iter().all(|asking| asking.question.is_none()) {
        return Ok(questions.iter().map(|_| None).collect());
    }
    transaction("look into the cache", || {
        let find = |asking: &CacheLookup<'_>| {
            let Some(question) = asking.question else { return Ok(None) };
            let answer = question.answer();
            if answer.is_none() && asking.is_new {
                access_counters::count_miss();
            }
            Ok(answer)
        };
        questions.iter().map(find).collect()
    })
}

impl CacheWriter {
    /// A writer for which nothing waits.
    pub(super) fn new(slot: &'static Slot) -> CacheWriter {
        let now = Instant::now();
        CacheWriter {
            slot,
            entries: Vec::new(),
            together: ENTRIES_AT_ONCE,
            accesses: Vec::new(),
            store_at: now,
            count_at: now,
        }
    }

    /// Adds the answers to requests of the queue.
    pub(super) fn add(&mut self, entries: impl IntoIterator<Item = NewEntry>) {
        self.entries.extend(entries);
        let dropped = self.entries.len().saturating_sub(MAX_ENTRIES);
        self.slot.cache_dropped.fetch_add(dropped as u64, Relaxed);
        self.entries.truncate(MAX_ENTRIES);
    }

    /// Writes the entries and the counts of hits that are due.
    ///
    /// # Errors
    ///
    /// The database's. Errors that may pass are followed by another try at the next call.
    pub(super) fn write(&mut self) -> Result<(), PgError> {
        let now = Instant::now();
        if now >= self.store_at {
            self.store()?;
        }
        if (now >= self.count_at && self.has_accesses()) || access_counters::is_crowded(self.slot) {
            self.count()?;
        }
        Ok(())
    }

    /// Writes everything, before the worker ends.
    ///
    /// # Errors
    ///
    /// The database's.
    pub(super) fn write_all(&mut self) -> Result<(), PgError> {
        let until = Instant::now() + LAST_TURN;
        let left = |writer: &CacheWriter| {
            writer.entries.len() + writer.slot.cache_queue_length.load(Relaxed) as usize
        };
        while left(self) > 0 && Instant::now() < until {
            let before = left(self);
            self.store()?;
            // Somebody has locked the table.
            if left(self) == before {
                break;
            }
        }
        self.count()
    }

    /// Forgets everything: the cache that it is about is gone, and the numbers of another one's entries begin
    /// anew.
    pub(super) fn forget(&mut self) {
        self.entries.clear();
        self.accesses.clear();
        cache_queue::forget(self.slot);
        access_counters::take(self.slot);
    }

    /// The time at which there is something to write.
    pub(super) fn due(&self) -> Option<Instant> {
        let stores = (!self.entries.is_empty() || self.slot.cache_queue_length.load(Relaxed) > 0)
            .then_some(self.store_at);
        let counts = self.has_accesses().then_some(self.count_at);
        stores.into_iter().chain(counts).min()
    }

    fn has_accesses(&self) -> bool {
        !self.accesses.is_empty() || self.slot.accesses_wait.load(Relaxed)
    }

    /// Writes some entries; whether there may be more.
    fn store(&mut self) -> Result<bool, PgError> {
        let room = ENTRIES_AT_ONCE.saturating_sub(self.entries.len());
        let messages = cache_queue::take(self.slot, room);
        self.entries.extend(messages.iter().filter_map(|message| NewEntry::from_message(message)));
        if self.entries.is_empty() {
            return Ok(false);
        }
        let count = self.entries.len().min(ENTRIES_AT_ONCE);
        let (done, failure) = self.store_apart(count, Instant::now() + TURN);
        self.entries.drain(..done);
        if done < count {
            self.store_at = Instant::now() + RETRY_INTERVAL;
        }
        failure.map_or(Ok(done == count), Err)
    }

    /// Stores the first `count` entries. Of some that cannot be stored together, fewer are tried, and one
    /// that cannot be stored by itself is forgotten: its key may be in somebody's open transaction, and the
    /// others must not wait for that. Returns how many are done with, and the error if one stopped it. The
    /// remaining entries can be tried again.
    fn store_apart(&mut self, count: usize, until: Instant) -> (usize, Option<PgError>) {
        let (mut done, mut failure) = (0, None);
        while done < count && Instant::now() < until {
            let some = &self.entries[done..count.min(done + self.together)];
            match protocol::store_answers(some) {
                Ok(true) => {
                    done += some.len();
                    self.together = (self.together * 2).min(ENTRIES_AT_ONCE);
                }
                Ok(false) => break,
                Err(error)
                    if error.is_transient() && error.code != PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE =>
                {
                    return (done, Some(error));
                }
                Err(_) if some.len() > 1 => self.together = some.len() / 2,
                Err(error) => {
                    done += 1;
                    self.slot.cache_dropped.fetch_add(1, Relaxed);
                    if !error.is_transient() {
                        failure.get_or_insert(error);
                    }
                }
            }
        }
        (done, failure)
    }

    fn count(&mut self) -> Result<(), PgError> {
        self.count_at = Instant::now() + COUNT_INTERVAL;
        self.accesses.extend(access_counters::take(self.slot));
        access_counters::add_up(&mut self.accesses);
        let until = Instant::now() + TURN;
        let mut left = Vec::new();
        let mut failure = None;
        for part in self.accesses.chunks(COUNTS_AT_ONCE) {
            if Instant::now() >= until {
                left.extend(part);
                continue;
            }
            match protocol::count_accesses(part) {
                Ok(locked) => left.extend(part.iter().filter(|accesses| locked.contains(&accesses.entry))),
                Err(error) => {
                    left.extend(part);
                    failure = Some(error);
                }
            }
        }
        self.accesses = left;
        failure.map_or(Ok(()), Err)
    }
}
