//! A text in the making: its tokens are chosen one by one, freely or along a constraint, until it ends.

use std::time::{Duration, Instant};

use llguidance::toktrie::SimpleVob;

use super::Submission;
use super::detokenizer::Detokenizer;
use super::thoughts::Thoughts;
use crate::constraints::{Matcher, Taken};
use crate::sampling::Sampler;
use crate::tokenizer::Tokenizer;
use crate::{Error, EventKind, Finish, Generate, Output};

/// Progress of a request is told this often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// How many tokens are tried that may leave no way to the end, before that way is taken.
const MAX_CHOICES: usize = 8;

/// A text in the making.
pub(super) struct Generation {
    how: Generate,
    detokenizer: Detokenizer,
    /// Where it has to match a constraint.
    matcher: Option<Matcher>,
    generated: usize,
    max_tokens: usize,
    told: Instant,
    told_tokens: usize,
}

/// An answer that has to match a constraint, at its beginning.
pub(super) struct ConstrainedStart {
    matcher: Matcher,
    detokenizer: Detokenizer,
    /// The whole of it, where nothing is left to choose.
    pub(super) output: Option<Output>,
}

/// A token that was chosen.
pub(super) struct Chosen {
    pub(super) token: u32,
    /// Those that must follow it.
    pub(super) forced: Vec<u32>,
    /// The whole answer, if that was its end.
    pub(super) output: Option<Output>,
}

impl ConstrainedStart {
    /// Also returns the tokens that every answer begins with, at most `max_tokens`.
    ///
    /// # Errors
    /// Those of the matcher; [`Error::TooFewTokens`] where no answer is so short, [`Error::Unfinished`] where that is not known and
    /// they are too many, [`Error::Mismatch`] where they are the whole
    /// answer and do not pass the last check.
    pub(super) fn begin(
        mut matcher: Matcher,
        max_tokens: usize,
        tokenizer: &Tokenizer,
    ) -> Result<(ConstrainedStart, Vec<u32>), Error> {
        if let Some(needed) = matcher.needed().filter(|needed| *needed > max_tokens) {
            return Err(Error::TooFewTokens { needed, max_tokens });
        }
        let Taken { forced, complete } = matcher.begin()?;
        if forced.len() > max_tokens || (forced.len() == max_tokens && !matcher.matches()) {
            return Err(Error::Unfinished { generated_tokens: max_tokens });
        }
        let mut detokenizer = Detokenizer::new(Vec::new());
        for token in &forced {
            detokenizer.push(tokenizer.token_bytes(*token))?;
        }
        let mut output = None;
        if complete || forced.len() == max_tokens {
            let text = std::mem::replace(&mut detokenizer, Detokenizer::new(Vec::new())).finish(false)?;
            matcher.checker().check(&text)?;
            let finish = if complete { Finish::Complete } else { Finish::Length };
            output = Some(Output::Text { text, generated_tokens: forced.len(), finish });
        }
        Ok((ConstrainedStart { matcher, detokenizer, output }, forced))
    }
}

/// Tokens that are in both sets, which need not be of one length.
fn both(one: &SimpleVob, other: &SimpleVob) -> SimpleVob {
    let mut both = SimpleVob::alloc(one.len());
    one.iter()
        .filter(|id| (*id as usize) < other.len() && other.is_allowed(*id))
        .for_each(|id| both.allow_token(id));
    both
}

impl Generation {
    /// At its beginning, of which `generated` tokens are known.
    pub(super) fn new(
        how: Generate,
        constrained: Option<ConstrainedStart>,
        thoughts: Option<Thoughts>,
        generated: usize,
        max_tokens: usize,
    ) -> Generation {
        let (matcher, detokenizer) = match (constrained, thoughts) {
            (Some(ConstrainedStart { matcher, detokenizer, .. }), _) => (Some(matcher), detokenizer),
            (None, Some(thoughts)) => (None, Detokenizer::with_thoughts(how.stop.clone(), thoughts)),
            (None, None) => (None, Detokenizer::new(how.stop.clone())),
        };
        Generation { how, detokenizer, matcher, generated, max_tokens, told: Instant::now(), told_tokens: 0 }
    }

    /// What it has to match.
    pub(super) fn matcher(&self) -> Option<&Matcher> {
        self.matcher.as_ref()
    }

    /// How many tokens it may still get.
    pub(super) fn room(&self) -> usize {
        self.max_tokens - self.generated
    }

