//! Feed-forward of a block with a mixture of experts: a router, the experts that it chooses from, and the one
//! that all rows use.
//!
//! Rows are grouped by expert, so that the weights of an expert are read once for all rows of a pass that use
//! it. A row has a slot for each expert that it uses; their results are added to it in the order in which
//! they were chosen, whatever other rows there are.

use std::sync::atomic::Ordering;

use super::feed_forward::FeedForward;
use super::layers::{Dense, Norm, normalised};
use super::packed_weights::PackedWeights;
use super::spec::{ExpertsSpec, FeedForwardKind, FeedForwardSpec, NormSpec, SharedExpert, SharedWeighting};
use super::tensors::{floats, opt_vector, vector};
use super::weights::{ExpertMatrices, multiply_groups};
use super::workspace::{ExpertRows, InnerRows, Workspace};
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::convolution::gate_logistic;
use crate::kernels::gelu::{exact_geglu, geglu, gelu, tanh_gelu};
use crate::kernels::matrix::each_row;
use crate::kernels::norm::dot;
use crate::kernels::routing::choose;
use crate::kernels::swiglu::{add, add_scaled, clamped_swiglu, scale, swiglu};

/// The weights of the experts of a block.
pub(super) struct Experts {
    spec: ExpertsSpec,
    kind: FeedForwardKind,
    /// `[experts, width]`.
    router: Dense,
    /// `[inner, width]` for each expert; there may be no gates.
    gate: Option<ExpertMatrices>,
    up: ExpertMatrices,
    /// `[width, inner]` for each expert.
    down: ExpertMatrices,
    biases: Option<Biases>,
    /// Zeros `[inner]`.
    no_bias: Vec<f32>,
    /// The factor of each expert's result, beside its weight.
    scales: Option<Vec<f32>>,
    shared: Option<SharedExpertWeights>,
}

/// The expert that all rows use.
struct SharedExpertWeights {
    expert: FeedForward,
    /// The result is multiplied with the logistic function of the dot product of this gate and the input.
    gate: Option<Vec<f32>>,
    norms: Option<ExpertNorms>,
}

/// Norms of a block whose experts have their own: of the inputs of router and experts, and of results.
struct ExpertNorms {
    router: Norm,
    experts: Norm,
    of_shared: Norm,
    of_experts: Norm,
}

/// Biases of each expert's matrices: `[experts, outputs]`.
struct Biases {
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
}

