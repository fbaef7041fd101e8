//! One request on its way: what it still has to compute, and what comes of each pass.

use std::time::{Duration, Instant};

use super::Submission;
use super::models::Loaded;
use super::text::Text;
use crate::model::{KvCache, Pooling, Wanted};
use crate::sampling::Sampler;
use crate::tokenizer::Tokenizer;
use crate::{Error, EventKind, Finish, Generate, ModelSource, Output, Work};

/// Progress of a request is told this often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// A request that is being worked on.
pub(super) struct Running {
    pub(super) submission: Submission,
    pub(super) cache: KvCache,
    /// Bytes of the cache when it is full.
    pub(super) reserved: u64,
    /// Tokens to compute: those of the prompt, later the last one that was chosen.
    tokens: Vec<u32>,
    /// How many of `tokens` are computed.
    computed: usize,
    goal: Goal,
}

/// What is to come of a request.
enum Goal {
    Text { how: Generate, text: Text, generated: usize, max_tokens: usize, told: Instant, told_tokens: usize },
    Vector { sum: Vec<f32>, pooling: Pooling },
}

/// What a request needs, known after tokenizing.
pub(super) struct Plan {
    tokens: Vec<u32>,
    max_tokens: usize,
    /// Positions that its cache will have.
    pub(super) positions: usize,
}

impl Plan {
    /// Tokenizes the request and checks that it fits into the context.
    pub(super) fn new(work: &Work, loaded: &Loaded) -> Result<Plan, Error> {
        let context_length = loaded.context_length;
        let tokens = match work {
            Work::Generate(how) => loaded.template.encode_prompt(&loaded.tokenizer, &how.prompt)?,
            Work::Embed(how) => loaded.tokenizer.encode_embedding(&how.text)?,
        };
        if tokens.is_empty() {
            return Err(Error::InvalidRequest("the text has no tokens".to_owned()));
        }
        let room = match work {
            Work::Generate(_) => context_length.saturating_sub(tokens.len()),
            // An embedding may fill the context.
            Work::Embed(_) => (context_length + 1).saturating_sub(tokens.len()),
        };
        if room == 0 {
            return Err(Error::PromptTooLong { prompt_tokens: tokens.len(), context_length });
        }
        let max_tokens = match work {
            Work::Generate(how) => how.max_tokens.min(room),
            Work::Embed(_) => 1,
        };
        // The last token is never computed.
        let positions = tokens.len() + max_tokens - 1;
        Ok(Plan { tokens, max_tokens, positions })
    }
}

impl Running {
    /// Begins a request; tells that it is started.
    pub(super) fn new(submission: Submission, plan: Plan, loaded: &Loaded, reserved: u64) -> Running {
        submission.send(EventKind::Started { prompt_tokens: plan.tokens.len() });
        let goal = match &submission.request.work {
            Work::Generate(how) => Goal::Text {
                text: Text::new(how.stop.clone()),
                how: how.clone(),
                generated: 0,
                max_tokens: plan.max_tokens,
                told: Instant::now(),
                told_tokens: 0,
            },
            Work::Embed(_) => Goal::Vector { sum: Vec::new(), pooling: loaded.model.sizes().pooling },
        };
        let cache = KvCache::new(loaded.model.cache_shape());
        Running { submission, cache, reserved, tokens: plan.tokens, computed: 0, goal }
    }

    pub(super) fn source(&self) -> &ModelSource {
        &self.submission.request.model
    }

    /// Whether its next pass computes one token that was just chosen.
    pub(super) fn decodes(&self) -> bool {
        matches!(&self.goal, Goal::Text { generated, .. } if *generated > 0)
    }

    /// Number of tokens that wait to be computed.
    pub(super) fn left(&self) -> usize {
        self.tokens.len() - self.computed
    }

    /// The next `rows` tokens, the cache they go to, and the rows whose hidden state is wanted.
    pub(super) fn next(&mut self, rows: usize) -> (&mut KvCache, &[u32], Wanted) {
        let end = self.tokens.len().min(self.computed + rows);
        let last = end == self.tokens.len();
        let wanted = match &self.goal {
            Goal::Vector { pooling: Pooling::Mean, .. } => Wanted::All,
            Goal::Vector { pooling: Pooling::First, .. } if self.computed == 0 => Wanted::First,
            Goal::Vector { pooling: Pooling::First, .. } => Wanted::None,
            Goal::Vector { pooling: Pooling::Last, .. } | Goal::Text { .. } if last => Wanted::Last,
            Goal::Vector { .. } | Goal::Text { .. } => Wanted::None,
        };
        (&mut self.cache, &self.tokens[self.computed..end], wanted)
    }

    /// Whether the pass over the next `rows` tokens ends in a token to be chosen.
    pub(super) fn samples(&self, rows: usize) -> bool {
        matches!(self.goal, Goal::Text { .. }) && rows >= self.left()
    }

    /// Takes what a pass over `rows` tokens computed: hidden states of the rows that were wanted, `width`
    /// each. Returns the result once it is complete.
    pub(super) fn computed(&mut self, rows: usize, hidden: &[f32], width: usize) -> Option<Output> {
        self.computed += rows;
        let Goal::Vector { sum, .. } = &mut self.goal else { return None };
        for row in hidden.chunks_exact(width) {
            if sum.is_empty() {
                sum.extend_from_slice(row);
            } else {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        // Mean or sum: normalising makes them equal.
        (self.computed == self.tokens.len()).then(|| Output::Embedding(normalise(std::mem::take(sum))))
    }

    /// Chooses the next token. Returns the result once it is complete.
    pub(super) fn sample(
        &mut self,
        logits: &[f32],
        tokenizer: &Tokenizer,
        sampler: &mut Sampler,
    ) -> Result<Option<Output>, Error> {
        let Goal::Text { how, text, generated, max_tokens, told, told_tokens } = &mut self.goal else {
            return Ok(None);
        };
        let token = sampler.choose(logits, &how.sampling, self.cache.len())?;
        let finish = if tokenizer.is_end(token) {
            Some(Finish::EndOfText)
        } else {
            *generated += 1;
            if text.push(tokenizer.token_bytes(token))? {
                Some(Finish::Stop)
            } else if *generated >= *max_tokens {
                Some(Finish::Length)
            } else {
                None
            }
        };
        let Some(finish) = finish else {
            self.tokens.clear();
            self.tokens.push(token);
            self.computed = 0;
            if told.elapsed() >= PROGRESS_INTERVAL && *told_tokens < *generated {
                *told = Instant::now();
                *told_tokens = *generated;
                let progress =
                    EventKind::Progress { generated_tokens: *generated, text: text.take_partial() };
                self.submission.send(progress);
            }
            return Ok(None);
        };
        let text = std::mem::replace(text, Text::new(Vec::new())).finish(finish == Finish::Length)?;
        Ok(Some(Output::Text { text, generated_tokens: *generated, finish }))
    }
}

/// Scales to length 1; a zero vector stays one.
fn normalise(mut vector: Vec<f32>) -> Vec<f32> {
    let length = crate::kernels::norm::sum_of_squares(&vector).sqrt();
    if length > 0.0 {
        vector.iter_mut().for_each(|value| *value /= length);
    }
    vector
}
