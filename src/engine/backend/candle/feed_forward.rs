//! Feed-forward of a block, as tensors: by one network, or by a mixture of experts.

use candle_core::Tensor;

use super::layers::{CandleDense, CandleMatrix, WeightSource};
use crate::Error;
use crate::kernels::Pool;
use crate::kernels::routing::Weighting;
use crate::model::spec::{ExpertsSpec, FeedForwardKind, FeedForwardSpec, SharedWeighting};

/// Bounds of [`FeedForwardKind::ClampedSwiGlu`], and the slope of its logistic function.
const LIMIT: f64 = 7.0;
const SLOPE: f64 = 1.702;

/// The weights of feed-forward.
pub(super) enum CandleFeedForward {
    Gated { kind: FeedForwardKind, gate: CandleMatrix, up: CandleMatrix, down: CandleDense },
    Plain { kind: FeedForwardKind, up: CandleDense, down: CandleDense },
    Experts(Box<CandleExperts>),
}

/// The weights of experts, one after the other in each matrix.
pub(super) struct CandleExperts {
    spec: ExpertsSpec,
    kind: FeedForwardKind,
    inner: usize,
    width: usize,
    /// `[experts, width]`.
    router: CandleDense,
    /// Gate and up, or the rows of both for each expert, those of the gate first.
    inputs: Inputs,
    down: CandleMatrix,
    /// The biases of gate, up and down: `[experts, outputs]`.
    biases: Option<[Tensor; 3]>,
    /// The expert that all rows use.
    shared: Option<CandleSharedExpert>,
}

/// The matrices that make the inner rows of experts.
enum Inputs {
    Apart([CandleMatrix; 2]),
    Fused(CandleMatrix),
}

/// The expert that all rows use.
struct CandleSharedExpert {
    expert: CandleFeedForward,
    /// `[width, 1]`: the result is multiplied with the logistic function of the product of this gate and the
    /// input.
    gate: Option<Tensor>,
}

impl CandleFeedForward {
    /// The feed-forward of a block, whose tensors `name` names.
    ///
    /// # Errors
    /// As [`CandleDense::load`].
    pub(super) fn load(
        source: WeightSource<'_>,
        name: &dyn Fn(&str) -> String,
        spec: FeedForwardSpec,
        width: usize,
    ) -> Result<CandleFeedForward, Error> {
        if let Some(experts) = spec.experts {
            let experts = CandleExperts::load(source, name, spec, experts, width)?;
            return Ok(CandleFeedForward::Experts(Box::new(experts)));
        }
        let (gguf, inner) = (source.gguf, spec.width);
        let down = CandleDense::load(source, &name("ffn_down"), inner, width)?;
        match spec.kind {
            FeedForwardKind::SwiGlu | FeedForwardKind::TanhGeGlu | FeedForwardKind::GeGlu => {
                let has_gate = gguf.opt_tensor(&name("ffn_gate.weight"))?.is_some();
                let load = |part: &str, outputs| CandleMatrix::load(source, &name(part), width, outputs);
                let (gate, up) = if has_gate || gguf.tensor(&name("ffn_up.weight"))?.shape == [width, inner] {
                    (load("ffn_gate.weight", inner)?, load("ffn_up.weight", inner)?)
                } else {
                    // One matrix has the rows of both, those of the gate first.
                    let both = load("ffn_up.weight", 2 * inner)?;
                    (both.part(0..inner), both.part(inner..2 * inner))
                };
                Ok(CandleFeedForward::Gated { kind: spec.kind, gate, up, down })
            }
            FeedForwardKind::ClampedSwiGlu => {
                Err(gguf.unsupported("its gates are clamped, and it has no experts"))
            }
            FeedForwardKind::Gelu | FeedForwardKind::TanhGelu => {
                let up = CandleDense::load(source, &name("ffn_up"), width, inner)?;
                Ok(CandleFeedForward::Plain { kind: spec.kind, up, down })
            }
        }
    }

    /// The result for the rows `[rows, width]`, of the same shape.
    pub(super) fn forward(&self, x: &Tensor, pool: &Pool) -> candle_core::Result<Tensor> {
        match self {
            CandleFeedForward::Gated { kind, gate, up, down } => {
                let inner = activate(*kind, &gate.forward(x, pool)?, &up.forward(x, pool)?)?;
                down.forward(&inner, pool)
            }
            CandleFeedForward::Plain { kind, up, down } => {
                let inner = up.forward(x, pool)?;
                let inner = match kind {
                    FeedForwardKind::TanhGelu => inner.gelu()?,
                    _ => inner.gelu_erf()?,
                };
                down.forward(&inner, pool)
            }
            CandleFeedForward::Experts(experts) => experts.forward(x, pool),
        }
    }
}

