//! The decoder of the llama family: llama, qwen2 and qwen3 by configuration. Encoders are in [`encoder`].
//!
//! A forward pass takes rows of several sequences at once ([`Segment`]); each sequence brings its own
//! [`KvCache`]. Everything lies in plain slices of a preallocated [`Workspace`].
//!
//! Invariant: what a row computes depends on the tokens before it in its own sequence and on nothing else:
//! not on how they were cut into passes, nor on the other segments, nor on threads.

mod cache;
pub(crate) mod encoder;
mod hyperparameters;
mod layer;
mod packed_weights;
mod rank;
mod weights;
mod workspace;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::attention::{Projections, Rows, attend};
use crate::kernels::matrix::{Instructions, each_row};
use crate::kernels::norm::{rms_norm, rms_norm_heads, sum_of_squares};
use crate::kernels::swiglu::{add, swiglu};
use crate::mapping::Mapping;
use crate::memory::try_grow;
use layer::{Layer, Projection};
use packed_weights::PackedWeights;
use weights::{Matrix, multiply_all, vector};

pub(crate) use cache::{Block, CacheShape, KvCache};
pub(crate) use hyperparameters::{Hyperparameters, Pooling};
pub(crate) use packed_weights::Loading;
pub use packed_weights::{PackedState, verify_packed_weights};
pub(crate) use rank::RANK_HEAD;
use rank::RankHead;
pub(crate) use workspace::Workspace;

/// A loaded model.
pub(crate) struct Model {
    gguf: Gguf,
    /// What holds the panels, once there are some.
    panels: Option<Arc<Mapping>>,
    sizes: Hyperparameters,
    vocabulary: usize,
    embedding: Matrix,
    layers: Vec<Layer>,
    norm: Vec<f32>,
    head: Matrix,
    rank_head: Option<RankHead>,
}

/// The next tokens of one sequence.
pub(crate) struct Segment<'a> {
    /// Its cache, with room reserved for the tokens ([`KvCache::reserve`]).
    pub(crate) cache: &'a mut KvCache,
    /// At least one token; their positions follow those in the cache.
    pub(crate) tokens: &'a [u32],
    /// The rows whose final hidden state is wanted.
    pub(crate) wanted: Wanted,
    /// Set by the pass: the first position at which something was not finite.
    pub(crate) fault: Option<usize>,
}

impl Segment<'_> {
    fn note_fault(&mut self, position: usize) {
        self.fault = Some(self.fault.map_or(position, |first| first.min(position)));
    }
}

/// Rows of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wanted {
    None,
    First,
    /// This many at the end.
    Last(usize),
    All,
}

impl Wanted {
    /// How many of `rows` rows they are.
    pub(crate) fn count(self, rows: usize) -> usize {
        match self {
            Wanted::None => 0,
            Wanted::First => 1,
            Wanted::Last(count) => count,
            Wanted::All => rows,
        }
    }

    fn includes(self, row: usize, rows: usize) -> bool {
        match self {
            Wanted::None => false,
            Wanted::First => row == 0,
            Wanted::Last(count) => row + count >= rows,
            Wanted::All => true,
        }
    }
}

impl Model {
    /// Checks every tensor of the file, then maps or makes the panels of those that have some.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the key or the tensor;
    /// [`Error::OutOfMemory`], [`Error::Stopped`].
    pub(crate) fn load(gguf: &Gguf, loading: &Loading<'_>) -> Result<Model, Error> {
        // Without panels first: nothing is made or stored for a file that is refused.
        Model::assemble(gguf, None)?;
        gguf.check_lost()?;
        let panels = PackedWeights::open(gguf, loading)?;
        let mut model = Model::assemble(gguf, Some(&panels))?;
        model.panels = Some(panels.mapping());
        // What is looked up later comes back page by page.
        gguf.release_all();
        model.check_lost()?;
        Ok(model)
    }

    fn assemble(gguf: &Gguf, panels: Option<&PackedWeights>) -> Result<Model, Error> {
        let sizes = Hyperparameters::of(gguf)?;
        refuse_unknown_tensors(gguf, &sizes)?;
        let vocabulary = match gguf.tensor("token_embd.weight")?.shape {
            [_, rows] => *rows,
            other => return Err(gguf.corrupt(format!("tensor \"token_embd.weight\" has shape {other:?}"))),
        };
        let mut embedding = Matrix::load(gguf, "token_embd.weight", sizes.width, vocabulary)?;
        let head = match gguf.opt_tensor("output.weight")? {
            Some(_) => Matrix::load(gguf, "output.weight", sizes.width, vocabulary)?.pack(panels)?,
            None => {
                embedding = embedding.pack(panels)?;
                embedding.clone()
            }
        };
        let layers = (0..sizes.layers)
            .map(|index| Layer::load(gguf, panels, index, &sizes))
            .collect::<Result<Vec<_>, _>>()?;
        let norm = vector(gguf, "output_norm.weight", sizes.width)?;
        let rank_head = RankHead::load(gguf, sizes.width)?;
        Ok(Model {
            gguf: gguf.clone(),
            panels: None,
            sizes,
            vocabulary,
            embedding,
            layers,
            norm,
            head,
            rank_head,
        })
    }

