//! Translation of the names that transformers give the tensors of an encoder to those of llama.cpp.

use std::path::Path;

use super::config::{FolderFamily, FolderShape};
use super::header::{self, MAX_TENSORS, TensorEntry};
use super::json::{corrupt, unsupported};
use super::shards::WeightFiles;
use crate::gguf::{GgmlType, Translation};
use crate::{Error, adapters};

/// The use of a tensor.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    /// The tensor of this name.
    Tensor(String),
    /// A half of the adapters' matrices for the tensor of this name.
    Adapters { of: String, half: AdapterHalf },
    /// A tensor that is not needed: numbers of positions, heads for training.
    Nothing,
    /// An unknown tensor: leaving it out could change the result.
    Unknown,
}

/// A half of an adapter, as transformers name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum AdapterHalf {
    A,
    B,
}

/// Adds the tensors of all files, whose bytes are given in the same order.
///
/// # Errors
/// [`Error::CorruptModel`], [`Error::UnsupportedModel`] for a tensor that has no place in an encoder.
pub(super) fn add(
    weights: &WeightFiles,
    files: &[&[u8]],
    shape: &FolderShape,
    translation: &mut Translation,
) -> Result<(), Error> {
    let (mut tables, mut count) = (Vec::with_capacity(files.len()), 0);
    for (path, bytes) in weights.files.iter().zip(files) {
        let table = header::read(bytes).map_err(|reason| corrupt(path, reason))?;
        count += table.len();
        if count > MAX_TENSORS {
            return Err(corrupt(path, format!("its shards have more than {MAX_TENSORS} tensors")));
        }
        tables.push(table);
    }
    if let Some(index) = &weights.index {
        index.check(&weights.files, &tables)?;
    }
    // The pooler belongs to the classifier; without one it was not trained for this purpose.
    let classifier = if shape.family == FolderFamily::XlmRoberta {
        "classifier.out_proj.weight"
    } else {
        "classifier.weight"
    };
    let classifies = tables.iter().flatten().any(|entry| entry.name == classifier);
    for (part, (path, table)) in weights.files.iter().zip(tables).enumerate() {
        for entry in table {
            add_entry(path, part, entry, shape, classifies, translation)?;
        }
    }
    Ok(())
}

/// Adds a tensor of the file `path`, which is file `part` of the model.
fn add_entry(
    path: &Path,
    part: usize,
    entry: TensorEntry,
    shape: &FolderShape,
    classifies: bool,
    translation: &mut Translation,
) -> Result<(), Error> {
    let name = match meaning(&entry.name, shape, classifies) {
        Meaning::Tensor(name) => name,
        Meaning::Adapters { of, half } => {
            return add_adapters(path, part, &entry, shape, &of, half, translation);
        }
        Meaning::Nothing => return Ok(()),
        Meaning::Unknown => {
            let reason = format!("tensor \"{}\" has no place in the encoder", entry.name);
            return Err(unsupported(path, reason));
        }
    };
    let Some(kind) = entry.kind else {
        let reason = format!("tensor \"{}\" does not hold floating-point values", entry.name);
        return Err(unsupported(path, reason));
    };
    // GGML has the length of a row first.
    let (mut extents, mut data): (Vec<usize>, _) = (entry.shape.iter().rev().copied().collect(), entry.data);
    if extents.is_empty() || extents.contains(&0) {
        return Err(corrupt(path, format!("tensor \"{}\" is empty", entry.name)));
    }
    if name == "position_embd.weight" && shape.spare_positions > 0 {
        let [_, rows] = &mut extents[..] else {
            return Err(corrupt(path, format!("tensor \"{}\" is no table", entry.name)));
        };
        if *rows <= shape.spare_positions {
            return Err(corrupt(path, format!("tensor \"{}\" has {rows} rows", entry.name)));
        }
        data.start += data.len() / *rows * shape.spare_positions;
        *rows -= shape.spare_positions;
    }
    debug_assert!(matches!(kind, GgmlType::F32 | GgmlType::F16 | GgmlType::BF16));
    match translation.tensor(name, extents, kind, part, data) {
        true => Ok(()),
        false => Err(corrupt(path, format!("tensor \"{}\" is there under two names", entry.name))),
    }
}

