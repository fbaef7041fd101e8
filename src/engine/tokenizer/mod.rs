//! Text to tokens and back, from the metadata of a GGUF file.

use crate::Error;
use crate::gguf::Gguf;

/// The tokenizer of a model. Shared between threads.
#[derive(Debug)]
pub struct Tokenizer {
    vocab_size: usize,
}

impl Tokenizer {
    /// The tokenizer that the file describes.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] and [`Error::UnsupportedModel`], naming the key.
    pub fn from_gguf(gguf: &Gguf) -> Result<Tokenizer, Error> {
        Ok(Tokenizer { vocab_size: gguf.strings("tokenizer.ggml.tokens")?.len() })
    }

    /// Tokens of plain text: never a control token, no beginning or end added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, Error> {
        let _ = text;
        Err(Error::InvalidRequest("the tokenizer is not there yet".into()))
    }

    /// Tokens of text in which control tokens stand for themselves: of templates, not of users.
    pub fn encode_marked(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.encode(text)
    }

    /// Tokens of a text to be embedded: with the beginning and the end that the model wants around it.
    pub fn encode_embedding(&self, text: &str) -> Result<Vec<u32>, Error> {
        self.encode(text)
    }

    /// What the token adds to the output; nothing for control tokens and ids that do not exist.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        let _ = id;
        &[]
    }

    /// The bytes of all tokens.
    pub fn decode(&self, ids: &[u32]) -> Vec<u8> {
        ids.iter().flat_map(|id| self.token_bytes(*id)).copied().collect()
    }

    /// Number of tokens; ids are below it.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Whether the token ends the answer.
    pub fn is_end(&self, id: u32) -> bool {
        let _ = id;
        false
    }

    /// The token that begins every text, if the model wants one.
    pub fn bos(&self) -> Option<u32> {
        None
    }

    /// The token that ends a text, if the model has one.
    pub fn eos(&self) -> Option<u32> {
        None
    }
}
