//! Attention of a block, as tensors.
//!
//! Each row is computed by itself, with products whose sizes follow from its position alone, because the
//! order in which candle sums depends on the sizes.

use candle_core::{D, Tensor};

use super::Pass;
use super::layers::{CandleDense, CandleNorm, WeightSource};
use super::state::CandleState;
use crate::Error;
use crate::kernels::rope::{Pairs, Rope};
use crate::model::spec::{AttentionSpec, QueryKeyNorm};

/// The weights of attention.
pub(super) struct CandleAttention {
    spec: AttentionSpec,
    /// The projection of queries, with the gate behind each head where there are gates.
    queries: CandleDense,
    /// The keys of a block that has its own.
    keys: Option<CandleDense>,
    values: Option<CandleDense>,
    /// Norms of queries and keys, of each head or of all heads of a row.
    norms: Option<(CandleNorm, Option<CandleNorm>)>,
    value_norm: Option<CandleNorm>,
    /// `[key-value heads, query heads of each, 1]`.
    sinks: Option<Tensor>,
    output: CandleDense,
}

impl CandleAttention {
    /// The attention of a block, whose tensors `name` names.
    ///
    /// # Errors
    /// As [`CandleDense::load`] and [`CandleNorm::load`].
    pub(super) fn load(
        source: WeightSource<'_>,
        name: &dyn Fn(&str) -> String,
        spec: AttentionSpec,
        width: usize,
    ) -> Result<CandleAttention, Error> {
        let heads = spec.heads;
        if spec.alibi.is_some() {
            return Err(source
                .gguf
                .unsupported("its scores fall with the distance, which candle's backend has no form for"));
        }
        let (query_width, kv_width) = (heads.query * heads.dim, heads.kv * heads.dim);
        let dense = |part: &str, outputs: usize| CandleDense::load(source, &name(part), width, outputs);
        let has_own = spec.shares.is_none();
        let has_all = source.gguf.opt_tensor(&name("attn_qkv.weight"))?.is_some() && !spec.gated;
        let (queries, keys, values) = if has_all {
            // One matrix has the rows of all three.
            let all = dense("attn_qkv", query_width + 2 * kv_width)?;
            let part = |start: usize, outputs: usize| all.part(start..start + outputs);
            (
                part(0, query_width)?,
                Some(part(query_width, kv_width)?),
                Some(part(query_width + kv_width, kv_width)?),
            )
        } else {
            let gates = if spec.gated { query_width } else { 0 };
            let own = |part: &str, is_there: bool| is_there.then(|| dense(part, kv_width)).transpose();
            let keys = own("attn_k", has_own)?;
            (dense("attn_q", query_width + gates)?, keys, own("attn_v", has_own && !spec.keys_are_values)?)
        };
        let norm = |part: &str, kind, length| CandleNorm::load(source, &name(part), kind, length);
        let norms = match spec.query_key_norm {
            None => None,
            Some(QueryKeyNorm::Head(kind)) => {
                let of_keys = has_own.then(|| norm("attn_k_norm", kind, heads.dim)).transpose()?;
                Some((norm("attn_q_norm", kind, heads.dim)?, of_keys))
            }
            Some(QueryKeyNorm::Row(kind)) => {
                Some((norm("attn_q_norm", kind, query_width)?, Some(norm("attn_k_norm", kind, kv_width)?)))
            }
        };
        let value_norm =
            spec.value_norm.map(|kind| CandleNorm::unweighted(source, kind, heads.dim)).transpose()?;
        let sinks = match spec.sinks {
            true => Some(source.floats(&name("attn_sinks.weight"), &[heads.query])?),
            false => None,
        };
        let sinks = sinks.map(|sinks| sinks.reshape((heads.kv, heads.query / heads.kv, 1)));
        let sinks = sinks.transpose().map_err(super::raised)?;
        let output = CandleDense::load(source, &name("attn_output"), query_width, width)?;
        Ok(CandleAttention { spec, queries, keys, values, norms, value_norm, sinks, output })
    }

