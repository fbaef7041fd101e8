//! Masks for patterns and lists of choices.
//!
//! Such a constraint is one regular language: the tokens that may follow depend on its automaton alone,
//! without the parser that llguidance has for documents. The automaton (regex-automata's, computed completely
//! into a table) walks over a tree of the vocabulary, and takes in one step all words below a node where any
//! such characters may follow.
//!
//! It exists for its speed: with the vocabulary of Qwen 2 (152,000 tokens) the 99th percentile of the time of
//! a mask is 1.0 to 1.5 ms, where llguidance's parser takes 3.5 to 7.3 ms along texts and 3.5 to 6.5 ms on
//! random walks; the median is the same, 0.3 to 0.4 ms (`bench/results/2026-11-26-sapphire-rapids.md`;
//! `ONLY=regex_ make bench-engine` measures it).
//!
//! Invariant: a mask has the tokens of llguidance's mask, except for those that end the answer.

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use llguidance::toktrie::SimpleVob;
use regex_automata::dfa::{Automaton, StartKind, dense};
use regex_automata::nfa::thompson;
use regex_automata::util::primitives::StateID;
use regex_automata::util::start;
use regex_automata::{Anchored, MatchKind};
use regex_syntax::utf8::{Utf8Range, Utf8Sequence};

use super::tree::{Groups, SEQUENCES, Tree, group};

/// Most bytes of an automaton, and of the memory to find its states. It takes less than half a second to find
/// that these are not enough.
const MAX_BYTES: usize = 8 << 20;
/// Most masks that are kept: the first ones made, which most answers need.
const MAX_MASKS: usize = 48;
/// Most states that a search for the fewest tokens visits, a millisecond each with a large vocabulary.
const MAX_SEARCHED: usize = 60;
/// The state that leads nowhere.
const DEAD: u32 = 0;

/// A regular language, by the states of its automaton.
pub(super) struct Language {
    /// The column of each byte in a row.
    columns: [u16; 256],
    /// A row for each state, whose number is the index of the row's beginning. From every state but [`DEAD`]
    /// some word of the language can be reached.
    ///
    /// Column 0 has some groups of characters and column 1 a number: so many characters of these groups may
    /// follow, in any order. The others have the state that each byte leads to.
    rows: Vec<u32>,
    /// For each row, the least number of bytes from its state to the end of a word.
    distances: Vec<u32>,
    start: u32,
    tree: Arc<Tree>,
    /// Bits of a mask.
    mask_len: usize,
    /// Masks by state. They never change.
    masks: Mutex<HashMap<u32, SimpleVob>>,
}

impl Language {
    /// The language of a pattern, for masks over so many tokens; None where its automaton is too large, or
    /// the language is empty.
    pub(super) fn new(pattern: &str, tree: &Arc<Tree>, mask_len: usize) -> Option<Language> {
        let config = dense::Config::new()
            .start_kind(StartKind::Anchored)
            // All continuations count, also those behind a match.
            .match_kind(MatchKind::All)
            .accelerate(false)
            .dfa_size_limit(Some(MAX_BYTES))
            .determinize_size_limit(Some(MAX_BYTES));
        let thompson = thompson::Config::new().nfa_size_limit(Some(MAX_BYTES));
        let automaton = dense::Builder::new().configure(config).thompson(thompson).build(pattern).ok()?;
        let classes = automaton.byte_classes();
        let mut columns = [0; 256];
        for (byte, column) in (0..).zip(&mut columns) {
            *column = u16::from(classes.get(byte)) + 2;
        }
        let width = usize::from(*columns.iter().max()?) + 1;
        let mut found = FoundStates { numbers: HashMap::new(), states: Vec::new() };
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
        let distances = remove_dead_ends(&mut rows, width, ends);
        let (tree, masks) = (Arc::clone(tree), Mutex::default());
        let mut language = Language { columns, rows, distances, start, tree, mask_len, masks };
        language.find_runs(width);
        let leads_on = language.rows[start as usize + 2..][..width - 2].iter().any(|next| *next != DEAD);
        leads_on.then_some(language)
    }

