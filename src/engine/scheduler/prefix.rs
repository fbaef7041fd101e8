//! Blocks of state (keys and values, mostly) that are kept, so that sequences which begin alike compute their
//! beginning once.
//!
//! Each model has one [`Prefixes`]: full blocks, found by a hash over the salt and all tokens up to their
//! end. A hit is compared token by token and by its place in the chain, so a collision is a miss and never a
//! wrong block. States are the same bytes whoever computes them, so hits change no result.
//!
//! The part of a block that only sliding windows read ([`StateBlock::has_window`]) may be dropped by itself.
//! Then no sequence resumes where its windows reach back to that block, until another sequence has computed
//! the part again; sequences still resume before the block, and further behind it.
//!
//! The last blocks of some prompts are kept as well, although they are not full: prompts that begin alike and
//! are shorter than a block, or differ in the middle of one, share their common tokens of it. The block is
//! copied when the sequence goes on.
//!
//! Invariants: only blocks whose tokens are all computed are kept. A block is freed before the one that it
//! follows, and neither is freed while a running sequence holds it.

use crate::computing::{BLOCK, State, StateBlock};
use std::collections::{BTreeSet, HashMap};

/// Most blocks that are not full.
const MOST_TAILS: usize = 8;
/// Fewest positions of such a block that are worth the copy.
const FEWEST_SHARED: usize = 8;

/// Kept blocks of one model.
#[derive(Default)]
pub(super) struct Prefixes {
    entries: HashMap<u64, PrefixEntry>,
    /// (last use, hash) of the entries that no other one follows.
    leaves: BTreeSet<(u64, u64)>,
    /// (last use through a window, hash) of the entries that have the window part of their block.
    windows: BTreeSet<(u64, u64)>,
    /// Counts uses.
    clock: u64,
    /// The last entry's number.
    number: u64,
    /// Bytes of all blocks.
    bytes: u64,
    /// Blocks that are not full, the last used one first.
    tails: Vec<Tail>,
}

/// The block in which a prompt ends.
struct Tail {
    salt: u64,
    /// Number of the entry that it follows; 0 for none.
    parent: u64,
    /// Tokens of the prompt that the block holds.
    tokens: Box<[u32]>,
    block: StateBlock,
    bytes: u64,
}

struct PrefixEntry {
    /// Unique, never used again.
    number: u64,
    salt: u64,
    /// Number of the entry that it follows; 0 for none.
    parent: u64,
    /// Its hash.
    parent_hash: u64,
    tokens: Box<[u32]>,
    block: StateBlock,
    /// Bytes of the block without its window part; and those of that part, whether it is there or not.
    bytes: u64,
    window_bytes: u64,
    used: u64,
    /// The last time at which a sequence began to see it through a window.
    window_used: u64,
    /// Entries that follow it.
    followers: usize,
}

/// The place of a sequence in the kept blocks: how many of its first blocks are kept ones.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    salt: u64,
    /// Hash and number of the last kept block.
    hash: u64,
    number: u64,
    blocks: usize,
    /// The hash of the next block is taken by another one: nothing more of this sequence is kept.
    blocked: bool,
}

impl Chain {
    /// No blocks yet. Only sequences of the same salt share blocks.
    pub(super) fn new(salt: u64) -> Chain {
        Chain { salt, hash: mix(salt), number: 0, blocks: 0, blocked: false }
    }

    /// Number of the sequence's first blocks that are kept ones.
    pub(super) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Hashes of the full blocks of `tokens` from the first that is not a kept one.
    pub(super) fn hashes<'a>(&self, tokens: &'a [u32]) -> impl Iterator<Item = u64> + use<'a> {
        let rest = tokens.get(self.blocks * BLOCK..).unwrap_or_default();
        rest.as_chunks::<BLOCK>().0.iter().scan(self.hash, |hash, tokens| {
            *hash = extend(*hash, tokens);
            Some(*hash)
        })
    }
}

impl Prefixes {
    /// Bytes of all blocks.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Bytes of the blocks that running sequences hold, without their window parts, which are counted with
    /// the sequences.
    pub(super) fn held_bytes(&self) -> u64 {
        let held = self.entries.values().filter(|entry| entry.block.is_shared());
        let tails = self.tails.iter().filter(|tail| tail.block.is_shared());
        held.map(|entry| entry.bytes).chain(tails.map(|tail| tail.bytes)).sum()
    }

