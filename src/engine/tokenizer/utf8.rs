//! Sets of tokens that can follow a text so that it stays valid UTF-8.
//!
//! A text in the making may end inside a character. The bytes that can follow are one of eight cases (RFC
//! 3629, section 4), and a table has a set of tokens for each. It is made on first use, as most models never
//! need it.

use std::sync::OnceLock;

use llguidance::toktrie::SimpleVob;

/// The state at the end of a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
enum Utf8State {
    /// Behind a character.
    Whole,
    /// One, two or three bytes of 80..BF are missing.
    One,
    Two,
    Three,
    /// The first missing byte has a smaller range, which excludes overlong forms, surrogates, and code points
    /// beyond U+10FFFF.
    AfterE0,
    AfterED,
    AfterF0,
    AfterF4,
}

const STATES: [Utf8State; 8] = [
    Utf8State::Whole,
    Utf8State::One,
    Utf8State::Two,
    Utf8State::Three,
    Utf8State::AfterE0,
    Utf8State::AfterED,
    Utf8State::AfterF0,
    Utf8State::AfterF4,
];

impl Utf8State {
    /// The state after one more byte; None where the text would be invalid. Text values have no zero bytes.
    fn next(self, byte: u8) -> Option<Utf8State> {
        match (self, byte) {
            (Utf8State::Whole, 0x01..=0x7f) | (Utf8State::One, 0x80..=0xbf) => Some(Utf8State::Whole),
            (Utf8State::Whole, 0xc2..=0xdf)
            | (Utf8State::Two, 0x80..=0xbf)
            | (Utf8State::AfterE0, 0xa0..=0xbf)
            | (Utf8State::AfterED, 0x80..=0x9f) => Some(Utf8State::One),
            (Utf8State::Whole, 0xe0) => Some(Utf8State::AfterE0),
            (Utf8State::Whole, 0xed) => Some(Utf8State::AfterED),
            (Utf8State::Whole, 0xe1..=0xec | 0xee..=0xef)
            | (Utf8State::Three, 0x80..=0xbf)
            | (Utf8State::AfterF0, 0x90..=0xbf)
            | (Utf8State::AfterF4, 0x80..=0x8f) => Some(Utf8State::Two),
            (Utf8State::Whole, 0xf0) => Some(Utf8State::AfterF0),
            (Utf8State::Whole, 0xf1..=0xf3) => Some(Utf8State::Three),
            (Utf8State::Whole, 0xf4) => Some(Utf8State::AfterF4),
            _ => None,
        }
    }

    fn after(self, bytes: &[u8]) -> Option<Utf8State> {
        bytes.iter().try_fold(self, |state, byte| state.next(*byte))
    }
}

/// The tokens that can follow a text, for one vocabulary.
#[derive(Debug, Default)]
pub(super) struct Continuations(OnceLock<Utf8Table>);

#[derive(Debug)]
struct Utf8Table {
    /// By state: tokens that keep the text valid.
    valid: [SimpleVob; 8],
    /// Tokens among them behind which the vocabulary can complete the character.
    open: [SimpleVob; 8],
    /// Whether the vocabulary can complete the character.
    completes: [bool; 8],
}

/// The properties of a vocabulary that the table is made from.
pub(super) trait Tokens {
    /// Number of tokens.
    fn count(&self) -> usize;
    /// The bytes that a token adds to the text.
    fn bytes(&self, id: u32) -> &[u8];
    /// Whether it ends the text.
    fn ends(&self, id: u32) -> bool;
}

impl Continuations {
    /// The tokens that may follow a text which ends with the beginning of a character, `pending`, or with a
    /// whole character where that is empty; with `last` also those that begin a character which the
    /// vocabulary cannot complete. The set is empty where no token adds to the text; None where `pending`
    /// cannot be part of one.
    pub(super) fn following(&self, tokens: &impl Tokens, pending: &[u8], last: bool) -> Option<&SimpleVob> {
        let table = self.0.get_or_init(|| Utf8Table::new(tokens));
        let state = Utf8State::Whole.after(pending)? as usize;
        Some(if last { &table.valid[state] } else { &table.open[state] })
    }

    /// Whether the character that has begun can be completed.
    pub(super) fn completes(&self, tokens: &impl Tokens, pending: &[u8]) -> bool {
        let table = self.0.get_or_init(|| Utf8Table::new(tokens));
        Utf8State::Whole.after(pending).is_some_and(|state| table.completes[state as usize])
    }
}

