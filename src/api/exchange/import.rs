//! Reading a file's entries into the cache.

use std::fs::OpenOptions;

use pgrx::prelude::*;
use serde_json::json;
use steadytext_exchange::file::{self, CacheFileEntry, Reader, RefusedRow};
use steadytext_exchange::key::Key;
use steadytext_exchange::pickle::PickleValue;

use super::super::audit::note_in_audit_log;
use super::of_file;
use crate::pg::catalog_cache::{self, Installation};
use crate::pg::error::PgError;
use crate::pg::exchange_dir::{ExchangePath, file_error};
use crate::pg::files::TemporaryFile;
use crate::pg::privilege::{as_owner, current_user};
use crate::pg::spi::{self, Arg, Mode};
use crate::pg::{guc, interrupts, memory};

/// Entries of one INSERT.
const BATCH: usize = 500;
/// Bytes of keys and values of one INSERT, about.
const BATCH_BYTES: usize = 8 << 20;
/// Refused rows that have a message each.
const REPORTED: i64 = 5;

/// The numbers of a file's rows by their outcome.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ImportCounts {
    /// Written to the cache.
    pub(super) imported: i64,
    /// The cache had an entry of this key.
    pub(super) skipped: i64,
    /// No entries.
    pub(super) refused: i64,
}

/// The errors that stop an import.
enum ImportError {
    File(file::Error),
    Database(PgError),
}

impl From<file::Error> for ImportError {
    fn from(error: file::Error) -> Self {
        ImportError::File(error)
    }
}

/// Imports the file at `path`. With `replace`, its entries take the place of those that the cache has.
pub(super) fn run(path: &str, replace: bool) -> Result<ImportCounts, PgError> {
    let installation = catalog_cache::installation()?;
    let caller = current_user();
    let source = ExchangePath::at(path)?;
    let copy = TemporaryFile::create();
    let mut temporary = OpenOptions::new()
        .write(true)
        .open(copy.path())
        .map_err(|error| file_error("open", &copy.path().to_string_lossy(), &error))?;
    source.copy_to(&mut temporary)?;
    drop(temporary);
    if source.has_beside("-wal") {
        PgError::new(
            PgSqlErrorCode::ERRCODE_WARNING,
            format!("cache file \"{path}\" has a write-ahead log beside it, whose entries are not imported"),
        )
        .hint("Close the program that writes it, or copy it with SQLite's .backup command, and import again.")
        .report(PgLogLevel::WARNING);
    }
    let reader =
        Reader::open(copy.path(), interrupts::is_stop_pending).map_err(|error| of_file(path, &error))?;
    as_owner(installation.owner, || {
        lock(&installation)?;
        let counts = read(&reader, &installation, replace).map_err(|stop| match stop {
            ImportError::File(error) => of_file(path, &error),
            ImportError::Database(error) => error,
        })?;
        let details = json!({
            "path": path, "replace": replace,
            "imported": counts.imported, "skipped": counts.skipped, "refused": counts.refused,
        });
        note_in_audit_log(&installation, caller, "cache_import", details, None)?;
        Ok(counts)
    })
}

fn read(reader: &Reader, installation: &Installation, replace: bool) -> Result<ImportCounts, ImportError> {
    let mut counts = ImportCounts::default();
    let mut batch = Batch::default();
    reader.read(|row: Result<CacheFileEntry, RefusedRow>| {
        if interrupts::is_stop_pending() {
            return Err(ImportError::File(file::Error::Stopped));
        }
        match row {
            Ok(entry) => batch.add(entry),
            Err(refusal) => {
                counts.refused += 1;
                if counts.refused <= REPORTED {
                    let message = format!("an entry is refused: {refusal}");
                    PgError::new(PgSqlErrorCode::ERRCODE_SUCCESSFUL_COMPLETION, message)
                        .report(PgLogLevel::NOTICE);
                }
            }
        }
        if batch.is_full() { batch.write(installation, replace, &mut counts) } else { Ok(()) }
    })?;
    batch.write(installation, replace, &mut counts)?;
    Ok(counts)
}

/// The columns of entries on their way into the table.
#[derive(Default)]
struct Batch {
    keys: Vec<String>,
    prompts: Vec<String>,
    types: Vec<&'static str>,
    stops: Vec<Option<String>>,
    responses: Vec<Option<String>>,
    numbers: Vec<f32>,
    /// Number of these that belong to each entry.
    lengths: Vec<i32>,
    frequencies: Vec<i32>,
    last_accesses_us: Vec<i64>,
    bytes: usize,
}