    /// Attaches kept blocks to a sequence, as far as they are there and hold only tokens of the first `most`.
    /// Returns the number of positions that the sequence has gained.
    pub(super) fn attach(&mut self, chain: &mut Chain, state: &mut dyn State, tokens: &[u32]) -> usize {
        let before = state.len();
        if before != chain.blocks * BLOCK {
            return 0;
        }
        let mut end = chain.clone();
        for tokens in tokens[before.min(tokens.len())..].as_chunks::<BLOCK>().0 {
            let hash = extend(end.hash, tokens);
            let Some(entry) = self.find(&end, hash, tokens) else { break };
            state.attach(entry.block.clone());
            (end.hash, end.number) = (hash, entry.number);
            end.blocks += 1;
            if state.resumes_behind(end.blocks) {
                *chain = end.clone();
            }
        }
        // Some models cannot resume behind every block.
        state.truncate(chain.blocks * BLOCK);
        state.settle();
        let gained = state.len() - before;
        if gained > 0 {
            self.note_seen(chain, state.window_blocks());
        }
        gained
    }

    /// Notes that windows see the last blocks of a chain.
    fn note_seen(&mut self, chain: &Chain, blocks: usize) {
        let (mut hash, mut number) = (chain.hash, chain.number);
        for _ in 0..blocks {
            let Some(entry) = self.entries.get_mut(&hash).filter(|entry| entry.number == number) else {
                return;
            };
            self.clock += 1;
            let before = std::mem::replace(&mut entry.window_used, self.clock);
            if self.windows.remove(&(before, hash)) {
                self.windows.insert((self.clock, hash));
            }
            (hash, number) = (entry.parent_hash, entry.parent);
        }
    }

    /// Keeps the full blocks of a sequence. `tokens` are those in its state, or the first of them. Where the
    /// same block is kept already, the sequence takes that one and its own is freed.
    pub(super) fn keep(&mut self, chain: &mut Chain, state: &mut dyn State, tokens: &[u32]) {
        debug_assert!(tokens.len() <= state.len());
        for tokens in tokens.get(chain.blocks * BLOCK..).unwrap_or_default().as_chunks::<BLOCK>().0 {
            if chain.blocked {
                return;
            }
            let hash = extend(chain.hash, tokens);
            let number = if self.find(chain, hash, tokens).is_some() {
                let own = state.block(chain.blocks);
                self.complete(hash, &own);
                let Some(entry) = self.entries.get(&hash) else { return };
                state.replace(chain.blocks, entry.block.clone());
                entry.number
            } else if self.entries.contains_key(&hash) {
                chain.blocked = true;
                return;
            } else {
                let [before, behind] = [0, 1].map(|more| state.block_bytes(chain.blocks + more));
                let bytes = (behind - before, state.window_bytes(1));
                self.insert(chain, hash, tokens, state.block(chain.blocks), bytes)
            };
            (chain.hash, chain.number) = (hash, number);
            chain.blocks += 1;
        }
    }

    /// Gives an entry the window part of its block, where it has lost that.
    fn complete(&mut self, hash: u64, own: &StateBlock) {
        let Some(entry) = self.entries.get_mut(&hash).filter(|entry| !entry.block.has_window()) else {
            return;
        };
        entry.block.take_window(own);
        if entry.block.has_window() {
            self.clock += 1;
            entry.window_used = self.clock;
            self.bytes += entry.window_bytes;
            self.windows.insert((self.clock, hash));
        }
    }

    /// Resumes a sequence in the middle of the next block behind its kept ones, as far as another prompt has
    /// computed the block with the same tokens. `tokens` are those of the whole sequence that it may share.
    /// Returns the number of positions that the sequence has gained.
    pub(super) fn attach_tail(&mut self, chain: &Chain, state: &mut dyn State, tokens: &[u32]) -> usize {
        let before = state.len();
        if before != chain.blocks * BLOCK {
            return 0;
        }
        let rest = tokens.get(before..).unwrap_or_default();
        let Some((index, shared)) = self.best_tail(chain, rest) else { return 0 };
        if shared < FEWEST_SHARED {
            return 0;
        }
        self.tails[..=index].rotate_right(1);
        state.attach(self.tails[0].block.clone());
        state.truncate(before + shared);
        state.len().saturating_sub(before)
    }

    /// Keeps the block in which a prompt ends, unless others share most of it already. Its full blocks are
    /// kept, and the state has all of its tokens.
    pub(super) fn keep_tail(&mut self, chain: &Chain, state: &dyn State, tokens: &[u32]) {
        let rest = tokens.get(chain.blocks * BLOCK..).unwrap_or_default();
        let has_end = rest.len() < BLOCK && state.len() >= tokens.len() && state.blocks() > chain.blocks;
        let is_shared = self.best_tail(chain, rest).is_some_and(|(_, shared)| 2 * shared >= rest.len());
        if !has_end || rest.len() < FEWEST_SHARED || is_shared {
            return;
        }
        while self.tails.len() >= MOST_TAILS {
            self.bytes -= self.tails.pop().map_or(0, |tail| tail.bytes);
        }
        let [before, behind] = [0, 1].map(|more| state.block_bytes(chain.blocks + more));
        let (salt, parent, bytes) = (chain.salt, chain.number, behind - before);
        self.bytes += bytes;
        self.tails
            .insert(0, Tail { salt, parent, tokens: rest.into(), block: state.block(chain.blocks), bytes });
    }

