//! The state of a sequence: the keys and values of its computed tokens, and what other layers remember of
//! them.
//!
//! It grows by blocks of [`TILE`] positions. A block is one allocation, made when its first position is
//! reached, of which each layer has a part; how the part is laid out is up to the kind of the layer
//! ([`LayerState`]), and `layout.rs` shows a block. Sequences that begin with the same tokens may share
//! blocks.
//!
//! Attention keeps a row for each position, so its part can be cut anywhere. Other layers keep values that
//! each position overwrites. These lie beside the blocks ([`RecurrentSnapshot`]), and some blocks have a copy
//! of them as of the block's last position: all blocks, or one in a few where copies are large
//! ([`StateLayout`]). A sequence that has to go back goes to the last place of which there is a copy, and
//! computes from there again.
//!
//! Layers that only see a window of positions have allocations of their own, one for each block of positions.
//! These are given back when the window of the next position no longer reaches them ([`State::settle`]). A
//! sequence cannot go back to a place whose window they belong to; it goes back to the last place whose
//! window is there, or to the beginning if there is none.
//!
//! Invariant: a shared block is never written; a sequence that has to write one copies it first.

use std::any::Any;
use std::sync::Arc;

use crate::Error;
use crate::computing::{State, StateBlock};
use crate::kernels::Floats;
use crate::kernels::disjoint::Disjoint;
use crate::kernels::recurrence::load;
use crate::kernels::rows::RecurrentStates;
use crate::kernels::tile::{KvCacheType, TILE};
use crate::memory::fallible;

mod layout;

pub(crate) use layout::StateLayout;
pub(super) use layout::{KeysAndValues, LayerState};
use layout::{LONGEST_INTERVAL, LayerPart};

/// The values of layers that each position overwrites, behind some position.
#[derive(Default)]
struct RecurrentSnapshot {
    values: Floats,
    /// Number of positions that went into it; None while that is not known.
    positions: Option<usize>,
}

impl std::fmt::Debug for RecurrentSnapshot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RecurrentSnapshot").field("positions", &self.positions).finish_non_exhaustive()
    }
}

impl RecurrentSnapshot {
    /// The positions, where they are not more than `most`.
    fn within(&self, most: usize) -> Option<usize> {
        self.positions.filter(|positions| *positions <= most)
    }
}

/// The state of one sequence.
#[derive(Debug)]
pub(crate) struct SequenceState {
    layout: StateLayout,
    blocks: Vec<SharedBlock>,
    /// The window part of each block, `[layers with a window, kv heads, tile]`; empty where it was given
    /// back; none in models without windows.
    windows: Vec<SharedBlock>,
    /// Number of `windows`, from the beginning, that were given back.
    gone: usize,
    /// Most rows of a pass.
    rows: usize,
    len: usize,
    /// The f32 values beside the blocks, of the layers that have such values, one layer after the other:
    /// behind the last position that is no guess, and behind guesses.
    now: RecurrentSnapshot,
    ahead: RecurrentSnapshot,
    /// Guesses among the rows of the pass that is under way.
    guesses: usize,
}

impl SequenceState {
    /// A state of no positions and no blocks, which passes of so many rows add to.
    pub(crate) fn new(layout: StateLayout, rows: usize) -> Self {
        let (now, ahead) = (RecurrentSnapshot::default(), RecurrentSnapshot::default());
        let (blocks, windows) = (Vec::new(), Vec::new());
        SequenceState { layout, blocks, windows, gone: 0, rows, len: 0, now, ahead, guesses: 0 }
    }

    /// The type in which keys and values are stored.
    pub(super) fn kind(&self) -> KvCacheType {
        self.layout.kind()
    }

    /// Bytes of a position in the long run, however many follow it.
    pub(crate) fn bytes_per_position(&self) -> u64 {
        let positions = LONGEST_INTERVAL * TILE;
        self.layout.block_bytes(LONGEST_INTERVAL).div_ceil(positions as u64)
    }

    /// The longest window, and the bytes that each position in it takes beside that.
    pub(crate) fn window(&self) -> Option<(usize, u64)> {
        let of_a_block = self.layout.window_bytes(1);
        (of_a_block > 0).then(|| (self.layout.0.window, of_a_block.div_ceil(TILE as u64)))
    }

