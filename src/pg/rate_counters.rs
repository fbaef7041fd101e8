//! The usage of roles in the last minute, hour and day: requests and tokens, in shared memory.
//!
//! Only roles that a limit binds are counted, each in each database by itself. A request counts from the
//! moment in which it is asked for, and no longer when the subtransaction that has enqueued it is rolled
//! back, as then nothing was asked of the engine. Tokens count when they are known.
//!
//! There is room for [`ENTRIES`] roles. Where it is full the role goes that has not asked for the longest
//! time among those whose place it could be.
//!
//! Invariant: everything in the table is guarded by its lock. It is never taken after a commit, when nothing
//! may fail.

use std::cell::RefCell;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64};

use pgrx::pg_sys;

use super::shmem::{self, SLOTS, SharedContent, SharedPart, Slot};
use super::sliding_window::SlidingWindow;
pub(crate) use super::sliding_window::{BUCKETS, PERIODS, Period};
use super::{activity, catalog, slots, transaction};

/// Roles that are counted, of all databases together.
pub(crate) const ENTRIES: usize = 1024;
/// Places in which a role may be.
const PROBES: usize = 32;
/// Charges of one subtransaction among which an equal one is looked for.
const SEARCHED: usize = 32;

/// The table.
#[repr(C)]
pub(crate) struct RateTable {
    /// The database of each slot whose counts of before the server's start have been read.
    restored: [AtomicU32; SLOTS],
    /// Roles that had to go before their time.
    pushed_out: AtomicU64,
    entries: [RateEntry; ENTRIES],
}

// SAFETY: zeros are places that are free, and databases whose counts have not been read.
unsafe impl SharedContent for RateTable {}

pub(super) static TABLE: SharedPart<RateTable> = SharedPart::new();

/// The counts of a role.
#[repr(C)]
struct RateEntry {
    /// Database and role; 0: free.
    key: AtomicU64,
    /// The second of the last use.
    used_at: AtomicI64,
    /// Whether it has changed since it was written down.
    changed: AtomicBool,
    requests: [SlidingWindow; 3],
    tokens: [SlidingWindow; 3],
}

impl RateEntry {
    fn windows(&self) -> impl Iterator<Item = (Period, &SlidingWindow, &SlidingWindow)> {
        PERIODS
            .into_iter()
            .zip(&self.requests)
            .zip(&self.tokens)
            .map(|((period, of_requests), of_tokens)| (period, of_requests, of_tokens))
    }

    fn clear(&self) {
        self.requests.iter().chain(&self.tokens).for_each(SlidingWindow::clear);
    }

    fn touch(&self, second: i64) {
        self.used_at.store(second, Relaxed);
        self.changed.store(true, Relaxed);
    }
}

/// The limits of a role in each period; `None`: as much as it likes.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Allowed {
    /// Requests.
    pub(crate) requests: [Option<u64>; 3],
    /// Tokens.
    pub(crate) tokens: [Option<u64>; 3],
}

/// The limit because of which a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exceeded {
    /// `requests` or `tokens`.
    pub(crate) what: &'static str,
    /// The period.
    pub(crate) period: Period,
    /// Number allowed in the period.
    pub(crate) allowed: u64,
    /// Number used in the period.
    pub(crate) used: u64,
    /// Number of them that this transaction has asked for, which no longer count when it is rolled back.
    pub(crate) own: u64,
    /// Seconds until there is room; `None`: there never is.
    pub(crate) wait_s: Option<i64>,
}

/// The use of a role.
#[derive(Debug, Clone)]
pub(crate) struct Used {
    /// The role that was counted.
    pub(crate) role: pg_sys::Oid,
    /// Requests in each period, and seconds until the first of them no longer counts.
    pub(crate) requests: [(u64, Option<i64>); 3],
    /// Tokens in each period, in the same way.
    pub(crate) tokens: [(u64, Option<i64>); 3],
}

/// The counts of a role, to be written down.
#[derive(Debug, Clone)]
pub(crate) struct Saved {
    /// The role that was counted.
    pub(crate) role: pg_sys::Oid,
    /// The second at which they were taken.
    pub(crate) second: i64,
    /// Buckets of all periods, one after the other.
    pub(crate) requests: Vec<u32>,
    /// Buckets of tokens, in the same order.
    pub(crate) tokens: Vec<u32>,
}

