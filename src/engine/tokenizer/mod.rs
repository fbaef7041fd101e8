//! Text to tokens and back, from the metadata of a GGUF file.
//!
//! A [`Tokenizer`] is a vocabulary (the bytes and the role of each token), a search for special tokens, and
//! an algorithm for the stretches of text between them ([`algorithm`]): byte-level BPE with the splitting
//! patterns of [`pre`], SentencePiece's BPE and unigram model, and WordPiece. All others see the
//! [`Tokenizer`] only.
//!
//! It follows llama.cpp, whose format GGUF is, so that both give the same tokens for a file: text is not
//! normalised, unless the folder of an encoder says so (Hugging Face applies NFC for Qwen2), user-defined
//! tokens such as `<think>` are found in any text, and control tokens only where the caller trusts the text.
//! WordPiece follows transformers.
//!
//! Invariant: a user's text never becomes a control token, whatever it contains and whatever text is around
//! it.

mod algorithm;
mod alphabet;
mod bpe;
mod byte_level;
mod charsmap;
mod marks;
pub(crate) mod normalizer;
mod pieces;
mod plain;
mod pre;
#[cfg(test)]
mod reference;
mod sentencepiece;
mod split;
#[cfg(test)]
mod tests;
mod unigram;
mod utf8;
mod vocabulary;
mod wordpiece;

use llguidance::toktrie::SimpleVob;

use crate::Error;
use crate::gguf::Gguf;
use crate::memory::{fallible, try_vec};
use algorithm::{Algorithm, TokenizerScratch};
use marks::{Mark, Marks, Strips};
use normalizer::Normalizer;
use pieces::TextPlace;
use utf8::{Continuations, Tokens};
use vocabulary::{TokenRole, Vocabulary};

/// `<arch>.pooling_type` of models that embed by their last token.
const POOLING_LAST: u32 = 3;

/// The tokenizer of a model. Shared between threads.
#[derive(Debug)]
pub struct Tokenizer {
    vocabulary: Vocabulary,
    normalizer: Normalizer,
    algorithm: Algorithm,
    marks: Marks,
    strips: Strips,
    bos: Option<u32>,
    eos: Option<u32>,
    add_bos: bool,
    embedding_suffix: Option<u32>,
    continuations: Continuations,
}

/// Tokens of one text or a pair of texts, with the tokens that the model wants around them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Encoded {
    /// `[CLS] text [SEP]` or `[CLS] text [SEP] other [SEP]`.
    pub tokens: Vec<u32>,
    /// Index of the first token of the second text; the number of tokens for a single text.
    pub second: usize,
}

/// A piece of text and its origin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TextPart<'a> {
    /// From the model's template: control tokens stand for themselves.
    Template(&'a str),
    /// From a user: control tokens are ordinary characters.
    User(&'a str),
}

impl<'a> TextPart<'a> {
    /// The text, of either origin.
    pub fn text(self) -> &'a str {
        match self {
            TextPart::Template(text) | TextPart::User(text) => text,
        }
    }
}

