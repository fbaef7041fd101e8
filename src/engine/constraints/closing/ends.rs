//! The shortest ways from a state of a lexer to the ends of lexemes.

use std::collections::{HashMap, HashSet};

use llguidance::earley::lexerspec::LexemeIdx;
use llguidance::earley::regexvec::{NextByte, RegexVec, StateID};

/// The inputs of such a search, and its results.
#[derive(Clone)]
pub(super) struct Ends {
    /// One byte of each class that the lexer distinguishes, a printable one where there is one, and printable
    /// ones first.
    bytes: Vec<u8>,
    /// Number of printable bytes among them.
    printable: usize,
    /// Whether bytes that are not printable are only tried where printable ones lead nowhere. Results need
    /// not be shortest then, but characters of several bytes add no states.
    narrow: bool,
    /// The ways that were found, by states in which one lexeme is left: the next byte, or None where the
    /// lexeme may end.
    tails: HashMap<StateID, Option<u8>>,
}

/// Most states in `tails`.
const MAX_TAILS: usize = 100_000;

impl Ends {
    pub(super) fn new(lexer: &RegexVec, narrow: bool) -> Ends {
        let mut classes = HashSet::new();
        let mut new = |byte: &u8| classes.insert(lexer.alpha().map(*byte));
        let mut bytes: Vec<u8> = (b' '..=b'~').filter(&mut new).collect();
        let printable = bytes.len();
        bytes.extend((0..=u8::MAX).filter(&mut new));
        Ends { bytes, printable, narrow, tails: HashMap::new() }
    }

    /// The same search without results, as these hold for the states of one lexer only.
    pub(super) fn anew(&self) -> Ends {
        Ends { tails: HashMap::new(), ..self.clone() }
    }

    /// Steps of the lexer that a search may take.
    pub(super) fn steps(&self) -> usize {
        if self.narrow { 100_000 } else { 10_000 }
    }

    /// For lexemes that can end after a state, a text to their end: for all of which the total of its length
    /// and of `behind`, the number of bytes behind the lexeme, may be the least. A lexeme that has begun may
    /// end at once, others take at least one byte. `steps` are counted down; when none are left, some lexemes
    /// may be missing.
    pub(super) fn find(
        &mut self,
        lexer: &mut RegexVec,
        from: StateID,
        begun: bool,
        behind: impl Fn(LexemeIdx) -> u64,
        steps: &mut usize,
    ) -> Vec<(LexemeIdx, Box<[u8]>)> {
        if self.narrow {
            let ends = self.search(self.printable, lexer, from, begun, &behind, steps);
            if !ends.is_empty() {
                return ends;
            }
        }
        self.search(self.bytes.len(), lexer, from, begun, &behind, steps)
    }

    /// Finds the shortest ways, except that a known way is followed as soon as it is met.
    fn search(
        &mut self,
        bytes: usize,
        lexer: &mut RegexVec,
        from: StateID,
        begun: bool,
        behind: &impl Fn(LexemeIdx) -> u64,
        steps: &mut usize,
    ) -> Vec<(LexemeIdx, Box<[u8]>)> {
        // States in the order in which they are reached: the number of bytes from the first state, the state
        // before, and the byte between the two.
        let mut reached = vec![(from, 0u64, 0, 0)];
        let mut seen = HashSet::from([from]);
        // The states from which lexemes follow a known way, and the remaining bytes.
        let mut ends: Vec<(LexemeIdx, usize, Vec<u8>)> = Vec::new();
        let possible: Vec<(LexemeIdx, u64)> =
            lexer.state_desc(from).possible.iter().map(|lexeme| (lexeme, behind(lexeme))).collect();
        let mut least_behind = possible.iter().map(|(_, bytes)| *bytes).min().unwrap_or(u64::MAX);
        let mut best = u64::MAX;
        let mut at = 0;
        while at < reached.len() && ends.len() < possible.len() && *steps > 0 {
            let (state, depth, ..) = reached[at];
            if least_behind.saturating_add(depth) > best {
                break;
            }
            let mut found: Vec<(LexemeIdx, Vec<u8>)> = Vec::new();
            if at > 0 || begun {
                if let Some(tail) = self.tail(lexer, state) {
                    found.extend(lexer.state_desc(state).possible.first().map(|lexeme| (lexeme, tail)));
                }
                let ended = lexer.state_desc(state);
                for lexemes in [&ended.greedy_accepting, &ended.lazy_accepting] {
                    found.extend(lexemes.as_slice().iter().map(|lexeme| (*lexeme, Vec::new())));
                }
            }
            for (lexeme, tail) in found {
                if ends.iter().all(|(end, ..)| *end != lexeme) {
                    best = best.min(behind(lexeme).saturating_add(depth + tail.len() as u64));
                    ends.push((lexeme, at, tail));
                    let left = possible.iter().filter(|(one, _)| ends.iter().all(|(end, ..)| end != one));
                    least_behind = left.map(|(_, bytes)| *bytes).min().unwrap_or(u64::MAX);
                }
            }
            // The lexer goes no further from a state in which it ends a lexeme at once.
            if !state.has_lowest_match() {
                let forced = match lexer.next_byte(state) {
                    NextByte::ForcedByte(byte) => Some(byte),
                    _ => None,
                };
                let bytes = forced.as_ref().map_or(&self.bytes[..bytes], std::slice::from_ref);
                for byte in bytes {
                    *steps = steps.saturating_sub(1);
                    let next = lexer.transition(state, *byte);
                    if !next.is_dead() && seen.insert(next) {
                        reached.push((next, depth + 1, at, *byte));
                    }
                }
            }
            at += 1;
        }
        let mut texts = Vec::with_capacity(ends.len());
        for (lexeme, mut at, tail) in ends {
            let known = !tail.is_empty();
            let mut text = tail;
            text.reverse();
            if !known {
                self.keep(lexer, reached[at].0, None);
            }
            while at > 0 {
                let (.., before, byte) = reached[at];
                text.push(byte);
                at = before;
                self.keep(lexer, reached[at].0, Some(byte));
            }
            text.reverse();
            texts.push((lexeme, text.into_boxed_slice()));
        }
        texts
    }

    /// Records the next byte along a way, if it is the way of one lexeme.
    fn keep(&mut self, lexer: &RegexVec, state: StateID, next: Option<u8>) {
        if self.tails.len() < MAX_TAILS && lexer.state_desc(state).possible.iter().nth(1).is_none() {
            self.tails.entry(state).or_insert(next);
        }
    }

    /// The known way from a state, if there is one.
    fn tail(&self, lexer: &mut RegexVec, mut state: StateID) -> Option<Vec<u8>> {
        let mut tail = Vec::new();
        while let Some(byte) = self.tails.get(&state)? {
            tail.push(*byte);
            state = lexer.transition(state, *byte);
            if tail.len() > MAX_TAILS {
                return None;
            }
        }
        Some(tail)
    }
}
