//! Reads a cache file.
//!
//! Invariant: the file can be anything. Only a plain table of this name is read, no view, virtual table or
//! generated column, so that no expression of the file is ever evaluated; memory, lengths and rows are
//! limited, and the caller is asked again and again whether to go on.

use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, OpenFlags};

use super::{CacheFileEntry, Error, Reason, RefusedRow};
use crate::key::{self, Coding};
use crate::pickle::{self, MAX_TEXT_BYTES, PickleValue};

/// Bytes of one value at most: a text with what a pickle puts around it.
const MAX_VALUE_BYTES: i32 = MAX_TEXT_BYTES as i32 + (1 << 20);
/// Memory that SQLite may take in this process.
const MAX_HEAP_BYTES: i64 = 256 << 20;
/// SQLite's instructions between two questions whether to go on.
const STEPS: i32 = 10_000;
/// Fewer bytes than any row of the table takes.
const MIN_ROW_BYTES: u64 = 4;

/// An open cache file.
pub struct Reader {
    connection: Connection,
    coding: Coding,
    max_rows: u64,
}

impl Reader {
    /// Opens the file at `path`, which nobody else writes meanwhile: it is read without locks, and without a
    /// write-ahead log that may lie beside it. Reading ends with [`Error::Stopped`] soon after `is_stopped`
    /// has become true.
    ///
    /// # Errors
    ///
    /// It is no SQLite file, is damaged, or does not have the table.
    pub fn open(path: &Path, is_stopped: impl FnMut() -> bool + Send + 'static) -> Result<Self, Error> {
        let uri = format!("file:{}?immutable=1", escaped(path));
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
            | OpenFlags::SQLITE_OPEN_URI
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_PRIVATE_CACHE;
        let mut connection = Connection::open_with_flags(uri, flags)?;
        connection.progress_handler(STEPS, Some(is_stopped))?;
        restrict(&connection)?;
        check_table(&connection)?;
        let coding = coding(&connection)?;
        let file_bytes = std::fs::metadata(path).map(|metadata| metadata.len()).unwrap_or(0);
        Ok(Reader { connection, coding, max_rows: file_bytes / MIN_ROW_BYTES })
    }

    /// The form of its keys: Base64 if most of them can be that. The others are as they are.
    pub fn coding(&self) -> Coding {
        self.coding
    }

    /// Calls `each` with every row, in the order in which they were written first.
    ///
    /// # Errors
    ///
    /// The file is damaged; or whatever `each` returns.
    pub fn read<E: From<Error>>(
        &self,
        mut each: impl FnMut(Result<CacheFileEntry, RefusedRow>) -> Result<(), E>,
    ) -> Result<(), E> {
        let sql = "select rowid, key, value, frequency, last_access from main.cache not indexed";
        let mut statement = self.connection.prepare(sql).map_err(Error::from)?;
        let mut rows = statement.query(()).map_err(Error::from)?;
        let mut count = 0;
        while let Some(row) = rows.next().map_err(Error::from)? {
            count += 1;
            if count > self.max_rows {
                return Err(Error::Endless.into());
            }
            let id = row.get(0).map_err(Error::from)?;
            let entry = self.entry(row)?;
            each(entry.map_err(|reason| RefusedRow { row: id, reason }))?;
        }
        Ok(())
    }

    fn entry(&self, row: &rusqlite::Row<'_>) -> Result<Result<CacheFileEntry, Reason>, Error> {
        let column = |index| row.get_ref(index).map_err(Error::from);
        Ok(entry(self.coding, column(1)?, column(2)?, column(3)?, column(4)?))
    }
}

fn entry(
    coding: Coding,
    key: ValueRef<'_>,
    value: ValueRef<'_>,
    frequency: ValueRef<'_>,
    last_access: ValueRef<'_>,
) -> Result<CacheFileEntry, Reason> {
    let key = match key {
        ValueRef::Text(key) => std::str::from_utf8(key).map_err(|_| crate::key::Error::Unreadable)?,
        _ => return Err(Reason::Type("key")),
    };
    let ValueRef::Blob(value) = value else { return Err(Reason::Type("value")) };
    let frequency = match frequency {
        ValueRef::Integer(frequency) => frequency.max(1),
        ValueRef::Null => 1,
        _ => return Err(Reason::Type("frequency")),
    };
    let last_access_us = match last_access {
        ValueRef::Integer(time) => microseconds(time),
        // The number is one of seconds, as Python's `time.time()` gives it.
        ValueRef::Real(time) => (time * 1e6) as i64,
        _ => return Err(Reason::Type("last_access")),
    };
    let value = pickle::read(value)?;
    let coding = if Coding::is_base64(key) { coding } else { Coding::Plain };
    let key = match value {
        PickleValue::Text(_) => coding.generation(key)?,
        PickleValue::Vector(_) => coding.embedding(key)?,
    };
    Ok(CacheFileEntry { key, value, frequency, last_access_us: last_access_us.max(0) })
}

