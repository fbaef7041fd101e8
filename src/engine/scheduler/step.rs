//! One step: a forward pass over the next rows of one model's running requests.

use std::time::Instant;

use super::models::{MAX_PREFILL_ROWS, Models};
use super::panic::catch;
use super::running::Running;
use crate::kernels::Pool;
use crate::model::Segment;
use crate::sampling::Sampler;
use crate::{Error, EventKind, ModelSource, Output};

/// A step should not take longer than this while requests generate, so that they get a token now and then.
const SHARED_STEP_SECONDS: f64 = 0.1;
/// Nor than this while there are only prompts; long slices cost less, as they share the reading of the weights.
const PREFILL_STEP_SECONDS: f64 = 0.4;
/// Fewest prompt rows of a step, if there are any.
const MIN_PREFILL_ROWS: usize = 8;

/// Computes steps; keeps what they share.
pub(super) struct Stepper {
    pool: Pool,
    sampler: Sampler,
    /// Whose turn it is.
    last: Option<ModelSource>,
}

/// The part of a request in a step.
struct Part {
    /// Index in the running requests.
    index: usize,
    rows: usize,
}

impl Stepper {
    pub(super) fn new(pool: Pool) -> Stepper {
        Stepper { pool, sampler: Sampler::default(), last: None }
    }

    /// Computes one step, and ends the requests that are done, failed or cancelled with it.
    pub(super) fn step(&mut self, running: &mut Vec<Running>, models: &mut Models, stop: &dyn Fn() -> bool) {
        running.retain(|request| !cancelled(request));
        let Some(source) = self.next_model(running) else { return };
        let Some(row_seconds) = models.get(&source).map(|loaded| loaded.row_seconds) else { return };
        let parts = plan(running, &source, row_seconds);
        let outcome = catch(|| self.compute(running, models, &source, &parts, stop));
        let mut ended = match outcome {
            Ok(ended) => ended,
            Err(error) => {
                let message = match error {
                    Error::Panicked(message) => message,
                    other => other.to_string(),
                };
                parts.iter().map(|part| (part.index, Err(Error::Panicked(message.clone())))).collect()
            }
        };
        if let Some(error) = models.lost(&source) {
            // Whatever came of it was computed from zeros.
            ended = parts.iter().map(|part| (part.index, Err(error.clone()))).collect();
        }
        // From the back, so that indexes stay right.
        ended.sort_by_key(|(index, _)| *index);
        for (index, result) in ended.into_iter().rev() {
            let request = running.remove(index);
            request.submission.send(match result {
                Ok(output) => EventKind::Done(output),
                Err(error) => EventKind::Failed(error),
            });
        }
        // Whose prompt was served first goes behind the others that still have some.
        running.sort_by_key(|request| !request.decodes());
        if let Some(first) = running.iter().position(|request| !request.decodes()) {
            running[first..].rotate_left(1);
        }
    }

    /// The model after the last one, in the order of their requests.
    fn next_model(&mut self, running: &[Running]) -> Option<ModelSource> {
        let mut sources: Vec<&ModelSource> = Vec::new();
        for request in running {
            if !sources.contains(&request.source()) {
                sources.push(request.source());
            }
        }
        let after = self.last.as_ref().and_then(|last| sources.iter().position(|source| *source == last));
        let next = after.map_or(0, |index| (index + 1) % sources.len());
        self.last = sources.get(next).map(|source| (*source).clone());
        self.last.clone()
    }

