//! What a sequence keeps of the tokens that were computed: its state.
//!
//! It grows by blocks of [`TILE`] positions. A block is one allocation, made when its first position is reached, of which
//! each layer has a part; how the part is laid out is up to the kind of the layer ([`LayerState`]). Sequences that begin with the
//! same tokens may share blocks.
//!
//! What a layer keeps of attention is a row for each position, so it can be cut anywhere. What other layers keep is overwritten by each
//! position: it lies beside the blocks ([`Kept`]), and some blocks have a copy of what it was behind the block's last position: all
//! of them, or one in a few where copies are large ([`StateLayout`]). A sequence that has to go back goes to the last place of which
//! there is a copy, and computes from there again.
//!
//! Invariant: a block that is shared is never written; a sequence that has to gets a copy of its own.

use std::any::Any;
use std::ops::Range;
use std::sync::Arc;

use super::delta_net::matrices;
use super::spec::{BlockSpec, Mixer, Spec};
use crate::Error;
use crate::backend::{Block, State};
use crate::kernels::Floats;
use crate::kernels::attention::{Heads, KvCacheType, TILE};
use crate::kernels::convolution::Taps;
use crate::kernels::disjoint::Disjoint;
use crate::kernels::recurrence::{Place, Running, load};
use crate::memory::fallible;

/// What the layers of one kind keep.
pub(super) trait LayerState: std::fmt::Debug + Send + Sync {
    /// Values of the layer in a block, of 16 bits.
    fn len(&self) -> usize;

    /// Values of the layer beside the blocks, as f32: what each position overwrites. A block has a copy of them. A layer that keeps
    /// nothing of the kind can be cut anywhere.
    fn running(&self) -> usize {
        0
    }

    /// Leaves zeros in the layer's part of a block where the positions from `slot` on were.
    fn clear(&self, part: &mut [u16], slot: usize);
}

/// Keys and values of attention, for each key-value head as [`crate::kernels::attention`] lays them out: positions do
/// not depend on those behind them, so any number of them can be taken away.
#[derive(Debug)]
pub(super) struct KeysAndValues {
    pub(super) heads: Heads,
    pub(super) kind: KvCacheType,
}

/// Nothing: the layer uses the state of another one.
#[derive(Debug)]
struct Nothing;

impl LayerState for Nothing {
    fn len(&self) -> usize {
        0
    }

    fn clear(&self, _part: &mut [u16], _slot: usize) {}
}

impl LayerState for KeysAndValues {
    fn len(&self) -> usize {
        self.heads.kv * self.kind.tile_len(self.heads.dim)
    }

    fn clear(&self, part: &mut [u16], slot: usize) {
        let dim = self.heads.dim;
        part.chunks_exact_mut(self.kind.tile_len(dim)).for_each(|tile| self.kind.clear(tile, dim, slot));
    }
}

/// What a layer keeps that is not attention: so many values.
#[derive(Debug)]
struct Recurrent {
    values: usize,
}

impl LayerState for Recurrent {
    fn len(&self) -> usize {
        // The bits of each in two.
        2 * self.values
    }

    fn running(&self) -> usize {
        self.values
    }

    fn clear(&self, _part: &mut [u16], _slot: usize) {
        // Nothing of it is read before the block is full.
    }
}

/// What a block of a model keeps, with keys and values of this kind.
fn layer_of(block: &BlockSpec, kind: KvCacheType) -> Box<dyn LayerState> {
    match block.mixer {
        Mixer::Attention if block.attention.shares.is_some() => Box::new(Nothing),
        Mixer::Attention => Box::new(KeysAndValues { heads: block.attention.heads, kind }),
        Mixer::ShortConv(spec) => Box::new(Recurrent { values: Taps::state_len(spec.channels, spec.taps) }),
        Mixer::DeltaNet(spec) => Box::new(Recurrent {
            values: Taps::state_len(spec.channels(), spec.taps) + matrices(&spec).state_len(),
        }),
    }
}

/// The parts of a block of one model. Clones share them.
#[derive(Debug, Clone)]
pub(crate) struct StateLayout(Arc<Parts>);

#[derive(Debug)]
struct Parts {
    /// For each layer.
    layers: Vec<Part>,
    /// Values of a block without copies of what is kept beside the blocks, which are behind them.
    rows_len: usize,
    /// Values of the copies.
    copies_len: usize,
    /// One block in so many has copies.
    interval: usize,
    /// How keys and values are stored.
    kind: KvCacheType,
}

