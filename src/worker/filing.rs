//! The worker's part in the cache: it looks answers up before it hands requests to the engine, and writes down what is new and what
//! was used.
//!
//! Invariant: no request waits for a write here, and none fails by it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use pgrx::JsonB;
use pgrx::prelude::*;
use serde_json::Value as Json;

use super::parts::Answer;
use super::protocol::in_queue;
use crate::cache::{Entry, Question};
use crate::pg::error::PgError;
use crate::pg::hits::{self, Hits};
use crate::pg::letters;
use crate::pg::shmem::Slot;
use crate::pg::spi::{self, Mode};
use crate::pg::transaction::transaction;

/// How often uses are written down.
const COUNT_INTERVAL: Duration = Duration::from_secs(1);
/// How soon that is tried again which failed for a reason that may pass.
const RETRY_INTERVAL: Duration = Duration::from_millis(250);
/// Entries written, and entries whose uses are, in one transaction.
const ENTRIES_AT_ONCE: usize = 256;
const COUNTS_AT_ONCE: usize = 1000;
/// Entries that wait to be written, at most; more are forgotten.
const MAX_ENTRIES: usize = 1024;

/// What waits to be written.
pub(super) struct Filing {
    slot: &'static Slot,
    entries: Vec<Entry>,
    hits: Vec<Hits>,
    store_at: Instant,
    count_at: Instant,
}

/// The answers that the cache has, in the order of the requests.
///
/// # Errors
///
/// The database's.
pub(super) fn look_up(questions: &[Option<&Question>]) -> Result<Vec<Option<Answer>>, PgError> {
    if questions.iter().all(Option::is_none) {
        return Ok(questions.iter().map(|_| None).collect());
    }
    transaction("look into the cache", || {
        let find = |question: &Option<&Question>| {
            let Some(question) = question else { return Ok(None) };
            let answer = question.answer()?;
            if answer.is_none() {
                hits::note_miss();
            }
            Ok(answer)
        };
        questions.iter().map(find).collect()
    })
}

impl Filing {
    /// Nothing waits.
    pub(super) fn new(slot: &'static Slot) -> Filing {
        let now = Instant::now();
        Filing { slot, entries: Vec::new(), hits: Vec::new(), store_at: now, count_at: now }
    }

    /// Adds what came of requests of the queue.
    pub(super) fn add(&mut self, entries: impl IntoIterator<Item = Entry>) {
        self.entries.extend(entries);
        self.entries.truncate(MAX_ENTRIES);
    }

    /// Writes what is due.
    ///
    /// # Errors
    ///
    /// The database's. What may work later is tried again then.
    pub(super) fn write(&mut self) -> Result<(), PgError> {
        let now = Instant::now();
        if now >= self.store_at {
            self.store()?;
        }
        if (now >= self.count_at && self.has_hits()) || hits::is_crowded() {
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
        while self.store()? {}
        self.count()
    }

    /// Forgets everything: the cache that it is about is gone, and the numbers of another one's entries begin anew.
    pub(super) fn forget(&mut self) {
        self.entries.clear();
        self.hits.clear();
        letters::forget(self.slot);
        hits::take(self.slot);
    }

    /// When there is something to write.
    pub(super) fn due(&self) -> Option<Instant> {
        let stores =
            (!self.entries.is_empty() || self.slot.letters.load(Relaxed) > 0).then_some(self.store_at);
        let counts = self.has_hits().then_some(self.count_at);
        stores.into_iter().chain(counts).min()
    }

    fn has_hits(&self) -> bool {
        !self.hits.is_empty() || self.slot.hits_wait.load(Relaxed)
    }

    /// Writes some entries; whether there may be more.
    fn store(&mut self) -> Result<bool, PgError> {
        let room = ENTRIES_AT_ONCE.saturating_sub(self.entries.len());
        let letters = letters::take(self.slot, room);
        self.entries.extend(letters.iter().filter_map(|letter| Entry::from_letter(letter)));
        if self.entries.is_empty() {
            return Ok(false);
        }
        let count = self.entries.len().min(ENTRIES_AT_ONCE);
        match store_apart(&self.entries[..count]) {
            Err(error) if error.is_transient() => {
                self.store_at = Instant::now() + RETRY_INTERVAL;
                Err(error)
            }
            // It would fail again.
            stored => {
                self.entries.drain(..count);
                stored.map(|()| true)
            }
        }
    }

    fn count(&mut self) -> Result<(), PgError> {
        self.count_at = Instant::now() + COUNT_INTERVAL;
        self.hits.extend(hits::take(self.slot));
        hits::add_up(&mut self.hits);
        let mut left = Vec::new();
        let mut failure = None;
        for part in self.hits.chunks(COUNTS_AT_ONCE) {
            match count(part) {
                Ok(locked) => left.extend(part.iter().filter(|hits| locked.contains(&hits.entry))),
                Err(error) => {
                    left.extend(part);
                    failure = Some(error);
                }
            }
        }
        self.hits = left;
        failure.map_or(Ok(()), Err)
    }
}

/// Stores entries, and forgets those whose key is in somebody's open transaction: the others must not wait for that.
fn store_apart(entries: &[Entry]) -> Result<(), PgError> {
    match store(entries) {
        Err(error) if error.code != PgSqlErrorCode::ERRCODE_LOCK_NOT_AVAILABLE => Err(error),
        Err(_) if entries.len() > 1 => {
            let (some, others) = entries.split_at(entries.len() / 2);
            store_apart(some)?;
            store_apart(others)
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

fn store(entries: &[Entry]) -> Result<(), PgError> {
    let column =
        |of: fn(&Entry) -> &String| entries.iter().map(|entry| of(entry).clone()).collect::<Vec<_>>();
    let responses: Vec<Option<String>> = entries.iter().map(|entry| entry.response.clone()).collect();
    let numbers: Vec<f32> = entries.iter().flat_map(|entry| entry.embedding.iter().copied()).collect();
    let lengths: Vec<i32> = entries.iter().map(|entry| entry.embedding.len() as i32).collect();
    let about: Vec<JsonB> =
        entries.iter().map(|entry| JsonB(serde_json::from_str(&entry.about).unwrap_or(Json::Null))).collect();
    in_queue("store answers in the cache", || {
        spi::query(
            "select steadytext.store_answers($1, $2, $3, $4, $5, $6)",
            vec![
                column(|entry| &entry.key).into(),
                column(|entry| &entry.prompt).into(),
                responses.into(),
                numbers.into(),
                lengths.into(),
                about.into(),
            ],
            Mode::ReadWrite,
            |_| (),
        )
        .map(|_| ())
    })
}

/// Takes each entry once. Returns those that somebody has locked.
fn count(hits: &[Hits]) -> Result<Vec<i64>, PgError> {
    if hits.is_empty() {
        return Ok(Vec::new());
    }
    let entries: Vec<i64> = hits.iter().map(|hits| hits.entry).collect();
    let counts: Vec<i64> = hits.iter().map(|hits| i64::try_from(hits.count).unwrap_or(i64::MAX)).collect();
    let last: Vec<Option<TimestampWithTimeZone>> =
        hits.iter().map(|hits| TimestampWithTimeZone::try_from(hits.last).ok()).collect();
    in_queue("count uses of the cache", || {
        spi::query(
            "select steadytext.count_accesses($1, $2, $3)",
            vec![entries.into(), counts.into(), last.into()],
            Mode::ReadWrite,
            |row| row.get::<i64>(1).unwrap_or_default(),
        )
    })
}
