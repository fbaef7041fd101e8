//! Memory that an encoder works in, and how far the pass in it has come.

use std::ops::Range;
use std::sync::atomic::AtomicBool;

use super::super::cache::{CacheShape, KvCache};
use super::sizes::Sizes;
use crate::Error;
use crate::kernels::Floats;
use crate::kernels::attention::TILE;
use crate::kernels::matrix::Activations;

/// Most texts of a pass.
pub(crate) const MAX_TEXTS: usize = 128;
/// Rows of a pass, unless the context asks for more.
const PASS_ROWS: usize = 512;

/// Activations of up to `rows` rows.
pub(crate) struct Workspace {
    /// Most rows of a pass.
    pub(crate) rows: usize,
    /// Rows of each text of the pass.
    pub(super) texts: Vec<Range<usize>>,
    /// The next layer to be computed.
    pub(super) layer: usize,
    /// Whether every row was finite up to now.
    pub(super) finite: Vec<AtomicBool>,
    /// The residual stream, `width` a row, and what is added to it.
    pub(super) x: Floats,
    pub(super) h: Floats,
    pub(super) query: Floats,
    pub(super) key: Floats,
    pub(super) value: Floats,
    /// All three, where they come from one matrix.
    pub(super) fused: Floats,
    pub(super) attention: Floats,
    pub(super) inner: Floats,
    /// Keys and values of one layer of each text.
    pub(super) caches: Vec<KvCache>,
    /// Attention's scratch for all threads.
    pub(super) tiles: Floats,
    pub(super) quantized: Activations,
}

impl Workspace {
    /// Room for passes of some texts, and for two texts as long as the context.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where the system has no more.
    pub(super) fn new(sizes: &Sizes, fused: bool, threads: usize) -> Result<Workspace, Error> {
        let rows = pass_rows(sizes);
        let zeros = |count: usize| {
            Floats::zeros(count).ok_or_else(|| Error::OutOfMemory {
                what: "the workspace of an encoder".to_owned(),
                needed_mb: Workspace::bytes(sizes, threads).div_ceil(1 << 20),
                limit_mb: None,
            })
        };
        let row = |width: usize| zeros(rows * width);
        let width = sizes.width;
        Ok(Workspace {
            rows,
            texts: Vec::with_capacity(MAX_TEXTS),
            layer: 0,
            finite: (0..rows).map(|_| AtomicBool::new(true)).collect(),
            x: row(width)?,
            h: row(width)?,
            query: row(width)?,
            key: row(width)?,
            value: row(width)?,
            fused: if fused { row(3 * width)? } else { Floats::default() },
            attention: row(width)?,
            inner: row(sizes.feed_forward)?,
            caches: Vec::new(),
            tiles: zeros(sizes.heads.scratch_len(rows) * threads)?,
            quantized: Activations::default(),
        })
    }

    /// Bytes that a workspace takes, keys and values included.
    pub(super) fn bytes(sizes: &Sizes, threads: usize) -> u64 {
        let rows = pass_rows(sizes);
        // The last one is what activations are quantized to, generously.
        let row = 9 * sizes.width + 2 * sizes.feed_forward;
        let floats = row.saturating_mul(rows).saturating_add(sizes.heads.scratch_len(rows) * threads);
        let blocks = MAX_TEXTS + rows.div_ceil(TILE);
        (floats * size_of::<f32>()) as u64 + blocks as u64 * shape(sizes).block_bytes()
    }
}

/// Most rows of a pass: two texts that fill the context fit in, to be compared.
fn pass_rows(sizes: &Sizes) -> usize {
    (2 * sizes.context_length).max(PASS_ROWS)
}

/// Sizes of the keys and values of a layer.
pub(super) fn shape(sizes: &Sizes) -> CacheShape {
    CacheShape::new(1, sizes.heads)
}
