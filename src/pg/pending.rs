//! The number of pending requests in each database, in all and of each role, in shared memory:
//! `max_queue_size` and `max_queue_size_per_role` are compared with it.
//!
//! A transaction counts the rows that it inserts, by subtransaction and role, and adds them after its commit;
//! the worker subtracts those that it claims. Changes that neither of them sees (rows that are deleted, put
//! back or cancelled, transactions prepared by other sessions) ask the worker to count the rows themselves.
//!
//! Invariant: code that runs after a commit touches atomics and this process's memory only. Cells change as
//! wholes, role and count together, so that no count can be added to another role's.

use std::cell::{Cell, RefCell};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release, SeqCst};

use pgrx::pg_sys;
use uuid::Uuid;

use super::shmem::{self, SLOTS, SharedContent, SharedPart, Slot};
use super::{slots, transaction};

/// Roles with pending requests whose number is kept, in one database. The requests of others only count for
/// `max_queue_size`.
const CELLS: usize = 512;
/// Cells in which the count of a role may be.
const PROBES: usize = 64;
/// Roles of one subtransaction whose rows are counted together, before the list of what it inserted grows
/// with each row.
const SEARCHED: usize = 32;

/// The counts of all databases, by the number of their slot.
#[repr(C)]
pub(crate) struct PendingTable {
    roles: [[AtomicU64; CELLS]; SLOTS],
}

// SAFETY: zeros are cells that are free.
unsafe impl SharedContent for PendingTable {}

pub(super) static TABLE: SharedPart<PendingTable> = SharedPart::new();

/// Counts of a database at one moment.
#[derive(Debug, Default, Clone, Copy)]
pub(crate) struct Count {
    /// The requests of all roles.
    pub(crate) all: i64,
    /// The requests of the role that was asked for.
    pub(crate) own: i64,
}

/// Rows that a subtransaction has inserted for a role.
#[derive(Debug, Clone, Copy)]
struct Inserted {
    /// The depth of the subtransaction; 1 is the transaction itself.
    level: i32,
    role: u32,
    /// Whether the rows are there if the subtransaction commits; others may have been left out because of ON
    /// CONFLICT.
    certain: bool,
    /// Rows that were reportedly put back, but not seen. They count for this transaction only.
    retry: bool,
    count: i64,
}

thread_local! {
    /// Deeper levels come later.
    static INSERTED: RefCell<Vec<Inserted>> = const { RefCell::new(Vec::new()) };
    /// The request id that this process made last, and the last of them that was inserted.
    static MADE: Cell<u128> = const { Cell::new(0) };
    static USED: Cell<u128> = const { Cell::new(0) };
    /// Rows of this transaction that are counted in [`Slot::committing`].
    static COMMITTING: Cell<u64> = const { Cell::new(0) };
}

/// A fresh request id.
pub(crate) fn new_id() -> Uuid {
    let id = Uuid::now_v7();
    MADE.set(id.as_u128());
    id
}

/// Whether nobody can have used this id before: this process made it, and has inserted no later one. Ids of a
/// process grow.
fn is_fresh(id: Uuid) -> bool {
    let id = id.as_u128();
    let fresh = id > USED.get() && id <= MADE.get();
    if fresh {
        USED.set(id);
    }
    fresh
}

/// This transaction is about to insert a pending row. Where its id is not fresh, ON CONFLICT may leave it
/// out; then the rows are counted after the commit.
pub(crate) fn inserting(role: pg_sys::Oid, id: Option<Uuid>) {
    let new = Inserted {
        level: transaction::nest_level(),
        role: role.to_u32(),
        certain: id.is_some_and(is_fresh),
        retry: false,
        count: 1,
    };
    INSERTED.with_borrow_mut(|inserted| add_to(inserted, new));
}

/// This transaction says that it puts a request of this role back to pending. Everybody may say so, whatever
/// it does: for others only those rows count that were put back ([`retried`]).
pub(crate) fn retrying(role: pg_sys::Oid) {
    let new = Inserted {
        level: transaction::nest_level(),
        role: role.to_u32(),
        certain: false,
        retry: true,
        count: 1,
    };
    INSERTED.with_borrow_mut(|inserted| add_to(inserted, new));
}

