//! Chat templates, which models want around a conversation.
//!
//! The template runs once for each shape of conversations (the roles in their order, and whether the model is
//! to think), on placeholders instead of messages. The text around the placeholders is kept and put around
//! messages from then on. So a message cannot steer the template, cannot make it fail, and its text is known
//! apart from the template's, which alone may contain control tokens. If the template trims messages, that is
//! carried over; a template that shows a message twice, loses its placeholder or changes the characters in it
//! (`upper`, `tojson`) is refused. A template that decides something by a message's text decides by the
//! placeholder's. A template that takes no system message gets it at the beginning of the user's first one.
//!
//! Most of a template's own system message is left out where the template can do without: see
//! [`TemplateSource::frame_without_system`].
//!
//! Invariant: no text of a message becomes a control token.

mod budget;
mod environment;
mod families;
mod frame;
pub mod prompts;
mod python;
#[cfg(test)]
mod reference;
mod sandbox;
mod switches;
#[cfg(test)]
mod tests;
mod thoughts;

use std::borrow::Cow;
use std::sync::{Arc, Mutex, PoisonError};

use crate::gguf::Gguf;
use crate::tokenizer::{TextPart, Tokenizer};
use crate::{Error, Message, Role};
use families::family_of;
use frame::{ConversationShape, Frame, TemplateSource};
use python::is_space;
pub(crate) use thoughts::ThoughtMarks;

const KEY: &str = "tokenizer.chat_template";
const NAMES_KEY: &str = "tokenizer.chat_templates";

/// Far more than fit into a usual context; every message costs the template some instructions.
const MAX_MESSAGES: usize = 256;
/// Number of shapes of conversations whose frames are kept, and the largest frame that is kept.
const MAX_FRAMES: usize = 16;
const MAX_KEPT_BYTES: usize = 1 << 16;

/// The origin of a template.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// The file's only template, or the one that is used unless another one is named.
    File,
    /// The file's template of this name.
    Named(String),
    /// The file has none; its vocabulary has the tokens of this family's turns.
    Family(&'static str),
    /// The file has no template: texts go to the model as they are.
    None,
}

/// A conversation that the assistant is to continue.
#[derive(Debug, Clone, Copy, Default)]
pub struct Conversation<'a> {
    /// The system message; an empty one keeps the template from writing one of its own.
    pub system: Option<&'a str>,
    /// The messages before the prompt.
    pub history: &'a [Message],
    /// The user's last message.
    pub prompt: &'a str,
    /// Whether the model is to think before it answers, where the template has a switch for that.
    pub thinking: bool,
    /// Whether the answer begins at once, without thoughts.
    pub direct: bool,
}

/// The tokens of a conversation.
#[derive(Debug)]
pub struct EncodedConversation {
    /// The tokens.
    pub tokens: Vec<u32>,
    /// The marks of thoughts in the answer, if it has any, and whether thoughts have begun already.
    pub(crate) thoughts: Option<(&'static ThoughtMarks, bool)>,
}

/// The chat template of a model. Shared between threads.
#[derive(Debug)]
pub struct ChatTemplate {
    origin: Origin,
    /// `None` where there is no template: texts go to the model as they are.
    template: Option<Template>,
}

#[derive(Debug)]
struct Template {
    path: std::path::PathBuf,
    source: TemplateSource,
    /// The frame of a prompt and nothing else.
    prompt: Frame,
    marks: Option<&'static ThoughtMarks>,
    /// Frames of other shapes, the last used one first.
    frames: Mutex<Vec<(ConversationShape, Arc<Fitted>)>>,
}

/// The frame of a shape.
#[derive(Debug)]
struct Fitted {
    frame: Frame,
    /// Whether the system message is part of the user's first one.
    joined: bool,
}

impl ChatTemplate {
    /// The template of the file; where it has none, that of its family, or none at all.
    ///
    /// # Errors
    /// [`Error::Template`] where it cannot be compiled, fails, or does not show the prompt.
    pub fn from_gguf(gguf: &Gguf) -> Result<ChatTemplate, Error> {
        // An empty template means that there is none.
        if let Some(source) = gguf.opt_str(KEY)? {
            return ChatTemplate::new(gguf, Origin::File, Some(source).filter(|source| !source.is_empty()));
        }
        if ChatTemplate::names(gguf)?.iter().any(|name| name == "default") {
            return ChatTemplate::named(gguf, "default");
        }
        match gguf.opt_strings("tokenizer.ggml.tokens")?.and_then(family_of) {
            Some(family) => ChatTemplate::new(gguf, Origin::Family(family.name), Some(family.template)),
            None => ChatTemplate::new(gguf, Origin::None, None),
        }
    }

