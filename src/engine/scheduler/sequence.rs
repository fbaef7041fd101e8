//! A running request: the tokens that it still has to compute, and its progress with each pass.

mod lanes;

use self::lanes::{Lane, lane_bytes};
use super::Submission;
use super::answer_tree::Answers;
use super::beginning::{RequestBeginning, own_bytes, reusable};
use super::generation::{Chosen, Generation};
use super::job_queue::EngineJob;
use super::likelihood_memo::{MemoKey, key_of};
use super::loaded::LoadedDecoder;
use super::plan::Plan;
use super::prefix::{Chain, Prefixes};
use super::prompt_lookup::Drafter;
use super::turns::Turn;
use crate::computing::{BLOCK, Pooling, State, WantedRows};
use crate::kernels::instructions::Instructions;
use crate::kernels::norm::normalise;
use crate::rerank::{Reranker, score_of_vectors};
use crate::sampling::Sampler;
use crate::tokenizer::Tokenizer;
use crate::work::shortened;
use crate::{Error, EventKind, ModelIdentity, ModelSource, Output, Work};

/// A request that was admitted.
pub(super) struct Sequence {
    pub(super) submission: Submission,
    state: Box<dyn State>,
    /// Its place among the model's kept blocks; None where it has to compute everything itself.
    chain: Option<Chain>,
    /// Positions that its state will have.
    positions: usize,
    /// The prompt and the generated tokens, then guesses for the current pass. Tokens that are not in the
    /// state are still to be computed.
    tokens: Vec<u32>,
    /// Number of them that were there before the first was chosen: the prompt, and the tokens that every
    /// answer begins with.
    given: usize,
    /// Number of them that are guesses.
    guessed: usize,
    /// Number of the prompt's tokens that were found computed; None once that was told.
    cached: Option<usize>,
    prompt_tokens: usize,
    drafter: Drafter,
    goal: Goal,
    /// Its place among the running requests.
    pub(super) turn: Turn,
    /// The time at which its prompt or forced tokens were last served ([`super::rows`]).
    pub(super) served: u64,
    /// Paths through answers that are computed beside the first one, and the most that there may be.
    lanes: Vec<Lane>,
    most_lanes: usize,
}

/// A request that was admitted and has given its place away.
pub(super) struct Suspended {
    pub(super) sequence: Sequence,
    /// The model that computed it.
    pub(super) identity: ModelIdentity,
    /// The number of the load of the model that computed it.
    pub(super) load: Option<u64>,
}

/// The part of a request that one pass computes.
pub(super) struct Slice<'a> {
    pub(super) submission: &'a Submission,
    /// The number of the path through answers that it belongs to; 0 where there are none.
    pub(super) path: usize,
    pub(super) state: &'a mut dyn State,
    pub(super) tokens: &'a [u32],
    pub(super) wanted: WantedRows,
}

/// The result that a request is to have, as far as it is computed.
enum Goal {
    Text(Box<Generation>),
    Vector {
        sum: Vec<f32>,
        pooling: Pooling,
        pair: Option<Pair>,
    },
    /// The model's score of a document, from the row of the last token.
    Score,
    /// The likelihoods of answers. The tokens are the prompt and the path through the answers that is
    /// computed now.
    Likelihoods(Box<Answers>, Option<MemoKey>),
}

/// Two texts whose vectors are compared.
struct Pair {
    /// The vector of the first, once it is there.
    first: Option<Vec<f32>>,
    /// The tokens of the second, until it is its turn.
    second: Vec<u32>,
}

