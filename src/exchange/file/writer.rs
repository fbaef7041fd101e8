//! Writes a cache file.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, Statement};

use super::{CacheFileEntry, Error};
use crate::key::Coding;
use crate::pickle::{self, PickleValue};

/// A cache file in the making. Dropped without [`Writer::finish`], it is of no use.
pub struct Writer {
    connection: Connection,
    coding: Coding,
}

impl Writer {
    /// Makes a file at `path`, where there is none yet or an empty one, whose keys are written as `coding`
    /// says. Nothing but this file is written.
    ///
    /// # Errors
    ///
    /// SQLite's.
    pub fn create(path: &Path, coding: Coding) -> Result<Self, Error> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_PRIVATE_CACHE;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.execute_batch(
            "pragma journal_mode = off;
             pragma synchronous = off;
             pragma locking_mode = exclusive;
             pragma temp_store = memory;
             pragma cache_size = -8192;
             begin;
             create table cache (
                 key text primary key,
                 value blob not null,
                 frequency integer default 1,
                 last_access integer not null,
                 size integer not null
             );
             create index idx_frecency on cache (frequency asc, last_access asc);",
        )?;
        Ok(Writer { connection, coding })
    }

    /// Prepares the statement that inserts the entries.
    ///
    /// # Errors
    ///
    /// SQLite's.
    pub fn sink(&self) -> Result<Sink<'_>, Error> {
        let statement = self.connection.prepare(
            "insert or replace into cache (key, value, frequency, last_access, size) values (?1, ?2, ?3, ?4, ?5)",
        )?;
        Ok(Sink { statement, coding: self.coding })
    }

    /// Completes the file.
    ///
    /// # Errors
    ///
    /// SQLite's.
    pub fn finish(self) -> Result<(), Error> {
        self.connection.execute_batch("commit")?;
        self.connection.close().map_err(|(_, error)| error.into())
    }
}

/// Takes the entries of a file.
pub struct Sink<'w> {
    statement: Statement<'w>,
    coding: Coding,
}

impl Sink<'_> {
    /// Adds an entry; one of the same key takes the place of an earlier one.
    ///
    /// # Errors
    ///
    /// SQLite's.
    pub fn add(&mut self, entry: &CacheFileEntry) -> Result<(), Error> {
        let value = match &entry.value {
            PickleValue::Text(text) => pickle::write_text(text),
            PickleValue::Vector(vector) => pickle::write_vector(vector),
        };
        let (key, size) = (self.coding.write(&entry.key), value.len() as i64);
        self.statement.execute((key, value, entry.frequency, entry.last_access_us, size))?;
        Ok(())
    }
}