/// A row of this role was put back, of which [`retrying`] was told. Of others, which administrators put back,
/// the worker learns by counting.
pub(crate) fn retried(role: pg_sys::Oid) {
    let new = Inserted {
        level: transaction::nest_level(),
        role: role.to_u32(),
        certain: true,
        retry: false,
        count: 1,
    };
    INSERTED.with_borrow_mut(|inserted| {
        let said = inserted
            .iter_mut()
            .rev()
            .take_while(|known| known.level == new.level)
            .find(|known| known.retry && known.role == new.role && known.count > 0);
        let Some(said) = said else { return };
        said.count -= 1;
        add_to(inserted, new);
    });
}

fn add_to(inserted: &mut Vec<Inserted>, new: Inserted) {
    let same = inserted
        .iter_mut()
        .rev()
        .take_while(|known| known.level == new.level)
        .take(SEARCHED)
        .find(|known| (known.role, known.certain, known.retry) == (new.role, new.certain, new.retry));
    match same {
        Some(known) => known.count += new.count,
        None => inserted.push(new),
    }
}

/// The requests that are pending in the database of `slot`, with those that this transaction has inserted.
pub(crate) fn count(slot: &Slot, role: pg_sys::Oid) -> Count {
    let role = role.to_u32();
    let mut count = Count { all: slot.pending.load(Relaxed), own: 0 };
    if let Some(cells) = cells_of(slot) {
        count.own = window(cells, role)
            .map(|cell| unpack(cell.load(Relaxed)))
            .filter(|cell| cell.0 == role)
            .map(|cell| i64::from(cell.1))
            .sum();
    }
    INSERTED.with_borrow(|inserted| {
        for known in inserted {
            count.all += known.count;
            count.own += if known.role == role { known.count } else { 0 };
        }
    });
    count
}

/// A subtransaction ended. Never raises an error.
pub(super) fn end_subtransaction(committed: bool) {
    let level = transaction::nest_level();
    INSERTED.with_borrow_mut(|inserted| {
        let inside = inserted.iter().rev().take_while(|known| known.level >= level).count();
        if inside == 0 {
            return;
        }
        let ended = inserted.split_off(inserted.len() - inside);
        if committed {
            ended.into_iter().for_each(|known| add_to(inserted, Inserted { level: level - 1, ..known }));
        }
    });
}

/// The transaction is about to commit: from now on its rows may be seen, though they are not in the counters
/// yet.
pub(super) fn committing() {
    let rows: i64 = INSERTED
        .with_borrow(|inserted| inserted.iter().filter(|known| !known.retry).map(|known| known.count).sum());
    if rows > 0
        && let Some(slot) = slots::mine()
    {
        COMMITTING.set(rows.cast_unsigned());
        slot.committing.fetch_add(rows.cast_unsigned(), SeqCst);
    }
}

/// The transaction has ended, and what it inserted is in the counters, or is not there. Nothing here can
/// raise.
pub(super) fn ended() {
    let rows = COMMITTING.take();
    if rows > 0
        && let Some(slot) = slots::mine()
    {
        slot.committed.fetch_add(rows, SeqCst);
    }
}

/// The transaction ended: what it inserted counts in the database of `slot`. True: the rows should be
/// counted. Never raises an error.
pub(super) fn committed(slot: Option<&Slot>) -> bool {
    INSERTED.with_borrow_mut(|inserted| {
        let mut doubtful = false;
        for known in inserted.drain(..) {
            doubtful |= !known.certain && !known.retry;
            if let Some(slot) = slot.filter(|_| known.certain) {
                change(slot, known.role, known.count);
            }
        }
        doubtful
    })
}

/// The transaction ended otherwise: nothing of it counts here.
pub(super) fn forget() {
    INSERTED.with_borrow_mut(Vec::clear);
}

