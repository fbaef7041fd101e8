//! Batches of texts on encoders: as many of them as fit are computed in one pass, some layers at a time, so
//! that requests that generate get their tokens in between.
//!
//! A query and a document are ranked by the head of a cross-encoder, or, without one, by the vectors of the
//! two.
//!
//! Invariant: the vector of a text does not depend on the texts beside it (see [`crate::computing`]), so they
//! are put together as they come.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::models::EngineModels;
use super::plan::Plan;
use super::{EngineShared, Submission};
use crate::computing::{Encoder, EncoderText, MAX_TEXTS};
use crate::kernels::Pool;
use crate::memory::{self, Reservation};
use crate::panic::catch;
use crate::rerank::{score_of_labels, score_of_vectors};
use crate::work::shortened;
use crate::{Error, EventKind, ModelIdentity, ModelSource, Output, Work};

/// Most tokens of texts that are queued here beyond those of the current pass. Other texts wait outside,
/// where they can be found when their model has gone.
const MAX_QUEUED_TOKENS: usize = 8192;
/// The purpose of the memory of a long pass beyond that of its model, as errors name it.
const LONG_TEXT: &str = "the workspace of a long text";
/// Rows of a pass while requests generate, unless its first text has more.
const SHARED_ROWS: usize = 128;
/// Memory that a call which computes layers may allocate.
const STEP_BYTES: usize = 4 << 20;
/// Time for which layers are computed before a step gets its turn. A layer is never cut.
const SHARED_SLICE: Duration = Duration::from_millis(30);
/// The same while nothing generates: new and cancelled texts are looked for in between.
const SLICE: Duration = Duration::from_millis(100);

/// A request: a text, or a query and a document.
struct EncodeRequest {
    submission: Submission,
    tokens: Vec<u32>,
    /// The first token of the second text where two are computed together.
    border: usize,
    /// A second text that is computed apart.
    other: Option<Vec<u32>>,
    /// The adapters that both texts are computed with.
    adapters: [Option<u16>; 2],
    /// The number of texts of its owner that came before it: owners go in turn.
    round: usize,
}

/// All requests of encoders: those of the current pass, and those that wait.
pub(super) struct EncodeBatches {
    pass: Vec<EncodeRequest>,
    /// The extra memory of the pass beyond that of its model, where the pass is a long one.
    long: Option<(ModelSource, Reservation)>,
    queue: VecDeque<EncodeRequest>,
    queued_tokens: usize,
    shared: Arc<EngineShared>,
}

impl EncodeRequest {
    fn source(&self) -> &ModelSource {
        &self.submission.request.model
    }

    /// The least goes first: by priority, then owners in turn.
    fn order(&self) -> (Reverse<u8>, usize) {
        (Reverse(self.submission.priority()), self.round)
    }

    /// Number of its tokens.
    fn len(&self) -> usize {
        self.tokens.len() + self.other.as_ref().map_or(0, Vec::len)
    }

    /// Its texts, as they go into a pass.
    fn texts(&self) -> impl Iterator<Item = EncoderText<'_>> {
        let [first, second] = self.adapters;
        let other =
            self.other.as_ref().map(|tokens| EncoderText { tokens, second: tokens.len(), adapter: second });
        [EncoderText { tokens: &self.tokens, second: self.border, adapter: first }].into_iter().chain(other)
    }
}

impl EncodeBatches {
    pub(super) fn new(shared: Arc<EngineShared>) -> EncodeBatches {
        EncodeBatches { pass: Vec::new(), long: None, queue: VecDeque::new(), queued_tokens: 0, shared }
    }

    /// Whether there is nothing to do, and no memory to give back.
    pub(super) fn is_empty(&self) -> bool {
        self.pass.is_empty() && self.queue.is_empty() && self.long.is_none()
    }

    /// Whether enough texts wait.
    pub(super) fn is_full(&self) -> bool {
        self.queued_tokens >= MAX_QUEUED_TOKENS
    }

