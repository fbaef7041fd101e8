//! The algorithms that make tokens of text, by the value of `tokenizer.ggml.model`.
//!
//! A tokenizer of another kind is a variant of [`Algorithm`]: it reads the vocabulary its own way, and
//! encodes stretches of text. All else (special tokens, beginnings and ends, bytes of tokens) is the same for
//! all kinds.

use std::collections::HashSet;

use super::byte_level::ByteLevelBpe;
use super::pieces::TextPlace;
use super::plain::PlainBpe;
use super::pre::{self, Pre};
use super::sentencepiece::SentencePiece;
use super::unigram::{self, Unigram};
use super::vocabulary::{self, Spelling, Vocabulary};
use super::wordpiece::WordPiece;
use super::{bpe, sentencepiece};
use crate::Error;
use crate::gguf::Gguf;

/// Makes tokens of text.
#[derive(Debug)]
pub(super) enum Algorithm {
    /// "gpt2": text is split into words, whose bytes are merged
    /// ([Sennrich et al. 2015](https://arxiv.org/abs/1508.07909), on bytes as in GPT-2).
    ByteLevelBpe(ByteLevelBpe),
    /// "gemma4": the characters of a line are merged.
    PlainBpe(PlainBpe),
    /// "llama": neighbours that form the most likely token are joined
    /// ([SentencePiece](https://github.com/google/sentencepiece), its model type BPE).
    SentencePiece(SentencePiece),
    /// "t5": the most likely sequence of tokens ([Kudo 2018](https://arxiv.org/abs/1804.10959)).
    Unigram(Unigram),
    /// "bert": words, then the longest pieces of each.
    WordPiece(WordPiece),
}

/// Defaults for keys that the file lacks.
#[derive(Debug, Default)]
pub(super) struct Defaults {
    pub(super) bos: Option<u32>,
    pub(super) eos: Option<u32>,
    /// Whether texts begin with a token.
    pub(super) add_bos: bool,
    /// Whether texts to be embedded end with a token.
    pub(super) add_eos: Option<bool>,
    /// Whether the defaults that are given above hold even against the file.
    pub(super) fixed: bool,
}

/// Memory that is kept from stretch to stretch.
#[derive(Debug, Default)]
pub(super) struct TokenizerScratch {
    pub(super) bpe: bpe::BpeScratch,
    pub(super) sentencepiece: sentencepiece::SentencePieceScratch,
    pub(super) unigram: unigram::UnigramScratch,
    /// Text as the vocabulary writes it.
    pub(super) text: String,
}

impl Algorithm {
    /// The algorithm that the file names, with its vocabulary.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the metadata contradict themselves, [`Error::UnsupportedModel`] for
    /// other kinds of tokenizers, naming the key.
    pub(super) fn of(gguf: &Gguf) -> Result<(Vocabulary, Algorithm), Error> {
        match gguf.str("tokenizer.ggml.model")? {
            "gpt2" => Algorithm::bpe(gguf, named_pre(gguf)?),
            "gemma4" => match Pre::named(pre::GEMMA4) {
                Some(pre) => Algorithm::bpe(gguf, pre),
                None => Err(gguf.unsupported("its tokenizer is Gemma 4's")),
            },
            "llama" => {
                let (vocabulary, sentencepiece) = SentencePiece::of(gguf)?;
                Ok((vocabulary, Algorithm::SentencePiece(sentencepiece)))
            }
            "t5" => {
                let (vocabulary, unigram) = Unigram::of(gguf)?;
                Ok((vocabulary, Algorithm::Unigram(unigram)))
            }
            "bert" => {
                let (vocabulary, wordpiece) = WordPiece::of(gguf)?;
                Ok((vocabulary, Algorithm::WordPiece(wordpiece)))
            }
            other => Err(gguf.unsupported(format!(
                "key \"tokenizer.ggml.model\" is \"{}\", only \"gpt2\" (byte-level BPE), \"llama\" (SentencePiece), \
                 \"gemma4\", \"t5\" (unigram) and \"bert\" (WordPiece) are",
                other.escape_debug()
            ))),
        }
    }

    /// A byte-pair encoding; tests give another pre-tokenizer than the file's.
    pub(super) fn bpe(gguf: &Gguf, pre: &'static Pre) -> Result<(Vocabulary, Algorithm), Error> {
        let ids = vocabulary::ids(gguf)?;
        let mut merges = match gguf.opt_strings("tokenizer.ggml.merges")? {
            // Files of Kimi K2 lack the key.
            None if pre.names.contains(&"kimi-k2") => bpe::Merges::new(),
            _ => vocabulary::merges(gguf, &ids)?,
        };
        let built: HashSet<u32> = merges.values().map(|(_, merged)| *merged).collect();
        let spelling = if pre.plain { Spelling::Plain } else { Spelling::Alphabet };
        let vocabulary = vocabulary::read(gguf, &ids, spelling, &built)?;
        // Text is never merged into a control token.
        merges.retain(|_, (_, merged)| !vocabulary.is_control(*merged));
        let algorithm = if pre.plain {
            Algorithm::PlainBpe(PlainBpe::new(&ids, &vocabulary, merges, pre))
        } else {
            Algorithm::ByteLevelBpe(ByteLevelBpe::new(gguf, &ids, &vocabulary, merges, pre)?)
        };
        Ok((vocabulary, algorithm))
    }

