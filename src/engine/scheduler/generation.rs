//! A text in the making: its tokens are chosen one by one, freely or along a constraint, until it ends.

use std::sync::Arc;
use std::time::{Duration, Instant};

use llguidance::toktrie::SimpleVob;

use super::Submission;
use super::detokenizer::Detokenizer;
use super::thoughts::Thoughts;
use crate::constraints::{Checker, GrammarPlace, Matcher, Taken};
use crate::sampling::{Sampler, TokenCounts};
use crate::tokenizer::Tokenizer;
use crate::{Error, EventKind, Finish, Generate, Output};

/// Progress of a request is sent this often.
const PROGRESS_INTERVAL: Duration = Duration::from_millis(50);

/// Most tokens that are tried of those that may leave no way to the end, before the known way is taken.
const MAX_CHOICES: usize = 8;

/// Most digits of a number in a document: readers of documents cannot take larger numbers.
const MAX_DIGITS: usize = 250;

/// Number of choices to go back where a finished answer does not match, at each attempt.
const BACK: [usize; 16] = [1, 1, 2, 1, 1, 2, 6, 1, 1, 2, 1, 1, 2, 6, 24, 100];

/// A text in the making.
pub(super) struct Generation {
    how: Generate,
    detokenizer: Detokenizer,
    /// The matcher of its constraint, if it has one.
    matcher: Option<Matcher>,
    /// Its tokens, as far as they matter for the next one.
    seen: TokenCounts,
    /// The choices to go back to, where such an answer may have to be tried again.
    trials: Option<Trials>,
    generated: usize,
    max_tokens: usize,
    /// Whether a token was refused as it would have left too few for the end.
    closing: bool,
    reported: Instant,
    reported_tokens: usize,
}

/// An answer that is checked when it is finished, and goes back to another choice if it does not match.
struct Trials {
    /// Number of tokens with which every answer begins.
    begun: usize,
    /// All tokens of the answer.
    tokens: Vec<u32>,
    /// The choices that were made.
    choices: Vec<AnswerChoice>,
    /// Tokens that have led to no answer from here.
    spent: Vec<u32>,
    /// Number of attempts after the first.
    count: usize,
}

/// A choice of an answer.
struct AnswerChoice {
    place: GrammarPlace,
    /// Number of tokens and bytes before it.
    tokens: usize,
    bytes: usize,
    /// Tokens that had led to no answer before.
    spent: Vec<u32>,
}

/// An answer that has to match a constraint, at its beginning.
pub(super) struct ConstrainedStart {
    matcher: Matcher,
    detokenizer: Detokenizer,
    /// Tokens that every answer begins with.
    forced: Vec<u32>,
    /// The whole answer, where the constraint leaves nothing to choose. It has still to be checked.
    pub(super) output: Option<Output>,
}

/// A token that was chosen.
pub(super) struct Chosen {
    pub(super) token: u32,
    /// Tokens that must follow it.
    pub(super) forced: Vec<u32>,
    /// The whole answer, if that was its end.
    pub(super) output: Option<Output>,
    /// Number of the answer's tokens that are left, where it has gone back.
    pub(super) back: Option<usize>,
}

impl ConstrainedStart {
    /// Also returns the tokens that every answer begins with, at most `max_tokens`; `wanted` were asked for.
    ///
    /// # Errors
    /// Errors of the matcher; [`Error::TooFewTokens`] where no answer is so short, [`Error::Unfinished`]
    /// where that is not known and they are too many.
    pub(super) fn begin(
        mut matcher: Matcher,
        max_tokens: usize,
        wanted: usize,
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
            let finish = if complete { Finish::Complete } else { Finish::Length };
            let out_of_context = !complete && max_tokens < wanted;
            output = Some(Output::Text { text, generated_tokens: forced.len(), finish, out_of_context });
        }
        Ok((ConstrainedStart { matcher, detokenizer, forced: forced.clone(), output }, forced))
    }

    /// The checker of the finished answer.
    pub(super) fn checker(&self) -> Arc<Checker> {
        self.matcher.checker()
    }
}

impl Trials {
    fn new(forced: Vec<u32>) -> Trials {
        Trials { begun: forced.len(), tokens: forced, choices: Vec::new(), spent: Vec::new(), count: 0 }
    }

    /// Records a choice, and removes from `allowed` the tokens that have led to no answer from there.
    fn begin_choice(&mut self, place: GrammarPlace, allowed: &mut SimpleVob, tokenizer: &Tokenizer) {
        let spent = std::mem::take(&mut self.spent);
        take_away(&spent, allowed, tokenizer);
        if self.digits(tokenizer) >= MAX_DIGITS {
            let mut others = allowed.clone();
            let goes_on = |id: &u32| tokenizer.token_bytes(*id).first().is_some_and(u8::is_ascii_digit);
            allowed.iter().filter(goes_on).for_each(|id| others.disallow_token(id));
            if !others.is_zero() {
                *allowed = others;
            }
        }
        let (before, known) = self.choices.last().map_or((0, 0), |last| (last.tokens, last.bytes));
        let new = self.tokens[before..].iter().map(|id| tokenizer.token_bytes(*id).len());
        let bytes = known + new.sum::<usize>();
        self.choices.push(AnswerChoice { place, tokens: self.tokens.len(), bytes, spent });
    }