/// SteadyText writes microseconds; a number that would mean the first day of 1970 is of seconds, one that
/// would mean its first three years of milliseconds.
fn microseconds(time: i64) -> i64 {
    match time.unsigned_abs() {
        0..100_000_000_000 => time * 1_000_000,
        100_000_000_000..100_000_000_000_000 => time * 1_000,
        _ => time,
    }
}

fn restrict(connection: &Connection) -> Result<(), Error> {
    for (setting, on) in [
        (DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true),
        (DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false),
        (DbConfig::SQLITE_DBCONFIG_ENABLE_VIEW, false),
        (DbConfig::SQLITE_DBCONFIG_DQS_DML, false),
        (DbConfig::SQLITE_DBCONFIG_DQS_DDL, false),
    ] {
        connection.set_db_config(setting, on)?;
    }
    for (limit, value) in [
        (Limit::SQLITE_LIMIT_LENGTH, MAX_VALUE_BYTES),
        (Limit::SQLITE_LIMIT_SQL_LENGTH, 1 << 16),
        (Limit::SQLITE_LIMIT_COLUMN, 100),
        (Limit::SQLITE_LIMIT_EXPR_DEPTH, 100),
        (Limit::SQLITE_LIMIT_VDBE_OP, 100_000),
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
    ] {
        connection.set_limit(limit, value)?;
    }
    connection.execute_batch(&format!(
        "pragma hard_heap_limit = {MAX_HEAP_BYTES};
         pragma mmap_size = 0;
         pragma cache_size = -8192;
         pragma temp_store = memory;
         pragma cell_size_check = on;
         pragma query_only = on;"
    ))?;
    Ok(())
}

fn check_table(connection: &Connection) -> Result<(), Error> {
    let plain: i64 = connection.query_row(
        "select count(*) from main.sqlite_schema
         where name = 'cache' and type = 'table' and rootpage > 0 and sql like 'create table %'",
        (),
        |row| row.get(0),
    )?;
    if plain != 1 {
        return Err(Error::NoTable);
    }
    let mut wanted = vec!["key", "value", "frequency", "last_access"];
    let mut columns = connection.prepare("select name, hidden from pragma_table_xinfo('cache', 'main')")?;
    let mut rows = columns.query(())?;
    while let Some(row) = rows.next()? {
        let (name, hidden): (String, i64) = (row.get(0)?, row.get(1)?);
        if hidden == 0 {
            wanted.retain(|column| !column.eq_ignore_ascii_case(&name));
        }
    }
    if wanted.is_empty() { Ok(()) } else { Err(Error::NoTable) }
}

fn coding(connection: &Connection) -> Result<Coding, Error> {
    let mut keys = connection.prepare("select key from main.cache not indexed")?;
    let mut rows = keys.query(())?;
    let (mut base64, mut plain) = (0_u64, 0_u64);
    while let Some(row) = rows.next()? {
        match row.get_ref(0)? {
            // Both ways of writing have these as they are.
            ValueRef::Text(key) if std::str::from_utf8(key).is_ok_and(key::is_digest) => {}
            ValueRef::Text(key) if std::str::from_utf8(key).is_ok_and(Coding::is_base64) => base64 += 1,
            _ => plain += 1,
        }
    }
    Ok(if base64 > plain { Coding::Base64 } else { Coding::Plain })
}

/// A path as a part of a URI.
fn escaped(path: &Path) -> String {
    use std::os::unix::ffi::OsStrExt;
    path.as_os_str().as_bytes().iter().fold(String::new(), |mut uri, byte| {
        if byte.is_ascii_alphanumeric() || b"/._-".contains(byte) {
            uri.push(char::from(*byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
        uri
    })
}
