//! One block of a model, a decoder's or an encoder's: its weights, and what it does with rows.
//!
//! The residual stream is `x` `[rows, width]`; all other rows are scratch of the [`Workspace`]. What is done to each row by
//! itself (norms, sums, activations) is done by the thread that quantizes the row for the next product, where there is one.

use std::sync::atomic::{AtomicBool, Ordering};

use super::packed_weights::PackedWeights;
use super::spec::{BlockSpec, FeedForwardKind, NormKind, NormSpec, Residual, Span};
use super::weights::{Matrix, multiply_all, opt_vector, vector};
use super::workspace::{Angles, Workspace};
use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::attention::{Projections, Rows, attend};
use crate::kernels::gelu::gelu;
use crate::kernels::matrix::{Activations, Instructions, Make, each_row};
use crate::kernels::norm::{layer_norm, rms_norm, rms_norm_heads};
use crate::kernels::rope::Rope;
use crate::kernels::swiglu::{add, swiglu};

/// The weights of one block, and what is computed with them.
pub(super) struct Block {
    spec: BlockSpec,
    attention: Attention,
    attention_norm: Norm,
    feed_forward: FeedForward,
    feed_forward_norm: Norm,
}

/// The weights of attention.
struct Attention {
    projections: QueryKeyValue,
    /// Norms of each query and key head, `[head_dim]` each.
    head_norms: Option<[Norm; 2]>,
    output: Dense,
}

/// Queries, keys and values of a row: three matrices, or one for all, as long as there are as many heads of each.
enum QueryKeyValue {
    Separate(Box<[Dense; 3]>),
    Fused(Dense),
}

/// The weights of feed-forward.
struct FeedForward {
    inner: Inner,
    down: Dense,
}

/// What makes the inner rows of feed-forward.
enum Inner {
    /// `silu(gate(x)) · up(x)`.
    SwiGlu { gate: Matrix, up: Matrix },
    /// `gelu(up(x))`.
    Gelu { up: Dense },
}

/// A matrix `[outputs, inputs]` with or without bias `[outputs]`.
pub(super) struct Dense {
    pub(super) weight: Matrix,
    pub(super) bias: Option<Vec<f32>>,
}

/// A norm of rows as long as its weight.
pub(super) enum Norm {
    Rms { weight: Vec<f32>, epsilon: f32 },
    Layer { weight: Vec<f32>, bias: Vec<f32>, epsilon: f32 },
}

impl Dense {
    /// `{name}.weight`, and `{name}.bias` if the file has it.
    ///
    /// # Errors
    /// Those of [`Matrix::load`] and [`Matrix::pack`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &str,
        inputs: usize,
        outputs: usize,
    ) -> Result<Dense, Error> {
        let weight = Matrix::load(gguf, &format!("{name}.weight"), inputs, outputs)?.pack(packed)?;
        Ok(Dense { weight, bias: opt_vector(gguf, &format!("{name}.bias"), outputs)? })
    }

    /// The same with a bias in any case, of zeros where the file has none.
    pub(super) fn with_bias(mut self) -> Dense {
        let outputs = self.weight.outputs();
        self.bias.get_or_insert_with(|| vec![0.0; outputs]);
        self
    }

    /// Adds the bias to a row `[outputs]`.
    pub(super) fn add_bias(&self, instructions: Instructions, row: &mut [f32]) {
        if let Some(bias) = &self.bias {
            add(instructions, row, bias);
        }
    }

    /// Adds the bias to rows `[rows, outputs]`.
    fn add_bias_to(&self, rows: &mut [f32], pool: &Pool) {
        if let Some(bias) = &self.bias {
            let instructions = pool.instructions();
            each_row(rows, bias.len(), pool, &|_, row| add(instructions, row, bias));
        }
    }
}

