//! Feed-forward of a block: its weights, and its activation.

use super::layers::Dense;
use super::packed_weights::PackedWeights;
use super::spec::{FeedForwardKind, FeedForwardSpec};
use super::weights::{Matrix, multiply_all};
use super::workspace::InnerRows;
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::gelu::{exact_geglu, geglu, gelu, tanh_gelu};
use crate::kernels::matrix::{Activations, Make};
use crate::kernels::sparsity::keep_largest;
use crate::kernels::swiglu::swiglu;

/// The weights of feed-forward.
pub(super) struct FeedForward {
    spec: FeedForwardSpec,
    inner: InnerMatrices,
    pub(super) down: Dense,
}

/// The matrices that make the inner rows of feed-forward.
enum InnerMatrices {
    /// `activation(gate(x)) · up(x)`.
    Gated { gate: Matrix, up: Matrix },
    /// `activation(up(x))`.
    Plain { up: Dense },
}

impl FeedForward {
    /// The feed-forward of a block, whose tensors `name` names.
    ///
    /// # Errors
    /// As [`Dense::load`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &dyn Fn(&str) -> String,
        spec: FeedForwardSpec,
        width: usize,
    ) -> Result<FeedForward, Error> {
        let inner_width = spec.width;
        let dense = |part: &str, inputs, outputs| Dense::load(gguf, packed, &name(part), inputs, outputs);
        let matrix = |part: &str, outputs| {
            Matrix::load(gguf, &name(&format!("{part}.weight")), width, outputs)?.pack(packed)
        };
        let down = || dense("ffn_down", inner_width, width);
        Ok(match spec.kind {
            FeedForwardKind::SwiGlu | FeedForwardKind::TanhGeGlu | FeedForwardKind::GeGlu => {
                let has_gate = gguf.opt_tensor(&name("ffn_gate.weight"))?.is_some();
                let (gate, up) =
                    if has_gate || gguf.tensor(&name("ffn_up.weight"))?.shape == [width, inner_width] {
                        (matrix("ffn_gate", inner_width)?, matrix("ffn_up", inner_width)?)
                    } else {
                        // One matrix has the rows of both, those of the gate first.
                        let both = matrix("ffn_up", 2 * inner_width)?;
                        (both.part(0..inner_width)?, both.part(inner_width..2 * inner_width)?)
                    };
                FeedForward { spec, inner: InnerMatrices::Gated { gate, up }, down: down()? }
            }
            FeedForwardKind::ClampedSwiGlu => {
                return Err(gguf.unsupported("its gates are clamped, and it has no experts"));
            }
            FeedForwardKind::Gelu | FeedForwardKind::TanhGelu => {
                let up = dense("ffn_up", width, inner_width)?.with_bias();
                FeedForward { spec, inner: InnerMatrices::Plain { up }, down: down()?.with_bias() }
            }
        })
    }

    /// The inner rows before their activation, of rows `x` `[rows, width]`, which `make` makes first where it
    /// is given. `adapters` are those of the rows; only a feed-forward without gates has any.
    pub(super) fn expand(
        &self,
        x: &mut [f32],
        make: Option<Make<'_>>,
        adapters: &[u16],
        inner: &mut InnerRows,
        quantized: &mut Activations,
        pool: &Pool,
    ) {
        match &self.inner {
            InnerMatrices::Gated { gate, up } => {
                let values = x.len() / gate.inputs() * self.spec.width;
                let ys = [&mut inner.gate[..values], &mut inner.up[..values]];
                multiply_all([gate, up], x, make, ys, quantized, pool);
            }
            InnerMatrices::Plain { up } => {
                let values = x.len() / up.weight.inputs() * self.spec.width;
                up.weight.multiply(x, make, &mut inner.gate[..values], quantized, pool);
                up.adapt(adapters, x, &mut inner.gate[..values], pool);
            }
        }
    }

    /// Activates the inner rows and multiplies them, to `[rows, width]`, without the bias, which the end of
    /// the half adds.
    pub(super) fn contract(
        &self,
        y: &mut [f32],
        adapters: &[u16],
        inner: &mut InnerRows,
        quantized: &mut Activations,
        pool: &Pool,
    ) {
        let (instructions, width) = (pool.instructions(), self.spec.width);
        let values = y.len() / self.down.weight.outputs() * width;
        let InnerRows { gate, up } = inner;
        let up_row = |row: usize| &up[row * width..(row + 1) * width];
        let silu = |row: usize, gate: &mut [f32]| swiglu(instructions, gate, up_row(row));
        let gated_tanh_gelu = |row: usize, gate: &mut [f32]| {
            if let Some(deviations) = self.spec.cutoff {
                keep_largest(instructions, gate, deviations);
            }
            geglu(instructions, gate, up_row(row));
        };
        let exact_gelu = |row: usize, gate: &mut [f32]| exact_geglu(instructions, gate, up_row(row));
        let bias = match &self.inner {
            InnerMatrices::Plain { up } => up.bias.as_deref().unwrap_or_default(),
            InnerMatrices::Gated { .. } => &[],
        };
        let plain_gelu = |_: usize, inner: &mut [f32]| gelu(instructions, inner, bias);
        let plain_tanh_gelu = |_: usize, inner: &mut [f32]| tanh_gelu(instructions, inner, bias);
        let activate: Make<'_> = match self.spec.kind {
            FeedForwardKind::SwiGlu => &silu,
            FeedForwardKind::ClampedSwiGlu => unreachable!("experts only have it"),
            FeedForwardKind::TanhGeGlu => &gated_tanh_gelu,
            FeedForwardKind::GeGlu => &exact_gelu,
            FeedForwardKind::Gelu => &plain_gelu,
            FeedForwardKind::TanhGelu => &plain_tanh_gelu,
        };
        self.down.weight.multiply(&mut gate[..values], Some(activate), y, quantized, pool);
        self.down.adapt(adapters, &gate[..values], y, pool);
    }
}