/// The activation of a gate, multiplied with the gated values.
pub(super) fn activate(kind: FeedForwardKind, gate: &Tensor, up: &Tensor) -> candle_core::Result<Tensor> {
    match kind {
        FeedForwardKind::SwiGlu => gate.silu()? * up,
        // Candle's `gelu` is the approximation by a hyperbolic tangent.
        FeedForwardKind::TanhGeGlu => gate.gelu()? * up,
        FeedForwardKind::GeGlu => gate.gelu_erf()? * up,
        FeedForwardKind::ClampedSwiGlu => {
            let (gate, up) = (gate.minimum(LIMIT)?, up.clamp(-LIMIT, LIMIT)?);
            let gate = (&gate * candle_nn::ops::sigmoid(&(&gate * SLOPE)?)?)?;
            gate * (up + 1.0)?
        }
        FeedForwardKind::Gelu => gate.gelu_erf(),
        FeedForwardKind::TanhGelu => gate.gelu(),
    }
}

impl CandleExperts {
    fn load(
        source: WeightSource<'_>,
        name: &dyn Fn(&str) -> String,
        spec: FeedForwardSpec,
        experts: ExpertsSpec,
        width: usize,
    ) -> Result<CandleExperts, Error> {
        let (inner, count) = (spec.width, experts.count);
        let matrices = |part: &str, inputs, outputs| {
            CandleMatrix::of_shape(source, &name(part), &[inputs, outputs, count])
        };
        let bias = |part: &str, outputs| source.floats(&name(part), &[outputs, count]);
        let biases = match spec.kind {
            FeedForwardKind::SwiGlu | FeedForwardKind::TanhGeGlu | FeedForwardKind::GeGlu => None,
            FeedForwardKind::ClampedSwiGlu => Some([
                bias("ffn_gate_exps.bias", inner)?,
                bias("ffn_up_exps.bias", inner)?,
                bias("ffn_down_exps.bias", width)?,
            ]),
            FeedForwardKind::Gelu | FeedForwardKind::TanhGelu => {
                return Err(source.gguf.unsupported("its experts have no gates"));
            }
        };
        let of_shared = |part: &str| match part.split_once('.') {
            Some((matrix, rest)) => name(&format!("{matrix}_shexp.{rest}")),
            None => name(&format!("{part}_shexp")),
        };
        let shared = experts.shared.map(|shared| {
            let spec = FeedForwardSpec { width: shared.width, experts: None, ..spec };
            let gate = match shared.weighting {
                SharedWeighting::Sum => None,
                SharedWeighting::Gate => {
                    let gate = source.vector(&name("ffn_gate_inp_shexp.weight"), width)?;
                    Some(gate.reshape((width, 1)).map_err(super::raised)?)
                }
                SharedWeighting::Norms => {
                    return Err(source.gguf.unsupported("its experts have norms of their own"));
                }
            };
            Ok(CandleSharedExpert { expert: CandleFeedForward::load(source, &of_shared, spec, width)?, gate })
        });
        let fused = name("ffn_gate_up_exps.weight");
        let has_parts = source.gguf.opt_tensor(&name("ffn_gate_exps.weight"))?.is_some();
        let inputs = match source.gguf.opt_tensor(&fused)? {
            Some(_) if has_parts => {
                return Err(source.gguf.unsupported(format!("tensor \"{fused}\" stands beside its parts")));
            }
            Some(_) => Inputs::Fused(matrices("ffn_gate_up_exps.weight", width, 2 * inner)?),
            None => Inputs::Apart([
                matrices("ffn_gate_exps.weight", width, inner)?,
                matrices("ffn_up_exps.weight", width, inner)?,
            ]),
        };
        Ok(CandleExperts {
            spec: experts,
            kind: spec.kind,
            inner,
            width,
            router: CandleDense::load(source, &name("ffn_gate_inp"), width, count)?,
            inputs,
            down: matrices("ffn_down_exps.weight", inner, width)?,
            biases,
            shared: shared.transpose()?,
        })
    }

