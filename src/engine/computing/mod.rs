//! The interface between the scheduler, which decides what is computed when, and the backends, which compute
//! it.
//!
//! A [`Backend`] loads the models of files. A [`Decoder`] computes rows of several sequences at once; the
//! memory of each sequence is a [`State`], which belongs to the sequence and is made of blocks that sequences
//! share. An [`Encoder`] computes whole texts, some layers at a time. The scheduler knows nothing else of
//! models.
//!
//! Invariant: a backend's result for a row depends on the tokens before it in its own sequence and on nothing
//! else: not on how they were cut into passes, nor on the other segments, nor on threads.
//!
//! Invariant: this module does not know its implementations. `make lint` checks that it uses neither a
//! backend nor a model.

mod decoder;
mod encoder;
mod state;

use crate::Error;
use crate::gguf::Gguf;
use crate::kernels::Pool;

pub(crate) use decoder::{Decoder, DecoderFacts, Segment, WantedRows};
pub(crate) use encoder::{Encoder, EncoderFacts, EncoderText, MAX_TEXTS};
pub(crate) use state::{BLOCK, State, StateBlock, StateBytes};

/// A backend, which computes models.
pub(crate) trait Backend: std::fmt::Debug + Send + Sync {
    /// Bytes that the model of a file takes while it is loaded, without those of sequences.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the key or the tensor.
    fn bytes(&self, gguf: &Gguf, limits: ModelLimits) -> Result<u64, Error>;

    /// The memory that a sequence of `positions` positions would take, with the decoder of a file that is not
    /// loaded; None for an encoder, which keeps no sequences.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the key or the tensor: the errors that
    /// loading would give before it makes anything.
    fn state(&self, gguf: &Gguf, limits: ModelLimits, positions: usize) -> Result<Option<StateBytes>, Error>;

    /// Whether the model of a file is an encoder: [`Backend::encoder`] loads it, and otherwise
    /// [`Backend::decoder`].
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the file does not name its architecture.
    fn is_encoder(&self, gguf: &Gguf) -> Result<bool, Error>;

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

/// The parameters of loading a model.
pub(crate) struct Loading<'a> {
    /// Threads that repack weights.
    pub(crate) pool: &'a Pool,
    /// Called now and then: once it returns true, loading ends with [`Error::Stopped`].
    pub(crate) stop: &'a (dyn Fn() -> bool + Sync),
}

/// The limits of the passes that a model is loaded for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ModelLimits {
    /// Most rows of a pass of a decoder.
    pub(crate) rows: usize,
    /// Most rows of a pass whose logits are wanted together.
    pub(crate) wanted: usize,
    /// Threads that compute.
    pub(crate) threads: usize,
}

/// The way in which the hidden states of a text become its embedding; numbers as in llama.cpp's
/// `pooling_type`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Pooling {
    /// 1: the mean over all tokens.
    Mean,
    /// 2: the first token.
    First,
    /// 3: the last token.
    Last,
}
