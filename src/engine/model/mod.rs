//! Models as this crate's own kernels compute them, on the CPU: decoders ([`decoder`]) and encoders
//! ([`encoder`]) of the same blocks ([`block`]).
//!
//! A model is described by its file: the metadata become a [`spec::ModelSpec`] in the module of its family
//! ([`arch`]), which says which weights its blocks have and what they compute.
//!
//! Invariant: the result of a row depends on the tokens before it in its own sequence and on nothing else:
//! not on how they were cut into passes, nor on the other segments, nor on threads.

mod adapters;
mod arch;
mod attention;
mod block;
mod decoder;
mod delta_net;
pub(crate) mod encoder;
mod experts;
mod feed_forward;
mod layers;
mod metadata;
mod packed_weights;
mod per_layer;
mod rank;
mod short_conv;
pub(crate) mod spec;
mod state;
mod state_space;
mod streams;
mod tensors;
mod weights;
mod workspace;

use crate::Error;
use crate::gguf::{GgmlType, Gguf};
use crate::kernels::tile::KvCacheType;

#[cfg(feature = "hub")]
pub(crate) use arch::takes_adapters;
pub(crate) use arch::{families, is_encoder, is_encoder_family, refuse_unknown_tensors, spec};
pub(crate) use decoder::{DecoderNetwork, DecoderWorkspace};
pub(crate) use metadata::POOLING_RANK;
pub use packed_weights::{PackedState, verify_packed_weights};
pub(crate) use rank::{RANK_HEAD, RankHead};
pub(crate) use state::SequenceState;
#[cfg(test)]
pub(crate) use state::StateLayout;
pub(crate) use tensors::panel_format as format;
pub(crate) use tensors::{expect_shape, floats, opt_vector, vector};
pub(crate) use weights::format_of;

/// The element types that matrices may have.
pub(crate) fn element_types() -> impl Iterator<Item = GgmlType> {
    GgmlType::ALL.into_iter().filter(|kind| tensors::panel_format(*kind).is_some())
}

/// The hint of an error about an element type that has no kernels.
pub(crate) fn other_quantizations() -> String {
    let names: Vec<String> = element_types().map(|kind| kind.to_string()).collect();
    format!("Use a file of the same model in another quantization, of these types: {}.", names.join(", "))
}

/// Checks all that loading checks before it makes anything: keys, and names, shapes and types of tensors.
/// Returns the state of a sequence without tokens, with keys and values of this kind and for passes of so
/// many rows, with `whole` also with those that no window sees any more; None for encoders, which have none.
///
/// # Errors
/// As those of loading.
pub(crate) fn check(
    gguf: &Gguf,
    kind: KvCacheType,
    rows: usize,
    whole: bool,
) -> Result<Option<SequenceState>, Error> {
    match spec(gguf)?.kind {
        spec::Kind::Decoder { .. } => DecoderNetwork::check(gguf, kind, rows, whole).map(Some),
        spec::Kind::Encoder { .. } => encoder::EncoderNetwork::check(gguf).map(|()| None),
    }
}

/// Bytes of memory that the weights of a file take: packed ones, the tensors that stay as they are, and its
/// adapters.
pub(crate) fn weight_bytes(gguf: &Gguf) -> u64 {
    let (packed, replaced) = packed_weights::sizes(gguf);
    let tensors: u64 = gguf.tensors().map(|tensor| tensor.data.len() as u64).sum();
    packed.saturating_add(tensors.saturating_sub(replaced)).saturating_add(adapters::bytes(gguf))
}