impl Norm {
    /// `{name}.weight` `[width]`, and `{name}.bias` `[width]` where the kind of norm has one.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where one is missing or has another length.
    pub(super) fn load(gguf: &Gguf, name: &str, spec: NormSpec, width: usize) -> Result<Norm, Error> {
        let weight = vector(gguf, &format!("{name}.weight"), width)?;
        let epsilon = spec.epsilon;
        Ok(match spec.kind {
            NormKind::Rms => Norm::Rms { weight, epsilon },
            NormKind::Layer => {
                Norm::Layer { weight, bias: vector(gguf, &format!("{name}.bias"), width)?, epsilon }
            }
        })
    }

    /// `out = norm(x)` of one row; false if it holds a value that is not finite.
    pub(super) fn apply(&self, instructions: Instructions, x: &[f32], out: &mut [f32]) -> bool {
        match self {
            Norm::Rms { weight, epsilon } => rms_norm(instructions, x, weight, *epsilon, out),
            Norm::Layer { .. } => {
                out.copy_from_slice(x);
                self.apply_in_place(instructions, out)
            }
        }
    }

    /// `x = norm(x)` of one row, or of each head in a row; false if it holds a value that is not finite.
    pub(super) fn apply_in_place(&self, instructions: Instructions, x: &mut [f32]) -> bool {
        match self {
            Norm::Rms { weight, epsilon } => rms_norm_heads(instructions, x, weight, *epsilon),
            Norm::Layer { weight, bias, epsilon } => {
                // All heads of a row are looked at, also behind one that is not finite.
                let heads = x.chunks_exact_mut(weight.len());
                heads.fold(true, |finite, x| layer_norm(instructions, x, weight, bias, *epsilon) & finite)
            }
        }
    }
}