/// Requests that a subtransaction has been charged for.
#[derive(Debug, Clone, Copy)]
struct Charged {
    /// The depth of the subtransaction; 1 is the transaction itself.
    level: i32,
    key: u64,
    second: i64,
    count: u64,
}

thread_local! {
    /// Deeper levels come later.
    static CHARGED: RefCell<Vec<Charged>> = const { RefCell::new(Vec::new()) };
}

/// The present second, counted from 2000.
fn now() -> i64 {
    activity::now().div_euclid(1_000_000)
}

fn key_of(role: pg_sys::Oid) -> u64 {
    u64::from(catalog::my_database().to_u32()) << 32 | u64::from(role.to_u32())
}

fn database_of(key: u64) -> u32 {
    (key >> 32) as u32
}

fn role_of(key: u64) -> pg_sys::Oid {
    pg_sys::Oid::from(key as u32)
}

impl RateTable {
    fn places(&self, key: u64) -> impl Iterator<Item = &RateEntry> {
        let start = key.wrapping_mul(0x9e37_79b9_7f4a_7c15) as usize >> 16;
        (0..PROBES).map(move |probe| &self.entries[(start + probe) % ENTRIES])
    }

    fn find(&self, key: u64) -> Option<&RateEntry> {
        self.places(key).find(|entry| entry.key.load(Relaxed) == key)
    }

    /// The role's place. One that has none gets a free one, or that of the role that has not asked for the
    /// longest time.
    fn place(&self, key: u64) -> &RateEntry {
        if let Some(entry) = self.find(key) {
            return entry;
        }
        let age = |entry: &&RateEntry| match entry.key.load(Relaxed) {
            0 => i64::MIN,
            _ => entry.used_at.load(Relaxed),
        };
        let entry = self.places(key).min_by_key(age).unwrap_or(&self.entries[0]);
        if entry.key.swap(key, Relaxed) != 0 {
            self.pushed_out.fetch_add(1, Relaxed);
        }
        entry.clear();
        entry
    }
}

/// Counts requests of a role, if all that it is allowed leaves room for them. With `lasting` they count
/// whatever becomes of the transaction.
///
/// # Errors
///
/// The limit that would be exceeded; nothing is counted then.
pub(crate) fn charge(
    role: pg_sys::Oid,
    count: u64,
    allowed: &Allowed,
    lasting: bool,
) -> Result<(), Exceeded> {
    let (key, second) = (key_of(role), now());
    let charged = TABLE.with_lock(true, |table| {
        let entry = table.place(key);
        exceeded(Some(entry), key, second, count, allowed).map_or(Ok(()), Err)?;
        for (period, requests, _) in entry.windows() {
            requests.add(period, second, count);
        }
        entry.touch(second);
        Ok(())
    });
    charged.unwrap_or(Ok(()))?;
    wake_worker();
    if !lasting {
        let new = Charged { level: transaction::nest_level(), key, second, count };
        CHARGED.with_borrow_mut(|charged| add_to(charged, new));
    }
    Ok(())
}

/// The limit that a role would exceed with as many more requests, if there is one.
pub(crate) fn check(role: pg_sys::Oid, count: u64, allowed: &Allowed) -> Option<Exceeded> {
    let (key, second) = (key_of(role), now());
    TABLE.with_lock(true, |table| exceeded(table.find(key), key, second, count, allowed)).flatten()
}

/// The number of requests that a role may make at once now; `None`: no limit.
pub(crate) fn room(role: pg_sys::Oid, allowed: &Allowed) -> Option<u64> {
    let (key, second) = (key_of(role), now());
    let left = TABLE.with_lock(true, |table| {
        let entry = table.find(key)?;
        let left = entry.windows().zip(allowed.requests).map(|((period, requests, _), allowed)| {
            Some(allowed?.saturating_sub(requests.used(period, second)))
        });
        Some(left.flatten().min())
    });
    left.flatten().unwrap_or_else(|| allowed.requests.into_iter().flatten().min())
}

