//! Following a constraint, token by token.

use std::sync::Arc;

use llguidance::toktrie::SimpleVob;

use super::checker::{Checker, brief};
use super::regular::Regular;
use crate::Error;
use crate::memory::Held;
use crate::tokenizer::Tokenizer;

/// A request's place in its grammar.
pub(crate) struct Matcher {
    grammar: llguidance::Matcher,
    /// The same place in the language of a pattern, which masks are made from.
    regular: Option<Regular>,
    tokenizer: Arc<Tokenizer>,
    checker: Arc<Checker>,
    /// Tokens taken.
    tokens: usize,
    _held: Held,
}

/// What follows from a token.
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
        tokenizer: Arc<Tokenizer>,
        checker: Arc<Checker>,
        held: Held,
    ) -> Matcher {
        Matcher { grammar, regular, tokenizer, checker, tokens: 0, _held: held }
    }

    /// What every answer begins with. Before anything else.
    ///
    /// # Errors
    /// [`Error::Constraint`].
    pub(crate) fn begin(&mut self) -> Result<Taken, Error> {
        self.force()
    }

    /// The tokens that may follow, those that end the answer among them where it matches.
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
        // Also where there is none, to say why.
        self.grammar.compute_mask().map_err(|error| self.failed(&error))
    }

    /// Goes on with an allowed token that does not end the answer.
    ///
    /// # Errors
    /// As [`Matcher::allowed`].
    pub(crate) fn take(&mut self, token: u32) -> Result<Taken, Error> {
        self.consume(&[token])?;
        self.force()
    }

    /// Whether the answer matches as it is.
    pub(crate) fn matches(&mut self) -> bool {
        // A grammar that has stopped without an error has found the end.
        if self.grammar.is_stopped() {
            return !self.grammar.is_error();
        }
        self.grammar.is_accepting().unwrap_or(false)
    }

    /// What checks the answer when it is finished.
    pub(crate) fn checker(&self) -> Arc<Checker> {
        Arc::clone(&self.checker)
    }

    /// Steps of the lexer and items of the parser that the last mask of llguidance took.
    #[cfg(test)]
    pub(super) fn cost(&self) -> (u64, usize) {
        let statistics = self.grammar.last_step_stats();
        statistics.map_or((0, 0), |statistics| (statistics.lexer_cost, statistics.all_items))
    }

    /// [`Matcher::allowed`] by llguidance; None where that makes it in any case.
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
        }
        match self.grammar.get_error() {
            Some(error) => Err(self.error(&error)),
            None => Ok(Taken { forced, complete: self.grammar.is_stopped() }),
        }
    }

    fn consume(&mut self, tokens: &[u32]) -> Result<(), Error> {
        self.tokens += tokens.len();
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

/// What llguidance says, without states, backtraces and the pattern.
pub(super) fn reason(text: &str) -> String {
    let text = text.rsplit_once("(in regex): ").map_or(text, |(_, reason)| reason);
    let marks = ["<state>", "<non-verbose/>", "<backtrace>", " in regex /"];
    let end = marks.iter().filter_map(|mark| text.find(mark)).min();
    match brief(&text[..end.unwrap_or(text.len())]).as_str() {
        // A mask without tokens is an end that it had not seen coming.
        "" | "NoExtensionBias" => "no token of the model leads on".to_owned(),
        reason => reason.to_owned(),
    }
}
