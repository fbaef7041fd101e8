//! What transformers call the tensors of a BERT, in llama.cpp's words.

use std::path::Path;

use super::header;
use super::json::{corrupt, unsupported};
use crate::Error;
use crate::gguf::{GgmlType, Translation};

/// What becomes of a tensor.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// It is this one.
    Tensor(String),
    /// It is not needed: numbers of positions, heads for training.
    Nothing,
    /// Leaving it out could change the result.
    Unknown,
}

/// Adds the tensors of a file that encodes with `layers` layers.
///
/// # Errors
/// [`Error::CorruptModel`], [`Error::UnsupportedModel`] for a tensor that has no place in an encoder.
pub(super) fn add(
    path: &Path,
    bytes: &[u8],
    layers: usize,
    translation: &mut Translation,
) -> Result<(), Error> {
    let entries = header::read(bytes).map_err(|reason| corrupt(path, reason))?;
    // The pooler belongs to the classifier; without one it was never trained for what is asked here.
    let classifies = entries.iter().any(|entry| entry.name == "classifier.weight");
    for entry in entries {
        let name = match meaning(&entry.name, layers, classifies) {
            Meaning::Tensor(name) => name,
            Meaning::Nothing => continue,
            Meaning::Unknown => {
                return Err(unsupported(
                    path,
                    format!("tensor \"{}\" has no place in the encoder", entry.name),
                ));
            }
        };
        let Some(kind) = entry.kind else {
            return Err(unsupported(
                path,
                format!("tensor \"{}\" does not hold floating-point values", entry.name),
            ));
        };
        // GGML begins with the length of a row.
        let shape: Vec<usize> = entry.shape.iter().rev().copied().collect();
        if shape.is_empty() || shape.contains(&0) {
            return Err(corrupt(path, format!("tensor \"{}\" is empty", entry.name)));
        }
        debug_assert!(matches!(kind, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16));
        if !translation.tensor(name, shape, kind, entry.data) {
            return Err(corrupt(path, format!("tensor \"{}\" is there under two names", entry.name)));
        }
    }
    Ok(())
}

fn meaning(name: &str, layers: usize, classifies: bool) -> Meaning {
    let name = name.strip_prefix("bert.").unwrap_or(name);
    let (part, ending) = match name.rsplit_once('.') {
        Some((part, "weight" | "gamma")) => (part, "weight"),
        Some((part, "bias" | "beta")) => (part, "bias"),
        _ if name == "embeddings.position_ids" => return Meaning::Nothing,
        _ => return Meaning::Unknown,
    };
    let tensor = |part: &str| Meaning::Tensor(format!("{part}.{ending}"));
    if let Some((index, part)) = part.strip_prefix("encoder.layer.").and_then(|rest| rest.split_once('.')) {
        return match (index.parse::<usize>(), in_layer(part)) {
            (Ok(layer), Some(part)) if layer < layers => tensor(&format!("blk.{layer}.{part}")),
            _ => Meaning::Unknown,
        };
    }
    match part {
        "embeddings.word_embeddings" => tensor("token_embd"),
        "embeddings.position_embeddings" => tensor("position_embd"),
        "embeddings.token_type_embeddings" => tensor("token_types"),
        "embeddings.LayerNorm" => tensor("token_embd_norm"),
        "pooler.dense" if classifies => tensor("cls"),
        "pooler.dense" => Meaning::Nothing,
        "classifier" => tensor("cls.output"),
        _ if part.starts_with("cls.") => Meaning::Nothing,
        _ => Meaning::Unknown,
    }
}

fn in_layer(part: &str) -> Option<&'static str> {
    Some(match part {
        "attention.self.query" => "attn_q",
        "attention.self.key" => "attn_k",
        "attention.self.value" => "attn_v",
        "attention.output.dense" => "attn_output",
        "attention.output.LayerNorm" => "attn_output_norm",
        "intermediate.dense" => "ffn_up",
        "output.dense" => "ffn_down",
        "output.LayerNorm" => "layer_output_norm",
        _ => return None,
    })
}
