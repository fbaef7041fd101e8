//! The synchronous functions: the answer in the same statement.
//!
//! They are declared IMMUTABLE, as the same input gives the same bytes, and because generated columns and indexes want it. What
//! follows from that is documented: a constant call is computed when the statement is planned, and another model leaves
//! what was generated before as it is.

use pgrx::prelude::*;

use super::call::{self, Call, News};
use super::request::{embed_params, generate_params};
use crate::pg::error::{OrRaise, PgError};
use crate::worker::request::{Answer, unexpected};

/// Generates a text.
#[pg_extern(immutable, parallel_safe)]
#[allow(clippy::too_many_arguments, reason = "the predecessor's signature")]
fn generate(
    prompt: Option<&str>,
    max_tokens: Option<i32>,
    use_cache: Option<bool>,
    seed: Option<i32>,
    eos_string: Option<&str>,
    model: Option<&str>,
    size: Option<&str>,
    temperature: Option<f64>,
) -> String {
    let params = generate_params(max_tokens, use_cache, seed, eos_string, model, size, temperature);
    let answer = call::answer("generate", prompt, None, params);
    answer.and_then(text).or_raise()
}

/// Computes an embedding.
#[pg_extern(immutable, parallel_safe)]
fn embed(
    text_input: Option<&str>,
    use_cache: Option<bool>,
    seed: Option<i32>,
    model: Option<&str>,
    mode: Option<&str>,
    task: Option<&str>,
) -> Vec<f32> {
    let params = embed_params(use_cache, seed, model, mode, task);
    match call::answer("embed", text_input, None, params).or_raise() {
        Answer::Embedding(vector) => vector,
        Answer::Text(_) | Answer::Embeddings(_) | Answer::Ranking(_) => unexpected().raise(),
    }
}

/// Generates a text piece by piece. Whoever stops asking for more stops the work.
#[pg_extern(volatile, parallel_restricted)]
#[allow(clippy::too_many_arguments, reason = "those of generate")]
fn generate_stream(
    prompt: Option<&str>,
    max_tokens: Option<i32>,
    seed: Option<i32>,
    eos_string: Option<&str>,
    model: Option<&str>,
    size: Option<&str>,
    temperature: Option<f64>,
) -> SetOfIterator<'static, String> {
    let params = generate_params(max_tokens, None, seed, eos_string, model, size, temperature);
    let call = Call::begin("generate", prompt, None, params).or_raise();
    SetOfIterator::new(Pieces { call: Some(call), sent_bytes: 0 })
}

/// The pieces of a text, as they are generated. Together they are the text.
struct Pieces {
    call: Option<Call>,
    sent_bytes: usize,
}

impl Iterator for Pieces {
    type Item = String;

    fn next(&mut self) -> Option<String> {
        while let Some(call) = &mut self.call {
            let piece = match call.next().or_raise() {
                News::Text(text) => text,
                News::Answer(answer) => {
                    self.call = None;
                    let text = text(answer).or_raise();
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

/// The text of an answer.
///
/// # Errors
///
/// A bug: it is of another kind.
pub(super) fn text(answer: Answer) -> Result<String, PgError> {
    match answer {
        Answer::Text(text) => Ok(text),
        Answer::Embedding(_) | Answer::Embeddings(_) | Answer::Ranking(_) => Err(unexpected()),
    }
}