    /// Chooses the token at `position` of the context.
    ///
    /// # Errors
    /// [`Error::NonFinite`], [`Error::InvalidText`]; [`Error::Constraint`] and [`Error::Unfinished`] where there is a
    /// constraint.
    pub(super) fn choose(
        &mut self,
        logits: &[f32],
        position: usize,
        tokenizer: &Tokenizer,
        sampler: &mut Sampler,
    ) -> Result<Chosen, Error> {
        let mut allowed = self.matcher.as_mut().map(Matcher::allowed).transpose()?;
        let first = sampler.choose(logits, &self.how.sampling, position, allowed.as_ref())?;
        let mut token = match &mut allowed {
            Some(allowed) => self.admitted(first, allowed, logits, position, tokenizer, sampler),
            None => first,
        };
        let stopped = match self.add(token, tokenizer) {
            Ok(stopped) => stopped,
            // Chosen once more, among what keeps the text valid. Not before, so that an answer is the same whether or not
            // others have met with this.
            Err(error) => {
                let last = self.room() == 1;
                let Some(mut valid) = tokenizer.following(self.detokenizer.pending(), last).cloned() else {
                    return Err(error);
                };
                if let Some(allowed) = &allowed {
                    valid = both(&valid, allowed);
                }
                if valid.is_zero() {
                    return Err(error);
                }
                token = sampler.choose_again(logits, &self.how.sampling, position, &valid);
                token = self.admitted(token, &mut valid, logits, position, tokenizer, sampler);
                self.add(token, tokenizer)?
            }
        };
        let mut forced = Vec::new();
        let finish = if tokenizer.is_end(token) {
            Some(Finish::EndOfText)
        } else if let Some(matcher) = &mut self.matcher {
            let taken = matcher.take(token)?;
            forced = taken.forced;
            self.follow(&forced, taken.complete, tokenizer)?
        } else {
            self.generated += 1;
            if stopped { Some(Finish::Stop) } else { (self.room() == 0).then_some(Finish::Length) }
        };
        let output = finish.map(|finish| self.finish(finish)).transpose()?;
        Ok(Chosen { token, forced, output })
    }

    /// The token that was chosen among those that are allowed; another, if it would leave too few tokens for the way to the end. Those
    /// that do are no longer allowed.
    fn admitted(
        &mut self,
        mut token: u32,
        allowed: &mut SimpleVob,
        logits: &[f32],
        position: usize,
        tokenizer: &Tokenizer,
        sampler: &mut Sampler,
    ) -> u32 {
        let room = self.room();
        let Some(matcher) = &mut self.matcher else { return token };
        for _ in 0..MAX_CHOICES {
            if tokenizer.is_end(token) || matcher.admits(token, room) {
                return token;
            }
            allowed.disallow_token(token);
            if allowed.is_zero() {
                break;
            }
            token = sampler.choose_again(logits, &self.how.sampling, position, allowed);
        }
        if tokenizer.is_end(token) || matcher.admits(token, room) {
            return token;
        }
        let end = || tokenizer.end_tokens().iter().copied().find(|id| allowed.is_allowed(*id));
        match matcher.way_on().or_else(end) {
            // Also tells the matcher, which knows it.
            Some(next) if tokenizer.is_end(next) || matcher.admits(next, room) => next,
            _ => token,
        }
    }

    /// Adds what a token says to the text; true if that completes a stop string.
    ///
    /// # Errors
    /// [`Error::InvalidText`] where the text would not be valid with it, or could not become so; it is as before then.
    fn add(&mut self, token: u32, tokenizer: &Tokenizer) -> Result<bool, Error> {
        let checkpoint = self.detokenizer.checkpoint();
        let error = match self.detokenizer.push_token(token, tokenizer) {
            Ok(true) => return Ok(true),
            Ok(false) => {
                let pending = self.detokenizer.pending();
                let sound = match tokenizer.is_end(token) {
                    true => pending.is_empty(),
                    false => self.room() == 1 || tokenizer.completes(pending),
                };
                if sound {
                    return Ok(false);
                }
                self.detokenizer.invalid()
            }
            Err(error) => error,
        };
        self.detokenizer.restore(checkpoint);
        Err(error)
    }

    /// Goes on behind a token with those that it forces; returns why the answer ends with them.
    fn follow(
        &mut self,
        forced: &[u32],
        complete: bool,
        tokenizer: &Tokenizer,
    ) -> Result<Option<Finish>, Error> {
        let tokens = 1 + forced.len();
        if tokens > self.room() {
            return Err(Error::Unfinished { generated_tokens: self.generated + self.room() });
        }
        self.generated += tokens;
        for token in forced {
            self.detokenizer.push(tokenizer.token_bytes(*token))?;
        }
        if complete {
            return Ok(Some(Finish::Complete));
        }
        if self.room() > 0 {
            return Ok(None);
        }
        // Whole as it is, although it could have been longer.
        if self.matcher.as_mut().is_some_and(Matcher::matches) {
            return Ok(Some(Finish::Length));
        }
        Err(Error::Unfinished { generated_tokens: self.generated })
    }

    fn finish(&mut self, finish: Finish) -> Result<Output, Error> {
        let detokenizer = std::mem::replace(&mut self.detokenizer, Detokenizer::new(Vec::new()));
        // Where there is a constraint the last character is whole: it matches.
        let text = detokenizer.finish(finish == Finish::Length)?;
        Ok(Output::Text { text, generated_tokens: self.generated, finish })
    }

    /// Tells of progress: of the first token at once, and then now and then.
    pub(super) fn tell(&mut self, submission: &Submission) {
        let is_due = self.told_tokens == 0 || self.told.elapsed() >= PROGRESS_INTERVAL;
        if is_due && self.told_tokens < self.generated {
            self.told = Instant::now();
            self.told_tokens = self.generated;
            let text = self.detokenizer.take_partial();
            submission.send(EventKind::Progress { generated_tokens: self.generated, text });
        }
    }
}