/// Copies may take so many times the memory of keys and values.
const MOST_COPIES: usize = 8;
/// At least one block in so many has copies.
const LONGEST_INTERVAL: usize = 8;

/// What one layer has of each block.
#[derive(Debug)]
struct Part {
    range: Range<usize>,
    /// Of what is kept beside the blocks.
    running: Range<usize>,
    layer: Box<dyn LayerState>,
}

impl StateLayout {
    /// The layout of a model: a part for each of its blocks.
    pub(super) fn of(spec: &Spec, kind: KvCacheType) -> StateLayout {
        StateLayout::new(spec.blocks.iter().map(|block| layer_of(block, kind)), kind)
    }

    /// The layout of these layers.
    pub(super) fn new(layers: impl Iterator<Item = Box<dyn LayerState>>, kind: KvCacheType) -> StateLayout {
        let layers: Vec<_> = layers.collect();
        let [rows_len, copies_len] = [false, true].map(|copied| {
            let layers = layers.iter().filter(|layer| (layer.running() > 0) == copied);
            layers.map(|layer| layer.len()).sum::<usize>()
        });
        let (mut rows_end, mut copies_end, mut running_end) = (0, rows_len, 0);
        let part = |layer: Box<dyn LayerState>| {
            let end = if layer.running() > 0 { &mut copies_end } else { &mut rows_end };
            let (start, running) = (*end, running_end);
            *end += layer.len();
            running_end += layer.running();
            Part { range: start..*end, running: running..running_end, layer }
        };
        let layers = layers.into_iter().map(part).collect();
        let enough =
            |interval: &usize| copies_len <= interval.saturating_mul(MOST_COPIES).saturating_mul(rows_len);
        let interval = [1, 2, 4].into_iter().find(enough).unwrap_or(LONGEST_INTERVAL);
        StateLayout(Arc::new(Parts { layers, rows_len, copies_len, interval, kind }))
    }

    /// That of a small layer.
    #[cfg(test)]
    pub(crate) fn of_one_layer() -> StateLayout {
        let (heads, kind) = (Heads { query: 1, kv: 1, dim: 2 }, KvCacheType::F16);
        let layer: Box<dyn LayerState> = Box::new(KeysAndValues { heads, kind });
        StateLayout::new(std::iter::once(layer), kind)
    }

    /// That of a small layer and one whose copies are large.
    #[cfg(test)]
    pub(crate) fn with_copies_in_every_fourth_block() -> StateLayout {
        let (heads, kind) = (Heads { query: 1, kv: 1, dim: 2 }, KvCacheType::F16);
        let attention = KeysAndValues { heads, kind };
        let values = 2 * MOST_COPIES * attention.len();
        let layers: [Box<dyn LayerState>; 2] = [Box::new(Recurrent { values }), Box::new(attention)];
        StateLayout::new(layers.into_iter(), kind)
    }

    /// How keys and values are stored.
    pub(super) fn kind(&self) -> KvCacheType {
        self.0.kind
    }

    /// Values of the block of this index.
    fn block_len(&self, index: usize) -> usize {
        let copies = if (index + 1).is_multiple_of(self.0.interval) { self.0.copies_len } else { 0 };
        self.0.rows_len + copies
    }

    /// Bytes of the first `blocks` blocks.
    pub(crate) fn block_bytes(&self, blocks: usize) -> u64 {
        let values = |count: usize, each: usize| (count as u64).saturating_mul(each as u64);
        let copies = values(blocks / self.0.interval, self.0.copies_len);
        values(blocks, self.0.rows_len).saturating_add(copies).saturating_mul(size_of::<u16>() as u64)
    }

    /// The last place, at most `positions`, behind which a sequence can go on that has only blocks.
    fn resumable(&self, positions: usize) -> usize {
        let each = if self.running_len() > 0 { TILE * self.0.interval } else { 1 };
        positions / each * each
    }

    /// Where a layer's part begins.
    pub(super) fn place(&self, layer: usize) -> Place {
        let Part { range, running, .. } = &self.0.layers[layer];
        Place { running: running.start, block: range.start }
    }

    /// Values that are kept beside the blocks.
    fn running_len(&self) -> usize {
        self.0.copies_len / 2
    }
}

/// What layers keep that each position overwrites, behind some position.
#[derive(Default)]
struct Kept {
    values: Floats,
    /// How many positions went into it; None while that is not known.
    positions: Option<usize>,
}

