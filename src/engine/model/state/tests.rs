use super::layout::Recurrent;
use super::*;
use crate::kernels::attention::AttentionSizes;

fn state(layers: Vec<Box<dyn LayerState>>) -> SequenceState {
    let mut state = SequenceState::new(StateLayout::new(layers.into_iter(), KvCacheType::F16), 64);
    state.reserve(200).unwrap();
    state.advance(200);
    state
}

fn windowed(window: Option<usize>) -> Box<dyn LayerState> {
    let (heads, kind) = (AttentionSizes { query: 2, kv: 1, dim: 4 }, KvCacheType::F16);
    Box::new(KeysAndValues { heads, kind, window })
}

fn attention() -> Box<dyn LayerState> {
    windowed(None)
}

#[test]
fn a_state_is_cut_back_to_what_all_its_layers_can_go_on_from() {
    let mut keys = state(vec![attention(), attention()]);
    keys.truncate(130);
    assert_eq!((keys.len(), keys.blocks()), (130, 3));
    let mut mixed = state(vec![attention(), Box::new(Recurrent { values: 8 }), attention()]);
    mixed.truncate(130);
    assert_eq!((mixed.len(), mixed.blocks()), (2 * TILE, 2));
    mixed.truncate(500);
    assert_eq!(mixed.len(), 2 * TILE, "nothing comes back");
    mixed.truncate(TILE - 1);
    assert_eq!((mixed.len(), mixed.blocks()), (0, 0));
}

#[test]
fn wiping_leaves_zeros_behind_the_last_position_and_nothing_else_changed() {
    let mut state = state(vec![attention(), attention()]);
    for block in &mut state.blocks {
        Arc::make_mut(block).fill(7);
    }
    let shared = state.block(2);
    state.wipe(130);
    let last = &state.blocks[2];
    let part = last.len() / 2;
    for tile in last.chunks_exact(part) {
        let (keys, values) = tile.split_at(part / 2);
        assert!(keys.chunks_exact(TILE).all(|keys| keys[..2] == [7, 7] && keys[2..].iter().all(|x| *x == 0)));
        assert!(values[..2 * 4].iter().all(|x| *x == 7) && values[2 * 4..].iter().all(|x| *x == 0));
    }
    let shared = content(shared);
    assert!(shared.iter().all(|x| *x == 7), "the block that others have too is not written");
    assert!(state.blocks[1].iter().all(|x| *x == 7));
}

#[test]
fn guesses_are_taken_back_or_gone_on_from_and_a_pass_that_was_given_up_goes_back_to_a_copy() {
    let mut state = state(vec![Box::new(Recurrent { values: 8 }), attention()]);
    state.reserve(300).unwrap();
    let pass = |state: &mut SequenceState| {
        state.begin(3);
        assert_eq!(state.parts(5, false).2.map(|running| running.certain), Some(2));
        state.now.values.fill(1.0);
        state.ahead.values.fill(2.0);
    };
    pass(&mut state);
    state.advance(5);
    state.truncate(204);
    assert_eq!(state.len(), 202, "before the first guess");
    state.begin(0);
    assert!(state.now.values.iter().all(|x| *x == 1.0));
    state.advance(1);
    pass(&mut state);
    state.advance(5);
    state.truncate(300);
    assert_eq!(state.len(), 208, "all guesses were right");
    state.begin(0);
    assert!(state.now.values.iter().all(|x| *x == 2.0));
    state.advance(1);
    pass(&mut state);
    state.give_up();
    assert_eq!(state.len(), 3 * TILE);
    let copy = state.layout.place(0).block;
    crate::kernels::recurrence::store(&[3.0; 8], &mut Arc::make_mut(&mut state.blocks[2])[copy..]);
    state.begin(0);
    assert!(state.now.values.iter().all(|x| *x == 3.0));
    state.advance(1);
    state.forget();
    state.reserve(10).unwrap();
    state.begin(0);
    assert!(state.now.values.iter().all(|x| *x == 0.0), "a text begins with nothing");
}

