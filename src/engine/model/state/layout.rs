//! The layout of a state: the part of each layer in a block, and the values beside the blocks.
//!
//! A block holds [`TILE`] (64) positions in 16-bit values. Of a model whose layers 0 and 2 are attention and
//! whose layers 1 and 3 are recurrent it is
//!
//! ```text
//! layer 0           | layer 2           | copy of layer 1 | copy of layer 3
//! [kv heads, tile]  | [kv heads, tile]  | [running, 2]    | [running, 2]
//! '------------ rows_len --------------' '--- copies_len, in one block of `interval` ---'
//! ```
//!
//! - A tile has the keys of one head, `[head_dim, 64]`, and then its values, `[64, head_dim]`; how these are
//!   stored is up to [`KvCacheType`].
//! - A layer that sees a window of positions only has its part, `[kv heads, tile]`, not there but in an
//!   allocation of its own for each block, which all such layers share: `window_len` values.
//! - What a recurrent layer keeps is overwritten by each position, and lies beside the blocks as f32:
//!   `[running]`, one layer after the other. A copy of it has each f32 as two 16-bit values.

use std::ops::Range;
use std::sync::Arc;

use super::super::delta_net::matrices;
use super::super::spec::{BlockSpec, Mixer, ModelSpec};
use super::super::state_space::heads_of;
use super::SharedBlock;
use crate::kernels::attention::AttentionSizes;
use crate::kernels::convolution::Taps;
use crate::kernels::recurrence::StatePlace;
use crate::kernels::tile::{KvCacheType, TILE};

/// The state of the layers of one kind.
pub(in crate::model) trait LayerState: std::fmt::Debug + Send + Sync {
    /// Values of the layer in a block, of 16 bits.
    fn len(&self) -> usize;

    /// Number of f32 values of the layer beside the blocks, which each position overwrites. Some blocks have
    /// a copy of them. A layer without such values can be cut anywhere.
    fn running(&self) -> usize {
        0
    }

    /// Number of positions of the layer that a position sees, its own included; None where it sees all.
    fn window(&self) -> Option<usize> {
        None
    }

    /// Clears the positions from `slot` on in the layer's part of a block.
    fn clear(&self, part: &mut [u16], slot: usize);
}

/// Keys and values of attention, for each key-value head as [`crate::kernels::attention`] lays them out:
/// positions do not depend on those behind them, so any number of them can be taken away.
#[derive(Debug)]
pub(in crate::model) struct KeysAndValues {
    pub(in crate::model) heads: AttentionSizes,
    pub(in crate::model) kind: KvCacheType,
    pub(in crate::model) window: Option<usize>,
}

/// No state: the layer uses that of another one.
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

/// The state of a layer other than attention: so many f32 values.
#[derive(Debug)]
pub(super) struct Recurrent {
    pub(super) values: usize,
}

impl LayerState for Recurrent {
    fn len(&self) -> usize {
        // Each f32 as two values of 16 bits.
        2 * self.values
    }

    fn running(&self) -> usize {
        self.values
    }

    fn clear(&self, _part: &mut [u16], _slot: usize) {
        // It is not read before the block is full.
    }
}

/// The state of one block of a model, with keys and values of this kind, of which no position sees more than
/// `window`.
fn layer_of(block: &BlockSpec, kind: KvCacheType, window: Option<usize>) -> Box<dyn LayerState> {
    match block.mixer {
        Mixer::Attention if block.attention.shares.is_some() => Box::new(Nothing),
        Mixer::Attention => Box::new(KeysAndValues { heads: block.attention.heads, kind, window }),
        Mixer::ShortConv(spec) => Box::new(Recurrent { values: Taps::state_len(spec.channels, spec.taps) }),
        Mixer::DeltaNet(spec) => Box::new(Recurrent {
            values: Taps::state_len(spec.channels(), spec.taps) + matrices(&spec).state_len(),
        }),
        Mixer::StateSpace(spec) => Box::new(Recurrent {
            values: Taps::state_len(spec.channels(), spec.taps) + heads_of(&spec).state_len(),
        }),
    }
}

