//! Following a constraint, token by token.

use std::sync::Arc;

use llguidance::toktrie::SimpleVob;
use toktrie::TokEnv;

use super::checker::{Checker, brief};
use super::closing::{Chart, ChartMark, Way, fewest};
use super::counting::{self, CountedText, CountingWalk, can_spell};
use super::regular::Regular;
use crate::Error;
use crate::memory::Reservation;
use crate::tokenizer::Tokenizer;

/// A request's place in its grammar.
pub(crate) struct Matcher {
    grammar: llguidance::Matcher,
    /// The same place in the language of a pattern, from which masks are made.
    regular: Option<Regular>,
    tokenizer: Arc<Tokenizer>,
    words: TokEnv,
    checker: Arc<Checker>,
    /// The same place in the grammar of a document, from which ways to the end are made.
    chart: Option<Box<Chart>>,
    /// A way to the end from here, where one is known.
    way: Option<Way>,
    /// The last way whose tokens were counted one by one.
    counted: Option<CountedText>,
    /// Steps left for counting until the next token is taken.
    steps: usize,
    /// The token that [`Matcher::admits`] has admitted, and the way to the end from there.
    admitted: Option<(u32, Option<Way>)>,
    /// Tokens taken.
    tokens: usize,
    _held: Reservation,
}

/// A place in an answer to return to.
#[derive(Clone, Copy)]
pub(crate) struct GrammarPlace {
    tokens: usize,
    mark: Option<ChartMark>,
}

/// The room that a token needs to be admitted if no way to the end was found behind it: this many times the
/// tokens of the known way, plus this many.
const AMPLE: (usize, usize) = (4, 100);

/// The consequences of a token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// Tokens that must follow it; they are taken as well.
    pub(crate) forced: Vec<u32>,
    /// Whether nothing can follow them.
    pub(crate) complete: bool,
}

impl Matcher {
    pub(super) fn new(
        grammar: llguidance::Matcher,
        regular: Option<Regular>,
        chart: Option<Box<Chart>>,
        tokenizer: Arc<Tokenizer>,
        words: TokEnv,
        checker: Arc<Checker>,
        held: Reservation,
    ) -> Matcher {
        Matcher {
            grammar,
            regular,
            tokenizer,
            words,
            checker,
            chart,
            way: None,
            counted: None,
            steps: counting::MAX_STEPS,
            admitted: None,
            tokens: 0,
            _held: held,
        }
    }

    /// The current place.
    pub(crate) fn place(&self) -> GrammarPlace {
        GrammarPlace { tokens: self.tokens, mark: self.chart.as_ref().map(|chart| chart.mark()) }
    }

    /// Goes back to an earlier place of the answer.
    ///
    /// # Errors
    /// As [`Matcher::allowed`].
    pub(crate) fn go_back(&mut self, place: GrammarPlace) -> Result<(), Error> {
        let tokens = self.tokens.saturating_sub(place.tokens);
        self.grammar.rollback(tokens).map_err(|error| self.failed(&error))?;
        self.grammar.invalidate_bias_cache();
        self.tokens = place.tokens;
        (self.way, self.admitted) = (None, None);
        match (&mut self.chart, place.mark) {
            (Some(chart), Some(mark)) => chart.go_back(mark),
            _ => self.chart = None,
        }
        self.steps = counting::MAX_STEPS;
        if let Some(text) = self.search(&[]) {
            self.way = self.count(None, &text, usize::MAX).map(|tokens| Way { text, tokens });
        }
        Ok(())
    }

    /// A shortest answer, with the number of its tokens, including those that every answer begins with.
    /// Called before anything else, not between two tokens, as all of it is counted.
    pub(super) fn find_way(&mut self) -> Option<(Way, CountedText)> {
        let shortest = self.search(&[]);
        let fewest = self.regular.as_ref().and_then(Regular::fewest);
        let ways: Vec<(Way, CountedText)> = shortest
            .into_iter()
            .chain(fewest)
            .filter_map(|text| {
                (self.steps, self.counted) = (usize::MAX, None);
                let tokens = self.count(None, &text, usize::MAX)?;
                Some((Way { text, tokens }, self.counted.take()?))
            })
            .collect();
        ways.into_iter().min_by_key(|(way, _)| way.tokens)
    }

    /// Sets the way to the end that [`Matcher::find_way`] has found for a matcher of the same constraint.
    pub(super) fn set_way(&mut self, way: Option<(Way, CountedText)>) {
        (self.way, self.counted) = way.unzip();
    }

