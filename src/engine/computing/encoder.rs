//! Models that make a vector or scores of a text.

use crate::Error;
use crate::kernels::Pool;

/// Most texts of a pass of an encoder.
pub(crate) const MAX_TEXTS: usize = 128;

/// Sizes and limits of an encoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EncoderFacts {
    /// Number of token ids.
    pub(crate) vocabulary: usize,
    /// Tokens that a text may have.
    pub(crate) context_length: usize,
    /// Number of scores that its head gives a text; 0 where it has none.
    pub(crate) scores_per_text: usize,
    /// Most rows of a pass, unless it is of one request.
    pub(crate) rows: usize,
}

/// A text of a pass of an encoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct EncoderText<'a> {
    /// At least one token, and not more than the context has.
    pub(crate) tokens: &'a [u32],
    /// Tokens from here on belong to the second text of a pair.
    pub(crate) second: usize,
    /// The number of the adapter that it is computed with, in the order of the model's tasks.
    pub(crate) adapter: Option<u16>,
}

/// A loaded model that makes a vector or scores of a text, with the memory for its passes.
pub(crate) trait Encoder: Send {
    /// Sizes and constants.
    fn facts(&self) -> EncoderFacts;

    /// Begins a pass over some texts, at most [`MAX_TEXTS`]. A pass that was under way is forgotten.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn begin(&mut self, texts: &[EncoderText<'_>], pool: &Pool) -> Result<(), Error>;

    /// Bytes that a pass of so many rows takes beyond those of [`super::Backend::bytes`]: none up to
    /// [`EncoderFacts::rows`].
    fn more_bytes(&self, rows: usize, threads: usize) -> u64;

    /// Gives back the memory of passes beyond [`super::Backend::bytes`]. The results of the last pass are
    /// dropped.
    fn rest(&mut self, threads: usize);

    /// Computes some more of the pass; true once it is done.
    fn advance(&mut self, pool: &Pool) -> bool;

    /// The position of the first row of a text with a value that is not finite, if there is one.
    fn fault(&self, text: usize) -> Option<usize>;

    /// The vector of a text, of length 1, after the pass: `[width]`.
    fn vector(&mut self, text: usize, pool: &Pool) -> Vec<f32>;

    /// The scores that the head gives some texts, after the pass: `[texts, scores_per_text]`.
    fn scores(&mut self, texts: &[usize], pool: &Pool) -> Vec<f32>;

    /// Checks that all weights could be read so far: results of a lost file are wrong.
    ///
    /// # Errors
    /// [`Error::LostModel`], naming the file.
    fn check_lost(&self) -> Result<(), Error>;
}
