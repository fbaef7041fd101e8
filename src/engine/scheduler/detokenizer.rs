//! Turning token bytes into text: thoughts, stop strings, whole characters, valid UTF-8.

use super::thoughts::Thoughts;
use crate::Error;
use crate::tokenizer::Tokenizer;

/// The text of an answer while it grows.
///
/// Invariant: what [`Detokenizer::take_partial`] has given out is a prefix of the final text, whatever tokens
/// follow.
#[derive(Debug)]
pub(crate) struct Detokenizer {
    bytes: Vec<u8>,
    /// Bytes up to here are checked to be whole, valid characters.
    valid: usize,
    /// Bytes up to here were given out.
    taken: usize,
    stop: Vec<String>,
    /// The parser of thoughts, where the model may think before it answers.
    thoughts: Option<Thoughts>,
}

/// A place in a text to return to.
#[derive(Debug, Clone)]
pub(crate) struct Checkpoint {
    length: usize,
    valid: usize,
    thoughts: Option<Thoughts>,
}

impl Detokenizer {
    /// An empty text that ends before the first of the strings in `stop`, none of which is empty.
    pub(crate) fn new(stop: Vec<String>) -> Self {
        Detokenizer { bytes: Vec::new(), valid: 0, taken: 0, stop, thoughts: None }
    }

    /// The same for an answer that thoughts may come before.
    pub(crate) fn with_thoughts(stop: Vec<String>, thoughts: Thoughts) -> Self {
        let bytes = thoughts.beginning().as_bytes().to_vec();
        let valid = bytes.len();
        Detokenizer { bytes, valid, taken: 0, stop, thoughts: Some(thoughts) }
    }

    /// Adds the text of a token, as [`Detokenizer::push`] does with its bytes.
    ///
    /// # Errors
    /// As [`Detokenizer::push`].
    pub(crate) fn push_token(&mut self, token: u32, tokenizer: &Tokenizer) -> Result<bool, Error> {
        let bytes = tokenizer.token_bytes(token);
        let Some(thoughts) = &mut self.thoughts else { return self.push(bytes) };
        let shown = match tokenizer.special_text(token) {
            // Control tokens are no text, but thoughts are marked by them.
            Some(mark) if bytes.is_empty() && !tokenizer.is_end(token) => thoughts.take_mark(mark),
            _ => thoughts.take(bytes),
        };
        self.push(&shown)
    }

    /// Adds the bytes of a token; true if that completes a stop string, which is then cut off.
    ///
    /// # Errors
    /// [`Error::InvalidText`] where the bytes cannot be part of a text value.
    pub(crate) fn push(&mut self, token: &[u8]) -> Result<bool, Error> {
        let before = self.bytes.len();
        self.bytes.extend_from_slice(token);
        let stopped = self.cut_at_stop(before);
        self.validate()?;
        Ok(stopped)
    }

    /// The end of the text that is only the beginning of a character.
    pub(crate) fn pending(&self) -> &[u8] {
        &self.bytes[self.valid..]
    }

    /// The error that the bytes are no text.
    pub(crate) fn invalid(&self) -> Error {
        Error::InvalidText { position: self.valid }
    }

    /// The place where the text ends now.
    pub(crate) fn checkpoint(&self) -> Checkpoint {
        Checkpoint { length: self.bytes.len(), valid: self.valid, thoughts: self.thoughts.clone() }
    }

    /// Takes back what was added since, unless that completed a stop string.
    pub(crate) fn restore(&mut self, checkpoint: Checkpoint) {
        self.bytes.truncate(checkpoint.length);
        self.valid = checkpoint.valid;
        self.thoughts = checkpoint.thoughts;
    }

    /// Finds the stop string that is complete first, as if the bytes had come one by one.
    fn cut_at_stop(&mut self, before: usize) -> bool {
        for end in before + 1..=self.bytes.len() {
            let complete = self.stop.iter().filter(|stop| self.bytes[..end].ends_with(stop.as_bytes()));
            if let Some(longest) = complete.map(String::len).max() {
                self.bytes.truncate(end - longest);
                self.valid = self.valid.min(self.bytes.len());
                return true;
            }
        }
        false
    }

