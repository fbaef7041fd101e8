//! A head for ranking: one or two outputs for a final hidden state.

use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::instructions::Instructions;
use crate::kernels::norm::dot;

use super::tensors::{opt_vector, vector};
use super::weights::Matrix;

/// Its tensor; a bias may come with it.
pub(crate) const RANK_HEAD: &str = "cls.output.weight";
const BIAS: &str = "cls.output.bias";

/// Weights of the head, widened: they are few.
pub(crate) struct RankHead {
    /// `[outputs, width]`.
    weights: Vec<f32>,
    /// `[outputs]`.
    bias: Vec<f32>,
    width: usize,
}

impl RankHead {
    /// The head in a file, if there is one.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where its shape is wrong, [`Error::UnsupportedModel`] where it has more than
    /// two outputs.
    pub(crate) fn load(gguf: &Gguf, width: usize) -> Result<Option<RankHead>, Error> {
        let Some(tensor) = gguf.opt_tensor(RANK_HEAD)? else { return Ok(None) };
        let labels = tensor.shape.get(1).copied().unwrap_or(1);
        let weights = match labels {
            1 => vector(gguf, RANK_HEAD, width)?,
            2 => {
                let matrix = Matrix::load(gguf, RANK_HEAD, width, labels)?;
                let mut weights = vec![0.0; width * labels];
                weights.chunks_exact_mut(width).enumerate().for_each(|(label, row)| matrix.row(label, row));
                weights
            }
            other => {
                return Err(
                    gguf.unsupported(format!("tensor \"{RANK_HEAD}\" has {other} outputs, one or two are"))
                );
            }
        };
        let bias = opt_vector(gguf, BIAS, labels)?.unwrap_or_else(|| vec![0.0; labels]);
        Ok(Some(RankHead { weights, bias, width }))
    }

    /// The outputs `[outputs]` for one hidden state `[width]`.
    pub(crate) fn outputs(&self, hidden: &[f32], instructions: Instructions) -> Vec<f32> {
        let rows = self.weights.chunks_exact(self.width).zip(&self.bias);
        rows.map(|(row, bias)| dot(instructions, row, hidden) + bias).collect()
    }
}