    /// Whether texts are there for the model.
    pub(super) fn uses(&self, source: &ModelSource) -> bool {
        self.pass.iter().chain(&self.queue).any(|encoding| encoding.source() == source)
    }

    /// All requests that it has.
    pub(super) fn submissions(&self) -> impl Iterator<Item = &Submission> {
        self.pass.iter().chain(&self.queue).map(|encoding| &encoding.submission)
    }

    /// Takes in a text; tells that it is started.
    pub(super) fn add(&mut self, submission: Submission, plan: Plan, model: ModelIdentity) {
        let Plan { tokens, border, second: other, adapters, .. } = plan;
        let owner = submission.owner();
        let round = self.queue.iter().filter(|other| other.submission.owner() == owner).count();
        let encoding = EncodeRequest { submission, tokens, border, other, adapters, round };
        encoding.submission.send(EventKind::Started { prompt_tokens: encoding.len(), model });
        self.queued_tokens += encoding.len();
        let place = self.queue.iter().rposition(|other| other.order() <= encoding.order());
        self.queue.insert(place.map_or(0, |place| place + 1), encoding);
    }

    /// Fails the texts of some models.
    pub(super) fn fail(&mut self, error: &Error, which: &dyn Fn(&ModelSource) -> bool) {
        for encoding in self.pass.iter().chain(&self.queue).filter(|encoding| which(encoding.source())) {
            encoding.submission.fail(error.clone());
        }
        self.forget_ended();
    }

    /// Drops requests that have got their last event. The pass goes on for those that are left.
    fn forget_ended(&mut self) {
        self.queue.retain(|encoding| !encoding.submission.has_ended());
        self.queued_tokens = self.queue.iter().map(EncodeRequest::len).sum();
        if self.pass.iter().all(|encoding| encoding.submission.has_ended()) {
            self.pass.clear();
        }
    }

    /// Computes layers until the pass is done or something else has its turn.
    pub(super) fn advance(
        &mut self,
        models: &mut EngineModels,
        pool: &Pool,
        generating: bool,
        stop: &dyn Fn() -> bool,
    ) {
        let done = memory::watched("the next layers", STEP_BYTES, || {
            catch(|| self.compute(models, pool, generating, stop))
        });
        if let Err(error) = done.and_then(|done| done) {
            for encoding in self.pass.drain(..) {
                encoding.submission.fail(error.clone());
            }
        }
    }

    fn compute(&mut self, models: &mut EngineModels, pool: &Pool, generating: bool, stop: &dyn Fn() -> bool) {
        let started = Instant::now();
        let slice = if generating { SHARED_SLICE } else { SLICE };
        self.look_for_cancels();
        if self.pass.is_empty() {
            self.begin(models, generating, pool);
        }
        loop {
            let Some(source) = self.pass.first().map(|encoding| encoding.source().clone()) else { return };
            let Some(loaded) = models.get_encoder(&source) else { return self.fail(&gone(), &|_| true) };
            if stop() {
                return;
            }
            if loaded.encoder.advance(pool) {
                return self.finish(models, &source, pool);
            }
            if started.elapsed() >= slice {
                return;
            }
            self.look_for_cancels();
        }
    }

    /// Tells requests that were cancelled at once, also where the pass goes on for others.
    fn look_for_cancels(&mut self) {
        let cancelled = |encoding: &EncodeRequest| encoding.submission.fail_if_cancelled();
        if self.pass.iter().chain(&self.queue).filter(|encoding| cancelled(encoding)).count() > 0 {
            self.forget_ended();
        }
    }

    /// Gives back the extra memory of a long pass.
    fn release(&mut self, models: &mut EngineModels, pool: &Pool) {
        if let Some((source, held)) = self.long.take() {
            if let Some(loaded) = models.get_encoder(&source) {
                loaded.encoder.rest(pool.threads());
            }
            drop(held);
        }
    }

