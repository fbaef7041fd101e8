//! Masks of patterns and lists of choices.
//!
//! Such a constraint is one regular language: which tokens may follow is a matter of its automaton alone, without the
//! parser that llguidance has for documents. The automaton (regex-automata's, all of it, in a table) walks over a tree of
//! the vocabulary, and takes in one step all words below a node whose characters leave it where it is.
//!
//! Invariant: a mask holds what llguidance's holds, but for the tokens that end the answer.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::sync::Arc;

use llguidance::toktrie::SimpleVob;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};

use super::tree::{Groups, Tree, group};

/// Bytes that an automaton may have, and that may be needed to find its states. It takes less than half a second to
/// see that these are not enough.
const MAX_BYTES: usize = 8 << 20;
/// Leads nowhere.
const DEAD: u32 = 0;

/// A regular language, by the states of its automaton.
pub(super) struct Language {
    /// The column of each byte in a row, from 1 on.
    columns: [u8; 256],
    /// A row for each state: groups of characters all of which lead back to it, then the state that each byte leads to.
    /// A state is where its row begins. From every state but [`DEAD`] some word of the language can be reached.
    rows: Vec<u32>,
    start: u32,
    tree: Arc<Tree>,
    /// Bits of a mask.
    mask_len: usize,
}

impl Language {
    /// The language of a pattern, for masks over so many tokens; None where its automaton is too large, or nothing is in
    /// it.
    pub(super) fn new(pattern: &str, tree: &Arc<Tree>, mask_len: usize) -> Option<Language> {
        let config = dense::Config::new()
            .start_kind(StartKind::Anchored)
            // All ways to go on count, behind a match as well.
            .match_kind(MatchKind::All)
            .accelerate(false)
            .dfa_size_limit(Some(MAX_BYTES))
            .determinize_size_limit(Some(MAX_BYTES));
        let automaton = dense::Builder::new().configure(config).build(pattern).ok()?;
        let classes = automaton.byte_classes();
        let mut columns = [0; 256];
        for (byte, column) in (0..).zip(&mut columns) {
            *column = classes.get(byte).checked_add(1)?;
        }
        let width = usize::from(*columns.iter().max()?) + 1;
        let mut found = Found { numbers: HashMap::new(), states: Vec::new() };
        let first = automaton.start_state(&start::Config::new().anchored(Anchored::Yes)).ok()?;
        let start = found.number(&automaton, first) * width as u32;
        // The row of the dead state.
        let mut rows = vec![DEAD; width];
        while let Some(state) = found.states.get(rows.len() / width - 1).copied() {
            let row = rows.len();
            rows.resize(row + width, DEAD);
            for (byte, column) in (0..).zip(columns) {
                let number = found.number(&automaton, automaton.next_state(state, byte));
                rows[row + usize::from(column)] = number * width as u32;
            }
        }
        let ends = |state: &StateID| automaton.is_match_state(automaton.next_eoi_state(*state));
        let ends: Vec<usize> =
            (1..).zip(&found.states).filter(|(_, state)| ends(state)).map(|(row, _)| row).collect();
        remove_dead_ends(&mut rows, width, ends);
        let mut language = Language { columns, rows, start, tree: Arc::clone(tree), mask_len };
        for row in (0..language.rows.len()).step_by(width) {
            language.rows[row] = language.groups_back(row as u32);
        }
        let leads_on = language.rows[start as usize + 1..][..width - 1].iter().any(|next| *next != DEAD);
        leads_on.then_some(language)
    }

    /// Bytes that it takes.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.rows[..])
    }

    fn next(&self, state: u32, byte: u8) -> u32 {
        self.rows[state as usize + usize::from(self.columns[usize::from(byte)])]
    }

    /// Groups of characters all of which lead from a state back to it.
    fn stays(&self, state: u32) -> Groups {
        self.rows[state as usize]
    }

    /// Finds [`Language::stays`]; none beyond ASCII where there is none in it.
    fn groups_back(&self, state: u32) -> Groups {
        let (mut back, mut away) = (0, 0);
        for byte in 0..=0x7f {
            *if self.next(state, byte) == state { &mut back } else { &mut away } |= group(byte);
        }
        if back & !away != 0 {
            for byte in 0xc2..=0xef {
                // What follows it in UTF-8.
                let (second, more) = match byte {
                    ..=0xdf => (0x80..=0xbf, 0),
                    0xe0 => (0xa0..=0xbf, 1),
                    0xed => (0x80..=0x9f, 1),
                    _ => (0x80..=0xbf, 1),
                };
                let is_back = self.all_lead(self.next(state, byte), second, more, state);
                *if is_back { &mut back } else { &mut away } |= group(byte);
            }
        }
        back & !away
    }

    /// Whether some bytes, and `more` behind each, lead from one state to another whatever they are.
    fn all_lead(&self, from: u32, bytes: RangeInclusive<u8>, more: usize, to: u32) -> bool {
        let mut before = 0;
        bytes.into_iter().all(|byte| {
            // Bytes of one column are alike, and often neighbours.
            let column = std::mem::replace(&mut before, self.columns[usize::from(byte)]);
            column == before
                || match (self.next(from, byte), more) {
                    (next, 0) => next == to,
                    (next, _) => next != DEAD && self.all_lead(next, 0x80..=0xbf, more - 1, to),
                }
        })
    }
}

