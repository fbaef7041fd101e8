//! Byte-pair encoding of plain text, with `▁` for spaces (Gemma 4): the characters of a line are merged, and
//! a character without a token falls back to its bytes.

use std::collections::HashMap;

use super::bpe::{Bpe, BpeScratch, Merges};
use super::pieces::{ByteTokens, PieceIds};
use super::pre::Pre;
use super::vocabulary::{Ids, SPACE, Vocabulary};

/// Marks a character without a token among tokens, whose numbers are far below; the rest is its code point.
const UNKNOWN: u32 = 1 << 31;

/// Byte-pair encoding with byte fallback.
#[derive(Debug)]
pub(super) struct PlainBpe {
    bpe: Bpe,
    pre: &'static Pre,
    /// The tokens of single characters.
    characters: HashMap<char, u32>,
    /// Runs of line breaks that are tokens, although no merges make them.
    lines: PieceIds,
    bytes: ByteTokens,
}

impl PlainBpe {
    pub(super) fn new(ids: &Ids<'_>, vocabulary: &Vocabulary, merges: Merges, pre: &'static Pre) -> PlainBpe {
        let single = |text: &str| {
            let mut characters = text.chars();
            characters.next().filter(|_| characters.next().is_none())
        };
        let text = || ids.iter().filter(|(_, id)| vocabulary.is_text(**id)).map(|(text, id)| (*text, *id));
        PlainBpe {
            bpe: Bpe::new(merges),
            pre,
            characters: text().filter_map(|(text, id)| Some((single(text)?, id))).collect(),
            lines: PieceIds::new(text().filter(|(text, _)| text.bytes().all(|byte| byte == b'\n'))),
            bytes: ByteTokens::new(ids, vocabulary),
        }
    }

    pub(super) fn pre(&self) -> &'static Pre {
        self.pre
    }

    pub(super) fn bytes(&self) -> &ByteTokens {
        &self.bytes
    }

    /// Appends the tokens of a text; the error is a byte that has no token.
    pub(super) fn encode(&self, text: &str, scratch: &mut BpeScratch, ids: &mut Vec<u32>) -> Result<(), u8> {
        let mut rest = text;
        while let Some(first) = rest.chars().next() {
            let is_break = first == '\n';
            let end = rest.find(|c: char| (c == '\n') != is_break).unwrap_or(rest.len());
            let (line, after) = rest.split_at(end);
            rest = after;
            match self.lines.get(line) {
                Some(id) if is_break => ids.push(id),
                _ => self.encode_line(line, scratch, ids)?,
            }
        }
        Ok(())
    }

    fn encode_line(&self, line: &str, scratch: &mut BpeScratch, ids: &mut Vec<u32>) -> Result<(), u8> {
        scratch.clear();
        for character in line.chars() {
            let character = if character == ' ' { SPACE } else { character };
            let token = self.characters.get(&character).copied();
            scratch.push(token.unwrap_or(UNKNOWN | u32::from(character)));
        }
        self.bpe.merge_all(scratch);
        for token in scratch.tokens() {
            match char::from_u32(token & !UNKNOWN) {
                Some(character) if token >= UNKNOWN => {
                    self.bytes.encode(character.encode_utf8(&mut [0; 4]).as_bytes(), ids)?;
                }
                _ => ids.push(token),
            }
        }
        Ok(())
    }
}
