//! A selective state space, which Granite 4 has in place of attention in most layers.
//!
//! Reference: [Dao and Gu 2024](https://arxiv.org/abs/2405.21060).

use std::sync::atomic::Ordering;

use super::layers::{Dense, Norm, normalised};
use super::packed_weights::PackedWeights;
use super::spec::{NormSpec, StateSpaceSpec};
use super::tensors::{floats, opt_vector, vector};
use super::weights::{Matrix, multiply_all};
use super::workspace::Workspace;
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::convolution::Taps;
use crate::kernels::delta_rule::{decay, softplus};
use crate::kernels::recurrence::StatePlace;
use crate::kernels::rows::Rows;
use crate::kernels::state_space::{Signals, StateSpaceSizes};
use crate::kernels::swiglu::silu_times;

/// The weights of a state space.
pub(super) struct StateSpace {
    spec: StateSpaceSpec,
    /// The projections to the result's gate, to the convolution's input, and to steps.
    projections: Box<[Matrix; 3]>,
    taps: Taps,
    /// Added to the convolution's result, `[channels]`, or empty.
    taps_bias: Vec<f32>,
    /// Added to the projection to steps, `[heads]`.
    step_bias: Vec<f32>,
    /// `[heads]`, below 0.
    rates: Vec<f32>,
    /// The factor with which each head's input is added to its result, `[heads]`.
    skips: Vec<f32>,
    /// The norms of the results of each group of heads.
    norms: Vec<Norm>,
    pub(super) output: Dense,
}

/// The sizes of its heads.
pub(super) fn heads_of(spec: &StateSpaceSpec) -> StateSpaceSizes {
    StateSpaceSizes { heads: spec.heads, dim: spec.dim, groups: spec.groups, state: spec.state }
}

impl StateSpace {
    /// The state space of a block, whose tensors `name` names.
    ///
    /// # Errors
    /// As [`Dense::load`] and [`Matrix::part`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &dyn Fn(&str) -> String,
        spec: StateSpaceSpec,
        norm: NormSpec,
        width: usize,
    ) -> Result<StateSpace, Error> {
        let (channels, values, heads) = (spec.channels(), spec.width(), spec.heads);
        let input = Matrix::load(gguf, &name("ssm_in.weight"), width, values + channels + heads)?;
        let input = input.pack(packed)?;
        let weights = floats(gguf, &name("ssm_conv1d.weight"), &[spec.taps, channels])?;
        let of_a_group = values / spec.groups;
        let shape = [of_a_group, spec.groups];
        let shape = if spec.groups == 1 { &shape[..1] } else { &shape[..] };
        let norms = floats(gguf, &name("ssm_norm.weight"), shape)?;
        let norms = norms.chunks_exact(of_a_group);
        Ok(StateSpace {
            spec,
            projections: Box::new([
                input.part(0..values)?,
                input.part(values..values + channels)?,
                input.part(values + channels..values + channels + heads)?,
            ]),
            taps: Taps::new(spec.taps, &weights),
            taps_bias: opt_vector(gguf, &name("ssm_conv1d.bias"), channels)?.unwrap_or_default(),
            step_bias: vector(gguf, &name("ssm_dt.bias"), heads)?,
            rates: floats(gguf, &name("ssm_a"), &[1, heads])?,
            skips: floats(gguf, &name("ssm_d"), &[1, heads])?,
            norms: norms.map(|weight| Norm::Rms { weight: weight.to_vec(), epsilon: norm.epsilon }).collect(),
            output: Dense::load(gguf, packed, &name("ssm_out"), values, width)?,
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
        let (channels, heads, values) = (spec.channels(), spec.heads, spec.width());
        let rows: usize = sequences.iter().map(|sequence| sequence.rows).sum();
        let Workspace { x, h, finite, query, key, value, mixed, attention, quantized, .. } = workspace;
        let finite = &finite[..];
        let (x, h) = (&mut x[..rows * width], &mut h[..rows * width]);
        let (inputs, gates) = (&mut mixed[..rows * channels], &mut query[..rows * values]);
        let (steps, decays) = (&mut key[..rows * heads], &mut value[..rows * heads]);
        let out = &mut attention[..rows * values];
        let projections = self.projections.each_ref();
        let ys = [&mut *gates, &mut *inputs, &mut *steps];
        match norm {
            Some(norm) => {
                let make = normalised(norm, x, width, finite, instructions);
                multiply_all(projections, h, Some(&make), ys, quantized, pool);
            }
            None => multiply_all(projections, x, None, ys, quantized, pool),
        }
        self.taps.activated(sequences, place, inputs, &self.taps_bias, pool);
        for (steps, decays) in steps.chunks_exact_mut(heads).zip(decays.chunks_exact_mut(heads)) {
            let of_heads = self.step_bias.iter().zip(&self.rates);
            for ((step, of_decay), (bias, rate)) in steps.iter_mut().zip(decays).zip(of_heads) {
                let x = *step + bias;
                (*step, *of_decay) = (softplus(x) as f32, decay(x, *rate));
            }
        }
        let behind = place.behind(Taps::state_len(channels, spec.taps));
        let signals = Signals { inputs, decays, steps, skips: &self.skips };
        heads_of(&spec).scan(sequences, behind, &signals, out, pool);
        let gates = &*gates;
        let finish = |row: usize, out: &mut [f32]| {
            silu_times(instructions, out, &gates[row * values..(row + 1) * values]);
            for (norm, out) in self.norms.iter().zip(out.chunks_exact_mut(values / spec.groups)) {
                if !norm.apply_in_place(instructions, out) {
                    finite[row].store(false, Ordering::Relaxed);
                }
            }
        };
        self.output.weight.multiply(out, Some(&finish), h, quantized, pool);
    }
}
