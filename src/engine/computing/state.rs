//! The states of sequences that decoders keep, in blocks that sequences share.

use std::any::Any;
use std::sync::Arc;

use crate::Error;
use crate::kernels::tile::TILE;

/// Positions of a block of state.
pub(crate) const BLOCK: usize = TILE;

/// The memory that the state of a sequence takes, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct StateBytes {
    /// Bytes of a position in the long run, however many follow it.
    pub(crate) per_position: u64,
    /// The longest window, and the bytes that each position in it takes beside that; None where no layer has
    /// a window of its own.
    pub(crate) window: Option<(usize, u64)>,
    /// Most bytes of a state of the positions that were asked about: [`State::bytes`].
    pub(crate) in_all: u64,
}

/// The state of one sequence: the memory that a decoder keeps of its tokens, in blocks of [`BLOCK`]
/// positions.
pub(crate) trait State: Send {
    /// Number of its positions. The tokens behind them are computed, or computed again, by the next passes.
    fn len(&self) -> usize;

    /// Number of its blocks, shared ones included.
    fn blocks(&self) -> usize;

    /// Bytes of its first `blocks` blocks, whether they exist or not, without their window parts.
    fn block_bytes(&self, blocks: usize) -> u64;

    /// Bytes of the window parts of `blocks` blocks. Layers with a sliding window keep a block only as long
    /// as their window reaches it.
    fn window_bytes(&self, _blocks: usize) -> u64 {
        0
    }

    /// Most blocks that have their window part at a time.
    fn most_window_blocks(&self) -> usize {
        0
    }

    /// Number of blocks that have their window part now.
    fn window_blocks(&self) -> usize {
        0
    }

    /// Gives back the window parts that the window of the next position no longer reaches.
    fn settle(&mut self) {}

    /// Bytes that a state takes beside its blocks, however many positions it has.
    fn fixed_bytes(&self) -> u64 {
        0
    }

    /// Most bytes of a state of `positions` positions while it grows, without shared blocks.
    fn bytes(&self, positions: usize) -> u64 {
        let blocks = positions.div_ceil(BLOCK);
        let seen = self.window_bytes(blocks.min(self.most_window_blocks()));
        self.block_bytes(blocks).saturating_add(seen).saturating_add(self.fixed_bytes())
    }

    /// Whether a sequence can resume behind its first `blocks` blocks, which exist, when it has only those.
    fn resumes_behind(&self, blocks: usize) -> bool;

    /// Makes room for `positions` positions, without adding them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where there is no more.
    fn reserve(&mut self, positions: usize) -> Result<(), Error>;

    /// Forgets the positions from `len` on; later results are as if they had never been. Fewer positions than
    /// `len` are left where the layers of the model cannot go back to exactly that one: [`State::len`] is the
    /// number left.
    fn truncate(&mut self, len: usize);

    /// [`State::truncate`], which also clears the values of the positions: values that are not finite would
    /// spoil results even with a weight of 0.
    fn wipe(&mut self, len: usize);

    /// Forgets all positions and gives back all blocks.
    fn forget(&mut self);

    /// Adds the positions of a block that another sequence of this model has computed after the same tokens.
    /// Where the state cannot [resume](State::resumes_behind) behind it, another block or [`State::truncate`]
    /// must follow.
    fn attach(&mut self, block: StateBlock);

    /// Block `index`, all of whose positions are computed, with its window part if that still exists.
    fn block(&self, index: usize) -> StateBlock;

    /// Replaces block `index` by another one of the same contents, as far as both exist.
    fn replace(&mut self, index: usize, block: StateBlock);

    /// The backend's own type of it.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// [`BLOCK`] positions of a state, in a form of the backend's own. Clones share them.
#[derive(Clone)]
pub(crate) struct StateBlock {
    /// The part that all later positions see.
    content: Arc<dyn Any + Send + Sync>,
    /// The part that only windows see, as long as it is kept.
    window: Option<Arc<dyn Any + Send + Sync>>,
}

impl StateBlock {
    pub(crate) fn new<T: Any + Send + Sync>(content: Arc<T>) -> StateBlock {
        StateBlock { content, window: None }
    }

    /// The block with its window part.
    pub(crate) fn with_window<T: Any + Send + Sync>(self, window: Option<Arc<T>>) -> StateBlock {
        let window = window.map(|window| -> Arc<dyn Any + Send + Sync> { window });
        StateBlock { window, ..self }
    }

    /// Its content; None where that is of another type.
    pub(crate) fn into_content<T: Any + Send + Sync>(self) -> Option<Arc<T>> {
        self.content.downcast().ok()
    }

    /// Its window part, if that exists.
    pub(crate) fn window<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.window.clone()?.downcast().ok()
    }

    /// Whether it has its window part.
    pub(crate) fn has_window(&self) -> bool {
        self.window.is_some()
    }

    /// Takes the window part of another block of the same contents, where it has none.
    pub(crate) fn take_window(&mut self, other: &StateBlock) {
        if self.window.is_none() {
            self.window.clone_from(&other.window);
        }
    }

    /// Drops its window part.
    pub(crate) fn drop_window(&mut self) {
        self.window = None;
    }

    /// Whether it has other owners.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.content) > 1
    }

    /// Whether its window part has other owners.
    pub(crate) fn window_is_shared(&self) -> bool {
        self.window.as_ref().is_some_and(|window| Arc::strong_count(window) > 1)
    }

    /// Whether both are the same memory.
    #[cfg(test)]
    pub(crate) fn is(&self, other: &StateBlock) -> bool {
        Arc::ptr_eq(&self.content, &other.content)
    }
}