    /// Its bytes, with all masks that may be kept.
    pub(super) fn bytes(&self) -> usize {
        size_of_val(&self.rows[..]) + size_of_val(&self.distances[..]) + MAX_MASKS * self.mask_len / 8
    }

    /// The least number of bytes from a state to the end of a word.
    fn distance(&self, state: u32) -> u32 {
        // The number of a state is that of its row times the columns of a row.
        self.distances[state as usize / (self.rows.len() / self.distances.len())]
    }

    /// A word of the fewest tokens, if `most` states are enough to find one.
    fn fewest(&self, most: usize) -> Option<Vec<u8>> {
        let (nodes, ids) = (self.tree.nodes(), self.tree.ids());
        // States in the order in which tokens reach them, with the index of the state before and the bytes
        // between.
        let mut reached: Vec<(u32, usize, Vec<u8>)> = vec![(self.start, 0, Vec::new())];
        let mut seen = HashSet::from([self.start]);
        let mut states = vec![DEAD; self.tree.depth() + 1];
        let mut bytes = vec![0; self.tree.depth() + 1];
        for at in 0..most {
            let state = reached.get(at)?.0;
            if at > 0 && self.distance(state) == 0 {
                let (mut at, mut parts) = (at, Vec::new());
                while at > 0 {
                    parts.push(&reached[at].2[..]);
                    at = reached[at].1;
                }
                parts.reverse();
                return Some(parts.concat());
            }
            states[0] = state;
            let mut index = 1;
            while index + 1 < nodes.len() {
                let node = &nodes[index];
                let depth = usize::from(node.depth);
                bytes[depth] = node.byte;
                states[depth] = self.next(states[depth - 1], node.byte);
                if states[depth] == DEAD {
                    index = node.end as usize;
                    continue;
                }
                let ends = ids.get(node.first_id as usize..nodes[index + 1].first_id as usize);
                if ends.is_some_and(|ids| !ids.is_empty()) && seen.insert(states[depth]) {
                    reached.push((states[depth], at, bytes[1..=depth].to_vec()));
                }
                index += 1;
            }
        }
        None
    }

    /// A shortest text from a state to the end of a word, of printable characters where that is possible.
    fn closing(&self, mut state: u32) -> Vec<u8> {
        let mut text = Vec::new();
        for left in (0..self.distance(state)).rev() {
            let mut bytes = (b' '..=b'~').chain(0..=u8::MAX).map(|byte| (byte, self.next(state, byte)));
            let next = bytes.find(|(_, next)| *next != DEAD && self.distance(*next) == left);
            let Some((byte, next)) = next else { break };
            text.push(byte);
            state = next;
        }
        text
    }

    fn next(&self, state: u32, byte: u8) -> u32 {
        self.rows[state as usize + usize::from(self.columns[usize::from(byte)])]
    }

    /// Whether any word below a node may follow a state.
    fn allows_all(&self, state: u32, below: Groups, height: u8) -> bool {
        let (groups, run) = (self.rows[state as usize], self.rows[state as usize + 1]);
        // The greatest height stands for all above it.
        below & !groups == 0 && (run == u32::MAX || height < u8::MAX && u32::from(height) <= run)
    }

