//! Unigram language model (SentencePiece): of all ways to write a text with tokens, the one with the highest
//! sum of scores, found by Viterbi's algorithm. A run of characters without tokens becomes one unknown token.
//!
//! Before that the text is normalised: characters are replaced by the file's map, spaces are written as `▁`,
//! and, if the file asks for it, runs of them become one and one is put in front.

use std::collections::HashSet;

use super::charsmap::Charsmap;
use super::pieces::{MAX_PIECE_BYTES, TextPlace};
use super::vocabulary::{self, SPACE, Spelling, Vocabulary};
use crate::Error;
use crate::gguf::Gguf;

/// The score of the unknown token is this much lower than that of any other token.
const UNKNOWN_PENALTY: f32 = 10.0;
/// The unknown token where the file does not name it.
const UNKNOWN: u32 = 2;

/// A vocabulary whose tokens have probabilities.
#[derive(Debug)]
pub(super) struct Unigram {
    /// The texts of tokens, one after the other in the order of their bytes.
    text: Vec<u8>,
    tokens: Vec<UnigramPiece>,
    /// The tokens that begin with each byte: those from its number on, up to that of the next.
    first: Vec<u32>,
    unknown: u32,
    unknown_score: f64,
    charsmap: Charsmap,
    adds_space: bool,
    merges_spaces: bool,
}

#[derive(Debug)]
struct UnigramPiece {
    id: u32,
    start: u32,
    length: u32,
    score: f64,
}

/// The best way to write a text up to a place: its last token, the beginning of that token, and the sum of
/// all scores.
#[derive(Debug, Clone, Copy)]
struct Best {
    token: u32,
    start: u32,
    score: f64,
}

/// Memory that is kept from stretch to stretch.
#[derive(Debug, Default)]
pub(super) struct UnigramScratch {
    best: Vec<Best>,
}

/// The type of control tokens in `tokenizer.ggml.token_type`.
const CONTROL_TYPE: i32 = 3;

impl Unigram {
    /// The model of the file, with its vocabulary.
    pub(super) fn of(gguf: &Gguf) -> Result<(Vocabulary, Unigram), Error> {
        let ids = vocabulary::ids(gguf)?;
        let vocabulary = vocabulary::read(gguf, &ids, Spelling::Plain, &HashSet::new())?;
        let count = vocabulary.len();
        let scores = vocabulary::scores(gguf, count)?;
        let score = |id: u32| scores.get(id as usize).copied().unwrap_or_default();
        let unknown =
            vocabulary::token_id(gguf, "tokenizer.ggml.unknown_token_id", count)?.unwrap_or(UNKNOWN);
        if unknown as usize >= count {
            return Err(gguf.corrupt("key \"tokenizer.ggml.unknown_token_id\" is missing"));
        }
        // The unknown token stands for characters that a user's text has and the vocabulary lacks, so it must
        // not be a control token.
        if vocabulary::token_type(gguf, unknown)? == Some(CONTROL_TYPE) {
            return Err(gguf.unsupported("key \"tokenizer.ggml.unknown_token_id\" names a control token"));
        }
        let mut pieces: Vec<(&str, u32)> = ids
            .iter()
            .filter(|(text, id)| vocabulary.is_text(**id) && text.len() <= MAX_PIECE_BYTES)
            .map(|(text, id)| (*text, *id))
            .collect();
        pieces.sort_unstable();
        let lowest = (0..count as u32)
            .filter(|id| vocabulary.is_ordinary(*id))
            .map(score)
            .min_by(f32::total_cmp)
            .unwrap_or(0.0);
        let mut text = Vec::new();
        let mut tokens = Vec::with_capacity(pieces.len());
        for (piece, id) in &pieces {
            tokens.push(UnigramPiece {
                id: *id,
                start: text.len() as u32,
                length: piece.len() as u32,
                // User-defined tokens are preferred to all others.
                score: if vocabulary.is_ordinary(*id) { f64::from(score(*id)) } else { 0.0 },
            });
            text.extend_from_slice(piece.as_bytes());
        }
        let first = |byte: u32| {
            pieces.partition_point(|(piece, _)| {
                piece.bytes().next().is_some_and(|first| u32::from(first) < byte)
            })
        };
        let flag = |name: &str| -> Result<bool, Error> {
            Ok(gguf.opt_bool(&format!("tokenizer.ggml.{name}"))?.unwrap_or(false))
        };
        let unigram = Unigram {
            first: (0..=256).map(|byte| first(byte) as u32).collect(),
            text,
            tokens,
            unknown,
            unknown_score: f64::from(lowest - UNKNOWN_PENALTY),
            charsmap: Charsmap::of(gguf)?,
            adds_space: flag("add_space_prefix")?,
            merges_spaces: flag("remove_extra_whitespaces")?,
        };
        Ok((vocabulary, unigram))
    }

