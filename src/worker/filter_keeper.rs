//! Fills the filter of the cache's keys from their index, in portions between which everything else goes on.
//!
//! It is filled when the worker starts, when the index has become another one, when the extension's tables or
//! settings have changed (the triggers of the cache may have been switched off for a while), and when it has
//! many keys of entries that are gone.

use std::time::{Duration, Instant};

use super::protocol;
use crate::pg::cache_filter::{self, Filter};
use crate::pg::cache_table::WalkedKeys;
use crate::pg::catalog_cache::{self, CacheTable};
use crate::pg::error::PgError;

/// A complete filter is filled anew at most this often.
const INTERVAL: Duration = Duration::from_secs(10);
/// Pause after a walk that failed.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// Keys that may be added to those with which it was complete, and their double, before it is filled anew.
const MORE_KEYS: u64 = 100_000;

/// The filter that has been filled, and the time of the next step.
pub(super) struct FilterKeeper {
    filter: Option<Filter>,
    walk: Option<FilterWalk>,
    /// The generation of the catalog cache when the last walk began.
    generation: u64,
    /// Time of the next step.
    next: Instant,
    /// Keys that it may have.
    most_keys: u64,
}

/// A walk through the index.
struct FilterWalk {
    table: CacheTable,
    after: Option<[u8; 32]>,
}

impl FilterKeeper {
    /// A keeper that begins with the first step.
    pub(super) fn new() -> FilterKeeper {
        FilterKeeper { filter: None, walk: None, generation: 0, next: Instant::now(), most_keys: 0 }
    }

    /// The time at which it goes on with what has begun; nothing wakes the worker to begin.
    pub(super) fn due(&self) -> Option<Instant> {
        self.walk.is_some().then_some(self.next)
    }

    /// Does one step, if one is due.
    ///
    /// # Errors
    ///
    /// The database's; the walk begins anew then.
    pub(super) fn step(&mut self, table: Option<CacheTable>) -> Result<(), PgError> {
        let now = Instant::now();
        let Some(table) = table else { return Ok(()) };
        if self.filter.is_none() {
            self.filter = cache_filter::take();
        }
        let Some(filter) = self.filter else { return Ok(()) };
        if self.walk.as_ref().is_some_and(|walk| walk.table != table) {
            self.walk = None;
        }
        if self.walk.is_none() && self.is_wanted(filter, table, now) {
            filter.empty();
            self.generation = catalog_cache::generation();
            self.walk = Some(FilterWalk { table, after: None });
            self.next = now;
        }
        let Some(walk) = self.walk.as_mut().filter(|_| now >= self.next) else { return Ok(()) };
        match protocol::fill_cache_filter(filter, walk.table, walk.after) {
            Ok(WalkedKeys::UpTo(key)) => walk.after = Some(key),
            Ok(WalkedKeys::Nowhere) => self.next = now + RETRY_INTERVAL,
            Ok(WalkedKeys::ToTheEnd) => {
                filter.complete(table.key_index);
                self.most_keys = filter.keys() * 2 + MORE_KEYS;
                self.walk = None;
                self.next = now + INTERVAL;
            }
            Err(error) => {
                self.walk = None;
                self.next = now + RETRY_INTERVAL;
                return Err(error);
            }
        }
        Ok(())
    }

    fn is_wanted(&self, filter: Filter, table: CacheTable, now: Instant) -> bool {
        !filter.is_complete(table.key_index)
            || now >= self.next
                && (self.generation != catalog_cache::generation() || filter.keys() > self.most_keys)
    }
}