/// The window of each block of a model, if it and all blocks that share its keys and values see no more of
/// these than a window.
fn windows(spec: &ModelSpec) -> Vec<Option<usize>> {
    // A window as long as the context is no window.
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
pub(crate) struct StateLayout(pub(super) Arc<Parts>);

#[derive(Debug)]
pub(super) struct Parts {
    /// The part of each layer, in the order of the model's blocks.
    pub(super) layers: Vec<LayerPart>,
    /// Values of a block without the copies behind them: the parts `[kv heads, tile]` of all layers of
    /// attention without a window.
    pub(super) rows_len: usize,
    /// Values of the copies: two for each f32 that is kept beside the blocks.
    pub(super) copies_len: usize,
    /// Values of the window part of a block, and the longest window; 0 without any.
    pub(super) window_len: usize,
    pub(super) window: usize,
    /// The empty block that stands for a window part that was given back.
    pub(super) gone: SharedBlock,
    /// One block in so many has copies.
    pub(super) interval: usize,
    /// The type in which keys and values are stored.
    pub(super) kind: KvCacheType,
}

/// Most memory of copies, as a multiple of that of keys and values, unless even [`LONGEST_INTERVAL`] leaves
/// more.
const MOST_COPIES: usize = 8;
/// At least one block in so many has copies.
pub(super) const LONGEST_INTERVAL: usize = 8;

/// The part of one layer in each block.
#[derive(Debug)]
pub(super) struct LayerPart {
    pub(super) range: Range<usize>,
    /// Whether that is a range of the window part.
    pub(super) windowed: bool,
    /// The layer's part of the values beside the blocks, in f32 values.
    pub(super) running: Range<usize>,
    pub(super) layer: Box<dyn LayerState>,
}

impl StateLayout {
    /// The layout of a model: a part for each of its blocks. With `whole`, states also keep the keys and
    /// values that no window sees any more.
    pub(in crate::model) fn of(spec: &ModelSpec, kind: KvCacheType, whole: bool) -> StateLayout {
        let windows = windows(spec).into_iter().map(|window| window.filter(|_| !whole));
        let layers = spec.blocks.iter().zip(windows).map(|(block, window)| layer_of(block, kind, window));
        StateLayout::new(layers, kind)
    }

    /// The layout of these layers.
    pub(in crate::model) fn new(
        layers: impl Iterator<Item = Box<dyn LayerState>>,
        kind: KvCacheType,
    ) -> StateLayout {
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
            LayerPart { range: start..*end, windowed, running: running..running_end, layer }
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

    /// The layout of a small layer.
    #[cfg(test)]
    pub(crate) fn of_one_layer() -> StateLayout {
        let (heads, kind) = (AttentionSizes { query: 1, kv: 1, dim: 2 }, KvCacheType::F16);
        let layer: Box<dyn LayerState> = Box::new(KeysAndValues { heads, kind, window: None });
        StateLayout::new(std::iter::once(layer), kind)
    }

    /// The layout of a small layer and one whose copies are large.
    #[cfg(test)]
    pub(crate) fn with_copies_in_every_fourth_block() -> StateLayout {
        let (heads, kind) = (AttentionSizes { query: 1, kv: 1, dim: 2 }, KvCacheType::F16);
        let attention = KeysAndValues { heads, kind, window: None };
        let values = 2 * MOST_COPIES * attention.len();
        let layers: [Box<dyn LayerState>; 2] = [Box::new(Recurrent { values }), Box::new(attention)];
        StateLayout::new(layers.into_iter(), kind)
    }

    /// The type in which keys and values are stored.
    pub(in crate::model) fn kind(&self) -> KvCacheType {
        self.0.kind
    }

    /// The layout of a layer with a window and one without.
    #[cfg(test)]
    pub(crate) fn with_a_window(window: usize) -> StateLayout {
        let (heads, kind) = (AttentionSizes { query: 1, kv: 1, dim: 2 }, KvCacheType::F16);
        let layers = [None, Some(window)]
            .map(|window| -> Box<dyn LayerState> { Box::new(KeysAndValues { heads, kind, window }) });
        StateLayout::new(layers.into_iter(), kind)
    }

    /// Values of the block of this index.
    pub(super) fn block_len(&self, index: usize) -> usize {
        let copies = if (index + 1).is_multiple_of(self.0.interval) { self.0.copies_len } else { 0 };
        self.0.rows_len + copies
    }

    /// Bytes of the first `blocks` blocks.
    pub(crate) fn block_bytes(&self, blocks: usize) -> u64 {
        let values = |count: usize, each: usize| (count as u64).saturating_mul(each as u64);
        let copies = values(blocks / self.0.interval, self.0.copies_len);
        values(blocks, self.0.rows_len).saturating_add(copies).saturating_mul(size_of::<u16>() as u64)
    }

    /// Bytes of the window parts of so many blocks.
    pub(super) fn window_bytes(&self, blocks: usize) -> u64 {
        (blocks as u64).saturating_mul((self.0.window_len * size_of::<u16>()) as u64)
    }

    /// The last place, at most `positions`, behind which a sequence that has only blocks can resume.
    pub(super) fn resumable(&self, positions: usize) -> usize {
        let each = if self.running_len() > 0 { TILE * self.0.interval } else { 1 };
        positions / each * each
    }

    /// The place of a layer's part.
    pub(in crate::model) fn place(&self, layer: usize) -> StatePlace {
        let LayerPart { range, running, .. } = &self.0.layers[layer];
        StatePlace { running: running.start, block: range.start }
    }

    /// Whether its part belongs to the window part of a block.
    pub(in crate::model) fn is_windowed(&self, layer: usize) -> bool {
        self.0.layers[layer].windowed
    }

    /// Values that are kept beside the blocks.
    pub(super) fn running_len(&self) -> usize {
        self.0.copies_len / 2
    }
}