impl Tokenizer {
    /// The tokenizer that the file describes.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the metadata contradict themselves, [`Error::UnsupportedModel`] for
    /// other kinds of tokenizers, naming the key.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, Error> {
        let (vocabulary, algorithm) = Algorithm::of(gguf)?;
        Tokenizer::new(gguf, vocabulary, algorithm)
    }

    fn new(gguf: &Gguf, vocabulary: Vocabulary, algorithm: Algorithm) -> Result<Tokenizer, Error> {
        let marks = Marks::new(&vocabulary).map_err(|error| {
            gguf.unsupported(format!("its control tokens cannot be searched for: {error}"))
        })?;
        let count = vocabulary.len();
        let defaults = algorithm.defaults();
        let named = |key: &str, default: Option<u32>| match default {
            Some(default) if defaults.fixed => Ok(Some(default)),
            default => {
                let missing = gguf.opt_u32(key)?.is_none();
                let id = vocabulary::token_id(gguf, key, count)?;
                Ok(id.or(default.filter(|id| missing && (*id as usize) < count)))
            }
        };
        let bos = named("tokenizer.ggml.bos_token_id", defaults.bos)?;
        let eos = named("tokenizer.ggml.eos_token_id", defaults.eos)?;
        let add_bos = match gguf.opt_bool("tokenizer.ggml.add_bos_token")? {
            Some(add) if !defaults.fixed => add,
            _ => defaults.add_bos,
        };
        let add_eos = match gguf.opt_bool("tokenizer.ggml.add_eos_token")? {
            Some(add) if !(defaults.fixed && defaults.add_eos.is_some()) => Some(add),
            _ => defaults.add_eos,
        };
        let embedding_suffix = match add_eos {
            Some(true) => eos,
            Some(false) => None,
            None => pooling_suffix(gguf, &vocabulary)?,
        };
        let strips = Strips::of(gguf, &vocabulary)?;
        Ok(Tokenizer {
            vocabulary,
            normalizer: Normalizer::of(gguf)?,
            algorithm,
            marks,
            strips,
            bos,
            eos,
            add_bos,
            embedding_suffix,
            continuations: Continuations::default(),
        })
    }

    /// Tokens of a user's text: never a control token, no beginning or end added.
    ///
    /// # Errors
    /// [`Error::UnreadableText`] where the vocabulary has no token for a byte of the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.encode_parts(&[TextPart::User(text)])
    }

    /// Tokens of text in which control tokens stand for themselves: of templates, not of users.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_marked(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.encode_parts(&[TextPart::Template(text)])
    }

    /// Tokens of several parts as one text: words are cut as if there were no border between the parts,
    /// and a special token is one only if it lies inside one part.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_parts(&self, parts: &[TextPart<'_>]) -> Result<Vec<u32>, Error> {
        self.encode_at(parts, TextPlace::First)
    }

    fn encode_at(&self, parts: &[TextPart<'_>], mut place: TextPlace) -> Result<Vec<u32>, Error> {
        let mut text = String::new();
        let bytes = parts.iter().map(|part| part.text().len()).sum();
        fallible(|| text.try_reserve_exact(bytes)).map_err(|_| Error::OutOfMemory {
            what: "the text of a request".to_owned(),
            needed_mb: (bytes as u64).div_ceil(1 << 20),
            limit_mb: None,
        })?;
        let mut marks: Vec<Mark> = Vec::new();
        for part in parts {
            let offset = text.len();
            let control = matches!(part, TextPart::Template(_));
            marks.extend(self.marks.find(part.text(), control).map(|mark| Mark {
                start: offset + mark.start,
                end: offset + mark.end,
                id: mark.id,
            }));
            text.push_str(part.text());
        }
        let mut ids = try_vec("the tokens of a request", text.len() / 3 + 1)?;
        let mut scratch = TokenizerScratch::default();
        let mut rest = 0;
        let mut before = None;
        for mark in marks.iter().map(Some).chain([None]) {
            let end = mark.map_or(text.len(), |mark| mark.start);
            let stretch = text.get(rest..end).unwrap_or_default();
            let stretch = self.strips.strip(before, stretch, mark.map(|mark| mark.id));
            self.encode_stretch(stretch, place, &mut scratch, &mut ids)?;
            if let Some(mark) = mark {
                ids.push(mark.id);
                before = Some(mark.id);
                rest = mark.end;
                place = TextPlace::First;
            }
        }
        Ok(ids)
    }

    /// Tokens of bytes that continue a text and need not be whole characters, as far as the vocabulary has
    /// tokens for them; otherwise as [`Tokenizer::encode`].
    pub(crate) fn encode_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        let mut ids = Vec::with_capacity(bytes.len() / 3 + 1);
        let mut scratch = TokenizerScratch::default();
        for chunk in bytes.utf8_chunks() {
            let Ok(tokens) = self.encode_at(&[TextPart::User(chunk.valid())], TextPlace::Later) else {
                break;
            };
            ids.extend(tokens);
            if self.algorithm.encode_bytes(chunk.invalid(), &mut scratch, &mut ids).is_err() {
                break;
            }
        }
        ids
    }

    /// Tokens of a stretch of text in which special tokens are not searched for.
    fn encode_stretch(
        &self,
        text: &str,
        place: TextPlace,
        scratch: &mut TokenizerScratch,
        ids: &mut Vec<u32>,
    ) -> Result<(), Error> {
        let text = self.normalizer.apply(text);
        self.algorithm.encode(&self.vocabulary, &text, place, scratch, ids).map_err(|byte| {
            Error::UnreadableText { reason: format!("its vocabulary has no token for byte 0x{byte:02X}") }
        })
    }

    /// Tokens of a text to be embedded: with the beginning and the end that the model wants around it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_embedding(&self, text: &str) -> Result<Vec<u32>, Error> {
        let mut ids: Vec<u32> = self.bos().into_iter().collect();
        ids.extend(self.encode(text)?);
        ids.extend(self.embedding_suffix);
        Ok(ids)
    }

    /// Tokens of two texts that a model reads together, as a reranker does: a query and a document.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_pair(&self, text: &str, other: &str) -> Result<Encoded, Error> {
        let mut tokens = self.encode_embedding(text)?;
        // XLM-RoBERTa separates them by two.
        if matches!(self.algorithm, Algorithm::Unigram(_)) {
            tokens.extend(self.embedding_suffix);
        }
        let second = tokens.len();
        tokens.extend(self.encode(other)?);
        tokens.extend(self.embedding_suffix);
        Ok(Encoded { tokens, second })
    }

    /// Number of tokens that [`Tokenizer::encode_embedding`] adds at the end.
    pub(crate) fn embedding_suffix_len(&self) -> usize {
        usize::from(self.embedding_suffix.is_some())
    }

    /// The bytes that the token adds to the output; none for control tokens and ids that do not exist.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocabulary.bytes(id)
    }

    /// The bytes of all tokens, without the space that encoding puts before a text.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        let mut bytes: Vec<u8> = ids.iter().flat_map(|id| self.token_bytes(*id)).copied().collect();
        if self.algorithm.adds_space() && bytes.first() == Some(&b' ') {
            bytes.remove(0);
        }
        bytes
    }

    /// Number of tokens; ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.vocabulary.len()
    }

    /// Whether the token is a control token, which steers the model instead of being text.
    pub fn is_control(&self, id: u32) -> bool {
        self.vocabulary.role(id) == Some(TokenRole::Control)
    }

    /// The text by which a control or user-defined token is written in templates.
    pub fn special_text(&self, id: u32) -> Option<&str> {
        self.vocabulary.special.get(&id).map(|text| &**text)
    }

    /// Whether the token ends the answer.
    pub fn is_end(&self, id: u32) -> bool {
        self.vocabulary.end_tokens.binary_search(&id).is_ok()
    }

    /// The tokens that keep a text valid which ends with `pending`, the beginning of a character, or with a
    /// whole character where that is empty. Unless the token is the `last` one, it begins no character that
    /// the vocabulary cannot complete. None, or an empty set, where there is no such token.
    pub(crate) fn following(&self, pending: &[u8], last: bool) -> Option<&SimpleVob> {
        self.continuations.following(self, pending, last)
    }

    /// Whether the vocabulary can complete the character that begins with `pending`.
    pub(crate) fn completes(&self, pending: &[u8]) -> bool {
        pending.is_empty() || self.continuations.completes(self, pending)
    }

    /// The same tokenizer without tokens that end an answer.
    pub(crate) fn endless(mut self) -> Tokenizer {
        self.vocabulary.end_tokens.clear();
        self
    }

    /// Tokens that end the answer, ascending.
    pub fn end_tokens(&self) -> &[u32] {
        &self.vocabulary.end_tokens
    }

    /// The token that begins every text, if the model wants one.
    pub fn bos(&self) -> Option<u32> {
        self.bos.filter(|_| self.add_bos)
    }

    /// The token that ends a text, if the model has one.
    pub fn eos(&self) -> Option<u32> {
        self.eos
    }

    /// The text of the first token in templates, whether or not every text begins with it.
    pub fn bos_text(&self) -> Option<&str> {
        self.special_text(self.bos?)
    }
}

