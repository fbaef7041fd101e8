//! Gemma 3: Gemma 2 with norms of query and key heads in place of capped scores, and windows in five layers
//! of six, with a rotation of their own.
//!
//! Reference:
//! [`modeling_gemma3.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma3/modeling_gemma3.py)
//! of transformers; [Gemma Team 2025](https://arxiv.org/abs/2503.19786).

use super::{ATTENTION, Family, GATED, PRE_NORM, QUERY_KEY_NORMS, RESULT_NORMS, gemma, gemma2};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{Kind, ModelSpec, QueryKeyNorm, Residual, Span};

pub(super) const FAMILY: Family = Family { name: "gemma3", spec };

/// Base of the rotation where a window is in force, unless the file says otherwise.
const WINDOW_BASE: f32 = 10_000.0;
/// Blocks of the one size that scales its scores by the width of the model.
const BLOCKS_27B: usize = 62;

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = common(metadata)?;
    if let Kind::Decoder { logits, .. } = &mut spec.kind {
        logits.cap = metadata.opt_positive("final_logit_softcapping")?;
    }
    Ok(spec)
}

/// The parts that EmbeddingGemma, the encoder made of Gemma 3, has as well.
///
/// # Errors
/// As [`Family::spec`].
pub(super) fn common(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = gemma::common(metadata)?;
    let scale = gemma2::scale(&spec, BLOCKS_27B);
    for block in &mut spec.blocks {
        block.residual = Residual::Sandwich;
        block.attention.query_key_norm = Some(QueryKeyNorm::Head(block.norm));
        block.attention.scale = scale;
    }
    if let Some(window) = metadata.window()? {
        let heads = metadata.heads(spec.width)?;
        let base = metadata.opt_positive("rope.freq_base_swa")?.unwrap_or(WINDOW_BASE);
        spec.ropes.push(metadata.plain_rope(Pairs::Halves, heads.dim, base)?);
        let windowed = metadata.windowed(spec.blocks.len(), 6)?;
        for (block, _) in spec.blocks.iter_mut().zip(windowed).filter(|(_, windowed)| *windowed) {
            block.attention.span = Span::Window(window);
            block.attention.rope = Some(1);
        }
    }
    spec.tensors.block = &[PRE_NORM, RESULT_NORMS, ATTENTION, QUERY_KEY_NORMS, GATED];
    Ok(spec)
}
