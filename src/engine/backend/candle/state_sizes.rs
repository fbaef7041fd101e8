//! The sizes of a sequence's state, which follow from the model's specification alone.

use super::layer_memory::LayerMemory;
use crate::computing::{BLOCK, StateBytes};
use crate::model::spec::{Mixer, ModelSpec};

/// Most memory of the copies of layers' states, as a multiple of that of keys and values, unless even
/// [`LONGEST_INTERVAL`] leaves more.
const MOST_COPIES: u64 = 8;
/// At least one block in so many has a copy.
const LONGEST_INTERVAL: usize = 8;
/// Bytes of a value: keys, values and the states of other layers are f32.
const VALUE_BYTES: u64 = size_of::<f32>() as u64;

/// The sizes of the states of a model's sequences.
#[derive(Debug)]
pub(super) struct StateSizes {
    /// Key-value heads and their length, of the layers that keep any.
    pub(super) layers: Vec<Option<[usize; 2]>>,
    /// Number of values of the states of layers other than attention.
    memory_values: u64,
    /// One block in so many has a copy of these states.
    pub(super) interval: usize,
}

impl StateSizes {
    /// The sizes for this model.
    pub(super) fn of(spec: &ModelSpec) -> StateSizes {
        let layers = spec.blocks.iter().map(|block| {
            let heads = block.attention.heads;
            let keeps = block.mixer == Mixer::Attention && block.attention.shares.is_none();
            keeps.then_some([heads.kv, heads.dim])
        });
        let layers: Vec<Option<[usize; 2]>> = layers.collect();
        let memory = spec.blocks.iter().map(|block| LayerMemory::values(&block.mixer) as u64);
        let memory_values = memory.fold(0, u64::saturating_add);
        let mut sizes = StateSizes { layers, memory_values, interval: 1 };
        let rows = sizes.row_values();
        let enough = |interval: &usize| memory_values <= rows.saturating_mul(MOST_COPIES * *interval as u64);
        sizes.interval = [1, 2, 4].into_iter().find(enough).unwrap_or(LONGEST_INTERVAL);
        sizes
    }

    /// Whether there are layers other than attention.
    pub(super) fn has_memory(&self) -> bool {
        self.memory_values > 0
    }

    /// The last place, at most `positions`, behind which a sequence that has only blocks can resume.
    pub(super) fn resumable(&self, positions: usize) -> usize {
        let each = if self.has_memory() { BLOCK * self.interval } else { 1 };
        positions / each * each
    }

    /// Values of keys and values of a block.
    fn row_values(&self) -> u64 {
        let layers = self.layers.iter().flatten();
        layers.map(|[heads, dim]| (2 * heads * dim * BLOCK) as u64).fold(0, u64::saturating_add)
    }

    /// Values that one position has in the layer with most of them.
    fn widest(&self) -> u64 {
        let layers = self.layers.iter().flatten();
        layers.map(|[heads, dim]| (2 * heads * dim) as u64).max().unwrap_or(0)
    }

    /// Bytes of the first `blocks` blocks.
    pub(super) fn block_bytes(&self, blocks: usize) -> u64 {
        let copies = ((blocks / self.interval) as u64).saturating_mul(self.memory_values);
        let values = (blocks as u64).saturating_mul(self.row_values()).saturating_add(copies);
        values.saturating_mul(VALUE_BYTES)
    }

    /// Bytes of a state beside its blocks.
    pub(super) fn fixed_bytes(&self) -> u64 {
        // Before a pass, behind it, and before its guesses.
        self.memory_values.saturating_mul(3 * VALUE_BYTES)
    }

    /// Most bytes of a state of `positions` positions while it grows.
    pub(super) fn bytes(&self, positions: usize) -> u64 {
        // While a layer is computed, there is another copy of its keys and values, in one piece.
        let blocks = positions.div_ceil(BLOCK);
        let together = ((blocks * BLOCK) as u64).saturating_mul(self.widest()).saturating_mul(VALUE_BYTES);
        self.block_bytes(blocks).saturating_add(together).saturating_add(self.fixed_bytes())
    }

    /// The sizes as the engine asks for them. What windows no longer see is kept, too.
    pub(super) fn state_bytes(&self, positions: usize) -> StateBytes {
        let of_long = self.block_bytes(LONGEST_INTERVAL);
        StateBytes {
            per_position: of_long.div_ceil((LONGEST_INTERVAL * BLOCK) as u64),
            window: None,
            in_all: self.bytes(positions),
        }
    }
}
