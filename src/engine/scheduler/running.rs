//! One request on its way: what it still has to compute, and what comes of each pass.

use std::sync::Arc;

use super::Submission;
use super::answer::{Answer, Chosen, Guided};
use super::loaded::Loaded;
use super::loader::Job;
use super::lookup::Lookup;
use super::prefix::{Chain, Prefixes};
use crate::constraints::Grammars;
use crate::kernels::attention::TILE;
use crate::kernels::matrix::Instructions;
use crate::kernels::norm::normalise;
use crate::model::{KvCache, Pooling, Wanted};
use crate::rerank::{Reranker, score_of_vectors};
use crate::sampling::Sampler;
use crate::template::ChatTemplate;
use crate::tokenizer::{Encoded, Tokenizer, truncate};
use crate::{Embed, Error, EventKind, ModelIdentity, ModelSource, Output, Request, Work};

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
    /// How many of them were there before the first was chosen: the prompt, and what every answer begins with.
    given: usize,
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
    Text(Box<Answer>),
    Vector {
        sum: Vec<f32>,
        pooling: Pooling,
        pair: Option<Pair>,
    },
    /// What the model says of a document behind the last token.
    Score,
}

/// Two texts whose vectors are compared.
struct Pair {
    /// The vector of the first, once it is there.
    first: Option<Vec<f32>>,
    /// The tokens of the second, until it is its turn.
    second: Vec<u32>,
}

/// What a request needs, known after tokenizing.
pub(super) struct Plan {
    /// The prompt, and what every answer begins with.
    pub(super) tokens: Vec<u32>,
    /// Those of a second text, which is computed apart.
    pub(super) second: Option<Vec<u32>>,
    /// Where the second of two texts begins that an encoder looks at together; elsewhere, the number of tokens.
    pub(super) border: usize,
    /// How many of the tokens are the prompt.
    prompt_tokens: usize,
    max_tokens: usize,
    guided: Option<Guided>,
    /// Positions that its cache will have.
    pub(super) positions: usize,
}

/// What of a model tokenizes requests.
pub(super) struct Reader {
    pub(super) tokenizer: Arc<Tokenizer>,
    pub(super) grammars: Arc<Grammars>,
    pub(super) template: Arc<ChatTemplate>,
    pub(super) reranker: Reranker,
    pub(super) context_length: usize,
}

impl Plan {
    /// Tokenizes the request, checks that it fits into the context, and begins what it is constrained to.
    pub(super) fn new(work: &Work, reader: &Reader) -> Result<Plan, Error> {
        let context_length = reader.context_length;
        let tokenizer = &reader.tokenizer;
        let (mut tokens, second) = match work {
            Work::Generate(how) => (reader.template.encode_prompt(tokenizer, &how.prompt)?, None),
            Work::Embed(how) => (embedding(how, tokenizer, context_length)?, None),
            Work::Rerank(how) => match reader.reranker.tokens(how, tokenizer, context_length)? {
                Some(tokens) => (tokens, None),
                None => {
                    let document = Embed { truncate: how.truncate, ..Embed::passage(&how.document) };
                    let document = embedding(&document, tokenizer, context_length)?;
                    (tokenizer.encode_embedding(&how.query)?, Some(document))
                }
            },
        };
        if tokens.is_empty() || second.as_ref().is_some_and(Vec::is_empty) {
            return Err(Error::UnreadableText { reason: "it has no tokens".to_owned() });
        }
        let length = tokens.len().max(second.as_ref().map_or(0, Vec::len));
        let room = match work {
            Work::Generate(_) => context_length.saturating_sub(length),
            // What generates nothing may fill the context.
            Work::Embed(_) | Work::Rerank(_) => (context_length + 1).saturating_sub(length),
        };
        if room == 0 {
            return Err(Error::PromptTooLong { prompt_tokens: length, context_length });
        }
        let max_tokens = match work {
            Work::Generate(how) => how.max_tokens.min(room),
            Work::Embed(_) | Work::Rerank(_) => 1,
        };
        // The last token is never computed.
        let (prompt_tokens, positions) = (tokens.len(), length + max_tokens - 1);
        let constraint = match work {
            Work::Generate(how) => how.constraint.as_ref(),
            Work::Embed(_) | Work::Rerank(_) => None,
        };
        let mut guided = None;
        if let Some(constraint) = constraint {
            let guide = reader.grammars.guide(constraint)?;
            let (begun, forced) = Guided::begin(guide, max_tokens, &reader.tokenizer)?;
            tokens.extend(forced);
            guided = Some(begun);
        }
        Ok(Plan { tokens, second, border: prompt_tokens, prompt_tokens, max_tokens, guided, positions })
    }

