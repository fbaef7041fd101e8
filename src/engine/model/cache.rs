//! The key-value cache of one sequence.
//!
//! It grows by blocks of 64 positions, each of which holds the keys and values of all layers as f16. A block
//! is one allocation, made when its first position is reached. Sequences that begin with the same tokens may
//! share blocks.
//!
//! Invariant: a block that is shared is never written; a sequence that has to gets a copy of its own.

use std::sync::Arc;

use crate::Error;
use crate::kernels::attention::{Heads, TILE};
use crate::kernels::disjoint::Disjoint;
use crate::memory::fallible;

/// Keys and values of 64 positions in all layers.
pub(crate) type Block = Arc<Box<[u16]>>;

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
    blocks: Vec<Block>,
    len: usize,
}

impl CacheShape {
    pub(crate) fn new(layers: usize, heads: Heads) -> Self {
        CacheShape { layers, heads }
    }

    fn block_len(&self) -> usize {
        self.layers * self.layer_len()
    }

    fn layer_len(&self) -> usize {
        self.heads.kv * self.heads.tile_len()
    }

    /// Bytes of a block.
    pub(crate) fn block_bytes(&self) -> u64 {
        self.block_len() as u64 * size_of::<u16>() as u64
    }

    /// Bytes of a cache for `positions` positions.
    pub(crate) fn bytes(&self, positions: usize) -> u64 {
        positions.div_ceil(TILE) as u64 * self.block_bytes()
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

    /// Number of its blocks, shared ones included.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks.len()
    }

    /// Sizes of its blocks.
    pub(crate) fn shape(&self) -> CacheShape {
        self.shape
    }

    /// Adds the 64 positions of a block that another sequence has computed after the same tokens.
    pub(crate) fn attach(&mut self, block: Block) {
        assert!(self.len.is_multiple_of(TILE), "a block is attached behind {} positions", self.len);
        self.blocks.truncate(self.len / TILE);
        self.blocks.push(block);
        self.len += TILE;
    }

    /// Block `index`, whose positions are all there.
    pub(crate) fn block(&self, index: usize) -> &Block {
        &self.blocks[index]
    }

    /// Takes another block of the same contents for block `index`.
    pub(crate) fn replace(&mut self, index: usize, block: Block) {
        self.blocks[index] = block;
    }

    /// Forgets the positions from `len` on; what is computed afterwards is as if they had never been.
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        self.blocks.truncate(self.len.div_ceil(TILE));
    }

    /// [`KvCache::truncate`], leaving zeros where the positions were: values that are not finite would spoil
    /// even what has no weight.
    pub(crate) fn wipe(&mut self, len: usize) {
        self.truncate(len);
        let (slot, tile_len) = (self.len % TILE, self.shape.heads.tile_len());
        if slot == 0 {
            return;
        }
        let Some(block) = self.blocks.last_mut() else { return };
        for tile in Arc::make_mut(block).chunks_exact_mut(tile_len) {
            let (keys, values) = tile.split_at_mut(tile_len / 2);
            keys.chunks_exact_mut(TILE).for_each(|keys| keys[slot..].fill(0));
            values[slot * self.shape.heads.dim..].fill(0);
        }
    }

    /// Gives back the blocks of a cache without positions beyond those for `positions`.
    pub(super) fn shrink(&mut self, positions: usize) {
        debug_assert_eq!(self.len, 0);
        self.blocks.truncate(positions.div_ceil(TILE));
    }

    /// Makes room for `positions` positions, without adding them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the system has no more.
    pub(crate) fn reserve(&mut self, positions: usize) -> Result<(), Error> {
        while self.blocks.len() < positions.div_ceil(TILE) {
            let mut block = Vec::new();
            let length = self.shape.block_len();
            fallible(|| block.try_reserve_exact(length)).map_err(|_| Error::OutOfMemory {
                what: format!("the key-value cache for {positions} tokens"),
                needed_mb: self.shape.bytes(positions).div_ceil(1 << 20),
                limit_mb: None,
            })?;
            // Zeroed, so that what masked positions hold is at least the same each time.
            block.resize(length, 0);
            self.blocks.push(Arc::new(block.into_boxed_slice()));
        }
        Ok(())
    }

    /// Adds `count` positions that were stored in all layers.
    pub(crate) fn advance(&mut self, count: usize) {
        self.len += count;
    }

    /// Where the tiles of a layer begin in each block.
    pub(super) fn offset(&self, layer: usize) -> usize {
        layer * self.shape.layer_len()
    }

    /// The blocks that are full, and those that the next `count` positions go to, no longer shared.
    pub(super) fn parts(&mut self, count: usize) -> (&[Block], Vec<Disjoint<'_, u16>>) {
        let (done, open) = self.blocks.split_at_mut(self.len / TILE);
        let count = (self.len % TILE + count).div_ceil(TILE);
        let own = |block| {
            let block: &mut Box<[u16]> = Arc::make_mut(block);
            Disjoint::new(block)
        };
        (done, open[..count].iter_mut().map(own).collect())
    }
}
