//! The chat template that a model wants around a prompt.
//!
//! The template runs once, when the model is opened, on a placeholder in place of the prompt; what stands
//! before and behind the placeholder is kept and put around prompts from then on. So a prompt cannot steer
//! the template, cannot make it fail, and its text is known apart from the template's, which alone may
//! contain control tokens. Of what templates do to a message, trimming is carried over; a template that
//! shows a message twice, or in another form, is refused.
//!
//! Invariant: nothing in a prompt becomes a control token.

mod budget;
mod sandbox;
#[cfg(test)]
mod tests;

use minijinja::{Value, context};

use crate::Error;
use crate::gguf::Gguf;
use crate::tokenizer::{Part, Tokenizer};

const KEY: &str = "tokenizer.chat_template";

/// White space that no template writes by itself, to see whether it trims.
const MARGIN: char = '\u{2028}';

/// The chat template of a model. Shared between threads.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChatTemplate {
    /// `None` where the file has no template: prompts go to the model as they are.
    frame: Option<Frame>,
}

/// What stands around a prompt.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Frame {
    before: String,
    after: String,
    trim_start: bool,
    trim_end: bool,
}

impl ChatTemplate {
    /// The template of the file; without one, prompts go to the model as they are.
    ///
    /// # Errors
    /// [`Error::Template`] where it cannot be compiled, fails, or does not show the prompt.
    pub fn from_gguf(gguf: &Gguf) -> Result<ChatTemplate, Error> {
        let Some(source) = gguf.opt_str(KEY)? else {
            return Ok(ChatTemplate { frame: None });
        };
        // Control tokens by which templates begin; a file whose tokenizer cannot be read says so elsewhere.
        let text = |key: &str| special_text(gguf, key);
        let frame = frame(
            source,
            text("tokenizer.ggml.bos_token_id")?.unwrap_or_default(),
            text("tokenizer.ggml.eos_token_id")?.unwrap_or_default(),
        )
        .map_err(|reason| Error::Template { path: gguf.path().into(), reason })?;
        Ok(ChatTemplate { frame: Some(frame) })
    }

    /// Tokens of a conversation in which the user has said `prompt` and the assistant is to answer,
    /// without thinking aloud. Nothing in the prompt becomes a control token.
    ///
    /// # Errors
    /// Those of [`Tokenizer::encode`].
    pub fn encode_prompt(&self, tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>, Error> {
        let ids = match &self.frame {
            None => tokenizer.encode(prompt)?,
            Some(frame) => tokenizer.encode_parts(&frame.around(prompt))?,
        };
        // Some templates write the first token themselves.
        match tokenizer.bos().filter(|bos| ids.first() != Some(bos)) {
            Some(bos) => Ok([&[bos], ids.as_slice()].concat()),
            None => Ok(ids),
        }
    }
}

/// What a prompt looks like in it.
impl std::fmt::Display for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.frame {
            None => f.write_str("PROMPT"),
            Some(frame) => frame.around("PROMPT").iter().try_for_each(|part| f.write_str(part.text())),
        }
    }
}

impl Frame {
    fn around<'a>(&'a self, prompt: &'a str) -> [Part<'a>; 3] {
        let prompt = if self.trim_start { prompt.trim_start() } else { prompt };
        let prompt = if self.trim_end { prompt.trim_end() } else { prompt };
        [Part::Template(&self.before), Part::User(prompt), Part::Template(&self.after)]
    }
}

/// The text of the token that a key names.
fn special_text<'a>(gguf: &'a Gguf, key: &str) -> Result<Option<&'a str>, Error> {
    let Some(id) = gguf.opt_u32(key)? else { return Ok(None) };
    Ok(gguf.opt_strings("tokenizer.ggml.tokens")?.and_then(|mut tokens| tokens.nth(id as usize)))
}

/// Runs the template on a placeholder. The error is a message.
fn frame(source: &str, bos: &str, eos: &str) -> Result<Frame, String> {
    // A noncharacter that the template does not contain stands for the prompt.
    let placeholder = ('\u{fdd0}'..='\u{fdef}')
        .find(|character| ![source, bos, eos].iter().any(|text| text.contains(*character)))
        .ok_or("it contains every noncharacter")?;
    let content = format!("{MARGIN}{placeholder}{MARGIN}");
    let context = context! {
        messages => [context! { role => "user", content => content }],
        add_generation_prompt => true,
        enable_thinking => false,
        thinking => false,
        bos_token => bos,
        eos_token => eos,
    };
    let rendered = render(source, &context)?;
    let mut parts = rendered.split(placeholder);
    let (Some(before), Some(after), None) = (parts.next(), parts.next(), parts.next()) else {
        return Err(format!("it shows the prompt {} times, not once", rendered.matches(placeholder).count()));
    };
    let (kept_before, kept_after) = (before.strip_suffix(MARGIN), after.strip_prefix(MARGIN));
    Ok(Frame {
        before: kept_before.unwrap_or(before).into(),
        after: kept_after.unwrap_or(after).into(),
        trim_start: kept_before.is_none(),
        trim_end: kept_after.is_none(),
    })
}

/// Most templates that can show a date go without where there is none, and show a fixed one of their own;
/// only those that insist get the sandbox's.
fn render(source: &str, context: &Value) -> Result<String, String> {
    sandbox::render(source, context, false).or_else(|first| {
        if source.contains("strftime_now") {
            return sandbox::render(source, context, true);
        }
        Err(first)
    })
}
