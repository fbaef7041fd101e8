//! Memory that the blocks of a model work in, allocated once per model.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};

use super::layers::Norm;
use super::spec::{BlockSpec, Mixer, ModelSpec, SharedWeighting};
use crate::Error;
use crate::kernels::matrix::{Activations, each_row};
use crate::kernels::rope::Rope;
use crate::kernels::streams::STREAMS;
use crate::kernels::{Floats, Pool};
use crate::memory::try_vec;

/// Activations of up to `rows` rows.
pub(crate) struct Workspace {
    /// Most rows of one forward pass.
    pub(super) rows: usize,
    /// Length of a row of `x` and `h`.
    pub(super) width: usize,
    /// The residual stream, `[rows, width]`.
    pub(super) x: Floats,
    /// The normalised input of a block's halves, and their result; `[rows, width]`.
    pub(super) h: Floats,
    /// The residual streams, `[rows, STREAMS, width]`, where there are several.
    pub(super) streams: Floats,
    /// A second term of the result of a half, `[rows, width]`: that of [`Laurel`](super::streams::Laurel)
    /// beside attention, or of the shared expert where experts have norms. Empty in most families.
    pub(super) beside: Floats,
    /// Whether all values of each row were finite up to now, as far as norms have seen them.
    pub(super) finite: Vec<AtomicBool>,
    /// Queries, `[rows, query heads * head_dim]` of the block with the most.
    pub(super) query: Floats,
    /// Keys and values, `[rows, kv heads * head_dim]` of the block with the most.
    pub(super) key: Floats,
    pub(super) value: Floats,
    /// The joint projection of a mixer before it is split, `[rows, length]` of the block with the longest.
    pub(super) mixed: Floats,
    /// The result of attention, as long as the queries.
    pub(super) attention: Floats,
    pub(super) inner: InnerRows,
    /// The embeddings of each row's token for all blocks, `[rows, per_layer_width]`; nothing in most
    /// families.
    pub(super) per_layer: Floats,
    pub(super) per_layer_width: usize,
    /// The embeddings that are looked up for a token, `[per_layer_width]`.
    pub(super) per_layer_row: Floats,
    pub(super) experts: ExpertRows,
    /// The position of each row in its sequence.
    pub(super) positions: Vec<usize>,
    /// The adapter of each row, [`NO_ADAPTER`](super::adapters::NO_ADAPTER) for one without; nothing where no
    /// row has one.
    pub(super) adapters: Vec<u16>,
    /// The angles of each row's position, for each rotation of the model.
    pub(super) angles: Vec<Angles>,
    /// Attention's scratch for all threads.
    pub(super) tiles: Floats,
    pub(super) quantized: Activations,
}

/// The inner rows of feed-forward, `[rows, inner width]` of the block with the longest.
pub(super) struct InnerRows {
    pub(super) gate: Floats,
    /// The second half of a gated one; nothing where no block is gated.
    pub(super) up: Floats,
}

/// Scratch of a mixture of experts, sized for the block that needs the most. A row has one slot for each
/// expert that it uses; slots are in the order of their experts.
pub(super) struct ExpertRows {
    /// `[rows, experts]`.
    pub(super) logits: Floats,
    /// The experts that each row uses, and their weights, `[rows, used]`.
    pub(super) chosen: Vec<u32>,
    pub(super) weights: Vec<f32>,
    /// The slots of each row, `[rows, used]`.
    pub(super) slots: Vec<u32>,
    /// The row and the expert of each slot.
    pub(super) owners: Vec<[u32; 2]>,
    /// The slots of each expert.
    pub(super) groups: Vec<Range<usize>>,
    /// The inputs of experts, then their results, `[slots, width]`.
    pub(super) values: Floats,
}

/// Cosines and sines, `[rows, pairs]` each.
pub(super) struct Angles {
    pub(super) cos: Floats,
    pub(super) sin: Floats,
}

