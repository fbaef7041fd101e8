//! Requests that a transaction has ended, on their way into the figures: those that somebody has cancelled,
//! and those of workers elsewhere. They count when the transaction has committed, and not at all when it has
//! not.
//!
//! Their entries are found, or made, while the transaction runs; tokens are charged before it commits, when
//! something may still fail.
//!
//! Invariant: code that runs after a commit touches atomics and this process's memory only.

use std::cell::RefCell;

use pgrx::pg_sys;

use super::request_statistics::{self, CountedRequest, StatisticsSlot};
use super::{rate_counters, transaction};

/// Elements of one subtransaction among which an equal one is looked for.
const SEARCHED: usize = 32;

/// A request that a subtransaction has ended.
#[derive(Debug, Clone, Copy)]
struct EndedCount {
    /// The depth of the subtransaction; 1 is the transaction itself.
    level: i32,
    place: StatisticsSlot,
    counted: CountedRequest,
}

/// The tokens that such requests have taken.
#[derive(Debug, Clone, Copy)]
struct Spent {
    level: i32,
    role: pg_sys::Oid,
    tokens: u64,
}

thread_local! {
    /// Deeper levels come later.
    static ENDED: RefCell<Vec<EndedCount>> = const { RefCell::new(Vec::new()) };
    static SPENT: RefCell<Vec<Spent>> = const { RefCell::new(Vec::new()) };
}

/// This transaction has cancelled a request; `is_new`: nobody had begun it.
pub(crate) fn cancelled(model: &str, request_type: &str, is_new: bool) {
    count(
        model,
        request_type,
        CountedRequest { requests: u64::from(is_new), cancelled: 1, ..CountedRequest::default() },
    );
}

/// This transaction has begun or ended a request.
pub(crate) fn count(model: &str, request_type: &str, counted: CountedRequest) {
    let Some(place) = request_statistics::place_of(model, request_type) else { return };
    let new = EndedCount { level: transaction::nest_level(), place, counted };
    ENDED.with_borrow_mut(|ended| add_to(ended, new));
}

/// Notes that the requests which this transaction has ended have taken tokens of a role.
pub(crate) fn spend(role: pg_sys::Oid, tokens: u64) {
    if tokens > 0 {
        let new = Spent { level: transaction::nest_level(), role, tokens };
        SPENT.with_borrow_mut(|spent| spend_in(spent, new));
    }
}

fn add_to(ended: &mut Vec<EndedCount>, new: EndedCount) {
    let same = ended.iter_mut().rev().take_while(|known| known.level == new.level).take(SEARCHED);
    let same = same.filter(|known| known.place == new.place).find_map(|known| {
        known.counted = known.counted.plus(&new.counted)?;
        Some(())
    });
    if same.is_none() {
        ended.push(new);
    }
}

fn spend_in(spent: &mut Vec<Spent>, new: Spent) {
    let mut same = spent.iter_mut().rev().take_while(|known| known.level == new.level).take(SEARCHED);
    match same.find(|known| known.role == new.role) {
        Some(known) => known.tokens = known.tokens.saturating_add(new.tokens),
        None => spent.push(new),
    }
}

/// Puts the counts of a subtransaction that has ended to those of its parent, or drops them. Nothing here can
/// raise.
pub(super) fn end_subtransaction(committed: bool) {
    let level = transaction::nest_level();
    ENDED.with_borrow_mut(|ended| {
        let inside = ended.iter().rev().take_while(|known| known.level >= level).count();
        let inner = ended.split_off(ended.len() - inside);
        if committed {
            inner.into_iter().for_each(|known| add_to(ended, EndedCount { level: level - 1, ..known }));
        }
    });
    SPENT.with_borrow_mut(|spent| {
        let inside = spent.iter().rev().take_while(|known| known.level >= level).count();
        let inner = spent.split_off(spent.len() - inside);
        if committed {
            inner.into_iter().for_each(|known| spend_in(spent, Spent { level: level - 1, ..known }));
        }
    });
}

/// The transaction is about to commit.
pub(super) fn committing() {
    let spent = SPENT.take();
    spent.into_iter().for_each(|Spent { role, tokens, .. }| rate_counters::spend(role, tokens));
}

/// Adds the figures of a transaction that has committed. Never raises an error.
pub(super) fn committed() {
    ENDED.with_borrow_mut(|ended| {
        ended
            .drain(..)
            .for_each(|EndedCount { place, counted, .. }| request_statistics::count_at(place, &counted));
    });
}

/// Drops the figures of a transaction that has not committed, or that others will commit. Nothing here can
/// raise.
pub(super) fn forget() {
    ENDED.with_borrow_mut(Vec::clear);
    SPENT.with_borrow_mut(Vec::clear);
}
