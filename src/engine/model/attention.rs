//! Attention of a block: its weights, and what is done between its projections.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::block::normalised;
use super::layers::{Dense, Norm};
use super::packed_weights::PackedWeights;
use super::spec::{AttentionSpec, BlockSpec, QueryKeyNorm, Residual};
use super::weights::{multiply_all, vector};
use super::workspace::{Angles, Workspace};
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::attention::{Projections, Rows, Scoring, attend};
use crate::kernels::convolution::gate_logistic;
use crate::kernels::matrix::{Make, each_row};
use crate::kernels::rope::Rope;
use crate::kernels::swiglu::scale;

/// The weights of attention.
pub(super) struct Attention {
    spec: AttentionSpec,
    /// Of queries, keys and values; behind each query head its gate where there are gates.
    projections: Box<[Dense; 3]>,
    /// Norms of queries and keys, `[head_dim]` each or as long as all heads of a row.
    norms: Option<[Norm; 2]>,
    /// `[query heads]`.
    sinks: Option<Vec<f32>>,
    pub(super) output: Dense,
}

impl Attention {
    /// The attention of a block, whose tensors `name` names.
    ///
    /// # Errors
    /// Those of [`Dense::load`] and [`Norm::load`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &dyn Fn(&str) -> String,
        block: &BlockSpec,
        width: usize,
    ) -> Result<Attention, Error> {
        let spec = block.attention;
        let heads = spec.heads;
        let (query_width, kv_width) = (heads.query * heads.dim, heads.kv * heads.dim);
        let dense = |part: &str, inputs: usize, outputs: usize| {
            let dense = Dense::load(gguf, packed, &name(part), inputs, outputs)?;
            Ok(if block.residual == Residual::PostNorm { dense.with_bias() } else { dense })
        };
        let with_gates = if spec.gated { 2 * query_width } else { query_width };
        let projections = match gguf.opt_tensor(&name("attn_qkv.weight"))? {
            // The rows of all three in one matrix.
            Some(_) if !spec.gated => {
                let all = dense("attn_qkv", width, query_width + 2 * kv_width)?;
                let part = |start: usize, outputs: usize| all.part(start..start + outputs);
                [part(0, query_width)?, part(query_width, kv_width)?, part(query_width + kv_width, kv_width)?]
            }
            _ => [
                dense("attn_q", width, with_gates)?,
                dense("attn_k", width, kv_width)?,
                dense("attn_v", width, kv_width)?,
            ],
        };
        let norm = |part: &str, norm, length| Norm::load(gguf, &name(part), norm, length);
        let norms = match spec.query_key_norm {
            Some(QueryKeyNorm::Head(spec)) => {
                Some([norm("attn_q_norm", spec, heads.dim)?, norm("attn_k_norm", spec, heads.dim)?])
            }
            Some(QueryKeyNorm::Row(spec)) => {
                Some([norm("attn_q_norm", spec, query_width)?, norm("attn_k_norm", spec, kv_width)?])
            }
            None => None,
        };
        let sinks =
            if spec.sinks { Some(vector(gguf, &name("attn_sinks.weight"), heads.query)?) } else { None };
        let output = dense("attn_output", query_width, width)?;
        Ok(Attention { spec, projections: Box::new(projections), norms, sinks, output })
    }

    /// `h = attention(norm(x))` of all rows, without the bias of the output, which the end of the half adds. Keys and values
    /// go to the state of the sequences, at `offset` in each block of positions.
    pub(super) fn forward(
        &self,
        norm: Option<&Norm>,
        sequences: &[Rows<'_>],
        offset: usize,
        ropes: &[Rope],
        workspace: &mut Workspace,
        pool: &Pool,
    ) {
        let instructions = pool.instructions();
        let heads = self.spec.heads;
        let rows: usize = sequences.iter().map(|sequence| sequence.rows).sum();
        let (width, query_width, kv_width) = (workspace.width, heads.query * heads.dim, heads.kv * heads.dim);
        let Workspace {
            x,
            h,
            finite,
            positions,
            query,
            key,
            value,
            mixed,
            attention,
            angles,
            tiles,
            quantized,
            ..
        } = workspace;
        let (finite, positions) = (&finite[..], &positions[..]);
        let (x, h) = (&mut x[..rows * width], &mut h[..rows * width]);
        let query = &mut query[..rows * query_width];
        let key = &mut key[..rows * kv_width];
        let value = &mut value[..rows * kv_width];
        let attention = &mut attention[..rows * query_width];
        let matrices = self.projections.each_ref().map(|part| &part.weight);
        let gates = if self.spec.gated { 2 * query_width } else { 0 };
        let mixed = &mut mixed[..rows * gates];
        let projected = if self.spec.gated { &mut *mixed } else { &mut *query };
        let ys = [&mut *projected, &mut *key, &mut *value];
        match norm {
            Some(norm) => {
                let make = normalised(norm, x, width, finite, instructions);
                multiply_all(matrices, h, Some(&make), ys, quantized, pool);
            }
            None => multiply_all(matrices, x, None, ys, quantized, pool),
        }
        for (part, y) in self.projections.iter().zip([&mut *projected, &mut *key, &mut *value]) {
            part.add_bias_to(y, pool);
        }
        let mixed = &*mixed;
        if self.spec.gated {
            each_row(query, query_width, pool, &|row, query| {
                let heads = mixed[of_row(row, gates)].chunks_exact(2 * self.spec.heads.dim);
                for (query, both) in query.chunks_exact_mut(self.spec.heads.dim).zip(heads) {
                    query.copy_from_slice(&both[..query.len()]);
                }
            });
        }
        let note = |row: usize, is_finite: bool| {
            if !is_finite {
                finite[row].store(false, Ordering::Relaxed);
            }
        };
        if let (Some(QueryKeyNorm::Row(_)), Some(norms)) = (self.spec.query_key_norm, &self.norms) {
            for (norm, (y, width)) in norms.iter().zip([(&mut *query, query_width), (&mut *key, kv_width)]) {
                each_row(y, width, pool, &|row, y| note(row, norm.apply_in_place(instructions, y)));
            }
        }
        let head_norms = match self.spec.query_key_norm {
            Some(QueryKeyNorm::Head(_)) => self.norms.as_ref(),
            _ => None,
        };
        let rope = self.spec.rope.map(|index| (&ropes[index], &angles[index]));
        let ready = |row: usize, queries: &mut [f32], key: &mut [f32]| {
            if let Some([query_norm, key_norm]) = head_norms {
                note(
                    row,
                    query_norm.apply_in_place(instructions, queries)
                        & key_norm.apply_in_place(instructions, key),
                );
            }
            if let Some((rope, Angles { cos, sin })) = rope {
                let pairs = of_row(row, rope.pairs());
                rope.rotate(instructions, queries, heads.dim, &cos[pairs.clone()], &sin[pairs.clone()]);
                rope.rotate(instructions, key, heads.dim, &cos[pairs.clone()], &sin[pairs]);
            }
            if let Some(temperature) = self.spec.temperature {
                scale(instructions, queries, temperature.at(positions[row]));
            }
        };
        let scoring = Scoring {
            scale: self.spec.scale,
            cap: self.spec.cap,
            window: self.spec.span.window(),
            sinks: self.sinks.as_deref(),
        };
        let projections = Projections { queries: query, fresh: Some((key, value)), ready: &ready, scoring };
        attend(heads, offset, sequences, projections, attention, tiles, pool);
        let gate = |row: usize, attention: &mut [f32]| {
            let gates = mixed[of_row(row, gates)].chunks_exact(2 * heads.dim);
            for (attention, both) in attention.chunks_exact_mut(heads.dim).zip(gates) {
                gate_logistic(instructions, attention, &both[heads.dim..]);
            }
        };
        let make: Option<Make<'_>> = if self.spec.gated { Some(&gate) } else { None };
        self.output.weight.multiply(attention, make, h, quantized, pool);
    }
}

/// The values of a row in rows of `width`.
fn of_row(row: usize, width: usize) -> Range<usize> {
    row * width..(row + 1) * width
}
