//! BERT, and the encoders of sentence-transformers that are made of it.
//!
//! Reference:
//! [`modeling_bert.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/bert/modeling_bert.py)
//! of transformers; [Devlin et al. 2018](https://arxiv.org/abs/1810.04805).

use super::Family;
use crate::Error;
use crate::kernels::attention::AttentionSizes;
use crate::model::metadata::Metadata;
use crate::model::spec::{
    AttentionSpec, BlockSpec, FeedForwardKind, FeedForwardSpec, HeadActivation, HeadSpec, Kind, Mixer,
    ModelSpec, NormKind, NormSpec, Pooling, Residual, Span, TensorNames,
};

pub(super) const FAMILY: Family = Family { name: "bert", spec };

/// Tensors of encoders beside their blocks.
pub(super) const MODEL_TENSORS: &[&str] = &[
    "token_embd.weight",
    "position_embd.weight",
    "token_types.weight",
    "token_embd_norm.weight",
    "token_embd_norm.bias",
    "cls.weight",
    "cls.bias",
    "cls.output.weight",
    "cls.output.bias",
];

/// Tensors of the attention of a block. Queries, keys and values come from one matrix or from three.
pub(super) const ATTENTION_TENSORS: &[&str] = &[
    "attn_qkv.weight",
    "attn_qkv.bias",
    "attn_q.weight",
    "attn_q.bias",
    "attn_k.weight",
    "attn_k.bias",
    "attn_v.weight",
    "attn_v.bias",
    "attn_output.weight",
    "attn_output.bias",
    "attn_output_norm.weight",
    "attn_output_norm.bias",
    "layer_output_norm.weight",
    "layer_output_norm.bias",
];

/// Tensors of a feed-forward without gates.
pub(super) const PLAIN_TENSORS: &[&str] =
    &["ffn_up.weight", "ffn_up.bias", "ffn_down.weight", "ffn_down.bias"];

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let mut spec = encoder(metadata)?;
    if let Kind::Encoder { positions, .. } = &mut spec.kind {
        *positions = true;
    }
    Ok(spec)
}

/// An encoder like BERT, but for its positions.
///
/// # Errors
/// As [`Family::spec`].
pub(super) fn encoder(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let gguf = metadata.gguf;
    let width = metadata.size("embedding_length")?;
    let count = metadata.size("attention.head_count")?;
    if !width.is_multiple_of(count) || width / count > 1024 {
        return Err(gguf.corrupt(format!("a width of {width} cannot be split into {count} heads")));
    }
    let heads = AttentionSizes { query: count, kv: count, dim: width / count };
    let norm = NormSpec { kind: NormKind::Layer, epsilon: metadata.epsilon("attention.layer_norm_epsilon")? };
    if gguf.opt_bool(&metadata.key("attention.causal"))? == Some(true) {
        return Err(gguf.unsupported("its attention is causal"));
    }
    let blocks = metadata.block_count()?;
    let block = BlockSpec {
        residual: Residual::PostNorm,
        residual_scale: 1.0,
        norm,
        mixer: Mixer::Attention,
        bare_mixer: false,
        attention: AttentionSpec { span: Span::BothWays, ..AttentionSpec::plain(heads) },
        feed_forward_norm: "ffn_norm",
        feed_forward: FeedForwardSpec {
            kind: FeedForwardKind::Gelu,
            width: metadata.size("feed_forward_length")?,
            cutoff: None,
            experts: None,
        },
        laurel: None,
        output_scale: false,
    };
    Ok(ModelSpec {
        kind: Kind::Encoder {
            embedding_scale: 1.0,
            embedding_norm: Some(norm),
            positions: false,
            output_norm: None,
            projections: None,
            head: HeadSpec { pooling: Pooling::First, activation: HeadActivation::Tanh },
        },
        width,
        context_length: metadata.context_length()?,
        // Where the file says nothing, sentence-transformers take the mean; the head of a cross-encoder takes
        // the first token.
        pooling: metadata.pooling(Pooling::Mean, Pooling::First)?,
        ropes: Vec::new(),
        blocks: vec![block; blocks],
        per_layer: None,
        streams: false,
        tensors: TensorNames { model: MODEL_TENSORS, block: &[ATTENTION_TENSORS, PLAIN_TENSORS] },
    })
}
