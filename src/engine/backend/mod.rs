//! The seam between the scheduler, which decides what is computed when, and the backends, which compute it.
//!
//! A [`Backend`] loads the models of files. A [`Decoder`] computes rows of several sequences at once; what it keeps of each
//! sequence is a [`State`], which belongs to the sequence and is made of blocks that sequences share. An [`Encoder`] computes
//! whole texts, some layers at a time. The scheduler knows nothing else of models.
//!
//! Invariant: what a backend computes of a row depends on the tokens before it in its own sequence and on nothing else:
//! not on how they were cut into passes, nor on the other segments, nor on threads.

mod candle;
mod native;

use std::any::Any;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::attention::{self, KvCacheType};
use crate::{Error, KERNEL_VERSION};

pub(crate) use crate::model::{Loading, Pooling, is_encoder};
pub(crate) use candle::Candle;
pub(crate) use native::Native;

/// Positions of a block of state.
pub(crate) const BLOCK: usize = attention::TILE;

/// Most texts of a pass of an encoder.
pub(crate) const MAX_TEXTS: usize = 128;

/// Changes whenever candle, or what is done with it, gives other bytes on the same machine.
const CANDLE_VERSION: i32 = 1;

/// The backends that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum BackendKind {
    /// This crate's own kernels, on the CPU, with keys and values of a kind: the same bytes on every machine.
    Native(KvCacheType),
    /// Candle's tensors, on the CPU: the same bytes each time on one machine, and others on another. Keys and values are f32.
    Candle,
}

impl Default for BackendKind {
    fn default() -> Self {
        BackendKind::Native(KvCacheType::default())
    }
}

/// Added to the kernel version where keys and values have 8 bits.
const Q8_0_VERSION: i32 = 1 << 12;

impl BackendKind {
    /// What computes with it; with `whole` native kernels keep what no window sees any more, as candle always does.
    pub(crate) fn open(self, whole: bool) -> Arc<dyn Backend> {
        match self {
            BackendKind::Native(kv_cache_type) => Arc::new(Native { kv_cache_type, whole }),
            BackendKind::Candle => Arc::new(Candle::new()),
        }
    }

    /// Changes whenever the backend computes other bytes of the same model and request, and differs from that of every
    /// other backend: the upper 16 bits are the backend's number, the four below them say how it keeps keys and values, the others
    /// are its own version. It is kept with whatever is cached, and part of its key.
    pub const fn kernel_version(self) -> i32 {
        match self {
            BackendKind::Native(KvCacheType::F16) => KERNEL_VERSION,
            BackendKind::Native(KvCacheType::Q8_0) => KERNEL_VERSION + Q8_0_VERSION,
            BackendKind::Candle => (1 << 16) | CANDLE_VERSION,
        }
    }
}

/// What computes models.
pub(crate) trait Backend: std::fmt::Debug + Send + Sync {
    /// Bytes that the model of a file takes while it is loaded, without what belongs to sequences.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the key or the tensor.
    fn bytes(&self, gguf: &Gguf, limits: ModelLimits) -> Result<u64, Error>;

    /// Loads the decoder of a file.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the key or the tensor;
    /// [`Error::OutOfMemory`], [`Error::Stopped`].
    fn decoder(
        &self,
        gguf: &Gguf,
        limits: ModelLimits,
        loading: &Loading<'_>,
    ) -> Result<Box<dyn Decoder>, Error>;

    /// Loads the encoder of a file.
    ///
    /// # Errors
    /// As [`Backend::decoder`].
    fn encoder(
        &self,
        gguf: &Gguf,
        limits: ModelLimits,
        loading: &Loading<'_>,
    ) -> Result<Box<dyn Encoder>, Error>;
}

/// What passes a model is loaded for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelLimits {
    /// Most rows of a pass of a decoder.
    pub(crate) rows: usize,
    /// Most rows of a pass whose logits are wanted together.
    pub(crate) wanted: usize,
    /// Threads that compute.
    pub(crate) threads: usize,
}

/// What there is to know of a decoder.
#[derive(Debug, Clone, Copy)]
pub(crate) struct DecoderFacts {
    /// Number of token ids, which is the number of logits of a row.
    pub(crate) vocabulary: usize,
    /// Length of a hidden state.
    pub(crate) width: usize,
    /// Positions that the model can tell apart.
    pub(crate) context_length: usize,
    /// How hidden states become an embedding.
    pub(crate) pooling: Pooling,
}

