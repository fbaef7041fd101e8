//! Writing entries of the cache into a file.

use std::fs::File;

use pgrx::prelude::*;
use serde_json::json;
use steadytext_exchange::file::{CacheFileEntry, Writer};
use steadytext_exchange::key::{Coding, Key};
use steadytext_exchange::pickle::PickleValue;

use super::super::audit::note_in_audit_log;
use super::of_file;
use crate::pg::catalog_cache::{self, Installation};
use crate::pg::error::PgError;
use crate::pg::exchange_dir::{self, ExchangePath, file_error};
use crate::pg::files::TemporaryFile;
use crate::pg::interrupts;
use crate::pg::privilege::{as_owner, current_user};
use crate::pg::spi::{self, Mode};

/// Entries of one query.
const BATCH: i32 = 200;
/// Bytes of them before the last one, at most.
const BATCH_BYTES: i64 = 16 << 20;

/// Options for writing a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct ExportOptions {
    /// An existing file may be replaced.
    pub(super) replace: bool,
    /// Whether entries that SteadyText does not look for are written, too.
    pub(super) all_entries: bool,
    /// The form of the keys.
    pub(super) coding: Coding,
}

/// The numbers of entries by their outcome.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ExportCounts {
    /// Written to the file.
    pub(super) exported: i64,
    /// Left out.
    pub(super) skipped: i64,
}

/// The coding of this name.
pub(super) fn coding(name: &str) -> Result<Coding, PgError> {
    match name {
        "base64" => Ok(Coding::Base64),
        "plain" => Ok(Coding::Plain),
        _ => Err(PgError::new(
            PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            format!("unrecognized key format \"{}\"", name.chars().take(63).collect::<String>()),
        )
        .hint("It must be base64, which SteadyText writes, or plain, as its first versions did.")),
    }
}

/// Exports the cache to `path`.
pub(super) fn run(path: &str, options: ExportOptions) -> Result<ExportCounts, PgError> {
    let installation = catalog_cache::installation()?;
    let caller = current_user();
    let target = ExchangePath::at(path)?;
    let file = TemporaryFile::create();
    let writer = Writer::create(file.path(), options.coding).map_err(|error| of_file(path, &error))?;
    let counts = as_owner(installation.owner, || write(path, &writer, &installation, options))?;
    writer.finish().map_err(|error| of_file(path, &error))?;
    let mut source = File::open(file.path())
        .map_err(|error| file_error("open", &file.path().to_string_lossy(), &error))?;
    let details = json!({
        "path": path, "replace": options.replace, "all_entries": options.all_entries,
        "exported": counts.exported, "skipped": counts.skipped,
    });
    as_owner(installation.owner, || note_in_audit_log(&installation, caller, "cache_export", details, None))?;
    // The last step, as it cannot be rolled back.
    target.put(&mut source, options.replace)?;
    Ok(counts)
}

fn write(
    path: &str,
    writer: &Writer,
    installation: &Installation,
    options: ExportOptions,
) -> Result<ExportCounts, PgError> {
    let mut counts = ExportCounts::default();
    let mut sink = writer.sink().map_err(|error| of_file(path, &error))?;
    let mut after = 0;
    loop {
        if interrupts::is_stop_pending() {
            return Err(exchange_dir::stopped());
        }
        let rows = read(installation, after, options)?;
        let Some((last, _)) = rows.last() else { return Ok(counts) };
        after = *last;
        for (_, entry) in rows {
            match entry {
                Some(entry) => {
                    sink.add(&entry).map_err(|error| of_file(path, &error))?;
                    counts.exported += 1;
                }
                None => counts.skipped += 1,
            }
        }
    }
}

/// The next rows of the table, each as its entry in the file or left out.
fn read(
    installation: &Installation,
    after: i64,
    options: ExportOptions,
) -> Result<Vec<(i64, Option<CacheFileEntry>)>, PgError> {
    let sql = format!(
        "select c.id, c.cache_key, c.prompt, c.eos_string, c.request_type, c.response, c.embedding::real[],
             c.access_count::bigint, (extract(epoch from c.last_accessed) * 1000000)::bigint
         from (
             -- The length of a TOASTed text is known without reading it.
             select t.*, sum(octet_length(t.prompt) + coalesce(octet_length(t.response), 0))
                 over (order by t.id rows between unbounded preceding and 1 preceding) as bytes_before
             from (select * from {}.steadytext_cache where id > $1 order by id limit $2) as t
         ) as c
         where coalesce(c.bytes_before, 0) < $3
         order by c.id",
        installation.schema
    );
    spi::query(&sql, vec![after.into(), BATCH.into(), BATCH_BYTES.into()], Mode::ReadOnly, |row| {
        (row.get(1).unwrap_or(i64::MAX), entry(row, options.all_entries))
    })
}

fn entry(row: &spi::Row, all_entries: bool) -> Option<CacheFileEntry> {
    let text = |column| row.get::<String>(column);
    let (cache_key, kind) = (text(2)?, text(5)?);
    let (is_embedding, is_generation) = (kind == "embed", kind == "generate");
    let default = (is_embedding || is_generation)
        .then(|| Key::of_entry(&cache_key, is_embedding, &text(3).unwrap_or_default(), text(4).as_deref()))
        .flatten();
    let other = || match is_embedding {
        true => Key::Embedding { digest: cache_key.clone(), text: None },
        false => Key::Generation { prompt: cache_key.clone(), eos_string: None },
    };
    let value = match text(6) {
        Some(text) => PickleValue::Text(text),
        None => PickleValue::Vector(row.get(7)?),
    };
    Some(CacheFileEntry {
        key: default.or_else(|| all_entries.then(other))?,
        value,
        frequency: row.get(8)?,
        last_access_us: row.get(9)?,
    })
}