    /// The last place, at most `len`, whose windows are there.
    fn seen_from(&self, mut len: usize) -> usize {
        if self.layout.0.window_len == 0 {
            return len;
        }
        while let Some(gap) = (self.first_seen(len)..len.div_ceil(TILE)).find(|i| self.windows[*i].is_empty())
        {
            len = gap * TILE;
        }
        len
    }

    /// The first block that the windows of the position `len` reach.
    fn first_seen(&self, len: usize) -> usize {
        (len + 1).saturating_sub(self.layout.0.window) / TILE
    }

    /// Gives back the blocks of a state without positions beyond those for `positions`.
    pub(super) fn shrink(&mut self, positions: usize) {
        debug_assert_eq!(self.len, 0);
        self.cut(positions.div_ceil(TILE));
    }

    /// Gives back the blocks from this one on.
    fn cut(&mut self, blocks: usize) {
        self.blocks.truncate(blocks);
        self.windows.truncate(blocks);
        self.gone = self.gone.min(self.windows.len());
    }

    /// Begins a pass whose last `guesses` rows may be taken back. Until the pass is
    /// [done](SequenceState::advance) or [given up](SequenceState::give_up), the values beside the blocks
    /// belong to no position.
    pub(crate) fn begin(&mut self, guesses: usize) {
        self.guesses = guesses;
        if self.layout.running_len() == 0 {
            return;
        }
        if self.ahead.positions == Some(self.len) {
            std::mem::swap(&mut self.now, &mut self.ahead);
        }
        if self.now.positions != Some(self.len) {
            debug_assert!(self.layout.resumable(self.len) == self.len, "it goes on from where a copy is");
            match self.len.checked_sub(1) {
                None => self.now.values.fill(0.0),
                Some(last) => {
                    let block = &self.blocks[last / TILE];
                    for LayerPart { range, running, .. } in &self.layout.0.layers {
                        // Attention needs nothing here.
                        if !running.is_empty() {
                            load(&block[range.clone()], &mut self.now.values[running.clone()]);
                        }
                    }
                }
            }
        }
        (self.now.positions, self.ahead.positions) = (None, None);
    }

    /// Adds `count` positions that were stored in all layers.
    pub(crate) fn advance(&mut self, count: usize) {
        self.len += count;
        if self.layout.running_len() > 0 {
            self.now.positions = Some(self.len - self.guesses);
            self.ahead.positions = (self.guesses > 0).then_some(self.len);
        }
    }

    /// Ends a pass that was interrupted.
    pub(super) fn give_up(&mut self) {
        self.truncate(self.len);
    }

    /// The full blocks, those that the next `count` positions go to, no longer shared, and the values beside
    /// them; with `windowed`, the window parts of the blocks in their place.
    pub(super) fn parts(
        &mut self,
        count: usize,
        windowed: bool,
    ) -> (&[SharedBlock], Vec<Disjoint<'_, u16>>, Option<RecurrentStates<'_>>) {
        let running = (self.layout.running_len() > 0).then(|| RecurrentStates {
            now: Disjoint::new(&mut self.now.values),
            ahead: Disjoint::new(&mut self.ahead.values),
            certain: count - self.guesses,
        });
        let blocks = if windowed { &mut self.windows } else { &mut self.blocks };
        let (done, open) = blocks.split_at_mut(self.len / TILE);
        let count = (self.len % TILE + count).div_ceil(TILE);
        let own = |block| {
            let block: &mut Box<[u16]> = Arc::make_mut(block);
            Disjoint::new(block)
        };
        (done, open[..count].iter_mut().map(own).collect(), running)
    }
}

/// Keys and values of a number of positions, which sequences that begin alike share.
type SharedBlock = Arc<Box<[u16]>>;

