//! One step: a forward pass over the next rows of one model's running requests.

use std::sync::Arc;
use std::time::Instant;

use super::EngineShared;
use super::answer_tree;
use super::job_queue::EngineJob;
use super::load_settings::MAX_PREFILL_ROWS;
use super::models::EngineModels;
use super::prefix::Prefixes;
use super::prompt_lookup::MAX_DRAFT;
use super::rows::{LastServed, StepPart, plan};
use super::sequence::{Sequence, Slice};
use crate::computing::Segment;
use crate::config::{Config, PromptLookup};
use crate::kernels::Pool;
use crate::memory;
use crate::panic::catch;
use crate::sampling::Sampler;
use crate::{Error, ModelSource, Output};

/// The index of a request that ended, and its result.
type IndexedResult = (usize, Result<Output, Error>);

/// Intended longest time of a step while requests generate, so that they get a token now and then.
const SHARED_STEP_SECONDS: f64 = 0.1;
/// Intended longest time of a step while there are only prompts. Long slices cost less, as they share the
/// reading of the weights.
const PREFILL_STEP_SECONDS: f64 = 0.4;
/// Fewest prompt rows of a step, if there are any.
const MIN_PREFILL_ROWS: usize = 8;

/// Fewest prompt rows of a step in which a prompt of at least priority [`URGENT`] waits.
const URGENT_ROWS: usize = 64;
const URGENT: u8 = 9;
/// One step in so many serves prompts whatever their priority is.
const FAIR_STEPS: usize = 8;

/// Most guesses of a step.
const MAX_GUESSES: usize = 32;
/// Most tokens and guesses of a step that may guess: while reading the weights takes most of the time, a few
/// more rows cost little.
const FEW_ROWS: usize = 8;
/// Most requests of such a step.
const FEW_REQUESTS: usize = 2;
/// Memory that a step may allocate.
const STEP_BYTES: usize = 8 << 20;
/// Logits of a share of the pool's work, and shares of a mask.
const CHOICES_WORTH: usize = 32_768;
const MASK_SHARES: usize = 16;
/// The time for a logit whose exponential is wanted, as a multiple of the time for another one.
const EXPS_WORTH: usize = 8;

/// Computes steps, with the threads and the memory that they share.
pub(super) struct Stepper {
    pool: Pool,
    /// One for each thread.
    samplers: Vec<Sampler>,
    /// The model whose turn was the last one.
    last: Option<ModelSource>,
    /// Most rows whose logits are computed together.
    most_logits: usize,
    shared: Arc<EngineShared>,
    prompt_lookup: PromptLookup,
    /// [`Config::prefill_rows`], and how many steps there were.
    prefill_rows: Vec<usize>,
    steps: usize,
    served: LastServed,
}

/// A request whose next tokens are chosen.
struct Choosing<'a> {
    index: usize,
    request: &'a mut Sequence,
    logits: Vec<&'a [f32]>,
    result: Result<(Option<Output>, usize), Error>,
}

/// A row whose logits are needed for the likelihoods of answers.
struct Weighing<'a> {
    index: usize,
    wanted: &'a answer_tree::AnswerRow,
    logits: &'a [f32],
    said: Option<Vec<f64>>,
}

impl Stepper {
    pub(super) fn new(config: &Config, pool: Pool, shared: Arc<EngineShared>) -> Stepper {
        Stepper {
            samplers: (0..pool.threads()).map(|_| Sampler::new(pool.instructions())).collect(),
            pool,
            last: None,
            most_logits: config.max_running.max(1),
            shared,
            prompt_lookup: config.prompt_lookup,
            prefill_rows: config.prefill_rows.clone(),
            steps: 0,
            served: LastServed::default(),
        }
    }