    /// The tokens that may follow a state.
    fn mask(&self, state: u32) -> SimpleVob {
        let mut mask = SimpleVob::alloc_with_capacity(self.mask_len, self.mask_len + 1);
        let (rows, columns) = (&self.rows[..], &self.columns);
        let (nodes, ids) = (self.tree.nodes(), self.tree.ids());
        // The state behind each byte of the path to the node.
        let mut states = vec![state; self.tree.depth() + 1];
        let mut index = 1;
        while index + 1 < nodes.len() {
            let node = &nodes[index];
            let depth = usize::from(node.depth);
            let state = rows[states[depth - 1] as usize + usize::from(columns[usize::from(node.byte)])];
            let mut next = node.end as usize;
            if state != DEAD {
                // Half of the nodes have no children.
                if next != index + 1 && !self.allows_all(state, node.below, node.height) {
                    states[depth] = state;
                    next = index + 1;
                }
                let words = node.first_id as usize..nodes[next].first_id as usize;
                ids[words].iter().for_each(|id| mask.allow_token(*id));
            }
            index = next;
        }
        mask
    }

    /// Fills the first two columns.
    fn find_runs(&mut self, width: usize) {
        let states = || (width..self.rows.len()).step_by(width).map(|state| state as u32);
        let runs: Vec<(Groups, u32)> = states().map(|state| self.groups_alike(state)).collect();
        let run = |state: u32| runs[state as usize / width - 1];
        let mut lengths: HashMap<u32, u32> = HashMap::new();
        for state in states() {
            // The path goes from one state to the next as long as the groups stay the same or grow.
            let mut way = vec![state];
            let mut length = loop {
                let state = way[way.len() - 1];
                let (groups, next) = run(state);
                match lengths.get(&state) {
                    Some(length) => break *length,
                    None if groups == 0 => break 0,
                    None if next == state => break u32::MAX,
                    None if groups & !run(next).0 != 0 => break 1,
                    None => {
                        // A lower bound; a path that comes back to this state finds it.
                        lengths.insert(state, 1);
                        way.push(next);
                    }
                }
            };
            for state in way.into_iter().rev() {
                lengths.insert(state, length);
                length = length.saturating_add(1);
            }
        }
        let found: Vec<(u32, Groups, u32)> =
            states().map(|state| (state, run(state).0, lengths[&state])).collect();
        for (state, groups, length) in found {
            self.rows[state as usize] = groups;
            self.rows[state as usize + 1] = length;
        }
    }

    /// Groups of characters all of which lead from a state to one other state, and that state: the state
    /// itself if some groups lead to it, or the one that the first group leads to.
    fn groups_alike(&self, state: u32) -> (Groups, u32) {
        // The targets by the number of the group, as far as all its bytes lead to the same one.
        let mut targets = [None; Groups::BITS as usize];
        for byte in 0..=0x7f {
            let (target, next) =
                (&mut targets[group(byte.into()).trailing_zeros() as usize], self.next(state, byte));
            *target = Some(target.map_or(next, |target| if target == next { next } else { DEAD }));
        }
        let mut targets_alive = targets.iter().flatten().filter(|target| **target != DEAD);
        let Some(first) = targets_alive.clone().next().copied() else { return (0, DEAD) };
        let to = if targets_alive.any(|target| *target == state) { state } else { first };
        let (mut groups, mut others) = (0, 0);
        for byte in 0..=0x7f {
            *if self.next(state, byte) == to { &mut groups } else { &mut others } |= group(byte.into());
        }
        for (group, sequences) in &*SEQUENCES {
            let leads = |sequence: &Utf8Sequence| self.all_lead(state, sequence.as_slice(), to);
            *if sequences.iter().all(leads) { &mut groups } else { &mut others } |= group;
        }
        (groups & !others, to)
    }

    /// Whether all sequences of bytes from these ranges lead from one state to another.
    fn all_lead(&self, from: u32, ranges: &[Utf8Range], to: u32) -> bool {
        let Some((range, ranges)) = ranges.split_first() else { return from == to };
        let mut before = 0;
        (range.start..=range.end).all(|byte| {
            // Bytes of one column lead to the same state, and are often neighbours.
            let column = std::mem::replace(&mut before, self.columns[usize::from(byte)]);
            column == before
                || match self.next(from, byte) {
                    DEAD => false,
                    next => self.all_lead(next, ranges, to),
                }
        })
    }
}

