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
    /// How many scores its head gives a text; 0 where it has none.
    pub(crate) scores_per_text: usize,
    /// Most rows of a pass, unless it is of one request.
    pub(crate) rows: usize,
}

/// A text of a pass of an encoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Text<'a> {
    /// At least one token, and not more than the context has.
    pub(crate) tokens: &'a [u32],
    /// Tokens from here on belong to the second text of a pair.
    pub(crate) second: usize,
    /// The number of the adapter that it is computed with, in the order of the model's tasks.
    pub(crate) adapter: Option<u16>,
}

/// A model that makes a vector or scores of a text, loaded, with the memory that its passes work in.
pub(crate) trait Encoder: Send {
    /// Sizes and constants.
    fn facts(&self) -> EncoderFacts;

    /// Begins a pass over some texts, at most [`MAX_TEXTS`]. A pass that was under way is forgotten.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    fn begin(&mut self, texts: &[Text<'_>], pool: &Pool) -> Result<(), Error>;

    /// Bytes that a pass of so many rows takes beyond those of [`super::Backend::bytes`]: none up to
    /// [`EncoderFacts::rows`].
    fn more_bytes(&self, rows: usize, threads: usize) -> u64;

    /// Gives back what passes have taken beyond [`super::Backend::bytes`]. What came of the last one is
    /// forgotten.
    fn rest(&mut self, threads: usize);

    /// Computes some more of the pass; true once it is done.
    fn advance(&mut self, pool: &Pool) -> bool;

    /// Whether a row of a text was not finite: its position.
    fn fault(&self, text: usize) -> Option<usize>;

    /// The vector of a text, of length 1, after the pass: `[width]`.
    fn vector(&mut self, text: usize, pool: &Pool) -> Vec<f32>;

    /// The scores that the head gives some texts, after the pass: `[texts, scores_per_text]`.
    fn scores(&mut self, texts: &[usize], pool: &Pool) -> Vec<f32>;

    /// Whether everything that was computed up to now came from weights that were there.
    ///
    /// # Errors
    /// [`Error::LostModel`], naming the file.
    fn check_lost(&self) -> Result<(), Error>;
}