    /// The pass itself; returns the requests that ended.
    fn compute(
        &mut self,
        running: &mut [Running],
        models: &mut Models,
        source: &ModelSource,
        parts: &[Part],
        stop: &dyn Fn() -> bool,
    ) -> Vec<(usize, Result<Output, Error>)> {
        let mut ended = Vec::new();
        let Some(loaded) = models.get(source) else { return ended };
        let started = Instant::now();
        let tickets: Vec<_> =
            parts.iter().map(|part| running[part.index].submission.ticket.clone()).collect();
        let interrupted = || stop() || tickets.iter().all(|ticket| ticket.is_cancelled());
        let mut segments = Vec::with_capacity(parts.len());
        let mut computing = Vec::with_capacity(parts.len());
        let mut remaining = parts.iter().peekable();
        for (index, request) in running.iter_mut().enumerate() {
            let Some(part) = remaining.next_if(|part| part.index == index) else { continue };
            let (cache, tokens, wanted) = request.next(part.rows);
            match cache.reserve(cache.len() + tokens.len()) {
                Ok(()) => {
                    segments.push(Segment { cache, tokens, wanted, fault: None });
                    computing.push(part);
                }
                Err(error) => ended.push((index, Err(error))),
            }
        }
        if segments.is_empty()
            || !loaded.model.forward(&mut segments, &mut loaded.workspace, &self.pool, &interrupted)
        {
            return ended;
        }
        let faults: Vec<Option<usize>> = segments.iter().map(|segment| segment.fault).collect();
        let hidden_rows: Vec<usize> =
            segments.iter().map(|segment| segment.wanted.count(segment.tokens.len())).collect();
        drop(segments);
        let width = loaded.model.sizes().width;
        let mut first = 0;
        let mut logit_rows = Vec::new();
        for ((part, rows), fault) in computing.iter().zip(&hidden_rows).zip(&faults) {
            let request = &mut running[part.index];
            if let Some(position) = fault {
                ended.push((part.index, Err(Error::NonFinite { position: *position })));
            } else {
                if request.samples(part.rows) {
                    logit_rows.push((part.index, first));
                }
                let hidden = &loaded.model.hidden(&loaded.workspace)[first * width..(first + rows) * width];
                if let Some(output) = request.computed(part.rows, hidden, width) {
                    ended.push((part.index, Ok(output)));
                }
            }
            first += rows;
        }
        if !logit_rows.is_empty() {
            let rows: Vec<usize> = logit_rows.iter().map(|(_, row)| *row).collect();
            let logits = loaded.model.logits(&mut loaded.workspace, &rows, &self.pool);
            if loaded.model.check_lost().is_err() {
                return ended;
            }
            // Rows of the head beyond the vocabulary are padding.
            let choices = loaded.tokenizer.vocab_size();
            for ((index, _), logits) in logit_rows.iter().zip(logits.chunks_exact(loaded.model.vocabulary()))
            {
                let index = *index;
                match running[index].sample(&logits[..choices], &loaded.tokenizer, &mut self.sampler) {
                    Ok(None) => {}
                    Ok(Some(output)) => ended.push((index, Ok(output))),
                    Err(error) => ended.push((index, Err(error))),
                }
            }
        }
        let rows: usize = parts.iter().map(|part| part.rows).sum();
        // A few rows take as long as the weights take to read, which says nothing about more of them.
        if rows >= MIN_PREFILL_ROWS {
            let seconds = started.elapsed().as_secs_f64() / rows as f64;
            let average = loaded.row_seconds.map_or(seconds, |average| average * 0.75 + seconds * 0.25);
            loaded.row_seconds = Some(average);
        }
        ended
    }
}

/// Fails a request that was cancelled.
fn cancelled(request: &Running) -> bool {
    let cancelled = request.submission.ticket.is_cancelled();
    if cancelled {
        request.submission.send(EventKind::Failed(Error::Cancelled));
    }
    cancelled
}

/// One row for each request that generates, and as many prompt rows as should fit into the time of a step.
fn plan(running: &[Running], source: &ModelSource, row_seconds: Option<f64>) -> Vec<Part> {
    let shared = running.iter().any(Running::decodes);
    let step_seconds = if shared { SHARED_STEP_SECONDS } else { PREFILL_STEP_SECONDS };
    let mut prefill = match row_seconds {
        Some(seconds) => ((step_seconds / seconds) as usize).clamp(MIN_PREFILL_ROWS, MAX_PREFILL_ROWS),
        None => MIN_PREFILL_ROWS,
    };
    let mut parts = Vec::new();
    for (index, request) in running.iter().enumerate().filter(|(_, request)| request.source() == source) {
        if request.decodes() {
            parts.push(Part { index, rows: 1 });
        } else if prefill > 0 {
            let rows = request.left().min(prefill);
            prefill -= rows;
            parts.push(Part { index, rows });
        }
    }
    parts
}
