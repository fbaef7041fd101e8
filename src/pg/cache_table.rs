//! Looks an answer up in steadytext_cache: one descent of its index, without planner, executor or a change of
//! role.
//!
//! It must work for every caller, also for one that may not read the table, and in read-only transactions,
//! parallel workers and standbys. So nothing here runs code of any user's: no trigger, policy, operator or
//! view stands between the index and the row.
//!
//! Invariant: nothing is written, no lock outlives the look-up, and no look-up waits for one: behind `VACUUM
//! FULL`, REINDEX or a DDL statement there is no answer, and the engine computes it.

use std::cell::Cell;
use std::ffi::CStr;

use pgrx::pg_sys;

use super::cache_filter;
use super::catalog_cache::CacheTable;
use super::transaction::in_parallel_query;

/// The origin of an entry, which decides whether it answers.
#[derive(Debug)]
pub(crate) struct Provenance {
    /// `generate`, `embed`, …
    pub(crate) request_type: String,
    /// The checksum of the model that answered, in hexadecimal digits.
    pub(crate) model_hash: Option<String>,
    /// The kernel version of the engine that answered.
    pub(crate) kernel_version: Option<i32>,
    /// An administrator brought it.
    pub(crate) imported: bool,
}

/// The answer of an entry, in the memory that was current before the look.
pub(crate) struct CachedAnswer {
    /// steadytext_cache.id.
    pub(crate) entry: i64,
    /// A text.
    pub(crate) response: Option<pg_sys::Datum>,
    /// A value of type vector.
    pub(crate) embedding: Option<pg_sys::Datum>,
}

impl CachedAnswer {
    /// The text.
    pub(crate) fn text(&self) -> Option<String> {
        // SAFETY: a text that was copied out of its row.
        self.response.and_then(|datum| unsafe { pgrx::FromDatum::from_datum(datum, false) })
    }

    /// The vector's elements.
    pub(crate) fn vector(&self) -> Option<Vec<f32>> {
        /// Bytes before the elements of pgvector's values on disk: two bytes of dimension, and two that are
        /// not used.
        const HEADER_BYTES: usize = 4;
        // SAFETY: a value of variable length that was copied out of its row, uncompressed.
        let bytes = unsafe {
            let value: *mut pg_sys::varlena = self.embedding?.cast_mut_ptr();
            let data: *const u8 = pgrx::varlena::vardata_any(value).cast();
            std::slice::from_raw_parts(data, pgrx::varlena::varsize_any_exhdr(value))
        };
        let (header, elements) = bytes.split_at_checked(HEADER_BYTES)?;
        let dimension = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let (elements, rest) = elements.as_chunks::<4>();
        let elements: Vec<f32> = elements.iter().map(|bytes| f32::from_ne_bytes(*bytes)).collect();
        (rest.is_empty() && elements.len() == dimension).then_some(elements)
    }
}

/// The columns that are read.
#[derive(Debug, Clone, Copy)]
enum CacheColumn {
    Id,
    Response,
    Embedding,
    RequestType,
    ModelHash,
    KernelVersion,
    Imported,
    KeyHash,
}

impl CacheColumn {
    const NAMES: [&CStr; 8] = [
        c"id",
        c"response",
        c"embedding",
        c"request_type",
        c"model_hash",
        c"kernel_version",
        c"imported",
        c"key_hash",
    ];
    /// Their types; `None` is vector's.
    const TYPES: [Option<pg_sys::Oid>; 8] = [
        Some(pg_sys::INT8OID),
        Some(pg_sys::TEXTOID),
        None,
        Some(pg_sys::TEXTOID),
        Some(pg_sys::TEXTOID),
        Some(pg_sys::INT4OID),
        Some(pg_sys::BOOLOID),
        Some(pg_sys::BYTEAOID),
    ];
}

/// The places of the columns.
#[derive(Debug, Clone, Copy)]
struct CacheColumns {
    table: pg_sys::Oid,
    /// [`super::catalog_cache::generation`] when they were found.
    generation: u64,
    numbers: [pg_sys::AttrNumber; CacheColumn::NAMES.len()],
}