/// The block of another sequence of the same model.
fn content(block: StateBlock) -> SharedBlock {
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

    fn block_bytes(&self, blocks: usize) -> u64 {
        self.layout.block_bytes(blocks)
    }

    fn window_bytes(&self, blocks: usize) -> u64 {
        self.layout.window_bytes(blocks)
    }

    fn most_window_blocks(&self) -> usize {
        match self.layout.0.window_len {
            0 => 0,
            // The rows of a pass, and the positions that the first row sees before them, wherever these begin
            // in a block.
            _ => (self.layout.0.window.saturating_add(self.rows) + TILE - 3) / TILE + 1,
        }
    }

    fn window_blocks(&self) -> usize {
        self.windows[self.gone..].iter().filter(|block| !block.is_empty()).count()
    }

    fn settle(&mut self) {
        let end = self.first_seen(self.len).min(self.windows.len());
        for block in self.windows.get_mut(self.gone..end).unwrap_or_default() {
            *block = Arc::clone(&self.layout.0.gone);
        }
        self.gone = self.gone.max(end);
    }

    fn resumes_behind(&self, blocks: usize) -> bool {
        let positions = blocks * TILE;
        self.layout.resumable(positions) == positions && self.seen_from(positions) == positions
    }

    fn fixed_bytes(&self) -> u64 {
        2 * (self.layout.running_len() * size_of::<f32>()) as u64
    }

    fn reserve(&mut self, positions: usize) -> Result<(), Error> {
        let out_of_memory = |bytes: u64| Error::OutOfMemory {
            what: format!("the key-value cache for {positions} tokens"),
            needed_mb: bytes.div_ceil(1 << 20),
            limit_mb: None,
        };
        let (bytes, running) = (self.bytes(positions), self.layout.running_len());
        for kept in [&mut self.now, &mut self.ahead] {
            if kept.values.len() < running {
                kept.values = Floats::zeros(running).ok_or_else(|| out_of_memory(bytes))?;
            }
        }
        self.settle();
        let zeroed = |length: usize| {
            let mut block = Vec::new();
            fallible(|| block.try_reserve_exact(length)).map_err(|_| out_of_memory(bytes))?;
            // Zeroed, so that masked positions hold the same values each time.
            block.resize(length, 0);
            Ok(Arc::new(block.into_boxed_slice()))
        };
        while self.blocks.len() < positions.div_ceil(TILE) {
            let block = zeroed(self.layout.block_len(self.blocks.len()))?;
            if self.layout.0.window_len > 0 {
                self.windows.push(zeroed(self.layout.0.window_len)?);
            }
            self.blocks.push(block);
        }
        Ok(())
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        loop {
            if self.layout.running_len() > 0 {
                let kept = self.now.within(self.len).max(self.ahead.within(self.len));
                self.len = self.layout.resumable(self.len).max(kept.unwrap_or(0));
            }
            let seen = self.seen_from(self.len);
            if seen == self.len {
                break;
            }
            self.len = seen;
        }
        for kept in [&mut self.now, &mut self.ahead] {
            kept.positions = kept.within(self.len);
        }
        self.cut(self.len.div_ceil(TILE));
    }

    fn wipe(&mut self, len: usize) {
        self.truncate(len);
        let slot = self.len % TILE;
        if slot == 0 {
            return;
        }
        for (blocks, windowed) in [(&mut self.blocks, false), (&mut self.windows, true)] {
            let Some(block) = blocks.last_mut() else { continue };
            let block = Arc::make_mut(block);
            for part in self.layout.0.layers.iter().filter(|part| part.windowed == windowed) {
                if part.range.end <= block.len() {
                    part.layer.clear(&mut block[part.range.clone()], slot);
                }
            }
        }
    }

    fn forget(&mut self) {
        self.len = 0;
        (self.blocks, self.windows, self.gone) = (Vec::new(), Vec::new(), 0);
        (self.now, self.ahead) = (RecurrentSnapshot::default(), RecurrentSnapshot::default());
    }

    fn attach(&mut self, block: StateBlock) {
        assert!(self.len.is_multiple_of(TILE), "a block is attached behind {} positions", self.len);
        self.cut(self.len / TILE);
        if self.layout.0.window_len > 0 {
            self.windows.push(block.window().unwrap_or_else(|| Arc::clone(&self.layout.0.gone)));
        }
        self.blocks.push(content(block));
        self.len += TILE;
    }

    fn block(&self, index: usize) -> StateBlock {
        let window = self.windows.get(index).filter(|window| !window.is_empty());
        StateBlock::new(Arc::clone(&self.blocks[index])).with_window(window.cloned())
    }

    fn replace(&mut self, index: usize, block: StateBlock) {
        if let Some(window) = self.windows.get_mut(index)
            && let Some(other) = block.window()
            && !window.is_empty()
        {
            *window = other;
        }
        self.blocks[index] = content(block);
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}

#[cfg(test)]
mod tests;
