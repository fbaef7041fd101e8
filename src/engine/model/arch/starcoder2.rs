//! StarCoder 2: layer norms, a feed-forward without gates, and biases everywhere.
//!
//! Reference:
//! [`modeling_starcoder2.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/starcoder2/modeling_starcoder2.py)
//! of transformers; [Lozhkov et al. 2024](https://arxiv.org/abs/2402.19173).

use super::bert::PLAIN_TENSORS;
use super::{ATTENTION, Family, alike};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{
    FeedForwardKind, FeedForwardSpec, ModelSpec, NormKind, NormSpec, Span, TensorNames,
};

pub(super) const FAMILY: Family = Family { name: "starcoder2", spec };

const MODEL_TENSORS: &[&str] =
    &["token_embd.weight", "output.weight", "output_norm.weight", "output_norm.bias"];

const NORMS: &[&str] = &["attn_norm.weight", "attn_norm.bias", "ffn_norm.weight", "ffn_norm.bias"];

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    metadata.refuse_experts()?;
    let norm = NormSpec { kind: NormKind::Layer, epsilon: metadata.epsilon("attention.layer_norm_epsilon")? };
    let feed_forward = FeedForwardSpec {
        kind: FeedForwardKind::TanhGelu,
        ..FeedForwardSpec::gated(metadata.size("feed_forward_length")?)
    };
    let mut spec = alike(metadata, Pairs::Halves, norm, feed_forward)?;
    if let Some(window) = metadata.window()? {
        spec.blocks.iter_mut().for_each(|block| block.attention.span = Span::Window(window));
    }
    spec.tensors = TensorNames { model: MODEL_TENSORS, block: &[NORMS, ATTENTION, PLAIN_TENSORS] };
    Ok(spec)
}
