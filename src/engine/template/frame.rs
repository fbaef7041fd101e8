//! Frames: the text that a template writes around the messages of a conversation. A template runs once for
//! each shape of conversations, on placeholders.
//!
//! Invariant: no template sees the text of a message.

use minijinja::{Value, context};

use super::sandbox;
use super::switches::{self, switches};
use super::thoughts::ThoughtMarks;
use crate::Role;
use crate::tokenizer::TextPart;

/// White space that no template writes by itself, to see whether it trims.
const MARGIN: char = '\u{2028}';

/// The text of a placeholder, which shows whether the template changes the characters of a message: letters
/// of both cases, characters that the notations of other languages escape, white space of several kinds, and
/// something to split at.
const PROBE: &str = "probe PROBE, \"it's\" <b>1 & 2</b> {3} \\ ß\n\n\t- end.";

/// A template with the values that it gets in every conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TemplateSource {
    pub(super) text: String,
    /// The texts of the first and the last token.
    pub(super) bos: String,
    pub(super) eos: String,
}

/// The properties of a conversation that its frame depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ConversationShape {
    /// The role of each message, and whether the template is to see the message empty.
    pub(super) messages: Vec<(Role, bool)>,
    pub(super) thinking: bool,
}

/// The text around the messages of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Frame {
    slots: Vec<MessageSlot>,
    after: String,
}

/// The place of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
struct MessageSlot {
    before: String,
    message: usize,
    trim_start: bool,
    trim_end: bool,
}

impl TemplateSource {
    /// The frame of conversations of this shape. The error is a message.
    pub(super) fn frame(&self, shape: &ConversationShape) -> Result<Frame, String> {
        // A noncharacter that the template does not contain marks the places.
        let mark = ('\u{fdd0}'..='\u{fdef}')
            .find(|mark| ![&self.text, &self.bos, &self.eos].iter().any(|text| text.contains(*mark)))
            .ok_or("it contains every noncharacter")?;
        let rendered = self.render(&self.context(shape, mark))?;
        let mut parts = rendered.split(mark);
        let mut frame = Frame { slots: Vec::new(), after: parts.next().unwrap_or_default().to_owned() };
        while let Some(message) = parts.next() {
            let (Some(probe), Some(after)) = (parts.next(), parts.next()) else {
                return Err("it takes messages apart".to_owned());
            };
            let before = std::mem::take(&mut frame.after);
            let (kept_before, kept_after) = (before.strip_suffix(MARGIN), after.strip_prefix(MARGIN));
            let message: usize = message.parse().map_err(|_| "it takes messages apart")?;
            if probe != PROBE {
                let role = shape.messages.get(message).map_or("user", |(role, _)| role.name());
                return Err(format!("it changes the characters of the message of the {role}"));
            }
            frame.slots.push(MessageSlot {
                before: kept_before.unwrap_or(&before).to_owned(),
                message,
                trim_start: kept_before.is_none(),
                trim_end: kept_after.is_none(),
            });
            frame.after = kept_after.unwrap_or(after).to_owned();
        }
        for (message, (role, empty)) in shape.messages.iter().enumerate() {
            let times = frame.slots.iter().filter(|slot| slot.message == message).count();
            if times != usize::from(!empty) {
                let role = role.name();
                return Err(format!("it shows the message of the {role} {times} times, not once"));
            }
        }
        Ok(frame)
    }

    /// The frame without a system message: the template's own is part of it only if an empty one does not
    /// prevent that.
    pub(super) fn frame_without_system(&self, shape: &ConversationShape) -> Result<Frame, String> {
        let plain = self.frame(shape);
        if shape.thinking && self.marks().is_some() {
            // The template's own system message may say how the model is to think.
            return plain;
        }
        let mut messages = vec![(Role::System, true)];
        messages.extend(&shape.messages);
        let mut empty = match self.frame(&ConversationShape { messages, thinking: shape.thinking }) {
            Ok(empty) => empty,
            // The template takes no system messages.
            Err(_) => return plain,
        };
        empty.slots.iter_mut().for_each(|slot| slot.message -= 1);
        match plain {
            Ok(plain) if plain.bytes() <= empty.bytes() => Ok(plain),
            _ => Ok(empty),
        }
    }

    /// The marks of thoughts of its family, as far as the template itself tells.
    fn marks(&self) -> Option<&'static ThoughtMarks> {
        ThoughtMarks::of(&[&self.text])
    }

    fn context(&self, shape: &ConversationShape, mark: char) -> Value {
        let by_message = !shape.thinking && switches::are_messages(&self.text);
        let switched = |role: Role| if by_message && role == Role::System { switches::NO_THINK } else { "" };
        let mut messages = Vec::with_capacity(shape.messages.len() + 1);
        if by_message && shape.messages.first().is_none_or(|(role, _)| *role != Role::System) {
            messages.push(context! { role => Role::System.name(), content => switches::NO_THINK });
        }
        for (index, (role, empty)) in shape.messages.iter().enumerate() {
            let place = format!("{MARGIN}{mark}{index}{mark}{PROBE}{mark}{MARGIN}");
            let place = if *empty { String::new() } else { place };
            messages.push(context! { role => role.name(), content => place + switched(*role) });
        }
        context! {
            messages => messages,
            tools => (),
            documents => (),
            add_generation_prompt => true,
            bos_token => self.bos,
            eos_token => self.eos,
            ..switches(&self.text, shape.thinking)
        }
    }

    /// Most templates that can show a date show a fixed one of their own where there is no clock. Only those
    /// that fail without a clock get the sandbox's.
    fn render(&self, context: &Value) -> Result<String, String> {
        sandbox::render(&self.text, context, false).or_else(|first| {
            if self.text.contains("strftime_now") {
                return sandbox::render(&self.text, context, true);
            }
            Err(first)
        })
    }
}

impl Frame {
    /// The conversation with these messages in their places.
    pub(super) fn around<'a>(&'a self, messages: &[&'a str]) -> Vec<TextPart<'a>> {
        let mut parts = Vec::with_capacity(2 * self.slots.len() + 1);
        for slot in &self.slots {
            let text = messages.get(slot.message).copied().unwrap_or_default();
            let text = if slot.trim_start { text.trim_start_matches(super::is_space) } else { text };
            let text = if slot.trim_end { text.trim_end_matches(super::is_space) } else { text };
            parts.extend([TextPart::Template(&slot.before), TextPart::User(text)]);
        }
        parts.push(TextPart::Template(&self.after));
        parts
    }

    /// The text behind the last message, which the assistant's answer follows.
    pub(super) fn after(&self) -> &str {
        &self.after
    }

    /// Length of the text around the messages.
    pub(super) fn bytes(&self) -> usize {
        self.slots.iter().map(|slot| slot.before.len()).sum::<usize>() + self.after.len()
    }
}