/// Adds a half of the adapters' matrices for a tensor: those of all adapters, `[adapters, rows, columns]`,
/// are one tensor of the file `path`.
fn add_adapters(
    path: &Path,
    part: usize,
    entry: &TensorEntry,
    shape: &FolderShape,
    of: &str,
    half: AdapterHalf,
    translation: &mut Translation,
) -> Result<(), Error> {
    let wrong = |reason: String| Err(corrupt(path, format!("tensor \"{}\" {reason}", entry.name)));
    let Some(kind) = entry.kind else {
        return wrong("does not hold floating-point values".to_owned());
    };
    let [count, rows, columns] = entry.shape[..] else {
        return wrong(format!("has the shape {:?}, which is not that of adapters", entry.shape));
    };
    // An embedding is a row of its table, while a product sums over rows: the halves change places.
    let is_table = matches!(of, "token_embd.weight" | "token_types.weight");
    let rank = if is_table == (half == AdapterHalf::A) { columns } else { rows };
    if count != shape.adapters || rank != shape.rank || count == 0 || rows == 0 || columns == 0 {
        let (adapters, wanted) = (shape.adapters, shape.rank);
        return wrong(format!(
            "has the shape {:?}, and config.json speaks of {adapters} adapters of rank {wanted}",
            entry.shape
        ));
    }
    let end = match (of, half) {
        ("token_embd.weight", AdapterHalf::B) => "lora_b_rows",
        ("token_types.weight", AdapterHalf::A) => "lora_b",
        ("token_types.weight", AdapterHalf::B) | (_, AdapterHalf::A) => "lora_a",
        (_, AdapterHalf::B) => "lora_b",
    };
    if translation.tensors() + count > MAX_TENSORS {
        return wrong(format!("is one of adapters that have more than {MAX_TENSORS} tensors"));
    }
    let length = entry.data.len() / count;
    for adapter in 0..count {
        let name = format!("{}{of}.{end}", adapters::prefix(adapter));
        let start = entry.data.start + adapter * length;
        if !translation.tensor(name, vec![columns, rows], kind, part, start..start + length) {
            return wrong("is there under two names".to_owned());
        }
    }
    Ok(())
}

fn meaning(name: &str, shape: &FolderShape, classifies: bool) -> Meaning {
    let prefixes = ["bert.", "roberta.", "nomic_bert.", "model."];
    let name = prefixes.iter().find_map(|prefix| name.strip_prefix(prefix)).unwrap_or(name);
    if shape.family == FolderFamily::JinaBertV3 {
        return meaning_in_jina_bert_v3(name, shape);
    }
    let (part, ending) = match name.rsplit_once('.') {
        Some((part, "weight" | "gamma")) => (part, "weight"),
        Some((part, "bias" | "beta")) => (part, "bias"),
        _ if name == "embeddings.position_ids" => return Meaning::Nothing,
        _ => return Meaning::Unknown,
    };
    let tensor = |part: &str| Meaning::Tensor(format!("{part}.{ending}"));
    let of_layers = match shape.family {
        FolderFamily::Bert | FolderFamily::XlmRoberta => "encoder.layer.",
        FolderFamily::NomicBert | FolderFamily::JinaBertV3 => "encoder.layers.",
        FolderFamily::ModernBert => "layers.",
    };
    if let Some((index, part)) = part.strip_prefix(of_layers).and_then(|rest| rest.split_once('.')) {
        let part = match shape.family {
            FolderFamily::Bert | FolderFamily::XlmRoberta => in_layer(part),
            FolderFamily::NomicBert => in_layer_of_nomic_bert(part),
            FolderFamily::JinaBertV3 => in_layer_of_jina_bert_v3(part),
            FolderFamily::ModernBert => in_layer_of_modern_bert(part),
        };
        return match (index.parse::<usize>(), part) {
            (Ok(layer), Some(part)) if layer < shape.layers => tensor(&format!("blk.{layer}.{part}")),
            _ => Meaning::Unknown,
        };
    }
    let of_classifier = |part: &str| if classifies { tensor(part) } else { Meaning::Nothing };
    match (shape.family, part) {
        (FolderFamily::ModernBert, "embeddings.tok_embeddings") => tensor("token_embd"),
        (FolderFamily::ModernBert, "embeddings.norm") => tensor("token_embd_norm"),
        (FolderFamily::ModernBert, "final_norm") => tensor("output_norm"),
        (FolderFamily::ModernBert, "head.dense") => of_classifier("cls"),
        (FolderFamily::ModernBert, "head.norm") => of_classifier("cls.norm"),
        (FolderFamily::ModernBert, "decoder") => Meaning::Nothing,
        (FolderFamily::XlmRoberta, "classifier.dense") => of_classifier("cls"),
        (FolderFamily::XlmRoberta, "classifier.out_proj") => of_classifier("cls.output"),
        (FolderFamily::XlmRoberta, "pooler.dense") => Meaning::Nothing,
        (FolderFamily::XlmRoberta, part) if part == "lm_head" || part.starts_with("lm_head.") => {
            Meaning::Nothing
        }
        (FolderFamily::NomicBert, "emb_ln") => tensor("token_embd_norm"),
        (FolderFamily::Bert | FolderFamily::ModernBert, "classifier") => tensor("cls.output"),
        (FolderFamily::ModernBert, _) => Meaning::Unknown,
        (_, "embeddings.word_embeddings") => tensor("token_embd"),
        (_, "embeddings.token_type_embeddings") => tensor("token_types"),
        (FolderFamily::NomicBert, _) => Meaning::Unknown,
        (_, "embeddings.position_embeddings") => tensor("position_embd"),
        (_, "embeddings.LayerNorm") => tensor("token_embd_norm"),
        (FolderFamily::Bert, "pooler.dense") => of_classifier("cls"),
        (FolderFamily::Bert, part) if part.starts_with("cls.") => Meaning::Nothing,
        _ => Meaning::Unknown,
    }
}

