//! `inspect`: the properties of a model file, whether it can be used, and its keys and tensors.

use std::fmt::Write as _;
use std::io::Write as _;

use steadytext_engine::gguf::{Gguf, Value};
use steadytext_engine::summary::{Load, ModelSummary};
use steadytext_engine::{PackedState, verify_packed_weights};

use super::Error;
use super::arguments::Arguments;
use super::json::JsonObject;

/// Requests whose memory is estimated, as many as an engine runs by itself.
const REQUESTS: usize = 16;
/// Characters of a value that are shown, and of what is said of the model; with `--json` all are.
const SHOWN: usize = 120;
const SAID: usize = 600;

/// Prints a summary, then all keys, then all tensors.
pub(super) fn run(arguments: &Arguments) -> Result<(), Error> {
    let load = Load {
        requests: arguments.requests.unwrap_or(REQUESTS).clamp(1, 4096),
        tokens: arguments.context,
        threads: arguments.compute_threads(),
        kv_cache_type: arguments.kv_cache_type,
    };
    let (summary, gguf) = ModelSummary::of(&arguments.source(), load)?;
    if arguments.json {
        lines_of_json(&summary, &gguf)?
    } else {
        text(&summary, &gguf)?
    }
    if arguments.verify && summary.refusals.is_empty() {
        panels(&gguf, arguments)?;
    }
    if summary.refusals.is_empty() { Ok(()) } else { Err(Error::Refused) }
}

/// The summary as text.
fn text(summary: &ModelSummary, gguf: &Gguf) -> Result<(), Error> {
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    let mut line = |name: &str, value: &str| writeln!(out, "{name:<15} {value}");
    let parts = if summary.parts > 1 { format!(" and {} more", summary.parts - 1) } else { String::new() };
    let ModelSummary { bytes, gguf_version, .. } = *summary;
    let format = gguf_version.map_or("safetensors".to_owned(), |version| format!("GGUF {version}"));
    line("file", &format!("{}{parts}, {}, {format}", shown(&summary.file), size(bytes)))?;
    if let Some(name) = &summary.name {
        line("name", &shown(name))?;
    }
    if let Some(license) = &summary.license {
        line("license", &shown(license))?;
    }
    if let Some(family) = family(summary) {
        line("family", &family)?;
    }
    line("quantization", &quantization(summary))?;
    if let Some(context) = context(summary) {
        line("context", &context)?;
    }
    if let Some(tokenizer) = &summary.tokenizer {
        let tokens = summary.vocabulary.map(|tokens| format!(", {tokens} tokens")).unwrap_or_default();
        line("tokenizer", &format!("{}{tokens}", shown(tokenizer)))?;
    }
    if let Some(origin) = &summary.chat_template {
        line("chat template", &shown(origin))?;
    }
    if let Some(prompt) = &summary.prompt {
        line("prompt", &cut(prompt, SAID))?;
    }
    if !summary.named_templates.is_empty() {
        line("named templates", &shown(&summary.named_templates.join(", ")))?;
    }
    if !summary.adapters.is_empty() {
        line("adapters", &shown(&summary.adapters.join(", ")))?;
    }
    if !summary.end_tokens.is_empty() {
        line("end tokens", &shown(&summary.end_tokens.join(" ")))?;
    }
    if let Some(bytes) = summary.state_bytes_per_token {
        let mut state = format!("{bytes} bytes for each token of a sequence");
        if let Some(window) = summary.window {
            let _ = write!(state, ", {} more for each of the last {}", window.bytes_per_token, window.tokens);
        }
        line("state", &state)?;
    }
    if let Some(memory) = &summary.memory {
        let mut needed = format!("{} for the model", size(memory.model));
        if memory.state > 0 {
            let (state, total) = (size(memory.state), size(memory.model.saturating_add(memory.state)));
            let load = format!("{} requests of {} tokens", memory.requests, memory.tokens);
            let _ = write!(needed, ", {state} for {load}: {total} together");
        }
        line("memory", &needed)?;
    }
    if summary.refusals.is_empty() {
        line("runs on", &summary.computed_by)?;
        if let Some(other) = summary.also_computed_by {
            line("or on", other)?;
        }
    }
    for refusal in &summary.refusals {
        line("refused", &cut(&refusal.reason, SAID))?;
        if let Some(hint) = &refusal.hint {
            line("", &format!("hint: {}", cut(hint, SAID)))?;
        }
    }
    writeln!(out, "\n{} keys", gguf.keys().len())?;
    for (key, value) in gguf.keys() {
        let value = match value {
            Value::Integer(value) => value.to_string(),
            Value::Float(value) => value.to_string(),
            Value::Bool(value) => value.to_string(),
            Value::String(Some(value)) => format!("\"{}\"", shown(value)),
            Value::String(None) => "text that is not UTF-8".to_owned(),
            Value::Array(of, length) => format!("{length} × {of}"),
        };
        writeln!(out, "  {key} = {value}")?;
    }
    writeln!(out, "\n{} tensors", gguf.tensors().len())?;
    for tensor in gguf.tensors() {
        writeln!(out, "  {} {} {:?}", tensor.name, tensor.kind, tensor.shape)?;
    }
    Ok(out.flush()?)
}

