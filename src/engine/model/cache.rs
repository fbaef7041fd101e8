//! The key-value cache of one sequence.
//!
//! It grows by blocks of 64 positions, each of which holds the keys and values of all layers as f16. A block
//! is one allocation, made when its first position is reached.

use crate::Error;
use crate::kernels::attention::{Heads, TILE};
use crate::kernels::half::narrow;

/// Sizes of the blocks of one model.
#[derive(Debug, Clone, Copy)]
pub(crate) struct CacheShape {
    layers: usize,
    heads: Heads,
}

/// Keys and values of the positions of one sequence.
#[derive(Debug)]
pub(crate) struct KvCache {
    shape: CacheShape,
    blocks: Vec<Box<[u16]>>,
    len: usize,
}

impl CacheShape {
    pub(super) fn new(layers: usize, heads: Heads) -> Self {
        CacheShape { layers, heads }
    }

    fn block_len(&self) -> usize {
        self.layers * self.layer_len()
    }

    fn layer_len(&self) -> usize {
        self.heads.kv * self.heads.tile_len()
    }

    /// Bytes of a cache for `positions` positions.
    pub(crate) fn bytes(&self, positions: usize) -> u64 {
        positions.div_ceil(TILE) as u64 * self.block_len() as u64 * size_of::<u16>() as u64
    }
}

impl KvCache {
    /// A cache of no positions and no blocks.
    pub(crate) fn new(shape: CacheShape) -> Self {
        KvCache { shape, blocks: Vec::new(), len: 0 }
    }

    /// Number of positions whose keys and values are there.
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets the positions from `len` on; what is computed afterwards is as if they had never been.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.blocks.truncate(self.len.div_ceil(TILE));
    }

    /// Makes room for `positions` positions, without adding them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the system has no more.
    pub(crate) fn reserve(&mut self, positions: usize) -> Result<(), Error> {
        while self.blocks.len() < positions.div_ceil(TILE) {
            let mut block = Vec::new();
            let length = self.shape.block_len();
            block.try_reserve_exact(length).map_err(|_| Error::OutOfMemory {
                what: format!("the key-value cache for {positions} tokens"),
                needed_mb: self.shape.bytes(positions).div_ceil(1 << 20),
                limit_mb: None,
            })?;
            // Zeroed, so that what masked positions hold is at least the same each time.
            block.resize(length, 0);
            self.blocks.push(block.into_boxed_slice());
        }
        Ok(())
    }

    /// Adds `count` positions that were stored in all layers.
    pub(super) fn advance(&mut self, count: usize) {
        self.len += count;
    }

    /// Stores keys and values (`kv · dim` each) of one position of one layer, rounded to f16.
    pub(super) fn store(&mut self, layer: usize, position: usize, keys: &[f32], values: &[f32]) {
        let Heads { dim, .. } = self.shape.heads;
        let start = self.offset(layer);
        let tiles = &mut self.blocks[position / TILE][start..start + self.shape.layer_len()];
        let slot = position % TILE;
        let heads = keys.chunks_exact(dim).zip(values.chunks_exact(dim));
        for (tile, (keys, values)) in tiles.chunks_exact_mut(self.shape.heads.tile_len()).zip(heads) {
            let (stored_keys, stored_values) = tile.split_at_mut(dim * TILE);
            for (stored, key) in stored_keys.iter_mut().skip(slot).step_by(TILE).zip(keys) {
                *stored = narrow(*key);
            }
            for (stored, value) in stored_values[slot * dim..].iter_mut().zip(values) {
                *stored = narrow(*value);
            }
        }
    }

    /// Where the tiles of a layer begin in each block.
    pub(super) fn offset(&self, layer: usize) -> usize {
        layer * self.shape.layer_len()
    }

    /// The blocks, one for each 64 positions.
    pub(super) fn blocks(&self) -> &[Box<[u16]>] {
        &self.blocks
    }
}