    /// The threads that compute.
    pub(super) fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Computes one step, and ends the requests that are done, failed or cancelled with it. Returns those
    /// whose answers are still to be checked.
    pub(super) fn step(
        &mut self,
        running: &mut Vec<Sequence>,
        models: &mut EngineModels,
        stop: &dyn Fn() -> bool,
    ) -> Vec<EngineJob> {
        let mut checks = Vec::new();
        running.retain(|request| !cancelled(request));
        let Some(source) = self.next_model(running) else { return checks };
        let Some(loaded) = models.get(&source) else { return checks };
        let guesses = self.guess(running, &source);
        self.catch_up(running, &source, &mut loaded.prefixes);
        let prefill = self.prefill_rows(running, loaded.row_seconds).min(MAX_PREFILL_ROWS - guesses);
        let is_fair = self.steps.is_multiple_of(FAIR_STEPS);
        let parts = plan(running, &source, prefill, is_fair, &mut self.served);
        // The step allocates what workspaces, keys and values do not hold: logits, masks, texts.
        let outcome = memory::watched("the next token", STEP_BYTES, || {
            catch(|| self.compute(running, models, &source, &parts, stop))
        });
        let mut ended = match outcome.and_then(|caught| caught).and_then(|ended| ended) {
            Ok(ended) => ended,
            Err(error) => parts.iter().map(|part| (part.index, Err(error.clone()))).collect(),
        };
        if let Some(error) = models.lost(&source) {
            // Results of a lost file were computed from zeros.
            ended = parts.iter().map(|part| (part.index, Err(error.clone()))).collect();
        }
        // Requests are taken out from the back, so that indexes stay right.
        ended.sort_by_key(|(index, _)| *index);
        // If several rows or paths fail, the first error is told.
        ended.dedup_by_key(|(index, _)| *index);
        for (index, result) in ended.into_iter().rev() {
            checks.extend(running.remove(index).end(result));
        }
        checks
    }

    /// Lets the requests guess where that saves time; returns the number of guesses.
    fn guess(&self, running: &mut [Sequence], source: &ModelSource) -> usize {
        let mut requests: Vec<_> = running.iter_mut().filter(|request| request.source() == source).collect();
        let always = self.prompt_lookup == PromptLookup::On;
        let mut left = match self.prompt_lookup {
            PromptLookup::Off => 0,
            PromptLookup::On => MAX_GUESSES,
            PromptLookup::Auto => {
                let few = requests.len() <= FEW_REQUESTS && requests.iter().all(|request| request.decodes());
                if few { FEW_ROWS.saturating_sub(requests.len()) } else { 0 }
            }
        };
        let each = if always { MAX_DRAFT } else { left / requests.len().max(1) };
        let mut guesses = 0;
        for request in &mut requests {
            let count = request.guess(each.min(left), always);
            left -= count;
            guesses += count;
        }
        guesses
    }

    /// Lets prompts skip tokens that other requests have computed in the meantime.
    fn catch_up(&self, running: &mut [Sequence], source: &ModelSource, prefixes: &mut Prefixes) {
        for request in running.iter_mut().filter(|request| request.source() == source) {
            self.shared.statistics.reused(request.catch_up(prefixes));
        }
    }

    /// Prompt rows that should fit into the time of a step.
    fn prefill_rows(&mut self, running: &[Sequence], row_seconds: Option<f64>) -> usize {
        self.steps += 1;
        if !self.prefill_rows.is_empty() {
            return self.prefill_rows[self.steps % self.prefill_rows.len()].clamp(1, MAX_PREFILL_ROWS);
        }
        let shared = running.iter().any(Sequence::decodes);
        let urgent = running.iter().any(is_urgent);
        let fewest = if urgent { URGENT_ROWS } else { MIN_PREFILL_ROWS };
        let step_seconds = if shared { SHARED_STEP_SECONDS } else { PREFILL_STEP_SECONDS };
        match row_seconds {
            Some(seconds) => ((step_seconds / seconds) as usize).clamp(fewest, MAX_PREFILL_ROWS),
            None => fewest,
        }
    }

    /// The next model after the last one, in the order of its requests.
    fn next_model(&mut self, running: &[Sequence]) -> Option<ModelSource> {
        let mut sources: Vec<&ModelSource> = Vec::new();
        for request in running {
            if !sources.contains(&request.source()) {
                sources.push(request.source());
            }
        }
        let after = self.last.as_ref().and_then(|last| sources.iter().position(|source| *source == last));
        let next = after.map_or(0, |index| (index + 1) % sources.len());
        // The model of the most urgent prompt goes first, but not twice in a row while others wait.
        let urgent = running.iter().filter(|request| is_urgent(request));
        let urgent = urgent.max_by_key(|request| request.submission.priority()).map(Sequence::source);
        let next = urgent
            .filter(|urgent| Some(*urgent) != self.last.as_ref())
            .and_then(|urgent| sources.iter().position(|source| *source == urgent))
            .unwrap_or(next);
        self.last = sources.get(next).map(|source| (*source).clone());
        self.last.clone()
    }