/// The size of a workspace.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size {
    /// The purpose of the memory, as errors name it.
    pub(super) what: &'static str,
    pub(super) rows: usize,
    pub(super) threads: usize,
}

impl Workspace {
    /// Room for passes of this size.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the system has no more.
    pub(super) fn new(spec: &ModelSpec, size: Size) -> Result<Workspace, Error> {
        let zeros = |count: usize| {
            Floats::zeros(count).ok_or_else(|| Error::OutOfMemory {
                what: size.what.to_owned(),
                needed_mb: Workspace::bytes(spec, size).div_ceil(1 << 20),
                limit_mb: None,
            })
        };
        let row = |width: usize| zeros(size.rows * width);
        let widths = BlockWidths::of(spec);
        let angles = |rope: &Rope| -> Result<Angles, Error> {
            Ok(Angles { cos: row(rope.pairs())?, sin: row(rope.pairs())? })
        };
        Ok(Workspace {
            rows: size.rows,
            width: spec.width,
            x: row(spec.width)?,
            h: row(spec.width)?,
            streams: row(if spec.streams { STREAMS * spec.width } else { 0 })?,
            beside: row(if has_beside(spec) { spec.width } else { 0 })?,
            finite: (0..size.rows).map(|_| AtomicBool::new(true)).collect(),
            query: row(widths.query)?,
            key: row(widths.kv)?,
            value: row(widths.kv)?,
            mixed: row(widths.mixed)?,
            attention: row(widths.query)?,
            inner: InnerRows {
                gate: row(widths.inner)?,
                up: if widths.gated { row(widths.inner)? } else { Floats::default() },
            },
            per_layer: row(per_layer_width(spec))?,
            per_layer_width: per_layer_width(spec),
            per_layer_row: zeros(per_layer_width(spec))?,
            experts: ExpertRows {
                logits: row(widths.experts)?,
                chosen: try_vec(size.what, size.rows * widths.used)?,
                weights: try_vec(size.what, size.rows * widths.used)?,
                slots: try_vec(size.what, size.rows * widths.used)?,
                owners: try_vec(size.what, size.rows * widths.used)?,
                groups: try_vec(size.what, widths.experts)?,
                values: row(widths.used * spec.width)?,
            },
            positions: try_vec(size.what, size.rows)?,
            adapters: try_vec(size.what, size.rows)?,
            angles: spec.ropes.iter().map(angles).collect::<Result<_, _>>()?,
            tiles: zeros(scratch_len(spec, size.rows) * size.threads)?,
            quantized: Activations::default(),
        })
    }

    /// Bytes that a workspace takes.
    pub(super) fn bytes(spec: &ModelSpec, size: Size) -> u64 {
        let BlockWidths { query, kv, mixed, inner, gated, experts, used } = BlockWidths::of(spec);
        let pairs: usize = spec.ropes.iter().map(|rope| rope.pairs()).sum();
        let streams = if spec.streams { STREAMS } else { 0 } + usize::from(has_beside(spec));
        let row = (5 + streams) * spec.width
            + 2 * (query + kv)
            + mixed
            // The last of them is the quantized activations, counted generously.
            + (if gated { 3 } else { 2 }) * inner
            // The rows of experts, their quantized form, and the experts that use them.
            + experts + used * (2 * spec.width + 5)
            + 2 * pairs
            + per_layer_width(spec);
        let floats =
            row.saturating_mul(size.rows).saturating_add(scratch_len(spec, size.rows) * size.threads);
        (floats * size_of::<f32>()) as u64
    }

    /// The most values that are multiplied for a row.
    pub(super) fn longest_input(spec: &ModelSpec) -> usize {
        let BlockWidths { query, inner, used, .. } = BlockWidths::of(spec);
        inner.max(query).max(spec.width).max(used * spec.width)
    }

    /// Begins a pass of so many rows: all of them are finite as far as is known.
    pub(super) fn begin(&mut self, rows: usize) {
        self.finite[..rows].iter().for_each(|finite| finite.store(true, Ordering::Relaxed));
        self.positions.clear();
        self.adapters.clear();
    }