/// States of regex-automata by our numbers, from 1 on.
struct FoundStates {
    numbers: HashMap<StateID, u32>,
    states: Vec<StateID>,
}

impl FoundStates {
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

/// Makes rows dead from which no end can be reached. Returns the least number of bytes from each row to an
/// end.
fn remove_dead_ends(rows: &mut [u32], width: usize, ends: Vec<usize>) -> Vec<u32> {
    let mut before: Vec<Vec<usize>> = vec![Vec::new(); rows.len() / width];
    for (row, nexts) in rows.chunks_exact(width).enumerate() {
        let mut nexts = nexts[2..].to_vec();
        nexts.sort_unstable();
        nexts.dedup();
        nexts.iter().for_each(|next| before[*next as usize / width].push(row));
    }
    let mut distances = vec![u32::MAX; before.len()];
    let mut open: VecDeque<(usize, u32)> = ends.into_iter().map(|row| (row, 0)).collect();
    while let Some((row, distance)) = open.pop_front() {
        if distances[row] == u32::MAX {
            distances[row] = distance;
            open.extend(before[row].iter().map(|row| (*row, distance + 1)));
        }
    }
    rows.iter_mut()
        .filter(|next| distances[**next as usize / width] == u32::MAX)
        .for_each(|next| *next = DEAD);
    distances
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

    /// Takes bytes that the language allows.
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.state = bytes.iter().fold(self.state, |state, byte| self.language.next(state, *byte));
    }

    /// A shortest text that leads from here, after some bytes, to the end of a word; None where these lead
    /// nowhere.
    pub(super) fn closing_behind(&self, bytes: &[u8]) -> Option<Vec<u8>> {
        let state = bytes.iter().fold(self.state, |state, byte| self.language.next(state, *byte));
        (state != DEAD).then(|| self.language.closing(state))
    }

    /// A word of the language with the fewest tokens, if it is found in little time.
    pub(super) fn fewest(&self) -> Option<Vec<u8>> {
        self.language.fewest(MAX_SEARCHED)
    }

    /// The tokens that may follow.
    pub(super) fn allowed(&self) -> SimpleVob {
        let mut masks = self.language.masks.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(mask) = masks.get(&self.state) {
            return mask.clone();
        }
        let mask = self.language.mask(self.state);
        if masks.len() < MAX_MASKS {
            masks.insert(self.state, mask.clone());
        }
        mask
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::{Language, MAX_BYTES, Regular};
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
        // A text that begins with x never ends.
        let language = language("ab|x(y|z)*[a&&b]").unwrap();
        let next = |bytes: &str| bytes.bytes().fold(language.start, |state, byte| language.next(state, byte));
        assert_eq!((next("x"), next("b")), (0, 0));
        assert!(next("a") != 0 && next("ab") != 0 && next("aba") == 0);
    }

    #[test]
    fn words_longer_than_a_repetition_are_not_allowed_with_the_shorter_ones() {
        let words: Vec<Vec<u8>> = (1..=600).map(|length| vec![b'a'; length]).collect();
        let tree = Arc::new(Tree::new((0..).zip(words.iter().map(|word| &word[..]))));
        for most in [1, 2, 254, 255, 256, 257, 300, 599] {
            let language = Arc::new(Language::new(&format!("a{{1,{most}}}"), &tree, words.len()).unwrap());
            let allowed = Regular::new(&language).allowed();
            assert_eq!(allowed.iter().collect::<Vec<_>>(), (0..most).collect::<Vec<_>>(), "{most}");
        }
        for (pattern, count) in [("a+", 600), ("(aa)+", 600), ("(ab?)*", 600)] {
            let language = Arc::new(Language::new(pattern, &tree, words.len()).unwrap());
            assert_eq!(Regular::new(&language).allowed().num_set(), count, "{pattern}");
        }
    }
}
