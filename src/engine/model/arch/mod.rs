//! The families of models, a file for each, which makes a [`ModelSpec`] of the metadata of the family's
//! files.
//!
//! `docs/adding-a-model-family.md` says what belongs into such a file. The names of architectures, keys and
//! tensors are those that llama.cpp's
//! [converter](https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py) writes.

mod bert;
mod exaone4;
mod gemma;
mod gemma2;
mod gemma3;
mod gemma3n;
mod gemma4;
mod gemma_embedding;
mod glm4;
mod gpt_oss;
mod granite;
mod granitehybrid;
mod granitemoe;
mod jina_bert_v2;
mod jina_bert_v3;
mod lfm2;
mod llama;
mod mistral3;
mod modern_bert;
mod nomic_bert;
mod nomic_bert_moe;
mod olmo2;
mod olmoe;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen35;
mod qwen35moe;
mod qwen3moe;
mod smollm3;
mod starcoder2;
mod unread;

use std::cell::RefCell;

use super::metadata::Metadata;
use super::spec::{
    AttentionSpec, BlockSpec, FeedForwardSpec, Kind, LogitsSpec, Mixer, ModelSpec, NormKind, NormSpec,
    Pooling, Residual, TensorNames,
};
use crate::gguf::Gguf;
use crate::kernels::attention::AttentionSizes;
use crate::kernels::rope::{Pairs, Rope};
use crate::kernels::routing::Weighting;
use crate::{Error, adapters, nearest};

/// A family of models.
struct Family {
    /// The value of `general.architecture`.
    name: &'static str,
    /// Reads the specification of a model from the metadata of its file.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] naming the key, [`Error::UnsupportedModel`] naming the feature that the
    /// kernels lack.
    spec: fn(&Metadata<'_>) -> Result<ModelSpec, Error>,
}

/// Every family that can be computed.
const FAMILIES: [&Family; 31] = [
    &llama::FAMILY,
    &mistral3::FAMILY,
    &smollm3::FAMILY,
    &qwen2::FAMILY,
    &qwen3::FAMILY,
    &qwen35::FAMILY,
    &qwen35moe::FAMILY,
    &qwen3moe::FAMILY,
    &gpt_oss::FAMILY,
    &gemma::FAMILY,
    &gemma2::FAMILY,
    &gemma3::FAMILY,
    &gemma3n::FAMILY,
    &gemma4::FAMILY,
    &phi3::FAMILY,
    &granite::FAMILY,
    &granitemoe::FAMILY,
    &granitehybrid::FAMILY,
    &olmo2::FAMILY,
    &olmoe::FAMILY,
    &exaone4::FAMILY,
    &glm4::FAMILY,
    &lfm2::FAMILY,
    &starcoder2::FAMILY,
    &bert::FAMILY,
    &nomic_bert::FAMILY,
    &nomic_bert_moe::FAMILY,
    &jina_bert_v2::FAMILY,
    &jina_bert_v3::FAMILY,
    &modern_bert::FAMILY,
    &gemma_embedding::FAMILY,
];

/// The families that are encoders.
const ENCODERS: [&Family; 7] = [
    &bert::FAMILY,
    &nomic_bert::FAMILY,
    &nomic_bert_moe::FAMILY,
    &jina_bert_v2::FAMILY,
    &jina_bert_v3::FAMILY,
    &modern_bert::FAMILY,
    &gemma_embedding::FAMILY,
];

/// Tensors that every decoder may have beside its blocks: a head for ranking is `cls.output`, and the
/// rotation's factors are [read](Metadata::rope) with the metadata.
const DECODER_TENSORS: &[&str] = &[
    "token_embd.weight",
    "output.weight",
    "output_norm.weight",
    "rope_freqs.weight",
    "rope_factors_long.weight",
    "rope_factors_short.weight",
    "per_layer_token_embd.weight",
    "per_layer_model_proj.weight",
    "per_layer_proj_norm.weight",
    "cls.output.weight",
    "cls.output.bias",
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
];
/// Norms of queries and keys.
const QUERY_KEY_NORMS: &[&str] = &["attn_q_norm.weight", "attn_k_norm.weight"];
/// Tensors of blocks that get an embedding of their own of each token.
const PER_LAYER: &[&str] = &["inp_gate.weight", "proj.weight", "post_norm.weight"];
/// Tensors of a gated feed-forward; the rows of `ffn_gate` may stand before those of `ffn_up` in the same
/// matrix.
const GATED: &[&str] = &["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"];

/// Tensors of a router and of the experts that it chooses from.
const EXPERTS: &[&str] =
    &["ffn_gate_inp.weight", "ffn_gate_exps.weight", "ffn_up_exps.weight", "ffn_down_exps.weight"];
/// The rows of gate and up of each expert, one after the other.
const FUSED_EXPERTS: &[&str] = &["ffn_gate_up_exps.weight"];
/// Tensors of the expert that all rows use.
const SHARED_EXPERT: &[&str] = &["ffn_gate_shexp.weight", "ffn_up_shexp.weight", "ffn_down_shexp.weight"];

/// The names of all families.
pub(crate) fn families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.name)
}

