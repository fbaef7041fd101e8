//! Layers other than attention, as tensors: short convolutions and delta nets. Their state has the same size
//! behind every position of a text ([`LayerMemory`]).

use candle_core::Tensor;

use super::Pass;
use super::layer_memory::LayerMemory;
use super::layers::{CandleDense, CandleMatrix, CandleNorm, WeightSource};
use super::raised;
use super::state::CandleState;
use crate::Error;
use crate::model::spec::{DeltaNetSpec, NormSpec, ShortConvSpec};

/// A causal convolution of each channel by itself.
pub(super) struct Convolution {
    /// The weights of each tap, the oldest first, `[1, channels]`.
    taps: Vec<Tensor>,
}

impl Convolution {
    pub(super) fn load(
        source: WeightSource<'_>,
        name: &str,
        taps: usize,
        channels: usize,
    ) -> Result<Convolution, Error> {
        let weights = source.floats(name, &[taps, channels])?;
        let tap = |tap: usize| weights.narrow(1, tap, 1)?.t()?.contiguous();
        let taps = (0..taps).map(tap).collect::<candle_core::Result<_>>().map_err(raised)?;
        Ok(Convolution { taps })
    }

    /// The convolution of the rows `[rows, channels]` behind a window: the sums, and all inputs, the window
    /// before the rows.
    pub(super) fn forward(&self, window: &Tensor, x: &Tensor) -> candle_core::Result<(Tensor, Tensor)> {
        let (inputs, rows) = (Tensor::cat(&[window, x], 0)?, x.dim(0)?);
        let mut sum = x.zeros_like()?;
        for (first, tap) in self.taps.iter().enumerate() {
            sum = (sum + inputs.narrow(0, first, rows)?.broadcast_mul(tap)?)?;
        }
        Ok((sum, inputs))
    }

    /// The window behind so many rows.
    pub(super) fn window(&self, inputs: &Tensor, rows: usize) -> candle_core::Result<Tensor> {
        // A copy, so that it does not keep all inputs of the pass.
        inputs.narrow(0, rows, self.taps.len() - 1)?.copy()
    }
}

/// A short convolution between two gates.
pub(super) struct CandleShortConv {
    channels: usize,
    /// The projection to both gates and the input.
    input: CandleDense,
    convolution: Convolution,
    output: CandleDense,
}

impl CandleShortConv {
    /// Loads the short convolution of a block, whose tensors `name` names.
    ///
    /// # Errors
    /// As [`CandleDense::load`].
    pub(super) fn load(
        source: WeightSource<'_>,
        name: &dyn Fn(&str) -> String,
        spec: ShortConvSpec,
    ) -> Result<CandleShortConv, Error> {
        let ShortConvSpec { channels, taps } = spec;
        let weights = name("shortconv.conv.weight");
        Ok(CandleShortConv {
            channels,
            input: CandleDense::load(source, &name("shortconv.in_proj"), channels, 3 * channels)?,
            convolution: Convolution::load(source, &weights, taps, channels)?,
            output: CandleDense::load(source, &name("shortconv.out_proj"), channels, channels)?,
        })
    }

    /// The result for the rows `[rows, channels]` of one sequence, as
    /// [`super::attention::CandleAttention::forward`].
    pub(super) fn forward(
        &self,
        x: &Tensor,
        index: usize,
        pass: &Pass<'_>,
        state: &mut CandleState,
    ) -> candle_core::Result<Tensor> {
        let mixed = self.input.forward(x, pass.pool)?;
        let part = |part: usize| mixed.narrow(1, part * self.channels, self.channels);
        let memory = state.memory(index)?;
        let (sum, inputs) = self.convolution.forward(&memory.window, &(part(0)? * part(2)?)?)?;
        for rows in state.marks() {
            let window = self.convolution.window(&inputs, rows)?;
            state.remember(index, rows, LayerMemory { window, matrices: None });
        }
        self.output.forward(&(part(1)? * sum)?.contiguous()?, pass.pool)
    }
}

/// A gated delta net.
pub(super) struct CandleDeltaNet {
    spec: DeltaNetSpec,
    /// The projections to queries, keys and values, to the result's gate, to decays and to shares.
    projections: [CandleMatrix; 4],
    convolution: Convolution,
    decay_bias: Vec<f32>,
    /// `[value heads]`, below 0.
    rates: Vec<f32>,
    norm: CandleNorm,
    epsilon: f32,
    /// The key head of each value head.
    key_heads: Tensor,
    output: CandleDense,
}

