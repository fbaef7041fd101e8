//! Likelihoods of answers: several paths through them at a time, each with a state that shares the blocks of
//! the prompt.

use super::super::answer_tree;
use super::super::likelihood_memo::LikelihoodMemo;
use super::{Goal, Sequence};
use crate::computing::{BLOCK, Decoder, State};
use crate::{Error, Output};

/// One more path through answers, behind the prompt.
pub(super) struct Lane {
    pub(super) state: Box<dyn State>,
    /// Its tokens behind the prompt.
    pub(super) tokens: Vec<u32>,
}

/// Most paths beside the first.
const MOST_LANES: usize = 15;

impl Lane {
    /// Number of its tokens still to be computed, behind the `given` ones of the prompt, which it shares.
    pub(super) fn left(&self, given: usize) -> usize {
        (given + self.tokens.len()).saturating_sub(self.state.len())
    }
}

/// Bytes of one more path, whose state shares the full blocks of the prompt.
pub(super) fn lane_bytes(state: &dyn State, given: usize, positions: usize) -> u64 {
    state.bytes(positions) - state.block_bytes(given / BLOCK)
}

impl Sequence {
    /// Sets how many paths through answers may be computed at a time, by the room in so many bytes. Returns
    /// the number of bytes that they may use.
    pub(in crate::scheduler) fn allow_lanes(&mut self, bytes: u64) -> u64 {
        if !matches!(self.goal, Goal::Likelihoods(..)) {
            return 0;
        }
        let each = lane_bytes(&*self.state, self.given, self.positions).max(1);
        self.most_lanes = MOST_LANES.min(usize::try_from(bytes / each).unwrap_or(MOST_LANES));
        each * self.most_lanes as u64
    }

    /// Makes room for the next `rows` tokens of other paths. Those for which there is none are given up.
    pub(super) fn reserve_lanes(&mut self, mut rows: usize) {
        let given = self.given;
        let fails = |lane: &mut Lane| {
            let next = lane.left(given).min(rows);
            rows -= next;
            // A pass that was interrupted may have left fewer positions than there were.
            lane.state.len() < given || lane.state.reserve(lane.state.len() + next).is_err()
        };
        if let Some(first) = self.lanes.iter_mut().position(fails) {
            self.give_up_lanes(first);
        }
    }

    /// Gives up other paths through answers but the first `left`: they are computed later.
    pub(super) fn give_up_lanes(&mut self, left: usize) {
        if let Goal::Likelihoods(answers, _) = &mut self.goal
            && left < self.lanes.len()
        {
            self.lanes.truncate(left);
            answers.narrow(1 + left);
            self.advance();
        }
    }

    /// Goes on to a path that was not begun, where its own is computed.
    fn advance(&mut self) {
        if let Goal::Likelihoods(answers, _) = &mut self.goal
            && self.tokens.len() == self.state.len()
            && let Some(shared) = answers.advance(0)
        {
            self.tokens.truncate(self.given);
            self.tokens.extend(answers.tokens(0));
            // If a state cannot be cut just there, some tokens are computed once more.
            self.state.truncate(self.given + shared);
        }
    }

    /// Begins other paths through answers beside the first, where the prompt is computed. They share its
    /// blocks.
    fn begin_lanes(&mut self, decoder: &dyn Decoder) {
        let given = self.given;
        while self.lanes.len() < self.most_lanes && self.state.len() >= given {
            let Goal::Likelihoods(answers, _) = &mut self.goal else { return };
            if !answers.widen() {
                return;
            }
            let mut state = decoder.new_state();
            (0..given.div_ceil(BLOCK)).for_each(|index| state.attach(self.state.block(index)));
            state.truncate(given);
            let tokens = answers.tokens(1 + self.lanes.len()).collect();
            let goes_on = state.len() == given;
            self.lanes.push(Lane { state, tokens });
            if !goes_on {
                // Such a model has to compute some of the prompt again for each of them.
                self.give_up_lanes(self.lanes.len() - 1);
                self.most_lanes = self.lanes.len();
            }
        }
    }

    /// The rows whose logits are needed for the likelihoods of answers, among the last `rows` rows of a path
    /// that a pass has computed, with their indexes among them.
    pub(in crate::scheduler) fn weighing(
        &self,
        path: usize,
        rows: usize,
    ) -> Vec<(usize, answer_tree::AnswerRow)> {
        let Goal::Likelihoods(answers, _) = &self.goal else { return Vec::new() };
        let state = path.checked_sub(1).map_or(&self.state, |lane| &self.lanes[lane].state);
        let Some(end) = (state.len() + 1).checked_sub(self.given) else { return Vec::new() };
        answers.wanted(path, end.saturating_sub(rows)..end)
    }

    /// Takes the log-probabilities from the logits of such a row.
    pub(in crate::scheduler) fn weighed(
        &mut self,
        wanted: &answer_tree::AnswerRow,
        log_probabilities: Option<Vec<f64>>,
    ) -> Result<(), Error> {
        let Goal::Likelihoods(answers, _) = &mut self.goal else { return Ok(()) };
        let position = self.state.len().saturating_sub(1);
        answers.take(wanted, &log_probabilities.ok_or(Error::NonFinite { position })?);
        Ok(())
    }

    /// Goes on to the next paths through the answers where the current ones are computed. Returns the result
    /// after the last of them, and keeps it for requests that ask for the same.
    pub(in crate::scheduler) fn next_paths(
        &mut self,
        memo: &mut LikelihoodMemo,
        decoder: &dyn Decoder,
    ) -> Option<Output> {
        self.advance();
        let Goal::Likelihoods(answers, key) = &mut self.goal else { return None };
        let given = self.given;
        let mut lost = None;
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            if lane.left(given) > 0 {
                continue;
            }
            if let Some(shared) = answers.advance(1 + index) {
                lane.tokens.clear();
                lane.tokens.extend(answers.tokens(1 + index));
                lane.state.truncate(given + shared);
                if lane.state.len() < given {
                    lost = lost.or(Some(index));
                }
            }
        }
        let is_done =
            self.tokens.len() == self.state.len() && self.lanes.iter().all(|lane| lane.left(given) == 0);
        if is_done && let Some(values) = answers.log_probabilities() {
            if let Some(key) = key.filter(|_| self.chain.is_some()) {
                memo.keep(key, &values);
            }
            return Some(Output::LogProbabilities(values));
        }
        if let Some(lost) = lost {
            self.give_up_lanes(lost);
            self.most_lanes = lost;
        }
        self.begin_lanes(decoder);
        None
    }
}
