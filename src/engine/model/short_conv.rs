//! A short convolution between two gates, which LFM2 has in place of attention.

use std::sync::atomic::Ordering;

use super::layers::{Dense, Norm, normalised};
use super::packed_weights::PackedWeights;
use super::spec::ShortConvSpec;
use super::tensors::floats;
use super::workspace::Workspace;
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::convolution::Taps;
use crate::kernels::norm::sum_of_squares;
use crate::kernels::recurrence::StatePlace;
use crate::kernels::rows::Rows;

/// The weights of a short convolution.
pub(super) struct ShortConv {
    channels: usize,
    /// The projection to both gates and the input.
    input: Dense,
    taps: Taps,
    pub(super) output: Dense,
}

impl ShortConv {
    /// The convolution of a block, whose tensors `name` names.
    ///
    /// # Errors
    /// As [`Dense::load`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &dyn Fn(&str) -> String,
        spec: ShortConvSpec,
    ) -> Result<ShortConv, Error> {
        let ShortConvSpec { channels, taps } = spec;
        let weights = floats(gguf, &name("shortconv.conv.weight"), &[taps, channels])?;
        Ok(ShortConv {
            channels,
            input: Dense::load(gguf, packed, &name("shortconv.in_proj"), channels, 3 * channels)?,
            taps: Taps::new(taps, &weights),
            output: Dense::load(gguf, packed, &name("shortconv.out_proj"), channels, channels)?,
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
        let (instructions, channels) = (pool.instructions(), self.channels);
        let rows: usize = sequences.iter().map(|sequence| sequence.rows).sum();
        let Workspace { x, h, finite, mixed, attention, quantized, .. } = workspace;
        let finite = &finite[..];
        let (x, h) = (&mut x[..rows * channels], &mut h[..rows * channels]);
        let (bcx, y) = (&mut mixed[..3 * rows * channels], &mut attention[..rows * channels]);
        match norm {
            Some(norm) => {
                let make = normalised(norm, x, channels, finite, instructions);
                self.input.weight.multiply(h, Some(&make), bcx, quantized, pool);
            }
            None => self.input.weight.multiply(x, None, bcx, quantized, pool),
        }
        self.input.add_bias_to(bcx, pool);
        self.taps.gated(sequences, place, bcx, y, pool);
        let note = |row: usize, y: &mut [f32]| {
            if !sum_of_squares(instructions, y).is_finite() {
                finite[row].store(false, Ordering::Relaxed);
            }
        };
        self.output.weight.multiply(y, Some(&note), h, quantized, pool);
    }
}