impl Block {
    /// Block `index` of the file.
    ///
    /// # Errors
    /// Those of [`Dense::load`] and [`Norm::load`].
    pub(super) fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        index: usize,
        spec: &BlockSpec,
        width: usize,
    ) -> Result<Block, Error> {
        let name = |part: &str| format!("blk.{index}.{part}");
        let [attention_norm, feed_forward_norm] = match spec.residual {
            Residual::PreNorm => ["attn_norm", "ffn_norm"],
            Residual::PostNorm => ["attn_output_norm", "layer_output_norm"],
        };
        let norm = |part: &str| Norm::load(gguf, &name(part), spec.norm, width);
        Ok(Block {
            spec: *spec,
            attention_norm: norm(attention_norm)?,
            attention: Attention::load(gguf, packed, &name, spec, width)?,
            feed_forward_norm: norm(feed_forward_norm)?,
            feed_forward: FeedForward::load(gguf, packed, &name, spec, width)?,
        })
    }

    /// Whether its rows see those behind them too.
    pub(super) fn sees_both_ways(&self) -> bool {
        self.spec.attention.span == Span::BothWays
    }

    /// Values of a row of [`Workspace::fused`] that it needs.
    pub(super) fn fused_width(&self) -> usize {
        match &self.attention.projections {
            QueryKeyValue::Separate(_) => 0,
            QueryKeyValue::Fused(dense) => dense.weight.outputs(),
        }
    }

    /// Adds what the block makes of the rows to `x`. Their keys and values are stored in the state of the sequences, at
    /// `offset` in each block of positions. Rows in which a value was not finite are noted in [`Workspace::finite`].
    pub(super) fn forward(
        &self,
        sequences: &[Rows<'_>],
        offset: usize,
        ropes: &[Rope],
        workspace: &mut Workspace,
        pool: &Pool,
    ) {
        let rows = sequences.iter().map(|sequence| sequence.rows).sum();
        self.attend(sequences, offset, ropes, rows, workspace, pool);
        self.feed_forward(rows, workspace, pool);
    }

    /// With the norm before: `x += attention(norm(x))`. With the norm behind: `h = attention(x)`, which
    /// [`Block::feed_forward`] adds and normalises.
    fn attend(
        &self,
        sequences: &[Rows<'_>],
        offset: usize,
        ropes: &[Rope],
        rows: usize,
        workspace: &mut Workspace,
        pool: &Pool,
    ) {
        let instructions = pool.instructions();
        let spec = &self.spec.attention;
        let heads = spec.heads;
        let (width, query_width, kv_width) = (workspace.width, heads.query * heads.dim, heads.kv * heads.dim);
        let Workspace { x, h, finite, query, key, value, fused, attention, angles, tiles, quantized, .. } =
            workspace;
        let finite = &finite[..];
        let (x, h) = (&mut x[..rows * width], &mut h[..rows * width]);
        let query = &mut query[..rows * query_width];
        let key = &mut key[..rows * kv_width];
        let value = &mut value[..rows * kv_width];
        let attention = &mut attention[..rows * query_width];
        {
            let ys = [&mut *query, &mut *key, &mut *value];
            let projections = &self.attention.projections;
            match self.spec.residual {
                Residual::PreNorm => {
                    let make = normalised(&self.attention_norm, x, width, finite, instructions);
                    projections.project(h, Some(&make), ys, fused, quantized, pool);
                }
                Residual::PostNorm => projections.project(x, None, ys, fused, quantized, pool),
            }
        }
        let rope = spec.rope.map(|index| (&ropes[index], &angles[index]));
        let ready = |row: usize, queries: &mut [f32], key: &mut [f32]| {
            if let Some([query_norm, key_norm]) = &self.attention.head_norms
                && !(query_norm.apply_in_place(instructions, queries)
                    & key_norm.apply_in_place(instructions, key))
            {
                finite[row].store(false, Ordering::Relaxed);
            }
            if let Some((rope, Angles { cos, sin })) = rope {
                let pairs = rope.pairs();
                let (cos, sin) = (&cos[row * pairs..(row + 1) * pairs], &sin[row * pairs..(row + 1) * pairs]);
                rope.rotate(instructions, queries, heads.dim, cos, sin);
                rope.rotate(instructions, key, heads.dim, cos, sin);
            }
        };
        let scale = spec.scale;
        let projections = Projections { queries: query, fresh: Some((key, value)), ready: &ready, scale };
        attend(heads, offset, sequences, projections, attention, tiles, pool);
        let output = &self.attention.output;
        output.weight.multiply(attention, None, h, quantized, pool);
        if self.spec.residual == Residual::PreNorm {
            output.add_bias_to(h, pool);
            add_rows(x, h, width, pool);
        }
    }

    /// With the norm before: `x += down(inner(norm(x)))`. With the norm behind: `x = norm(x + h)`, then
    /// `x = norm(x + down(inner(x)))`.
    fn feed_forward(&self, rows: usize, workspace: &mut Workspace, pool: &Pool) {
        let instructions = pool.instructions();
        let (width, inner_width) = (workspace.width, self.spec.feed_forward.width);
        let Workspace { x, h, finite, gate, up, quantized, .. } = workspace;
        let finite = &finite[..];
        let (x, h) = (&mut x[..rows * width], &mut h[..rows * width]);
        let gate = &mut gate[..rows * inner_width];
        // Only some kinds have it.
        let up_rows = (rows * inner_width).min(up.len());
        let up = &mut up[..up_rows];
        let FeedForward { inner, down } = &self.feed_forward;
        match self.spec.residual {
            Residual::PreNorm => {
                let make = normalised(&self.feed_forward_norm, x, width, finite, instructions);
                inner.expand(h, &make, gate, up, quantized, pool);
            }
            Residual::PostNorm => {
                let (h, output, norm) = (&*h, &self.attention.output, &self.attention_norm);
                let make = |row: usize, x: &mut [f32]| {
                    add_and_normalise(h, output, norm, finite, instructions, row, x);
                };
                inner.expand(x, &make, gate, up, quantized, pool);
            }
        }
        let up = &*up;
        match inner {
            Inner::SwiGlu { .. } => {
                let activate = |row: usize, gate: &mut [f32]| {
                    swiglu(instructions, gate, &up[row * inner_width..(row + 1) * inner_width]);
                };
                down.weight.multiply(gate, Some(&activate), h, quantized, pool);
            }
            Inner::Gelu { up } => {
                let bias = up.bias.as_deref().unwrap_or_default();
                let activate = |_: usize, inner: &mut [f32]| gelu(instructions, inner, bias);
                down.weight.multiply(gate, Some(&activate), h, quantized, pool);
            }
        }
        match self.spec.residual {
            Residual::PreNorm => {
                down.add_bias_to(h, pool);
                add_rows(x, h, width, pool);
            }
            Residual::PostNorm => {
                let (h, norm) = (&*h, &self.feed_forward_norm);
                each_row(x, width, pool, &|row, x| {
                    add_and_normalise(h, down, norm, finite, instructions, row, x);
                });
            }
        }
    }
}

impl Attention {
    fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &dyn Fn(&str) -> String,
        spec: &BlockSpec,
        width: usize,
    ) -> Result<Attention, Error> {
        let heads = spec.attention.heads;
        let (query_width, kv_width) = (heads.query * heads.dim, heads.kv * heads.dim);
        let dense = |part: &str, inputs: usize, outputs: usize| {
            let dense = Dense::load(gguf, packed, &name(part), inputs, outputs)?;
            Ok(if spec.residual == Residual::PostNorm { dense.with_bias() } else { dense })
        };
        let projections = match gguf.opt_tensor(&name("attn_qkv.weight"))? {
            Some(_) => QueryKeyValue::Fused(dense("attn_qkv", width, query_width + 2 * kv_width)?),
            None => QueryKeyValue::Separate(Box::new([
                dense("attn_q", width, query_width)?,
                dense("attn_k", width, kv_width)?,
                dense("attn_v", width, kv_width)?,
            ])),
        };
        let head_norm = |part: &str, norm: NormSpec| Norm::load(gguf, &name(part), norm, heads.dim);
        let head_norms = match spec.attention.head_norm {
            Some(norm) => Some([head_norm("attn_q_norm", norm)?, head_norm("attn_k_norm", norm)?]),
            None => None,
        };
        Ok(Attention { projections, head_norms, output: dense("attn_output", query_width, width)? })
    }
}