impl CacheColumns {
    /// `None` where one of them is missing or of another type: somebody has changed the table.
    fn of(table: pg_sys::Oid) -> Option<CacheColumns> {
        thread_local! {
            static KNOWN: Cell<Option<CacheColumns>> = const { Cell::new(None) };
        }
        let generation = super::catalog_cache::generation();
        let is_current = |known: &CacheColumns| known.table == table && known.generation == generation;
        if let Some(known) = KNOWN.get().filter(is_current) {
            return Some(known);
        }
        // SAFETY: catalog look-ups.
        let numbers = CacheColumn::NAMES.map(|name| unsafe { pg_sys::get_attnum(table, name.as_ptr()) });
        let fits = |(number, kind): (&pg_sys::AttrNumber, Option<pg_sys::Oid>)| {
            // SAFETY: a catalog look-up.
            let of = unsafe { pg_sys::get_atttype(table, *number) };
            // Type vector is not known by its number, but its values are of variable length.
            // SAFETY: a catalog look-up.
            let is_varying = || unsafe { pg_sys::get_typlen(of) == -1 };
            *number > 0 && kind.map_or_else(is_varying, |kind| kind == of)
        };
        if !numbers.iter().zip(CacheColumn::TYPES).all(fits) {
            return None;
        }
        let columns = CacheColumns { table, generation, numbers };
        KNOWN.set(Some(columns));
        Some(columns)
    }

    fn number(&self, column: CacheColumn) -> pg_sys::AttrNumber {
        self.numbers[column as usize]
    }
}

/// Whether rows of the table can be written now without waiting for a lock on it or its index; they are held
/// until the transaction ends.
pub(crate) fn can_write(table: CacheTable) -> bool {
    let lock = pg_sys::RowExclusiveLock as pg_sys::LOCKMODE;
    // SAFETY: inside a transaction, as its callers are.
    unsafe {
        pg_sys::ConditionalLockRelationOid(table.table, lock)
            && pg_sys::ConditionalLockRelationOid(table.key_index, lock)
    }
}

/// The entry of a key, if there is one that `accept` takes. Inside a transaction.
pub(crate) fn find(
    table: CacheTable,
    key_hash: &[u8; 32],
    accept: impl FnOnce(&Provenance) -> bool,
) -> Option<CachedAnswer> {
    if cache_filter::excludes(table.key_index, key_hash) {
        return None;
    }
    let columns = CacheColumns::of(table.table)?;
    // SAFETY: as the functions of PostgreSQL's own catalogs do it; everything is closed in reverse order, and
    // by the abort after an error.
    unsafe {
        let key = pgrx::IntoDatum::into_datum(key_hash.as_slice())?;
        let relation = Open::relation(table.table)?;
        // The scan would wait for it, while somebody rebuilds the index.
        let index = Open::relation(table.key_index)?;
        if !index.is_key_of(&relation, &columns) {
            return None;
        }
        let mut scan_key: pg_sys::ScanKeyData = std::mem::zeroed();
        pg_sys::ScanKeyInit(
            &mut scan_key,
            columns.number(CacheColumn::KeyHash),
            pg_sys::BTEqualStrategyNumber as pg_sys::StrategyNumber,
            pg_sys::Oid::from(pg_sys::F_BYTEAEQ),
            key,
        );
        // Most requests are new: whether the index knows the key at all is asked without a snapshot.
        if !index.has(&relation, &scan_key) {
            return None;
        }
        // The latest one, whatever the caller's isolation level: an answer does not depend on when it was
        // computed. Within a parallel query the query's own must do.
        let snapshot = match in_parallel_query() {
            true => pg_sys::GetActiveSnapshot(),
            false => pg_sys::GetLatestSnapshot(),
        };
        let snapshot = pg_sys::RegisterSnapshot(snapshot);
        let scan = pg_sys::systable_beginscan(relation.0, table.key_index, true, snapshot, 1, &mut scan_key);
        let tuple = pg_sys::systable_getnext(scan);
        let found = (!tuple.is_null()).then(|| CacheRow { tuple, descriptor: (*relation.0).rd_att, columns });
        let found = found.filter(|row| accept(&row.provenance()) && row.can_be_fetched(&relation));
        let found = found.and_then(|row| row.found());
        pg_sys::systable_endscan(scan);
        pg_sys::UnregisterSnapshot(snapshot);
        found
    }
}

/// The progress of a walk through the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WalkedKeys {
    /// The last key that it met.
    UpTo([u8; 32]),
    /// The index has no more entries.
    ToTheEnd,
    /// Nowhere: somebody has locked the table or its index.
    Nowhere,
}