    /// The defaults of the algorithm for keys that the file lacks.
    pub(super) fn defaults(&self) -> Defaults {
        match self {
            Algorithm::ByteLevelBpe(bpe) => {
                Defaults { add_bos: bpe.pre().begins_with_a_token, ..Defaults::default() }
            }
            // Some files say false although the model needs the token.
            Algorithm::PlainBpe(bpe) => Defaults {
                add_bos: bpe.pre().begins_with_a_token,
                fixed: bpe.pre().begins_with_a_token,
                ..Defaults::default()
            },
            Algorithm::SentencePiece(_) => {
                Defaults { bos: Some(1), eos: Some(2), add_bos: true, ..Defaults::default() }
            }
            Algorithm::Unigram(_) => Defaults { eos: Some(1), add_eos: Some(true), ..Defaults::default() },
            Algorithm::WordPiece(wordpiece) => Defaults {
                bos: Some(wordpiece.first()),
                eos: Some(wordpiece.separator()),
                add_bos: true,
                add_eos: Some(true),
                fixed: true,
            },
        }
    }

    /// Appends the tokens of a stretch of text; the error is a byte that has no token.
    pub(super) fn encode(
        &self,
        vocabulary: &Vocabulary,
        text: &str,
        place: TextPlace,
        scratch: &mut TokenizerScratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), u8> {
        if text.is_empty() {
            return Ok(());
        }
        match self {
            Algorithm::ByteLevelBpe(bpe) => bpe.encode(vocabulary, text, &mut scratch.bpe, ids),
            Algorithm::PlainBpe(bpe) => bpe.encode(text, &mut scratch.bpe, ids),
            Algorithm::SentencePiece(sentencepiece) => {
                sentencepiece.encode(text, place, &mut scratch.text, &mut scratch.sentencepiece, ids)
            }
            Algorithm::Unigram(unigram) => {
                unigram.encode(text, place, &mut scratch.text, &mut scratch.unigram, ids);
                Ok(())
            }
            Algorithm::WordPiece(wordpiece) => {
                wordpiece.encode(text, ids);
                Ok(())
            }
        }
    }

    /// Appends the tokens of bytes that are no text; the error is a byte that has no token.
    pub(super) fn encode_bytes(
        &self,
        bytes: &[u8],
        scratch: &mut TokenizerScratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), u8> {
        match self {
            Algorithm::ByteLevelBpe(bpe) => bpe.encode_bytes(bytes, &mut scratch.bpe, ids),
            Algorithm::PlainBpe(bpe) => bpe.bytes().encode(bytes, ids),
            Algorithm::SentencePiece(sentencepiece) => sentencepiece.bytes().encode(bytes, ids),
            // These algorithms have no tokens for single bytes.
            Algorithm::Unigram(_) | Algorithm::WordPiece(_) => {
                bytes.first().map_or(Ok(()), |byte| Err(*byte))
            }
        }
    }

    /// Whether encoding puts a space before a text, which decoding takes away.
    pub(super) fn adds_space(&self) -> bool {
        match self {
            Algorithm::ByteLevelBpe(_) | Algorithm::PlainBpe(_) => false,
            Algorithm::SentencePiece(sentencepiece) => sentencepiece.adds_space(),
            Algorithm::Unigram(unigram) => unigram.adds_space(),
            Algorithm::WordPiece(_) => true,
        }
    }

    /// The usual name of the algorithm.
    pub(super) fn name(&self) -> &'static str {
        match self {
            Algorithm::ByteLevelBpe(_) => "byte-level BPE",
            Algorithm::PlainBpe(_) => "BPE with byte fallback",
            Algorithm::SentencePiece(_) => "SentencePiece BPE",
            Algorithm::Unigram(_) => "unigram",
            Algorithm::WordPiece(_) => "WordPiece",
        }
    }
}

/// The pre-tokenizer that the file names, or the default one.
fn named_pre(gguf: &Gguf) -> Result<&'static Pre, Error> {
    let name = gguf.opt_str("tokenizer.ggml.pre")?.filter(|name| !name.is_empty()).unwrap_or(pre::DEFAULT);
    Pre::named(name).ok_or_else(|| {
        let like = Pre::like(name);
        let like = if like.is_empty() {
            String::new()
        } else {
            format!("; supported names like it: \"{}\"", like.join("\", \""))
        };
        gguf.unsupported(format!(
            "key \"tokenizer.ggml.pre\" is \"{}\", a way to split text that is not known{like}",
            name.escape_debug()
        ))
    })
}
