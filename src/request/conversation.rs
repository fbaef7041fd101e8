//! Conversations: messages of a system, a user and an assistant, of which the last is the user's.
//!
//! In the queue the last message is the prompt, the system's message the parameter `system_prompt`, and the
//! messages between them the parameter `messages`. So a conversation of one message is the same request as
//! its prompt alone.
//!
//! Invariant: the messages are bounded in all, like a prompt, and never make a control token.

use serde_json::{Map, Value, json};
use steadytext_engine::{MAX_HISTORY, Message, Role};

use super::asked::RawRequest;
use super::params;
use super::values::{check_length, invalid};
use crate::pg::catalog_cache::DatabaseConfig;
use crate::pg::error::PgError;
use crate::pg::jsonb::{Item, Jsonb};

/// Bytes that a message takes as it is stored, besides its text.
const BYTES_OF_MESSAGE: usize = 64;
const HINT: &str = "Write [{\"role\": \"system\", \"content\": \"…\"}, {\"role\": \"user\", \"content\": \"…\"}, {\"role\": \"assistant\", \"content\": \"…\"}, {\"role\": \"user\", \"content\": \"…\"}]: first the system's message, if there is one, and the user's last.";

/// Reads the messages of a chat: the prompt, and what the parameters get of the others.
///
/// # Errors
///
/// 22023 for what is no conversation, 54000 for too much of it.
pub(crate) fn read(
    messages: Jsonb<'_>,
    mut params: Map<String, Value>,
    config: &DatabaseConfig,
) -> Result<(String, Map<String, Value>), PgError> {
    // Each text is within this, and there is a limit for all that lies around them.
    check_length(messages.len().saturating_sub(BYTES_OF_MESSAGE * (MAX_HISTORY + 2)), config)?;
    let Some(Item::Array(array)) = messages.root() else {
        return Err(refused("messages must be a JSON array"));
    };
    if array.len() == 0 {
        return Err(refused("messages cannot be empty"));
    }
    if array.len() > MAX_HISTORY + 2 {
        return Err(too_many());
    }
    let mut said: Vec<(Role, &str)> = Vec::with_capacity(array.len());
    for (index, item) in array.values().enumerate() {
        said.push(message(index, item.ok_or_else(params::unreadable)?)?);
    }
    let Some((Role::User, prompt)) = said.pop() else {
        return Err(refused("the last message must be the user's: the model answers it"));
    };
    let mut said = said.into_iter().peekable();
    if let Some((_, text)) = said.next_if(|(role, _)| *role == Role::System) {
        params.insert("system_prompt".to_owned(), text.into());
    }
    let history: Vec<Value> =
        said.map(|(role, text)| json!({ "role": role.name(), "content": text })).collect();
    if !history.is_empty() {
        params.insert("messages".to_owned(), history.into());
    }
    Ok((prompt.to_owned(), params))
}

fn message(index: usize, item: Item<'_>) -> Result<(Role, &str), PgError> {
    let refuse = |what: &str| refused(format!("message {}: {what}", index + 1));
    let Item::Object(object) = item else { return Err(refuse("it must be an object")) };
    let (mut role, mut content) = (None, None);
    for pair in object.pairs() {
        match pair.ok_or_else(params::unreadable)? {
            ("role", Item::Text(name)) => {
                role = role_of(name);
                if role.is_none() {
                    return Err(refuse("its role must be system, user or assistant"));
                }
            }
            ("content", Item::Text(text)) => content = Some(text),
            ("role", _) => return Err(refuse("its role must be a text")),
            ("content", _) => return Err(refuse("its content must be a text")),
            (_, _) => return Err(refuse("it may have role and content, and nothing else")),
        }
    }
    match (role, content) {
        (Some(Role::System), Some(_)) if index > 0 => Err(refuse("only the first may be the system's")),
        (Some(role), Some(content)) => Ok((role, content)),
        (None, _) => Err(refuse("it has no role")),
        (_, None) => Err(refuse("it has no content")),
    }
}

fn role_of(name: &str) -> Option<Role> {
    [Role::System, Role::User, Role::Assistant].into_iter().find(|role| role.name() == name)
}

fn refused(message: impl Into<String>) -> PgError {
    invalid(message).hint(HINT).lasting()
}

fn too_many() -> PgError {
    refused(format!("there may be {MAX_HISTORY} messages between the system's and the last one"))
}

/// The messages before the prompt, from a row's parameters.
///
/// # Errors
///
/// 22023.
pub(super) fn history(params: &Value) -> Result<Vec<Message>, PgError> {
    let Some(messages) = params.get("messages") else { return Ok(Vec::new()) };
    let Some(messages) = messages.as_array() else {
        return Err(invalid("messages must be an array").hint(HINT));
    };
    if messages.len() > MAX_HISTORY {
        return Err(too_many());
    }
    let read = |message: &Value| {
        let object = message.as_object().filter(|object| object.len() == 2)?;
        let role = role_of(object.get("role")?.as_str()?).filter(|role| *role != Role::System)?;
        Some(Message { role, text: object.get("content")?.as_str()?.to_owned() })
    };
    messages.iter().map(read).collect::<Option<_>>().ok_or_else(|| {
        invalid("each of the messages before the prompt must have role, user or assistant, and content, a text, and nothing else")
            .hint("What the model is told beforehand is the parameter system_prompt, and the user's last message the prompt.")
    })
}

/// Checks what a generation says besides its prompt, all texts of it together.
///
/// # Errors
///
/// 22023, and 54000 for too much.
pub(super) fn check(asked: RawRequest<'_>, config: &DatabaseConfig) -> Result<(), PgError> {
    let system = match asked.params.get("system_prompt") {
        None => "",
        Some(Value::String(text)) => text,
        Some(_) => {
            return Err(invalid("system_prompt must be a text")
                .hint("Say what the model is told beforehand, as 'Be brief.'."));
        }
    };
    let prompt = asked.prompt.map_or(0, str::len);
    let said = history(asked.params)?.iter().map(|message| message.text.len()).sum::<usize>();
    check_length(prompt.saturating_add(system.len()).saturating_add(said), config)
}
