//! What a sequence keeps of the tokens that were computed: its state.
//!
//! It grows by blocks of [`TILE`] positions. A block is one allocation, made when its first position is reached, of which
//! each layer has a part; how the part is laid out, and how far back the layer can go, is up to the kind of the layer
//! ([`LayerState`]). Sequences that begin with the same tokens may share blocks.
//!
//! Invariant: a block that is shared is never written; a sequence that has to gets a copy of its own.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use super::spec::Spec;
use crate::Error;
use crate::backend::{Block, State};
use crate::kernels::attention::{Heads, TILE};
use crate::kernels::disjoint::Disjoint;
use crate::memory::fallible;

/// What the layers of one kind keep.
pub(super) trait LayerState: std::fmt::Debug + Send + Sync {
    /// Values of the layer in a block, as f16.
    fn len(&self) -> usize;

    /// The most positions, at most `positions`, that what the layer keeps can be cut back to. What is computed from there
    /// on is as if the positions behind had never been.
    fn resumable(&self, positions: usize) -> usize;

    /// Leaves zeros in the layer's part of a block where the positions from `slot` on were.
    fn clear(&self, part: &mut [u16], slot: usize);
}

/// Keys and values of attention, for each key-value head as [`crate::kernels::attention`] lays them out: positions do
/// not depend on those behind them, so any number of them can be taken away.
#[derive(Debug)]
pub(super) struct KeysAndValues {
    pub(super) heads: Heads,
}

/// Nothing: the layer uses the state of another one.
#[derive(Debug)]
struct Nothing;

impl LayerState for Nothing {
    fn len(&self) -> usize {
        0
    }

    fn resumable(&self, positions: usize) -> usize {
        positions
    }

    fn clear(&self, _part: &mut [u16], _slot: usize) {}
}

impl LayerState for KeysAndValues {
    fn len(&self) -> usize {
        self.heads.kv * self.heads.tile_len()
    }

    fn resumable(&self, positions: usize) -> usize {
        positions
    }

    fn clear(&self, part: &mut [u16], slot: usize) {
        let tile_len = self.heads.tile_len();
        for tile in part.chunks_exact_mut(tile_len) {
            let (keys, values) = tile.split_at_mut(tile_len / 2);
            keys.chunks_exact_mut(TILE).for_each(|keys| keys[slot..].fill(0));
            values[slot * self.heads.dim..].fill(0);
        }
    }
}

/// The parts of a block of one model. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct StateLayout(Arc<Vec<Part>>);

/// What one layer has of each block.
#[derive(Debug)]
struct Part {
    range: Range<usize>,
    layer: Box<dyn LayerState>,
}

impl StateLayout {
    /// The layout of a model: a part for each of its blocks.
    pub(super) fn of(spec: &Spec) -> StateLayout {
        StateLayout::new(spec.blocks.iter().map(|block| {
            let layer: Box<dyn LayerState> = match block.attention.shares {
                Some(_) => Box::new(Nothing),
                None => Box::new(KeysAndValues { heads: block.attention.heads }),
            };
            layer
        }))
    }

    /// The layout of these layers.
    pub(super) fn new(layers: impl Iterator<Item = Box<dyn LayerState>>) -> StateLayout {
        let mut end = 0;
        let parts = layers.map(|layer| {
            let start = end;
            end += layer.len();
            Part { range: start..end, layer }
        });
        StateLayout(Arc::new(parts.collect()))
    }

    /// That of a small layer.
    #[cfg(test)]
    pub(crate) fn of_one_layer() -> StateLayout {
        let layer: Box<dyn LayerState> = Box::new(KeysAndValues { heads: Heads { query: 1, kv: 1, dim: 2 } });
        StateLayout::new(std::iter::once(layer))
    }

    fn block_len(&self) -> usize {
        self.0.last().map_or(0, |part| part.range.end)
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(&self) -> u64 {
        self.block_len() as u64 * size_of::<u16>() as u64
    }

    /// Where the part of a layer begins in each block.
    pub(super) fn offset(&self, layer: usize) -> usize {
        self.0[layer].range.start
    }

    /// The most positions that all layers can go back to.
    fn resumable(&self, positions: usize) -> usize {
        // What one layer cannot keep the others may have to give up too.
        let mut least = positions;
        loop {
            let next = self.0.iter().fold(least, |least, part| part.layer.resumable(least));
            if next == least {
                return least;
            }
            least = next;
        }
    }
}

/// The state of one sequence.
#[derive(Debug)]
pub(crate) struct SequenceState {
    layout: StateLayout,
    blocks: Vec<SharedBlock>,
    len: usize,
}

impl SequenceState {
    /// A state of no positions and no blocks.
    pub(crate) fn new(layout: StateLayout) -> Self {
        SequenceState { layout, blocks: Vec::new(), len: 0 }
    }