    /// At the beginning, the number of tokens of the shortest answer, as far as it is known; later, a number
    /// that is enough for the rest.
    pub(crate) fn needed(&self) -> Option<usize> {
        self.way.as_ref().map(|way| way.tokens)
    }

    /// The tokens that every answer begins with. Must be called first.
    ///
    /// # Errors
    /// [`Error::Constraint`].
    pub(crate) fn begin(&mut self) -> Result<Taken, Error> {
        self.force()
    }

    /// The tokens that may follow, including those that end the answer if it matches.
    ///
    /// # Errors
    /// [`Error::Constraint`] where there are none, or where finding them would take too many steps.
    pub(crate) fn allowed(&mut self) -> Result<SimpleVob, Error> {
        if let Some(regular) = &self.regular
            && !self.grammar.is_stopped()
        {
            let mut mask = regular.allowed();
            if self.matches() {
                self.tokenizer.end_tokens().iter().for_each(|id| mask.allow_token(*id));
            }
            if !mask.is_zero() {
                return Ok(mask);
            }
        }
        // Called even where there is none, for the reason.
        self.grammar.compute_mask().map_err(|error| self.failed(&error))
    }

    /// Whether an allowed token that does not end the answer leaves a way to its end, where `room` tokens are
    /// left, including that one. Where no way is known, all tokens are admitted.
    pub(crate) fn admits(&mut self, token: u32, room: usize) -> bool {
        if self.way.is_none() {
            return true;
        }
        let left = room.saturating_sub(1);
        let tokenizer = Arc::clone(&self.tokenizer);
        let bytes = tokenizer.token_bytes(token);
        let searched = self.search(bytes);
        // The known way, which may differ from the one just found.
        let along = self.way.as_ref().and_then(|way| way.text.strip_prefix(bytes)).map(<[u8]>::to_vec);
        let none = searched.is_none() && along.is_none();
        let found = searched.and_then(|text| Some(Way { tokens: self.fits(token, &text, left)?, text }));
        let found = found.or_else(|| {
            let text = along?;
            // The first step of the way was counted together with the rest.
            let counted = self.way_on() == Some(token);
            let behind = self.way.as_ref().map(|way| way.tokens.saturating_sub(1));
            let tokens = behind.filter(|tokens| counted && *tokens <= left);
            let tokens = tokens.or_else(|| self.fits(token, &text, left))?;
            Some(Way { text, tokens })
        });
        if let Some(way) = found {
            self.admitted = Some((token, Some(way)));
            return true;
        }
        let ample = |way: &Way| room > AMPLE.0 * way.tokens + AMPLE.1;
        if none && self.way.as_ref().is_some_and(ample) {
            self.admitted = Some((token, None));
            return true;
        }
        false
    }

    /// The first token of the way to the end, which is always admitted. None where the answer is at its end,
    /// or no way is known.
    pub(crate) fn way_on(&self) -> Option<u32> {
        let way = self.way.as_ref()?;
        fewest(self.words.tok_trie(), &way.text).first().copied().flatten().map(|(_, token)| token)
    }

    /// Takes an allowed token that does not end the answer.
    ///
    /// # Errors
    /// As [`Matcher::allowed`].
    pub(crate) fn take(&mut self, token: u32) -> Result<Taken, Error> {
        let admitted = self.admitted.take().filter(|(admitted, _)| *admitted == token);
        self.way = admitted.and_then(|(_, way)| way);
        self.steps = counting::MAX_STEPS;
        self.consume(&[token])?;
        self.force()
    }

    /// A shortest text that leads to the end behind some bytes.
    fn search(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        if let Some(regular) = &self.regular {
            return regular.closing_behind(bytes);
        }
        let chart = self.chart.as_mut()?;
        let mark = chart.mark();
        let closing = if chart.push(bytes) { chart.closing() } else { None };
        chart.go_back(mark);
        closing
    }

    /// An upper bound of the tokens of a text behind a token, where `left` are enough for it.
    fn fits(&mut self, token: u32, text: &[u8], left: usize) -> Option<usize> {
        // No token is empty.
        if text.len() <= left && can_spell(self.words.tok_trie(), text) {
            return Some(text.len());
        }
        let fewest = fewest(self.words.tok_trie(), text);
        if fewest.first().is_some_and(|first| first.is_none_or(|(tokens, _)| tokens as usize > left)) {
            return None;
        }
        self.count(Some(token), text, left)
    }

