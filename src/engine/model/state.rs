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
//! Layers that see a window of positions only have allocations of their own, one for each block of positions, which go when the window of
//! the next position sees nothing of them ([`State::settle`]). A sequence cannot go back behind what is gone; it goes back to the last place
//! whose window is there, and to the beginning if there is none.
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

    /// So many positions, its own and those before it, are all that a position sees of the layer.
    fn window(&self) -> Option<usize> {
        None
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
    pub(super) window: Option<usize>,
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

    fn window(&self) -> Option<usize> {
        self.window
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

/// What a block of a model keeps, with keys and values of this kind, of which no position sees more than a window.
fn layer_of(block: &BlockSpec, kind: KvCacheType, window: Option<usize>) -> Box<dyn LayerState> {
    match block.mixer {
        Mixer::Attention if block.attention.shares.is_some() => Box::new(Nothing),
        Mixer::Attention => Box::new(KeysAndValues { heads: block.attention.heads, kind, window }),
        Mixer::ShortConv(spec) => Box::new(Recurrent { values: Taps::state_len(spec.channels, spec.taps) }),
        Mixer::DeltaNet(spec) => Box::new(Recurrent {
            values: Taps::state_len(spec.channels(), spec.taps) + matrices(&spec).state_len(),
        }),
    }
}

/// For each block of a model the window that is all which is seen of its keys and values, by itself and by those that share them.
fn windows(spec: &Spec) -> Vec<Option<usize>> {
    // A window as long as the context is none.
    let own = |block: &BlockSpec| {
        let span = block.attention.span;
        span.window().filter(|window| *window < spec.context_length && !span.both_ways())
    };
    let mut windows: Vec<_> = spec.blocks.iter().map(own).collect();
    for block in &spec.blocks {
        if let Some(source) = block.attention.shares {
            windows[source] = windows[source].zip(own(block)).map(|(one, other)| one.max(other));
        }
    }
    windows
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
    /// Values of what windows see of a block, and the longest window; 0 without any.
    window_len: usize,
    window: usize,
    /// What is in the place of that where it is gone.
    gone: SharedBlock,
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
    /// Whether that is a range of what windows see.
    windowed: bool,
    /// Of what is kept beside the blocks.
    running: Range<usize>,
    layer: Box<dyn LayerState>,
}

impl StateLayout {
    /// The layout of a model: a part for each of its blocks. With `whole`, nothing goes that no window sees any more.
    pub(super) fn of(spec: &Spec, kind: KvCacheType, whole: bool) -> StateLayout {
        let windows = windows(spec).into_iter().map(|window| window.filter(|_| !whole));
        let layers = spec.blocks.iter().zip(windows).map(|(block, window)| layer_of(block, kind, window));
        StateLayout::new(layers, kind)
    }

    /// The layout of these layers.
    pub(super) fn new(layers: impl Iterator<Item = Box<dyn LayerState>>, kind: KvCacheType) -> StateLayout {
        let layers: Vec<_> = layers.collect();
        let length = |of: &dyn Fn(&dyn LayerState) -> bool| {
            layers.iter().filter(|layer| of(&***layer)).map(|layer| layer.len()).sum::<usize>()
        };
        let rows_len = length(&|layer| layer.running() == 0 && layer.window().is_none());
        let copies_len = length(&|layer| layer.running() > 0);
        let window_len = length(&|layer| layer.window().is_some());
        let window = layers.iter().filter_map(|layer| layer.window()).max().unwrap_or(0);
        let (mut rows_end, mut copies_end, mut window_end, mut running_end) = (0, rows_len, 0, 0);
        let part = |layer: Box<dyn LayerState>| {
            let windowed = layer.window().is_some();
            let end = match layer.running() {
                0 if windowed => &mut window_end,
                0 => &mut rows_end,
                _ => &mut copies_end,
            };
            let (start, running) = (*end, running_end);
            *end += layer.len();
            running_end += layer.running();
            Part { range: start..*end, windowed, running: running..running_end, layer }
        };
        let layers = layers.into_iter().map(part).collect();
        let every = rows_len + window_len;
        let enough =
            |interval: &usize| copies_len <= interval.saturating_mul(MOST_COPIES).saturating_mul(every);
        let interval = [1, 2, 4].into_iter().find(enough).unwrap_or(LONGEST_INTERVAL);
        let gone = SharedBlock::default();
        let parts = Parts { layers, rows_len, copies_len, window_len, window, gone, interval, kind };
        StateLayout(Arc::new(parts))
    }

    /// That of a small layer.
    #[cfg(test)]
    pub(crate) fn of_one_layer() -> StateLayout {
        let (heads, kind) = (Heads { query: 1, kv: 1, dim: 2 }, KvCacheType::F16);
        let layer: Box<dyn LayerState> = Box::new(KeysAndValues { heads, kind, window: None });
        StateLayout::new(std::iter::once(layer), kind)
    }

    /// That of a small layer and one whose copies are large.
    #[cfg(test)]
    pub(crate) fn with_copies_in_every_fourth_block() -> StateLayout {
        let (heads, kind) = (Heads { query: 1, kv: 1, dim: 2 }, KvCacheType::F16);
        let attention = KeysAndValues { heads, kind, window: None };
        let values = 2 * MOST_COPIES * attention.len();
        let layers: [Box<dyn LayerState>; 2] = [Box::new(Recurrent { values }), Box::new(attention)];
        StateLayout::new(layers.into_iter(), kind)
    }

    /// How keys and values are stored.
    pub(super) fn kind(&self) -> KvCacheType {
        self.0.kind
    }

    /// That of a layer with a window and one without.
    #[cfg(test)]
    pub(crate) fn with_a_window(window: usize) -> StateLayout {
        let (heads, kind) = (Heads { query: 1, kv: 1, dim: 2 }, KvCacheType::F16);
        let layers = [None, Some(window)]
            .map(|window| -> Box<dyn LayerState> { Box::new(KeysAndValues { heads, kind, window }) });
        StateLayout::new(layers.into_iter(), kind)
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

    /// Bytes of what windows see of so many blocks.
    fn window_bytes(&self, blocks: usize) -> u64 {
        (blocks as u64).saturating_mul((self.0.window_len * size_of::<u16>()) as u64)
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

    /// Whether its part is one of what windows see.
    pub(super) fn is_windowed(&self, layer: usize) -> bool {
        self.0.layers[layer].windowed
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
    /// What windows see of each of them, empty where it is gone; nothing in models without windows.
    windows: Vec<SharedBlock>,
    /// So many of those at the beginning are gone.
    gone: usize,
    /// Most rows of a pass.
    rows: usize,
    len: usize,
    /// What is kept beside the blocks: behind the last position that is no guess, and behind guesses.
    now: Kept,
    ahead: Kept,
    /// Guesses among the rows of the pass that is under way.
    guesses: usize,
}

impl SequenceState {
    /// A state of no positions and no blocks, which passes of so many rows add to.
    pub(crate) fn new(layout: StateLayout, rows: usize) -> Self {
        let (now, ahead) = (Kept::default(), Kept::default());
        let (blocks, windows) = (Vec::new(), Vec::new());
        SequenceState { layout, blocks, windows, gone: 0, rows, len: 0, now, ahead, guesses: 0 }
    }

    /// How keys and values are stored.
    pub(super) fn kind(&self) -> KvCacheType {
        self.layout.kind()
    }

    /// Bytes that a position takes in the long run, however many follow it.
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

    /// The first block of which the windows of the position `len` see something.
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

    /// The blocks that are full, those that the next `count` positions go to, no longer shared, and what is kept beside them;
    /// or of the blocks what windows see.
    pub(super) fn parts(
        &mut self,
        count: usize,
        windowed: bool,
    ) -> (&[SharedBlock], Vec<Disjoint<'_, u16>>, Option<Running<'_>>) {
        let running = (self.layout.running_len() > 0).then(|| Running {
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

    fn window_bytes(&self, blocks: usize) -> u64 {
        self.layout.window_bytes(blocks)
    }

    fn most_window_blocks(&self) -> usize {
        match self.layout.0.window_len {
            0 => 0,
            // The rows of a pass, and what the first of them sees before them, wherever that begins in a block.
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
            // Zeroed, so that what masked positions hold is at least the same each time.
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
        (self.now, self.ahead) = (Kept::default(), Kept::default());
    }

    fn attach(&mut self, block: Block) {
        assert!(self.len.is_multiple_of(TILE), "a block is attached behind {} positions", self.len);
        self.cut(self.len / TILE);
        if self.layout.0.window_len > 0 {
            self.windows.push(block.window().unwrap_or_else(|| Arc::clone(&self.layout.0.gone)));
        }
        self.blocks.push(content(block));
        self.len += TILE;
    }

    fn block(&self, index: usize) -> Block {
        let window = self.windows.get(index).filter(|window| !window.is_empty());
        Block::new(Arc::clone(&self.blocks[index])).with_window(window.cloned())
    }

    fn replace(&mut self, index: usize, block: Block) {
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
mod tests {
    use super::*;

    fn state(layers: Vec<Box<dyn LayerState>>) -> SequenceState {
        let mut state = SequenceState::new(StateLayout::new(layers.into_iter(), KvCacheType::F16), 64);
        state.reserve(200).unwrap();
        state.advance(200);
        state
    }

    fn windowed(window: Option<usize>) -> Box<dyn LayerState> {
        let (heads, kind) = (Heads { query: 2, kv: 1, dim: 4 }, KvCacheType::F16);
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

    /// Which blocks have what windows see.
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
                assert_eq!(
                    seen(&state),
                    (first / TILE..last / TILE + 1).collect::<Vec<_>>(),
                    "{window} {rows}"
                );
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
        // What the last pass has seen is still there.
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
        assert_eq!(
            (state.len(), state.blocks()),
            (0, 0),
            "behind two blocks, the window begins in the first"
        );
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
}
