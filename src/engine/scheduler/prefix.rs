//! Blocks of state (keys and values, mostly) that are kept, so that sequences which begin alike compute their beginning once.
//!
//! Each model has one [`Prefixes`]: full blocks, found by a hash over the salt and all tokens up to their end.
//! A hit is compared token by token and by its place in the chain, so a collision is a miss and never a wrong
//! block. States are the same bytes whoever computes them, so hits change no result.
//!
//! Beside them the last blocks of some prompts are kept, which are not full: prompts that begin alike and are shorter than a block, or differ
//! in the middle of one, share what they have in common of it. The block is copied when the sequence goes on.
//!
//! Invariants: only blocks whose tokens are all computed are kept. A block goes before the one it follows
//! does, and neither while a running sequence holds it.

use crate::backend::{BLOCK, Block, State};
use std::collections::{BTreeSet, HashMap};

/// Most blocks that are not full.
const MOST_TAILS: usize = 8;
/// Fewest positions of one that are worth the copy.
const FEWEST_SHARED: usize = 8;

/// Kept blocks of one model.
#[derive(Default)]
pub(super) struct Prefixes {
    entries: HashMap<u64, Entry>,
    /// (last use, hash) of the entries that no other one follows.
    leaves: BTreeSet<(u64, u64)>,
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
    /// What is in it of the prompt.
    tokens: Box<[u32]>,
    block: Block,
    bytes: u64,
}

struct Entry {
    /// Never used twice.
    number: u64,
    salt: u64,
    /// Number of the entry that it follows; 0 for none.
    parent: u64,
    /// Its hash.
    parent_hash: u64,
    tokens: Box<[u32]>,
    block: Block,
    /// Of the block.
    bytes: u64,
    used: u64,
    /// Entries that follow it.
    followers: usize,
}

/// How many of a sequence's first blocks are kept ones.
#[derive(Debug, Clone)]
pub(super) struct Chain {
    salt: u64,
    /// Hash and number of the last kept block.
    hash: u64,
    number: u64,
    blocks: usize,
    /// A hash of another block is in the way: nothing more of this sequence is kept.
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

    /// Bytes of the blocks that running sequences hold.
    pub(super) fn held_bytes(&self) -> u64 {
        let held = self.entries.values().filter(|entry| entry.block.is_shared());
        let tails = self.tails.iter().filter(|tail| tail.block.is_shared());
        held.map(|entry| entry.bytes).chain(tails.map(|tail| tail.bytes)).sum()
    }

