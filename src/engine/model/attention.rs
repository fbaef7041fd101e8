//! Attention of a block: its weights, and the steps between its projections.

use std::ops::Range;
use std::sync::atomic::Ordering;

use super::layers::{Dense, Norm, normalised};
use super::packed_weights::PackedWeights;
use super::spec::{AttentionSpec, BlockSpec, QueryKeyNorm, Residual};
use super::tensors::vector;
use super::weights::multiply_all;
use super::workspace::{Angles, Workspace};
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::attention::{Projections, Scoring, attend};
use crate::kernels::convolution::gate_logistic;
use crate::kernels::matrix::{Activations, Make, each_row};
use crate::kernels::rope::Rope;
use crate::kernels::rows::Rows;
use crate::kernels::swiglu::scale;

/// The weights of attention.
pub(super) struct Attention {
    spec: AttentionSpec,
    /// Of queries, with the gate behind each head where there are gates; of keys and values too, where the
    /// block has its own.
    projections: Vec<Dense>,
    /// Norms of queries and keys, `[head_dim]` each or as long as all heads of a row; none, or one for each
    /// of the projections.
    norms: Vec<Norm>,
    /// The norm of value heads, whose weights are all 1.
    value_norm: Option<Norm>,
    /// `[query heads]`.
    sinks: Option<Vec<f32>>,
    /// `[query heads]`.
    slopes: Option<Vec<f32>>,
    pub(super) output: Dense,
}

impl Attention {
    /// The attention of a block, whose tensors `name` names.
    ///
    /// # Errors
    /// As [`Dense::load`] and [`Norm::load`].
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
            Ok(match block.residual {
                Residual::PostNorm => dense.with_bias(),
                Residual::PreNorm | Residual::Sandwich | Residual::NormedResult => dense,
            })
        };
        let with_gates = if spec.gated { 2 * query_width } else { query_width };
        let projections = match gguf.opt_tensor(&name("attn_qkv.weight"))? {
            // One matrix has the rows of all three.
            Some(_) if !spec.gated => {
                let all = dense("attn_qkv", width, query_width + 2 * kv_width)?;
                let part = |start: usize, outputs: usize| all.part(start..start + outputs);
                vec![
                    part(0, query_width)?,
                    part(query_width, kv_width)?,
                    part(query_width + kv_width, kv_width)?,
                ]
            }
            _ => {
                let mut projections = vec![dense("attn_q", width, with_gates)?];
                if spec.shares.is_none() {
                    projections.push(dense("attn_k", width, kv_width)?);
                }
                if spec.shares.is_none() && !spec.keys_are_values {
                    projections.push(dense("attn_v", width, kv_width)?);
                }
                projections
            }
        };
        let norm = |part: &str, norm, length| Norm::load(gguf, &name(part), norm, length);
        let norms = match spec.query_key_norm {
            Some(QueryKeyNorm::Head(kind)) => {
                let mut norms = vec![norm("attn_q_norm", kind, heads.dim)?];
                if spec.shares.is_none() {
                    norms.push(norm("attn_k_norm", kind, heads.dim)?);
                }
                norms
            }
            Some(QueryKeyNorm::Row(kind)) => {
                vec![norm("attn_q_norm", kind, query_width)?, norm("attn_k_norm", kind, kv_width)?]
            }
            None => Vec::new(),
        };
        let value_norm = spec.value_norm.map(|norm| Norm::unweighted(norm, heads.dim));
        let sinks =
            if spec.sinks { Some(vector(gguf, &name("attn_sinks.weight"), heads.query)?) } else { None };
        let output = dense("attn_output", query_width, width)?;
        let slopes = spec.alibi.map(|alibi| alibi.slopes(heads.query));
        Ok(Attention { spec, projections, norms, value_norm, sinks, slopes, output })
    }

    /// `h = attention(norm(x))` of all rows, without the bias of the output, which the end of the half adds.
    /// Keys and values go to the state of the sequences, at `offset` in each block of positions.
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
            adapters,
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
        let (finite, positions, adapters) = (&finite[..], &positions[..], &adapters[..]);
        let (x, h) = (&mut x[..rows * width], &mut h[..rows * width]);
        let query = &mut query[..rows * query_width];
        let key = &mut key[..rows * kv_width];
        let value = &mut value[..rows * kv_width];
        let attention = &mut attention[..rows * query_width];
        let gates = if self.spec.gated { 2 * query_width } else { 0 };
        let mixed = &mut mixed[..rows * gates];
        let projected = if self.spec.gated { &mut *mixed } else { &mut *query };
        let ys = [projected, &mut *key, &mut *value];
        match norm {
            Some(norm) => {
                let make = normalised(norm, x, width, finite, instructions);
                self.project(h, Some(&make), ys, adapters, quantized, pool);
            }
            None => self.project(x, None, ys, adapters, quantized, pool),
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
        if let Some(norm) = &self.value_norm
            && self.spec.shares.is_none()
        {
            each_row(value, kv_width, pool, &|row, y| note(row, norm.apply_in_place(instructions, y)));
        }
        if let Some(QueryKeyNorm::Row(_)) = self.spec.query_key_norm {
            for (norm, (y, width)) in
                self.norms.iter().zip([(&mut *query, query_width), (&mut *key, kv_width)])
            {
                each_row(y, width, pool, &|row, y| note(row, norm.apply_in_place(instructions, y)));
            }
        }
        let head_norm = |index: usize| match self.spec.query_key_norm {
            Some(QueryKeyNorm::Head(_)) => self.norms.get(index),
            _ => None,
        };
        let head_norms = [head_norm(0), head_norm(1)];
        let rope = self.spec.rope.map(|index| (&ropes[index], &angles[index]));
        // Norms and rotation of some heads of a row, queries (0) or keys (1).
        let prepare = |index: usize, row: usize, heads_of_row: &mut [f32]| {
            if let Some(norm) = head_norms[index] {
                note(row, norm.apply_in_place(instructions, heads_of_row));
            }
            if let Some((rope, Angles { cos, sin })) = rope {
                let pairs = of_row(row, rope.pairs());
                rope.rotate(instructions, heads_of_row, heads.dim, &cos[pairs.clone()], &sin[pairs]);
            }
            if let Some(temperature) = self.spec.temperature.filter(|_| index == 0) {
                scale(instructions, heads_of_row, temperature.at(positions[row]));
            }
        };
        let ready = |row: usize, queries: &mut [f32], key: &mut [f32]| {
            prepare(0, row, queries);
            prepare(1, row, key);
        };
        if self.spec.shares.is_some() {
            each_row(query, query_width, pool, &|row, queries| prepare(0, row, queries));
        }
        let scoring = Scoring {
            scale: self.spec.scale,
            cap: self.spec.cap,
            window: self.spec.span.window(),
            sinks: self.sinks.as_deref(),
            slopes: self.slopes.as_deref(),
        };
        let fresh = self.spec.shares.is_none().then_some((key, &*value));
        let projections = Projections { queries: query, fresh, ready: &ready, scoring };
        attend(heads, offset, sequences, projections, attention, tiles, pool);
        let gate = |row: usize, attention: &mut [f32]| {
            let gates = mixed[of_row(row, gates)].chunks_exact(2 * heads.dim);
            for (attention, both) in attention.chunks_exact_mut(heads.dim).zip(gates) {
                gate_logistic(instructions, attention, &both[heads.dim..]);
            }
        };
        let make: Option<Make<'_>> = if self.spec.gated { Some(&gate) } else { None };
        self.output.weight.multiply(attention, make, h, quantized, pool);
        self.output.adapt(adapters, attention, h, pool);
    }
}