    /// The template of this name in a file that has several.
    ///
    /// # Errors
    /// As [`ChatTemplate::from_gguf`]; [`Error::Template`] where there is none of the name.
    pub fn named(gguf: &Gguf, name: &str) -> Result<ChatTemplate, Error> {
        match gguf.opt_str(&format!("{KEY}.{name}"))? {
            Some(source) => ChatTemplate::new(gguf, Origin::Named(name.to_owned()), Some(source)),
            None => {
                let names = ChatTemplate::names(gguf)?;
                let reason = match names.as_slice() {
                    [] => format!("there is no template \"{name}\""),
                    names => format!("there is no template \"{name}\", but {}", names.join(", ")),
                };
                Err(Error::Template { path: gguf.path().into(), reason })
            }
        }
    }

    /// Names of the file's templates, apart from the one without a name.
    ///
    /// # Errors
    /// [`Error::CorruptModel`] where the list of names is none.
    pub fn names(gguf: &Gguf) -> Result<Vec<String>, Error> {
        let names = gguf.opt_strings(NAMES_KEY)?;
        Ok(names.into_iter().flatten().take(MAX_MESSAGES).map(str::to_owned).collect())
    }

    fn new(gguf: &Gguf, origin: Origin, source: Option<&str>) -> Result<ChatTemplate, Error> {
        let Some(text) = source else { return Ok(ChatTemplate { origin: Origin::None, template: None }) };
        // Control tokens with which templates begin. A file whose tokenizer cannot be read is refused
        // elsewhere.
        let special = |key: &str| Ok::<_, Error>(special_text(gguf, key)?.unwrap_or_default().to_owned());
        let source = TemplateSource {
            text: text.to_owned(),
            bos: special("tokenizer.ggml.bos_token_id")?,
            eos: special("tokenizer.ggml.eos_token_id")?,
        };
        let template = Template::new(gguf.path().into(), source)?;
        Ok(ChatTemplate { origin, template: Some(template) })
    }

    /// A prompt as the template writes it.
    pub fn show(&self, prompt: &str) -> String {
        match &self.template {
            None => prompt.to_owned(),
            Some(template) => template.prompt.around(&[prompt]).iter().map(|part| part.text()).collect(),
        }
    }

    /// Its origin.
    pub fn origin(&self) -> &Origin {
        &self.origin
    }

    /// Tokens of a conversation in which the user has said `prompt` and the assistant is to answer,
    /// without thinking aloud. Nothing in the prompt becomes a control token.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_prompt(&self, tokenizer: &Tokenizer, prompt: &str) -> Result<Vec<u32>, Error> {
        Ok(self.encode(tokenizer, &Conversation { prompt, ..Conversation::default() })?.tokens)
    }

    /// Tokens of a conversation that the assistant is to continue. Nothing in its messages becomes a control
    /// token.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`]; [`Error::InvalidRequest`] for too many messages; [`Error::Template`]
    /// where the template does not take such a conversation.
    pub fn encode(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation<'_>,
    ) -> Result<EncodedConversation, Error> {
        let messages = conversation.messages()?;
        let mut encoded = match &self.template {
            None => {
                let said = messages.iter().filter(|(role, text)| *role != Role::System || !text.is_empty());
                let texts: Vec<&str> = said.map(|(_, text)| *text).collect();
                EncodedConversation { tokens: tokenizer.encode(&texts.join("\n\n"))?, thoughts: None }
            }
            Some(template) => template.encode(tokenizer, conversation, &messages)?,
        };
        // Some templates write the first token themselves.
        if let Some(bos) = tokenizer.bos().filter(|bos| encoded.tokens.first() != Some(bos)) {
            encoded.tokens.insert(0, bos);
        }
        Ok(encoded)
    }
}

/// Shows the template around the word PROMPT.
impl std::fmt::Display for ChatTemplate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.show("PROMPT"))
    }
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Origin::File => f.write_str("of the file"),
            Origin::Named(name) => write!(f, "\"{name}\" of the file"),
            Origin::Family(name) => write!(f, "of the family {name}, as the file has none"),
            Origin::None => f.write_str("none: texts go to the model as they are"),
        }
    }
}

impl<'a> Conversation<'a> {
    /// All messages in their order.
    fn messages(&self) -> Result<Vec<(Role, &'a str)>, Error> {
        if self.history.len() > MAX_MESSAGES {
            return Err(Error::InvalidRequest(format!("there are more than {MAX_MESSAGES} messages")));
        }
        let system = self.system.map(|text| (Role::System, text));
        let history = self.history.iter().map(|message| (message.role, message.text.as_str()));
        Ok(system.into_iter().chain(history).chain([(Role::User, self.prompt)]).collect())
    }
}