impl Sequence {
    /// Begins a request; tells that it is started.
    pub(super) fn new(
        submission: Submission,
        plan: Plan,
        beginning: RequestBeginning,
        loaded: &LoadedDecoder,
        model: ModelIdentity,
        turn: Turn,
    ) -> Sequence {
        submission.send(EventKind::Started { prompt_tokens: plan.prompt_tokens, model });
        let (given, prompt_tokens) = (plan.tokens.len(), plan.prompt_tokens);
        let cached = Some(beginning.reused());
        let goal = match (&submission.request.work, plan.answers) {
            (_, Some(answers)) => Goal::Likelihoods(Box::new(answers), key_of(&submission.request)),
            (Work::Generate(how), None) => {
                let begun = &plan.tokens[plan.prompt_tokens..];
                Goal::Text(Box::new(Generation::new(
                    how.clone(),
                    plan.constrained,
                    plan.thoughts,
                    begun,
                    plan.max_tokens,
                )))
            }
            (Work::Rerank(_), None) if loaded.reranker != Reranker::Cosine => Goal::Score,
            // An embedding, or a reranking by cosine; no other work comes here.
            (_, None) => Goal::Vector {
                sum: Vec::new(),
                pooling: loaded.decoder.facts().pooling,
                pair: plan.second.map(|second| Pair { first: None, second }),
            },
        };
        let RequestBeginning { state, chain, positions } = beginning;
        let (mut tokens, drafter) = (plan.tokens, Drafter::new());
        if let Goal::Likelihoods(answers, _) = &goal {
            tokens.extend(answers.tokens(0));
        }
        Sequence {
            submission,
            state,
            chain,
            positions,
            tokens,
            given,
            guessed: 0,
            cached,
            prompt_tokens,
            drafter,
            goal,
            turn,
            served: 0,
            lanes: Vec::new(),
            most_lanes: 0,
        }
    }

    /// Bytes of state that belong to it now or later, apart from the model's kept blocks.
    pub(super) fn own_bytes(&self) -> u64 {
        let lanes = match self.most_lanes as u64 {
            0 => 0,
            lanes => lanes * lane_bytes(&*self.state, self.given, self.positions),
        };
        own_bytes(&*self.state, self.chain.as_ref(), self.positions) + lanes
    }

    /// Bytes of state that it would have if it shared none.
    pub(super) fn whole_bytes(&self) -> u64 {
        self.state.bytes(self.positions)
    }

    /// Positions that its state will have.
    pub(super) fn positions(&self) -> usize {
        self.positions
    }

    /// Bytes of state that it has now, apart from the model's kept blocks.
    pub(super) fn taken_bytes(&self) -> u64 {
        let kept = self.chain.as_ref().map_or(0, Chain::blocks);
        let fixed = if self.has_state() { self.state.fixed_bytes() } else { 0 };
        let [all, kept] = [self.state.blocks(), kept].map(|blocks| self.state.block_bytes(blocks));
        // Window parts of blocks are counted with each request that shares them, as these let go of them one
        // by one.
        let seen = self.state.window_bytes(self.state.window_blocks());
        all.saturating_sub(kept) + seen + fixed
    }

    /// Whether it has any state.
    pub(super) fn has_state(&self) -> bool {
        self.state.blocks() > 0
    }

    /// Gives its place away; it goes on where it was.
    pub(super) fn pause(&mut self) {
        self.give_up_lanes(0);
        self.most_lanes = 0;
        self.tokens.truncate(self.tokens.len() - std::mem::take(&mut self.guessed));
    }

    /// Gives its state away, which is computed again from its tokens. Returns the number of positions lost.
    pub(super) fn forget_state(&mut self) -> usize {
        let forgotten = self.state.len();
        self.state.forget();
        self.cached = self.cached.map(|_| 0);
        self.chain = self.chain.as_ref().map(|_| Chain::new(self.submission.request.salt));
        // A sum of hidden states begins anew with the recomputed positions.
        if let Goal::Vector { sum, .. } = &mut self.goal {
            sum.clear();
        }
        forgotten
    }

