//! Obstacles that a process which claims requests remembers, so that they do not hold up other requests: rows
//! that cannot be written, long stretches of rows that somebody has locked, and roles that have too many of
//! either.
//!
//! Invariant: all of it is advice that grows old by itself. Nothing is lost when it is forgotten, and nothing
//! is claimed twice because of it: rows are locked before they are claimed, whatever is remembered here.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::{Duration, Instant};

use pgrx::pg_sys;

/// Rows set aside, at most, and of one role before its other rows are left alone, too.
const MAX_ASIDE: usize = 4000;
const MAX_ASIDE_OF_ROLE: usize = 2000;
/// First and longest pause of a row that is set aside; each pause is twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(600);
/// First pause of a role that has too many rows set aside; each further one is twice as long, up to 16 times
/// this.
const ROLE_PAUSE: Duration = Duration::from_secs(10);
/// Time after a pause for which the number of tries of a row is remembered.
const MEMORY: Duration = Duration::from_secs(3600);
/// Stretches, and transactions that hold the rows of one, at most.
const MAX_STRETCHES: usize = 1024;
const MAX_HOLDERS: usize = 64;
/// A stretch is walked anew after this time, and after a short one where it is not known who holds it.
const STRETCH_MEMORY: Duration = Duration::from_secs(60);
const STRETCH_MEMORY_WITHOUT_HOLDER: Duration = Duration::from_secs(2);
/// Second looks at the rows of a stretch: a few thousand rows a second, however often is claimed.
const AGAIN_PER_MS: u128 = 4;
const AGAIN_AT_LEAST: u128 = 32;
const AGAIN_AT_MOST: u128 = 4096;
/// Lines that one process writes into the server log, and rows it remembers having written of.
const LINES_PER_MINUTE: u32 = 20;
const MAX_REPORTED: usize = 1000;

thread_local! {
    static MEMORY_OF: RefCell<SetAsideMemory> = RefCell::default();
}

#[derive(Default)]
struct SetAsideMemory {
    /// The extension it is about: when it is created anew, ids begin anew.
    extension: Option<pg_sys::Oid>,
    aside: BTreeMap<i64, Aside>,
    /// The stretches by priority and owner.
    stretches: HashMap<(i32, pg_sys::Oid), Stretch>,
    roles: HashMap<pg_sys::Oid, RoleAside>,
    reported: HashSet<(i64, String)>,
    lines: u32,
    minute: Option<Instant>,
}

/// A row that could not be written.
struct Aside {
    owner: pg_sys::Oid,
    tries: u32,
    until: Instant,
}

/// A role that is left alone.
#[derive(Default)]
struct RoleAside {
    times: u32,
    until: Option<Instant>,
}

/// Rows that were all locked when they were looked at.
struct Stretch {
    /// The last of them.
    behind: i64,
    holders: Vec<u32>,
    forget_at: Instant,
    /// The id behind which second looks go on.
    again_after: i64,
    again_at: Instant,
}

/// The place where a claim begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClaimStart {
    /// Behind this id;
    pub(crate) behind: i64,
    /// it looks once more behind this one
    pub(crate) again_after: i64,
    /// at so many rows.
    pub(crate) again_rows: i32,
}

fn with<T>(extension: pg_sys::Oid, work: impl FnOnce(&mut SetAsideMemory, Instant) -> T) -> T {
    MEMORY_OF.with_borrow_mut(|memory| {
        if memory.extension != Some(extension) {
            *memory = SetAsideMemory { extension: Some(extension), ..SetAsideMemory::default() };
        }
        work(memory, Instant::now())
    })
}

/// The rows that are set aside now.
pub(crate) fn rows(extension: pg_sys::Oid) -> Vec<i64> {
    with(extension, |memory, now| {
        memory.aside.retain(|_, aside| now < aside.until + MEMORY);
        memory.aside.iter().filter(|(_, aside)| now < aside.until).map(|(id, _)| *id).collect()
    })
}

/// Sets a row aside for a while, longer each time.
pub(crate) fn set_aside(extension: pg_sys::Oid, id: i64, owner: pg_sys::Oid) {
    with(extension, |memory, now| {
        if memory.aside.len() >= MAX_ASIDE && !memory.aside.contains_key(&id) {
            // The row that gives its place away comes back, and costs a step that fails. As its role is left
            // alone then, that does not happen often.
            memory.aside.pop_first();
        }
        let aside = memory.aside.entry(id).or_insert(Aside { owner, tries: 0, until: now });
        aside.until = now + (FIRST_PAUSE * 2_u32.saturating_pow(aside.tries)).min(LONGEST_PAUSE);
        aside.tries = (aside.tries + 1).min(16);
        let of_role = memory.aside.values().filter(|aside| aside.owner == owner && aside.until > now).count();
        let role = memory.roles.entry(owner).or_default();
        if of_role > MAX_ASIDE_OF_ROLE && role.until.is_none_or(|until| until < now) {
            role.times = (role.times + 1).min(5);
            role.until = Some(now + ROLE_PAUSE * 2_u32.pow(role.times - 1));
        }
    });
}

