//! EXAONE 4: results of halves are normalised instead of their inputs, and query and key heads; the 32B model
//! with windows in three layers of four, the fourth without rotation.
//!
//! Reference:
//! [`modeling_exaone4.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/exaone4/modeling_exaone4.py)
//! of transformers; [LG AI Research 2025](https://arxiv.org/abs/2507.11407).

use super::{ATTENTION, Family, GATED, QUERY_KEY_NORMS, RESULT_NORMS, decoder};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{ModelSpec, QueryKeyNorm, Residual, Span};

pub(super) const FAMILY: Family = Family { name: "exaone4", spec };

/// Number of blocks of the size that has windows; files of smaller sizes have the key too, but no window.
const BLOCKS_32B: usize = 64;
/// Its window, unless the file says otherwise.
const WINDOW: usize = 4096;

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = decoder(metadata, Pairs::Halves)?;
    for block in &mut spec.blocks {
        block.residual = Residual::NormedResult;
        block.attention.query_key_norm = Some(QueryKeyNorm::Head(block.norm));
    }
    if spec.blocks.len() == BLOCKS_32B {
        let window = metadata.window()?.unwrap_or(WINDOW);
        let windowed = metadata.windowed(spec.blocks.len(), 4)?;
        for (block, windowed) in spec.blocks.iter_mut().zip(windowed) {
            match windowed {
                true => block.attention.span = Span::Window(window),
                false => block.attention.rope = None,
            }
        }
    }
    spec.tensors.block = &[RESULT_NORMS, ATTENTION, QUERY_KEY_NORMS, GATED];
    Ok(spec)
}
