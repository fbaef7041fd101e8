//! Calls about the cache: new entries, counts of uses, and evictions.

use pgrx::prelude::*;
use serde_json::Value as Json;

use super::in_queue;
use crate::cache::NewEntry;
use crate::pg::access_counters::Accesses;
use crate::pg::cache_filter::Filter;
use crate::pg::cache_table::{self, WalkedKeys};
use crate::pg::catalog_cache::{self, CacheTable};
use crate::pg::error::PgError;
use crate::pg::spi::{self, Mode};

/// Keys that are added to the filter in one transaction: some milliseconds.
const FILTER_KEYS: usize = 20_000;

/// Puts answers into the cache, all of them or none. False: somebody has locked the table.
pub(in crate::worker) fn store_answers(entries: &[NewEntry]) -> Result<bool, PgError> {
    let column =
        |of: fn(&NewEntry) -> &String| entries.iter().map(|entry| of(entry).clone()).collect::<Vec<_>>();
    let responses: Vec<Option<String>> = entries.iter().map(|entry| entry.response.clone()).collect();
    let numbers: Vec<f32> = entries.iter().flat_map(|entry| entry.embedding.iter().copied()).collect();
    let lengths: Vec<i32> = entries.iter().map(|entry| entry.embedding.len() as i32).collect();
    let about: Vec<pgrx::JsonB> = entries
        .iter()
        .map(|entry| pgrx::JsonB(serde_json::from_str(&entry.about).unwrap_or(Json::Null)))
        .collect();
    in_queue("store answers in the cache", || {
        if !cache_is_free()? {
            return Ok(false);
        }
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
        .map(|_| true)
    })
}

/// Writes down how often entries of the cache were used, each of them given once. Returns those that somebody
/// has locked.
pub(in crate::worker) fn count_accesses(accesses: &[Accesses]) -> Result<Vec<i64>, PgError> {
    if accesses.is_empty() {
        return Ok(Vec::new());
    }
    let entries: Vec<i64> = accesses.iter().map(|accesses| accesses.entry).collect();
    let counts: Vec<i64> =
        accesses.iter().map(|accesses| i64::try_from(accesses.count).unwrap_or(i64::MAX)).collect();
    let last: Vec<Option<TimestampWithTimeZone>> =
        accesses.iter().map(|accesses| TimestampWithTimeZone::try_from(accesses.last).ok()).collect();
    in_queue("count uses of the cache", || {
        if !cache_is_free()? {
            return Ok(entries);
        }
        spi::query(
            "select steadytext.count_accesses($1, $2, $3)",
            vec![entries.clone().into(), counts.into(), last.into()],
            Mode::ReadWrite,
            |row| row.get::<i64>(1).unwrap_or_default(),
        )
    })
}

/// Whether the cache can be written without waiting for a lock on the whole table. Inside a transaction.
///
/// # Errors
///
/// 55000 if the extension is not installed.
fn cache_is_free() -> Result<bool, PgError> {
    Ok(catalog_cache::installation()?.cache.is_some_and(cache_table::can_write))
}

/// Adds the next portion of the cache's keys to its filter.
pub(in crate::worker) fn fill_cache_filter(
    filter: Filter,
    table: CacheTable,
    after: Option<[u8; 32]>,
) -> Result<WalkedKeys, PgError> {
    in_queue("fill the filter of the cache", || {
        Ok(cache_table::walk_keys(table, after, FILTER_KEYS, |key| filter.add(key)))
    })
}

/// The first `limit` entries that must go from the cache, with their access counts.
pub(in crate::worker) fn plan_eviction(limit: i32) -> Result<Vec<(i64, i32)>, PgError> {
    in_queue("plan eviction", || {
        if !cache_is_free()? {
            return Ok(Vec::new());
        }
        spi::query(
            "select id, access_count from steadytext.plan_eviction($1)",
            vec![limit.into()],
            Mode::ReadWrite,
            |row| (row.get(1).unwrap_or_default(), row.get(2).unwrap_or_default()),
        )
    })
}

/// Evicts entries that have not been used since they were chosen; returns how many are gone.
pub(in crate::worker) fn evict(victims: &[(i64, i32)]) -> Result<i32, PgError> {
    let (ids, counts): (Vec<i64>, Vec<i32>) = victims.iter().copied().unzip();
    in_queue("evict cache entries", || {
        if !cache_is_free()? {
            return Ok(0);
        }
        // An error at the commit would be out of the function's reach.
        spi::query("set constraints all immediate", vec![], Mode::ReadWrite, |_| ())?;
        let gone = spi::query_one(
            "select cardinality(steadytext.evict_entries($1, $2))",
            vec![ids.into(), counts.into()],
            Mode::ReadWrite,
            |row| row.get::<i32>(1),
        )?;
        Ok(gone.flatten().unwrap_or(0))
    })
}
