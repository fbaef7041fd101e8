//! The weights of one transformer block.

use super::hyperparameters::{Architecture, Hyperparameters};
use super::packed_weights::PackedWeights;
use super::weights::{Matrix, opt_vector, vector};
use crate::Error;
use crate::gguf::Gguf;

/// One transformer block: attention, then feed-forward, each behind a norm and added to its input.
pub(super) struct Layer {
    pub(super) attention_norm: Vec<f32>,
    pub(super) query: Projection,
    pub(super) key: Projection,
    pub(super) value: Projection,
    /// Norms of each query and key head (qwen3).
    pub(super) head_norms: Option<HeadNorms>,
    pub(super) output: Projection,
    pub(super) feed_forward_norm: Vec<f32>,
    pub(super) gate: Matrix,
    pub(super) up: Matrix,
    pub(super) down: Matrix,
}

/// A linear layer with or without bias.
pub(super) struct Projection {
    pub(super) weight: Matrix,
    pub(super) bias: Option<Vec<f32>>,
}

/// Weights of the norms of query and key heads, `head_dim` each.
pub(super) struct HeadNorms {
    pub(super) query: Vec<f32>,
    pub(super) key: Vec<f32>,
}

impl Layer {
    /// Block `index` of the file.
    ///
    /// # Errors
    /// Those of [`Matrix::load`] and [`Matrix::pack`].
    pub(super) fn load(
        gguf: &Gguf,
        panels: Option<&PackedWeights>,
        index: usize,
        sizes: &Hyperparameters,
    ) -> Result<Layer, Error> {
        let heads = sizes.heads;
        let (width, ff) = (sizes.width, sizes.feed_forward);
        let name = |part: &str| format!("blk.{index}.{part}");
        let matrix = |part: &str, inputs, outputs| -> Result<Matrix, Error> {
            Matrix::load(gguf, &name(&format!("{part}.weight")), inputs, outputs)?.pack(panels)
        };
        let projection = |part: &str, inputs, outputs| -> Result<Projection, Error> {
            let weight = matrix(part, inputs, outputs)?;
            let bias = opt_vector(gguf, &name(&format!("{part}.bias")), outputs)?;
            Ok(Projection { weight, bias })
        };
        let head_norms = match sizes.architecture {
            Architecture::Qwen3 => Some(HeadNorms {
                query: vector(gguf, &name("attn_q_norm.weight"), heads.dim)?,
                key: vector(gguf, &name("attn_k_norm.weight"), heads.dim)?,
            }),
            Architecture::Llama | Architecture::Qwen2 => None,
        };
        Ok(Layer {
            attention_norm: vector(gguf, &name("attn_norm.weight"), width)?,
            query: projection("attn_q", width, heads.query * heads.dim)?,
            key: projection("attn_k", width, heads.kv * heads.dim)?,
            value: projection("attn_v", width, heads.kv * heads.dim)?,
            head_norms,
            output: projection("attn_output", heads.query * heads.dim, width)?,
            feed_forward_norm: vector(gguf, &name("ffn_norm.weight"), width)?,
            gate: matrix("ffn_gate", width, ff)?,
            up: matrix("ffn_up", width, ff)?,
            down: matrix("ffn_down", ff, width)?,
        })
    }

    /// Whether the decoder uses the tensor `blk.N.{part}`. Others would be left out of the computation
    /// without a word, so a file that has them is refused.
    pub(super) fn knows(part: &str, architecture: Architecture) -> bool {
        match part {
            "attn_norm.weight" | "attn_q.weight" | "attn_k.weight" | "attn_v.weight"
            | "attn_output.weight" | "attn_q.bias" | "attn_k.bias" | "attn_v.bias" | "attn_output.bias"
            | "ffn_norm.weight" | "ffn_gate.weight" | "ffn_up.weight" | "ffn_down.weight" => true,
            "attn_q_norm.weight" | "attn_k_norm.weight" => architecture == Architecture::Qwen3,
            // Frequencies that old converters wrote down and that follow from the metadata.
            "attn_rot_embd.weight" | "attn_rot_embd" => true,
            _ => false,
        }
    }
}
