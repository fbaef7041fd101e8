//! SentencePiece's byte-pair encoding: the characters of a text are joined with their neighbours as long as
//! that makes a token. The pair of the highest score is joined first, and the leftmost of equals. Characters
//! without a token fall back to their bytes.
//!
//! It has no words: a text is one sequence with `▁` for spaces. A candidate in the heap is dropped if one of
//! its two sides has grown since; each of the n characters joins a neighbour once at most, so that there are
//! O(n) candidates.

use std::cmp::Ordering;
use std::collections::{BinaryHeap, HashSet};

use super::pieces::{ByteTokens, PieceIds, TextPlace};
use super::vocabulary::{self, SPACE, Spelling, Vocabulary};
use crate::Error;
use crate::gguf::Gguf;

/// Ends the chain of symbols.
const NONE: u32 = u32::MAX;

/// A vocabulary whose tokens have scores.
#[derive(Debug)]
pub(super) struct SentencePiece {
    pieces: PieceIds,
    scores: Vec<f32>,
    bytes: ByteTokens,
    adds_space: bool,
}

/// A token in the making: `length` bytes of the text, 0 once it was joined with its left neighbour.
#[derive(Debug, Clone, Copy)]
struct SentencePieceSymbol {
    start: u32,
    length: u32,
    previous: u32,
    next: u32,
}

/// Two neighbours that were a token when they were found.
#[derive(Debug, Clone, Copy)]
struct MergeCandidate {
    score: f32,
    left: u32,
    right: u32,
    /// Bytes of both together.
    length: u32,
}

/// Memory that is kept from stretch to stretch.
#[derive(Debug, Default)]
pub(super) struct SentencePieceScratch {
    symbols: Vec<SentencePieceSymbol>,
    candidates: BinaryHeap<MergeCandidate>,
}

impl Ord for MergeCandidate {
    fn cmp(&self, other: &MergeCandidate) -> Ordering {
        self.score.total_cmp(&other.score).then(other.left.cmp(&self.left))
    }
}

impl PartialOrd for MergeCandidate {
    fn partial_cmp(&self, other: &MergeCandidate) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for MergeCandidate {
    fn eq(&self, other: &MergeCandidate) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for MergeCandidate {}

impl SentencePiece {
    /// The model of the file, with its vocabulary.
    pub(super) fn of(gguf: &Gguf) -> Result<(Vocabulary, SentencePiece), Error> {
        let ids = vocabulary::ids(gguf)?;
        let vocabulary = vocabulary::read(gguf, &ids, Spelling::Plain, &HashSet::new())?;
        let scores = vocabulary::scores(gguf, vocabulary.len())?;
        let text = ids.iter().filter(|(_, id)| vocabulary.is_text(**id)).map(|(text, id)| (*text, *id));
        let sentencepiece = SentencePiece {
            pieces: PieceIds::new(text),
            scores,
            bytes: ByteTokens::new(&ids, &vocabulary),
            adds_space: gguf.opt_bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true),
        };
        Ok((vocabulary, sentencepiece))
    }

    pub(super) fn bytes(&self) -> &ByteTokens {
        &self.bytes
    }

    pub(super) fn adds_space(&self) -> bool {
        self.adds_space
    }

    /// Appends the tokens of a text, which is put into `written` as the vocabulary writes it; the error is a
    /// byte that has no token.
    pub(super) fn encode(
        &self,
        text: &str,
        place: TextPlace,
        written: &mut String,
        scratch: &mut SentencePieceScratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), u8> {
        written.clear();
        if self.adds_space && place == TextPlace::First {
            written.push(SPACE);
        }
        written.extend(text.chars().map(|character| if character == ' ' { SPACE } else { character }));

        scratch.symbols.clear();
        scratch.candidates.clear();
        for (start, character) in written.char_indices() {
            let position = scratch.symbols.len() as u32;
            scratch.symbols.push(SentencePieceSymbol {
                start: start as u32,
                length: character.len_utf8() as u32,
                previous: position.checked_sub(1).unwrap_or(NONE),
                next: position + 1,
            });
        }
        if let Some(last) = scratch.symbols.last_mut() {
            last.next = NONE;
        }
        for right in 1..scratch.symbols.len() as u32 {
            self.propose(written, scratch, right - 1, right);
        }
        while let Some(candidate) = scratch.candidates.pop() {
            self.join(written, scratch, candidate);
        }

        let mut next = scratch.symbols.first();
        while let Some(symbol) = next {
            let text = written.get(symbol.start as usize..(symbol.start + symbol.length) as usize);
            let text = text.unwrap_or_default();
            match self.pieces.get(text) {
                Some(id) => ids.push(id),
                None => self.bytes.encode(text.as_bytes(), ids)?,
            }
            next = scratch.symbols.get(symbol.next as usize);
        }
        Ok(())
    }

    /// Adds a candidate if two neighbours form a token.
    fn propose(&self, text: &str, scratch: &mut SentencePieceScratch, left: u32, right: u32) {
        let symbol = |at: u32| scratch.symbols.get(at as usize);
        let (Some(a), Some(b)) = (symbol(left), symbol(right)) else { return };
        let length = a.length + b.length;
        let joined = text.get(a.start as usize..(a.start + length) as usize).unwrap_or_default();
        let Some(id) = self.pieces.get(joined) else { return };
        let Some(score) = self.scores.get(id as usize) else { return };
        scratch.candidates.push(MergeCandidate { score: *score, left, right, length });
    }

    /// Joins two neighbours, if both are still those of the candidate.
    fn join(&self, text: &str, scratch: &mut SentencePieceScratch, candidate: MergeCandidate) {
        let MergeCandidate { left, right, length, .. } = candidate;
        let symbol = |at: u32| scratch.symbols.get(at as usize).copied();
        let (Some(a), Some(b)) = (symbol(left), symbol(right)) else { return };
        if a.length == 0 || b.length == 0 || a.length + b.length != length {
            return;
        }
        if let Some(kept) = scratch.symbols.get_mut(left as usize) {
            *kept = SentencePieceSymbol { length, next: b.next, ..a };
        }
        if let Some(gone) = scratch.symbols.get_mut(right as usize) {
            gone.length = 0;
        }
        if let Some(after) = scratch.symbols.get_mut(b.next as usize) {
            after.previous = left;
        }
        self.propose(text, scratch, a.previous, left);
        self.propose(text, scratch, left, b.next);
    }
}