    fn validate(&mut self) -> Result<(), Error> {
        let new = &self.bytes[self.valid..];
        if let Some(zero) = new.iter().position(|byte| *byte == 0) {
            return Err(Error::InvalidText { position: self.valid + zero });
        }
        match std::str::from_utf8(new) {
            Ok(_) => self.valid = self.bytes.len(),
            Err(error) => {
                self.valid += error.valid_up_to();
                if error.error_len().is_some() {
                    return Err(Error::InvalidText { position: self.valid });
                }
            }
        }
        Ok(())
    }

    /// Text that is new since the last call and certain to stay: whole characters that are not, and cannot
    /// become, part of a stop string.
    pub(crate) fn take_partial(&mut self) -> String {
        let certain = (self.bytes.len() - self.possible_stop()).min(self.valid).max(self.taken);
        let partial = String::from_utf8_lossy(&self.bytes[self.taken..certain]).into_owned();
        self.taken = certain;
        partial
    }

    /// Length of the longest end of the text with which a stop string begins.
    fn possible_stop(&self) -> usize {
        let beginning = |stop: &String| {
            let longest = (stop.len() - 1).min(self.bytes.len());
            (1..=longest).rev().find(|length| self.bytes.ends_with(&stop.as_bytes()[..*length]))
        };
        self.stop.iter().filter_map(beginning).max().unwrap_or(0)
    }

    /// The whole text. An incomplete last character is cut off where the answer was `cut` at its greatest
    /// length.
    ///
    /// # Errors
    /// [`Error::InvalidText`] where the model itself ended the answer inside a character.
    pub(crate) fn finish(mut self, cut: bool) -> Result<String, Error> {
        if let Some(thoughts) = self.thoughts.take() {
            // The bytes that only began like a mark of thoughts are text.
            self.push(&thoughts.held())?;
        }
        if cut {
            self.bytes.truncate(self.valid);
        }
        String::from_utf8(self.bytes)
            .map_err(|error| Error::InvalidText { position: error.utf8_error().valid_up_to() })
    }
}

#[cfg(test)]
mod tests {
    use super::{Detokenizer, Thoughts};
    use crate::Error;
    use crate::template::ThoughtMarks;