/// The use of a tensor of jina-embeddings-v3. Weights that adapters change are written as PyTorch's
/// parametrizations.
fn meaning_in_jina_bert_v3(name: &str, shape: &FolderShape) -> Meaning {
    let (part, ending) = match name.split_once(".parametrizations.weight.") {
        Some((part, "original")) => (part, "weight"),
        Some((part, rest @ ("0.lora_A" | "0.lora_B"))) => (part, rest),
        Some(_) => return Meaning::Unknown,
        None => match name.rsplit_once('.') {
            Some((part, ending @ ("weight" | "bias"))) => (part, ending),
            _ => return Meaning::Unknown,
        },
    };
    let layer = part.strip_prefix("encoder.layers.").and_then(|rest| rest.split_once('.'));
    let part = match (part, layer) {
        (_, Some((index, part))) => match (index.parse::<usize>(), in_layer_of_jina_bert_v3(part)) {
            (Ok(layer), Some(part)) if layer < shape.layers => format!("blk.{layer}.{part}"),
            _ => return Meaning::Unknown,
        },
        ("embeddings.word_embeddings", None) => "token_embd".to_owned(),
        ("embeddings.token_type_embeddings", None) => "token_types".to_owned(),
        ("emb_ln", None) => "token_embd_norm".to_owned(),
        // Pooling does not use it.
        ("pooler.dense", None) => return Meaning::Nothing,
        _ => return Meaning::Unknown,
    };
    match ending {
        "0.lora_A" => Meaning::Adapters { of: format!("{part}.weight"), half: AdapterHalf::A },
        "0.lora_B" => Meaning::Adapters { of: format!("{part}.weight"), half: AdapterHalf::B },
        ending => Meaning::Tensor(format!("{part}.{ending}")),
    }
}

fn in_layer_of_jina_bert_v3(part: &str) -> Option<&'static str> {
    Some(match part {
        "mixer.Wqkv" => "attn_qkv",
        "mixer.out_proj" => "attn_output",
        "norm1" => "attn_output_norm",
        "mlp.fc1" => "ffn_up",
        "mlp.fc2" => "ffn_down",
        "norm2" => "layer_output_norm",
        _ => return None,
    })
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

fn in_layer_of_nomic_bert(part: &str) -> Option<&'static str> {
    Some(match part {
        "attn.Wqkv" => "attn_qkv",
        "attn.out_proj" => "attn_output",
        "norm1" => "attn_output_norm",
        "mlp.fc11" => "ffn_up",
        "mlp.fc12" => "ffn_gate",
        "mlp.fc2" => "ffn_down",
        "norm2" => "layer_output_norm",
        _ => return None,
    })
}

fn in_layer_of_modern_bert(part: &str) -> Option<&'static str> {
    Some(match part {
        "attn_norm" => "attn_norm",
        "attn.Wqkv" => "attn_qkv",
        "attn.Wo" => "attn_output",
        "mlp_norm" => "ffn_norm",
        "mlp.Wi" => "ffn_up",
        "mlp.Wo" => "ffn_down",
        _ => return None,
    })
}