/// Calls `take` with the keys of the index behind `after`, `most` of them at most: also those of rows that
/// nobody sees yet, or any more. Inside a transaction.
pub(crate) fn walk_keys(
    table: CacheTable,
    after: Option<[u8; 32]>,
    most: usize,
    mut take: impl FnMut(&[u8; 32]),
) -> WalkedKeys {
    let Some(columns) = CacheColumns::of(table.table) else { return WalkedKeys::Nowhere };
    let Some(relation) = Open::relation(table.table) else { return WalkedKeys::Nowhere };
    let index = Open::relation(table.key_index).filter(|index| index.is_key_of(&relation, &columns));
    let Some(index) = index else { return WalkedKeys::Nowhere };
    // SAFETY: both are open and locked; no row is fetched, so that it does not matter which ones the snapshot
    // would show. The tuple is that of the index, which has no more columns than an index may have, beside
    // its key those that it includes; it is valid until the next one.
    unsafe {
        let mut scan_key: pg_sys::ScanKeyData = std::mem::zeroed();
        let count = i32::from(after.is_some());
        if let Some(after) = after {
            pg_sys::ScanKeyInit(
                &mut scan_key,
                1,
                pg_sys::BTGreaterStrategyNumber as pg_sys::StrategyNumber,
                pg_sys::Oid::from(pg_sys::F_BYTEAGT),
                pgrx::IntoDatum::into_datum(after.as_slice()).unwrap_or(pg_sys::Datum::null()),
            );
        }
        let snapshot = &raw mut pg_sys::SnapshotAnyData;
        #[cfg(not(feature = "pg18"))]
        let scan = pg_sys::index_beginscan(relation.0, index.0, snapshot, count, 0);
        #[cfg(feature = "pg18")]
        let scan = pg_sys::index_beginscan(relation.0, index.0, snapshot, std::ptr::null_mut(), count, 0);
        (*scan).xs_want_itup = true;
        let scan_keys = if count == 0 { std::ptr::null_mut() } else { &raw mut scan_key };
        pg_sys::index_rescan(scan, scan_keys, count, std::ptr::null_mut(), 0);
        let mut walked = WalkedKeys::ToTheEnd;
        for _ in 0..most {
            if pg_sys::index_getnext_tid(scan, pg_sys::ScanDirection::ForwardScanDirection).is_null() {
                walked = WalkedKeys::ToTheEnd;
                break;
            }
            let mut values = [pg_sys::Datum::null(); pg_sys::INDEX_MAX_KEYS as usize];
            let mut nulls = [true; pg_sys::INDEX_MAX_KEYS as usize];
            pg_sys::index_deform_tuple(
                (*scan).xs_itup,
                (*scan).xs_itupdesc,
                &raw mut values[0],
                &raw mut nulls[0],
            );
            let key: Option<&[u8]> = pgrx::FromDatum::from_datum(values[0], nulls[0]);
            if let Some(key) = key.and_then(|key| key.try_into().ok()) {
                take(key);
                walked = WalkedKeys::UpTo(*key);
            }
        }
        pg_sys::index_endscan(scan);
        walked
    }
}

const LOCK: pg_sys::LOCKMODE = pg_sys::AccessShareLock as pg_sys::LOCKMODE;

/// A table or an index that is open, with the lock that readers take.
struct Open(pg_sys::Relation);

impl Open {
    /// Opens it, if it is there and nobody has locked it: what was dropped, or took another's place, is not
    /// there any more by the time the lock is given, and only then is it looked for.
    fn relation(oid: pg_sys::Oid) -> Option<Open> {
        // SAFETY: as PostgreSQL's own functions open what may be gone.
        unsafe {
            if !pg_sys::ConditionalLockRelationOid(oid, LOCK) {
                return None;
            }
            let relation = pg_sys::try_relation_open(oid, pg_sys::NoLock as pg_sys::LOCKMODE);
            if relation.is_null() {
                pg_sys::UnlockRelationOid(oid, LOCK);
                return None;
            }
            Some(Open(relation))
        }
    }

    /// Whether it is an index that can be used now, on the column by which entries are found and nothing
    /// else. One that REINDEX CONCURRENTLY has put aside is not.
    fn is_key_of(&self, table: &Open, columns: &CacheColumns) -> bool {
        // SAFETY: both are open. The columns of an index begin with the first.
        unsafe {
            let index = (*self.0).rd_index;
            !index.is_null()
                && (*index).indrelid == (*table.0).rd_id
                && (*index).indisvalid
                && (*index).indisready
                && (*index).indislive
                && (*(*self.0).rd_rel).relam == pg_sys::BTREE_AM_OID
                && (*index).indnkeyatts == 1
                && *(&raw const (*index).indkey.values).cast::<i16>() == columns.number(CacheColumn::KeyHash)
        }
    }
}