/// Cuts tokens to `most`, at the end of a text that `after` more tokens follow. The tokens before the text,
/// about `before` of them, stay too; where that leaves no room for the text, nothing is cut.
pub(crate) fn truncate(tokens: &mut Vec<u32>, before: usize, after: usize, most: usize) {
    let Some(room) = most.checked_sub(after).filter(|room| *room > before) else { return };
    if tokens.len() > most {
        tokens.drain(room..tokens.len() - after);
    }
}

/// Shows its kind and its size.
impl std::fmt::Display for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} tokens, {}", self.vocab_size(), self.algorithm.name())
    }
}

impl Tokens for Tokenizer {
    fn count(&self) -> usize {
        self.vocab_size()
    }

    fn bytes(&self, id: u32) -> &[u8] {
        self.token_bytes(id)
    }

    fn ends(&self, id: u32) -> bool {
        self.is_end(id)
    }
}

/// Qwen3-Embedding pools at an `<|endoftext|>` behind the text; files that were made before converters wrote
/// `add_eos_token` do not say so.
fn pooling_suffix(gguf: &Gguf, vocabulary: &Vocabulary) -> Result<Option<u32>, Error> {
    let architecture = gguf.opt_str("general.architecture")?.unwrap_or_default();
    if gguf.opt_u32(&format!("{architecture}.pooling_type"))? != Some(POOLING_LAST) {
        return Ok(None);
    }
    let suffix = vocabulary.special.iter().find(|(_, text)| &***text == "<|endoftext|>");
    Ok(suffix.map(|(id, _)| *id))
}