    /// Number of digits at the end of the answer, if they belong to a number.
    fn digits(&self, tokenizer: &Tokenizer) -> usize {
        let (mut digits, mut before) = (0, b' ');
        'answer: for token in self.tokens.iter().rev() {
            for byte in tokenizer.token_bytes(*token).iter().rev() {
                if !byte.is_ascii_digit() {
                    before = *byte;
                    break 'answer;
                }
                digits += 1;
            }
        }
        // Strings may have any number of digits: these are no number if no number can begin there.
        if matches!(before, b' ' | b'[' | b'-' | b'.') && digits >= MAX_DIGITS && !self.in_string(tokenizer) {
            digits
        } else {
            0
        }
    }

    /// Whether the answer ends inside a string.
    fn in_string(&self, tokenizer: &Tokenizer) -> bool {
        let (mut in_string, mut escaped) = (false, false);
        for byte in self.tokens.iter().flat_map(|id| tokenizer.token_bytes(*id)) {
            match byte {
                _ if escaped => escaped = false,
                b'\\' if in_string => escaped = true,
                b'"' => in_string = !in_string,
                _ => {}
            }
        }
        in_string
    }
}

/// Takes tokens from those that are allowed: with one that ends the answer all that do, as they end it at the
/// same place.
fn take_away(spent: &[u32], allowed: &mut SimpleVob, tokenizer: &Tokenizer) {
    spent.iter().for_each(|id| allowed.disallow_token(*id));
    if spent.iter().any(|id| tokenizer.is_end(*id)) {
        tokenizer.end_tokens().iter().for_each(|id| allowed.disallow_token(*id));
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
    /// A text at its beginning, of which the tokens `begun` are known.
    pub(super) fn new(
        how: Generate,
        constrained: Option<ConstrainedStart>,
        thoughts: Option<Thoughts>,
        begun: &[u32],
        max_tokens: usize,
    ) -> Generation {
        let mut trials = None;
        let (matcher, detokenizer) = match (constrained, thoughts) {
            (Some(ConstrainedStart { matcher, detokenizer, forced, .. }), _) => {
                trials = matcher.checker().is_stricter().then(|| Trials::new(forced));
                (Some(matcher), detokenizer)
            }
            (None, Some(thoughts)) => (None, Detokenizer::with_thoughts(how.stop.clone(), thoughts)),
            (None, None) => (None, Detokenizer::new(how.stop.clone())),
        };
        let mut seen = TokenCounts::default();
        begun.iter().for_each(|token| seen.add(*token, &how.sampling));
        let generated = begun.len();
        let (reported, reported_tokens) = (Instant::now(), 0);
        Generation {
            how,
            detokenizer,
            matcher,
            seen,
            trials,
            generated,
            max_tokens,
            closing: false,
            reported,
            reported_tokens,
        }
    }

    /// The matcher of its constraint; None where it has none.
    pub(super) fn matcher(&self) -> Option<&Matcher> {
        self.matcher.as_ref()
    }

    /// Number of tokens that it may still get.
    pub(super) fn room(&self) -> usize {
        self.max_tokens - self.generated
    }

    /// Chooses the token at `position` of the context.
    ///
    /// # Errors
    /// [`Error::NonFinite`], [`Error::InvalidText`]; [`Error::Constraint`] and [`Error::Unfinished`] where
    /// there is a constraint.
    pub(super) fn choose(
        &mut self,
        logits: &[f32],
        position: usize,
        tokenizer: &Tokenizer,
        sampler: &mut Sampler,
    ) -> Result<Chosen, Error> {
        let mut allowed = self.matcher.as_mut().map(Matcher::allowed).transpose()?;
        let mut spent = false;
        if let (Some(allowed), Some(trials), Some(matcher)) = (&mut allowed, &mut self.trials, &self.matcher)
        {
            spent = !trials.spent.is_empty();
            trials.begin_choice(matcher.place(), allowed, tokenizer);
        }
        let first = match &allowed {
            // The token that was drawn before is not among those that are allowed.
            Some(allowed) if spent && !allowed.is_zero() => {
                sampler.choose_again(logits, &self.how.sampling, position, allowed, &self.seen)
            }
            _ => sampler.choose(logits, &self.how.sampling, position, allowed.as_ref(), &self.seen)?,
        };
        let mut token = match &mut allowed {
            Some(allowed) => self.admitted(first, allowed, logits, position, tokenizer, sampler),
            None => first,
        };
        let stopped = match self.add(token, tokenizer) {
            Ok(stopped) => stopped,
            // A token is chosen once more, from those that keep the text valid. They are not enforced from
            // the start, so that an answer without this error is the same as without the rule.
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
                token = sampler.choose_again(logits, &self.how.sampling, position, &valid, &self.seen);
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
        for token in [token].iter().chain(&forced) {
            self.seen.add(*token, &self.how.sampling);
        }
        if let Some(trials) = &mut self.trials {
            trials.tokens.extend((!tokenizer.is_end(token)).then_some(token).iter().chain(&forced));
            if finish.is_some()
                && let Some(back) = self.go_back(token, tokenizer)?
            {
                return Ok(Chosen { token, forced: Vec::new(), output: None, back: Some(back) });
            }
        }
        let output = finish.map(|finish| self.finish(finish)).transpose()?;
        Ok(Chosen { token, forced, output, back: None })
    }

    /// Goes back to a choice that another token is possible for, if the answer that ends with a token does
    /// not match. Returns how many tokens are left of it then.
    ///
    /// The place lies in the part of the answer that does not match, or before it: the last one first, and
    /// now and then one further back ([`BACK`]).
    fn go_back(&mut self, last: u32, tokenizer: &Tokenizer) -> Result<Option<usize>, Error> {
        let (Some(trials), Some(matcher)) = (&mut self.trials, &mut self.matcher) else { return Ok(None) };
        let Some(distance) = BACK.get(trials.count) else { return Ok(None) };
        let bytes = |tokens: &[u32]| -> Vec<u8> {
            tokens.iter().flat_map(|id| tokenizer.token_bytes(*id)).copied().collect()
        };
        let Ok(text) = String::from_utf8(bytes(&trials.tokens)) else { return Ok(None) };
        let Some(flaw) = matcher.checker().flaw(&text) else { return Ok(None) };
        let inside = trials.choices.partition_point(|choice| choice.bytes < flaw.end.max(1));
        let mut next = inside.saturating_sub(*distance);
        trials.count += 1;
        loop {
            let Some(choice) = trials.choices.get(next) else { return Ok(None) };
            let (place, left) = (choice.place, choice.tokens);
            let chosen = trials.tokens.get(left).copied().unwrap_or(last);
            matcher.go_back(place)?;
            trials.tokens.truncate(left);
            let mut spent =
                trials.choices.drain(next..).next().map(|choice| choice.spent).unwrap_or_default();
            spent.push(chosen);
            let mut others = matcher.allowed()?;
            take_away(&spent, &mut others, tokenizer);
            trials.spent = spent;
            if !others.is_zero() {
                break;
            }
            let Some(before) = next.checked_sub(1) else {
                return Err(Error::Mismatch {
                    reason: "all that was tried does not conform to the schema".to_owned(),
                });
            };
            next = before;
        }
        self.generated = trials.tokens.len();
        self.seen = TokenCounts::default();
        trials.tokens.iter().for_each(|token| self.seen.add(*token, &self.how.sampling));
        self.detokenizer = Detokenizer::new(Vec::new());
        self.detokenizer.push(&bytes(&trials.tokens))?;
        Ok(Some(self.generated))
    }

    /// Number of tokens with which every answer begins.
    pub(super) fn begun(&self) -> usize {
        self.trials.as_ref().map_or(0, |trials| trials.begun)
    }

    /// The token that was chosen among those that are allowed; another, if it would leave too few tokens for
    /// the way to the end. Those that do are no longer allowed.
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
            self.closing = true;
            allowed.disallow_token(token);
            if allowed.is_zero() {
                break;
            }
            token = sampler.choose_again(logits, &self.how.sampling, position, allowed, &self.seen);
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

    /// Adds the text of a token; true if that completes a stop string.
    ///
    /// # Errors
    /// [`Error::InvalidText`] where the text would not be valid with it, or could not become so; it is as
    /// before then.
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
        // The text is complete, although it could have been longer.
        if self.matcher.as_mut().is_some_and(Matcher::matches) {
            return Ok(Some(Finish::Length));
        }
        Err(Error::Unfinished { generated_tokens: self.generated })
    }

    fn finish(&mut self, finish: Finish) -> Result<Output, Error> {
        let detokenizer = std::mem::replace(&mut self.detokenizer, Detokenizer::new(Vec::new()));
        // An answer under a constraint matches it, so its last character is whole.
        let text = detokenizer.finish(finish == Finish::Length)?;
        let finish = match finish {
            Finish::Complete | Finish::EndOfText if self.closing => Finish::Closed,
            finish => finish,
        };
        let for_length = matches!(finish, Finish::Length | Finish::Closed);
        let out_of_context = for_length && self.max_tokens < self.how.max_tokens;
        Ok(Output::Text { text, generated_tokens: self.generated, finish, out_of_context })
    }

    /// Sends the progress: after the first token at once, and then now and then.
    pub(super) fn report_progress(&mut self, submission: &Submission) {
        let is_due = self.reported_tokens == 0 || self.reported.elapsed() >= PROGRESS_INTERVAL;
        if is_due && self.reported_tokens < self.generated {
            self.reported = Instant::now();
            self.reported_tokens = self.generated;
            // A text of which something may be taken back is sent when it is whole.
            let text = if self.trials.is_some() { String::new() } else { self.detokenizer.take_partial() };
            submission.send(EventKind::Progress { generated_tokens: self.generated, text });
        }
    }
}
