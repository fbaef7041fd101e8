//! Which blocks are found, which are shared, and which go first.

use super::{Chain, Prefixes};
use crate::computing::{BLOCK, State};
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
    SequenceState::new(StateLayout::of_one_layer(), 64)
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

/// Number of positions of these tokens that are kept.
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
    // A tail is not kept again where a kept one shares most of it.
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
    // A collision as it would look: the same hash for other tokens, then for another parent block.
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
    let state = || SequenceState::new(StateLayout::with_copies_in_every_fourth_block(), 64);
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

/// A sequence on a model with a window of 100 positions that has computed these tokens as one pass for
/// each block.
fn windowed(prefixes: &mut Prefixes, tokens: &[u32]) -> (Chain, SequenceState, usize) {
    let (mut chain, mut state) = (Chain::new(0), SequenceState::new(StateLayout::with_a_window(100), BLOCK));
    let gained = prefixes.attach(&mut chain, &mut state, tokens);
    for _ in gained / BLOCK..tokens.len() / BLOCK {
        state.reserve(state.len() + BLOCK).unwrap();
        state.begin(0);
        state.advance(BLOCK);
        let computed = state.len();
        prefixes.keep(&mut chain, &mut state, &tokens[..computed]);
    }
    (chain, state, gained / BLOCK)
}

#[test]
fn what_windows_no_longer_see_goes_first_and_a_prefix_is_taken_up_where_all_that_they_see_is_there() {
    let mut prefixes = Prefixes::default();
    let one = tokens(3, 10);
    let (chain, state, _) = windowed(&mut prefixes, &one);
    let (block, window) = (state.block_bytes(1), state.window_bytes(1));
    assert_eq!(prefixes.bytes(), 10 * (block + window));
    assert_eq!(prefixes.held_bytes(), 10 * block, "the rest is counted with the sequence");
    // The sequence holds all blocks, and the window parts of the last ones.
    let held = state.window_blocks();
    assert!(held <= state.most_window_blocks() && held < 5);
    let mut freed = 0;
    while let Some(bytes) = prefixes.evict() {
        assert_eq!(bytes, window);
        freed += 1;
    }
    assert_eq!((freed, prefixes.len()), (10 - held, 10));
    assert_eq!(prefixes.bytes(), 10 * block + held as u64 * window);
    // Other sequences resume where that one is, and not before.
    let (_, other, gained) = windowed(&mut prefixes, &one);
    assert_eq!((gained, other.window_blocks()), (10, 2));
    for blocks in [1, 5, 8] {
        let (mut chain, mut state) = (Chain::new(0), SequenceState::new(StateLayout::with_a_window(100), 64));
        assert_eq!(prefixes.attach(&mut chain, &mut state, &one[..blocks * BLOCK]), 0, "{blocks}");
        assert_eq!((state.blocks(), state.window_blocks(), chain.blocks()), (0, 0, 0));
    }
    // A request that computes the window parts again shares them with all.
    let (_, again, gained) = windowed(&mut prefixes, &one[..6 * BLOCK]);
    assert_eq!(gained, 0);
    assert!(again.block(0).is(&state.block(0)), "the blocks are the same ones");
    let (_, _, gained) = windowed(&mut prefixes, &one[..5 * BLOCK]);
    assert_eq!(gained, 5);
    drop((chain, state, other, again));
    while prefixes.evict().is_some() {}
    assert_eq!((prefixes.len(), prefixes.bytes()), (0, 0));
    assert!(prefixes.windows.is_empty() && prefixes.leaves.is_empty());
}

#[test]
fn what_is_seen_again_and_again_stays_and_the_rest_of_what_windows_see_goes_in_the_order_of_its_age() {
    let mut prefixes = Prefixes::default();
    let one = tokens(3, 10);
    drop(windowed(&mut prefixes, &one));
    // Another sequence begins like it, for three blocks.
    let (_, state, gained) = windowed(&mut prefixes, &one[..3 * BLOCK]);
    assert_eq!((gained, state.window_blocks()), (3, 2));
    drop(state);
    let block_of = |prefixes: &Prefixes| {
        let has = |entry: &&super::PrefixEntry| entry.block.has_window();
        let mut all: Vec<_> = prefixes.entries.values().filter(has).map(|entry| entry.number).collect();
        all.sort_unstable();
        all
    };
    (0..6).for_each(|_| assert!(prefixes.evict().is_some()));
    assert_eq!(block_of(&prefixes), [2, 3, 9, 10], "the end, and what was seen last");
}
