//! The sizes and constants of an encoder, from the metadata of its file.

use super::super::hyperparameters::{Keys, MAX_CONTEXT_LENGTH, Pooling, pooling};
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::attention::Heads;

/// The value of `general.architecture`.
pub(super) const ARCHITECTURE: &str = "bert";
/// As `<arch>.pooling_type`: the first token, which goes on to the head.
const RANK: u32 = 4;

/// Sizes and constants of one encoder.
#[derive(Debug, Clone)]
pub(crate) struct Sizes {
    pub(super) layers: usize,
    /// Length of a hidden state.
    pub(super) width: usize,
    pub(super) feed_forward: usize,
    pub(super) heads: Heads,
    pub(super) norm_epsilon: f32,
    /// Tokens that a text may have.
    pub(crate) context_length: usize,
    pub(super) pooling: Pooling,
}

impl Sizes {
    /// Reads and checks them.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] naming the key, [`Error::UnsupportedModel`] naming what the encoder lacks.
    pub(crate) fn of(gguf: &Gguf) -> Result<Sizes, Error> {
        let keys = Keys { gguf, prefix: ARCHITECTURE };
        let width = keys.size("embedding_length")?;
        let count = keys.size("attention.head_count")?;
        if !width.is_multiple_of(count) || width / count > 1024 {
            return Err(gguf.corrupt(format!("a width of {width} cannot be split into {count} heads")));
        }
        let norm_epsilon = gguf.f32(&keys.key("attention.layer_norm_epsilon"))?;
        if !(0.0..1.0).contains(&norm_epsilon) {
            return Err(gguf.corrupt(format!(
                "key \"{}\" is {norm_epsilon}, out of range",
                keys.key("attention.layer_norm_epsilon")
            )));
        }
        if gguf.opt_bool(&keys.key("attention.causal"))? == Some(true) {
            return Err(gguf.unsupported("its attention is causal"));
        }
        Ok(Sizes {
            layers: keys.size("block_count")?,
            width,
            feed_forward: keys.size("feed_forward_length")?,
            heads: Heads { query: count, kv: count, dim: width / count },
            norm_epsilon,
            context_length: keys.size("context_length")?.min(MAX_CONTEXT_LENGTH),
            pooling: match gguf.opt_u32(&keys.key("pooling_type"))? {
                // What sentence-transformers do where nothing is said.
                None | Some(0) => Pooling::Mean,
                Some(RANK) => Pooling::First,
                Some(_) => pooling(&keys)?,
            },
        })
    }
}