impl Batch {
    fn add(&mut self, entry: CacheFileEntry) {
        let key = entry.key.cache_key();
        let (kind, prompt, stop) = match entry.key {
            Key::Generation { prompt, eos_string } => ("generate", prompt, eos_string),
            // A file that gives the checksum only does not tell the text.
            Key::Embedding { text, .. } => ("embed", text.unwrap_or_default(), None),
        };
        self.bytes += key.len() + prompt.len();
        match entry.value {
            PickleValue::Text(text) => {
                self.bytes += text.len();
                self.lengths.push(0);
                self.responses.push(Some(text));
            }
            PickleValue::Vector(vector) => {
                self.bytes += size_of_val(&vector[..]);
                self.lengths.push(i32::try_from(vector.len()).unwrap_or(i32::MAX));
                self.numbers.extend(vector);
                self.responses.push(None);
            }
        }
        self.keys.push(key);
        self.prompts.push(prompt);
        self.types.push(kind);
        self.stops.push(stop);
        self.frequencies.push(i32::try_from(entry.frequency).unwrap_or(i32::MAX));
        self.last_accesses_us.push(entry.last_access_us);
    }

    fn is_full(&self) -> bool {
        self.keys.len() >= BATCH || self.bytes >= BATCH_BYTES
    }

    fn write(
        &mut self,
        installation: &Installation,
        replace: bool,
        counts: &mut ImportCounts,
    ) -> Result<(), ImportError> {
        let batch = std::mem::take(self);
        let given = batch.keys.len() as i64;
        if given == 0 {
            return Ok(());
        }
        let written = memory::in_scratch(|| {
            let args = vec![
                batch.keys.into(),
                batch.prompts.into(),
                batch.types.into(),
                batch.stops.into(),
                batch.responses.into(),
                Arg::reals(&batch.numbers),
                batch.lengths.into(),
                batch.frequencies.into(),
                batch.last_accesses_us.into(),
            ];
            spi::query(&insert(installation, replace), args, Mode::ReadWrite, |_| ())
        });
        let written = written.map_err(ImportError::Database)?.len() as i64;
        counts.imported += written;
        counts.skipped += given - written;
        Ok(())
    }
}

/// Two imports wait for each other here; the worker that writes single answers sorts them as a batch does,
/// and waits for no lock long. Vacuum waits, too, and autovacuum gives way.
fn lock(installation: &Installation) -> Result<(), PgError> {
    let sql = format!("lock table {}.steadytext_cache in share update exclusive mode", installation.schema);
    spi::query(&sql, vec![], Mode::ReadWrite, |_| ()).map(|_| ())
}

/// In the order of the keys' checksums. Of the same key twice in a batch, the one that comes first counts.
/// Without `replace`, only what no longer answers gives way.
fn insert(installation: &Installation, replace: bool) -> String {
    // A row that stays is not even locked.
    let kernel_version = guc::backend().kernel_version();
    let is_wanted = format!(
        "not exists (
             select from {}.steadytext_cache as c
             where c.key_hash = g.hash and (c.imported or c.kernel_version = {kernel_version})
         )",
        installation.schema
    );
    format!(
        "with given as (
             select distinct on (g.hash) g.*
             from (
                 select u.*, steadytext.cache_key_hash(u.key) as hash,
                     sum(u.length) over (order by u.n rows unbounded preceding)::integer as last
                 from unnest($1::text[], $2::text[], $3::text[], $4::text[], $5::text[], $7::integer[], $8::integer[], $9::bigint[])
                     with ordinality as u(key, prompt, type, stop, response, length, frequency, last_access_us, n)
             ) as g
             order by g.hash, g.n
         )
         insert into {schema}.steadytext_cache as c
             (cache_key, prompt, request_type, eos_string, response, embedding, access_count, last_accessed, response_size, imported)
         select g.key, g.prompt, g.type, g.stop, g.response,
             case when g.length > 0 then ($6::real[])[g.last - g.length + 1 : g.last] end,
             g.frequency,
             least(to_timestamp(least(g.last_access_us / 1000000.0, 32503680000)), now()),
             coalesce(octet_length(g.response), g.length * 4),
             true
         from given as g
         where {replace} or {is_wanted}
         order by g.hash
         on conflict (key_hash) do update set
             prompt = case when excluded.prompt = '' then c.prompt else excluded.prompt end,
             response = excluded.response, embedding = excluded.embedding,
             access_count = greatest(c.access_count, excluded.access_count),
             last_accessed = greatest(c.last_accessed, excluded.last_accessed),
             created_at = excluded.created_at, model_name = null, model_size = null, seed = null,
             eos_string = excluded.eos_string, generation_params = null,
             response_size = excluded.response_size, generation_time_ms = null,
             request_type = excluded.request_type, model_hash = null, kernel_version = null, imported = true
         where {replace} or not c.imported and c.kernel_version is distinct from {kernel_version}
         returning 1",
        schema = installation.schema
    )
}