impl Template {
    fn new(path: std::path::PathBuf, source: TemplateSource) -> Result<Template, Error> {
        let prompt = ConversationShape { messages: vec![(Role::User, false)], thinking: false };
        let prompt = source
            .frame_without_system(&prompt)
            .map_err(|reason| Error::Template { path: path.clone(), reason })?;
        let marks = ThoughtMarks::of(&[&source.text, prompt.after()]);
        Ok(Template { path, source, prompt, marks, frames: Mutex::default() })
    }

    fn encode(
        &self,
        tokenizer: &Tokenizer,
        conversation: &Conversation<'_>,
        messages: &[(Role, &str)],
    ) -> Result<EncodedConversation, Error> {
        let fitted;
        let mut texts: Vec<Cow<'_, str>> = messages.iter().map(|(_, text)| Cow::Borrowed(*text)).collect();
        let thinking = conversation.thinking && !conversation.direct;
        let frame = if messages.len() == 1 && !thinking {
            &self.prompt
        } else {
            // Templates ask whether there is a system message by its text.
            let empty = |(role, text): &(Role, &str)| (*role, *role == Role::System && text.is_empty());
            fitted =
                self.fitted(ConversationShape { messages: messages.iter().map(empty).collect(), thinking })?;
            if fitted.joined {
                let system = texts.remove(0);
                if let Some(first) = texts.first_mut().filter(|_| !system.is_empty()) {
                    *first = Cow::Owned(format!("{system}\n\n{first}"));
                }
            }
            &fitted.frame
        };
        let texts: Vec<&str> = texts.iter().map(|text| &**text).collect();
        let mut parts = frame.around(&texts);
        let closing = match self.marks.filter(|_| conversation.direct) {
            Some(marks) => marks.closing(frame.after()),
            None => String::new(),
        };
        // A token may span the template's last text and the closing of thoughts, so both are one part.
        let end = format!("{}{closing}", frame.after());
        parts.pop();
        parts.push(TextPart::Template(&end));
        let thoughts = self.marks.filter(|_| !conversation.direct);
        let thoughts = thoughts.map(|marks| (marks, marks.are_open(frame.after())));
        Ok(EncodedConversation { tokens: tokenizer.encode_parts(&parts)?, thoughts })
    }

    /// The frame of a shape, from those that are kept if it is there.
    fn fitted(&self, shape: ConversationShape) -> Result<Arc<Fitted>, Error> {
        let frames = || self.frames.lock().unwrap_or_else(PoisonError::into_inner);
        {
            let mut frames = frames();
            if let Some(at) = frames.iter().position(|(kept, _)| *kept == shape) {
                if let Some(kept) = frames.get_mut(..=at) {
                    kept.rotate_right(1);
                }
                if let Some((_, fitted)) = frames.first() {
                    return Ok(Arc::clone(fitted));
                }
            }
        }
        let fitted =
            self.fit(&shape).map_err(|reason| Error::Template { path: self.path.clone(), reason })?;
        let fitted = Arc::new(fitted);
        if fitted.frame.bytes() <= MAX_KEPT_BYTES {
            let mut frames = frames();
            frames.truncate(MAX_FRAMES - 1);
            frames.insert(0, (shape, Arc::clone(&fitted)));
        }
        Ok(fitted)
    }

    fn fit(&self, shape: &ConversationShape) -> Result<Fitted, String> {
        let Some(((Role::System, _), rest)) = shape.messages.split_first() else {
            return Ok(Fitted { frame: self.source.frame_without_system(shape)?, joined: false });
        };
        self.source.frame(shape).map(|frame| Fitted { frame, joined: false }).or_else(|first| {
            // Some templates refuse system messages, and some lose them.
            if !matches!(rest.first(), Some((Role::User, _))) {
                return Err(first);
            }
            let rest = ConversationShape { messages: rest.to_vec(), thinking: shape.thinking };
            let frame = self.source.frame(&rest).map_err(|_| first)?;
            Ok(Fitted { frame, joined: true })
        })
    }
}

/// The text of the token that a key names.
fn special_text<'a>(gguf: &'a Gguf, key: &str) -> Result<Option<&'a str>, Error> {
    let Some(id) = gguf.opt_u32(key)? else { return Ok(None) };
    Ok(gguf.opt_strings("tokenizer.ggml.tokens")?.and_then(|mut tokens| tokens.nth(id as usize)))
}
