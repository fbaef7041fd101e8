//! The families of models, a file for each: what the metadata of a file of the family mean, as a [`Spec`].
//!
//! `docs/adding-a-model-family.md` says what belongs into such a file. The names of architectures, keys and tensors are
//! those that llama.cpp's [converter](https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py) writes.

mod bert;
mod exaone4;
mod gemma;
mod gemma2;
mod gemma3;
mod glm4;
mod granite;
mod lfm2;
mod llama;
mod mistral3;
mod olmo2;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen35;
mod smollm3;

use super::metadata::Metadata;
use super::spec::{
    AttentionSpec, BlockSpec, FeedForwardKind, FeedForwardSpec, Kind, LogitsSpec, Mixer, NormKind, NormSpec,
    Pooling, Residual, Spec, TensorNames,
};
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::rope::Pairs;

/// A family of models.
struct Family {
    /// The value of `general.architecture`.
    name: &'static str,
    /// What a file of the family describes.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] naming the key, [`Error::UnsupportedModel`] naming what the kernels lack.
    spec: fn(&Metadata<'_>) -> Result<Spec, Error>,
}

/// Every family that can be computed.
const FAMILIES: [&Family; 16] = [
    &llama::FAMILY,
    &mistral3::FAMILY,
    &smollm3::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &qwen35::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &phi3::FAMILY,
    &granite::FAMILY,
    &olmo2::FAMILY,
    &exaone4::FAMILY,
    &glm4::FAMILY,
    &lfm2::FAMILY,
    &bert::FAMILY,
];

/// Tensors that every decoder may have beside its blocks: a head for ranking is `cls.*`, and the rotation's factors are
/// [read](Metadata::rope) with the metadata.
const DECODER_TENSORS: &[&str] = &[
    "token_embd.weight",
    "output.weight",
    "output_norm.weight",
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
    "cls.*",
];

/// Tensors of blocks that begin their halves with a norm.
const PRE_NORM: &[&str] = &["attn_norm.weight", "ffn_norm.weight"];
/// Tensors of blocks that normalise the results of their halves.
const RESULT_NORMS: &[&str] = &["post_attention_norm.weight", "post_ffw_norm.weight"];
/// Tensors of attention; biases may be missing, and one matrix may hold the rows of queries, keys and values.
const ATTENTION: &[&str] = &[
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
    // Frequencies that old converters wrote down and that follow from the metadata.
    "attn_rot_embd.weight",
    "attn_rot_embd",
];
/// Norms of queries and keys.
const QUERY_KEY_NORMS: &[&str] = &["attn_q_norm.weight", "attn_k_norm.weight"];
/// Tensors of a gated feed-forward; the rows of `ffn_gate` may stand before those of `ffn_up` in the same matrix.
const GATED: &[&str] = &["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"];

/// What most decoders have in common, for a family to change where it differs: blocks with norms before their halves, grouped
/// queries, rotation, and a feed-forward gated with SiLU.
///
/// # Errors
/// As [`Family::spec`].
fn decoder(metadata: &Metadata<'_>, pairs: Pairs) -> Result<Spec, Error> {
    metadata.refuse_experts()?;
    let width = metadata.size("embedding_length")?;
    let heads = metadata.heads(width)?;
    let norm =
        NormSpec { kind: NormKind::Rms, epsilon: metadata.epsilon("attention.layer_norm_rms_epsilon")? };
    let block = BlockSpec {
        residual: Residual::PreNorm,
        residual_scale: 1.0,
        norm,
        mixer: Mixer::Attention,
        attention: AttentionSpec { rope: Some(0), ..AttentionSpec::plain(heads) },
        feed_forward_norm: "ffn_norm",
        feed_forward: FeedForwardSpec {
            kind: FeedForwardKind::SwiGlu,
            width: metadata.size("feed_forward_length")?,
        },
    };
    Ok(Spec {
        kind: Kind::Decoder { embedding_scale: 1.0, output_norm: norm, logits: LogitsSpec::PLAIN },
        width,
        context_length: metadata.context_length()?,
        pooling: metadata.pooling(Pooling::Last, Pooling::Last)?,
        ropes: vec![metadata.rope(pairs, heads.dim)?],
        blocks: vec![block; metadata.block_count()?],
        tensors: TensorNames { model: DECODER_TENSORS, block: &[PRE_NORM, ATTENTION, GATED] },
    })
}

/// What the file describes.
///
/// # Errors
/// [`Error::CorruptModel`] naming the key, [`Error::UnsupportedModel`] naming the family or what the kernels lack.
pub(crate) fn spec(gguf: &Gguf) -> Result<Spec, Error> {
    let name = gguf.str("general.architecture")?;
    let Some(family) = FAMILIES.iter().find(|family| family.name == name) else {
        let names = FAMILIES.map(|family| family.name).join(", ");
        return Err(gguf.unsupported(format!("architecture \"{name}\" is none of {names}")));
    };
    (family.spec)(&Metadata { gguf, architecture: family.name })
}

/// Whether the file holds an encoder.
///
/// # Errors
/// [`Error::CorruptModel`] where it does not name its architecture.
pub(crate) fn is_encoder(gguf: &Gguf) -> Result<bool, Error> {
    Ok(gguf.str("general.architecture")? == bert::FAMILY.name)
}

/// Refuses a file with tensors that its family does not know: they would change every result if they were left out.
///
/// # Errors
/// [`Error::UnsupportedModel`], naming the tensor.
pub(super) fn refuse_unknown_tensors(gguf: &Gguf, spec: &Spec) -> Result<(), Error> {
    let model = match spec.kind {
        Kind::Decoder { .. } => "decoder",
        Kind::Encoder { .. } => "encoder",
    };
    match gguf.tensors().find(|tensor| !spec.tensors.include(tensor.name)) {
        Some(tensor) => {
            Err(gguf.unsupported(format!("tensor \"{}\" has no place in the {model}", tensor.name)))
        }
        None => Ok(()),
    }
}
