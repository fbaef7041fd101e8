//! One request on its way: what it still has to compute, and what comes of each pass.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Submission;
use super::lookup::Lookup;
use super::models::Loaded;
use super::prefix::{Chain, Prefixes};
use super::text::Text;
use crate::kernels::attention::TILE;
use crate::model::{KvCache, Pooling, Wanted};
use crate::sampling::Sampler;
use crate::template::ChatTemplate;
use crate::tokenizer::Tokenizer;
use crate::{Error, EventKind, Finish, Generate, ModelSource, Output, Request, Work};

/// Progress of a request is told this often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// A request that is being worked on.
pub(super) struct Running {
    pub(super) submission: Submission,
    cache: KvCache,
    /// Its place among the model's kept blocks; None where it has to compute everything itself.
    chain: Option<Chain>,
    /// Positions that its cache will have.
    positions: usize,
    /// The prompt and what was generated, then guesses for the pass that is under way. Those that are not in
    /// the cache are to be computed.
    tokens: Vec<u32>,
    /// How many of them are guesses.
    guessed: usize,
    lookup: Lookup,
    goal: Goal,
}

/// What a pass computes of a request.
pub(super) struct Slice<'a> {
    pub(super) submission: &'a Submission,
    pub(super) cache: &'a mut KvCache,
    pub(super) tokens: &'a [u32],
    pub(super) wanted: Wanted,
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

/// What of a model tokenizes requests.
pub(super) struct Reader {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) template: Arc<ChatTemplate>,
    pub(super) context_length: usize,
}

