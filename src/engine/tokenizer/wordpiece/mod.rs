//! Text to tokens for encoders of the BERT family: words, then the longest pieces that the vocabulary has.
//!
//! In a GGUF file, a piece that begins a word begins with `▁`, and one that continues it is written as it is (in
//! `vocab.txt` it is the other way round, with `##` before what continues).
//!
//! It follows the tokenizer of transformers, byte for byte but for one thing: what a user writes never becomes a
//! control token, so that `[SEP]` in a text is three words.

mod cleaning;
#[cfg(test)]
mod tests;

use std::collections::HashMap;

use crate::Error;
use crate::gguf::Gguf;
use cleaning::{Cleaning, words};

/// Longer words are unknown, as in transformers.
const MAX_WORD_CHARS: usize = 100;
/// Far above any real vocabulary; bounds the tables that are built here.
const MAX_TOKENS: usize = 1 << 22;
const MAX_TEXT_BYTES: usize = 1 << 28;
/// Begins a piece that begins a word.
const BEGINNING: char = '▁';

/// The tokenizer of an encoder. Shared between threads.
#[derive(Debug)]
pub struct WordPiece {
    beginnings: HashMap<Box<str>, u32>,
    continuations: HashMap<Box<str>, u32>,
    /// Bytes of the longest piece.
    longest: usize,
    size: usize,
    first: u32,
    separator: u32,
    unknown: u32,
    cleaning: Cleaning,
}

/// Tokens of one text or a pair of texts, with the tokens that the model wants around them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// `[CLS] text [SEP]` or `[CLS] text [SEP] other [SEP]`.
    pub tokens: Vec<u32>,
    /// Where the second text begins; the number of tokens for a single text.
    pub second: usize,
}

impl WordPiece {
    /// The tokenizer that the file describes.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the metadata contradict themselves, [`Error::UnsupportedModel`] for other
    /// kinds of tokenizers, naming the key.
    pub fn from_gguf(gguf: &Gguf) -> Result<WordPiece, Error> {
        let model = gguf.str("tokenizer.ggml.model")?;
        if model != "bert" {
            return Err(gguf.unsupported(format!(
                "key \"tokenizer.ggml.model\" is \"{}\", only \"bert\" (WordPiece) goes with an encoder",
                model.escape_debug()
            )));
        }
        let tokens = gguf.strings("tokenizer.ggml.tokens")?;
        let size = tokens.len();
        let bytes: usize = tokens.clone().map(str::len).sum();
        if !(1..=MAX_TOKENS).contains(&size) || bytes > MAX_TEXT_BYTES {
            return Err(gguf.corrupt(format!(
                "key \"tokenizer.ggml.tokens\" has {size} elements of {bytes} bytes, 1 to {MAX_TOKENS} of at most \
                 {MAX_TEXT_BYTES} are allowed"
            )));
        }
        let types: Vec<i32> =
            gguf.opt_i32s("tokenizer.ggml.token_type")?.map(Iterator::collect).unwrap_or_default();
        let mut named = HashMap::new();
        let mut beginnings: HashMap<Box<str>, u32> = HashMap::new();
        let mut continuations: HashMap<Box<str>, u32> = HashMap::new();
        for (id, token) in tokens.enumerate() {
            let id_number = id as u32;
            // 2 is unknown, 3 is control, 5 is unused: no part of any text.
            if matches!(types.get(id), Some(2 | 3 | 5)) || is_bracketed(token) {
                named.insert(token, id_number);
                continue;
            }
            match token.strip_prefix(BEGINNING) {
                Some(piece) => beginnings.insert(Box::from(piece), id_number),
                None => continuations.insert(Box::from(token), id_number),
            };
        }
        let special = |keys: &[&str], name: &str| -> Result<u32, Error> {
            for key in keys {
                let key = format!("tokenizer.ggml.{key}_token_id");
                if let Some(id) = gguf.opt_u32(&key)? {
                    if (id as usize) < size {
                        return Ok(id);
                    }
                    return Err(gguf.corrupt(format!("key \"{key}\" is {id}, but there are {size} tokens")));
                }
            }
            let id = named.get(name).copied();
            id.ok_or_else(|| gguf.corrupt(format!("its vocabulary has no token {name}")))
        };
        let pieces = beginnings.keys().chain(continuations.keys());
        Ok(WordPiece {
            longest: pieces.map(|piece| piece.len()).max().unwrap_or(0),
            size,
            first: special(&["cls", "bos"], "[CLS]")?,
            // The key is misspelt in the format.
            separator: special(&["seperator", "separator", "eos"], "[SEP]")?,
            unknown: special(&["unknown"], "[UNK]")?,
            cleaning: Cleaning::of(gguf)?,
            beginnings,
            continuations,
        })
    }

    /// Number of tokens; ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.size
    }

    /// Tokens of a user's text, nothing added: never a control token but that for unknown words.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::with_capacity(text.len() / 4 + 1);
        self.add(text, &mut ids);
        ids
    }

    /// Tokens of a text to be embedded.
    pub fn encode_text(&self, text: &str) -> Encoded {
        let mut tokens = Vec::with_capacity(text.len() / 4 + 3);
        tokens.push(self.first);
        self.add(text, &mut tokens);
        tokens.push(self.separator);
        Encoded { second: tokens.len(), tokens }
    }

    /// Tokens of two texts that are looked at together, as by a reranker: a query and a document.
    pub fn encode_pair(&self, text: &str, other: &str) -> Encoded {
        let Encoded { mut tokens, second } = self.encode_text(text);
        self.add(other, &mut tokens);
        tokens.push(self.separator);
        Encoded { tokens, second }
    }

    fn add(&self, text: &str, ids: &mut Vec<u32>) {
        for word in words(&self.cleaning.clean(text)) {
            self.add_word(word, ids);
        }
    }

    /// The pieces of a word, the longest first; one unknown token where they do not cover it.
    fn add_word(&self, word: &str, ids: &mut Vec<u32>) {
        let before = ids.len();
        // Bytes first, which are counted already.
        if word.len() > MAX_WORD_CHARS && word.chars().count() > MAX_WORD_CHARS {
            return ids.push(self.unknown);
        }
        let mut rest = word;
        while !rest.is_empty() {
            let pieces = if rest.len() == word.len() { &self.beginnings } else { &self.continuations };
            let mut end = rest.floor_char_boundary(self.longest.min(rest.len()));
            let found = loop {
                match pieces.get(&rest[..end]) {
                    Some(id) if end > 0 => break Some(*id),
                    _ if end <= 1 => break None,
                    _ => end = rest.floor_char_boundary(end - 1),
                }
            };
            let Some(id) = found else {
                ids.truncate(before);
                return ids.push(self.unknown);
            };
            ids.push(id);
            rest = &rest[end..];
        }
    }
}

/// `[CLS]` and the like, which files of old converters mark as ordinary.
fn is_bracketed(token: &str) -> bool {
    matches!(token, "[CLS]" | "[SEP]" | "[UNK]" | "[PAD]" | "[MASK]")
}
