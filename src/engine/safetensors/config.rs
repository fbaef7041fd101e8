//! The sizes of the encoder, how its vectors are pooled, and the words that it wants before a query or a passage.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

use super::json::{corrupt, optional, required, unsupported};
use crate::Error;
use crate::gguf::Translation;

/// `config.json`.
#[derive(Deserialize)]
struct Config {
    model_type: String,
    hidden_size: u32,
    num_hidden_layers: u32,
    num_attention_heads: u32,
    intermediate_size: u32,
    max_position_embeddings: u32,
    layer_norm_eps: Option<f64>,
    hidden_act: Option<String>,
    position_embedding_type: Option<String>,
    #[serde(default)]
    is_decoder: bool,
}

/// One of the steps in `modules.json`.
#[derive(Deserialize)]
struct Module {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    path: String,
}

/// The `config.json` of the pooling step.
#[derive(Deserialize, Default)]
#[serde(default)]
struct Pooling {
    pooling_mode_cls_token: bool,
    pooling_mode_mean_tokens: bool,
    pooling_mode_max_tokens: bool,
    pooling_mode_mean_sqrt_len_tokens: bool,
    pooling_mode_weightedmean_tokens: bool,
    pooling_mode_lasttoken: bool,
}

/// `sentence_bert_config.json`.
#[derive(Deserialize)]
struct SentenceBert {
    max_seq_length: Option<u32>,
}

/// `config_sentence_transformers.json`.
#[derive(Deserialize)]
struct SentenceTransformers {
    #[serde(default)]
    prompts: BTreeMap<String, Option<String>>,
}

/// Tells what the files say; returns the number of layers.
///
/// # Errors
/// Those of reading them; [`Error::UnsupportedModel`] for what is no BERT.
pub(super) fn read(folder: &Path, translation: &mut Translation) -> Result<usize, Error> {
    let path = folder.join("config.json");
    let config: Config = required(&path)?;
    check(&config, &path)?;
    let sentence: Option<SentenceBert> = optional(&folder.join("sentence_bert_config.json"))?;
    let longest = sentence.and_then(|sentence| sentence.max_seq_length).unwrap_or(u32::MAX);
    translation.string("general.architecture", "bert");
    translation.integer("bert.block_count", config.num_hidden_layers);
    translation.integer("bert.context_length", config.max_position_embeddings.min(longest));
    translation.integer("bert.embedding_length", config.hidden_size);
    translation.integer("bert.feed_forward_length", config.intermediate_size);
    translation.integer("bert.attention.head_count", config.num_attention_heads);
    translation.float("bert.attention.layer_norm_epsilon", config.layer_norm_eps.unwrap_or(1e-12));
    translation.integer("bert.pooling_type", pooling(folder)?);
    let path = folder.join("config_sentence_transformers.json");
    if let Some(SentenceTransformers { prompts }) = optional(&path)? {
        for (key, names) in [("query", ["query", "search_query"]), ("passage", ["passage", "document"])] {
            if let Some(prompt) = names.iter().find_map(|name| prompts.get(*name)?.as_deref()) {
                translation.string(&format!("steadytext.prompt.{key}"), prompt);
            }
        }
    }
    Ok(config.num_hidden_layers as usize)
}

fn check(config: &Config, path: &Path) -> Result<(), Error> {
    let shown = |text: &str| text.chars().take(64).collect::<String>().escape_debug().to_string();
    if config.model_type != "bert" {
        return Err(unsupported(
            path,
            format!("model_type is \"{}\", not \"bert\"", shown(&config.model_type)),
        ));
    }
    match config.hidden_act.as_deref() {
        None | Some("gelu") => {}
        Some(other) => {
            return Err(unsupported(path, format!("hidden_act is \"{}\", not \"gelu\"", shown(other))));
        }
    }
    match config.position_embedding_type.as_deref() {
        None | Some("absolute") => {}
        Some(other) => {
            let message = format!("position_embedding_type is \"{}\", not \"absolute\"", shown(other));
            return Err(unsupported(path, message));
        }
    }
    if config.is_decoder {
        return Err(unsupported(path, "is_decoder is true"));
    }
    Ok(())
}

/// The number of `bert.pooling_type`: that of the pooling step, the mean where there is none.
fn pooling(folder: &Path) -> Result<u32, Error> {
    let path = folder.join("modules.json");
    let mut step = PathBuf::from("1_Pooling");
    if let Some(modules) = optional::<Vec<Module>>(&path)? {
        for module in &modules {
            match module.kind.rsplit('.').next() {
                Some("Transformer" | "Normalize") => {}
                Some("Pooling") => step = PathBuf::from(&module.path),
                _ => {
                    let shown: String = module.kind.chars().take(64).collect();
                    let message = format!("it has a step \"{}\", which is not known", shown.escape_debug());
                    return Err(unsupported(&path, message));
                }
            }
        }
    }
    // A folder names no file outside of itself.
    if !step.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(corrupt(&path, "the path of a step leads out of the folder"));
    }
    let path = folder.join(step).join("config.json");
    let Some(pooling) = optional::<Pooling>(&path)? else { return Ok(1) };
    let unknown = pooling.pooling_mode_max_tokens
        || pooling.pooling_mode_mean_sqrt_len_tokens
        || pooling.pooling_mode_weightedmean_tokens;
    match (pooling.pooling_mode_mean_tokens, pooling.pooling_mode_cls_token, pooling.pooling_mode_lasttoken) {
        (true, false, false) if !unknown => Ok(1),
        (false, true, false) if !unknown => Ok(2),
        (false, false, true) if !unknown => Ok(3),
        _ => Err(unsupported(&path, "vectors are pooled neither by mean, nor by first or last token")),
    }
}
