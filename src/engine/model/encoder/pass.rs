//! Memory that an encoder works in, and how far the pass in it has come.

use std::ops::Range;

use super::super::spec::Spec;
use super::super::state::{KeysAndValues, LayerState, SequenceState, StateLayout};
use super::super::workspace::{Size, Workspace};
use crate::Error;
use crate::backend::MAX_TEXTS;
use crate::kernels::attention::{KvCacheType, TILE};

/// Rows of a pass, unless the context asks for more.
const PASS_ROWS: usize = 512;

/// How keys and values are kept, which last for a block of the model only.
pub(super) const KIND: KvCacheType = KvCacheType::F16;

/// Memory for a pass, and the pass.
pub(crate) struct EncoderWorkspace {
    pub(super) blocks: Workspace,
    /// Rows of each text of the pass.
    pub(super) texts: Vec<Range<usize>>,
    /// The next block to be computed.
    pub(super) next: usize,
    /// Keys and values of one block of each text.
    pub(super) states: Vec<SequenceState>,
}

impl EncoderWorkspace {
    /// Room for passes of some texts, and for two texts as long as the context.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the system has no more.
    pub(super) fn new(spec: &Spec, threads: usize) -> Result<EncoderWorkspace, Error> {
        Ok(EncoderWorkspace {
            blocks: Workspace::new(spec, size(spec, threads))?,
            texts: Vec::with_capacity(MAX_TEXTS),
            next: 0,
            states: Vec::new(),
        })
    }

    /// Bytes that a workspace takes, keys and values included.
    pub(super) fn bytes(spec: &Spec, threads: usize) -> u64 {
        let blocks = MAX_TEXTS + pass_rows(spec).div_ceil(TILE);
        Workspace::bytes(spec, size(spec, threads)) + layout(spec).block_bytes(blocks)
    }
}

/// Most rows of a pass: two texts that fill the context fit in, to be compared.
pub(super) fn pass_rows(spec: &Spec) -> usize {
    (2 * spec.context_length).max(PASS_ROWS)
}

fn size(spec: &Spec, threads: usize) -> Size {
    Size { what: "the workspace of an encoder", rows: pass_rows(spec), threads }
}

/// The keys and values of one block of the model, which those of the next one take the place of.
pub(super) fn layout(spec: &Spec) -> StateLayout {
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
