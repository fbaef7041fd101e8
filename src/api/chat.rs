//! Conversations: enqueued, answered in the same statement, and piece by piece.

use pgrx::prelude::*;
use serde_json::{Map, Value};

use super::answers;
use super::enqueue::enqueue;
use super::sync::{AnswerPieces, begin_pieces};
use crate::pg::catalog_cache;
use crate::pg::error::{OrRaise, PgError};
use crate::pg::jsonb::Jsonb;
use crate::request::arguments::generate_params;
use crate::request::options::with_options;
use crate::request::{Answer, OnError, conversation};

/// Continues a conversation.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "those of generate")]
fn chat(
    messages: Option<Jsonb<'_>>,
    max_tokens: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    eos_string: Option<&str>,
    model: Option<&str>,
    size: Option<&str>,
    temperature: Option<f64>,
    on_error: Option<&str>,
    options: Option<Jsonb<'_>>,
) -> Option<String> {
    let (on_error, messages) = (OnError::of(on_error), messages?);
    let params = generate_params(max_tokens, use_cache, seed, eos_string, model, size, temperature);
    let params = with_options(params, None, options).or_raise();
    let answer = read(messages, params)
        .and_then(|(prompt, params)| answers::answer("generate", Some(&prompt), None, params))
        .and_then(Answer::into_text);
    on_error.settle(answer)
}

/// Enqueues the continuation of a conversation.
#[pg_extern(volatile, parallel_unsafe)]
#[allow(clippy::too_many_arguments, reason = "those of generate_async")]
fn chat_async(
    messages: Option<Jsonb<'_>>,
    max_tokens: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    eos_string: Option<&str>,
    model: Option<&str>,
    size: Option<&str>,
    temperature: Option<f64>,
    priority: Option<i64>,
    options: Option<Jsonb<'_>>,
) -> Option<pgrx::Uuid> {
    let params = generate_params(max_tokens, use_cache, seed, eos_string, model, size, temperature);
    let params = with_options(params, None, options).or_raise();
    let Some(messages) = messages else {
        PgError::raised("Messages cannot be null")
            .hint(r#"Give an array, as [{"role": "user", "content": "a question"}]."#)
            .raise()
    };
    let (prompt, params) = read(messages, params).or_raise();
    enqueue("generate", Some(&prompt), params, priority)
}

/// Continues a conversation piece by piece. The work ends when the caller asks for no more pieces.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::too_many_arguments, reason = "those of generate_stream")]
fn chat_stream(
    messages: Option<Jsonb<'_>>,
    max_tokens: Option<i64>,
    seed: Option<i64>,
    eos_string: Option<&str>,
    model: Option<&str>,
    size: Option<&str>,
    temperature: Option<f64>,
    on_error: Option<&str>,
    options: Option<Jsonb<'_>>,
) -> SetOfIterator<'static, String> {
    let on_error = OnError::of(on_error);
    let params = generate_params(max_tokens, None, seed, eos_string, model, size, temperature);
    let params = with_options(params, None, options).or_raise();
    let said = messages.and_then(|messages| on_error.settle(read(messages, params)));
    SetOfIterator::new(match said {
        Some((prompt, params)) => begin_pieces(&prompt, params, on_error),
        None => AnswerPieces::none(),
    })
}

fn read(messages: Jsonb<'_>, params: Map<String, Value>) -> Result<(String, Map<String, Value>), PgError> {
    conversation::read(messages, params, &*catalog_cache::config()?)
}