/// Claims nothing of a role for a while.
pub(crate) fn leave_alone(extension: pg_sys::Oid, owner: pg_sys::Oid, pause: Duration) {
    with(extension, |memory, now| {
        let role = memory.roles.entry(owner).or_default();
        role.until = Some(role.until.map_or(now + pause, |until| until.max(now + pause)));
    });
}

/// Whether trouble with this row is new to the server log, which gets one message for each row and step, and
/// not too many.
pub(crate) fn is_news(extension: pg_sys::Oid, id: i64, step: &str) -> bool {
    with(extension, |memory, now| {
        if memory.minute.is_none_or(|minute| now >= minute + Duration::from_secs(60)) {
            (memory.minute, memory.lines) = (Some(now), 0);
        }
        if memory.reported.len() >= MAX_REPORTED {
            memory.reported.clear();
        }
        let is_news = memory.reported.insert((id, step.to_owned())) && memory.lines < LINES_PER_MINUTE;
        memory.lines += u32::from(is_news);
        is_news
    })
}

/// The place where the claim of a role's requests begins. Inside a transaction.
pub(crate) fn beginning(extension: pg_sys::Oid, priority: i32, owner: pg_sys::Oid) -> ClaimStart {
    let from_the_first = ClaimStart { behind: i64::MIN, again_after: 0, again_rows: 0 };
    with(extension, |memory, now| {
        if memory.roles.get(&owner).and_then(|role| role.until).is_some_and(|until| now < until) {
            return ClaimStart { behind: i64::MAX, ..from_the_first };
        }
        if memory.stretches.is_empty() {
            return from_the_first;
        }
        let key = (priority, owner);
        let Some(stretch) = memory.stretches.get_mut(&key) else { return from_the_first };
        if now >= stretch.forget_at || !stretch.holders.iter().all(|holder| is_in_progress(*holder)) {
            memory.stretches.remove(&key);
            return from_the_first;
        }
        let rows = (now - stretch.again_at).as_millis() * AGAIN_PER_MS;
        let mut again_rows = 0;
        if rows >= AGAIN_AT_LEAST {
            stretch.again_at = now;
            again_rows = rows.min(AGAIN_AT_MOST) as i32;
        }
        ClaimStart { behind: stretch.behind, again_after: stretch.again_after, again_rows }
    })
}

/// Remembers that all rows of a role up to `until` are locked, by these transactions.
pub(crate) fn pass(extension: pg_sys::Oid, priority: i32, owner: pg_sys::Oid, until: i64, holders: &[i64]) {
    with(extension, |memory, now| {
        if memory.stretches.len() >= MAX_STRETCHES {
            memory.stretches.clear();
        }
        let stretch = memory.stretches.entry((priority, owner)).or_insert(Stretch {
            behind: i64::MIN,
            holders: Vec::new(),
            forget_at: now + STRETCH_MEMORY,
            again_after: 0,
            again_at: now,
        });
        stretch.behind = stretch.behind.max(until);
        for holder in holders.iter().filter_map(|holder| u32::try_from(*holder).ok()) {
            if stretch.holders.contains(&holder) {
                continue;
            }
            // Several hold the row together, and the number is that of their group; or it has just ended.
            if stretch.holders.len() < MAX_HOLDERS && is_in_progress(holder) {
                stretch.holders.push(holder);
            } else {
                stretch.forget_at = stretch.forget_at.min(now + STRETCH_MEMORY_WITHOUT_HOLDER);
            }
        }
    });
}

/// Takes note of a second look that ended at `until`, or, where that is `None`, with the stretch. Where rows
/// were free, claims begin from the first one again.
pub(crate) fn look_again(
    extension: pg_sys::Oid,
    priority: i32,
    owner: pg_sys::Oid,
    found: bool,
    until: Option<i64>,
) {
    with(extension, |memory, _| {
        let key = (priority, owner);
        if found {
            memory.stretches.remove(&key);
        } else if let Some(stretch) = memory.stretches.get_mut(&key) {
            stretch.again_after = until.unwrap_or(0);
        }
    });
}

fn is_in_progress(xid: u32) -> bool {
    // SAFETY: looks at shared memory and the status of transactions; inside a transaction.
    unsafe { pg_sys::TransactionIdIsInProgress(pg_sys::TransactionId::from(xid)) }
}