impl std::fmt::Debug for Kept {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kept").field("positions", &self.positions).finish_non_exhaustive()
    }
}

impl Kept {
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
    len: usize,
    /// What is kept beside the blocks: behind the last position that is no guess, and behind guesses.
    now: Kept,
    ahead: Kept,
    /// Guesses among the rows of the pass that is under way.
    guesses: usize,
}

impl SequenceState {
    /// A state of no positions and no blocks.
    pub(crate) fn new(layout: StateLayout) -> Self {
        let (now, ahead) = (Kept::default(), Kept::default());
        SequenceState { layout, blocks: Vec::new(), len: 0, now, ahead, guesses: 0 }
    }

    /// How keys and values are stored.
    pub(super) fn kind(&self) -> KvCacheType {
        self.layout.kind()
    }

    /// Bytes that a position takes in the long run.
    pub(crate) fn bytes_per_position(&self) -> u64 {
        let positions = LONGEST_INTERVAL * TILE;
        self.layout.block_bytes(LONGEST_INTERVAL).div_ceil(positions as u64)
    }

    /// Gives back the blocks of a state without positions beyond those for `positions`.
    pub(super) fn shrink(&mut self, positions: usize) {
        debug_assert_eq!(self.len, 0);
        self.blocks.truncate(positions.div_ceil(TILE));
    }

    /// Begins a pass whose last `guesses` rows may be taken back. Until the pass is [done](SequenceState::advance) or
    /// [given up](SequenceState::give_up), what is kept beside the blocks belongs to no position.
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
                    for Part { range, running, .. } in &self.layout.0.layers {
                        // Nothing of attention.
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

    /// Ends a pass that was not computed to its end.
    pub(super) fn give_up(&mut self) {
        self.truncate(self.len);
    }

    /// The blocks that are full, those that the next `count` positions go to, no longer shared, and what is kept beside them.
    pub(super) fn parts(
        &mut self,
        count: usize,
    ) -> (&[SharedBlock], Vec<Disjoint<'_, u16>>, Option<Running<'_>>) {
        let running = (self.layout.running_len() > 0).then(|| Running {
            now: Disjoint::new(&mut self.now.values),
            ahead: Disjoint::new(&mut self.ahead.values),
            certain: count - self.guesses,
        });
        let (done, open) = self.blocks.split_at_mut(self.len / TILE);
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

    fn block_bytes(&self, blocks: usize) -> u64 {
        self.layout.block_bytes(blocks)
    }

    fn resumes_behind(&self, blocks: usize) -> bool {
        self.layout.resumable(blocks * TILE) == blocks * TILE
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
        while self.blocks.len() < positions.div_ceil(TILE) {
            let mut block = Vec::new();
            let length = self.layout.block_len(self.blocks.len());
            fallible(|| block.try_reserve_exact(length)).map_err(|_| out_of_memory(bytes))?;
            // Zeroed, so that what masked positions hold is at least the same each time.
            block.resize(length, 0);
            self.blocks.push(Arc::new(block.into_boxed_slice()));
        }
        Ok(())
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        if self.layout.running_len() > 0 {
            let kept = self.now.within(self.len).max(self.ahead.within(self.len));
            self.len = self.layout.resumable(self.len).max(kept.unwrap_or(0));
            for kept in [&mut self.now, &mut self.ahead] {
                kept.positions = kept.within(self.len);
            }
        }
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
        for Part { range, layer, .. } in &self.layout.0.layers {
            if range.end <= block.len() {
                layer.clear(&mut block[range.clone()], slot);
            }
        }
    }

    fn forget(&mut self) {
        self.len = 0;
        self.blocks = Vec::new();
        (self.now, self.ahead) = (Kept::default(), Kept::default());
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

    fn state(layers: Vec<Box<dyn LayerState>>) -> SequenceState {
        let mut state = SequenceState::new(StateLayout::new(layers.into_iter(), KvCacheType::F16));
        state.reserve(200).unwrap();
        state.advance(200);
        state
    }

    fn attention() -> Box<dyn LayerState> {
        Box::new(KeysAndValues { heads: Heads { query: 2, kv: 1, dim: 4 }, kind: KvCacheType::F16 })
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
            assert!(
                keys.chunks_exact(TILE).all(|keys| keys[..2] == [7, 7] && keys[2..].iter().all(|x| *x == 0))
            );
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
            assert_eq!(state.parts(5).2.map(|running| running.certain), Some(2));
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
        let mut state = SequenceState::new(layout.clone());
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
}
