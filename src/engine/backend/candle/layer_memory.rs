//! The state of layers other than attention.

use candle_core::{DType, Tensor};

use crate::model::spec::Mixer;

/// The state of a layer behind some position. Clones are cheap, and no position changes that of another one,
/// as tensors are never written.
#[derive(Debug, Clone)]
pub(super) struct LayerMemory {
    /// The last inputs of its convolution, the oldest first: `[taps - 1, channels]`.
    pub(super) window: Tensor,
    /// The matrices of a delta net: `[value heads, dim of keys, dim of values]`; those of a state space:
    /// `[heads, state, dim]`.
    pub(super) matrices: Option<Tensor>,
}

impl LayerMemory {
    /// Number of values that a mixer keeps; 0 for attention.
    pub(super) fn values(mixer: &Mixer) -> usize {
        match mixer {
            Mixer::Attention => 0,
            Mixer::ShortConv(spec) => spec.channels * (spec.taps - 1),
            Mixer::DeltaNet(spec) => {
                spec.channels() * (spec.taps - 1) + spec.value_heads * spec.dim * spec.dim
            }
            Mixer::StateSpace(spec) => spec.channels() * (spec.taps - 1) + spec.width() * spec.state,
        }
    }

    /// The state of a mixer before a text; `None` for attention.
    pub(super) fn empty(
        mixer: &Mixer,
        device: &candle_core::Device,
    ) -> candle_core::Result<Option<LayerMemory>> {
        let zeros = |shape: &[usize]| Tensor::zeros(shape, DType::F32, device);
        Ok(match mixer {
            Mixer::Attention => None,
            Mixer::ShortConv(spec) => {
                Some(LayerMemory { window: zeros(&[spec.taps - 1, spec.channels])?, matrices: None })
            }
            Mixer::DeltaNet(spec) => Some(LayerMemory {
                window: zeros(&[spec.taps - 1, spec.channels()])?,
                matrices: Some(zeros(&[spec.value_heads, spec.dim, spec.dim])?),
            }),
            Mixer::StateSpace(spec) => Some(LayerMemory {
                window: zeros(&[spec.taps - 1, spec.channels()])?,
                matrices: Some(zeros(&[spec.heads, spec.state, spec.dim])?),
            }),
        })
    }
}