    /// The pass itself; returns the requests that ended.
    ///
    /// # Errors
    /// That of all requests of the pass.
    fn compute(
        &mut self,
        running: &mut [Sequence],
        models: &mut EngineModels,
        source: &ModelSource,
        parts: &[StepPart],
        stop: &dyn Fn() -> bool,
    ) -> Result<Vec<IndexedResult>, Error> {
        let mut ended = Vec::new();
        let Some(loaded) = models.get(source) else { return Ok(ended) };
        let mut segments = Vec::with_capacity(parts.len());
        let mut submissions = Vec::with_capacity(parts.len());
        let mut computing = Vec::with_capacity(parts.len());
        let mut remaining = parts.iter().peekable();
        for (index, request) in running.iter_mut().enumerate() {
            let Some(part) = remaining.next_if(|part| part.index == index) else { continue };
            for Slice { submission, path, state, tokens, wanted } in request.next(part.rows) {
                // Other paths than the first have it already.
                if path == 0
                    && let Err(error) = state.reserve(state.len() + tokens.len())
                {
                    ended.push((index, Err(error)));
                    break;
                }
                segments.push(Segment { state, tokens, wanted, fault: None });
                submissions.push(submission);
                computing.push((index, path));
            }
        }
        // A request that was cancelled is told at once, also where the pass goes on for others.
        let interrupted = || {
            let cancelled = submissions.iter().filter(|submission| submission.fail_if_cancelled()).count();
            stop() || cancelled == submissions.len()
        };
        let started = Instant::now();
        if segments.is_empty() || !loaded.decoder.forward(&mut segments, &self.pool, &interrupted)? {
            return Ok(ended);
        }
        // The time is measured without masks and checks, which more rows do not make longer.
        let time = started.elapsed();
        let seconds = time.as_secs_f64();
        let faults: Vec<Option<usize>> = segments.iter().map(|segment| segment.fault).collect();
        let hidden_rows: Vec<usize> =
            segments.iter().map(|segment| segment.wanted.count(segment.tokens.len())).collect();
        drop(segments);
        let facts = loaded.decoder.facts();
        let width = facts.width;
        let mut first = 0;
        let mut sampling = Vec::new();
        let mut scoring = Vec::new();
        let mut weighing = Vec::new();
        for (((index, path), rows), fault) in computing.iter().zip(&hidden_rows).zip(&faults) {
            let request = &mut running[*index];
            let hidden = first..first + rows;
            first += rows;
            if let Some(position) = fault
                && let Err(error) = request.fault(*path, *position)
            {
                ended.push((*index, Err(error)));
                continue;
            }
            let answers = request.weighing(*path, *rows).into_iter();
            weighing.extend(answers.map(|(row, wanted)| (*index, hidden.start + row, wanted)));
            if *path > 0 {
                continue;
            }
            if request.samples() {
                sampling.push((*index, hidden.start..hidden.start + request.sampled_rows()));
            }
            if request.scores() {
                scoring.push((*index, hidden.start));
            }
            let hidden = &loaded.decoder.hidden()[hidden.start * width..hidden.end * width];
            if let Some(result) = request.computed(hidden, width, self.pool.instructions()) {
                ended.push((*index, result));
            }
        }
        if !sampling.is_empty() {
            let rows: Vec<usize> = sampling.iter().flat_map(|(_, rows)| rows.clone()).collect();
            let logits = loaded.decoder.logits(&rows, &self.pool)?;
            // Rows of the head beyond the vocabulary are padding.
            let choices = loaded.tokenizer.vocab_size();
            let mut logits = logits.chunks_exact(facts.vocabulary).map(|logits| &logits[..choices]);
            let mut sampling = sampling.into_iter().peekable();
            let mut choosing: Vec<Choosing<'_>> = Vec::with_capacity(sampling.len());
            for (index, request) in running.iter_mut().enumerate() {
                let Some((_, rows)) = sampling.next_if(|(sampling, _)| *sampling == index) else { continue };
                // All rows of a request are consumed, also where it ends before the last of them.
                let logits = logits.by_ref().take(rows.len()).collect();
                choosing.push(Choosing { index, request, logits, result: Ok((None, 0)) });
            }
            let constrained = choosing.iter().filter(|choosing| choosing.request.is_constrained()).count();
            let worth = rows.len() * choices / CHOICES_WORTH + constrained * MASK_SHARES;
            let tokenizer = &loaded.tokenizer;
            self.pool.each(&mut self.samplers, &mut choosing, worth, &|sampler, choosing| {
                let logits = choosing.logits.iter().copied();
                choosing.result = choosing.request.sample(logits, tokenizer, sampler);
            });
            for Choosing { index, request, logits, result } in choosing {
                match result {
                    Ok((output, right)) => {
                        self.shared.statistics.guessed(logits.len() - 1, right);
                        match output {
                            Some(output) => ended.push((index, Ok(output))),
                            None => request.report_progress(),
                        }
                    }
                    Err(error) => ended.push((index, Err(error))),
                }
            }
        }
        for weighing in weighing.chunks(self.most_logits) {
            let rows: Vec<usize> = weighing.iter().map(|(_, row, _)| *row).collect();
            let logits = loaded.decoder.logits(&rows, &self.pool)?;
            let choices = loaded.tokenizer.vocab_size();
            let logits = logits.chunks_exact(facts.vocabulary).map(|logits| &logits[..choices]);
            let mut rows: Vec<Weighing<'_>> = weighing
                .iter()
                .zip(logits)
                .map(|((index, _, wanted), logits)| Weighing { index: *index, wanted, logits, said: None })
                .collect();
            let worth = rows.len() * choices * EXPS_WORTH / CHOICES_WORTH;
            let instructions = self.pool.instructions();
            self.pool.each(&mut self.samplers, &mut rows, worth, &|_, row| {
                row.said = row.wanted.log_probabilities(row.logits, instructions);
            });
            for Weighing { index, wanted, said, .. } in rows {
                if let Err(error) = running[index].weighed(wanted, said) {
                    ended.push((index, Err(error)));
                }
            }
        }
        let mut computing: Vec<usize> = computing.into_iter().map(|(index, _)| index).collect();
        computing.dedup();
        for index in &computing {
            if !ended.iter().any(|(other, _)| other == index)
                && let Some(output) = running[*index].next_paths(&mut loaded.likelihoods, &*loaded.decoder)
            {
                ended.push((*index, Ok(output)));
            }
        }
        if !scoring.is_empty() {
            let rows: Vec<usize> = scoring.iter().map(|(_, row)| *row).collect();
            let scores = loaded.scores(&rows, &self.pool)?;
            let scored =
                scoring.iter().zip(scores).map(|((index, _), score)| (*index, running[*index].scored(score)));
            ended.extend(scored);
        }
        for index in computing {
            if !ended.iter().any(|(other, result)| *other == index && result.is_err()) {
                running[index].keep(&mut loaded.prefixes);
            }
        }
        let rows: usize = parts.iter().map(|part| part.rows).sum();
        let prompt_rows: usize = parts.iter().filter(|part| part.prompt).map(|part| part.rows).sum();
        self.shared.statistics.computed(parts.len(), prompt_rows, rows - prompt_rows);
        self.shared.statistics.took(time, prompt_rows, rows - prompt_rows);
        // The time of a few rows is that of reading the weights, and does not predict the time of more rows.
        if prompt_rows >= MIN_PREFILL_ROWS {
            let seconds = seconds / rows as f64;
            let average = loaded.row_seconds.map_or(seconds, |average| average * 0.75 + seconds * 0.25);
            loaded.row_seconds = Some(average);
        }
        Ok(ended)
    }
}

/// Whether the request's prompt is still to be computed, and urgent.
fn is_urgent(request: &Sequence) -> bool {
    !request.decodes() && request.submission.priority() >= URGENT
}

/// Fails a request that was cancelled; true if its last event was sent.
fn cancelled(request: &Sequence) -> bool {
    request.submission.fail_if_cancelled()
}
