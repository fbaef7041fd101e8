//! How text becomes tokens of a vocabulary, by the value of `tokenizer.ggml.model`.
//!
//! A tokenizer of another kind is a variant of [`Algorithm`]: it reads the vocabulary its own way, and encodes stretches of
//! text. What is around that (special tokens, beginnings and ends, bytes of tokens) is the same for all.

use super::bpe::{self, Bpe};
use super::split::Splitter;
use super::vocabulary::{self, Vocabulary};
use crate::Error;
use crate::gguf::Gguf;

/// Makes tokens of text.
#[derive(Debug)]
pub(super) enum Algorithm {
    /// "gpt2": text is split into words, whose bytes are merged
    /// ([Sennrich et al. 2015](https://arxiv.org/abs/1508.07909), on bytes as in GPT-2).
    ByteLevelBpe(ByteLevelBpe),
}

/// Byte-level byte-pair encoding.
#[derive(Debug)]
pub(super) struct ByteLevelBpe {
    bpe: Bpe,
    splitter: Splitter,
    /// Where a word that is a token is taken whole (Llama 3): ordinary tokens by their bytes.
    whole_words: Option<Vec<u32>>,
}

/// Memory that is kept from stretch to stretch.
#[derive(Debug, Default)]
pub(super) struct Scratch {
    bpe: bpe::Scratch,
}

impl Algorithm {
    /// That of the file, with its vocabulary.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the metadata contradict themselves, [`Error::UnsupportedModel`] for
    /// other kinds of tokenizers, naming the key.
    pub(super) fn of(gguf: &Gguf) -> Result<(Vocabulary, Algorithm), Error> {
        match gguf.str("tokenizer.ggml.model")? {
            "gpt2" => {
                let (vocabulary, bpe) = ByteLevelBpe::of(gguf)?;
                Ok((vocabulary, Algorithm::ByteLevelBpe(bpe)))
            }
            other => Err(gguf.unsupported(format!(
                "key \"tokenizer.ggml.model\" is \"{}\", only \"gpt2\" (byte-level BPE) is",
                other.escape_debug()
            ))),
        }
    }

    /// Byte-level BPE with another way to split text than the file's.
    #[cfg(test)]
    pub(super) fn with_splitter(gguf: &Gguf, splitter: Splitter) -> Result<(Vocabulary, Algorithm), Error> {
        let (vocabulary, bpe) = ByteLevelBpe::with_splitter(gguf, splitter)?;
        Ok((vocabulary, Algorithm::ByteLevelBpe(bpe)))
    }

    /// Whether texts begin with a token unless the file says otherwise.
    pub(super) fn begins_with_a_token(&self) -> bool {
        match self {
            Algorithm::ByteLevelBpe(bpe) => bpe.splitter == Splitter::LlamaBpe,
        }
    }

    /// Appends the tokens of a stretch of text; the error is a byte that has no token.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), u8> {
        match self {
            Algorithm::ByteLevelBpe(bpe) => bpe.encode(vocabulary, text, scratch, ids),
        }
    }

    /// Appends the tokens of bytes that are no text; the error is a byte that has no token.
    pub(super) fn encode_bytes(
        &self,
        bytes: &[u8],
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), u8> {
        match self {
            Algorithm::ByteLevelBpe(bpe) => bpe.bpe.encode(bytes, &mut scratch.bpe, ids),
        }
    }
}

impl ByteLevelBpe {
    fn of(gguf: &Gguf) -> Result<(Vocabulary, ByteLevelBpe), Error> {
        let Some(pre) = gguf.opt_str("tokenizer.ggml.pre")? else {
            return Err(gguf.unsupported("key \"tokenizer.ggml.pre\" is missing"));
        };
        let Some(splitter) = Splitter::from_name(pre) else {
            return Err(gguf.unsupported(format!(
                "key \"tokenizer.ggml.pre\" is \"{}\", only \"qwen2\", \"llama-bpe\" and \"gpt-2\" are",
                pre.escape_debug()
            )));
        };
        ByteLevelBpe::with_splitter(gguf, splitter)
    }

    fn with_splitter(gguf: &Gguf, splitter: Splitter) -> Result<(Vocabulary, ByteLevelBpe), Error> {
        let (vocabulary, bpe) = vocabulary::read(gguf)?;
        // Llama 3 takes words whole that are tokens.
        let whole_words = (splitter == Splitter::LlamaBpe).then(|| vocabulary.sorted());
        Ok((vocabulary, ByteLevelBpe { bpe, splitter, whole_words }))
    }

    fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        scratch: &mut Scratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), u8> {
        for word in self.splitter.words(text) {
            if let Some(id) = self.whole_word(vocabulary, word.as_bytes()) {
                ids.push(id);
                continue;
            }
            self.bpe.encode(word.as_bytes(), &mut scratch.bpe, ids)?;
        }
        Ok(())
    }

    fn whole_word(&self, vocabulary: &Vocabulary, word: &[u8]) -> Option<u32> {
        let sorted = self.whole_words.as_ref()?;
        let found = sorted.binary_search_by(|id| vocabulary.bytes(*id).cmp(word)).ok()?;
        sorted.get(found).copied()
    }
}
