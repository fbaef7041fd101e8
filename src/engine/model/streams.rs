//! Several residual streams of each row (Gemma 3n): a block computes the first of them, predicts the others
//! before and corrects them behind ([Baykal et al. 2023](https://arxiv.org/abs/2301.13310)). A product of two
//! narrow matrices is added to its attention ([Menghani et al. 2024](https://arxiv.org/abs/2411.07501)).

use std::sync::atomic::Ordering;

use super::layers::{Norm, normalised};
use super::packed_weights::PackedWeights;
use super::spec::{ModelSpec, NormSpec};
use super::tensors::{floats, vector};
use super::weights::{Matrix, matrices_of};
use super::workspace::Workspace;
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::instructions::Instructions;
use crate::kernels::matrix::each_row;
use crate::kernels::norm::sum_of_squares;
use crate::kernels::streams::{STREAMS, correct, predict, route};
use crate::kernels::swiglu::{add, add_scaled, scale};

/// Lower bound of the mean square of a projected stream, by whose root the stream is divided.
const LEAST_SQUARE: f32 = 1e-5;

/// The weights that make the streams of an embedding, and a final hidden state of them.
pub(super) struct Streams {
    /// The projections of the embedding to each stream but the first: `[width, width]`.
    split: Vec<Matrix>,
    /// The projections of each stream but the first, back to a hidden state: `[width, width]`.
    merge: Vec<Matrix>,
}

/// The weights with which a block predicts and corrects the streams that it does not compute.
pub(super) struct Update {
    /// `[STREAMS, width]`, times the weights of its norm.
    router: Vec<f32>,
    epsilon: f32,
    /// `[STREAMS², STREAMS]`.
    predict: Vec<f32>,
    /// `[STREAMS, STREAMS]`.
    correct: Vec<f32>,
    /// The factors of the corrected first stream where the embedding of the block is mixed in, `[width]`.
    pub(super) scale: Vec<f32>,
}

/// `x + norm(right(left(x)))` of the input of attention, added to its result.
pub(super) struct Laurel {
    /// `[rank, width]`.
    left: Matrix,
    /// `[width, rank]`.
    right: Matrix,
    norm: Norm,
}

impl Streams {
    /// The weights of the file, if its family has streams.
    ///
    /// # Errors
    /// As [`Matrix::load`] and [`Matrix::pack`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        spec: &ModelSpec,
    ) -> Result<Option<Streams>, Error> {
        if !spec.streams {
            return Ok(None);
        }
        let shape = [spec.width, spec.width, STREAMS - 1];
        Ok(Some(Streams {
            split: matrices_of(gguf, packed, "altup_proj.weight", shape)?,
            merge: matrices_of(gguf, packed, "altup_unembd_proj.weight", shape)?,
        }))
    }

    /// Makes [`Workspace::streams`] of the embeddings in `x`: the embedding itself, and projections of the
    /// same size.
    pub(super) fn split(&self, rows: usize, workspace: &mut Workspace, pool: &Pool) {
        let (instructions, width) = (pool.instructions(), workspace.width);
        let Workspace { x, h, streams, quantized, .. } = workspace;
        let (x, h) = (&mut x[..rows * width], &mut h[..rows * width]);
        let streams = &mut streams[..rows * STREAMS * width];
        for (index, matrix) in self.split.iter().enumerate() {
            matrix.multiply(x, None, h, quantized, pool);
            let (x, h) = (&*x, &*h);
            each_row(streams, STREAMS * width, pool, &|row, streams| {
                let (x, h) = (&x[row * width..(row + 1) * width], &h[row * width..(row + 1) * width]);
                let stream = &mut streams[(index + 1) * width..(index + 2) * width];
                stream.copy_from_slice(h);
                scale(instructions, stream, same_size(instructions, x, h));
            });
        }
        let x = &*x;
        each_row(streams, STREAMS * width, pool, &|row, streams| {
            streams[..width].copy_from_slice(&x[row * width..(row + 1) * width]);
        });
    }

    /// Makes `x` of the streams: the mean of the first one and of projections of the others, scaled to its
    /// size.
    pub(super) fn merge(&self, rows: usize, workspace: &mut Workspace, pool: &Pool) {
        let (instructions, width) = (pool.instructions(), workspace.width);
        let Workspace { x, h, beside, streams, quantized, .. } = workspace;
        let (x, h) = (&mut x[..rows * width], &mut h[..rows * width]);
        let (beside, streams) = (&mut beside[..rows * width], &streams[..rows * STREAMS * width]);
        let stream = |row: usize, index: usize| {
            let start = (row * STREAMS + index) * width;
            &streams[start..start + width]
        };
        each_row(x, width, pool, &|row, x| x.copy_from_slice(stream(row, 0)));
        for (index, matrix) in self.merge.iter().enumerate() {
            let make = |row: usize, h: &mut [f32]| h.copy_from_slice(stream(row, index + 1));
            matrix.multiply(h, Some(&make), beside, quantized, pool);
            let beside = &*beside;
            each_row(x, width, pool, &|row, x| {
                let projected = &beside[row * width..(row + 1) * width];
                let factor = same_size(instructions, stream(row, 0), projected);
                add_scaled(instructions, x, projected, factor);
            });
        }
        each_row(x, width, pool, &|_, x| scale(instructions, x, 1.0 / STREAMS as f32));
    }
}