impl Utf8Table {
    fn new(tokens: &impl Tokens) -> Utf8Table {
        let ids = || 0..tokens.count() as u32;
        // For each state, the states that a token leads to.
        let mut leads = [[false; 8]; 8];
        for id in ids() {
            let bytes = tokens.bytes(id);
            for state in STATES.into_iter().filter(|_| !bytes.is_empty()) {
                if let Some(end) = state.after(bytes) {
                    leads[state as usize][end as usize] = true;
                }
            }
        }
        let mut completes = [false; 8];
        completes[Utf8State::Whole as usize] = true;
        // As many rounds as the longest way between two states has steps.
        for _ in STATES {
            for (state, leads) in leads.iter().enumerate() {
                completes[state] |= leads.iter().zip(completes).any(|(leads, completes)| *leads && completes);
            }
        }
        let set = |state: Utf8State, open: bool| {
            let mut set = SimpleVob::alloc(tokens.count());
            let mut adds = false;
            for id in ids() {
                let bytes = tokens.bytes(id);
                let allowed = match state.after(bytes) {
                    // Tokens that add nothing, such as control tokens; an end only behind a whole character.
                    Some(_) if bytes.is_empty() => state == Utf8State::Whole || !tokens.ends(id),
                    Some(end) => !open || completes[end as usize],
                    None => false,
                };
                if allowed {
                    adds |= !bytes.is_empty();
                    set.allow_token(id);
                }
            }
            if adds { set } else { SimpleVob::alloc(tokens.count()) }
        };
        Utf8Table {
            valid: STATES.map(|state| set(state, false)),
            open: STATES.map(|state| set(state, true)),
            completes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Continuations, STATES, Tokens, Utf8State};

    struct Made(Vec<Vec<u8>>);

    impl Tokens for Made {
        fn count(&self) -> usize {
            self.0.len()
        }

        fn bytes(&self, id: u32) -> &[u8] {
            &self.0[id as usize]
        }

        /// The first token ends the text.
        fn ends(&self, id: u32) -> bool {
            id == 0
        }
    }

    /// An end token, a token that adds nothing, and these.
    fn made(tokens: &[&[u8]]) -> Made {
        Made([&[][..], &[]].iter().chain(tokens).map(|token| token.to_vec()).collect())
    }

    /// Whether the bytes are valid text or the beginning of some.
    fn is_beginning(bytes: &[u8]) -> bool {
        !bytes.contains(&0)
            && std::str::from_utf8(bytes).map_or_else(|error| error.error_len().is_none(), |_| true)
    }

    #[test]
    fn every_beginning_of_a_character_is_told_from_what_is_none() {
        for first in 0..=255u8 {
            assert_eq!(Utf8State::Whole.after(&[first]).is_some(), is_beginning(&[first]), "{first:x}");
            for second in 0..=255u8 {
                let two = [first, second];
                assert_eq!(Utf8State::Whole.after(&two).is_some(), is_beginning(&two), "{two:x?}");
                for rest in [0x7f, 0x80, 0x8f, 0x90, 0x9f, 0xa0, 0xbf, 0xc0] {
                    for last in [0x00, 0x41, 0x80, 0xbf, 0xc2] {
                        let four = [first, second, rest, last];
                        assert_eq!(Utf8State::Whole.after(&four).is_some(), is_beginning(&four), "{four:x?}");
                        let whole = Utf8State::Whole.after(&four) == Some(Utf8State::Whole);
                        assert_eq!(
                            whole,
                            std::str::from_utf8(&four).is_ok() && !four.contains(&0),
                            "{four:x?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn sets_hold_what_keeps_the_text_valid_in_each_state() {
        let bytes: Vec<[u8; 1]> = (0..=255).map(|byte| [byte]).collect();
        let longer: [&[u8]; 8] = [
            "é".as_bytes(),
            "a€".as_bytes(),
            b"\x82\xac",
            b"\xac more",
            b"\xbf\xbf\xbfa",
            b"a\xe2",
            b"a\xff",
            b"\xa0\x80\xf0",
        ];
        let tokens: Vec<&[u8]> = bytes.iter().map(|byte| &byte[..]).chain(longer).collect();
        let tokens = made(&tokens);
        let continuations = Continuations::default();
        for pending in [
            &b""[..],
            b"\xc3",
            b"\xe0",
            b"\xe1",
            b"\xed",
            b"\xf0",
            b"\xf1",
            b"\xf4",
            b"\xe2\x82",
            b"\xf0\x90",
            b"\xf4\x8f\xbf",
        ] {
            assert!(continuations.completes(&tokens, pending));
            for last in [false, true] {
                let set = continuations.following(&tokens, pending, last).unwrap();
                assert_eq!(set.is_allowed(0), pending.is_empty(), "the end is not inside a character");
                assert!(set.is_allowed(1));
                for id in 2..tokens.count() as u32 {
                    let text = [pending, tokens.bytes(id)].concat();
                    assert_eq!(set.is_allowed(id), is_beginning(&text), "{text:x?}");
                }
            }
        }
        assert!(continuations.following(&tokens, b"\xff", false).is_none());
    }

    #[test]
    fn characters_that_the_vocabulary_cannot_complete_are_not_begun_but_at_the_end() {
        // Only 80..8F may follow F4.
        let tokens = made(&[b"\xc3", b"\xa9", b"\xe2", b"\xf4", b"a\xf4"]);
        let continuations = Continuations::default();
        let open = continuations.following(&tokens, b"", false).unwrap();
        assert_eq!(open.to_list(), [0, 1, 2, 4]);
        let last = continuations.following(&tokens, b"", true).unwrap();
        assert_eq!(last.to_list(), [0, 1, 2, 4, 5, 6]);
        assert_eq!(continuations.following(&tokens, b"\xe2", false).unwrap().to_list(), [1, 3]);
        assert!(!continuations.completes(&tokens, b"\xf4"));
        assert!(continuations.completes(&tokens, b"\xe2"));
        // If no token adds to the text, none is left.
        let mute = made(&[b"\x80", b"\xff"]);
        let continuations = Continuations::default();
        assert!(STATES.len() == 8 && continuations.following(&mute, b"", true).unwrap().is_zero());
    }
}
