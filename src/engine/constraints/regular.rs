//! Masks of patterns and lists of choices.
//!
//! Such a constraint is one regular language: which tokens may follow is a matter of its automaton alone, without the
//! parser that llguidance has for documents. The automaton is that of llguidance's lexer (derivre). It walks over a tree
//! of the vocabulary, and takes in one step all words below a node whose bytes leave it where it is.
//!
//! Invariant: a mask holds what llguidance's holds, but for the tokens that end the answer.

use std::sync::Arc;

use llguidance::derivre::{Regex, RegexBuilder, StateID};
use llguidance::toktrie::SimpleVob;

use super::tree::{Groups, Tree, group};

/// Steps of making the automaton, and of adding states to it for one mask.
const COMPILE_FUEL: u64 = 500_000;
pub(super) const STEP_FUEL: u64 = 30_000;
/// Bytes that an automaton may grow to.
const MAX_BYTES: usize = 4 << 20;
/// Nodes after which it is looked whether that was too much.
const NODES_AT_ONCE: usize = 1024;
/// From so many nodes below one on it pays to know which bytes leave a state as it is.
const MANY: usize = 16;

/// A place in a regular language. Copies go on by themselves.
#[derive(Clone)]
pub(super) struct Regular {
    automaton: Regex,
    tree: Arc<Tree>,
    /// Rows of a mask.
    rows: usize,
    state: StateID,
    /// By number of the state: groups of bytes all of which leave it as it is.
    stays: Vec<Option<Groups>>,
}

impl Regular {
    /// The beginning of the language of a pattern; None where that takes too many steps.
    pub(super) fn new(pattern: &str, tree: &Arc<Tree>, rows: usize) -> Option<Regular> {
        let mut builder = RegexBuilder::new();
        let root = builder.mk_regex(pattern).ok()?;
        let mut automaton = builder.into_regex_limited(root, COMPILE_FUEL).ok()?;
        let state = automaton.initial_state();
        Some(Regular { automaton, tree: Arc::clone(tree), rows, state, stays: Vec::new() })
    }

    /// Goes on with bytes that the language allows.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.state = self.automaton.transition_bytes(self.state, bytes);
    }

    /// The tokens that may follow; None where finding them takes too many steps.
    pub(super) fn allowed(&mut self) -> Option<SimpleVob> {
        let mut mask = SimpleVob::alloc_with_capacity(self.rows, self.rows + 1);
        let tree = Arc::clone(&self.tree);
        let nodes = tree.nodes();
        // The state behind each byte of the way to the node.
        let mut states = vec![self.state; tree.depth() + 1];
        let fuel = self.automaton.cost() + STEP_FUEL;
        let (mut index, mut steps) = (1, 0);
        while let Some(node) = nodes.get(index) {
            steps += 1;
            if steps % NODES_AT_ONCE == 0
                && (self.automaton.cost() > fuel || self.automaton.num_bytes() > MAX_BYTES)
            {
                return None;
            }
            let (depth, end) = (usize::from(node.depth), node.end as usize);
            let state = self.automaton.transition(states[depth - 1], node.byte);
            if state.is_dead() {
                index = end;
                continue;
            }
            let many = end - index > MANY;
            if many && node.below & !self.stays(state) == 0 {
                tree.ids_below(index).iter().for_each(|id| mask.allow_token(*id));
                index = end;
                continue;
            }
            tree.ids(index).iter().for_each(|id| mask.allow_token(*id));
            states[depth] = state;
            index += 1;
        }
        Some(mask)
    }

    /// Steps that the automaton has taken in all.
    #[cfg(test)]
    pub(super) fn cost(&self) -> u64 {
        self.automaton.cost()
    }

    /// Groups of bytes all of which lead from a state to itself.
    fn stays(&mut self, state: StateID) -> Groups {
        if self.stays.len() <= state.as_usize() {
            self.stays.resize(state.as_usize() + 1, None);
        }
        if let Some(groups) = self.stays[state.as_usize()] {
            return groups;
        }
        let mut groups = Groups::MAX;
        for byte in 0..=255 {
            // A group that has a byte which leads away is out, whatever its others do.
            if groups & group(byte) != 0 && self.automaton.transition(state, byte) != state {
                groups &= !group(byte);
            }
        }
        self.stays[state.as_usize()] = Some(groups);
        groups
    }
}
