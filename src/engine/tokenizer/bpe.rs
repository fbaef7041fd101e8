//! Byte-pair encoding of one word: its bytes become tokens, then neighbours are merged, the pair of the
//! lowest rank first and the leftmost of equals.
//!
//! The algorithm is the one of the `tokenizers` crate, which the tests compare with. Its own model is not
//! used at run time because it indexes out of bounds on merges that are longer than any token, keeps a
//! cache per thread for ever, and makes a String per token.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Marks the end of the list of symbols, and a symbol that was merged into its left neighbour.
const NONE: u32 = u32::MAX;

/// (left, right) to (rank, merged token).
pub(super) type Merges = HashMap<(u32, u32), (u32, u32)>;

/// Bytes and merges of a vocabulary.
#[derive(Debug)]
pub(super) struct Bpe {
    /// The token of each byte.
    bytes: [Option<u32>; 256],
    merges: Merges,
}

/// A token in the making. Positions are 32 bits: words are shorter than 4 GiB.
#[derive(Debug, Clone, Copy)]
struct Symbol {
    token: u32,
    previous: u32,
    next: u32,
}

/// Memory that is kept from word to word.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    symbols: Vec<Symbol>,
    /// Merges that were possible when they were found: (rank, position of the left symbol, left, right).
    candidates: BinaryHeap<Reverse<(u32, u32, u32, u32)>>,
}

impl Bpe {
    pub(super) fn new(bytes: [Option<u32>; 256], merges: Merges) -> Self {
        Bpe { bytes, merges }
    }

    /// Appends the tokens of `word`; the error is a byte that has no token.
    pub(super) fn encode(&self, word: &[u8], scratch: &mut Scratch, ids: &mut Vec<u32>) -> Result<(), u8> {
        scratch.symbols.clear();
        scratch.candidates.clear();
        for (position, byte) in word.iter().enumerate() {
            let token = self.bytes.get(usize::from(*byte)).copied().flatten().ok_or(*byte)?;
            let position = position as u32;
            let next = if position as usize + 1 < word.len() { position + 1 } else { NONE };
            scratch.symbols.push(Symbol { token, previous: position.checked_sub(1).unwrap_or(NONE), next });
        }
        for position in 1..scratch.symbols.len() as u32 {
            self.propose(scratch, position - 1, position);
        }
        while let Some(Reverse((_, position, left, right))) = scratch.candidates.pop() {
            self.merge(scratch, position, left, right);
        }
        let mut position = if word.is_empty() { NONE } else { 0 };
        while let Some(symbol) = scratch.symbols.get(position as usize) {
            ids.push(symbol.token);
            position = symbol.next;
        }
        Ok(())
    }

    /// Notes that two neighbours can be merged, if they can.
    fn propose(&self, scratch: &mut Scratch, left: u32, right: u32) {
        let (Some(a), Some(b)) = (scratch.symbols.get(left as usize), scratch.symbols.get(right as usize))
        else {
            return;
        };
        if let Some((rank, _)) = self.merges.get(&(a.token, b.token)) {
            scratch.candidates.push(Reverse((*rank, left, a.token, b.token)));
        }
    }

    /// Merges the symbol at `position` with its right neighbour, if they still are what the candidate says.
    fn merge(&self, scratch: &mut Scratch, position: u32, left: u32, right: u32) {
        let Some(symbol) = scratch.symbols.get(position as usize).copied() else { return };
        let Some(neighbour) = scratch.symbols.get(symbol.next as usize).copied() else { return };
        if symbol.token != left || neighbour.token != right {
            return;
        }
        let Some((_, merged)) = self.merges.get(&(left, right)) else { return };
        if let Some(gone) = scratch.symbols.get_mut(symbol.next as usize) {
            *gone = Symbol { token: NONE, previous: NONE, next: NONE };
        }
        if let Some(kept) = scratch.symbols.get_mut(position as usize) {
            *kept = Symbol { token: *merged, previous: symbol.previous, next: neighbour.next };
        }
        if let Some(after) = scratch.symbols.get_mut(neighbour.next as usize) {
            after.previous = position;
        }
        self.propose(scratch, symbol.previous, position);
        self.propose(scratch, position, neighbour.next);
    }
}
