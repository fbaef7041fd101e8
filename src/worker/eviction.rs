//! Trimming the cache: every `cache_eviction_interval` seconds the worker chooses entries to evict, and
//! removes them in short transactions, between which everything else goes on.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use super::protocol;
use crate::pg::catalog_cache::DatabaseConfig;
use crate::pg::error::PgError;

/// Entries chosen in one look at the cache.
const MAX_VICTIMS: i32 = 10_000;

/// The entries that are to be evicted, and when the worker looks again.
pub(super) struct Eviction {
    victims: VecDeque<(i64, i32)>,
    /// The choice was cut off by its limit.
    more: bool,
    last_look: Option<Instant>,
}

impl Eviction {
    /// The first look comes at once.
    pub(super) fn new() -> Self {
        Eviction { victims: VecDeque::new(), more: false, last_look: None }
    }

    /// The time that the worker may sleep. None if eviction is switched off.
    pub(super) fn pause(&self, config: &DatabaseConfig) -> Option<Duration> {
        if !config.cache_eviction_enabled {
            None
        } else if self.victims.is_empty() && !self.more {
            let interval = Duration::from_secs(config.cache_eviction_interval_s);
            Some(self.last_look.map_or(Duration::ZERO, |last| interval.saturating_sub(last.elapsed())))
        } else {
            Some(Duration::ZERO)
        }
    }

    /// Does one step, if one is due.
    ///
    /// # Errors
    ///
    /// The database's. The chosen entries are forgotten then, and the next ones are chosen after the
    /// interval.
    pub(super) fn step(&mut self, config: &DatabaseConfig) -> Result<(), PgError> {
        if self.pause(config) != Some(Duration::ZERO) {
            return Ok(());
        }
        let result = if self.victims.is_empty() { self.choose() } else { self.evict(config) };
        if result.is_err() {
            self.victims.clear();
            self.more = false;
            self.last_look = Some(Instant::now());
        }
        result
    }

    fn choose(&mut self) -> Result<(), PgError> {
        self.victims = protocol::plan_eviction(MAX_VICTIMS)?.into();
        self.more = self.victims.len() == MAX_VICTIMS as usize;
        self.last_look = Some(Instant::now());
        Ok(())
    }

    fn evict(&mut self, config: &DatabaseConfig) -> Result<(), PgError> {
        let count = self.victims.len().min(config.cache_eviction_batch_size);
        let batch: Vec<(i64, i32)> = self.victims.drain(..count).collect();
        let gone = protocol::evict(&batch)?;
        // Entries that stay because they are locked, or were used meanwhile, must not keep the worker busy.
        self.more &= gone > 0;
        Ok(())
    }
}
