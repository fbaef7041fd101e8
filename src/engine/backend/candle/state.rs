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
use super::state_sizes::StateSizes;
use crate::Error;
use crate::computing::{BLOCK, State, StateBlock};
use crate::memory::watched;
use crate::model::spec::ModelSpec;

/// The kinds of state that the layers of a model have. Clones share it.
#[derive(Debug, Clone)]
pub(super) struct Layers(Arc<CandleStateInner>);

#[derive(Debug)]
struct CandleStateInner {
    sizes: StateSizes,
    /// The states, before a text, of layers other than attention.
    empty: Vec<Option<LayerMemory>>,
    device: Device,
}

impl Layers {
    /// The kinds of state that the layers of this model have.
    ///
    /// # Errors
    /// [`Error::Panicked`] for a bug.
    pub(super) fn of(spec: &ModelSpec, device: &Device) -> Result<Layers, Error> {
        let empty = spec.blocks.iter().map(|block| LayerMemory::empty(&block.mixer, device));
        let empty = empty.collect::<candle_core::Result<_>>().map_err(raised)?;
        Ok(Layers(Arc::new(CandleStateInner { sizes: StateSizes::of(spec), empty, device: device.clone() })))
    }

    fn sizes(&self) -> &StateSizes {
        &self.0.sizes
    }

    fn new_block(&self) -> candle_core::Result<BlockContent> {
        let zeros = |[heads, dim]: [usize; 2]| Tensor::zeros((heads, BLOCK, dim), DType::F32, &self.0.device);
        let layer = |layer: &Option<[usize; 2]>| {
            let Some(shape) = *layer else { return Ok(None) };
            Ok(Some([zeros(shape)?, zeros(shape)?]))
        };
        let layers = self.sizes().layers.iter().map(layer).collect::<candle_core::Result<_>>()?;
        Ok(BlockContent { layers, behind: None })
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
        if self.layers.sizes().has_memory() {
            self.before = self.behind_last()?;
            let each = BLOCK * self.layers.sizes().interval;
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
        let each = BLOCK * self.layers.sizes().interval;
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
        self.layers.sizes().block_bytes(blocks)
    }

    fn fixed_bytes(&self) -> u64 {
        self.layers.sizes().fixed_bytes()
    }

    fn bytes(&self, positions: usize) -> u64 {
        self.layers.sizes().bytes(positions)
    }

    fn resumes_behind(&self, blocks: usize) -> bool {
        self.layers.sizes().resumable(blocks * BLOCK) == blocks * BLOCK
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
        if self.layers.sizes().has_memory() {
            self.kept.retain(|(positions, _)| *positions <= self.len);
            let kept = self.kept.last().map_or(0, |(positions, _)| *positions);
            self.len = self.layers.sizes().resumable(self.len).max(kept);
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

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use steadytext_test_models::{Architecture, Spec, write};
    use tempfile::TempDir;

    use super::{CandleState, Layers};
    use crate::ModelSource;
    use crate::computing::{BLOCK, State};

    fn bytes<'a>(tensors: impl Iterator<Item = &'a Tensor>) -> u64 {
        tensors.map(|tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64).sum()
    }

    #[test]
    fn sizes_are_those_of_the_tensors_that_a_state_is_made_of() {
        let directory = TempDir::new().unwrap();
        for architecture in [Architecture::Qwen3, Architecture::Lfm2, Architecture::Qwen35] {
            let path = directory.path().join("model.gguf");
            write(&Spec::tiny(architecture), &path).unwrap();
            let spec = super::super::spec(&ModelSource::File(path).open().unwrap()).unwrap();
            let layers = Layers::of(&spec, &Device::Cpu).unwrap();
            let mut state = CandleState::new(layers.clone());
            state.reserve(8 * BLOCK).unwrap();
            let kept = bytes(state.blocks.iter().flat_map(|block| block.layers.iter().flatten().flatten()));
            let memories = layers.0.empty.iter().flatten();
            let copy =
                bytes(memories.flat_map(|memory| [&memory.window].into_iter().chain(&memory.matrices)));
            let copies = 8 / layers.sizes().interval as u64;
            assert_eq!(state.block_bytes(8), kept + copies * copy, "{architecture:?}");
            assert_eq!(state.fixed_bytes(), 3 * copy, "{architecture:?}");
            assert_eq!(copy > 0, architecture != Architecture::Qwen3, "{architecture:?}");
        }
    }
}
