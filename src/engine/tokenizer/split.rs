//! Pre-tokenization: text is cut into words before its bytes are merged, and merges never cross a cut.
//!
//! A [`Splitter`] is a sequence of stages, each of which cuts the pieces left by the one before it. Most
//! stages are regular expressions, run by a finite automaton: time is linear in the text, and there is no
//! backtracking limit at which splitting could silently end.
//!
//! The published patterns have one look-ahead in common, `\s+(?!\S)|\s+`: a run of white space leaves its
//! last character to the next word. Here the patterns say `\s+`, and code gives the last character back. The
//! other look-aheads group digits, and are stages of their own.
//!
//! Where Hugging Face's pattern says `(?i:'s|…)`, llama.cpp says `'[sS]|…`; the two differ in characters
//! like U+017F, which folds to `s`. GGUF is llama.cpp's format, so its reading is ours.

use regex::Regex;

/// One pass over the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SplitStage {
    /// Each match is a piece, and so is the text between two matches.
    Isolate(&'static str),
    /// The same, but white space leaves its last character to the next piece, even if that is a line break.
    Words(&'static str),
    /// The same, but white space that ends in a line break stays whole.
    WordsAndLines(&'static str),
    /// As [`SplitStage::WordsAndLines`], but white space is cut into powers of two.
    PowersOfTwo(&'static str),
    /// Runs of digits are cut into groups of three, of which the first may be shorter. Text before a run
    /// belongs to its first group.
    DigitGroups,
    /// Runs of ASCII digits are cut into groups of three, counted from their ends.
    Thousands,
}

/// A way to cut text into words.
#[derive(Debug)]
pub(super) struct Splitter {
    stages: Vec<(SplitStage, Option<Regex>)>,
}

impl SplitStage {
    fn pattern(self) -> Option<&'static str> {
        match self {
            SplitStage::Isolate(pattern)
            | SplitStage::Words(pattern)
            | SplitStage::WordsAndLines(pattern)
            | SplitStage::PowersOfTwo(pattern) => Some(pattern),
            SplitStage::DigitGroups | SplitStage::Thousands => None,
        }
    }
}

/// The function that takes each piece; its error ends splitting.
type Each<'a> = dyn FnMut(&str) -> Result<(), u8> + 'a;

impl Splitter {
    /// # Errors
    /// An invalid pattern; the tests compile all of them.
    pub(super) fn new(stages: &[SplitStage]) -> Result<Splitter, regex::Error> {
        let compile = |stage: &SplitStage| Ok((*stage, stage.pattern().map(Regex::new).transpose()?));
        Ok(Splitter { stages: stages.iter().map(compile).collect::<Result<_, _>>()? })
    }

    /// Hands over the words of `text`, in order and without gaps.
    ///
    /// # Errors
    /// That of `each`, which ends it.
    pub(super) fn words(&self, text: &str, mut each: impl FnMut(&str) -> Result<(), u8>) -> Result<(), u8> {
        run(&self.stages, text, &mut each)
    }
}

/// The stages, one inside the other: a piece of the first is a text for the second.
fn run(stages: &[(SplitStage, Option<Regex>)], text: &str, each: &mut Each<'_>) -> Result<(), u8> {
    if text.is_empty() {
        return Ok(());
    }
    let Some(((stage, regex), rest)) = stages.split_first() else { return each(text) };
    let mut next = |piece: &str| run(rest, piece, each);
    match (stage, regex) {
        (SplitStage::Isolate(_), Some(regex)) => isolate(regex, text, &mut next),
        (SplitStage::Words(_), Some(regex)) => words(regex, false, text, &mut next),
        (SplitStage::WordsAndLines(_), Some(regex)) => words(regex, true, text, &mut next),
        (SplitStage::PowersOfTwo(_), Some(regex)) => powers_of_two(regex, text, &mut next),
        (SplitStage::DigitGroups, _) => digit_groups(text, &mut next),
        (SplitStage::Thousands, _) => thousands(text, &mut next),
        (_, None) => next(text),
    }
}

fn isolate(regex: &Regex, text: &str, each: &mut Each<'_>) -> Result<(), u8> {
    let mut position = 0;
    for found in regex.find_iter(text) {
        each(&text[position..found.start()])?;
        each(found.as_str())?;
        position = found.end();
    }
    each(&text[position..])
}

fn words(regex: &Regex, keeps_line_breaks: bool, text: &str, each: &mut Each<'_>) -> Result<(), u8> {
    let mut position = 0;
    while let Some(found) = regex.find_at(text, position).filter(|found| !found.is_empty()) {
        each(&text[position..found.start()])?;
        let end = if ends_in_space(found.as_str(), keeps_line_breaks) {
            give_back(text, found.start(), found.end())
        } else {
            found.end()
        };
        each(&text[found.start()..end])?;
        position = end;
    }
    each(&text[position..])
}

/// Whether the word is white space that may leave its last character to the next word.
fn ends_in_space(word: &str, keeps_line_breaks: bool) -> bool {
    let mut characters = word.chars();
    characters.next_back().is_some_and(|last| {
        last.is_whitespace()
            && !(keeps_line_breaks && matches!(last, '\r' | '\n'))
            && characters.all(char::is_whitespace)
    })
}

/// The end of a run of white space that leaves its last character. At the end of the text there is no next
/// word to leave it to; a single character is a word of its own.
fn give_back(text: &str, start: usize, end: usize) -> usize {
    match text[start..end].char_indices().next_back() {
        Some((last, _)) if end < text.len() && last > 0 => start + last,
        _ => end,
    }
}

fn powers_of_two(regex: &Regex, text: &str, each: &mut Each<'_>) -> Result<(), u8> {
    let mut position = 0;
    while let Some(found) = regex.find_at(text, position).filter(|found| !found.is_empty()) {
        each(&text[position..found.start()])?;
        position = found.end();
        if !ends_in_space(found.as_str(), true) {
            each(found.as_str())?;
            continue;
        }
        position = give_back(text, found.start(), found.end());
        let mut rest = &text[found.start()..position];
        let mut left = rest.chars().count();
        while left > 0 {
            let most = (1 << left.ilog2()).min(512);
            let end = rest.char_indices().nth(most).map_or(rest.len(), |(end, _)| end);
            each(&rest[..end])?;
            rest = &rest[end..];
            left -= most;
        }
    }
    each(&text[position..])
}

fn digit_groups(text: &str, each: &mut Each<'_>) -> Result<(), u8> {
    // The characters of a run of digits, by the bytes at which they end.
    let mut run: Vec<usize> = Vec::new();
    let mut position = 0;
    let mut flush = |run: &mut Vec<usize>, position: &mut usize| -> Result<(), u8> {
        let first = run.len() % 3;
        for (at, end) in run.iter().enumerate() {
            if (at + 1) % 3 == first % 3 {
                each(&text[*position..*end])?;
                *position = *end;
            }
        }
        run.clear();
        Ok(())
    };
    for (start, character) in text.char_indices() {
        if character.is_numeric() {
            run.push(start + character.len_utf8());
        } else {
            flush(&mut run, &mut position)?;
        }
    }
    flush(&mut run, &mut position)?;
    each(&text[position..])
}

fn thousands(text: &str, each: &mut Each<'_>) -> Result<(), u8> {
    let bytes = text.as_bytes();
    let (mut position, mut at) = (0, 0);
    while at < bytes.len() {
        let digits = bytes[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
        for cut in (at..at + digits).filter(|cut| (at + digits - cut) % 3 == 0) {
            each(&text[position..cut])?;
            position = cut;
        }
        at += digits.max(1);
    }
    each(&text[position..])
}

#[cfg(test)]
mod tests {
    use super::super::pre::{ALL, Pre};
    use super::*;

    fn words(name: &str, text: &str) -> Vec<String> {
        let splitter = Splitter::new(Pre::named(name).unwrap().stages).unwrap();
        let mut words = Vec::new();
        splitter
            .words(text, |word| {
                words.push(word.to_owned());
                Ok(())
            })
            .unwrap();
        words
    }

    #[test]
    fn white_space_leaves_its_last_character_to_the_next_word() {
        assert_eq!(words("qwen2", "a   b"), ["a", "  ", " b"]);
        assert_eq!(words("qwen2", "a   "), ["a", "   "]);
        assert_eq!(words("qwen2", "a \n\n  b"), ["a", " \n\n", " ", " b"]);
        assert_eq!(words("gpt-2", "a \n\n  b"), ["a", " \n\n ", " b"]);
        assert_eq!(words("gpt-2", "a\n\n1"), ["a", "\n", "\n", "1"]);
        assert_eq!(words("qwen2", "a\t1"), ["a", "\t", "1"]);
        let spaces = |count: usize| " ".repeat(count);
        assert_eq!(words("jais-2", &(spaces(15) + "a")), [spaces(8), spaces(4), spaces(2), " a".into()]);
        assert_eq!(words("jais-2", &spaces(1537)), [spaces(512), spaces(512), spaces(512), spaces(1)]);
        assert_eq!(words("spark2_5", "a \n\nb"), ["a", " \n", "\n", "b"]);
    }

    #[test]
    fn digits_are_cut_as_each_pattern_wants() {
        assert_eq!(words("qwen2", "x1234"), ["x", "1", "2", "3", "4"]);
        assert_eq!(words("llama-bpe", "x1234"), ["x", "123", "4"]);
        assert_eq!(words("gpt-2", "x 1234"), ["x", " 1234"]);
        assert_eq!(words("smollm", "x 1234"), ["x", " ", "1", "2", "3", "4"]);
        assert_eq!(words("falcon", "x 1234"), ["x", " ", "123", "4"]);
        assert_eq!(words("superbpe", "x1234567 89"), ["x", "1", "234", "567", " ", "89"]);
        assert_eq!(words("tiny_aya", "1234567"), ["1", "234", "567"]);
        assert_eq!(words("deepseek-llm", "1234"), ["1234"]);
    }

    #[test]
    fn contractions_and_punctuation() {
        assert_eq!(words("qwen2", "I'LL (go).\n\n"), ["I", "'LL", " (", "go", ").\n\n"]);
        assert_eq!(words("gpt-2", "I'LL it's"), ["I", "'", "LL", " it", "'s"]);
        assert_eq!(words("qwen2", "it'\u{17F}x"), ["it", "'\u{17F}x"]);
        assert_eq!(words("gpt-4o", "HelloWorld it'S"), ["Hello", "World", " it'S"]);
        assert_eq!(words("falcon", "a ```b``` $"), ["a", " ", "```", "b", "```", " ", "$"]);
        assert_eq!(words("deepseek-v3", "a,b 日本ab"), ["a", ",b", " ", "日本", "ab"]);
        assert_eq!(words("kimi-k2", "日本ab's x"), ["日本", "ab's", " x"]);
    }

    #[test]
    fn no_byte_is_lost() {
        let text = "\0\u{85}\u{a0}\u{3000}\u{1f600}\u{fdd0}e\u{301} \r\n\t١٢٣ Ⅷ ½ 1234567 日本語\u{200d}";
        for pre in ALL {
            for name in pre.names {
                assert_eq!(words(name, text).concat(), text, "{name}");
                assert_eq!(words(name, ""), [""; 0], "{name}");
            }
        }
    }
}