/// The limit that is exceeded and has to be waited for longest. A role without an entry has used nothing, and
/// may be allowed nothing.
fn exceeded(
    entry: Option<&RateEntry>,
    key: u64,
    second: i64,
    count: u64,
    allowed: &Allowed,
) -> Option<Exceeded> {
    let mut worst: Option<Exceeded> = None;
    let mut note = |found: Exceeded| {
        let rank = |exceeded: &Exceeded| exceeded.wait_s.unwrap_or(i64::MAX);
        if worst.as_ref().is_none_or(|worst| rank(&found) > rank(worst)) {
            worst = Some(found);
        }
    };
    let used_of =
        |window: Option<&SlidingWindow>, period| window.map_or(0, |window| window.used(period, second));
    for (index, period) in PERIODS.into_iter().enumerate() {
        let requests = entry.map(|entry| &entry.requests[index]);
        let tokens = entry.map(|entry| &entry.tokens[index]);
        if let Some(allowed) = allowed.requests[index] {
            let used = used_of(requests, period);
            let over = used.saturating_add(count).saturating_sub(allowed);
            if over > 0 {
                let wait_s = requests
                    .filter(|_| count <= allowed)
                    .and_then(|requests| requests.wait(period, second, over));
                let own = charged_here(key, second - period.seconds());
                note(Exceeded { what: "requests", period, allowed, used, own, wait_s });
            }
        }
        if let Some(allowed) = allowed.tokens[index] {
            let used = used_of(tokens, period);
            if used >= allowed {
                let wait_s = tokens
                    .filter(|_| allowed > 0)
                    .and_then(|tokens| tokens.wait(period, second, used - allowed + 1));
                note(Exceeded { what: "tokens", period, allowed, used, own: 0, wait_s });
            }
        }
    }
    worst
}

/// Counts tokens of a role whose requests are counted.
pub(crate) fn spend(role: pg_sys::Oid, tokens: u64) {
    if tokens == 0 || TABLE.get().is_none() {
        return;
    }
    let (key, second) = (key_of(role), now());
    let found = TABLE.with_lock(true, |table| {
        let entry = table.find(key)?;
        for (period, _, of_tokens) in entry.windows() {
            of_tokens.add(period, second, tokens);
        }
        entry.touch(second);
        Some(())
    });
    if found.flatten().is_some() {
        wake_worker();
    }
}

fn wake_worker() {
    if let Some(slot) = slots::mine()
        && !slot.usage_waits.load(Relaxed)
    {
        slot.usage_waits.store(true, Release);
    }
}

/// The use of the roles of this database; of one of them, if it is given.
pub(crate) fn used(role: Option<pg_sys::Oid>) -> Vec<Used> {
    let (database, second) = (catalog::my_database().to_u32(), now());
    let of = |windows: &[SlidingWindow; 3]| {
        std::array::from_fn(|index| {
            let (period, window) = (PERIODS[index], &windows[index]);
            let used = window.used(period, second);
            (used, if used == 0 { None } else { window.wait(period, second, 1) })
        })
    };
    let list = TABLE.with_lock(true, |table| {
        let entries = table.entries.iter().filter(|entry| {
            let key = entry.key.load(Relaxed);
            key != 0 && database_of(key) == database && role.is_none_or(|role| role_of(key) == role)
        });
        let used = entries.map(|entry| Used {
            role: role_of(entry.key.load(Relaxed)),
            requests: of(&entry.requests),
            tokens: of(&entry.tokens),
        });
        used.collect()
    });
    list.unwrap_or_default()
}

/// Forgets what a role has used in this database. Whether anything was known of it.
pub(crate) fn reset(role: pg_sys::Oid) -> bool {
    let key = key_of(role);
    let found = TABLE.with_lock(true, |table| {
        let entry = table.find(key)?;
        entry.clear();
        entry.touch(now());
        Some(())
    });
    wake_worker();
    found.flatten().is_some()
}