fn family(summary: &ModelSummary) -> Option<String> {
    let mut family = shown(summary.architecture.as_deref()?);
    if let Some(kind) = summary.kind {
        let _ = write!(family, ", {kind}");
    }
    if let Some(blocks) = summary.blocks {
        let _ = write!(family, ", {blocks} blocks");
    }
    let _ = match summary.parameters {
        many @ 1_000_000_000.. => write!(family, ", {:.2} billion parameters", many as f64 / 1e9),
        few => write!(family, ", {:.1} million parameters", few as f64 / 1e6),
    };
    Some(family)
}

fn quantization(summary: &ModelSummary) -> String {
    let types = summary.element_types.iter().map(|share| {
        let missing = if share.supported { "" } else { " (no kernels)" };
        let plural = if share.tensors == 1 { "" } else { "s" };
        format!("{} {} in {} tensor{plural}{missing}", share.name, size(share.bytes), share.tensors)
    });
    let types = types.collect::<Vec<_>>().join(", ");
    let imatrix = if summary.importance_matrix { ", with an importance matrix" } else { "" };
    match summary.quantization {
        Some(name) => format!("{name}{imatrix}: {types}"),
        None => format!("{types}{imatrix}"),
    }
}

fn context(summary: &ModelSummary) -> Option<String> {
    match (summary.context_length, summary.declared_context_length) {
        (Some(usable), Some(declared)) if usable as u64 != u64::from(declared) => {
            Some(format!("{usable} tokens (the file says {declared})"))
        }
        (Some(usable), _) => Some(format!("{usable} tokens")),
        (None, declared) => declared.map(|declared| format!("{declared} tokens")),
    }
}

/// Text of a file on one line of a terminal, without anything that would steer it.
fn shown(text: &str) -> String {
    cut(text, SHOWN)
}

/// [`shown`] with so many characters at most.
fn cut(text: &str, most: usize) -> String {
    let mut shown = String::new();
    for (count, character) in text.chars().enumerate() {
        if count == most {
            shown.push('…');
            break;
        }
        if character.is_control()
            || matches!(character, '\u{200e}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// Bytes in a unit that people read.
fn size(bytes: u64) -> String {
    match bytes {
        1_000_000_000.. => format!("{:.2} GB", bytes as f64 / 1e9),
        1_000_000.. => format!("{:.1} MB", bytes as f64 / 1e6),
        _ => format!("{:.1} kB", bytes as f64 / 1e3),
    }
}

/// A line for the summary, one for each key, and one for each tensor.
fn lines_of_json(summary: &ModelSummary, gguf: &Gguf) -> Result<(), Error> {
    let json = serde_json::to_string(summary).map_err(std::io::Error::from)?;
    JsonObject::default().number("summary", json).print()?;
    for (key, value) in gguf.keys() {
        let line = JsonObject::default().text("key", key);
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
        JsonObject::default()
            .text("tensor", tensor.name)
            .text("type", &tensor.kind.to_string())
            .numbers("shape", tensor.shape)
            .number("bytes", tensor.data.len())
            .print()?;
    }
    Ok(())
}

/// Compares the stored panels, if there are any, with the model's weights.
fn panels(gguf: &Gguf, arguments: &Arguments) -> Result<(), Error> {
    let (path, state) = verify_packed_weights(gguf, arguments.compute_threads())?;
    let line = JsonObject::default().text("part", "panels").text(
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
