//! The rows of a pass that belong to one sequence, with the state of the sequence.

use std::sync::Arc;

use super::disjoint::Disjoint;
use super::tile::KvCacheType;

/// Rows of one sequence that attend together.
///
/// There is one block for each tile of positions. The layer's tiles begin at some offset in each block, its
/// key-value heads one after the other ([`KvCacheType::tile_len`] each).
pub(crate) struct Rows<'a> {
    /// The type of the keys and values in the blocks.
    pub(crate) kind: KvCacheType,
    /// Blocks that are only read.
    pub(crate) done: &'a [Arc<Box<[u16]>>],
    /// The blocks after those, in which the rows' own keys and values are stored.
    pub(crate) open: Vec<Disjoint<'a, u16>>,
    /// Absolute position of the first row; row i attends to all positions up to `position + i`.
    pub(crate) position: usize,
    /// Number of rows.
    pub(crate) rows: usize,
    /// Index of the first row in queries and output.
    pub(crate) first_row: usize,
    /// The states of layers other than attention; None where the model has none.
    pub(crate) running: Option<RecurrentStates<'a>>,
    /// Whether each row attends to positions behind its own, too, as in encoders; `position` is 0 then.
    pub(crate) both_ways: bool,
}

/// The states of one sequence, those of all its layers one after the other.
pub(crate) struct RecurrentStates<'a> {
    /// The states behind the last row that is no guess.
    pub(crate) now: Disjoint<'a, f32>,
    /// The states behind the guesses; empty where there are none.
    pub(crate) ahead: Disjoint<'a, f32>,
    /// Rows that are no guesses.
    pub(crate) certain: usize,
}
