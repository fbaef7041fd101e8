//! LFM2: short convolutions in most layers, attention with norms of query and key heads in the others.
//!
//! Reference:
//! [`modeling_lfm2.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/lfm2/modeling_lfm2.py)
//! of transformers; [Liquid AI 2025](https://arxiv.org/abs/2511.23404).

use super::{ATTENTION, Family, GATED, PRE_NORM, QUERY_KEY_NORMS, decoder};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{Mixer, ModelSpec, QueryKeyNorm, ShortConvSpec, Span};

pub(super) const FAMILY: Family = Family { name: "lfm2", spec };

const SHORT_CONV: &[&str] =
    &["shortconv.conv.weight", "shortconv.in_proj.weight", "shortconv.out_proj.weight"];
/// The norm before the head has the name that other families use for one behind the embedding.
const MODEL_TENSORS: &[&str] =
    &["token_embd.weight", "token_embd_norm.weight", "output.weight", "cls.output.weight", "cls.output.bias"];

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    if metadata.gguf.opt_bool(&metadata.key("attention.causal"))? == Some(false) {
        return Err(metadata.gguf.unsupported("its layers see both ways"));
    }
    let mut spec = decoder(metadata, Pairs::Halves)?;
    let conv = ShortConvSpec { channels: spec.width, taps: metadata.taps("shortconv.l_cache")? };
    // A layer without key-value heads is a convolution.
    let attends = metadata.opt_flags("attention.head_count_kv")?.unwrap_or_default();
    let window = metadata.window()?;
    for (index, block) in spec.blocks.iter_mut().enumerate() {
        if attends.get(index).is_none_or(|attends| *attends) {
            block.attention.query_key_norm = Some(QueryKeyNorm::Head(block.norm));
            block.attention.span = window.map_or(Span::Causal, Span::Window);
        } else {
            block.mixer = Mixer::ShortConv(conv);
        }
    }
    spec.tensors.model = MODEL_TENSORS;
    spec.tensors.block = &[PRE_NORM, ATTENTION, QUERY_KEY_NORMS, SHORT_CONV, GATED];
    Ok(spec)
}
