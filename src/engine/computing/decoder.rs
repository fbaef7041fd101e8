//! Models that predict the next token, and the rows of their passes.

use super::{Pooling, State};
use crate::Error;
use crate::kernels::Pool;

/// The facts about a decoder that the scheduler needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecoderFacts {
    /// Number of token ids, which is the number of logits of a row.
    pub(crate) vocabulary: usize,
    /// Length of a hidden state.
    pub(crate) width: usize,
    /// Positions that the model can tell apart.
    pub(crate) context_length: usize,
    /// The pooling of hidden states to an embedding.
    pub(crate) pooling: Pooling,
}

/// A loaded model that predicts the next token, with the memory for its passes.
pub(crate) trait Decoder: Send {
    /// Sizes and constants.
    fn facts(&self) -> DecoderFacts;

    /// The state of a sequence without tokens. It serves this decoder only.
    fn new_state(&self) -> Box<dyn State>;

    /// Computes the segments' rows, at most [`super::ModelLimits::rows`], and adds them to their states.
    /// `interrupted` is called now and then: once it returns true, the pass ends and false is returned. The
    /// states then have no more positions than before, and fewer where a layer cannot take back its
    /// computation ([`State::len`]).
    ///
    /// # Errors
    /// An error of the backend, such as [`Error::OutOfMemory`]: the pass was not computed, and its sequences
    /// cannot go on.
    fn forward(
        &mut self,
        segments: &mut [Segment<'_>],
        pool: &Pool,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<bool, Error>;

    /// Final hidden states of the rows that the last pass was asked for, in their order: `[rows, width]`.
    fn hidden(&self) -> &[f32];

    /// Logits of some of those rows, at most [`super::ModelLimits::wanted`]: `[rows, vocabulary]`.
    ///
    /// # Errors
    /// [`Error::LostModel`] where weights could no longer be read.
    fn logits(&mut self, rows: &[usize], pool: &Pool) -> Result<&[f32], Error>;

    /// [`Decoder::logits`] of two tokens only, bit for bit.
    ///
    /// # Errors
    /// An error of the backend, such as [`Error::OutOfMemory`].
    fn logits_of(&mut self, rows: &[usize], tokens: [u32; 2], pool: &Pool) -> Result<Vec<[f32; 2]>, Error>;

    /// The outputs of the model's head for ranking for one of those rows; nothing without a head.
    fn ranks(&self, row: usize, pool: &Pool) -> Vec<f32>;

    /// Checks that all weights could be read so far: results of a lost file are wrong.
    ///
    /// # Errors
    /// [`Error::LostModel`], naming the file.
    fn check_lost(&self) -> Result<(), Error>;
}

/// The next tokens of one sequence.
pub(crate) struct Segment<'a> {
    /// Its state, with room reserved for the tokens ([`State::reserve`]).
    pub(crate) state: &'a mut dyn State,
    /// At least one token; their positions follow those in the state.
    pub(crate) tokens: &'a [u32],
    /// The rows whose final hidden state is wanted.
    pub(crate) wanted: WantedRows,
    /// Set by the pass: the first position with a value that is not finite.
    pub(crate) fault: Option<usize>,
}

/// Rows of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WantedRows {
    None,
    First,
    /// This many at the end. All but the first of them are guesses, which may be taken back
    /// ([`State::truncate`]).
    Last(usize),
    /// This many at the end, all of which are guesses.
    Guesses(usize),
    All,
}

impl WantedRows {
    /// Number of these rows among `rows` rows.
    pub(crate) fn count(self, rows: usize) -> usize {
        match self {
            WantedRows::None => 0,
            WantedRows::First => 1,
            WantedRows::Last(count) | WantedRows::Guesses(count) => count,
            WantedRows::All => rows,
        }
    }

    /// Number of rows at the end that may be taken back.
    pub(crate) fn guesses(self) -> usize {
        match self {
            WantedRows::Last(count) => count.saturating_sub(1),
            WantedRows::Guesses(count) => count,
            WantedRows::None | WantedRows::First | WantedRows::All => 0,
        }
    }

    /// Whether row `row` of `rows` is one of these.
    pub(crate) fn includes(self, row: usize, rows: usize) -> bool {
        match self {
            WantedRows::None => false,
            WantedRows::First => row == 0,
            WantedRows::Last(count) | WantedRows::Guesses(count) => row + count >= rows,
            WantedRows::All => true,
        }
    }
}
