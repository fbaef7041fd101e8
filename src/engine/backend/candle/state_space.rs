//! Selective state spaces as tensors.

use candle_core::Tensor;

use super::Pass;
use super::layer_memory::LayerMemory;
use super::layers::{CandleDense, CandleMatrix, WeightSource};
use super::raised;
use super::recurrent::{Convolution, softplus};
use super::state::CandleState;
use crate::Error;
use crate::model::floats;
use crate::model::spec::{NormSpec, StateSpaceSpec};

/// The weights of a state space.
pub(super) struct CandleStateSpace {
    spec: StateSpaceSpec,
    /// The joint projection to gates, to the convolution's input, and to steps.
    input: CandleMatrix,
    convolution: Convolution,
    convolution_bias: Option<Tensor>,
    /// `[heads]`.
    step_bias: Vec<f32>,
    /// `[heads]`, below 0.
    rates: Vec<f32>,
    /// `[heads, 1, 1]`.
    skips: Tensor,
    /// `[groups, elements of a group]`, of the norm of each group's results.
    norm_weights: Tensor,
    epsilon: f64,
    /// The group of each head.
    groups: Tensor,
    output: CandleDense,
}

impl CandleStateSpace {
    /// Loads the state space of a block, whose tensors `name` names.
    ///
    /// # Errors
    /// As [`CandleDense::load`].
    pub(super) fn load(
        source: WeightSource<'_>,
        name: &dyn Fn(&str) -> String,
        spec: StateSpaceSpec,
        norm: NormSpec,
        width: usize,
    ) -> Result<CandleStateSpace, Error> {
        let (channels, values, heads) = (spec.channels(), spec.width(), spec.heads);
        let of_a_group = values / spec.groups;
        let shape = [of_a_group, spec.groups];
        let shape = if spec.groups == 1 { &shape[..1] } else { &shape[..] };
        let group = |head: usize| (head / (heads / spec.groups)) as u32;
        let bias = name("ssm_conv1d.bias");
        let convolution_bias = match source.gguf.opt_tensor(&bias)? {
            Some(_) => Some(source.vector(&bias, channels)?),
            None => None,
        };
        let groups: Vec<u32> = (0..heads).map(group).collect();
        let norms = source.floats(&name("ssm_norm.weight"), shape)?;
        Ok(CandleStateSpace {
            spec,
            input: CandleMatrix::load(source, &name("ssm_in.weight"), width, values + channels + heads)?,
            convolution: Convolution::load(source, &name("ssm_conv1d.weight"), spec.taps, channels)?,
            convolution_bias,
            step_bias: crate::model::vector(source.gguf, &name("ssm_dt.bias"), heads)?,
            rates: floats(source.gguf, &name("ssm_a"), &[1, heads])?,
            skips: source.floats(&name("ssm_d"), &[1, heads])?.reshape((heads, 1, 1)).map_err(raised)?,
            norm_weights: norms.reshape((spec.groups, of_a_group)).map_err(raised)?,
            epsilon: f64::from(norm.epsilon),
            groups: Tensor::new(groups, source.device).map_err(raised)?,
            output: CandleDense::load(source, &name("ssm_out"), values, width)?,
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
        let StateSpaceSpec { heads, dim, groups, state: kept, .. } = self.spec;
        let (rows, values, channels) = (pass.rows, self.spec.width(), self.spec.channels());
        let projected = self.input.forward(x, pass.pool)?;
        let gates = projected.narrow(1, 0, values)?;
        let memory = state.memory(index)?;
        let mixed = projected.narrow(1, values, channels)?.contiguous()?;
        let (sum, inputs) = self.convolution.forward(&memory.window, &mixed)?;
        let sum = match &self.convolution_bias {
            Some(bias) => sum.broadcast_add(bias)?,
            None => sum,
        };
        let activated = sum.silu()?;
        let heads_in = activated.narrow(1, 0, values)?.reshape((rows, heads, dim))?;
        // Each head has the vectors of its group.
        let of_groups = |first: usize| {
            let part = activated.narrow(1, first, groups * kept)?.contiguous()?;
            part.reshape((rows, groups, kept))?.index_select(&self.groups, 1)
        };
        let (written, read) = (of_groups(values)?, of_groups(values + groups * kept)?);
        let [steps, decays] = self.steps(&projected.narrow(1, values + channels, heads)?)?;
        let Some(mut matrices) = memory.matrices else {
            candle_core::bail!("a state space without matrices")
        };
        let marks = state.marks();
        let mut outs = Vec::with_capacity(rows);
        for row in 0..rows {
            let of_row = |x: &Tensor| x.get(row)?.reshape((heads, 1, ()));
            let x = of_row(&heads_in)?;
            let change = x.broadcast_mul(&of_row(&steps)?)?;
            let change = of_row(&written)?.transpose(1, 2)?.broadcast_mul(&change)?;
            matrices = (matrices.broadcast_mul(&of_row(&decays)?)? + change)?;
            let out = (of_row(&read)?.matmul(&matrices)? + x.broadcast_mul(&self.skips)?)?;
            outs.push(out.reshape((1, values))?);
            if marks.contains(&(row + 1)) {
                let window = self.convolution.window(&inputs, row + 1)?;
                state.remember(index, row + 1, LayerMemory { window, matrices: Some(matrices.clone()) });
            }
        }
        let out = (Tensor::cat(&outs, 0)? * gates.silu()?)?.reshape((rows, groups, values / groups))?;
        let size = (out.sqr()?.mean_keepdim(2)? + self.epsilon)?.sqrt()?;
        let out = out.broadcast_div(&size)?.broadcast_mul(&self.norm_weights)?.reshape((rows, values))?;
        self.output.forward(&out, pass.pool)
    }

    /// Steps and decays of `[rows, heads]`: `softplus(x + bias)`, and `exp(rate · softplus(x + bias))`.
    fn steps(&self, x: &Tensor) -> candle_core::Result<[Tensor; 2]> {
        let mut steps = x.flatten_all()?.to_vec1::<f32>()?;
        let mut decays = vec![0.0f32; steps.len()];
        let heads = self.rates.len();
        for (index, (step, decay)) in steps.iter_mut().zip(&mut decays).enumerate() {
            let positive = softplus(*step + self.step_bias[index % heads]);
            *decay = libm::exp(f64::from(self.rates[index % heads]) * positive) as f32;
            *step = positive as f32;
        }
        let tensor = |values: Vec<f32>| Tensor::from_vec(values, x.dims(), x.device());
        Ok([tensor(steps)?, tensor(decays)?])
    }
}
