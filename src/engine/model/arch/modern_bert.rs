//! ModernBERT and models made of it (gte-modernbert, Granite Embedding R2): norms before the halves of a
//! block, and two blocks of three see their neighbourhood only.
//!
//! Reference:
//! [`modeling_modernbert.py`](https://github.com/huggingface/transformers/blob/main/src/transformers/models/modernbert/modeling_modernbert.py)
//! of transformers; [Warner et al. 2024](https://arxiv.org/abs/2412.13663).

use super::{Family, bert};
use crate::Error;
use crate::kernels::rope::Pairs;
use crate::model::metadata::Metadata;
use crate::model::spec::{
    FeedForwardKind, HeadActivation, HeadSpec, Kind, ModelSpec, NormKind, NormSpec, Pooling, Residual, Span,
    TensorNames,
};

pub(super) const FAMILY: Family = Family { name: "modern-bert", spec };

const MODEL_TENSORS: &[&str] = &[
    "token_embd.weight",
    "token_embd_norm.weight",
    "output_norm.weight",
    "cls.weight",
    "cls.norm.weight",
    "cls.output.weight",
    "cls.output.bias",
];

const BLOCK_TENSORS: &[&str] = &[
    "attn_norm.weight",
    "attn_qkv.weight",
    "attn_q.weight",
    "attn_k.weight",
    "attn_v.weight",
    "attn_output.weight",
    "ffn_norm.weight",
    "ffn_gate.weight",
    "ffn_up.weight",
    "ffn_down.weight",
];

fn spec(metadata: &Metadata<'_>) -> Result<ModelSpec, Error> {
    let gguf = metadata.gguf;
    metadata.refuse_experts()?;
    let mut spec = bert::encoder(metadata)?;
    let norm = NormSpec {
        kind: NormKind::LayerWithoutBias,
        epsilon: metadata.epsilon("attention.layer_norm_epsilon")?,
    };
    let kind = match gguf.opt_str(&metadata.key("hidden_activation"))? {
        None | Some("gelu") => FeedForwardKind::GeGlu,
        Some("silu" | "swish") => FeedForwardKind::SwiGlu,
        Some(other) => {
            let key = metadata.key("hidden_activation");
            return Err(gguf.unsupported(format!("key \"{key}\" is \"{}\"", other.escape_debug())));
        }
    };
    let dim = spec.blocks.first().map_or(0, |block| block.attention.heads.dim);
    spec.ropes = vec![metadata.rope(Pairs::Halves, dim)?];
    let window = metadata.window()?;
    if window.is_some() {
        let base = metadata.opt_positive("rope.freq_base_swa")?.unwrap_or(metadata.rope_base()?);
        spec.ropes.push(metadata.plain_rope(Pairs::Halves, dim, base)?);
    }
    let near = near(metadata, spec.blocks.len())?;
    for (index, (block, near)) in spec.blocks.iter_mut().zip(near).enumerate() {
        block.residual = Residual::PreNorm;
        block.norm = norm;
        // The first block has no norm before its mixer, as the embeddings were normalised just before.
        block.bare_mixer = index == 0 && gguf.opt_tensor("blk.0.attn_norm.weight")?.is_none();
        block.feed_forward.kind = kind;
        block.attention.rope = Some(0);
        if let Some(window) = window.filter(|_| near) {
            block.attention.span = Span::Near(window / 2);
            block.attention.rope = Some(1);
        }
    }
    let pooling = match gguf.opt_u32(&metadata.key("classifier.pooling_type"))? {
        // Without the key, the mean, as in llama.cpp.
        None | Some(0 | 1) => Pooling::Mean,
        Some(2) => Pooling::First,
        Some(other) => {
            let key = metadata.key("classifier.pooling_type");
            return Err(gguf.unsupported(format!("key \"{key}\" is {other}")));
        }
    };
    spec.kind = Kind::Encoder {
        embedding_scale: 1.0,
        embedding_norm: Some(norm),
        positions: false,
        output_norm: Some(norm),
        projections: None,
        head: HeadSpec { pooling, activation: HeadActivation::GeluNorm(norm) },
    };
    spec.tensors = TensorNames { model: MODEL_TENSORS, block: &[BLOCK_TENSORS] };
    Ok(spec)
}

/// Whether each block sees its neighbourhood only: as the file says, or all but the first of each three.
fn near(metadata: &Metadata<'_>, blocks: usize) -> Result<Vec<bool>, Error> {
    let key = metadata.key("attention.sliding_window_pattern");
    let period = match metadata.gguf.opt_u32(&key) {
        Ok(written) => written.map_or(3, |period| period as usize),
        Err(_) => {
            let pattern = metadata.gguf.opt_per_layer(&key, blocks)?.unwrap_or_default();
            return Ok(pattern.iter().map(|near| *near != 0).collect());
        }
    };
    Ok((0..blocks).map(|block| period == 0 || block % period > 0).collect())
}