    /// That of an encoder, which keeps no keys and values.
    pub(super) fn encoded(encoded: Encoded, second: Option<Encoded>) -> Plan {
        let Encoded { tokens, second: border } = encoded;
        let (prompt_tokens, second) = (tokens.len(), second.map(|second| second.tokens));
        Plan { tokens, second, border, prompt_tokens, max_tokens: 1, guided: None, positions: 0 }
    }

    /// The whole answer, where it was known without a model.
    pub(super) fn take_output(&mut self) -> Option<Output> {
        self.guided.as_mut()?.output.take()
    }

    /// Length of the prompt.
    pub(super) fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// A cache with as many kept blocks of the model as the prompt begins with; none of them unless `reuse` is set.
    pub(super) fn begin(&self, request: &Request, loaded: &mut Loaded, reuse: bool) -> Beginning {
        let mut cache = KvCache::new(loaded.model.cache_shape());
        let embeds = match request.work {
            Work::Generate(_) => false,
            Work::Embed(_) => true,
            Work::Rerank(_) => loaded.reranker == Reranker::Cosine,
        };
        // The hidden states of all tokens are needed, or that of the first.
        let whole = embeds && loaded.model.sizes().pooling != Pooling::Last;
        let chain = (reuse && !whole).then(|| {
            let mut chain = Chain::new(request.salt);
            loaded.prefixes.attach(&mut chain, &mut cache, reusable(&self.tokens));
            chain
        });
        Beginning { cache, chain, positions: self.positions }
    }
}

