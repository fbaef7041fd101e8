//! Memory that a forward pass works in, allocated once per model.

use std::sync::atomic::AtomicBool;

use super::hyperparameters::Hyperparameters;
use crate::Error;
use crate::kernels::Floats;
use crate::kernels::matrix::Activations;
use crate::memory::try_vec;

/// What takes the memory.
const WHAT: &str = "the workspace of a model";

/// Activations of up to `rows` rows.
pub(crate) struct Workspace {
    /// Most rows of one forward pass.
    pub(super) rows: usize,
    /// The residual stream, `width` a row.
    pub(super) x: Floats,
    /// The normalised input of a layer's halves, and their result; `width` a row.
    pub(super) h: Floats,
    /// Whether the norm of each row was finite.
    pub(super) finite: Vec<AtomicBool>,
    pub(super) query: Floats,
    pub(super) key: Floats,
    pub(super) value: Floats,
    pub(super) attention: Floats,
    pub(super) gate: Floats,
    pub(super) up: Floats,
    /// Cosines and sines of each row's position.
    pub(super) cos: Floats,
    pub(super) sin: Floats,
    /// Attention's scratch for all threads.
    pub(super) tiles: Floats,
    pub(super) quantized: Activations,
    /// Final hidden states of the rows that were asked for.
    pub(super) hidden: Vec<f32>,
    /// Those of them that go through the head.
    pub(super) head_input: Vec<f32>,
    pub(super) logits: Vec<f32>,
}

impl Workspace {
    /// Room for `rows` rows computed by `threads` threads.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the system has no more.
    pub(super) fn new(sizes: &Hyperparameters, rows: usize, threads: usize) -> Result<Workspace, Error> {
        let heads = sizes.heads;
        let zeros = |count: usize| {
            Floats::zeros(count).ok_or_else(|| Error::OutOfMemory {
                what: WHAT.to_owned(),
                needed_mb: Workspace::bytes(sizes, rows, threads).div_ceil(1 << 20),
                limit_mb: None,
            })
        };
        let row = |width: usize| zeros(rows * width);
        Ok(Workspace {
            rows,
            x: row(sizes.width)?,
            h: row(sizes.width)?,
            finite: (0..rows).map(|_| AtomicBool::new(true)).collect(),
            query: row(heads.query * heads.dim)?,
            key: row(heads.kv * heads.dim)?,
            value: row(heads.kv * heads.dim)?,
            attention: row(heads.query * heads.dim)?,
            gate: row(sizes.feed_forward)?,
            up: row(sizes.feed_forward)?,
            cos: row(sizes.rope.pairs())?,
            sin: row(sizes.rope.pairs())?,
            tiles: zeros(heads.scratch_len(rows) * threads)?,
            quantized: Activations::default(),
            hidden: try_vec(WHAT, rows * sizes.width)?,
            head_input: try_vec(WHAT, rows * sizes.width)?,
            logits: Vec::new(),
        })
    }

    /// Bytes that a workspace takes, apart from logits.
    pub(super) fn bytes(sizes: &Hyperparameters, rows: usize, threads: usize) -> u64 {
        let heads = sizes.heads;
        let row = 5 * sizes.width
            + 2 * (heads.query + heads.kv) * heads.dim
            // The last one is what activations are quantized to, generously.
            + 3 * sizes.feed_forward
            + 2 * sizes.rope.pairs();
        ((row * rows + heads.scratch_len(rows) * threads) * size_of::<f32>()) as u64
    }
}