impl Update {
    /// Loads the weights of a block, whose tensors `name` names.
    ///
    /// # Errors
    /// As [`floats`].
    pub(super) fn load(
        gguf: &Gguf,
        name: &dyn Fn(&str) -> String,
        norm: NormSpec,
        width: usize,
    ) -> Result<Update, Error> {
        let weights = vector(gguf, &name("altup_router_norm.weight"), width)?;
        let mut router = floats(gguf, &name("altup_router.weight"), &[width, STREAMS])?;
        for row in router.chunks_exact_mut(width) {
            row.iter_mut().zip(&weights).for_each(|(router, weight)| *router *= weight);
        }
        let square = STREAMS * STREAMS;
        Ok(Update {
            router,
            epsilon: norm.epsilon,
            predict: floats(gguf, &name("altup_predict_coef.weight"), &[STREAMS, square])?,
            correct: floats(gguf, &name("altup_correct_coef.weight"), &[STREAMS, STREAMS])?,
            scale: vector(gguf, &name("altup_correct_scale.weight"), width)?,
        })
    }

    /// Predicts all streams, and takes the first of them into `x`.
    pub(super) fn predict(&self, rows: usize, workspace: &mut Workspace, pool: &Pool) {
        let (instructions, width) = (pool.instructions(), workspace.width);
        let Workspace { x, streams, .. } = workspace;
        let (x, streams) = (&mut x[..rows * width], &mut streams[..rows * STREAMS * width]);
        each_row(streams, STREAMS * width, pool, &|_, streams| {
            let routed = route(instructions, &streams[..width], &self.router, self.epsilon);
            predict(instructions, streams, &self.predict, &routed);
        });
        let streams = &*streams;
        each_row(x, width, pool, &|row, x| {
            x.copy_from_slice(&streams[row * STREAMS * width..][..width]);
        });
    }

    /// Corrects all streams by the block's result for the first one, which is in `x`.
    pub(super) fn correct(&self, rows: usize, workspace: &mut Workspace, pool: &Pool) {
        let (instructions, width) = (pool.instructions(), workspace.width);
        let Workspace { x, streams, .. } = workspace;
        let (x, streams) = (&x[..rows * width], &mut streams[..rows * STREAMS * width]);
        each_row(streams, STREAMS * width, pool, &|row, streams| {
            let x = &x[row * width..(row + 1) * width];
            let routed = route(instructions, x, &self.router, self.epsilon);
            correct(instructions, streams, x, &self.correct, &routed);
        });
    }
}

impl Laurel {
    /// Loads the product that is added to the result of attention in a block, whose tensors `name` names.
    ///
    /// # Errors
    /// As [`Matrix::load`] and [`Matrix::pack`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &dyn Fn(&str) -> String,
        norm: NormSpec,
        width: usize,
        rank: usize,
    ) -> Result<Laurel, Error> {
        Ok(Laurel {
            left: Matrix::load(gguf, &name("laurel_l.weight"), width, rank)?.pack(packed)?,
            right: Matrix::load(gguf, &name("laurel_r.weight"), rank, width)?.pack(packed)?,
            norm: Norm::load(gguf, &name("laurel_post_norm"), norm, width)?,
        })
    }

    /// Makes [`Workspace::beside`] of the rows of `x`, whose norm before attention is `before`.
    pub(super) fn make(&self, before: &Norm, rows: usize, workspace: &mut Workspace, pool: &Pool) {
        let (instructions, width) = (pool.instructions(), workspace.width);
        let Workspace { x, h, beside, finite, inner, quantized, .. } = workspace;
        let (x, h) = (&x[..rows * width], &mut h[..rows * width]);
        let beside = &mut beside[..rows * width];
        let narrow = &mut inner.gate[..rows * self.left.outputs()];
        let finite = &finite[..];
        let make = normalised(before, x, width, finite, instructions);
        self.left.multiply(h, Some(&make), narrow, quantized, pool);
        self.right.multiply(narrow, None, beside, quantized, pool);
        let h = &*h;
        each_row(beside, width, pool, &|row, beside| {
            if !self.norm.apply_in_place(instructions, beside) {
                finite[row].store(false, Ordering::Relaxed);
            }
            add(instructions, beside, &h[row * width..(row + 1) * width]);
        });
    }

    /// `x = (x + beside) / √2`, behind attention.
    pub(super) fn add(rows: usize, workspace: &mut Workspace, pool: &Pool) {
        let (instructions, width) = (pool.instructions(), workspace.width);
        let Workspace { x, beside, .. } = workspace;
        each_row(&mut x[..rows * width], width, pool, &|row, x| {
            add(instructions, x, &beside[row * width..(row + 1) * width]);
            scale(instructions, x, std::f32::consts::FRAC_1_SQRT_2);
        });
    }
}

/// The factor that makes `y` as large as `x`: the ratio of their root mean squares.
fn same_size(instructions: Instructions, x: &[f32], y: &[f32]) -> f32 {
    let [x, y] = [x, y].map(|values| sum_of_squares(instructions, values) / values.len() as f32);
    // A comparison, so that NaN stays NaN.
    let least = if y <= LEAST_SQUARE { LEAST_SQUARE } else { y };
    x.sqrt() / least.sqrt()
}