impl Attention {
    /// Queries `[rows, query heads * head_dim]`, twice as long where gates are among them, and keys and
    /// values `[rows, kv heads * head_dim]` as far as the block has its own, of rows `x` `[rows, width]`,
    /// which `make` makes first where it is given. `adapters` are those of the rows.
    fn project(
        &self,
        x: &mut [f32],
        make: Option<Make<'_>>,
        [query, key, value]: [&mut [f32]; 3],
        adapters: &[u16],
        quantized: &mut Activations,
        pool: &Pool,
    ) {
        match &self.projections[..] {
            [queries] => queries.weight.multiply(x, make, query, quantized, pool),
            [queries, keys] => {
                let matrices = [&queries.weight, &keys.weight];
                multiply_all(matrices, x, make, [&mut *query, &mut *key], quantized, pool);
            }
            [queries, keys, values] => {
                let matrices = [&queries.weight, &keys.weight, &values.weight];
                multiply_all(matrices, x, make, [&mut *query, &mut *key, &mut *value], quantized, pool);
            }
            other => unreachable!("{} projections", other.len()),
        }
        for (dense, y) in self.projections.iter().zip([&mut *query, &mut *key, &mut *value]) {
            dense.adapt(adapters, x, y, pool);
            dense.add_bias_to(y, pool);
        }
        if self.spec.keys_are_values {
            value.copy_from_slice(key);
        }
    }
}

/// The values of a row in rows of `width`.
fn of_row(row: usize, width: usize) -> Range<usize> {
    row * width..(row + 1) * width
}