    /// Counts the tokens of a text behind a token on a copy, if they are no more than `left`.
    fn count(&mut self, token: Option<u32>, text: &[u8], left: usize) -> Option<usize> {
        let mut grammar = self.grammar.clone();
        if let Some(token) = token {
            grammar.consume_tokens(&[token]).ok()?;
        }
        let (tokenizer, known) = (&self.tokenizer, self.counted.as_ref());
        let walk = CountingWalk { grammar, tokenizer, trie: self.words.tok_trie(), known, left };
        let counted = walk.count(text, &mut self.steps)?;
        let tokens = counted.tokens;
        if counted.has_places() {
            self.counted = Some(counted);
        }
        Some(tokens)
    }

    /// Whether the answer matches in its present state.
    pub(crate) fn matches(&mut self) -> bool {
        // A grammar that has stopped without an error has found the end.
        if self.grammar.is_stopped() {
            return !self.grammar.is_error();
        }
        self.grammar.is_accepting().unwrap_or(false)
    }

    /// The checker of the finished answer.
    pub(crate) fn checker(&self) -> Arc<Checker> {
        Arc::clone(&self.checker)
    }

    /// Steps of the lexer and items of the parser that the last mask of llguidance took.
    #[cfg(test)]
    pub(super) fn cost(&self) -> (u64, usize) {
        let statistics = self.grammar.last_step_stats();
        statistics.map_or((0, 0), |statistics| (statistics.lexer_cost, statistics.all_items))
    }

    /// Steps left for counting at this choice.
    #[cfg(test)]
    pub(super) fn steps(&self) -> usize {
        self.steps
    }

    /// Counts all tokens of the way to the end again.
    #[cfg(test)]
    pub(super) fn count_anew(&mut self) -> Option<(usize, usize)> {
        let way = self.way.clone()?;
        let (steps, counted) = (self.steps, self.counted.take());
        self.steps = usize::MAX;
        let tokens = self.count(None, &way.text, usize::MAX);
        (self.steps, self.counted) = (steps, counted);
        Some((way.tokens, tokens?))
    }

    /// [`Matcher::allowed`] by llguidance; None where that is the usual way.
    #[cfg(test)]
    pub(super) fn allowed_by_llguidance(&mut self) -> Option<SimpleVob> {
        self.regular.as_ref()?;
        self.grammar.compute_mask().ok()
    }

    fn force(&mut self) -> Result<Taken, Error> {
        let mut forced = Vec::new();
        if !self.grammar.is_stopped() {
            forced = self.grammar.compute_ff_tokens();
            self.consume(&forced)?;
            // Every way to the end goes through the forced tokens, so the known one only loses them.
            self.way = self.way.take().and_then(|way| {
                let bytes: Vec<u8> =
                    forced.iter().flat_map(|id| self.tokenizer.token_bytes(*id)).copied().collect();
                let text = way.text.strip_prefix(&bytes[..])?.to_vec();
                Some(Way { text, tokens: way.tokens.saturating_sub(forced.len()) })
            });
        }
        match self.grammar.get_error() {
            Some(error) => Err(self.error(&error)),
            None => Ok(Taken { forced, complete: self.grammar.is_stopped() }),
        }
    }

    fn consume(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.tokens += tokens.len();
        if let Some(chart) = &mut self.chart
            && !tokens.iter().all(|id| chart.push(self.tokenizer.token_bytes(*id)))
        {
            // The chart has grown too large, so the way to the end is no longer known.
            self.chart = None;
        }
        if let Some(regular) = &mut self.regular {
            tokens.iter().for_each(|id| regular.take(self.tokenizer.token_bytes(*id)));
        }
        self.grammar.consume_tokens(tokens).map_err(|error| self.failed(&error))
    }

    fn failed(&self, error: &impl std::fmt::Display) -> Error {
        self.error(&error.to_string())
    }

    fn error(&self, error: &str) -> Error {
        Error::Constraint { generated_tokens: self.tokens, reason: reason(error) }
    }
}

/// The message of llguidance, without states, backtraces and the pattern.
pub(super) fn reason(text: &str) -> String {
    let text = text.rsplit_once("(in regex): ").map_or(text, |(_, reason)| reason);
    let marks = ["<state>", "<non-verbose/>", "<backtrace>", " in regex /"];
    let end = marks.iter().filter_map(|mark| text.find(mark)).min();
    match brief(&text[..end.unwrap_or(text.len())]).as_str() {
        // An empty mask: llguidance had not recognised that the text ends here.
        "" | "NoExtensionBias" => "no token of the model leads on".to_owned(),
        reason => reason.to_owned(),
    }
}
