//! A gated delta net, which Qwen 3.5 has in place of attention in three of four layers.
//!
//! Reference: [Yang et al. 2024](https://arxiv.org/abs/2412.06464).

use std::sync::atomic::Ordering;

use super::layers::{Dense, Norm, normalised};
use super::packed_weights::PackedWeights;
use super::spec::{DeltaNetSpec, NormSpec};
use super::tensors::{floats, vector};
use super::weights::{Matrix, multiply_all};
use super::workspace::Workspace;
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::convolution::Taps;
use crate::kernels::delta_rule::{DeltaRuleSizes, Lessons, decay, unit_length};
use crate::kernels::exp::exp;
use crate::kernels::matrix::each_row;
use crate::kernels::recurrence::StatePlace;
use crate::kernels::rows::Rows;
use crate::kernels::swiglu::silu_times;

/// The weights of a delta net.
pub(super) struct DeltaNet {
    spec: DeltaNetSpec,
    /// The projections to queries, keys and values, to the result's gate, to decays and to shares.
    projections: Box<[Matrix; 4]>,
    taps: Taps,
    /// Added to the projection to decays, `[value heads]`.
    decay_bias: Vec<f32>,
    /// `[value heads]`, below 0.
    rates: Vec<f32>,
    /// The norm of each head's result.
    norm: Norm,
    /// Added to squared lengths of queries and keys.
    epsilon: f32,
    pub(super) output: Dense,
}

/// The sizes of its matrices.
pub(super) fn matrices(spec: &DeltaNetSpec) -> DeltaRuleSizes {
    DeltaRuleSizes { key_heads: spec.key_heads, value_heads: spec.value_heads, dim: spec.dim }
}

impl DeltaNet {
    /// The delta net of a block, whose tensors `name` names.
    ///
    /// # Errors
    /// As [`Dense::load`] and [`Norm::load`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &dyn Fn(&str) -> String,
        spec: DeltaNetSpec,
        norm: NormSpec,
        width: usize,
    ) -> Result<DeltaNet, Error> {
        let matrix = |part: &str, outputs| Matrix::load(gguf, &name(part), width, outputs)?.pack(packed);
        let (channels, heads) = (spec.channels(), spec.value_heads);
        let weights = floats(gguf, &name("ssm_conv1d.weight"), &[spec.taps, channels])?;
        Ok(DeltaNet {
            spec,
            projections: Box::new([
                matrix("attn_qkv.weight", channels)?,
                matrix("attn_gate.weight", spec.value_width())?,
                matrix("ssm_alpha.weight", heads)?,
                matrix("ssm_beta.weight", heads)?,
            ]),
            taps: Taps::new(spec.taps, &weights),
            decay_bias: vector(gguf, &name("ssm_dt.bias"), heads)?,
            rates: vector(gguf, &name("ssm_a"), heads)?,
            norm: Norm::load(gguf, &name("ssm_norm"), norm, spec.dim)?,
            epsilon: norm.epsilon,
            output: Dense::load(gguf, packed, &name("ssm_out"), spec.value_width(), width)?,
        })
    }

    /// `h = mixer(norm(x))` of all rows, as [`super::attention::Attention::forward`].
    pub(super) fn forward(
        &self,
        norm: Option<&Norm>,
        sequences: &[Rows<'_>],
        place: StatePlace,
        workspace: &mut Workspace,
        pool: &Pool,
    ) {
        let (instructions, width, spec) = (pool.instructions(), workspace.width, self.spec);
        let (channels, heads, values) = (spec.channels(), spec.value_heads, spec.value_width());
        let rows: usize = sequences.iter().map(|sequence| sequence.rows).sum();
        let Workspace { x, h, finite, query, key, value, mixed, attention, quantized, .. } = workspace;
        let finite = &finite[..];
        let (x, h) = (&mut x[..rows * width], &mut h[..rows * width]);
        let (inputs, gates) = (&mut mixed[..rows * channels], &mut query[..rows * values]);
        let (decays, betas) = (&mut key[..rows * heads], &mut value[..rows * heads]);
        let out = &mut attention[..rows * values];
        let projections = self.projections.each_ref();
        let ys = [&mut *inputs, &mut *gates, &mut *decays, &mut *betas];
        match norm {
            Some(norm) => {
                let make = normalised(norm, x, width, finite, instructions);
                multiply_all(projections, h, Some(&make), ys, quantized, pool);
            }
            None => multiply_all(projections, x, None, ys, quantized, pool),
        }
        self.taps.activated(sequences, place, inputs, &[], pool);
        let scale = 1.0 / (spec.dim as f32).sqrt();
        each_row(inputs, channels, pool, &|_, row| {
            let (queries, rest) = row.split_at_mut(spec.key_width());
            unit_length(instructions, queries, spec.dim, self.epsilon, scale);
            unit_length(instructions, &mut rest[..spec.key_width()], spec.dim, self.epsilon, 1.0);
        });
        each_row(decays, heads, pool, &|_, row| {
            for ((x, bias), rate) in row.iter_mut().zip(&self.decay_bias).zip(&self.rates) {
                *x = decay(*x + bias, *rate);
            }
        });
        betas.iter_mut().for_each(|beta| *beta = 1.0 / (1.0 + exp(-*beta)));
        let behind = place.behind(Taps::state_len(channels, spec.taps));
        let lessons = Lessons { inputs, decays, betas };
        matrices(&spec).learn(sequences, behind, &lessons, out, pool);
        let gates = &*gates;
        let finish = |row: usize, out: &mut [f32]| {
            if !self.norm.apply_in_place(instructions, out) {
                finite[row].store(false, Ordering::Relaxed);
            }
            silu_times(instructions, out, &gates[row * values..(row + 1) * values]);
        };
        self.output.weight.multiply(out, Some(&finish), h, quantized, pool);
    }
}
