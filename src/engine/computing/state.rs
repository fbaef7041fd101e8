//! The states of sequences that decoders keep, in blocks that sequences share.

use std::any::Any;
use std::sync::Arc;

use crate::Error;
use crate::kernels::tile::TILE;

/// Positions of a block of state.
pub(crate) const BLOCK: usize = TILE;

/// The state of one sequence: what a decoder keeps of its tokens, in blocks of [`BLOCK`] positions.
pub(crate) trait State: Send {
    /// Number of positions that are there. The tokens behind them are computed, or computed again, by the
    /// next passes.
    fn len(&self) -> usize;

    /// Number of its blocks, shared ones included.
    fn blocks(&self) -> usize;

    /// Bytes of its first `blocks` blocks, whether they are there or not, without what windows see of them.
    fn block_bytes(&self, blocks: usize) -> u64;

    /// Bytes of what windows see of `blocks` blocks. Layers with a sliding window keep a block only as long
    /// as their window sees some of it.
    fn window_bytes(&self, _blocks: usize) -> u64 {
        0
    }

    /// Of so many blocks it has that at a time, at most.
    fn most_window_blocks(&self) -> usize {
        0
    }

    /// Of so many blocks it has that now.
    fn window_blocks(&self) -> usize {
        0
    }

    /// Gives back what no window sees any more, now that the next position is the one behind all that are
    /// there.
    fn settle(&mut self) {}

    /// Bytes that a state takes beside its blocks, however many positions it has.
    fn fixed_bytes(&self) -> u64 {
        0
    }

    /// Bytes of a state of `positions` positions that shares none, at most, while it grows.
    fn bytes(&self, positions: usize) -> u64 {
        let blocks = positions.div_ceil(BLOCK);
        let seen = self.window_bytes(blocks.min(self.most_window_blocks()));
        self.block_bytes(blocks).saturating_add(seen).saturating_add(self.fixed_bytes())
    }

    /// Whether a sequence can go on behind its first `blocks` blocks, which are there, when it has only
    /// those.
    fn resumes_behind(&self, blocks: usize) -> bool;

    /// Makes room for `positions` positions, without adding them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where there is no more.
    fn reserve(&mut self, positions: usize) -> Result<(), Error>;

    /// Forgets the positions from `len` on; what is computed afterwards is as if they had never been. Fewer
    /// positions than `len` are left where the layers of the model cannot go back to just that one:
    /// [`State::len`] says how many.
    fn truncate(&mut self, len: usize);

    /// [`State::truncate`], leaving nothing where the positions were: values that are not finite would spoil
    /// even what has no weight.
    fn wipe(&mut self, len: usize);

    /// Forgets all positions and gives back all blocks.
    fn forget(&mut self);

    /// Adds the positions of a block that another sequence of this model has computed after the same tokens.
    /// Where the state cannot [go on](State::resumes_behind) behind it, another block or [`State::truncate`]
    /// must follow.
    fn attach(&mut self, block: Block);

    /// Block `index`, whose positions are all there, with what windows see of it if that is still there.
    fn block(&self, index: usize) -> Block;

    /// Takes another block of the same contents for block `index`, as far as both are there.
    fn replace(&mut self, index: usize, block: Block);

    /// The backend's own type of it.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// [`BLOCK`] positions of a state. What they look like is their backend's affair. Clones share them.
#[derive(Clone)]
pub(crate) struct Block {
    /// The part that all positions behind it see.
    content: Arc<dyn Any + Send + Sync>,
    /// The part that windows see, as long as somebody keeps it.
    window: Option<Arc<dyn Any + Send + Sync>>,
}

impl Block {
    pub(crate) fn new<T: Any + Send + Sync>(content: Arc<T>) -> Block {
        Block { content, window: None }
    }

    /// The block with what windows see of it.
    pub(crate) fn with_window<T: Any + Send + Sync>(self, window: Option<Arc<T>>) -> Block {
        let window = window.map(|window| -> Arc<dyn Any + Send + Sync> { window });
        Block { window, ..self }
    }

    /// Its content; None where that is of another type.
    pub(crate) fn into_content<T: Any + Send + Sync>(self) -> Option<Arc<T>> {
        self.content.downcast().ok()
    }

    /// The part that windows see, if it is there.
    pub(crate) fn window<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.window.clone()?.downcast().ok()
    }

    /// Whether there is what windows see of it.
    pub(crate) fn has_window(&self) -> bool {
        self.window.is_some()
    }

    /// Takes that of another block of the same contents, where it has none.
    pub(crate) fn take_window(&mut self, other: &Block) {
        if self.window.is_none() {
            self.window.clone_from(&other.window);
        }
    }

    /// Forgets that.
    pub(crate) fn drop_window(&mut self) {
        self.window = None;
    }

    /// Whether anybody else has it too.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.content) > 1
    }

    /// Whether anybody else has what windows see of it.
    pub(crate) fn window_is_shared(&self) -> bool {
        self.window.as_ref().is_some_and(|window| Arc::strong_count(window) > 1)
    }

    /// Whether both are the same memory.
    #[cfg(test)]
    pub(crate) fn is(&self, other: &Block) -> bool {
        Arc::ptr_eq(&self.content, &other.content)
    }
}
