//! `inspect`: what a model file contains and whether it can be used.

use steadytext_engine::gguf::{Gguf, Value};
use steadytext_engine::template::ChatTemplate;
use steadytext_engine::tokenizer::Tokenizer;
use steadytext_engine::{PackedState, verify_packed_weights};

use super::Error;
use super::arguments::Arguments;
use super::json::Object;

/// Prints a line for the file, one for each key, one for each tensor, and one for each part of the model
/// that is made from keys.
pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    let gguf = arguments.gguf()?;
    Object::default()
        .text("file", &gguf.path().to_string_lossy())
        .number("bytes", gguf.file_size())
        .number("version", gguf.version())
        .number("keys", gguf.keys().len())
        .number("tensors", gguf.tensors().len())
        .print()?;
    for (key, value) in gguf.keys() {
        let line = Object::default().text("key", key);
        match value {
            Value::Integer(value) => line.number("value", value),
            Value::Float(value) if value.is_finite() => line.number("value", value),
            Value::Float(_) | Value::String(None) => line.number("value", "null"),
            Value::Bool(value) => line.number("value", value),
            Value::String(Some(value)) => line.text("value", value),
            Value::Array(of, length) => line.text("array_of", of).number("length", length),
        }
        .print()?;
    }
    for tensor in gguf.tensors() {
        Object::default()
            .text("tensor", tensor.name)
            .text("type", &tensor.kind.to_string())
            .numbers("shape", tensor.shape)
            .number("bytes", tensor.data.len())
            .print()?;
    }
    part("tokenizer", Tokenizer::from_gguf(&gguf).map(|tokenizer| tokenizer.to_string()))?;
    // Encoders have no chat template.
    if gguf.opt_str("tokenizer.ggml.model")? != Some("bert") {
        let template = arguments.chat_template(&gguf);
        let origin = template.as_ref().ok().map(|template| template.origin().to_string());
        part("chat_template", template.map(|template| template.to_string()))?;
        if let Some(origin) = origin {
            part("chat_template_origin", Ok(origin))?;
        }
        for name in ChatTemplate::names(&gguf)? {
            let template = ChatTemplate::named(&gguf, &name);
            part(&format!("chat_template.{name}"), template.map(|template| template.to_string()))?;
        }
    }
    if arguments.verify { panels(&gguf, arguments) } else { Ok(()) }
}

/// Compares the stored panels, if there are any, with the model's weights.
fn panels(gguf: &Gguf, arguments: &Arguments) -> Result<(), Error> {
    let (path, state) = verify_packed_weights(gguf, arguments.compute_threads())?;
    let line = Object::default().text("part", "panels").text(
        "state",
        match state {
            PackedState::Absent => "absent",
            PackedState::Stale => "stale",
            PackedState::Corrupt => "corrupt",
            PackedState::Sound => "sound",
        },
    );
    match path {
        Some(path) => line.text("file", &path.to_string_lossy()),
        None => line,
    }
    .print()?;
    match state {
        PackedState::Corrupt => Err(Error::CorruptPackedWeights),
        PackedState::Absent | PackedState::Stale | PackedState::Sound => Ok(()),
    }
}

fn part(name: &str, outcome: Result<String, steadytext_engine::Error>) -> Result<(), Error> {
    let line = Object::default().text("part", name).number("usable", outcome.is_ok());
    match outcome {
        Ok(description) => line.text("description", &description),
        Err(error) => line.text("error", &error.to_string()),
    }
    .print()
}