/// A model that predicts the next token, loaded, with the memory that its passes work in.
pub(crate) trait Decoder: Send {
    /// Sizes and constants.
    fn facts(&self) -> DecoderFacts;

    /// The state of a sequence without tokens. It serves this decoder only.
    fn new_state(&self) -> Box<dyn State>;

    /// Computes the segments' rows, at most [`ModelLimits::rows`], and adds them to their states. `interrupted` is asked now and
    /// then: once it says yes the pass ends, false is returned, and the states have no position more than before, and fewer where a layer
    /// cannot take back what was computed ([`State::len`]).
    ///
    /// # Errors
    /// What keeps the pass from being computed at all. The sequences cannot go on.
    fn forward(
        &mut self,
        segments: &mut [Segment<'_>],
        pool: &Pool,
        interrupted: &dyn Fn() -> bool,
    ) -> Result<bool, Error>;

    /// Final hidden states of the rows that the last pass was asked for, in their order: `[rows, width]`.
    fn hidden(&self) -> &[f32];

    /// Logits of some of those rows, at most [`ModelLimits::wanted`]: `[rows, vocabulary]`.
    ///
    /// # Errors
    /// [`Error::LostModel`] where weights could no longer be read.
    fn logits(&mut self, rows: &[usize], pool: &Pool) -> Result<&[f32], Error>;

    /// [`Decoder::logits`] of two tokens only, bit for bit.
    ///
    /// # Errors
    /// What keeps them from being computed.
    fn logits_of(&mut self, rows: &[usize], tokens: [u32; 2], pool: &Pool) -> Result<Vec<[f32; 2]>, Error>;

    /// What the model's head for ranking says of one of those rows; nothing without one.
    fn ranks(&self, row: usize, pool: &Pool) -> Vec<f32>;

    /// Whether everything that was computed up to now came from weights that were there.
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
    /// Set by the pass: the first position at which something was not finite.
    pub(crate) fault: Option<usize>,
}

/// Rows of a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum WantedRows {
    None,
    First,
    /// This many at the end. All but the first of them are guesses, which may be taken back ([`State::truncate`]).
    Last(usize),
    /// This many at the end, all of which are guesses.
    Guesses(usize),
    All,
}

impl WantedRows {
    /// How many of `rows` rows they are.
    pub(crate) fn count(self, rows: usize) -> usize {
        match self {
            WantedRows::None => 0,
            WantedRows::First => 1,
            WantedRows::Last(count) | WantedRows::Guesses(count) => count,
            WantedRows::All => rows,
        }
    }

    /// How many of the last rows may be taken back.
    pub(crate) fn guesses(self) -> usize {
        match self {
            WantedRows::Last(count) => count.saturating_sub(1),
            WantedRows::Guesses(count) => count,
            WantedRows::None | WantedRows::First | WantedRows::All => 0,
        }
    }

    /// Whether row `row` of `rows` is one of them.
    pub(crate) fn includes(self, row: usize, rows: usize) -> bool {
        match self {
            WantedRows::None => false,
            WantedRows::First => row == 0,
            WantedRows::Last(count) | WantedRows::Guesses(count) => row + count >= rows,
            WantedRows::All => true,
        }
    }
}

/// What a decoder keeps of the tokens of one sequence, in blocks of [`BLOCK`] positions.
pub(crate) trait State: Send {
    /// Number of positions that are there. The tokens behind them are computed, or computed again, by the next passes.
    fn len(&self) -> usize;

    /// Number of its blocks, shared ones included.
    fn blocks(&self) -> usize;

    /// Bytes of its first `blocks` blocks, whether they are there or not, without what windows see of them.
    fn block_bytes(&self, blocks: usize) -> u64;

    /// Bytes of what windows see of `blocks` blocks. Layers with a sliding window keep a block only as long as their window sees
    /// some of it.
    fn window_bytes(&self, _blocks: usize) -> u64 {
        0
    }

    /// Of so many blocks it has that at a time, at most.
    fn most_window_blocks(&self) -> usize {
        0
    }

    /// Of so many blocks it has that now.
    fn window_blocks(&self) -> usize {
        0
    }

    /// Gives back what no window sees any more, now that the next position is the one behind all that are there.
    fn settle(&mut self) {}

