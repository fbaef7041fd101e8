//! Feed-forward of a block with a mixture of experts: a router, the experts that it chooses from, and the one that all rows use.
//!
//! Rows are put together by expert, so that the weights of an expert are read once for all rows of a pass that use it. A row
//! that uses several has as many slots; their results are added to it in the order in which they were chosen for it, whatever
//! rows are beside it.

use super::feed_forward::FeedForward;
use super::layers::Dense;
use super::packed_weights::PackedWeights;
use super::spec::{ExpertsSpec, FeedForwardKind, FeedForwardSpec};
use super::weights::{Matrices, floats, multiply_groups};
use super::workspace::{ExpertRows, InnerRows};
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::gelu::{exact_geglu, geglu, gelu};
use crate::kernels::matrix::{Activations, Make, each_row};
use crate::kernels::routing::choose;
use crate::kernels::swiglu::{add_scaled, clamped_swiglu, swiglu};

/// The weights of the experts of a block.
pub(super) struct Experts {
    spec: ExpertsSpec,
    kind: FeedForwardKind,
    /// `[experts, width]`.
    router: Dense,
    /// `[inner, width]` for each expert; there may be no gates.
    gate: Option<Matrices>,
    up: Matrices,
    /// `[width, inner]` for each expert.
    down: Matrices,
    biases: Option<Biases>,
    /// Zeros `[inner]`.
    no_bias: Vec<f32>,
    shared: Option<FeedForward>,
}

/// What is added to the outputs of each expert's matrices: `[experts, outputs]`.
struct Biases {
    gate: Vec<f32>,
    up: Vec<f32>,
    down: Vec<f32>,
}

impl Experts {
    /// The experts of a block, whose tensors `name` names.
    ///
    /// # Errors
    /// Those of [`Dense::load`] and [`Matrices::load`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &dyn Fn(&str) -> String,
        spec: FeedForwardSpec,
        experts: ExpertsSpec,
        width: usize,
    ) -> Result<Experts, Error> {
        let (inner, count) = (spec.width, experts.count);
        let matrices = |part: &str, inputs, outputs| {
            Matrices::load(gguf, packed, &name(&format!("{part}.weight")), [inputs, outputs, count])
        };
        let bias = |part: &str, outputs| floats(gguf, &name(&format!("{part}.bias")), &[outputs, count]);
        let biases = match spec.kind {
            FeedForwardKind::SwiGlu
            | FeedForwardKind::GeGlu
            | FeedForwardKind::ExactGeGlu
            | FeedForwardKind::Gelu => None,
            FeedForwardKind::ClampedSwiGlu => Some(Biases {
                gate: bias("ffn_gate_exps", inner)?,
                up: bias("ffn_up_exps", inner)?,
                down: bias("ffn_down_exps", width)?,
            }),
        };
        let shared = experts.shared.map(|shared| {
            let spec = FeedForwardSpec { width: shared, experts: None, ..spec };
            let of_shared = |part: &str| match part.split_once('.') {
                Some((matrix, rest)) => name(&format!("{matrix}_shexp.{rest}")),
                None => name(&format!("{part}_shexp")),
            };
            FeedForward::load(gguf, packed, &of_shared, spec, width)
        });
        Ok(Experts {
            spec: experts,
            kind: spec.kind,
            router: Dense::load(gguf, packed, &name("ffn_gate_inp"), width, count)?,
            gate: match spec.kind.gated() {
                true => Some(matrices("ffn_gate_exps", width, inner)?),
                false => None,
            },
            up: matrices("ffn_up_exps", width, inner)?,
            down: matrices("ffn_down_exps", inner, width)?,
            biases,
            no_bias: vec![0.0; inner],
            shared: shared.transpose()?,
        })
    }

    /// `h = Σ weight · expert(h)` of rows `h` `[rows, width]`, which `make` makes first where it is given.
    pub(super) fn forward(
        &self,
        h: &mut [f32],
        make: Option<Make<'_>>,
        scratch: &mut ExpertRows,
        inner: &mut InnerRows,
        quantized: &mut Activations,
        pool: &Pool,
    ) {
        let instructions = pool.instructions();
        let (width, inner_width) = (self.up.inputs(), self.up.outputs());
        let ExpertsSpec { count, used, weighting, .. } = self.spec;
        let rows = h.len() / width;
        let slots = rows * used;
        let logits = &mut scratch.logits[..rows * count];
        self.router.weight.multiply(h, make, logits, quantized, pool);
        self.router.add_bias_to(logits, pool);
        scratch.chosen.resize(slots, 0);
        scratch.weights.resize(slots, 0.0);
        choose(logits, count, weighting, &mut scratch.chosen, &mut scratch.weights, pool);
        scratch.arrange(count, used);

        let ExpertRows { chosen, weights, slots: slots_of_rows, owners, groups, values, .. } = scratch;
        let (owners, values) = (&owners[..], &mut values[..slots * width]);
        let InnerRows { gate, up } = &mut *inner;
        let gate = &mut gate[..slots * inner_width];
        // Without gates, the rows that are activated stand in their place.
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
                    FeedForwardKind::GeGlu => geglu(instructions, gate, up(slot)),
                    FeedForwardKind::ExactGeGlu => exact_geglu(instructions, gate, up(slot)),
                    FeedForwardKind::Gelu => gelu(instructions, gate, &self.no_bias),
                    FeedForwardKind::SwiGlu | FeedForwardKind::ClampedSwiGlu => {
                        swiglu(instructions, gate, up(slot));
                    }
                },
            }
        };
        multiply_groups([&self.down], groups, gate, Some(&activate), [&mut *values], quantized, pool);

        match &self.shared {
            Some(shared) => {
                shared.expand(h, None, inner, quantized, pool);
                shared.contract(h, inner, quantized, pool);
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
        });
    }
}

impl ExpertRows {
    /// Gives each choice a slot: those of the first expert first, each expert's in the order of the rows.
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
            // Grows to its end below.
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