impl Experts {
    /// The experts of a block, whose tensors `name` names; `norm` is that of the block.
    ///
    /// # Errors
    /// As [`Dense::load`] and [`ExpertMatrices::load`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &dyn Fn(&str) -> String,
        spec: FeedForwardSpec,
        experts: ExpertsSpec,
        (norm, width): (NormSpec, usize),
    ) -> Result<Experts, Error> {
        let (inner, count) = (spec.width, experts.count);
        let matrices = |part: &str, inputs, outputs| {
            ExpertMatrices::load(gguf, packed, &name(&format!("{part}.weight")), [inputs, outputs, count])
        };
        let bias = |part: &str, outputs| floats(gguf, &name(&format!("{part}.bias")), &[outputs, count]);
        let biases = match spec.kind {
            FeedForwardKind::SwiGlu
            | FeedForwardKind::TanhGeGlu
            | FeedForwardKind::GeGlu
            | FeedForwardKind::Gelu
            | FeedForwardKind::TanhGelu => None,
            FeedForwardKind::ClampedSwiGlu => Some(Biases {
                gate: bias("ffn_gate_exps", inner)?,
                up: bias("ffn_up_exps", inner)?,
                down: bias("ffn_down_exps", width)?,
            }),
        };
        let router = Dense::load(gguf, packed, &name("ffn_gate_inp"), width, count)?;
        let fused = name("ffn_gate_up_exps.weight");
        let separate = gguf.opt_tensor(&name("ffn_gate_exps.weight"))?.is_some();
        let (gate, up) = match gguf.opt_tensor(&fused)? {
            Some(_) if separate => {
                return Err(gguf.unsupported(format!("tensor \"{fused}\" stands beside its parts")));
            }
            Some(_) if spec.kind.gated() => {
                let [gate, up] = ExpertMatrices::load_parts(gguf, packed, &fused, [width, inner, count])?;
                (Some(gate), up)
            }
            _ => (
                spec.kind.gated().then(|| matrices("ffn_gate_exps", width, inner)).transpose()?,
                matrices("ffn_up_exps", width, inner)?,
            ),
        };
        let shared = experts
            .shared
            .map(|shared| SharedExpertWeights::load(gguf, packed, name, spec, shared, norm, width));
        let scales = opt_vector(gguf, &name("ffn_down_exps.scale"), count)?;
        Ok(Experts {
            spec: experts,
            kind: spec.kind,
            router,
            gate,
            up,
            down: matrices("ffn_down_exps", inner, width)?,
            biases,
            no_bias: vec![0.0; inner],
            scales,
            shared: shared.transpose()?,
        })
    }

    /// `h = Σ weight · expert(norm(x))` of all rows. Rows in which a value was not finite are noted in
    /// [`Workspace::finite`].
    pub(super) fn forward(&self, norm: Option<&Norm>, rows: usize, workspace: &mut Workspace, pool: &Pool) {
        let instructions = pool.instructions();
        let (width, inner_width) = (self.up.inputs(), self.up.outputs());
        let ExpertsSpec { count, used, weighting, .. } = self.spec;
        let Workspace { x, h, beside, finite, experts: scratch, inner, quantized, .. } = workspace;
        let (x, h, finite) = (&x[..rows * width], &mut h[..rows * width], &finite[..]);
        let slots = rows * used;
        let logits = &mut scratch.logits[..rows * count];
        let normalise = |norm: Option<&Norm>, row: usize, h: &mut [f32]| match norm {
            Some(norm) => normalised(norm, x, width, finite, instructions)(row, h),
            None => h.copy_from_slice(&x[row * width..(row + 1) * width]),
        };
        let norms = self.shared.as_ref().and_then(|shared| shared.norms.as_ref());
        let of_router = norms.map_or(norm, |norms| Some(&norms.router));
        self.router.weight.multiply(
            h,
            Some(&|row, h: &mut [f32]| normalise(of_router, row, h)),
            logits,
            quantized,
            pool,
        );
        self.router.add_bias_to(logits, pool);
        scratch.chosen.resize(slots, 0);
        scratch.weights.resize(slots, 0.0);
        choose(logits, count, weighting, &mut scratch.chosen, &mut scratch.weights, pool);
        if let Some(scales) = &self.scales {
            let weights = scratch.weights.iter_mut().zip(&scratch.chosen);
            weights.for_each(|(weight, expert)| *weight *= scales[*expert as usize]);
        }
        scratch.arrange(count, used);
        if let Some(norms) = norms {
            each_row(h, width, pool, &|row, h| normalise(Some(&norms.experts), row, h));
        }

        let ExpertRows { logits, chosen, weights, slots: slots_of_rows, owners, groups, values } = scratch;
        let (owners, values) = (&owners[..], &mut values[..slots * width]);
        let InnerRows { gate, up } = &mut *inner;
        let gate = &mut gate[..slots * inner_width];
        // Without gates, the activated rows are stored in their place.
        let up = if self.gate.is_some() { &mut up[..slots * inner_width] } else { &mut [] };
        {
            let h = &*h;
            let copy = |slot: usize, x: &mut [f32]| {
                let row = owners[slot][0] as usize;
                x.copy_from_slice(&h[row * width..(row + 1) * width]);
            };
            match &self.gate {
                Some(of_gate) => {
                    let ys = [&mut *gate, &mut *up];
                    multiply_groups([of_gate, &self.up], groups, values, Some(&copy), ys, quantized, pool);
                }
                None => {
                    let ys = [&mut *gate];
                    multiply_groups([&self.up], groups, values, Some(&copy), ys, quantized, pool);
                }
            }
        }
        let up = &*up;
        let activate = |slot: usize, gate: &mut [f32]| {
            let up = |slot: usize| &up[slot * inner_width..(slot + 1) * inner_width];
            match &self.biases {
                Some(biases) => {
                    let up = up(slot);
                    let expert = owners[slot][1] as usize;
                    let part = expert * inner_width..(expert + 1) * inner_width;
                    clamped_swiglu(instructions, gate, up, &biases.gate[part.clone()], &biases.up[part]);
                }
                None => match self.kind {
                    FeedForwardKind::TanhGeGlu => geglu(instructions, gate, up(slot)),
                    FeedForwardKind::GeGlu => exact_geglu(instructions, gate, up(slot)),
                    FeedForwardKind::Gelu => gelu(instructions, gate, &self.no_bias),
                    FeedForwardKind::TanhGelu => tanh_gelu(instructions, gate, &self.no_bias),
                    FeedForwardKind::SwiGlu | FeedForwardKind::ClampedSwiGlu => {
                        swiglu(instructions, gate, up(slot));
                    }
                },
            }
        };
        multiply_groups([&self.down], groups, gate, Some(&activate), [&mut *values], quantized, pool);

        // The result of the expert that all rows use is made in `h` and stays there; where it has norms, it
        // is kept in `beside`.
        match &self.shared {
            Some(shared) => {
                let gates = &mut logits[..rows];
                if let Some(gate) = &shared.gate {
                    let rows = h.chunks_exact(width);
                    gates.iter_mut().zip(rows).for_each(|(y, h)| *y = dot(instructions, gate, h));
                }
                match norms {
                    Some(_) => {
                        let make = |row: usize, h: &mut [f32]| normalise(norm, row, h);
                        shared.expert.expand(h, Some(&make), &[], inner, quantized, pool);
                    }
                    None => shared.expert.expand(h, None, &[], inner, quantized, pool),
                }
                shared.expert.contract(h, &[], inner, quantized, pool);
                if shared.gate.is_some() {
                    let gates = &*gates;
                    each_row(h, width, pool, &|row, h| {
                        let mut share = [1.0];
                        gate_logistic(instructions, &mut share, &gates[row..=row]);
                        scale(instructions, h, share[0]);
                    });
                }
                if let Some(norms) = norms {
                    let beside = &mut beside[..rows * width];
                    each_row(beside, width, pool, &|row, beside| {
                        beside.copy_from_slice(&h[row * width..(row + 1) * width]);
                        if !norms.of_shared.apply_in_place(instructions, beside) {
                            finite[row].store(false, Ordering::Relaxed);
                        }
                    });
                    h.fill(0.0);
                }
            }
            None => h.fill(0.0),
        }
        let values = &*values;
        each_row(h, width, pool, &|row, h| {
            for at in row * used..(row + 1) * used {
                let (slot, expert, weight) = (slots_of_rows[at] as usize, chosen[at] as usize, weights[at]);
                add_scaled(instructions, h, &values[slot * width..(slot + 1) * width], weight);
                if let Some(biases) = &self.biases {
                    add_scaled(instructions, h, &biases.down[expert * width..(expert + 1) * width], weight);
                }
            }
            if let Some(norms) = norms {
                if !norms.of_experts.apply_in_place(instructions, h) {
                    finite[row].store(false, Ordering::Relaxed);
                }
                add(instructions, h, &beside[row * width..(row + 1) * width]);
            }
        });
    }
}