    /// Whether everything that was computed up to now came from weights that were there.
    ///
    /// # Errors
    /// [`Error::LostModel`], naming the file.
    pub(crate) fn check_lost(&self) -> Result<(), Error> {
        packed_weights::check_lost(&self.gguf, self.panels.as_deref())
    }

    /// Sizes and constants.
    pub(crate) fn sizes(&self) -> &Hyperparameters {
        &self.sizes
    }

    /// Number of token ids, which is the number of logits.
    pub(crate) fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Sizes of its key-value caches.
    pub(crate) fn cache_shape(&self) -> CacheShape {
        CacheShape::new(self.sizes.layers, self.sizes.heads)
    }

    /// Memory for passes of up to `rows` rows, of which at most `wanted` go through the head.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub(crate) fn workspace(&self, rows: usize, wanted: usize, threads: usize) -> Result<Workspace, Error> {
        let mut workspace = Workspace::new(&self.sizes, rows, threads)?;
        try_grow("the logits of a model", &mut workspace.logits, wanted * self.vocabulary)?;
        let inner =
            self.sizes.feed_forward.max(self.sizes.heads.query * self.sizes.heads.dim).max(self.sizes.width);
        workspace.quantized.reserve(inner, rows, threads)?;
        Ok(workspace)
    }

    /// Bytes of memory that the weights of a file take: panels, and the tensors that stay as they are.
    pub(crate) fn weight_bytes(gguf: &Gguf) -> u64 {
        let (panels, replaced) = packed_weights::sizes(gguf);
        let tensors: u64 = gguf.tensors().map(|tensor| tensor.data.len() as u64).sum();
        panels.saturating_add(tensors.saturating_sub(replaced))
    }

    /// Bytes of the logits of `rows` rows.
    pub(crate) fn logit_bytes(gguf: &Gguf, rows: usize) -> u64 {
        let embedding = gguf.opt_tensor("token_embd.weight").ok().flatten();
        let vocabulary = embedding.and_then(|tensor| tensor.shape.get(1).copied()).unwrap_or(0);
        (vocabulary as u64).saturating_mul(rows as u64).saturating_mul(size_of::<f32>() as u64)
    }

    /// Bytes of [`Model::workspace`].
    pub(crate) fn workspace_bytes(sizes: &Hyperparameters, rows: usize, threads: usize) -> u64 {
        Workspace::bytes(sizes, rows, threads)
    }

    /// Computes the segments' rows, at most as many as the workspace has, and adds them to their caches.
    /// `interrupted` is asked between layers: once it says yes the pass ends, false is returned and the
    /// caches are as before.
    pub(crate) fn forward(
        &self,
        segments: &mut [Segment<'_>],
        workspace: &mut Workspace,
        pool: &Pool,
        interrupted: &dyn Fn() -> bool,
    ) -> bool {
        let rows: usize = segments.iter().map(|segment| segment.tokens.len()).sum();
        assert!(rows <= workspace.rows, "{rows} rows in a workspace of {}", workspace.rows);
        self.embed(segments, workspace);
        for (index, layer) in self.layers.iter().enumerate() {
            if interrupted() {
                return false;
            }
            self.attention(index, layer, segments, rows, workspace, pool);
            self.feed_forward(layer, segments, rows, workspace, pool);
        }
        self.finish(segments, workspace, pool.instructions());
        for segment in segments {
            segment.cache.advance(segment.tokens.len());
        }
        true
    }

    /// Final hidden states of the rows that the last pass was asked for, `width` each, in their order.
    pub(crate) fn hidden<'w>(&self, workspace: &'w Workspace) -> &'w [f32] {
        &workspace.hidden
    }

    /// Logits of some of those rows, `vocabulary` each.
    pub(crate) fn logits<'w>(&self, workspace: &'w mut Workspace, rows: &[usize], pool: &Pool) -> &'w [f32] {
        let width = self.sizes.width;
        let Workspace { hidden, head_input, logits, quantized, .. } = workspace;
        head_input.clear();
        for row in rows {
            head_input.extend_from_slice(&hidden[row * width..(row + 1) * width]);
        }
        logits.resize(rows.len() * self.vocabulary, 0.0);
        self.head.multiply(head_input, None, logits, quantized, pool);
        logits
    }

    /// [`Model::logits`] of two tokens only, bit for bit, without the rest of the head.
    pub(crate) fn logits_of(
        &self,
        workspace: &mut Workspace,
        rows: &[usize],
        tokens: [u32; 2],
        pool: &Pool,
    ) -> Vec<[f32; 2]> {
        let width = self.sizes.width;
        let Workspace { hidden, head_input, quantized, .. } = workspace;
        head_input.clear();
        for row in rows {
            head_input.extend_from_slice(&hidden[row * width..(row + 1) * width]);
        }
        let columns = tokens.map(|token| self.head.output(token as usize, head_input, quantized, pool));
        columns[0].iter().zip(&columns[1]).map(|(first, second)| [*first, *second]).collect()
    }

    /// What the head for ranking says of one of those rows; nothing without one.
    pub(crate) fn ranks(&self, workspace: &Workspace, row: usize, pool: &Pool) -> Vec<f32> {
        let width = self.sizes.width;
        let hidden = &workspace.hidden[row * width..(row + 1) * width];
        self.rank_head.as_ref().map(|head| head.outputs(hidden, pool.instructions())).unwrap_or_default()
    }

    /// Token embeddings into the residual stream, and the angles of the rows' positions.
    fn embed(&self, segments: &[Segment<'_>], workspace: &mut Workspace) {
        let pairs = self.sizes.rope.pairs();
        let xs = workspace.x.chunks_exact_mut(self.sizes.width);
        let angles = workspace.cos.chunks_exact_mut(pairs).zip(workspace.sin.chunks_exact_mut(pairs));
        let tokens = segments.iter().flat_map(|segment| (segment.cache.len()..).zip(segment.tokens));
        for (((position, token), x), (cos, sin)) in tokens.zip(xs).zip(angles) {
            self.embedding.row(*token as usize, x);
            self.sizes.rope.angles(position, cos, sin);
        }
    }

    /// `x += attention(norm(x))`, storing keys and values.
    fn attention(
        &self,
        index: usize,
        layer: &Layer,
        segments: &mut [Segment<'_>],
        rows: usize,
        workspace: &mut Workspace,
        pool: &Pool,
    ) {
        let heads = self.sizes.heads;
        let (width, query_width, kv_width) =
            (self.sizes.width, heads.query * heads.dim, heads.kv * heads.dim);
        let Workspace { x, h, finite, query, key, value, attention, cos, sin, tiles, quantized, .. } =
            workspace;
        let h = &mut h[..rows * width];
        let query = &mut query[..rows * query_width];
        let key = &mut key[..rows * kv_width];
        let value = &mut value[..rows * kv_width];
        let attention = &mut attention[..rows * query_width];
        let projections = [&layer.query, &layer.key, &layer.value];
        let layers = projections.map(|projection| &projection.weight);
        let make = self.norm(&layer.attention_norm, x, finite, pool.instructions());
        multiply_all(layers, h, Some(&make), [&mut *query, &mut *key, &mut *value], quantized, pool);
        drop(make);
        for (projection, target) in projections.into_iter().zip([&mut *query, &mut *key, &mut *value]) {
            add_bias(projection, target, pool);
        }
        let (pairs, epsilon, rope) = (self.sizes.rope.pairs(), self.sizes.norm_epsilon, &self.sizes.rope);
        let instructions = pool.instructions();
        let ready = |row: usize, queries: &mut [f32], key: &mut [f32]| {
            if let Some(norms) = &layer.head_norms
                && !(rms_norm_heads(instructions, queries, &norms.query, epsilon)
                    & rms_norm_heads(instructions, key, &norms.key, epsilon))
            {
                finite[row].store(false, Ordering::Relaxed);
            }
            let (cos, sin) = (&cos[row * pairs..(row + 1) * pairs], &sin[row * pairs..(row + 1) * pairs]);
            rope.rotate(instructions, queries, heads.dim, cos, sin);
            rope.rotate(instructions, key, heads.dim, cos, sin);
        };
        let mut first_row = 0;
        let mut offset = 0;
        let sequences: Vec<Rows<'_>> = segments
            .iter_mut()
            .map(|segment| {
                let (position, rows) = (segment.cache.len(), segment.tokens.len());
                offset = segment.cache.offset(index);
                let (done, open) = segment.cache.parts(rows);
                let sequence = Rows { done, open, position, rows, first_row, both_ways: false };
                first_row += rows;
                sequence
            })
            .collect();
        let projections = Projections { queries: query, fresh: Some((key, value)), ready: &ready };
        attend(heads, offset, &sequences, projections, attention, tiles, pool);
        drop(sequences);
        note_faults(segments, finite);
        layer.output.weight.multiply(attention, None, h, quantized, pool);
        add_bias(&layer.output, h, pool);
        add_rows(&mut x[..rows * width], h, width, pool);
    }

    /// `x += down(silu(gate(norm(x))) · up(norm(x)))`.
    fn feed_forward(
        &self,
        layer: &Layer,
        segments: &mut [Segment<'_>],
        rows: usize,
        workspace: &mut Workspace,
        pool: &Pool,
    ) {
        let Workspace { x, h, finite, gate, up, quantized, .. } = workspace;
        let h = &mut h[..rows * self.sizes.width];
        let gate = &mut gate[..rows * self.sizes.feed_forward];
        let up = &mut up[..rows * self.sizes.feed_forward];
        let make = self.norm(&layer.feed_forward_norm, x, finite, pool.instructions());
        multiply_all([&layer.gate, &layer.up], h, Some(&make), [&mut *gate, &mut *up], quantized, pool);
        drop(make);
        note_faults(segments, finite);
        let width = self.sizes.feed_forward;
        let instructions = pool.instructions();
        let activate =
            |row: usize, gate: &mut [f32]| swiglu(instructions, gate, &up[row * width..(row + 1) * width]);
        layer.down.multiply(gate, Some(&activate), h, quantized, pool);
        add_rows(&mut x[..rows * self.sizes.width], h, self.sizes.width, pool);
    }

    /// `norm(x)` of a row, noting whether it is finite.
    fn norm<'a>(
        &self,
        weight: &'a [f32],
        x: &'a [f32],
        finite: &'a [AtomicBool],
        instructions: Instructions,
    ) -> impl Fn(usize, &mut [f32]) + Sync + 'a {
        let (width, epsilon) = (self.sizes.width, self.sizes.norm_epsilon);
        move |row, h| {
            let sound = rms_norm(instructions, &x[row * width..(row + 1) * width], weight, epsilon, h);
            finite[row].store(sound, Ordering::Relaxed);
        }
    }

    /// The final norm of the rows that are wanted.
    fn finish(&self, segments: &mut [Segment<'_>], workspace: &mut Workspace, instructions: Instructions) {
        let width = self.sizes.width;
        let Workspace { x, hidden, .. } = workspace;
        hidden.clear();
        let mut xs = x.chunks_exact(width);
        for segment in segments {
            let rows = segment.tokens.len();
            for (row, x) in xs.by_ref().take(rows).enumerate() {
                let finite = if segment.wanted.includes(row, rows) {
                    let start = hidden.len();
                    hidden.resize(start + width, 0.0);
                    rms_norm(instructions, x, &self.norm, self.sizes.norm_epsilon, &mut hidden[start..])
                } else {
                    sum_of_squares(instructions, x).is_finite()
                };
                if !finite {
                    segment.note_fault(segment.cache.len() + row);
                }
            }
        }
    }
}

/// Notes the rows whose norm was not finite.
fn note_faults(segments: &mut [Segment<'_>], finite: &[AtomicBool]) {
    let mut finite = finite.iter();
    for segment in segments {
        for (row, finite) in finite.by_ref().take(segment.tokens.len()).enumerate() {
            if !finite.load(Ordering::Relaxed) {
                segment.note_fault(segment.cache.len() + row);
            }
        }
    }
}

fn add_bias(projection: &Projection, rows: &mut [f32], pool: &Pool) {
    if let Some(bias) = &projection.bias {
        let instructions = pool.instructions();
        each_row(rows, bias.len(), pool, &|_, row| add(instructions, row, bias));
    }
}

/// `x += h`.
fn add_rows(x: &mut [f32], h: &[f32], width: usize, pool: &Pool) {
    let instructions = pool.instructions();
    each_row(x, width, pool, &|row, x| add(instructions, x, &h[row * width..(row + 1) * width]));
}

/// A tensor that the decoder does not know would change the answer if it were left out.
fn refuse_unknown_tensors(gguf: &Gguf, sizes: &Hyperparameters) -> Result<(), Error> {
    for tensor in gguf.tensors() {
        let known = match tensor.name.strip_prefix("blk.").and_then(|rest| rest.split_once('.')) {
            Some((_, part)) => Layer::knows(part, sizes.architecture),
            None => {
                matches!(
                    tensor.name,
                    "token_embd.weight" | "output.weight" | "output_norm.weight" | "rope_freqs.weight"
                ) || tensor.name.starts_with("cls.")
            }
        };
        if !known {
            return Err(gguf.unsupported(format!("tensor \"{}\" has no place in the decoder", tensor.name)));
        }
    }
    Ok(())
}