#[test]
fn large_copies_are_in_some_blocks_only() {
    let layout = StateLayout::with_copies_in_every_fourth_block();
    let mut state = SequenceState::new(layout.clone(), 64);
    state.reserve(9 * TILE).unwrap();
    let lengths: Vec<usize> = state.blocks.iter().map(|block| block.len()).collect();
    assert!((0..9).all(|index| (lengths[index] > lengths[0]) == (index % 4 == 3)), "{lengths:?}");
    assert_eq!(state.block_bytes(9), 2 * lengths.iter().sum::<usize>() as u64);
    state.begin(0);
    state.advance(9 * TILE - 5);
    state.truncate(9 * TILE - 6);
    assert_eq!((state.len(), state.blocks()), (8 * TILE, 8));
    state.truncate(8 * TILE - 1);
    assert_eq!((state.len(), state.blocks()), (4 * TILE, 4));
}

/// The blocks that have their window part.
fn seen(state: &SequenceState) -> Vec<usize> {
    (0..state.windows.len()).filter(|index| !state.windows[*index].is_empty()).collect()
}

#[test]
fn windows_give_back_blocks_that_they_no_longer_see_and_others_do_not() {
    for (window, rows) in [(1, 2), (1, 70), (64, 1), (65, 64), (100, 17), (100, 64), (200, 3)] {
        let mut state = SequenceState::new(StateLayout::with_a_window(window), rows);
        let most = state.most_window_blocks();
        assert!(most <= (window + rows).div_ceil(TILE) + 2);
        while state.len() < 2000 {
            state.reserve(state.len() + rows).unwrap();
            let (first, last) = ((state.len() + 1).saturating_sub(window), state.len() + rows - 1);
            assert_eq!(seen(&state), (first / TILE..last / TILE + 1).collect::<Vec<_>>(), "{window} {rows}");
            assert!(state.window_blocks() <= most, "{window} {rows}");
            state.begin(0);
            state.advance(rows);
        }
        assert_eq!(state.blocks(), state.len().div_ceil(TILE), "the other layer has all");
        let (whole, one) = (state.block_bytes(32), state.window_bytes(1));
        assert_eq!(state.bytes(32 * TILE), whole + most as u64 * one, "what is reserved for it");
        assert_eq!(state.bytes(TILE), state.block_bytes(1) + one);
    }
}

#[test]
fn a_state_goes_back_to_where_windows_are_there_or_to_the_beginning() {
    let mut state = SequenceState::new(StateLayout::with_a_window(100), 256);
    state.reserve(200).unwrap();
    state.advance(200);
    state.reserve(456).unwrap();
    assert_eq!(seen(&state), (1..8).collect::<Vec<_>>());
    state.advance(256);
    // Positions that the last pass has seen are still there.
    state.truncate(430);
    assert_eq!((state.len(), state.window_blocks()), (430, 6));
    state.truncate(163);
    assert_eq!((state.len(), state.window_blocks()), (163, 2), "its window begins with the second block");
    state.truncate(162);
    assert_eq!((state.len(), state.blocks(), state.window_blocks()), (0, 0, 0));
    state.reserve(100).unwrap();
    assert_eq!(seen(&state), [0, 1]);
}

#[test]
fn recurrent_layers_and_windows_agree_on_where_to_go_back_to() {
    let mut state = state(vec![Box::new(Recurrent { values: 8 }), windowed(Some(100)), attention()]);
    state.settle();
    assert_eq!(seen(&state), [1, 2, 3]);
    state.truncate(199);
    assert_eq!((state.len(), state.blocks()), (3 * TILE, 3), "the end of a block");
    state.truncate(3 * TILE - 1);
    assert_eq!((state.len(), state.blocks()), (0, 0), "behind two blocks, the window begins in the first");
}

#[test]
fn wiping_and_sharing_reach_what_windows_see() {
    let mut state = state(vec![windowed(Some(100)), attention()]);
    for block in state.windows.iter_mut().chain(&mut state.blocks) {
        Arc::make_mut(block).fill(7);
    }
    let shared = state.block(2);
    state.wipe(130);
    for block in [&state.windows[2], &state.blocks[2]] {
        assert!(block.contains(&7) && block.iter().filter(|x| **x == 0).count() == 62 * 2 * 4);
    }
    let window: SharedBlock = shared.window().unwrap();
    assert!(window.iter().all(|x| *x == 7), "others see what was there");
    state.reserve(200).unwrap();
    state.advance(70);
    state.settle();
    assert!(!state.block(0).has_window() && state.block(1).has_window());
}
