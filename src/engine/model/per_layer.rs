//! Embeddings of each token for each block (Gemma 3n, Gemma 4): looked up and projected once a pass, and
//! mixed into the residual stream behind each block. [An issue of
//! transformers](https://github.com/huggingface/transformers/issues/45206) lists all steps.

use std::sync::atomic::Ordering;

use super::layers::Norm;
use super::packed_weights::PackedWeights;
use super::spec::{ModelSpec, NormSpec};
use super::weights::Matrix;
use super::workspace::Workspace;
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::gelu::geglu;
use crate::kernels::matrix::each_row;
use crate::kernels::streams::STREAMS;
use crate::kernels::swiglu::{add, add_scaled, scale};

/// The weights that make the embeddings of all blocks.
pub(super) struct PerLayerEmbedding {
    /// The embeddings of a token for all blocks: `[vocabulary, blocks * length]`.
    tokens: Matrix,
    /// The projection of the embedding of the model: `[blocks * length, width]`.
    projection: Matrix,
    /// The norm of each block's part of the projection, `[length]`.
    norm: Norm,
    /// Length of the embedding of one block.
    length: usize,
}

/// The weights with which a block mixes in its embedding.
pub(super) struct PerLayerInput {
    /// Index of the block.
    index: usize,
    length: usize,
    /// `[length, width]`.
    gate: Matrix,
    /// `[width, length]`.
    projection: Matrix,
    norm: Norm,
}

impl PerLayerEmbedding {
    /// Loads the embeddings of each layer that the file has, if its family has any.
    ///
    /// # Errors
    /// As [`Matrix::load`] and [`Matrix::pack`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        spec: &ModelSpec,
        norm: NormSpec,
        vocabulary: usize,
    ) -> Result<Option<PerLayerEmbedding>, Error> {
        let Some(length) = spec.per_layer else { return Ok(None) };
        let all = spec.blocks.len() * length;
        Ok(Some(PerLayerEmbedding {
            tokens: Matrix::load(gguf, "per_layer_token_embd.weight", all, vocabulary)?,
            projection: Matrix::load(gguf, "per_layer_model_proj.weight", spec.width, all)?.pack(packed)?,
            norm: Norm::load(gguf, "per_layer_proj_norm", norm, length)?,
            length,
        }))
    }

    /// Makes [`Workspace::per_layer`] of the tokens of some rows, whose embeddings are in `x`.
    pub(super) fn embed<'t>(
        &self,
        tokens: impl Iterator<Item = &'t u32>,
        rows: usize,
        workspace: &mut Workspace,
        pool: &Pool,
    ) {
        let (instructions, width) = (pool.instructions(), workspace.width);
        let all = self.projection.outputs();
        let Workspace { x, finite, per_layer, per_layer_row, quantized, .. } = workspace;
        let (x, per_layer) = (&mut x[..rows * width], &mut per_layer[..rows * all]);
        self.projection.multiply(x, None, per_layer, quantized, pool);
        for (row, (token, y)) in tokens.zip(per_layer.chunks_exact_mut(all)).enumerate() {
            self.tokens.row(*token as usize, per_layer_row);
            scale(instructions, y, 1.0 / (width as f32).sqrt());
            if !self.norm.apply_in_place(instructions, y) {
                finite[row].store(false, Ordering::Relaxed);
            }
            add_scaled(instructions, y, per_layer_row, (self.length as f32).sqrt());
            scale(instructions, y, std::f32::consts::FRAC_1_SQRT_2);
        }
    }
}

impl PerLayerInput {
    /// Loads the weights of block `index` for it, whose tensors `name` names.
    ///
    /// # Errors
    /// As [`Matrix::load`] and [`Matrix::pack`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &dyn Fn(&str) -> String,
        index: usize,
        norm: NormSpec,
        [width, length]: [usize; 2],
    ) -> Result<PerLayerInput, Error> {
        Ok(PerLayerInput {
            index,
            length,
            gate: Matrix::load(gguf, &name("inp_gate.weight"), width, length)?.pack(packed)?,
            projection: Matrix::load(gguf, &name("proj.weight"), length, width)?.pack(packed)?,
            norm: Norm::load(gguf, &name("post_norm"), norm, width)?,
        })
    }

    /// `x += norm(projection(gelu(gate(x)) · embedding))` of all rows. Where there are several residual
    /// streams, `x` is the first of them, multiplied with `first_scale`, and the result is added to the
    /// others.
    pub(super) fn add(
        &self,
        first_scale: Option<&[f32]>,
        rows: usize,
        workspace: &mut Workspace,
        pool: &Pool,
    ) {
        let (instructions, width, length) = (pool.instructions(), workspace.width, self.length);
        let Workspace { x, h, streams, finite, inner, per_layer, per_layer_width, quantized, .. } = workspace;
        let h = &mut h[..rows * width];
        let gate = &mut inner.gate[..rows * length];
        let all = STREAMS * width;
        {
            let (x, streams) = (&x[..], &streams[..]);
            let make = |row: usize, h: &mut [f32]| match first_scale {
                None => h.copy_from_slice(&x[row * width..(row + 1) * width]),
                Some(scale) => {
                    let first = &streams[row * all..][..width];
                    h.iter_mut().zip(first.iter().zip(scale)).for_each(|(h, (x, scale))| *h = x * scale);
                }
            };
            self.gate.multiply(h, Some(&make), gate, quantized, pool);
        }
        let (per_layer, per_layer_width) = (&per_layer[..], *per_layer_width);
        let activate = |row: usize, gate: &mut [f32]| {
            let embedding = row * per_layer_width + self.index * length;
            geglu(instructions, gate, &per_layer[embedding..embedding + length]);
        };
        self.projection.multiply(gate, Some(&activate), h, quantized, pool);
        let finite = &finite[..];
        each_row(h, width, pool, &|row, h| {
            if !self.norm.apply_in_place(instructions, h) {
                finite[row].store(false, Ordering::Relaxed);
            }
        });
        let of_row = |row: usize| &h[row * width..(row + 1) * width];
        match first_scale {
            None => {
                each_row(&mut x[..rows * width], width, pool, &|row, x| add(instructions, x, of_row(row)))
            }
            Some(_) => each_row(&mut streams[..rows * all], all, pool, &|row, streams| {
                let others = streams[width..].chunks_exact_mut(width);
                others.for_each(|stream| add(instructions, stream, of_row(row)));
            }),
        }
    }
}
