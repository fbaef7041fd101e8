//! Byte-level byte-pair encoding: text is split into words, and the bytes of a word are merged.

use super::bpe::{Bpe, BpeScratch, Merges};
use super::pre::Pre;
use super::split::Splitter;
use super::vocabulary::{Ids, Vocabulary, alphabet};
use crate::Error;
use crate::gguf::Gguf;

/// Byte-level byte-pair encoding.
#[derive(Debug)]
pub(super) struct ByteLevelBpe {
    bpe: Bpe,
    /// The token of each byte.
    bytes: [Option<u32>; 256],
    pre: &'static Pre,
    splitter: Splitter,
    /// Ordinary tokens by their bytes, where a word that is a token is taken whole (Llama 3).
    whole_words: Option<Vec<u32>>,
}

impl ByteLevelBpe {
    /// # Errors
    /// [`Error::UnsupportedModel`] where a pattern cannot be compiled, which tests rule out.
    pub(super) fn new(
        gguf: &Gguf,
        ids: &Ids<'_>,
        vocabulary: &Vocabulary,
        merges: Merges,
        pre: &'static Pre,
    ) -> Result<ByteLevelBpe, Error> {
        let splitter = Splitter::new(pre.stages)
            .map_err(|error| gguf.unsupported(format!("its text cannot be split: {error}")))?;
        Ok(ByteLevelBpe {
            bpe: Bpe::new(merges),
            bytes: alphabet(ids).map(|id| id.filter(|id| !vocabulary.is_control(*id))),
            pre,
            splitter,
            whole_words: pre.whole_words.then(|| vocabulary.sorted()),
        })
    }

    pub(super) fn pre(&self) -> &'static Pre {
        self.pre
    }

    /// Appends the tokens of a text; the error is a byte that has no token.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        scratch: &mut BpeScratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), u8> {
        self.splitter.words(text, |word| match self.whole_word(vocabulary, word.as_bytes()) {
            Some(id) => {
                ids.push(id);
                Ok(())
            }
            None => self.encode_bytes(word.as_bytes(), scratch, ids),
        })
    }

    /// Appends the tokens of one word; the error is a byte that has no token.
    pub(super) fn encode_bytes(
        &self,
        word: &[u8],
        scratch: &mut BpeScratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), u8> {
        scratch.clear();
        for byte in word {
            scratch.push(self.bytes.get(usize::from(*byte)).copied().flatten().ok_or(*byte)?);
        }
        self.bpe.merge_all(scratch);
        ids.extend(scratch.tokens());
        Ok(())
    }

    fn whole_word(&self, vocabulary: &Vocabulary, word: &[u8]) -> Option<u32> {
        let sorted = self.whole_words.as_ref()?;
        let found = sorted.binary_search_by(|id| vocabulary.bytes(*id).cmp(word)).ok()?;
        sorted.get(found).copied()
    }
}