    /// Makes the angles of the rows' positions.
    pub(super) fn turn(&mut self, ropes: &[Rope]) {
        for (rope, Angles { cos, sin }) in ropes.iter().zip(&mut self.angles) {
            let angles = cos.chunks_exact_mut(rope.pairs()).zip(sin.chunks_exact_mut(rope.pairs()));
            for (position, (cos, sin)) in self.positions.iter().zip(angles) {
                rope.angles(*position, cos, sin);
            }
        }
    }

    /// `x = norm(x)` of the rows whose positions are known.
    pub(super) fn normalise(&mut self, norm: &Norm, pool: &Pool) {
        let (width, finite, instructions) = (self.width, &self.finite[..], pool.instructions());
        let x = &mut self.x[..self.positions.len() * width];
        each_row(x, width, pool, &|row, x| {
            if !norm.apply_in_place(instructions, x) {
                finite[row].store(false, Ordering::Relaxed);
            }
        });
    }
}

/// The longest rows of all blocks.
struct BlockWidths {
    query: usize,
    kv: usize,
    mixed: usize,
    inner: usize,
    /// Whether any block has two inner rows.
    gated: bool,
    /// Experts, and those that a row uses.
    experts: usize,
    used: usize,
}

impl BlockWidths {
    fn of(spec: &ModelSpec) -> BlockWidths {
        let most = |width: &dyn Fn(&BlockSpec) -> usize| spec.blocks.iter().map(width).max().unwrap_or(0);
        BlockWidths {
            query: most(&|block| {
                let of_mixer = match block.mixer {
                    Mixer::Attention => 0,
                    Mixer::ShortConv(conv) => conv.channels,
                    Mixer::DeltaNet(net) => net.value_width(),
                    Mixer::StateSpace(space) => space.width(),
                };
                of_mixer.max(block.attention.heads.query * block.attention.heads.dim)
            }),
            kv: most(&|block| {
                let of_mixer = match block.mixer {
                    Mixer::Attention | Mixer::ShortConv(_) => 0,
                    Mixer::DeltaNet(net) => net.value_heads,
                    Mixer::StateSpace(space) => space.heads,
                };
                of_mixer.max(block.attention.heads.kv * block.attention.heads.dim)
            }),
            mixed: most(&|block| match block.mixer {
                Mixer::Attention if block.attention.gated => {
                    2 * block.attention.heads.query * block.attention.heads.dim
                }
                Mixer::Attention => 0,
                Mixer::ShortConv(conv) => 3 * conv.channels,
                Mixer::DeltaNet(net) => net.channels(),
                Mixer::StateSpace(space) => space.channels(),
            }),
            inner: most(&|block| block.feed_forward.inner().max(block.laurel.unwrap_or(0)))
                .max(spec.per_layer.unwrap_or(0)),
            gated: spec.blocks.iter().any(|block| block.feed_forward.kind.gated()),
            experts: most(&|block| block.feed_forward.experts.map_or(0, |experts| experts.count)),
            used: most(&|block| block.feed_forward.experts.map_or(0, |experts| experts.used)),
        }
    }
}

/// Whether a block needs room for a second result beside the first.
fn has_beside(spec: &ModelSpec) -> bool {
    let shared = |block: &BlockSpec| block.feed_forward.experts.and_then(|experts| experts.shared);
    let norms = |block| shared(block).is_some_and(|shared| shared.weighting == SharedWeighting::Norms);
    spec.streams || spec.blocks.iter().any(norms)
}

/// Length of the embeddings of a token for all blocks.
fn per_layer_width(spec: &ModelSpec) -> usize {
    spec.per_layer.unwrap_or(0) * spec.blocks.len()
}

/// Values of attention's scratch for a thread.
fn scratch_len(spec: &ModelSpec, rows: usize) -> usize {
    spec.blocks.iter().map(|block| block.attention.heads.scratch_len(rows)).max().unwrap_or(0)
}
