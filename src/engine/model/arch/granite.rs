//! Granite 3 and later: Llama with multipliers of embeddings, scores, residuals and logits.
//!
//! Reference:
//! [`modeling_granite.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/granite/modeling_granite.py)
//! of transformers; [Shen et al. 2024](https://arxiv.org/abs/2408.13359).

use super::{Family, decoder};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{Kind, ModelSpec};

pub(super) const FAMILY: Family = Family { name: "granite", spec };

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    multiplied(metadata, decoder(metadata, Pairs::Interleaved)?)
}

/// The same with Granite's multipliers.
///
/// # Errors
/// As [`Family::spec`].
pub(super) fn multiplied(metadata: &Metadata<'_>, mut spec: ModelSpec) -> Result<ModelSpec, Error> {
    if let Kind::Decoder { embedding_scale, logits, .. } = &mut spec.kind {
        *embedding_scale = metadata.opt_positive("embedding_scale")?.unwrap_or(1.0);
        // The file has the divisor of logits.
        logits.scale = 1.0 / metadata.opt_positive("logit_scale")?.unwrap_or(1.0);
    }
    let scale = metadata.opt_positive("attention.scale")?;
    let residual_scale = metadata.opt_positive("residual_scale")?.unwrap_or(1.0);
    for block in &mut spec.blocks {
        block.attention.scale = scale.unwrap_or(block.attention.scale);
        block.residual_scale = residual_scale;
        if metadata.gguf.opt_bool(&metadata.key("rope.scaling.finetuned"))? == Some(false) {
            // The key is false in the files of models without positions.
            block.attention.rope = None;
        }
    }
    Ok(spec)
}
