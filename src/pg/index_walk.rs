//! Walks along an index of the queue entry by entry, those of dead rows included, for a bounded time.
//!
//! A statement stops at rows and not at entries: where it finds nothing, it steps over everything that
//! requests have left behind, however much that is. While somebody keeps an old snapshot that may be a
//! million of entries, for which a worker has no time at once. A walk stops after a time and says where it
//! was, and the next one goes on from there.
//!
//! Invariant: a walk ends between two keys. So all entries of a key, of which an old one may be dead and a
//! later one alive, are met in one walk.

use std::ffi::CStr;
use std::time::{Duration, Instant};

use pgrx::pg_sys;

use super::interrupts;

/// Entries between two looks at the clock.
const ENTRIES_AT_ONCE: u64 = 64;
const LOCK: pg_sys::LOCKMODE = pg_sys::AccessShareLock as pg_sys::LOCKMODE;

/// An index of the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum QueueIndex {
    /// Requests that are ready to run, by priority, the highest first, role and id.
    Claims,
    /// Requests in flight, by id.
    InFlight,
    /// All requests, by id.
    Ids,
}

impl QueueIndex {
    fn name(self) -> &'static CStr {
        match self {
            QueueIndex::Claims => c"steadytext_queue_claim_idx",
            QueueIndex::InFlight => c"steadytext_queue_processing_idx",
            QueueIndex::Ids => c"steadytext_queue_pkey",
        }
    }

    /// The columns that it is in the order of; it may have others beside them.
    fn columns(self) -> &'static [IndexColumn] {
        const PRIORITY: IndexColumn = IndexColumn { name: c"priority", of: pg_sys::INT4OID, descends: true };
        const OWNER: IndexColumn = IndexColumn { name: c"owner_role", of: pg_sys::OIDOID, descends: false };
        const ID: IndexColumn = IndexColumn { name: c"id", of: pg_sys::INT8OID, descends: false };
        match self {
            QueueIndex::Claims => &[PRIORITY, OWNER, ID],
            QueueIndex::InFlight | QueueIndex::Ids => &[ID],
        }
    }

    /// Whether it has some requests only.
    fn is_partial(self) -> bool {
        match self {
            QueueIndex::Claims | QueueIndex::InFlight => true,
            QueueIndex::Ids => false,
        }
    }
}

/// A column of an index.
struct IndexColumn {
    name: &'static CStr,
    /// The type as which it is compared.
    of: pg_sys::Oid,
    descends: bool,
}

/// The place of an entry. Priority and role are zero in an index of ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct IndexKey {
    pub(super) priority: i32,
    pub(super) role: u32,
    pub(super) id: i64,
}

impl IndexKey {
    /// The place of an id in an index of ids.
    pub(super) fn of_id(id: i64) -> IndexKey {
        IndexKey { priority: 0, role: 0, id }
    }
}

/// The next step of a walk behind an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WalkStep {
    /// The walk goes on with the next entry.
    On,
    /// The walk goes on with the next role or priority.
    NextGroup,
    /// The walk ends here.
    Stop,
}

/// The result of a walk.
#[derive(Debug, Clone, Copy)]
pub(super) struct WalkedEntries {
    /// The place where the next walk begins; `None`: the index has ended.
    pub(super) next: Option<IndexKey>,
    /// Entries that were met.
    pub(super) entries: u64,
}

/// Walks from a key on, or from the first one, for about so long; `visit` is told of each entry, and whether
/// there is a row of it. Inside a transaction. `None`: the queue has no such index that could be used now.
///
/// The rows are those that are committed when it begins, whatever snapshot the caller has.
pub(super) fn walk(
    queue: pg_sys::Oid,
    index: QueueIndex,
    from: Option<IndexKey>,
    budget: Duration,
    mut visit: impl FnMut(IndexKey, bool) -> WalkStep,
) -> Option<WalkedEntries> {
    // SAFETY: as PostgreSQL's own scans of an index; everything is closed in reverse order, and by the abort
    // after an error.
    unsafe {
        let table = pg_sys::try_relation_open(queue, LOCK);
        if table.is_null() {
            return None;
        }
        let found = open_index(table, index);
        let walked = found.map(|found| {
            let snapshot = pg_sys::RegisterSnapshot(pg_sys::GetLatestSnapshot());
            let slot = pg_sys::table_slot_create(table, std::ptr::null_mut());
            let mut walk = IndexWalk {
                table,
                index: found,
                columns: index.columns().len(),
                snapshot,
                slot,
                entries: 0,
                begun: Instant::now(),
                budget,
            };
            let next = walk.go(from, &mut visit);
            let entries = walk.entries;
            pg_sys::ExecDropSingleTupleTableSlot(slot);
            pg_sys::UnregisterSnapshot(snapshot);
            pg_sys::index_close(found, LOCK);
            WalkedEntries { next, entries }
        });
        pg_sys::relation_close(table, LOCK);
        walked
    }
}

