//! Pre-tokenization: text is cut into words before its bytes are merged, and merges never cross a cut.
//!
//! The published patterns end in `\s+(?!\S)|\s+`: a run of white space leaves its last character to the
//! word that follows. That is the only look-ahead in them. Here the patterns do without it and the last
//! character is given back by hand, so that a finite automaton can run them: time is linear in the text and
//! there is no backtracking limit at which splitting could silently end.
//!
//! Where Hugging Face's pattern says `(?i:'s|…)`, llama.cpp says `'[sS]|…`; the two differ in characters
//! like U+017F, which folds to `s`. GGUF is llama.cpp's format, so its reading is ours.

use std::sync::LazyLock;

use regex::Regex;

const QWEN2: &str = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const LLAMA_BPE: &str = r"'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+";
const GPT2: &str = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+";

/// A way to cut text into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Splitter {
    /// Digits one by one.
    Qwen2,
    /// Digits in groups of three.
    LlamaBpe,
    /// Digits together; line breaks are white space like any other.
    Gpt2,
}

impl Splitter {
    /// By the value of `tokenizer.ggml.pre`; the second and third names are those by which llama.cpp also
    /// knows the same pattern.
    pub(super) fn from_name(name: &str) -> Option<Splitter> {
        match name {
            "qwen2" | "deepseek-r1-qwen" => Some(Splitter::Qwen2),
            "llama-bpe" | "llama3" | "llama-v3" => Some(Splitter::LlamaBpe),
            "gpt-2" | "phi-2" => Some(Splitter::Gpt2),
            _ => None,
        }
    }

    /// The words of `text`, in order and without gaps.
    pub(super) fn words(self, text: &str) -> Words<'_> {
        Words { splitter: self, pattern: self.pattern(), text, position: 0 }
    }

    fn pattern(self) -> Option<&'static Regex> {
        // The patterns are constants; the tests compile them.
        static QWEN2_REGEX: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(QWEN2).ok());
        static LLAMA_BPE_REGEX: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(LLAMA_BPE).ok());
        static GPT2_REGEX: LazyLock<Option<Regex>> = LazyLock::new(|| Regex::new(GPT2).ok());
        match self {
            Splitter::Qwen2 => QWEN2_REGEX.as_ref(),
            Splitter::LlamaBpe => LLAMA_BPE_REGEX.as_ref(),
            Splitter::Gpt2 => GPT2_REGEX.as_ref(),
        }
    }

    /// Whether line breaks have an alternative of their own, so that white space ending in one stays whole.
    fn keeps_line_breaks(self) -> bool {
        self != Splitter::Gpt2
    }
}

/// Iterator over the words of a text.
pub(super) struct Words<'a> {
    splitter: Splitter,
    pattern: Option<&'static Regex>,
    text: &'a str,
    position: usize,
}

impl Words<'_> {
    /// Where the word that was matched at `position` really ends.
    fn give_back_last_space(&self, word: &str, end: usize) -> usize {
        let mut characters = word.chars();
        let Some(last) = characters.next_back() else { return end };
        let only_space = last.is_whitespace() && word.chars().all(char::is_whitespace);
        let stays = self.splitter.keeps_line_breaks() && matches!(last, '\r' | '\n');
        // At the end of the text nothing follows; a single character is a word of its own.
        if !only_space || stays || end == self.text.len() || characters.as_str().is_empty() {
            return end;
        }
        end - last.len_utf8()
    }
}

impl<'a> Iterator for Words<'a> {
    type Item = &'a str;

    fn next(&mut self) -> Option<&'a str> {
        let rest = self.text.get(self.position..).filter(|rest| !rest.is_empty())?;
        // The alternatives cover every character, so a match begins right here.
        let found = self.pattern?.find_at(self.text, self.position);
        let end = match found.filter(|found| found.start() == self.position && !found.is_empty()) {
            Some(found) => self.give_back_last_space(found.as_str(), found.end()),
            None => self.position + rest.len(),
        };
        let word = self.text.get(self.position..end);
        self.position = end;
        word
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(splitter: Splitter, text: &str) -> Vec<&str> {
        splitter.words(text).collect()
    }

    #[test]
    fn white_space_leaves_its_last_character_to_the_next_word() {
        assert_eq!(words(Splitter::Qwen2, "a   b"), ["a", "  ", " b"]);
        assert_eq!(words(Splitter::Qwen2, "a   "), ["a", "   "]);
        assert_eq!(words(Splitter::Qwen2, "a \n\n  b"), ["a", " \n\n", " ", " b"]);
        assert_eq!(words(Splitter::Gpt2, "a \n\n  b"), ["a", " \n\n ", " b"]);
        assert_eq!(words(Splitter::Gpt2, "a\n\n1"), ["a", "\n", "\n", "1"]);
        assert_eq!(words(Splitter::Qwen2, "a\t1"), ["a", "\t", "1"]);
    }

    #[test]
    fn digits_are_cut_as_each_pattern_wants() {
        assert_eq!(words(Splitter::Qwen2, "x1234"), ["x", "1", "2", "3", "4"]);
        assert_eq!(words(Splitter::LlamaBpe, "x1234"), ["x", "123", "4"]);
        assert_eq!(words(Splitter::Gpt2, "x 1234"), ["x", " 1234"]);
    }

    #[test]
    fn contractions_and_punctuation() {
        assert_eq!(words(Splitter::Qwen2, "I'LL (go).\n\n"), ["I", "'LL", " (", "go", ").\n\n"]);
        assert_eq!(words(Splitter::Gpt2, "I'LL it's"), ["I", "'", "LL", " it", "'s"]);
        assert_eq!(words(Splitter::Qwen2, "it'\u{17F}x"), ["it", "'\u{17F}x"]);
    }

    #[test]
    fn no_byte_is_lost() {
        let text = "\0\u{85}\u{a0}\u{3000}\u{1f600}\u{fdd0}e\u{301} \r\n\t١٢٣ Ⅷ ½ 日本語\u{200d}";
        for splitter in [Splitter::Qwen2, Splitter::LlamaBpe, Splitter::Gpt2] {
            assert_eq!(words(splitter, text).concat(), text);
            assert_eq!(words(splitter, ""), [""; 0]);
        }
    }
}