    /// Bytes that a state takes beside its blocks, however many positions it has.
    fn fixed_bytes(&self) -> u64 {
        0
    }

    /// Bytes of a state of `positions` positions that shares none, at most, while it grows.
    fn bytes(&self, positions: usize) -> u64 {
        let blocks = positions.div_ceil(BLOCK);
        let seen = self.window_bytes(blocks.min(self.most_window_blocks()));
        self.block_bytes(blocks).saturating_add(seen).saturating_add(self.fixed_bytes())
    }

    /// Whether a sequence can go on behind its first `blocks` blocks, which are there, when it has only those.
    fn resumes_behind(&self, blocks: usize) -> bool;

    /// Makes room for `positions` positions, without adding them.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] where there is no more.
    fn reserve(&mut self, positions: usize) -> Result<(), Error>;

    /// Forgets the positions from `len` on; what is computed afterwards is as if they had never been. Fewer positions than
    /// `len` are left where the layers of the model cannot go back to just that one: [`State::len`] says how many.
    fn truncate(&mut self, len: usize);

    /// [`State::truncate`], leaving nothing where the positions were: values that are not finite would spoil even what
    /// has no weight.
    fn wipe(&mut self, len: usize);

    /// Forgets all positions and gives back all blocks.
    fn forget(&mut self);

    /// Adds the positions of a block that another sequence of this model has computed after the same tokens. Where the state cannot
    /// [go on](State::resumes_behind) behind it, another block or [`State::truncate`] must follow.
    fn attach(&mut self, block: Block);

    /// Block `index`, whose positions are all there, with what windows see of it if that is still there.
    fn block(&self, index: usize) -> Block;

    /// Takes another block of the same contents for block `index`, as far as both are there.
    fn replace(&mut self, index: usize, block: Block);

    /// What the backend has made it of.
    fn as_any_mut(&mut self) -> &mut dyn Any;
}

/// [`BLOCK`] positions of a state. What they look like is their backend's affair. Clones share them.
#[derive(Clone)]
pub(crate) struct Block {
    /// What all positions behind it see.
    content: Arc<dyn Any + Send + Sync>,
    /// What windows see of it, as long as somebody keeps that.
    window: Option<Arc<dyn Any + Send + Sync>>,
}

impl Block {
    pub(crate) fn new<T: Any + Send + Sync>(content: Arc<T>) -> Block {
        Block { content, window: None }
    }

    /// The block with what windows see of it.
    pub(crate) fn with_window<T: Any + Send + Sync>(self, window: Option<Arc<T>>) -> Block {
        let window = window.map(|window| -> Arc<dyn Any + Send + Sync> { window });
        Block { window, ..self }
    }

    /// What it is made of; None where that is something else.
    pub(crate) fn into_content<T: Any + Send + Sync>(self) -> Option<Arc<T>> {
        self.content.downcast().ok()
    }

    /// What windows see of it, if that is there.
    pub(crate) fn window<T: Any + Send + Sync>(&self) -> Option<Arc<T>> {
        self.window.clone()?.downcast().ok()
    }

    /// Whether there is what windows see of it.
    pub(crate) fn has_window(&self) -> bool {
        self.window.is_some()
    }

    /// Takes that of another block of the same contents, where it has none.
    pub(crate) fn take_window(&mut self, other: &Block) {
        if self.window.is_none() {
            self.window.clone_from(&other.window);
        }
    }

    /// Forgets that.
    pub(crate) fn drop_window(&mut self) {
        self.window = None;
    }

    /// Whether anybody else has it too.
    pub(crate) fn is_shared(&self) -> bool {
        Arc::strong_count(&self.content) > 1
    }

    /// Whether anybody else has what windows see of it.
    pub(crate) fn window_is_shared(&self) -> bool {
        self.window.as_ref().is_some_and(|window| Arc::strong_count(window) > 1)
    }

    /// Whether both are the same memory.
    #[cfg(test)]
    pub(crate) fn is(&self, other: &Block) -> bool {
        Arc::ptr_eq(&self.content, &other.content)
    }
}

/// What there is to know of an encoder.
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

    /// Bytes that a pass of so many rows takes beyond those of [`Backend::bytes`]: none up to [`EncoderFacts::rows`].
    fn more_bytes(&self, rows: usize, threads: usize) -> u64;

    /// Gives back what passes have taken beyond [`Backend::bytes`]. What came of the last one is forgotten.
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