/// The index of this name, if it is one of the table's and as it was made.
///
/// # Safety
///
/// The table is open, inside a transaction.
unsafe fn open_index(table: pg_sys::Relation, wanted: QueueIndex) -> Option<pg_sys::Relation> {
    // SAFETY: the caller's promise; an index that is in the table's list is there as long as the table is
    // locked.
    unsafe {
        let oid = pg_sys::get_relname_relid(wanted.name().as_ptr(), (*(*table).rd_rel).relnamespace);
        let list = pg_sys::RelationGetIndexList(table);
        let is_listed = pg_sys::list_member_oid(list, oid);
        pg_sys::list_free(list);
        if !is_listed {
            return None;
        }
        let index = pg_sys::index_open(oid, LOCK);
        let fits = is_as_made(table, index, wanted);
        if !fits {
            pg_sys::index_close(index, LOCK);
        }
        fits.then_some(index)
    }
}

/// Whether somebody who has made the index anew has given it the order in which it is walked through, and the
/// rows.
///
/// # Safety
///
/// The table and the index are open.
unsafe fn is_as_made(table: pg_sys::Relation, index: pg_sys::Relation, wanted: QueueIndex) -> bool {
    // SAFETY: the caller's promise; an index has a number, a type and options for each column of its order.
    unsafe {
        let (form, columns) = ((*index).rd_index, wanted.columns());
        if !(*form).indisvalid
            || (*(*index).rd_rel).relam != pg_sys::BTREE_AM_OID
            || (*form).indnkeyatts as usize != columns.len()
        {
            return false;
        }
        let predicate = pg_sys::Anum_pg_index_indpred as i32;
        let is_partial = !pg_sys::heap_attisnull((*index).rd_indextuple, predicate, std::ptr::null_mut());
        let numbers = (&raw const (*form).indkey.values).cast::<i16>();
        is_partial == wanted.is_partial()
            && columns.iter().enumerate().all(|(n, column)| {
                let descends = *(*index).rd_indoption.add(n) as u32 & pg_sys::INDOPTION_DESC != 0;
                *numbers.add(n) == pg_sys::get_attnum((*table).rd_id, column.name.as_ptr())
                    && *(*index).rd_opcintype.add(n) == column.of
                    && descends == column.descends
            })
    }
}

struct IndexWalk {
    table: pg_sys::Relation,
    index: pg_sys::Relation,
    /// Number of the columns by which it is ordered.
    columns: usize,
    snapshot: pg_sys::Snapshot,
    slot: *mut pg_sys::TupleTableSlot,
    entries: u64,
    begun: Instant,
    budget: Duration,
}

/// The way in which a scan ended.
enum ScanEnd {
    /// The scan has met everything.
    All,
    /// The scan goes on with the group behind this key.
    Group(IndexKey),
    /// The next walk begins at this key.
    Here(IndexKey),
}

impl IndexWalk {
    /// Whether its time is over.
    fn is_over(&self) -> bool {
        self.begun.elapsed() >= self.budget
    }

    /// Walks from this place on. The place where the next walk begins; `None`: the index has ended.
    fn go(
        &mut self,
        from: Option<IndexKey>,
        visit: &mut impl FnMut(IndexKey, bool) -> WalkStep,
    ) -> Option<IndexKey> {
        let mut from = from;
        loop {
            let mut jump = None;
            for keys in self.stretches(from) {
                match self.scan(&keys, visit) {
                    ScanEnd::All => {}
                    ScanEnd::Here(key) => return Some(key),
                    ScanEnd::Group(key) => {
                        let behind = IndexKey { id: i64::MAX, ..key };
                        // Where each entry ends its group, there are few entries between two looks of the
                        // scan.
                        interrupts::check();
                        if self.is_over() {
                            return Some(behind);
                        }
                        jump = Some(behind);
                        break;
                    }
                }
            }
            jump?;
            from = jump;
        }
    }

