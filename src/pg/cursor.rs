//! A query that a user wrote, read piece by piece and unable to write.
//!
//! Invariant: the transaction is read-only while the user's query runs, and has its previous mode while it
//! does not.

use std::ffi::{CStr, CString};
use std::ptr;

use pgrx::{direct_function_call, pg_sys};

use super::error::PgError;
use super::memory::in_scratch;

/// Rows that are asked for at a time.
const ROWS_OF_FETCH: std::ffi::c_long = 64;
/// A piece ends with the row that takes it here, in rows or in bytes.
const ROWS_OF_PIECE: usize = 1024;
const BYTES_OF_PIECE: usize = 8 << 20;

/// The transaction is read-only as long as this lives. After an error that nobody catches it does not matter,
/// and a subtransaction that is rolled back has its own copy of what was before.
struct ReadOnly(bool);

impl ReadOnly {
    fn begin() -> Self {
        // SAFETY: a plain global of this process.
        unsafe {
            let before = pg_sys::XactReadOnly;
            pg_sys::XactReadOnly = true;
            ReadOnly(before)
        }
    }
}

impl Drop for ReadOnly {
    fn drop(&mut self) {
        // SAFETY: as above.
        unsafe { pg_sys::XactReadOnly = self.0 }
    }
}

/// Runs one `query` with the rights and the search path of the caller: `look` sees the names of its columns,
/// and then `take` its rows, as JSON objects, piece by piece. A piece is bounded, whatever the query returns.
///
/// # Errors
///
/// The errors of `look` and `take`. PostgreSQL's errors are raised: several statements (42P11), one that
/// writes or locks rows (0A000), a function in it that writes (25006).
pub(crate) fn read(
    query: &str,
    look: impl FnOnce(&[String]) -> Result<(), PgError>,
    mut take: impl FnMut(Vec<String>) -> Result<(), PgError>,
) -> Result<(), PgError> {
    let query = CString::new(query).map_err(|_| PgError::internal("a query contains a zero byte"))?;
    // SAFETY: SPI is connected and finished in pairs, and an error in between is cleaned up by the abort; the
    // portal is used until it is closed here, and nothing else knows it.
    unsafe {
        if pg_sys::SPI_connect() != pg_sys::SPI_OK_CONNECT as i32 {
            return Err(PgError::internal("SPI_connect failed"));
        }
        let portal = {
            let _read_only = ReadOnly::begin();
            pg_sys::SPI_cursor_open_with_args(
                ptr::null(),
                query.as_ptr(),
                0,
                ptr::null_mut(),
                ptr::null_mut(),
                ptr::null(),
                true,
                pg_sys::CURSOR_OPT_NO_SCROLL as i32,
            )
        };
        // Code of the user's, which rows are made of JSON by, may close what has a name.
        pg_sys::PinPortal(portal);
        look(&names((*portal).tupDesc))?;
        // Each piece is gone before the next one comes.
        while in_scratch(|| {
            let (rows, more) = piece(portal);
            if !rows.is_empty() {
                take(rows)?;
            }
            Ok::<bool, PgError>(more)
        })? {}
        pg_sys::UnpinPortal(portal);
        pg_sys::SPI_cursor_close(portal);
        pg_sys::SPI_finish();
    }
    Ok(())
}

/// # Safety
///
/// The descriptor of a portal that is open, or null.
unsafe fn names(descriptor: pg_sys::TupleDesc) -> Vec<String> {
    if descriptor.is_null() {
        return Vec::new();
    }
    // SAFETY: the caller's; attributes are as many as the descriptor says.
    unsafe {
        let count = usize::try_from((*descriptor).natts).unwrap_or(0);
        let name = |index: usize| {
            CStr::from_ptr(pg_sys::SPI_fname(descriptor, index as i32 + 1)).to_string_lossy().into_owned()
        };
        (0..count).map(name).collect()
    }
}

/// The next rows, and whether there may be more.
///
/// # Safety
///
/// SPI is connected, and the portal is open.
unsafe fn piece(portal: pg_sys::Portal) -> (Vec<String>, bool) {
    let _read_only = ReadOnly::begin();
    let (mut rows, mut bytes) = (Vec::new(), 0);
    while rows.len() < ROWS_OF_PIECE && bytes < BYTES_OF_PIECE {
        // SAFETY: the caller's; the rows belong to SPI until they are freed, and each is as its descriptor
        // says.
        unsafe {
            pg_sys::SPI_cursor_fetch(portal, true, ROWS_OF_FETCH);
            let (table, count) = (pg_sys::SPI_tuptable, pg_sys::SPI_processed as usize);
            if table.is_null() || count == 0 {
                return (rows, false);
            }
            let descriptor = pg_sys::BlessTupleDesc((*table).tupdesc);
            for index in 0..count {
                let row = in_scratch(|| {
                    let tuple = pg_sys::heap_copy_tuple_as_datum(*(*table).vals.add(index), descriptor);
                    direct_function_call::<String>(pg_sys::row_to_json, &[Some(tuple)]).unwrap_or_default()
                });
                bytes += row.len();
                rows.push(row);
            }
            pg_sys::SPI_freetuptable(table);
        }
    }
    (rows, true)
}