    /// Takes its kept blocks from the model; returns the number of positions gained.
    pub(super) fn reattach(&mut self, prefixes: &mut Prefixes) -> usize {
        let tokens = &self.tokens[..self.reusable()];
        let Some(chain) = &mut self.chain else { return 0 };
        let mut attached = prefixes.attach(chain, &mut *self.state, tokens);
        if matches!(self.goal, Goal::Likelihoods(..)) {
            attached += prefixes.attach_tail(chain, &mut *self.state, tokens);
        }
        self.note_cached(attached)
    }

    /// Counts positions that it found computed; returns their number.
    fn note_cached(&mut self, positions: usize) -> usize {
        self.cached = self.cached.map(|cached| cached + positions);
        positions
    }

    /// Number of its first tokens that other requests may have computed for it.
    fn reusable(&self) -> usize {
        let tokens = match &self.goal {
            // Paths through answers are not kept, and the logits of each of their rows are needed.
            Goal::Likelihoods(..) => &self.tokens[..self.given],
            Goal::Text(_) | Goal::Vector { .. } | Goal::Score => &self.tokens[..],
        };
        reusable(tokens).len()
    }

    pub(super) fn source(&self) -> &ModelSource {
        &self.submission.request.model
    }

    /// Whether its prompt, and the tokens that every answer begins with, are computed.
    pub(super) fn decodes(&self) -> bool {
        matches!(&self.goal, Goal::Text(_)) && self.tokens.len() > self.given
    }

    /// Number of tokens that wait to be computed, guesses included.
    pub(super) fn left(&self) -> usize {
        self.tokens.len() - self.state.len()
    }

    /// The same with those of other paths through answers.
    pub(super) fn left_of_all(&self) -> usize {
        self.left() + self.lanes.iter().map(|lane| lane.left(self.given)).sum::<usize>()
    }

    /// Skips tokens that other requests have computed since; returns the number of positions.
    pub(super) fn catch_up(&mut self, prefixes: &mut Prefixes) -> usize {
        if self.decodes() { 0 } else { self.reattach(prefixes) }
    }

    /// Keeps its full blocks for other requests.
    pub(super) fn keep(&mut self, prefixes: &mut Prefixes) {
        let most = match &self.goal {
            Goal::Likelihoods(..) => self.given,
            Goal::Text(_) | Goal::Vector { .. } | Goal::Score => usize::MAX,
        };
        if let Some(chain) = &mut self.chain {
            let computed = self.state.len().min(most);
            prefixes.keep(chain, &mut *self.state, &self.tokens[..computed]);
            if computed == most {
                prefixes.keep_tail(chain, &*self.state, &self.tokens[..most]);
            }
        }
    }

    /// Hashes of the prompt's blocks that the next `rows` rows complete or begin.
    pub(super) fn blocks_ahead(&self, rows: usize) -> impl Iterator<Item = u64> {
        let chain = self.chain.as_ref().filter(|_| !self.decodes());
        let count =
            move |chain: &Chain| (self.state.len() + rows).div_ceil(BLOCK).saturating_sub(chain.blocks());
        chain
            .into_iter()
            .flat_map(move |chain| chain.hashes(&self.tokens[..self.reusable()]).take(count(chain)))
    }

    /// Whether it stands at the border of a block, so that it could go on with kept blocks if it waited for
    /// them.
    pub(super) fn at_border(&self) -> bool {
        self.state.len().is_multiple_of(BLOCK)
    }

    /// Adds guesses at the next tokens, at most `most`, after dropping those of a pass that failed. Returns
    /// the number of guesses.
    pub(super) fn guess(&mut self, most: usize, always: bool) -> usize {
        self.tokens.truncate(self.tokens.len() - self.guessed);
        self.guessed = 0;
        if let Goal::Text(generation) = &self.goal
            && self.tokens.len() > self.given
            // Tokens that a constraint forces need no guess, and the rest of such an answer is not much like
            // the prompt.
            && generation.matcher().is_none()
        {
            // The last token needs no guess: nothing follows it.
            let draft = self.drafter.draft(&self.tokens, most.min(generation.room() - 1), always);
            self.guessed = draft.len();
            self.tokens.extend(draft);
        }
        self.guessed
    }

