//! The state of a sequence, as tensors: keys and values of each layer, in blocks of [`BLOCK`] positions that
//! sequences share.
//!
//! Layers other than attention keep a [`LayerMemory`] that each position overwrites. A state has these
//! memories as they are behind its last position, and as they were behind the last position that was no
//! guess; one block in every few has them as they were behind the block's last position. A sequence that has
//! to go back goes to the last of these places, and computes from there again.
//!
//! Invariant: a shared block is never written; a sequence that has to write one copies it first.

use std::any::Any;
use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

use super::layer_memory::LayerMemory;
use super::raised;
use crate::Error;
use crate::computing::{BLOCK, State, StateBlock};
use crate::memory::watched;
use crate::model::spec::{Mixer, ModelSpec};

/// The kinds of state that the layers of a model have. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Layers(Arc<CandleStateInner>);

#[derive(Debug)]
struct CandleStateInner {
    /// Key-value heads and their length, of the layers that keep any.
    layers: Vec<Option<[usize; 2]>>,
    /// The states, before a text, of layers other than attention.
    empty: Vec<Option<LayerMemory>>,
    /// Number of values of these states.
    memory_values: u64,
    /// One block in so many has a copy of these states.
    interval: usize,
    device: Device,
}

/// Most memory of these copies, as a multiple of that of keys and values, unless even [`LONGEST_INTERVAL`]
/// leaves more.
const MOST_COPIES: u64 = 8;
/// At least one block in so many has a copy.
const LONGEST_INTERVAL: usize = 8;

impl Layers {
    /// The kinds of state that the layers of this model have.
    ///
    /// # Errors
    /// [`Error::Panicked`] for a bug.
    pub(super) fn of(spec: &ModelSpec, device: &Device) -> Result<Layers, Error> {
        let layers = spec.blocks.iter().map(|block| {
            let heads = block.attention.heads;
            let keeps = block.mixer == Mixer::Attention && block.attention.shares.is_none();
            keeps.then_some([heads.kv, heads.dim])
        });
        let layers: Vec<Option<[usize; 2]>> = layers.collect();
        let empty = spec.blocks.iter().map(|block| LayerMemory::empty(&block.mixer, device));
        let empty = empty.collect::<candle_core::Result<_>>().map_err(raised)?;
        let memory = spec.blocks.iter().map(|block| LayerMemory::values(&block.mixer) as u64);
        let memory_values = memory.fold(0, u64::saturating_add);
        let mut inner =
            CandleStateInner { layers, empty, memory_values, interval: 1, device: device.clone() };
        let rows = inner.row_values();
        let enough = |interval: &usize| memory_values <= rows.saturating_mul(MOST_COPIES * *interval as u64);
        inner.interval = [1, 2, 4].into_iter().find(enough).unwrap_or(LONGEST_INTERVAL);
        Ok(Layers(Arc::new(inner)))
    }

    /// Whether there are layers other than attention.
    fn has_memory(&self) -> bool {
        self.0.memory_values > 0
    }

    /// The last place, at most `positions`, behind which a sequence that has only blocks can resume.
    fn resumable(&self, positions: usize) -> usize {
        let each = if self.has_memory() { BLOCK * self.0.interval } else { 1 };
        positions / each * each
    }

    /// Values that one position has in the layer with most of them.
    fn widest(&self) -> u64 {
        let layers = self.0.layers.iter().flatten();
        layers.map(|[heads, dim]| (2 * heads * dim) as u64).max().unwrap_or(0)
    }

    fn new_block(&self) -> candle_core::Result<BlockContent> {
        let zeros = |[heads, dim]: [usize; 2]| Tensor::zeros((heads, BLOCK, dim), DType::F32, &self.0.device);
        let layer = |layer: &Option<[usize; 2]>| {
            let Some(shape) = *layer else { return Ok(None) };
            Ok(Some([zeros(shape)?, zeros(shape)?]))
        };
        let layers = self.0.layers.iter().map(layer).collect::<candle_core::Result<_>>()?;
        Ok(BlockContent { layers, behind: None })
    }
}

impl CandleStateInner {
    /// Values of keys and values of a block.
    fn row_values(&self) -> u64 {
        let layers = self.layers.iter().flatten();
        layers.map(|[heads, dim]| (2 * heads * dim * BLOCK) as u64).fold(0, u64::saturating_add)
    }
}

/// The content of a block.
#[derive(Debug)]
struct BlockContent {
    /// Keys and values `[heads, BLOCK, dim]` of each layer that keeps any.
    layers: Vec<Option<[Tensor; 2]>>,
    /// The states of the other layers behind its last position, in some blocks.
    behind: Option<Memories>,
}

/// The state of each layer other than attention.
type Memories = Vec<Option<LayerMemory>>;