impl SharedExpertWeights {
    fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &dyn Fn(&str) -> String,
        spec: FeedForwardSpec,
        shared: SharedExpert,
        norm: NormSpec,
        width: usize,
    ) -> Result<SharedExpertWeights, Error> {
        let spec = FeedForwardSpec { width: shared.width, experts: None, ..spec };
        let of_shared = |part: &str| match part.split_once('.') {
            Some((matrix, rest)) => name(&format!("{matrix}_shexp.{rest}")),
            None => name(&format!("{part}_shexp")),
        };
        let gate = name("ffn_gate_inp_shexp.weight");
        Ok(match shared.weighting {
            SharedWeighting::Norms => SharedExpertWeights {
                expert: FeedForward::load(gguf, packed, name, spec, width)?,
                gate: None,
                norms: Some(ExpertNorms::load(gguf, name, norm, width)?),
            },
            weighting => SharedExpertWeights {
                expert: FeedForward::load(gguf, packed, &of_shared, spec, width)?,
                gate: match weighting {
                    SharedWeighting::Gate => Some(vector(gguf, &gate, width)?),
                    _ => None,
                },
                norms: None,
            },
        })
    }
}

impl ExpertNorms {
    fn load(
        gguf: &Gguf,
        name: &dyn Fn(&str) -> String,
        spec: NormSpec,
        width: usize,
    ) -> Result<ExpertNorms, Error> {
        let norm = |part: &str| Norm::load(gguf, &name(part), spec, width);
        // The input of the router is divided by the root of its length too.
        let mut weight = vector(gguf, &name("ffn_gate_inp.scale"), width)?;
        let root = (width as f32).sqrt();
        weight.iter_mut().for_each(|weight| *weight /= root);
        Ok(ExpertNorms {
            router: Norm::Rms { weight, epsilon: spec.epsilon },
            experts: norm("pre_ffw_norm_2")?,
            of_shared: norm("post_ffw_norm_1")?,
            of_experts: norm("post_ffw_norm_2")?,
        })
    }
}

impl ExpertRows {
    /// Gives each choice a slot: those of the first expert come first, each expert's in the order of the
    /// rows.
    fn arrange(&mut self, count: usize, used: usize) {
        let ExpertRows { chosen, slots, owners, groups, .. } = self;
        groups.clear();
        groups.resize(count, 0..0);
        for expert in &*chosen {
            groups[*expert as usize].end += 1;
        }
        let mut end = 0;
        for group in &mut *groups {
            let start = end;
            end += group.end;
            // The loop below extends it to its end.
            *group = start..start;
        }
        slots.resize(chosen.len(), 0);
        owners.resize(chosen.len(), [0; 2]);
        for ((at, expert), slot) in chosen.iter().enumerate().zip(slots) {
            let group = &mut groups[*expert as usize];
            *slot = group.end as u32;
            owners[group.end] = [(at / used) as u32, *expert];
            group.end += 1;
        }
    }
}