    /// Lets a sequence go on behind kept blocks, as far as they are there and hold some of the first `most`
    /// tokens only. Returns how many positions it has gained.
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
        // Some models cannot go on behind every block.
        state.truncate(chain.blocks * BLOCK);
        state.len() - before
    }

    /// Keeps the full blocks of a sequence. `tokens` are those in its state, or the first of them. Where the same block is kept
    /// already, the sequence takes that one and its own is freed.
    pub(super) fn keep(&mut self, chain: &mut Chain, state: &mut dyn State, tokens: &[u32]) {
        debug_assert!(tokens.len() <= state.len());
        for tokens in tokens.get(chain.blocks * BLOCK..).unwrap_or_default().as_chunks::<BLOCK>().0 {
            if chain.blocked {
                return;
            }
            let hash = extend(chain.hash, tokens);
            let number = if let Some(entry) = self.find(chain, hash, tokens) {
                state.replace(chain.blocks, entry.block.clone());
                entry.number
            } else if self.entries.contains_key(&hash) {
                chain.blocked = true;
                return;
            } else {
                let [before, behind] = [0, 1].map(|more| state.block_bytes(chain.blocks + more));
                self.insert(chain, hash, tokens, state.block(chain.blocks), behind - before)
            };
            (chain.hash, chain.number) = (hash, number);
            chain.blocks += 1;
        }
    }

    /// Lets a sequence go on in the middle of the next block behind its kept ones, as far as another prompt has computed that with
    /// the same tokens. `tokens` are those of the whole sequence that it may share. Returns how many positions it has gained.
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

    /// Keeps the block in which a prompt ends, unless others share most of it already. Its full blocks are kept, and the state has all of
    /// its tokens.
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

    /// Frees the block that was not used for the longest time and returns its bytes. None where running sequences hold all of them.
    pub(super) fn evict(&mut self) -> Option<u64> {
        let free =
            |(_, hash): &&(u64, u64)| self.entries.get(hash).is_some_and(|entry| !entry.block.is_shared());
        if let Some(last) = self.tails.iter().rposition(|tail| !tail.block.is_shared()) {
            let tail = self.tails.remove(last);
            self.bytes -= tail.bytes;
            return Some(tail.bytes);
        }
        let leaf = self.leaves.iter().find(free).copied()?;
        self.leaves.remove(&leaf);
        let entry = self.entries.remove(&leaf.1)?;
        self.bytes -= entry.bytes;
        if let Some(parent) = self.entries.get_mut(&entry.parent_hash)
            && parent.number == entry.parent
        {
            parent.followers -= 1;
            if parent.followers == 0 {
                self.leaves.insert((parent.used, entry.parent_hash));
            }
        }
        Some(entry.bytes)
    }

    /// The entry of this hash, if it is the block of these tokens in this chain; notes the use.
    fn find(&mut self, chain: &Chain, hash: u64, tokens: &[u32]) -> Option<&Entry> {
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

    /// Adds a block behind the chain; returns its number.
    fn insert(&mut self, chain: &Chain, hash: u64, tokens: &[u32], block: Block, bytes: u64) -> u64 {
        self.bytes += bytes;
        if let Some(parent) = self.entries.get_mut(&chain.hash)
            && parent.number == chain.number
        {
            parent.followers += 1;
            self.leaves.remove(&(parent.used, chain.hash));
        }
        self.clock += 1;
        self.number += 1;
        let entry = Entry {
            number: self.number,
            salt: chain.salt,
            parent: chain.number,
            parent_hash: chain.hash,
            tokens: tokens.into(),
            block,
            bytes,
            used: self.clock,
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
mod tests {
    use super::{Chain, Prefixes};
    use crate::backend::{BLOCK, State};
    use crate::model::{SequenceState, StateLayout};

    impl Prefixes {
        fn len(&self) -> usize {
            self.entries.len()
        }

        fn held(&self) -> usize {
            self.entries.values().filter(|entry| entry.block.is_shared()).count()
        }
    }

    fn empty() -> SequenceState {
        SequenceState::new(StateLayout::of_one_layer())
    }

    /// A sequence whose tokens are all computed and kept.
    fn kept(prefixes: &mut Prefixes, salt: u64, tokens: &[u32]) -> (Chain, SequenceState) {
        let (mut chain, mut cache) = (Chain::new(salt), empty());
        let gained = prefixes.attach(&mut chain, &mut cache, tokens);
        cache.reserve(tokens.len()).unwrap();
        cache.advance(tokens.len() - gained);
        prefixes.keep(&mut chain, &mut cache, tokens);
        (chain, cache)
    }

    /// How many positions of the tokens are there.
    fn found(prefixes: &mut Prefixes, salt: u64, tokens: &[u32]) -> usize {
        prefixes.attach(&mut Chain::new(salt), &mut empty(), tokens)
    }

    fn tokens(seed: u32, blocks: usize) -> Vec<u32> {
        (0..(blocks * BLOCK) as u32).map(|i| i * seed).collect()
    }

    #[test]
    fn a_block_is_found_by_its_tokens_and_all_before_it() {
        let mut prefixes = Prefixes::default();
        let one = tokens(3, 3);
        kept(&mut prefixes, 0, &one);
        assert_eq!(prefixes.len(), 3);
        assert_eq!(found(&mut prefixes, 0, &one), 3 * BLOCK);
        assert_eq!(found(&mut prefixes, 0, &one[..2 * BLOCK + 63]), 2 * BLOCK, "full blocks only");
        let mut other = one.clone();
        other[BLOCK + 5] += 1;
        assert_eq!(found(&mut prefixes, 0, &other), BLOCK, "up to the first difference");
        assert_eq!(found(&mut prefixes, 0, &one[BLOCK..]), 0, "not in another place");
        assert_eq!(found(&mut prefixes, 1, &one), 0, "not under another salt");
    }

    #[test]
    fn the_block_in_which_a_prompt_ends_is_shared_as_far_as_tokens_are_the_same() {
        let mut prefixes = Prefixes::default();
        let one: Vec<u32> = tokens(3, 2)[..BLOCK + 40].to_vec();
        let (chain, cache) = kept(&mut prefixes, 0, &one);
        prefixes.keep_tail(&chain, &cache, &one);
        assert_eq!(prefixes.bytes(), cache.block_bytes(2));
        let attached = |prefixes: &mut Prefixes, salt: u64, tokens: &[u32]| {
            let (mut chain, mut cache) = (Chain::new(salt), empty());
            prefixes.attach(&mut chain, &mut cache, tokens);
            prefixes.attach_tail(&chain, &mut cache, tokens);
            assert_eq!(cache.len().div_ceil(BLOCK), cache.blocks());
            cache.len()
        };
        assert_eq!(attached(&mut prefixes, 0, &one), BLOCK + 40);
        assert_eq!(attached(&mut prefixes, 0, &one[..BLOCK + 20]), BLOCK + 20);
        let mut other = one.clone();
        other[BLOCK + 25] += 1;
        assert_eq!(attached(&mut prefixes, 0, &other), BLOCK + 25, "up to the first difference");
        assert_eq!(attached(&mut prefixes, 1, &one), 0, "not under another salt");
        assert_eq!(attached(&mut prefixes, 0, &one[BLOCK..]), 0, "not in another place");
        other[BLOCK + 3] += 1;
        assert_eq!(attached(&mut prefixes, 0, &other), BLOCK, "not for a few");
        // What others share most of is kept once.
        prefixes.keep_tail(&chain, &cache, &one);
        assert_eq!(prefixes.tails.len(), 1);
        drop(cache);
        while prefixes.evict().is_some() {}
        assert_eq!((prefixes.bytes(), prefixes.tails.len()), (0, 0));
    }

    #[test]
    fn equal_blocks_are_kept_once() {
        let mut prefixes = Prefixes::default();
        let one = tokens(3, 2);
        // Both were computed before either was kept.
        let mut second = (Chain::new(0), empty());
        second.1.reserve(one.len()).unwrap();
        second.1.advance(one.len());
        let (_, first) = kept(&mut prefixes, 0, &one);
        prefixes.keep(&mut second.0, &mut second.1, &one);
        assert_eq!(prefixes.len(), 2);
        assert!(first.block(1).is(&second.1.block(1)));
    }

    #[test]
    fn a_collision_is_a_miss() {
        let mut prefixes = Prefixes::default();
        let one = tokens(3, 2);
        kept(&mut prefixes, 0, &one);
        // What a collision would look like: the same hash over other tokens, or behind another block.
        for entry in prefixes.entries.values_mut() {
            entry.tokens[0] ^= 1;
        }
        assert_eq!(found(&mut prefixes, 0, &one), 0);
        let (chain, _) = kept(&mut prefixes, 0, &one);
        assert_eq!((chain.blocks(), prefixes.len()), (0, 2), "what is in the way stays");
        for entry in prefixes.entries.values_mut() {
            entry.tokens[0] ^= 1;
            entry.parent += 7;
        }
        assert_eq!(found(&mut prefixes, 0, &one), 0);
    }

    #[test]
    fn the_longest_unused_goes_first_ends_before_beginnings_and_nothing_that_is_held() {
        let mut prefixes = Prefixes::default();
        let (one, two, three) = (tokens(3, 2), tokens(5, 2), tokens(7, 2));
        kept(&mut prefixes, 0, &one);
        let held = kept(&mut prefixes, 0, &two);
        kept(&mut prefixes, 0, &three);
        assert_eq!((prefixes.len(), prefixes.held()), (6, 2));
        assert_eq!(found(&mut prefixes, 0, &one), 2 * BLOCK, "now three is the oldest");
        assert!(prefixes.evict().is_some());
        assert_eq!(found(&mut prefixes, 0, &three), BLOCK, "its end went");
        assert_eq!(found(&mut prefixes, 0, &one), 2 * BLOCK);
        while prefixes.evict().is_some() {}
        assert_eq!(prefixes.len(), 2);
        assert_eq!(found(&mut prefixes, 0, &two), 2 * BLOCK, "which a sequence holds");
        drop(held);
        while prefixes.evict().is_some() {}
        assert_eq!((prefixes.len(), prefixes.bytes()), (0, 0));
        assert!(prefixes.leaves.is_empty());
    }

    #[test]
    fn only_blocks_that_a_sequence_can_go_on_behind_are_attached() {
        let mut prefixes = Prefixes::default();
        let state = || SequenceState::new(StateLayout::with_copies_in_every_fourth_block());
        let one = tokens(3, 11);
        let (mut chain, mut cache) = (Chain::new(0), state());
        cache.reserve(one.len()).unwrap();
        cache.begin(0);
        cache.advance(one.len());
        prefixes.keep(&mut chain, &mut cache, &one);
        assert_eq!((prefixes.len(), prefixes.bytes()), (11, cache.block_bytes(11)));
        for (blocks, attached) in [(3, 0), (4, 4), (7, 4), (11, 8)] {
            let (mut chain, mut cache) = (Chain::new(0), state());
            let tokens = &one[..blocks * BLOCK];
            assert_eq!(prefixes.attach(&mut chain, &mut cache, tokens), attached * BLOCK);
            assert_eq!((chain.blocks(), cache.blocks(), cache.len()), (attached, attached, attached * BLOCK));
        }
    }
}
