//! A byte-level BPE vocabulary: the bytes, made-up words with the merges that build them, and a few
//! control tokens; or one of SentencePiece with the same tokens.

use std::collections::HashSet;

use crate::random::Random;
use crate::{Error, Spec, Text};

const NORMAL: i32 = 1;
const CONTROL: i32 = 3;
const USER_DEFINED: i32 = 4;
const UNUSED: i32 = 5;
const BYTE: i32 = 6;

/// Longest word, in bytes.
const MAX_WORD: usize = 12;
/// Words are made of two earlier ones, of these many: the earliest are the shortest.
const LEFT_PARTS: usize = 8192;
const RIGHT_PARTS: usize = 512;

/// The contents of the `tokenizer.ggml.*` keys.
pub(crate) struct Vocabulary {
    pub(crate) tokens: Vec<String>,
    pub(crate) types: Vec<i32>,
    pub(crate) merges: Vec<String>,
    /// Beginning of a turn and, unless generation is to be endless, its end.
    pub(crate) turn: &'static str,
    pub(crate) end: &'static str,
    pub(crate) end_id: u32,
}

/// The character that stands for a byte in byte-level BPE.
pub(crate) fn character(byte: u8) -> char {
    let printable = |byte: u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    if printable(byte) {
        return char::from(byte);
    }
    let before = (0..byte).filter(|byte| !printable(*byte)).count() as u32;
    char::from_u32(0x100 + before).unwrap_or_default()
}

/// Fills the vocabulary up to `spec.vocab` tokens: bytes first, then control tokens, then words.
pub(crate) fn build(spec: &Spec) -> Result<Vocabulary, Error> {
    // Names that no engine knows as the end of an answer make one that never ends.
    let (turn, end) = if spec.endless && spec.rerank.is_none() {
        ("<|turn|>", "<|over|>")
    } else {
        ("<|im_start|>", "<|im_end|>")
    };
    let mut tokens: Vec<String> = (0..=255).map(|byte| character(byte).to_string()).collect();
    let mut types: Vec<i32> = (0..=255).map(|byte| byte_type(byte, spec.text)).collect();
    let end_id = tokens.len() as u32 + 1;
    for name in [turn, end] {
        tokens.push(name.into());
        types.push(CONTROL);
    }
    // Two words of their own, with the merges that make them.
    let mut merges = Vec::new();
    let mut answers: &[&str] = &[];
    if spec.rerank.is_some() {
        tokens.extend(["<think>".to_owned(), "</think>".to_owned()]);
        types.extend([USER_DEFINED; 2]);
        answers = &["ye", "yes", "no"];
        tokens.extend(answers.iter().map(ToString::to_string));
        types.extend([NORMAL; 3]);
        merges.extend(["y e", "ye s", "n o"].map(str::to_owned));
    }
    if spec.sentencepiece && spec.text == Text::InvalidUtf8 {
        return Err(Error::Spec("SentencePiece's words are valid UTF-8".to_owned()));
    }
    if spec.vocab < tokens.len() {
        return Err(Error::Spec(format!("a vocabulary has {} tokens at least", tokens.len())));
    }

    let first: Vec<u8> = match spec.text {
        Text::Ascii | Text::Bytes => (b'a'..=b'z').collect(),
        // Bytes that continue a character which never began.
        Text::InvalidUtf8 => (0x80..=0xbf).collect(),
    };
    // The parts that words are made of: single bytes, a leading space, and words themselves.
    let mut words: Vec<Vec<u8>> = first.iter().map(|byte| vec![*byte]).collect();
    let mut known: HashSet<Vec<u8>> = words.iter().cloned().collect();
    known.extend(answers.iter().map(|answer| answer.as_bytes().to_vec()));
    let mut random = Random::named(spec.seed, "vocabulary");
    let mut attempts = 0usize;
    while tokens.len() < spec.vocab {
        attempts += 1;
        if attempts > 1000 * spec.vocab {
            return Err(Error::Spec(format!("cannot make up {} words", spec.vocab)));
        }
        let mut part =
            |parts: usize| words.get(random.below(words.len().min(parts))).cloned().unwrap_or_default();
        let (left, right) = (part(LEFT_PARTS), part(RIGHT_PARTS));
        let with_space = spec.text == Text::Ascii && random.below(2) == 0;
        let left = if with_space { vec![b' '] } else { left };
        let word = [left.as_slice(), right.as_slice()].concat();
        // A space can only begin a word.
        if word.len() > MAX_WORD || right.contains(&b' ') || !known.insert(word.clone()) {
            continue;
        }
        let written = |bytes: &[u8]| bytes.iter().map(|byte| character(*byte)).collect::<String>();
        merges.push(format!("{} {}", written(&left), written(&right)));
        tokens.push(written(&word));
        types.push(NORMAL);
        words.push(word);
    }
    if spec.sentencepiece {
        for (token, kind) in tokens.iter_mut().zip(&mut types).filter(|(_, kind)| **kind != CONTROL) {
            let bytes: Vec<u8> = token.chars().map(byte).collect();
            match *bytes {
                [byte] => {
                    *token = format!("<0x{byte:02X}>");
                    *kind = if *kind == NORMAL { BYTE } else { *kind };
                }
                _ => *token = String::from_utf8_lossy(&bytes).replace(' ', "▁"),
            }
        }
    }
    Ok(Vocabulary { tokens, types, merges, turn, end, end_id })
}

/// The byte that a character stands for.
fn byte(character: char) -> u8 {
    (0..=255).find(|byte| self::character(*byte) == character).unwrap_or_default()
}

/// Bytes that would break the promise of [`Text`] are there for prompts, but say nothing in an answer.
fn byte_type(byte: u8, text: Text) -> i32 {
    let said = match text {
        Text::Ascii => (1..0x80).contains(&byte),
        Text::InvalidUtf8 => (0x80..0xc0).contains(&byte),
        Text::Bytes => true,
    };
    if said { NORMAL } else { UNUSED }
}
