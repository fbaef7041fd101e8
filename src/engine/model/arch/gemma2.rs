//! Gemma 2: Gemma with norms on both sides of its halves, capped scores and logits, and a window of positions
//! in every other layer.
//!
//! Reference:
//! [`modeling_gemma2.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma2/modeling_gemma2.py)
//! of transformers; [Gemma Team 2024](https://arxiv.org/abs/2408.00118).

use super::{ATTENTION, Family, GATED, PRE_NORM, RESULT_NORMS, gemma};
use crate::Error;
use crate::model::metadata::Metadata;
use crate::model::spec::{Kind, ModelSpec, Residual, Span};

pub(super) const FAMILY: Family = Family { name: "gemma2", spec };

/// The values of files that are older than these keys.
const WINDOW: usize = 4096;
const SCORE_CAP: f32 = 50.0;
const LOGIT_CAP: f32 = 30.0;
/// Blocks of the one size that scales its scores by the width of the model.
const BLOCKS_27B: usize = 46;

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = gemma::common(metadata)?;
    let window = metadata.window()?.unwrap_or(WINDOW);
    let cap = metadata.opt_positive("attn_logit_softcapping")?.unwrap_or(SCORE_CAP);
    if let Kind::Decoder { logits, .. } = &mut spec.kind {
        logits.cap = Some(metadata.opt_positive("final_logit_softcapping")?.unwrap_or(LOGIT_CAP));
    }
    let windowed = metadata.windowed(spec.blocks.len(), 2)?;
    let scale = scale(&spec, BLOCKS_27B);
    for (block, windowed) in spec.blocks.iter_mut().zip(windowed) {
        block.residual = Residual::Sandwich;
        block.attention.cap = Some(cap);
        block.attention.scale = scale;
        if windowed {
            block.attention.span = Span::Window(window);
        }
    }
    spec.tensors.block = &[PRE_NORM, RESULT_NORMS, ATTENTION, GATED];
    Ok(spec)
}

/// The factor of scores. It follows from heads of `width / heads` elements in all sizes for which this
/// matters, but for the one that has `blocks_27b` blocks.
pub(super) fn scale(spec: &ModelSpec, blocks_27b: usize) -> f32 {
    let heads = spec.blocks.first().map(|block| block.attention.heads);
    heads.map_or(1.0, |heads| match spec.blocks.len() == blocks_27b {
        true => 1.0 / ((spec.width / heads.query) as f32).sqrt(),
        false => heads.scale(),
    })
}
