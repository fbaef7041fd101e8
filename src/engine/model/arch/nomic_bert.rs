//! Nomic's BERT (nomic-embed-text 1 and 1.5): positions are rotated in, feed-forward is gated, and there are
//! no biases but those of norms.
//!
//! Reference:
//! [`modeling_hf_nomic_bert.py`](https://huggingface.co/nomic-ai/nomic-bert-2048/blob/main/modeling_hf_nomic_bert.py);
//! [Nussbaum et al. 2024](https://arxiv.org/abs/2402.01613).

use super::bert::{self, ATTENTION_TENSORS, MODEL_TENSORS};
use super::{Family, GATED};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{FeedForwardKind, ModelSpec, TensorNames};

pub(super) const FAMILY: Family = Family { name: "nomic-bert", spec };

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    metadata.refuse_experts()?;
    let mut spec = rotated(metadata)?;
    spec.blocks.iter_mut().for_each(|block| block.feed_forward.kind = FeedForwardKind::SwiGlu);
    spec.tensors = TensorNames { model: MODEL_TENSORS, block: &[ATTENTION_TENSORS, GATED] };
    Ok(spec)
}

/// A BERT whose positions are rotated in.
///
/// # Errors
/// As [`Family::spec`].
pub(super) fn rotated(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = bert::encoder(metadata)?;
    let dim = spec.blocks.first().map_or(0, |block| block.attention.heads.dim);
    spec.ropes = vec![metadata.rope(Pairs::Halves, dim)?];
    spec.blocks.iter_mut().for_each(|block| block.attention.rope = Some(0));
    Ok(spec)
}