/// States of regex-automata by our numbers, from 1 on.
struct Found {
    numbers: HashMap<StateID, u32>,
    states: Vec<StateID>,
}

impl Found {
    fn number(&mut self, automaton: &dense::DFA<Vec<u32>>, state: StateID) -> u32 {
        if automaton.is_dead_state(state) {
            return DEAD;
        }
        let states = &mut self.states;
        *self.numbers.entry(state).or_insert_with(|| {
            states.push(state);
            states.len() as u32
        })
    }
}

/// Makes dead what no end can be reached from.
fn remove_dead_ends(rows: &mut [u32], width: usize, ends: Vec<usize>) {
    let mut before: Vec<Vec<usize>> = vec![Vec::new(); rows.len() / width];
    for (row, nexts) in rows.chunks_exact(width).enumerate() {
        let mut nexts = nexts[1..].to_vec();
        nexts.sort_unstable();
        nexts.dedup();
        nexts.iter().for_each(|next| before[*next as usize / width].push(row));
    }
    let mut lives = vec![false; before.len()];
    let mut open = ends;
    while let Some(row) = open.pop() {
        if !std::mem::replace(&mut lives[row], true) {
            open.extend(&before[row]);
        }
    }
    rows.iter_mut().filter(|next| !lives[**next as usize / width]).for_each(|next| *next = DEAD);
}

/// A place in a language.
pub(super) struct Regular {
    language: Arc<Language>,
    state: u32,
}

impl Regular {
    /// The beginning.
    pub(super) fn new(language: &Arc<Language>) -> Regular {
        Regular { language: Arc::clone(language), state: language.start }
    }

    /// Goes on with bytes that the language allows.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.state = bytes.iter().fold(self.state, |state, byte| self.language.next(state, *byte));
    }

    /// The tokens that may follow.
    pub(super) fn allowed(&self) -> SimpleVob {
        let Language { tree, mask_len, .. } = &*self.language;
        let mut mask = SimpleVob::alloc_with_capacity(*mask_len, mask_len + 1);
        let nodes = tree.nodes();
        // The state behind each byte of the way to the node.
        let mut states = vec![self.state; tree.depth() + 1];
        let mut index = 1;
        while let Some(node) = nodes.get(index) {
            let depth = usize::from(node.depth);
            let state = self.language.next(states[depth - 1], node.byte);
            if state == DEAD {
                index = node.end as usize;
            } else if node.below & !self.language.stays(state) == 0 {
                tree.ids_below(index).iter().for_each(|id| mask.allow_token(*id));
                index = node.end as usize;
            } else {
                tree.ids(index).iter().for_each(|id| mask.allow_token(*id));
                states[depth] = state;
                index += 1;
            }
        }
        mask
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Language, MAX_BYTES};
    use crate::constraints::tree::Tree;

    fn language(pattern: &str) -> Option<Language> {
        let words = (0..=255u8).map(|byte| (u32::from(byte), [byte])).collect::<Vec<_>>();
        Language::new(pattern, &Arc::new(Tree::new(words.iter().map(|(id, word)| (*id, &word[..])))), 256)
    }

    #[test]
    fn what_is_too_large_or_empty_has_none() {
        let large = language(r"(\w+ ){5,30}\w+\.").unwrap();
        assert!(large.bytes() <= MAX_BYTES, "{} bytes", large.bytes());
        for pattern in
            [r"(a|b)*a(a|b){40}c", r"\w{200}\W{200}", "(((a{1,50}){1,50}){1,20})b", "a[a&&b]", "a$b", "("]
        {
            assert!(language(pattern).is_none(), "{pattern}");
        }
    }

    #[test]
    fn dead_ends_are_not_entered() {
        // Of what begins with x nothing ends.
        let language = language("ab|x(y|z)*[a&&b]").unwrap();
        let next = |bytes: &str| bytes.bytes().fold(language.start, |state, byte| language.next(state, byte));
        assert_eq!((next("x"), next("b")), (0, 0));
        assert!(next("a") != 0 && next("ab") != 0 && next("aba") == 0);
    }
}
