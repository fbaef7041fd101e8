//! Gemma: embeddings scaled by the root of their length, and a feed-forward gated with GELU.
//!
//! Reference:
//! [`modeling_gemma.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/gemma/modeling_gemma.py)
//! of transformers; [Gemma Team 2024](https://arxiv.org/abs/2403.08295). Converters add 1 to the weights of
//! norms, as the model does.

use super::{Family, decoder};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{FeedForwardKind, Kind, ModelSpec};

pub(super) const FAMILY: Family = Family { name: "gemma", spec };

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    common(metadata)
}

/// The parts that all Gemma models have in common.
///
/// # Errors
/// As [`Family::spec`].
pub(super) fn common(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    Ok(scaled(decoder(metadata, Pairs::Halves)?))
}

/// With scaled embeddings and gates of GELU.
pub(super) fn scaled(mut spec: ModelSpec) -> ModelSpec {
    if let Kind::Decoder { embedding_scale, .. } = &mut spec.kind {
        *embedding_scale = (spec.width as f32).sqrt();
    }
    spec.blocks.iter_mut().for_each(|block| block.feed_forward.kind = FeedForwardKind::TanhGeGlu);
    spec
}