/// Takes note that what changes from now on is to be written down again; the counts that have changed in the
/// database of this process.
pub(crate) fn take_changed(slot: &Slot) -> Vec<Saved> {
    slot.usage_waits.store(false, Release);
    let (database, second) = (catalog::my_database().to_u32(), now());
    let list = TABLE.with_lock(true, |table| {
        let all = |windows: &[SlidingWindow; 3]| {
            let counts =
                PERIODS.iter().zip(windows).flat_map(|(period, window)| window.counts(*period, second));
            counts.collect()
        };
        let entries = table.entries.iter().filter(|entry| database_of(entry.key.load(Relaxed)) == database);
        let changed = entries.filter(|entry| entry.changed.swap(false, Relaxed));
        let saved = changed.map(|entry| Saved {
            role: role_of(entry.key.load(Relaxed)),
            second,
            requests: all(&entry.requests),
            tokens: all(&entry.tokens),
        });
        saved.collect()
    });
    list.unwrap_or_default()
}

/// Marks counts as changed again that could not be written down.
pub(crate) fn put_back_changed(slot: &Slot, saved: &[Saved]) {
    TABLE.with_lock(true, |table| {
        for entry in saved.iter().filter_map(|saved| table.find(key_of(saved.role))) {
            entry.changed.store(true, Relaxed);
        }
    });
    slot.usage_waits.store(true, Release);
}

/// Whether the counts of before the server's start are in the table.
pub(crate) fn is_restored(slot: &Slot) -> bool {
    let Some((table, shared)) = TABLE.get().zip(shmem::get()) else { return true };
    table.restored[shared.index_of(slot)].load(Acquire) == catalog::my_database().to_u32()
}

/// Counts what was counted before the server's start, once.
pub(crate) fn restore(slot: &Slot, saved: &[Saved]) {
    let Some(shared) = shmem::get() else { return };
    let (database, second) = (catalog::my_database().to_u32(), now());
    TABLE.with_lock(true, |table| {
        if table.restored[shared.index_of(slot)].swap(database, Release) == database {
            return;
        }
        for saved in saved {
            let entry = table.place(key_of(saved.role));
            let requests = saved.requests.chunks(BUCKETS).chain(std::iter::repeat(&[][..]));
            let tokens = saved.tokens.chunks(BUCKETS).chain(std::iter::repeat(&[][..]));
            for (((period, of_requests, of_tokens), requests), tokens) in
                entry.windows().zip(requests).zip(tokens)
            {
                of_requests.restore(period, second, saved.second, requests);
                of_tokens.restore(period, second, saved.second, tokens);
            }
            entry.used_at.fetch_max(saved.second, Relaxed);
        }
    });
}

fn add_to(charged: &mut Vec<Charged>, new: Charged) {
    let same = charged
        .iter_mut()
        .rev()
        .take_while(|known| known.level == new.level)
        .take(SEARCHED)
        .find(|known| known.key == new.key && known.second == new.second);
    match same {
        Some(known) => known.count += new.count,
        None => charged.push(new),
    }
}

/// The number of requests that this transaction has been charged for a role since a second.
fn charged_here(key: u64, since: i64) -> u64 {
    CHARGED.with_borrow(|charged| {
        let of_role = charged.iter().filter(|known| known.key == key && known.second >= since);
        of_role.map(|known| known.count).sum()
    })
}

/// A subtransaction has ended. Never raises an error.
pub(super) fn end_subtransaction(committed: bool) {
    let level = transaction::nest_level();
    let ended = CHARGED.with_borrow_mut(|charged| {
        let inside = charged.iter().rev().take_while(|known| known.level >= level).count();
        charged.split_off(charged.len() - inside)
    });
    if committed {
        CHARGED.with_borrow_mut(|charged| {
            ended.into_iter().for_each(|known| add_to(charged, Charged { level: level - 1, ..known }));
        });
    } else {
        give_back(&ended);
    }
}

/// The transaction has committed, or will be by others. Never raises an error.
pub(super) fn committed() {
    CHARGED.with_borrow_mut(Vec::clear);
}

/// The transaction was rolled back. Never raises an error.
pub(super) fn rolled_back() {
    give_back(&CHARGED.take());
}

fn give_back(charges: &[Charged]) {
    if charges.is_empty() {
        return;
    }
    let second = now();
    TABLE.with_lock(true, |table| {
        for charge in charges {
            let Some(entry) = table.find(charge.key) else { continue };
            for (period, requests, _) in entry.windows() {
                requests.give_back(period, second, charge.second, charge.count);
            }
            entry.changed.store(true, Relaxed);
        }
    });
}