    pub(super) fn adds_space(&self) -> bool {
        self.adds_space || self.merges_spaces
    }

    /// Appends the tokens of a text, which is put into `normal` as the vocabulary writes it.
    pub(super) fn encode(
        &self,
        text: &str,
        place: TextPlace,
        normal: &mut String,
        scratch: &mut UnigramScratch,
        ids: &mut Vec<u32>,
    ) {
        let UnigramScratch { best } = scratch;
        self.normalize(text, place, normal);
        best.clear();
        best.resize(normal.len() + 1, Best { token: self.unknown, start: 0, score: f64::NEG_INFINITY });
        if let Some(beginning) = best.first_mut() {
            beginning.score = 0.0;
        }
        for (start, character) in normal.char_indices() {
            let Some(before) = best.get(start).map(|best| best.score) else { break };
            let mut improve = |length: usize, token: u32, score: f64| {
                if let Some(best) = best.get_mut(start + length)
                    && before + score > best.score
                {
                    *best = Best { token, start: start as u32, score: before + score };
                }
            };
            let mut whole = false;
            self.tokens_of(&normal.as_bytes()[start..], |piece| {
                whole |= piece.length as usize == character.len_utf8();
                improve(piece.length as usize, piece.id, piece.score);
            });
            if !whole {
                improve(character.len_utf8(), self.unknown, self.unknown_score);
            }
        }
        let before = ids.len();
        let mut end = normal.len();
        let mut after_unknown = false;
        while end > 0 {
            let Some(last) = best.get(end) else { break };
            let unknown = last.token == self.unknown;
            if !(unknown && after_unknown) {
                ids.push(last.token);
            }
            after_unknown = unknown;
            end = last.start as usize;
        }
        ids[before..].reverse();
    }

    /// Hands over the tokens with which a text begins, the shortest first.
    fn tokens_of(&self, text: &[u8], mut each: impl FnMut(&UnigramPiece)) {
        let Some(first) = text.first().map(|byte| usize::from(*byte)) else { return };
        let range = |at: usize| self.first.get(at).map_or(0, |at| *at as usize);
        let mut pieces = self.tokens.get(range(first)..range(first + 1)).unwrap_or_default();
        for (at, byte) in text.iter().enumerate() {
            // Candidates that continue with this byte. Those that end here came first, and were handed over.
            let byte_of =
                |piece: &UnigramPiece| self.text.get(piece.start as usize + at).copied().unwrap_or_default();
            if at > 0 {
                let start = pieces.partition_point(|piece| byte_of(piece) < *byte);
                let end = pieces.partition_point(|piece| byte_of(piece) <= *byte);
                pieces = pieces.get(start..end).unwrap_or_default();
            }
            match pieces.split_first() {
                Some((piece, rest)) if piece.length as usize == at + 1 => {
                    each(piece);
                    pieces = rest;
                }
                Some(_) => {}
                None => return,
            }
        }
    }

    /// Writes the text in the vocabulary's form.
    fn normalize(&self, text: &str, place: TextPlace, normal: &mut String) {
        normal.clear();
        let mut in_word = false;
        let mut prefixed = place == TextPlace::Later;
        let mut put = |c: char| {
            if c == ' ' {
                in_word = false;
                if !self.merges_spaces {
                    normal.push(SPACE);
                }
                return;
            }
            if !in_word {
                in_word = true;
                if (self.adds_space && !prefixed) || self.merges_spaces {
                    normal.push(SPACE);
                    prefixed = true;
                }
            }
            normal.push(c);
        };
        let mut rest = text;
        while let Some(character) = rest.chars().next() {
            // A match that ends inside a character is not used: the rest would be no text.
            match self.charsmap.replacement(rest.as_bytes()) {
                Some((length, replacement)) if rest.is_char_boundary(length) => {
                    replacement.chars().for_each(&mut put);
                    rest = &rest[length..];
                }
                _ => {
                    put(character);
                    rest = &rest[character.len_utf8()..];
                }
            }
        }
    }
}