    /// `Σ weight · expert(x)`, summed in the order of the experts for each row, whatever other rows there
    /// are.
    fn forward(&self, x: &Tensor, pool: &Pool) -> candle_core::Result<Tensor> {
        let users = self.choose(&self.router.forward(x, pool)?)?;
        let mut sum = match &self.shared {
            Some(shared) => shared.forward(x, pool)?,
            None => x.zeros_like()?,
        };
        for (expert, users) in users.into_iter().enumerate() {
            if users.is_empty() {
                continue;
            }
            let (rows, weights): (Vec<u32>, Vec<f32>) = users.into_iter().unzip();
            let weights = Tensor::from_vec(weights, (rows.len(), 1), x.device())?;
            let rows = Tensor::new(rows, x.device())?;
            let y = self.expert(expert, &x.index_select(&rows, 0)?, pool)?;
            sum = sum.index_add(&rows, &y.broadcast_mul(&weights)?, 0)?;
        }
        Ok(sum)
    }

    /// The result of one expert for some rows.
    fn expert(&self, expert: usize, x: &Tensor, pool: &Pool) -> candle_core::Result<Tensor> {
        // The rows of part `index` of `matrix`, whose parts have so many outputs.
        let part = |matrix: &CandleMatrix, index: usize, outputs: usize, bias: usize, x: &Tensor| {
            let y = matrix.part(index * outputs..(index + 1) * outputs).forward(x, pool)?;
            match &self.biases {
                Some(biases) => y.broadcast_add(&biases[bias].get(expert)?),
                None => Ok(y),
            }
        };
        let (gate, up) = match &self.inputs {
            Inputs::Apart([gate, up]) => {
                (part(gate, expert, self.inner, 0, x)?, part(up, expert, self.inner, 1, x)?)
            }
            Inputs::Fused(both) => {
                (part(both, 2 * expert, self.inner, 0, x)?, part(both, 2 * expert + 1, self.inner, 1, x)?)
            }
        };
        part(&self.down, expert, self.width, 2, &activate(self.kind, &gate, &up)?)
    }

    /// The rows that use each expert, with their weights: the experts with the highest logits, the lowest
    /// index of equal ones.
    fn choose(&self, logits: &Tensor) -> candle_core::Result<Vec<Vec<(u32, f32)>>> {
        let shares = candle_nn::ops::softmax_last_dim(logits)?.to_vec2::<f32>()?;
        let mut users = vec![Vec::new(); self.spec.count];
        for (row, (logits, shares)) in logits.to_vec2::<f32>()?.into_iter().zip(shares).enumerate() {
            let mut order: Vec<usize> = (0..logits.len()).collect();
            // NaN comes last, and both zeros are equal. The sort is stable, so that equal logits stay in the
            // order of their indexes.
            let height = |expert: usize| match logits[expert] {
                logit if logit.is_nan() => f32::NEG_INFINITY,
                logit => logit + 0.0,
            };
            order.sort_by(|a, b| height(*b).total_cmp(&height(*a)));
            let used = &order[..self.spec.used.min(order.len())];
            let whole = match self.spec.weighting {
                Weighting::Softmax => 1.0,
                Weighting::SoftmaxOfUsed => used.iter().map(|expert| shares[*expert]).sum::<f32>(),
            };
            for expert in used {
                users[*expert].push((row as u32, shares[*expert] / whole));
            }
        }
        Ok(users)
    }
}

impl CandleSharedExpert {
    /// The result for the rows `[rows, width]`, of the same shape.
    fn forward(&self, x: &Tensor, pool: &Pool) -> candle_core::Result<Tensor> {
        let y = self.expert.forward(x, pool)?;
        let Some(gate) = &self.gate else { return Ok(y) };
        // Row by row, as the order of a product's sums depends on its rows.
        let shares = (0..x.dim(0)?).map(|row| x.narrow(0, row, 1)?.matmul(gate));
        let shares = Tensor::cat(&shares.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        y.broadcast_mul(&candle_nn::ops::sigmoid(&shares)?)
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};

    use super::activate;
    use crate::model::spec::FeedForwardKind;

    #[test]
    fn a_clamped_gate_is_that_of_gpt_oss() {
        let tensor = |values: [f32; 3]| Tensor::new(&values, &Device::Cpu).unwrap();
        let got =
            activate(FeedForwardKind::ClampedSwiGlu, &tensor([9.0, -2.0, 0.5]), &tensor([8.0, -9.0, 0.0]));
        let got: Vec<f32> = got.unwrap().to_vec1().unwrap();
        let expected = |gate: f64, up: f64| gate / (1.0 + libm::exp(-1.702 * gate)) * (up + 1.0);
        for (got, expected) in got.iter().zip([expected(7.0, 7.0), expected(-2.0, -7.0), expected(0.5, 0.0)])
        {
            assert!((f64::from(*got) - expected).abs() < 1e-5, "{got} for {expected}");
        }
    }
}
