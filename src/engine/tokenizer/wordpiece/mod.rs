//! Text to tokens for encoders of the BERT family: words, then the longest pieces that the vocabulary has.
//!
//! In a GGUF file, a piece that begins a word begins with `▁`, and one that continues it is written plainly
//! (in `vocab.txt` it is the other way round, with `##` before continuations).
//!
//! It follows the tokenizer of transformers, byte for byte, with one exception: a user's text never becomes a
//! control token, so that `[SEP]` in a text is three words.

mod cleaning;
#[cfg(test)]
mod tests;

use std::collections::HashSet;

use super::pieces::PieceIds;
use super::vocabulary::{self, Ids, SPACE, Spelling, Vocabulary};
use crate::Error;
use crate::gguf::Gguf;
use cleaning::{Cleaning, words};

/// Longer words are unknown, as in transformers.
const MAX_WORD_CHARS: usize = 100;

/// Words and the pieces that they are made of.
#[derive(Debug)]
pub(super) struct WordPiece {
    /// Pieces that begin a word, without the `▁` by which they are known.
    beginnings: PieceIds,
    continuations: PieceIds,
    first: u32,
    separator: u32,
    unknown: u32,
    cleaning: Cleaning,
}

impl WordPiece {
    /// The WordPiece of the file, with its vocabulary.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the metadata contradict themselves.
    pub(super) fn of(gguf: &Gguf) -> Result<(Vocabulary, WordPiece), Error> {
        let ids = vocabulary::ids(gguf)?;
        let vocabulary = vocabulary::read(gguf, &ids, Spelling::WordPiece, &HashSet::new())?;
        let text = || ids.iter().filter(|(_, id)| vocabulary.is_text(**id)).map(|(text, id)| (*text, *id));
        let beginnings = text().filter_map(|(text, id)| Some((text.strip_prefix(SPACE)?, id)));
        let wordpiece = WordPiece {
            beginnings: PieceIds::new(beginnings),
            continuations: PieceIds::new(text().filter(|(text, _)| !text.starts_with(SPACE))),
            first: special(gguf, &ids, &["cls", "bos"], "[CLS]")?,
            // The key is misspelt in the format.
            separator: special(gguf, &ids, &["seperator", "separator", "eos"], "[SEP]")?,
            unknown: special(gguf, &ids, &["unknown"], "[UNK]")?,
            cleaning: Cleaning::of(gguf)?,
        };
        Ok((vocabulary, wordpiece))
    }

    /// The token that begins every text.
    pub(super) fn first(&self) -> u32 {
        self.first
    }

    /// The token that ends every text.
    pub(super) fn separator(&self) -> u32 {
        self.separator
    }

    /// Appends the tokens of a text: never a control token but that for unknown words.
    pub(super) fn encode(&self, text: &str, ids: &mut Vec<u32>) {
        for word in words(&self.cleaning.clean(text)) {
            self.add_word(word, ids);
        }
    }

    /// The pieces of a word, the longest first; one unknown token where they do not cover it.
    fn add_word(&self, word: &str, ids: &mut Vec<u32>) {
        let before = ids.len();
        // The length in bytes is known already, so it is compared first.
        if word.len() > MAX_WORD_CHARS && word.chars().count() > MAX_WORD_CHARS {
            return ids.push(self.unknown);
        }
        let mut rest = word;
        while !rest.is_empty() {
            let pieces = if rest.len() == word.len() { &self.beginnings } else { &self.continuations };
            let mut end = rest.floor_char_boundary(pieces.longest().min(rest.len()));
            let found = loop {
                match pieces.get(&rest[..end]) {
                    Some(id) if end > 0 => break Some(id),
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

/// The token that one of the keys names, otherwise the one with the usual name.
fn special(gguf: &Gguf, ids: &Ids<'_>, keys: &[&str], name: &str) -> Result<u32, Error> {
    let count = gguf.strings("tokenizer.ggml.tokens")?.len();
    for key in keys {
        if let Some(id) = vocabulary::token_id(gguf, &format!("tokenizer.ggml.{key}_token_id"), count)? {
            return Ok(id);
        }
    }
    ids.get(name).copied().ok_or_else(|| gguf.corrupt(format!("its vocabulary has no token {name}")))
}
