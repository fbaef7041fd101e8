//! The models that a session which restores a dump has resolved for calls that name none.

use std::cell::RefCell;

use steadytext_engine::ModelSource;

use super::task::ModelTask;
use crate::pg::restore;

thread_local! {
    /// The models that this session has resolved for calls that name none.
    static TAKEN: RefCell<Vec<(ModelTask, ModelSource)>> = const { RefCell::new(Vec::new()) };
}

/// Notes what a call gets that names no model, if this session restores a dump.
pub(super) fn note(task: ModelTask, source: &ModelSource) {
    if !restore::in_session() {
        return;
    }
    TAKEN.with_borrow_mut(|taken| {
        if !taken.iter().any(|(of, _)| *of == task) {
            taken.push((task, source.clone()));
        }
    });
}

/// The models resolved so far, with their tasks.
pub(super) fn so_far() -> Vec<(ModelTask, ModelSource)> {
    TAKEN.with_borrow(Clone::clone)
}