impl CandleDeltaNet {
    /// Loads the delta net of a block, whose tensors `name` names.
    ///
    /// # Errors
    /// As [`CandleDense::load`] and [`CandleNorm::load`].
    pub(super) fn load(
        source: WeightSource<'_>,
        name: &dyn Fn(&str) -> String,
        spec: DeltaNetSpec,
        norm: NormSpec,
        width: usize,
    ) -> Result<CandleDeltaNet, Error> {
        let matrix = |part: &str, outputs| CandleMatrix::load(source, &name(part), width, outputs);
        let numbers = |part: &str| crate::model::vector(source.gguf, &name(part), spec.value_heads);
        let heads: Vec<u32> = (0..spec.value_heads).map(|head| (head % spec.key_heads) as u32).collect();
        Ok(CandleDeltaNet {
            spec,
            projections: [
                matrix("attn_qkv.weight", spec.channels())?,
                matrix("attn_gate.weight", spec.value_width())?,
                matrix("ssm_alpha.weight", spec.value_heads)?,
                matrix("ssm_beta.weight", spec.value_heads)?,
            ],
            convolution: Convolution::load(source, &name("ssm_conv1d.weight"), spec.taps, spec.channels())?,
            decay_bias: numbers("ssm_dt.bias")?,
            rates: numbers("ssm_a")?,
            norm: CandleNorm::load(source, &name("ssm_norm"), norm, spec.dim)?,
            epsilon: norm.epsilon,
            key_heads: Tensor::new(heads, source.device).map_err(raised)?,
            output: CandleDense::load(source, &name("ssm_out"), spec.value_width(), width)?,
        })
    }

    /// The result for the rows `[rows, width]` of one sequence, as
    /// [`super::attention::CandleAttention::forward`].
    pub(super) fn forward(
        &self,
        x: &Tensor,
        index: usize,
        pass: &Pass<'_>,
        state: &mut CandleState,
    ) -> candle_core::Result<Tensor> {
        let DeltaNetSpec { key_heads, value_heads, dim, .. } = self.spec;
        let (rows, key_width) = (pass.rows, self.spec.key_width());
        let [inputs, gates, decays, shares] = self.projections.each_ref();
        let memory = state.memory(index)?;
        let (sum, inputs) = self.convolution.forward(&memory.window, &inputs.forward(x, pass.pool)?)?;
        let activated = sum.silu()?;
        let heads = |first: usize, count: usize| {
            activated.narrow(1, first, count * dim)?.contiguous()?.reshape((rows, count, dim))
        };
        // Each value head has the queries and keys of its key head.
        let of_keys = |first: usize, scale: f64| {
            let heads = heads(first, key_heads)?;
            let length = (heads.sqr()?.sum_keepdim(2)? + f64::from(self.epsilon))?.sqrt()?;
            (heads.broadcast_div(&length)? * scale)?.index_select(&self.key_heads, 1)
        };
        let queries = of_keys(0, 1.0 / (dim as f64).sqrt())?;
        let (keys, values) = (of_keys(key_width, 1.0)?, heads(2 * key_width, value_heads)?);
        let gates = gates.forward(x, pass.pool)?;
        let decays = self.decays(&decays.forward(x, pass.pool)?)?;
        let shares = candle_nn::ops::sigmoid(&shares.forward(x, pass.pool)?)?;
        let Some(mut matrices) = memory.matrices else { candle_core::bail!("a delta net without matrices") };
        let marks = state.marks();
        let mut outs = Vec::with_capacity(rows);
        for row in 0..rows {
            let of_row = |x: &Tensor| x.get(row)?.reshape((value_heads, 1, ()));
            let key = of_row(&keys)?;
            matrices = matrices.broadcast_mul(&of_row(&decays)?)?;
            let known = key.matmul(&matrices)?;
            let change = (of_row(&values)? - known)?.broadcast_mul(&of_row(&shares)?)?;
            matrices = (matrices + key.transpose(1, 2)?.broadcast_mul(&change)?)?;
            outs.push(of_row(&queries)?.matmul(&matrices)?.reshape((1, value_heads, dim))?);
            if marks.contains(&(row + 1)) {
                let window = self.convolution.window(&inputs, row + 1)?;
                state.remember(index, row + 1, LayerMemory { window, matrices: Some(matrices.clone()) });
            }
        }
        let out = self.norm.forward(&Tensor::cat(&outs, 0)?)?.reshape((rows, value_heads * dim))?;
        self.output.forward(&(out * gates.silu()?)?, pass.pool)
    }

    /// `exp(rate · softplus(x + bias))` of `[rows, value heads]`.
    fn decays(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        let mut values = x.flatten_all()?.to_vec1::<f32>()?;
        for row in values.chunks_exact_mut(self.rates.len()) {
            for ((x, bias), rate) in row.iter_mut().zip(&self.decay_bias).zip(&self.rates) {
                *x = libm::exp(f64::from(*rate) * softplus(*x + bias)) as f32;
            }
        }
        Tensor::from_vec(values, x.dims(), x.device())
    }
}

/// `ln(1 + exp(x))`.
pub(super) fn softplus(x: f32) -> f64 {
    let x = f64::from(x);
    // NaN stays NaN.
    if x.is_nan() { x } else { x.max(0.0) + libm::log1p(libm::exp(-x.abs())) }
}
