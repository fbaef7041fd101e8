//! Tokens by their text, and places of texts.

use std::collections::HashMap;

use super::vocabulary::{Ids, Vocabulary, byte_tokens};

/// Longest token that is made of text. It bounds the cost of looking for a token; the tokens of real
/// vocabularies are less than a quarter as long.
pub(super) const MAX_PIECE_BYTES: usize = 512;

/// The place of a stretch of text, for algorithms that encode the beginning of a text otherwise than the
/// rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TextPlace {
    /// At the beginning, or behind a special token.
    First,
    /// Behind other text.
    Later,
}

/// Tokens to be looked up.
#[derive(Debug, Default)]
pub(super) struct PieceIds {
    ids: HashMap<Box<str>, u32>,
    /// Bytes of the longest one.
    longest: usize,
}

impl PieceIds {
    pub(super) fn new<'a>(pieces: impl Iterator<Item = (&'a str, u32)>) -> PieceIds {
        let pieces = pieces.filter(|(text, _)| (1..=MAX_PIECE_BYTES).contains(&text.len()));
        let ids: HashMap<Box<str>, u32> = pieces.map(|(text, id)| (text.into(), id)).collect();
        PieceIds { longest: ids.keys().map(|text| text.len()).max().unwrap_or(0), ids }
    }

    pub(super) fn get(&self, text: &str) -> Option<u32> {
        if text.len() > self.longest {
            return None;
        }
        self.ids.get(text).copied()
    }

    /// Bytes of the longest one.
    pub(super) fn longest(&self) -> usize {
        self.longest
    }
}

/// The tokens of single bytes (`<0xFF>`), for text that has no other tokens.
#[derive(Debug)]
pub(super) struct ByteTokens([Option<u32>; 256]);

impl ByteTokens {
    pub(super) fn new(ids: &Ids<'_>, vocabulary: &Vocabulary) -> ByteTokens {
        ByteTokens(byte_tokens(ids).map(|id| id.filter(|id| !vocabulary.is_control(*id))))
    }

    /// Appends the tokens of bytes; the error is a byte that has no token.
    pub(super) fn encode(&self, bytes: &[u8], ids: &mut Vec<u32>) -> Result<(), u8> {
        for byte in bytes {
            ids.push(self.0.get(usize::from(*byte)).copied().flatten().ok_or(*byte)?);
        }
        Ok(())
    }
}