    fn stops(stop: &[&str]) -> Detokenizer {
        Detokenizer::new(stop.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn a_stop_string_across_tokens_is_cut_and_never_shown() {
        let mut text = stops(&["###END"]);
        assert!(!text.push(b"one two #").unwrap());
        assert_eq!(text.take_partial(), "one two ");
        assert!(!text.push(b"##E").unwrap());
        assert_eq!(text.take_partial(), "");
        assert!(text.push(b"ND and more").unwrap());
        assert_eq!(text.finish(false).unwrap(), "one two ");
    }

    #[test]
    fn a_possible_stop_string_that_comes_to_nothing_is_shown() {
        let mut text = stops(&["##!"]);
        text.push(b"a##").unwrap();
        assert_eq!(text.take_partial(), "a");
        text.push(b"#").unwrap();
        assert_eq!(text.take_partial(), "#");
        text.push(b" b").unwrap();
        assert_eq!(text.take_partial(), "## b");
        assert_eq!(text.finish(false).unwrap(), "a### b");
    }

    #[test]
    fn the_first_complete_stop_string_wins_whatever_the_tokens_are() {
        for tokens in [vec!["xabcd"], vec!["xa", "bc", "d"], vec!["x", "a", "b", "c", "d"]] {
            let mut text = stops(&["abcd", "bc", "c"]);
            assert!(tokens.iter().any(|token| text.push(token.as_bytes()).unwrap()));
            assert_eq!(text.finish(false).unwrap(), "xa");
        }
    }

    #[test]
    fn characters_are_shown_whole() {
        let mut text = stops(&[]);
        let euro = "€".as_bytes();
        text.push(&euro[..1]).unwrap();
        assert_eq!(text.take_partial(), "");
        text.push(&euro[1..2]).unwrap();
        assert_eq!(text.take_partial(), "");
        text.push(&euro[2..]).unwrap();
        assert_eq!(text.take_partial(), "€");
    }

    #[test]
    fn an_incomplete_last_character_is_cut_at_the_greatest_length_only() {
        let mut text = stops(&[]);
        text.push(b"a\xe2\x82").unwrap();
        assert_eq!(text.finish(true).unwrap(), "a");
        let mut text = stops(&[]);
        text.push(b"a\xe2\x82").unwrap();
        assert!(matches!(text.finish(false), Err(Error::InvalidText { position: 1 })));
    }

    #[test]
    fn what_was_added_in_vain_is_taken_back() {
        let mut text = stops(&[]);
        text.push(b"a\xe2").unwrap();
        let checkpoint = text.checkpoint();
        assert!(text.push(b"\x82\xac\xff").is_err());
        text.restore(checkpoint);
        assert_eq!(text.pending(), b"\xe2");
        text.push(b"\x82\xac").unwrap();
        assert_eq!(text.pending(), b"");
        assert_eq!(text.finish(false).unwrap(), "a€");
    }

    #[test]
    fn bytes_that_are_no_text_are_an_error_at_their_place() {
        let mut text = stops(&[]);
        text.push("ä".as_bytes()).unwrap();
        assert!(matches!(text.push(b"b\xff"), Err(Error::InvalidText { position: 3 })));
        let mut text = stops(&[]);
        assert!(matches!(text.push(b"a\0b"), Err(Error::InvalidText { position: 1 })));
        let mut text = stops(&["stop"]);
        assert!(text.push(b"a stop\xff").unwrap(), "what follows a stop string does not matter");
    }

    /// The text shown after each of these pieces, and the whole text of their answer.
    fn answer(pieces: &[&str], begun: bool, keep: bool) -> (Vec<String>, String) {
        let marks = ThoughtMarks::of(&["<think></think>"]).unwrap();
        let mut text = Detokenizer::with_thoughts(vec!["END".to_owned()], Thoughts::new(marks, begun, keep));
        let mut shown = Vec::new();
        for piece in pieces {
            let checkpoint = text.checkpoint();
            let bytes = text.thoughts.as_mut().unwrap().take(piece.as_bytes());
            text.push(&bytes).unwrap();
            // A piece that was taken back can be added again.
            text.restore(checkpoint);
            let bytes = text.thoughts.as_mut().unwrap().take(piece.as_bytes());
            if text.push(&bytes).unwrap() {
                break;
            }
            shown.push(text.take_partial());
        }
        let whole = text.finish(false).unwrap();
        assert!(whole.starts_with(&shown.concat()), "{shown:?} {whole:?}");
        (shown, whole)
    }

    #[test]
    fn thoughts_are_left_out_however_they_are_cut_into_tokens() {
        let all = "\n<think>\nIt is </thin ä END.\n</think>\n\n Paris <think>x";
        let characters: Vec<String> = all.chars().map(String::from).collect();
        let characters: Vec<&str> = characters.iter().map(String::as_str).collect();
        for pieces in [
            vec![all],
            characters,
            vec!["\n<th", "ink>\nIt is </thin ä END.\n</thi", "nk>\n", "\n Paris <think>x"],
        ] {
            assert_eq!(answer(&pieces, false, false).1, "Paris <think>x");
        }
        assert_eq!(answer(&["It is", " simple.</think>", "\n", "Paris"], true, false).1, "Paris");
        assert_eq!(answer(&["It is", " simple."], true, false), (vec![String::new(); 2], String::new()));
    }

    #[test]
    fn thoughts_that_are_kept_come_with_their_marks() {
        let pieces = ["\n<think>", "It is</think>", "\n\nParis"];
        assert_eq!(answer(&pieces, false, true).1, pieces.concat());
        assert_eq!(answer(&["It is</think>", "\n\nParis"], true, true).1, "<think>It is</think>\n\nParis");
        assert_eq!(
            answer(&["It is", "END", "x"], true, true).1,
            "<think>It is",
            "stop strings are for what is shown"
        );
    }

    #[test]
    fn an_answer_that_begins_like_thoughts_is_shown() {
        assert_eq!(answer(&["\n <thi", "s> is one"], false, false).1, "\n <this> is one");
        assert_eq!(answer(&["<thi"], false, false), (vec![String::new()], "<thi".to_owned()));
        assert_eq!(answer(&["Paris", " <think>", "no</think>"], false, false).1, "Paris <think>no</think>");
        let white = " ".repeat(1000);
        assert_eq!(
            answer(&[&white, "x"], false, false).0.concat(),
            white.clone() + "x",
            "held for a while only"
        );
    }
}
