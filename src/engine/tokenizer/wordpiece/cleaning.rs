//! From a text to the words that are looked up: control characters are removed, accents and capitals folded,
//! punctuation and Chinese characters separated.
//!
//! The order is that of transformers' BERT normalizer: a character is classified as it is written, then
//! decomposed, then made lower case.

use unicode_general_category::{GeneralCategory as Category, get_general_category};
use unicode_normalization::UnicodeNormalization;

use crate::Error;
use crate::gguf::Gguf;

/// The cleaning of a model's texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cleaning {
    /// Whether control characters are removed, and all white space becomes spaces.
    clean_text: bool,
    lower_case: bool,
    strip_accents: bool,
    /// Whether Chinese characters are words of their own.
    split_chinese: bool,
}

impl Cleaning {
    /// The cleaning that the file asks for. Newer converters write the settings of its normalizer; those of a
    /// folder of safetensors come under keys of ours.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where such a key is no truth value.
    pub(super) fn of(gguf: &Gguf) -> Result<Cleaning, Error> {
        let key = |name: &str| gguf.opt_bool(&format!("steadytext.tokenizer.{name}"));
        let normalizer = |name: &str| gguf.opt_bool(&format!("tokenizer.ggml.normalizer.{name}"));
        let lower_case = key("lower_case")?.or(normalizer("lowercase")?).unwrap_or(true);
        let strip_accents = key("strip_accents")?.or(normalizer("strip_accents")?);
        Ok(Cleaning {
            clean_text: key("clean_text")?.unwrap_or(true),
            lower_case,
            strip_accents: strip_accents.unwrap_or(lower_case),
            split_chinese: key("split_chinese")?.unwrap_or(true),
        })
    }

    /// The text as it is cut into words.
    pub(super) fn clean(self, text: &str) -> String {
        let mut clean = String::with_capacity(text.len() + 16);
        let mut put = |c: char| {
            if self.lower_case { clean.extend(c.to_lowercase()) } else { clean.push(c) }
        };
        if text.is_ascii() {
            text.chars().filter_map(|c| self.seen(c)).for_each(put);
        } else if self.strip_accents {
            self.spaced(text).nfd().filter(|c| !is_accent(*c)).for_each(&mut put);
        } else {
            self.spaced(text).for_each(&mut put);
        }
        clean
    }

    /// The first step for a character: where text is cleaned, white space becomes a space, and invisible
    /// characters are dropped.
    fn seen(self, c: char) -> Option<char> {
        if self.clean_text { visible(c) } else { Some(c) }
    }

    /// Its visible characters, with spaces around Chinese ones.
    fn spaced(self, text: &str) -> impl Iterator<Item = char> {
        text.chars().filter_map(move |c| self.seen(c)).flat_map(move |c| {
            let around = (self.split_chinese && is_chinese(c)).then_some(' ');
            around.into_iter().chain([c]).chain(around)
        })
    }
}

/// White space as a space; None for characters that are neither visible nor space.
fn visible(c: char) -> Option<char> {
    match c {
        '\t' | '\n' | '\r' | ' ' => Some(' '),
        '!'..='~' => Some(c),
        '\0' | char::REPLACEMENT_CHARACTER => None,
        _ if matches!(
            get_general_category(c),
            Category::Control | Category::Format | Category::PrivateUse
        ) =>
        {
            None
        }
        _ if c.is_whitespace() => Some(' '),
        _ => Some(c),
    }
}

fn is_accent(c: char) -> bool {
    !c.is_ascii() && get_general_category(c) == Category::NonspacingMark
}

/// Ideographs, as the authors of BERT count them.
fn is_chinese(c: char) -> bool {
    matches!(
        u32::from(c),
        0x3400..=0x4DBF
            | 0x4E00..=0x9FFF
            | 0xF900..=0xFAFF
            | 0x20000..=0x2A6DF
            | 0x2A700..=0x2B73F
            | 0x2B740..=0x2B81F
            | 0x2B920..=0x2CEAF
            | 0x2F800..=0x2FA1F
    )
}

fn is_punctuation(c: char) -> bool {
    use Category::*;
    if c.is_ascii() {
        return c.is_ascii_punctuation();
    }
    matches!(
        get_general_category(c),
        ConnectorPunctuation
            | DashPunctuation
            | OpenPunctuation
            | ClosePunctuation
            | InitialPunctuation
            | FinalPunctuation
            | OtherPunctuation
    )
}

/// The words of a clean text: the stretches between white space, and each punctuation mark.
pub(super) fn words(clean: &str) -> impl Iterator<Item = &str> {
    let mut rest = clean;
    std::iter::from_fn(move || {
        rest = rest.trim_start();
        let first = rest.chars().next()?;
        let end = if is_punctuation(first) {
            first.len_utf8()
        } else {
            rest.find(|c: char| c.is_whitespace() || is_punctuation(c)).unwrap_or(rest.len())
        };
        let (word, after) = rest.split_at(end);
        rest = after;
        Some(word)
    })
}
