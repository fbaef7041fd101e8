//! Choice of the rows that a step computes.
//!
//! Each request that generates has the row that its next token is chosen from, and its guesses. The rest of
//! the rows goes to prompts and to tokens that constraints force, which are treated alike: by priority, then
//! to the user and the request that were served longest ago. Now and then priority does not matter, so that
//! every request makes progress.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

use super::sequence::Sequence;
use crate::ModelSource;

/// The part of a request in a step.
pub(super) struct StepPart {
    /// Index in the running requests.
    pub(super) index: usize,
    pub(super) rows: usize,
    /// Whether they belong to its prompt.
    pub(super) prompt: bool,
}

/// The last time at which each user had rows of prompts or forced tokens, by a number that only grows.
#[derive(Default)]
pub(super) struct LastServed {
    users: HashMap<u32, u64>,
    count: u64,
}

/// Most users that are remembered.
const MOST_USERS: usize = 4096;

impl LastServed {
    fn of(&self, user: u32) -> u64 {
        self.users.get(&user).copied().unwrap_or(0)
    }

    /// Notes that a user is served; returns the number.
    fn note(&mut self, user: u32) -> u64 {
        if self.users.len() >= MOST_USERS {
            self.users.clear();
        }
        self.count += 1;
        self.users.insert(user, self.count);
        self.count
    }
}

/// The parts of a step, in the order of the requests. Beside the rows that each generating request has
/// anyway, they have `most` rows together. A prompt that begins like another one that is served before it
/// waits for the blocks that they have in common.
pub(super) fn plan(
    running: &mut [Sequence],
    source: &ModelSource,
    mut most: usize,
    is_fair: bool,
    served: &mut LastServed,
) -> Vec<StepPart> {
    let mut parts = Vec::new();
    let mut wanting = Vec::new();
    for (index, request) in running.iter().enumerate().filter(|(_, request)| request.source() == source) {
        let mut more = request.left_of_all();
        if request.decodes() {
            // The last of the forced tokens is the one that something follows.
            more = more.saturating_sub(request.sampled_rows());
            parts.push(StepPart { index, rows: if more > 0 { 1 } else { request.left() }, prompt: false });
        }
        if more > 0 {
            let submission = &request.submission;
            let priority = Reverse(if is_fair { 0 } else { submission.priority() });
            wanting.push((priority, served.of(submission.owner()), request.served, index));
        }
    }
    wanting.sort_unstable();
    let mut ahead = HashSet::new();
    for (.., index) in wanting {
        if most == 0 {
            break;
        }
        let request = &mut running[index];
        let rows;
        if request.decodes() {
            let forced = request.left().saturating_sub(request.sampled_rows());
            rows = forced.min(most);
            // The last of the forced rows also gives the logits that a token is chosen from.
            let all = if rows == forced { request.left() } else { rows + 1 };
            parts.iter_mut().filter(|part| part.index == index).for_each(|part| part.rows = all);
        } else {
            if request.at_border() && request.blocks_ahead(1).any(|hash| ahead.contains(&hash)) {
                continue;
            }
            rows = request.left_of_all().min(most);
            ahead.extend(request.blocks_ahead(rows));
            parts.push(StepPart { index, rows, prompt: true });
        }
        most -= rows;
        request.served = served.note(request.submission.owner());
    }
    parts.sort_unstable_by_key(|part| part.index);
    parts
}