/// The worker has claimed a request of this role.
pub(crate) fn claimed(slot: &Slot, role: pg_sys::Oid) {
    change(slot, role.to_u32(), -1);
}

/// Notes that this process's worker put requests back to pending: it will count the rows.
pub(crate) fn doubt_here() {
    if let Some(slot) = slots::mine() {
        slot.recount.store(true, Release);
    }
}

/// The counters as they are before the rows are counted.
pub(crate) struct CountersBefore {
    committed: u64,
    all: i64,
    roles: Vec<(u32, i32)>,
}

/// Notes the values of the counters. Changes after this stay valid when [`correct`] has set the counters
/// right.
pub(crate) fn before_counting(slot: &Slot) -> CountersBefore {
    slot.recount.store(false, SeqCst);
    let committed = slot.committed.load(SeqCst);
    let cells = cells_of(slot).into_iter().flatten();
    let roles = cells.map(|cell| cell.load(Acquire)).filter(|cell| *cell != 0).map(unpack).collect();
    CountersBefore { committed, all: slot.pending.load(SeqCst), roles }
}

/// Whether no rows were committed since `before` of which nobody knows whether they were counted.
pub(crate) fn is_exact(slot: &Slot, before: &CountersBefore) -> bool {
    slot.committing.load(SeqCst) == before.committed
}

/// Sets the counters right by what was counted: rows of each role.
pub(crate) fn correct(slot: &Slot, before: CountersBefore, counted: &[(pg_sys::Oid, i64)]) {
    let all: i64 = counted.iter().map(|(_, count)| count).sum();
    slot.pending.fetch_add(all - before.all, Relaxed);
    let Some(cells) = cells_of(slot) else { return };
    for (role, count) in before.roles {
        add(cells, role, -i64::from(count));
    }
    for (role, count) in counted {
        add(cells, role.to_u32(), *count);
    }
}

/// Forgets the counts of a slot whose database has gone.
pub(crate) fn clear(slot: &Slot) {
    slot.pending.store(0, Relaxed);
    slot.recount.store(false, Relaxed);
    slot.committing.store(0, Relaxed);
    slot.committed.store(0, Relaxed);
    cells_of(slot).into_iter().flatten().for_each(|cell| cell.store(0, Relaxed));
}

fn change(slot: &Slot, role: u32, by: i64) {
    slot.pending.fetch_add(by, Relaxed);
    if let Some(cells) = cells_of(slot) {
        add(cells, role, by);
    }
}

fn cells_of(slot: &Slot) -> Option<&'static [AtomicU64; CELLS]> {
    TABLE.get()?.roles.get(shmem::get()?.index_of(slot))
}

fn window(cells: &[AtomicU64; CELLS], role: u32) -> impl Iterator<Item = &AtomicU64> {
    (0..PROBES).map(move |probe| &cells[(role as usize + probe) % CELLS])
}

/// Role and count. All zeros is a free cell: no role has a count of 0.
fn unpack(cell: u64) -> (u32, i32) {
    ((cell >> 32) as u32, (cell as u32).cast_signed())
}

fn pack(role: u32, count: i32) -> u64 {
    if count == 0 { 0 } else { u64::from(role) << 32 | u64::from(count.cast_unsigned()) }
}

/// Adds to the count of a role. Two processes may give a role a cell each: its count is their sum. Where no
/// cell is free the role's requests are not counted.
fn add(cells: &[AtomicU64; CELLS], role: u32, by: i64) {
    let by = by.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32;
    loop {
        let mut free = None;
        for cell in window(cells, role) {
            let mut found = cell.load(Acquire);
            while found != 0 && unpack(found).0 == role {
                let now = pack(role, unpack(found).1.saturating_add(by));
                match cell.compare_exchange_weak(found, now, AcqRel, Acquire) {
                    Ok(_) => return,
                    Err(other) => found = other,
                }
            }
            if found == 0 && free.is_none() {
                free = Some(cell);
            }
        }
        let Some(cell) = free else { return };
        if cell.compare_exchange(0, pack(role, by), AcqRel, Acquire).is_ok() {
            return;
        }
    }
}
