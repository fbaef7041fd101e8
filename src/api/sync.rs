//! The synchronous functions: the answer in the same statement.
//!
//! They are declared IMMUTABLE, as the same input gives the same bytes, and because generated columns and
//! indexes want it. The consequences are documented: a constant call is computed when the statement is
//! planned, and another model leaves values that were generated before as they are.

use pgrx::prelude::*;
use serde_json::{Map, Value};

use super::answers;
use super::call::{Call, News};
use super::prompt;
use super::refuse::refuse_unsafe;
use crate::pg::error::OrRaise;
use crate::pg::jsonb::Jsonb;
use crate::request::arguments::{embed_params, generate_params};
use crate::request::options::with_options;
use crate::request::{Answer, OnError, unexpected};

/// Generates a text.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature")]
fn generate(
    prompt: Option<&str>,
    max_tokens: Option<i64>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    eos_string: Option<&str>,
    model: Option<&str>,
    size: Option<&str>,
    temperature: Option<f64>,
    on_error: Option<&str>,
    system_prompt: Option<&str>,
    options: Option<Jsonb<'_>>,
    variables: Option<Jsonb<'_>>,
    unsafe_mode: Option<bool>,
) -> Option<String> {
    refuse_unsafe(unsafe_mode);
    let (on_error, prompt) = (OnError::of(on_error), prompt::filled(prompt, variables).or_raise()?);
    let params = generate_params(max_tokens, use_cache, seed, eos_string, model, size, temperature);
    let params = with_options(params, system_prompt, options).or_raise();
    on_error.settle(answers::answer("generate", Some(&prompt), None, params).and_then(Answer::into_text))
}

/// Computes an embedding.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature, and more")]
fn embed(
    text_input: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i64>,
    model: Option<&str>,
    mode: Option<&str>,
    task: Option<&str>,
    truncate: Option<bool>,
    on_error: Option<&str>,
    dimensions: Option<i64>,
    unsafe_mode: Option<bool>,
) -> Option<Vec<f32>> {
    refuse_unsafe(unsafe_mode);
    let (on_error, text) = (OnError::of(on_error), text_input?);
    let params = embed_params(use_cache, seed, model, mode, task, truncate, dimensions);
    match on_error.settle(answers::answer("embed", Some(text), None, params))? {
        Answer::Embedding(vector) => Some(vector),
        _ => unexpected().raise(),
    }
}

/// Generates a text piece by piece. The work ends when the caller asks for no more pieces.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::too_many_arguments, reason = "those of generate")]
fn generate_stream(
    prompt: Option<&str>,
    max_tokens: Option<i64>,
    seed: Option<i64>,
    eos_string: Option<&str>,
    model: Option<&str>,
    size: Option<&str>,
    temperature: Option<f64>,
    on_error: Option<&str>,
    system_prompt: Option<&str>,
    options: Option<Jsonb<'_>>,
    variables: Option<Jsonb<'_>>,
    unsafe_mode: Option<bool>,
) -> SetOfIterator<'static, String> {
    refuse_unsafe(unsafe_mode);
    let on_error = OnError::of(on_error);
    let params = generate_params(max_tokens, None, seed, eos_string, model, size, temperature);
    let params = with_options(params, system_prompt, options).or_raise();
    SetOfIterator::new(match prompt::filled(prompt, variables).or_raise() {
        Some(prompt) => begin_pieces(&prompt, params, on_error),
        None => AnswerPieces::none(),
    })
}

/// Begins a text that is read piece by piece.
pub(super) fn begin_pieces(prompt: &str, params: Map<String, Value>, on_error: OnError) -> AnswerPieces {
    let call = on_error.settle(Call::begin("generate", Some(prompt), None, params));
    AnswerPieces { call, sent_bytes: 0, on_error }
}

/// The pieces of a text, as they are generated. Together they are the text.
pub(super) struct AnswerPieces {
    call: Option<Call>,
    sent_bytes: usize,
    on_error: OnError,
}

impl AnswerPieces {
    /// The pieces of no text.
    pub(super) fn none() -> AnswerPieces {
        AnswerPieces { call: None, sent_bytes: 0, on_error: OnError::Raise }
    }
}

impl Iterator for AnswerPieces {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        while let Some(call) = &mut self.call {
            // A caller that has a part of the text must learn that it is not the whole.
            let on_error = if self.sent_bytes == 0 { self.on_error } else { OnError::Raise };
            let Some(news) = on_error.settle(call.next()) else {
                self.call = None;
                return None;
            };
            let piece = match news {
                News::Text(text) => text,
                News::Answer(answer) => {
                    self.call = None;
                    let text = answer.into_text().or_raise();
                    text.get(self.sent_bytes..).unwrap_or_default().to_owned()
                }
                News::None => continue,
            };
            self.sent_bytes += piece.len();
            if !piece.is_empty() {
                return Some(piece);
            }
        }
        None
    }
}
