//! The families of models, a file for each: what the metadata of a file of the family mean, as a [`Spec`].
//!
//! `docs/adding-a-model-family.md` says what belongs into such a file. The names of architectures, keys and tensors are
//! those that llama.cpp's [converter](https://github.com/ggml-org/llama.cpp/blob/master/gguf-py/gguf/constants.py) writes.

mod bert;
mod llama;
mod qwen2;
mod qwen3;

use super::metadata::Metadata;
use super::spec::{Kind, Spec};
use crate::gguf::Gguf;
use crate::{Error, nearest};

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
const FAMILIES: [&Family; 4] = [&llama::FAMILY, &qwen2::FAMILY, &qwen3::FAMILY, &bert::FAMILY];

/// Tensors that every decoder may have beside its blocks: a head for ranking is `cls.*`, and the rotation's factors are
/// [read](Metadata::rope) with the metadata.
const DECODER_TENSORS: &[&str] =
    &["token_embd.weight", "output.weight", "output_norm.weight", "rope_freqs.weight", "cls.*"];

/// Tensors of blocks that begin their halves with a norm.
const PRE_NORM: &[&str] = &["attn_norm.weight", "ffn_norm.weight"];
/// Tensors of attention; biases may be missing.
const ATTENTION: &[&str] = &[
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
/// Norms of query and key heads.
const HEAD_NORMS: &[&str] = &["attn_q_norm.weight", "attn_k_norm.weight"];
/// Tensors of a gated feed-forward.
const GATED: &[&str] = &["ffn_gate.weight", "ffn_up.weight", "ffn_down.weight"];

/// The names of all families.
pub(crate) fn families() -> impl Iterator<Item = &'static str> {
    FAMILIES.iter().map(|family| family.name)
}

/// What the file describes.
///
/// # Errors
/// [`Error::CorruptModel`] naming the key, [`Error::UnsupportedModel`] naming the family or what the kernels lack.
pub(crate) fn spec(gguf: &Gguf) -> Result<Spec, Error> {
    let name = gguf.str("general.architecture")?;
    let Some(family) = FAMILIES.iter().find(|family| family.name == name) else {
        return Err(unknown(gguf, name));
    };
    (family.spec)(&Metadata { gguf, architecture: family.name })
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

/// Whether a family's models are encoders.
pub(crate) fn is_encoder_family(name: &str) -> bool {
    name == bert::FAMILY.name
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
