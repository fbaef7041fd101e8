//! The weights of one block of an encoder: attention, then feed-forward, each added to its input and normalised.

use super::super::packed_weights::PackedWeights;
use super::super::weights::{Matrix, opt_vector, vector};
use super::sizes::Sizes;
use crate::Error;
use crate::gguf::Gguf;

/// One block.
pub(super) struct Layer {
    pub(super) attention: Attention,
    pub(super) output: Dense,
    pub(super) output_norm: Norm,
    pub(super) up: Dense,
    pub(super) down: Dense,
    pub(super) down_norm: Norm,
}

/// Queries, keys and values: three matrices, or one for all.
pub(super) enum Attention {
    Apart([Dense; 3]),
    Fused(Dense),
}

/// A linear layer with its bias, zeros where the file has none.
pub(super) struct Dense {
    pub(super) weight: Matrix,
    pub(super) bias: Vec<f32>,
}

/// Weight and bias of a norm.
pub(super) struct Norm {
    pub(super) weight: Vec<f32>,
    pub(super) bias: Vec<f32>,
}

impl Dense {
    /// `{name}.weight` and `{name}.bias`.
    ///
    /// # Errors
    /// Those of [`Matrix::load`] and [`Matrix::pack`].
    pub(super) fn load(
        gguf: &Gguf,
        panels: Option<&PackedWeights>,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Dense, Error> {
        let weight = Matrix::load(gguf, &format!("{name}.weight"), inputs, outputs)?.pack(panels)?;
        let bias = opt_vector(gguf, &format!("{name}.bias"), outputs)?;
        Ok(Dense { weight, bias: bias.unwrap_or_else(|| vec![0.0; outputs]) })
    }
}

impl Norm {
    /// `{name}.weight` and `{name}.bias`.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where one is missing or has another length.
    pub(super) fn load(gguf: &Gguf, name: &str, width: usize) -> Result<Norm, Error> {
        Ok(Norm {
            weight: vector(gguf, &format!("{name}.weight"), width)?,
            bias: vector(gguf, &format!("{name}.bias"), width)?,
        })
    }
}

impl Layer {
    /// Block `index` of the file.
    ///
    /// # Errors
    /// Those of [`Dense::load`].
    pub(super) fn load(
        gguf: &Gguf,
        panels: Option<&PackedWeights>,
        index: usize,
        sizes: &Sizes,
    ) -> Result<Layer, Error> {
        let (width, inner) = (sizes.width, sizes.feed_forward);
        let name = |part: &str| format!("blk.{index}.{part}");
        let dense = |part: &str, inputs, outputs| Dense::load(gguf, panels, &name(part), inputs, outputs);
        let attention = match gguf.opt_tensor(&name("attn_qkv.weight"))? {
            Some(_) => Attention::Fused(dense("attn_qkv", width, 3 * width)?),
            None => Attention::Apart([
                dense("attn_q", width, width)?,
                dense("attn_k", width, width)?,
                dense("attn_v", width, width)?,
            ]),
        };
        Ok(Layer {
            attention,
            output: dense("attn_output", width, width)?,
            output_norm: Norm::load(gguf, &name("attn_output_norm"), width)?,
            up: dense("ffn_up", width, inner)?,
            down: dense("ffn_down", inner, width)?,
            down_norm: Norm::load(gguf, &name("layer_output_norm"), width)?,
        })
    }

    /// Whether the encoder uses the tensor `blk.N.{part}`.
    pub(super) fn knows(part: &str) -> bool {
        let part = part.strip_suffix(".weight").or_else(|| part.strip_suffix(".bias"));
        part.is_some_and(|part| {
            matches!(
                part,
                "attn_qkv"
                    | "attn_q"
                    | "attn_k"
                    | "attn_v"
                    | "attn_output"
                    | "attn_output_norm"
                    | "ffn_up"
                    | "ffn_down"
                    | "layer_output_norm"
            )
        })
    }
}