impl BlockContent {
    fn copied(&self) -> candle_core::Result<BlockContent> {
        let layer = |layer: &Option<[Tensor; 2]>| {
            let Some([keys, values]) = layer else { return Ok(None) };
            Ok(Some([keys.copy()?, values.copy()?]))
        };
        let layers = self.layers.iter().map(layer).collect::<candle_core::Result<_>>()?;
        Ok(BlockContent { layers, behind: None })
    }
}

/// The state of one sequence.
#[derive(Debug)]
pub(super) struct CandleState {
    layers: Layers,
    blocks: Vec<Arc<BlockContent>>,
    len: usize,
    /// The states of layers other than attention, behind some positions in ascending order; behind the last
    /// one unless a block has that.
    kept: Vec<(usize, Memories)>,
    /// The same for the current pass: behind so many of its rows.
    made: Vec<(usize, Memories)>,
    /// Their states before the pass.
    before: Memories,
}

impl CandleState {
    /// A state of no positions and no blocks.
    pub(super) fn new(layers: Layers) -> CandleState {
        let (kept, made, before) = (Vec::new(), Vec::new(), Vec::new());
        CandleState { layers, blocks: Vec::new(), len: 0, kept, made, before }
    }

    /// Begins a pass over `count` rows, the last `guesses` of which may be taken back: copies the shared
    /// blocks that they go to.
    pub(super) fn begin(&mut self, count: usize, guesses: usize) -> candle_core::Result<()> {
        let open = self.len / BLOCK..(self.len + count).div_ceil(BLOCK);
        for block in &mut self.blocks[open] {
            if Arc::get_mut(block).is_none() {
                *block = Arc::new(block.copied()?);
            }
        }
        if self.layers.has_memory() {
            self.before = self.behind_last()?;
            let each = BLOCK * self.layers.0.interval;
            let borders = (1..=count).filter(|rows| (self.len + rows).is_multiple_of(each));
            let mut marks: Vec<usize> =
                borders.chain([count - guesses, count]).filter(|rows| *rows > 0).collect();
            marks.sort_unstable();
            marks.dedup();
            let nothing = vec![None; self.before.len()];
            self.made = marks.into_iter().map(|rows| (rows, nothing.clone())).collect();
        }
        Ok(())
    }

    /// The states of layers behind the last position.
    fn behind_last(&self) -> candle_core::Result<Memories> {
        if let Some((_, kept)) = self.kept.iter().find(|(positions, _)| *positions == self.len) {
            return Ok(kept.clone());
        }
        match self.len.checked_sub(1) {
            None => Ok(self.layers.0.empty.clone()),
            Some(last) => match &self.blocks[last / BLOCK].behind {
                Some(behind) if self.len.is_multiple_of(BLOCK) => Ok(behind.clone()),
                _ => candle_core::bail!("a sequence goes on from where nothing was kept"),
            },
        }
    }

    /// The state of a layer before the pass.
    pub(super) fn memory(&self, layer: usize) -> candle_core::Result<LayerMemory> {
        let memory = self.before.get(layer).cloned().flatten();
        memory.ok_or_else(|| candle_core::Error::Msg("a layer that keeps nothing is asked for it".to_owned()))
    }

    /// The numbers of rows of the pass behind which the states of layers are kept.
    pub(super) fn marks(&self) -> Vec<usize> {
        self.made.iter().map(|(rows, _)| *rows).collect()
    }

    /// Keeps the state of a layer behind so many rows of the pass, which is one of the
    /// [marks](CandleState::marks).
    pub(super) fn remember(&mut self, layer: usize, rows: usize, memory: LayerMemory) {
        if let Some((_, made)) = self.made.iter_mut().find(|(mark, _)| *mark == rows) {
            made[layer] = Some(memory);
        }
    }

    /// Keeps keys and values `[heads, rows, dim]` of a layer at the next positions, which are not added yet.
    pub(super) fn store(&self, layer: usize, keys: &Tensor, values: &Tensor) -> candle_core::Result<()> {
        let rows = keys.dim(1)?;
        let mut done = 0;
        while done < rows {
            let (block, slot) = ((self.len + done) / BLOCK, (self.len + done) % BLOCK);
            let count = (BLOCK - slot).min(rows - done);
            if let Some(kept) = &self.blocks[block].layers[layer] {
                for (kept, new) in kept.iter().zip([keys, values]) {
                    kept.slice_set(&new.narrow(1, done, count)?.contiguous()?, 1, slot)?;
                }
            }
            done += count;
        }
        Ok(())
    }