    /// The scans whose entries, one after the other, are those from a key on: an index of three columns, of
    /// which one descends, has no single condition for that.
    fn stretches(&self, from: Option<IndexKey>) -> Vec<Vec<pg_sys::ScanKeyData>> {
        const EQUAL: u32 = pg_sys::BTEqualStrategyNumber;
        let Some(from) = from else { return vec![Vec::new()] };
        let id = |column| {
            condition(column, pg_sys::BTGreaterEqualStrategyNumber, pg_sys::F_INT8GE, from.id.into())
        };
        if self.columns == 1 {
            return vec![vec![id(1)]];
        }
        let priority = |strategy, function| condition(1, strategy, function, from.priority.into());
        let role = |strategy, function| condition(2, strategy, function, pg_sys::Oid::from(from.role).into());
        vec![
            vec![priority(EQUAL, pg_sys::F_INT4EQ), role(EQUAL, pg_sys::F_OIDEQ), id(3)],
            vec![priority(EQUAL, pg_sys::F_INT4EQ), role(pg_sys::BTGreaterStrategyNumber, pg_sys::F_OIDGT)],
            vec![priority(pg_sys::BTLessStrategyNumber, pg_sys::F_INT4LT)],
        ]
    }

    fn scan(
        &mut self,
        keys: &[pg_sys::ScanKeyData],
        visit: &mut impl FnMut(IndexKey, bool) -> WalkStep,
    ) -> ScanEnd {
        // SAFETY: table, index, snapshot and slot are those of the walk; the keys are copied by the scan.
        unsafe {
            let count = keys.len() as i32;
            #[cfg(not(feature = "pg18"))]
            let scan = pg_sys::index_beginscan(self.table, self.index, self.snapshot, count, 0);
            #[cfg(feature = "pg18")]
            let scan = pg_sys::index_beginscan(
                self.table,
                self.index,
                self.snapshot,
                std::ptr::null_mut(),
                count,
                0,
            );
            // The keys of dead entries are in the index only.
            (*scan).xs_want_itup = true;
            pg_sys::index_rescan(scan, keys.as_ptr().cast_mut(), count, std::ptr::null_mut(), 0);
            let end = self.entries_of(scan, visit);
            pg_sys::index_endscan(scan);
            end
        }
    }

    /// # Safety
    ///
    /// The scan is one of this walk's, and gives the entries of the index.
    unsafe fn entries_of(
        &mut self,
        scan: pg_sys::IndexScanDesc,
        visit: &mut impl FnMut(IndexKey, bool) -> WalkStep,
    ) -> ScanEnd {
        let mut last = None;
        let mut is_over = false;
        let mut wanted = WalkStep::On;
        loop {
            // SAFETY: the caller's promise.
            let key = unsafe {
                if pg_sys::index_getnext_tid(scan, pg_sys::ScanDirection::ForwardScanDirection).is_null() {
                    return ScanEnd::All;
                }
                self.key_of(scan)
            };
            if last != Some(key) {
                match (wanted, last) {
                    (WalkStep::Stop, Some(_)) => return ScanEnd::Here(key),
                    (WalkStep::NextGroup, Some(last)) => return ScanEnd::Group(last),
                    _ if is_over => return ScanEnd::Here(key),
                    _ => {}
                }
            }
            last = Some(key);
            self.entries += 1;
            // SAFETY: the entry is the scan's last one, and the slot is of its table.
            let is_alive = unsafe { pg_sys::index_fetch_heap(scan, self.slot) };
            match visit(key, is_alive) {
                WalkStep::On => {}
                step => wanted = step,
            }
            if self.entries.is_multiple_of(ENTRIES_AT_ONCE) {
                interrupts::check();
                is_over = self.is_over();
            }
        }
    }

    /// # Safety
    ///
    /// The scan has an entry.
    unsafe fn key_of(&self, scan: pg_sys::IndexScanDesc) -> IndexKey {
        // Columns that the index has beside those of its order are taken apart with them.
        let mut values = [pg_sys::Datum::from(0); pg_sys::INDEX_MAX_KEYS as usize];
        let mut nulls = [true; pg_sys::INDEX_MAX_KEYS as usize];
        // SAFETY: no index has more columns.
        unsafe {
            pg_sys::index_deform_tuple(
                (*scan).xs_itup,
                (*scan).xs_itupdesc,
                values.as_mut_ptr(),
                nulls.as_mut_ptr(),
            );
        }
        let id = |n: usize| values[n].value() as i64;
        match self.columns {
            1 => IndexKey::of_id(id(0)),
            _ => IndexKey { priority: values[0].value() as i32, role: values[1].value() as u32, id: id(2) },
        }
    }
}

fn condition(column: i16, strategy: u32, function: u32, value: pg_sys::Datum) -> pg_sys::ScanKeyData {
    // SAFETY: a plain structure that ScanKeyInit fills; the function is one of PostgreSQL's own.
    unsafe {
        let mut key: pg_sys::ScanKeyData = std::mem::zeroed();
        pg_sys::ScanKeyInit(
            &mut key,
            column,
            strategy as pg_sys::StrategyNumber,
            pg_sys::Oid::from(function),
            value,
        );
        key
    }
}