impl QueryKeyValue {
    /// Queries `[rows, query heads * head_dim]`, keys and values `[rows, kv heads * head_dim]` of rows `x`
    /// `[rows, width]`, which `make` makes first where it is given. `fused` is scratch for all three.
    fn project(
        &self,
        x: &mut [f32],
        make: Option<Make<'_>>,
        mut ys: [&mut [f32]; 3],
        fused: &mut [f32],
        scratch: &mut Activations,
        pool: &Pool,
    ) {
        match self {
            QueryKeyValue::Separate(parts) => {
                let matrices = parts.each_ref().map(|part| &part.weight);
                multiply_all(matrices, x, make, ys.each_mut().map(|y| &mut **y), scratch, pool);
                for (part, y) in parts.iter().zip(ys) {
                    part.add_bias_to(y, pool);
                }
            }
            QueryKeyValue::Fused(dense) => {
                let outputs = dense.weight.outputs();
                let rows = x.len() / dense.weight.inputs();
                let fused = &mut fused[..rows * outputs];
                dense.weight.multiply(x, make, fused, scratch, pool);
                for (row, fused) in fused.chunks_exact_mut(outputs).enumerate() {
                    dense.add_bias(pool.instructions(), fused);
                    let mut rest = &*fused;
                    for y in &mut ys {
                        let width = y.len() / rows;
                        let (part, behind) = rest.split_at(width);
                        y[row * width..(row + 1) * width].copy_from_slice(part);
                        rest = behind;
                    }
                }
            }
        }
    }
}