/// The form that most decoders have in common, for a family to change where it differs: blocks with norms
/// before their halves, grouped queries, rotation, and a feed-forward gated with SiLU.
///
/// # Errors
/// As [`Family::spec`].
fn decoder(metadata: &Metadata<'_>, pairs: Pairs) -> Result<ModelSpec, Error> {
    metadata.refuse_experts()?;
    alike(metadata, pairs, rms(metadata)?, FeedForwardSpec::gated(metadata.size("feed_forward_length")?))
}

/// [`decoder`] with a mixture of experts in each block.
///
/// # Errors
/// As [`Family::spec`].
fn mixture(metadata: &Metadata<'_>, pairs: Pairs, weighting: Weighting) -> Result<ModelSpec, Error> {
    let width = match metadata.opt_size("expert_feed_forward_length")? {
        Some(width) => width,
        None => metadata.size("feed_forward_length")?,
    };
    let experts = Some(metadata.experts(weighting)?);
    let feed_forward = FeedForwardSpec { experts, ..FeedForwardSpec::gated(width) };
    let mut spec = alike(metadata, pairs, rms(metadata)?, feed_forward)?;
    spec.tensors.block = &[PRE_NORM, ATTENTION, EXPERTS];
    Ok(spec)
}

/// The norm of most decoders.
///
/// # Errors
/// As [`Family::spec`].
fn rms(metadata: &Metadata<'_>) -> Result<NormSpec, Error> {
    Ok(NormSpec { kind: NormKind::Rms, epsilon: metadata.epsilon("attention.layer_norm_rms_epsilon")? })
}

/// A decoder of equal blocks. If its norms are not those of most decoders, its tensors differ from
/// [`DECODER_TENSORS`] and [`PRE_NORM`] as well.
///
/// # Errors
/// As [`Family::spec`].
fn alike(
    metadata: &Metadata<'_>,
    pairs: Pairs,
    norm: NormSpec,
    feed_forward: FeedForwardSpec,
) -> Result<ModelSpec, Error> {
    let heads = metadata.heads(metadata.size("embedding_length")?)?;
    let rope = metadata.rope(pairs, heads.dim)?;
    decoder_of(metadata, rope, norm, &vec![(heads, feed_forward); metadata.block_count()?])
}

/// A decoder each of whose blocks has its own heads and feed-forward.
///
/// # Errors
/// As [`Family::spec`].
fn decoder_of(
    metadata: &Metadata<'_>,
    rope: Rope,
    norm: NormSpec,
    blocks: &[(AttentionSizes, FeedForwardSpec)],
) -> Result<ModelSpec, Error> {
    let width = metadata.size("embedding_length")?;
    let block = |&(heads, feed_forward): &(AttentionSizes, FeedForwardSpec)| BlockSpec {
        residual: Residual::PreNorm,
        residual_scale: 1.0,
        norm,
        mixer: Mixer::Attention,
        bare_mixer: false,
        attention: AttentionSpec { rope: Some(0), ..AttentionSpec::plain(heads) },
        feed_forward_norm: "ffn_norm",
        feed_forward,
        laurel: None,
        output_scale: false,
    };
    Ok(ModelSpec {
        kind: Kind::Decoder { embedding_scale: 1.0, output_norm: norm, logits: LogitsSpec::PLAIN },
        width,
        context_length: metadata.context_length()?,
        pooling: metadata.pooling(Pooling::Last, Pooling::Last)?,
        ropes: vec![rope],
        blocks: blocks.iter().map(block).collect(),
        per_layer: None,
        streams: false,
        tensors: TensorNames { model: DECODER_TENSORS, block: &[PRE_NORM, ATTENTION, GATED] },
    })
}