impl Plan {
    /// Tokenizes the request and checks that it fits into the context.
    pub(super) fn new(work: &Work, reader: &Reader) -> Result<Plan, Error> {
        let context_length = reader.context_length;
        let tokens = match work {
            Work::Generate(how) => reader.template.encode_prompt(&reader.tokenizer, &how.prompt)?,
            Work::Embed(how) => reader.tokenizer.encode_embedding(&how.text)?,
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

    /// A cache with as many kept blocks of the model as the prompt begins with; none of them unless `reuse` is set.
    pub(super) fn begin(&self, request: &Request, loaded: &mut Loaded, reuse: bool) -> Beginning {
        let mut cache = KvCache::new(loaded.model.cache_shape());
        let whole = match request.work {
            Work::Generate(_) => false,
            // The hidden states of all tokens are needed, or that of the first.
            Work::Embed(_) => loaded.model.sizes().pooling != Pooling::Last,
        };
        let chain = (reuse && !whole).then(|| {
            let mut chain = Chain::new(request.salt);
            loaded.prefixes.attach(&mut chain, &mut cache, reusable(&self.tokens));
            chain
        });
        Beginning { cache, chain, positions: self.positions }
    }
}

/// The last token is always computed: its hidden state is what all is about.
fn reusable(tokens: &[u32]) -> &[u32] {
    tokens.split_last().map_or(&[], |(_, before)| before)
}

/// Where a request begins to compute.
pub(super) struct Beginning {
    cache: KvCache,
    chain: Option<Chain>,
    positions: usize,
}

impl Beginning {
    /// Bytes of keys and values that the request will add to the model's kept blocks.
    pub(super) fn own_bytes(&self) -> u64 {
        own_bytes(&self.cache, self.chain.as_ref(), self.positions)
    }

    /// Positions that need not be computed.
    pub(super) fn reused(&self) -> usize {
        self.cache.len()
    }
}

fn own_bytes(cache: &KvCache, chain: Option<&Chain>, positions: usize) -> u64 {
    cache.shape().bytes(positions) - chain.map_or(0, Chain::blocks) as u64 * cache.shape().block_bytes()
}

impl Running {
    /// Begins a request; tells that it is started.
    pub(super) fn new(submission: Submission, plan: Plan, beginning: Beginning, loaded: &Loaded) -> Running {
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
        let Beginning { cache, chain, positions } = beginning;
        let (tokens, lookup) = (plan.tokens, Lookup::new());
        Running { submission, cache, chain, positions, tokens, guessed: 0, lookup, goal }
    }

    /// Bytes of keys and values that belong to it or will, apart from the model's kept blocks.
    pub(super) fn own_bytes(&self) -> u64 {
        own_bytes(&self.cache, self.chain.as_ref(), self.positions)
    }

    pub(super) fn source(&self) -> &ModelSource {
        &self.submission.request.model
    }

    /// Whether its prompt is computed.
    pub(super) fn decodes(&self) -> bool {
        matches!(&self.goal, Goal::Text { generated, .. } if *generated > 0)
    }

    /// Number of tokens that wait to be computed, guesses included.
    pub(super) fn left(&self) -> usize {
        self.tokens.len() - self.cache.len()
    }

    /// Skips what others have computed since; returns how many positions that are.
    pub(super) fn catch_up(&mut self, prefixes: &mut Prefixes) -> usize {
        let decodes = self.decodes();
        match &mut self.chain {
            Some(chain) if !decodes => prefixes.attach(chain, &mut self.cache, reusable(&self.tokens)),
            _ => 0,
        }
    }

    /// Keeps its full blocks for others.
    pub(super) fn keep(&mut self, prefixes: &mut Prefixes) {
        if let Some(chain) = &mut self.chain {
            let computed = self.cache.len();
            prefixes.keep(chain, &mut self.cache, &self.tokens[..computed]);
        }
    }

    /// Hashes of the prompt's blocks that are computed when the next `rows` rows are, wholly or in part.
    pub(super) fn blocks_ahead(&self, rows: usize) -> impl Iterator<Item = u64> {
        let chain = self.chain.as_ref().filter(|_| !self.decodes());
        let count = move |chain: &Chain| (self.cache.len() + rows).div_ceil(TILE) - chain.blocks();
        chain.into_iter().flat_map(move |chain| chain.hashes(reusable(&self.tokens)).take(count(chain)))
    }

    /// Whether it could go on with whole blocks if it waited for them.
    pub(super) fn at_border(&self) -> bool {
        self.cache.len().is_multiple_of(TILE)
    }

    /// Adds guesses at the tokens that follow, at most `most`; forgets those of a pass that came to nothing.
    /// Returns how many there are.
    pub(super) fn guess(&mut self, most: usize, always: bool) -> usize {
        self.tokens.truncate(self.tokens.len() - self.guessed);
        self.guessed = 0;
        if let Goal::Text { generated, max_tokens, .. } = &self.goal
            && *generated > 0
        {
            // The last token needs no guess: nothing follows it.
            let draft = self.lookup.draft(&self.tokens, most.min(max_tokens - generated - 1), always);
            self.guessed = draft.len();
            self.tokens.extend(draft);
        }
        self.guessed
    }

    /// The next `rows` tokens and where they go. Guesses go together with the token before them.
    pub(super) fn next(&mut self, rows: usize) -> Slice<'_> {
        let computed = self.cache.len();
        let end = self.tokens.len().min(computed + rows);
        let last = end == self.tokens.len();
        let wanted = match &self.goal {
            Goal::Vector { pooling: Pooling::Mean, .. } => Wanted::All,
            Goal::Vector { pooling: Pooling::First, .. } if computed == 0 => Wanted::First,
            Goal::Vector { pooling: Pooling::First, .. } => Wanted::None,
            Goal::Vector { pooling: Pooling::Last, .. } | Goal::Text { .. } if last => {
                Wanted::Last(1 + self.guessed)
            }
            Goal::Vector { .. } | Goal::Text { .. } => Wanted::None,
        };
        Slice {
            submission: &self.submission,
            cache: &mut self.cache,
            tokens: &self.tokens[computed..end],
            wanted,
        }
    }

    /// Whether a token is to be chosen: everything is computed.
    pub(super) fn samples(&self) -> bool {
        matches!(self.goal, Goal::Text { .. }) && self.left() == 0
    }

    /// What is to be made of a position at which the last pass was not finite: an error, unless it is only a
    /// guess that is now dropped.
    pub(super) fn fault(&mut self, position: usize) -> Result<(), Error> {
        if position < self.tokens.len() - self.guessed {
            return Err(Error::NonFinite { position });
        }
        self.guessed -= self.tokens.len() - position;
        self.tokens.truncate(position);
        self.cache.wipe(position);
        Ok(())
    }

    /// Takes what a pass computed: hidden states of the rows that were wanted, `width` each. Returns the result
    /// once it is complete.
    pub(super) fn computed(&mut self, hidden: &[f32], width: usize) -> Option<Output> {
        let Goal::Vector { sum, .. } = &mut self.goal else { return None };
        for row in hidden.chunks_exact(width) {
            if sum.is_empty() {
                sum.extend_from_slice(row);
            } else {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        // Mean or sum: normalising makes them equal.
        (self.cache.len() == self.tokens.len()).then(|| Output::Embedding(normalise(std::mem::take(sum))))
    }

    /// Number of rows whose logits [`Running::sample`] takes.
    pub(super) fn sampled_rows(&self) -> usize {
        1 + self.guessed
    }

    /// Chooses the next token from the first row of logits, and one more from each following row as long as
    /// the guess before it was right. Returns the result once it is complete, and how many guesses were right.
    pub(super) fn sample<'l>(
        &mut self,
        logits: impl Iterator<Item = &'l [f32]>,
        tokenizer: &Tokenizer,
        sampler: &mut Sampler,
    ) -> Result<(Option<Output>, usize), Error> {
        let draft = self.tokens.split_off(self.tokens.len() - std::mem::take(&mut self.guessed));
        let mut right = 0;
        let mut output = None;
        for (row, logits) in logits.enumerate() {
            let (token, ended) = self.choose(logits, tokenizer, sampler)?;
            output = ended;
            if output.is_some() || draft.get(row) != Some(&token) {
                break;
            }
            right += 1;
        }
        self.lookup.learn(draft.len(), right);
        // What followed a wrong guess. The last token is not computed yet.
        self.cache.truncate(self.tokens.len() - 1);
        Ok((output, right))
    }

    /// Chooses the token after all others.
    fn choose(
        &mut self,
        logits: &[f32],
        tokenizer: &Tokenizer,
        sampler: &mut Sampler,
    ) -> Result<(u32, Option<Output>), Error> {
        let Goal::Text { how, text, generated, max_tokens, told, told_tokens } = &mut self.goal else {
            return Ok((0, None));
        };
        let token = sampler.choose(logits, &how.sampling, self.tokens.len())?;
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
            self.tokens.push(token);
            if told.elapsed() >= PROGRESS_INTERVAL && *told_tokens < *generated {
                *told = Instant::now();
                *told_tokens = *generated;
                let progress =
                    EventKind::Progress { generated_tokens: *generated, text: text.take_partial() };
                self.submission.send(progress);
            }
            return Ok((token, None));
        };
        let text = std::mem::replace(text, Text::new(Vec::new())).finish(finish == Finish::Length)?;
        Ok((token, Some(Output::Text { text, generated_tokens: *generated, finish })))
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
