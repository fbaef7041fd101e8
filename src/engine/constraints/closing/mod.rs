//! The way to the end: for each place of an answer, a shortest text that completes it, so that an answer
//! never gets to a place where the remaining tokens are too few to complete it.
//!
//! For patterns and choices it comes from their automaton ([`super::regular`]), for documents from a
//! [`Chart`] of their grammar. Both give bytes. Their tokens are counted in the way that the answer will
//! take: forced tokens as the tokenizer makes them, and between them the fewest that the vocabulary allows.
//!
//! The search is bounded. Where it ends without a result (a string of thousands of characters at least, a
//! lexer of too many states), nothing is guaranteed: the answer goes on as if there were no limit of tokens,
//! and fails when it reaches the limit.

mod chart;
mod ends;
mod shape;
mod words;

use std::sync::Arc;

use llguidance::TokenParser;
use llguidance::api::ParserLimits;
use toktrie::TokEnv;

pub(super) use chart::{Chart, ChartMark};
use ends::Ends;
use shape::GrammarShape;
pub(super) use words::fewest;

/// Steps of a lexer over a whole answer, as llguidance counts them.
const FUEL: u64 = 2_000_000;
/// States of a lexer over a whole answer.
const MAX_STATES: usize = 10_000;

/// The known way to the end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Way {
    pub(super) text: Vec<u8>,
    /// A number of tokens that is enough for it.
    pub(super) tokens: usize,
}

/// The chart of a grammar at its beginning; None where it takes too much.
pub(super) fn chart(parser: &TokenParser, words: &TokEnv, limits: &ParserLimits) -> Option<Chart> {
    let grammar = parser.parser.grammar();
    let spec = grammar.lexer_spec();
    let mut lexer = spec.to_regex_vec(&mut limits.clone()).ok()?;
    lexer.set_fuel(FUEL);
    lexer.set_max_states(MAX_STATES);
    [false, true].into_iter().find_map(|narrow| {
        let ends = Ends::new(&lexer, narrow);
        let shape = GrammarShape::new(grammar, &lexer, &ends, words.tok_trie())?;
        Chart::new(Arc::new(shape), ends, Arc::clone(words), lexer.clone(), spec.lexemes.len())
    })
}