    /// Gives back the blocks of a state without positions beyond those for `positions`.
    pub(super) fn shrink(&mut self, positions: usize) {
        debug_assert_eq!(self.len, 0);
        self.blocks.truncate(positions.div_ceil(TILE));
    }

    /// Adds `count` positions that were stored in all layers.
    pub(crate) fn advance(&mut self, count: usize) {
        self.len += count;
    }

    /// The blocks that are full, and those that the next `count` positions go to, no longer shared.
    pub(super) fn parts(&mut self, count: usize) -> (&[SharedBlock], Vec<Disjoint<'_, u16>>) {
        let (done, open) = self.blocks.split_at_mut(self.len / TILE);
        let count = (self.len % TILE + count).div_ceil(TILE);
        let own = |block| {
            let block: &mut Box<[u16]> = Arc::make_mut(block);
            Disjoint::new(block)
        };
        (done, open[..count].iter_mut().map(own).collect())
    }
}

/// Keys and values of a number of positions, which sequences that begin alike share.
type SharedBlock = Arc<Box<[u16]>>;

/// The block of another sequence of the same model.
fn content(block: Block) -> SharedBlock {
    let Some(content) = block.into_content() else { unreachable!("the blocks of one model are of one kind") };
    content
}

impl State for SequenceState {
    fn len(&self) -> usize {
        self.len
    }

    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block_bytes(&self) -> u64 {
        self.layout.block_bytes()
    }

    fn reserve(&mut self, positions: usize) -> Result<(), Error> {
        while self.blocks.len() < positions.div_ceil(TILE) {
            let mut block = Vec::new();
            let length = self.layout.block_len();
            fallible(|| block.try_reserve_exact(length)).map_err(|_| Error::OutOfMemory {
                what: format!("the key-value cache for {positions} tokens"),
                needed_mb: self.bytes(positions).div_ceil(1 << 20),
                limit_mb: None,
            })?;
            // Zeroed, so that what masked positions hold is at least the same each time.
            block.resize(length, 0);
            self.blocks.push(Arc::new(block.into_boxed_slice()));
        }
        Ok(())
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.layout.resumable(self.len.min(len));
        self.blocks.truncate(self.len.div_ceil(TILE));
    }

    fn wipe(&mut self, len: usize) {
        self.truncate(len);
        let slot = self.len % TILE;
        if slot == 0 {
            return;
        }
        let Some(block) = self.blocks.last_mut() else { return };
        let block = Arc::make_mut(block);
        for Part { range, layer } in self.layout.0.iter() {
            layer.clear(&mut block[range.clone()], slot);
        }
    }

    fn forget(&mut self) {
        self.len = 0;
        self.blocks = Vec::new();
    }

    fn attach(&mut self, block: Block) {
        assert!(self.len.is_multiple_of(TILE), "a block is attached behind {} positions", self.len);
        self.blocks.truncate(self.len / TILE);
        self.blocks.push(content(block));
        self.len += TILE;
    }

    fn block(&self, index: usize) -> Block {
        Block::new(Arc::clone(&self.blocks[index]))
    }

    fn replace(&mut self, index: usize, block: Block) {
        self.blocks[index] = content(block);
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A layer that can go back to the beginnings of blocks only, as one with a snapshot for each block.
    #[derive(Debug)]
    struct Snapshots;

    impl LayerState for Snapshots {
        fn len(&self) -> usize {
            16
        }

        fn resumable(&self, positions: usize) -> usize {
            positions / TILE * TILE
        }

        fn clear(&self, part: &mut [u16], _slot: usize) {
            part.fill(0);
        }
    }

    fn state(layers: Vec<Box<dyn LayerState>>) -> SequenceState {
        let mut state = SequenceState::new(StateLayout::new(layers.into_iter()));
        state.reserve(200).unwrap();
        state.advance(200);
        state
    }

    fn attention() -> Box<dyn LayerState> {
        Box::new(KeysAndValues { heads: Heads { query: 2, kv: 1, dim: 4 } })
    }

    #[test]
    fn a_state_is_cut_back_to_what_all_its_layers_can_go_on_from() {
        let mut keys = state(vec![attention(), attention()]);
        keys.truncate(130);
        assert_eq!((keys.len(), keys.blocks()), (130, 3));
        let mut mixed = state(vec![attention(), Box::new(Snapshots), attention()]);
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
            assert!(
                keys.chunks_exact(TILE).all(|keys| keys[..2] == [7, 7] && keys[2..].iter().all(|x| *x == 0))
            );
            assert!(values[..2 * 4].iter().all(|x| *x == 7) && values[2 * 4..].iter().all(|x| *x == 0));
        }
        let shared = content(shared);
        assert!(shared.iter().all(|x| *x == 7), "the block that others have too is not written");
        assert!(state.blocks[1].iter().all(|x| *x == 7));
    }
}