    /// Attention for the rows `[rows, width]` of one sequence, `[rows, width]`. Keys and values go to layer
    /// `index` of its state, or come from the layer that the block shares them with.
    pub(super) fn forward(
        &self,
        x: &Tensor,
        index: usize,
        pass: &Pass<'_>,
        state: &CandleState,
    ) -> candle_core::Result<Tensor> {
        let heads = self.spec.heads;
        let (rows, query_width) = (pass.rows, heads.query * heads.dim);
        let projected = self.queries.forward(x, pass.pool)?;
        let (queries, gates) = if self.spec.gated {
            let both = projected.reshape((rows, heads.query, 2 * heads.dim))?;
            let gates = both.narrow(2, heads.dim, heads.dim)?.contiguous()?.reshape((rows, query_width))?;
            let queries = both.narrow(2, 0, heads.dim)?.contiguous()?.reshape((rows, query_width))?;
            (queries, Some(gates))
        } else {
            (projected, None)
        };
        let norms = self.norms.as_ref();
        let mut queries = self.prepare(&queries, norms.map(|(norm, _)| norm), heads.query, pass)?;
        if let Some(temperature) = self.spec.temperature {
            let factors: Vec<f32> = (pass.start..pass.start + rows).map(|at| temperature.at(at)).collect();
            let factors = Tensor::from_vec(factors, (1, rows, 1), queries.device())?;
            queries = queries.broadcast_mul(&factors)?;
        }
        if let Some(keys) = &self.keys {
            let keys = keys.forward(x, pass.pool)?;
            let values = match &self.values {
                Some(values) => values.forward(x, pass.pool)?,
                None => keys.clone(),
            };
            let keys = self.prepare(&keys, norms.and_then(|(_, norm)| norm.as_ref()), heads.kv, pass)?;
            let values = values.reshape((rows, heads.kv, heads.dim))?;
            let values = match &self.value_norm {
                Some(norm) => norm.forward(&values)?,
                None => values,
            };
            state.store(index, &keys, &values.transpose(0, 1)?.contiguous()?)?;
        }
        let mixed = self.attend(&queries, self.spec.shares.unwrap_or(index), pass, state)?;
        let mixed = match gates {
            Some(gates) => (mixed * candle_nn::ops::sigmoid(&gates)?)?,
            None => mixed,
        };
        self.output.forward(&mixed, pass.pool)
    }

    /// Heads `[heads, rows, dim]` of rows `[rows, heads · dim]`, normalised and rotated.
    fn prepare(
        &self,
        x: &Tensor,
        norm: Option<&CandleNorm>,
        heads: usize,
        pass: &Pass<'_>,
    ) -> candle_core::Result<Tensor> {
        let dim = self.spec.heads.dim;
        let of_heads = |x: &Tensor| x.reshape((pass.rows, heads, dim));
        let x = match (norm, self.spec.query_key_norm) {
            (Some(norm), Some(QueryKeyNorm::Row(_))) => of_heads(&norm.forward(x)?)?,
            (Some(norm), _) => norm.forward(&of_heads(x)?)?,
            (None, _) => of_heads(x)?,
        };
        let x = x.transpose(0, 1)?.contiguous()?;
        let Some(index) = self.spec.rope else { return Ok(x) };
        rotate(&pass.ropes[index], &x, &pass.angles[index])
    }

    /// The weighted sums of the values that each row sees: `[rows, query heads · dim]` of queries `[query
    /// heads, rows, dim]`.
    fn attend(
        &self,
        queries: &Tensor,
        layer: usize,
        pass: &Pass<'_>,
        state: &CandleState,
    ) -> candle_core::Result<Tensor> {
        let heads = self.spec.heads;
        let group = heads.query / heads.kv;
        let first_seen = |position: usize| match self.spec.span.window() {
            Some(window) => (position + 1).saturating_sub(window),
            None => 0,
        };
        let (keys, values, begin) = state.kept(layer, first_seen(pass.start), pass.start + pass.rows)?;
        let keys = keys.transpose(1, 2)?;
        let queries = queries.transpose(0, 1)?.contiguous()?;
        let mut rows = Vec::with_capacity(pass.rows);
        for row in 0..pass.rows {
            let position = pass.start + row;
            let seen = first_seen(position);
            let (from, count) = (seen - begin, position + 1 - seen);
            let query = queries.get(row)?.reshape((heads.kv, group, heads.dim))?;
            let mut scores = (query.matmul(&keys.narrow(2, from, count)?)? * f64::from(self.spec.scale))?;
            if let Some(cap) = self.spec.cap.map(f64::from) {
                scores = ((scores / cap)?.tanh()? * cap)?;
            }
            let weights = match &self.sinks {
                Some(sinks) => {
                    let with_sinks = Tensor::cat(&[&scores, sinks], D::Minus1)?;
                    candle_nn::ops::softmax_last_dim(&with_sinks)?.narrow(2, 0, count)?.contiguous()?
                }
                None => candle_nn::ops::softmax_last_dim(&scores)?,
            };
            let mixed = weights.matmul(&values.narrow(1, from, count)?)?;
            rows.push(mixed.reshape((1, heads.query * heads.dim))?);
        }
        Tensor::cat(&rows, 0)
    }
}

/// Turns heads `[heads, rows, dim]` by the angles of their rows, whose cosines and sines are `[rows, pairs]`.
fn rotate(rope: &Rope, x: &Tensor, [cos, sin]: &[Tensor; 2]) -> candle_core::Result<Tensor> {
    let (turned, dim) = (2 * rope.pairs(), x.dim(2)?);
    if turned == 0 {
        return Ok(x.clone());
    }
    let part = x.narrow(2, 0, turned)?.contiguous()?.unsqueeze(0)?;
    let part = match rope.kind() {
        Pairs::Halves => candle_nn::rotary_emb::rope(&part, cos, sin)?,
        Pairs::Interleaved => candle_nn::rotary_emb::rope_i(&part, cos, sin)?,
    };
    let part = part.squeeze(0)?;
    match dim - turned {
        0 => Ok(part),
        rest => Tensor::cat(&[&part, &x.narrow(2, turned, rest)?], 2),
    }
}