/// The tokens of a text to be embedded, as many as the context has room for where it is to be cut.
fn embedding(how: &Embed, tokenizer: &Tokenizer, context_length: usize) -> Result<Vec<u32>, Error> {
    let mut tokens = tokenizer.encode_embedding(&how.instructed())?;
    if how.truncate && tokens.len() > context_length {
        let before = tokenizer.encode_embedding(&how.instruction())?.len();
        truncate(&mut tokens, before, tokenizer.embedding_suffix_len(), context_length);
    }
    Ok(tokens)
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
    pub(super) fn new(
        submission: Submission,
        plan: Plan,
        beginning: Beginning,
        loaded: &Loaded,
        model: ModelIdentity,
    ) -> Running {
        submission.send(EventKind::Started { prompt_tokens: plan.prompt_tokens, model });
        let given = plan.tokens.len();
        let goal = match &submission.request.work {
            Work::Generate(how) => {
                let generated = given - plan.prompt_tokens;
                Goal::Text(Box::new(Answer::new(how.clone(), plan.guided, generated, plan.max_tokens)))
            }
            Work::Rerank(_) if loaded.reranker != Reranker::Cosine => Goal::Score,
            Work::Embed(_) | Work::Rerank(_) => Goal::Vector {
                sum: Vec::new(),
                pooling: loaded.model.sizes().pooling,
                pair: plan.second.map(|second| Pair { first: None, second }),
            },
        };
        let Beginning { cache, chain, positions } = beginning;
        let (tokens, lookup) = (plan.tokens, Lookup::new());
        Running { submission, cache, chain, positions, tokens, given, guessed: 0, lookup, goal }
    }

    /// Bytes of keys and values that belong to it or will, apart from the model's kept blocks.
    pub(super) fn own_bytes(&self) -> u64 {
        own_bytes(&self.cache, self.chain.as_ref(), self.positions)
    }

    pub(super) fn source(&self) -> &ModelSource {
        &self.submission.request.model
    }

    /// Whether its prompt is computed, and what every answer begins with.
    pub(super) fn decodes(&self) -> bool {
        matches!(&self.goal, Goal::Text(_)) && self.tokens.len() > self.given
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
        if let Goal::Text(answer) = &self.goal
            && self.tokens.len() > self.given
            // What a constraint forces needs no guess, and the rest of it is not much like the prompt.
            && answer.guide().is_none()
        {
            // The last token needs no guess: nothing follows it.
            let draft = self.lookup.draft(&self.tokens, most.min(answer.room() - 1), always);
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
            Goal::Vector { pooling: Pooling::Last, .. } | Goal::Text(_) | Goal::Score if last => {
                Wanted::Last(1 + self.guessed)
            }
            Goal::Vector { .. } | Goal::Text(_) | Goal::Score => Wanted::None,
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
        matches!(self.goal, Goal::Text(_)) && self.left() == 0
    }

    /// Whether the model is to say what it thinks of a document: everything is computed.
    pub(super) fn scores(&self) -> bool {
        matches!(self.goal, Goal::Score) && self.left() == 0
    }

    /// The result of a score.
    pub(super) fn scored(&self, score: f32) -> Result<Output, Error> {
        if score.is_finite() {
            return Ok(Output::Score(score));
        }
        Err(Error::NonFinite { position: self.cache.len().saturating_sub(1) })
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
    pub(super) fn computed(
        &mut self,
        hidden: &[f32],
        width: usize,
        instructions: Instructions,
    ) -> Option<Output> {
        let Goal::Vector { sum, pair, .. } = &mut self.goal else { return None };
        for row in hidden.chunks_exact(width) {
            if sum.is_empty() {
                sum.extend_from_slice(row);
            } else {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        if self.cache.len() < self.tokens.len() {
            return None;
        }
        // Mean or sum: normalising makes them equal.
        let vector = normalise(instructions, std::mem::take(sum));
        let Some(pair) = pair else { return Some(Output::Embedding(vector)) };
        if let Some(first) = &pair.first {
            return Some(Output::Score(score_of_vectors(instructions, first, &vector)));
        }
        // The second text, from its beginning.
        pair.first = Some(vector);
        self.tokens = std::mem::take(&mut pair.second);
        self.cache = KvCache::new(self.cache.shape());
        self.chain = self.chain.as_ref().map(|_| Chain::new(self.submission.request.salt));
        None
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
        let known = self.tokens.len();
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
        // What followed a wrong guess.
        self.cache.truncate(known + right);
        Ok((output, right))
    }

    /// Chooses the token after all others.
    fn choose(
        &mut self,
        logits: &[f32],
        tokenizer: &Tokenizer,
        sampler: &mut Sampler,
    ) -> Result<(u32, Option<Output>), Error> {
        let Goal::Text(answer) = &mut self.goal else {
            return Ok((0, None));
        };
        let Chosen { token, forced, output } =
            answer.choose(logits, self.tokens.len(), tokenizer, sampler)?;
        if output.is_none() {
            self.tokens.push(token);
            self.tokens.extend(forced);
        }
        Ok((token, output))
    }

    /// Whether a mask has to be computed before a choice.
    pub(super) fn is_constrained(&self) -> bool {
        matches!(&self.goal, Goal::Text(answer) if answer.guide().is_some())
    }

    /// Tells of progress, now and then.
    pub(super) fn tell(&mut self) {
        if let Goal::Text(answer) = &mut self.goal {
            answer.tell(&self.submission);
        }
    }

    /// Ends it with its last event; what was made under a constraint has to be checked before.
    pub(super) fn end(self, result: Result<Output, Error>) -> Option<Job> {
        let Running { submission, goal, .. } = self;
        let guide = match &goal {
            Goal::Text(answer) => answer.guide(),
            Goal::Vector { .. } | Goal::Score => None,
        };
        match (result, guide) {
            (Ok(output), Some(guide)) => {
                return Some(Job::Check {
                    submission: Box::new(submission),
                    output,
                    checker: guide.checker(),
                });
            }
            (Ok(output), None) => submission.send(EventKind::Done(output)),
            (Err(error), _) => submission.fail(error),
        }
        None
    }
}
