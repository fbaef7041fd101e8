//! Models as this crate's own kernels compute them, on the CPU: decoders ([`decoder`]) and encoders ([`encoder`]) of the same
//! blocks ([`block`]).
//!
//! What a model is comes from its file: the metadata become a [`Spec`] in the file of its family ([`arch`]), which says which
//! weights its blocks have and what they compute.
//!
//! Invariant: what a row computes depends on the tokens before it in its own sequence and on nothing else:
//! not on how they were cut into passes, nor on the other segments, nor on threads.

mod arch;
mod attention;
mod block;
mod decoder;
mod delta_net;
pub(crate) mod encoder;
mod feed_forward;
mod layers;
mod metadata;
mod packed_weights;
mod rank;
mod short_conv;
mod spec;
mod state;
mod weights;
mod workspace;

use crate::gguf::Gguf;

pub(crate) use arch::{is_encoder, spec};
pub(crate) use decoder::{Decoder, DecoderWorkspace};
pub(crate) use packed_weights::Loading;
pub use packed_weights::{PackedState, verify_packed_weights};
pub(crate) use rank::RANK_HEAD;
pub(crate) use spec::Pooling;
pub(crate) use state::SequenceState;
#[cfg(test)]
pub(crate) use state::StateLayout;

/// Bytes of memory that the weights of a file take: packed ones, and the tensors that stay as they are.
pub(crate) fn weight_bytes(gguf: &Gguf) -> u64 {
    let (packed, replaced) = packed_weights::sizes(gguf);
    let tensors: u64 = gguf.tensors().map(|tensor| tensor.data.len() as u64).sum();
    packed.saturating_add(tensors.saturating_sub(replaced))
}
