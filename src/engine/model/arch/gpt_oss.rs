//! gpt-oss: a window of positions in every other layer, a sink for each head, biases everywhere, and a
//! mixture of experts with clamped gates.
//!
//! Reference:
//! [`modeling_gpt_oss.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/gpt_oss/modeling_gpt_oss.py)
//! of transformers; [OpenAI 2025](https://arxiv.org/abs/2508.10925).

use super::{ATTENTION, EXPERTS, Family, mixture};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::kernels::routing::Weighting;
use crate::model::metadata::Metadata;
use crate::model::spec::{FeedForwardKind, ModelSpec, Span};

pub(super) const FAMILY: Family = Family { name: "gpt-oss", spec };

/// The second norm is named after the half before it.
const NORMS: &[&str] = &["attn_norm.weight", "post_attention_norm.weight"];
/// Scores of the sinks.
const SINKS: &[&str] = &["attn_sinks.weight"];
/// Biases of the router and of the experts' matrices.
const BIASES: &[&str] =
    &["ffn_gate_inp.bias", "ffn_gate_exps.bias", "ffn_up_exps.bias", "ffn_down_exps.bias"];

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let gguf = metadata.gguf;
    let mut spec = mixture(metadata, Pairs::Halves, Weighting::SoftmaxOfUsed)?;
    let window = metadata.window()?;
    let windowed = metadata.windowed(spec.blocks.len(), 2)?;
    if let Some(base) = metadata.opt_positive("rope.freq_base_swa")?
        && base != metadata.rope_base()?
    {
        return Err(gguf.unsupported(format!("key \"{}\" is {base}", metadata.key("rope.freq_base_swa"))));
    }
    for (block, windowed) in spec.blocks.iter_mut().zip(windowed) {
        block.feed_forward_norm = "post_attention_norm";
        block.attention.sinks = true;
        block.feed_forward.kind = FeedForwardKind::ClampedSwiGlu;
        if let (true, Some(window)) = (windowed, window) {
            block.attention.span = Span::Window(window);
        }
    }
    spec.tensors.block = &[NORMS, ATTENTION, SINKS, EXPERTS, BIASES];
    Ok(spec)
}