/// The specification of the model in a file.
///
/// # Errors
/// [`Error::CorruptModel`] naming the key, [`Error::UnsupportedModel`] naming the family, or the feature that
/// the kernels lack.
pub(crate) fn spec(gguf: &Gguf) -> Result<ModelSpec, Error> {
    let name = gguf.str("general.architecture")?;
    if gguf.opt_str("general.type")? == Some("adapter") {
        return Err(gguf.unsupported_but(
            "it is an adapter (LoRA) of a model, and none by itself",
            "Use the file of the model that it was made for, and put this one into the folder beside it that has its name and .adapters behind, called by its task: NAME.gguf.adapters/TASK.gguf.",
        ));
    }
    let Some(family) = FAMILIES.iter().find(|family| family.name == name) else {
        return Err(unknown(gguf, name));
    };
    let read = RefCell::default();
    let metadata = Metadata { gguf, architecture: family.name, read: &read };
    let spec = (family.spec)(&metadata)?;
    // Features that no family computes.
    if matches!(spec.kind, Kind::Decoder { .. })
        && gguf.opt_bool(&metadata.key("attention.causal"))? == Some(false)
    {
        return Err(gguf.unsupported("its attention sees a text both ways, as no decoder does here"));
    }
    if gguf.attached().len() > 0 && !is_adapted_family(family.name) {
        return Err(gguf.unsupported_but(
            format!("there are adapters beside it, and models of the family {} take none", family.name),
            "Remove the folder with the adapters, or fetch a model into which its adapter was merged.",
        ));
    }
    let has_alibi = spec.blocks.iter().any(|block| block.attention.alibi.is_some());
    for name in ["attention.max_alibi_bias", "attention.clamp_kqv"] {
        if has_alibi && name == "attention.max_alibi_bias" {
            continue;
        }
        if gguf.opt_f32(&metadata.key(name))?.is_some_and(|value| value != 0.0) {
            return Err(gguf.unsupported(format!("key \"{}\" is not 0", metadata.key(name))));
        }
    }
    unread::refuse_keys(gguf, family.name, &read.borrow())?;
    Ok(spec)
}

fn unknown(gguf: &Gguf, name: &str) -> Error {
    let near = nearest::all(name, families()).map(|near| format!("\"{near}\"")).collect::<Vec<_>>();
    let near = if near.is_empty() { String::new() } else { format!("; near it: {}", near.join(", ")) };
    let names = families().collect::<Vec<_>>().join(", ");
    gguf.unsupported_but(
        format!("architecture \"{name}\" is unknown{near}"),
        format!("Use a model of one of these architectures: {names}."),
    )
}

/// Whether the file holds an encoder.
///
/// # Errors
/// [`Error::CorruptModel`] where it does not name its architecture.
pub(crate) fn is_encoder(gguf: &Gguf) -> Result<bool, Error> {
    Ok(is_encoder_family(gguf.str("general.architecture")?))
}

/// Whether adapters are applied to the model of a file.
#[cfg(feature = "hub")]
pub(crate) fn takes_adapters(gguf: &Gguf) -> bool {
    gguf.opt_str("general.type").is_ok_and(|kind| kind != Some("adapter"))
        && gguf.str("general.architecture").is_ok_and(is_adapted_family)
}

/// Whether adapters are applied to a family's models.
fn is_adapted_family(name: &str) -> bool {
    name == jina_bert_v3::FAMILY.name
}

/// Whether a family's models are encoders.
pub(crate) fn is_encoder_family(name: &str) -> bool {
    ENCODERS.iter().any(|family| family.name == name)
}

/// Refuses a file with tensors that its family does not know: they would change every result if they were
/// left out.
///
/// # Errors
/// [`Error::UnsupportedModel`], naming the tensor.
pub(crate) fn refuse_unknown_tensors(gguf: &Gguf, spec: &ModelSpec) -> Result<(), Error> {
    let model = match spec.kind {
        Kind::Decoder { .. } => "decoder",
        Kind::Encoder { .. } => "encoder",
    };
    let architecture = gguf.str("general.architecture")?;
    let blocks = gguf.u32(&format!("{architecture}.block_count"))?;
    // Tensors of blocks that are not computed, and tensors that only some files of a family have.
    let has_place = |name: &str| {
        let block = name.strip_prefix("blk.").and_then(|rest| rest.split_once('.'));
        let in_a_block = block.is_none_or(|(index, _)| {
            index.parse().is_ok_and(|number: u32| number < blocks && number.to_string() == index)
        });
        in_a_block && (spec.per_layer.is_some() || !name.starts_with("per_layer_"))
    };
    // Tensors of a folder's adapters are checked with the adapters.
    let of_adapter = |name: &str| gguf.is_translated() && adapters::has_prefix(name);
    let known = |name: &str| of_adapter(name) || spec.tensors.include(name) && has_place(name);
    match gguf.tensors().find(|tensor| !known(tensor.name)) {
        Some(tensor) => {
            Err(gguf.unsupported(format!("tensor \"{}\" has no place in the {model}", tensor.name)))
        }
        None => unread::refuse_doubles(gguf),
    }
}