    /// Keys and values of a layer from the beginning of the block of position `first` to `end`, `[heads,
    /// positions, dim]`, and the position that they begin with.
    pub(super) fn kept(
        &self,
        layer: usize,
        first: usize,
        end: usize,
    ) -> candle_core::Result<(Tensor, Tensor, usize)> {
        let blocks = first / BLOCK..end.div_ceil(BLOCK);
        let of = |which: usize| {
            let parts = self.blocks[blocks.clone()].iter().filter_map(|block| block.layers[layer].as_ref());
            let parts: Vec<&Tensor> = parts.map(|kept| &kept[which]).collect();
            match parts[..] {
                [one] => Ok(one.clone()),
                _ => Tensor::cat(&parts, 1),
            }
        };
        Ok((of(0)?, of(1)?, blocks.start * BLOCK))
    }

    /// Adds `count` positions that were stored in all layers.
    pub(super) fn advance(&mut self, count: usize, guesses: usize) {
        let each = BLOCK * self.layers.0.interval;
        let certain = self.len + count - guesses;
        let kept = std::mem::take(&mut self.made);
        self.kept.clear();
        for (rows, made) in kept {
            let positions = self.len + rows;
            if positions.is_multiple_of(each)
                && let Some(block) = Arc::get_mut(&mut self.blocks[positions / BLOCK - 1])
            {
                block.behind = Some(made.clone());
            }
            if positions >= certain {
                self.kept.push((positions, made));
            }
        }
        self.before = Vec::new();
        self.len += count;
    }
}

/// The block of another sequence of the same model.
fn content(block: StateBlock) -> Arc<BlockContent> {
    let Some(content) = block.into_content() else { unreachable!("the blocks of one model are of one kind") };
    content
}

impl State for CandleState {
    fn len(&self) -> usize {
        self.len
    }

    fn blocks(&self) -> usize {
        self.blocks.len()
    }

    fn block_bytes(&self, blocks: usize) -> u64 {
        let CandleStateInner { memory_values, interval, .. } = &*self.layers.0;
        let copies = ((blocks / interval) as u64).saturating_mul(*memory_values);
        let values = (blocks as u64).saturating_mul(self.layers.0.row_values()).saturating_add(copies);
        values.saturating_mul(size_of::<f32>() as u64)
    }

    fn fixed_bytes(&self) -> u64 {
        // Before a pass, behind it, and before its guesses.
        self.layers.0.memory_values.saturating_mul(3 * size_of::<f32>() as u64)
    }

    fn bytes(&self, positions: usize) -> u64 {
        // While a layer is computed, there is another copy of its keys and values, in one piece.
        let blocks = positions.div_ceil(BLOCK);
        let together = ((blocks * BLOCK) as u64).saturating_mul(self.layers.widest());
        let together = together.saturating_mul(size_of::<f32>() as u64);
        self.block_bytes(blocks).saturating_add(together).saturating_add(self.fixed_bytes())
    }

    fn resumes_behind(&self, blocks: usize) -> bool {
        self.layers.resumable(blocks * BLOCK) == blocks * BLOCK
    }

    fn reserve(&mut self, positions: usize) -> Result<(), Error> {
        let missing = positions.div_ceil(BLOCK).saturating_sub(self.blocks.len());
        if missing == 0 {
            return Ok(());
        }
        let bytes = usize::try_from(self.block_bytes(missing)).unwrap_or(usize::MAX);
        let what = format!("the key-value cache for {positions} tokens");
        let layers = &self.layers;
        let made = watched(&what, bytes, || {
            (0..missing).map(|_| layers.new_block().map(Arc::new)).collect::<candle_core::Result<Vec<_>>>()
        })?;
        self.blocks.extend(made.map_err(raised)?);
        Ok(())
    }

    fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
        if self.layers.has_memory() {
            self.kept.retain(|(positions, _)| *positions <= self.len);
            let kept = self.kept.last().map_or(0, |(positions, _)| *positions);
            self.len = self.layers.resumable(self.len).max(kept);
        }
        self.blocks.truncate(self.len.div_ceil(BLOCK));
    }

    fn wipe(&mut self, len: usize) {
        // The rows behind the last position are never read.
        self.truncate(len);
    }

    fn forget(&mut self) {
        self.len = 0;
        self.blocks = Vec::new();
        self.kept = Vec::new();
        (self.made, self.before) = (Vec::new(), Vec::new());
    }

    fn attach(&mut self, block: StateBlock) {
        assert!(self.len.is_multiple_of(BLOCK), "a block is attached behind {} positions", self.len);
        self.blocks.truncate(self.len / BLOCK);
        self.kept.clear();
        self.blocks.push(content(block));
        self.len += BLOCK;
    }

    fn block(&self, index: usize) -> StateBlock {
        StateBlock::new(Arc::clone(&self.blocks[index]))
    }

    fn replace(&mut self, index: usize, block: StateBlock) {
        self.blocks[index] = content(block);
    }

    fn as_any_mut(&mut self) -> &mut dyn Any {
        self
    }
}
