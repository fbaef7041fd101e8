//! Requests that a transaction has cancelled, on their way into the statistics: they count when it has committed, and not at all when
//! it has not.
//!
//! Their entries are found, or made, while the transaction runs.
//!
//! Invariant: what runs after a commit touches atomics and this process's memory only.

use std::cell::RefCell;

use super::request_statistics::{self, Counted, Place};
use super::transaction;

/// Entries of one subtransaction among which an equal one is looked for.
const SEARCHED: usize = 32;

/// Requests that a subtransaction has cancelled.
#[derive(Debug, Clone, Copy)]
struct Cancelled {
    /// The depth of the subtransaction; 1 is the transaction itself.
    level: i32,
    place: Place,
    /// Those that had not begun, and are counted as requests here.
    new: u64,
    all: u64,
}

thread_local! {
    /// Deeper levels come later.
    static CANCELLED: RefCell<Vec<Cancelled>> = const { RefCell::new(Vec::new()) };
}

/// This transaction has cancelled a request; `is_new`: nobody had begun it.
pub(crate) fn cancelled(model: &str, request_type: &str, is_new: bool) {
    let Some(place) = request_statistics::place_of(model, request_type) else { return };
    let new = Cancelled { level: transaction::nest_level(), place, new: u64::from(is_new), all: 1 };
    CANCELLED.with_borrow_mut(|cancelled| add_to(cancelled, new));
}

fn add_to(cancelled: &mut Vec<Cancelled>, new: Cancelled) {
    let same = cancelled
        .iter_mut()
        .rev()
        .take_while(|known| known.level == new.level)
        .take(SEARCHED)
        .find(|known| known.place == new.place);
    match same {
        Some(known) => (known.new, known.all) = (known.new + new.new, known.all + new.all),
        None => cancelled.push(new),
    }
}

/// A subtransaction has ended. Nothing here can raise.
pub(super) fn end_subtransaction(committed: bool) {
    let level = transaction::nest_level();
    CANCELLED.with_borrow_mut(|cancelled| {
        let inside = cancelled.iter().rev().take_while(|known| known.level >= level).count();
        if inside == 0 {
            return;
        }
        let ended = cancelled.split_off(cancelled.len() - inside);
        if committed {
            ended.into_iter().for_each(|known| add_to(cancelled, Cancelled { level: level - 1, ..known }));
        }
    });
}

/// The transaction has committed. Nothing here can raise.
pub(super) fn committed() {
    CANCELLED.with_borrow_mut(|cancelled| {
        for Cancelled { place, new, all, .. } in cancelled.drain(..) {
            let counted = Counted { requests: new, cancelled: all, ..Counted::default() };
            request_statistics::count_at(place, &counted);
        }
    });
}

/// It has not, or others will commit it. Nothing here can raise.
pub(super) fn forget() {
    CANCELLED.with_borrow_mut(Vec::clear);
}
