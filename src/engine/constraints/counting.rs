//! The number of tokens that a text takes in an answer: forced tokens as the tokenizer makes them, and
//! between them the fewest that the vocabulary allows.
//!
//! They are counted by following the text on a copy of the grammar, which takes long for a long text. Two
//! texts that are counted one after the other mostly differ at their beginnings alone, so the places of the
//! last walk are kept: where a walk comes through several of them in a row as the last one did, the rest is
//! known. A walk that meets none of them ends after a number of steps; the rest then counts as a token for
//! each byte, which is never too few.

use toktrie::TokTrie;

use super::closing::fewest;
use crate::tokenizer::Tokenizer;

/// Number of places in a row that have to be those of the last walk.
const ALIKE: usize = 4;
/// Most steps of all walks for one choice. Each takes a tenth of a millisecond or two.
pub(super) const MAX_STEPS: usize = 128;

/// A place of a walk at which forced tokens may begin, followed by a chosen one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct CountingStop {
    /// Bytes and tokens from here to the end.
    bytes: usize,
    tokens: usize,
    /// Bytes that are forced here.
    forced: usize,
}

/// A text whose tokens were counted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct CountedText {
    text: Vec<u8>,
    /// The places of the walk, the last one first.
    stops: Vec<CountingStop>,
    /// Number of its tokens.
    pub(super) tokens: usize,
}

/// The inputs of a walk.
pub(super) struct CountingWalk<'a> {
    /// The grammar, at the beginning of the text.
    pub(super) grammar: llguidance::Matcher,
    pub(super) tokenizer: &'a Tokenizer,
    pub(super) trie: &'a TokTrie,
    /// The last walk.
    pub(super) known: Option<&'a CountedText>,
    /// Most tokens that the text may take.
    pub(super) left: usize,
}

impl CountingWalk<'_> {
    /// Counts the tokens of a text; None where they are more than `left`, or the text does not lead to the
    /// end. Subtracts the steps of the walk from `steps`.
    pub(super) fn count(mut self, text: &[u8], steps: &mut usize) -> Option<CountedText> {
        let fewest = fewest(self.trie, text);
        let shared = self.known.map_or(0, |known| common_end(&known.text, text));
        let (mut at, mut tokens, mut alike) = (0, 0, 0);
        // The places from the beginning on: bytes before each place, tokens before it, bytes forced there.
        let mut places: Vec<CountingStop> = Vec::new();
        loop {
            let before = CountingStop { bytes: text.len() - at, tokens, forced: 0 };
            let known =
                self.known.filter(|_| before.bytes <= shared).and_then(|known| known.at(before.bytes));
            if let (Some((_, stop)), true) = (known, alike >= ALIKE) {
                return self.joined(text, places, stop, tokens);
            }
            if *steps == 0 {
                return self.spelled(text, at, tokens);
            }
            *steps -= 1;
            let forced =
                if self.grammar.is_stopped() { Vec::new() } else { self.grammar.compute_ff_tokens() };
            let begin = at;
            for token in &forced {
                let bytes = self.tokenizer.token_bytes(*token);
                at += text[at..].starts_with(bytes).then_some(bytes.len())?;
            }
            tokens += forced.len();
            self.grammar.consume_tokens(&forced).ok().or(forced.is_empty().then_some(()))?;
            places.push(CountingStop { forced: at - begin, ..before });
            alike = if known.is_some_and(|(_, stop)| stop.forced == at - begin) { alike + 1 } else { 0 };
            if at == text.len() {
                let stopped = self.grammar.is_stopped();
                let matches = if stopped {
                    !self.grammar.is_error()
                } else {
                    self.grammar.is_accepting().unwrap_or(false)
                };
                return (matches && tokens <= self.left).then(|| counted(text, places, tokens));
            }
            if self.grammar.is_stopped() {
                return None;
            }
            let (least, token) = fewest[at]?;
            if tokens + least as usize > self.left {
                return None;
            }
            self.grammar.consume_tokens(&[token]).ok()?;
            at += self.tokenizer.token_bytes(token).len();
            tokens += 1;
        }
    }

    /// The count for a walk that continues as the last one did from one of its places.
    fn joined(
        &self,
        text: &[u8],
        places: Vec<CountingStop>,
        stop: CountingStop,
        before: usize,
    ) -> Option<CountedText> {
        let known = self.known?;
        let all = before + stop.tokens;
        if all > self.left {
            return None;
        }
        let mut joined = counted(text, places, all);
        let (index, _) = known.at(stop.bytes)?;
        joined.stops.splice(0..0, known.stops[..=index].iter().copied());
        Some(joined)
    }

    /// The count for a walk that was given up: the rest takes a token for each byte.
    fn spelled(&self, text: &[u8], at: usize, tokens: usize) -> Option<CountedText> {
        let all = tokens + text.len() - at;
        let fits = all <= self.left && can_spell(self.trie, &text[at..]);
        // Its places are not known.
        fits.then(|| CountedText { tokens: all, ..CountedText::default() })
    }
}

impl CountedText {
    /// The place so many bytes before the end.
    fn at(&self, bytes: usize) -> Option<(usize, CountingStop)> {
        let index = self.stops.binary_search_by_key(&bytes, |stop| stop.bytes).ok()?;
        Some((index, self.stops[index]))
    }

    /// Whether it helps to count other texts.
    pub(super) fn has_places(&self) -> bool {
        !self.stops.is_empty()
    }
}

/// A counted text. The tokens of `places` are given from its beginning and kept from its end.
fn counted(text: &[u8], places: Vec<CountingStop>, tokens: usize) -> CountedText {
    let from_end = |place: &CountingStop| CountingStop { tokens: tokens - place.tokens, ..*place };
    let stops = places.iter().rev().map(from_end).collect();
    CountedText { text: text.to_vec(), stops, tokens }
}

/// Whether each byte of a text is a token.
pub(super) fn can_spell(trie: &TokTrie, text: &[u8]) -> bool {
    text.iter().all(|byte| {
        let child = trie.child_at_byte(trie.root(), *byte);
        child.is_some_and(|child| child.token_id().is_some())
    })
}

/// Number of bytes that two texts have in common at their ends.
fn common_end(one: &[u8], other: &[u8]) -> usize {
    one.iter().rev().zip(other.iter().rev()).take_while(|(one, other)| one == other).count()
}