    /// The next `rows` tokens with their states: its own first, then those of other paths through answers.
    /// Guesses go together with the token before them.
    pub(super) fn next(&mut self, rows: usize) -> Vec<Slice<'_>> {
        self.reserve_lanes(rows.saturating_sub(self.left()));
        let mut rest = rows.saturating_sub(self.left());
        let computed = self.state.len();
        let end = self.tokens.len().min(computed + rows);
        let last = end == self.tokens.len();
        let wanted = match &self.goal {
            Goal::Vector { pooling: Pooling::Mean, .. } => WantedRows::All,
            Goal::Vector { pooling: Pooling::First, .. } if computed == 0 => WantedRows::First,
            Goal::Vector { pooling: Pooling::First, .. } => WantedRows::None,
            Goal::Likelihoods(..) if end < self.given => WantedRows::None,
            // The row of the prompt's last token, and those behind it, which are taken back.
            Goal::Likelihoods(..) if computed < self.given => WantedRows::Last(end + 1 - self.given),
            Goal::Likelihoods(..) => WantedRows::Guesses(end - computed),
            Goal::Vector { pooling: Pooling::Last, .. } | Goal::Text(_) | Goal::Score if last => {
                WantedRows::Last(1 + self.guessed)
            }
            Goal::Vector { .. } | Goal::Text(_) | Goal::Score => WantedRows::None,
        };
        let (submission, given) = (&self.submission, self.given);
        let mut slices = Vec::with_capacity(1);
        if end > computed {
            let (state, tokens) = (&mut *self.state, &self.tokens[computed..end]);
            slices.push(Slice { submission, path: 0, state, tokens, wanted });
        }
        for (path, lane) in (1..).zip(&mut self.lanes) {
            let rows = lane.left(given).min(rest);
            if rows == 0 {
                continue;
            }
            rest -= rows;
            let begin = lane.state.len() - given;
            let (state, tokens) = (&mut *lane.state, &lane.tokens[begin..begin + rows]);
            slices.push(Slice { submission, path, state, tokens, wanted: WantedRows::Guesses(rows) });
        }
        slices
    }

    /// Whether a token is to be chosen next: everything is computed.
    pub(super) fn samples(&self) -> bool {
        matches!(self.goal, Goal::Text(_)) && self.left() == 0
    }

    /// Whether the score of a document is to be computed next: everything else is.
    pub(super) fn scores(&self) -> bool {
        matches!(self.goal, Goal::Score) && self.left() == 0
    }

    /// The result for a score.
    pub(super) fn scored(&self, score: f32) -> Result<Output, Error> {
        if score.is_finite() {
            return Ok(Output::Score(score));
        }
        Err(Error::NonFinite { position: self.state.len().saturating_sub(1) })
    }

    /// Handles a position whose values were not finite in the last pass: an error, unless the position
    /// belongs only to a guess, which is then dropped.
    pub(super) fn fault(&mut self, path: usize, position: usize) -> Result<(), Error> {
        let known = self.tokens.len() - self.guessed;
        if path > 0 || position < known {
            return Err(Error::NonFinite { position });
        }
        self.state.wipe(position);
        // If a state cannot be cut just there, more guesses are dropped.
        self.tokens.truncate(self.state.len().max(known));
        self.guessed = self.tokens.len() - known;
        Ok(())
    }

    /// Takes the result of a pass: hidden states of the wanted rows, `width` each. Returns the output once it
    /// is complete.
    pub(super) fn computed(
        &mut self,
        hidden: &[f32],
        width: usize,
        instructions: Instructions,
    ) -> Option<Result<Output, Error>> {
        let Goal::Vector { sum, pair, .. } = &mut self.goal else { return None };
        for row in hidden.chunks_exact(width) {
            if sum.is_empty() {
                sum.extend_from_slice(row);
            } else {
                sum.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
            }
        }
        if self.state.len() < self.tokens.len() {
            return None;
        }
        // Mean or sum: normalising makes them equal.
        let vector = normalise(instructions, std::mem::take(sum));
        let Some(pair) = pair else {
            let vector = shortened(&self.submission.request.work, vector, instructions);
            return Some(vector.map(Output::Embedding));
        };
        if let Some(first) = &pair.first {
            return Some(Ok(Output::Score(score_of_vectors(instructions, first, &vector))));
        }
        // The second text, from its beginning.
        pair.first = Some(vector);
        self.tokens = std::mem::take(&mut pair.second);
        self.state.forget();
        self.chain = self.chain.as_ref().map(|_| Chain::new(self.submission.request.salt));
        None
    }

    /// Number of rows whose logits [`Sequence::sample`] takes.
    pub(super) fn sampled_rows(&self) -> usize {
        1 + self.guessed
    }

    /// Chooses the next token from the first row of logits, and one more from each following row as long as
    /// the guess before it was right. Returns the result once it is complete, and how many guesses were
    /// right.
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
        self.drafter.learn(draft.len(), right);
        // The state gives back everything behind the last right guess.
        self.state.truncate(known + right);
        Ok((output, right))
    }

    /// Chooses the next token.
    fn choose(
        &mut self,
        logits: &[f32],
        tokenizer: &Tokenizer,
        sampler: &mut Sampler,
    ) -> Result<(u32, Option<Output>), Error> {
        let Goal::Text(generation) = &mut self.goal else {
            return Ok((0, None));
        };
        let Chosen { token, forced, output, back } =
            generation.choose(logits, self.tokens.len(), tokenizer, sampler)?;
        if let Some(left) = back {
            let left = self.given - generation.begun() + left;
            self.tokens.truncate(left);
            // The last token is computed once more, as the next choice needs its logits.
            self.state.truncate(left - 1);
            // Blocks that other requests share are not cut.
            if self.chain.as_ref().is_some_and(|chain| self.state.len() < chain.blocks() * BLOCK) {
                self.forget_state();
            }
        } else if output.is_none() {
            self.tokens.push(token);
            self.tokens.extend(forced);
        }
        Ok((token, output))
    }

    /// Whether a mask has to be computed before a choice.
    pub(super) fn is_constrained(&self) -> bool {
        matches!(&self.goal, Goal::Text(generation) if generation.matcher().is_some())
    }

    /// Sends that its first token was chosen, once.
    fn report_first_token(&mut self) {
        if let Some(cached) = self.cached.take() {
            let cached_tokens = cached.min(self.prompt_tokens);
            self.submission.send(EventKind::FirstToken { cached_tokens });
        }
    }

    /// Sends the progress, now and then.
    pub(super) fn report_progress(&mut self) {
        self.report_first_token();
        if let Goal::Text(generation) = &mut self.goal {
            generation.report_progress(&self.submission);
        }
    }

    /// Sends its last event; an answer under a constraint has to be checked before.
    pub(super) fn end(mut self, result: Result<Output, Error>) -> Option<EngineJob> {
        if matches!((&result, &self.goal), (Ok(_), Goal::Text(_))) {
            self.report_first_token();
        }
        let Sequence { submission, goal, .. } = self;
        let matcher = match &goal {
            Goal::Text(generation) => generation.matcher(),
            Goal::Vector { .. } | Goal::Score | Goal::Likelihoods(..) => None,
        };
        match (result, matcher) {
            (Ok(output), Some(matcher)) => {
                return Some(EngineJob::Check {
                    submission: Box::new(submission),
                    output,
                    checker: matcher.checker(),
                });
            }
            (Ok(output), None) => submission.send(EventKind::Done(output)),
            (Err(error), _) => submission.fail(error),
        }
        None
    }
}
