//! Which models a session that restores a dump has taken for calls that name none.

use std::cell::RefCell;

use steadytext_engine::ModelSource;

use super::task::Task;
use crate::pg::restore;

thread_local! {
    /// What this session took for calls that name no model.
    static TAKEN: RefCell<Vec<(Task, ModelSource)>> = const { RefCell::new(Vec::new()) };
}

/// Notes what a call gets that names no model, if this session restores a dump.
pub(super) fn note(task: Task, source: &ModelSource) {
    if !restore::in_session() {
        return;
    }
    TAKEN.with_borrow_mut(|taken| {
        if !taken.iter().any(|(of, _)| *of == task) {
            taken.push((task, source.clone()));
        }
    });
}

/// What was taken so far, for which tasks.
pub(super) fn so_far() -> Vec<(Task, ModelSource)> {
    TAKEN.with_borrow(Clone::clone)
}
