//! One sequence on one model, pass by pass: for the command line, tests and other callers that want logits,
//! not text.

use std::sync::Arc;

use crate::backend::BackendKind;
use crate::computing::{Decoder, Loading, ModelLimits, Segment, State, WantedRows};
use crate::gguf::Gguf;
use crate::kernels::Pool;
use crate::kernels::float_environment::Standard;
use crate::{Error, Instructions, KvCacheType, ModelSource};

/// Most tokens of one pass.
const PASS: usize = 256;

/// A decoder, the state of a sequence, and threads of their own.
pub struct Probe {
    gguf: Gguf,
    decoder: Box<dyn Decoder>,
    state: Box<dyn State>,
    pool: Pool,
}

impl std::fmt::Debug for Probe {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Probe").field("gguf", &self.gguf).field("len", &self.len()).finish_non_exhaustive()
    }
}

impl Probe {
    /// Opens a model, to be computed by `threads` threads, the calling one included.
    ///
    /// # Errors
    /// Errors of opening and checking the file.
    pub fn open(source: &ModelSource, threads: usize) -> Result<Probe, Error> {
        Probe::open_with(source, threads, Instructions::best())
    }

    /// As [`Probe::open`], computed with these instructions.
    ///
    /// # Errors
    /// As [`Probe::open`].
    pub fn open_with(
        source: &ModelSource,
        threads: usize,
        instructions: Instructions,
    ) -> Result<Probe, Error> {
        Probe::open_on(BackendKind::default(), source, threads, instructions)
    }

    /// As [`Probe::open_with`], computed by a backend.
    ///
    /// # Errors
    /// As [`Probe::open`], and [`Error::UnsupportedModel`] for what the backend does not compute.
    pub fn open_on(
        backend: BackendKind,
        source: &ModelSource,
        threads: usize,
        instructions: Instructions,
    ) -> Result<Probe, Error> {
        Probe::open_as((backend, false), source, threads, instructions)
    }

    /// As [`Probe::open_with`], with keys and values kept in this way, with `whole` also those that no window
    /// sees any more.
    ///
    /// # Errors
    /// As [`Probe::open`].
    pub fn open_keeping(
        source: &ModelSource,
        threads: usize,
        instructions: Instructions,
        kv_cache_type: KvCacheType,
        whole: bool,
    ) -> Result<Probe, Error> {
        Probe::open_as((BackendKind::Native(kv_cache_type), whole), source, threads, instructions)
    }

    fn open_as(
        (backend, whole): (BackendKind, bool),
        source: &ModelSource,
        threads: usize,
        instructions: Instructions,
    ) -> Result<Probe, Error> {
        let _standard = Standard::enter();
        let gguf = source.open()?;
        let start: Arc<dyn Fn() + Send + Sync> = Arc::new(|| {});
        let pool = Pool::new(threads.max(1), instructions, &start)
            .map_err(|error| Error::Panicked(format!("could not start a thread: {error}")))?;
        let limits = ModelLimits { rows: PASS, wanted: 1, threads: pool.threads() };
        let backend = backend.open(whole);
        let decoder = backend.decoder(&gguf, limits, &Loading { pool: &pool, stop: &|| false })?;
        let state = decoder.new_state();
        Ok(Probe { gguf, decoder, state, pool })
    }

    /// The model's file.
    pub fn gguf(&self) -> &Gguf {
        &self.gguf
    }

    /// Number of token ids, which is the number of logits of a token.
    pub fn vocabulary(&self) -> usize {
        self.decoder.facts().vocabulary
    }

    /// Tokens that the model can take.
    pub fn context_length(&self) -> usize {
        self.decoder.facts().context_length
    }

    /// Number of tokens that are computed.
    pub fn len(&self) -> usize {
        self.state.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes that are kept of the tokens, and how many they may become with as many of them, at most.
    pub fn state_bytes(&self) -> (u64, u64) {
        let state = &*self.state;
        let blocks = state.block_bytes(state.blocks()) + state.window_bytes(state.window_blocks());
        (blocks + state.fixed_bytes(), state.bytes(state.len()))
    }

    /// Forgets the tokens from `len` on, and more where layers cannot go back to just that one:
    /// [`Probe::len`] says how many are left.
    pub fn truncate(&mut self, len: usize) {
        self.state.truncate(len);
    }

    /// Adds tokens in passes of 256 and returns the logits of the last one. None for no tokens.
    ///
    /// # Errors
    /// [`Error::NonFinite`], [`Error::OutOfMemory`], [`Error::LostModel`], [`Error::PromptTooLong`], and
    /// [`Error::InvalidRequest`] for a token that the model does not have.
    pub fn extend(&mut self, tokens: &[u32]) -> Result<Option<&[f32]>, Error> {
        let _standard = Standard::enter();
        self.check(tokens)?;
        let mut passes = tokens.chunks(PASS).peekable();
        while let Some(pass) = passes.next() {
            let last = passes.peek().is_none();
            self.pass(pass, if last { WantedRows::Last(1) } else { WantedRows::None })?;
            if last {
                return self.decoder.logits(&[0], &self.pool).map(Some);
            }
        }
        Ok(None)
    }

    /// Adds tokens in passes of 256 and calls `each` with the logits of every one of them.
    ///
    /// # Errors
    /// As [`Probe::extend`].
    pub fn extend_each(&mut self, tokens: &[u32], mut each: impl FnMut(&[f32])) -> Result<(), Error> {
        let _standard = Standard::enter();
        self.check(tokens)?;
        for pass in tokens.chunks(PASS) {
            self.pass(pass, WantedRows::All)?;
            for row in 0..pass.len() {
                each(self.decoder.logits(&[row], &self.pool)?);
            }
        }
        Ok(())
    }

    fn check(&self, tokens: &[u32]) -> Result<(), Error> {
        let total = self.len() + tokens.len();
        if total > self.context_length() {
            return Err(Error::PromptTooLong { prompt_tokens: total, context_length: self.context_length() });
        }
        match tokens.iter().find(|token| **token as usize >= self.vocabulary()) {
            Some(token) => Err(Error::InvalidRequest(format!("there is no token {token}"))),
            None => Ok(()),
        }
    }

    fn pass(&mut self, tokens: &[u32], wanted: WantedRows) -> Result<(), Error> {
        self.state.reserve(self.state.len() + tokens.len())?;
        let mut segments = [Segment { state: &mut *self.state, tokens, wanted, fault: None }];
        self.decoder.forward(&mut segments, &self.pool, &|| false)?;
        let fault = segments[0].fault;
        self.decoder.check_lost()?;
        match fault {
            Some(position) => Err(Error::NonFinite { position }),
            None => Ok(()),
        }
    }
}