    /// Puts the next pass together: the text that came first, and those of its model that fit beside it.
    fn begin(&mut self, models: &mut EngineModels, generating: bool, pool: &Pool) {
        self.release(models, pool);
        let Some(source) = self.queue.front().map(|encoding| encoding.source().clone()) else { return };
        let Some(loaded) = models.get_encoder(&source) else {
            return self.fail(&gone(), &|other| *other == source);
        };
        let most = if generating { SHARED_ROWS } else { loaded.encoder.facts().rows };
        let (mut rows, mut count) = (0, 0);
        for encoding in std::mem::take(&mut self.queue) {
            let texts = encoding.texts().count();
            let fits = rows == 0 || rows + encoding.len() <= most;
            if fits && count + texts <= MAX_TEXTS && *encoding.source() == source {
                rows += encoding.len();
                count += texts;
                self.pass.push(encoding);
            } else {
                self.queue.push_back(encoding);
            }
        }
        self.queued_tokens -= rows;
        let texts: Vec<EncoderText<'_>> = self.pass.iter().flat_map(EncodeRequest::texts).collect();
        let more = loaded.encoder.more_bytes(rows, pool.threads());
        let begun = (more > 0).then(|| self.shared.memory.hold(more, LONG_TEXT)).transpose();
        let begun = begun.and_then(|held| {
            self.long = held.map(|held| (source.clone(), held));
            loaded.encoder.begin(&texts, pool)
        });
        if let Err(error) = begun {
            for encoding in self.pass.drain(..) {
                encoding.submission.fail(error.clone());
            }
        }
    }

    /// Ends the texts of the pass with their results.
    fn finish(&mut self, models: &mut EngineModels, source: &ModelSource, pool: &Pool) {
        let Some(loaded) = models.get_encoder(source) else { return };
        let encoder = &mut *loaded.encoder;
        let mut results: Vec<Result<Output, Error>> = Vec::with_capacity(self.pass.len());
        let mut text = 0;
        for encoding in &self.pass {
            let texts = text..text + encoding.texts().count();
            text = texts.end;
            results.push(match texts.clone().find_map(|text| encoder.fault(text)) {
                Some(position) => Err(Error::NonFinite { position }),
                None => outcome(&encoding.submission.request.work, encoder, texts, pool),
            });
        }
        let rows: usize = self.pass.iter().map(EncodeRequest::len).sum();
        self.shared.statistics.computed(self.pass.len(), rows, 0);
        // Results of a lost file were computed from zeros.
        let lost = encoder.check_lost().err();
        for (encoding, result) in self.pass.drain(..).zip(results) {
            encoding.submission.send(match (&lost, result) {
                (Some(error), _) => EventKind::Failed(error.clone()),
                (None, Err(error)) => EventKind::Failed(error),
                (None, Ok(output)) => EventKind::Done(output),
            });
        }
        self.release(models, pool);
    }
}

/// The result of a request whose texts are computed.
fn outcome(
    work: &Work,
    encoder: &mut dyn Encoder,
    texts: Range<usize>,
    pool: &Pool,
) -> Result<Output, Error> {
    Ok(match (work, texts.len()) {
        (Work::Rerank(_), 1) => {
            let labels = encoder.scores(&[texts.start], pool);
            // The second one of two labels is the one for yes, as in transformers.
            Output::Score(score_of_labels(&labels, labels.len() - 1))
        }
        (Work::Rerank(_), _) => {
            let [query, document] = [texts.start, texts.start + 1].map(|text| encoder.vector(text, pool));
            Output::Score(score_of_vectors(pool.instructions(), &query, &document))
        }
        // An embedding; no other work comes here.
        _ => {
            let vector = encoder.vector(texts.start, pool);
            // The layers behind the last norm may overflow.
            if vector.iter().any(|value| !value.is_finite()) {
                return Err(Error::NonFinite { position: 0 });
            }
            Output::Embedding(shortened(work, vector, pool.instructions())?)
        }
    })
}

/// The error for a model that was unloaded although it is in use, which is a bug.
fn gone() -> Error {
    Error::Panicked("the model of a text is gone".to_owned())
}
