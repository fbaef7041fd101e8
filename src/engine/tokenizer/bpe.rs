//! Byte-pair encoding of one word, which begins as the tokens of its bytes or characters: neighbours are
//! merged, the pair of the lowest rank first and the leftmost of equals.
//!
//! The algorithm is that of the `tokenizers` crate, with which the tests compare it. The crate's own model is
//! not used at run time because it indexes out of bounds on merges that are longer than any token, keeps a
//! cache per thread for ever, and makes a String per token.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Marks the end of the list of symbols, and a symbol that was merged into its left neighbour.
const NONE: u32 = u32::MAX;

/// (left, right) to (rank, merged token).
pub(super) type Merges = HashMap<(u32, u32), (u32, u32)>;

/// Merges of a vocabulary.
#[derive(Debug)]
pub(super) struct Bpe {
    merges: Merges,
}

/// A token in the making. Positions are 32 bits: words are shorter than 4 GiB.
#[derive(Debug, Clone, Copy)]
struct BpeSymbol {
    token: u32,
    previous: u32,
    next: u32,
}

/// Memory that is kept from word to word.
#[derive(Debug, Default)]
pub(super) struct BpeScratch {
    symbols: Vec<BpeSymbol>,
    /// Merges that were possible when they were found: (rank, position of the left symbol, left, right).
    candidates: BinaryHeap<Reverse<(u32, u32, u32, u32)>>,
}

impl BpeScratch {
    /// Forgets the last word.
    pub(super) fn clear(&mut self) {
        self.symbols.clear();
        self.candidates.clear();
    }

    /// Appends a token to the word, to be merged.
    pub(super) fn push(&mut self, token: u32) {
        let position = self.symbols.len() as u32;
        if let Some(last) = self.symbols.last_mut() {
            last.next = position;
        }
        self.symbols.push(BpeSymbol { token, previous: position.checked_sub(1).unwrap_or(NONE), next: NONE });
    }

    /// The tokens of the word, in order.
    pub(super) fn tokens(&self) -> impl Iterator<Item = u32> {
        let mut next = self.symbols.first();
        std::iter::from_fn(move || {
            let symbol = next?;
            next = self.symbols.get(symbol.next as usize);
            Some(symbol.token)
        })
    }
}

impl Bpe {
    pub(super) fn new(merges: Merges) -> Self {
        Bpe { merges }
    }

    /// Merges the tokens that were pushed.
    pub(super) fn merge_all(&self, scratch: &mut BpeScratch) {
        for position in 1..scratch.symbols.len() as u32 {
            self.propose(scratch, position - 1, position);
        }
        while let Some(Reverse((_, position, left, right))) = scratch.candidates.pop() {
            self.merge(scratch, position, left, right);
        }
    }

    /// Adds a candidate if two neighbours can be merged.
    fn propose(&self, scratch: &mut BpeScratch, left: u32, right: u32) {
        let (Some(a), Some(b)) = (scratch.symbols.get(left as usize), scratch.symbols.get(right as usize))
        else {
            return;
        };
        if let Some((rank, _)) = self.merges.get(&(a.token, b.token)) {
            scratch.candidates.push(Reverse((*rank, left, a.token, b.token)));
        }
    }

    /// Merges the symbol at `position` with its right neighbour, if both are still those of the candidate.
    fn merge(&self, scratch: &mut BpeScratch, position: u32, left: u32, right: u32) {
        let Some(symbol) = scratch.symbols.get(position as usize).copied() else { return };
        let Some(neighbour) = scratch.symbols.get(symbol.next as usize).copied() else { return };
        if symbol.token != left || neighbour.token != right {
            return;
        }
        let Some((_, merged)) = self.merges.get(&(left, right)) else { return };
        if let Some(gone) = scratch.symbols.get_mut(symbol.next as usize) {
            *gone = BpeSymbol { token: NONE, previous: NONE, next: NONE };
        }
        if let Some(kept) = scratch.symbols.get_mut(position as usize) {
            *kept = BpeSymbol { token: *merged, previous: symbol.previous, next: neighbour.next };
        }
        if let Some(after) = scratch.symbols.get_mut(neighbour.next as usize) {
            after.previous = position;
        }
        self.propose(scratch, symbol.previous, position);
        self.propose(scratch, position, neighbour.next);
    }
}
