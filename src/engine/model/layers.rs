//! The layers that blocks are made of: products with a bias, and norms.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::adapters::Loras;
use super::packed_weights::PackedWeights;
use super::spec::{NormKind, NormSpec};
use super::tensors::{opt_vector, vector};
use super::weights::Matrix;
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::instructions::Instructions;
use crate::kernels::matrix::each_row;
use crate::kernels::norm::{layer_norm, rms_norm, rms_norm_heads};
use crate::kernels::swiglu::add;

/// A matrix `[outputs, inputs]` with or without bias `[outputs]`.
pub(super) struct Dense {
    pub(super) weight: Matrix,
    pub(super) bias: Option<Vec<f32>>,
    loras: Loras,
}

/// A norm of rows as long as its weight.
pub(super) enum Norm {
    Rms { weight: Vec<f32>, epsilon: f32 },
    Layer { weight: Vec<f32>, bias: Vec<f32>, epsilon: f32 },
}

impl Dense {
    /// `{name}.weight`, `{name}.bias` if the file has it, and the parts of adapters for the matrix.
    ///
    /// # Errors
    /// As [`Matrix::load`], [`Matrix::pack`] and [`Loras::load`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Dense, Error> {
        let weight = Matrix::load(gguf, &format!("{name}.weight"), inputs, outputs)?.pack(packed)?;
        let bias = opt_vector(gguf, &format!("{name}.bias"), outputs)?;
        Ok(Dense { weight, bias, loras: Loras::load(gguf, &format!("{name}.weight"), inputs, outputs)? })
    }

    /// Rows of another matrix, with their part of its bias.
    ///
    /// # Errors
    /// As [`Matrix::part`].
    pub(super) fn part(&self, outputs: Range<usize>) -> Result<Dense, Error> {
        let bias = self.bias.as_ref().map(|bias| bias[outputs.clone()].to_vec());
        Ok(Dense { weight: self.weight.part(outputs.clone())?, bias, loras: self.loras.part(outputs) })
    }

    /// The same with a bias in any case, of zeros where the file has none.
    pub(super) fn with_bias(mut self) -> Dense {
        let outputs = self.weight.outputs();
        self.bias.get_or_insert_with(|| vec![0.0; outputs]);
        self
    }

    /// Adds the part of each row's adapter to the row of `y` `[rows, outputs]`, which was made of `x` `[rows,
    /// inputs]`. `of_rows` has the adapter of each row, or is empty where no row has one.
    pub(super) fn adapt(&self, of_rows: &[u16], x: &[f32], y: &mut [f32], pool: &Pool) {
        self.loras.add(of_rows, x, y, pool);
    }

    /// Adds the bias to a row `[outputs]`.
    pub(super) fn add_bias(&self, instructions: Instructions, row: &mut [f32]) {
        if let Some(bias) = &self.bias {
            add(instructions, row, bias);
        }
    }

    /// Adds the bias to rows `[rows, outputs]`.
    pub(super) fn add_bias_to(&self, rows: &mut [f32], pool: &Pool) {
        if let Some(bias) = &self.bias {
            let instructions = pool.instructions();
            each_row(rows, bias.len(), pool, &|_, row| add(instructions, row, bias));
        }
    }
}

impl Norm {
    /// `{name}.weight` `[width]`, and `{name}.bias` `[width]` where the kind of norm has one.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where one is missing or has another length.
    pub(super) fn load(gguf: &Gguf, name: &str, spec: NormSpec, width: usize) -> Result<Norm, Error> {
        let weight = vector(gguf, &format!("{name}.weight"), width)?;
        let epsilon = spec.epsilon;
        Ok(match spec.kind {
            NormKind::Rms => Norm::Rms { weight, epsilon },
            NormKind::Layer => {
                Norm::Layer { weight, bias: vector(gguf, &format!("{name}.bias"), width)?, epsilon }
            }
            NormKind::LayerWithoutBias => Norm::Layer { weight, bias: vec![0.0; width], epsilon },
        })
    }

    /// A norm of heads of `width` elements whose weights are 1.
    pub(super) fn unweighted(spec: NormSpec, width: usize) -> Norm {
        let (weight, epsilon) = (vec![1.0; width], spec.epsilon);
        match spec.kind {
            NormKind::Rms => Norm::Rms { weight, epsilon },
            NormKind::Layer | NormKind::LayerWithoutBias => {
                Norm::Layer { weight, bias: vec![0.0; width], epsilon }
            }
        }
    }

    /// `out = norm(x)` of one row; false if it holds a value that is not finite.
    pub(super) fn apply(&self, instructions: Instructions, x: &[f32], out: &mut [f32]) -> bool {
        match self {
            Norm::Rms { weight, epsilon } => rms_norm(instructions, x, weight, *epsilon, out),
            Norm::Layer { .. } => {
                out.copy_from_slice(x);
                self.apply_in_place(instructions, out)
            }
        }
    }

    /// `x = norm(x)` of one row, or of each head in a row; false if it holds a value that is not finite.
    pub(super) fn apply_in_place(&self, instructions: Instructions, x: &mut [f32]) -> bool {
        match self {
            Norm::Rms { weight, epsilon } => rms_norm_heads(instructions, x, weight, *epsilon),
            Norm::Layer { weight, bias, epsilon } => {
                // All heads of a row are normalised, also those behind one that is not finite.
                let heads = x.chunks_exact_mut(weight.len());
                heads.fold(true, |finite, x| layer_norm(instructions, x, weight, bias, *epsilon) & finite)
            }
        }
    }
}

/// Makes `h = norm(x)` of a row, noting where it is not finite.
pub(super) fn normalised<'a>(
    norm: &'a Norm,
    x: &'a [f32],
    width: usize,
    finite: &'a [AtomicBool],
    instructions: Instructions,
) -> impl Fn(usize, &mut [f32]) + Sync + 'a {
    move |row, h| {
        if !norm.apply(instructions, &x[row * width..(row + 1) * width], h) {
            finite[row].store(false, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_in_place_gives_the_bytes_of_one_beside_it() {
        let instructions = Instructions::best();
        let weight: Vec<f32> = (0..40).map(|i| 1.0 + (i % 5) as f32 / 7.0).collect();
        let bias: Vec<f32> = (0..40).map(|i| (i % 3) as f32 - 1.0).collect();
        let mut x: Vec<f32> = (0..40).map(|i| ((i * 7919) % 2003) as f32 / 700.0 - 1.3).collect();
        for norm in [
            Norm::Rms { weight: weight.clone(), epsilon: 1e-6 },
            Norm::Layer { weight: weight.clone(), bias: bias.clone(), epsilon: 1e-6 },
        ] {
            let (mut beside, mut heads) = (vec![0.0; 40], [&x[..], &x[..]].concat());
            assert!(norm.apply(instructions, &x, &mut beside));
            assert!(norm.apply_in_place(instructions, &mut heads));
            assert!(heads.chunks_exact(40).all(|head| head == beside), "each head by itself");
            heads[3] = f32::NAN;
            assert!(!norm.apply_in_place(instructions, &mut heads));
        }
        x[7] = f32::INFINITY;
        let norm = Norm::Rms { weight, epsilon: 1e-6 };
        assert!(!norm.apply(instructions, &x, &mut [0.0; 40]));
    }
}