impl Open {
    /// Whether the index has an entry of this key, of whatever version of a row. Without a snapshot a page
    /// may be recycled under the scan; the result is then a miss, and the engine computes the answer. The key
    /// names the table's column, which is the first of the index.
    fn has(&self, table: &Open, key: &pg_sys::ScanKeyData) -> bool {
        let mut key = *key;
        key.sk_attno = 1;
        // SAFETY: both are open and locked; no tuple is fetched, so that it does not matter which ones the
        // snapshot would show.
        unsafe {
            let snapshot = &raw mut pg_sys::SnapshotAnyData;
            #[cfg(not(feature = "pg18"))]
            let scan = pg_sys::index_beginscan(table.0, self.0, snapshot, 1, 0);
            #[cfg(feature = "pg18")]
            let scan = pg_sys::index_beginscan(table.0, self.0, snapshot, std::ptr::null_mut(), 1, 0);
            pg_sys::index_rescan(scan, &mut key, 1, std::ptr::null_mut(), 0);
            let entry = pg_sys::index_getnext_tid(scan, pg_sys::ScanDirection::ForwardScanDirection);
            let found = !entry.is_null();
            pg_sys::index_endscan(scan);
            found
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        // After an error, the end of the transaction closes it.
        if !std::thread::panicking() {
            // SAFETY: opened by this value, and closed once.
            unsafe { pg_sys::relation_close(self.0, LOCK) };
        }
    }
}

/// A row, valid while its scan is open.
struct CacheRow {
    tuple: pg_sys::HeapTuple,
    descriptor: pg_sys::TupleDesc,
    columns: CacheColumns,
}

impl CacheRow {
    fn datum(&self, column: CacheColumn) -> Option<pg_sys::Datum> {
        let mut is_null = true;
        // SAFETY: tuple and descriptor belong together.
        let datum = unsafe {
            pg_sys::heap_getattr(
                self.tuple,
                i32::from(self.columns.number(column)),
                self.descriptor,
                &mut is_null,
            )
        };
        (!is_null).then_some(datum)
    }

    fn value<T: pgrx::FromDatum>(&self, column: CacheColumn) -> Option<T> {
        // SAFETY: the caller's type is the column's.
        self.datum(column).and_then(|datum| unsafe { T::from_datum(datum, false) })
    }

    /// A copy that outlives the scan, fetched and uncompressed.
    fn copy(&self, column: CacheColumn) -> Option<pg_sys::Datum> {
        // SAFETY: a column of a type of variable length.
        let copied =
            self.datum(column).map(|datum| unsafe { pg_sys::pg_detoast_datum_copy(datum.cast_mut_ptr()) });
        copied.map(pg_sys::Datum::from)
    }

    /// Whether nobody has locked what is needed to fetch its long values: that would be waited for.
    fn can_be_fetched(&self, table: &Open) -> bool {
        let is_elsewhere = |column| {
            // SAFETY: a column of a type of variable length; only its first byte is looked at, and its second
            // if it says so.
            self.datum(column).is_some_and(|datum| unsafe { pgrx::varatt_is_1b_e(datum.cast_mut_ptr()) })
        };
        if ![CacheColumn::Response, CacheColumn::Embedding].into_iter().any(is_elsewhere) {
            return true;
        }
        // SAFETY: the table is open; the list of the indexes is copied, and as long as it says.
        unsafe {
            let Some(toast) = Open::relation((*(*table.0).rd_rel).reltoastrelid) else { return false };
            let indexes = pg_sys::RelationGetIndexList(toast.0);
            let count = if indexes.is_null() { 0 } else { (*indexes).length };
            (0..count).all(|n| Open::relation((*(*indexes).elements.add(n as usize)).oid_value).is_some())
        }
    }

    fn provenance(&self) -> Provenance {
        Provenance {
            request_type: self.value(CacheColumn::RequestType).unwrap_or_default(),
            model_hash: self.value(CacheColumn::ModelHash),
            kernel_version: self.value(CacheColumn::KernelVersion),
            imported: self.value(CacheColumn::Imported).unwrap_or(false),
        }
    }

    fn found(&self) -> Option<CachedAnswer> {
        Some(CachedAnswer {
            entry: self.value(CacheColumn::Id)?,
            response: self.copy(CacheColumn::Response),
            embedding: self.copy(CacheColumn::Embedding),
        })
    }
}