    /// The block behind a chain that begins like `rest`, and how many tokens they have in common.
    fn best_tail(&self, chain: &Chain, rest: &[u32]) -> Option<(usize, usize)> {
        let shared =
            |tail: &Tail| tail.tokens.iter().zip(rest).take_while(|(own, other)| own == other).count();
        let tails = self.tails.iter().enumerate();
        tails
            .filter(|(_, tail)| tail.salt == chain.salt && tail.parent == chain.number)
            .map(|(index, tail)| (index, shared(tail)))
            .max_by_key(|(index, shared)| (*shared, std::cmp::Reverse(*index)))
    }

    /// Frees a block and returns its bytes: of the blocks that are not full the least recently used one, and
    /// if there is none, the least recently used of the others, or the window part of one. None where running
    /// sequences hold all of them.
    pub(super) fn evict(&mut self) -> Option<u64> {
        if let Some(last) = self.tails.iter().rposition(|tail| !tail.block.is_shared()) {
            let tail = self.tails.remove(last);
            self.bytes -= tail.bytes;
            return Some(tail.bytes);
        }
        let entry = |hash: &u64| self.entries.get(hash);
        let leaf = self.leaves.iter().find(|(_, hash)| entry(hash).is_some_and(|it| !it.block.is_shared()));
        let window =
            self.windows.iter().find(|(_, hash)| entry(hash).is_some_and(|it| !it.block.window_is_shared()));
        let (leaf, window) = (leaf.copied(), window.copied());
        if let Some(window) = window.filter(|window| leaf.is_none_or(|leaf| window.0 < leaf.0)) {
            self.windows.remove(&window);
            let entry = self.entries.get_mut(&window.1)?;
            entry.block.drop_window();
            self.bytes -= entry.window_bytes;
            return Some(entry.window_bytes);
        }
        let leaf = leaf?;
        self.leaves.remove(&leaf);
        let entry = self.entries.remove(&leaf.1)?;
        let has_window = self.windows.remove(&(entry.window_used, leaf.1));
        let bytes = entry.bytes + if has_window { entry.window_bytes } else { 0 };
        self.bytes -= bytes;
        if let Some(parent) = self.entries.get_mut(&entry.parent_hash)
            && parent.number == entry.parent
        {
            parent.followers -= 1;
            if parent.followers == 0 {
                self.leaves.insert((parent.used, entry.parent_hash));
            }
        }
        Some(bytes)
    }

    /// The entry of this hash, if it is the block of these tokens in this chain; notes the use.
    fn find(&mut self, chain: &Chain, hash: u64, tokens: &[u32]) -> Option<&PrefixEntry> {
        let entry = self.entries.get_mut(&hash)?;
        let same = entry.salt == chain.salt && entry.parent == chain.number && *entry.tokens == *tokens;
        if !same {
            return None;
        }
        self.clock += 1;
        let before = std::mem::replace(&mut entry.used, self.clock);
        if self.leaves.remove(&(before, hash)) {
            self.leaves.insert((self.clock, hash));
        }
        Some(entry)
    }

    /// Adds a block behind the chain; returns its number. `bytes` are those of the block and of its window
    /// part.
    fn insert(
        &mut self,
        chain: &Chain,
        hash: u64,
        tokens: &[u32],
        block: StateBlock,
        (bytes, window_bytes): (u64, u64),
    ) -> u64 {
        self.bytes += bytes;
        if let Some(parent) = self.entries.get_mut(&chain.hash)
            && parent.number == chain.number
        {
            parent.followers += 1;
            self.leaves.remove(&(parent.used, chain.hash));
        }
        self.clock += 1;
        self.number += 1;
        if block.has_window() {
            self.bytes += window_bytes;
            self.windows.insert((self.clock, hash));
        }
        let entry = PrefixEntry {
            number: self.number,
            salt: chain.salt,
            parent: chain.number,
            parent_hash: chain.hash,
            tokens: tokens.into(),
            block,
            bytes,
            window_bytes,
            used: self.clock,
            window_used: self.clock,
            followers: 0,
        };
        self.entries.insert(hash, entry);
        self.leaves.insert((self.clock, hash));
        self.number
    }
}

/// The hash of a chain with 64 more tokens.
fn extend(hash: u64, tokens: &[u32]) -> u64 {
    tokens.iter().fold(hash, |hash, token| mix(hash ^ u64::from(*token)))
}

/// The finaliser of SplitMix64 behind an odd constant, so that 0 is not its own image.
fn mix(z: u64) -> u64 {
    let z = z.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ z >> 31
}

#[cfg(test)]
mod tests;