impl FeedForward {
    fn load(
        gguf: &Gguf,
        packed: Option<&PackedWeights>,
        name: &dyn Fn(&str) -> String,
        spec: &BlockSpec,
        width: usize,
    ) -> Result<FeedForward, Error> {
        let inner_width = spec.feed_forward.width;
        let dense = |part: &str, inputs, outputs| Dense::load(gguf, packed, &name(part), inputs, outputs);
        let matrix = |part: &str| {
            Matrix::load(gguf, &name(&format!("{part}.weight")), width, inner_width)?.pack(packed)
        };
        Ok(match spec.feed_forward.kind {
            FeedForwardKind::SwiGlu => FeedForward {
                inner: Inner::SwiGlu { gate: matrix("ffn_gate")?, up: matrix("ffn_up")? },
                down: dense("ffn_down", inner_width, width)?,
            },
            FeedForwardKind::Gelu => FeedForward {
                inner: Inner::Gelu { up: dense("ffn_up", width, inner_width)?.with_bias() },
                down: dense("ffn_down", inner_width, width)?.with_bias(),
            },
        })
    }
}

impl Inner {
    /// The inner rows before their activation: into `gate` `[rows, inner width]`, and into `up` where there are two of
    /// them. `make` makes the rows of `x` `[rows, width]` first.
    fn expand(
        &self,
        x: &mut [f32],
        make: Make<'_>,
        gate_rows: &mut [f32],
        up_rows: &mut [f32],
        scratch: &mut Activations,
        pool: &Pool,
    ) {
        match self {
            Inner::SwiGlu { gate, up } => {
                multiply_all([gate, up], x, Some(make), [gate_rows, up_rows], scratch, pool);
            }
            Inner::Gelu { up } => up.weight.multiply(x, Some(make), gate_rows, scratch, pool),
        }
    }
}

/// Makes `h = norm(x)` of a row, noting where it is not finite.
fn normalised<'a>(
    norm: &'a Norm,
    x: &'a [f32],
    width: usize,
    finite: &'a [AtomicBool],
    instructions: Instructions,
) -> impl Fn(usize, &mut [f32]) + Sync + 'a {
    move |row, h| {
        if !norm.apply(instructions, &x[row * width..(row + 1) * width], h) {
            finite[row].store(false, Ordering::Relaxed);
        }
    }
}

/// Makes `x = norm(x + h + bias)` of a row, noting where it is not finite.
fn add_and_normalise(
    h: &[f32],
    dense: &Dense,
    norm: &Norm,
    finite: &[AtomicBool],
    instructions: Instructions,
    row: usize,
    x: &mut [f32],
) {
    let width = x.len();
    add(instructions, x, &h[row * width..(row + 1) * width]);
    dense.add_bias(instructions, x);
    if !norm.apply_in_place(instructions, x) {
        finite[row].store(false, Ordering::Relaxed);
    }
}

/// `x += h`, both `[rows, width]`.
fn add_rows(x: &mut [f32], h: &[f32], width: usize, pool: &Pool) {
    let instructions = pool.instructions();
    each_row(x, width, pool, &|row, x| add(instructions, x, &h[row * width..(row + 1) * width]));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_norm_in_place_gives_the_bytes_of_one_beside_it() {
        let instructions = Instructions::best();
        let weight: Vec<f32> = (0..40).map(|i| 1.0 + (i % 5) as f32 / 7.0).collect();
        let bias: Vec<f32> = (0..40).map(|i| (i % 3) as f32 - 1.0).collect();
        let mut x: Vec<f32> = (0..40).map(|i| ((i * 7919) % 2003) as f32 / 700.0 - 1.3).collect();
        for norm in [
            Norm::Rms { weight: weight.clone(), epsilon: 1e-6 },
            Norm::Layer { weight: weight.clone(), bias: bias.clone(), epsilon: 1e-6 },
        ] {
            let (mut beside, mut heads) = (vec![0.0; 40], [&x[..], &x[..]].concat());
            assert!(norm.apply(instructions, &x, &mut beside));
            assert!(norm.apply_in_place(instructions, &mut heads));
            assert!(heads.chunks_exact(40).all(|head| head == beside), "each head by itself");
            heads[3] = f32::NAN;
            assert!(!norm.apply_in_place(instructions, &mut heads));
        }
        x[7] = f32::INFINITY;
        let norm = Norm::Rms { weight, epsilon: 1e-6 };
        assert!(!norm.apply(instructions, &x, &mut [0.0; 40]));
    }
}
