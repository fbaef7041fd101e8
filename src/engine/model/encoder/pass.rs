//! Memory for passes of an encoder, and the progress of the current pass.
//!
//! It is made for passes of a usual size. Longer texts get the memory that they need, one pass at a time, and
//! give it back.

use std::ops::Range;

use super::super::spec::ModelSpec;
use super::super::state::{KeysAndValues, LayerState, SequenceState, StateLayout};
use super::super::workspace::{Size, Workspace};
use crate::Error;
use crate::computing::MAX_TEXTS;
use crate::kernels::tile::{KvCacheType, TILE};

/// Rows of a usual pass: the fewest, and the most.
const PASS_ROWS: [usize; 2] = [512, 1024];

/// The type of keys and values, which last for one block of the model only.
pub(super) const KIND: KvCacheType = KvCacheType::F16;

/// Memory for a pass, and the pass.
pub(crate) struct EncoderWorkspace {
    pub(super) blocks: Workspace,
    /// The rows of each text of the pass, among the rows `[rows, width]` of `blocks`: texts lie one after the
    /// other.
    pub(super) texts: Vec<Range<usize>>,
    /// The next block to be computed.
    pub(super) next: usize,
    /// The keys and values of the model's block that is computed, one state for each text: `[kv heads, tile]`
    /// for each 64 of its positions.
    pub(super) states: Vec<SequenceState>,
}

impl EncoderWorkspace {
    /// Room for usual passes.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the system has no more.
    pub(super) fn new(spec: &ModelSpec, threads: usize) -> Result<EncoderWorkspace, Error> {
        Ok(EncoderWorkspace {
            blocks: Workspace::new(spec, size(usual_rows(spec), threads))?,
            texts: Vec::with_capacity(MAX_TEXTS),
            next: 0,
            states: Vec::new(),
        })
    }

    /// Rows that there is room for.
    #[cfg(test)]
    pub(super) fn rows(&self) -> usize {
        self.blocks.rows
    }

    /// Makes room for a pass of so many rows, or gives back the extra room of an unusual one.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the system has no more.
    pub(super) fn fit(&mut self, spec: &ModelSpec, rows: usize, threads: usize) -> Result<(), Error> {
        let wanted = rows.max(usual_rows(spec));
        if self.blocks.rows != wanted {
            // The old workspace is given back before the new one is made, so that there is never memory for
            // both.
            self.blocks = Workspace::new(spec, size(0, threads))?;
            self.states.clear();
            self.blocks = Workspace::new(spec, size(wanted, threads))?;
        }
        Ok(())
    }

    /// Bytes that a workspace for usual passes takes, keys and values included.
    pub(super) fn bytes(spec: &ModelSpec, threads: usize) -> u64 {
        bytes(spec, usual_rows(spec), threads)
    }

    /// Bytes that a pass of so many rows takes beyond those.
    pub(super) fn more_bytes(spec: &ModelSpec, rows: usize, threads: usize) -> u64 {
        bytes(spec, rows, threads).saturating_sub(EncoderWorkspace::bytes(spec, threads))
    }
}

fn bytes(spec: &ModelSpec, rows: usize, threads: usize) -> u64 {
    let blocks = MAX_TEXTS + rows.div_ceil(TILE);
    Workspace::bytes(spec, size(rows, threads)) + layout(spec).block_bytes(blocks)
}

/// Most rows of a pass, unless it is of one text, or of two that are compared.
pub(super) fn usual_rows(spec: &ModelSpec) -> usize {
    let [least, most] = PASS_ROWS;
    (2 * spec.context_length).clamp(least, most)
}

fn size(rows: usize, threads: usize) -> Size {
    Size { what: "the workspace of an encoder", rows, threads }
}

/// The layout of the keys and values of one block of the model, which those of the next block replace.
pub(super) fn layout(spec: &ModelSpec) -> StateLayout {
    let layers = spec.blocks.iter().map(|block| KeysAndValues {
        heads: block.attention.heads,
        kind: KIND,
        window: None,
    });
    let largest = layers.max_by_key(LayerState::len);
    StateLayout::new(
        largest.into_iter().map(|layer| {
            let layer: Box<dyn LayerState> = Box::new(layer);
            layer
        }),
        KIND,
    )
}
