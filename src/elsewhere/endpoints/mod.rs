//! Models behind endpoints that speak OpenAI's protocol: engines that exist, such as vLLM, llama-server, Text
//! Embeddings Inference, Ollama and hosted ones.
//!
//! A request comes as work for an engine, and goes back as the outputs of one: an [`Endpoint`] stands in the
//! engine's place for the models that a file names ([`settings`]), and nothing else of the program knows the
//! difference. Its answers are not repeatable, so each of them names where it comes from.
//!
//! Invariant: only types of requests are claimed that the endpoint can answer ([`kinds`]).

mod calls;
mod client;
mod endpoint_answers;
mod guided;
mod kinds;
mod settings;
mod texts;
mod vectors;
mod waiting;

use std::path::Path;
use std::sync::Arc;

pub(crate) use self::calls::Endpoint;
pub(crate) use self::waiting::{EndpointEvent, EndpointEventKind, EndpointJob};
use crate::Error;

/// The endpoints of a file.
///
/// # Errors
///
/// [`Error::Usage`], and [`Error::Thread`].
pub(crate) fn start(file: Option<&Path>) -> Result<Vec<Arc<Endpoint>>, Error> {
    let Some(file) = file else { return Ok(Vec::new()) };
    settings::read(file)?.into_iter().map(Endpoint::start).collect()
}
